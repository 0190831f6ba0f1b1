"""Descent on hyper-objectives with kinks: an online learner chooses the next move of x.

The shared loop of the first-order and zeroth-order methods of Kornowski et al., which differ in
the oracle for the hypergradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import trees
from bilevel.hypergrad import AbstractOracle
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem
from bilevel.typing import Lower, PyTree, RandomKey, Scalar, ScalarLike, Upper
from bilevel.updates import AbstractUpdate


class OnlineState(NamedTuple):
    k: Scalar  # number of steps done
    x: Upper
    y: Lower  # where the next lower solve starts
    move: Upper  # Δ, the next move of x
    key: RandomKey
    block: tuple[Upper, Upper]  # running means of the points and hypergradients of this block
    mean: Upper  # mean point of the last complete block; the theory's output is a random one
    certificate: Scalar  # norm of the mean hypergradient of the last complete block
    update: Any  # memory of the x update


class OnlineToNonconvex(NamedTuple):
    """The shared loop with its components chosen.

    `x ← x + Δ`, `z = x_old + s Δ` with s uniform in [0, 1], `Δ ← clip(Δ − η oracle(z), radius)`.
    The points z of a block of `period` steps lie within `period · radius` of their mean, so the
    norm of the mean of their hypergradients bounds the (period · radius)-Goldstein subdifferential
    there, up to the oracle's error.
    """

    oracle: AbstractOracle
    x_update: AbstractUpdate
    radius: ScalarLike
    period: int

    def draws(self, problem: Problem) -> Draws:
        """One batch of each level."""
        return Draws(upper=1, lower=1)

    def price(self, problem: Problem) -> Price:
        """The oracle calls of one hypergradient, without those of its lower solves."""
        return self.oracle.price

    def init(self, problem: Problem, x0: Upper, y0: Lower, key: RandomKey | None) -> OnlineState:
        """The state before the first step."""
        x, y = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else jnp.copy(key)
        none = trees.zeros_like(x)
        return OnlineState(
            k=jnp.zeros((), jnp.int32),
            x=x,
            y=y,
            move=none,
            key=key,
            block=(trees.copy(none), trees.copy(none)),
            mean=trees.copy(x),
            certificate=jnp.full((), jnp.inf, trees.widest(x)),
            update=self.x_update.init(none),
        )

    def step(
        self, problem: Problem, state: OnlineState, batch: Batch
    ) -> tuple[OnlineState, dict[str, Scalar]]:
        """One move of x, and the choice of the next."""
        k, x, y, move, key, block, mean, certificate, memory = state
        key, of_place, of_oracle = jax.random.split(key, 3)
        z = trees.axpy(jax.random.uniform(of_place), move, x)
        x = trees.add(x, move)
        h = self.oracle(problem, z, y, batch, of_oracle)
        wanted, memory = self.x_update.step(h.grad, memory, move, k)
        move = clip(wanted, self.radius)

        share = 1 / (k % self.period + 1).astype(certificate.dtype)
        block = trees.lerp(block[0], z, share), trees.lerp(block[1], h.grad, share)
        whole = (k + 1) % self.period == 0
        mean = trees.where(whole, block[0], mean)
        norm = trees.norm(block[1]).astype(certificate.dtype)
        certificate = jnp.where(whole, norm, certificate)
        info = {
            "upper": h.value,
            "hypergrad_norm": trees.norm(h.grad),
            "lower_grad_norm": h.lower_grad_norm,
            "move": trees.norm(move),
            "certificate": certificate,
        }
        new = OnlineState(k + 1, x, h.y, move, key, block, mean, certificate, memory)
        return new, info


def clip(tree: PyTree, radius: ScalarLike) -> PyTree:
    """The nearest point of the ball `‖·‖ ≤ radius`."""
    size = trees.norm(tree)
    radius = jnp.asarray(radius, size.dtype)
    return trees.scale(
        jnp.where(size > radius, radius / jnp.where(size > radius, size, 1), 1), tree
    )
