"""Thresholds computed from optax updates, beside closed forms and simulated runs."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="thresholds",
    shows="measured against computed thresholds of twelve optimizers and four chains in no table",
    figures=(4,),
    section="Thresholds and catapults",
    fast="1 min",
    full="2 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
