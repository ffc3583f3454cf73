"""The four corpora of the default model as one table, with splits that share nothing they must not.

Train, dev and test of speechocean762 share no speaker, those of cathy no prompt, and no sentence
of dev or test is spoken in train, whatever the corpus. Sentences are compared as the recogniser
spells them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from featurestore.corpus import read_manifest
from featurestore.training.alphabet import spell

CORPORA = ("speechocean762", "cathy", "ljspeech", "fsdd")
"""All of them may be used to train weights that are given away; RAVDESS may not."""

ADULT = 16  # years
LONGEST = 30.0  # seconds; longer utterances than this would be a batch of their own


@dataclass(frozen=True)
class Holdout:
    """What is kept from training.

    Attributes:
        speakers: dev speakers of speechocean762, half of them children where there are enough.
        dev_prompts: dev prompts of cathy.
        test_prompts: test prompts of cathy.
        seed: decides which.
    """

    speakers: int = 12
    dev_prompts: int = 25
    test_prompts: int = 60
    seed: int = 0


@dataclass
class Dropped:
    """Utterances that were left out, as lines of a table."""

    rows: list[dict[str, object]] = field(default_factory=list)

    def take(self, table: pd.DataFrame, mask: pd.Series, reason: str) -> pd.DataFrame:
        """The table without the rows of `mask`, which are noted with the reason."""
        for (corpus, split), part in table[mask].groupby(["corpus", "split"]):
            self.rows.append(
                {
                    "corpus": corpus,
                    "split": split,
                    "utterances": len(part),
                    "hours": part["seconds"].sum() / 3600,
                    "reason": reason,
                }
            )
        return table[~mask]

    def table(self) -> pd.DataFrame:
        """One row per corpus, split and reason."""
        columns = ["corpus", "split", "utterances", "hours", "reason"]
        return pd.DataFrame(self.rows, columns=columns)


def combined(speech: Path, *, holdout: Holdout) -> tuple[pd.DataFrame, Dropped]:
    """All utterances of the four corpora that can be used.

    Args:
        speech: The folder of the corpora; each has a `manifest.csv`.
        holdout: What is kept from training.

    Returns:
        The table, with the columns id, path, speaker, text, split, corpus, sex, age, seconds and
        sentence (the text as the recogniser spells it), and what was dropped.

    Raises:
        ManifestError: if a corpus is not there or its manifest cannot be used.
    """
    tables = [_read(speech / corpus / "manifest.csv", corpus=corpus) for corpus in CORPORA]
    table = pd.concat(tables, ignore_index=True)
    dev = _dev_speakers(table, holdout=holdout)
    table.loc[table["speaker"].isin(dev), "split"] = "dev"
    prompts = _prompts(table)
    for split, names in _held_out_prompts(prompts, holdout=holdout).items():
        table.loc[prompts.isin(names), "split"] = split
    return _without_what_cannot_be_used(table)


def _read(file: Path, *, corpus: str) -> pd.DataFrame:
    table = read_manifest(file)
    out = table[["id", "path", "speaker", "text", "split"]].copy()
    out["id"] = corpus + "-" + out["id"]
    out["speaker"] = corpus + "-" + out["speaker"]
    out["corpus"] = corpus
    out["sex"] = table.get("sex", "")
    out["age"] = pd.to_numeric(table["age"]) if "age" in table else np.nan  # "" is missing
    out["seconds"] = [soundfile.info(path).duration for path in out["path"]]
    out["sentence"] = [spell(text).text for text in out["text"]]
    return out


def _dev_speakers(table: pd.DataFrame, *, holdout: Holdout) -> list[str]:
    """Speakers of speechocean762's train split: children and adults, both sexes in equal parts."""
    random = np.random.default_rng([holdout.seed, 1])
    train = table[(table["corpus"] == "speechocean762") & (table["split"] == "train")]
    speakers = train.drop_duplicates("speaker").sort_values("speaker")
    strata = speakers.groupby([speakers["age"] >= ADULT, "sex"])["speaker"]
    shuffled = [random.permutation(names.to_numpy()).tolist() for _, names in strata]
    chosen: list[str] = []
    while len(chosen) < holdout.speakers and any(shuffled):
        chosen += [names.pop() for names in shuffled if names]
    return chosen[: holdout.speakers]


def _prompts(table: pd.DataFrame) -> pd.Series:
    """The prompt of each row of cathy, such as arctic_a0001; "" in other corpora."""
    prompts = table["id"].str.extract(r"^cathy-(arctic_[ab]\d+)_", expand=False)
    return prompts.fillna("")


def _held_out_prompts(prompts: pd.Series, *, holdout: Holdout) -> dict[str, set[str]]:
    # By hash, so that a prompt stays in its split when others are added to the corpus.
    def key(prompt: str) -> str:
        return hashlib.sha256(f"{holdout.seed} {prompt}".encode()).hexdigest()

    ordered = sorted(set(prompts) - {""}, key=key)
    end = holdout.test_prompts + holdout.dev_prompts
    return {
        "test": set(ordered[: holdout.test_prompts]),
        "dev": set(ordered[holdout.test_prompts : end]),
    }


def _without_what_cannot_be_used(table: pd.DataFrame) -> tuple[pd.DataFrame, Dropped]:
    dropped = Dropped()
    unspelled = pd.Series([bool(spell(text).dropped) for text in table["text"]], table.index)
    table = dropped.take(table, unspelled, "characters (digits, signs) that are not spelled")
    table = dropped.take(table, table["sentence"] == "", "no text")
    table = dropped.take(table, table["seconds"] > LONGEST, f"longer than {LONGEST:g} s")
    # fsdd says ten words, in all splits; its test is held-out recordings, not held-out text.
    of_text = table["corpus"] != "fsdd"
    train, test = (set(table.loc[table["split"] == name, "sentence"]) for name in ("train", "test"))
    in_train = of_text & (table["split"] != "train") & table["sentence"].isin(train)
    in_test = of_text & (table["split"] == "dev") & table["sentence"].isin(test - train)
    table = dropped.take(table, in_train, "sentence is spoken in train")
    table = dropped.take(table, in_test[table.index], "sentence is spoken in test")
    return table.reset_index(drop=True), dropped


def held_out_sentences(table: pd.DataFrame) -> set[str]:
    """The sentences that nothing in train may say."""
    held_out = (table["split"] != "train") & (table["corpus"] != "fsdd")
    return set(table.loc[held_out, "sentence"])


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Utterances, hours, speakers and distinct sentences of each corpus and split."""
    groups = table.groupby(["corpus", "split"])
    return pd.DataFrame(
        {
            "utterances": groups.size(),
            "hours": groups["seconds"].sum() / 3600,
            "speakers": groups["speaker"].nunique(),
            "sentences": groups["sentence"].nunique(),
            "longest_s": groups["seconds"].max(),
        }
    ).reset_index()
