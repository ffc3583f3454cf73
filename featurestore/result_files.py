"""Folders of results: what may be written, what was, and whether it is what its store says now.

`provenance.json` in a folder of results has one entry per file. What it says of their bytes is
written after them, so that an interruption leaves a file that counts as changed and never one that
counts as current.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurestore.errors import AnalysisError
from featurestore.files import replacing
from featurestore.provenance import Provenance, Seen, StoreName, look
from featurestore.storage import is_url
from featurestore.store.records import MARK
from featurestore.store.summary import store_state

NAME = "provenance.json"
_FORMAT, _VERSION = "featurestore results", 1
_UNFINISHED = "0" * 64  # SHA-256 of a file that is still to be written
_SHA256, _STATE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")

Status = Literal["current", "moved on", "store gone", "store unreadable", "changed", "deleted"]


def check_output(folder: str | os.PathLike[str], *, store: str = "") -> None:
    """Refuse to write results where no folder can be, or into a store.

    Args:
        folder: of the results, there or not.
        store: that they are to be computed from, there or not.

    Raises:
        AnalysisError: the folder is a file, or is or lies in a store.
    """
    path = Path(folder).resolve()
    stores = {Path(store).resolve()} if store and not is_url(store) else set()
    for one in (path, *path.parents):
        if one.exists() and not one.is_dir():
            raise AnalysisError(f"{one} is a file, so {folder} can be no folder; give another one.")
        if one in stores or (one / MARK).is_file():
            lies = "is" if one == path else "lies in"
            raise AnalysisError(
                f"{folder} {lies} the feature store {one}, which holds nothing but features; give "
                "another folder."
            )


def check_free(folder: str | os.PathLike[str], names: Collection[str]) -> None:
    """Refuse to replace files that no command here wrote.

    Args:
        folder: of the results, there or not.
        names: of files that are to be written.

    Raises:
        AnalysisError: one is there and not in `provenance.json`, or that is damaged.
    """
    known = read_provenance(folder)
    theirs = [n for n in names if n not in known and os.path.lexists(Path(folder) / n)]
    if theirs:
        more = f" (and {len(theirs) - 1} more)" if len(theirs) > 1 else ""
        raise AnalysisError(
            f"{Path(folder) / theirs[0]}{more} is there already, and {NAME} does not say that "
            "featurestore wrote it; move it away, or give another folder (-o)."
        )


def claim_results(
    folder: str | os.PathLike[str], names: Collection[str], provenance: Provenance
) -> None:
    """Say in `provenance.json` that files are about to be written, so that they are ours.

    One that was never finished counts as changed; the next run may replace it.

    Args:
        folder: of the results, made where it is missing.
        names: of the files.
        provenance: of all of them.

    Raises:
        AnalysisError: as `check_free`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with _alone(Path(folder)):
        check_free(folder, names)
        facts = {"sha256": _UNFINISHED, **provenance.facts}
        _write(folder, {**dict.fromkeys(names, facts), **read_provenance(folder)})


def record_results(
    folder: str | os.PathLike[str],
    files: Sequence[Path],
    provenance: Provenance,
    *,
    instead_of: Collection[str] = (),
) -> Path:
    """Add files to the `provenance.json` of their folder; what it says of others stays.

    Args:
        folder: of the results.
        files: results, already written.
        provenance: of all of them.
        instead_of: names of earlier results that these replace. Those that are not written again
            are deleted, unless they were changed since.

    Returns:
        The file's path.

    Raises:
        AnalysisError: a `provenance.json` that is damaged, or not ours.
    """
    path = Path(folder) / NAME
    with _alone(Path(folder)):
        found = read_provenance(folder)
        for file in files:
            name = file.relative_to(folder).as_posix()
            found[name] = {"sha256": _sha256(file), **provenance.facts}
        written = {file.relative_to(folder).as_posix() for file in files}
        for name in sorted(set(instead_of) & set(found) - written):
            old = Path(folder) / name
            if not old.exists():
                del found[name]
            elif _sha256(old) == found[name]["sha256"]:
                old.unlink()
                del found[name]
        _write(folder, found)
    return path


