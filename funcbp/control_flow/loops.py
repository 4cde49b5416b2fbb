"""Long loops in little memory: `scan` with a few snapshots of the state, and a `while_loop` that can be reversed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from .. import jaxpr as jx
from ..autodiff.arguments import is_array
from ..cotangents import is_differentiable
from ..jaxpr.types import PyTree

__all__ = ["scan", "while_loop"]

Carry = TypeVar("Carry")


def scan(
    f: Callable[[Carry, PyTree], tuple[Carry, PyTree]],
    init: Carry,
    xs: PyTree = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    *,
    snapshots: int | None = None,
) -> tuple[Carry, PyTree]:
    """Run `jax.lax.scan` with a backward pass that stores no more than `snapshots` states.

    Reversing T steps with S snapshots runs each of them at most r times more, with the smallest r for which
    C(S + r, S) ≥ T; the ys and xs are not counted. With T = 1000 and S = 10, r is 4, and all of it 3.64 sweeps
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

    References:
        A. Griewank, A. Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000).
    """
    how: dict[str, Any] = dict(length=length, reverse=reverse, unroll=unroll, _split_transpose=_split_transpose)
    if snapshots is None:
        return lax.scan(f, init, xs, **how)
    _check_positive("snapshots", snapshots)
    return _with_snapshots(lambda init, xs: lax.scan(f, init, xs, **how), (init, xs), snapshots=snapshots)


def while_loop(
    cond_fun: Callable[[Carry], ArrayLike],
    body_fun: Callable[[Carry], Carry],
    init_val: Carry,
    *,
    max_steps: int,
    snapshots: int | None = None,
    truncate: bool = False,
) -> Carry:
    """Run `jax.lax.while_loop` for at most `max_steps` steps, so that it can be differentiated backward.

    The number of steps need not be known before it runs. The sweep forward stores snapshots where reversing `max_steps`
    steps would want them; going back, the stretch after the last of them that was reached is reversed by the schedule
    for the number of steps it has. No step is rerun more than r + 1 times, with C(snapshots + r, snapshots) ≥
    max_steps.

    Args:
        cond_fun, body_fun, init_val: as in `jax.lax.while_loop`.
        max_steps: after so many steps the loop must have ended.
        snapshots: how many states are stored at any time, the first one included. By default as many as make r = 3.
        truncate: whether the loop ends after `max_steps`, whatever `cond_fun` says. It is another function then.

    Returns:
        The last state. Of a loop that has not ended after `max_steps`, where that is not known while it is traced
        (under `jit` or `vmap`), all floating-point arrays are nan, and so are derivatives; `funcbp.find_nan` explains.

    Raises:
        ValueError: `max_steps` or `snapshots` is not positive.
        RuntimeError: the loop has not ended after `max_steps`.
        NotImplementedError: it is differentiated backward twice; the second time goes in forward mode (`funcbp.hvp`).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> newton = lambda a: bp.while_loop(
        ...     lambda x: jnp.abs(x * x - a) > 1e-6, lambda x: (x + a / x) / 2, a, max_steps=50
        ... )
        >>> print(f"{bp.grad(newton)(4.0):.4f}")
        0.2500

    References:
        A. Griewank, A. Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000).
    """
    _check_positive("max_steps", max_steps)
    if snapshots is None:
        snapshots = next(s for s in range(1, max_steps + 1) if math.comb(s + 3, 3) >= max_steps)
    _check_positive("snapshots", snapshots)

    def goes_on(c: Any) -> ArrayLike:
        more = cond_fun(c[1])
        if not is_array(more) or np.shape(more) or jax.typeof(more).dtype != bool:
            got = jx.shown_type(jax.typeof(more)) if is_array(more) else repr(more)
            raise TypeError(f"The cond_fun of while_loop returns one boolean, and this one returned {got}.")
        return (c[0] < max_steps) & more

    def plain(init: PyTree) -> PyTree:
        return lax.while_loop(goes_on, lambda c: (c[0] + np.int32(1), body_fun(c[1])), (np.int32(0), init))

    count, last = _with_snapshots(plain, (init_val,), snapshots=snapshots, max_steps=max_steps)
    taken = jx.concrete(count)
    if truncate or (taken is not None and int(taken) < max_steps):
        return last
    unfinished = (count >= max_steps) & cond_fun(lax.stop_gradient(last))
    known = jx.concrete(unfinished)
    if known is None:
        return jax.tree.map(lambda x: jx.poisoned(x, unfinished) if is_differentiable(x) else x, last)
    if known:
        where = jx.user_line(jx.current_source())
        raise RuntimeError(
            f"funcbp.while_loop{where and f' at {where}'} has not ended after max_steps={max_steps} steps: its "
            "condition still holds. Give it more steps, or ask for the loop cut short: truncate=True."
        )
    return last


def _with_snapshots(plain: Callable[..., PyTree], args: tuple[PyTree, ...], **own: int) -> PyTree:
    """Run a function that is one loop of JAX's as the same loop with snapshots."""
    leaves, tree = jax.tree.flatten(args)
    leaves = [*map(jx.as_array, leaves)]
    flat = lambda *leaves: plain(*jax.tree.unflatten(tree, leaves))
    program, out_tree = jx.trace_tree(flat, [*map(jax.typeof, leaves)], "loop")
    program, operands, written = jx.on_values(program, leaves)
    program = jx.with_snapshots(program, own)
    return jax.tree.unflatten(out_tree, written(jx.run(program.jaxpr, operands)))


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is a positive integer, and was {value!r}.")
