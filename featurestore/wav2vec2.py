"""wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021) in JAX.

Strided convolutions turn a 16 kHz waveform into a frame every 20 ms; a transformer with a
convolution for positions follows. Written for one utterance in a padded buffer and vmapped: the
normalisation over time, the positional convolution and the attention see its own samples only, so
that the result is that of the utterance alone, without padding.

The reference is Hugging Face's implementation, whose folders `featurestore.huggingface` reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from featurestore.batching import BatchPolicy
from featurestore.waveform import Waveform

Activation = Literal["gelu", "gelu_new", "relu"]
Parameters = Mapping[str, Any]

NORM_EPSILON = 1e-5  # of the convolutions' normalisations, which no configuration changes
HIDDEN = "hidden"  # the capture point
# Queries whose attention to all frames is held at once: 16 heads of a minute are 100 MB.
_QUERIES = 512
_MASKED = -1e30
# 30 s of audio at once, with which the base network takes 1.8 GB in all. On a CPU, compiling it
# takes as long as some 5 to 10 s of audio.
BATCHING = BatchPolicy(frames_per_batch=1500, compile_cost=500, batch_cost=8)

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


@dataclass(frozen=True)
class Architecture:
    """What a network computes, apart from its weights; names as in Hugging Face's `config.json`.

    Attributes:
        conv_dim: channels of each convolution over the waveform.
        conv_kernel: their taps.
        conv_stride: their strides; the product is the hop between frames in samples.
        conv_bias: whether they have biases.
        feat_extract_norm: `group`, each channel of the first one over time; `layer`, every frame of
            each one over channels.
        feat_extract_activation: after each convolution, the positional one too.
        feat_proj_layer_norm: whether the last convolution's output is normalised over channels.
        hidden_size: units of each layer.
        num_hidden_layers: transformer layers.
        num_attention_heads: heads of each.
        intermediate_size: width of their feed-forward networks.
        hidden_act: inside those.
        num_conv_pos_embeddings: taps of the positional convolution.
        num_conv_pos_embedding_groups: its groups.
        layer_norm_eps: of the transformer's normalisations.
        do_stable_layer_norm: whether each part of a layer is normalised before rather than after.
    """

    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Activation = "gelu"
    feat_proj_layer_norm: bool = True
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    do_stable_layer_norm: bool = False

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return functools.reduce(lambda hop, stride: hop * stride, self.conv_stride, 1)

    @property
    def window(self) -> int:
        """Samples that one frame sees before the transformer."""
        window, hop = 1, 1
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            window, hop = window + (kernel - 1) * hop, hop * stride
        return window


def layer_norm(
    x: Float[Array, "frame channel"], parameters: Parameters, *, epsilon: float
) -> Float[Array, "frame channel"]:
    """Each frame to mean 0 and variance 1 over channels, then scaled and shifted."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * parameters["scale"] + parameters["shift"]


def norm_over_time(
    x: Float[Array, "frame channel"], parameters: Parameters, *, valid: Bool[Array, "frame 1"]
) -> Float[Array, "frame channel"]:
    """Each channel to mean 0 and variance 1 over the valid frames: GroupNorm, a channel a group."""
    count = jnp.maximum(jnp.sum(valid), 1).astype(x.dtype)
    mean = jnp.sum(jnp.where(valid, x, 0.0), axis=0) / count
    variance = jnp.sum(jnp.where(valid, jnp.square(x - mean), 0.0), axis=0) / count
    return (x - mean) / jnp.sqrt(variance + NORM_EPSILON) * parameters["scale"] + parameters[
        "shift"
    ]


def linear(x: Float[Array, "frame channel"], parameters: Parameters) -> Float[Array, "frame out"]:
    """The same matrix applied to every frame, plus a bias."""
    return x @ parameters["kernel"] + parameters["bias"]


