"""One script per result: what is run, at which size, and what is kept of it. The paper is drawn from what is kept."""
