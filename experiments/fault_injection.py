"""Causes planted and found again."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="fault_injection",
    shows="confusion matrix of planted and named causes, and how often the named remedy works in replay",
    figures=(13,),
    section="Why did it rise?",
    fast="3 min",
    full="17 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
