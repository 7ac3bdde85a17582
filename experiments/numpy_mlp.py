"""Case 2: two tanh layers by hand, a spike at the start."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="numpy_mlp",
    shows="catapults over learning rate and initial scale, and what tells at the first step that the loss will rise",
    figures=(1, 3),
    section="Five reported cases",
    fast="2 min",
    full="25 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
