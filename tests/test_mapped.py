"""Programs mapped over a mesh, and named axes: values, types and communication are those of JAX's gradient."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P, lax
from jax._src.lax import parallel
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

import funcbp as bp
from funcbp import jaxpr as jx

from .devices import environment
from .mapped_programs import MESHES, PROGRAMS


def meshed(on="line", kind=AxisType.Auto):
    """A mesh without devices."""
    return AbstractMesh(*MESHES[on], axis_types=(kind,) * len(MESHES[on][1]))


def communication(program):
    """How many collectives of each kind a traced program has; a change of the type alone is none."""
    names = (o.eqn.primitive.name for o in jx.equations(program) if o.eqn.primitive.name in COLLECTIVES)
    return collections.Counter(names)


COLLECTIVES = """
    psum psum_invariant pmax pmin all_gather all_gather_invariant reduce_scatter all_to_all ragged_all_to_all ppermute
    pbroadcast unreduced_psum all_gather_reduced unreduced_reduce_scatter
""".split()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_types_and_communication_of_gradients(program):
    mesh, which = meshed(program.mesh), tuple(range(len(program.args)))
    with use_abstract_mesh(mesh):
        ours, theirs = (jax.make_jaxpr(t.grad(program.make(mesh), which))(*program.args) for t in (bp, jax))
    assert communication(ours) == communication(theirs)
    assert ours.out_avals == theirs.out_avals


@pytest.mark.slow
@pytest.mark.long
def test_values_on_eight_devices():
    program = Path(__file__).with_name("mapped_programs.py")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment(8), timeout=600)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == len(PROGRAMS) + 10
    for line in lines:
        assert line["difference"] < 1e-6, line
        assert line.get("ours") == line.get("JAX's"), line


ONE = jnp.ones(8, jnp.int32)
RULES = {
    "ragged_all_to_all": lambda x: lax.ragged_all_to_all(x, 2 * x, ONE - 1, ONE, ONE - 1, ONE, axis_name="data"),
    "all_gather, the same everywhere": lambda x: lax.all_gather(x, "data", axis=1, to="invarying", tiled=True),
    "all_gather, reduced": lambda x: lax.pcast(lax.all_gather(x, "data", to="reduced"), "data", to="varying"),
    "unreduced": lambda x: parallel.unreduced_psum(lax.pcast(x, "data", to="unreduced"), "data"),
    "unreduced, scattered": lambda x: parallel.unreduced_psum_scatter(lax.pcast(x, "data", to="unreduced"), "data"),
    "reduced": lambda x: lax.pcast(lax.pcast(lax.psum(x, "data"), "data", to="reduced"), "data", to="varying"),
}


@pytest.mark.parametrize("name", RULES)
def test_types_and_communication_of_rules(name):
    """Of those that the programs do not have."""
    mesh = meshed(kind=AxisType.Explicit)
    x = jax.ShapeDtypeStruct((64, 4), jnp.float32, sharding=jax.NamedSharding(mesh, P("data")))

    def of(t):
        f = lambda x: t.grad(lambda x: jnp.sum(jnp.sin(RULES[name](x))))(x)
        program = jax.make_jaxpr(jax.shard_map(f, in_specs=P("data"), out_specs=P("data")))(x)
        (body,) = jx.inside_of(program.eqns[-1]).programs
        return communication(body), [v.aval for v in body.outvars]

    with use_abstract_mesh(mesh):
        assert of(bp) == of(jax)


GATHERED = {  # of x, gathered, whose cotangent is a sum that has not been taken
    "the largest": jnp.max,
    "the smallest": jnp.min,
    "rows that are looked up": lambda y: y[jnp.array([1, 1, 2])].sum(),
    "the place of the largest": lambda y: y[jnp.argmax(y)],
}


@pytest.mark.parametrize("name", GATHERED)
def test_what_is_gathered_has_a_cotangent_to_be_summed(name):
    """Zeros are of that type, too: where the look-up writes into some, JAX has others, and fails."""
    mesh = meshed(kind=AxisType.Explicit)
    x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=jax.NamedSharding(mesh, P("data")))
    f = lambda x: GATHERED[name](lax.all_gather(x, "data", tiled=True, to="reduced"))
    f = jax.jit(jax.shard_map(f, out_specs=P(reduced={"data"})))
    with use_abstract_mesh(mesh):
        try:
            jax.make_jaxpr(f)(x)
        except ValueError:
            pytest.skip("this JAX does not know of what is computed of it that it has such a cotangent")
        program = jax.make_jaxpr(bp.grad(f))(x)
    assert program.out_avals == program.in_avals
    assert list(communication(program)) == ["all_gather_reduced", "unreduced_reduce_scatter"]


reshard, einsum = jax.sharding.reshard, jnp.einsum
inner = lambda f, **how: jax.sharding.auto_axes(f, out_sharding=P("data"), **how)
EXPLICIT = {
    "an embedding": (lambda w, x: w.at[lax.iota(int, 8)].get(out_sharding=P("data")), P(), P("data")),
    "axes left to the compiler": (lambda w, x: inner(lambda x: x * jnp.sin(x) + x**2)(x), P(), P("data")),
    "axes given back": (
        lambda w, x: inner(jax.sharding.explicit_axes(jnp.sin, in_sharding=P("data")))(x),
        P(),
        P("data"),
    ),
    "an unreduced product": (
        lambda w, x: reshard(einsum("ij,jk->ik", x, w, out_sharding=P(unreduced={"data"})), P("data")),
        P("data"),
        P(None, "data"),
    ),
    "a reduced weight, twice": (lambda w, x: jnp.sin(x @ w) + x @ w, P(reduced={"data"}), P("data")),
    "a reduced weight in a region": (jax.checkpoint(lambda w, x: jnp.sin(x @ w)), P(reduced={"data"}), P("data")),
    "a reduced weight in a map": (
        jax.shard_map(lambda w, x: jnp.sin(x @ lax.pcast(w, "data", to="varying")), out_specs=P("data")),
        P(reduced={"data"}),
        P("data"),
    ),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_types_over_an_explicit_mesh(name):
    f, of_w, of_x = EXPLICIT[name]
    mesh = meshed(kind=AxisType.Explicit)
    args = [jax.ShapeDtypeStruct((8, 8), np.float64, sharding=jax.NamedSharding(mesh, s)) for s in (of_w, of_x)]
    with use_abstract_mesh(mesh):
        ours, theirs = (jax.make_jaxpr(t.grad(lambda *a: jnp.sum(f(*a) ** 2), (0, 1)))(*args) for t in (bp, jax))
    assert ours.out_avals == theirs.out_avals
    counts = [collections.Counter(o.eqn.primitive.name for o in jx.equations(p)) for p in (ours, theirs)]
    assert counts[0]["reshard"] == counts[1]["reshard"] and communication(ours) == communication(theirs)


def test_a_product_with_what_is_joined_over_an_explicit_mesh():
    """Three of the eight rows of a divided weight cannot be taken out of it: the cotangent is made whole."""
    mesh = meshed(kind=AxisType.Explicit)
    w = jax.ShapeDtypeStruct((8, 4), np.float64, sharding=jax.NamedSharding(mesh, P("data")))
    h = jax.ShapeDtypeStruct((8, 3), np.float64, sharding=jax.NamedSharding(mesh, P()))
    product = lambda h, w: jnp.matmul(jnp.concatenate([jnp.ones((8, 5)), h], 1), w, out_sharding=P())
    with use_abstract_mesh(mesh):
        ours, theirs = (jax.make_jaxpr(t.grad(lambda *a: jnp.sum(product(*a) ** 2)))(h, w) for t in (bp, jax))
    assert ours.out_avals == theirs.out_avals and communication(ours) == communication(theirs)


def test_a_sort_over_an_explicit_mesh():
    """The rule of JAX 0.10.2 has a counter that is laid out otherwise, and fails."""
    mesh = meshed(kind=AxisType.Explicit)
    x = jax.ShapeDtypeStruct((8, 8), np.float64, sharding=jax.NamedSharding(mesh, P("data")))
    with use_abstract_mesh(mesh):
        program = jax.make_jaxpr(bp.grad(lambda x: jnp.sum(lax.sort(x, dimension=1) ** 2)))(x)
    assert program.out_avals == program.in_avals


def test_a_mapped_gradient_of_a_lookup_is_divided_as_the_table_is():
    """The lookup runs in a context without explicit axes: what comes out of it is divided in that of the table."""
    mesh = meshed(kind=AxisType.Explicit)
    tables, rows = (
        jax.ShapeDtypeStruct((8, n), t, sharding=jax.NamedSharding(mesh, P("data")))
        for n, t in ((16, np.float64), (4, np.int32))
    )
    mean = lambda table, rows: jnp.mean(table.at[rows].get(out_sharding=P(None)))
    with use_abstract_mesh(mesh):
        assert jax.make_jaxpr(jax.vmap(bp.grad(mean)))(tables, rows).out_avals == [jax.typeof(tables)]


def once(w, x):
    return jax.sharding.auto_axes(lambda c: w * c, out_sharding=P())(x)


def cubed(w, x):
    """w³ x, by a model that closes over w and runs in a context without explicit axes."""
    return lax.scan(lambda c, _: (once(w, c), None), x, None, length=3)[0]


AUTOMATIC = {  # at w = x = 2
    "a loop": (bp.grad(cubed), 24),  # 3 w² x
    "second order": (bp.grad(bp.grad(cubed)), 24),  # 6 w x
    "a branch": (bp.grad(lambda w, x: lax.cond(x > 0, cubed, once, w, x)), 24),
    "a region": (bp.grad(jax.checkpoint(cubed)), 24),
    "a map": (lambda w, x: jnp.sum(jax.vmap(bp.grad(cubed), (None, 0))(w, x * jnp.arange(2.0))), 24),
    "beside what is outside": (bp.grad(lambda w, x: once(w, x) + w * w), 6),  # x + 2 w: JAX fails
}


@pytest.mark.parametrize("name", AUTOMATIC)
def test_numbers_that_know_of_no_mesh_go_into_automatic_axes(name):
    f, right = AUTOMATIC[name]
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))):
        assert jax.jit(f)(2.0, 2.0) == right


def test_a_cotangent_leaves_a_map_over_automatic_axes_as_it_is():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    f = jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    names = lambda f: [eqn.primitive.name for eqn in jax.make_jaxpr(f)(jnp.ones(8)).eqns]
    assert names(bp.vjp(f, jnp.ones(8))[1]) == ["shard_map"]
    assert names(lambda x: bp.vjp(lambda x: f(f(x)), x)[1](x)) == ["shard_map"] * 4


@pytest.mark.parametrize("computed", [False, True] if hasattr(parallel, "pbroadcast_dynamic_p") else [False])
def test_a_broadcast_over_a_named_axis(computed):
    """JAX's own rule is for numbers alone."""
    x, c = np.arange(4.0).reshape(4, 1) * np.ones(3), np.arange(12.0).reshape(4, 3)
    f = lambda x, c, source: jnp.sum(c * jnp.sin(lax.pbroadcast(x, "data", source if computed else 2)))
    got = jax.vmap(bp.grad(f), in_axes=(0, 0, None), axis_name="data")(x, c, 2)
    assert np.allclose(got, np.where(np.arange(4)[:, None] == 2, np.cos(x) * c.sum(0), 0), rtol=1e-14)


