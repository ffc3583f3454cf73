"""The corpus readers, on hand-made folders in each corpus's layout and on real files if present."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import shared

from featurestore.corpus import CORPORA, label_columns, read_corpus, read_manifest, write_manifest
from featurestore.errors import ManifestError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(file: Path, text: str, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode(encoding))


def refusal(kind: str, path: Path, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        read_corpus(kind, path, **options)
    return str(caught.value)


# All corpora


def test_unknown_kinds_and_options_are_refused(tmp_path: Path) -> None:
    message = refusal("timit", tmp_path)
    assert "'timit'" in message
    assert all(kind in message for kind in CORPORA)
    assert "no option 'mic'; it accepts channel" in refusal("ravdess", tmp_path, mic="mic1")
    assert "no option 'x'; it accepts none" in refusal("emodb", tmp_path, x=1)
    assert "'mic3'" in refusal("vctk", tmp_path, mic="mic3")
    assert "'noise'" in refusal("ravdess", tmp_path, channel="noise")


@pytest.mark.parametrize("kind", [kind for kind in CORPORA if kind != "table"])
def test_a_folder_without_the_corpus_is_refused(kind: str, tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "Actor_01/._03-01-01-01-01-01-01.wav", "x.wav")
    message = refusal(kind, tmp_path)
    assert "looked for" in message
    assert f"such as {tmp_path}" in message
    assert "does not exist" in refusal(kind, tmp_path / "none")
    assert "is a file" in refusal(kind, tmp_path / "notes.txt")


def test_importing_the_readers_loads_nothing_heavy() -> None:
    code = (
        "import sys, featurestore.corpus; "
        "print([m for m in ('jax', 'librosa', 'soundfile', 'xarray', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# RAVDESS


def test_ravdess_equals_its_reference_manifest(tmp_path: Path) -> None:
    root = shared("speech", "ravdess")
    found = read_corpus("ravdess", root)
    expected = read_manifest(root / "manifest.csv")
    assert len(found) == 1440
    columns = ["id", "path", "speaker", "sex", "emotion", "intensity", "repetition"]
    columns += ["valence", "arousal", "text"]
    pd.testing.assert_frame_equal(
        found[columns].sort_values("id", ignore_index=True),
        expected[columns].sort_values("id", ignore_index=True),
    )
    write_manifest(found, tmp_path / "m.parquet")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "m.parquet"), found)


def test_ravdess_channels_and_levels(tmp_path: Path) -> None:
    speech, song = "03-01-05-02-02-01-04", "03-02-03-01-01-02-04"
    touch(
        tmp_path,
        f"Audio_Speech/Actor_04/{speech}.wav",
        f"Audio_Song/Actor_04/{song}.wav",
        "Audio_Speech/Actor_04/01-01-05-02-02-01-04.wav",
        "Audio_Speech/Actor_04/._03-01-05-02-02-01-04.wav",
        "Audio_Speech/Actor_04/notes.wav",
    )
    only = read_corpus("ravdess", tmp_path)
    assert only["id"].tolist() == [speech]
    assert only.iloc[0][["speaker", "sex", "emotion", "intensity", "repetition"]].tolist() == [
        "actor_04", "f", "angry", "strong", 1.0,
    ]  # fmt: skip
    assert only["text"].tolist() == ["dogs are sitting by the door"]
    assert only["valence"].tolist() == [3 - 1.3 * 1.5]
    assert only["arousal"].tolist() == [3 + 1.3 * 1.5]
    assert read_corpus("ravdess", tmp_path, channel="song")["id"].tolist() == [song]
    both = read_corpus("ravdess", tmp_path, channel="all")
    assert both["channel"].tolist() == ["song", "speech"]
    assert len(read_corpus("ravdess", tmp_path / "Audio_Speech")) == 1
    touch(tmp_path, "Audio_Speech/Actor_04/03-01-09-01-01-01-04.wav")
    assert "'09' in the file name" in refusal("ravdess", tmp_path)


# IEMOCAP

EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 3.5000, 4.0000]
C-E1:\tNeutral;\t()
C-F1:\tAnger;\t([1 of the actors said so])
A-E1:\tval 3; act 4; dom  4;\t()
A-F1:\tval 1; act 1; dom  1;\t()

[9.0000 - 10.5]\tSes01F_impro01_M000\txxx\t[2.6667, 3.0000, 2.5000]
"""


@pytest.fixture
def iemocap(tmp_path: Path) -> Path:
    root = tmp_path / "IEMOCAP_full_release"
    first, fifth = root / "Session1", root / "Session5"
    evaluations = first / "dialog" / "EmoEvaluation"
    write(evaluations / "Ses01F_impro01.txt", EVALUATION)
    write(evaluations / "._Ses01F_impro01.txt", EVALUATION)
    write(evaluations / ".Ses01F_impro01.txt", "[1 - garbage")
    write(evaluations / "Self-evaluation" / "Ses01F_impro01_f1.txt", EVALUATION)
    write(
        first / "dialog" / "transcriptions" / "Ses01F_impro01.txt",
        "Ses01F_impro01_F000 [006.2901-008.2357]: Un café.\n"
        "Ses01F_impro01_FXX0 [008.3-008.9]: [LAUGHTER]\n"
        "Ses01F_impro01_M000 [009.0000-010.5000]: Already: yes.\n"
        "M: not a turn\n",
        encoding="latin-1",
    )
    touch(first, "sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav")
    write(
        fifth / "dialog" / "EmoEvaluation" / "Ses05M_script01_1b.txt",
        "[0.5 - 1.5]\tSes05M_script01_1b_F012\tfru\t[1.0000, 4.5000, 4.0000]\n",
    )
    return root


