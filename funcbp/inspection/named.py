"""The lean look inside: cotangents of named values beside the gradient, in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..autodiff.arguments import check_callable, check_input, check_scalar, holding_static, indices_of, split_arguments
from ..autodiff.backward_pass import check_names
from ..autodiff.tape import Entry, Tape
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree, Value

__all__ = ["by_name", "cotangents", "entry_at", "gradient_observed"]


def entry_at(tape: Tape, place: Sequence[int]) -> Entry:
    """The entry with these numbers, from the outermost tape in; a cond's number is followed by the branch's."""
    number, *rest = place
    entry = tape.entries[number]
    if not rest:
        return entry
    if entry.inside.kind is jx.Kind.COND:
        branch, *rest = rest
        return entry_at(entry.tapes[branch], rest)
    return entry_at(entry.tapes[0], rest)


def gradient_observed(
    backward: Backward,
    f: Callable[..., PyTree],
    argnums: int | Sequence[int],
    has_aux: bool,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
) -> tuple[PyTree, PyTree, Tape, dict[tuple[int, ...], PyTree]]:
    """`value_and_grad`, with the tape and what the observer made of its entries.

    Returns:
        The value (a pair with the auxiliary data, if any), the gradient (None for leaves that are no arrays), the tape,
        and what was observed, by the entries' numbers.
    """
    partial, chosen = holding_static(*split_arguments(f, argnums, args, kwargs))
    for x in jax.tree.leaves(chosen):
        check_input(x, False, True, "grad")
    value, pullback, *aux = backward.vjp(partial, *chosen, has_aux=has_aux)
    check_scalar(value, False)
    grads, seen = pullback.observed(jx.ones_as_cotangent(value))
    grads = grads[0] if isinstance(indices_of(argnums), int) else tuple(grads)
    return ((value, aux[0]) if has_aux else value), grads, pullback.tape, seen


@dataclass(frozen=True)
class Named:
    """An observer of the cotangents of named values."""

    names: tuple[str, ...] | None
    reduce: Callable[[jax.Array], PyTree] | None
    everything: bool = False

    def forward(self, primitive: str, params: dict[str, Any], values: Sequence[Value], outs: Sequence[Value]) -> PyTree:
        return None

    def backward(self, entry: Entry, noted: PyTree, ct: Sequence[jax.Array | Any]) -> PyTree:
        if entry.primitive != "name" or (self.names is not None and entry.params["name"] not in self.names):
            return None
        return ct[0] if self.reduce is None else self.reduce(ct[0])


def cotangents(
    f: Callable[..., PyTree],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    names: Sequence[str] | None = None,
    reduce: Callable[[jax.Array], PyTree] | None = None,
    backward: Backward | None = None,
) -> Callable[..., PyTree]:
    """Take out the cotangents of named values, or what is made of them, beside the value and the gradient.

    They are taken from the one backward pass there is, so it costs little, and it runs under `jax.jit`.

    Args:
        f: a function with a scalar output, in which values are named by `funcbp.name`.
        argnums: which arguments the gradient is taken with respect to, as in `jax.grad`.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        names: which names; by default all.
        reduce: a function of a cotangent that returns a pytree of arrays: its norm, its histogram. Left out, the
            cotangents themselves are returned.
        backward: the way of going backward, if not the default one.

    Returns:
        A function with the arguments of `f` that returns `(value, grads, found)`: with `has_aux`, value is a pair. In
        the dict `found` a cotangent from inside a loop is stacked along a leading axis, by the loop's steps; that of a
        branch not taken is zero. A name that several values bear has a tuple, in the order they are computed in.

    Raises:
        ValueError: one of `names` is not there; the message lists those that are.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> def loss(w, x):
        ...     layer = lambda h, w: (bp.name(jnp.tanh(h @ w), "h"), None)
        ...     return jnp.sum(jax.lax.scan(layer, x, w)[0])
        >>> watched = jax.jit(bp.cotangents(loss, reduce=jnp.linalg.norm))
        >>> value, grads, found = watched(jnp.ones((3, 2, 2)), jnp.zeros(2))
        >>> found["h"].round(3)
        Array([5.657, 2.828, 1.414], dtype=float32)
    """
    wanted = None if names is None else tuple(names)
    check_callable(f, argnums, has_aux)
    observing = as_backward(backward).observing(observer=Named(wanted, reduce))

    @functools.wraps(f)
    def observed(*args: PyTree, **kwargs: PyTree) -> tuple[PyTree, PyTree, dict[str, PyTree]]:
        value, grads, tape, seen = gradient_observed(observing, f, argnums, has_aux, args, kwargs)
        check_names(wanted or (), tape, "cotangents(names=...) has")
        return value, grads, by_name(tape, seen)

    return observed


def by_name(tape: Tape, seen: dict[tuple[int, ...], PyTree]) -> dict[str, PyTree]:
    """What was seen, by name. Of the branches of a cond one is taken and the others are zero, so they are summed."""
    found: dict[str, list[Any]] = {}
    branches: dict[Any, int] = {}
    for place in sorted(seen):
        name, value = entry_at(tape, place).params["name"], seen[place]
        is_cond = lambda i, place=place: entry_at(tape, place[:i]).inside.kind is jx.Kind.COND
        cond = next(filter(is_cond, range(1, len(place))), None)
        if cond is not None:
            nth = sum(1 for k in branches if k[:3] == (name, place[:cond], place[cond]))
            branches[name, place[:cond], place[cond], nth] = len(found.get(name, []))
            first = min(b for n, c, b, _ in branches if (n, c) == (name, place[:cond]))
            twin = branches.get((name, place[:cond], first, nth))
            if first != place[cond] and twin is not None and _alike(found[name][twin], value):
                found[name][twin] = jax.tree.map(jnp.add, found[name][twin], value)
                continue
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else tuple(values) for name, values in found.items()}


def _alike(a: PyTree, b: PyTree) -> bool:
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(t)] for t in (a, b)]
    return shapes[0] == shapes[1]