DIVERGENT = {  # of a row x of each device, and of a weight w that all have
    "one branch": lambda x, w: lax.cond(x[0, 0] > 0, lambda: jnp.tanh(x @ w), lambda: x * 1.0),
    "both branches, twice": lambda x, w: lax.cond(x[0, 0] > 0, lambda: jnp.tanh(x @ w), lambda: x @ w * (x @ w)),
    "of four": lambda x, w: lax.switch((x[0, 0] > 0).astype(int), [lambda: x, lambda: x @ w] * 2),
    "in a jit": lambda x, w: lax.cond(x[0, 0] > 0, lambda: jax.jit(jnp.matmul)(x, w), lambda: x * 1.0),
    "in a loop": lambda x, w: lax.fori_loop(0, 2, lambda _, x: DIVERGENT["one branch"](x, w), x),
    "in a region": jax.checkpoint(lambda x, w: DIVERGENT["one branch"](x, w)),
    "in a branch that all take": lambda x, w: lax.cond(w[0, 0] > 0, DIVERGENT["one branch"], lambda x, w: x, x, w),
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_no_device_waits_in_a_branch_that_others_do_not_enter(name):
    """The sum over the devices is after the branch, also in the second derivative. JAX waits in it forever."""

    def waits(program):
        divergent = lambda eqn: eqn.primitive.name == "cond" and "data" in jx.varying(eqn.invars[0].aval)
        found = [o.eqn for o in jx.equations(program) if divergent(o.eqn)]
        assert found
        return [communication(branch) for eqn in found for branch in eqn.params["branches"] if communication(branch)]

    mapped = jax.shard_map(DIVERGENT[name], mesh=meshed(), in_specs=(P("data"), P()), out_specs=P("data"))
    first = bp.grad(lambda w, x: jnp.sum(mapped(x, w) ** 2))
    second = bp.grad(lambda w, x: jnp.sum(first(w, x) * w))
    with use_abstract_mesh(meshed()):
        x, w = np.ones((8, 4)), np.ones((4, 4))
        assert not waits(jax.make_jaxpr(first)(w, x)) and not waits(jax.make_jaxpr(second)(w, x))
        assert waits(jax.make_jaxpr(jax.grad(lambda w: jnp.sum(mapped(x, w) ** 2)))(w))


@pytest.mark.parametrize("split, concat", [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0)])
def test_parts_exchanged_along_other_axes(split, concat):
    """x̄ of device d at its part s is what device s has for its part d. JAX's own rule gives another type, and fails."""
    x, c = np.random.default_rng(0).normal(size=(2, 3, 3, 3, 3))
    exchange = lambda x: lax.all_to_all(x, "data", split, concat)
    back = np.moveaxis(np.moveaxis(c, concat + 1, 0), 1, split + 1)
    got = jax.vmap(bp.grad(lambda x, c: jnp.sum(c * exchange(jnp.sin(x)))), axis_name="data")(x, c)
    assert np.allclose(got, np.cos(x) * back, rtol=1e-14)

    through = jax.vmap(bp.Backward().attach(lambda x, c: jnp.sum(c * exchange(jnp.sin(x)))), axis_name="data")
    assert np.allclose(jax.grad(lambda x: jnp.sum(through(x, c)))(x), np.cos(x) * back, rtol=1e-14)

    mapped = jax.shard_map(lambda x: exchange(x[0])[None], mesh=meshed(), in_specs=P("data"), out_specs=P("data"))
    x = jax.ShapeDtypeStruct((8, 8, 8, 8), np.float64)
    with use_abstract_mesh(meshed()):
        assert communication(jax.make_jaxpr(bp.grad(lambda x: jnp.sum(mapped(x))))(x)) == {"all_to_all": 2}


