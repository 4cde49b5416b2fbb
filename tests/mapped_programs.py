"""Programs on a mesh of eight devices: each a loss, and the arguments it is differentiated with respect to.

`test_mapped.py` traces them on a mesh without devices. Run as a program, in a process with eight CPU devices, this
prints a JSON line for each: how far the gradient is from JAX's, and the communication of both when compiled.
"""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P, lax
from jax.sharding import AxisType

import funcbp as bp

MESHES = {"line": ((8,), ("data",)), "grid": ((4, 2), ("data", "model"))}
ROUND = [(k, (k + 1) % 8) for k in range(8)]


class Mapped(NamedTuple):
    """A loss over a mesh: `make(mesh)` is a function of `args`."""

    name: str
    mesh: str
    make: Callable[[Any], Callable[..., Any]]
    args: tuple[Any, ...]


PROGRAMS: list[Mapped] = []
rng = np.random.default_rng(0)


def program(name: str, *shapes: tuple[int, ...], mesh: str = "line") -> Callable[[Any], None]:
    """Enter what makes the loss of a mesh, whose arguments have these shapes."""
    args = tuple(rng.normal(size=shape).astype(np.float32) / 2 for shape in shapes)
    return lambda make: PROGRAMS.append(Mapped(name, mesh, make, args))


def body(name: str, *shapes: tuple[int, ...], mesh: str = "line", checks: Any = (True, False), **how: Any) -> Any:
    """Enter the body of a shard_map, whose outputs are squared and summed, with and without varying types."""

    def enter(f: Callable[..., Any]) -> None:
        for check in checks:

            def make(mesh: Any, check: bool = check) -> Callable[..., Any]:
                mapped = jax.shard_map(f, mesh=mesh, check_vma=check, **how)
                return lambda *args: sum(jnp.sum(y**2) for y in jax.tree.leaves(mapped(*args)))

            program(name if check else f"{name}, unchecked", *shapes, mesh=mesh)(make)

    return enter


# --- how networks are trained on many devices -------------------------------------------------------------------------


@body("data parallel", (4, 6), (6, 3), (16, 4), in_specs=(P(), P(), P("data")), out_specs=P())
def data_parallel(w, v, x):
    return lax.pmean(jnp.mean((jnp.tanh(x @ w) @ v) ** 2), "data")


@body("synchronised batch norm", (4, 6), (16, 4), in_specs=(P(), P("data")), out_specs=P("data"))
def batch_norm(w, x):
    h = x @ w
    centred = h - lax.pmean(jnp.mean(h, 0), "data")[None]
    return jnp.tanh(centred * lax.rsqrt(lax.pmean(jnp.mean(centred**2, 0), "data") + 1e-3)[None])


@body("fully sharded", (8, 6), (8, 3), (16, 8), in_specs=P("data"), out_specs=P("data"))
def fully_sharded(w, v, x):
    w, v = (lax.all_gather(p, "data", tiled=True) for p in (w, v))
    return jnp.tanh(x @ w) @ v[:6]


@body(
    "tensor parallel",
    (4, 8),
    (8, 3),
    (16, 4),
    mesh="grid",
    in_specs=(P(None, "model"), P("model"), P("data")),
    out_specs=P("data"),
)
def tensor_parallel(w, v, x):
    return lax.psum(jnp.tanh(x @ w) @ v, "model")


@body("pipeline", (8, 4, 4), (3, 4), in_specs=(P("data"), P()), out_specs=P("data"))
def pipeline(w, x):
    def tick(h, t):
        h = jnp.tanh(jnp.where(lax.axis_index("data") == 0, x[t % 3], h) @ w[0])
        return lax.ppermute(h, "data", ROUND), h

    return lax.scan(tick, 0 * w[0, 0], jnp.arange(10))[1][7:]


@body("ring attention", (16, 4), (16, 4), (16, 4), in_specs=P("data"), out_specs=P("data"))
def ring_attention(q, k, v):
    def step(carry, _):
        largest, total, out, k, v = carry
        s = q @ k.T
        new = jnp.maximum(largest, lax.stop_gradient(jnp.max(s, 1)))
        p, old = jnp.exp(s - new[:, None]), jnp.exp(largest - new)
        carry = new, total * old + jnp.sum(p, 1), out * old[:, None] + p @ v
        return (*carry, *(lax.ppermute(y, "data", ROUND) for y in (k, v))), None

    zero = 0 * lax.stop_gradient(q)
    (_, total, out, *_), _ = lax.scan(step, (zero[:, 0] - 30.0, zero[:, 0], zero, k, v), length=8)
    return out / total[:, None]


@body("expert routing", (8, 4, 5), (64, 4), (4, 8), in_specs=(P("data"), P("data"), P()), out_specs=P("data"))
def expert_routing(w, x, router):
    sent = jnp.einsum("te,td->etd", jax.nn.softmax(x @ router), x)
    there = lax.all_to_all(sent, "data", 0, 0)
    return jnp.sum(lax.all_to_all(jnp.tanh(there @ w[0]), "data", 0, 0), 0)