def _write(folder: str | os.PathLike[str], found: Mapping[str, Any]) -> None:
    values = {"format": _FORMAT, "version": _VERSION, "files": dict(sorted(found.items()))}
    with replacing(Path(folder) / NAME) as temporary:
        text = json.dumps(values, indent=1, ensure_ascii=False, default=str)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other command is changing the folder's `provenance.json`."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Locking the folder leaves no file behind. Some network file systems cannot: go on without.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What a folder's `provenance.json` says, by file name; empty where there is none.

    Raises:
        AnalysisError: it is damaged, or not ours.
    """
    path = Path(folder) / NAME
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"its format is not '{_FORMAT}'")
        if values["version"] != _VERSION:
            raise ValueError(
                f"it has version {values['version']}, this featurestore reads {_VERSION}"
            )
        files = values["files"]
        for name, facts in files.items():
            sound = _SHA256.fullmatch(facts["sha256"]) and _STATE.fullmatch(facts["state"])
            if not sound or not isinstance(facts["store"], str):
                raise ValueError(f"its entry of '{name}' is incomplete")
        return dict(files)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise AnalysisError(
            f"{path} does not say what the results beside it were computed from: {reason}. Delete "
            "it and run their commands again, or write to another folder"
        ) from None


def older_results(folder: str | os.PathLike[str], provenance: Provenance) -> list[str]:
    """Names of a folder's files that were computed from the same store in another state.

    Raises:
        AnalysisError: its `provenance.json` is damaged, or not ours.
    """
    return [
        name
        for name, facts in read_provenance(folder).items()
        if facts["state"] != provenance.state
        and _same(facts["store"], provenance.store)
        and (Path(folder) / name).exists()
    ]


def _same(one: str, other: str) -> bool:
    local = not is_url(one) and not is_url(other)
    return one == other or (local and os.path.realpath(one) == os.path.realpath(other))


@dataclass(frozen=True)
class CheckedResult:
    """A result, and whether it is what its store says now.

    Attributes:
        file: its name in the folder.
        status: `current`; `moved on`, the store has; `store gone`; `store unreadable`; `changed`
            or `deleted`, the file was since it was recorded.
        said: the status as a sentence.
        store: path or URL it was computed from.
        state: of the store when it was.
        now: state of the store; "" where it cannot be read.
        command: that made it.
        directory: that the command ran in.
    """

    file: str
    status: Status
    said: str
    store: str
    state: str
    now: str
    command: str
    directory: str

    @property
    def current(self) -> bool:
        """Whether the file is unchanged and the store is in the state it was computed from."""
        return self.status == "current"


def check_results(
    folder: str | os.PathLike[str], store: StoreName | None = None
) -> list[CheckedResult]:
    """Compare a folder's results with the stores that they were computed from.

    Args:
        folder: that `correlate`, `evaluate` or `finetune` wrote into.
        store: where the store is now, if it was moved; it then counts as the store of every result.

    Returns:
        One entry per file of `provenance.json`, by name.

    Raises:
        AnalysisError: the folder has no `provenance.json`, or a damaged one.
        StoreError: `store` is not a store.
    """
    path = Path(folder) / NAME
    found = read_provenance(folder)
    if not path.exists():
        raise AnalysisError(
            f"{path} does not exist, so nothing says what is in {folder}: results of a "
            "manifest, and those of featurestore 0.2 and older, have none; run the "
            "commands again on a store"
        )
    given = None if store is None else Seen(store_state(store))
    seen = {facts["store"] for facts in found.values()}
    stores = {one: given or look(one) for one in seen}
    return [
        _checked(Path(folder), name, facts, stores[facts["store"]]) for name, facts in found.items()
    ]


def _checked(folder: Path, name: str, facts: Mapping[str, Any], now: Seen) -> CheckedResult:
    status: Status = "current"
    said = "current"
    if not now.state:
        status, said = "store gone" if now.gone else "store unreadable", now.said
    elif now.state != facts["state"]:
        status = "moved on"
        said = (
            f"the store has moved on: computed from state {facts['state']}, it is now {now.state}"
        )
    also = "" if status == "current" else f"; {said}"
    try:
        if facts["sha256"] == _UNFINISHED:
            status = "changed"
            said = f"its command was interrupted before it was finished; run it again{also}"
        elif _sha256(folder / name) != facts["sha256"]:
            status, said = "changed", f"the file changed since it was computed{also}"
    except FileNotFoundError:
        status, said = "deleted", "the file was deleted since it was computed"
    return CheckedResult(
        file=name,
        status=status,
        said=said,
        store=facts["store"],
        state=facts["state"],
        now=now.state,
        command=str(facts.get("command", "")),
        directory=str(facts.get("directory", "")),
    )