def test_iemocap_quirks(iemocap: Path) -> None:
    found = read_corpus("iemocap", iemocap)
    assert found["id"].tolist() == [
        "Ses01F_impro01_F000",
        "Ses01F_impro01_M000",
        "Ses05M_script01_1b_F012",
    ]
    assert found["speaker"].tolist() == ["Ses01F", "Ses01M", "Ses05F"]
    assert found["sex"].tolist() == ["f", "m", "f"]
    assert found["session"].tolist() == ["Ses01", "Ses01", "Ses05"]
    assert found["dialog"].tolist() == ["Ses01F_impro01", "Ses01F_impro01", "Ses05M_script01_1b"]
    assert found["kind"].tolist() == ["impro", "impro", "script"]
    assert found["emotion"].tolist() == ["neu", "xxx", "fru"]
    assert found["text"].tolist() == ["Un café.", "Already: yes.", ""]
    assert found["valence"].tolist() == [2.5, 2.6667, 1.0]
    assert found["arousal"].tolist() == [3.5, 3.0, 4.5]
    assert found["dominance"].tolist() == [4.0, 2.5, 4.0]
    assert found["dialog_start_s"].tolist() == [6.2901, 9.0, 0.5]
    assert found["dialog_end_s"].tolist() == [8.2357, 10.5, 1.5]
    assert "start" not in found
    wav = iemocap / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    assert found["path"][0] == str(wav)


def test_iemocap_is_found_from_above_and_by_session(iemocap: Path) -> None:
    pd.testing.assert_frame_equal(
        read_corpus("iemocap", iemocap.parent), read_corpus("iemocap", iemocap)
    )
    assert len(read_corpus("iemocap", iemocap / "Session5")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "[1.0 - 2.0]\tSes01F_impro02_F000\tneu\t[2.5, 2.5]",
        "[1.0 - 2.0]\tSes01F_impro02_F000\tneu\t[2.5, x, 2.5]",
        "[1.0 2.0]\tSes01F_impro02_F000\tneu\t[2.5, 2.5, 2.5]",
        "[1.0 - 2.0]\tSes01F_impro02_FXX0\tneu\t[2.5, 2.5, 2.5]",
        "[1.0 - 2.0]\tSes01F_impro02_F000\t[2.5, 2.5, 2.5]",
    ],
)
def test_a_malformed_evaluation_is_refused(iemocap: Path, line: str) -> None:
    file = iemocap / "Session1/dialog/EmoEvaluation/Ses01F_impro02.txt"
    write(file, f"% header\n\n{line}\n")
    message = refusal("iemocap", iemocap)
    assert message.startswith(f"{file}, line 3: ")
    assert repr(line) in message


def test_an_utterance_evaluated_twice_is_refused(iemocap: Path) -> None:
    file = iemocap / "Session1/dialog/EmoEvaluation/Ses01F_impro01_copy.txt"
    write(file, EVALUATION)
    message = refusal("iemocap", iemocap)
    assert message.startswith(f"{file}, line 3: Ses01F_impro01_F000 is already evaluated in ")
    assert "Ses01F_impro01.txt, line 3" in message


def test_a_session_without_evaluations_is_refused(iemocap: Path) -> None:
    (iemocap / "Session2").mkdir()
    assert "Session2" in refusal("iemocap", iemocap)


# VCTK


