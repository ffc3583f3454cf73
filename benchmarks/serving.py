"""A program that does the same work again and again for whoever started it, timing itself.

Its imports and its first file are over before a clock runs. Jobs come as lines of JSON on standard
input, and seconds go back on what was standard output.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

File = tuple[str, float, float]  # path, start and end in seconds; NaN is the end of the file
Work = Callable[[list[File], Path], None]  # files, and a folder for one .npy file of each


def files_of(job: Any) -> list[File]:
    """Files as they come in JSON, which has no NaN."""

    def seconds(time: Any) -> float:
        return math.nan if time is None else float(time)

    return [(str(path), seconds(start), seconds(end)) for path, start, end in job]


def serve(prepare: Callable[[], Work]) -> None:
    """Prepare, then work on every job that arrives until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    work = prepare()
    for line in sys.stdin:
        job = json.loads(line)
        files, folder = files_of(job["files"]), Path(job["folder"])
        began = time.perf_counter()
        work(files, folder)
        print(json.dumps({"seconds": time.perf_counter() - began}), file=answers, flush=True)
