"""STN: learns the lower solution as a function of x, and descends through this model.

MacKay, Vicol, Lorraine, Duvenaud, Grosse. "Self-Tuning Networks: bilevel optimization of
hyperparameters using structured best-response functions". ICLR 2019, arXiv:1903.03088.
Differs from the paper: a loss takes one x, so each perturbation uses the whole batch, not one
example of it; perturbations come in pairs ±e, with the same mean and exact on quadratics; the
default model is affine (`responses.HyperDense` is that of the paper); x is projected on
`upper_set` when there is one.
"""

import math
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, ScalarLike

from bilevel import hypergrad, oracles, trees
from bilevel.fields import count, nonnegative, positive
from bilevel.lower import responses
from bilevel.methods.base import AbstractMethod, Constants
from bilevel.oracles import Price
from bilevel.problem import Batch, Draws, Problem, Structure, as_samples
from bilevel.schedules import horizon
from bilevel.typing import Lower, RandomKey, Scalar, Upper
from bilevel.updates import AbstractUpdate, FromOptax, Momentum, as_update


class STNState(NamedTuple):
    k: Scalar  # number of steps done, including the warm-up
    x: Upper
    y: Lower  # ŷ_φ(x), follows y*(x)
    phi: Any  # parameters of the response
    raw_sigma: Upper  # the scale of the perturbations is softplus of it; shaped like x
    key: RandomKey  # of the perturbations
    updates: tuple[Any, Any, Any]  # memories of the x, φ and σ updates