def test_vctk_080(tmp_path: Path) -> None:
    touch(tmp_path, "wav48/p225/p225_002.wav", "wav48/p225/p225_001.wav", "wav48/p226/p226_001.wav")
    touch(tmp_path, "wav48/p225/._p225_001.wav", "wav48/p225/other.wav")
    write(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    write(
        tmp_path / "speaker-info.txt",
        "ID  AGE  GENDER  ACCENTS  REGION \n225  23  F    English    Southern  England\n",
    )
    found = read_corpus("vctk", tmp_path)
    assert found["id"].tolist() == ["p225_001", "p225_002", "p226_001"]
    assert found["speaker"].tolist() == ["p225", "p225", "p226"]
    assert found["text"].tolist() == ["Please call Stella.", "", ""]
    assert found["sex"].tolist() == ["f", "f", ""]
    assert found["accent"].tolist() == ["English", "English", ""]
    assert found["age"].tolist()[:2] == [23.0, 23.0]
    assert pd.isna(found["age"][2])


def test_vctk_092(tmp_path: Path) -> None:
    root = tmp_path / "VCTK-Corpus-0.92"
    audio = "wav48_silence_trimmed"
    touch(
        root,
        f"{audio}/p315/p315_001_mic1.flac",
        f"{audio}/p315/p315_001_mic2.flac",
        f"{audio}/s5/s5_002_mic1.flac",
        f"{audio}/log.txt",
    )
    write(root / "txt/s5/s5_002.txt", "Ask her.")
    write(root / "speaker-info.txt", "ID AGE GENDER ACCENTS REGION COMMENTS\np315 18 M American\n")
    found = read_corpus("vctk", tmp_path)
    assert found["id"].tolist() == ["p315_001", "s5_002"]
    assert found["text"].tolist() == ["", "Ask her."]
    assert found["sex"].tolist() == ["m", ""]
    second = read_corpus("vctk", root, mic="mic2")
    assert second["path"].tolist() == [str(root / audio / "p315/p315_001_mic2.flac")]
    assert second["id"].tolist() == ["p315_001"]


# LibriSpeech


def test_librispeech(tmp_path: Path) -> None:
    root = tmp_path / "LibriSpeech"
    touch(
        root,
        "dev-clean/84/121123/84-121123-0001.flac",
        "dev-clean/84/121123/84-121123-0000.flac",
        "dev-clean/84/121123/._84-121123-0000.flac",
        "test-other/367/130732/367-130732-0000.flac",
    )
    write(
        root / "dev-clean/84/121123/84-121123.trans.txt",
        "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS\n",
    )
    write(root / "SPEAKERS.TXT", "; ID |SEX| SUBSET\n84   | F | dev-clean | 8.02 | Someone\n")
    found = read_corpus("librispeech", root)
    assert found["id"].tolist() == ["84-121123-0000", "84-121123-0001", "367-130732-0000"]
    assert found["speaker"].tolist() == ["84", "84", "367"]
    assert found["text"].tolist() == ["GO DO YOU HEAR", "BUT IN LESS", ""]
    assert found["chapter"].tolist() == [121123.0, 121123.0, 130732.0]
    assert found["split"].tolist() == ["dev-clean", "dev-clean", "test-other"]
    assert found["sex"].tolist() == ["f", "f", ""]
    pd.testing.assert_frame_equal(read_corpus("librispeech", tmp_path), found)
    assert read_corpus("librispeech", root / "dev-clean")["split"].tolist() == ["dev-clean"] * 2


def test_librispeech_without_split_or_speakers(tmp_path: Path) -> None:
    touch(tmp_path, "84/121123/84-121123-0000.flac")
    found = read_corpus("librispeech", tmp_path)
    assert list(found.columns) == ["id", "path", "speaker", "chapter"]


# EmoDB


def test_emodb(tmp_path: Path) -> None:
    touch(tmp_path, "wav/03a01Fa.wav", "wav/16b10Tb.wav", "wav/._03a01Fa.wav", "wav/readme.wav")
    found = read_corpus("emodb", tmp_path)
    assert found["id"].tolist() == ["03a01Fa", "16b10Tb"]
    assert found["speaker"].tolist() == ["03", "16"]
    assert found["sex"].tolist() == ["m", "f"]
    assert found["sentence"].tolist() == ["a01", "b10"]
    assert found["emotion"].tolist() == ["happiness", "sadness"]
    assert found["version"].tolist() == ["a", "b"]
    assert found["text"][0] == "Der Lappen liegt auf dem Eisschrank."
    pd.testing.assert_frame_equal(read_corpus("emodb", tmp_path / "wav"), found)


# FSDD


def test_fsdd(tmp_path: Path) -> None:
    touch(tmp_path, "recordings/7_jackson_32.wav", "recordings/0_theo_4.flac")
    found = read_corpus("fsdd", tmp_path)
    assert found["speaker"].tolist() == ["theo", "jackson"]
    assert found["text"].tolist() == ["zero", "seven"]
    assert found["split"].tolist() == ["test", "train"]
    assert found["repetition"].tolist() == [4.0, 32.0]
    assert label_columns(found) == ["split", "repetition"]


def test_fsdd_equals_its_reference_manifest() -> None:
    root = shared("speech", "fsdd")
    columns = ["id", "path", "speaker", "text", "split"]
    expected = read_manifest(root / "manifest.csv")[columns]
    pd.testing.assert_frame_equal(
        read_corpus("fsdd", root)[columns].sort_values("id", ignore_index=True),
        expected.sort_values("id", ignore_index=True),
    )


# Tables


def test_a_table_is_a_corpus(tmp_path: Path) -> None:
    write(tmp_path / "my.csv", "path,speaker,valence\na.wav,x,1\n")
    found = read_corpus("table", tmp_path / "my.csv")
    assert found["id"].tolist() == ["a"]
    assert "row 1 (id 'a'), column 'speaker'" in refusal_of_blank_speaker(tmp_path)


def refusal_of_blank_speaker(folder: Path) -> str:
    write(folder / "blank.csv", "path,speaker\na.wav,\n")
    return refusal("table", folder / "blank.csv")