# --- collectives, specs, and programs inside programs -----------------------------------------------------------------


@body("collectives of every kind", (8, 8), in_specs=P("data"), out_specs=P("data"))
def every_kind(x):
    y = lax.psum_scatter(jnp.sin(lax.all_gather(x[0], "data", axis=1)), "data", scatter_dimension=0)
    y = lax.pshuffle(y, "data", [3, 2, 1, 0, 7, 6, 5, 4]) * lax.psum(y, "data")
    y = y + lax.all_to_all(x[0], "data", 0, 0, tiled=True) * lax.ppermute(y, "data", [(0, 3), (5, 1)])
    return jnp.exp(y / 9 - lax.pmax(lax.stop_gradient(y), "data") / 9)[None]


@body("numbers are saved, and leave", (8, 4), (4,), (4,), in_specs=(P("data"), P(), P()), out_specs=(P(), P("data")))
def numbers(x, a, b):
    s = jnp.sin(jnp.sum(x * a[None]))
    return lax.psum(s * jnp.exp(b), "data"), (s**3 * b)[None]


@body("loops, branches and regions", (8, 4), (4, 4), in_specs=(P("data"), P()), out_specs=P("data"))
def programs_inside(x, w):
    x = jax.checkpoint(lambda x, w: jnp.sin(lax.psum(x @ w, "data")) * x)(x, w)
    x = lax.cond(w[0, 0] < 9, lambda x, w: jnp.tanh(x @ w), lambda x, w: x * 1.0, x, w)
    return lax.fori_loop(0, 2, lambda _, x: jax.jit(jnp.cos)(x @ w), x)


@body("sums over groups", (8, 4), checks=[False], in_specs=P("data"), out_specs=P("data"))
def groups(x):
    return x * lax.psum(x**2, "data", axis_index_groups=[[0, 1, 2, 3], [4, 5, 6, 7]])


@body(
    "only one axis is mapped",
    (8, 4),
    (2, 4),
    mesh="grid",
    axis_names={"data"},
    in_specs=(P("data"), P()),
    out_specs=P(),
)
def partial_axes(x, w):
    return lax.psum(jnp.tanh(x @ w.T), "data")


@program("closed over", (16, 4), (4,))
def closed_over(mesh):
    def loss(x, w):
        f = lambda x: lax.psum(x * jnp.sin(w)[None], "data")
        return jnp.sum(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P())(x) ** 2)

    return loss


@program("in scan and jit", (8, 4), (4,))
def in_scan(mesh):
    f = lambda x, w: x * lax.pmean(jnp.sin(x @ w), "data")[:, None]
    f = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")))
    return lambda x, w: jnp.sum(lax.scan(lambda x, _: (f(x, w), None), x, length=3)[0] ** 2)


def over_examples(mesh, check):
    f = jax.shard_map(
        lambda x: x * lax.psum(jnp.sin(x), "data"), mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check
    )
    return lambda x: jnp.sum(jax.vmap(f, spmd_axis_name="model")(jnp.concatenate([x, x[:1]])) ** 2)


program("examples over another axis", (3, 8, 4), mesh="grid")(functools.partial(over_examples, check=True))
program("examples over another axis, unchecked", (3, 8, 4), mesh="grid")(functools.partial(over_examples, check=False))


@program("second order", (8, 4), (4,))
def second_order(mesh):
    f = lambda x, w: lax.pmean(jnp.sum(jnp.tanh(x * w[None])), "data")
    f = jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
    return lambda x, w: jax.jvp(functools.partial(f, x), (w,), (w**2,))[1]


# --- comparing --------------------------------------------------------------------------------------------------------

COLLECTIVE = r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("


def communication(compiled: Any) -> dict[str, int]:
    return collections.Counter(re.findall(COLLECTIVE, compiled.as_text()))


def difference(a: Any, b: Any) -> float:
    leaf = lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y))) / np.max(np.abs(np.asarray(y))))
    return max(jax.tree.leaves(jax.tree.map(leaf, a, b)))


def main() -> None:
    for name, on, make, args in PROGRAMS:
        mesh = jax.make_mesh(*MESHES[on], axis_types=(AxisType.Auto,) * len(MESHES[on][1]))
        with jax.set_mesh(mesh):
            which = tuple(range(len(args)))
            ours, theirs = (jax.jit(t.grad(make(mesh), which)).lower(*args).compile() for t in (bp, jax))
            line = {"program": name, "difference": difference(ours(*args), theirs(*args))}
            print(json.dumps(line | {"ours": communication(ours), "JAX's": communication(theirs)}), flush=True)
    x, w = PROGRAMS[-1].args
    for name, f in inside().items():
        print(json.dumps({"program": name, "difference": difference(f(bp)(x, w), f(jax)(x, w))}), flush=True)


