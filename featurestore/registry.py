"""Weights by name: the shipped default, and what a user registered.

Weights NAME are a file `NAME.safetensors` and its record `NAME.json`, which states the SHA-256 that
the file must have; a model card `NAME.md` may lie beside them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurestore.errors import CheckpointError
from featurestore.files import replacing
from featurestore.weight_files import WeightsDtype, load_safetensors, save_safetensors
from featurestore.weights import Weights

DEFAULT = "default"  # the name of the weights that are installed with the package

# Names of other things: the shipped weights and `random:SEED`. Some file systems ignore case.
RESERVED = (DEFAULT, "random")


@dataclass(frozen=True)
class WeightsRecord:
    """What is known about a file of named weights.

    Attributes:
        name: Accepted wherever weights are.
        file: Name of the file.
        sha256: Of the file, in hex.
        bytes: Length of the file.
        fingerprint: SHA-256 (hex) of tensor names, shapes and values; `Weights.fingerprint`.
        source: Where the weights came from.
        front_end: MFCC variant that the network was trained with.
        published: Whether they are the checkpoint that the original authors published.
        dtype: Of the kernels in the file; "" where nobody recorded it.
        imported: Day (UTC) on which the file was written, such as `2025-01-31`; "" where nobody
            recorded it.
        licence: Under which the weights may be used, as far as was said.
        note: For people.
    """

    name: str
    file: str
    sha256: str
    bytes: int
    fingerprint: str
    source: str
    front_end: str
    published: bool
    dtype: str = ""
    imported: str = ""
    licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class NamedWeights:
    """Weights found under a name.

    Attributes:
        name: Accepted wherever weights are, unless there is a problem.
        path: The file.
        record: What is recorded or, where nothing is, what the file itself says; None for a file
            that cannot be used.
        problem: Why the name is refused, or what is missing; "" where all is well.
    """

    name: str
    path: Path
    record: WeightsRecord | None
    problem: str = ""

    @property
    def shipped(self) -> bool:
        """Whether they came with the package."""
        return self.name == DEFAULT


def weights_home() -> Path:
    """Folder of registered weights: a file NAME.safetensors in it can be loaded as NAME.

    `$FEATURESTORE_HOME/weights`, else `$XDG_DATA_HOME/featurestore/weights`, else
    `~/.local/share/featurestore/weights`.
    """
    if home := os.environ.get("FEATURESTORE_HOME"):
        return Path(home).expanduser() / "weights"
    data = os.environ.get("XDG_DATA_HOME")
    # The XDG specification has relative values ignored.
    base = Path(data) if data and os.path.isabs(data) else Path.home() / ".local" / "share"
    return base / "featurestore" / "weights"


def shipped_folder() -> Path:
    """Folder of what is installed with the package."""
    return Path(str(importlib.resources.files("featurestore.data")))


def registered_names() -> list[str]:
    """Names that `load_weights` accepts from `weights_home()`, sorted."""
    return [path.stem for path in _files() if path.stem.lower() not in RESERVED]


def _files() -> list[Path]:
    # What begins with a dot is a file that is being written.
    found = weights_home().glob("[!.]*.safetensors")
    return sorted(path for path in found if path.is_file())


def file_of(name: str) -> Path:
    """Where the weights of a name are, whether or not they exist."""
    folder = shipped_folder() if name == DEFAULT else weights_home()
    return folder / f"{name}.safetensors"


def load_named(name: str) -> Weights:
    """The shipped or registered weights of a name, checked against their record if there is one.

    Raises:
        CheckpointError: There are none, or the file is not the one that was recorded.
    """
    path = file_of(name)
    if name == DEFAULT and not path.is_file():
        raise CheckpointError(
            f"weights '{DEFAULT}': this copy of featurestore comes without trained weights (no"
            f" {path}); name other weights: FILE.safetensors, a registered name (featurestore"
            " weights list), the prefix of a TensorFlow checkpoint, or random:SEED for an"
            " untrained control"
        )
    record = read_record(path)
    if record is None:
        if name == DEFAULT:
            raise CheckpointError(f"{path} has no record {_record_of(path).name}; {_repair(name)}")
        return load_safetensors(path)
    found = _sha256(path)
    if found != record.sha256:
        raise CheckpointError(
            f"weights {name!r}: SHA-256 {found:.12}... of {path} is not the recorded"
            f" {record.sha256:.12}...: it was replaced or damaged; {_repair(name)}"
        )
    weights = load_safetensors(path)
    if weights.fingerprint != record.fingerprint:
        raise CheckpointError(
            f"weights {name!r}: {_record_of(path)} records fingerprint {record.fingerprint:.12}...,"
            f" the file has {weights.fingerprint:.12}...; {_repair(name)}"
        )
    return weights


def _repair(name: str) -> str:
    if name == DEFAULT:
        return "install featurestore again"
    return (
        "import the original again with `featurestore weights import --replace`, or delete"
        f" {_record_of(file_of(name))} to use the file as it is"
    )


def register(
    weights: Weights,
    name: str,
    *,
    dtype: WeightsDtype = "float32",
    licence: str = "",
    note: str = "",
    replace: bool = False,
) -> NamedWeights:
    """Keeps weights under a name in `weights_home()`.

    Args:
        weights: What to keep.
        name: Letters, digits, `.`, `_` and `-`; not `default` or `random`.
        dtype: Of the kernels; see `save_safetensors`.
        licence: Under which they may be used.
        note: For people.
        replace: Whether weights that have the name already may be replaced.

    Raises:
        CheckpointError: The name cannot be used or is taken, or the files cannot be written.
    """
    check_name(name)
    path = file_of(name)
    if path.exists() and not replace:
        raise CheckpointError(
            f"weights {name!r} are registered already, in {path}; give another --name, or --replace"
            " (in Python replace=True)"
        )
    return write_named(weights, path, dtype=dtype, licence=licence, note=note)


def check_name(name: str) -> None:
    """Refuses names that could not be told from other ways to name weights.

    Raises:
        CheckpointError: The name cannot be used.
    """
    accepted = "give a --name of letters, digits, '.', '_' and '-', 100 at most, a letter or digit"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise CheckpointError(f"name {name!r:.200} of weights cannot be used; {accepted} first")
    if name.lower() in RESERVED or name.endswith(".safetensors"):
        raise CheckpointError(
            f"name {name!r} of weights means something else already; give another --name"
        )


def write_named(
    weights: Weights, path: Path, *, dtype: WeightsDtype, licence: str = "", note: str = ""
) -> NamedWeights:
    """Writes a file of weights and its record, in place of whatever was there.

    Args:
        weights: What to write.
        path: The file, `NAME.safetensors`.
        dtype: Of the kernels; see `save_safetensors`.
        licence: Under which they may be used.
        note: For people.

    Raises:
        CheckpointError: The files cannot be written.
    """
    record_path = _record_of(path)
    try:
        # First, so that whatever happens a record never lies beside a file that is not its own.
        record_path.unlink(missing_ok=True)
        stored = save_safetensors(weights, path, dtype=dtype)
        today = datetime.now(UTC).date().isoformat()
        record = dataclasses.replace(
            _facts(path, stored), dtype=dtype, imported=today, licence=licence, note=note
        )
        with replacing(record_path) as temporary:
            text = json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{record_path}: cannot be written: {error.strerror}") from error
    return NamedWeights(path.stem, path, record)


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.json")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _facts(path: Path, weights: Weights) -> WeightsRecord:
    """What a file says of itself."""
    return WeightsRecord(
        name=path.stem,
        file=path.name,
        sha256=_sha256(path),
        bytes=path.stat().st_size,
        fingerprint=weights.fingerprint,
        source=weights.source,
        front_end=weights.front_end,
        published=weights.published,
    )


def read_record(path: Path) -> WeightsRecord | None:
    """The record of a file of weights; None where there is none.

    Raises:
        CheckpointError: The record is damaged.
    """
    record_path = _record_of(path)
    try:
        values: Any = json.loads(record_path.read_text(encoding="utf-8"))
        fields = dataclasses.fields(WeightsRecord)
        record = WeightsRecord(**{f.name: values[f.name] for f in fields if f.name in values})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{record_path} is not a record of weights ({reason:.200}); {_repair(path.stem)}"
        ) from None
    for field in fields:
        kind = {"bytes": int, "published": bool}.get(field.name, str)
        if type(getattr(record, field.name)) is not kind:
            raise CheckpointError(
                f"{record_path}: {field.name} is {getattr(record, field.name)!r:.80}, expected"
                f" {kind.__name__}; {_repair(path.stem)}"
            )
    return record


def find_named(name: str) -> NamedWeights | None:
    """What lies under a name, checked; None where nothing does."""
    if name == DEFAULT:
        return _examined(file_of(name)) if file_of(name).is_file() else None
    return _examined(file_of(name)) if name in registered_names() else None


def _examined(path: Path) -> NamedWeights:
    name = path.stem
    try:
        weights = load_named(name)
        record = read_record(path)
    except CheckpointError as error:
        return NamedWeights(name, path, None, str(error))
    if record is not None:
        return NamedWeights(name, path, record)
    return NamedWeights(name, path, _facts(path, weights), "not recorded")


def list_named() -> list[NamedWeights]:
    """All named weights, each checked: the shipped default first, then the registered by name."""
    shipped = find_named(DEFAULT)
    found = [] if shipped is None else [shipped]
    for path in _files():
        if path.stem.lower() in RESERVED:
            problem = f"the name {path.stem!r} means something else; rename the file to use it"
            found.append(NamedWeights(path.stem, path, None, problem))
        else:
            found.append(_examined(path))
    return found


def model_card(name: str) -> str:
    """The model card of named weights, in Markdown.

    Raises:
        CheckpointError: They have none.
    """
    path = file_of(name).with_suffix(".md")
    if name == DEFAULT or name in registered_names():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            pass
    raise CheckpointError(f"weights {name!r:.200} have no model card (no file {path})")
