"""The accuracy probe against NumPy, and what it refuses."""

import numpy as np
import optax
import pytest

import lossland as ll

INPUTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
LABELS = (INPUTS @ np.array([[1.0, -1, 0], [0, 1, -1], [1, 1, 1]])).argmax(1)


def linear(labels=LABELS):
    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(batch[0] @ params, batch[1].reshape(-1)).mean()

    return ll.Problem(lambda key: 0.1 * np.eye(3, dtype=np.float32), loss, (INPUTS, labels), name="linear")


def logits(params, data):
    return data[0] @ params


def params(problem, optimizer, state):
    return state.params


def test_it_is_the_share_of_rows_whose_largest_logit_is_the_labels():
    sweep = ll.Sweep({"learning_rate": [1.0]}, 1, 20, 1)
    runs = ll.run(linear(), optax.sgd, sweep, [ll.accuracy_probe(logits), params])
    expected = np.mean((INPUTS @ runs["params"].values[0, 0]).argmax(-1) == LABELS, axis=-1)
    np.testing.assert_allclose(runs["accuracy"].values[0, 0], expected, rtol=1e-6)
    assert expected[0] < expected[-1]


def test_labels_that_do_not_fit_are_refused():
    sweep = ll.Sweep({"learning_rate": [1.0]}, 1, 1, 1)
    with pytest.raises(ValueError, match=r"labels: expected whole numbers of shape \(12,\).*\(12, 1\)"):
        ll.run(linear(LABELS[:, None]), optax.sgd, sweep, [ll.accuracy_probe(logits)])
