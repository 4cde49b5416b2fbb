"""Planted differences between two programs, each found where it begins; and programs that agree, written otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

f32, bf16 = jnp.float32, jnp.bfloat16
rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), f32)
D = 4
PARAMS = {"qkv": normal(D, 3 * D), "out": normal(D, D), "up": normal(D, 2 * D), "down": normal(2 * D, D)}
X, KEY = normal(3, D), jax.random.key(0)


@jax.custom_vjp
def half_backward(x):
    return jnp.tanh(x)


half_backward.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (ct * 0.5 / jnp.cosh(x) ** 2,))


def block(p, x, eps=1e-5, scale=D**-0.5, act=jax.nn.gelu, mask=None, residual=True, stop=lambda x: x, total=jnp.mean):
    """A block of a transformer, in each of these ways written otherwise."""
    h = (x - jnp.mean(x, 1, keepdims=True)) * lax.rsqrt(jnp.var(x, 1, keepdims=True) + eps)
    q, k, v = jnp.split(bp.name(h, "normed") @ p["qkv"], 3, axis=1)
    a = jax.nn.softmax(q @ k.T * scale, axis=1)
    h = bp.name(a @ stop(v), "mixed") @ p["out"]
    h = h if mask is None else h * mask
    h = x + h if residual else h
    return total(bp.name(act(h @ p["up"]) @ p["down"], "y") ** 2)


def other(**how):
    return lambda p, x: block(p, x, **how)


def rnn(at):
    def run(w, xs):
        def step(c, x):
            i, c = c
            return (i + 1, bp.name(jnp.tanh(c * w + x + jnp.where(i == at, 0.01, 0.0).astype(f32)), "h")), None

        return lax.scan(step, (jnp.int32(0), f32(0.5)), xs)[0][1]

    return run


MASK = lambda seed: jax.random.bernoulli(jax.random.key(seed), 0.5, (3, D)).astype(f32)
tanh, wrong = (lambda x: bp.name(jnp.tanh(x), "act")), (lambda x: bp.name(half_backward(x), "act"))
# name: (one side, the other, the value where they part ("" where JAX writes it in its own way), the cotangent)
PLANTED = {
    "eps of a normalisation": (block, other(eps=1e-3), "convert_element_type", None),
    "scale of attention": (block, other(scale=1.0), "convert_element_type", None),
    "another activation": (block, other(act=jax.nn.relu), "dot_general", None),
    "approximate activation": (other(act=lambda x: jax.nn.gelu(x, approximate=False)), block, "", None),
    "no residual connection": (block, other(residual=False), "dot_general", None),
    "dropout": (block, other(mask=MASK(0)), "add", None),
    "two seeds": (other(mask=MASK(0)), other(mask=MASK(1)), "mul", None),
    "sum and mean": (block, other(total=jnp.sum), "output", None),
    "gradient stopped": (block, other(stop=lax.stop_gradient), None, "split"),
    "wrong backward rule": (other(act=tanh), other(act=wrong), None, "dot_general"),
    "a loop's fourth step": (rnn(at=-1), rnn(at=3), "eq", "add"),
}


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found_where_it_begins(name):
    f, g, value, cotangent = PLANTED[name]
    args = (f32(0.7), normal(6)) if "loop" in name else (PARAMS, X)
    found = bp.diff(f, g)(*args)
    assert found and (found.value is None) == (value is None)
    if value is not None:
        assert found.value.a.title == value or not value
        assert "The values part at" in str(found)
    if cotangent is not None:
        assert found.cotangent.a.title == cotangent and "cotangents part at" in str(found)
    if "loop" in name:
        assert found.value.step == (3,) and "in loop step 3" in str(found)
    if name == "wrong backward rule":
        assert "tanh" in str(found) and "custom_vjp_call" in str(found) and "differs by 0" not in str(found)


def swapped(p, x):
    """Two independent equations in another order, a call, another scope, and terms added the other way round."""
    with jax.named_scope("inside"):
        up = jax.jit(lambda x, w: x @ w)(x, p["down"].T)
        down = jnp.tanh(x @ p["out"])
    return jnp.sum(jnp.sin(up)) + jnp.sum(down)


def plain(p, x):
    down = jnp.tanh(x @ p["out"])
    up = x @ p["down"].T
    return jnp.sum(down) + jnp.sum(jnp.sin(up))


SAME = {
    "itself": (block, block),
    "another order": (plain, swapped),
    "a normalisation by its own formula": (
        lambda p, x: jnp.sum((x - jnp.mean(x, 1, keepdims=True)) ** 2),
        lambda p, x: jnp.sum(jnp.square(x - jnp.sum(x, 1, keepdims=True) / np.float32(D)))),
    "lower precision": (block, lambda p, x: block(jax.tree.map(bf16, p), bf16(x)).astype(f32)),
    "rounded otherwise": (block, lambda p, x: block(p, x * np.float32(1 + 1e-7))),
    "a sum that is zero": (
        lambda p, x: jnp.sum(x - jnp.mean(x, 1, keepdims=True)) + jnp.sum(x**2),
        lambda p, x: jnp.sum(x - jnp.dot(x, jnp.full((D, 1), 1 / D, f32))) + jnp.sum(x**2)),
}  # fmt: skip


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", SAME)
def test_programs_that_differ_by_rounding_agree(name):
    found = bp.diff(*SAME[name])(PARAMS, X)
    assert not found and "differs beyond noise" in str(found), str(found)


def test_a_rule_of_ones_own_is_named_beside_that_of_the_table():
    double = bp.rule(lambda res, ct, p, **_: (2 * ct,), save=bp.rules.NOTHING)
    own = bp.trace(lambda x: jnp.sum(jnp.tanh(x) ** 2), backward=bp.Backward(rules={lax.tanh_p: double}))(X)
    found = bp.diff(own, bp.trace(lambda x: jnp.sum(jnp.tanh(x) ** 2))(X))
    assert found.value is None and found.cotangent.a.name == "x"
    assert "a rule is another, of 'tanh'" in str(found)


def test_many_equations_that_are_alike_are_matched_in_order():
    def deep(w, x, bump=0.1):
        for i in range(60):
            x = jnp.tanh(x @ w) + x * f32(bump if i == 30 else 0.1)
        return jnp.sum(x)

    found = bp.diff(deep, lambda w, x: deep(w, x, 0.2))(normal(D, D), X)
    assert len(found.matches) > 240 and found.value.a.title == "mul"
    number = next(i for i, m in enumerate(found.matches) if m is found.value)
    assert number == 2 + 4 * 30 + 2


def test_what_is_noise_can_be_said():
    assert bp.diff(*SAME["lower precision"], ulps=0.01)(PARAMS, X)


def named_gradients():
    """What another program would hand out: values and gradients by name, made by numpy."""
    x, w, v = (np.float64(a) for a in (X, PARAMS["out"], PARAMS["up"]))
    h = np.tanh(x @ w)
    y = h @ v
    of_h = 2 * y @ v.T
    return {
        "w": (w, x.T @ (of_h * (1 - h**2))),
        "v": (v, h.T @ (2 * y)),
        "h": (h, of_h),
        "y": np.float32(y),
        "not here": np.zeros(3),
    }


def net(p, x):
    h = bp.name(jnp.tanh(x @ p["w"]), "h")
    return jnp.sum(bp.name(h @ p["v"], "y") ** 2)


@pytest.mark.parametrize("change", [None, "h", "v"])
def test_one_side_can_be_named_arrays_from_elsewhere(change):
    arrays = named_gradients()
    if change == "h":
        arrays["h"] = arrays["h"][0], arrays["h"][1] * 1.01
    if change == "v":
        arrays["v"] = arrays["v"][0].T, arrays["v"][1]
    trace = bp.trace(net)({"w": PARAMS["out"], "v": PARAMS["up"]}, X)
    found = bp.diff(trace, arrays)
    assert bool(found) == (change is not None) and [r.name for r in found.only_b] == ["not here"]
    if change == "h":
        assert found.value is None and found.cotangent.a.name == "h" and 0.005 < found.cotangent.cotangent < 0.02
    if change == "v":
        assert found.value.a.name == "v" and "of another kind" in str(found)
    assert [bool(bp.diff(arrays, trace)), bool(bp.diff(arrays, arrays))] == [change is not None, False]


def test_traces_are_compared_where_they_are_saved(tmp_path):
    bp.trace(block)(PARAMS, X).save(tmp_path / "run.npz")
    before = bp.Trace.load(tmp_path / "run.npz")
    assert not bp.diff(before, bp.trace(block)(PARAMS, X))
    assert bp.diff(before, bp.trace(other(eps=1e-3))(PARAMS, X)).value.a.line


def test_other_arguments_grow_from_where_they_enter():
    found = bp.diff(net, ({"w": PARAMS["out"], "v": PARAMS["up"] * f32(1.1)}, X))(
        {"w": PARAMS["out"], "v": PARAMS["up"]}, X
    )
    assert found.value.a.name == "v" and [title for title, _ in found.growth()] == ["v", "w", "x", "h", "y"]
    assert found.growth()[0][1] == pytest.approx(0.1 / 1.1, rel=1e-3) and found.growth()[3][1] == 0


def test_not_finite_on_one_side_alone_is_a_difference():
    f = lambda x: jnp.sum(jnp.log(x) * jnp.array([0, 1], f32))
    found = bp.diff(f, (f32([0, 1]),))(f32([1, 1]))
    assert found.value.a.name == "x"
    assert bp.diff(lambda x: jnp.sum(jnp.sqrt(x)), lambda x: jnp.sum(jnp.sqrt(-x)))(f32([1, 2])).value.value == np.inf


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(TypeError, match="two functions, a function with itself"):
        bp.diff(net, {"h": X})
    with pytest.raises(ValueError, match="on the first there are 'h', on the second 'g'"):
        bp.diff({"h": X}, {"g": X})


def test_one_operation_on_two_inputs_is_two():
    """They are of one kind, shape and place, and not one equation: neither is said to be where the values part."""
    found = bp.diff(lambda w, x: jnp.sum(jnp.exp(w) * x), lambda w, x: jnp.sum(jnp.exp(x) * w))(
        jnp.ones(3), jnp.arange(3.0)
    )
    assert [[r.primitive for r in side][:1] for side in (found.only_a, found.only_b)] == [["exp"]] * 2


def test_what_follows_an_operation_that_was_replaced_is_found():
    def loss(x, act=jnp.tanh):
        return jnp.sum(jnp.exp(act(x) - jnp.sum(act(x))))

    found = bp.diff(loss, lambda x: loss(x, jax.nn.relu))(jnp.array([0.5, -2.0]))
    assert {r.title for r in found.only_a} == {"tanh"} and {r.title for r in found.only_b} == {"relu"}
    assert found.value.a.primitive == "reduce_sum"
