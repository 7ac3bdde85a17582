"""Eigenpairs, trace and density against dense float64 references, and the silent failures of other tools."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lossland import curvature
from tests.curvature.cases import CASES, QUICK, case_named, dense_hessian_named, quick_jit, symmetric

TOLERANCE = {"float32": 1e-5, "float64": 1e-7}
WHICH = {
    "top": (curvature.top_eigenpairs, lambda values: np.sort(values)[::-1]),
    "lowest": (curvature.lowest_eigenpairs, np.sort),
    "magnitude": (curvature.largest_magnitude_eigenpairs, lambda values: values[np.argsort(-np.abs(values))]),
}


@functools.cache
def solver(which, k, num_params, **options):
    """One program per shape, for a matrix given as an argument; compiled anew for another dtype."""

    def solve(matrix):
        like = jnp.zeros(num_params, matrix.dtype)
        return WHICH[which][0](lambda vector: matrix @ vector, like=like, k=k, **options)

    return jax.jit(solve, compiler_options=QUICK)


def check(pairs, matrix, which, dtype):
    """All flagged converged, values right to the tolerance, vectors orthonormal, residuals bounds."""
    pairs = jax.tree.map(np.asarray, pairs)
    vectors = pairs.vectors.astype(float)
    k = len(pairs.values)
    expected = WHICH[which][1](np.linalg.eigvalsh(matrix))[:k]
    scale = np.abs(np.linalg.eigvalsh(matrix)).max()
    eps = np.finfo(dtype).eps
    assert pairs.converged.all()
    # Relative to the value itself; a product resolves no value below the rounding of the largest one.
    np.testing.assert_array_less(
        np.abs(pairs.values - expected), TOLERANCE[dtype] * np.abs(expected) + 64 * eps * scale + 1e-300
    )
    true = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    assert (true <= 1.01 * pairs.residuals + 128 * eps * scale).all()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=200 * eps)


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in CASES])
def test_top_five_and_lowest_of_the_case_table(name):
    """Through the problem's own product in float32, against the dense Hessian in float64."""
    case, matrix = case_named(name), dense_hessian_named(name)
    params = case.params_as("float32")

    @quick_jit
    def measure(params):
        product = curvature.hessian(case.objective, params)
        return curvature.top_eigenpairs(product, like=params, k=5), curvature.lowest_eigenpairs(product, like=params)

    for pairs, which in zip(measure(params), ("top", "lowest"), strict=True):
        assert jax.tree.structure(pairs.vectors) == jax.tree.structure(params)
        flat = np.concatenate(
            [np.asarray(leaf).reshape(len(pairs.values), -1) for leaf in jax.tree.leaves(pairs.vectors)], axis=1
        )
        # float32 on both sides of a product: the Hessian itself is known to a few units of its rounding.
        check(pairs._replace(vectors=flat), matrix, which, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_every_end_of_the_case_table(name, dtype):
    case, matrix = case_named(name), dense_hessian_named(name)
    with jax.enable_x64(dtype == "float64"):
        params = case.params_as(dtype)
        for which, (solve, _) in WHICH.items():
            pairs = quick_jit(
                lambda params, solve=solve: solve(curvature.hessian(case.objective, params), like=params, k=5)
            )(params)
            flat = [np.asarray(leaf).reshape(5, -1) for leaf in jax.tree.leaves(pairs.vectors)]
            check(pairs._replace(vectors=np.concatenate(flat, axis=1)), matrix, which, dtype)


SPECTRA = {
    "rank 3": np.concatenate([[5, 3, 1], np.zeros(197)]),
    "zero": np.zeros(200),
    "multiple": np.concatenate([[5, 5, 5, 3, 3], np.linspace(-1, 1, 195)]),
    "decaying": 2.0 ** -np.arange(200),
    "equidistant": np.linspace(-1, 1, 200),
    "both ends": np.concatenate([[-10, 2, 1, 9.99], 0.1 * np.sin(np.arange(196))]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", WHICH)
def test_no_ghosts_no_misses(which, dtype):
    """k = 4 of hard spectra: exact multiplicity, rank deficiency, zero, ends of equal size."""
    with jax.enable_x64(dtype == "float64"):
        for seed, values in enumerate(SPECTRA.values()):
            matrix = symmetric(values, seed)
            check(solver(which, 4, 200)(jnp.asarray(matrix, dtype)), matrix, which, dtype)


@pytest.mark.parametrize("num_vectors", [12, 200])
def test_no_ghosts_at_any_depth(num_vectors):
    """k = 10 with a basis of 12, restarted again and again, and with one that can hold the whole space."""
    with jax.enable_x64(True):
        for name in ("decaying", "rank 3", "multiple"):
            matrix = symmetric(SPECTRA[name], seed=7)
            pairs = solver("top", 10, 200, num_vectors=num_vectors)(jnp.asarray(matrix))
            check(pairs, matrix, "top", "float64")


@pytest.mark.slow
@pytest.mark.parametrize("k", range(1, 11))
def test_no_ghosts_for_any_number_of_pairs(k):
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            for seed, values in enumerate(SPECTRA.values()):
                matrix = symmetric(values, seed)
                check(solver("top", k, 200)(jnp.asarray(matrix, dtype)), matrix, "top", dtype)


# --- Silent failures of other tools, each on the input that showed it. ---


def test_the_stopping_rule_does_not_grow_with_the_number_of_parameters():
    """301,066 parameters, float32: a tolerance times n stops at the first step with 0.615 for 1.001."""
    diagonal = 0.6 * jax.random.uniform(jax.random.key(0), (301_066,)).at[1].set(1.001 / 0.6)
    pairs = quick_jit(lambda d: curvature.top_eigenpairs(lambda v: d * v, like=d))(diagonal)
    assert pairs.converged[0]
    np.testing.assert_allclose(pairs.values[0], 1.001, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_vectors", [24, 48, None])
def test_least_squares_with_eight_examples_at_any_depth(num_vectors, dtype):
    """Past the breakdown of a rank-8 Hessian others return 15.3 and 290 for 1.268."""
    with jax.enable_x64(dtype == "float64"):
        matrix = dense_hessian_named("least_squares")
        pairs = solver("top", 1, 60, num_vectors=num_vectors)(jnp.asarray(matrix, dtype))
        check(pairs, matrix, "top", dtype)


def test_top_lowest_and_largest_magnitude_are_three_things():
    matrix = jnp.diag(jnp.asarray([-10.0, 2.0, 1.0]))
    for which, expected in (("top", [2, 1]), ("lowest", [-10, 1]), ("magnitude", [-10, 2])):
        pairs = solver(which, 2, 3)(matrix)
        np.testing.assert_allclose(pairs.values, expected, rtol=1e-6)
        assert pairs.converged.all()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_exact_multiplicity(k):
    matrix = symmetric([5, 5, 3, 1], seed=1)
    pairs = solver("top", k, 4)(jnp.asarray(matrix, "float32"))
    np.testing.assert_allclose(pairs.values, [5, 5, 3, 1][:k], rtol=1e-5)
    assert pairs.converged.all()


def test_multiplicity_of_many_outputs(x64):
    """Linear regression on three outputs: every eigenvalue of the input covariance three times, in 150 parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 50)) * np.linspace(1, 2, 50) ** 2

    def objective(params):
        return 0.5 * jnp.mean(jnp.sum((x @ params) ** 2, axis=1))

    pairs = quick_jit(lambda p: curvature.top_eigenpairs(curvature.hessian(objective, p), like=p, k=5))(
        jnp.ones((50, 3))
    )
    values = np.linalg.eigvalsh(x.T @ x / 70)[::-1]
    np.testing.assert_allclose(pairs.values, np.repeat(values, 3)[:5], rtol=1e-7)
    assert pairs.converged.all()


def test_a_start_that_stagnates_is_not_an_answer():
    """Nearly all of the start lies on the second eigenvector: values change by 1e-5 a step, the residual does not lie."""
    values = np.concatenate([[1.0, 0.9], np.linspace(-0.3, 0.5, 198)])
    start = np.full(200, 1e-4)
    start[1] = 1

    @quick_jit
    def solve(diagonal, start):
        return curvature.top_eigenpairs(lambda v: diagonal * v, like=diagonal, start=start)

    diagonal = jnp.asarray(values, "float32")
    pairs = solve(diagonal, jnp.asarray(start, "float32"))
    np.testing.assert_allclose(pairs.values[0], 1, rtol=1e-5)
    rayleigh = [
        start @ np.diag(values) ** (2 * i + 1) @ start / (start @ np.diag(values) ** (2 * i) @ start) for i in (0, 1)
    ]
    assert abs(rayleigh[1] - rayleigh[0]) < 1e-5 * abs(rayleigh[0])


def test_global_settings_and_dtype_stay_as_they_are(x64):
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_debug_nans", "jax_numpy_dtype_promotion")
    for x64_enabled in (True, False):
        with jax.enable_x64(x64_enabled):
            before = [getattr(jax.config, name) for name in names]
            like = jnp.zeros(5, "float32")
            pairs = curvature.top_eigenpairs(lambda v: 2 * v, like=like)
            trace = curvature.trace(lambda v: 2 * v, like=like, key=jax.random.key(0))
            assert {pairs.values.dtype, pairs.residuals.dtype, trace.value.dtype} == {jnp.dtype("float32")}
            assert [getattr(jax.config, name) for name in names] == before


# --- Contexts ---


def test_a_tile_of_runs_gives_the_values_of_each_run(compilations):
    """vmap with one predicate for all lanes, plain vmap and lax.map; a lane that is NaN is told from the others."""
    matrices = np.stack([symmetric(SPECTRA[name], 3)[:60, :60] for name in ("multiple", "equidistant", "both ends")])
    matrices = np.concatenate([matrices, np.full((1, 60, 60), np.nan)]).astype(np.float32)

    def solve(matrix, **options):
        return curvature.top_eigenpairs(lambda v: matrix @ v, like=matrix[0], k=3, **options)

    def in_tile(matrix):
        return solve(matrix, any_lane=lambda active: lax.pmax(active.astype(jnp.int32), "lanes") > 0)

    expected = np.linalg.eigvalsh(matrices[:3])[:, :-4:-1]
    tile = jax.jit(jax.vmap(in_tile, axis_name="lanes"), compiler_options=QUICK)
    for context in (tile, quick_jit(lambda matrices: lax.map(solve, matrices))):
        pairs = jax.tree.map(np.asarray, context(matrices))
        np.testing.assert_allclose(pairs.values[:3], expected, rtol=1e-5)
        assert pairs.converged[:3].all()
        assert not pairs.converged[3].any()
        assert np.isnan(pairs.values[3]).all()
    tile(matrices)
    num_before = len(compilations)
    again = tile(matrices[[3, 3, 0, 1]])
    assert len(compilations) == num_before
    for leaf, other in zip(tile(matrices), again, strict=True):
        assert np.asarray(leaf)[0].tobytes() == np.asarray(other)[2].tobytes()


def test_warm_start_from_pairs_saves_products():
    diagonal = jnp.concatenate([jnp.asarray([1, 0.9, 0.8, 0.7]), jnp.linspace(-0.1, 0.3, 496)])

    @quick_jit
    def solve(diagonal, start):
        return curvature.top_eigenpairs(lambda v: diagonal * v, like=diagonal, k=3, start=start)

    cold = solve(diagonal, jax.random.normal(jax.random.key(0), (500,)))
    moved = diagonal.at[:3].multiply(jnp.asarray([1, 1.05, 1.2]))
    warm = solve(moved, curvature.warm_start(cold))
    np.testing.assert_allclose(warm.values, np.sort(moved)[:-4:-1], rtol=1e-5)
    assert warm.converged.all()
    assert warm.num_matvecs < cold.num_matvecs


def test_no_claim_without_products():
    matrix = jnp.asarray(symmetric(SPECTRA["equidistant"], 1), "float32")
    pairs = solver("top", 4, 200, max_matvecs=15)(matrix)
    assert pairs.num_matvecs == 15
    assert not pairs.converged.any()


def test_errors_name_what_is_wrong():
    like = jnp.zeros(5)
    with pytest.raises(ValueError, match=r"k: expected 1 <= k <= 5, the number of parameters, got 6"):
        curvature.top_eigenpairs(lambda v: v, like=like, k=6)
    with pytest.raises(ValueError, match=r"num_vectors: expected at least 5 for k = 4, got 4; raise it or lower k"):
        curvature.lowest_eigenpairs(lambda v: v, like=like, k=4, num_vectors=4)
    with pytest.raises(ValueError, match=r"num_matvecs: expected at least 4.*got 2"):
        curvature.trace(lambda v: v, like=like, key=jax.random.key(0), num_matvecs=2)
    with pytest.raises(ValueError, match=r"num_probes: expected at least 2, got 1"):
        curvature.spectral_density(lambda v: v, like=like, key=jax.random.key(0), num_probes=1)


# --- Trace ---


def trace_over_keys(matrix, num_matvecs, num_keys):
    like = jnp.zeros(len(matrix), matrix.dtype)

    def estimate(key):
        return curvature.trace(lambda v: matrix @ v, like=like, key=key, num_matvecs=num_matvecs)

    return jax.tree.map(np.asarray, quick_jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), num_keys)))


def test_trace_is_unbiased_and_its_error_is_its_error(x64):
    """200 keys on the Hessian of a network: mean within 4 of its standard errors, two-sigma intervals cover 90 %."""
    matrix = dense_hessian_named("relu_cross_entropy")
    estimates = trace_over_keys(jnp.asarray(matrix), 24, 200)
    deviations = estimates.value - np.trace(matrix)
    assert abs(deviations.mean()) <= 4 * deviations.std() / np.sqrt(200)
    covered = np.mean(np.abs(deviations) <= 2 * estimates.standard_error)
    assert 0.9 <= covered <= 0.995
    # Better than the estimator of Hutchinson with as many products, whose deviation is 2 ||H off diagonal||_F^2 / n.
    hutchinson = np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 24)
    assert deviations.std() < 0.5 * hutchinson
    assert (estimates.num_matvecs == 24).all()


@pytest.mark.parametrize(
    "values", [np.zeros(30), np.r_[5.0, 3, 1, np.zeros(27)], -np.ones(30), [3.0], [1.0, -1.0, 2.0]]
)
def test_trace_is_exact_where_it_can_be(x64, values):
    """Zero, low rank, a multiple of the identity, and no more parameters than vectors."""
    estimates = trace_over_keys(jnp.asarray(symmetric(values, 1)), 16, 5)
    np.testing.assert_allclose(estimates.value, np.sum(values), atol=1e-12 * max(1, np.abs(values).sum()))
    np.testing.assert_allclose(estimates.standard_error, 0, atol=1e-12 * max(1, np.abs(values).sum()))


# --- Spectral density ---


@functools.cache
def density_of(name, num_probes=8, num_steps=64):
    matrix = {"network": lambda: dense_hessian_named("relu_cross_entropy")}.get(
        name, lambda: symmetric(SPECTRA[name], 2)
    )()
    with jax.enable_x64(True):

        def estimate(key):
            like = jnp.zeros(len(matrix))
            product = jnp.asarray(matrix)
            return curvature.spectral_density(
                lambda v: product @ v, like=like, key=key, num_probes=num_probes, num_steps=num_steps
            )

        return matrix, quick_jit(jax.vmap(estimate))(jax.random.split(jax.random.key(1), 50))


@pytest.mark.parametrize("name", ["network", "rank 3", "zero", "decaying"])
def test_density_is_normalised(x64, name):
    _, densities = density_of(name)
    spacing = densities.grid[:, 1] - densities.grid[:, 0]
    np.testing.assert_allclose(densities.density.sum(axis=1) * spacing, 1, atol=1e-4)
    assert (np.asarray(densities.density) >= -1e-9).all()
    np.testing.assert_allclose(densities.weights.sum(axis=2), 1, atol=1e-10)


def test_density_reaches_both_ends_of_the_spectrum(x64):
    matrix, densities = density_of("network")
    ends = np.linalg.eigvalsh(matrix)[[0, -1]]
    nodes = np.asarray(densities.nodes)
    np.testing.assert_allclose(nodes.min(axis=(1, 2)), ends[0], rtol=1e-6)
    np.testing.assert_allclose(nodes.max(axis=(1, 2)), ends[1], rtol=1e-6)
    assert (densities.grid[:, 0] < ends[0]).all()
    assert (densities.grid[:, -1] > ends[1]).all()


@pytest.mark.parametrize("order", [1, 2])
def test_first_two_moments_are_trace_and_frobenius_norm(x64, order):
    """50 keys, 8 probes: the mean within 4 standard errors, the stated error right to 20 %, intervals that cover."""
    matrix, densities = density_of("network")
    expected = np.trace(np.linalg.matrix_power(matrix, order)) / len(matrix)
    moments = jax.tree.map(np.asarray, jax.vmap(lambda density: density.moment(order))(densities))
    deviations = moments.value - expected
    assert abs(deviations.mean()) <= 4 * deviations.std() / np.sqrt(50)
    root_mean_square = np.sqrt(np.mean(moments.standard_error**2))
    assert 0.75 <= root_mean_square / deviations.std() <= 1.33
    # 7 degrees of freedom: two standard errors hold 91.4 % of the time.
    assert np.mean(np.abs(deviations) <= 2 * moments.standard_error) >= 0.8


def test_density_is_the_blurred_histogram_within_its_error(x64):
    matrix, densities = density_of("network")
    eigenvalues = np.linalg.eigvalsh(matrix)
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), densities)
    deviation = 0.01 * (first.nodes.max() - first.nodes.min())
    blur = np.exp(-(((first.grid[:, None] - eigenvalues) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    exact = blur.mean(axis=1)
    distances = np.abs(np.asarray(densities.density) - exact).sum(axis=1) * (first.grid[1] - first.grid[0])
    assert distances[0] < 0.5
    # Errors fall as one over the root of the probes: pooling 50 keys leaves a seventh.
    same_grid = np.stack([np.interp(first.grid, g, d) for g, d in zip(densities.grid, densities.density, strict=True)])
    pooled = same_grid.mean(axis=0)
    error = same_grid.std(axis=0) / np.sqrt(50)
    assert np.mean(np.abs(pooled - exact) <= 4 * error + 0.02 * exact.max()) > 0.95
    stated = np.sqrt(np.mean(np.asarray(densities.standard_error) ** 2, axis=0))
    peak = np.argmax(exact)
    assert 0.6 <= stated[peak] / same_grid.std(axis=0)[peak] <= 1.6
