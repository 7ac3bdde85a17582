"""Case 4: a recurrent classifier that learns, then gets worse."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="rnn_sequences",
    shows="where gradients explode within a step, how it depends on the learning rate, and six claims settled",
    figures=(1,),
    section="Five reported cases",
    fast="3 min",
    full="20 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
