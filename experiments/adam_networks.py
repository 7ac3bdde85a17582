"""The edge and the lag of Adam on a digits classifier and a transformer."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="adam_networks",
    shows="where the laws carry over to larger networks, and where they stop holding",
    figures=(),
    section="Adam late in training",
    fast="2 min",
    full="20 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
