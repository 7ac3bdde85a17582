"""Progressive sharpening and the edge of stability, for eight optimizers."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="edge_of_stability",
    shows="sharpness over each optimizer's own threshold: it rises to 1 and stays",
    figures=(5,),
    section="Edge of stability",
    fast="4 min",
    full="8 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
