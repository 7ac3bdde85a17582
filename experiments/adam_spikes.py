"""Late spikes of Adam on small networks."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="adam_spikes",
    shows="the edge, the lag before a spike shows, what drives it, and which interventions remove it",
    figures=(10,),
    section="Adam late in training",
    fast="2 min",
    full="12 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
