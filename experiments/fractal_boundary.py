"""Boundaries of trainability of a small network, and their dimensions."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="fractal_boundary",
    shows="five panels, zoomed at random and where the boundary is densest, with intervals over seeds",
    figures=(8,),
    section="Fractal boundaries",
    fast="2 min",
    full="25 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
