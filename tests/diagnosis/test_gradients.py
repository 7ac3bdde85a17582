"""A wrong gradient is found, named and measured; a right one is left alone; both for JAX and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossland as ll
from lossland.problems import reported


@pytest.fixture(scope="module")
def case_2():
    problem = reported.numpy_mlp()
    return problem, reported.numpy_mlp_initial_params(4), jax.tree.map(np.asarray, problem.data)


def test_the_wrong_bias_gradient_of_case_2_is_found(case_2):
    problem, params, batch = case_2
    check = ll.check_gradient(problem.loss, reported.numpy_mlp_gradient, params, batch)
    assert check.wrong == ("b1",)
    assert not check.ok
    leaf = {leaf.name: leaf for leaf in check.leaves}["b1"]
    right = reported.numpy_mlp_gradient(params, batch, wrong_db1=False)["b1"]
    expected = np.linalg.norm(right.sum() - right) / np.linalg.norm(right)
    assert leaf.relative_error == pytest.approx(expected, rel=1e-6)
    assert "sum without its axis" in leaf.pattern
    assert "wrong: b1" in str(check)


def test_the_right_gradient_of_case_2_passes(case_2):
    problem, params, batch = case_2

    def right(params, batch):
        return reported.numpy_mlp_gradient(params, batch, wrong_db1=False)

    check = ll.check_gradient(problem.loss, right, params, batch)
    assert check.ok
    assert max(leaf.relative_error for leaf in check.leaves) < 1e-9
    assert not check.autodiff_differs
    assert ll.check_gradient(problem.loss, jax.grad(problem.loss), params, batch).ok


def numpy_loss(params, batch):
    """Least squares in NumPy alone: JAX cannot trace it."""
    x, y = batch
    return float(np.mean((np.asarray(x @ params["w"]) + np.asarray(params["b"]) - y) ** 2))


def numpy_gradient(params, batch):
    x, y = batch
    residual = x @ params["w"] + params["b"] - y
    params["w"] *= 0  # a user's function may overwrite what it was given
    return {"w": 2 * x.T @ residual / len(x), "b": np.array(2 * residual.mean())}


LINE = (np.random.default_rng(0).normal(size=(30, 4)), np.random.default_rng(1).normal(size=30))
AT = {"w": np.arange(1.0, 5.0), "b": np.array(0.3)}


def test_without_autodiff_central_differences_decide():
    check = ll.check_gradient(numpy_loss, numpy_gradient, AT, LINE)
    assert check.reference == "central differences"
    assert check.ok
    assert max(leaf.relative_error for leaf in check.leaves) < 1e-7
    wrong = ll.check_gradient(numpy_loss, lambda p, b: {**numpy_gradient(p, b), "b": np.array(0.0)}, AT, LINE)
    assert wrong.wrong == ("b",)


def jax_loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


MISTAKES = {
    "sign": (lambda g: {**g, "w": -g["w"]}, "w", "sign is flipped"),
    "sum": (lambda g: {**g, "w": 30 * g["w"]}, "w", "sum over examples where the loss takes their mean"),
    "mean": (lambda g: {**g, "w": g["w"] / 30}, "w", "mean over examples where the loss takes their sum"),
    "half": (lambda g: {**g, "w": g["w"] / 2}, "w", "0.5 times the right one"),
    "zero": (lambda g: {**g, "w": 0 * g["w"]}, "w", "zero everywhere"),
    "shape": (lambda g: {**g, "w": g["w"][:, None]}, "w", r"shape (4, 1) for a parameter of shape (4,)"),
    "no_shape": (lambda g: {**g, "w": g["w"][:3]}, "w", r"shape (3,)"),
    "nan": (lambda g: {**g, "b": g["b"] * np.nan}, "b", "1 of 1 entries not finite"),
    "one_entry": (lambda g: {**g, "w": np.asarray(g["w"]) * [1, 1, 1, 1.01]}, "w", "cosine"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_usual_mistakes_are_recognised(name):
    change, leaf, words = MISTAKES[name]
    check = ll.check_gradient(jax_loss, lambda p, b: change(jax.grad(jax_loss)(p, b)), AT, LINE)
    assert check.wrong == (leaf,)
    assert words in {one.name: one for one in check.leaves}[leaf].pattern


@pytest.mark.long
def test_random_right_gradients_are_never_called_wrong():
    """200 random networks, half of them with a relu: no false alarm."""
    wrong = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        width = int(generator.integers(2, 9))
        params = {"a": generator.normal(size=(3, width)), "c": generator.normal(size=width)}
        batch = generator.normal(size=(11, 3)), generator.normal(size=11)
        bend = jnp.tanh if seed % 2 else jax.nn.relu

        def loss(params, batch, bend=bend):
            return jnp.mean((bend(batch[0] @ params["a"]) @ params["c"] - batch[1]) ** 2)

        wrong += ll.check_gradient(loss, jax.grad(loss), params, batch).wrong
    assert not wrong


def test_autodiff_that_is_not_the_derivative_is_said():
    def stopped(params, batch):
        return jnp.mean((batch[0] @ jax.lax.stop_gradient(params["w"]) + params["b"] - batch[1]) ** 2)

    check = ll.check_gradient(stopped, jax.grad(stopped), AT, LINE)
    assert check.autodiff_differs == ("w",)
    assert check.wrong == ("w",)
    assert "stopped gradient" in str(check)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ll.check_gradient(lambda p, b: p["w"], jax.grad(jax_loss), AT, LINE), ["loss", "scalar", "(4,)"]),
        (lambda: ll.check_gradient(jax_loss, lambda p, b: {"w": p["w"]}, AT, LINE), ["gradient", "lacks b"]),
        (lambda: ll.check_gradient(jax_loss, jax.grad(jax_loss), {"w": np.arange(4)}, LINE), ["w", "floats", "int"]),
        (lambda: ll.check_gradient(jax_loss, jax.grad(jax_loss), {}, LINE), ["params", "at least one"]),
        (lambda: ll.check_gradient(lambda p, b: jnp.inf, jax.grad(jax_loss), AT, LINE), ["loss", "finite"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert all(word in str(error.value) for word in words)


class TestPrecisionOfTheLoss:
    """A loss that computes in less than float64 whatever it is given, as networks with a dtype do."""

    @staticmethod
    def problem(dtype):
        draws = np.random.default_rng(0)
        x = draws.normal(size=(40, 3))
        params = {"w": draws.normal(size=(3, 6)), "b": draws.normal(size=6), "v": draws.normal(size=6)}

        def loss(params, batch):
            w, b, v = (params[name].astype(dtype) for name in ("w", "b", "v"))
            return jnp.mean((jnp.tanh(batch[0].astype(dtype) @ w + b) @ v - batch[1].astype(dtype)) ** 2)

        return loss, params, (x, np.sin(x[:, 0]))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_right_gradient_is_right(self, dtype):
        loss, params, batch = self.problem(dtype)
        check = ll.check_gradient(loss, jax.grad(loss), params, batch)
        assert check.ok
        assert not check.autodiff_differs

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_wrong_one_is_named(self, dtype):
        loss, params, batch = self.problem(dtype)

        def gradient(params, batch):
            found = jax.grad(loss)(params, batch)
            return found | {"b": -found["b"], "v": 1.01 * found["v"]}

        assert ll.check_gradient(loss, gradient, params, batch).wrong == ("b", "v")

    def test_a_numpy_loss_in_single_precision_is_differentiated_by_longer_steps(self):
        draws = np.random.default_rng(1)
        x, params = draws.normal(size=(30, 3)), {"w": draws.normal(size=3)}
        y = draws.normal(size=30)

        def loss(params, batch):
            return float(np.mean((batch[0].astype(np.float32) @ params["w"].astype(np.float32) - batch[1]) ** 2))

        def gradient(params, batch):
            return {"w": 2 * batch[0].T @ (batch[0] @ params["w"] - batch[1]) / len(batch[1])}

        assert ll.check_gradient(loss, gradient, params, (x, y)).ok
        twice = ll.check_gradient(loss, lambda p, b: {"w": 2 * gradient(p, b)["w"]}, params, (x, y))
        assert twice.wrong == ("w",)


@pytest.mark.parametrize("value", ["text", None])
def test_a_loss_that_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="loss: expected a scalar, got"):
        ll.check_gradient(lambda params, batch: value, lambda params, batch: params, {"w": np.ones(2)}, np.ones(2))


class TestGradientsInSinglePrecision:
    """A bias that softmax does not see has gradient 0; in float32 it comes out as rounding, which is no mistake."""

    @staticmethod
    def loss(params, batch):
        logits = batch[0] @ params["w"] + params["b"] + params["shift"]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(batch[1])), batch[1]])

    @staticmethod
    def gradient(params, batch):
        x, w, b, shift = (np.float32(one) for one in (batch[0], params["w"], params["b"], params["shift"]))
        logits = x @ w + b + shift
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(p)), batch[1]] -= 1
        p /= np.float32(len(p))
        return {"w": x.T @ p, "b": p.sum(0), "shift": p.sum()}

    def case(self):
        draws = np.random.default_rng(0)
        params = {"w": draws.normal(size=(5, 7)), "b": draws.normal(size=7), "shift": np.array(0.3)}
        return params, (draws.normal(size=(60, 5)), draws.integers(0, 7, 60))

    def test_what_is_zero_but_for_rounding_is_right(self):
        check = ll.check_gradient(self.loss, self.gradient, *self.case())
        assert check.ok, str(check)

    def test_a_small_gradient_with_the_wrong_sign_is_wrong(self):
        params, batch = self.case()
        batch = (batch[0] * 1e-3, batch[1])  # the gradient of w is small beside that of b

        def flipped(params, batch):
            found = self.gradient(params, batch)
            return found | {"w": -found["w"]}

        assert ll.check_gradient(self.loss, self.gradient, params, batch).ok
        assert ll.check_gradient(self.loss, flipped, params, batch).wrong == ("w",)


@pytest.mark.parametrize("rows", [True, False])
def test_examples_are_counted_whether_they_are_rows_or_columns(rows):
    x, y = LINE
    batch = (x, y) if rows else (x.T, y[None])

    def loss(params, batch):
        out = batch[0] @ params["w"] - batch[1] if rows else params["w"] @ batch[0] - batch[1][0]
        return jnp.mean(out**2)

    check = ll.check_gradient(loss, lambda p, b: {"w": 30 * jax.grad(loss)(p, b)["w"]}, {"w": AT["w"]}, batch)
    assert "the sum over examples where the loss takes their mean" in check.leaves[0].pattern


def test_a_penalty_that_was_forgotten_is_recognised():
    def penalised(params, batch):
        return jax_loss(params, batch) + 0.05 * jnp.sum(params["w"] ** 2)

    check = ll.check_gradient(penalised, jax.grad(jax_loss), AT, LINE)
    assert check.wrong == ("w",)
    assert "0.1 times the parameter is missing" in {leaf.name: leaf for leaf in check.leaves}["w"].pattern
    other = ll.check_gradient(jax_loss, jax.grad(penalised), AT, LINE)
    assert "0.1 times the parameter too much" in {leaf.name: leaf for leaf in other.leaves}["w"].pattern


def test_a_loss_that_calls_what_only_numpy_has_is_compared_by_differences():
    def loss(params, batch):
        total = batch[0] @ params["w"]
        spread = batch[0].copy() * params["w"]
        spread.fill(total)
        return spread[0] ** 2

    def gradient(params, batch):
        return {"w": 2 * (batch[0] @ params["w"]) * batch[0]}

    check = ll.check_gradient(loss, gradient, {"w": np.arange(1.0, 5.0)}, (np.arange(4.0) + 0.5,))
    assert check.reference == "central differences"
    assert check.ok
