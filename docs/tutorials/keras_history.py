# %% [markdown]
# # Explain a Keras history
#
# A real question: Keras, one `Dense(1)` unit, mean squared error, SGD with its default learning rate 0.01, twenty
# points of y = x / 2 in one batch. The loss grew until it was infinite. All that is left are the losses that Keras
# printed.

# %%
import numpy as np

import lossland as ll
from lossland.problems.reported import printed_losses

losses = np.asarray(printed_losses())
print(losses[:4], "...", losses[-1])

# %%
found = ll.explain_history(losses, learning_rate=0.01, optimizer="sgd", full_batch=True, num_examples=len(losses))
print(found)

# %% [markdown]
# Each number can be checked, because for this problem the Hessian is known. Of the mean squared error of a line
# over x = 1 … 20 it is 2 [[mean x², mean x], [mean x, 1]].

# %%
x = np.arange(1, 21)
hessian = 2 * np.array([[np.mean(x**2.0), np.mean(x)], [np.mean(x), 1.0]])
sharpness = np.linalg.eigvalsh(hessian)[-1]
print(f"sharpness: from the losses {found.sharpness:.3f}, from the Hessian {sharpness:.3f}")
print(
    f"growth per step: from the losses {found.growth:.4f}, (1 - 0.01 sharpness)^2 = {(1 - 0.01 * sharpness) ** 2:.4f}"
)

# %% [markdown]
# The sharpness is above 2 / 0.01 = 200, so every step overshoots. It is large because x is: standardised inputs
# bring it down to 2.

# %%
standardised = (x - x.mean()) / x.std()
hessian = 2 * np.array([[np.mean(standardised**2), np.mean(standardised)], [np.mean(standardised), 1.0]])
print(f"standardised inputs: sharpness {np.linalg.eigvalsh(hessian)[-1]:.3f}, critical learning rate 1")

# %% [markdown]
# With a history of your own: `ll.explain_history(history.history["loss"], learning_rate=..., optimizer="adam",
# steps_per_record=batches)`. See [the how-to](../how_to/history.md) for what each argument adds, and what a curve
# can never tell.
