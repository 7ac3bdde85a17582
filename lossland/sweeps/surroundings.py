"""What holds for every sweep that is run inside a block: the executor it goes to, and who is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass

from lossland.sweeps.sweep import Sweep


@dataclass(frozen=True)
class Surroundings:
    """Executor of sweeps that name none, and a function that is called with each of them before it is run."""

    executor: Executor | None = None
    told: Callable[[Sweep], None] | None = None


_current: ContextVar[Surroundings] = ContextVar("surroundings", default=Surroundings())  # noqa: B039 (it is frozen)


def current() -> Surroundings:
    """Return what holds here."""
    return _current.get()


@contextlib.contextmanager
def surroundings(executor: Executor | None = None, told: Callable[[Sweep], None] | None = None) -> Iterator[None]:
    """Send sweeps that are run inside the block to `executor`, and call `told(sweep)` before each."""
    before = _current.set(Surroundings(executor, told))
    try:
        yield
    finally:
        _current.reset(before)
