"""Late spikes of Adam over learning rate, b2 and eps."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="late_training_map",
    shows="how likely, how early and at what price, beside what theory says from states of other seeds",
    figures=(12,),
    section="The late-training map",
    fast="2 min",
    full="3 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
