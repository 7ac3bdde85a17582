"""The paper: figures, numbers and text, all from the summaries of `experiments/results`."""
