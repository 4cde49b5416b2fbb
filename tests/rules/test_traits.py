"""What is said of primitives beside their derivatives: it is true, it is said once, and everybody listens."""

from __future__ import annotations

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive, primitives
from jax.interpreters import batching, mlir

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.cotangents import Moves
from funcbp.rules import TABLE, UNSUPPORTED, traits_of
from funcbp.rules.cost import flops, is_cheap, is_repeatable
from funcbp.rules.traits import ELEMENTWISE, TRAITS, Traits, def_traits

from .rows import MAPPED, ROWS


def equations(f, *args):
    """The equations that f traces to, those of the programs inside too."""

    def of(eqns):
        for eqn in eqns:
            yield eqn
            yield from of(jx.inner(eqn))

    return list(of(jax.make_jaxpr(f)(*args).eqns))


def the_equation(name, f, *args):
    (eqn,) = (e for e in equations(f, *args) if e.primitive.name == name)
    return eqn


# --- what is said is true ---------------------------------------------------------------------------------------------

WITH_A_CLAIM = {n for n, t in TRAITS.items() if isinstance(n, str) and (t.moves or t.linear or t.scales or t.bounds)}
SHOWN = [r for r in ROWS if r.primitive in WITH_A_CLAIM]


def test_each_claim_has_a_row():
    # tests/credit, tests/test_sharding.py, tests/control_flow/test_other_calls.py, tests/test_mapped.py, and for
    # people's own dtypes tests/outside/test_faults.py
    elsewhere = {"feedback", "reshard", "shard_alike", "xla_metadata_value", "to_edtype", "from_edtype", *MAPPED}
    assert WITH_A_CLAIM - elsewhere <= {r.primitive for r in SHOWN}


@pytest.mark.parametrize("row", SHOWN, ids=[f"{r.primitive}-{r.label or 'plain'}" for r in SHOWN])
def test_what_is_said_of_an_operation_is_true_of_its_numbers(row):
    """Each equation of the row, run on numbers that are all different."""
    for eqn in equations(row.f, *row.args):
        if eqn.primitive.name == row.primitive:
            check_moves(eqn)
            check_linear(eqn)
            check_scales(eqn)
            check_bounds(eqn)


def is_float(aval):
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def operands_of(eqn, seed=0, integer_valued=False):
    """Operands of the equation's types: floats at random, all different; for others its literals, or zeros."""
    rng = np.random.default_rng(seed)
    out, start = [], 1
    for v in eqn.invars:
        if jx.is_literal(v) and not is_float(v.aval):
            out.append(v.val)
        elif not is_float(v.aval):
            out.append(jnp.zeros(v.aval.shape, v.aval.dtype))
        else:
            n = v.aval.size
            x = start + rng.permutation(n) if integer_valued else rng.uniform(0.2, 0.8, n)
            out.append(jnp.asarray(np.reshape(x, v.aval.shape), v.aval.dtype))
            start += n
    return out


def run(eqn, values):
    return [np.asarray(y) for y in jx.bind_eqn(eqn, values)]


def check_moves(eqn):
    traits = traits_of(eqn.primitive)
    if not traits.moves:
        return
    values = operands_of(eqn, integer_valued=True)
    which = traits.linear or [i for i, v in enumerate(eqn.invars) if is_float(v.aval)]
    put = np.concatenate([np.ravel(values[i]) for i in which]).astype(complex)
    got = np.concatenate([np.ravel(y) for y in run(eqn, values)]).astype(complex)
    assert np.isin(got, [*put, 0]).all(), "a number came out that did not go in"
    moved = got[got != 0]
    if traits.moves >= Moves.ONCE and len(moved) > 1:
        fills = put[-1:] if eqn.primitive is primitives.pad_p else []
        moved = moved[~np.isin(moved, fills)]
        assert len(set(moved)) == len(moved), "a number went to two places"
    if traits.moves >= Moves.ALL:
        assert set(moved) == set(put), "a number went nowhere"
    if traits.moves is Moves.STAYS:
        assert np.array_equal(got, put), "a number left its place"


