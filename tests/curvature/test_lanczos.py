"""The engine's solver of one top eigenvalue: certified values, warm starts, and lanes that do not feel each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lossland.curvature import lanczos
from tests.curvature.cases import CASES, QUICK, dense_hessian_named, symmetric

TOLERANCE = {"float32": 1e-5, "float64": 1e-7}
SIZE = 256


def any_lane(active):
    return lax.pmax(active.astype(jnp.int32), "lanes") > 0


@functools.cache
def solve_tile(**options):
    """One program for all tests: a tile of dense matrices of one size."""

    def solve(matrix, start):
        return lanczos.top_eigenpair(lambda vector: matrix @ vector, start, any_lane=any_lane, **options)

    return jax.jit(jax.vmap(solve, axis_name="lanes"), compiler_options=QUICK)


def padded(matrix):
    """The matrix with eigenvalues just below its lowest one added, so that all have the same size."""
    low = np.linalg.eigvalsh(matrix)[0]
    result = low * np.eye(SIZE)
    result[: len(matrix), : len(matrix)] = matrix
    return result


def spectra():
    rng = np.random.default_rng(0)
    bulk = 0.1 * rng.normal(size=SIZE)
    return {
        "outliers": np.concatenate([bulk[3:], [1, 0.95, 0.9]]),
        "equidistant": np.linspace(-1, 1, SIZE),
        "decaying": 2.0 ** -np.arange(SIZE),
        "negative outlier": np.concatenate([bulk[2:], [-10, 0.9]]),
        "all negative": -1 - np.arange(SIZE) / SIZE,
        "multiple": np.concatenate([bulk[4:], [5, 5, 3, 1]]),
        "rank 3": np.concatenate([np.zeros(SIZE - 3), [5, 3, 1]]),
        "zero": np.zeros(SIZE),
        "large": 1e6 * np.linspace(-1, 1, SIZE) ** 3,
        "small": 1e-6 * np.linspace(-1, 1, SIZE) ** 3,
    }


@functools.cache
def tile():
    matrices = {name: padded(dense_hessian_named(name)) for name in CASES}
    matrices |= {name: symmetric(values, seed=i) for i, (name, values) in enumerate(spectra().items())}
    starts = np.random.default_rng(1).normal(size=(len(matrices), SIZE))
    return list(matrices), np.stack(list(matrices.values())), starts


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_certified_value_is_the_top_eigenvalue(dtype):
    names, matrices, starts = tile()
    with jax.enable_x64(dtype == "float64"):
        pairs = solve_tile()(matrices.astype(dtype), starts.astype(dtype))
        pairs = jax.tree.map(np.asarray, pairs)
    eigenvalues = np.linalg.eigvalsh(matrices)
    scale = np.maximum(np.abs(eigenvalues).max(axis=1), 1e-300)
    # Where the top eigenvalue is small beside the spectrum, the precision of a product is that of the spectrum.
    error = np.abs(pairs.value - eigenvalues[:, -1]) / np.maximum(np.abs(eigenvalues[:, -1]), 0.1 * scale)
    assert pairs.converged.all(), dict(zip(names, pairs.converged, strict=True))
    assert (error <= TOLERANCE[dtype]).all(), dict(zip(names, error, strict=True))
    # The residual is what it claims to be, up to the rounding of a product.
    vectors = pairs.vector.astype(float)
    true = np.linalg.norm(np.einsum("lij,lj->li", matrices, vectors) - pairs.value[:, None] * vectors, axis=1)
    rounding = 64 * np.finfo(dtype).eps * scale
    assert (true <= 1.01 * pairs.residual + rounding).all(), dict(zip(names, true / scale, strict=True))
    assert (pairs.residual <= 1e-4 * np.abs(eigenvalues[:, -1]) + rounding).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # An invariant subspace ends the iteration: rank 3 after 4 products, zero after 1.
    count = dict(zip(names, pairs.num_matvecs, strict=True))
    assert count["zero"] == 1
    assert count["rank 3"] <= 5
    assert count["least_squares"] <= 12


@pytest.mark.parametrize("num_params", [1, 2, 3])
def test_matrices_smaller_than_the_basis(num_params):
    matrix = np.diag([2.0, -10.0, 1.0][:num_params]).astype(np.float32)
    pair = jax.jit(lambda start: lanczos.top_eigenpair(lambda v: matrix @ v, start), compiler_options=QUICK)(
        np.ones(num_params, np.float32)
    )
    np.testing.assert_allclose(pair.value, 2, rtol=1e-6)
    assert pair.converged
    assert pair.num_matvecs == num_params


def bits(tree, lane):
    return [np.asarray(leaf)[lane].tobytes() for leaf in tree]


def test_a_lane_does_not_feel_its_neighbours():
    """Bits of all results of a lane, whatever runs beside it: others, slower ones, copies, NaN; wherever it stands."""
    names, matrices, starts = tile()
    order = [names.index(name) for name in ("rank 3", "equidistant", "outliers", "tanh_mse")]
    matrices, starts = matrices[order].astype(np.float32), starts[order].astype(np.float32)
    nan = np.full_like(matrices[:1], np.nan)
    matrices, starts = np.concatenate([matrices, nan]), np.concatenate([starts, starts[:1]])
    solve = solve_tile()
    alone = [solve(matrices[[i] * 4], starts[[i] * 4]) for i in range(5)]
    for lanes in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 4, 4], [4, 1, 4, 0], [0, 4, 4, 4]):
        together = solve(matrices[lanes], starts[lanes])
        for position, lane in enumerate(lanes):
            assert bits(together, position) == bits(alone[lane], 0), (lanes, position)


def test_a_lane_that_is_not_finite_stops_at_once_and_recovers():
    _, matrices, starts = tile()
    bad = np.stack([np.full((SIZE, SIZE), np.nan), np.full((SIZE, SIZE), 1e38), matrices[0], np.zeros((SIZE, SIZE))])
    starts = np.stack([starts[0], starts[0], np.full(SIZE, np.nan), np.zeros(SIZE)]).astype(np.float32)
    pairs = jax.tree.map(np.asarray, solve_tile()(bad.astype(np.float32), starts))
    assert np.isnan(pairs.value).all()
    assert np.isnan(pairs.residual).all()
    assert not pairs.converged.any()
    assert (pairs.num_matvecs == 1).all()
    np.testing.assert_allclose(np.linalg.norm(pairs.next_start, axis=1), 1, rtol=1e-5)
    healed = solve_tile()(np.stack([matrices[0]] * 4).astype(np.float32), pairs.next_start)
    assert np.asarray(healed.converged).all()


def test_a_tile_copies_no_basis():
    """With `any_lane` no `select` has the shape of the basis; without, a vmapped loop selects it every step."""

    def selects(**options):
        def solve(start):
            return lanczos.top_eigenpair(lambda v: 2 * v, start, num_vectors=48, **options)

        program = jax.jit(jax.vmap(solve, axis_name="lanes")).lower(np.ones((4, 100), np.float32)).as_text()
        return sum("select" in line and "4x48x100xf32" in line for line in program.splitlines())

    assert selects(any_lane=any_lane) == 0
    assert selects() > 0


def test_restarts_reach_what_one_basis_does_not():
    """A basis of 12 vectors on a spectrum that takes 70: more products, the same value; no products left, no claim."""
    names, matrices, starts = tile()
    lane = names.index("equidistant")
    matrix, start = np.stack([matrices[lane]] * 2), np.stack([starts[lane]] * 2)
    with jax.enable_x64(True):
        pairs = solve_tile(num_vectors=12)(matrix, start)
        short = solve_tile(num_vectors=12, max_matvecs=20)(matrix, start)
        pairs, short = jax.tree.map(np.asarray, (pairs, short))
    assert pairs.converged[0]
    assert pairs.num_matvecs[0] > 12
    np.testing.assert_allclose(pairs.value[0], 1, rtol=1e-7)
    assert not short.converged[0]
    assert short.num_matvecs[0] == 20
    assert short.residual[0] > 1e-4
    assert abs(short.value[0] - 1) > 1e-7


def solve_diagonals():
    def solve(diagonal, start):
        return lanczos.top_eigenpair(lambda v: diagonal * v, start, any_lane=any_lane)

    return jax.jit(jax.vmap(solve, axis_name="lanes"), compiler_options=QUICK)


@pytest.mark.parametrize("overtaking", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_warm_start_follows_a_crossing(dtype, overtaking):
    """The second (third) eigenvalue overtakes between two records: 40 of 40 follow, by 0.2 to 20 % (2 to 20 %).

    The eigenvectors do not turn, the worst case: the old top vector is exactly the new second one.
    """
    num_lanes, num_params = 40, 2000
    rng = np.random.default_rng(overtaking)
    before = 0.3 * rng.uniform(-0.1, 1, size=(num_lanes, num_params))
    before[:, :3] = [1.0, 0.95, 0.9]
    gaps = np.geomspace(2e-3 if overtaking == 1 else 2e-2, 0.2, num_lanes)
    after = before.copy()
    after[:, overtaking] = 1 + gaps
    starts = rng.normal(size=(num_lanes, num_params))
    with jax.enable_x64(dtype == "float64"):
        solve = solve_diagonals()
        first = solve(before.astype(dtype), starts.astype(dtype))
        second = solve(after.astype(dtype), first.next_start)
        alone = solve(after.astype(dtype), first.vector)
    np.testing.assert_allclose(first.value, 1, rtol=TOLERANCE[dtype])
    assert np.asarray(second.converged).all()
    np.testing.assert_allclose(second.value, 1 + gaps, rtol=TOLERANCE[dtype])
    # The old vector as it is certifies the old eigenvalue in most trials: this test can fail.
    assert (np.abs(np.asarray(alone.value) - 1) < 1e-4).sum() > num_lanes / 2


def test_warm_start_saves_products():
    rng = np.random.default_rng(0)
    diagonal = np.concatenate([[1, 0.9, 0.7, 0.5], rng.uniform(-0.05, 0.3, 1996)])
    drift = diagonal * (1 + 0.01 * rng.normal(size=2000))
    starts = rng.normal(size=(2, 2000)).astype(np.float32)
    solve = solve_diagonals()
    cold = solve(np.stack([diagonal, drift]).astype(np.float32), starts)
    warm = solve(np.stack([drift, diagonal]).astype(np.float32), cold.next_start)
    assert np.asarray(warm.converged).all()
    assert (np.asarray(warm.num_matvecs) <= 8).all()
    assert (np.asarray(cold.num_matvecs) >= 10).all()


@pytest.mark.slow
def test_same_result_in_every_context():
    """jit, vmap without a named axis, lax.map and a loop body; one compilation for all values."""
    names, matrices, starts = tile()
    order = [names.index(name) for name in ("relu_cross_entropy", "outliers", "zero")]
    matrices, starts = matrices[order].astype(np.float32), starts[order].astype(np.float32)

    def solve(matrix, start):
        return lanczos.top_eigenpair(lambda vector: matrix @ vector, start)

    def in_scan(matrices, starts):
        return lax.scan(lambda _, pair: (None, solve(*pair)), None, (matrices, starts))[1]

    contexts = (
        jax.vmap(solve),
        lambda matrices, starts: lax.map(lambda pair: solve(*pair), (matrices, starts)),
        in_scan,
    )
    for context in contexts:
        pairs = jax.jit(context, compiler_options=QUICK)(matrices, starts)
        assert np.asarray(pairs.converged).all()
        np.testing.assert_allclose(pairs.value, np.linalg.eigvalsh(matrices)[:, -1], rtol=1e-5, atol=1e-6)


def test_compiles_once_and_no_longer_for_a_deeper_basis(compilations):
    def lower(num_vectors):
        program = jax.jit(lambda start: lanczos.top_eigenpair(lambda v: 2 * v, start, num_vectors=num_vectors))
        return program.lower(np.ones(300, np.float32)).as_text()

    assert len(lower(64)) < 1.02 * len(lower(16))
    solve = jax.jit(lambda start: lanczos.top_eigenpair(lambda v: 2 * v, start), compiler_options=QUICK)
    starts = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    jax.block_until_ready(solve(starts[0]))
    num_before = len(compilations)
    jax.block_until_ready([solve(start) for start in starts[1:]])
    assert len(compilations) == num_before


def test_memory_of_the_basis_is_bounded():
    assert lanczos.basis_size(17_226, 64, "float32") == 64
    assert lanczos.basis_size(10, 64, "float32") == 10
    assert lanczos.basis_size(10_000_000, 64, "float32") == 6
    assert lanczos.basis_size(1_000_000_000, 64, "float64") == 4


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (np.ones((2, 3), np.float32), {}, r"start: expected a vector.*got shape \(2, 3\); flatten"),
        (np.ones(3, np.int32), {}, r"start: expected real floats, got int32; cast"),
        (np.ones(3, np.float32), {"tol": 0.0}, r"tol: expected a finite number above 0, got 0.0"),
        (np.ones(3, np.float32), {"max_matvecs": 0}, r"max_matvecs: expected an integer of at least 1, got 0"),
    ],
)
def test_errors_name_what_is_wrong(start, options, message):
    with pytest.raises(ValueError, match=message):
        lanczos.top_eigenpair(lambda vector: vector, jnp.asarray(start), **options)
