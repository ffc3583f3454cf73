"""wav2vec 2.0 and HuBERT from Hugging Face folders: `config.json` and safetensors, no PyTorch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featurestore.errors import CheckpointError
from featurestore.types import SAMPLE_RATE
from featurestore.wav2vec2 import Architecture, Wav2Vec2Encoder
from featurestore.waveform import Waveform
from featurestore.weights import fingerprint

KINDS = ("wav2vec2", "hubert")
# Memory of the attention grows with the square of an utterance, that of the convolutions is 7 MB
# for each second.
LONGEST_S = 120.0
_SAFE = "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_STORED = ("F32", "F16", "BF16")


def load_folder(folder: str | Path) -> Wav2Vec2Encoder:
    """The encoder in a folder that `save_pretrained` wrote, or that was downloaded from the Hub.

    Models saved with or without a head will do. Audio is brought to mean 0 and variance 1 unless
    `preprocessor_config.json` says otherwise (`do_normalize`), as the network was trained.

    Args:
        folder: holds `config.json` and `model.safetensors`, whole or in shards.

    Raises:
        CheckpointError: a file is missing or damaged, or it is a network that is not wav2vec 2.0 or
            HuBERT, or a variant of those that is not supported.
    """
    place = Path(folder)
    config = _read_json(place / "config.json")
    kind = config.get("model_type")
    if kind not in KINDS:
        raise CheckpointError(
            f"{place}: model_type {kind!r} is another network; accepted: {', '.join(KINDS)}"
        )
    architecture = _architecture(config, where=str(place))
    tensors = _model_tensors(_read_tensors(place), kind, architecture, where=str(place))
    identity = json.dumps(dataclasses.asdict(architecture), sort_keys=True)
    digest = hashlib.sha256(f"{identity}\n{fingerprint(tensors)}".encode())
    return Wav2Vec2Encoder(
        name=f"{kind}:{place.resolve().name}",
        kind=kind,
        fingerprint=digest.hexdigest(),
        front_end=Waveform(
            window=architecture.window,
            hop=architecture.hop,
            normalised=_normalised(place),
            longest_s=LONGEST_S,
        ),
        architecture=architecture,
        variables=_on_device(parameters(tensors, architecture)),
    )


def _on_device(tree: Any) -> Any:
    import jax

    return jax.device_put(tree)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; expected a Hugging Face folder with config.json and {_SAFE}"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold an object with named values")
    return found


def _normalised(place: Path) -> bool:
    path = place / "preprocessor_config.json"
    if not path.exists():
        return True
    config = _read_json(path)
    rate = config.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise CheckpointError(f"{path}: sampling_rate {rate!r} Hz; accepted: {SAMPLE_RATE}")
    return bool(config.get("do_normalize", True))


def _architecture(config: Mapping[str, Any], *, where: str) -> Architecture:
    """The architecture that a `config.json` describes; what it leaves out has its default."""
    for name, plain in (("adapter_attn_dim", None), ("conv_pos_batch_norm", False)):
        if config.get(name, plain) != plain:
            raise CheckpointError(
                f"{where}: {name}={config[name]!r} is a variant of this network that is not "
                "supported"
            )
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(Architecture)
    for field in dataclasses.fields(Architecture):
        value = config.get(field.name, field.default)
        values[field.name] = tuple(value) if isinstance(value, list) else value
        choices = typing.get_args(hints[field.name])
        if typing.get_origin(hints[field.name]) is Literal and value not in choices:
            raise CheckpointError(
                f"{where}: {field.name} {value!r}; accepted: {', '.join(map(repr, choices))}"
            )
    found = Architecture(**values)
    if len({len(found.conv_dim), len(found.conv_kernel), len(found.conv_stride)}) != 1:
        raise CheckpointError(
            f"{where}: conv_dim, conv_kernel and conv_stride have different lengths"
        )
    if found.hidden_size % found.num_attention_heads:
        raise CheckpointError(
            f"{where}: hidden_size {found.hidden_size} is not a multiple of num_attention_heads "
            f"{found.num_attention_heads}"
        )
    return found


def _files(place: Path) -> list[Path]:
    if (place / _SAFE).exists():
        return [place / _SAFE]
    if (place / _SHARDS).exists():
        index = _read_json(place / _SHARDS).get("weight_map", {})
        return [place / name for name in sorted(set(index.values()))]
    if (place / "pytorch_model.bin").exists():
        raise CheckpointError(
            f"{place} has its weights in pytorch_model.bin only, a pickle that could run code; "
            "convert it with transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    raise CheckpointError(f"{place} holds no {_SAFE}")


def _read_tensors(place: Path) -> dict[str, np.ndarray]:
    """All tensors, widened to float32."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, np.ndarray] = {}
    for path in _files(place):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    kind = file.get_slice(name).get_dtype()
                    if kind in _STORED:
                        tensors[name] = file.get_tensor(name).astype(np.float32)
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path}: not a whole safetensors file: {reason}") from error
    return tensors