def check_linear(eqn):
    traits = traits_of(eqn.primitive)
    for i in traits.linear:
        if not is_float(eqn.invars[i].aval):
            continue
        one, other = operands_of(eqn, 1), operands_of(eqn, 2)
        at = lambda x, i=i, one=one: run(eqn, [*one[:i], x, *one[i + 1 :]])
        summed = at(3 * one[i] + other[i])
        for y, a, b in zip(summed, at(one[i]), at(other[i]), strict=True):
            tolerance = 16 * max(jnp.finfo(t.dtype).eps for t in (y, eqn.invars[i].aval) if is_float(t))
            if eqn.primitive is primitives.reduce_precision_p:
                tolerance = 2.0 ** -eqn.params["mantissa_bits"]
            assert np.allclose(y, 3 * a.astype(complex) + b, rtol=tolerance, atol=8 * tolerance)


def check_scales(eqn):
    traits = traits_of(eqn.primitive)
    for i in traits.scales:
        values = operands_of(eqn, 3)
        x = values[i]
        if not is_float(x) or x.shape != eqn.outvars[0].aval.shape:
            continue
        factor = np.reshape(2.0 ** (np.arange(x.size) % 8), x.shape)
        scaled = jnp.asarray(np.asarray(x) * factor, x.dtype)
        before, after = run(eqn, values), run(eqn, [*values[:i], scaled, *values[i + 1 :]])
        assert np.allclose(after[0], before[0] * factor, rtol=1e-6)


def check_bounds(eqn):
    bounds = traits_of(eqn.primitive).bounds
    if bounds is not None:
        x = jnp.asarray([-jnp.inf, -30.0, -1.0, 0.0, 1.0, 30.0, jnp.inf])
        y = np.asarray(eqn.primitive.bind(x, **eqn.params))
        assert (y.min(), y.max()) == bounds


POINTS = {"pow": [(0.0, 0.5)], "div": [(1.0, 0.0)], "rem": [(1.0, 0.0)], "atan2": [(0.0, 0.0)]}
NONE, SAME, ROW = jnp.zeros((2, 2)), jnp.eye(2), jnp.zeros(3)
ALONG = {  # those that do not take one number each
    "cholesky": (jnp.linalg.cholesky, NONE),
    "custom_linear_solve": (lambda a: jnp.linalg.solve(a, jnp.ones(2)), NONE),
    "eig": (lambda a: lax.linalg.eig(a, compute_left_eigenvectors=False, enable_eigvec_derivs=True), SAME),
    "eigh": (jnp.linalg.eigh, SAME),
    "integer_pow": (lambda x: lax.integer_pow(x, -1), jnp.asarray(0.0)),
    "lu": (lambda a: lax.linalg.lu(a)[0], NONE),
    "polygamma": (lambda x: lax.polygamma(jnp.ones(()), x), jnp.asarray(0.0)),
    "qr": (jnp.linalg.qr, NONE),
    "svd": (jnp.linalg.svd, SAME),
    "triangular_solve": (lambda a: lax.linalg.triangular_solve(a, SAME), NONE),
    "tridiagonal_solve": (lambda d: lax.linalg.tridiagonal_solve(ROW, d, ROW, ROW[:, None] + 1), ROW),
    "zeta": (lambda x: lax.zeta(jnp.full((), 2.0), lax.stop_gradient(x)), jnp.asarray(0.0)),  # its value
}
SINGULAR = sorted(n for n, t in TRAITS.items() if isinstance(n, str) and t.singular)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", SINGULAR)
def test_what_is_singular_is_not_finite_somewhere(name):
    """Its value, or its slope by JAX's forward mode."""
    found = []
    if name in ALONG:
        f, x = ALONG[name]
        found = jax.tree.leaves(jax.jvp(f, (x,), (jnp.arange(1.0, x.size + 1).reshape(x.shape),)))
    else:
        (p,) = (p for p in TABLE if p.name == name)
        for point in POINTS.get(name, [(-1.0,), (0.0,), (1.0,)]):
            f = lambda *xs: p.bind(*xs, **accuracy(p))
            found += jax.jvp(f, point, tuple(jnp.ones(len(point))))
    assert not all(np.isfinite(x).all() for x in found)


def accuracy(p):
    """The parameter that some elementwise primitives need."""
    return {"accuracy": None} if p.name in ("sqrt", "rsqrt", "cbrt", "log", "log1p", "log2") else {}


def test_what_is_cheap_is_repeatable():
    assert all(t.repeatable for t in TRAITS.values() if t.cheap)


