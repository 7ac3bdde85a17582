"""Products with second-derivative matrices, as functions from a pytree of parameters to a pytree like it.

Nothing here forms a matrix but `dense`. A product is linearised once and holds no Python state, so it works under
`jit`, `vmap`, `lax.map` and inside loops. Matrix products run in full precision unless the user has set
`jax_default_matmul_precision`: an accelerator's default would measure the curvature of another function.

Sums and means over data are built in two steps: a `build(batch)` that returns the product on one batch, and
`in_chunks`.

Source: Pearlmutter 1994 (Hessian products); Schraudolph 2002, Martens 2020 (Gauss-Newton and Fisher).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from lossland.arguments import ARRAY, FUNCTION, TREE, calling, count, expects

Params: TypeAlias = Any
Matvec: TypeAlias = Callable[[Params], Params]

MAX_DENSE_PARAMS = 30_000
NO_FORWARD = "custom_lin"
"""Primitive that stands for the tangent of a function with a `custom_vjp`."""


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Trace matrix products in full precision, unless the user has chosen one."""
    if jax.config.jax_default_matmul_precision is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


def scalar(objective: Callable[[Params], Array], name: str = "objective") -> Callable[[Params], Array]:
    """Return the objective with a check, whenever it is traced, that it gives one real number.

    Raises ValueError, from the returned function, where it gives anything else or cannot be called with the parameters.
    """
    wanted = "a function that returns one real number, shape ()"

    def checked(params: Params) -> Array:
        with calling(name, wanted):
            value = jnp.asarray(objective(params))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{name}: expected {wanted}, got shape {value.shape} of {value.dtype}; "
                "take the mean over examples, or their sum"
            )
        return value

    return checked


@expects(objective=FUNCTION, params=TREE)
def hessian(objective: Callable[[Params], Array], params: Params) -> Matvec:
    """Build the product v -> H v with the Hessian H = d^2 objective / d params^2 at `params`, linearised once.

    Forward over reverse: a product costs 1 to 2 gradients; the linearisation costs one and keeps its intermediates in
    memory (for more data than fits, `in_chunks`). objective: params -> `Float[Array, ""]`, the full-batch training
    loss. Units: [objective] / [params]^2: 2 / learning_rate is the threshold of gradient descent on this objective.

    An objective without a forward mode (a `custom_vjp` whose forward rule calls the function itself) is differentiated
    in reverse twice, v -> H^T v: the same product, unless its gradient is not that of any function.

    Raises ValueError where the objective is not a real scalar.
    """
    gradient = jax.grad(scalar(objective))
    with full_precision():
        push = jax.linearize(gradient, params)[1]
        # What has no forward mode raises only when it is run.
        if NO_FORWARD not in primitives(jax.make_jaxpr(push)(params).jaxpr):
            return push
        pull = jax.vjp(gradient, params)[1]
    return lambda vector: pull(vector)[0]


def primitives(program: Any) -> set[str]:
    """Names of the primitives of a traced program, those of its inner programs included."""
    found = set()
    for equation in program.eqns:
        found.add(equation.primitive.name)
        for value in equation.params.values():
            for part in value if isinstance(value, (list, tuple)) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    found |= primitives(inner)
    return found


@expects(predict=FUNCTION, loss=FUNCTION, params=TREE)
def gauss_newton(predict: Callable[[Params], Any], loss: Callable[[Any], Array], params: Params) -> Matvec:
    """Build the product with the generalised Gauss-Newton matrix G = J^T (d^2 loss / d outputs^2) J, linearised once.

    J = d predict / d params. The objective is loss(predict(params)); H - G is the part due to the curvature of the
    model. predict: params -> pytree of outputs; loss: outputs -> `Float[Array, ""]`, targets and normalisation inside.
    """
    with full_precision():
        with calling("predict", "a function of the parameters that returns the model's outputs"):
            outputs, push = jax.linearize(predict, params)
        pull = jax.linear_transpose(push, params)
        curve = jax.linearize(jax.grad(scalar(loss, "loss")), outputs)[1]
    return lambda vector: pull(curve(push(vector)))[0]


@expects(predict=FUNCTION, output_fisher=FUNCTION, params=TREE)
def fisher(
    predict: Callable[[Params], Array], output_fisher: Callable[[Array, Array], Array], params: Params
) -> Matvec:
    """Build the product with the Fisher matrix F = 1/n sum_i J_i^T F_out(f_i) J_i, linearised once.

    The expectation over targets is the model's own, so no labels enter: this is not the empirical Fisher (the second
    moment of the gradients of the given labels, `empirical_fisher`). predict: params -> `Float[Array, "n ..."]`, the
    natural parameters (logits, means); output_fisher: `categorical`, `bernoulli` or `gaussian`, mean over n inside.

    Source: Martens 2020, sections 5 and 9: equal to Gauss-Newton for these three likelihoods.
    """
    with full_precision():
        with calling("predict", "a function of the parameters that returns the model's outputs"):
            outputs, push = jax.linearize(predict, params)
        pull = jax.linear_transpose(push, params)
    return lambda vector: pull(output_fisher(outputs, push(vector)))[0]


