"""Who may write to a store: one owner at a time, who finds out when it no longer is.

On a disk the kernel keeps the lock. An object store has no such thing, so there the owner keeps an
object alive: it is created only where it is free, renewed every few seconds, and taken over only by
who has watched it stay the same for several times as long. No clock is compared with another.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from featurestore.errors import StoreError
from featurestore.storage.place import PlaceChanged, Tagged

LEASE = "lock.json"
_TRIES = 10  # of the first sign of life


def new_token() -> str:
    """A name that nobody else has."""
    return secrets.token_hex(8)


def this_process() -> dict[str, Any]:
    """Where and who: the host, its boot and process namespace, and the process in that."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        space = "unknown"  # not Linux; hosts of one name are taken for one machine
    return {"host": socket.gethostname(), "space": space, "pid": os.getpid()}


@dataclass(frozen=True)
class Owner:
    """The right to write, while it lasts.

    Attributes:
        token: tells this owner from all before and after.
        holds: whether it still has the right.
    """

    token: str
    holds: Callable[[], bool]

    def check(self) -> None:
        """To be called before anything is committed.

        Raises:
            StoreError: somebody else took over.
        """
        if not self.holds():
            raise StoreError(
                "another process took this store over, since this one gave no sign of life; what "
                "it committed is safe. Run the same ingest again if the other one stops"
            )


@dataclass(frozen=True)
class LeaseTiming:
    """How often an owner gives a sign of life, and for how long one is watched for it."""

    renew_s: float = 5.0
    watch_s: float = 20.0


class Leasable(Protocol):
    """An object store that can replace an object only if it is the expected version."""

    @property
    def url(self) -> str:
        """The place as people write it."""
        ...

    def hasty(self) -> Leasable:
        """The same place, where requests fail rather than take long."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put bytes under a free key."""
        ...

    def tagged(self, key: str) -> Tagged:
        """Bytes and their version."""
        ...

    def replace_tagged(self, key: str, data: bytes, tag: str) -> str:
        """Replace a version by another, or raise PlaceChanged; the new version."""
        ...

    def delete_once(self, key: str) -> None:
        """Remove with one request: a second could remove what somebody has put there since."""
        ...


def _now() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts those."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class _Lease:
    """A lease that a thread keeps alive."""

    def __init__(self, place: Leasable, timing: LeaseTiming) -> None:
        self.place, self.timing = place.hasty(), timing
        self.token = new_token()
        self._tag = ""
        self._count = 0
        self._renewed = -math.inf
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def record(self) -> bytes:
        self._count += 1
        values = {"token": self.token, **this_process(), "renewed": self._count}
        return json.dumps(values).encode()

    def start(self, tag: str) -> bool:
        """Give a first sign of life on top of a version that is ours; False if we come too late."""
        self._tag = tag
        for left in reversed(range(_TRIES)):
            try:
                self._renew()
                break
            except OSError:
                if not left:
                    raise
                self._stop.wait(self.timing.renew_s / _TRIES)
        if self._lost:
            return False
        self._thread.start()
        return True

    def _renew(self) -> None:
        for _ in range(_TRIES):
            sent = _now()  # what others watch changes after this moment, never before
            try:
                self._tag = self.place.replace_tagged(LEASE, self.record(), self._tag)
            except PlaceChanged:
                # An earlier renewal may have arrived although its answer was lost.
                if self._is_ours():
                    continue
                self._lost = True
            else:
                self._renewed = sent
            return

    def _is_ours(self) -> bool:
        try:
            found = self.place.tagged(LEASE)
            if json.loads(found.data)["token"] == self.token:
                self._tag = found.tag
                return True
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        return False

    def _keep(self) -> None:
        while not self._lost and not self._stop.wait(self.timing.renew_s):
            try:
                self._renew()
            except OSError:  # the network; `holds` says so once it has lasted too long
                continue

    def holds(self) -> bool:
        """Not lost, and renewed more recently than anybody would have watched for."""
        return not self._lost and _now() - self._renewed < self.timing.watch_s

    def end(self) -> None:
        """Let go. What cannot be removed now, since the server is gone, the next owner watches."""
        self._stop.set()
        self._thread.join()
        try:
            self._renew()  # so that it surely is ours for as long as the removal may take
            if self.holds():
                self.place.delete_once(LEASE)
        except OSError:
            pass


@contextmanager
def leased(place: Leasable, timing: LeaseTiming, *, watch: bool = True) -> Iterator[Owner]:
    """Hold the lease of an object store while the block runs.

    Raises:
        StoreError: somebody else holds it.
    """
    lease = _Lease(place, timing)
    while not lease.start(_acquire(lease, place, timing, watch=watch)):
        # Taken over already: our first requests took longer than anybody waits.
        lease = _Lease(place, timing)
    try:
        yield Owner(lease.token, lease.holds)
    finally:
        lease.end()


def _acquire(lease: _Lease, place: Leasable, timing: LeaseTiming, *, watch: bool) -> str:
    """The version of the lease that is ours."""
    while True:
        place.create(LEASE, lease.record())
        try:
            before = place.tagged(LEASE)
        except FileNotFoundError:
            continue  # let go in between
        if f'"token": "{lease.token}"'.encode() in before.data:
            return before.tag
        if not watch or not _is_dead(place, before, timing):
            raise StoreError(
                f"another process is writing to {place.url}{describe(before.data)}; wait for it, "
                "or use another store"
            )
        try:
            return place.replace_tagged(LEASE, lease.record(), before.tag)
        except PlaceChanged:
            continue  # somebody else was quicker


def _is_dead(place: Leasable, before: Tagged, timing: LeaseTiming) -> bool:
    """Whether an owner gives no sign of life; of this machine's processes the kernel knows."""
    try:
        values = json.loads(before.data)
        mine = this_process()
        here = all(values[name] == mine[name] for name in ("host", "space"))
        if here and not _runs(int(values["pid"])):
            return True
    except (ValueError, KeyError, TypeError):
        pass  # not a record of ours: whatever it is, it is watched
    until = _now() + timing.watch_s
    while (left := until - _now()) > 0:
        time.sleep(min(timing.renew_s, left))
        try:
            if place.tagged(LEASE).tag != before.tag:
                return False
        except FileNotFoundError:
            return False
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OSError):
        return True
    return True


def describe(data: bytes | str) -> str:
    """The owner that a lock names, in brackets, if it does."""
    try:
        values = json.loads(data)
        return f" (process {values['pid']} on {values['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