# --- what is refused --------------------------------------------------------------------------------------------------

ONE_DEVICE = dict(in_specs=P("data"), out_specs=P("data"))


@pytest.mark.parametrize("collective", [lax.pmax, lax.pmin])
def test_what_has_no_derivative_is_refused_by_name(collective):
    f = jax.shard_map(lambda x: x / collective(x, "data"), mesh=meshed(), **ONE_DEVICE)
    with pytest.raises(bp.MissingRuleError, match=rf"`{collective.__name__}` at .*test_mapped.* JAX's .* none either"):
        jax.eval_shape(bp.grad(lambda x: jnp.sum(f(x))), jnp.arange(8.0))


def test_a_cotangent_that_differs_where_its_primal_is_the_same_is_refused():
    """It would be off by what the other devices have to say."""
    rules = {
        lax.sin_p: bp.rule(
            lambda x, ct, perturbed, **_: [lax.axis_index("data").astype(ct.dtype) * ct], save=bp.rules.NOTHING
        )
    }
    f = lambda x, w: jnp.sum(lax.pcast(jnp.sin(w), "data", to="varying") * x)
    local = lambda x, w: bp.Backward(rules=rules).grad(f, 1)(x, w)
    mapped = jax.shard_map(local, mesh=meshed(), in_specs=(P("data"), P()), out_specs=P())
    with pytest.raises(TypeError, match=r"another one on each device along 'data'.*psum"):
        jax.eval_shape(mapped, jnp.ones(8), jnp.ones(1))

    seeded = lambda x: bp.vjp(lambda w: lax.psum(w * x, "data"), x)[1](x)
    with pytest.raises(ValueError, match=r"must vary over the mesh axes that the output varies over"):
        jax.eval_shape(jax.shard_map(seeded, mesh=meshed(), **ONE_DEVICE), jnp.ones(8))


