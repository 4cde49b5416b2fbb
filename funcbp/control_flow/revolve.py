"""Long loops in little memory: a few snapshots of the state, and the steps between them run again.

Reversing l steps from a stored state, with s places for states (that one included), costs least when the next snapshot
is put m steps on, the steps after it are reversed with s - 1 places, and then those before it with s again (Griewank
and Walther, "Algorithm 799: Revolve", 2000). With β(s, r) = C(s + r, s), l ≤ β(s, r) steps can be reversed running none
of them forward more than r times, and no schedule does better. What to do next follows from the snapshots there are and
the step to be reversed, so the schedule needs no list: it is a stack of positions inside the compiled loop, and the
number of steps may be known only when it runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import jaxpr as jx
from ..autodiff.transformations import vjp
from ..cotangents import is_differentiable
from ..jaxpr import Program

__all__ = ["Action", "scan", "schedule", "while_loop"]


# --- the schedule -----------------------------------------------------------------------------------------------------


@functools.cache
def _binomials(snapshots: int, steps: int) -> np.ndarray:
    """β(s, r) = C(s + r, s) for s ≤ snapshots, until two snapshots suffice; no more than `steps` + 1 is told apart."""
    rows = max(2, math.isqrt(2 * steps) + 2)
    return np.array(
        [[min(math.comb(s + r, s), steps + 1) for r in range(rows)] for s in range(snapshots + 1)], np.int32
    )


def split(binomials: Any, steps: Any, places: Any) -> Any:
    """How many steps on the next snapshot goes, to reverse `steps` ≥ 2 of them with `places` ≥ 2 for states."""
    r = (binomials[places] < steps).sum(
        dtype=np.int32
    )  # the fewest runs that suffice: β(places, r - 1) < steps ≤ β(places, r)
    before, after = binomials[places, r - 1], steps - binomials[places - 1, r - 1]
    return (np if isinstance(binomials, np.ndarray) else jnp).minimum(before, after)


class Action(NamedTuple):
    """One thing a schedule does.

    Attributes:
        kind: `"advance"`: run the steps from `start` to `stop`; `"store"`: keep the state before step `start`;
            `"drop"`: forget it; `"reverse"`: go back through step `start`.
        start, stop: numbers of steps.
    """

    kind: str
    start: int
    stop: int


def schedule(steps: int, snapshots: int) -> list[Action]:
    """What is done to reverse a loop, the first sweep forward included.

    Args:
        steps: of the loop.
        snapshots: how many states are stored at any time, the first one included.

    Returns:
        The actions, in order. The compiled loops do these, and nothing else.

    Example:
        >>> from funcbp.control_flow import revolve
        >>> actions = revolve.schedule(1000, 10)
        >>> sum(a.stop - a.start for a in actions if a.kind == "advance") / 1000
        3.64
    """
    binomials = _binomials(snapshots, steps)
    stack = first_snapshots(steps, snapshots)
    ends = [*stack[1:], steps]
    actions = [a for p, q in zip(stack, ends, strict=True) for a in (Action("store", p, p), Action("advance", p, q))]
    for t in reversed(range(steps)):
        while stack[-1] < t and len(stack) < snapshots:
            stop = stack[-1] + int(split(binomials, t + 1 - stack[-1], snapshots - len(stack) + 1))
            actions += [Action("advance", stack[-1], stop), Action("store", stop, stop)]
            stack.append(stop)
        if stack[-1] < t:
            actions.append(Action("advance", stack[-1], t))
        actions.append(Action("reverse", t, t + 1))
        if stack[-1] == t:
            actions.append(Action("drop", stack.pop(), t))
    return actions


def first_snapshots(steps: int, snapshots: int) -> list[int]:
    """Before which steps the first sweep stores the state."""
    binomials, stack = _binomials(snapshots, steps), [0]
    while len(stack) < snapshots and steps - stack[-1] > 1:
        stack.append(stack[-1] + int(split(binomials, steps - stack[-1], snapshots - len(stack) + 1)))
    return stack


# --- the loop ---------------------------------------------------------------------------------------------------------


class Loop:
    """A loop of at most `steps` steps, differentiated with `snapshots` stored states.

    Args:
        body: program (*constants, *state, *x) -> (*state, *y).
        condition: program (*constants, *state) -> whether to go on, for a loop that may stop early; its own constants.
        n_state: how many arrays the state has.
    """

    def __init__(self, body: Program, condition: Program | None, n_state: int, steps: int, snapshots: int, **how: Any):
        self.body, self.condition, self.n_state, self.how = body, condition, n_state, how
        self.steps, self.snapshots = steps, snapshots
        self.advance, _ = body.with_outputs(body.outvars[:n_state]).pruned(keep_inputs=True)
        self.reverse = how.get("reverse", False)

    def __call__(self, consts: Any, init: Any, xs: Any) -> tuple[Any, Any]:
        """Run it: the last state, and the ys."""
        if self.condition is None:
            step = lambda state, x: self._split(self.body(*consts[0], *state, *x))
            return lax.scan(step, init, xs, self.steps, **self.how)
        go_on = lambda c: (c[0] < self.steps) & self.condition(*consts[1], *c[1])[0]
        return lax.while_loop(go_on, lambda c: (c[0] + 1, self.advance(*consts[0], *c[1])), (jnp.int32(0), init))[1], []

    def _split(self, outs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return list(outs[: self.n_state]), list(outs[self.n_state :])

    def forward(self, consts: Any, init: Any, xs: Any) -> tuple[Any, Any]:
        """Run it, storing the snapshots that the schedule for the largest number of steps begins with."""
        places = np.array(first_snapshots(self.steps, self.snapshots), np.int32)
        stored = [jnp.broadcast_to(x[None], (self.snapshots, *x.shape)) for x in init]

        def store(stored: Any, t: Any, state: Any) -> Any:
            slot = jnp.minimum((jnp.asarray(places) < t).sum(dtype=np.int32), len(places) - 1)
            return _store(stored, slot, state, jnp.asarray(places)[slot] == t)

        if self.condition is None:

            def step(carry: Any, tx: Any) -> Any:
                (state, stored), (t, x) = carry, tx
                new, y = self._split(self.body(*consts[0], *state, *x))
                return (new, store(stored, t, state)), y

            (last, stored), ys = lax.scan(step, (init, stored), (self._numbers(), xs), self.steps, **self.how)
            count = jnp.int32(self.steps)
        else:
            go_on = lambda c: (c[0] < self.steps) & self.condition(*consts[1], *c[1])[0]  # type: ignore[misc]
            step_on = lambda c: (c[0] + 1, self.advance(*consts[0], *c[1]), store(c[2], c[0], c[1]))
            count, last, stored = lax.while_loop(go_on, step_on, (jnp.int32(0), init, stored))
            ys = []
        return (last, ys), (consts, xs, stored, count)

    def _numbers(self) -> Any:
        numbers = np.arange(self.steps, dtype=np.int32)
        return jnp.asarray(numbers[::-1] if self.reverse else numbers)

    def backward(self, res: Any, ct: Any) -> tuple[Any, Any, Any]:
        """Reverse the steps one by one, the last first, each from its state."""
        consts, xs, stored, count = res
        places = np.zeros(self.snapshots, np.int32)
        first = first_snapshots(self.steps, self.snapshots)
        places[: len(first)] = first
        used = (jnp.asarray(first, np.int32) < count).sum(dtype=np.int32)
        binomials = jnp.asarray(_binomials(self.snapshots, self.steps))
        x_at = lambda t: [lax.dynamic_index_in_dim(x, self.steps - 1 - t if self.reverse else t, 0, False) for x in xs]

        def run(state: Any, start: Any, stop: Any) -> Any:
            return lax.fori_loop(start, stop, lambda t, s: self.advance(*consts[0], *s, *x_at(t)), state)

        def store_more(stack: Any, t: Any) -> Any:
            """Snapshots between the last one and step t, while there is room."""

            def step(stack: Any) -> Any:
                places, used, stored = stack
                at = places[used - 1]
                stop = at + split(binomials, t + 1 - at, self.snapshots - used + 1)
                state = run(_read(stored, used - 1), at, stop)
                return places.at[used].set(stop), used + 1, _store(stored, used, state, True)

            return lax.while_loop(lambda s: (s[0][s[1] - 1] < t) & (s[1] < self.snapshots), step, stack)

        def back(carry: Any, t: Any, x: Any, ct_ys: Any) -> tuple[Any, Any]:
            stack, sums, ct_state = carry
            places, used, stored = store_more(stack, t)
            state = run(_read(stored, used - 1), places[used - 1], t)
            parts = consts[0], state, x
            floats, rebuild = _partition([v for part in parts for v in part])
            _, pullback = vjp(lambda *floats: _floats(self.body(*rebuild(floats))), *floats)
            cts = iter(pullback([*ct_state, *ct_ys]))
            to_consts, ct_state, ct_x = ([next(cts) for _ in _floats(part)] for part in parts)
            sums = [a + b for a, b in zip(sums, to_consts, strict=True)]
            used = used - (places[used - 1] == t).astype(np.int32)
            return ((places, used, stored), sums, ct_state), ct_x

        sums = [jnp.zeros_like(c) for c in _floats(consts[0])]
        ct_state, ct_ys = ([c for c in cts if c.dtype != jx.float0] for cts in ct)
        carry = ((jnp.asarray(places), used, stored), sums, ct_state)
        if self.condition is None:
            along = (self._numbers(), xs, ct_ys)
            step = lambda carry, at: back(carry, *at)
            (_, sums, ct_init), ct_xs = lax.scan(step, carry, along, self.steps, reverse=not self.reverse)
        else:
            one = lambda i, carry: back(carry, count - 1 - i, xs, [])[0]
            (_, sums, ct_init), ct_xs = lax.fori_loop(jnp.int32(0), count, one, carry), []
        return ([_fill(sums, consts[0]), [None] * len(consts[1])], _fill(ct_init, stored), _fill(ct_xs, xs))


def _read(stored: Any, slot: Any) -> Any:
    return [lax.dynamic_index_in_dim(s, slot, 0, False) for s in stored]


def _store(stored: Any, slot: Any, state: Any, really: Any) -> Any:
    new = (
        state if really is True else [jnp.where(really, a, b) for a, b in zip(state, _read(stored, slot), strict=True)]
    )
    return [lax.dynamic_update_index_in_dim(s, x, slot, 0) for s, x in zip(stored, new, strict=True)]


def _partition(values: Sequence[Any]) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """The values that have a cotangent; and a function that puts others in their place."""
    floating = [is_differentiable(v) for v in values]

    def rebuild(floats: Sequence[Any]) -> list[Any]:
        given = iter(floats)
        return [next(given) if f else v for f, v in zip(floating, values, strict=True)]

    return _floats(values), rebuild


def _floats(values: Sequence[Any]) -> list[Any]:
    return [v for v in values if is_differentiable(v)]


def _fill(cts: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """A cotangent for each value: None for those that have none."""
    given = iter(cts)
    return [next(given) if is_differentiable(v) else None for v in like]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(loop: Loop, consts: Any, init: Any, xs: Any) -> Any:
    return loop(consts, init, xs)


_run.defvjp(lambda loop, *args: loop.forward(*args), lambda loop, res, ct: loop.backward(res, ct))


# --- what the user calls ----------------------------------------------------------------------------------------------


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    *,
    snapshots: int | None = None,
) -> tuple[Any, Any]:
    """`jax.lax.scan`, whose backward pass stores no more than `snapshots` states.

    Reversing T steps with S snapshots runs each of them at most r times more, with the smallest r for which
    C(S + r, S) ≥ T; the ys and xs are there anyway. With T = 1000 and S = 10, r is 4, and all of it 3.64 sweeps
    forward, the first one included. Differentiable by `funcbp` and by `jax.grad`; a second time in forward mode
    (`funcbp.hvp`).

    Args:
        f, init, xs, length, reverse, unroll: as in `jax.lax.scan`.
        snapshots: how many states are stored at any time, the first one included. Without it this is `jax.lax.scan`,
            whose steps `funcbp` plans by minimum cut.

    Returns:
        The last state, and the stacked ys.

    Raises:
        ValueError: `snapshots` is not positive.
        NotImplementedError: with `snapshots`, it is differentiated backward twice.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> f = lambda x: bp.scan(lambda c, _: (jnp.sin(c), None), x, length=100, snapshots=4)[0]
        >>> print(f"{bp.grad(f)(1.0):.5f}")
        0.00370

    Source: A. Griewank, A. Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000).
    """
    plain = functools.partial(
        lax.scan, f, length=length, reverse=reverse, unroll=unroll, _split_transpose=_split_transpose
    )
    if snapshots is None:
        return plain(init, xs)
    _check_snapshots(snapshots)
    out_types = jax.eval_shape(plain, init, xs)  # with JAX's own errors where f does not fit
    xs, xs_tree = jax.tree.flatten(xs)
    xs = [jnp.asarray(x) for x in xs]
    steps = length if length is not None else len(xs[0])
    if steps == 0:
        return plain(init, jax.tree.unflatten(xs_tree, xs))
    state, tree = _as_state(init, out_types[0])

    def flat(*args: Any) -> list[Any]:
        n = len(state)
        carry, y = f(jax.tree.unflatten(tree, args[:n]), jax.tree.unflatten(xs_tree, args[n:]))
        return [_strong(v) for v in jax.tree.leaves((carry, y))]

    program = jx.trace(flat, [*map(jax.typeof, state), *(jx.row(jax.typeof(x)) for x in xs)], "body")
    loop = Loop(Program(program.jaxpr), None, len(state), steps, min(snapshots, steps), reverse=reverse, unroll=unroll)
    last, ys = _run(loop, [list(program.consts), []], state, xs)
    return jax.tree.unflatten(tree, last), jax.tree.unflatten(jax.tree.structure(out_types[1]), ys)


def while_loop(
    cond_fun: Callable[[Any], Any],
    body_fun: Callable[[Any], Any],
    init_val: Any,
    *,
    max_steps: int,
    snapshots: int | None = None,
) -> Any:
    """`jax.lax.while_loop` of at most `max_steps` steps, that can be differentiated backward.

    The number of steps need not be known before it runs. The sweep forward stores snapshots where reversing `max_steps`
    steps would want them; going back, the stretch after the last of them that was reached is reversed by the schedule
    for the number of steps it has. No step is run more than r + 1 times again, with C(snapshots + r, snapshots) ≥
    max_steps.

    Args:
        cond_fun, body_fun, init_val: as in `jax.lax.while_loop`.
        max_steps: the loop ends after so many steps, whatever `cond_fun` says.
        snapshots: how many states are stored at any time, the first one included. By default as many as make r = 3.

    Returns:
        The last state.

    Raises:
        ValueError: `max_steps` or `snapshots` is not positive.
        NotImplementedError: it is differentiated backward twice; the second time goes in forward mode (`funcbp.hvp`).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> newton = lambda a: bp.while_loop(
        ...     lambda x: jnp.abs(x * x - a) > 1e-6, lambda x: (x + a / x) / 2, a, max_steps=50
        ... )
        >>> print(f"{bp.grad(newton)(4.0):.4f}")
        0.2500

    Source: A. Griewank, A. Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000).
    """
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps is a positive integer, and was {max_steps!r}.")
    if snapshots is None:
        snapshots = next(s for s in range(1, max_steps + 1) if math.comb(s + 3, 3) >= max_steps)
    _check_snapshots(snapshots)
    out_types = jax.eval_shape(lambda x: lax.while_loop(cond_fun, body_fun, x), init_val)
    state, tree = _as_state(init_val, out_types)
    flat = lambda *s: [_strong(v) for v in jax.tree.leaves(body_fun(jax.tree.unflatten(tree, s)))]
    types = [jax.typeof(x) for x in state]
    body = jx.trace(flat, types, "body")
    condition = jx.trace(lambda *s: [cond_fun(jax.tree.unflatten(tree, s))], types, "condition")
    programs = Program(body.jaxpr), Program(condition.jaxpr)
    loop = Loop(*programs, len(state), max_steps, min(snapshots, max_steps))
    last, _ = _run(loop, [list(body.consts), [lax.stop_gradient(c) for c in condition.consts]], state, [])
    return jax.tree.unflatten(tree, last)


def _check_snapshots(snapshots: Any) -> None:
    if isinstance(snapshots, bool) or not isinstance(snapshots, int) or snapshots < 1:
        raise ValueError(f"snapshots is a positive integer, and was {snapshots!r}.")


def _as_state(init: Any, out_types: Any) -> tuple[list[Any], Any]:
    """The arrays of a state, of the types it comes out of a step with, and its structure."""
    leaves, tree = jax.tree.flatten(init)
    return [_strong(jnp.asarray(x), t.dtype) for x, t in zip(leaves, jax.tree.leaves(out_types), strict=True)], tree


def _strong(x: Any, dtype: Any = None) -> Any:
    x = jnp.asarray(x)
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else lax.convert_element_type(x, dtype or x.dtype)
