"""What is kept and what is recomputed follows from the machine: its balance, its cache, its dtypes."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.remat import policies
from funcbp.remat.cut import cheapest_cut
from funcbp.remat.graph import bytes_of
from funcbp.remat.machine import MACHINES, Machine, machine_here, machine_of
from funcbp.remat.policies import MinCut
from funcbp.remat.price import price

from .programs import made_again

MACHINE = Machine(wide=1.0, single=2.0, half=4.0, bandwidth=0.1, cache=0, launch=0.0)  # balances 10, 20, 40
struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)


def eqn_of(f, *args):
    """The last equation of a function, on these types."""
    return jax.make_jaxpr(f)(*args).eqns[-1]


turn = lambda x, _: (x @ jnp.sin(x), None)
PRICES = {  # in bytes: half of what could be moved in the time
    "product": (jnp.dot, (struct(8, 1000), struct(1000, 8)), {}, (4 * 16064) / 2),  # moved more than operated
    "product, in cache": (jnp.dot, (struct(8, 1000), struct(1000, 8)), {"cache": 2**20}, 128000 / 20 / 2),
    "product, launched": (jnp.dot, (struct(8, 8), struct(8, 8)), {"cache": 2**20, "launch": 1e-6}, 1e5 / 2),
    "half": (jnp.dot, [struct(64, 64, dtype=jnp.bfloat16)] * 2, {"cache": 2**20}, 2 * 64**3 / 40 / 2),
    "cheap": (jnp.exp, (struct(50),), {}, 0),
    "reduction, fused": (lambda x: lax.reduce_max(x, (0,)), (struct(50),), {}, 0),
    "reduction, alone": (lambda x: lax.reduce_max(x, (0,)), (struct(50),), {"fuses": False}, (200 + 4) / 2),
    "sort": (lambda x: lax.sort(x), (struct(50),), {}, 16 * 400 / 2),
    "branches": (lambda p, x: lax.cond(p, lambda x: x @ x, jnp.sin, x), (struct(dtype=bool), struct(8, 8)), {}, 384),
    "loop": (
        lambda x: lax.scan(lambda x, _: (x @ jnp.sin(x), None), x, None, 3)[0],
        (struct(8, 8),),
        {},
        3 * (768 + 256) / 2,
    ),
    "draw": (lambda k: jax.random.bits(k, (4,)), (jax.random.key(0),), {}, None),
    "region": (jax.checkpoint(jnp.dot), [struct(8, 8)] * 2, {}, 768 / 2),
    "region with a policy": (
        jax.checkpoint(jnp.dot, policy=jax.checkpoint_policies.dots_saveable),
        [struct(8, 8)] * 2,
        {},
        None,
    ),
    "endless": (lambda x: lax.while_loop(lambda x: x < 9, lambda x: x * 2, x), (struct(),), {}, None),
}


@pytest.mark.parametrize("name", PRICES)
def test_the_price_of_an_equation(name):
    f, args, changes, want = PRICES[name]
    machine = dataclasses.replace(MACHINE, **changes)
    assert price(eqn_of(f, *args), machine) == (want if want is None else pytest.approx(want))


@pytest.mark.parametrize("balance", [0.5, 1.0, 2.0, 8.0])
def test_the_cut_takes_the_least_time(program, balance):
    """Against every subset of what could be kept: bytes kept, and the prices of what is made again."""
    machine = dataclasses.replace(MACHINE, cache=2**20).with_balance(2 * balance)  # the program is in float64
    needed, there = program.outvars, {program.invars[1]}
    values = [program.invars[0], *(v for eqn in program.eqns for v in eqn.outvars)]
    cost = lambda kept, again: bytes_of(kept) + sum(price(e, machine) for e in again)
    least = min(
        cost(kept, again)
        for n in range(len(values) + 1)
        for kept in itertools.combinations(values, n)
        if (again := made_again(program, kept, needed, there)) is not None
    )
    kept = cheapest_cut(program, needed, there, 1, machine)
    assert cost(kept, made_again(program, kept, needed, there)) == pytest.approx(least, abs=len(values))


def blocks(w, x):
    step = lambda x, w: (x + jnp.tanh(jnp.sin(x @ w["up"])) @ w["down"], None)
    return jnp.sum(lax.scan(step, x, w)[0] ** 2)


W = {
    "up": jnp.linspace(-1, 1, 2 * 32 * 64).reshape(2, 32, 64),
    "down": jnp.linspace(-1, 1, 2 * 64 * 32).reshape(2, 64, 32),
}
X = jnp.linspace(-1, 1, 256 * 32).reshape(256, 32)


def test_the_higher_the_balance_the_more_is_recomputed():
    want = jax.grad(blocks)(W, X)
    kept = []
    for balance in (1.0, 1e4):
        backward = bp.Backward(balance=balance)
        kept.append(bp.residuals(blocks, backward=backward)(W, X).total)
        close = lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-13 * jnp.max(jnp.abs(w)))
        jax.tree.map(close, jax.jit(backward.grad(blocks))(W, X), want)
    assert kept[1] < kept[0] == bp.residuals(blocks, backward=bp.Backward(residuals="min_cut_cheap"))(W, X).total


def test_a_draw_and_a_callback_are_never_made_again():
    def step(x, key):
        told = jax.pure_callback(np.sin, jax.typeof(x), x, vmap_method="sequential")
        return jnp.sin(x * jax.random.normal(key, x.shape) + lax.stop_gradient(told)) @ W["up"][0] @ W["down"][0], None

    f = lambda x: jnp.sum(lax.scan(step, x, jax.random.split(jax.random.key(0), 3))[0])
    gradient = str(jax.make_jaxpr(bp.Backward(balance=1e9).grad(f))(X))
    assert gradient.count("pure_callback[") == gradient.count("random_bits[") == 1


def test_the_report_says_both_prices():
    for balance, fate in ((1.0, "kept"), (1e4, "recomputed")):
        values = bp.residuals(blocks, backward=bp.Backward(balance=balance))(W, X).values
        sine = next(v for v in values if v.shape == (256, 64) and v.fate == fate)
        assert (sine.again > sine.bytes) == (fate == "kept")


def test_an_inner_loop_that_is_run_again_keeps_nothing_between_the_passes():
    inner = lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3)[0]
    f = lambda x: jnp.sum(lax.scan(lambda c, _: (inner(c), None), x, None, 5)[0])
    report = bp.residuals(f, backward=bp.Backward(residuals="inputs"))(jnp.ones(4))
    assert report.total == 5 * 4 * 8
    (again,) = (v for v in report.values if len(v.inside) == 2)
    assert (again.fate, again.why, again.steps) == ("recomputed", "made again with what it is inside of", 15)


def test_a_plan_for_what_does_not_fit():
    """Of types alone, ten terabytes of them: no array is made."""
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    w = {"up": struct(96, 12288, 49152), "down": struct(96, 49152, 12288)}
    report = bp.residuals(blocks, backward=bp.Backward(residuals="inputs"))(w, struct(2**20, 12288))
    assert report.total == 97 * 2**20 * 12288 * 2
    small = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (W, X))
    assert str(bp.residuals(blocks)(*small)) == str(bp.residuals(blocks)(W, X))


@pytest.mark.parametrize(("steps", "fate"), [(50, "kept"), (100, "recomputed")])
def test_what_the_cache_holds_is_not_multiplied_again(steps, fate, monkeypatch):
    """A step keeps its state and a product, 32 kB each: 3.3 MB are moved within a cache of 4 MiB, and 6.6 MB are not.

    The product is 2 * 32 * 128 * 128 operations, 50 to a byte in float64 and moved twice: 10,486 bytes through memory.
    """
    cpu = MACHINES["cpu"]
    assert (cpu.cache, cpu.near, cpu.balance(jnp.float64)) == (2**22, 5, 50)
    monkeypatch.setattr(policies, "machine_here", lambda balance: cpu if balance is None else cpu.with_balance(balance))
    w, x = jnp.linspace(-1, 1, 128 * 128).reshape(128, 128), jnp.linspace(-1, 1, 32 * 128).reshape(32, 128)
    loss = lambda w, x: jnp.sum(lax.scan(lambda h, _: (jnp.sin(h @ w), None), x, None, steps)[0] ** 2)
    (product,) = (v for v in bp.residuals(loss)(w, x).values if v.name == "dot_general")
    assert (product.fate, product.bytes) == (fate, 8 * 32 * 128)
    assert product.again == pytest.approx(2 * 32 * 128 * 128 / 50 / 2 * (5 if fate == "kept" else 1))
    (same,) = (
        v for v in bp.residuals(loss, backward=bp.Backward(balance=100.0))(w, x).values if v.name == "dot_general"
    )
    assert same.fate == "recomputed"  # the balance that a person gives is the only number
    want = jax.grad(loss)(w, x)
    np.testing.assert_allclose(bp.grad(loss)(w, x), want, rtol=0, atol=1e-13 * jnp.max(jnp.abs(want)))


@pytest.mark.parametrize("name", ["h200", "a100", "tpu v4"])
def test_on_an_accelerator_products_are_kept_and_what_is_as_wide_as_attention_is_not(name, monkeypatch):
    """Of 12 blocks of 768 units in bfloat16, nothing wider than the hidden layer is kept, and no T x T matrix."""

    def block(x, w):
        q, k, v = (a.reshape(8, 1024, 12, 64).swapaxes(1, 2) for a in jnp.split(x @ w["qkv"], 3, -1))
        attended = (jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v).swapaxes(1, 2).reshape(x.shape)
        return jnp.sin(x + attended @ w["out"]) + jnp.tanh(attended @ w["up"]) @ w["down"], None

    monkeypatch.setattr(policies, "machine_here", lambda balance: MACHINES[name])
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    w = {
        "qkv": struct(12, 768, 2304),
        "out": struct(12, 768, 768),
        "up": struct(12, 768, 3072),
        "down": struct(12, 3072, 768),
    }
    report = bp.residuals(lambda w, x: jnp.sum(lax.scan(block, x, w)[0]))(w, struct(8, 1024, 768))
    kept = [v for v in report.values if v.fate == "kept" and v.inside]
    assert max(v.bytes for v in kept) == 2 * 8 * 1024 * 3072
    assert all(v.again > v.bytes or v.name == "carry 0" for v in kept if v.again is not None)
    assert [v.shape for v in report.values if v.shape[-2:] == (1024, 1024) and v.fate == "kept"] == []


@pytest.mark.parametrize(
    ("kind", "platform", "name"),
    [
        ("cpu", "cpu", "cpu"),
        ("NVIDIA H200", "gpu", "h200"),
        ("NVIDIA H100 80GB HBM3", "gpu", "h100"),
        ("NVIDIA H100 PCIe", "gpu", "h100 pcie"),
        ("NVIDIA A100-SXM4-80GB", "gpu", "a100"),
        ("Tesla V100-SXM2-16GB", "gpu", "v100"),
        ("NVIDIA L4", "gpu", "l4"),
        ("NVIDIA GeForce RTX 4090", "gpu", "rtx 4090"),
        ("TPU v5 lite", "tpu", "tpu v5 lite"),
        ("TPU v5p", "tpu", "tpu v5p"),
        ("TPU v6 lite", "tpu", "tpu v6"),
        ("something new", "gpu", "gpu"),
    ],
)
def test_a_device_is_known_by_what_it_calls_itself(kind, platform, name):
    assert machine_of(kind, platform) is MACHINES[name]


def test_the_device_is_the_one_that_is_traced_for():
    with jax.default_device("cpu"):
        assert machine_here() is MACHINES["cpu"]
    assert machine_here(7.0).balance(jnp.float32) == pytest.approx(7.0)
    assert machine_here(7.0).balance(jnp.float64) == pytest.approx(3.5)


def test_a_balance_is_for_the_cut_that_weighs():
    with pytest.raises(ValueError, match=r'balance= is for residuals="min_cut", .* residuals=\'needed\''):
        bp.Backward(residuals="needed", balance=3.0)
    with pytest.raises(ValueError, match="positive and finite, and was 0"):
        bp.Backward(balance=0)
    assert repr(bp.Backward(balance=3.0)) == "Backward(balance=3.0)"
    assert bp.Backward(balance=3.0).options.policy == MinCut(3.0)
