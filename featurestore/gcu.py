"""The dilated GCU network of speech-to-text-wavenet (Kim and Park 2016) in Flax.

20 MFCC per frame go through a 1x1 convolution and 15 blocks of 128 gated convolutional units
(kernel 7, dilations 1, 2, 4, 8, 16 three times over), and the sum of all block outputs through two
1x1 convolutions to 28 character logits. Batch normalisation is folded into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from featurestore.batching import BatchPolicy
from featurestore.frontend import FrontEnd, front_end
from featurestore.kernels import (
    Block,
    BlockWeights,
    Precision,
    frame_mask,
    gated_block,
    masked_statistics,
    pointwise,
)
from featurestore.types import CAPTURES, CLASSES, UNITS, Arithmetic
from featurestore.weights import Weights

TAPS = 7
BN_EPSILON = 1e-8
DILATIONS: tuple[int, ...] = (1, 2, 4, 8, 16) * 3
LAYER_NAMES: tuple[str, ...] = tuple(
    f"block_{layer // 5}_{rate}" for layer, rate in enumerate(DILATIONS)
)
RECEPTIVE_FIELD = 1 + (TAPS - 1) * sum(DILATIONS)  # 559 frames, 17.9 s


class GCUBlock(nn.Module):
    """One block of gated convolutional units; see `featurestore.kernels.gated_block`."""

    dilation: int
    precision: Precision
    implementation: str
    keep: tuple[str, ...]

    @nn.compact
    def __call__(
        self, z: Float[Array, "utterance frame unit"], n_frames: Int[Array, " utterance"]
    ) -> Block:
        """Residual stream, gated activation, block output, and moments of the activation."""
        zeros, init = nn.initializers.zeros, nn.initializers.lecun_uniform()
        weights = BlockWeights(
            self.param("gated_kernel", init, (TAPS, UNITS, 2 * UNITS)),
            self.param("gated_bias", zeros, (2 * UNITS,)),
            self.param("out_kernel", init, (UNITS, UNITS)),
            self.param("out_bias", zeros, (UNITS,)),
        )
        return gated_block(
            z,
            n_frames,
            weights,
            dilation=self.dilation,
            precision=self.precision,
            implementation=self.implementation,
            keep=self.keep,
        )


class Pointwise(nn.Module):
    """A 1x1 convolution with bias."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "frame channel"]) -> Float[Array, "frame out"]:
        """The same matrix applied to every frame."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return pointwise(x, kernel) + bias


class GCUNetwork(nn.Module):
    """The whole network over a padded batch.

    Attributes:
        precision: type of the factors in the blocks' products.
        implementation: of the blocks; see `featurestore.kernels.gated_block`.
        keep: what is wanted of the blocks besides the residual stream; others may be None, and
            without `skip` there are no logits.
    """

    precision: Precision = "float32"
    implementation: str = "auto"
    keep: tuple[str, ...] = ("gate", "skip", "moments")

    @nn.compact
    def __call__(
        self,
        coefficients: Float[Array, "utterance frame 20"],
        n_frames: Int[Array, " utterance"],
    ) -> dict[str, Any]:
        """Named activations.

        Args:
            coefficients: MFCC, never normalised; rows from `n_frames` on are padding.
            n_frames: frames of each utterance.

        Returns:
            `front` (utterance, frame, unit) and `logits` (utterance, frame, class); as lists with
            one array per block `gate`, `skip` and `residual` (utterance, frame, unit) and `moments`
            of the gate (statistic, utterance, unit). Frames beyond `n_frames` hold nothing
            meaningful.
        """
        mask = jax.vmap(frame_mask, in_axes=(None, 0))(coefficients.shape[1], n_frames)
        front = jnp.tanh(Pointwise(UNITS, name="front")(coefficients))
        z = front * mask
        blocks: list[Block] = []
        for name, dilation in zip(LAYER_NAMES, DILATIONS, strict=True):
            block = GCUBlock(dilation, self.precision, self.implementation, self.keep, name=name)
            blocks.append(block(z, n_frames))
            z = blocks[-1].residual
        found: dict[str, Any] = {
            name: [getattr(block, name) for block in blocks] for name in (*CAPTURES, "moments")
        }
        if "skip" not in self.keep:
            return {"front": front, **found}
        hidden = jnp.tanh(Pointwise(UNITS, name="hidden")(sum(found["skip"][1:], found["skip"][0])))
        return {"front": front, **found, "logits": Pointwise(CLASSES, name="logits")(hidden)}


def _folded(tensors: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (taps, in, out) and bias of a convolution with its batch normalisation folded in."""
    w, beta, gamma, mean, variance = (
        tensors[f"{name}/{part}"].astype(np.float64)
        for part in ("W", "beta", "gamma", "mean", "variance")
    )
    scale = gamma / np.sqrt(variance + BN_EPSILON)
    kernel = w.reshape(-1, *w.shape[-2:]) * scale
    return kernel.astype(np.float32), (beta - mean * scale).astype(np.float32)


