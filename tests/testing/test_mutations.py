"""Does the checker find what is wrong? Errors planted in rules and in users' functions, one at a time: all are caught.

The errors are those that happen: a wrong sign, a dropped term, a factor near 1, a sum over the wrong axis, a residual
from the wrong place, a missing conjugate, operands swapped, a kernel not flipped, a scan off by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.cotangents import Zero, materialize
from funcbp.rules import TABLE
from funcbp.testing import check

PRIMITIVES = {p.name: p for p in TABLE}


def draw(*shape, seed=0, low=-2.0, high=2.0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).uniform(low, high, shape))


def complexes(*shape, seed=0):
    return lax.complex(draw(*shape, seed=seed), draw(*shape, seed=seed + 1))


x23, y23, positive = draw(2, 3), draw(2, 3, seed=1), draw(2, 3, low=0.3)
x33, y33 = draw(3, 3), draw(3, 3, seed=1)

# --- errors in rules --------------------------------------------------------------------------------------------------


class Planted(NamedTuple):
    name: str
    error: str
    change: Callable[..., Any]
    f: Callable[..., Any]
    args: tuple[Any, ...]


PLANTED: list[Planted] = []


def plant(name, error, change, f, *args):
    PLANTED.append(Planted(name, error, change, f, args))


def on_each(error: Callable[[Any], Any]) -> Callable[..., Any]:
    """The rule's own cotangents, each with this error."""
    return lambda cts, *_, **__: [c if c is None or c is Zero else error(c) for c in cts]


def on_operand(i: int, error: Callable[[Any], Any]) -> Callable[..., Any]:
    """The rule's own cotangents, that of operand i with this error."""
    return lambda cts, *_, **__: [error(c) if j == i else c for j, c in enumerate(cts)]


negated, nearly = on_each(lambda c: -c), on_each(lambda c: c * np.asarray(1.001, c.dtype))


def backward_with(name: str, change: Callable[..., Any]) -> bp.Backward:
    """funcbp with one rule of the table changed: `change(its cotangents, residuals, cotangent, **params)`."""
    rule = TABLE[PRIMITIVES[name]]

    def bwd(*args, **params):
        res, ct = args[-3], args[-2]
        return change([materialize(c) for c in rule.bwd(*args, **params)], res, ct, **params)

    return bp.Backward(rules={PRIMITIVES[name]: dataclasses.replace(rule, bwd=bwd)})


IMAGE, KERNEL = draw(1, 2, 5, 5), draw(3, 2, 3, 3, seed=4)
EASY = {  # one function for each of these rules, and two of the errors
    "tanh": (jnp.tanh, x23), "exp": (jnp.exp, x23), "log": (jnp.log, positive), "sin": (jnp.sin, x23),
    "cos": (jnp.cos, x23), "logistic": (lax.logistic, x23), "sqrt": (jnp.sqrt, positive), "neg": (jnp.negative, x23),
    "rsqrt": (lax.rsqrt, positive), "integer_pow": (lambda x: lax.integer_pow(x, 3), x23), "erf": (lax.erf, x23),
    "log1p": (jnp.log1p, positive), "abs": (jnp.abs, x23), "square": (lax.square, x23), "expm1": (jnp.expm1, x23),
    "reduce_max": (lambda x: jnp.max(x, 1), x23), "reduce_prod": (lambda x: jnp.prod(x, 1), positive),
    "cumsum": (lambda x: jnp.cumsum(x, 1), x23), "squeeze": (lambda x: lax.squeeze(x[None], (0,)), x23),
    "reshape": (lambda x: lax.reshape(x, (3, 2)), x23), "transpose": (jnp.transpose, x23),
    "slice": (lambda x: x[:, 1:], x23), "gather": (lambda x: x[:, jnp.array([2, 0, 2])], x23),
    "dynamic_slice": (lambda x: lax.dynamic_slice(x, (0, 1), (2, 2)), x23), "sort": (lambda x: jnp.sort(x, 1), x23),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x, (4, 2, 3)), x23), "rev": (lambda x: x[::-1] * y23, x23),
    "scan": (lambda x: lax.scan(lambda c, u: (c * u, c), x[0], x), x23),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), x23),
    "reduce_sum": (lambda x: jnp.sum(x * x, 0), x23),
}  # fmt: skip
for i, (name, (f, x)) in enumerate(EASY.items()):
    kind, change = (("wrong sign", negated), ("factor 1.001", nearly))[i % 2]
    plant(name, kind, change, f, x)

