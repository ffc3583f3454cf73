"""The numerical core as plain JAX functions; nothing here imports anything but JAX."""

from featurestore.kernels.cross_products import Centre, CrossProducts, combine, cross_products
from featurestore.kernels.gated_block import Block, BlockWeights, gated_block
from featurestore.kernels.moments import frame_mask, masked_statistics
from featurestore.kernels.products import convolution, dilated_convolution, pointwise
from featurestore.kernels.types import Precision

__all__ = [
    "Block",
    "BlockWeights",
    "Centre",
    "CrossProducts",
    "Precision",
    "combine",
    "convolution",
    "cross_products",
    "dilated_convolution",
    "frame_mask",
    "gated_block",
    "masked_statistics",
    "pointwise",
]
