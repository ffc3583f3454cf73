"""A Hugging Face folder with a very small wav2vec 2.0 of random weights, made without PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from featurestore.huggingface import expected_shapes
from featurestore.wav2vec2 import Architecture

TINY = Architecture(
    conv_dim=(16,) * 7,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
LARGE_STYLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def random_tensors(architecture: Architecture, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors by PyTorch's names, of a size that keeps activations near one."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(architecture).items():
        spread = 0.1 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[1:]))
        middle = 1.0 if name.endswith("norm.weight") else 0.0
        tensors[name] = (middle + spread * random.standard_normal(shape)).astype(np.float32)
    return tensors


def write_folder(
    folder: Path,
    *,
    seed: int = 0,
    tensors: dict[str, np.ndarray] | None = None,
    preprocessor: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """The folder; `changes` go into `config.json`, and into the architecture where it has them."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {field.name for field in dataclasses.fields(Architecture)}
    named = {name: value for name, value in changes.items() if name in known}
    architecture = dataclasses.replace(TINY, **named)
    config = {"model_type": "wav2vec2", **dataclasses.asdict(architecture), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if tensors is None:
        tensors = random_tensors(architecture, seed=seed)
    save_file(tensors, folder / "model.safetensors")
    return folder
