"""What results were computed from: a store, the state it was in, and how."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featurestore import __version__
from featurestore.errors import AnalysisError, FeatureStoreError
from featurestore.storage import Place, as_place, is_url
from featurestore.store.reader import Store, open_store
from featurestore.store.records import MARK
from featurestore.store.summary import store_state
from featurestore.types import NETWORK

_LIBRARIES = ("dask", "jax", "matplotlib", "numpy", "pandas", "scikit-learn", "scipy", "xarray")
_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]*@")  # user:password@ of a URL

StoreName = str | os.PathLike[str] | Place


@dataclass(frozen=True)
class Provenance:
    """What one computation's results were computed from.

    Attributes:
        facts: plain values: store (absolute path or URL), state (16 hex digits), views, weights
            (fingerprint) and weights_source, capture, statistic, targets, options, featurestore and
            versions of libraries, command, directory it ran in, made (UTC).
    """

    facts: Mapping[str, Any]

    @property
    def store(self) -> str:
        """Absolute path or URL."""
        return str(self.facts["store"])

    @property
    def state(self) -> str:
        """Fingerprint of what the store held."""
        return str(self.facts["state"])

    @property
    def footer(self) -> str:
        """One line to print below a figure or table."""
        views = self.facts["views"]
        return f"state {self.state}, view{'s' * (len(views) > 1)} {', '.join(views)}"

    @property
    def png(self) -> dict[str, str]:
        """Text chunks of a PNG file: what does not tell a reader of a paper about our disks.

        Without the time, so that the same results are the same bytes.
        """
        said = {
            "store": re.split(r"[/\\]", self.store.rstrip("/"))[-1],
            "state": self.state,
            "view": ", ".join(self.facts["views"]),
            **{key: self.facts[key] for key in ("weights", "weights_source", "capture")},
            "statistic": self.facts["statistic"],
            "targets": ", ".join(self.facts["targets"]),
            "version": self.facts["featurestore"],
        }
        return {f"featurestore.{key}": str(value) for key, value in said.items() if value}


@dataclass(frozen=True, eq=False)
class Source:
    """A store opened by `reading`, and the state that it was in before anything of it was read."""

    store: Store
    state: str

    def provenance(
        self,
        *,
        views: Sequence[str] = (NETWORK,),
        capture: str | None = None,
        statistic: str | None = None,
        targets: Sequence[str] = (),
        weights: tuple[str, str] | None = None,
        command: str | None = None,
        **options: Any,
    ) -> Provenance:
        """What has been computed was computed from this. To be called when it has been.

        Args:
            views: names or kinds of those that were read, the network's first.
            capture: that was read; the first view's first one by default.
            statistic: over an utterance's frames.
            targets: labels.
            weights: fingerprint and source, where they are not those of a view.
            command: command line or function call; that of this process by default.
            options: other choices, as plain values.

        Raises:
            AnalysisError: the store has changed since `reading` opened it.
            StoreError: no such view.
        """
        configs = [self.store.config(view) for view in views]
        networks = [(one.weights, one.weights_source) for one in configs if one.weights]
        fingerprint, source = weights or next(iter(networks), ("", ""))
        captures = configs[0].captures[:1] if configs else ()
        self.check()
        return Provenance(
            {
                "store": _absolute(self.store.path),
                "state": self.state,
                "views": [one.name for one in configs],
                "weights": fingerprint,
                "weights_source": source,
                "capture": capture or next(iter(captures), ""),
                "statistic": statistic or "",
                "targets": list(targets),
                "options": options,
                "featurestore": __version__,
                "versions": _versions(),
                "command": _PASSWORD.sub("", command or shlex.join(sys.argv)),
                "directory": str(Path.cwd()),
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )

    def check(self) -> None:
        """Compare the store with what it was.

        Raises:
            AnalysisError: it has changed, or can no longer be read.
        """
        now = look(self.store.place)
        if not now.state:
            raise AnalysisError(
                f"whether {self.store.path} changed while it was read cannot be said, so nothing "
                f"was written: {now.said}"
            )
        if now.state != self.state:
            raise AnalysisError(
                f"{self.store.path} changed while it was read: its state was {self.state}, it is "
                f"now {now.state}. Results would mix the two, so nothing was written; run the same "
                "command again when nothing is being ingested"
            )


@contextmanager
def reading(store: StoreName) -> Iterator[Source]:
    """Open a store for an analysis that says what it was computed from.

        with reading("iemocap.store") as source:
            found = fs.correlate(source.store, target="arousal")
            origin = source.provenance(targets=["arousal"], statistic="mean")
        write_correlations({"arousal": found}, "figures", provenance=origin)

    Raises:
        StoreError: not a store, or records that cannot be read.
        AnalysisError: something went wrong in the block, and the store has changed meanwhile.
    """
    place = as_place(store)
    # The state first: whatever is read of a store that changes after this does not count.
    state = store_state(place)
    source = Source(open_store(place), state)
    try:
        yield source
    except Exception as error:
        # A chunk that was not there is what a change looks like from inside.
        try:
            source.check()
        except AnalysisError as changed:
            raise changed from error
        raise


@dataclass(frozen=True)
class Seen:
    """A store as it is: its state, or why there is none."""

    state: str = ""
    gone: bool = False
    said: str = ""


def look(store: StoreName) -> Seen:
    """The state of a store, or why none can be said."""
    try:
        place = as_place(store)
        if not place.exists(MARK):
            return Seen(gone=True, said=f"the store is gone: {place}")
        return Seen(store_state(place))
    except (FeatureStoreError, OSError) as error:
        return Seen(said=f"the store cannot be read: {error}")


def _absolute(store: str) -> str:
    return _PASSWORD.sub("", store) if is_url(store) else os.path.abspath(store)


def _versions() -> dict[str, str]:
    """Versions of Python and of what computes and draws results."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
