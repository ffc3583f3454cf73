"""From files or a manifest to text, times, scores and files."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from synthetic import babble, write_corpus

import featurestore as fs
from featurestore import transcription
from featurestore.batching import BatchPolicy
from featurestore.cli import main
from featurestore.encoder import Encoder
from featurestore.errors import CheckpointError, FeatureStoreError
from featurestore.gcu import GCUEncoder
from featurestore.recognition import Recogniser
from featurestore.training.alignment import path_spans
from featurestore.training.alphabet import written
from featurestore.training.decoding import collapse
from featurestore.transcription import (
    TranscribeConfig,
    plan_transcription,
    run_transcription,
    transcribe,
)
from featurestore.transcripts import Tally, Transcription, Unread, transcript_file

jiwer = pytest.importorskip("jiwer", reason="comes with featurestore[train]")

DURATIONS = [0.9, 1.4, 0.5, 0.9, 0.5, 1.4, 0.5, 0.9]  # of few lengths, since each is compiled for
TEXTS = ["one two", "Don't!", "", "in 1984", "42", "...", "she said so", "a b c"]

# A single shape for everything up to half a second.
ONE_SHAPE = TranscribeConfig(batching=BatchPolicy(frames_per_batch=1, compile_cost=10**9))


def logits(encoder: Encoder, files: Iterable[str]) -> list[np.ndarray]:
    """By the other way to the network, MFCC first."""
    heard = [soundfile.read(file, dtype="float32")[0] for file in files]
    return [one["logits"] for one in fs.encode(encoder, [fs.mfcc(samples) for samples in heard])]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("speech")
    made = write_corpus(folder, durations=DURATIONS, speakers=2)[["id", "path", "speaker"]]
    return made.assign(text=TEXTS)


@pytest.fixture(scope="module")
def encoder(table: pd.DataFrame) -> GCUEncoder:
    """Random weights that take every symbol for equally common, so that there is much to read."""
    random = fs.load_encoder("random:0")
    assert isinstance(random, GCUEncoder)
    common = np.concatenate(logits(random, table["path"])).mean(axis=0)
    parameters = dict(random.variables["params"])
    last = parameters["logits"]
    parameters["logits"] = {**last, "bias": last["bias"] - common}
    return dataclasses.replace(random, variables={"params": parameters})


@pytest.fixture(scope="module")
def results(encoder: Encoder, table: pd.DataFrame) -> list[Transcription]:
    found = transcribe(table, encoder=encoder, progress=False)
    assert all(isinstance(one, Transcription) for one in found)
    return found  # type: ignore[return-value]


def test_texts_and_times_are_those_of_each_utterance(
    encoder: Encoder, table: pd.DataFrame, results: list[Transcription]
) -> None:
    assert [one.id for one in results] == list(table["id"])
    for one, found in zip(results, logits(encoder, table["path"]), strict=True):
        path = np.argmax(found, axis=-1)
        labels, spans = collapse(path), path_spans(path)
        assert one.text == " ".join(written(labels).split())
        letters = [symbol != " " for symbol in one.text]
        first = spans.first[[label != 0 for label in labels]]
        np.testing.assert_allclose(one.start_s[letters], np.maximum(0, (first - 0.5) * 0.032))
    assert sum(len(one.text) for one in results) > 50
    assert any(" " in one.text for one in results)


def test_times_are_one_per_character_in_order_and_inside(results: list[Transcription]) -> None:
    for one in results:
        assert len(one.start_s) == len(one.end_s) == len(one.text)
        assert (one.start_s < one.end_s).all()
        assert (one.end_s[:-1] <= one.start_s[1:] + 1e-9).all()
        assert (one.start_s >= 0).all()
        assert (one.end_s <= one.duration_s).all()
    assert [one.duration_s for one in results] == pytest.approx(DURATIONS)


def test_results_do_not_depend_on_windows(
    encoder: Encoder,
    table: pd.DataFrame,
    results: list[Transcription],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transcription, "_WINDOW_FRAMES", 60)
    again = transcribe(table[::-1], encoder=encoder, progress=False)
    assert [one.id for one in again] == list(table["id"][::-1])
    assert [one.text for one in again] == [one.text for one in results[::-1]]


def test_beam_search_keeps_times(encoder: Encoder, table: pd.DataFrame) -> None:
    pytest.importorskip("fast_ctc_decode", reason="comes with featurestore[train]")
    config = TranscribeConfig(beam=8, score=False)
    found = transcribe(table, encoder=encoder, config=config, progress=False)
    for one in found:
        assert isinstance(one, Transcription)
        assert one.text == " ".join(one.text.split())
        assert len(one.start_s) == len(one.text)
        assert (np.diff(one.start_s) > 0).all()
        assert one.reference is None
    assert any(one.text for one in found)


def test_the_golden_checkpoint_reads_what_the_original_program_computed(
    golden: Path, speech: Path
) -> None:
    files = sorted((speech / "librivox").glob("*.wav"))
    weights = golden / "model.ckpt-205919"
    found = transcribe([files[1], files[4]], encoder=weights, config=ONE_SHAPE, progress=False)
    with np.load(golden / "expected.npz") as expected:
        for one, clip in zip(found, (1, 4), strict=True):
            labels = collapse(np.argmax(expected[f"logit_{clip}"], axis=-1))
            assert one.text == " ".join(written(labels).split())


def test_bad_files_are_set_aside_and_the_rest_goes_on(encoder: Encoder, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", babble(0.5), 16_000)
    soundfile.write(tmp_path / "short.wav", babble(0.02), 16_000)
    (tmp_path / "noise.wav").write_bytes(b"no sound at all")
    names = ["none.wav", "short.wav", "good.wav", "noise.wav"]
    found = transcribe(
        [tmp_path / name for name in names], encoder=encoder, config=ONE_SHAPE, progress=False
    )
    assert [one.id for one in found] == ["none", "short", "good", "noise"]
    assert [isinstance(one, Unread) for one in found] == [True, True, False, True]
    for one, words in zip(found, ("not found", "too short", "", "not a readable"), strict=True):
        assert isinstance(one, Transcription) or words in one.reason
    for name in names[:2]:  # and where nothing at all can be read
        (one,) = transcribe([tmp_path / name], encoder=encoder, progress=False)
        assert isinstance(one, Unread)


def test_a_file_that_changes_after_the_plan_is_set_aside(encoder: Encoder, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", babble(0.5), 16_000)
    paths = [str(tmp_path / f"{name}.wav") for name in ("a", "b", "c")]
    plan = plan_transcription(
        pd.DataFrame({"path": paths}), encoder=encoder, config=ONE_SHAPE, progress=False
    )
    soundfile.write(paths[0], babble(0.9), 16_000)
    Path(paths[2]).unlink()
    first, second, third = run_transcription(plan, progress=False)
    assert isinstance(first, Unread)
    assert "changed" in first.reason
    assert isinstance(second, Transcription)
    assert isinstance(third, Unread)
    assert "not found" in third.reason


def test_segments_of_one_file(encoder: Encoder, tmp_path: Path) -> None:
    samples = babble(1.0)
    soundfile.write(tmp_path / "long.flac", samples, 16_000)
    soundfile.write(tmp_path / "part.flac", samples[3_200:9_600], 16_000)
    table = pd.DataFrame(
        {"path": [str(tmp_path / "long.flac")] * 2, "start": [0.2, 0.5], "end": [0.6, np.nan]}
    )
    segment, rest = transcribe(table, encoder=encoder, config=ONE_SHAPE, progress=False)
    (part,) = transcribe(
        [tmp_path / "part.flac"], encoder=encoder, config=ONE_SHAPE, progress=False
    )
    assert isinstance(segment, Transcription)
    assert isinstance(part, Transcription)
    assert segment.text == part.text
    np.testing.assert_array_equal(segment.start_s, part.start_s)
    assert (segment.start, segment.end, segment.duration_s) == (0.2, 0.6, 0.4)
    assert rest.duration_s == pytest.approx(0.5)  # type: ignore[union-attr]


def test_references_are_spelled_and_what_has_no_spelling_is_reported(
    results: list[Transcription],
) -> None:
    said = [one.reference.text if one.reference else None for one in results]
    assert said == ["one two", "dont", None, "in", None, None, "she said so", "a b c"]
    tally = Tally()
    for one in results:
        tally.add(one)
    facts = tally.to_dict()
    assert facts["scored"] == 5
    assert facts["dropped"] == {"1": 1, "9": 1, "8": 1, "4": 1}
    assert facts["incomplete"] == 1
    assert facts["hours"] == pytest.approx(sum(DURATIONS) / 3600)


def test_rates_are_those_of_jiwer(results: list[Transcription]) -> None:
    tally = Tally()
    for one in results:
        tally.add(one)
    scored = [one for one in results if one.reference]
    facts = tally.to_dict()

    def rates(ones: list[Transcription]) -> tuple[float, float]:
        said = [one.reference.text for one in ones if one.reference]
        heard = [one.text for one in ones]
        return jiwer.cer(said, heard), jiwer.wer(said, heard)

    assert (facts["cer"], facts["wer"]) == pytest.approx(rates(scored))
    assert [one["speaker"] for one in facts["speakers"]] == ["s0", "s1"]
    for one in facts["speakers"]:
        mine = [r for r in scored if r.speaker == one["speaker"]]
        assert (one["cer"], one["wer"]) == pytest.approx(rates(mine))
        assert one["utterances"] == len(mine)


def test_without_jiwer_only_scores_are_missing(
    encoder: Encoder, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(FeatureStoreError, match=r"featurestore\[train\].*--no-score"):
        plan_transcription(table, encoder=encoder, progress=False)
    quiet = TranscribeConfig(score=False)
    assert plan_transcription(table, encoder=encoder, config=quiet, progress=False).scored == 0
    (one,) = transcribe([table["path"][2]], encoder=encoder, config=ONE_SHAPE, progress=False)
    assert isinstance(one, Transcription)


def test_a_beam_that_cannot_be_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FeatureStoreError, match="at least 1"):
        TranscribeConfig(beam=0)
    monkeypatch.setitem(sys.modules, "fast_ctc_decode", None)
    with pytest.raises(FeatureStoreError, match=r"featurestore\[train\]"):
        TranscribeConfig(beam=16)


@dataclasses.dataclass(frozen=True)
class Rewired:
    """An encoder with other outputs."""

    inner: Encoder
    classes: int

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def apply(self, variables: object, batch: object, lengths: object) -> dict[str, object]:
        found = dict(self.inner.apply(variables, batch, lengths))
        logits = found.pop("logits")
        return {**found, "logits": logits[..., : self.classes]} if self.classes else found


@pytest.mark.parametrize(("classes", "words"), [(0, "no logits"), (5, "logits of 5 classes")])
def test_an_encoder_that_names_no_characters_is_refused(
    encoder: Encoder, classes: int, words: str
) -> None:
    with pytest.raises(CheckpointError, match=f"cannot transcribe: it gives {words}.*'default'"):
        Recogniser(Rewired(encoder, classes))


class TestFiles:
    """What is written."""

    def write(self, results: list[Transcription | Unread], file: Path) -> Path:
        with transcript_file(file, scored=True, facts=lambda: {"cer": 0.5}) as write:
            for one in results:
                write(one)
            assert not file.exists()
        return file

    @pytest.fixture
    def mixed(self, results: list[Transcription]) -> list[Transcription | Unread]:
        return [*results, Unread("gone", "/gone.wav", "file not found")]

    def test_csv_is_a_manifest_again(
        self, mixed: list[Transcription | Unread], results: list[Transcription], tmp_path: Path
    ) -> None:
        file = self.write(mixed, tmp_path / "heard.csv")
        again = fs.read_manifest(file)
        assert list(again["id"]) == [one.id for one in results]
        assert list(again["text"]) == [one.text for one in results]
        assert list(again["speaker"]) == [one.speaker for one in results]
        assert again["reference"][0] == "one two"
        assert again["cer"][0] == pytest.approx(results[0].reference.characters.rate)  # type: ignore[union-attr]
        with open(file, encoding="utf-8") as stream:
            for row, one in zip(csv.DictReader(stream), results, strict=True):
                times = [float(time) for time in row["character_start_s"].split()]
                np.testing.assert_allclose(times, one.start_s, atol=5e-4)

    def test_json_lines(
        self, mixed: list[Transcription | Unread], results: list[Transcription], tmp_path: Path
    ) -> None:
        lines = self.write(mixed, tmp_path / "heard.jsonl").read_text("utf-8").splitlines()
        *read, gone = map(json.loads, lines)
        assert gone == {"id": "gone", "path": "/gone.wav", "reason": "file not found"}
        assert [one["text"] for one in read] == [one.text for one in results]
        assert all(len(one["character_end_s"]) == len(one["text"]) for one in read)
        assert read[3]["dropped"] == {"1": 1, "9": 1, "8": 1, "4": 1}
        assert "cer" not in read[2]

    @pytest.mark.parametrize("count", [0, 1, 9])
    def test_json(self, mixed: list[Transcription | Unread], count: int, tmp_path: Path) -> None:
        facts = json.loads(self.write(mixed[:count], tmp_path / "heard.json").read_text("utf-8"))
        assert facts["cer"] == 0.5
        assert [one["id"] for one in facts["transcripts"]] == [one.id for one in mixed[:count]]

    def test_unknown_speakers_and_no_references_have_no_columns(
        self, results: list[Transcription], tmp_path: Path
    ) -> None:
        bare = dataclasses.replace(results[0], speaker="", reference=None)
        with transcript_file(tmp_path / "x.csv", scored=False, facts=dict) as write:
            write(bare)
        again = fs.read_manifest(tmp_path / "x.csv")
        assert "reference" not in again
        assert list(again["speaker"]) == [""]

    def test_a_failure_leaves_the_old_file(self, tmp_path: Path) -> None:
        file = tmp_path / "x.jsonl"
        file.write_text("old", "utf-8")

        def interrupted() -> None:
            with transcript_file(file, scored=False, facts=dict) as write:
                write(Unread("a", "b", "c"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            interrupted()
        assert file.read_text("utf-8") == "old"
        assert list(tmp_path.iterdir()) == [file]


class TestCommand:
    """`featurestore transcribe`."""

    def run(
        self, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0
    ) -> tuple[str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["featurestore", "transcribe", *map(str, arguments)])
            with pytest.raises(SystemExit) as stopped:
                main()
        out, err = capsys.readouterr()
        assert (stopped.value.code or 0) == code, out + err
        return out, err

    @pytest.fixture
    def manifest(self, table: pd.DataFrame, tmp_path: Path) -> Path:
        gone = pd.DataFrame([{**table.iloc[0], "id": "gone", "path": "/gone.wav"}])
        fs.write_manifest(pd.concat([table, gone]), tmp_path / "m.csv")
        return tmp_path / "m.csv"

    def test_files(self, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
        out, err = self.run(capsys, *table["path"], "-w", "random:0")
        expected = transcribe(list(table["path"]), encoder="random:0", progress=False)
        assert [line.split("  ", 1)[0].strip() for line in out.splitlines()] == [
            one.id for one in expected
        ]
        assert [line.split("  ", 1)[1] for line in out.splitlines()] == [
            one.text  # type: ignore[union-attr]
            for one in expected
        ]
        assert "CER" not in err
        for words in ("Plan: 8 utterances", "Done: 8 utterances", "real time", "gibberish"):
            assert words in err

    def test_manifest(self, manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out, err = self.run(capsys, manifest, "-w", "random:0")
        assert len(out.splitlines()) == 8
        assert out.count("%") == 5
        for words in ("over 5 utterances with text", "s0", "s1", "'9' 1x", "gone: file not found"):
            assert words in err

    def test_output_file_and_json(
        self, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "heard.jsonl"
        out, _ = self.run(capsys, manifest, "-w", "random:0", "-o", file, "--json", "-q")
        facts = json.loads(out)
        assert facts["utterances"] == 8
        assert facts["unread"][0]["id"] == "gone"
        assert facts["weights"] == "random:0"
        assert "transcripts" not in facts
        assert len(file.read_text("utf-8").splitlines()) == 9
        out, _ = self.run(capsys, manifest, "-w", "random:0", "--json", "-q", "--no-score")
        facts = json.loads(out)
        assert "cer" not in facts
        assert len(facts["transcripts"]) == 9

    def test_nothing_readable_is_a_failure(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, err = self.run(capsys, tmp_path / "none.wav", "-w", "random:0", code=1)
        assert out == ""
        assert "not found" in err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("nowhere.csv",), "nowhere.csv"),
            (("m.csv", "x.wav"), "one manifest, or audio files"),
            ((".",), "is a folder"),
            (("x.wav", "-o", "heard.txt"), ".jsonl"),
            (("x.wav", "-w", "random:x"), "random:x"),
            (("x.wav", "-w", "random:0", "--front-end", "htk"), "librosa-0.5"),
        ],
    )
    def test_errors_are_one_line(
        self, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = () if "-w" in arguments else ("-w", "random:0")
        out, err = self.run(capsys, *arguments, *weights, code=1)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert words in err


def test_help_says_how_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['featurestore', 'transcribe', '--help']\n"
        "from featurestore.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('MODULES', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, _, modules = done.stdout.partition("MODULES")
    assert "Example:" in said
    assert not {"jax", "jiwer", "numpy", "pandas", "fast_ctc_decode"} & set(modules.split())
