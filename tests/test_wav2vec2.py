"""wav2vec 2.0 and HuBERT: equal to Hugging Face's, blind to padding, and careful readers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_wav2vec2 import LARGE_STYLE, TINY, random_tensors, write_folder

from featurestore.batching import BatchPolicy
from featurestore.encoder import encode, load_encoder
from featurestore.errors import AudioError, CheckpointError
from featurestore.huggingface import load_folder
from featurestore.wav2vec2 import Architecture, Wav2Vec2Encoder
from featurestore.waveform import Waveform

# One frame, the last sample before two, two; lengths that end anywhere in a frame.
SAMPLES = (400, 719, 720, 9_000, 16_000, 33_333)
STYLES = [
    pytest.param({}, id="base"),
    pytest.param(LARGE_STYLE, id="large"),
]


def noise(samples: int, *, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng([seed, samples]).standard_normal(samples)).astype("f4")


def encoder_of(folder: Path, **options: Any) -> Wav2Vec2Encoder:
    return load_folder(write_folder(folder, **options))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Wav2Vec2Encoder:
    return encoder_of(tmp_path_factory.mktemp("base"))


# --- the oracle ---------------------------------------------------------------------------------


def saved_by_transformers(folder: Path, name: str, changes: dict[str, Any]) -> Any:
    """A PyTorch model of random weights, saved into `folder`."""
    with warnings.catch_warnings():  # PyTorch and transformers warn about each other
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="the oracle needs PyTorch")
        transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")
        transformers.utils.logging.disable_progress_bar()
        kind = name.removesuffix("Model").partition("For")[0]
        small = {key: getattr(TINY, key) for key in ("conv_dim", "hidden_size")}
        config = getattr(transformers, f"{kind}Config")(
            **{
                **small,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 48,
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 4,
                "vocab_size": 12,
                "codevector_dim": 8,
                "proj_codevector_dim": 8,
                **changes,
            }
        )
        torch.manual_seed(0)
        model = getattr(transformers, name)(config).eval()
        for values in model.parameters():  # biases begin at zero, scales at one
            values.data += 0.05 * torch.randn_like(values)
        model.save_pretrained(folder)
    return model


def their_states(model: Any, waveform: np.ndarray) -> np.ndarray:
    import torch

    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = base(torch.from_numpy(waveform)[None], output_hidden_states=True)
    # Versions of transformers disagree on whether the last of the states is normalised.
    states = [*found.hidden_states[:-1], found.last_hidden_state]
    return np.stack([state[0].numpy() for state in states])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Wav2Vec2Model", {}),
        ("Wav2Vec2Model", {"feat_extract_norm": "layer", "hidden_act": "gelu_new"}),
        ("Wav2Vec2ForPreTraining", {"num_conv_pos_embeddings": 9}),
        ("Wav2Vec2ForCTC", LARGE_STYLE),
        ("HubertModel", {"feat_proj_layer_norm": False}),
        ("HubertForCTC", LARGE_STYLE),
    ],
)
def test_hidden_states_are_those_of_transformers(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = saved_by_transformers(tmp_path, name, changes)
    ours = load_encoder(f"{model.config.model_type}:{tmp_path}")
    waveforms = [noise(samples) for samples in SAMPLES]
    for waveform, found in zip(waveforms, encode(ours, waveforms), strict=True):
        expected = their_states(model, ours.front_end.prepare(waveform))
        assert found["hidden"].shape == expected.shape
        np.testing.assert_allclose(found["hidden"], expected, atol=2e-5)


def test_normalisation_is_that_of_transformers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")
        extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
        expected = extract(0.3 + noise(5_000), sampling_rate=16_000)["input_values"][0]
    ours = Waveform(window=400, hop=320, normalised=True).prepare(0.3 + noise(5_000))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


# --- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", STYLES)
def test_company_and_padding_are_invisible(changes: dict[str, Any], tmp_path: Path) -> None:
    ours = encoder_of(tmp_path, **changes)
    waveforms = [noise(samples) for samples in (400, 9_000, 33_333)]
    alone = [encode(ours, [waveform])[0]["hidden"] for waveform in waveforms]
    together = encode(ours, waveforms, policy=BatchPolicy(compile_cost=10**9))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_allclose(found["hidden"], expected, atol=1e-5)


def test_attention_in_blocks_is_attention(
    encoder: Wav2Vec2Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    from featurestore import wav2vec2

    def states() -> np.ndarray:
        network = jax.jit(lambda *inputs: encoder.apply(*inputs)["hidden"])
        return np.asarray(network(encoder.variables, waveforms, lengths))

    waveforms, lengths = np.zeros((2, 20_000), np.float32), np.array([20_000, 7_000])
    waveforms[0], waveforms[1, :7_000] = noise(20_000), noise(7_000)
    whole = states()
    monkeypatch.setattr(wav2vec2, "_QUERIES", 16)  # of 62 frames: the last block is not full
    blocks = states()
    for row, frames in enumerate((62, 21)):
        np.testing.assert_allclose(blocks[row, :, :frames], whole[row, :, :frames], atol=1e-5)


# --- what the encoder says ----------------------------------------------------------------------


def test_what_an_encoder_says_of_itself(encoder: Wav2Vec2Encoder) -> None:
    assert (encoder.kind, encoder.units, encoder.receptive_field) == ("wav2vec2", 32, None)
    assert encoder.layer_names == ("embedding", "layer_1", "layer_2", "layer_3")
    assert encoder.front_end.frame_period_s == 0.02
    assert encoder.front_end.frame_offset_s == 0.0125
    assert encoder.name.startswith("wav2vec2:base")


def test_frames_of_the_real_networks() -> None:
    assert (Architecture().window, Architecture().hop) == (400, 320)


def test_frames_are_counted_as_the_convolutions_make_them(encoder: Wav2Vec2Encoder) -> None:
    for samples in (*SAMPLES, *range(1_000, 1_700, 67)):
        (found,) = encode(encoder, [noise(samples)])
        assert found["hidden"].shape == (4, encoder.front_end.frame_count(samples), 32)


def test_what_cannot_be_heard_is_refused(encoder: Wav2Vec2Encoder) -> None:
    with pytest.raises(AudioError, match=r"399 samples at 16 kHz are too short.* at least 400"):
        encode(encoder, [noise(399)])
    with pytest.raises(AudioError, match=r"121\.0 s are too long .*at most 120 s.*'start'"):
        encoder.front_end.frame_count(121 * 16_000)
    with pytest.raises(AudioError, match="hears waveforms"):
        encode(encoder, [np.zeros((8, 20), np.float32)])
    with pytest.raises(AudioError, match="expected samples as floats"):
        encode(encoder, [np.zeros(8_000, np.int16)])


def test_loudness_counts_only_without_normalisation(tmp_path: Path) -> None:
    waveform = noise(8_000)
    for normalised, name in ((True, "waveform-normalised"), (False, "waveform")):
        options = {"do_normalize": normalised, "sampling_rate": 16_000}
        ours = encoder_of(tmp_path / name, preprocessor=options, **LARGE_STYLE)
        assert ours.front_end.name == name
        quiet, loud = (one["hidden"] for one in encode(ours, [waveform, 3 * waveform]))
        assert (float(np.abs(quiet - loud).max()) < 1e-4) is normalised


# --- folders ------------------------------------------------------------------------------------


def in_other_names(folder: Path, how: str) -> None:
    """Rename a folder's tensors as other versions of transformers save them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kernel = tensors.pop("encoder.pos_conv_embed.conv.weight").astype(np.float64)
    length = np.sqrt(np.square(kernel).sum(axis=(0, 1), keepdims=True))
    parts = ("weight_g", "weight_v")
    if how == "parametrised":
        parts = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    for part, values in zip(parts, (length, 3 * kernel), strict=True):
        tensors[f"encoder.pos_conv_embed.conv.{part}"] = values.astype(np.float32)
    tensors["masked_spec_embed"] = np.zeros(32, np.float32)
    if how == "with a head":
        tensors = {f"wav2vec2.{name}": values for name, values in tensors.items()}
        tensors["lm_head.weight"] = np.zeros((12, 32), np.float32)
    if how == "in shards":
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, held in shards.items():
            save_file({name: tensors[name] for name in held}, folder / file)
        where = {name: file for file, held in shards.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        path.unlink()
    else:
        save_file(tensors, path)


@pytest.mark.parametrize("how", ["old", "parametrised", "with a head", "in shards"])
def test_all_ways_to_save_a_network_are_read(
    how: str, encoder: Wav2Vec2Encoder, tmp_path: Path
) -> None:
    write_folder(tmp_path)
    in_other_names(tmp_path, how)
    ours = load_folder(tmp_path)
    kernel = encoder.variables["positions"]["kernel"]
    np.testing.assert_allclose(ours.variables["positions"]["kernel"], kernel, atol=1e-6)
    np.testing.assert_array_equal(
        ours.variables["layers"]["inner"]["kernel"],
        encoder.variables["layers"]["inner"]["kernel"],
    )


def test_the_fingerprint_is_of_network_and_weights(
    encoder: Wav2Vec2Encoder, tmp_path: Path
) -> None:
    same = encoder_of(tmp_path / "same")
    assert same.fingerprint == encoder.fingerprint
    others = [{"seed": 1}, {"hidden_act": "relu"}, {"num_attention_heads": 2}]
    found = {encoder_of(tmp_path / str(i), **other).fingerprint for i, other in enumerate(others)}
    assert len({encoder.fingerprint, *found}) == 4


def test_half_precision_is_widened(encoder: Wav2Vec2Encoder, tmp_path: Path) -> None:
    halves = {name: values.astype(np.float16) for name, values in random_tensors(TINY).items()}
    ours = encoder_of(tmp_path, tensors=halves)
    assert ours.variables["norm"]["scale"].dtype == np.float32
    np.testing.assert_allclose(
        ours.variables["norm"]["scale"], encoder.variables["norm"]["scale"], atol=1e-3
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "whisper"}, "model_type 'whisper' is another network"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm 'batch'; accepted: 'group', 'layer'"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'; accepted"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim=16 is a variant"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True is a variant"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple"),
        ({"conv_stride": [5, 2]}, "different lengths"),
        ({"preprocessor": {"sampling_rate": 8000}}, "sampling_rate 8000 Hz; accepted: 16000"),
    ],
)
def test_other_networks_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    with pytest.raises(CheckpointError, match=message):
        load_folder(write_folder(tmp_path, tensors=tensors, **changes))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    def refused(message: str, **changed: np.ndarray | None) -> None:
        tensors = random_tensors(TINY)
        for name, values in changed.items():
            key = name.replace("__", ".")
            tensors.pop(key, None)
            if values is not None:
                tensors[key] = values
        with pytest.raises(CheckpointError, match=message):
            load_folder(write_folder(tmp_path, tensors=tensors))

    query, bad = "encoder__layers__1__attention__q_proj__weight", np.full((32, 32), np.nan, "f4")
    refused("1 of the network's 65 tensors are missing: encoder.layers.1.att", **{query: None})
    refused(r"has shape \(3, 4\), config.json says \(32, 32\)", **{query: np.zeros((3, 4), "f4")})
    refused("q_proj.weight' has values that are not finite", **{query: bad})
    extra = {"encoder__layers__0__adapter_layer__norm__weight": np.zeros(3, "f4")}
    refused("1 tensors that config.json does not account for", **extra)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_folder(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"a pickle .*save_pretrained"):
        load_folder(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_encoder(f"wav2vec2:{tmp_path}")
    with pytest.raises(CheckpointError, match=f"wav2vec2:{tmp_path}"):
        load_encoder(write_folder(tmp_path))
