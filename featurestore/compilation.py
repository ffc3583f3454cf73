"""Compiled programs are kept on disk, so that a second run compiles nothing.

JAX does the keeping. What XLA makes for a CPU holds instructions that another one may lack, so each
kind of processor, number of cores and version of XLA has a folder of its own, also where machines
share their home. Whoever has set JAX's own cache (`JAX_COMPILATION_CACHE_DIR`) keeps it, and
`JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featurestore.hardware import cores, instructions

_WORTH_S = 0.1  # of compiling; less is not kept


def compiled_home() -> Path:
    """Folder of compiled programs; it may be deleted at any time.

    `$FEATURESTORE_HOME/compiled`, else `$XDG_CACHE_HOME/featurestore/compiled`, else
    `~/.cache/featurestore/compiled`; in it one for this kind of machine.
    """
    import jaxlib.version

    if home := os.environ.get("FEATURESTORE_HOME"):
        base = Path(home).expanduser() / "compiled"
    else:
        cache = os.environ.get("XDG_CACHE_HOME")
        # The XDG specification has relative values ignored.
        base = Path(cache) if cache and os.path.isabs(cache) else Path.home() / ".cache"
        base = base / "featurestore" / "compiled"
    kind = f"{instructions()} {cores()} {os.environ.get('PJRT_NPROC')}"
    return base / f"{jaxlib.version.__version__}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


class _Kept:
    """The folder that JAX uses: links to what is kept, and files that are yet to be.

    JAX neither replaces a file that is there nor writes it in one go: one that was killed while it
    wrote would leave half a program for good, and another process could read it meanwhile. So it
    writes into a folder of this process, and whole files are moved from there.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self.folder = Path(tempfile.mkdtemp(prefix="featurestore-compiled-"))
        atexit.register(self._remove, os.getpid())
        for program in home.glob("*-cache"):
            (self.folder / program.name).symlink_to(program)

    def _remove(self, owner: int) -> None:
        if os.getpid() == owner:  # a fork ends like its parent, and the folder is not its own
            shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self) -> None:
        """Keep what was compiled."""
        for program in self.folder.glob("*-cache"):
            if program.is_symlink():
                continue
            kept = self._home / program.name
            part = kept.with_name(f".{program.name}.{os.getpid()}")
            try:
                if not _is_whole(program):
                    program.unlink()
                    continue
                shutil.copyfile(program, part)
                part.replace(kept)
                program.unlink()
                program.symlink_to(kept)
            except OSError:  # a full disk costs the next run a second, not this one its work
                with suppress(OSError):
                    part.unlink(missing_ok=True)


def _is_whole(program: Path) -> bool:
    """Whether JAX could read it: where a disk is full, it leaves half of what it wrote."""
    try:
        from jax._src.compilation_cache import decompress_executable
    except ImportError:  # JAX does not promise it; without it, JAX warns of what it cannot read
        return True
    try:
        decompress_executable(program.read_bytes())
    except Exception:  # zlib's error, or that of one of two zstd libraries
        return False
    return True


@functools.cache
def _kept() -> _Kept | None:
    """Have JAX keep what it compiles from now on; None where it does not, or does so already."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    enabled = bool(getattr(jax.config, "jax_enable_compilation_cache"))  # noqa: B009, for mypy
    if not enabled or getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009
        return None
    home = compiled_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a home that cannot be written; everything works without
    if not os.access(home, os.W_OK):
        return None
    kept = _Kept(home)
    jax.config.update("jax_compilation_cache_dir", str(kept.folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_S)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # JAX asks once, and may have asked before
    return kept


@contextmanager
def keeping_compiled() -> Iterator[None]:
    """Programs that are compiled in a `with` block are kept, and loaded if they were before."""
    kept = _kept()
    yield
    if kept is not None:
        kept.publish()
