"""The folder of a training: its configuration, checkpoints, curves and best weights.

RUN/run.json            configuration and manifest digest; another one is refused
RUN/checkpoints/        orbax: everything that the next step depends on
RUN/steps.csv           loss, learning rate and gradient norm of every step
RUN/epochs.csv          training loss, held-out CER and WER, seconds, hours of speech
RUN/held-out.csv        what the best epoch recognised
RUN/weights.safetensors the best epoch's weights
RUN/training.png        the curves
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.errors import TrainingError
from featurestore.files import replacing
from featurestore.training.config import TrainConfig
from featurestore.training.data import Example, TrainingSet

_KEPT = 2  # checkpoints


def digest(data: TrainingSet) -> str:
    """SHA-256 of what is trained on and held out: ids, speakers, lengths and spelled texts."""
    found = hashlib.sha256()
    for part in (data.train, data.held_out):
        found.update(f"{len(part)}\n".encode())
        for example in part:
            line = (example.id, example.speaker, example.frames, example.transcript.text)
            found.update(json.dumps(line).encode())
    return found.hexdigest()


class Run:
    """A run folder that belongs to one configuration and one set of utterances.

    Args:
        folder: new, or of an earlier call with the same configuration.
        config: of the training.
        data: its utterances.

    Raises:
        TrainingError: the folder holds another training, or something that is no training.
    """

    def __init__(self, folder: Path, config: TrainConfig, data: TrainingSet) -> None:
        self.folder = folder
        described = {"config": config.to_dict(), "data": digest(data)}
        described = json.loads(json.dumps(described))  # tuples become lists, as in the file
        path = folder / "run.json"
        if path.exists():
            _check_same(path, described)
        elif folder.exists() and any(folder.iterdir()):
            raise TrainingError(f"{folder} is not empty and holds no training; give a new folder")
        else:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(described, indent=2) + "\n")
        self._manager: Any = None

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other processes of this machine from training into the folder.

        Raises:
            TrainingError: another process does.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows, where this is left to the user
            yield
            return
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another process is training into {self.folder}; wait for it, or give another "
                    "folder"
                ) from None
            yield

    def _checkpoints(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, enable_async_checkpointing=False
            )
            folder = (self.folder / "checkpoints").absolute()
            self._manager = ocp.CheckpointManager(folder, options=options)
        return self._manager

    def close(self) -> None:
        """Let go of the checkpoints."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def save(self, state: dict[str, Any], progress: dict[str, Any]) -> None:
        """Write everything that the next step depends on; whole or not at all."""
        import orbax.checkpoint as ocp

        step = int(state["step"])
        manager = self._checkpoints()
        if step in manager.all_steps():
            return
        saved = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        manager.save(step, args=saved, force=True)
        manager.wait_until_finished()

    def restore(self, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The latest checkpoint: its state, of the shapes of `like`, and its progress."""
        import jax
        import orbax.checkpoint as ocp

        manager = self._checkpoints()
        step = manager.latest_step()
        if step is None:
            return None
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), progress=ocp.args.JsonRestore()
        )
        read = manager.restore(step, args=wanted)
        return read.state, read.progress

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of one of the CSV files written so far."""
        path = self.folder / f"{name}.csv"
        if not path.exists():
            return []
        rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records")
        return rows

    def cut(self, name: str, column: str, last: int) -> None:
        """Drop rows beyond a checkpoint: they are about to be computed again."""
        self.write(name, [row for row in self.rows(name) if row[column] <= last])

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to a CSV file, and see them on disk."""
        path = self.folder / f"{name}.csv"
        new = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as stream:
            pd.DataFrame(list(rows)).to_csv(stream, header=new, index=False)

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Replace a CSV file; without rows there is none."""
        path = self.folder / f"{name}.csv"
        if not rows:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as temporary:
            pd.DataFrame(list(rows)).to_csv(temporary, index=False)


def _check_same(path: Path, described: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_text())
        found["config"], found["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); give a new folder") from error
    if found == described:
        return
    old, new = found["config"], described["config"]
    differing = [
        f"{name} was {old.get(name)!r}, now {new[name]!r}"
        for name in new
        if old.get(name) != new[name]
    ]
    if found["data"] != described["data"]:
        differing.append("the utterances of the manifest are others")
    raise TrainingError(
        f"{path.parent} holds a training with another configuration: {'; '.join(differing)}. "
        "Give a new folder, or the old configuration to go on with it"
    )


def held_out_rows(
    examples: Sequence[Example], texts: dict[str, str], errors: dict[str, float]
) -> list[dict[str, Any]]:
    """Rows of `held-out.csv`."""
    return [
        {
            "id": example.id,
            "speaker": example.speaker,
            "text": example.transcript.text,
            "recognised": texts.get(example.id, ""),
            "cer": errors.get(example.id, float("nan")),
        }
        for example in examples
    ]
