"""Mistakes that people make: each error is of the class that is caught for JAX, and a sentence with the way out."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import funcbp as bp

X = jnp.arange(3.0)
W = jnp.ones((3, 2))
DATA = (jnp.ones((4, 3)), jnp.ones((4, 2)))
OUTPUT = bp.rules.OUTPUT
TYPE = jax.ShapeDtypeStruct((3,), jnp.float32)


def f(w):
    return jnp.sum(jnp.tanh(w))


def described(w):
    return f(w), "a word"


def fit(**options):
    loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2)
    return bp.fit(loss, W, DATA, optimizer=optax.sgd(0.1), epochs=1, **options)


def by(bwd, fwd=None):
    """The gradient of f by a rule of one's own for tanh."""
    return bp.Backward(rules={lax.tanh_p: bp.rule(bwd, fwd, None if fwd else OUTPUT)}).grad(f)(X)


def edited(edit):
    return bp.Backward(edits={"h": edit}).grad(lambda w: jnp.sum(bp.name(w, "h")))(X)


MISTAKES = {
    "a way of going backward by a word": (
        lambda: bp.trace(f, backward="inputs"),
        TypeError,
        r"funcbp.Backward.*'inputs'",
    ),
    "the same in fit": (lambda: fit(backward="inputs"), TypeError, r"funcbp.Backward.*'inputs'"),
    "the same per example": (lambda: bp.per_example.norms(f, backward=1)(W, DATA), TypeError, r"funcbp.Backward.*1\."),
    "a key to be differentiated": (
        lambda: bp.grad(lambda p: 1.0)({"k": jax.random.key(0), "w": X}),
        TypeError,
        r"key<fry> at k\. Leave it out of argnums",
    ),
    "a word among parameters": (
        lambda: bp.grad(lambda p: 1.0)({"act": "relu", "w": X}),
        TypeError,
        r"'relu' at act of type .* is divided first",
    ),
    "a word as the result": (
        lambda: bp.vjp(lambda w: "done", X),
        TypeError,
        r"<lambda> returned 'done' .*has_aux=True",
    ),
    "no auxiliary data": (
        lambda: bp.grad(f, has_aux=True)(X),
        TypeError,
        r"^With has_aux=True, f must return .* and r",
    ),
    "three results": (lambda: bp.grad(lambda w: (f(w), 1, 2), has_aux=True)(X), TypeError, r"returned 3 elements"),
    "a rule that returns no tuple": (
        lambda: by(lambda y, ct, p, **_: ct),
        TypeError,
        r"returned a .*: it returns a tuple",
    ),
    "a rule that returns nothing": (
        lambda: by(lambda y, ct, p, **_: None),
        TypeError,
        r"returned a NoneType: .* a tuple",
    ),
    "a rule that returns two": (lambda: by(lambda y, ct, p, **_: (ct, ct)), TypeError, r"returned 2 cotangents for 1"),
    "a rule of another shape": (
        lambda: by(lambda y, ct, p, **_: (ct[0],)),
        TypeError,
        r"cotangent for primal 0 is float",
    ),
    "a rule of two arguments": (lambda: by(lambda y, ct: (ct,)), TypeError, r"bwd\(res, ct, perturbed, \*\*params\)"),
    "a forward half without residuals": (
        lambda: by(lambda y, ct, p, **_: (ct,), lambda x, **_: jnp.tanh(x)),
        TypeError,
        r"fwd of the rule <lambda> for `tanh` must return a pair",
    ),
    "rules in a list": (lambda: bp.Backward(rules=[1]), TypeError, r"rules= is a dict"),
    "a number as an edit": (lambda: bp.Backward(edits={"h": 0.0}), TypeError, r"edits\['h'\] is a function"),
    "an edit that returns nothing": (
        lambda: edited(lambda ct, cts: None),
        TypeError,
        r"edit of 'h' returned None, and",
    ),
    "an edit of another type": (lambda: edited(lambda ct, cts: ct > 0), TypeError, r"edit of 'h' returned bool\[3\]"),
    "a budget in words": (lambda: bp.Budget("1GB"), ValueError, r"bytes='1GB'"),
    "a balance in words": (lambda: bp.Backward(balance="high"), ValueError, r"positive and finite, and was 'high'"),
    "other feedback weights": (
        lambda: bp.Backward(feedback={"b": W}).grad(lambda p: jnp.sum(p["w"]))({"w": W}),
        ValueError,
        r"a tree like what they stand for.* has w, and they have b",
    ),
    "hvp of arrays": (lambda: bp.hvp(f, X, X), TypeError, r"primals of hvp are a tuple"),
    "hvp along an array": (lambda: bp.hvp(f, (X,), X), TypeError, r"tangents of hvp are a tuple"),
    "looking inside jit": (
        lambda: jax.jit(lambda w: bp.trace(f)(w).rows)(X),
        TypeError,
        r"Call it outside; cotangents",
    ),
    "checking inside jit": (
        lambda: jax.jit(lambda w: bp.check(f, w).ok)(X),
        TypeError,
        r"inside a jitted .*Call it outs",
    ),
    "checking a number": (lambda: bp.check(f, X, vjp=1), TypeError, r"called as jax.vjp is, and was 1"),
    "a number as a condition": (
        lambda: bp.while_loop(lambda c: c, lambda c: c - 1, 3.0, max_steps=9),
        TypeError,
        r"returns one boolean, and this one returned float",
    ),
    "two conditions": (
        lambda: bp.while_loop(lambda c: c > 0, lambda c: c - 1, X, max_steps=9),
        TypeError,
        r"returns one boolean, and this one returned bool\[3\]",
    ),
    "resuming from nothing": (lambda: fit(resume=True), ValueError, r"give checkpoint="),
    "a part to validate by": (lambda: fit(validation=0.2), ValueError, r"examples like data, and was 0.2"),
    "another mesh": (
        lambda: fit(mesh=jax.make_mesh((1,), ("batch",), devices=jax.devices()[:1])),
        ValueError,
        r"out of data, fsdp, tensor.*one with batch",
    ),
    "a mesh in words": (lambda: bp.train.make_mesh("data=2"), ValueError, r"got 'data=2'"),
    "an activation by its name": (
        lambda: bp.nets.mlp([3, 2], activation="relu"),
        TypeError,
        r"function, such as .*'relu'",
    ),
    "a function that is JAX's": (lambda: bp.stop_gradient, AttributeError, r"JAX's is jax.lax.stop_gradient"),
    "types in the place of numbers": (
        lambda: bp.trace(f)(TYPE),
        TypeError,
        r"was given ShapeDtypeStruct.*summary and residuals take types",
    ),
    "checking types": (lambda: bp.check(f, TYPE), TypeError, r"summary and residuals take types"),
    "the gradient at a type": (lambda: bp.grad(f)(TYPE), TypeError, r"is a type and no array"),
    "two results": (lambda: bp.grad(lambda w: (f(w), w))(X), TypeError, r"scalar-output.*pass has_aux=True\.$"),
    "a table of a function": (lambda: bp.coverage(f), TypeError, r"positional"),
}


@pytest.mark.parametrize(("mistake", "error", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_a_sentence(mistake, error, said):
    with pytest.raises(error, match=said):
        mistake()


@pytest.mark.parametrize("look", ["trace", "cotangents", "precision", "find_nan", "summary", "residuals"])
def test_who_looks_at_a_function_that_returns_a_word_is_told_which_function_it_is(look):
    with pytest.raises(TypeError, match=r"^described returned .*a word"):
        getattr(bp, look)(described)(X)


def test_a_rule_without_params_is_told_which_there_are():
    with pytest.raises(TypeError) as raised:
        by(lambda y, ct, perturbed: (ct,))
    assert any("**params), with params 'accuracy'" in note for note in raised.value.__notes__)
