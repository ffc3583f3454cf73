"""Progress of long work on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tick = Callable[[float], None]
_LOG_INTERVAL_S = 10.0


@contextmanager
def progress_bar(
    title: str,
    total: float,
    *,
    unit: str,
    scale: float = 1.0,
    rate: Callable[[float], str] | None = None,
    show: bool | None = None,
) -> Iterator[Tick]:
    """A progress bar for the length of a `with` block.

    Args:
        title: what is being done.
        total: how much there is, in the unit that is ticked.
        unit: name of the unit shown, such as `h` or `files`.
        scale: units ticked per unit shown, such as 3600 for seconds shown as hours.
        rate: how to show units ticked per second; nothing by default.
        show: True and False force; None shows a bar on a terminal and nothing elsewhere.

    Yields:
        A function to call with the amount just done.
    """
    on_terminal = sys.stderr.isatty()
    if show is None:
        show = on_terminal
    if not show or total <= 0:
        yield lambda amount: None
    elif on_terminal:
        with _bar(title, total, unit=unit, scale=scale, rate=rate) as tick:
            yield tick
    else:
        yield _log_lines(title, total, unit=unit, scale=scale, rate=rate)


@contextmanager
def _bar(
    title: str, total: float, *, unit: str, scale: float, rate: Callable[[float], str] | None
) -> Iterator[Tick]:
    with _display.shared() as display:
        task = display.add_task(title, total=total, unit=unit, scale=scale, rate=rate)
        yield lambda amount: display.advance(task, amount)


class _Display:
    """One display for all bars of the process: a terminal has room for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._progress: Any = None

    @contextmanager
    def shared(self) -> Iterator[Any]:
        with self._lock:
            if not self._users:
                self._progress = _progress()
                self._progress.start()
            self._users += 1
            progress = self._progress
        try:
            yield progress
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._progress = None
                    progress.stop()


_display = _Display()


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            scale, rate = task.fields["scale"], task.fields["rate"]
            digits = 2 if scale != 1 else 0
            text = f"{task.completed / scale:,.{digits}f}"
            text += f"/{(task.total or 0) / scale:,.{digits}f} {task.fields['unit']}"
            if rate and task.speed:
                text += f"  {rate(task.speed)}"
            return Text(text)

    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=28),
        Amount(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )


def _log_lines(
    title: str, total: float, *, unit: str, scale: float, rate: Callable[[float], str] | None
) -> Tick:
    began = time.monotonic()
    state = {"done": 0.0, "last": began}

    def tick(amount: float) -> None:
        state["done"] += amount
        now, done = time.monotonic(), state["done"]
        if now - state["last"] < _LOG_INTERVAL_S:
            return
        state["last"] = now
        speed = done / (now - began)
        left = (total - done) / speed if speed else float("inf")
        shown = f"  {rate(speed)}" if rate else ""
        print(
            f"{title}: {done / scale:,.2f}/{total / scale:,.2f} {unit}{shown}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return tick
