"""A process that has imported everything and forks children on demand: an ingest begins in
milliseconds, and can be killed at any of its moments.

JAX starts its threads when it first compiles, which happens in the children only, so that forking
the parent is safe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SERVER = """
import json, os, sys, traceback
sys.path[:0] = {paths!r}
import featurestore as fs
import featurestore.ingest, featurestore.maintenance, featurestore.pipeline, featurestore.extract
import pandas, pyarrow.parquet, zarr, soundfile, scipy.signal
from featurestore.setup import IngestConfig
import {module}
print("ready", flush=True)
for line in sys.stdin:
    name, arguments, log = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("ended", flush=True)
        continue
    code = 1
    try:
        os.setsid()
        err = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(err, 1)
        os.dup2(err, 2)
        getattr({module}, name)(*arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
"""


@dataclass
class Forks:
    """Starts functions of a module in forked children, one at a time."""

    process: subprocess.Popen[str]
    log: Path

    def start(self, name: str, *arguments: Any) -> int:
        """Begin a function in a child, and give its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments, str(self.log)]) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> str:
        """Wait for the child's end; what it printed."""
        assert self._line() == "ended"
        return self.log.read_text()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def forks(module: str, log: Path) -> Iterator[Forks]:
    """A server for functions of a test module's helpers."""
    code = _SERVER.format(paths=[str(Path(__file__).parent), *sys.path], module=module)
    # Children share what the first of them compiled.
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(log.with_suffix(".compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        server = Forks(process, log)
        assert server._line() == "ready"
        yield server
    finally:
        process.kill()
        process.communicate()
