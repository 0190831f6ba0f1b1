"""LSTM, GRU and plain recurrent layers, as scans over time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.interop.torch.aten.layers import dropout


def lstm_cell(state, given, w, b):
    """Gates in PyTorch's order: input, forget, cell, output."""
    h, c = state
    i, f, g, o = jnp.split(given + h @ w.T + b, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_cell(state, given, w, b):
    """Gates in PyTorch's order: reset, update, new."""
    (h,) = state
    (r, z, n), (hr, hz, hn) = jnp.split(given, 3, -1), jnp.split(h @ w.T + b, 3, -1)
    r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
    return ((1 - z) * jnp.tanh(n + r * hn) + z * h,)


def plain_cell(move, state, given, w, b):
    return (move(given + state[0] @ w.T + b),)


def layer(cell, x, start, weights, reverse):
    """One direction of one layer: the outputs in the order of time, and the last state."""
    w_in, w, *biases = weights
    b_in, b = biases or (0, 0)

    def step(state, given):
        state = cell(state, given, w, b)
        return state, state[0]

    end, out = jax.lax.scan(step, start, x @ w_in.T + b_in, reverse=reverse)
    return out, end


def recurrent(
    cell, x, starts, weights, biased, layers, p, train, both, batch_first, *, key: Any = None
):
    """All layers: the outputs of the last, and the last state of each layer and direction."""
    x = x.swapaxes(0, 1) if batch_first else x
    dtype = jnp.result_type(x, *weights)
    starts = tuple(jnp.asarray(start, dtype) for start in starts)
    size, ways = 4 if biased else 2, 2 if both else 1
    if len(weights) != layers * ways * size:
        raise ValueError("an LSTM with proj_size has no form in JAX here. Project its outputs.")
    ends = []
    for i in range(layers):
        outs = []
        for way in range(ways):
            at = i * ways + way
            own = weights[at * size : (at + 1) * size]
            out, end = layer(cell, x, tuple(s[at] for s in starts), own, reverse=way == 1)
            outs.append(out)
            ends.append(end)
        x = jnp.concatenate(outs, -1)
        if train and p > 0 and i < layers - 1:
            x, _ = dropout(x, p, True, key=jax.random.fold_in(key, i))
    x = x.swapaxes(0, 1) if batch_first else x
    return x, *(jnp.stack(states) for states in zip(*ends, strict=True))


def of_one_state(cell):
    return lambda x, start, *rest, key=None: recurrent(cell, x, (start,), *rest, key=key)


OPERATIONS = {
    "lstm.input": partial(recurrent, lstm_cell),
    "gru.input": of_one_state(gru_cell),
    "rnn_tanh.input": of_one_state(partial(plain_cell, jnp.tanh)),
    "rnn_relu.input": of_one_state(partial(plain_cell, jax.nn.relu)),
}
RANDOM = frozenset(OPERATIONS)