def test_no_draw_is_repeatable():
    drawn = [e for e in equations(lambda k: jax.random.uniform(k, (3,)), jax.random.key(0)) if "random" in str(e)]
    assert drawn and not any(map(is_repeatable, drawn))


def test_of_an_unknown_primitive_nothing_is_assumed():
    assert traits_of(Primitive("nobody_knows_it")) == Traits()
    assert not Traits().cheap and not Traits().repeatable and not Traits().moves and not Traits().linear


def test_a_primitive_of_the_same_name_is_another_one():
    assert traits_of(Primitive("tanh")) == Traits() != traits_of(lax.tanh_p) == traits_of("tanh")


# --- costs ------------------------------------------------------------------------------------------------------------

x23, x34 = jnp.ones((2, 3)), jnp.ones((3, 4))
symmetric = jnp.eye(6)
rows_of = lambda x: x[jnp.array([0, 1])]
windows = lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID")
FLOPS = {  # counted by hand
    "a product": ("dot_general", lambda: ((lambda x, y: x @ y), x23, x34), 2 * 2 * 3 * 4),
    "a sum": ("reduce_sum", lambda: (lambda x: jnp.sum(x, 0), x23), 6),
    "elementwise": ("exp", lambda: (jnp.exp, x23), 6),
    "a comparison": ("gt", lambda: (lambda x: x > 0, x23), 0),
    "another shape": ("reshape", lambda: (lambda x: x.reshape(6), x23), 0),
    "a lookup": ("gather", lambda: (rows_of, x23), 0),
    "joined": ("concatenate", lambda: (lambda x: jnp.concatenate([x, x]), x23), 0),
    "sorted": ("sort", lambda: (lambda x: lax.sort(x), x23), 0),
    "added at places": ("scatter-add", lambda: (lambda x, u: x.at[0].add(u), x23, jnp.ones(3)), 3),
    "written at places": ("scatter", lambda: (lambda x, u: x.at[jnp.array([0, 1]), 0].set(u), x23, jnp.ones(2)), 0),
    "windows": ("reduce_window_sum", lambda: (windows, jnp.ones((3, 4))), (2 * 3) * (2 * 2)),
    "a running sum": ("cumsum", lambda: (lambda x: lax.cumsum(x, 1), x23), 6),
    "a solve": (
        "triangular_solve",
        lambda: (lambda a, b: jax.scipy.linalg.solve_triangular(a, b), symmetric, jnp.ones(6)),
        36,
    ),
    "a factorization": ("cholesky", lambda: (lax.linalg.cholesky, symmetric), 72),
    "a transform": ("fft", lambda: (jnp.fft.fft, jnp.ones((2, 8), complex)), 5 * 2 * 8 * 3),
}


@pytest.mark.parametrize("what", FLOPS)
def test_floating_point_operations(what):
    name, made, count = FLOPS[what]
    assert flops(the_equation(name, *made())) == count


def test_loops_count_as_often_as_they_run_and_of_branches_the_dearest():
    step = lambda h, w: (jnp.tanh(h @ w), None)
    loop = lambda h, ws: lax.scan(step, h, ws)[0]
    (scan,) = (e for e in equations(loop, x23, jnp.ones((5, 3, 3))) if e.primitive is primitives.scan_p)
    assert flops(scan) == 5 * (2 * 2 * 3 * 3 + 6)
    branches = lambda p, x: lax.cond(p, lambda x: x @ x.T @ x, lambda x: x, x)
    (cond,) = (e for e in equations(branches, True, x23) if e.primitive is primitives.cond_p)
    assert flops(cond) == 2 * (2 * 2 * 2 * 3)


def test_moving_numbers_is_no_arithmetic():
    assert flops(the_equation("transpose", jnp.transpose, x23)) == 0
    assert flops(the_equation("dot_general", lambda x, y: x @ y, x23, x34)) == 48


def test_the_planner_and_the_summary_count_alike():
    f = lambda x, y: jnp.sum(jnp.tanh(x @ y).reshape(8)[jnp.array([0, 3])])
    assert bp.summary(f)(x23, x34).forward == sum(map(flops, jax.make_jaxpr(f)(x23, x34).eqns))


