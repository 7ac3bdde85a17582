"""Forecasts against modes stepped by the law, against Adam itself, and blind to the future; scores against counts."""

import numpy as np
import optax
import pytest
import xarray as xr

import lossland as ll
from lossland.stability.forecast import RATE_DRIFT, VARIABLES
from lossland.stability.intervals import binomial_interval
from lossland.stability.one_parameter import simulate
from lossland.stability.spikes import spikes

B1, B2, RATE = 0.9, 0.999, 1e-2
CRITICAL = 2 * (1 + B1) / (1 - B1)
SLOPE = 0.7e-3
"""Of ln ratio: the second moment's 0.5e-3 and some sharpening."""
CROSSING = 150.3
REST = 1e-3
"""Loss outside the mode."""


def made(num_steps=260, slope=SLOPE, amplitude=1e-3, every=1, noise=0.0, seeds=1, refill=0.1):
    """Runs by the law: ln ratio rises through 0 at `CROSSING`; the mode, held up to there, is stepped on by J.

    amplitude: of the mode's gradient before the crossing, over that at which the mode holds as much as the rest.
    refill: how fast the mode would refill its second moment, which it does not here.
    """
    steps = np.arange(num_steps + 1)
    random = np.random.default_rng(0)
    ratio = np.exp(slope * (steps - CROSSING) + noise * random.normal(size=(seeds, num_steps + 1)))
    sharpness = CRITICAL / RATE * ratio
    gradient, moment = np.zeros(ratio.shape), np.zeros(ratio.shape)
    level = np.sqrt(2 * sharpness[:, 0] * REST)
    for step in steps:
        # The root at the threshold is -1.
        gradient[:, step] = level * amplitude * (-1) ** step
        moment[:, step] = -(1 - B1) / (1 + B1) * gradient[:, step]
        if step > CROSSING:
            g, m = gradient[:, step - 1], moment[:, step - 1]
            moment[:, step] = B1 * m + (1 - B1) * g
            gradient[:, step] = g - CRITICAL * ratio[:, step - 1] * moment[:, step]
    energy = gradient**2 / (2 * sharpness)
    records = {
        "loss": REST + energy,
        "preconditioned_sharpness": sharpness,
        "preconditioned_sharpness_residual": 1e-6 * sharpness,
        "mode_energy": energy,
        "mode_gradient": gradient,
        "mode_update": -RATE * (B1 * moment + (1 - B1) * gradient),
        "mode_refill": np.full(ratio.shape, refill),
    }
    whole = xr.Dataset(
        {name: (("seed", "step"), values) for name, values in records.items()},
        {"seed": np.arange(seeds), "step": steps},
    )
    return whole.assign(threshold=CRITICAL / RATE).isel(step=slice(None, None, every))


def shown(runs):
    """Step at which the mode first holds as much as the rest."""
    return float(runs["step"][int((runs["mode_energy"].isel(seed=0) >= REST).values.argmax())])


