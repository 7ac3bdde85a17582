"""The catapult window of the two-layer linear model, against its width."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="catapult",
    shows="loss thrown up from learning rate x kernel = 2 on, lost beyond 4, at three widths",
    figures=(3,),
    section="Thresholds and catapults",
    fast="20 s",
    full="1 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