def convolution(
    x: Float[Array, "frame channel"],
    parameters: Parameters,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Float[Array, "_ out"]:
    """Convolution along frames; kernel (tap, channel of a group, out)."""
    out = jax.lax.conv_general_dilated(
        x[None],
        parameters["kernel"],
        window_strides=(stride,),
        padding=[padding],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )[0]
    return out + parameters["bias"] if "bias" in parameters else out


def convolved(
    architecture: Architecture,
    parameters: Parameters,
    waveform: Float[Array, " sample"],
    n_samples: Int[Array, ""],
) -> tuple[Float[Array, "frame channel"], Bool[Array, "frame 1"]]:
    """The frames of a waveform before the transformer, and which of them are the utterance's."""
    x, count = waveform[:, None], n_samples
    activation = _ACTIVATIONS[architecture.feat_extract_activation]
    valid = (jnp.arange(len(x)) < count)[:, None]
    for index, (kernel, stride) in enumerate(
        zip(architecture.conv_kernel, architecture.conv_stride, strict=True)
    ):
        own = parameters["convolutions"][index]
        x, count = convolution(x, own, stride=stride), (count - kernel) // stride + 1
        valid = (jnp.arange(len(x)) < count)[:, None]
        if architecture.feat_extract_norm == "layer":
            x = layer_norm(x, own["norm"], epsilon=NORM_EPSILON)
        elif index == 0:
            x = norm_over_time(x, own["norm"], valid=valid)
        x = activation(x)
    return x, valid


def attention(
    x: Float[Array, "frame unit"],
    parameters: Parameters,
    *,
    valid: Bool[Array, "frame 1"],
    heads: int,
) -> Float[Array, "frame unit"]:
    """Every frame's attention to the valid frames, a block of queries at a time."""
    frames, units = x.shape
    query, key, value = (
        linear(x, parameters[name]).reshape(frames, heads, units // heads)
        for name in ("query", "key", "value")
    )
    hidden = jnp.where(valid[:, 0], 0.0, _MASKED)

    def attend(block: Float[Array, "query head size"]) -> Float[Array, "query head size"]:
        scores = jnp.einsum("qhd,khd->hqk", block * (units // heads) ** -0.5, key)
        return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores + hidden, axis=-1), value)

    if frames <= _QUERIES:
        heard = attend(query)
    else:
        blocks = -(-frames // _QUERIES)
        padded = jnp.pad(query, ((0, blocks * _QUERIES - frames), (0, 0), (0, 0)))
        heard = jax.lax.map(attend, padded.reshape(blocks, _QUERIES, *query.shape[1:]))
        heard = heard.reshape(-1, *query.shape[1:])[:frames]
    return linear(heard.reshape(frames, units), parameters["out"])


def transformer_layer(
    architecture: Architecture,
    x: Float[Array, "frame unit"],
    parameters: Parameters,
    *,
    valid: Bool[Array, "frame 1"],
) -> Float[Array, "frame unit"]:
    """Attention and a feed-forward network, each added to what it was given."""
    norm = functools.partial(layer_norm, epsilon=architecture.layer_norm_eps)
    attend = functools.partial(attention, valid=valid, heads=architecture.num_attention_heads)

    def feed_forward(x: Array) -> Array:
        inner = _ACTIVATIONS[architecture.hidden_act](linear(x, parameters["inner"]))
        return linear(inner, parameters["outer"])

    if architecture.do_stable_layer_norm:
        x = x + attend(norm(x, parameters["attention_norm"]), parameters)
        return x + feed_forward(norm(x, parameters["final_norm"]))
    x = norm(x + attend(x, parameters), parameters["attention_norm"])
    return norm(x + feed_forward(x), parameters["final_norm"])


def hidden_states(
    architecture: Architecture,
    parameters: Parameters,
    waveform: Float[Array, " sample"],
    n_samples: Int[Array, ""],
) -> Float[Array, "layer frame unit"]:
    """What Hugging Face calls `hidden_states`: the transformer's input, then each layer's output.

    Args:
        architecture: what to compute.
        parameters: as from `featurestore.huggingface`; those of transformer layers stacked.
        waveform: samples of one utterance, then padding.
        n_samples: samples of the utterance.

    Returns:
        One more than there are transformer layers. The last one is `last_hidden_state`: with
        `do_stable_layer_norm` it is normalised and the others are not. Rows of padding hold nothing
        meaningful.
    """
    norm = functools.partial(layer_norm, epsilon=architecture.layer_norm_eps)
    x, valid = convolved(architecture, parameters, waveform, n_samples)
    if architecture.feat_proj_layer_norm:
        x = norm(x, parameters["projection_norm"])
    # Zeros beyond the utterance's end are what the positional convolution sees of one on its own.
    x = jnp.where(valid, linear(x, parameters["projection"]), 0.0)
    taps = architecture.num_conv_pos_embeddings
    positions = convolution(
        x,
        parameters["positions"],
        padding=(taps // 2, (taps - 1) // 2),
        groups=architecture.num_conv_pos_embedding_groups,
    )
    x = x + _ACTIVATIONS[architecture.feat_extract_activation](positions)
    if not architecture.do_stable_layer_norm:
        x = norm(x, parameters["norm"])

    def step(x: Array, layer: Parameters) -> tuple[Array, Array]:
        x = transformer_layer(architecture, x, layer, valid=valid)
        return x, x

    last, layers = jax.lax.scan(step, x, parameters["layers"])
    if architecture.do_stable_layer_norm:
        layers = layers.at[-1].set(norm(last, parameters["norm"]))
    return jnp.concatenate([x[None], layers])


@dataclass(frozen=True, eq=False)
class Wav2Vec2Encoder:
    """wav2vec 2.0 or HuBERT with its weights: an `featurestore.encoder.Encoder`.

    Attributes:
        name: where the weights came from, for people.
        kind: `wav2vec2` or `hubert`.
        fingerprint: sha256 of architecture and weights.
        front_end: the waveform, normalised or not.
        architecture: what the network computes.
        variables: parameters, as `hidden_states` takes them.
        untrained: whether the weights are random.
        batching: how its batches are shaped.
        captures: `hidden`, the transformer's input and each layer's output.
        receptive_field: None; attention sees the whole utterance.
    """

    name: str
    kind: str
    fingerprint: str
    front_end: Waveform
    architecture: Architecture
    variables: Parameters = field(repr=False)
    untrained: bool = False
    batching: BatchPolicy = BATCHING
    captures: tuple[str, ...] = (HIDDEN,)
    receptive_field: int | None = None

    @property
    def layer_names(self) -> tuple[str, ...]:
        """`embedding`, the transformer's input, and `layer_1` and so on."""
        count = self.architecture.num_hidden_layers
        return ("embedding", *(f"layer_{number}" for number in range(1, count + 1)))

    @property
    def units(self) -> int:
        """Units of each layer."""
        return self.architecture.hidden_size

    def apply(
        self,
        variables: Parameters,
        batch: Float[Array, "utterance sample"],
        lengths: Int[Array, " utterance"],
    ) -> dict[str, Array]:
        """`hidden_states` of padded waveforms; `lengths` are samples."""
        network = functools.partial(hidden_states, self.architecture)
        # In full float32 on GPUs too, which would round to TF32 otherwise.
        with jax.default_matmul_precision("highest"):
            return {HIDDEN: jax.vmap(network, in_axes=(None, 0, 0))(variables, batch, lengths)}
