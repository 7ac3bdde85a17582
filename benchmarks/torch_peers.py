"""The same work in PyTorch: training runs for `benchmarks.sweeps`, top eigenvalues for `benchmarks.curvature`.

All contestants start from the same numbers as ours. PyTorch keeps its threads: one per core.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

torch.set_num_threads(os.cpu_count() or 1)


def tensor(array: Any) -> Any:
    return torch.tensor(np.asarray(array))


# --- Training ---


def line_loss(leaves: list[Any], inputs: Any, targets: Any) -> Any:
    """T1: mean squared error of a weight and a bias; leaves in the order of `jax.tree.leaves`."""
    bias, weight = leaves
    return ((weight * inputs + bias - targets) ** 2).mean()


def network_loss(leaves: list[Any], inputs: Any, targets: Any) -> Any:
    """T2, T3: two tanh layers and a logit."""
    hidden = inputs
    for place, (weight, bias) in enumerate(zip(leaves[:3], leaves[3:], strict=True)):
        hidden = hidden @ weight + bias
        hidden = torch.tanh(hidden) if place < 2 else hidden
    return torch.nn.functional.binary_cross_entropy_with_logits(hidden[:, 0], targets)


LOSSES = {"T1": line_loss, "T2": network_loss, "T3": network_loss}


def train_eagerly(name: str, leaves: list[Any], data: tuple[Any, Any], rate: float, num_steps: int) -> float:
    """One run: `backward` and an optimizer of `torch.optim`."""
    leaves = [tensor(leaf).requires_grad_() for leaf in leaves]
    optimizer = (torch.optim.Adam if name == "T3" else torch.optim.SGD)(leaves, lr=rate)
    loss = torch.tensor(0.0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = LOSSES[name](leaves, *data)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def train_recurrent(rate: float, seed: int, data: tuple[Any, Any], hidden: int, num_steps: int, batch: int) -> float:
    """T4: one run of an LSTM with a linear layer on its last output, RMSprop, batches in order."""
    torch.manual_seed(seed)
    inputs, labels = data
    lstm, head = torch.nn.LSTM(inputs.shape[-1], hidden, batch_first=True), torch.nn.Linear(hidden, 6)
    optimizer = torch.optim.RMSprop([*lstm.parameters(), *head.parameters()], lr=rate)
    loss = torch.tensor(0.0)
    for step in range(num_steps):
        start = (step * batch) % (len(inputs) - batch + 1)
        optimizer.zero_grad()
        outputs, _ = lstm(inputs[start : start + batch])
        loss = torch.nn.functional.cross_entropy(head(outputs[:, -1]), labels[start : start + batch])
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def train_all_by_vmap(name: str, leaves: list[Any], data: tuple[Any, Any], rates: Any, num_steps: int) -> Any:
    """All runs at once: `torch.func.vmap` of `torch.func.grad`, the update written out over stacked tensors.

    leaves: `(runs, ...)` each. Returns the losses after the last step, `(runs,)`.
    """
    gradient = torch.func.vmap(torch.func.grad(LOSSES[name]), in_dims=(0, None, None))
    leaves = [tensor(leaf) for leaf in leaves]
    rates = tensor(rates)
    steps = [rates.reshape(-1, *[1] * (leaf.ndim - 1)) for leaf in leaves]
    first = [torch.zeros_like(leaf) for leaf in leaves]
    second = [torch.zeros_like(leaf) for leaf in leaves]
    with torch.no_grad():
        for now in range(1, num_steps + 1):
            slopes = gradient(leaves, *data)
            if name == "T3":
                first = [0.9 * m + 0.1 * g for m, g in zip(first, slopes, strict=True)]
                second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, slopes, strict=True)]
                slopes = [
                    (m / (1 - 0.9**now)) / ((v / (1 - 0.999**now)).sqrt() + 1e-8)
                    for m, v in zip(first, second, strict=True)
                ]
            leaves = [leaf - step * slope for leaf, step, slope in zip(leaves, steps, slopes, strict=True)]
        return torch.func.vmap(LOSSES[name], in_dims=(0, None, None))(leaves, *data).numpy()


# --- Top eigenvalues ---


def classifier(layers: list[dict[str, Any]]) -> Any:
    """The tanh network of `benchmarks.curvature` with the given weights."""
    modules: list[Any] = []
    for place, layer in enumerate(layers):
        linear = torch.nn.Linear(*np.asarray(layer["w"]).shape)
        with torch.no_grad():
            linear.weight.copy_(tensor(layer["w"]).T)
            linear.bias.copy_(tensor(layer["b"]))
        modules += [linear] if place == len(layers) - 1 else [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*modules)


def pyhessian(model: Any, data: tuple[Any, Any]) -> tuple[float, int | None]:
    """PyHessian as its documentation calls it: power iteration, default tolerance and limit."""
    from pyhessian import hessian

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hessian(model, torch.nn.CrossEntropyLoss(), data=data, cuda=False)
    values, _ = found.eigenvalues()
    return float(values[0]), None


def hessian_eigenthings(model: Any, data: tuple[Any, Any], num_steps: int = 32) -> tuple[float, int | None]:
    """hessian-eigenthings: Lanczos with a fixed number of steps."""
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    operator = HessianOperator(model, [data], supervised_loss(torch.nn.CrossEntropyLoss()))
    result = lanczos(operator, k=1, max_iter=num_steps, which="LA", seed=0)
    return float(np.max(np.asarray(result.eigenvalues))), num_steps


def curvlinops(model: Any, data: tuple[Any, Any]) -> tuple[float, int | None]:
    """curvlinops' Hessian in SciPy's `eigsh`, at the tolerance of ours."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = HessianLinearOperator(
        model, torch.nn.CrossEntropyLoss(), list(model.parameters()), [data], check_deterministic=False
    ).to_scipy()
    count = 0

    def apply(vector: Any) -> Any:
        nonlocal count
        count += 1
        return operator @ vector

    counted: Any = LinearOperator(operator.shape, matvec=apply, dtype=operator.dtype)
    start = np.random.default_rng(0).normal(size=operator.shape[0]).astype(operator.dtype)
    values = eigsh(counted, k=1, which="LA", tol=1e-4, v0=start, return_eigenvectors=False)
    return float(values[0]), count


TOOLS = {
    "PyHessian": ("pyhessian", pyhessian),
    "hessian-eigenthings 32": ("hessian_eigenthings", hessian_eigenthings),
    "curvlinops + eigsh": ("curvlinops", curvlinops),
}


def eigenvalue_tools(inputs: Any, labels: Any) -> dict[str, Callable[[Any], tuple[float, int | None]]]:
    """The installed tools: each takes the network's layers, and returns its top eigenvalue and count of products."""
    data = (tensor(inputs), tensor(labels))

    def call(tool: Callable[..., tuple[float, int | None]], layers: Any) -> tuple[float, int | None]:
        return tool(classifier(layers), data)

    return {
        name: functools.partial(call, tool)
        for name, (module, tool) in TOOLS.items()
        if importlib.util.find_spec(module) is not None
    }