class STN(AbstractMethod):
    """Learns the best response around the current x; first order, without ∇_x g.

    A step trains the model `ŷ_φ` by `train_steps` steps on `E_e g(x + e, ŷ_φ(x + e))`,
    `e ~ N(0, σ²)`, then moves x and σ by `valid_steps` steps on
    `E_e f(x + e, ŷ_φ(x + e)) − τ Σ log(σ √(2πe))`. The perturbed points may leave the `upper_set`.
    Suited to an x of few entries; the lower loss may be discontinuous in x. Exact for an affine
    model if both losses are quadratic in (x, y); otherwise the bias is of order `σ²`. The paper
    gives no rate.

    Attributes:
        y_update: moves φ. For the affine model use a step size of about half of 1/L.
        sigma_update: moves σ.
        response: the model, from `bilevel.responses`.
        sigma0: initial σ, positive, the same for every entry of x.
        entropy: τ; a larger value keeps σ larger.
        warm_up: number of first steps in which only φ moves; they count in k.
        perturbations: number of perturbed x that a gradient averages over; even.
        tune_sigma: whether to move σ; otherwise it stays at sigma0.
    """

    x_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: FromOptax(optax.adam, 3e-3)
    )
    y_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: Momentum(1e-2, 0.9)
    )
    sigma_update: AbstractUpdate = eqx.field(
        converter=as_update, default_factory=lambda: FromOptax(optax.adam, 3e-3)
    )
    response: responses.AbstractResponse = eqx.field(default_factory=responses.Affine)
    sigma0: ScalarLike = positive(0.5)
    entropy: ScalarLike = nonnegative(1e-5)
    train_steps: int = count(2)
    valid_steps: int = count(1, least=0)
    warm_up: int = count(50, least=0)
    perturbations: int = eqx.field(static=True, default=32)
    tune_sigma: bool = eqx.field(static=True, default=True)

    supports: ClassVar = frozenset({Structure.UPPER_SET})
    memory: ClassVar[str] = "2 x, y, response (affine: (1 + dim x) y; dense: 2 y)"
    rate: ClassVar[str] = ""
    paper: ClassVar[str] = "mackay2019self"

    def __check_init__(self) -> None:
        for name, least in (("train_steps", 1), ("valid_steps", 1), ("warm_up", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; a whole number of at least {least} is needed."
                )
        if not isinstance(self.perturbations, int) or self.perturbations not in range(2, 2**31, 2):
            raise ValueError(
                f"perturbations is {self.perturbations!r}; an even number of at least 2 is "
                "needed, as they come in pairs ±e."
            )
        if not isinstance(self.response, responses.AbstractResponse):
            raise TypeError(
                f"response is {self.response!r}; a model of bilevel.responses is needed, such as "
                "Affine()."
            )

    @classmethod
    def theory(cls, constants: Constants, *, steps: int | None = None) -> Self:
        """Not from the paper: steps of order `K^(−1/2)`, scaled for the affine model."""
        x_update = horizon(0.5 / constants.hyper_L, 1 / 2, steps)
        return cls(x_update, horizon(0.5 / constants.L, 1 / 2, steps))

    def draws(self, problem: Problem) -> Draws:
        return Draws(upper=self.valid_steps, lower=self.train_steps)

    def price(self, problem: Problem) -> Price:
        n = self.perturbations
        return Price(upper_grad=n * self.valid_steps, lower_grad=n * self.train_steps)

    def init(self, problem: Problem, x0: Upper, y0: Lower, *, key=None) -> STNState:
        x, y0 = trees.copy(x0), trees.copy(y0)
        key = jax.random.key(0) if key is None else key
        key, response_key = jax.random.split(key)
        phi = self.response.init(x, y0, response_key)
        raw = trees.map(lambda leaf: jnp.full_like(leaf, _inverse_softplus(self.sigma0)), x)
        updates = self.x_update.init(x), self.y_update.init(phi), self._sigma_memory(raw)
        y = self.response(phi, x)
        return STNState(jnp.zeros((), jnp.int32), x, y, phi, raw, key, updates)

    def step(
        self, problem: Problem, state: STNState, batch: Batch
    ) -> tuple[STNState, dict[str, Scalar]]:
        k, x, _, phi, raw, key, (sx, sy, ss) = state
        n, response = self.perturbations, self.response
        lower = as_samples(batch.lower, self.train_steps)
        upper = as_samples(batch.upper, self.valid_steps)
        key, train_key, valid_key = jax.random.split(key, 3)

        def train(carry, now):
            (phi, sy), (i, key) = carry, now
            points = _perturbed(x, raw, _pairs(key, x, n))
            gradient, norm = responses.fit_gradient(problem, response, phi, points, lower[i])
            direction = response.precondition(gradient, x, _sigma(raw))
            return self.y_update.step(direction, sy, phi, k), norm

        def valid(carry, now):
            (x, raw, sx, ss), (i, key) = carry, now
            noise = _pairs(key, x, n)
            points, pull = jax.vjp(lambda x, raw: _perturbed(x, raw, noise), x, raw)
            with oracles.mapped(n):
                h = jax.vmap(
                    lambda x: hypergrad.best_response(problem, response, phi, x, Batch(upper[i]))
                )(points)
            d_x, d_raw = pull(trees.scale(1 / n, h.grad))
            x, sx = self.x_update.step(d_x, sx, x, k)
            if self.tune_sigma:
                d_raw = trees.axpy(-jnp.asarray(self.entropy), jax.grad(_entropy)(raw), d_raw)
                raw, ss = self.sigma_update.step(d_raw, ss, raw, k)
            return (problem.upper_set.project(x), raw, sx, ss), (h.value.mean(), trees.norm(d_x))

        numbered = jnp.arange(self.train_steps), jax.random.split(train_key, self.train_steps)
        (phi, sy), fits = jax.lax.scan(train, (phi, sy), numbered)
        numbered = jnp.arange(self.valid_steps), jax.random.split(valid_key, self.valid_steps)
        held = (x, raw, sx, ss)
        moved, (values, norms) = jax.lax.scan(valid, held, numbered)
        x, raw, sx, ss = trees.where(k < self.warm_up, held, moved)
        info = {
            "upper": values[-1],  # the mean over the perturbed points
            "hypergrad_norm": norms[-1],
            "lower_grad_norm": fits[-1],  # root mean square over the perturbed points
            "sigma": _flat(_sigma(raw)).mean(),
        }
        return STNState(k + 1, x, response(phi, x), phi, raw, key, (sx, sy, ss)), info

    def _sigma_memory(self, raw: Upper) -> Any:
        return self.sigma_update.init(raw) if self.tune_sigma else None


def _sigma(raw: Upper) -> Upper:
    return trees.map(jax.nn.softplus, raw)


def _inverse_softplus(sigma: ScalarLike) -> Scalar:
    sigma = jnp.asarray(sigma, jnp.result_type(float))
    return sigma + jnp.log(-jnp.expm1(-sigma))


def _entropy(raw: Upper) -> Scalar:
    """`Σ log(σ √(2πe))`, of a normal distribution with standard deviations σ."""
    flat = _flat(_sigma(raw))
    return jnp.sum(jnp.log(flat)) + flat.size * math.log(2 * math.pi * math.e) / 2


def _pairs(key: RandomKey, x: Upper, n: int) -> PyTree[Array]:
    """n standard normal trees like x on a leading axis; the second half is minus the first."""
    half = trees.map(lambda leaf: jnp.broadcast_to(leaf, (n // 2, *jnp.shape(leaf))), x)
    noise = trees.random_like(key, half)
    return trees.map(lambda leaf: jnp.concatenate([leaf, -leaf]), noise)


def _perturbed(x: Upper, raw: Upper, noise: PyTree[Array]) -> PyTree[Array]:
    """`x + σ e` for each e on the leading axis."""
    one = lambda e: trees.map(lambda p, s, q: p + s * q, x, _sigma(raw), e)  # noqa: E731
    return jax.vmap(one)(noise)


def _flat(tree: Upper) -> Float[Array, " n"]:
    return ravel_pytree(trees.widen(tree))[0]
