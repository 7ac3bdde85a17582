# %% [markdown]
# # The edge of stability of Adam
#
# Adam is stable while its *preconditioned* sharpness stays below 2 (1 + b1) / ((1 - b1) learning rate): 38 /
# learning rate at the defaults. Where does training end up?

# %%
import optax
from matplotlib.figure import Figure

import lossland as ll

for b1 in (0.0, 0.5, 0.9):
    critical = ll.threshold(optax.adam, learning_rate=1e-3, b1=b1).critical_curvature
    print(f"b1 = {b1}: threshold {critical:.5g} = {critical * 1e-3:.4g} / learning rate")

# %% [markdown]
# Nothing was looked up: one step of optax's update was linearised. Now a small network that fits a polynomial, full
# batch, two values of b1.

# %%
problem = ll.problems.synthetic.chebyshev(degree=3, num_examples=32, widths=(12, 12))
adam = ll.Optimizer(optax.adam, learning_rate=2e-3, b2=0.99)
sweep = ll.Sweep({"b1": [0.5, 0.9]}, seeds=2, num_steps=1200, every=40)
runs = ll.run(problem, adam, sweep, probes=["loss", "preconditioned_sharpness"], progress=False)
ratio = runs["preconditioned_sharpness"] / runs["threshold"]
late = ratio.sel(step=slice(600, None)).median("step")
for b1 in (0.5, 0.9):
    print(f"b1 = {b1}: sharpness / threshold late in training, two seeds: {late.sel(b1=b1).values.round(2)}")

# %% [markdown]
# Both sit near 1, at thresholds that differ by a factor of six. The optimizer does not find a minimum that suits it
# and stay below: it is pushed up to its own edge.

# %%
figure = Figure(figsize=(6.4, 2.6), layout="constrained")
left, right = figure.subplots(1, 2)
for b1, color, style in ((0.5, "#EFA21A", "--"), (0.9, "#27346B", "-")):
    run = dict(b1=b1, seed=0)
    left.plot(runs["step"], ratio.sel(run), color=color, linestyle=style, linewidth=1, label=f"b1 = {b1}")
    right.plot(runs["step"], runs["loss"].sel(run), color=color, linestyle=style, linewidth=1)
left.axhline(1, color="grey", linewidth=0.8)
left.set(xlabel="step", ylabel="preconditioned sharpness / threshold", ylim=(0, 2))
left.legend(frameon=False)
right.set(xlabel="step", ylabel="training loss", yscale="log")
ll.figures.save(figure, "runs/adam/edge_of_stability")

# %% [markdown]
# The first records lie far above the edge: the second moment is still near zero, and every direction looks steep.
# They do no harm, as Adam's first steps are bounded by the learning rate.
#
# The loss rises at many single steps and falls over many. This is the normal late phase. What is not normal is a
# spike that comes after a long calm: see [second-moment lag](../concepts/second_moment_lag.md).

# %%
print("steps that raised the loss:", runs["num_rises"].values.tolist(), "of", sweep.num_steps)