TWO = {
    "mul": jnp.multiply, "div": jnp.divide, "sub": jnp.subtract, "add": jnp.add, "max": jnp.maximum, "pow": jnp.power,
    "atan2": jnp.arctan2, "dot_general": lambda a, b: a @ b.T,
    "conv_general_dilated": lambda a, b: lax.conv(IMAGE * a[0, 0], KERNEL * b[0, 0], (1, 1), "SAME"),
    "concatenate": lambda a, b: jnp.concatenate([a, b]), "scatter-add": lambda a, b: a.at[jnp.array([1, 1])].add(b),
    "dynamic_update_slice": lambda a, b: lax.dynamic_update_slice(a, b[:1, :2], (1, 0)),
}  # fmt: skip
INDEXING = ("scatter-add", "dynamic_update_slice")
for i, (name, f) in enumerate(TWO.items()):
    operands = (x23, y23) if name == "max" else (positive, y23 + 3)
    plant(name, "dropped term", on_operand(0 if name in INDEXING else i % 2, jnp.zeros_like), f, *operands)
    other = (
        ("factor 1.001", nearly)
        if i % 2
        else ("wrong sign of one", on_operand(0 if name in INDEXING else 1, lambda c: -c))
    )
    plant(name, *other, f, *operands)

swapped = lambda cts, *_, **__: cts[::-1]
plant("mul", "swapped operands", swapped, jnp.multiply, x23, y23)
plant("div", "swapped operands", swapped, jnp.divide, x23, y23 + 5)
plant("sub", "swapped operands", swapped, jnp.subtract, x23, y23)
plant("dot_general", "transposed left operand", on_operand(0, jnp.transpose), lambda a, b: a @ b, x33, y33)
plant("dot_general", "transposed right operand", on_operand(1, jnp.transpose), lambda a, b: a @ b, x33, y33)
plant("dot_general", "swapped operands", swapped, lambda a, b: a @ b, x33, y33)
plant("conv_general_dilated", "kernel not flipped", on_operand(1, lambda c: c[:, :, ::-1]),
      lambda k: lax.conv(IMAGE, k, (1, 1), "SAME"), KERNEL)  # fmt: skip
plant("conv_general_dilated", "transposed kernel", on_operand(1, lambda c: jnp.swapaxes(c, 2, 3)),
      lambda k: lax.conv(IMAGE, k, (1, 1), "SAME"), KERNEL)  # fmt: skip
plant("conv_general_dilated", "moved by one", on_operand(0, lambda c: jnp.roll(c, 1, 3)),
      lambda a: lax.conv(a, KERNEL, (1, 1), "SAME"), IMAGE)  # fmt: skip
plant("add", "wrong broadcast sum", on_operand(1, lambda c: c / 3), lambda a, b: lax.add(a, b), x33, y33[:1])
plant("mul", "wrong axis of the broadcast sum", on_operand(1, lambda c: jnp.broadcast_to(jnp.mean(c), c.shape)),
      lambda a, b: lax.mul(a, b), x33, y33[:1])  # fmt: skip
plant(
    "broadcast_in_dim", "mean instead of sum", on_each(lambda c: c / 4), lambda x: jnp.broadcast_to(x, (4, 2, 3)), x23
)
plant("reduce_sum", "wrong axis", on_each(jnp.transpose), lambda x: jnp.sum(x, 0), x33)
plant("cumsum", "not reversed", on_each(lambda c: c[:, ::-1]), lambda x: jnp.cumsum(x, 1), x23)
plant("cumsum", "off by one", on_each(lambda c: jnp.roll(c, 1, 1)), lambda x: jnp.cumsum(x, 1), x23)
plant("transpose", "wrong order of axes", on_each(lambda c: jnp.swapaxes(c, 0, 1)),
      lambda x: jnp.transpose(x, (1, 2, 0)), draw(3, 3, 3))  # fmt: skip
plant("slice", "moved by one", on_each(lambda c: jnp.roll(c, 1, 1)), lambda x: x[:, :2], x23)
plant("pad", "moved by one", on_operand(0, lambda c: jnp.roll(c, 1)), lambda x: jnp.pad(x, (1, 2)), draw(4))
plant("gather", "an index read twice counted once", lambda cts, res, ct, **_: [ct[1:], *cts[1:]],
      lambda x: x[jnp.array([0, 0, 1])], draw(2))  # fmt: skip
plant("sort", "not put back", on_each(lambda c: jnp.roll(c, 1)), jnp.sort, draw(5))
plant("scan", "off by one", on_operand(1, lambda c: jnp.roll(c, 1, 0)),
      lambda x: lax.scan(lambda c, u: (c * u, c), 1.0, x), draw(4))  # fmt: skip
plant("scan", "one step dropped", lambda cts, *_, **__: [cts[0], cts[1].at[0].set(0.0)],
      lambda x: lax.scan(lambda c, u: (jnp.sin(c * u), c), x[0] * 2, x), draw(4))  # fmt: skip