def network_parameters(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of `GCUNetwork` from checkpoint tensors, batch normalisation folded in float64."""

    def one_by_one(name: str) -> dict[str, np.ndarray]:
        kernel, bias = _folded(tensors, name)
        return {"kernel": kernel[0], "bias": bias}

    params: dict[str, Any] = {
        "front": one_by_one("front/conv_in"),
        "hidden": one_by_one("logit/conv_1"),
        "logits": {
            "kernel": tensors["logit/conv_2/W"].reshape(UNITS, CLASSES),
            "bias": tensors["logit/conv_2/b"],
        },
    }
    for name in LAYER_NAMES:
        filters, gates = (_folded(tensors, f"{name}/conv_{part}") for part in ("filter", "gate"))
        out = one_by_one(f"{name}/conv_out")
        params[name] = {
            "gated_kernel": np.concatenate([filters[0], gates[0]], axis=-1),
            "gated_bias": np.concatenate([filters[1], gates[1]]),
            "out_kernel": out["kernel"],
            "out_bias": out["bias"],
        }
    return {"params": params}


@dataclass(frozen=True, eq=False)
class GCUEncoder:
    """The network with its weights: an `featurestore.encoder.Encoder` that hears MFCC.

    Attributes:
        name: where the weights came from, for people.
        fingerprint: sha256 of the weights, for provenance.
        published: whether they are the published checkpoint.
        front_end: the MFCC that the weights were trained with.
        variables: Flax parameters.
        kind: of its views.
        captures: names of the capture points.
        units: gated convolutional units per block.
        layer_names: the checkpoint's names of the blocks.
        receptive_field: frames that one output frame sees.
        precision: arithmetic of the blocks, `float32` for parity with the original.
        implementation: of the blocks; see `featurestore.kernels.gated_block`.
        bytes_per_frame: temporary memory of its program per frame of a batch, MFCC included.
    """

    name: str
    fingerprint: str
    published: bool
    front_end: FrontEnd
    variables: dict[str, Any] = field(repr=False)
    kind: str = "gcu"
    captures: tuple[str, ...] = CAPTURES
    units: int = UNITS
    layer_names: tuple[str, ...] = LAYER_NAMES
    receptive_field: int = RECEPTIVE_FIELD
    precision: Arithmetic = "float32"
    implementation: str = "auto"
    bytes_per_frame: int = 13_000  # XLA says 9,200 to 12,300 for buckets of 128 to 8,192 frames

    @property
    def architecture(self) -> tuple[str, ...]:
        """What all sets of weights share that one compiled program serves."""
        return "gcu", self.precision, self.implementation

    @property
    def batching(self) -> BatchPolicy:
        """Short transforms pay with many sequences at a time: in full batches."""
        return BatchPolicy(batch_cost=1024) if self.precision == "winograd" else BatchPolicy()

    @property
    def bounds(self) -> dict[str, float]:
        """Largest absolute value of each capture point: products of tanh and sigmoid, and sums."""
        return {"gate": 1.0, "skip": 1.0, "residual": 1.0 + len(self.layer_names)}

    @property
    def layers(self) -> int:
        """Blocks."""
        return len(self.layer_names)

    @property
    def frame_period_s(self) -> float:
        """Seconds between frames."""
        return self.front_end.frame_period_s

    @property
    def untrained(self) -> bool:
        """Whether the weights are random: a control, not a recogniser."""
        return self.name.startswith("random:")

    def in_precision(self, precision: Arithmetic) -> GCUEncoder:
        """The same network with other arithmetic in its blocks."""
        return replace(self, precision=precision)

    def apply(
        self,
        variables: Any,
        batch: Float[Array, "utterance frame 20"],
        lengths: Int[Array, " utterance"],
    ) -> dict[str, Array]:
        """`GCUNetwork` on a padded batch of MFCC; `lengths` are frames."""
        found = self._run(variables, batch, lengths, ("gate", "skip"))
        stacked = {name: jnp.stack(found[name], axis=1) for name in CAPTURES}
        return {"front": found["front"], **stacked, "logits": found["logits"]}

    def by_layer(
        self,
        variables: Any,
        batch: Float[Array, "utterance frame 20"],
        lengths: Int[Array, " utterance"],
        *,
        captures: Sequence[str],
        frames: bool,
    ) -> dict[str, list[tuple[Array | None, Array]]]:
        """Activations and statistics of each layer; see `featurestore.encoder.Encoder`."""
        keep = [
            name for name in ("gate", "skip") if name in captures and (frames or name != "gate")
        ]
        if "gate" in captures:
            keep.append("moments")
        found = self._run(variables, batch, lengths, tuple(keep))
        pool = jax.vmap(masked_statistics, out_axes=1)
        return {
            name: [
                (value, moments if name == "gate" else pool(value, lengths))
                for value, moments in zip(found[name], found["moments"], strict=True)
            ]
            for name in captures
        }

    def _run(
        self, variables: Any, batch: Array, lengths: Array, keep: tuple[str, ...]
    ) -> dict[str, Any]:
        network: Any = (
            GCUNetwork("float32", "winograd", keep)
            if self.precision == "winograd"
            else GCUNetwork(self.precision, self.implementation, keep)
        )
        return network.apply(variables, batch, lengths)


def gcu_encoder(weights: Weights, *, variant: str | None = None) -> GCUEncoder:
    """The network with these weights.

    Args:
        weights: a checked set of them.
        variant: front end to use instead of the one that the weights were trained with.

    Raises:
        AudioError: an unknown front end.
    """
    return GCUEncoder(
        name=weights.source,
        fingerprint=weights.fingerprint,
        published=weights.published,
        front_end=front_end(variant or weights.front_end),
        variables=jax.device_put(network_parameters(weights.tensors)),
    )
