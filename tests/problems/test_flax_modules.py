"""Problems from flax networks, linen and nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import lossland as ll
from tests.problems.quick import quick

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3)).astype(np.float32)
LABELS = RNG.integers(0, 2, size=7)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(4)(x))
        return linen.Dense(2)(hidden)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class Stateful(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(linen.Dense(2)(x))


class Frozen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=True)(linen.Dense(2)(x))


class Dropping(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dropout(0.5, deterministic=False)(linen.Dense(2)(x))


class Empty(linen.Module):
    def __call__(self, x):
        return x


class NnxWithState(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.first(x))


class NnxDropping(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.first(x))


def layers(params):
    """First and second layer's kernel and bias, as NumPy in double precision."""
    names = sorted(params)
    return [np.asarray(params[name][part], np.float64) for name in names for part in ("kernel", "bias")]


def expected_losses(params):
    """Cross-entropy of every example by NumPy."""
    w1, b1, w2, b2 = layers(params)
    logits = np.tanh(X @ w1 + b1) @ w2 + b2
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), LABELS]


@pytest.mark.parametrize("module", [Linen(), lambda rngs: Nnx(rngs)], ids=["linen", "nnx"])
class TestBothKinds:
    @pytest.mark.parametrize(("normalisation", "reduce"), [("mean", np.mean), ("sum", np.sum)])
    def test_loss_is_that_of_numpy(self, module, normalisation, reduce):
        problem = ll.Problem.from_flax(module, cross_entropy, (X, LABELS), normalisation=normalisation)
        params = quick(problem.init)(jax.random.key(0))
        np.testing.assert_allclose(quick(problem.objective)(params), reduce(expected_losses(params)), rtol=1e-5)
        assert problem.normalisation == normalisation

    def test_scalar_losses_pass_through(self, module):
        problem = ll.Problem.from_flax(module, lambda out, y: 3 * jnp.mean(cross_entropy(out, y)), (X, LABELS))
        params = quick(problem.init)(jax.random.key(0))
        np.testing.assert_allclose(quick(problem.objective)(params), 3 * np.mean(expected_losses(params)), rtol=1e-5)

    def test_every_key_draws_its_own_weights(self, module):
        problem = ll.Problem.from_flax(module, cross_entropy, (X, LABELS))
        starts = quick(jax.vmap(problem.init))(jax.random.split(jax.random.key(0), 3))
        kernels = [leaf for leaf in jax.tree.leaves(starts) if leaf.ndim == 3]
        assert len(kernels) == 2
        for kernel in kernels:
            assert len({kernel[i].tobytes() for i in range(3)}) == 3

    def test_init_and_loss_are_pure(self, module):
        problem = ll.Problem.from_flax(module, cross_entropy, (X, LABELS))
        key = jax.random.key(5)
        first, again = quick(problem.init)(key), jax.jit(problem.init)(key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first, again)
        assert float(problem.objective(first)) == float(problem.objective(first))

    def test_gradients_map_over_runs(self, module):
        problem = ll.Problem.from_flax(module, cross_entropy, (X, LABELS))
        gradient = jax.grad(problem.objective)

        @quick
        def both(keys):
            starts = jax.vmap(problem.init)(keys)
            return jax.vmap(gradient)(starts), gradient(jax.tree.map(lambda leaf: leaf[1], starts))

        together, alone = both(jax.random.split(jax.random.key(0), 3))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[1], rtol=1e-4, atol=1e-6)


REFUSED = {
    "batch statistics": (Stateful(), r"Stateful keeps state besides its parameters \(batch_stats\)"),
    "stored averages": (Frozen(), r"Frozen keeps state besides its parameters \(batch_stats\)"),
    "dropout": (Dropping(), r"Dropping needs random numbers in evaluation too.*deterministic"),
    "no parameters": (Empty(), r"Empty has no parameters"),
    "finished nnx": (Nnx(nnx.Rngs(0)), r"finished nnx module \(Nnx\).*lambda rngs"),
    "not a module": (lambda rngs: 3, r"rngs -> flax.nnx.Module, but it returns something else"),
    "a function of nothing": (lambda: Nnx(nnx.Rngs(0)), r"calling it gave .*positional argument"),
    "a class": (Linen, r"got the class Linen; pass an instance"),
    "a number": (3, r"expected a flax.linen.Module or a function rngs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_cannot_be_trained_are_refused(case):
    module, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"module: .*{message}"):
        ll.Problem.from_flax(module, cross_entropy, (X, LABELS))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, r"data: from_flax expects a pair"),
        ([X, LABELS], r"data: from_flax expects a pair \(inputs, targets\), got list"),
        ((X, LABELS[:3]), r"data\[1\]: leading axis has 3"),
        ((np.float32(1), LABELS), r"data\[0\]: expected a leading axis"),
        ((np.where(X > 1, np.nan, X), LABELS), r"data\[0\]: .* not finite"),
    ],
)
def test_data_is_checked_before_the_network(data, message, compilations):
    with pytest.raises(ValueError, match=message):
        ll.Problem.from_flax(Linen(), cross_entropy, data)
    assert compilations == []


def test_losses_with_more_axes_are_refused():
    with pytest.raises(ValueError, match=r"loss: .*shape \(7, 2\)"):
        ll.Problem.from_flax(Linen(), lambda out, y: out**2, (X, LABELS))


def test_name_and_description():
    assert ll.Problem.from_flax(Linen(), cross_entropy, (X, LABELS)).name == "Linen"
    assert ll.Problem.from_flax(lambda rngs: Nnx(rngs), cross_entropy, (X, LABELS)).name == "Nnx"
    assert ll.Problem.from_flax(Linen(), cross_entropy, (X, LABELS), name="mine").name == "mine"
