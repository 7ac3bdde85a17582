"""Several eigenpairs against dense float64 references, and the silent failures of other tools."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lossland import curvature
from lossland.curvature import eigenpairs
from tests.curvature.cases import CASES, QUICK, case_named, dense_hessian_named, quick_jit, symmetric

TOLERANCE = {"float32": 1e-5, "float64": 1e-7}
SIZE = 256
WHICH = {
    "top": (curvature.top_eigenpairs, lambda values: np.sort(values)[::-1]),
    "lowest": (curvature.lowest_eigenpairs, np.sort),
    "magnitude": (curvature.largest_magnitude_eigenpairs, lambda values: values[np.argsort(-np.abs(values))]),
}


@functools.cache
def solver(which, k, num_params=SIZE, **options):
    """One program per shape, for a matrix given as an argument; compiled anew for another dtype."""

    def solve(matrix):
        like = jnp.zeros(num_params, matrix.dtype)
        return WHICH[which][0](lambda vector: matrix @ vector, like=like, k=k, **options)

    return jax.jit(solve, compiler_options=QUICK)


def check(pairs, matrix, which, dtype, must_converge=True):
    """Values flagged converged are right to the tolerance, in order; vectors orthonormal; residuals what they say."""
    pairs = jax.tree.map(np.asarray, pairs)
    vectors = pairs.vectors.astype(float)
    k = len(pairs.values)
    spectrum = np.linalg.eigvalsh(matrix)
    expected = WHICH[which][1](spectrum)[:k]
    values = pairs.values
    if which == "magnitude":  # of two of equal size, either may come first
        values, expected = np.abs(values), np.abs(expected)
    scale = np.abs(spectrum).max()
    eps = np.finfo(dtype).eps
    assert pairs.converged.all() or not must_converge
    # Relative to the value itself; a product resolves no value below the rounding of the largest one.
    allowed = TOLERANCE[dtype] * np.abs(expected) + 64 * eps * scale
    assert (np.abs(values - expected) <= allowed)[pairs.converged].all(), np.abs(values - expected) / (allowed + 1e-300)
    if pairs.converged.all():
        true = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
        assert (true <= 1.01 * pairs.residuals + 128 * eps * scale).all()
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=200 * eps)


def padded(matrix, which):
    """The matrix with eigenvalues beyond its far end added, so that all have the same size."""
    spectrum = np.linalg.eigvalsh(matrix)
    result = (spectrum[0] - 0.1 if which == "top" else spectrum[-1] + 0.1) * np.eye(SIZE)
    result[: len(matrix), : len(matrix)] = matrix
    return result


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("which", ["top", "lowest"])
def test_five_top_and_lowest_of_the_case_table(which, dtype):
    with jax.enable_x64(dtype == "float64"):
        for name in CASES:
            matrix = padded(dense_hessian_named(name), which)
            check(solver(which, 5)(jnp.asarray(matrix, dtype)), matrix, which, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_case_table_through_its_own_products(name, dtype):
    case, matrix = case_named(name), dense_hessian_named(name)
    with jax.enable_x64(dtype == "float64"):
        params = case.params_as(dtype)

        @quick_jit
        def measure(params):
            product = curvature.hessian(case.objective, params)
            top = curvature.top_eigenpairs(product, like=params, k=5)
            return top, curvature.lowest_eigenpairs(product, like=params)

        for pairs, which in zip(measure(params), ("top", "lowest"), strict=True):
            assert jax.tree.structure(pairs.vectors) == jax.tree.structure(params)
            flat = [np.asarray(leaf).reshape(len(pairs.values), -1) for leaf in jax.tree.leaves(pairs.vectors)]
            check(pairs._replace(vectors=np.concatenate(flat, axis=1)), matrix, which, dtype)


SPECTRA = {
    "rank 3": np.concatenate([[5, 3, 1], np.zeros(SIZE - 3)]),
    "zero": np.zeros(SIZE),
    "multiple": np.concatenate([[5, 5, 5, 3, 3], np.linspace(-1, 1, SIZE - 5)]),
    "decaying": 2.0 ** -np.arange(SIZE),
    "equidistant": np.linspace(-1, 1, SIZE),
    "both ends": np.concatenate([[-10, 2, 1, 9.99], 0.1 * np.sin(np.arange(SIZE - 4))]),
}
# Eigenvalues that cluster at the rounding of the largest one: no solver separates them, and none may say that it has.
HOPELESS = ("lowest", "decaying")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("which", WHICH)
def test_no_ghosts_no_misses(which, dtype):
    """Five of hard spectra: exact multiplicity, rank deficiency, zero, ends of equal size."""
    with jax.enable_x64(dtype == "float64"):
        for seed, (name, values) in enumerate(SPECTRA.items()):
            matrix = symmetric(values, seed)
            pairs = solver(which, 5)(jnp.asarray(matrix, dtype))
            check(pairs, matrix, which, dtype, must_converge=(which, name) != HOPELESS)


@pytest.mark.parametrize("num_vectors", [28, SIZE])
def test_no_ghosts_at_any_depth(num_vectors):
    """k = 10 with a basis of 28, restarted again and again, and with one that can hold the whole space."""
    with jax.enable_x64(True):
        for name in ("decaying", "rank 3", "multiple", "equidistant"):
            matrix = symmetric(SPECTRA[name], seed=7)
            check(solver("top", 10, num_vectors=num_vectors)(jnp.asarray(matrix)), matrix, "top", "float64")


@pytest.mark.parametrize(
    "k", [pytest.param(k, marks=pytest.mark.slow if k in (1, 2, 5, 10) else pytest.mark.long) for k in range(1, 11)]
)
def test_no_ghosts_for_any_number_of_pairs(k):
    for dtype in TOLERANCE:
        with jax.enable_x64(dtype == "float64"):
            for seed, values in enumerate(SPECTRA.values()):
                matrix = symmetric(values, seed)
                check(solver("top", k)(jnp.asarray(matrix, dtype)), matrix, "top", dtype)


@pytest.mark.slow
def test_many_random_spectra_with_copies():
    """150 matrices with clusters, copies and zeros at random: nothing flagged converged is wrong."""
    rng = np.random.default_rng(0)
    num_converged = 0
    for trial in range(150):
        kinds = [rng.normal(size=SIZE), rng.exponential(size=SIZE) ** 3, np.zeros(SIZE)]
        values = kinds[trial % 3].copy()
        top = np.sort(rng.uniform(0.5, 3, 4)) * (1 + np.abs(values).max())
        values[:12] = np.repeat(top, 3) if trial % 2 else np.repeat(top, [1, 5, 2, 4])
        matrix = symmetric(values, trial)
        pairs = solver("top", 5)(jnp.asarray(matrix, "float32"))
        check(pairs, matrix, "top", "float32", must_converge=False)
        num_converged += np.asarray(pairs.converged).all()
    assert num_converged == 150


# --- Silent failures of other tools, each on the input that showed it. ---


@pytest.mark.parametrize("k", [1, 3])
def test_the_stopping_rule_does_not_grow_with_the_number_of_parameters(k):
    """301,066 parameters, float32: a tolerance times n stops at the first step with 0.615 for 1.001."""
    diagonal = 0.6 * jax.random.uniform(jax.random.key(0), (301_066,))
    diagonal = diagonal.at[:3].set(jnp.asarray([0.9, 1.001, 0.8]))
    pairs = quick_jit(lambda d: curvature.top_eigenpairs(lambda v: d * v, like=d, k=k))(diagonal)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, [1.001, 0.9, 0.8][:k], rtol=1e-5)


def test_the_default_number_of_products_is_enough():
    """Not two products for k = 1, and more when it takes more."""
    matrix = symmetric(SPECTRA["equidistant"], 0)
    pairs = solver("top", 1)(jnp.asarray(matrix, "float32"))
    check(pairs, matrix, "top", "float32")
    assert pairs.num_matvecs > 20


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_vectors", [24, 48])
def test_least_squares_with_eight_examples_at_any_depth(num_vectors, dtype):
    """Past the breakdown of a rank-8 Hessian others return 15.3 and 290 for 1.268."""
    with jax.enable_x64(dtype == "float64"):
        matrix = dense_hessian_named("least_squares")
        for k in (1, 5):
            pairs = solver("top", k, 60, num_vectors=num_vectors)(jnp.asarray(matrix, dtype))
            check(pairs, matrix, "top", dtype)


def test_top_lowest_and_largest_magnitude_are_three_things():
    """Others return -117 for the first of -10, 2, 1, or the smallest for the lowest."""
    matrix = jnp.diag(jnp.asarray([-10.0, 2.0, 1.0]))
    for which, expected in (("top", [2, 1]), ("lowest", [-10, 1]), ("magnitude", [-10, 2])):
        pairs = solver(which, 2, 3)(matrix)
        np.testing.assert_allclose(pairs.values, expected, rtol=1e-6)
        assert pairs.converged.all()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_exact_multiplicity(k):
    """5, 5, 3, 1 is not 5, 3, 1."""
    matrix = symmetric([5, 5, 3, 1], seed=1)
    pairs = solver("top", k, 4)(jnp.asarray(matrix, "float32"))
    np.testing.assert_allclose(pairs.values, [5, 5, 3, 1][:k], rtol=1e-5)
    assert pairs.converged.all()


@pytest.mark.parametrize("value", [-3.0, 0.0])
def test_one_parameter(value):
    for solve, _ in WHICH.values():
        pairs = quick_jit(lambda v, solve=solve: solve(lambda w: v * w, like=v))(jnp.full(1, value))
        np.testing.assert_allclose(pairs.values, [value])
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
    """Nearly all of the start lies on the second eigenvector: values hardly change from step to step."""
    values = np.concatenate([[1.0, 0.9], np.linspace(-0.3, 0.5, 198)])
    start = np.full(200, 1e-4)
    start[1] = 1

    @quick_jit
    def solve(diagonal, start):
        return curvature.top_eigenpairs(lambda v: diagonal * v, like=diagonal, start=start)

    pairs = solve(jnp.asarray(values, "float32"), jnp.asarray(start, "float32"))
    np.testing.assert_allclose(pairs.values[0], 1, rtol=1e-5)
    rayleigh = [start @ (values ** (2 * i + 1) * start) / (start @ (values ** (2 * i) * start)) for i in (0, 1)]
    assert abs(rayleigh[1] - rayleigh[0]) < 1e-5 * abs(rayleigh[0])


def test_the_program_does_not_grow_with_depth():
    def lower(num_vectors):
        solve = functools.partial(curvature.top_eigenpairs, lambda v: 2 * v, k=3, num_vectors=num_vectors)
        return jax.jit(lambda like: solve(like=like)).lower(jnp.zeros(300)).as_text()

    assert len(lower(128)) < 1.05 * len(lower(32))


def test_global_settings_and_dtype_stay_as_they_are():
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_debug_nans", "jax_numpy_dtype_promotion")
    for x64_enabled in (True, False):
        with jax.enable_x64(x64_enabled):
            before = [getattr(jax.config, name) for name in names]
            like = jnp.zeros(5, "float32")
            pairs = quick_jit(lambda like: curvature.top_eigenpairs(lambda v: 2 * v, like=like, k=2))(like)
            assert {pairs.values.dtype, pairs.residuals.dtype} == {jnp.dtype("float32")}
            curvature.cross_check(pairs, lambda params: lambda v: 2 * v, like)
            assert [getattr(jax.config, name) for name in names] == before


# --- Contexts ---


def test_a_tile_of_runs_gives_the_values_of_each_run(compilations):
    """vmap with one predicate for all lanes, and lax.map; a lane that is NaN is told from the others."""
    matrices = np.stack([symmetric(SPECTRA[name], 3)[:60, :60] for name in ("multiple", "equidistant", "both ends")])
    matrices = np.concatenate([matrices, np.full((1, 60, 60), np.nan)]).astype(np.float32)

    def solve(matrix, **options):
        return curvature.top_eigenpairs(lambda v: matrix @ v, like=matrix[0], k=3, **options)

    def in_tile(matrix):
        return solve(matrix, any_lane=lambda active: lax.pmax(active.astype(jnp.int32), "lanes") > 0)

    expected = np.linalg.eigvalsh(matrices[:3])[:, :-4:-1]
    tile = jax.jit(jax.vmap(in_tile, axis_name="lanes"), compiler_options=QUICK)
    for context in (tile, quick_jit(lambda matrices: lax.map(solve, matrices)), quick_jit(jax.vmap(solve))):
        pairs = jax.tree.map(np.asarray, context(matrices))
        np.testing.assert_allclose(pairs.values[:3], expected, rtol=1e-5)
        assert pairs.converged[:3].all()
        assert not pairs.converged[3].any()
        assert np.isnan(pairs.values[3]).all()
    num_before = len(compilations)
    again = tile(matrices[[3, 3, 0, 1]])
    assert len(compilations) == num_before
    for leaf, other in zip(tile(matrices), again, strict=True):
        assert np.asarray(leaf)[0].tobytes() == np.asarray(other)[2].tobytes()


def test_warm_start_from_pairs_saves_products_and_follows_a_crossing():
    diagonal = jnp.concatenate([jnp.asarray([1, 0.9, 0.8, 0.7]), jnp.linspace(-0.1, 0.3, 496)])

    @quick_jit
    def solve(diagonal, start):
        return curvature.top_eigenpairs(lambda v: diagonal * v, like=diagonal, k=3, start=start)

    cold = solve(diagonal, jax.random.normal(jax.random.key(0), (500,)))
    moved = diagonal.at[:4].multiply(jnp.asarray([1, 1.2, 1.2, 1.4]))
    warm = solve(moved, curvature.warm_start(cold))
    np.testing.assert_allclose(warm.values, np.sort(moved)[:-4:-1], rtol=1e-5)
    assert warm.converged.all()
    near = solve(diagonal.at[:3].multiply(1.001), curvature.warm_start(cold))
    assert near.num_matvecs < cold.num_matvecs


@pytest.mark.parametrize("hidden", [0.999, 1.5])
def test_a_search_that_outlives_its_basis(hidden):
    """The start sees three eigenvectors only; the search for others takes more rows than the basis has."""
    values = np.concatenate([[3, 1, 0], np.linspace(-1, hidden, SIZE - 3)])
    start = np.zeros(SIZE)
    start[:3] = 1

    @quick_jit
    def solve(diagonal, start):
        return eigenpairs.extremal_eigenpairs(lambda v: diagonal * v, start, 2)

    pairs = solve(jnp.asarray(values, "float32"), jnp.asarray(start, "float32"))
    assert pairs.num_matvecs > 38
    check(pairs, np.diag(values), "top", "float32")


def test_no_claim_without_products():
    matrix = jnp.asarray(symmetric(SPECTRA["equidistant"], 1), "float32")
    pairs = solver("top", 5, max_matvecs=15)(matrix)
    assert pairs.num_matvecs == 15
    assert not pairs.converged.any()


def test_memory_of_the_basis_is_bounded(monkeypatch):
    """A basis of least size where no more fits, and the same values."""
    monkeypatch.setattr(eigenpairs, "MAX_BASIS_BYTES", 1)
    matrix = symmetric(SPECTRA["decaying"], 1)

    def solve(matrix):
        return curvature.top_eigenpairs(lambda v: matrix @ v, like=matrix[0], k=2)

    program = jax.jit(solve, compiler_options=QUICK)
    assert f"<16x{SIZE}xf32>" in program.lower(jnp.asarray(matrix, "float32")).as_text()
    check(program(jnp.asarray(matrix, "float32")), matrix, "top", "float32")


@pytest.mark.long
def test_256_initialisations_without_a_miss():
    """Top eigenvalue at initialisation, at step 10 and at step 200, at the default tolerance."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = jnp.asarray(images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)[:300] / 16, "float32")
    y = jnp.asarray(labels[:300])

    def initial(key):
        first, second = jax.random.split(key)
        return {"a": jax.random.normal(first, (16, 12)) / 4, "b": jax.random.normal(second, (12, 10)) / 12**0.5}

    def objective(params):
        logits = jnp.tanh(x.astype(params["a"].dtype) @ params["a"]) @ params["b"]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0])

    def train(params, num_steps):
        def step(_, params):
            return jax.tree.map(lambda p, g: p - 0.2 * g, params, jax.grad(objective)(params))

        return lax.fori_loop(0, num_steps, step, params)

    def solve(params):
        return curvature.top_eigenpairs(curvature.hessian(objective, params), like=params)

    params = jax.vmap(initial)(jax.random.split(jax.random.key(0), 256))
    for num_steps in (0, 10, 190):
        params = jax.jit(lambda params, n: lax.map(lambda p: train(p, n), params))(params, num_steps)
        pairs = jax.jit(lambda params: lax.map(solve, params))(params)
        assert pairs.converged.all()
        with jax.enable_x64(True):
            doubled = jax.tree.map(lambda leaf: leaf.astype("float64"), params)
            matrices = jax.jit(lambda params: lax.map(lambda p: curvature.dense_hessian(objective, p), params))(doubled)
            expected = np.linalg.eigvalsh(np.asarray(matrices))[:, -1]
        np.testing.assert_allclose(pairs.values[:, 0], expected, rtol=1e-5)


