"""How far a sweep is: a bar on a terminal, a line now and then elsewhere, or a callback."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

LINE_SECONDS = 30.0
"""Seconds between lines where standard error is no terminal."""
ProgressCallback = Callable[[int, int, int], None]


class Progress:
    """Count runs done and diverged; show them.

    Args:
        show: True for a bar (a line every 30 s where standard error is no terminal), False for nothing, or a function
            of (runs done, runs diverged, runs in all).
        total: runs in all.
        steps: steps of a run that does not diverge, for the throughput.
    """

    def __init__(self, show: bool | ProgressCallback, total: int, steps: int):
        from tqdm import tqdm

        self.callback = show if callable(show) else None
        self.lines = show is True and not sys.stderr.isatty()
        self.total, self.steps, self.done, self.diverged, self.run_steps = total, steps, 0, 0, 0
        silent = None if show is True else True  # None: silent unless standard error is a terminal
        self.bar = tqdm(total=total, unit="run", disable=silent, dynamic_ncols=True, smoothing=0.1)
        self.began = self.said = time.monotonic()
        self.under_way: dict[int, int] = {}
        self.lock = threading.Lock()  # of those who print

    def working(self, tile: int, run_steps: int) -> None:
        """Count run-steps of a tile that is not finished; any thread may call."""
        self.under_way[tile] = self.under_way.get(tile, 0) + run_steps
        self.say()

    def advance(self, tile: int, runs: int, diverged: int, run_steps: int = 0) -> None:
        """Count a tile that is done; `run_steps` were computed just now (none if it lay on disk)."""
        self.under_way.pop(tile, None)
        self.done += runs
        self.diverged += diverged
        self.run_steps += run_steps
        self.bar.update(runs)
        self.bar.set_postfix_str(f"{self.diverged} diverged, {self._rate():.3g} run-steps/s", refresh=False)
        if self.callback:
            self.callback(self.done, self.diverged, self.total)
        self.say()

    def say(self) -> None:
        """Print a line where there is no terminal, if the last one is old enough."""
        with self.lock:
            if not self.lines or time.monotonic() - self.said < LINE_SECONDS:
                return
            self.said = time.monotonic()
        rate, begun = self._rate(), sum(list(self.under_way.values()))
        missing = max(0, (self.total - self.done) * self.steps - begun)
        left = f"{missing / rate:.0f} s left" if rate else "time left unknown"
        text = f"{self.done} of {self.total} runs, {self.diverged} diverged, {rate:.3g} run-steps/s, {left}"
        print(f"lossland: {text}", file=sys.stderr, flush=True)

    def _rate(self) -> float:
        run_steps = self.run_steps + sum(list(self.under_way.values()))
        return run_steps / max(time.monotonic() - self.began, 1e-9)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self.bar.close()
