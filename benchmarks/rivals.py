"""Other people's scripts, each in a process of its own that waits for work."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import featurestore
from featurestore.errors import FeatureStoreError

_PATIENCE_S = 10.0
_TUNING = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class Rival:
    """A script as in `featurestore.benchmarks.serving`, started when this is made."""

    def __init__(
        self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it.

        Args:
            module: name of the script within `featurestore.benchmarks`.
            arguments: of its command line.
            environment: variables that it sets for itself; of ours none that sets threads is
                passed on.
        """
        own = {name: value for name, value in os.environ.items() if name not in _TUNING}
        source = str(Path(featurestore.__file__).parents[1])
        paths = [source, *filter(None, [own.get("PYTHONPATH")])]
        self._module = module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with it
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"featurestore.benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**own, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
        )

    def run(self, files: Sequence[tuple[str, float, float]], folder: Path) -> float:
        """Have it work on files and write into a folder; the seconds that it says it took.

        Raises:
            FeatureStoreError: it has ended, with the last lines that it wrote.
        """
        plain = [
            (path, *(None if math.isnan(time) else time for time in times))
            for path, *times in files
        ]
        job = {"files": plain, "folder": os.path.abspath(folder)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            last = " / ".join(self._errors.read().strip().splitlines()[-3:])
            raise FeatureStoreError(f"{self._module} ended while it was measured: {last}")
        return float(json.loads(answer)["seconds"])

    def close(self) -> None:
        """End it: nothing more will come."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # it ended before, and its run said so
                continue
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:  # we were interrupted, it was not
            self._process.terminate()
            self._process.wait()
        self._errors.close()