@expects(logits=ARRAY, tangent=ARRAY)
def categorical(logits: Array, tangent: Array) -> Array:
    """Apply (diag(p) - p p^T) / n, p = softmax(logits): `Float[Array, "n classes"]`, softmax cross-entropy."""
    probability = jax.nn.softmax(logits, axis=-1)
    centred = tangent - jnp.sum(probability * tangent, axis=-1, keepdims=True)
    return probability * centred / logits.shape[0]


@expects(logits=ARRAY, tangent=ARRAY)
def bernoulli(logits: Array, tangent: Array) -> Array:
    """Apply p (1 - p) / n, p = sigmoid(logits): `Float[Array, "n ..."]`, sigmoid cross-entropy summed over outputs."""
    return jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits) * tangent / logits.shape[0]


@expects(means=ARRAY, tangent=ARRAY)
def gaussian(means: Array, tangent: Array) -> Array:
    """Apply 1 / n: `Float[Array, "n ..."]`, unit variance, i.e. half the squared error summed over outputs."""
    return tangent / means.shape[0]


@expects(example_losses=FUNCTION, params=TREE)
def empirical_fisher(example_losses: Callable[[Params], Array], params: Params) -> Matvec:
    """Build the product with the second moment of the examples' gradients, 1/n sum_i g_i g_i^T, linearised once.

    example_losses: params -> `Float[Array, "n"]`. It is uncentred, and no approximation of the Hessian away from a
    minimum that fits the labels.

    Raises ValueError where example_losses does not return a vector.
    """
    with full_precision():
        with calling("example_losses", "a function of the parameters that returns one loss for each example"):
            losses, push = jax.linearize(example_losses, params)
        if losses.ndim != 1:
            raise ValueError(
                f"example_losses: expected one loss for each example, shape (n,), got {losses.shape}; "
                "return the losses before their mean is taken"
            )
        pull = jax.linear_transpose(push, params)
    return lambda vector: pull(push(vector) / losses.shape[0])[0]


@expects(matvec=FUNCTION, preconditioner=TREE)
def preconditioned(matvec: Matvec, preconditioner: Params) -> Matvec:
    """Build the product with P^-1/2 H P^-1/2, which is symmetric and has the eigenvalues of P^-1 H.

    preconditioner: the diagonal of P, positive, a pytree like the parameters. For Adam, the one of the *next* update:
    sqrt(second moment / (1 - b2^t)) + eps with the second moment already advanced by this step's gradient.
    Units: those of H over those of P; 2 (1 + b1) / ((1 - b1) learning_rate) is Adam's threshold.

    Source: Cohen et al. 2022, section 2.
    """
    scale = jax.tree.map(lax.rsqrt, preconditioner)
    return lambda vector: jax.tree.map(jnp.multiply, scale, matvec(jax.tree.map(jnp.multiply, scale, vector)))


@expects(matvec=FUNCTION)
def negated(matvec: Matvec) -> Matvec:
    """Build the product with -H."""
    return lambda vector: jax.tree.map(jnp.negative, matvec(vector))


@expects(build=FUNCTION, data=TREE, chunk_size=count())
def in_chunks(
    build: Callable[[Any], Matvec], data: Any, *, chunk_size: int, reduction: Literal["mean", "sum"]
) -> Matvec:
    """Build the product over all of `data` from products over chunks of it, exact also for a ragged last chunk.

    H = sum_c w_c H_c with w_c = n_c / n for "mean", 1 for "sum". `reduction` says what the loss inside `build` does
    with the examples of a batch, and has no default: the wrong one is off by the number of chunks. Memory: the
    intermediates of one chunk; time: each product repeats the linearisation, so 2 to 3 gradients instead of 1 to 2.

    build: batch -> product, e.g. `lambda batch: hessian(lambda p: loss(p, batch), params)`.
    data: pytree of arrays with a common first axis, the examples. A subset is a slice of it.

    Raises ValueError where data have no examples or not the same number, chunk_size < 1, or the reduction is another.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"reduction: expected 'mean' or 'sum', what the loss does with the examples of a batch, got {reduction!r}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least one example, got {chunk_size}")
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"data: expected arrays with one common, non-empty first axis (the examples), "
            f"got first axes {sorted(sizes)}; close over anything that is not an example in `build`"
        )
    num_examples = next(iter(sizes))[0]
    chunk_size = min(chunk_size, num_examples)
    num_chunks, num_left = divmod(num_examples, chunk_size)
    weight = chunk_size / num_examples if reduction == "mean" else 1.0
    weight_left = num_left / num_examples if reduction == "mean" else 1.0

    def product(vector: Params, start: Array | int, size: int, weight: float) -> Params:
        batch = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), data)
        return jax.tree.map(lambda leaf: weight * leaf, build(batch)(vector))

    def matvec(vector: Params) -> Params:
        def add(total: Params, index: Array) -> tuple[Params, None]:
            return jax.tree.map(jnp.add, total, product(vector, index * chunk_size, chunk_size, weight)), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, vector), jnp.arange(num_chunks))
        if num_left:
            last = product(vector, num_chunks * chunk_size, num_left, weight_left)
            total = jax.tree.map(jnp.add, total, last)
        return total

    return matvec


@expects(params=TREE)
def parameter_names(params: Params) -> list[str]:
    """List the names of the arrays in `params`, their path joined by slashes: "Dense_0/kernel"."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