def test_a_call_is_as_cheap_as_what_is_inside():
    cheap, dear = jax.jit(lambda x: jnp.sin(x) * 2), jax.jit(lambda x: x @ x.T)
    drawn = jax.jit(lambda k: jax.random.bits(k, (3,)))
    of = lambda f, x: jax.make_jaxpr(f)(x).eqns[0]
    assert is_cheap(of(cheap, x23)) and is_repeatable(of(cheap, x23))
    assert not is_cheap(of(dear, x23)) and is_repeatable(of(dear, x23))
    assert not is_repeatable(of(drawn, jax.random.key(0)))
    loop = lambda f: lambda x: lax.scan(lambda c, _: (f(c), None), x, None, 3)
    assert not is_cheap(of(loop(jnp.sin), x23)) and is_repeatable(of(loop(jnp.sin), x23))


# --- from outside -----------------------------------------------------------------------------------------------------


def made_up(name, impl):
    """An operation of one's own, as a user of JAX makes it."""
    p = Primitive(name)
    p.def_impl(impl)
    p.def_abstract_eval(lambda x: x)
    mlir.register_lowering(p, mlir.lower_fun(impl, multiple_results=False))
    batching.defvectorized(p)
    return p


def squareplus(x):
    return 0.5 * (x + jnp.sqrt(x * x + 4.0))


def slope(x, z, **_):
    return z / jnp.sqrt(x * x + 4.0)


def keep_both(primals, z, *_):
    return (*primals, z)


def loop_of(unit):
    start = jnp.ones(100, jnp.float32)
    return lambda w: lax.scan(lambda c, _: (jnp.sin(unit(c * w) * 2.0), None), start, None, 50)[0].sum()


@pytest.fixture(autouse=True)
def tables():
    """What is entered in the tables by a test leaves them after it."""
    rules, described = dict(TABLE), dict(TRAITS)
    yield
    for table, before in ((TABLE, rules), (TRAITS, described)):
        table.clear()
        table.update(before)


def test_the_documented_line_makes_a_primitive_as_good_as_jaxs_own():
    """One line, and a loop keeps what it keeps for the same function of `jnp` operations (cases/primitive_in_...)."""
    p = made_up("squareplus", squareplus)
    bp.rules.def_elementwise(p, slope, save=keep_both)
    w = jnp.float32(0.5)
    ours, theirs, tanh = (bp.residuals(loop_of(u))(w).total for u in (p.bind, squareplus, jnp.tanh))
    assert ours == theirs == tanh == 50 * 100 * 4
    assert jnp.allclose(bp.grad(loop_of(p.bind))(w), jax.grad(loop_of(squareplus))(w), rtol=1e-5)
    assert bp.summary(p.bind)(jnp.ones(7)).forward == 7


def test_traits_may_be_given_and_outlast_a_rule():
    p = made_up("squareplus again", squareplus)
    bp.rules.def_elementwise(p, slope, save=keep_both, traits=Traits(repeatable=True))
    assert not traits_of(p).cheap and traits_of(p).repeatable
    bp.rules.def_elementwise(p, slope, save=keep_both)
    assert not traits_of(p).cheap
    alone = made_up("squareplus alone", squareplus)
    def_traits(ELEMENTWISE, alone)
    assert traits_of(alone).cheap and alone not in TABLE


def test_a_line_is_a_value_too():
    """What `def_elementwise` puts into the table can be handed over as an option."""
    p = made_up("squareplus at last", squareplus)
    rule = bp.rules.elementwise_rule(slope, save=keep_both, name="squareplus")
    x = jnp.array([0.3, -1.0])
    total = lambda f: lambda x: f(x).sum()
    with pytest.raises(bp.MissingRuleError):
        bp.grad(total(p.bind))(x)
    got = bp.Backward(rules={p: rule}).grad(total(p.bind))(x)
    assert jnp.allclose(got, jax.grad(total(squareplus))(x), rtol=1e-12)
    assert rule.name == "squareplus_bwd"


