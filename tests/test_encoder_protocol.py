"""Networks other than the GCU network, from their registration to the report."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import babble, write_corpus
from tiny_wav2vec2 import write_folder
from typer.testing import CliRunner, Result

import featurestore as fs
from featurestore.batching import BatchPolicy, Bucket
from featurestore.cli.app import app
from featurestore.encoder import Encoder, check_encoder
from featurestore.errors import CheckpointError, FeatureStoreError, StoreError
from featurestore.extract import Request, compile_program
from featurestore.planning import plan_ingest
from featurestore.setup import IngestConfig
from featurestore.waveform import Waveform

DURATIONS = [0.3, 1.0, 2.5, 0.7, 4.0, 1.1, 0.9, 3.2]


class Loudness:
    """One layer of two units, loudness and its slope, of 100 samples each."""

    name, kind, untrained = "loudness", "loudness", False
    captures, layer_names, units = ("level",), ("only",), 2
    receptive_field = 1
    front_end = Waveform(window=100, hop=100)
    variables: Any = np.float32(1.0)

    def __init__(self, power: int = 2) -> None:
        self.power = power
        self.fingerprint = f"loudness-{power}"

    def apply(self, variables: Any, batch: Any, lengths: Any) -> dict[str, Any]:
        import jax.numpy as jnp

        frames = batch[:, : batch.shape[1] // 100 * 100].reshape(len(batch), -1, 100)
        level = jnp.mean(jnp.abs(frames) ** self.power, axis=-1) * variables
        return {"level": jnp.stack([level, level**2], axis=-1)[:, None]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return write_corpus(tmp_path_factory.mktemp("corpus"), durations=DURATIONS, speakers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def store(manifest: pd.DataFrame, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wav2vec 2.0 and MFCC of a corpus, float32 frames."""
    path = tmp_path_factory.mktemp("stores") / "store"
    fs.ingest(
        manifest, path, encoder=f"wav2vec2:{folder}", views=("network", "mfcc"), dtype="float32"
    )
    return path


# --- one real network, all the way --------------------------------------------------------------


def test_the_store_holds_what_the_network_gives_of_each_utterance_alone(
    store: Path, manifest: pd.DataFrame, folder: Path
) -> None:
    from featurestore.audio import load_audio

    opened, encoder = fs.open_store(store), fs.load_encoder(f"wav2vec2:{folder}")
    pooled = opened.pooled("wav2vec2").compute()
    assert pooled["hidden"].dims == ("statistic", "utterance", "layer", "unit")
    assert list(pooled["layer_name"].values) == ["embedding", "layer_1", "layer_2", "layer_3"]
    for id, path in zip(manifest["id"][::3], manifest["path"][::3], strict=True):
        (alone,) = fs.encode(encoder, [load_audio(path)])
        frames = opened.utterance("wav2vec2", "hidden", id)
        np.testing.assert_allclose(frames, alone["hidden"], atol=1e-5)
        np.testing.assert_allclose(
            frames["time_s"], 0.0125 + 0.02 * np.arange(frames.sizes["frame"])
        )
        mean = pooled["hidden"].sel(statistic="mean")[list(pooled["id"].values).index(id)]
        np.testing.assert_allclose(mean, alone["hidden"].mean(axis=1), atol=1e-5)


