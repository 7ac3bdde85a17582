"""Case 5: a course network under Adam whose epoch loss sometimes rises."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="course_mlp",
    shows="share of epochs that rise, and how many of the rises vanish with the full batch",
    figures=(1,),
    section="Five reported cases",
    fast="1 min",
    full="2 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