class TestForecast:
    @pytest.mark.parametrize("every", [1, 2, 5])
    @pytest.mark.parametrize("amplitude", [1e-1, 1e-3])
    def test_crossing_and_spike_of_a_mode_that_follows_the_law(self, every, amplitude):
        spike = shown(made(amplitude=amplitude))
        runs = made(amplitude=amplitude, every=every)
        before = ll.forecast(runs, at=[60, 100, 140], b1=B1, b2=B2)
        np.testing.assert_allclose(before["crossing_step"], CROSSING, atol=0.01)
        # From the threshold on kappa is taken to rise from the very crossing: a step or two.
        np.testing.assert_allclose(before["spike_step"], spike, atol=2.5)
        after = ll.forecast(runs, at=[155, 160, 170], b1=B1, b2=B2)
        np.testing.assert_allclose(after["crossing_step"], CROSSING, atol=0.01)
        np.testing.assert_allclose(after["spike_step"], spike, atol=1)
        np.testing.assert_allclose(after["rate"], SLOPE, rtol=1e-6)
        for part in (before, after):
            assert (part["spike_low"] <= part["spike_step"]).all()
            assert (part["spike_step"] <= part["spike_high"]).all()

    def test_the_alarm_stands_from_the_horizon_to_the_spike_and_not_once_it_shows(self):
        runs = made()
        found = ll.forecast(runs, at=runs["step"].values[:-1], b1=B1, b2=B2, horizon=25).isel(seed=0)
        on = found["at"].values[found["alarm"].values]
        seen = float(found["at"][int(found["spiking"].values.argmax())])
        spike = shown(runs)
        assert abs(seen - spike) <= 1
        np.testing.assert_array_equal(on, np.arange(on[0], seen))
        assert abs(on[0] - (spike - 25)) <= 2.5
        np.testing.assert_array_equal(found["spike_step"].sel(at=slice(seen, None)), seen)

    def test_nothing_after_the_step_asked_for_is_read_bit_for_bit(self):
        runs = made(noise=2e-3, seeds=3, every=2)
        for at in (4, 100, 141, 170, 200):
            whole = ll.forecast(runs, at=at, b1=B1, b2=B2)
            cut = ll.forecast(runs.sel(step=slice(None, at)), b1=B1, b2=B2)
            later = runs["step"] > at
            other = runs.assign({name: runs[name].where(~later, 7.0) for name in runs if "step" in runs[name].dims})
            blind = ll.forecast(other, at=at, b1=B1, b2=B2)
            for name in VARIABLES:
                assert whole[name].values.tobytes() == cut[name].values.tobytes() == blind[name].values.tobytes(), name
            assert float(whole["at"]) == 2 * (at // 2)
        many = ll.forecast(runs, at=[100, 170], b1=B1, b2=B2)
        one = ll.forecast(runs, at=170, b1=B1, b2=B2)
        for name in VARIABLES:
            np.testing.assert_allclose(many[name].isel(at=1).values.astype(float), one[name].values.astype(float))

    def test_a_state_rises_as_a_free_second_moment_does(self):
        state = made().isel(seed=0).sel(step=50)
        found = ll.forecast(state, b1=B1, b2=B2)
        ratio = float(state["preconditioned_sharpness"] * RATE / CRITICAL)
        assert found["crossing_step"].dims == ()
        np.testing.assert_allclose(found["crossing_step"], 50 + np.log(ratio) * 2 / np.log(B2), rtol=1e-12)
        assert float(found["crossing_low"]) < float(found["crossing_step"])
        assert float(found["crossing_high"]) == np.inf  # the slope of one record may be none

    def test_a_falling_ratio_crosses_never_and_a_record_that_is_not_finite_forecasts_nothing(self):
        falls = ll.forecast(made(slope=-2e-3, num_steps=400), b1=B1, b2=B2)
        assert np.isinf(falls["crossing_step"]).all()
        assert np.isinf(falls["spike_step"]).all()
        assert not falls["alarm"].any()
        broken = made(num_steps=100)
        broken["preconditioned_sharpness"][:, -1] = np.nan
        lost = ll.forecast(broken, b1=B1, b2=B2)
        assert np.isnan(lost["crossing_step"]).all()
        assert np.isnan(lost["spike_step"]).all()
        assert not lost["alarm"].any()

    def test_intervals_hold_the_crossing_as_often_as_they_say(self):
        """The slope from now to the crossing is another than before, as often and by as much as the forecast allows."""
        runs = made(num_steps=100, noise=1e-3, seeds=400)
        now = 100
        drift = np.random.default_rng(1).normal(size=(400, 1))[:, 0]
        later = SLOPE * (1 + RATE_DRIFT * drift)
        actual = np.where(later > 0, now + SLOPE * (CROSSING - now) / np.maximum(later, 1e-12), np.inf)
        for coverage in (0.5, 0.8):
            found = ll.forecast(runs, b1=B1, b2=B2, coverage=coverage)
            inside = (found["crossing_low"].values <= actual) & (actual <= found["crossing_high"].values)
            low, high = binomial_interval(int(inside.sum()), 400)
            # What was recorded adds its own error, to either side together: wider rather than narrower.
            assert high >= coverage
            assert low <= coverage + 0.1

    @pytest.mark.parametrize("refill", [0.05, 0.5])
    def test_size_is_that_at_which_a_mode_has_refilled_its_second_moment(self, refill):
        """One coordinate: g^2 / v = a^2 / sqrt(v), stepped on until the ratio is back and the mode dies."""
        state = made(amplitude=1e-2).isel(seed=0).sel(step=slice(0, 150))
        g, m = (float(state[name][-1]) for name in ("mode_gradient", "mode_update"))
        m, log_ratio, root, largest = -(m / RATE + (1 - B1) * g) / B1, 0.0, refill, 0.0
        for _ in range(120):
            log_ratio += SLOPE + np.log(B2) / 2 - 0.5 * np.log(B2 + (1 - B2) * g**2 * root)
            root /= np.sqrt(B2 + (1 - B2) * g**2 * root)
            m = B1 * m + (1 - B1) * g
            g -= CRITICAL * np.exp(log_ratio) * m
            largest = max(largest, g**2 / (2 * CRITICAL / RATE))
        found = ll.forecast(state.assign(mode_refill=0 * state["loss"] + refill), b1=B1, b2=B2)
        assert log_ratio < 0
        assert 0.5 < largest / REST / (float(found["size"]) - 1) < 2

    def test_a_mode_that_refills_its_second_moment_before_it_shows_spikes_unseen(self):
        found = ll.forecast(made(refill=50.0), at=[100, 160], b1=B1, b2=B2)
        assert (found["size"] < 1.5).all()
        assert np.isinf(found["spike_step"]).all()
        np.testing.assert_allclose(found["crossing_step"], CROSSING, atol=0.01)

    def test_hyperparameters_come_from_the_axes_of_the_runs(self):
        one = made()
        runs = xr.concat([one.assign_coords(b2=0.999), one.assign_coords(b2=0.99)], "b2", data_vars="all")
        found = ll.forecast(runs.transpose("b2", "seed", "step"), at=[0, 100], b1=B1)
        assert found["rate"].dims == ("b2", "seed", "at")
        np.testing.assert_allclose(found["rate"].isel(at=0, seed=0), -np.log([0.999, 0.99]) / 2)

    def test_hyperparameters_come_from_the_optimizer_of_the_runs(self):
        sweep = ll.Sweep({"learning_rate": [0.01]}, 2, 60, every=1)
        problem = ll.problems.named("linear_regression")
        probes = ["loss", "preconditioned_mode"]
        runs = ll.run(problem, ll.Optimizer(optax.adam, b1=0.8), sweep, probes=probes, progress=False)
        known = ll.forecast(runs)
        for name in VARIABLES:
            np.testing.assert_array_equal(known[name], ll.forecast(runs, b1=0.8, b2=0.999)[name], err_msg=name)
        swept = ll.Sweep({"learning_rate": [0.01], "b1": [0.8]}, 1, 20, every=1)
        runs = ll.run(problem, optax.adam, swept, probes=probes, progress=False)
        with pytest.raises(ValueError, match="b1: expected an axis"):
            ll.forecast(runs.isel(b1=0, drop=True))  # the default is not what was run

    def test_bad_input_is_refused_with_the_fix(self):
        runs = made()
        for message, changed, arguments in (
            ("record of the loss; add the probe 'loss'", runs.drop_vars("loss"), {}),
            (r"record of mode_energy; .*'preconditioned_mode'", runs.drop_vars("mode_energy"), {}),
            ("b1: expected an axis .* pass b1=", runs, {"b1": None}),
            ("b2: expected that of the runs", runs.expand_dims(b2=[0.99]), {"b2": B2}),
            ("b2: expected an axis .* pass b2=", runs, {"b2": None}),
            ("b2: expected 0 < b2 < 1, got 2", runs, {"b2": 2.0}),
            ("at: expected a step.* first record 10, got 3", runs.sel(step=slice(10, None)), {"at": 3}),
            ("horizon: expected a finite number above 0", runs, {"horizon": 0}),
            ("window: expected a finite number above 0", runs, {"window": -1}),
            ("coverage: expected a finite number above 0", runs, {"coverage": 1.0}),
            ("visible: expected a finite number above 1", runs, {"visible": 1.0}),
        ):
            with pytest.raises(ValueError, match=message):
                ll.forecast(changed, **{"b1": B1, "b2": B2} | arguments)

    @pytest.mark.parametrize("b2", [0.996, 0.998])
    def test_adam_crosses_and_spikes_when_it_was_forecast_to(self, b2):
        """One parameter, every step; the loss holds so little else that every spike shows well."""
        path = simulate(optax.adam, 9000, start=1.0, curvature=20.0, noise=1e-8, learning_rate=RATE, b1=B1, b2=b2)
        x, gradient, kappa = path.x[0, :-1], path.gradient[0, :-1], path.kappa[0, :-1]
        root, rest = np.sqrt(20.0 * RATE / kappa), 2e-6
        records = {
            "loss": rest + 10 * x**2,
            "preconditioned_sharpness": kappa / RATE,
            "preconditioned_sharpness_residual": 0 * kappa,
            "mode_energy": gradient**2 / root**2 * RATE / (2 * kappa),
            "mode_gradient": gradient / root,
            "mode_update": root * np.diff(path.x[0]),
            "mode_refill": 1 / root**2,
        }
        runs = xr.Dataset({name: ("step", values) for name, values in records.items()}, {"step": np.arange(len(x))})
        runs = runs.assign(threshold=CRITICAL / RATE).expand_dims(seed=[0])
        runs["threshold"] = runs["threshold"].isel(seed=0, drop=True)
        found = spikes(runs, after=500)
        assert found.sizes["spike"] >= 3
        first = found.isel(spike=0)
        early = ll.forecast(runs, at=float(first["crossing_step"]) - 200, b1=B1, b2=b2)
        assert abs(float(early["crossing_step"][0]) - float(first["crossing_step"])) <= 1.5
        errors = ll.forecast_errors(ll.forecast(runs, at=runs["step"], b1=B1, b2=b2), found, [10, 15])
        assert np.isfinite(errors["error"]).all()
        # A b2 of 0.99 is another matter: there the slope itself changes within a lag.
        crossed = errors["crossed"].values == 1
        assert np.count_nonzero(crossed) >= 10
        assert np.abs(errors["error"].values[crossed]).max() <= 2
        assert np.mean(errors["inside"].values[crossed]) >= 0.8


GRID = {"seed": np.arange(8), "step": np.arange(0, 2001, 5)}


def events(steps=(400.0, 1000.0, 1030.0, 1500.0)):
    """The same spikes in every seed, each over 20 steps later; the third comes too soon after the second to be told."""
    seeds = np.repeat(GRID["seed"], len(steps))
    shows = np.tile(steps, 8)
    return xr.Dataset(
        {"spike_step": ("spike", shows), "recovery_step": ("spike", shows + 25)}, {"seed": ("spike", seeds)}
    )


def signal(values):
    whole = np.broadcast_to(values, (8, len(GRID["step"])))
    return xr.DataArray(whole, GRID, ("seed", "step"))


class TestScores:
    def test_a_warning_that_knows_catches_all_and_its_lead_is_that_built_in(self):
        steps = GRID["step"]
        knows = np.any([(steps >= spike - 60) & (steps < spike) for spike in (400, 1000, 1500)], 0).astype(float)
        found = ll.forecast_scores({"knows": signal(knows), "never": signal(0.0 * steps)}, events(), range(4))
        assert int(found["num_spikes"]) == 12  # four seeds, the third spike left out
        best, never = found.sel(alarm="knows"), found.sel(alarm="never")
        assert float(best["hit_rate"]) == 1
        assert float(best["false_alarm_rate"]) == 0
        assert float(best["lead_time"]) == 60
        np.testing.assert_allclose([best["hit_rate_low"], best["hit_rate_high"]], binomial_interval(12, 12))
        assert float(never["hit_rate"]) == 0
        assert float(never["advantage"]) == 1
        # 60 steps before it still stands, from 65 on not, and the step of the spike itself is none of a warning.
        np.testing.assert_array_equal(
            best["hit_rate_by_lead"], (best["steps_before"] <= 60) & (best["steps_before"] > 0)
        )
        # 401 records a seed, less those after 1900, within 100 before a spike, and until it is over.
        quiet = sum(
            step <= 1900 and not any(s - 100 <= step <= s + 25 for s in (400, 1000, 1030, 1500)) for step in steps
        )
        assert int(found["num_quiet"]) == 4 * quiet

    def test_noise_catches_as_many_as_it_alarms_in_vain(self):
        random = np.random.default_rng(1)
        noise = xr.DataArray(random.normal(size=(8, len(GRID["step"]))), GRID, ("seed", "step"))
        many = events(tuple(np.arange(150.0, 1900.0, 130.0)))
        found = ll.forecast_scores({"noise": noise}, many, range(4), false_alarms=0.3).sel(alarm="noise")
        assert float(found["hit_rate_low"]) < 0.3 < float(found["hit_rate_high"])
        assert float(found["false_alarm_rate"]) == pytest.approx(0.3, abs=0.08)
        assert np.all(np.diff(found["curve"]) >= 0)
        assert float(found["curve"][-1]) == 1

    def test_levels_are_of_the_tuning_seeds_and_scores_of_the_others(self):
        random = np.random.default_rng(2)
        base = xr.DataArray(random.normal(size=(8, len(GRID["step"]))), GRID, ("seed", "step"))
        first = ll.forecast_scores({"a": base}, events(), range(4))
        scored = ll.forecast_scores({"a": base.where(base["seed"] < 4, base + 9)}, events(), range(4))
        tuned = ll.forecast_scores({"a": base.where(base["seed"] >= 4, base - 9)}, events(), range(4))
        assert float(scored["level"][0]) == float(first["level"][0])
        assert float(scored["hit_rate"][0]) == 1
        np.testing.assert_array_equal(tuned["curve"], first["curve"])
        assert float(tuned["level"][0]) == pytest.approx(float(first["level"][0]) - 9)

    def test_bad_input_is_refused(self):
        flat = signal(0.0 * GRID["step"])
        for message, values, found, seeds, others in (
            ("signals: expected the axes seed and step", flat.isel(seed=0), events(), [0], {}),
            ("tuning_seeds: expected some of the seeds", flat, events(), range(8), {}),
            ("tuning_seeds: expected some of the seeds", flat, events(), [99], {}),
            ("found: expected the coordinates", flat, events().drop_vars("seed"), [0], {}),
            ("lead: expected 0 <= lead < within", flat, events(), [0], {"lead": 200}),
            (
                "false_alarms: expected a finite number of at least 0 and below 1",
                flat,
                events(),
                [0],
                {"false_alarms": 1.0},
            ),
            ("scored seeds hold no spike", flat, events().isel(spike=slice(0, 2)), [0], {}),
        ):
            with pytest.raises(ValueError, match=message):
                ll.forecast_scores({"flat": values}, found, seeds, **others)


class TestRuns:
    def test_signals_are_what_they_say_and_a_run_cut_short_has_the_same(self):
        runs = xr.concat(
            [made().assign_coords(learning_rate=rate) for rate in (RATE, 2 * RATE)], "learning_rate", data_vars="all"
        )
        runs["preconditioned_gradient_curvature"] = 0.5 * runs["preconditioned_sharpness"]
        runs["update_rms"] = runs["learning_rate"] * runs["loss"]
        predicted = ll.forecast(runs, at=runs["step"], b1=B1, b2=B2)
        signals = ll.alarm_signals(runs, predicted)
        assert signals["forecast"].dims == runs["loss"].dims
        loss = runs["loss"].values
        recent = [np.median(loss[..., max(0, index - 39) : index + 1], -1) for index in range(loss.shape[-1])]
        np.testing.assert_allclose(signals["update_norm"], loss / np.stack(recent, -1))
        np.testing.assert_allclose(signals["gradient_curvature"], predicted["ratio"] / 2)
        ahead = (predicted["at"] - predicted["spike_step"]).transpose(..., "at")
        known = np.isfinite(signals["forecast"].values)
        assert known.any()
        np.testing.assert_array_equal(signals["forecast"].values[known], ahead.values[known])
        short = runs.isel(step=slice(0, 165))
        own = ll.alarm_signals(short, ll.forecast(short, at=short["step"], b1=B1, b2=B2))
        for name in own:
            np.testing.assert_allclose(own[name], signals[name].isel(step=slice(0, 165)), rtol=1e-9)
        for message, arguments in (
            ("add the probe 'update_statistics'", (runs.drop_vars("update_rms"), predicted)),
            ("predicted: expected a forecast at every record", (runs, predicted.isel(at=[0, 1]))),
        ):
            with pytest.raises(ValueError, match=message):
                ll.alarm_signals(*arguments)

    def test_errors_are_those_of_the_forecast_so_many_steps_before(self):
        runs = made(every=2)
        predicted = ll.forecast(runs, at=runs["step"], b1=B1, b2=B2)
        found = spikes(runs)
        assert found.sizes["spike"] == 1
        errors = ll.forecast_errors(predicted, found, [10, 30, 500])
        spike = float(found["spike_step"][0])
        for ahead in (10, 30):
            one, now = errors.sel(ahead=ahead).isel(spike=0), 2 * np.floor((spike - ahead) / 2)
            assert float(one["remaining"]) == pytest.approx(spike - now)
            alone = ll.forecast(runs, at=now, b1=B1, b2=B2).isel(seed=0)
            assert float(one["error"]) == pytest.approx(float(alone["spike_step"]) - spike)
            assert float(one["expected"]) == pytest.approx(float(alone["spike_step"]) - now)
            assert bool(one["inside"]) == bool(alone["spike_low"] <= spike <= alone["spike_high"])
        assert np.isnan(errors["error"].sel(ahead=500)).all()
