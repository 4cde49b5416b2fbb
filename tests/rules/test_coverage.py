"""Every primitive is accounted for, whatever the JAX release."""

from __future__ import annotations

import jax
import jax.experimental.pallas
import jax.experimental.sparse
import jax.ffi
import jax.numpy as jnp
import pytest
from jax._src.interpreters import ad
from jax.extend.core import primitives

import funcbp as bp
from funcbp.rules import UNSUPPORTED

PUBLIC = {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
DIFFERENTIATED_BY_JAX = {p.name for p in (*ad.primitive_jvps, *ad.primitive_transposes)}
WORDS = ("hand-written", "zero", "non-differentiable", "the function's own", "its author's", "discharged", "refused: ")


def test_no_primitive_is_unaccounted_for():
    unaccounted = (PUBLIC | DIFFERENTIATED_BY_JAX) - bp.coverage().keys()
    assert not unaccounted, f"say what {sorted(unaccounted)} are: a rule, zero, non-differentiable, or refused"


def test_coverage_says_how():
    assert all(how.startswith(WORDS) for how in bp.coverage().values())
    assert bp.coverage()["tanh"] == "hand-written"
    assert bp.coverage()["pure_callback"].startswith("refused: its Python function")


def test_a_refusal_names_the_reason_and_the_line():
    f = lambda x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct((), x.dtype), x)
    with pytest.raises(bp.MissingRuleError, match=r"no derivative for `pure_callback` at .*test_coverage.*custom_vjp"):
        bp.grad(f)(1.0)


def test_what_jax_differentiates_is_refused_only_with_a_reason_that_says_so():
    """A refusal that names JAX as lacking it too is true."""
    for name, why in UNSUPPORTED.items():
        if why.startswith("JAX's reverse mode has none either"):
            assert name not in {p.name for p in ad.primitive_transposes}, name
            # reduce_window has a forward mode, by a function that cannot be transposed
            assert name not in {p.name for p in ad.primitive_jvps} - {"reduce_window"}, name


def test_a_missing_rule_can_be_borrowed(monkeypatch):
    """Without a rule of ours, `on_missing="jax"` takes JAX's for that equation alone, and says so."""
    f = lambda x: jnp.sum(jnp.tanh(jax.lax.erf(x)))
    x = jnp.linspace(0.1, 1.0, 3)
    monkeypatch.delitem(bp.rules.TABLE, jax.lax.erf_p)
    with pytest.raises(bp.MissingRuleError, match="no rule for `erf`"):
        bp.grad(f)(x)
    with pytest.warns(UserWarning, match=r"JAX's derivative of `erf` is borrowed"):
        got = bp.Backward(on_missing="jax").grad(f)(x)
    assert jnp.allclose(got, jax.grad(f)(x), rtol=1e-14)
    report = bp.check(f, x, backward=bp.Backward(on_missing="jax"))
    assert report.ok and "JAX's derivative of `erf` is borrowed" in str(report)
    assert "erf" not in bp.coverage()
    assert bp.Backward(on_missing="jax").coverage()["erf"] == "borrowed"


PERMUTATION = ((0, 0),)
COLLECTIVES = {
    "psum": lambda y: jax.lax.psum(y * y, "i"),
    "pmean": lambda y: jax.lax.pmean(y * y, "i"),
    "pmax": lambda y: jax.lax.pmax(y, "i"),
    "pmin": lambda y: jax.lax.pmin(y, "i"),
    "all_gather": lambda y: jax.lax.all_gather(y, "i"),
    "psum_scatter": lambda y: jax.lax.psum_scatter(y, "i", tiled=True),
    "all_to_all": lambda y: jax.lax.all_to_all(y[None], "i", 0, 0),
    "ppermute": lambda y: jax.lax.ppermute(y, "i", PERMUTATION),
    "pvary": lambda y: jax.lax.pcast(jax.lax.psum(y, "i"), "i", to="varying"),
}
ACROSS = dict(
    mesh=jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,)),
    in_specs=jax.P("i"),
    out_specs=jax.P("i"),
)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_are_refused_by_name(name):
    """Inside of a `shard_map`, no gradient is off by the number of devices: there is none."""
    f = COLLECTIVES[name]
    inside = jax.shard_map(lambda x: bp.grad(lambda y: jnp.sum(f(y)))(x), **ACROSS)
    with pytest.raises(bp.MissingRuleError, match=r"no derivative for `\w+` at .*test_coverage") as error:
        inside(jnp.arange(3.0))
    spelled = {"pmean": "psum", "psum_scatter": "reduce_scatter"}.get(name, name)
    assert f"`{spelled}" in str(error.value)


def test_nothing_is_differentiated_through_a_shard_map():
    summed = jax.shard_map(lambda x: x * jax.lax.psum(x, "i"), **ACROSS)
    with pytest.raises(bp.MissingRuleError, match="shard_map"):
        bp.grad(lambda x: summed(x).sum())(jnp.arange(3.0))


def test_what_needs_no_communication_is_right_inside_a_shard_map():
    scaled = lambda y: (y * y * (1 + jax.lax.axis_index("i").astype(y.dtype))).sum()
    local = jax.shard_map(lambda x: bp.grad(scaled)(x), **ACROSS)
    x = jnp.arange(3.0)
    assert jnp.array_equal(local(x), 2 * x)
