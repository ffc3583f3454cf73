"""Results kept under what they were computed from, so that only what changed runs again."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore import __version__
from featurestore.files import replacing

_STAGE = re.compile(r"[a-z]+-[0-9a-f]{24}")
_FACTS = "tables.json"

Tables = Mapping[str, pd.DataFrame]


def fingerprint(*parts: Any) -> str:
    """Of plain values, arrays and tables: the same for the same contents."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind in "fiub":
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, np.ndarray):
            digest.update(json.dumps(part.tolist(), default=str).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:24]


class Cache:
    """Tables of earlier runs in a folder.

    Attributes:
        folder: of the files; None keeps nothing.
        used: names of what was taken from earlier runs.
        made: names of what was computed.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.used: list[str] = []
        self.made: list[str] = []
        self._wanted: set[str] = set()

    def tables(self, name: str, key: str, compute: Callable[[], Tables]) -> dict[str, pd.DataFrame]:
        """What an earlier run computed from the same, or else what `compute` returns.

        Args:
            name: of the stage, for people.
            key: `fingerprint` of all that the result depends on, but this program.
            compute: the stage; tables with plain `attrs`.
        """
        stem = f"{name}-{fingerprint(key, __version__)}"
        self._wanted.add(stem)
        if self.folder is not None:
            kept = self._read(stem)
            if kept is not None:
                self.used.append(name)
                return kept
        found = dict(compute())
        self.made.append(name)
        if self.folder is not None:
            self._write(stem, found)
        return found

    def _read(self, stem: str) -> dict[str, pd.DataFrame] | None:
        folder = Path(str(self.folder)) / stem
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            found = {}
            for name, (sha256, attrs) in facts.items():
                content = (folder / f"{name}.parquet").read_bytes()
                if hashlib.sha256(content).hexdigest() != sha256:
                    return None
                found[name] = pd.read_parquet(io.BytesIO(content))
                found[name].attrs = attrs
            return found
        # None, half of one, or a damaged one: it is computed again.
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def _write(self, stem: str, tables: Tables) -> None:
        folder = Path(str(self.folder)) / stem
        facts = {}
        for name, table in tables.items():
            plain = table.copy(deep=False)
            plain.attrs = {}
            content = plain.to_parquet()
            with replacing(folder / f"{name}.parquet") as temporary:
                temporary.write_bytes(content)
            facts[name] = [hashlib.sha256(content).hexdigest(), dict(table.attrs)]
        # Last: without it, nothing of the stage counts.
        with replacing(folder / _FACTS) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")

    def forget_others(self) -> None:
        """Delete what this run neither used nor made."""
        if self.folder is None or not self.folder.exists():
            return
        for path in self.folder.iterdir():
            ours = _STAGE.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
            if ours and path.name not in self._wanted:
                shutil.rmtree(path)
