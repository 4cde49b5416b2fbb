"""Primitives that JAX does not define go back by what their authors registered with JAX, and JAX's own do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src import core
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import funcbp as bp
from funcbp import jaxpr as jx


def primitive(name, impl, several=False):
    p = Primitive(name)
    p.multiple_results = several
    p.def_impl(impl)
    p.def_abstract_eval(lambda *avals, **params: list(avals[:1]) * 2 if several else avals[0])
    mlir.register_lowering(p, mlir.lower_fun(impl, multiple_results=several))

    def batched(args, dims, **params):
        (size,) = {x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None}
        outs = p.bind(*(batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True)), **params)
        return outs, [0] * 2 if several else 0

    batching.primitive_batchers[p] = batched
    return p


# linear: x ↦ 2x, whose author says that it goes back as x̄ = 3 ȳ
scaled = primitive("authors_scaled", lambda x: 2 * x)
ad.deflinear2(scaled, lambda ct, x: [3 * ct])

# (x, n) ↦ (n x², n x), by a tangent rule that applies the linear one to the tangent
squares = primitive("authors_squares", lambda x, n: [n * x**2, n * x], several=True)


def squares_jvp(primals, tangents):
    assert type(primals) is type(tangents) is tuple  # a rule may map over both by prefixes, which name the type
    (x, n), (dx, dn) = primals, tangents
    assert type(dn) is ad.Zero
    return squares.bind(x, n), [x * n * scaled.bind(dx), ad.Zero(jax.typeof(x).to_tangent_aval())]


ad.primitive_jvps[squares] = squares_jvp

# its tangent rule applies what has no transpose rule
crooked, bare = primitive("authors_crooked", lambda x: x), primitive("authors_bare", lambda x: x)
ad.primitive_jvps[crooked] = lambda primals, tangents: (crooked.bind(*primals), bare.bind(*tangents))
ad.primitive_jvps[bare] = lambda primals, tangents: (bare.bind(*primals), bare.bind(*tangents))

# (x, *constants) ↦ an open program of x, whose constants are operands: so Equinox hands on what a function closed over
applied = primitive("authors_applied", lambda x, *consts, static, jaxpr: core.eval_jaxpr(jaxpr, consts, x)[0])


def applied_jvp(primals, tangents, **params):
    return applied.bind(*primals, **params), applied.bind(tangents[0], *primals[1:], **params)


ad.primitive_jvps[applied] = applied_jvp
ad.primitive_transposes[applied] = lambda ct, x, n, **params: (applied.bind(ct, n, **params), None)

X = jnp.array([1.0, 2.0])
N = jnp.array([5.0, 5.0])
CALLS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "scan": lambda f: lambda x: lax.scan(lambda c, r: (c, f(r)), 0.0, x[:, None])[1].ravel(),
    "vmap": lambda f: lambda x: jax.vmap(f)(x[:, None]).ravel(),
    "checkpoint": jax.checkpoint,
}


@pytest.mark.parametrize("call", CALLS)
def test_they_go_back_as_their_author_says(call):
    f = CALLS[call](scaled.bind)
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(jnp.sin(f(x))))(X), 3 * jnp.cos(2 * X))
    g = CALLS[call](lambda x: squares.bind(x, 5 * jnp.ones_like(x))[0])
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(g(x)))(X), 3 * 5 * X)


@pytest.mark.parametrize("call", CALLS)
def test_a_program_among_the_parameters_whose_constants_are_operands(call):
    """Also where it is not differentiated, and is looked through for marked weights."""
    programs = {n: jax.make_jaxpr(lambda x, five=N[:n]: x * five)(X[:n]).jaxpr for n in (1, 2)}
    assert all(len(program.constvars) == 1 for program in programs.values())
    params = {n: {"jaxpr": program, "static": (program, "its name")} for n, program in programs.items()}
    five_times = lambda x: applied.bind(x, 5 * jnp.ones_like(x), **params[x.size])
    f = CALLS[call](lambda x: x * five_times(lax.stop_gradient(x)) + five_times(x))
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(f(x)))(X), 5 * X + 5)
    np.testing.assert_array_equal(jax.grad(bp.Backward().attach(lambda x: jnp.sum(f(x))))(X), 5 * X + 5)


def test_an_output_without_a_tangent_has_none():
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(squares.bind(x, N)[1]))(X), 0 * X)


def test_a_rule_of_the_caller_comes_first():
    rule = bp.rule(lambda res, ct, perturbed: (7 * ct,), save=bp.rules.NOTHING)
    np.testing.assert_array_equal(
        bp.Backward(rules={scaled: rule}).grad(lambda x: jnp.sum(scaled.bind(x)))(X), 7 * N / 5
    )


def test_coverage_says_whose_they_are():
    covered = bp.coverage()
    assert covered["authors_scaled"] == covered["authors_squares"] == "its author's"
    assert covered["sin"] == "hand-written" and covered["feedback"] == "hand-written"


@pytest.mark.parametrize(("p", "lacks"), [(crooked, "transpose"), (primitive("authors_new", lambda x: x), "its own")])
def test_what_is_not_registered_is_an_error(p, lacks):
    message = "author registered no transpose rule" if lacks == "transpose" else "funcbp has no rule for `authors_new`"
    with pytest.raises(bp.MissingRuleError, match=message):
        bp.grad(lambda x: jnp.sum(p.bind(x)))(X)


def test_nothing_of_jaxs_is_taken_for_an_authors():
    """Of the primitives in JAX's tables, none that a module of JAX or of ours has."""
    foreign = {p.name for p in jx.authors_primitives() if p not in bp.rules.registry.TABLE}
    assert {"authors_scaled", "authors_squares"} <= foreign
    assert not [n for n in foreign if not n.startswith("authors_") and n in jx.public_names()]
    assert not any(
        jx.has_authors_jvp(p) or jx.has_authors_transpose(p) for p in (lax.sin_p, lax.linalg.schur_p, lax.while_p)
    )