def test_mfcc_beside_it_are_those_of_any_store(
    store: Path, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    from featurestore.audio import load_audio

    opened = fs.open_store(store)
    first = manifest.iloc[0]
    frames = opened.utterance("mfcc", "mfcc", first["id"])
    np.testing.assert_allclose(frames, fs.mfcc(load_audio(first["path"])), atol=1e-3)
    fs.ingest(manifest, tmp_path / "plain", encoder=None, views="mfcc")
    plain = fs.open_store(tmp_path / "plain")
    assert plain.views == [name for name in opened.views if name.startswith("mfcc")]


def test_frames_of_all_utterances_carry_their_times(store: Path) -> None:
    frames = fs.open_store(store).frames()
    assert frames.dims == ("layer", "frame", "unit")
    starts = np.unique(frames["utterance"].to_numpy().astype(str), return_index=True)[1]
    np.testing.assert_allclose(frames["time_s"].to_numpy()[starts], 0.0125)


def test_verify_finds_it_sound_and_a_second_ingest_nothing_to_do(
    store: Path, manifest: pd.DataFrame, folder: Path
) -> None:
    assert fs.verify(store).sound
    again = fs.ingest(
        manifest, store, encoder=f"wav2vec2:{folder}", views=("wav2vec2", "mfcc"), dtype="float32"
    )
    assert again.utterances == 0
    assert again.plan.hours == 0


def test_one_plan_for_two_frame_rates(manifest: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    plan = plan_ingest(
        manifest,
        tmp_path / "store",
        encoder=f"wav2vec2:{folder}",
        config=IngestConfig(views=("network", "mfcc")),
    )
    samples = [round(seconds * 16_000) for seconds in DURATIONS]
    expected = sum((n - 400) // 320 + 1 for n in samples) + sum(1 + n // 512 for n in samples)
    assert plan.frames == expected
    assert plan.frame_periods_s == (0.02, 0.032)
    assert plan.hours * 3600 == pytest.approx(sum(DURATIONS), rel=0.02)
    assert plan.utterances == len(DURATIONS)


def test_an_interrupted_ingest_is_completed(
    manifest: pd.DataFrame, folder: Path, store: Path, tmp_path: Path
) -> None:
    encoder = fs.load_encoder(f"wav2vec2:{folder}")
    config = IngestConfig(views=("network", "mfcc"), dtype="float32")
    fs.ingest(manifest, tmp_path / "store", encoder=encoder, config=config)
    (record,) = (tmp_path / "store").glob("views/wav2vec2-*/ledger/*/00000.json")
    record.unlink()
    again = fs.ingest(manifest, tmp_path / "store", encoder=encoder, config=config)
    assert again.utterances == len(manifest)
    assert fs.verify(tmp_path / "store").sound
    expected = fs.open_store(store).frames().to_numpy()
    np.testing.assert_allclose(fs.open_store(tmp_path / "store").frames(), expected, atol=1e-5)


def test_what_one_front_end_refuses_the_other_takes(folder: Path, tmp_path: Path) -> None:
    import soundfile

    rows = []
    for id, samples in (("short", 700), ("long", 8_000), ("shortest", 300)):
        path = tmp_path / f"{id}.wav"
        soundfile.write(path, babble(1)[:samples], 16_000)
        rows.append({"id": id, "path": str(path), "speaker": "s"})
    summary = fs.ingest(
        pd.DataFrame(rows), tmp_path / "store", encoder=f"wav2vec2:{folder}",
        views=("network", "mfcc"),
    )  # fmt: skip
    aside = {(one.id, one.views) for one in summary.skipped}
    assert aside == {
        ("short", ("mfcc",)), ("shortest", ("mfcc",)), ("shortest", ("wav2vec2",))
    }  # fmt: skip
    opened = fs.open_store(tmp_path / "store")
    assert sorted(opened.utterances("wav2vec2")["id"]) == ["long", "short"]
    assert list(opened.utterances("mfcc")["id"]) == ["long"]


def featurestore(*arguments: Any) -> Result:
    from featurestore.cli import analysis, ingest, store  # noqa: F401  # they register themselves

    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output + repr(found.exception)
    return found


def test_the_command_line_from_folder_to_heat_map_and_table(
    manifest: pd.DataFrame, folder: Path, tmp_path: Path
) -> None:
    fs.write_manifest(manifest, tmp_path / "manifest.csv")
    path = tmp_path / "store"
    said = featurestore(
        "ingest", tmp_path / "manifest.csv", path, "-w", f"wav2vec2:{folder}",
        "--views", "network,mfcc", "-q",
    ).stdout  # fmt: skip
    assert "frames of 20 and 32 ms" in said
    told = featurestore("info", path).stdout
    assert "4 of 32 units" in told
    assert "hidden; frames in float16, one every 20 ms" in told
    assert "wav2vec2:tiny" in told
    facts = json.loads(featurestore("info", path, "--json").stdout)
    assert {view["kind"] for view in facts["views"]} == {"wav2vec2", "mfcc"}
    featurestore("verify", path, "-q")
    featurestore("correlate", path, "-t", "arousal", "-t", "valence", "-o", tmp_path / "figures")
    assert (tmp_path / "figures" / "heatmap-all.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "figures" / "correlation-arousal.csv")
    assert (table["layer"].nunique(), table["unit"].nunique()) == (4, 32)
    featurestore("evaluate", path, "--features", 5, "-o", tmp_path / "tables")
    assert "5 best of all units" in (tmp_path / "tables" / "table1.md").read_text()


def test_a_heat_map_says_layer_and_unit(store: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from featurestore.report import figures

    found = fs.correlate(fs.open_store(store), target="arousal")
    assert found.attrs["capture"] == "hidden"
    assert found.attrs["view"].startswith("wav2vec2-")
    drawn: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
        figures.heatmap({"arousal": found}, tmp_path / "map.png")
    axes = drawn[0].axes[0]
    assert axes.get_xlabel() == "unit"
    assert axes.get_ylabel().startswith("layer")
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["embedding", "layer_1", "layer_2", "layer_3"]


# --- two networks in one store ------------------------------------------------------------------


def test_two_networks_in_one_store_are_told_apart(
    manifest: pd.DataFrame, folder: Path, tmp_path: Path
) -> None:
    path, few = tmp_path / "store", manifest.iloc[:3]
    fs.ingest(few, path, encoder=f"wav2vec2:{folder}", views="network", frames=False)
    fs.ingest(few, path, encoder="random:0", views="network", frames=False)
    opened = fs.open_store(path)
    assert {name.split("-")[0] for name in opened.views} == {"gcu", "wav2vec2"}
    with pytest.raises(StoreError, match=r"several 'network' views.*--view.*gcu-.*wav2vec2-"):
        fs.correlate(opened, target="arousal")
    for kind, shape in (("gcu", (15, 128)), ("wav2vec2", (4, 32))):
        assert fs.correlate(opened, target="arousal", view=kind)["r"].shape == shape
    assert fs.verify(path).sound


# --- networks of one's own ----------------------------------------------------------------------


def test_the_example_in_the_documentation_runs(
    manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    fs.write_manifest(manifest, tmp_path / "manifest.csv")
    names: dict[str, Any] = {}
    exec(compile(example, "encoders.md", "exec"), names)
    opened = fs.open_store(tmp_path / "store")
    assert opened.pooled("two_layers")["activation"].shape == (4, len(manifest), 2, 32)
    encoder = names["TwoLayers"](0)
    waveforms = [babble(seconds, seed=3) for seconds in (0.3, 1.0, 2.7)]
    together = fs.encode(encoder, waveforms, policy=BatchPolicy(compile_cost=10**9))
    for waveform, found in zip(waveforms, together, strict=True):
        (alone,) = fs.encode(encoder, [waveform])
        np.testing.assert_allclose(found["activation"], alone["activation"], atol=1e-5)


def test_an_untrained_network_of_ones_own_is_called_one(tmp_path: Path) -> None:
    class Untrained(Loudness):
        untrained = True

    manifest = write_corpus(tmp_path, durations=[0.5])
    fs.ingest(manifest, tmp_path / "store", encoder=Untrained(), views="network")
    assert fs.open_store(tmp_path / "store").config("network").weights_source == "random:loudness"


def test_programs_are_not_shared_between_networks_that_differ() -> None:
    waveform = babble(0.4)
    (square,), (cube,) = (fs.encode(Loudness(power), [waveform]) for power in (2, 3))
    frames = waveform[:6400].reshape(-1, 100)
    np.testing.assert_allclose(square["level"][0, :, 0], (frames**2).mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(cube["level"][0, :, 0], (np.abs(frames) ** 3).mean(1), rtol=1e-4)


def test_programs_are_shared_where_only_weights_differ(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", seed=5)
    request = Request(("hidden",), mfcc=False, frames=False)
    programs = [
        compile_program(fs.load_encoder(f"wav2vec2:{one}"), request, Bucket(8, 1))
        for one in (folder, other)
    ]
    assert programs[0] is programs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mfcc"}, r"kind 'mfcc'; accepted: lower-case .* not network, mfcc, egemaps"),
        ({"kind": "Mine-1"}, "kind 'Mine-1'"),
        ({"captures": ()}, r"captures \(\); expected a tuple"),
        ({"captures": "level"}, "captures 'level'; expected a tuple"),
        ({"captures": ("a/b",)}, "capture 'a/b'"),
        ({"layer_names": ("a", "a")}, "layer_names .* distinct"),
        ({"units": 0}, "0 units"),
        ({"fingerprint": ""}, "no fingerprint"),
        ({"front_end": object()}, "front_end has no .*frame_count"),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    encoder = Loudness()
    assert check_encoder(encoder) is encoder
    assert isinstance(encoder, Encoder)
    for name, value in changes.items():
        setattr(encoder, name, value)
    with pytest.raises(FeatureStoreError, match=message):
        check_encoder(encoder)


def test_what_lacks_members_is_told_which(manifest: pd.DataFrame, tmp_path: Path) -> None:
    class Nearly:
        name = kind = fingerprint = "nearly"

    with pytest.raises(FeatureStoreError, match=r"Nearly has no untrained, captures, .*apply"):
        fs.ingest(manifest, tmp_path / "store", encoder=Nearly())  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("changes", [{"units": 3}, {"layer_names": ("a", "b")}])
def test_activations_of_another_shape_than_announced_are_refused(changes: dict[str, Any]) -> None:
    encoder = Loudness()
    for name, value in changes.items():
        setattr(encoder, name, value)
    with pytest.raises(FeatureStoreError, match=r"capture 'level' of shape \(\d+, 1, \d+, 2\)"):
        fs.encode(encoder, [babble(0.5)])


def test_captures_and_views_are_the_networks_own(
    manifest: pd.DataFrame, folder: Path, tmp_path: Path
) -> None:
    spec = f"wav2vec2:{folder}"
    for options, message in (
        ({"views": ("gcu",)}, "unknown view 'gcu'; accepted: network, wav2vec2, mfcc, egemaps"),
        ({"captures": "gate"}, "unknown capture 'gate'; accepted: hidden"),
        ({"views": "network", "variant": "librosa"}, "variant 'librosa' was asked for, but none"),
    ):
        with pytest.raises(FeatureStoreError, match=message):
            fs.ingest(manifest, tmp_path / "store", encoder=spec, **options)
    with pytest.raises(FeatureStoreError, match="cannot be set for encoder 'wav2vec2:tiny'"):
        fs.load_encoder(spec, variant="librosa")


def test_a_package_registers_a_kind_for_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_loudness.py").write_text(
        "from test_encoder_protocol import Loudness\n"
        "def load(rest):\n    return Loudness(int(rest))\n"
    )
    info = tmp_path / "my_loudness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-loudness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[featurestore.encoders]\nloudness = my_loudness:load\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert fs.load_encoder("loudness:3").fingerprint == "loudness-3"
    with pytest.raises(CheckpointError, match="quietness:3"):
        fs.load_encoder("quietness:3")


def test_an_encoder_is_loaded_as_itself() -> None:
    encoder = Loudness()
    assert fs.load_encoder(encoder) is encoder


# --- stores of before ---------------------------------------------------------------------------


def test_names_of_views_do_not_change() -> None:
    from featurestore.store.schema import ViewConfig

    gcu = ViewConfig(
        "gcu", front_end="librosa-0.5", weights="0" * 64, captures=("gate",),
        layer_names=("block_0_1", "block_0_2"), frames=True,
    )  # fmt: skip
    assert gcu.name == "gcu-6c9eb435cbb3"
    assert not {"units", "frame_period_s", "frame_offset_s"} & set(gcu.to_json())
    for changed in ({"units": 64}, {"frame_period_s": 0.02}, {"frame_offset_s": 0.0125}):
        other = dataclasses.replace(gcu, **changed)
        assert other.name != gcu.name
        assert set(changed) <= set(other.to_json())
        assert ViewConfig.from_json(other.to_json(), source=Path("view.json")) == other
    assert ViewConfig.from_json(gcu.to_json(), source=Path("view.json")) == gcu
