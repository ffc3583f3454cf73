"""The numerical core as plain JAX functions; nothing here imports anything but JAX."""

from featurestore.kernels.gcu import dilated_convolution, gated_block, pointwise
from featurestore.kernels.pooling import frame_mask, masked_statistics

__all__ = ["dilated_convolution", "frame_mask", "gated_block", "masked_statistics", "pointwise"]