def test_a_linear_and_a_bilinear_rule_are_values():
    halved = bp.rules.linear_rule(lambda ct, x: ct / 2)
    assert bp.Backward(rules={lax.neg_p: halved}).grad(lambda x: -x)(3.0) == 0.5
    swapped = bp.rules.bilinear_rule(lambda ct, y, x, **_: -ct * y, lambda ct, x, y, **_: 7 * ct * x, factored=False)
    got = bp.Backward(rules={lax.mul_p: swapped}).grad(lambda x, y: x * y, argnums=(0, 1))(2.0, 5.0)
    assert got == (-5.0, 14.0)
    lazy = bp.rules.bilinear_rule(lambda ct, y, x, **_: -ct * y, lambda ct, x, y, **_: 7 * ct * x)
    assert bp.Backward(rules={lax.mul_p: lazy}).grad(lambda x, y: x * y, argnums=(0, 1))(2.0, 5.0) == got


# --- in one place -----------------------------------------------------------------------------------------------------

PACKAGE = Path(bp.__file__).parent
NAMES = {p.name for p in TABLE} | {n for n in TRAITS if isinstance(n, str)} | set(UNSUPPORTED) | set(jx.public_names())
NAMES |= {f"{name}_p" for name in NAMES}


def lists_of_primitives(source):
    """Where a program lists primitives: a literal, a split string or a chain of comparisons with three names or more.

    A list of other things has words that happen to be names, too: names must be most of it. A dict from primitives to
    rules is what `Backward(rules=)` takes, and no list; nor is `__all__`, which names what a module defines.
    """
    tree = ast.parse(source)
    assigned = (n for n in ast.walk(tree) if isinstance(n, ast.Assign))
    exported = {id(n.value) for n in assigned if getattr(n.targets[0], "id", "") == "__all__"}
    for node in ast.walk(tree):
        if id(node) in exported:
            continue
        words = words_of(node)
        known = {w for w in words if w in NAMES}
        if len(known) >= 3 and 2 * len(known) > len(words):
            yield node.lineno, sorted(known)


def words_of(node):
    match node:
        case ast.Set(elts=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            return named(parts)
        case ast.Dict(keys=keys):
            return [k.value for k in keys if isinstance(k, ast.Constant)]
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="split")):
            return text.split()
        case ast.BoolOp(values=parts):
            return named([c for p in parts if isinstance(p, ast.Compare) for c in (p.left, *p.comparators)])
        case ast.Match(cases=cases):
            patterns = [n for case in cases for n in ast.walk(case.pattern)]
            return named([n.value for n in patterns if isinstance(n, ast.MatchValue)])
    return []


def named(nodes):
    """The words among expressions: strings, and the last part of `primitives.tanh_p`."""
    plain = [n.value if isinstance(n, ast.Starred) else n for n in nodes]
    strings = [n.value for n in plain if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return strings + [n.attr for n in plain if isinstance(n, ast.Attribute) and n.attr.endswith("_p")]


@pytest.mark.parametrize(
    "source",
    [
        'CHEAP = {"add", "mul", "exp"}',
        'if name in ("tanh", "logistic", "erf"): pass',
        'FREE = "reshape transpose squeeze".split()',
        "MOVES = [primitives.rev_p, primitives.reshape_p, *others, lax.transpose_p]",
        'known = name == "sin" or name == "cos" or name == "tan"',
        'COST = {"dot_general": 2, "add": 1, "mul": 1}',
        'match name:\n    case "scan": a\n    case "cond" | "while": b',
    ],
)
def test_a_list_of_primitives_is_found(source):
    assert len(list(lists_of_primitives(source))) == 1


def test_other_lists_are_not():
    assert not list(lists_of_primitives('__all__ = ["add_p", "mul_p", "exp_p"]'))
    assert not list(lists_of_primitives('COLUMNS = ("min", "mean", "max", "std", "zeros")'))
    assert not list(lists_of_primitives("rules = {lax.gt_p: above, lax.ge_p: above, lax.lt_p: below}"))


OF_XLA = PACKAGE / "remat" / "compiled.py"  # lists what passes of XLA's list: facts of the compiler, not of primitives
ELSEWHERE = (p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE / "rules" and p != OF_XLA)
MODULES = sorted(str(p.relative_to(PACKAGE)) for p in ELSEWHERE)


@pytest.mark.parametrize("path", MODULES)
def test_no_other_module_lists_primitives(path):
    """What is known of a primitive is asked of `traits_of`; who needs a new fact adds a trait."""
    found = list(lists_of_primitives((PACKAGE / path).read_text()))
    assert not found, f"{path} lists primitives at {found}: add a trait to rules/traits.py, and ask traits_of"
