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
from funcbp.cli import main
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


def test_forward_mode_through_a_custom_vjp_function_is_refused_as_by_jax_and_sends_nobody_there():
    g = jax.custom_vjp(jnp.sin)
    g.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x),))
    f = lambda x: jax.jvp(lambda y: g(y) * y, (x,), (1.0,))[1]
    with pytest.raises(bp.MissingRuleError, match=r"no derivative for `custom_lin` at .*test_coverage.*jax.custom_jvp"):
        jax.jit(bp.grad(f))(1.3)
    with pytest.raises(NotImplementedError, match="custom_lin"):
        jax.jit(jax.grad(f))(1.3)


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


def test_the_command_lists_them_all(capsys):
    assert main(["coverage"]) == 0
    *lines, _, total = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == bp.coverage().keys() >= PUBLIC
    assert total.startswith(f"{jax.__version__}: ") and total.endswith("; nothing missing")