# --- Cross-check, directions, errors ---


def test_cross_check_tells_top_from_lowest_and_ghosts_from_values():
    case = case_named("tanh_mse")
    params = case.params_as("float32")

    def build(params):
        return curvature.hessian(case.objective, params)

    @quick_jit
    def measure(params):
        top = curvature.top_eigenpairs(build(params), like=params, k=3)
        return top, curvature.lowest_eigenpairs(build(params), like=params, k=2)

    top, lowest = measure(params)
    report = curvature.cross_check(top, build, params)
    np.testing.assert_array_equal(report.ranks, [0, 1, 2])
    assert report.exact.dtype == np.float64
    assert (report.error <= report.bound + 1e-5).all()
    num_params = len(dense_hessian_named("tanh_mse"))
    np.testing.assert_array_equal(curvature.cross_check(lowest, build, params).ranks, [num_params - 1, num_params - 2])
    ghost = top._replace(values=top.values[jnp.asarray([0, 0, 1])])
    assert curvature.cross_check(ghost, build, params).error[1] > 0.01


def test_curvature_along_the_gradient_and_alignment():
    matrix = jnp.diag(jnp.asarray([4.0, 1.0]))

    def objective(params):
        return 0.5 * params["a"] @ matrix @ params["a"]

    params = {"a": jnp.asarray([1.0, 2.0])}
    np.testing.assert_allclose(curvature.gradient_curvature(objective, params), (4**3 + 4) / (16 + 4), rtol=1e-6)
    update = {"a": jnp.asarray([-3.0, 4.0])}
    np.testing.assert_allclose(curvature.alignment(update, {"a": jnp.asarray([2.0, 0.0])}), 0.6, rtol=1e-6)


def test_errors_name_what_is_wrong():
    like = jnp.zeros(50)

    def product(vector):
        raise AssertionError("nothing may be traced")

    with pytest.raises(ValueError, match=r"k: expected 1 <= k <= 50, the number of parameters, got 51"):
        curvature.top_eigenpairs(product, like=like, k=51)
    with pytest.raises(ValueError, match=r"k: expected an integer of at least 1, got 0"):
        curvature.top_eigenpairs(product, like=like, k=0)
    with pytest.raises(ValueError, match=r"num_vectors: expected at least 16 for k = 4, got 4; raise it or lower k"):
        curvature.lowest_eigenpairs(product, like=like, k=4, num_vectors=4)
    with pytest.raises(ValueError, match=r"tol: expected a finite number above 0, got 0"):
        curvature.top_eigenpairs(product, like=like, k=2, tol=0)
    with pytest.raises(ValueError, match=r"start: expected a pytree like `like`, 50 numbers of float32, got 3"):
        curvature.top_eigenpairs(product, like=like, start=jnp.ones(3))
    with pytest.raises(ValueError, match=r"like: expected parameters of one real float dtype, got \['int32'\]"):
        curvature.largest_magnitude_eigenpairs(product, like=jnp.zeros(3, int))