plant("conj", "missing conjugate", lambda cts, res, ct, **_: [ct], jnp.conj, complexes(2, 3))
plant("abs", "missing conjugate", on_each(jnp.conj), jnp.abs, complexes(2, 3))
plant("imag", "wrong sign", negated, jnp.imag, complexes(2, 3))
plant("mul", "a conjugate too many", on_each(jnp.conj), jnp.multiply, complexes(2, 3), complexes(2, 3, seed=5))
plant("tanh", "square forgotten", lambda cts, res, ct, **_: [ct * (1 - jnp.tanh(x23))], jnp.tanh, x23)
plant("exp", "stale residual", lambda cts, res, ct, **_: [ct * x23], jnp.exp, x23)
plant("reduce_max", "to all instead of the largest", lambda cts, res, ct, **_: [jnp.broadcast_to(ct[:, None], (2, 3))],
      lambda x: jnp.max(x, 1), x23)  # fmt: skip
plant("clamp", "not cut off", lambda cts, res, ct, **_: [None, ct, None], lambda x: lax.clamp(-1.0, x, 1.0), x23)
plant("select_n", "cases swapped", lambda cts, *_, **__: [cts[0], cts[2], cts[1]],
      lambda a, b: jnp.where(x23 > 0, a, b), x23, y23)  # fmt: skip


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("planted", PLANTED, ids=[f"{p.name}-{p.error}" for p in PLANTED])
def test_an_error_in_a_rule_is_caught_and_named(planted):
    vjp = backward_with(planted.name, planted.change).vjp
    report = check(planted.f, *planted.args, vjp=vjp)
    assert not report.ok and report.worst.verdict == "wrong", report
    assert f"`{planted.name}`" in report.culprit, report


# --- errors in users' functions ---------------------------------------------------------------------------------------


USERS: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []


def with_rule(name, f, fwd, bwd):
    f.__name__ = name
    g = jax.custom_vjp(f)
    g.defvjp(fwd, bwd)
    return g


def add_user(name, error, f, fwd, bwd, *args):
    USERS.append((f"{name}-{error}", with_rule(name, f, fwd, bwd), args))


softplus = lambda x: jnp.logaddexp(x, 0.0)
keep = lambda f: lambda *xs: (f(*xs), xs)
add_user("softplus", "wrong sign", softplus, keep(softplus), lambda r, ct: (-ct * jax.nn.sigmoid(r[0]),), x23)
swish = lambda x: x * jax.nn.sigmoid(x)
add_user("swish", "dropped term", swish, keep(swish), lambda r, ct: (ct * jax.nn.sigmoid(r[0]),), x23)
mse = lambda p, y: jnp.mean((p - y) ** 2)
add_user("mse", "factor 1.001", mse, keep(mse),
         lambda r, ct: (d := 2.002 * ct * (r[0] - r[1]) / r[0].size, -d / 1.001), x23, y23)  # fmt: skip
add_user(
    "mse", "factor of the mean", mse, keep(mse), lambda r, ct: (d := 2 * ct * (r[0] - r[1]) / len(r[0]), -d), x23, y23
)
dense = lambda x, w, b: x @ w + b[None]
dense_bwd = lambda r, ct: (ct @ r[1].T, r[0].T @ ct, ct.sum(0))
add_user(
    "dense", "transposed kernel", dense, keep(dense), lambda r, ct: (ct @ r[1], *dense_bwd(r, ct)[1:]), x33, y33, x33[0]
)
add_user("dense", "wrong axis of the bias", dense, keep(dense), lambda r, ct: (*dense_bwd(r, ct)[:2], ct.sum(1)),
         x33, y33, x33[0])  # fmt: skip
add_user("dense", "swapped operands", dense, keep(dense),
         lambda r, ct: (ct @ r[1].T, ct.T @ r[0], ct.sum(0)), x33, y33, x33[0])  # fmt: skip
normalize = lambda x: (x - x.mean()) / x.std()
add_user("normalize", "dropped term", normalize, keep(normalize),
         lambda r, ct: ((ct - ct.mean()) / r[0].std(),), draw(6))  # fmt: skip
softmax = lambda x: jax.nn.softmax(x)
add_user("softmax", "dropped term", softmax, lambda x: (softmax(x), softmax(x)), lambda p, ct: (p * ct,), draw(5))
add_user("softmax", "stale residual", softmax, lambda x: (softmax(x), x),
         lambda p, ct: (p * (ct - jnp.sum(p * ct)),), draw(5))  # fmt: skip
decay = lambda x: lax.scan(lambda c, u: (0.9 * c + u,) * 2, 0.0, x)[1]


