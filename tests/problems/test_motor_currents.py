"""Current traces and the LSTM that reads them: spectra, Keras' cell against loops in float64, what may be asked for."""

import jax
import numpy as np
import pytest

import lossland as ll
from lossland.problems.motor_currents import (
    FAST,
    LENGTH,
    PERSISTENCE,
    SLOW,
    draw_cosines,
    draw_motor_currents,
    keras_lstm,
    keras_lstm_logits,
)
from lossland.problems.reported import course_mlp, course_mlp_logits
from tests.problems.quick import quick, starts_of


class TestTraces:
    def test_each_class_has_the_power_of_its_two_sinusoids_at_their_frequencies(self):
        traces, labels = draw_motor_currents(600, noise=0.0)
        clock = np.arange(LENGTH) / LENGTH
        for label in range(6):
            own = traces[labels == label, :, 0].astype(float)
            for (first, step), amplitude in zip((SLOW, FAST), (1.0, 0.6), strict=True):
                turn = 2 * np.pi * (first + step * label) * clock
                both = np.stack([np.sin(turn), np.cos(turn)], 1)
                found = np.linalg.lstsq(both, own.T, rcond=None)[0]
                # The other sinusoid leaks a little where a window holds no whole number of its cycles.
                np.testing.assert_allclose(np.hypot(*found).mean(), amplitude, rtol=0.1)

    def test_noise_has_the_variance_and_the_correlation_that_it_should(self):
        loud, quiet = (draw_motor_currents(400, noise=noise)[0][..., 0].astype(float) for noise in (0.7, 0.0))
        noise = loud - quiet
        assert noise.std() == pytest.approx(0.7, rel=0.02)
        assert (noise[:, 1:] * noise[:, :-1]).mean() / noise.var() == pytest.approx(PERSISTENCE, abs=0.02)

    def test_classes_are_balanced_and_a_seed_means_the_same_traces(self):
        traces, labels = draw_motor_currents()
        assert traces.shape == (98, 100, 1)
        assert np.ptp(np.bincount(labels)) <= 1
        np.testing.assert_array_equal(traces, draw_motor_currents()[0])
        assert np.any(traces != draw_motor_currents(seed=1)[0])

    def test_cosines_are_what_they_are_called(self):
        traces, labels = draw_cosines()
        x = np.where(labels[:, None] == 0, np.arccos(np.clip(traces[..., 0], -1, 1)), np.cos(traces[..., 0]))
        assert traces[labels == 1].min() >= 0
        assert np.abs(x[labels == 1]).max() <= 1
        steps = np.diff(x[labels == 1], axis=1)
        np.testing.assert_allclose(steps, steps[:, :1] * np.ones(LENGTH - 1), atol=2e-5)

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: draw_motor_currents(3), "num_sequences: expected at least one per class, 6, got 3"),
            (lambda: draw_motor_currents(num_classes=1), "num_classes: expected an integer of at least 2"),
            (lambda: draw_motor_currents(noise=-1), "noise: expected a finite number of at least 0, got -1"),
            (lambda: keras_lstm(0), "hidden: expected an integer of at least 1"),
            (lambda: keras_lstm(dropout=1.0), "dropout: expected a finite number of at least 0 and below 1"),
            (lambda: keras_lstm(traces="sines"), "traces: expected one of motor_currents, cosines, got 'sines'"),
            (
                lambda: keras_lstm(num_mislabelled=99),
                "num_mislabelled: expected an integer of at least 0 and at most 98",
            ),
        ],
    )
    def test_bad_input_is_named(self, call, words):
        with pytest.raises(ValueError, match=words):
            call()


def lstm_by_loops(params, x):
    """Keras' cell in float64, one sequence and one step at a time."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    size = wide["recurrent"].shape[0]

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    rows = []
    for sequence in np.asarray(x, np.float64):
        h = c = np.zeros(size)
        for entry in sequence:
            z = entry @ wide["kernel"] + h @ wide["recurrent"] + wide["bias"]
            i, f, g, o = (z[part * size : (part + 1) * size] for part in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        rows.append(h @ wide["Dense_0"]["kernel"] + wide["Dense_0"]["bias"])
    return np.array(rows)


class TestNetwork:
    def test_it_is_keras_cell(self):
        problem = keras_lstm(5)
        params = jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1))
        inputs, labels = jax.tree.map(lambda leaf: leaf[:4], problem.data)
        expected = lstm_by_loops(params, inputs)
        np.testing.assert_allclose(quick(keras_lstm_logits)(params, inputs), expected, atol=2e-5)
        shifted = expected - expected.max(1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        loss = -log_softmax[np.arange(4), labels].mean()
        assert float(quick(problem.loss)(params, (inputs, labels))) == pytest.approx(loss, abs=1e-5)

    def test_the_large_network_has_the_reported_number_of_parameters(self):
        shapes = jax.tree.leaves(keras_lstm(222).param_shapes)
        assert sum(int(np.prod(leaf.shape)) for leaf in shapes) == 4 * 222 * (222 + 1 + 1) + 6 * (222 + 1) > 200_000

    def test_only_the_forget_gate_starts_open_and_recurrent_rows_are_orthonormal(self):
        start = quick(keras_lstm(4).init)(jax.random.key(1))
        np.testing.assert_array_equal(start["bias"], np.repeat([0, 1, 0, 0], 4))
        np.testing.assert_allclose(start["recurrent"] @ start["recurrent"].T, np.eye(4), atol=1e-5)

    def test_dropout_asks_for_a_key_and_batch_normalisation_keeps_a_state(self):
        assert not keras_lstm(2).takes_key
        assert keras_lstm(2).init_state is None
        assert keras_lstm(2, dropout=0.2).takes_key
        assert keras_lstm(2, batch_norm=True).init_state is not None

    def test_an_epoch_in_batches_of_32_ends_with_two(self):
        from lossland.sweeps.batches import Batches

        batches = Batches(keras_lstm(2).num_examples, 32)
        assert (batches.per_epoch, batches.rest) == (4, 2)

    def test_mislabelled_sequences_get_the_next_class(self):
        right, wrong = (keras_lstm(2, num_mislabelled=count).data[1] for count in (0, 7))
        np.testing.assert_array_equal(np.flatnonzero(right != wrong), np.arange(7))
        np.testing.assert_array_equal(wrong[:7], (right[:7] + 1) % 6)


def test_the_course_network_is_what_the_lab_teaches():
    problem = ll.problems.course_mlp()
    assert problem.num_examples == 400
    assert np.ptp(np.bincount(problem.data[1])) <= 1
    assert np.any(np.diff(problem.data[1]) < 0)  # blobs come sorted, the lab shuffles
    sizes = [leaf.shape for leaf in jax.tree.leaves(problem.param_shapes) if leaf.ndim == 2]
    assert sorted(sizes) == [(2, 120), (40, 6), (120, 40)]
    params = jax.tree.map(lambda leaf: leaf[0], starts_of(problem, 1))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = problem.data[0].astype(float)
    for layer in range(3):
        x = np.maximum(x, 0) if layer else x
        x = x @ wide[f"Dense_{layer}"]["kernel"] + wide[f"Dense_{layer}"]["bias"]
    np.testing.assert_allclose(course_mlp_logits(params, problem.data[0]), x, atol=1e-3)
    shifted = x - x.max(1, keepdims=True)
    loss = (np.log(np.exp(shifted).sum(1)) - shifted[np.arange(400), problem.data[1]]).mean()
    assert float(quick(problem.objective)(params)) == pytest.approx(loss, rel=1e-5)
    with pytest.raises(ValueError, match="deviation"):
        course_mlp(deviation=-1)