# --- marks, edits and options -----------------------------------------------------------------------------------------


@jax.jit
def mapped_loss(x, w):
    """A loss with a name and a weight in a map, over the one device that there is."""
    f = lambda x, w: lax.pmean(jnp.sum(bp.name(x @ w, "net") ** 2), "data")
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())(x, w)


def test_edits_feedback_weights_and_rules_reach_into_maps():
    x, w, b = np.arange(6.0).reshape(2, 3), np.ones((3, 1)), np.array([[1.0], [2.0], [3.0]])
    edited = bp.Backward(edits={"net": lambda ct, cts: 5 * ct}).grad(mapped_loss, 1)(x, w)
    assert np.allclose(edited, 5 * 2 * x.T @ x @ w)
    assert np.allclose(bp.grad(lambda x: mapped_loss(x, bp.feedback(w, b)))(jnp.asarray(x)), 2 * x @ w @ b.T)
    zero = bp.Backward(rules={lax.dot_general_p: bp.rule(lambda res, ct, perturbed, **_: [0 * y for y in res])})
    assert not zero.grad(mapped_loss, 1)(x, w).any()


@pytest.mark.slow
def test_what_looks_sees_a_map():
    x, w = np.arange(6.0).reshape(2, 3), np.ones((3, 1))
    trace = bp.trace(mapped_loss)(x, w)
    assert "inside shard_map" in str(trace) and np.allclose(trace["net"].cotangent, 2 * x @ w)
    _, _, named = bp.cotangents(mapped_loss)(x, w)
    assert np.allclose(named["net"], 2 * x @ w)


@pytest.mark.parametrize("check_vma", [True, False])
def test_what_one_device_keeps_is_its_own_on_an_axis_of_any_name(check_vma):
    """A number that is kept is the device's own; taken for that of all, second derivatives were averaged over them."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
    mapped = jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma)
    scalars = jax.shard_map(
        lambda x: jnp.sin(x[0])[None], mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma
    )
    for f in (mapped, scalars):
        traced = jax.make_jaxpr(bp.grad(lambda x, f=f: jnp.sum(f(x))))(jnp.ones(1))
        forward, backward = (eqn.params for eqn in traced.eqns if eqn.primitive.name == "shard_map")
        assert set(forward["out_specs"]) == set(backward["in_specs"]) == {P("data")}
