"""Late spikes of Adam forecast while the loss still falls."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="adam_forecast",
    shows="hit rate, false alarms and lead time beside two cheaper alarms",
    figures=(11,),
    section="Adam late in training",
    fast="1 min",
    full="1 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
