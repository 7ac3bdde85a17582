"""Bad input to every public function: a ValueError of the library's own that names the argument, at once."""

import contextlib
import inspect
import re
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import lossland as ll
from tests.bad_input.calls import CALLS, EXEMPT, SAID

HOUSE = str(Path(ll.__file__).parent)
SECONDS = 20
"""What takes longer hangs."""
CASES, MORE_CASES = 7, 25


@contextlib.contextmanager
def no_hang():
    """Break off what takes too long."""

    def give_up(number, frame):
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_refusal(name, argument, value):
    """Call with one argument wrong: the error is the library's and says which."""
    call = CALLS[name]
    given = {**call.fits(), argument: value}
    with no_hang(), pytest.raises((ValueError, TypeError)) as caught:
        call.function(**given)
    where = caught.value.__traceback__
    while where.tb_next is not None:
        where = where.tb_next
    raised_in = where.tb_frame.f_code.co_filename
    assert raised_in.startswith(HOUSE), f"raised in {raised_in}: {caught.value}"
    assert re.search(rf"\b{SAID.get((name, argument), argument)}\b", str(caught.value)), f"not named in {caught.value}"


def fuzz(name, cases, start):
    """Draw an argument of a call and a wrong value for it, many times."""
    wrong = CALLS[name].wrong

    @seed(start)
    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(st.data())
    def property_(data):
        argument = data.draw(st.sampled_from(sorted(wrong)), label="argument")
        check_refusal(name, argument, data.draw(wrong[argument], label="value"))

    property_()


def test_every_public_function_is_here():
    modules = {"adaptive": ll.adaptive, "curvature": ll.curvature, "figures": ll.figures}
    assert {name for name in ll.__all__ if name not in CALLS} == set(EXEMPT)
    for prefix, module in modules.items():
        functions = {name for name in module.__all__ if not isinstance(getattr(module, name), type)}
        assert functions == {name.split(".")[1] for name in CALLS if name.startswith(f"{prefix}.")}
    own = {name.split(".")[-1] for name in CALLS}
    for module in (ll.landscapes, ll.problems):
        functions = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
        assert functions <= own
    assert len(CALLS) * CASES >= 1000


@pytest.mark.filterwarnings("ignore")  # of NumPy, about what is wrong with the values
@pytest.mark.parametrize("name", sorted(CALLS))
def test_bad_input_is_refused_by_name(name):
    fuzz(name, CASES, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CALLS))
def test_more_bad_input_is_refused_by_name(name):
    fuzz(name, MORE_CASES, 1)
