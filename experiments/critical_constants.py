"""Critical learning rates of networks in units of 1 / initial sharpness, against width."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="critical_constants",
    shows="where loss and sharpness first rise and where runs diverge, at several widths",
    figures=(),
    section="Thresholds and catapults",
    fast="2 min",
    full="10 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
