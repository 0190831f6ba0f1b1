"""The two levels: images and targets above, a pool of students trained on them below."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from bilevel import trees
from bilevel.apps.distillation.students import Student, head, with_one
from bilevel.data import Data
from bilevel.problem import Problem
from bilevel.typing import RandomKey


class Learned(NamedTuple):
    """The upper variable: a small data set."""

    images: Float[Array, "m ..."]
    targets: Float[Array, "m k"]


class Pool(NamedTuple):
    """The lower variable: students, each with a head, on a leading axis."""

    weights: PyTree
    heads: Float[Array, "students d1 k"]
    ages: Float[Array, " students"]  # steps since each was drawn


class Draw(NamedTuple):
    """What a step draws: a student, a seed, and real rows at the upper level."""

    student: Int[Array, ""]
    seed: Int[Array, ""]
    images: Any = None
    targets: Any = None


class Distillation(eqx.Module):
    """Losses, lower step and hypergradient, for one family of students."""

    student: Student = eqx.field(static=True)
    ridge: float = eqx.field(static=True)
    step: float = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    reset: int = eqx.field(static=True)

    def problem(self) -> Problem:
        return Problem(
            self.upper, self.lower, hypergradient=self.hypergradient, lower_step=self.train_one
        )

    def upper(self, x: Learned, y: Pool, draw: Draw):
        """Real targets, predicted by the closed-form head on the features of the drawn student."""
        features = Partial(self.student.features, _row(y.weights, draw.student))
        real = with_one(jax.lax.stop_gradient(features(draw.images)))
        errors = draw.targets - real @ head(features(x.images), x.targets, self.ridge)
        return jnp.sum(errors**2) / (2 * len(errors))

    def hypergradient(self, x: Learned, y: Pool, batch):
        """Through the closed form: exact, and without noise of the lower level."""
        return jax.grad(self.upper)(x, y, batch.upper)

    def fit(self, x: Learned, weights: PyTree, head: Array):
        """The loss that a student is trained on: `½ mean ‖targets − prediction‖²` and its decay."""
        errors = x.targets - with_one(self.student.features(weights, x.images)) @ head
        decay = jnp.asarray(self.decay / 2, head.dtype) * trees.dot(weights, weights)
        return jnp.sum(errors**2) / (2 * len(errors)) + decay

    def lower(self, x: Learned, y: Pool, draw: Draw):
        return jax.vmap(lambda weights, head: self.fit(x, weights, head))(*y[:2]).mean()

    def train_one(self, x: Learned, y: Pool, draw: Draw) -> Pool:
        """A gradient step of the drawn student; one that is too old is drawn anew."""
        old = _row(y, draw.student)
        grads = jax.grad(self.fit, argnums=(1, 2))(x, old.weights, old.heads)
        weights, heads = trees.axpy(-self.step, grads, (old.weights, old.heads))
        moved = Pool(weights, heads, old.ages + 1)
        fresh = self.fresh(jax.random.key(draw.seed), old)
        new = trees.where(moved.ages >= self.reset, fresh, moved)
        return jax.tree.map(lambda all_, one: all_.at[draw.student].set(one), y, new)

    def fresh(self, key: RandomKey, like: Pool) -> Pool:
        """A student of random weights, with a head of zeros."""
        weights = trees.cast_like(self.student.init(key), like.weights)
        return Pool(weights, jnp.zeros_like(like.heads), jnp.zeros_like(like.ages))

    def pool(self, key: RandomKey, x: Learned, students: int) -> Pool:
        """Random students of random ages below `reset`, not trained."""
        own, ages = jax.random.split(key)
        weights = jax.vmap(self.student.init)(jax.random.split(own, students))
        d = jax.eval_shape(self.student.features, _row(weights, 0), x.images).shape[1]
        heads = jnp.zeros((students, d + 1, x.targets.shape[1]), x.targets.dtype)
        return Pool(weights, heads, jax.random.uniform(ages, (students,)) * self.reset)


def data(images: Array, targets: Array, students: int, batch: int) -> Data:
    """Draws of a student at both levels, and of rows at the upper."""
    return Data(
        upper=Partial(_draw_rows, images, targets, students=students, batch=batch),
        lower=Partial(_draw, students=students),
    )


def _draw(key, students):
    student, seed = jax.random.split(key)
    number = jax.random.randint(student, (), 0, students)
    return Draw(number, jax.random.randint(seed, (), 0, 2**31 - 1))


def _draw_rows(images, targets, key, students, batch):
    own, rows = jax.random.split(key)
    rows = jax.random.randint(rows, (batch,), 0, len(images))
    return _draw(own, students)._replace(images=images[rows], targets=targets[rows])


def _row(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)
