"""Case 1: one Dense unit, SGD, and a loss that grows without bound."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="linear_regression",
    shows="phase diagram over examples and learning rate, twenty printed losses from one recovered weight",
    figures=(1, 2),
    section="Five reported cases",
    fast="1 min",
    full="1 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
