"""What holds for every sweep inside a block: its executor, and who is told."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optax
import pytest

from lossland.problems.synthetic import quadratic
from lossland.sweeps.execution import run
from lossland.sweeps.surroundings import current, surroundings
from lossland.sweeps.sweep import Sweep


class Counting(ThreadPoolExecutor):
    """An executor that counts what it is given."""

    submitted = 0

    def submit(self, *arguments, **named):
        self.submitted += 1
        return super().submit(*arguments, **named)


def test_sweeps_inside_go_to_the_executor_and_are_told_and_their_bits_are_the_same():
    problem, told = quadratic([1.0, 3.0]), []
    sweep = Sweep({"learning_rate": [0.1, 0.3]}, 2, num_steps=4, every=1)
    here = run(problem, optax.sgd, sweep, progress=False)
    with Counting(1) as executor, surroundings(executor, told.append):
        there = run(problem, optax.sgd, sweep, progress=False)
    assert executor.submitted
    assert [one.fingerprint() for one in told] == [there.attrs["sweep_fingerprint"]]
    np.testing.assert_array_equal(here["loss"], there["loss"])


def test_what_held_before_holds_again_after_an_error():
    before = current()
    with pytest.raises(ZeroDivisionError), surroundings(told=print):
        assert 1 / 0
    assert current() is before
