"""Every number that decides what a run is called, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cutoffs:
    """Where one outcome of training ends and the next begins.

    Args:
        tail: the end of a run is the median of this last share of its records.
        recovery: a run that rose has recovered if it ends below this multiple of the loss at step 0.
        progress: a run stalls if it ends lower than it started by less than this share of the loss at step 0.
        edge: a run is at the edge of stability if its median relative sharpness at the end is within 1 +/- this.
        rising: where sharpness was not recorded, it is at the edge if at least this share of its steps raised the loss.

    Raises:
        ValueError: for a value outside (0, 1], or a recovery that is not positive.
    """

    tail: float = 0.1
    recovery: float = 1.0
    progress: float = 0.01
    edge: float = 0.2
    rising: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            most = float("inf") if field.name == "recovery" else 1.0
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
                expected = "a positive number" if field.name == "recovery" else "a share in (0, 1]"
                raise ValueError(f"cutoffs: {field.name}: expected {expected}, got {value!r}")


CUTOFFS = Cutoffs()
"""The cut-offs that are used where none are given."""


def checked(cutoffs: object) -> Cutoffs:
    """Return cut-offs that are such; ValueError for anything else."""
    if not isinstance(cutoffs, Cutoffs):
        raise ValueError(f"cutoffs: expected ll.Cutoffs(...), got {cutoffs!r}")
    return cutoffs