def inside() -> dict[str, Callable[[Any], Any]]:
    """Gradients that each device takes, and gradients through the older way of mapping; by the module that does."""
    mesh = jax.make_mesh(*MESHES["line"], axis_types=(AxisType.Auto,))
    how = dict(mesh=mesh, in_specs=(P("data"), P()), out_specs=(P("data"), P()))
    loss = lambda x, w: jnp.sum(jnp.sin(x * lax.pmean(w * jnp.sum(x), "data")) ** 2)
    both = lambda t: lambda x, w: t.grad(loss, (0, 1))(x, w)
    means = lambda t: lambda x, w: lax.pmean(both(t)(x, w), "data")
    over = dict(axis_name="data", in_axes=(0, None))

    def in_a_map(x: Any, w: Any) -> Any:
        """Its own derivative JAX cannot compile: what is saved inside varies over the outer map's axis, too."""
        half = lambda x: jnp.sin(x) * lax.psum(x, "model")
        half = jax.shard_map(half, in_specs=P("model"), out_specs=P("model"), axis_names={"model"})
        grid = jax.make_mesh(*MESHES["grid"], axis_types=(AxisType.Auto,) * 2)
        whole = jax.shard_map(
            lambda x, w: half(x * w[None]),
            mesh=grid,
            in_specs=(P("data"), P()),
            out_specs=P("data"),
            axis_names={"data"},
        )
        with jax.set_mesh(grid):
            return jax.jit(bp.grad(lambda x, w: jnp.sum(whole(x, w) ** 2), (0, 1)))(x, w)

    def without_maps(x: Any, w: Any) -> Any:
        pairs = (x * w[None]).reshape(4, 2, 4)
        return jnp.sum((jnp.sin(pairs) * jnp.sum(pairs, 1, keepdims=True)) ** 2)

    def in_branches(x: Any, w: Any) -> Any:
        """JAX's own derivative waits forever: a sum over all devices is in a branch that some do not enter."""
        f = jax.shard_map(branches, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
        return jax.jit(bp.grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1)))(x, w)

    def branches(x: Any, w: Any) -> Any:
        return lax.cond(x[0, 0] > 0, lambda: jnp.tanh(x * w[None]), lambda: x * jnp.sum(x * w[None]))

    def without_devices(x: Any, w: Any) -> Any:
        return sum(jnp.sum(branches(x[i : i + 1], w) ** 2) for i in range(len(x)))

    def of_examples(x: Any, w: Any) -> Any:
        """A second derivative, of which JAX's own has the examples of one device on both."""
        grid = jax.make_mesh(*MESHES["grid"], axis_types=(AxisType.Auto,) * 2)
        each = lambda x, w: x * lax.psum(jnp.sin(x * w[None]), "data")
        each = jax.shard_map(each, mesh=grid, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
        return second(bp, jax.vmap(each, in_axes=(0, None), spmd_axis_name="model"))(x, w)

    def of_whole(x: Any, w: Any) -> Any:
        return second(jax, lambda x, w: x * jnp.sum(jnp.sin(x * w[None, None]), 1, keepdims=True))(x, w)

    def second(t: Any, f: Callable[..., Any]) -> Callable[..., Any]:
        total = lambda x, w: jnp.sum(f(x.reshape(2, 4, 4), w) ** 2)
        return jax.jit(t.grad(lambda x, w: t.grad(total, 1)(x, w) @ w**2, (0, 1)))

    def of_cotangents(t: Any) -> Callable[..., Any]:
        """JAX refuses the same, if what it keeps is divided over the axis of the examples."""
        grid = jax.make_mesh(*MESHES["grid"], axis_types=(AxisType.Auto,) * 2)
        each = lambda x: x * 0 + jnp.sum(jnp.sin(x), 0, keepdims=True)
        each = jax.jit(jax.shard_map(each, mesh=grid, in_specs=P("data"), out_specs=P("data"), check_vma=False))
        axis = "model" if t is bp else None
        return lambda x, w: jax.vmap(t.vjp(each, x)[1], spmd_axis_name=axis)(jnp.stack([x * w, jnp.cos(x)]))

    return {
        "a pullback of examples over another axis": of_cotangents,
        "branches that some devices take": lambda t: in_branches if t is bp else jax.grad(without_devices, (0, 1)),
        "twice, examples over another axis, unchecked": lambda t: of_examples if t is bp else of_whole,
        "a map inside a map": lambda t: in_a_map if t is bp else jax.grad(without_maps, (0, 1)),
        "a gradient of each device": lambda t: jax.shard_map(both(t), **how),
        "a gradient of each device, unchecked": lambda t: jax.shard_map(
            lambda x, w: (both(t)(x, w)[0], means(t)(x, w)[1]), check_vma=False, **how
        ),
        "pmap of a gradient": lambda t: jax.pmap(means(t), **over),
        "gradient of a pmap": lambda t: t.grad(lambda x, w: jnp.sum(jax.pmap(loss, **over)(x, w)), (0, 1)),
        "vmap of a gradient": lambda t: jax.vmap(means(t), **over),
        "gradient of a vmap": lambda t: t.grad(lambda x, w: jnp.sum(jax.vmap(loss, **over)(x, w)), (0, 1)),
    }


if __name__ == "__main__":
    main()
