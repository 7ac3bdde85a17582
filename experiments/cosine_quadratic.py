"""Where the boundary of a cosine-perturbed parabola turns fractal."""

from experiments.experiment import Experiment

EXPERIMENT = Experiment(
    stem="cosine_quadratic",
    shows="exponent of the boundary against the roughness of the cosine",
    figures=(7,),
    section="Fractal boundaries",
    fast="30 s",
    full="2 min",
)
main = EXPERIMENT.run

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.command())