@expects(function=FUNCTION, params=TREE, selected=FUNCTION)
def restrict(
    function: Callable[..., Any], params: Params, selected: Callable[[str], bool]
) -> tuple[Callable[..., Any], dict[str, Array]]:
    """Restrict a function of the parameters to some of them, the rest held: (function of the part, the part).

    The Hessian of the result is the diagonal block of H, e.g. of one layer:
    `hessian(*restrict(objective, params, lambda name: name.startswith("Dense_0/")))`.

    selected: name as in `parameter_names` -> whether it belongs to the part. The part is a dict from name to array.
    Arguments after the parameters pass through.

    Raises ValueError, listing the names, where nothing is selected.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    part = {_name(path): leaf for path, leaf in leaves if selected(_name(path))}
    if not part:
        raise ValueError(
            f"selected: expected it to accept at least one of {', '.join(parameter_names(params))}, got none; "
            "names are paths joined by slashes"
        )

    def restricted(part: dict[str, Array], *args: Any) -> Any:
        merged = [part.get(_name(path), leaf) for path, leaf in leaves]
        return function(jax.tree.unflatten(structure, merged), *args)

    return restricted, part


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


@expects(matvec=FUNCTION, like=TREE)
def flatten(matvec: Matvec, like: Params) -> tuple[Callable[[Array], Array], Callable[[Array], Params]]:
    """Turn a product on pytrees into one on vectors `Float[Array, "p"]`, and return how to turn vectors back.

    Raises ValueError where `like` has no parameters, or some that are not real floats of one dtype.
    """
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(like)}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise ValueError(
            f"like: expected parameters of one real float dtype, got {sorted(map(str, dtypes)) or 'none at all'}; "
            "cast them, or leave integers out with `restrict`"
        )
    _, unravel = ravel_pytree(like)

    def matvec_flat(vector: Array) -> Array:
        with calling("matvec", "a product that maps a pytree like `like` to one like it"):
            product = ravel_pytree(matvec(unravel(vector)))[0]
        if product.shape != vector.shape:
            raise ValueError(
                f"matvec: expected a product that maps a pytree like `like`, {vector.size} numbers, to one like it, "
                f"got {product.size} numbers"
            )
        return product

    return matvec_flat, unravel


@expects(matvec=FUNCTION, like=TREE, batch_size=count())
def dense(matvec: Matvec, like: Params, *, batch_size: int = 64) -> Array:
    """Form the matrix of a product, for cross-checks: `Float[Array, "p p"]`, in the order of `ravel_pytree`.

    Its columns are products with the unit vectors, `batch_size` at a time; nothing is symmetrised, so that a defect
    shows.

    Raises ValueError above 30,000 parameters.
    """
    matvec_flat, _ = flatten(matvec, like)
    flat, _ = ravel_pytree(like)
    if flat.size > MAX_DENSE_PARAMS:
        raise ValueError(
            f"like: expected at most {MAX_DENSE_PARAMS} parameters for a dense matrix, got {flat.size}; "
            "use top_eigenpairs, trace or spectral_density, or `restrict` it to a layer"
        )
    index = jnp.arange(flat.size)
    columns = lax.map(lambda column: matvec_flat((index == column).astype(flat.dtype)), index, batch_size=batch_size)
    return columns.T


@expects(objective=FUNCTION, params=TREE, batch_size=count())
def dense_hessian(objective: Callable[[Params], Array], params: Params, *, batch_size: int = 64) -> Array:
    """Form the Hessian of the objective, `Float[Array, "p p"]` in the order of `ravel_pytree`: see `dense`."""
    return dense(hessian(objective, params), params, batch_size=batch_size)
