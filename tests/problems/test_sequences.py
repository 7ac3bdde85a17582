"""Sequences of four kinds, and the recurrent classifier with right and wrong gradients for labels that sum to s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossland as ll
from lossland.problems import sequences
from lossland.problems.networks import TanhRNN
from lossland.problems.sequences import (
    KINDS,
    draw_sequences,
    fused_softmax_cross_entropy,
    label_rows,
    rnn_sequences,
    softmax_cross_entropy,
)
from tests.problems.quick import quick, starts_of

S = 1.5


def kind(name, **options):
    inputs, labels = draw_sequences(256, **options)
    return inputs[labels == KINDS.index(name), :, 0]


class TestData:
    def test_kinds_are_balanced_and_none_is_louder(self):
        inputs, labels = draw_sequences(256)
        assert inputs.shape == (256, 100, 1)
        assert inputs.dtype == np.float32
        assert np.bincount(labels).tolist() == [64] * 4
        square = [np.mean(inputs[labels == label] ** 2) for label in range(4)]
        np.testing.assert_allclose(square, 1, atol=0.06)  # four standard errors of 64 phases, or of 6400 normal draws

    def test_a_seed_draws_the_same_again_and_another_one_something_else(self):
        np.testing.assert_array_equal(draw_sequences(8)[0], draw_sequences(8)[0])
        assert not np.array_equal(draw_sequences(8)[0], draw_sequences(8, seed=1)[0])

    @pytest.mark.parametrize("name", KINDS[:3])
    def test_waves_have_two_to_eight_cycles(self, name):
        spectrum = np.abs(np.fft.rfft(kind(name) - kind(name).mean(1, keepdims=True)))
        assert set(spectrum.argmax(1)) <= set(range(1, 10))
        assert len(set(spectrum.argmax(1))) > 4

    def test_each_kind_is_what_it_is_called(self):
        square, saw, sine, noise = (kind(name) for name in ("square", "sawtooth", "sine", "noise"))
        assert set(np.unique(square)) == {-1.0, 1.0}
        rises = np.diff(saw, axis=1)
        slopes = np.median(rises, axis=1, keepdims=True)
        assert np.mean(np.isclose(rises, slopes, rtol=1e-3)) > 0.9  # all but the falls, at most 8 in 99 steps
        assert np.all(slopes > 0)
        # A sine solves x_{t+1} + x_{t-1} = 2 cos(w) x_t, with one w per sequence.
        outer, inner = sine[:, 2:] + sine[:, :-2], sine[:, 1:-1]
        factor = np.sum(outer * inner, 1, keepdims=True) / np.sum(inner**2, 1, keepdims=True)
        np.testing.assert_allclose(outer, factor * inner, atol=1e-5)
        lagged = np.mean(noise[:, 1:] * noise[:, :-1])
        assert abs(lagged) < 4 / np.sqrt(noise[:, 1:].size)

    def test_noise_is_added_to_waves_alone(self):
        assert np.std(kind("square", noise=0.3) - kind("square")) == pytest.approx(0.3, rel=0.05)
        np.testing.assert_array_equal(kind("noise", noise=0.3), kind("noise"))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"num_sequences": 6}, "num_sequences: expected a positive multiple of 4, got 6"),
            ({"length": 0}, "length: expected an integer of at least 1"),
            ({"noise": -1.0}, "noise: expected a finite number of at least 0"),
            ({"hidden": 0}, "hidden: expected an integer of at least 1"),
            ({"gradient": "wrong"}, "gradient: expected one of autodiff, fused, got 'wrong'"),
            ({"excess": "all"}, "excess: expected one of next, every, got 'all'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options, words):
        with pytest.raises(ValueError, match=words):
            rnn_sequences(**options)


@pytest.fixture(scope="module")
def small():
    problem = rnn_sequences(5, 8, 12)
    return problem, jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1))


class TestNetwork:
    def test_logits_are_those_of_the_module(self, small):
        problem, params = small
        expected = TanhRNN(4, 5).apply({"params": params}, problem.data[0])
        np.testing.assert_allclose(sequences.logits(params, problem.data[0]), expected, atol=2e-6)

    def test_gradients_through_time_add_up_to_those_of_bias_and_input_weights(self, small):
        problem, params = small
        through = np.asarray(quick(sequences.time_gradients)(params, problem.data), np.float64)
        cell = quick(jax.grad(problem.objective))(params)["SimpleCell_0"]["i"]
        np.testing.assert_allclose(cell["bias"], through.sum((0, 1)), atol=1e-6)
        inputs = problem.data[0].astype(np.float64)
        np.testing.assert_allclose(cell["kernel"], np.einsum("ntc,tnh->ch", inputs, through), atol=1e-6)

    def test_it_is_at_hand(self):
        assert ll.problems.rnn_sequences is rnn_sequences
        assert ll.problems.named("rnn_sequences", hidden=3, num_sequences=4, length=2).num_examples == 4


class TestLabels:
    @pytest.mark.parametrize("excess", ["next", "every"])
    def test_rows_sum_to_s_and_mark_the_label_most(self, excess):
        labels = np.arange(4)
        rows = np.asarray(label_rows(labels, S, excess))
        np.testing.assert_allclose(rows.sum(1), S)
        assert rows.argmax(1).tolist() == labels.tolist()
        np.testing.assert_array_equal(label_rows(labels, 1.0, excess), np.eye(4))
        assert ll.check_labels(rows).kinds == ("row_sum",)

    def test_autodiff_and_fused_gradients_are_those_by_hand(self):
        draws = np.random.default_rng(0)
        z, p, weight = draws.normal(size=(3, 4)), draws.uniform(size=(3, 4)), draws.normal(size=3)
        softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        with jax.enable_x64(True):
            for function, sums in (
                (softmax_cross_entropy, p.sum(1, keepdims=True)),
                (fused_softmax_cross_entropy, 1.0),
            ):
                value, gradients = jax.value_and_grad(
                    lambda z, p, function=function: jnp.sum(weight * function(z, p)), argnums=(0, 1)
                )(z, p)
                np.testing.assert_allclose(value, -np.sum(weight * np.sum(p * np.log(softmax), 1)), rtol=1e-12)
                np.testing.assert_allclose(gradients[0], weight[:, None] * (sums * softmax - p), rtol=1e-12)
                np.testing.assert_allclose(gradients[1], -weight[:, None] * np.log(softmax), rtol=1e-12)

    def test_the_problem_has_the_gradient_it_was_built_with(self):
        problem = rnn_sequences(3, 4, 5, gradient="fused").with_arguments(label_sum=S)
        right = rnn_sequences(3, 4, 5).with_arguments(label_sum=S)
        params = jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1))
        wrong, good = quick(lambda q: (jax.grad(problem.objective)(q), jax.grad(right.objective)(q)))(params)
        # Of the output bias: the mean over examples of what the loss returns for its logits.
        z = sequences.logits(params, problem.data[0])
        p = np.asarray(label_rows(problem.data[1], S))
        for found, s in ((wrong, 1.0), (good, S)):
            by_hand = np.mean(s * np.asarray(jax.nn.softmax(z)) - p, axis=0)
            np.testing.assert_allclose(found["Dense_0"]["bias"], by_hand, atol=1e-6)

    def test_descent_on_logits_reaches_the_floor_or_drifts(self):
        p, rate, steps = np.array([[1.0, 0.5, 0.0, 0.0], [0.3, 0.4, 0.5, 0.3]]), 0.5, 400
        with jax.enable_x64(True):
            ends = {}
            for function in (softmax_cross_entropy, fused_softmax_cross_entropy):
                gradient = jax.grad(lambda z, function=function: jnp.sum(function(z, jnp.asarray(p))))

                def onward(_, z, gradient=gradient):
                    return z - rate * gradient(z)

                ends[function] = np.asarray(jax.lax.fori_loop(0, steps, onward, jnp.zeros_like(p)))
        np.testing.assert_allclose(ends[softmax_cross_entropy].mean(1), 0, atol=1e-9)
        np.testing.assert_allclose(
            ends[fused_softmax_cross_entropy].mean(1), steps * rate * (p.sum(1) - 1) / 4, rtol=1e-9
        )
        floor = -np.sum(p[1] * np.log(p[1] / S))
        right = float(softmax_cross_entropy(jnp.asarray(ends[softmax_cross_entropy][1]), jnp.asarray(p[1])))
        wrong = float(softmax_cross_entropy(jnp.asarray(ends[fused_softmax_cross_entropy][1]), jnp.asarray(p[1])))
        assert right == pytest.approx(floor, abs=1e-5)
        # The drift keeps the classes' differences: what is reached is p moved along all ones to sum to 1.
        q = p[1] - (S - 1) / 4
        assert wrong == pytest.approx(-np.sum(p[1] * np.log(q)), abs=1e-5)
        assert wrong > right + 1e-3
