"""Numbers read off a finite loss curve: how it grows, rises, turns, swings and spikes."""

from __future__ import annotations

import numpy as np

LEAST = 4  # losses below which nothing can be said
ROUNDING = 1e-6  # relative rise that printed digits and float32 sums make by themselves
SLOWER = 0.9  # growth over the last third of a rise, over that of the third before, below which the rise slows down
FAST = 1.1  # growth factor of a record that no drift makes
TAIL = 5  # growth factors that must agree
QUIET = 20  # records without a rise that make a spike a late one
SPIKE = 1.5  # factor over the lowest loss before
BRIEF = 10  # records in which a spike rises: what takes longer drifts
OVERSHOT = 10.0  # last finite loss over the first from which a run diverged before it was not finite


class LossCurve:
    """A finite loss curve and what is read off it."""

    def __init__(self, curve: np.ndarray, steps_per_record: int):
        self.curve, self.steps = curve, steps_per_record
        size = np.maximum(np.abs(curve[:-1]), np.finfo(np.float64).tiny)
        self.rises = np.diff(curve) > ROUNDING * size
        self.share = float(self.rises.mean())
        with np.errstate(over="ignore"):  # above a loss of 0 every rise is infinite
            self.largest_rise = float(np.max(np.diff(curve) / size, initial=0.0))
        turns = np.sign(np.diff(curve))
        self.reversals = float(np.mean(turns[1:] * turns[:-1] < 0))
        tail = min(TAIL, len(curve) - 1)
        positive = np.all(curve[-tail - 1 :] > 0)
        ratios = curve[-tail:] / curve[-tail - 1 : -1] if positive else np.array([0.0])
        self.ratios = ratios
        self.spread = float(np.ptp(ratios) / ratios[-1]) if ratios[-1] > 0 else np.inf
        # Exponential growth above where it began: each of the last factors above 1, and well above the lowest loss.
        risen = bool(np.all(ratios > 1 + ROUNDING) and curve[-1] >= max(curve[0], SPIKE * curve.min()))
        self.unsteadiness = float(np.ptp(np.log(ratios)) / np.log(ratios).mean()) if risen else np.inf
        self.total = float(curve[-1] / curve.min()) if curve.min() > 0 else np.inf
        self.slows = self.slows_down(SLOWER)
        self.grows = risen and not (self.slows and (self.total < OVERSHOT or ratios[-1] < FAST))
        self.residual = self._detrended()
        self.alternation = _autocorrelation(self.residual, 1)
        self.period = self._period()

    def slows_down(self, share: float) -> bool:
        """Whether the curve, from its lowest place on, rises less in its last third than that share of the third
        before, in logarithms: as a drift and a score do, and a growing mode does not."""
        rising = self.curve[int(np.argmin(self.curve)) :]
        factors = np.diff(np.log(rising[rising > 0]))
        if len(factors) < LEAST - 1:
            return False
        third = len(factors) // 3
        return bool(factors[-third:].sum() < share * factors[-2 * third : -third].sum())

    @property
    def rises_on_the_whole(self) -> bool:
        """Whether the curve ends higher than it ever was at its beginning, most of its end."""
        quarter = max(2, len(self.curve) // 4)
        return bool(np.median(self.curve[-quarter:]) > self.curve[:quarter].max())

    def _detrended(self) -> np.ndarray:
        """Log of the curve (or the curve, where it is not positive) less a running median over 9 records."""
        y = np.log(self.curve) if np.all(self.curve > 0) else self.curve / (np.max(np.abs(self.curve)) or 1.0)
        if len(y) < 12:
            return y - np.polyval(np.polyfit(np.arange(len(y)), y, 1), np.arange(len(y)))
        padded = np.pad(y, 4, mode="edge")
        return (y - np.median(np.lib.stride_tricks.sliding_window_view(padded, 9), axis=1))[4:-4]

    def _period(self) -> float | None:
        """Mean distance between maxima, in steps, where these are regular."""
        curve = self.curve
        tops = np.flatnonzero((curve[1:-1] > curve[:-2]) & (curve[1:-1] >= curve[2:])) + 1
        gaps = np.diff(tops)
        if len(gaps) < 3 or gaps.std() > 0.35 * gaps.mean():
            return None
        return float(gaps.mean() * self.steps)

    def spikes(self) -> list[int]:
        """Records at which a loss that had fallen for at least QUIET records jumped by a factor SPIKE above its low,
        within BRIEF records of it."""
        found, low, since, lowest = [], self.curve[0], 0, 0
        for place in range(1, len(self.curve)):
            if self.curve[place] > SPIKE * low and since >= QUIET:
                if place - lowest <= BRIEF:
                    found.append(place)
                low, since, lowest = self.curve[place], 0, place
            elif self.curve[place] <= low:
                low, since, lowest = self.curve[place], since + 1, place
        return found

    def evidence(self) -> dict[str, float]:
        curve = self.curve
        found = {
            "share_of_records_that_rose": self.share,
            "last_over_first": float(curve[-1] / curve[0]) if curve[0] else np.nan,
            "largest_over_first": float(curve.max() / curve[0]) if curve[0] else np.nan,
        }
        if self.grows:
            found["spread_of_the_last_growth_factors"] = self.spread
        elif self.share > 0:
            found["correlation_of_neighbours_about_the_trend"] = self.alternation
        return {name: value for name, value in found.items() if np.isfinite(value)}


def _autocorrelation(values: np.ndarray, lag: int) -> float:
    """Correlation of a series with itself `lag` later; 0 for a constant one."""
    centred = values - values.mean()
    power = float(np.dot(centred, centred))
    return float(np.dot(centred[:-lag], centred[lag:]) / power) if power > 0 and len(values) > lag else 0.0
