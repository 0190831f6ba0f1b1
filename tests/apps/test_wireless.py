"""Wireless: rates by hand, WMMSE never falls, and min-max training keeps old episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.apps import wireless
from bilevel.apps.wireless import Memory
from bilevel.apps.wireless.channels import history


def test_the_rate_by_its_formula():
    gains, power = wireless.channels("rayleigh", 1, users=3)[0], np.array([0.3, 1.0, 0.6])
    total = 0.0
    for k in range(3):
        others = sum(gains[k, j] ** 2 * power[j] for j in range(3) if j != k)
        total += np.log2(1 + gains[k, k] ** 2 * power[k] / (others + 1))
    np.testing.assert_allclose(wireless.rate(jnp.asarray(gains), jnp.asarray(power)), total)


@pytest.mark.slow(unless=lambda kind: kind == "rayleigh")
@pytest.mark.parametrize("kind", wireless.KINDS)
def test_wmmse_never_lowers_the_rate_and_beats_full_power(kind):
    gains = jnp.asarray(wireless.channels(kind, 50, users=4, seed=1))
    full = wireless.rate(gains, jnp.ones((50, 4)))
    rates = np.stack([full, *jax.vmap(wireless.rate, (None, 0))(gains, history(gains, 60))])
    assert (np.diff(rates, axis=0) >= -1e-9).all()
    assert rates[-1].mean() >= rates[0].mean()
    power = history(gains, 60)[-1]
    assert ((power >= 0) & (power <= 1)).all()


def test_two_users_against_a_grid():
    """WMMSE ends at a stationary point; for two users the best powers lie on the boundary."""
    gains = jnp.asarray(wireless.channels("rayleigh", 30, users=2, seed=2))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 21)]), -1).reshape(-1, 1, 2)
    best = np.max([wireless.rate(gains, jnp.broadcast_to(p, (30, 2))) for p in grid], axis=0)
    found = wireless.rate(gains, wireless.wmmse(gains, 300))
    assert (found <= best + 1e-3).all()
    assert (found / best).mean() > 0.95


def test_losses_are_each_others_negative():
    data = wireless.samples(jnp.asarray(wireless.channels("rayleigh", 8, users=3)))
    x, y = wireless.start(3, (4,), key=jax.random.key(0)), jnp.arange(8) / 28
    batch = jnp.arange(8), data
    losses = wireless.problem()
    ratios = wireless.rate(data.gains, wireless.powers(x, data.gains)) / data.best
    np.testing.assert_allclose(losses.upper(x, y, batch), y @ (1 - ratios))
    np.testing.assert_allclose(losses.lower(x, y, batch), -y @ (1 - ratios))


def test_a_wrong_use_is_refused():
    with pytest.raises(ValueError, match="it is one of rayleigh, rice, near, far"):
        wireless.channels("indoor", 3)
    data = wireless.samples(jnp.asarray(wireless.channels("rayleigh", 8, users=3)))
    with pytest.raises(ValueError, match="a memory that is not larger"):
        wireless.learn([data], size=9)


@pytest.mark.slow
def test_old_episodes_are_kept():
    """On the old episode min-max is above training on (0.931 to 0.921); the new one is learned."""
    kinds = ("rayleigh", "near")
    train, test = (
        [
            wireless.samples(jnp.asarray(wireless.channels(kind, n, seed=seed + i)))
            for i, kind in enumerate(kinds)
        ]
        for n, seed in ((400, 0), (300, 50))
    )
    after = {
        memory: [
            wireless.served(wireless.learn(train, memory, size=150, steps=1000)[-1], one)
            for one in test
        ]
        for memory in (Memory.LARGEST, Memory.NOTHING)
    }
    old, new = zip(*after.values(), strict=True)
    assert old[0] > old[1]
    assert new[0] > 0.93
