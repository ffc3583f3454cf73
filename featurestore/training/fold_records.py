"""Finished folds of a fine-tuning on disk, so that a stopped one goes on with those it lacks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.encoder import Encoder
from featurestore.errors import TrainingError
from featurestore.files import replacing
from featurestore.report.names import file_names
from featurestore.training.tuning_config import FinetuneConfig
from featurestore.training.utterances import LabelledUtterances

Record = dict[str, Any]
"""One fold, of plain values that JSON can hold."""


class Records:
    """The folds that are done: one JSON file each, beside what they were made with.

    Args:
        run: folder, made where it is missing; None keeps nothing.
        data: the corpus.
        encoder: the network that every fold begins with.
        config: how folds are trained.

    Raises:
        TrainingError: a folder of another configuration, corpus or network.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | None,
        data: LabelledUtterances,
        encoder: Encoder,
        config: FinetuneConfig,
    ) -> None:
        self.kept: list[Record] = []
        self._folder = None if run is None else Path(run)
        self._stems = file_names(str(one) for one in np.unique(data.speakers))
        made_with = {
            **dataclasses.asdict(config),
            "targets": list(config.targets),
            "weights": encoder.fingerprint,
            "front_end": encoder.front_end.name,
            "corpus": data.fingerprint(),
        }
        text = json.dumps(made_with, sort_keys=True)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        if self._folder is not None:
            self._claim(self._folder / "run.json", made_with, encoder.name)

    def _claim(self, path: Path, made_with: dict[str, Any], name: str) -> None:
        """Say what the folder is for, or refuse it if it is for something else."""
        if path.exists():
            found = _json(path).get("made_with", {})
            keys = dict.fromkeys([*made_with, *found])
            other = [key for key in keys if found.get(key) != made_with.get(key)]
            if other:
                listed = ", ".join(f"{key} {_short(found.get(key))}" for key in other)
                raise TrainingError(
                    f"{path.parent} holds folds of another fine-tuning ({listed}); give another "
                    "folder, or the same options to go on with it"
                )
            return
        with replacing(path) as temporary:
            facts = {"weights_name": name, "made_with": made_with}
            temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _path(self, speaker: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / "folds" / f"{self._stems[speaker]}.json"

    def read(self, speaker: str) -> Record | None:
        """The record of a fold that is done."""
        path = self._path(speaker)
        if path is None or not path.exists():
            return None
        record = _json(path)
        if record.get("fingerprint") != self._fingerprint or record.get("speaker") != speaker:
            raise TrainingError(
                f"{path} is the record of another fine-tuning than its folder; remove it"
            )
        return record

    def write(self, record: Record) -> None:
        """Keep the record of a fold."""
        record["fingerprint"] = self._fingerprint
        path = self._path(record["speaker"])
        if path is not None:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise TrainingError(f"{path} cannot be read: {error}; remove it") from None
    return found


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