def _model_tensors(
    tensors: Mapping[str, np.ndarray], kind: str, architecture: Architecture, *, where: str
) -> dict[str, np.ndarray]:
    """The network's own tensors by their names without prefix, the positional kernel whole.

    Raises:
        CheckpointError: one is missing, unexpected, of another shape, or not finite.
    """
    prefix = f"{kind}."
    prefixed = any(name.startswith(prefix) for name in tensors)
    found = {
        name.removeprefix(prefix): values
        for name, values in tensors.items()
        if name.startswith(prefix) or not prefixed
    }
    _join_weight_norm(found)
    expected = expected_shapes(architecture)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} of the network's {len(expected)} tensors are missing: "
            f"{_few(missing)}"
        )
    networks = ("feature_extractor.", "feature_projection.", "encoder.")
    unexpected = sorted(n for n in found.keys() - expected.keys() if n.startswith(networks))
    if unexpected:
        raise CheckpointError(
            f"{where}: {len(unexpected)} tensors that config.json does not account for: "
            f"{_few(unexpected)}; it is a variant of this network that is not supported"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{where}: tensor {name!r} has shape {found[name].shape}, config.json says {shape}"
            )
        if not np.isfinite(found[name]).all():
            raise CheckpointError(f"{where}: tensor {name!r} has values that are not finite")
    return {name: found[name] for name in expected}


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f", and {len(listed) - 3} more" if len(listed) > 3 else "")


def _join_weight_norm(tensors: dict[str, np.ndarray]) -> None:
    """Replace the parts of the positional kernel by the kernel, which is g v / |v| for each tap."""
    name = "encoder.pos_conv_embed.conv.weight"
    for g, v in (
        (f"{name}_g", f"{name}_v"),
        (
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        ),
    ):
        if g in tensors and v in tensors:
            scale, direction = tensors.pop(g).astype(np.float64), tensors.pop(v).astype(np.float64)
            length = np.sqrt(np.square(direction).sum(axis=(0, 1), keepdims=True))
            with np.errstate(invalid="ignore", divide="ignore"):  # a NaN is refused later
                tensors[name] = (scale * direction / length).astype(np.float32)


def expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """PyTorch's names and shapes of the tensors that an architecture has."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    before = 1
    for index, (channels, kernel) in enumerate(zip(a.conv_dim, a.conv_kernel, strict=True)):
        layer = f"feature_extractor.conv_layers.{index}"
        add(f"{layer}.conv", channels, before, kernel, bias=a.conv_bias)
        if a.feat_extract_norm == "layer" or index == 0:
            add(f"{layer}.layer_norm", channels)
        before = channels
    if a.feat_proj_layer_norm:
        add("feature_projection.layer_norm", before)
    add("feature_projection.projection", a.hidden_size, before)
    per_group = a.hidden_size // a.num_conv_pos_embedding_groups
    add("encoder.pos_conv_embed.conv", a.hidden_size, per_group, a.num_conv_pos_embeddings)
    add("encoder.layer_norm", a.hidden_size)
    for index in range(a.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        for name in _ATTENTION.values():
            add(f"{layer}.{name}", a.hidden_size, a.hidden_size)
        add(f"{layer}.layer_norm", a.hidden_size)
        add(f"{layer}.final_layer_norm", a.hidden_size)
        add(f"{layer}.feed_forward.intermediate_dense", a.intermediate_size, a.hidden_size)
        add(f"{layer}.feed_forward.output_dense", a.hidden_size, a.intermediate_size)
    return shapes


_ATTENTION = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.out_proj",
}


def parameters(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> dict[str, Any]:
    """Parameters of `wav2vec2.hidden_states` from tensors by PyTorch's names.

    Kernels are transposed to (..., in, out), and those of transformer layers stacked.
    """

    def kernel(name: str) -> dict[str, np.ndarray]:
        made = {"kernel": np.ascontiguousarray(tensors[f"{name}.weight"].T)}
        if f"{name}.bias" in tensors:
            made["bias"] = tensors[f"{name}.bias"]
        return made

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": tensors[f"{name}.weight"], "shift": tensors[f"{name}.bias"]}

    convolutions = []
    for index in range(len(architecture.conv_dim)):
        layer = f"feature_extractor.conv_layers.{index}"
        made: dict[str, Any] = kernel(f"{layer}.conv")
        if f"{layer}.layer_norm.weight" in tensors:
            made["norm"] = norm(f"{layer}.layer_norm")
        convolutions.append(made)
    layers = [
        {
            **{part: kernel(f"{layer}.{name}") for part, name in _ATTENTION.items()},
            "inner": kernel(f"{layer}.feed_forward.intermediate_dense"),
            "outer": kernel(f"{layer}.feed_forward.output_dense"),
            "attention_norm": norm(f"{layer}.layer_norm"),
            "final_norm": norm(f"{layer}.final_layer_norm"),
        }
        for layer in (f"encoder.layers.{i}" for i in range(architecture.num_hidden_layers))
    ]
    stacked = {
        part: {name: np.stack([layer[part][name] for layer in layers]) for name in values}
        for part, values in layers[0].items()
    }
    made = {
        "convolutions": convolutions,
        "projection": kernel("feature_projection.projection"),
        "positions": kernel("encoder.pos_conv_embed.conv"),
        "norm": norm("encoder.layer_norm"),
        "layers": stacked,
    }
    if architecture.feat_proj_layer_norm:
        made["projection_norm"] = norm("feature_projection.layer_norm")
    return made
