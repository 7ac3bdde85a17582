"""Stability of A + curvature b e_x^T decided in rational arithmetic, where eigenvalues in floats cannot.

A chain of k equal averages has an eigenvalue of multiplicity k, which one rounding unit spreads by its k-th root: 1e-2
for k = 8. The entries of A and b are rational numbers, so the characteristic polynomial is exact, and the Schur-Cohn
test says without rounding whether its roots lie in a disc.

Source: Schur 1917, Cohn 1922; Jury 1964, *Theory and Application of the z-Transform Method*.
"""

import itertools
from fractions import Fraction

import numpy as np

ROUNDING = 1e-9
"""How far above 1 a spectral radius may be by rounding alone."""

_Polynomial = list[Fraction]  # highest power first
_OCTAVES = range(-40, 33)  # powers of two of the curvature times the learning rate that are searched
_BISECTIONS = 56


def rational_characteristic(a: np.ndarray, b: np.ndarray) -> tuple[_Polynomial, _Polynomial]:
    """Return p(w) = det(w I - A) and q(w) = e_x^T adj(w I - A) b, exactly: the recursion of Faddeev and LeVerrier."""
    size = len(a)
    matrix = [[Fraction(float(entry)) for entry in row] for row in a]
    vector = [Fraction(float(entry)) for entry in b]
    adjugate = [[Fraction(int(i == j)) for j in range(size)] for i in range(size)]
    p, q = [Fraction(1)], [Fraction(0)]
    for k in range(1, size + 1):
        q.append(sum((x * y for x, y in zip(adjugate[0], vector, strict=True)), Fraction(0)))
        columns = list(zip(*adjugate, strict=True))
        product = [
            [sum((x * y for x, y in zip(row, column, strict=True) if x and y), Fraction(0)) for column in columns]
            for row in matrix
        ]
        p.append(-sum((product[i][i] for i in range(size)), Fraction(0)) / k)
        adjugate = [[product[i][j] + (p[-1] if i == j else 0) for j in range(size)] for i in range(size)]
    return p, q


def roots_inside(polynomial: _Polynomial, radius: Fraction = Fraction(1)) -> bool:
    """Say whether all roots of a polynomial lie strictly inside the disc of this radius (Schur-Cohn, exact)."""
    rest, power = [], Fraction(1)
    for coefficient in reversed(polynomial):  # f(radius w), lowest power first
        rest.append(coefficient * power)
        power *= radius
    rest.reverse()
    while len(rest) > 1:
        first, last = rest[0], rest[-1]
        if abs(last) >= abs(first):
            return False
        ratio = last / first
        rest = [x - ratio * y for x, y in zip(rest[:-1], rest[:0:-1], strict=True)]
    return True


def rational_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return where the stable interval ends and begins: the first to end at a positive curvature; NaN where none does.

    Curvatures are searched by octaves, then bisected to the last digit of a float. Where some mode stays on the unit
    circle whatever the curvature, a radius 1e-9 above 1 counts as stable, as it does for eigenvalues.
    """
    p, q = rational_characteristic(a, b)
    slope = sum((coefficient * (len(p) - 1 - k) for k, coefficient in enumerate(p)), Fraction(0))
    # How far a constant gradient of 1 carries the parameter in a step, late: the learning rate of the whole chain.
    rate = abs(sum(q) / slope) if slope and sum(q) else abs(Fraction(float(b[0]))) or Fraction(1)
    octaves = [Fraction(2) ** k / rate for k in _OCTAVES]
    radius = Fraction(1)

    def stable(curvature: Fraction) -> bool:
        return roots_inside([x - curvature * y for x, y in zip(p, q, strict=True)], radius)

    def end(inside: Fraction, outside: Fraction) -> float:
        for _ in range(_BISECTIONS):
            middle = Fraction(float((inside + outside) / 2))
            if middle in (inside, outside):
                break
            inside, outside = (middle, outside) if stable(middle) else (inside, middle)
        return float(inside)

    def first_close() -> int | None:
        was_stable = False
        for place, curvature in enumerate(octaves):
            is_stable = stable(curvature)
            if was_stable and not is_stable:
                return place
            was_stable = is_stable
        return None

    close = first_close()
    if close is None:
        radius += Fraction(ROUNDING)
        close = first_close()
    if close is None:
        return np.nan, np.nan
    upper = end(octaves[close - 1], octaves[close])
    opening = next((place for place in range(close - 1, -1, -1) if not stable(octaves[place])), None)
    if opening is not None:
        return upper, end(octaves[opening + 1], octaves[opening])
    if not stable(-octaves[0]):
        return upper, 0.0
    for before, after in itertools.pairwise(octaves):
        if not stable(-after):
            return upper, end(-before, -after)
    return upper, -np.inf
