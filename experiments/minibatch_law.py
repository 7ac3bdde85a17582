"""Mean-square stability of minibatch training."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="minibatch_law",
    shows="measured critical learning rates of three optimizers on the curves that the noise of batches predicts",
    figures=(6,),
    section="Minibatches",
    fast="2 min",
    full="3 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
