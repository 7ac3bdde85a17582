"""Laws of Adam late in training, on one parameter."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="adam_laws",
    shows="every law against the optimizer itself in float64, over many settings",
    figures=(9,),
    section="Adam late in training",
    fast="1 min",
    full="1 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
