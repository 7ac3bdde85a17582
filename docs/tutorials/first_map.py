# %% [markdown]
# # A first map
#
# At which learning rates does a small network train, and does its sharpness say so beforehand?
#
# The problem: 60 points whose label is whether both coordinates have the same sign, one hidden layer of 8 tanh
# units, cross-entropy, full batch.

# %%
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lossland as ll


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(2, 8, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))


generator = np.random.default_rng(0)
points = generator.normal(size=(60, 2)).astype(np.float32)
labels = (points[:, 0] * points[:, 1] > 0).astype(np.int32)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
problem = ll.Problem.from_flax(lambda rngs: Model(rngs), cross_entropy, (points, labels))

sweep = ll.Sweep({"learning_rate": np.geomspace(0.3, 30, 12)}, seeds=4, num_steps=120, every=20)
runs = ll.run(problem, optax.sgd, sweep, probes=["loss", "sharpness"], progress=False)
print(dict(runs.sizes))

# %% [markdown]
# 48 runs, one compilation. Gradient descent can bear a sharpness of 2 / learning rate. So the sharpness at the
# start predicts the rate at which the loss begins to rise; what was measured is the rate at which some step did
# raise it.

# %%
rises = ll.critical_learning_rate(runs, "rises")
predicted, measured = float(rises["predicted"].median()), float(rises["median"])
print(f"sharpness at the start        {float(runs['sharpness'].isel(step=0).median()):.3g}")
print(f"predicted, 2 / sharpness      {predicted:.3g}")
print(f"measured, median over seeds   {measured:.3g}  [{float(rises['low']):.3g}, {float(rises['high']):.3g}]")

# %% [markdown]
# The interval is wide: four seeds, twelve rates. It holds what the grid leaves open, and more seeds narrow it.
#
# Now the map. Every column is a learning rate; its colours are the shares of seeds that never rose, rose and
# recovered, or diverged.

# %%
ll.figures.save(ll.figures.stability_map_figure(runs), "runs/first_map/stability_map")

# %% [markdown]
# The loss rises far above the predicted rate, and still recovers: nothing diverges here. Where do these runs go?
# Look at the sharpness.

# %%
ll.figures.save(ll.figures.curves_figure(runs), "runs/first_map/curves")

# %%
above = runs["relative_sharpness"].isel(step=0).values > 1
flatter = (runs["sharpness"].isel(step=-1) < runs["sharpness"].isel(step=0)).values
print(f"started above the threshold   {above.sum()} of {above.size} runs; {flatter[above].sum()} of them end flatter")
print(f"started below it              {(~above).sum()} runs; {flatter[~above].sum()} of them end flatter")

# %% [markdown]
# Runs that start above their threshold are, nearly all, thrown to where the loss is flatter: a
# [catapult](../concepts/catapult.md). At the very largest rates a run may bounce on for all of its 120 steps. Runs
# that start below the threshold sharpen first, as training does, and many never meet it.
#
# Next: [why one of these runs rose](flax_model.py).
