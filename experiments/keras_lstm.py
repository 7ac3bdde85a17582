"""Case 3: an LSTM on 98 sequences whose loss fluctuates."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="keras_lstm",
    shows="rises split into record, noise of batches and curvature, noise against batch size, and claims settled",
    figures=(1,),
    section="Five reported cases",
    fast="3 min",
    full="6 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
