"""Top eigenvalues of Hessians: time in units of one gradient, products and error, ours and other tools.

Problems: digits (1797 x 64, scaled to [0, 1]), tanh network, softmax cross-entropy, full batch, 200 steps of gradient
descent at 0.2. (a) 64-128-64-10, 17,226 parameters; (b) 64-512-512-10, 301,066 parameters; (c) 256 initialisations of
(a). A gradient at the same point is timed in the same rotation; all times are medians. Tools that are not installed are
named and left out.

    python -m benchmarks.curvature                  # an hour; writes benchmarks/results/curvature.json
    python -m benchmarks.curvature --only a memory  # some parts
    python -m benchmarks.curvature --fast           # seconds, tiny sizes, writes nothing
"""

import argparse
import importlib.util
import json
import operator
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits

from lossland import curvature

RATE = 0.2
NUM_STEPS = 200
RESULTS = Path(__file__).parent / "results" / "curvature.json"
OTHERS = ("matfree", "torch", "curvlinops", "pyhessian", "hessian_eigenthings")


def data() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels


INPUTS, LABELS = data()


def initial(key: jax.Array, sizes: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)) / m**0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def objective(params: Any) -> jax.Array:
    hidden = jnp.asarray(INPUTS, params[0]["w"].dtype)
    for layer in params[:-1]:
        hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
    logits = hidden @ params[-1]["w"] + params[-1]["b"]
    chosen = jnp.take_along_axis(logits, LABELS[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


@jax.jit
def train(params: Any, num_steps: int) -> Any:
    def step(_: Any, params: Any) -> Any:
        return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(objective)(params))

    return lax.fori_loop(0, num_steps, step, params)


def product_at(params: Any) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    flat, _ = ravel_pytree(params)
    return curvature.flatten(curvature.hessian(objective, params), params)[0], flat


product = jax.jit(lambda params, vector: product_at(params)[0](vector))


def reference(params: Any) -> float:
    """The top eigenvalue in float64, by an independent solver."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        return scipy_eigsh(params, tol=1e-10)[0]


def scipy_eigsh(params: Any, tol: float = 1e-4) -> tuple[float, int]:
    flat, _ = ravel_pytree(params)
    count = 0

    def apply(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.asarray(product(params, jnp.asarray(vector, flat.dtype).reshape(-1)))

    linear: Any = LinearOperator((flat.size, flat.size), matvec=apply, dtype=np.dtype(flat.dtype))
    start = np.random.default_rng(0).normal(size=flat.size).astype(flat.dtype)
    return float(eigsh(linear, k=1, which="LA", tol=tol, v0=start, return_eigenvectors=False)[0]), count


def top(k: int) -> Callable[[Any], tuple[jax.Array, jax.Array, jax.Array]]:
    def solve(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        pairs = curvature.top_eigenpairs(curvature.hessian(objective, params), like=params, k=k)
        return pairs.values[0], pairs.num_matvecs, jnp.all(pairs.converged)

    return solve


def warm(params: Any, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    pair = curvature.top_eigenpair(product_at(params)[0], start)
    return pair.value, pair.num_matvecs, pair.converged, pair.next_start


def lobpcg(params: Any) -> tuple[jax.Array, jax.Array]:
    matvec, flat = product_at(params)
    start = jax.random.normal(jax.random.key(0), (flat.size, 1))
    values, _, iterations = lobpcg_standard(jax.vmap(matvec, in_axes=1, out_axes=1), start)
    return values[0], iterations


def matfree_steps(num_steps: int) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    from matfree import decomp, eig

    solve = eig.eigh_partial(decomp.tridiag_sym(num_steps))

    def run(params: Any) -> tuple[jax.Array, jax.Array]:
        matvec, flat = product_at(params)
        values, _ = solve(matvec, jax.random.normal(jax.random.key(0), flat.shape))
        return jnp.max(values), jnp.asarray(num_steps)

    return run


def peers() -> dict[str, Callable[[Any], tuple[float, int | None]]]:
    """The PyTorch tools that are installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    from benchmarks import torch_peers

    return torch_peers.eigenvalue_tools(INPUTS, LABELS)


def medians(functions: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each function, all run in rotation, and what they returned."""
    results = {name: jax.block_until_ready(function()) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}, results


def one_run(sizes: tuple[int, ...], num_steps: int, repeats: int) -> dict[str, Any]:
    """Rows of one problem after `num_steps` steps: ms, products, gradients, relative error, flag where there is one."""
    start = initial(jax.random.key(0), sizes)
    params = train(start, num_steps)
    solve_warm = jax.jit(warm)
    flat, _ = ravel_pytree(params)
    random = jax.random.normal(jax.random.key(1), flat.shape)
    before = {gap: solve_warm(train(start, num_steps - gap), random)[3] for gap in (5, 10)}
    gradient, step = jax.jit(jax.grad(objective)), jax.jit(lambda params: train(params, 1))
    num_products = 16

    @jax.jit
    def products(params: Any) -> jax.Array:
        matvec, flat = product_at(params)
        return lax.fori_loop(0, num_products, lambda _, vector: 0.1 * matvec(vector), flat)

    functions: dict[str, Callable[[], Any]] = {"gradient": lambda: gradient(params), "step": lambda: step(params)}
    functions["products"] = lambda: products(params)
    compiled = {
        "ours cold": jax.jit(top(1)),
        "ours top 5": jax.jit(top(5)),
        "lobpcg_standard (iterations)": jax.jit(lobpcg),
    }
    if importlib.util.find_spec("matfree"):
        compiled["matfree 16"] = jax.jit(matfree_steps(16))
    compile_seconds = {}
    for name, function in compiled.items():
        begin = time.perf_counter()
        function.lower(params).compile()
        compile_seconds[name] = time.perf_counter() - begin
        functions[name] = lambda function=function: function(params)
    for gap, vector in before.items():
        functions[f"ours warm, {gap} steps"] = lambda vector=vector: solve_warm(params, vector)
    functions["scipy eigsh"] = lambda: scipy_eigsh(params)
    seconds, results = medians(functions, repeats)
    # In a rotation of their own: PyTorch's threads go on spinning for a while, and whoever comes next would pay.
    others = medians({name: lambda tool=tool: tool(params) for name, tool in peers().items()}, repeats)
    seconds, results = seconds | others[0], results | others[1]
    exact, gradient_seconds = reference(params), seconds["gradient"]
    rows = {}
    for name, result in results.items():
        if name in ("gradient", "step", "products"):
            continue
        value, count, *flags = result
        rows[name] = {
            "ms": 1e3 * seconds[name],
            "gradients": seconds[name] / gradient_seconds,
            "relative_error": abs(float(value) - exact) / abs(exact),
        } | ({"converged": bool(flags[0])} if flags else {})
        if count is not None:
            of_products = int(count) * seconds["products"] / num_products
            rows[name] |= {"products": int(count), "overhead_over_products": seconds[name] / of_products - 1}
        if name in compile_seconds:
            rows[name]["compile_seconds"] = compile_seconds[name]
    return {
        "parameters": int(flat.size),
        "exact": exact,
        "gradient_ms": 1e3 * gradient_seconds,
        "product_in_gradients": seconds["products"] / num_products / gradient_seconds,
        "every_10_steps_over_training": {
            "cold": seconds["ours cold"] / (10 * seconds["step"]),
            "warm": seconds["ours warm, 10 steps"] / (10 * seconds["step"]),
        },
        "rows": rows,
    }


def many_runs(sizes: tuple[int, ...], num_runs: int, num_steps: int, num_checked: int) -> dict[str, Any]:
    """Seconds for the top eigenvalue of all initialisations, once trained, and the largest error of some of them.

    Loops over runs, as other tools need them, go over every fourth run; their time is scaled up.
    """
    starts = jax.vmap(lambda key: initial(key, sizes))(jax.random.split(jax.random.key(0), num_runs))
    runs = jax.jit(lambda starts: lax.map(lambda params: train(params, num_steps), starts))(starts)
    every = max(1, min(4, num_runs // num_checked))
    sample = range(0, num_runs, every)

    def run(index: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[index], runs)

    workers = os.cpu_count() or 1
    mapped = jax.jit(lambda runs: lax.map(top(1), runs))

    def from_threads() -> Any:
        """As `ll.run` does it: a thread per core."""
        parts = [jax.tree.map(operator.itemgetter(slice(start, None, workers)), runs) for start in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda part: jax.block_until_ready(mapped(part)), parts))
        order = np.argsort(np.concatenate([np.arange(num_runs)[start::workers] for start in range(workers)]))
        return [np.concatenate(columns)[order] for columns in zip(*found, strict=True)][:2]

    functions: dict[str, Callable[[], Any]] = {
        "ours, a thread per core": from_threads,
        "ours, mapped": lambda: mapped(runs)[:2],
    }
    if importlib.util.find_spec("matfree"):
        solve = matfree_steps(16)
        vmapped = jax.jit(lambda runs: lax.map(solve, runs, batch_size=num_runs))
        one_by_one = jax.jit(lambda runs: lax.map(solve, runs))
        functions |= {"matfree 16, vmapped": lambda: vmapped(runs), "matfree 16, mapped": lambda: one_by_one(runs)}
    tools: dict[str, Callable[[Any], tuple[float, int | None]]] = {"scipy eigsh": scipy_eigsh, **peers()}
    for name, tool in tools.items():
        functions[f"{name} in a loop"] = lambda tool=tool: tuple(
            zip(*(tool(run(index)) for index in sample), strict=True)
        )
    seconds, results = medians(functions, 1)
    checked = np.unique(np.linspace(0, len(sample) - 1, num_checked).astype(int))
    exact = np.asarray([reference(run(sample[index])) for index in checked])
    found = {}
    for name, (values, counts) in results.items():
        step = 1 if len(values) == len(sample) else every
        error = np.abs(np.asarray(values)[checked * step] - exact) / np.abs(exact)
        found[name] = {
            "seconds": seconds[name] * num_runs / len(values),
            "mean_products": None if counts[0] is None else float(np.mean(counts)),
            "largest_relative_error": float(np.max(error)),
        }
    return found


def against_dense(sizes: tuple[int, ...], num_steps: int, k: int = 5) -> dict[str, Any]:
    """Top k and lowest eigenvalues in both precisions beside all eigenvalues of the dense Hessian in float64."""
    params = train(initial(jax.random.key(0), sizes), num_steps)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    with jax.enable_x64(True):
        matrix = np.asarray(jax.jit(lambda point: curvature.dense_hessian(objective, point))(double))
    asymmetry = np.abs(matrix - matrix.T).max() / np.abs(matrix).max()
    exact = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    found: dict[str, Any] = {"parameters": len(exact), "asymmetry": float(asymmetry), "top": exact[::-1][:k].tolist()}
    found["lowest"] = float(exact[0])
    for name, point in (("float32", params), ("float64", double)):
        with jax.enable_x64(name == "float64"):
            tol = 1e-4 if name == "float32" else 1e-6
            matvec = curvature.hessian(objective, jax.tree.map(jnp.asarray, point))
            top = curvature.top_eigenpairs(matvec, like=point, k=k, tol=tol)
            lowest = curvature.lowest_eigenpairs(matvec, like=point, tol=tol)
        found[name] = {
            "top_relative_error": float(np.max(np.abs(np.asarray(top.values) / exact[::-1][:k] - 1))),
            "lowest_relative_error": float(abs(np.asarray(lowest.values)[0] / exact[0] - 1)),
            "converged": bool(np.all(top.converged) and np.all(lowest.converged)),
            "products": [int(top.num_matvecs), int(lowest.num_matvecs)],
        }
    return found


def resident_kilobytes() -> int:
    """Memory that the process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no such file system: the peak so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize() // 1024


def memory(sizes: tuple[int, ...], num_examples: int, chunk_size: int) -> dict[str, Any]:
    """Memory of the top eigenvalue in chunks of the data: what the compiled program states, and what its run took.

    Taken is the peak of the process over what it held once the program was compiled and the data in place: run alone.
    """
    draws = np.random.default_rng(0)
    rows = draws.integers(0, len(INPUTS), num_examples)
    inputs = INPUTS[rows] + draws.normal(0, 0.1, (num_examples, INPUTS.shape[1])).astype(np.float32)
    params = initial(jax.random.key(0), sizes)

    def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden = batch[0]
        for layer in params[:-1]:
            hidden = jnp.tanh(hidden @ layer["w"] + layer["b"])
        logits = hidden @ params[-1]["w"] + params[-1]["b"]
        chosen = jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    def solve(params: Any, data: Any) -> Any:
        matvec = curvature.in_chunks(
            lambda batch: curvature.hessian(lambda point: loss(point, batch), params),
            data,
            chunk_size=chunk_size,
            reduction="mean",
        )
        pairs = curvature.top_eigenpairs(matvec, like=params)
        return pairs.values[0], pairs.residuals[0], pairs.num_matvecs, pairs.converged[0]

    data = (jnp.asarray(inputs), jnp.asarray(LABELS[rows]))
    program = jax.jit(solve).lower(params, data).compile()
    stated = program.memory_analysis()
    before = resident_kilobytes()
    began = time.perf_counter()
    value, residual, count, converged = jax.block_until_ready(program(params, data))
    took = time.perf_counter() - began
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "examples": num_examples,
        "chunk_size": chunk_size,
        "stated_megabytes": (stated.temp_size_in_bytes + stated.output_size_in_bytes) / 1e6,
        "measured_megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6,
        "seconds": took,
        "value": float(value),
        "residual": float(residual),
        "products": int(count),
        "converged": bool(converged),
    }


PARTS = ("a", "b", "c", "dense", "memory")


def measure(fast: bool, only: Sequence[str], save: Callable[[str, Any], None]) -> None:
    """The parts asked for, saved one by one; tiny sizes where `fast`."""
    sizes = {"a": (64, 128, 64, 10), "b": (64, 512, 512, 10)}
    wide, num_examples, chunk_size = (64, 3130, 3130, 10), 10_000, 500
    num_steps, num_runs, repeats = NUM_STEPS, 256, 5
    if fast:
        sizes = {"a": (64, 8, 10), "b": (64, 9, 10)}
        wide, num_examples, chunk_size = (64, 12, 10), 100, 30
        num_steps, num_runs, repeats = 20, 4, 1
    calls: dict[str, Callable[[], Any]] = {
        "a": lambda: one_run(sizes["a"], num_steps, repeats),
        "b": lambda: one_run(sizes["b"], num_steps, repeats),
        "c": lambda: many_runs(sizes["a"], num_runs, num_steps, num_checked=min(num_runs, 16)),
        "dense": lambda: against_dense(sizes["a"], num_steps),
        "memory": lambda: memory(wide, num_examples, chunk_size),
    }
    for name in only:
        save(name, calls[name]())


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fast", action="store_true", help="tiny sizes; writes nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure; others are kept")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.fast else {}
    machine = f"{os.cpu_count()}-core CPU, {platform.machine()}, jax {jax.__version__}"
    missing = [name for name in OTHERS if importlib.util.find_spec(name) is None]
    report |= {"machine": machine, "not_installed": missing}

    def save(name: str, found: Any) -> None:
        report[name] = found
        print(json.dumps({name: found}, indent=2), flush=True)
        if not options.fast:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(report, indent=2) + "\n")

    measure(options.fast, options.only, save)
    return report


if __name__ == "__main__":
    main()
