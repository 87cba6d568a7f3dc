"""Measures the same CQL and BC updates in plain JAX for ``benchmarks.throughput``, under a Python that has jax:

    python -m benchmarks.peer_jax '{"algorithm": "cql", "data": "FILE.npz", "members": 1, "batch": 64}'

One ``lax.scan`` over updates, ``vmap`` over members where there are several. The bootstrap values of all distinct
observations are computed once per target copy.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import answer_with, rate

GAMMA, LEARNING_RATE, ALPHA, COPY_EVERY, SCAN = 0.99, 1e-4, 6.0, 1000, 250


def network(parameters, x):
    *hidden, (weight, bias) = parameters
    for inner, offset in hidden:
        x = jnp.maximum(x @ inner + offset, 0)
    return x @ weight + bias


def initial(key, widths):
    layers = []
    for inputs, outputs in zip(widths, widths[1:]):
        key, first, second = jax.random.split(key, 3)
        span = inputs**-0.5
        layers.append((jax.random.uniform(first, (inputs, outputs), minval=-span, maxval=span),
                       jax.random.uniform(second, (outputs,), minval=-span, maxval=span)))
    return layers


def objective(parameters, x, actions, targets, cql: bool):
    outputs = network(parameters, x)
    taken = outputs[jnp.arange(len(actions)), actions]
    gap = jnp.mean(jax.nn.logsumexp(outputs, axis=-1) - taken)
    return jnp.mean((taken - targets) ** 2) + ALPHA * gap if cql else gap


def main(settings: dict) -> None:
    with np.load(settings["data"]) as data:
        s, actions, rewards, s2, ended = (data[name] for name in (
            "observations", "actions", "rewards", "next_observations", "terminations"))
    table, rows = np.unique(np.concatenate([s, s2]), axis=0, return_inverse=True)
    count, members, cql = len(s), settings["members"], settings["algorithm"] == "cql"
    row, next_row = jnp.asarray(rows[:count]), jnp.asarray(rows[count:])
    going_on = 1.0 - ended.astype(np.float32)
    table, actions, rewards, going_on = (jnp.asarray(x) for x in (table, actions, rewards, going_on))

    def over_members(function):
        return function if members == 1 else jax.vmap(function, in_axes=(0, None))

    def update(member, t):
        parameters, first, second, values, key = member
        drawn = jax.random.randint(jax.random.fold_in(key, t), (settings["batch"],), 0, count)
        targets = rewards[drawn] + GAMMA * going_on[drawn] * values[next_row[drawn]]
        gradient = jax.grad(objective)(parameters, table[row[drawn]], actions[drawn], targets, cql)
        each = jax.tree_util.tree_map
        first = each(lambda m, g: m + 0.1 * (g - m), first, gradient)
        second = each(lambda v, g: v + 0.001 * (g * g - v), second, gradient)
        rate_1, rate_2 = 1 - 0.9 ** (t + 1.0), 1 - 0.999 ** (t + 1.0)
        parameters = each(lambda p, m, v: p - LEARNING_RATE / rate_1 * m / (jnp.sqrt(v / rate_2) + 1e-8),
                          parameters, first, second)
        return parameters, first, second, values, key

    def copy_target(member, t):
        return *member[:3], jnp.max(network(member[0], table), axis=-1), member[4]

    def step(member, t):
        if cql:  # the condition is outside of vmap, so that only one branch is computed
            member = jax.lax.cond(t % COPY_EVERY == 0, over_members(copy_target), lambda member, t: member, member, t)
        return over_members(update)(member, t), None

    @jax.jit
    def scan(member, start):
        return jax.lax.scan(step, member, start + jnp.arange(SCAN))[0]

    def fresh(key):
        parameters = initial(key, (table.shape[1], 256, 256, int(actions.max()) + 1))
        zeros = jax.tree_util.tree_map(jnp.zeros_like, parameters)
        return parameters, zeros, zeros, jnp.zeros(len(table)), key

    keys = jax.random.split(jax.random.PRNGKey(0), members)
    state, start = fresh(keys[0]) if members == 1 else jax.vmap(fresh)(keys), 0

    def updates() -> int:
        nonlocal state, start
        state, start = jax.block_until_ready(scan(state, start)), start + SCAN
        return members * SCAN

    updates()
    answer_with(lambda seconds: {"rate": rate(updates, seconds)})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
