"""Claims of cases 1, 2, 3 and 5: each verdict follows its numbers, and other numbers give another verdict."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.reproductions import course_claims, keras_claims, linear_claims, mlp_claims
from lossland.reproductions.claims import format_claims
from lossland.reproductions.course_mlp import distinct_examples
from lossland.reproductions.linear_regression import sharpness_of
from lossland.stability.maps import outcomes

SEEDS = 8
WIGGLE = np.linspace(-0.01, 0.01, SEEDS)


def settle(module, found):
    settled = module.claims(found)
    assert format_claims(settled).count("counterfactual") == len(settled)
    return {claim.letter: claim for claim in settled}


def verdicts(module, found):
    return {letter: claim.verdict for letter, claim in settle(module, found).items()}


def about(value):
    return np.clip(value + WIGGLE, 0, 1)


def split(curvature, states=6):
    kinds = {"record": about(0.2), "curvature": about(curvature)}
    return xr.Dataset(
        {
            **{name: ("seed", values) for name, values in kinds.items()},
            "noise": ("seed", 1 - kinds["record"] - kinds["curvature"]),
            "count": ("seed", np.full(SEEDS, 10)),
            "kind": ("state", ["noise"] * states),
            "ratio": ("state", np.full(states, 0.1)),
            "first_step_rise": ("state", np.arange(states) % 2 == 0),
            "short_step_rise": ("state", np.zeros(states, bool)),
        }
    )


class TestKeras:
    def found(self, **changed):
        shares = {"32": 0.3, "2": 0.3, "large": 0.3, "small": 0.3, "dropout": 0.3, "plain": 0.3, "windows": 0.05}
        more = {"curvature": 0.0, "step_rms": 0.0, "step_sgd": 0.0, "accuracy_2": 0.5, "wrong": 1.0, "right": 0.0}
        had = {**shares, **more, **changed}
        change = np.ones((2, 2, SEEDS, 10))
        for row, name in enumerate(("right", "wrong")):
            change[row] = np.where(np.arange(10) < 10 * had[name], 1.0, -1.0)
        noise = xr.Dataset(
            {
                "measured": (("state", "batch_size", "draw"), np.ones((2, 2, 3)) * np.array([46.0, 2.0])[:, None]),
                "predicted": (("state", "batch_size"), np.ones((2, 2)) * np.array([46.0, 2.0])),
                "gradient_square": ("state", np.ones(2)),
            },
            {"batch_size": [2, 32]},
        )
        return keras_claims.Results(
            {keras_claims.MAIN: split(had["curvature"]), keras_claims.SGD: split(0.0)},
            {
                "batches of 32": (about(had["32"]), about(had["32"])),
                "batches of 2": (about(had["2"]), about(had["32"])),
                "last batch dropped": (about(0.2), about(had["32"])),
                "dropout 0.2": (about(had["dropout"]), about(had["plain"])),
                "222 units": (about(had["large"]), about(had["small"])),
            },
            {keras_claims.MAIN: about(had["windows"]), keras_claims.SGD: np.zeros(SEEDS)},
            {keras_claims.MAIN: about(had["step_rms"]), keras_claims.SGD: about(had["step_sgd"]) * 0},
            {keras_claims.MAIN: 1000, keras_claims.SGD: 1000},
            {"batches of 2": np.full(SEEDS, had["accuracy_2"]), "batches of 32": np.full(SEEDS, 1.0)},
            xr.Dataset(
                {"change": (("label", "batch_size", "state", "draw"), change)},
                {"label": ["right", "wrong"], "batch_size": [2, 32]},
            ),
            noise,
            np.tile([0.2, 0.2, 0.2, 0.4], (SEEDS, 1)),
            (32, 222),
        )  # fmt: skip

    def test_each_follows_its_numbers(self):
        assert verdicts(keras_claims, self.found(step_rms=0.0)) == {
            "a": "supported", "b": "supported", "c": "refuted", "d": "depends", "e": "supported", "f": "refuted",
        }  # fmt: skip
        numbers = keras_claims.numbers_of(self.found())
        assert numbers["noise_of_two_over_noise_of_32"] == 23
        assert numbers["noise_over_law"] == 1
        assert numbers["climbs_after_the_batch_of_two"] == pytest.approx(0.4)

    @pytest.mark.parametrize(
        ("letter", "changed", "verdict"),
        [
            ("a", {"curvature": 0.75, "windows": 0.3}, "refuted"),
            ("a", {"windows": 0.3}, "depends"),
            ("b", {"step_rms": 0.2}, "depends"),
            ("c", {"small": 0.05}, "supported"),
            ("c", {"small": 0.15}, "depends"),
            ("d", {"32": 0.05, "2": 0.4}, "supported"),
            ("d", {"accuracy_2": 1.0}, "refuted"),
            ("e", {"wrong": 0.2}, "refuted"),
            ("e", {"right": 1.0}, "depends"),
            ("f", {"plain": 0.0}, "supported"),
            ("f", {"plain": 0.05}, "depends"),  # most rises are its doing, some are there without it
            ("f", {"plain": 0.15}, "depends"),
        ],
    )
    def test_other_numbers_give_another_verdict(self, letter, changed, verdict):
        claim = settle(keras_claims, self.found(**changed))[letter]
        assert claim.verdict == verdict
        assert bool(claim.condition) == (verdict == "depends")


class TestCourse:
    def found(self, rising=0.4, ordered=0.4, met=400, steps=0.3, both=True, slope=-0.01, curvature=0.0):
        epochs = 200
        rng = np.random.default_rng(0)
        # Losses fall by `slope` an epoch; as many epochs as asked for go up a little.
        ups = rng.random((SEEDS, epochs)) < rising
        loss = 3 + np.cumsum(np.where(ups, 0.002, slope), axis=1)
        accuracy = 0.5 + np.cumsum(np.where(ups == both, 0.001, -0.001), axis=1) / 10
        runs = xr.Dataset(
            {name: (("seed", "epoch"), values) for name, values in
             {"printed": loss, "end_loss": loss, "end_accuracy": accuracy}.items()},
            {"epoch": np.arange(1, epochs + 1)},
        )  # fmt: skip
        rate = xr.DataArray(
            np.full((2, 2, SEEDS), 0.2), dims=("batches", "learning_rate", "seed"),
            coords={"batches": ["batches of 32", "full batch"], "learning_rate": [1e-3, 1e-2]},
        )  # fmt: skip
        counts = {"shuffled": met, "in_order": 400, "with_replacement": 250}
        shares = {"shuffled": 0.4, "in_order": ordered, "with_replacement": 0.4}
        orders = {name: (about(shares[name]), np.full((SEEDS, 5), counts[name])) for name in counts}
        return course_claims.Results(split(curvature), about(steps), runs, runs, rate, orders, runs)

    def test_each_follows_its_numbers(self):
        assert verdicts(course_claims, self.found()) == dict.fromkeys("acde", "supported") | {"b": "refuted"}
        numbers = course_claims.numbers_of(self.found())
        assert numbers["trend_stops_at_epoch"] == np.inf
        assert numbers["epochs_that_rise"] == pytest.approx(0.4, abs=0.05)
        assert numbers["relative_sharpness_noise"] == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("letter", "changed", "verdict"),
        [
            ("a", {"rising": 0.0}, "depends"),  # the trend falls, but nothing rises
            ("a", {"slope": 0.01}, "depends"),  # rises, but no trend falls
            ("b", {"ordered": 0.05}, "supported"),
            ("b", {"ordered": 0.2}, "depends"),
            ("c", {"met": 399}, "refuted"),
            ("d", {"steps": 0.0}, "refuted"),
            ("d", {"steps": 0.01}, "depends"),
            ("e", {"both": False}, "refuted"),
        ],
    )
    def test_other_numbers_give_another_verdict(self, letter, changed, verdict):
        assert settle(course_claims, self.found(**changed))[letter].verdict == verdict

    def test_the_trend_stops_where_a_block_is_no_lower(self):
        curve = np.concatenate([np.linspace(3, 1, 75), np.full(50, 1.5)])[None]
        runs = xr.DataArray(curve, dims=("seed", "epoch"))
        assert course_claims.trend_stops(runs).tolist() == [75]
        assert course_claims.rises_while_falling(runs).tolist() == [0]
        assert course_claims.trend_stops(runs.isel(epoch=slice(0, 75))).tolist() == [np.inf]

    def test_epochs_in_which_both_fall_are_counted(self):
        runs = xr.Dataset(
            {
                "end_loss": (("seed", "epoch"), [[3.0, 2, 1, 2, 1]]),
                "end_accuracy": (("seed", "epoch"), [[0.5, 0.4, 0.6, 0.5, 0.4]]),
            }
        )
        assert course_claims.both_fall(runs).tolist() == [0.5]

    @pytest.mark.slow
    def test_samplers_meet_what_they_should(self):
        assert (distinct_examples("shuffled", 1, 2) == 400).all()
        drawn = distinct_examples("with_replacement", 2, 2)
        assert ((drawn > 220) & (drawn < 280)).all()  # 400 (1 - (1 - 1/400)^384) = 247


class TestLinear:
    def found(self, **changed):
        settings = {
            "SGD 0.01": np.inf, "SGD 1e-4": 0.001, "SGD 0.00624": 1e-4, "SGD 0.01, standardised": 1e-9,
            "Adam 0.001": 0.1, "Adam 0.001, scales of the first step kept": 0.5,
            "20 examples on 0.5, 1, ..., 10": 0.01, "40 examples on 0.5, 1, ..., 20": np.inf,
            "10 examples on 1, 2, ..., 10": 0.01, "20 examples, x / 10": 0.01,
        } | changed.pop("final", {})  # fmt: skip
        final = {name: value * (1 + WIGGLE) for name, value in settings.items()}
        fields = {
            "critical": 0.00693, "falls": (np.ones(SEEDS, bool), np.zeros(SEEDS, bool)), "final": final,
            "diverges": {name: ~np.isfinite(values) for name, values in final.items()},
            "exponent": -1.9 + WIGGLE, "growth": np.array([0.995, 1.885]), "above": 1, "without_top": 0.9,
        } | changed  # fmt: skip
        return linear_claims.Results(**fields)

    def test_each_follows_its_numbers(self):
        assert verdicts(linear_claims, self.found()) == {
            "a": "refuted", "b": "supported", "c": "refuted", "d": "depends", "e": "supported", "f": "refuted",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("letter", "changed", "verdict"),
        [
            ("a", {"final": {"SGD 0.00624": 0.2}}, "supported"),
            ("b", {"final": {"SGD 1e-4": 0.02}}, "refuted"),
            ("c", {"exponent": 0.1 + WIGGLE}, "supported"),
            ("c", {"exponent": 5 * WIGGLE}, "depends"),
            ("d", {"falls": (np.ones(SEEDS, bool),) * 2}, "supported"),
            ("e", {"above": 2}, "refuted"),
            ("f", {"final": {"Adam 0.001, scales of the first step kept": np.inf}}, "supported"),
        ],
    )
    def test_other_numbers_give_another_verdict(self, letter, changed, verdict):
        assert settle(linear_claims, self.found(**changed))[letter].verdict == verdict

    @pytest.mark.slow
    def test_the_error_grows_along_one_eigenvector_as_its_eigenvalue_says(self):
        growth, above, without = linear_claims._modes()
        top = float(sharpness_of(20))
        low = 2 * (np.mean(np.arange(1, 21) ** 2.0) + 1) - top
        np.testing.assert_allclose(growth, [1 - 0.01 * low, 0.01 * top - 1], rtol=1e-6)
        assert above == 1
        assert without == pytest.approx((1 - 0.01 * low) ** 40, rel=1e-6)

    def test_scales_of_the_first_step_stay(self):
        rule = linear_claims.scaled_once(0.1, b1=0.0, eps=0.0)
        state = rule.init({"w": jnp.zeros(2)})
        for gradient, expected in (([4.0, -2.0], [-0.1, 0.1]), ([2.0, 2.0], [-0.05, -0.1])):
            updates, state = rule.update({"w": jnp.array(gradient)}, state)
            np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def map_of_runs():
    """A real map of a small problem in the form that the claims read; its numbers are replaced."""
    problem = ll.problems.synthetic.quadratic((1.0, 2.0))
    plain = ll.Sweep({"learning_rate": [0.01, 1.0, 3.0]}, SEEDS, 10, 5)
    scaled = ll.Sweep({"scale": [1.0, 8.0], "learning_rate": [0.01, 1.0]}, SEEDS, 10, 5)
    runs = [ll.run(problem, optax.sgd, sweep, progress=False) for sweep in (plain, scaled)]
    return [one.assign(sharpness=2 * xr.ones_like(one["loss"])) for one in runs]


class TestNumpyMlp:
    def runs(self, problem_runs, **values):
        return problem_runs.assign({name: (problem_runs[name].dims, value) for name, value in values.items()})

    def found(self, map_of_runs, high=0.1, spikes=True, wrong="b1"):
        runs, scaled = map_of_runs
        loss = np.ones((3, SEEDS, 3))
        loss[..., -1] = np.array([0.3, high, 0.2])[:, None]
        rises = np.array([0, int(spikes), int(spikes)])[:, None] * np.ones((1, SEEDS), int)
        runs = self.runs(runs, loss=loss, num_rises=rises, first_rise_step=np.where(rises, 1, -1))
        grown = np.where(np.arange(2)[:, None, None] * np.ones((1, 2, SEEDS)), 1, -1)
        scaled = self.runs(scaled, first_rise_step=grown, loss=np.ones((2, 2, SEEDS, 3)) * np.array([1, 0.5, 0.2]))
        at_one = runs.isel(learning_rate=1)
        return mlp_claims.Results(runs, scaled, at_one, at_one, wrong, 3.0)

    def test_each_follows_its_numbers(self, map_of_runs):
        found = self.found(map_of_runs)
        assert verdicts(mlp_claims, found) == {
            "a": "depends", "b": "refuted", "c": "refuted", "d": "refuted", "e": "refuted",
        }  # fmt: skip
        assert outcomes(found.scaled)["never_rises"].isel(scale=0).all()

    @pytest.mark.parametrize(
        ("letter", "changed", "verdict"),
        [
            ("a", {"spikes": False}, "supported"),
            ("a", {"wrong": ""}, "refuted"),
            ("b", {"high": 0.5}, "supported"),
            ("e", {"spikes": False}, "supported"),
        ],
    )
    def test_other_numbers_give_another_verdict(self, map_of_runs, letter, changed, verdict):
        assert settle(mlp_claims, self.found(map_of_runs, **changed))[letter].verdict == verdict