def decay_bwd(shift):
    def bwd(_, ct):
        back = lax.scan(lambda c, u: (0.9 * c + u,) * 2, 0.0, ct, reverse=True)[1]
        return (jnp.roll(back, shift) if shift else back * 0.9,)

    return bwd


add_user("decay", "off by one", decay, keep(decay), decay_bwd(1), draw(5))
add_user("decay", "one factor too many", decay, keep(decay), decay_bwd(0), draw(5))
power = lambda z: jnp.sum(jnp.real(z * jnp.conj(z)))
add_user(
    "power", "missing conjugate", power, keep(power), lambda r, ct: (2 * r[0] * ct.astype(r[0].dtype),), complexes(2, 3)
)
attend = lambda q, k: jax.nn.softmax(q @ k.T / jnp.sqrt(3.0))


def attend_bwd(r, ct):
    q, k = r
    p = attend(q, k)
    s = p * (ct - jnp.sum(p * ct, -1, keepdims=True))
    return s @ k, s.T @ q / jnp.sqrt(3.0)  # the scale is missing in the first


add_user("attend", "a missing scale", attend, keep(attend), attend_bwd, x23, y33)
huber = lambda x: jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5)
add_user("huber", "absolute value", huber, keep(huber), lambda r, ct: (ct * jnp.minimum(jnp.abs(r[0]), 1.0),), x23)
ratio = lambda a, b: a / b
add_user("ratio", "swapped operands", ratio, keep(ratio),
         lambda r, ct: (-ct * r[0] / r[1] ** 2, ct / r[1]), x23, y23 + 4)  # fmt: skip
smooth = lambda x, k: jnp.convolve(x, k, "same")
add_user("smooth", "kernel not flipped", smooth, keep(smooth),
         lambda r, ct: (jnp.convolve(ct, r[1], "same"), jax.vjp(lambda k: smooth(r[0], k), r[1])[1](ct)[0]),
         draw(6), draw(3))  # fmt: skip
expensive = lambda x: jnp.exp(jnp.sin(x))
add_user("expensive", "residual of the next value", expensive,
         lambda x: (expensive(x), expensive(x) * jnp.cos(expensive(x))), lambda r, ct: (ct * r,), x23)  # fmt: skip


@pytest.mark.slow(once=["vjp"])
@pytest.mark.parametrize(
    "name, f, args, vjp",
    [(*u, bp.vjp) for u in USERS] + [(*u, jax.vjp) for u in USERS[::3]],
    ids=[f"{u[0]}-funcbp" for u in USERS] + [f"{u[0]}-jax" for u in USERS[::3]],
)
def test_an_error_in_a_users_function_is_caught_and_named(name, f, args, vjp):
    report = check(f, *args, vjp=vjp)
    assert not report.ok and report.worst.verdict == "wrong", report
    assert f"custom_vjp rule of {name.split('-')[0]}" in report.culprit, report


def test_there_are_enough():
    assert len(PLANTED) + len(USERS) >= 60
    assert len({p.name for p in PLANTED}) >= 30 and len({name.split("-")[0] for name, *_ in USERS}) >= 10


# --- one leaf of a network --------------------------------------------------------------------------------------------


def mlp_loss(params, x, y):
    h = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((h @ params["w2"] + params["b2"][None] - y) ** 2)


def scaled(factors):
    """funcbp's vjp with the leaves of the gradient multiplied."""

    def vjp(f, *primals):
        out, pullback = bp.vjp(f, *primals)

        def pull(ct):
            leaves, tree = jax.tree.flatten(pullback(ct))
            return jax.tree.unflatten(tree, [c * np.asarray(a, c.dtype) for c, a in zip(leaves, factors, strict=True)])

        return out, pull

    return vjp


@pytest.mark.parametrize(
    "trial", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 16))], ids="seed {}".format
)
def test_a_factor_on_one_leaf_of_a_float32_network(trial):
    """What `jax.test_util.check_grads` catches in 0 (1.001) to 15 (2, -1, 0) of 16 trials.

    The verdict on a leaf depends on no other leaf, so three factors are planted at a time, and one leaf is left right.
    """
    numbers = np.random.default_rng(trial)
    make = lambda *shape: jnp.asarray(numbers.normal(size=shape), jnp.float32)
    params = {"w1": make(4, 6), "b1": make(6), "w2": make(6, 2), "b2": make(2)}
    x, y = make(5, 4), make(5, 2)
    for factors in ((1.001, 1.01, 1.1, 1.0), (2.0, -1.0, 0.0, 1.0)):
        factors = np.roll(factors, trial)
        report = check(mlp_loss, params, x, y, argnums=0, vjp=scaled(factors), seed=trial)
        assert [r.verdict for r in report.leaves] == ["ok" if a == 1 else "wrong" for a in factors], report
