"""Which examples a step sees: the full data, or batches drawn as users of training loops draw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lossland.sweeps.sweep import LastBatch, Sampling


@dataclass(frozen=True)
class Batches:
    """How the examples are cut into batches.

    Equation: an epoch has ceil(n / b) batches (floor where the last one is dropped); step t trains on batch t modulo
    that number. "shuffled" draws a new order every epoch, "in_order" keeps the data's, "with_replacement" draws b
    independent examples at every step.

    Args:
        num_examples: n.
        batch_size: b, or None for the full data at every step.
        sampling: see above.
        last_batch: "keep" trains on the ragged rest as well, as Keras does; "drop" leaves it out.
    """

    num_examples: int
    batch_size: int | None = None
    sampling: Sampling = "shuffled"
    last_batch: LastBatch = "keep"

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        if self.batch_size is None:
            return 1
        if self.sampling == "with_replacement":
            return max(1, self.num_examples // self.batch_size)
        return self.num_examples // self.batch_size + (self.rest > 0)

    @property
    def rest(self) -> int:
        """Examples in the last batch of an epoch, 0 if it is as large as the others."""
        if self.batch_size is None or self.last_batch == "drop" or self.sampling == "with_replacement":
            return 0
        return self.num_examples % self.batch_size

    @property
    def random(self) -> bool:
        """Whether a key is needed at every step."""
        return self.batch_size is not None and self.sampling == "with_replacement"

    def position(self, step: Any) -> Any:
        """Place of a step's batch in its epoch."""
        return step % self.per_epoch

    def size_at(self, step: Any) -> jax.Array:
        """Examples in the batch of a step."""
        full = self.num_examples if self.batch_size is None else self.batch_size
        return jnp.where(self.position(step) == self.per_epoch - 1, self.rest, full) if self.rest else jnp.asarray(full)

    def blank_order(self) -> Any:
        """What stands for an order before the first epoch; () where none has to be kept."""
        shuffles = self.batch_size is not None and self.sampling == "shuffled"
        return jnp.zeros(self.num_examples, jnp.int32) if shuffles else ()

    def order(self, step: jax.Array, order: Any, key: Callable[[], jax.Array]) -> Any:
        """Order of the examples in the epoch of a step: a new permutation where an epoch begins."""
        if self.batch_size is None or self.sampling != "shuffled":
            return order

        def new() -> jax.Array:
            epoch_key = jax.random.fold_in(key(), step // self.per_epoch)
            return jax.random.permutation(epoch_key, self.num_examples).astype(jnp.int32)

        return lax.cond(self.position(step) == 0, new, lambda: order)

    def with_batch(
        self, function: Callable[[Any], Any], data: Any, order: Any, step: jax.Array, key: jax.Array | None
    ) -> Any:
        """Call a function on the batch of a step. The ragged last batch has its own shape, hence its own branch."""
        if self.batch_size is None:
            return function(data)
        size = self.batch_size
        if key is not None:
            chosen = jax.random.randint(jax.random.fold_in(key, step), (size,), 0, self.num_examples, jnp.int32)
            return function(jax.tree.map(lambda leaf: leaf[chosen], data))

        def cut(start: Any, length: int) -> Any:
            if self.sampling == "in_order":
                return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length), data)
            chosen = lax.dynamic_slice_in_dim(order, start, length)
            return jax.tree.map(lambda leaf: leaf[chosen], data)

        def whole() -> Any:
            return function(cut(self.position(step) * size, size))

        last = self.per_epoch - 1

        def ragged() -> Any:
            return function(cut(last * size, self.rest))

        if not self.rest:
            return whole()
        return lax.cond(self.position(step) == last, ragged, whole) if last else ragged()
