"""What all object stores share: writes are whole and durable, and a lease says who may write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from featurestore.storage.locks import LEASE, LeaseTiming, Owner, leased
from featurestore.storage.place import Place, Tagged

_T = TypeVar("_T")
TIMING = LeaseTiming()
# Metadata of an object that say which put it came from. Azure wants a name without hyphens.
MARK = "featurestoreput"


@dataclass(frozen=True)
class Patience:
    """For how long a server that fails is asked again.

    Attributes:
        retries: of one request.
        seconds: after which nothing is begun anew.
        first_s: pause before the first retry; every next one is about twice as long.
        longest_s: pause.
        timeout_s: of one request; S3 closes what takes much longer itself.
    """

    retries: int = 14
    seconds: float = 180.0
    first_s: float = 0.1
    longest_s: float = 15.0
    timeout_s: float = 120.0


# A server that is down for a minute or two ends the run; what is committed is safe.
PATIENCE = Patience()
# A sign of life that comes too late is none: rather give up, and try again at the next one.
HASTE = Patience(retries=2, seconds=5.0, longest_s=1.0, timeout_s=5.0)
ONCE = Patience(retries=0, seconds=0.0, timeout_s=5.0)


class Interrupted(OSError):  # noqa: N818 - it is caught, not shown
    """A failure of the kind that goes away."""


def again(call: Callable[[], _T], patience: Patience) -> _T:
    """What a call gives that may be repeated, once it is not interrupted."""
    began = time.monotonic()
    pause = patience.first_s
    for _ in range(patience.retries):
        try:
            return call()
        except Interrupted:
            if time.monotonic() + pause - began > patience.seconds:
                raise
        time.sleep(pause)
        pause = min(2 * pause, patience.longest_s)
    return call()


class ObjectPlace(Place):
    """A prefix of a bucket."""

    def sync(self, keys: Iterable[str]) -> None:
        """See `Place.sync`: an object that was accepted is safe."""

    def sweep(self, prefix: str = "") -> None:
        """See `Place.sweep`: half an object is never seen."""

    def free_bytes(self) -> int | None:
        """See `Place.free_bytes`."""
        return None

    def hasty(self) -> ObjectPlace:
        """The same place, where requests fail rather than take long."""
        return self

    def tagged(self, key: str) -> Tagged:
        """Bytes and their version."""
        raise NotImplementedError

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """Replace a version by another, or raise PlaceChanged; the new version."""
        raise NotImplementedError

    def delete_once(self, key: str) -> None:
        """Remove with one request: a second could remove what somebody has put there since."""
        self.delete(key)

    def locked(self, *, watch: bool = True) -> AbstractContextManager[Owner]:
        """See `Place.locked`."""
        return leased(self, TIMING, watch=watch)

    def owned_by(self, token: str) -> bool:
        """Whether the lease is held with this token."""
        try:
            return f'"token": "{token}"'.encode() in self.read(LEASE)
        except FileNotFoundError:
            return False
