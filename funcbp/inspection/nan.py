"""Blame: the first equation that made a number which is not finite, and which of the known traps it fell into."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.arguments import (
    check_callable,
    check_concrete,
    holding_static,
    is_array,
    name_of,
    split_arguments,
    which_differentiated,
)
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree, Value
from ..rules.traits import UNKNOWN, Singularity, traits_of
from .replay import Birth, first_birth, replay
from .statistics import Statistics, statistics
from .widened import is_float

__all__ = ["FindNan", "Nonfinite", "find_nan"]


class Trap(NamedTuple):
    """A known way to get a number that is not finite, and the way out."""

    name: str
    remedy: str


DOUBLE_WHERE = (
    "The derivative of the side not chosen is infinite there, and 0 · ∞ is nan. Choose a safe argument first, then the "
    "result: safe = jnp.where(ok, x, 1.0); y = jnp.where(ok, f(safe), other)."
)
TRAPS = {
    "where": Trap("where over a bad branch", DOUBLE_WHERE),
    "sqrt": Trap("sqrt at 0", "Its derivative 1/(2√x) is infinite at 0. Add a small constant under the root, or use "
                 "jnp.where twice: for a safe argument, and for the result."),
    "norm": Trap("norm at 0", "A norm has no derivative at the zero vector. Use the squared norm, or "
                 "jnp.sqrt(jnp.sum(x**2) + eps)."),
    "log": Trap("log at 0", "log(0) is -∞ and its derivative infinite. Use jnp.log(x + eps), jax.nn.log_softmax, "
                "jnp.log1p, or jax.scipy.special.xlogy for x log y."),
    "pow": Trap("x**p at 0", "The derivative p x**(p-1) is infinite at 0 for p < 1, and x**y has log x in it. Keep x "
                "away from 0, or use an integer power."),
    "division": Trap("division by 0", "Add a small constant to the denominator, or divide by a safe one and choose "
                     "with jnp.where afterwards."),
    "edge": Trap("end of the domain", "There, or at a pole, the derivative or the value is infinite. Keep the argument "
                 "inside: jnp.clip(x, -1 + eps, 1 - eps) for arcsin, arccos, arctanh and erfinv."),
    "negative": Trap("argument outside the domain", "sqrt, log and fractional powers of a negative number are nan, and "
                     "so are arccos and arcsin beyond ±1. Check the range, or clip rounding: jnp.maximum(x, 0)."),
    "softmax": Trap("inf - inf in a softmax", "A row without any finite entry: every position is masked. Mask with a "
                    "large finite number (jnp.finfo(x.dtype).min), or choose another result for such rows."),
    "inf": Trap("inf - inf", "Two infinities of the same sign cancel to nan. Use large finite numbers instead, or keep "
                "the infinities apart with jnp.where."),
    "half": Trap("overflow in half precision", "float16 ends at 65504. Use bfloat16 or float32 here, or scale the loss "
                 "down."),
    "overflow": Trap("overflow", "The result is larger than the dtype's largest number. Subtract the maximum before "
                     "exp, use jax.nn.logsumexp or log_softmax, or scale down."),
    "spectrum": Trap("equal eigenvalues", "The derivative of eigenvectors has 1/(λᵢ - λⱼ) in it, and that of singular "
                     "vectors 1/(sᵢ² - sⱼ²): where two are equal, the vectors are not unique. Use the values alone "
                     "(jnp.linalg.eigvalsh), something that is the same for all choices of vectors, or keep the values "
                     "apart: add a small diagonal of distinct numbers."),
    "matrix": Trap("singular matrix", "It has no inverse, or is not positive definite. Add a small multiple of the "
                   "identity, or use jnp.linalg.lstsq or jnp.linalg.pinv."),
    "unfinished": Trap("max_steps reached", "The funcbp.while_loop there had not ended after max_steps, so what it "
                       "would have returned is not known. Give it more steps, or ask for it cut short: truncate=True."),
}  # fmt: skip
OUTSIDE = (Singularity.ROOT, Singularity.LOG, Singularity.POWER)  # not numbers at negative arguments
POWERS = (Singularity.ROOT, Singularity.POWER, Singularity.DIVISION)  # infinite where their last or only operand is 0
FARTHEST_POLE = 1  # of the functions of one argument, upwards: beyond it an infinity is an overflow


class Place(NamedTuple):
    """Where a number that is not finite was made.

    Attributes:
        operation: the operation of the program: the primitive, or on the way back the one whose rule this is part of.
        backward: whether it is in a derivative.
        table: whether it is in a rule of the table's, which knows where the operation is singular; not in a user's.
    """

    operation: str
    backward: bool
    table: bool


def place_of(root: Birth, in_value: bool, replaced: Mapping[str, str]) -> Place:
    """Read from the name scope where a birth is.

    Args:
        root: the birth.
        in_value: whether it reaches the value, and so is not in the derivative that is taken of it.
        replaced: the operations whose rules are not the table's, by the names of those rules.
    """
    rules = re.findall(r"transpose\(([^()/]*)\)", root.scope)
    tangents = re.findall(r"jvp\((\w+)_tangent\)", root.scope)
    if in_value or not (rules or tangents):
        return Place(root.primitive or "", False, False)
    if tangents and tangents[0] != "custom_jvp":
        return Place(tangents[0], True, True)
    if not rules:
        return Place(root.primitive or "", True, False)
    operation = rules[-1].removesuffix("_bwd")
    if rules[-1] in replaced or operation == "custom_vjp":
        return Place(replaced.get(rules[-1], operation), True, False)
    return Place(operation, True, True)


def trap_of(birth: Birth, root: Birth, place: Place) -> Trap | None:
    """Which known trap this is. `root` is the first birth, `birth` the nan that came of it (the same, mostly)."""
    through = jx.called_through(root.source) | jx.called_through(birth.source)
    if root.primitive == "unfinished_loop":
        return TRAPS["unfinished"]
    if "transpose(" in birth.scope and birth.nan and _zero_times_infinity(birth) and birth.chosen:
        return TRAPS["where"]
    if root.primitive == "sub" and root.nan and all(np.isinf(x).any() for x in root.operands):
        in_softmax = any("softmax" in f or "logsumexp" in f or "attention" in f for f in through)
        return TRAPS["softmax" if in_softmax else "inf"]
    trap = _trap_here(root)
    kind = traits_of(place.operation).singular if place.table else None
    if kind is None or trap in (None, "overflow", "half"):
        return TRAPS[trap] if trap else None
    return TRAPS["norm" if kind is Singularity.ROOT and "norm" in through else kind]


def _trap_here(root: Birth) -> str | None:
    """Which trap this one equation fell into, by its own operands: those that made what is not finite."""
    traits = traits_of(root.primitive)
    kind, operands = traits.singular, [root.operand(i) for i in range(len(root.operands))]
    below = lambda x, bound: not np.iscomplexobj(x) and bool((x < bound).any())
    if kind is Singularity.MATRIX:
        return "matrix"
    if root.nan:
        if (kind in OUTSIDE and below(operands[0], 0)) or kind is Singularity.EDGE:
            return "negative"
        return "division" if kind is Singularity.DIVISION and (operands[-1] == 0).any() else None
    if kind is Singularity.LOG:
        return "log"
    if kind is Singularity.EDGE and any(below(x, FARTHEST_POLE + 1e-6) for x in operands):
        return "edge"
    if kind in POWERS and (operands[-1 if kind is Singularity.DIVISION else 0] == 0).any():
        return "division"
    if traits == UNKNOWN:
        return None
    return "half" if root.result.dtype == np.float16 else "overflow"


def _zero_times_infinity(birth: Birth) -> bool:
    """Whether the nan is 0 · ∞, or 0 / 0 which is the same, undivided."""
    zero = any((x == 0).any() for x in birth.operands)
    infinite = any(np.isinf(x).any() for x in birth.operands)
    return zero and (infinite or traits_of(birth.primitive).singular in (Singularity.DIVISION, Singularity.POWER))


class Nonfinite:
    """What `find_nan` found: the first equation whose result is not finite although its operands were.

    It is true if something was found.

    Attributes:
        primitive: the equation's primitive.
        operation: the operation of the program; on the way back, the one whose rule the equation is part of.
        backward: whether it is in the backward pass, or in a derivative that is taken on the way forward.
        line: `file:line (function)` of the user's program.
        library: the line of the library that this led to, or "" where it is the user's own.
        scope: the name scope.
        steps: the numbers of the loop steps around it, outermost first.
        operands: statistics of the operands.
        result: statistics of the result.
        trap: the known trap it fell into, or None.
        remedy: what to do about that trap.
        arguments: which arguments were not finite to begin with.
        finite_value: whether the value is finite all the same: then it is the gradient that is not.
    """

    def __init__(
        self,
        birth: Birth | None,
        arguments: Sequence[str] = (),
        in_value: bool = False,
        replaced: Mapping[str, str] | None = None,
        finite_value: bool = True,
    ):
        self.arguments, self.finite_value = tuple(arguments), finite_value
        self._birth = birth
        root = birth.root if birth is not None else None
        located = root is not None and root.primitive is not None
        self.primitive = root.primitive if root is not None and located else None
        place = place_of(root, in_value, replaced or {}) if root is not None and located else None
        self.operation = place.operation if place is not None else None
        self.backward = place is not None and place.backward
        self.line = root.line if root is not None and located else ""
        self.library = root.library if root is not None and located else ""
        self.scope = root.scope if root is not None and located else ""
        self.steps = root.steps if root is not None else ()
        self.operands: list[Statistics] = [statistics(x) for x in root.operands] if root is not None else []
        self.result = statistics(root.result) if root is not None else None
        trap = trap_of(birth, root, place) if birth is not None and root is not None and place is not None else None
        self.trap = None if trap is None else trap.name
        self.remedy = None if trap is None else trap.remedy

    def __bool__(self) -> bool:
        return self._birth is not None

    def __repr__(self) -> str:
        return f"Nonfinite({str(self)!r})"

    def __str__(self) -> str:
        birth = self._birth
        if birth is None:
            return "The value and the gradient are finite."
        what = "nan" if birth.root.nan else "inf"
        if self.primitive is None:
            where = " and ".join(self.arguments) or "a constant of the program"
            return f"There is {what} in {where}, before anything was computed."
        part = f"the backward pass of `{self.operation}`" if self.backward else f"`{self.primitive}`, going forward"
        where = ", in ".join(filter(None, (self.line, self.library)))
        lines = [f"The first {what} is made in {part} at {where or 'an unknown line'}."]
        if self.backward and self.primitive != self.operation:
            lines[0] = lines[0][:-1] + f" (by `{self.primitive}`)."
        if self.scope:
            lines.append(f"  name scope: {self.scope}")
        if self.steps:
            lines.append(f"  loop step: {', '.join(map(str, self.steps))}")
        lines += [f"  operand {i}: {s}" for i, s in enumerate(self.operands)]
        lines.append(f"  result:    {self.result}")
        if birth.root is not birth:
            lines.append(f"It became nan in `{birth.primitive}` at {birth.line or 'an unknown line'}.")
        if self.trap is not None:
            lines.append(f"This is a known trap: {self.trap}. {self.remedy}")
        if self.arguments:
            lines.append(f"Not finite to begin with: {', '.join(self.arguments)}.")
        return "\n".join(lines)


class FindNan:
    """The function that `find_nan` returns."""

    def __init__(self, f: Callable[..., PyTree], argnums: int | Sequence[int], has_aux: bool, backward: Backward):
        check_callable(f, argnums, has_aux)
        self.f, self.argnums, self.has_aux, self.backward = f, argnums, has_aux, backward
        functools.update_wrapper(self, f, updated=())

    def __repr__(self) -> str:
        return f"find_nan({name_of(self.f)}), to be called with the arguments of {name_of(self.f)}"

    def _gradient(self, backward: Backward, *args: PyTree, **kwargs: PyTree) -> Value:
        partial, chosen = holding_static(*split_arguments(self.f, self.argnums, args, kwargs))
        numbers = tuple(range(len(chosen)))
        value, grads = backward.value_and_grad(partial, numbers, has_aux=self.has_aux, allow_int=True)(*chosen)
        return (value[0] if self.has_aux else value), grads

    def whether(self, *args: PyTree, **kwargs: PyTree) -> jax.Array:
        """Whether the value or the gradient is not finite: a boolean, cheap, and at home in a jitted training step."""
        leaves = [x for x in jax.tree.leaves(self._gradient(self.backward, *args, **kwargs)) if is_float(x)]
        return ~jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> Nonfinite:
        """Replay both passes equation by equation, and blame the first one."""
        instead = "Call find_nan(f).whether(...) there, and this outside."
        check_concrete("find_nan(f)(...)", (args, kwargs), instead)
        differentiated = which_differentiated(self.f, self.argnums, args)
        backward = self.backward.observing(inline_calls=True)
        gradient = lambda args, kwargs: self._gradient(backward, *args, **kwargs)
        of_arrays, arrays = holding_static(gradient, (args, kwargs), differentiated=differentiated)
        leaves, tree = jax.tree.flatten(arrays)
        leaves = [jnp.asarray(x) for x in leaves]

        in_values: list[int] = []

        def flat(*leaves: Value) -> list[Value]:
            value, grads = of_arrays(*jax.tree.unflatten(tree, leaves))
            floats = lambda tree: [x for x in jax.tree.leaves(tree) if is_float(x)]
            in_values.append(len(floats(value)))
            return floats(value) + floats(grads)

        outs = replay(jx.trace_on(flat, leaves), leaves)
        first = first_birth(birth for births in outs for birth in births)
        of_value = [birth.root for births in outs[: in_values[-1]] for birth in births]
        bad = [
            path
            for path, x in _paths(self.f, args, kwargs)
            if is_array(x) and is_float(x) and not jnp.isfinite(x).all()
        ]
        in_value = first is not None and first.root in of_value
        return Nonfinite(first, bad, in_value, _replaced(self.backward), finite_value=not of_value)


def _replaced(backward: Backward) -> dict[str, str]:
    """The operations whose rules are not the table's, by the names of those rules."""
    name = lambda key: key.partition(" at ")[0] if isinstance(key, str) else key.name
    return {rule.name: name(key) for key, rule in backward.options.rules.items()}


