# %% [markdown]
# # Your flax model explained
#
# A model, its data, a sweep over learning rates. One run's loss goes up. Why, and what would have kept it down?

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

# %% [markdown]
# `from_flax` takes the function that makes the model, since every seed draws its own weights.

# %%
problem = ll.Problem.from_flax(lambda rngs: Model(rngs), cross_entropy, (points, labels))
sweep = ll.Sweep({"learning_rate": np.geomspace(0.3, 30, 12)}, seeds=4, num_steps=120, every=20)
runs = ll.run(problem, optax.sgd, sweep, probes=["loss", "sharpness"], out="runs/flax_model/runs", progress=False)
print(runs["num_rises"].to_pandas())

# %% [markdown]
# The table counts the steps, of 120, that raised the loss: none at small rates, many at large ones. Take one of
# those.

# %%
explanation = ll.explain(runs.sel(seed=0).sel(learning_rate=10, method="nearest"), problem, optax.sgd)
print(explanation)

# %% [markdown]
# The run was trained again, bit for bit. Around its largest rise the curvature was measured, the change of the loss
# split into slope, curvature and rest, and the weights before the rise were trained on with one thing changed at a
# time. *Verified* means that the change took the rise away.

# %%
ll.figures.save(explanation.plot(), "runs/flax_model/explanation")

# %% [markdown]
# Put your module, your loss and your data in the place of these. The runs are saved in `runs/flax_model/runs`;
# `ll.load` brings them back, and `lossland report runs/flax_model/runs` makes one page of them.