def _paths(f: Callable[..., PyTree], args: PyTree, kwargs: PyTree) -> list[tuple[str, Value]]:
    """The arguments' arrays by path, as in `params/dense_0/kernel`."""
    try:
        named = inspect.signature(f).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        named = {f"argument {i}": x for i, x in enumerate(args)} | kwargs
    leaves = jax.tree_util.tree_leaves_with_path(dict(named))
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]


def find_nan(
    f: Callable[..., PyTree],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    backward: Backward | None = None,
) -> FindNan:
    """Find the first equation, forward and then backward, whose result is not finite although its operands were.

    Only what matters is blamed: an infinity that never reaches the value or the gradient (a mask of -inf before a
    softmax, `1/x` behind a `where`) is as intended. A nan made of infinities is blamed on the equation that made the
    first of them; infinities written into the program or passed to it are taken as meant.

    Args:
        f: a function with a scalar output.
        argnums: which arguments are differentiated with respect to, as in `jax.grad`.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        backward: the way of going backward, if not the default one.

    Returns:
        `find(*args) -> Nonfinite`, which runs both passes again in Python, one equation at a time: slow, and it tells
        everything. `find.whether(*args)` is the cheap question, for use under `jax.jit`.

    Raises:
        TypeError: the function that was returned is called on tracers.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))
        >>> found = bp.find_nan(loss)(jnp.array([4.0, 0.0]))
        >>> found.operation, found.backward, found.trap
        ('sqrt', True, 'where over a bad branch')
    """
    return FindNan(f, argnums, has_aux, as_backward(backward))
