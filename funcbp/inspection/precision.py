"""Where numbers lose their digits: each equation of both passes beside a float64 shadow of the same program."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.arguments import check_callable, check_concrete, holding_static, name_of, which_differentiated
from ..autodiff.backward_pass import listed
from ..autodiff.tape import Entry
from ..autodiff.transformations import Backward, as_backward
from ..cotangents import Cotangent
from ..jaxpr import extras
from ..jaxpr.types import PyTree, Value
from ..rules.traits import Digits, traits_of
from .named import by_name, entry_at, gradient_observed
from .render.columns import columns
from .render.table import short_line, short_type
from .rows import chosen
from .shadow import Pair, Rounding, beside_shadow
from .storage import Stored
from .widened import Widened, is_float, widen

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Errors", "Precision", "PrecisionOf", "precision"]


class Errors(NamedTuple):
    """The errors of a named value and of its cotangent, in ulps of its type; inside a loop one for each step."""

    value: jax.Array
    cotangent: jax.Array


# --- what is said of a loss ------------------------------------------------------------------------------------------

SUBTRACT_FIRST = (
    "Subtract before the digits are gone: shift by a common value (x - mean), or take a formula without the difference."
)
ADDS = Digits.PAIR, Digits.SUM


def _is(row: Rounding, *how: Digits) -> bool:
    return traits_of(row.primitive).digits in how


def _of(operations: frozenset[str], *how: Digits) -> bool:
    """Whether one of these operations loses digits so."""
    return any(traits_of(o).digits in how for o in operations)


def _flat(operation: str) -> bool:
    """Whether an operation's result lies between bounds, near which it is flat."""
    return traits_of(operation).bounds is not None


REMEDIES: Sequence[tuple[Callable[[Rounding, frozenset[str]], bool], str]] = (
    (lambda r, o: bool(r.overflowed) and r.operation == "exp",
     "Subtract the maximum before exp: jax.nn.softmax, jax.nn.log_softmax or jax.nn.logsumexp do."),
    (lambda r, o: bool(r.overflowed), "Scale down, or keep it in bfloat16 or float32, which reach further."),
    (lambda r, o: bool(r.flushed or r.underflowed) and r.backward,
     "Scale the loss up before going back and the gradient down by as much (loss scaling), or go back wider."),
    (lambda r, o: bool(r.flushed or r.underflowed) and "exp" in o | {r.operation},
     "Work with logarithms: jax.nn.log_softmax, jax.nn.logsumexp."),
    (lambda r, o: bool(r.flushed or r.underflowed), "Scale up first, or keep it in a wider type."),
    (lambda r, o: _is(r, Digits.CAST),
     "The cast keeps no more digits. Cast later, keep this value wide, or scale it into the type's range first."),
    (lambda r, o: not r.cancels and _is(r, Digits.PAIR) and r.primitive != "sub" and bool(r.steps[-1]),
     "A running sum swallows what is smaller than its last digit: carry it wider, or with its error (Kahan)."),
    (lambda r, o: not r.cancels and _is(r, *ADDS) and r.primitive != "sub",
     "Sum in a wider type (dtype=, preferred_element_type=), in blocks, or after the mean was subtracted."),
    (lambda r, o: r.backward and _flat(r.operation) and r.primitive != "mul",
     "It is far out in its flat part, where 1 - y has no digits left: keep what goes in small (scaled weights, a "
     "normalisation), or take a loss that is a function of the net input."),
    (lambda r, o: r.primitive == "log" and _of(o, Digits.PRODUCT, Digits.STEEP, Digits.SUM),
     "Take the logarithm of a softmax in one: jax.nn.log_softmax, jax.nn.logsumexp."),
    (lambda r, o: r.primitive == "log" and _of(o, Digits.PAIR), "Near 1: jnp.log1p(x) for log(1 + x)."),
    (lambda r, o: _is(r, Digits.PAIR) and "cos" in o and _with_one(r),
     "1 - cos x = 2 sin(x/2)**2, which has all digits."),
    (lambda r, o: _is(r, Digits.PAIR) and "exp" in o and _with_one(r), "jnp.expm1(x) for exp(x) - 1."),
    (lambda r, o: _is(r, Digits.PAIR) and any(map(_flat, o)),
     "1 - sigmoid(x) = sigmoid(-x), and 1 - tanh(x)**2 = 1 / cosh(x)**2, which have all digits."),
    (lambda r, o: r.primitive == "sub" and {"sqrt"} >= o and bool(o),
     "√a - √b = (a - b) / (√a + √b)."),
    (lambda r, o: r.primitive == "sub" and all(_of(p, Digits.PRODUCT, Digits.SUM) for p in r.origins),
     "A variance as E[x²] - E[x]² cancels: subtract the mean first, as jnp.var does."),
    (lambda r, o: _is(r, *ADDS), SUBTRACT_FIRST),
    (lambda r, o: _is(r, Digits.STEEP),
     "Its argument is large, and so is what the argument's last digit does: reduce the argument first."),
)  # fmt: skip


def _with_one(row: Rounding) -> bool:
    return any(abs(c) == 1 for c in row.constants)


def what_is_lost(row: Rounding) -> str:
    """Say in what way an equation loses digits."""
    if row.overflowed:
        return f"{row.overflowed} numbers overflow"
    if row.flushed:
        return f"{row.flushed} numbers are flushed to zero"
    if row.underflowed:
        return f"{row.underflowed} numbers are below the smallest normal one"
    if not row.cancels:
        return "it rounds"
    return "what it adds up cancels" if _is(row, *ADDS) else "its operands' errors become larger in it"


def remedy_of(row: Rounding) -> str:
    """What can be done about it, or "" where nothing is known."""
    origins = frozenset().union(*row.origins)
    return next((text for holds, text in REMEDIES if holds(row, origins)), "")


def sentence(row: Rounding) -> str:
    """Say of an equation where it is, what it loses, and what can be done."""
    where = f" at {row.where}" if row.where else ""
    part = f"`{row.primitive}`{where}"
    if row.backward:
        part = f"The backward pass of `{row.operation}`{where}" + (
            f" (its `{row.primitive}`)" if row.operation != row.primitive else ""
        )
    of = int(1 - math.log2(row.of))
    text = f"{part} loses {min(row.bits, of):.0f} of {of} bits ({row.dtype}): {what_is_lost(row)}."
    remedy = remedy_of(row)
    return f"{text} {remedy}" if remedy else text


# --- what is returned -------------------------------------------------------------------------------------------------


class Precision(Stored):
    """What `precision` returns: what each equation of both passes does to the digits of its result.

    It prints as a table, worst first, and shows as a page in a notebook.

    Attributes:
        value: what the function returned.
        rows: a `Rounding` for each equation with numbers, in the order they ran first.
        value_error: the relative error of the value.
        gradient_errors: those of the gradient's leaves, by path.
    """

    _what: ClassVar = "precision"
    _parts: ClassVar = {"value": None, "rows": Rounding, "value_error": None, "gradient_errors": None}

    def __init__(self, value: PyTree, rows: Sequence[Rounding], value_error: float, gradient_errors: dict[str, float]):
        self.value, self.rows = value, list(rows)
        self.value_error, self.gradient_errors = value_error, gradient_errors

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Rounding]:
        return iter(self.rows)

    def __getitem__(self, name: str | slice) -> Any:
        """The row of the value of this name, going forward; of a slice, the errors of these rows alone."""
        if isinstance(name, slice):
            return Precision(self.value, self.rows[name], self.value_error, self.gradient_errors)
        found = [r for r in self.rows if r.name == name]
        if not found:
            names = dict.fromkeys(r.name for r in self.rows if r.name)
            raise KeyError(f"There is no name {name!r}; there are {listed(names)}.")
        return found[0]

    def at(self, line: int | str | None = None, *, operation: str | None = None, scope: str | None = None) -> Precision:
        """Choose rows; those that meet all that is asked for. The result prints, is saved, and has a `worst`, too.

        Args:
            line: of the user's program: its number, or `"file.py:12"`.
            operation: the primitive: `"dot_general"`.
            scope: the name scope or one around it, as a pattern: `"block_*/attention"`.

        Returns:
            A `Precision` of the rows, in their order.

        Raises:
            KeyError: no row is left; the message lists what there is.
        """
        rows = chosen(self.rows, line=line, operation=operation, scope=scope)
        return Precision(self.value, rows, self.value_error, self.gradient_errors)

    @property
    def by_loss(self) -> list[Rounding]:
        """The rows, those first in which most bits are lost that are felt in the value or the gradient."""
        return sorted(self.rows, key=lambda r: (-r.weight, r.index))

    def worst(self, n: int = 5) -> list[str]:
        """Say in a sentence each where most digits are lost, with the line, and what to do where that is known.

        Named is what loses more than two bits, and is felt as more than four ulps; of the equations of one rule at one
        line the worst.

        Returns:
            The sentences, the gravest first.
        """
        first: dict[Any, Rounding] = {}
        for r in self.by_loss:
            if r.bits > 2 and r.felt > 4 * r.of:
                first.setdefault((r.operation, r.backward, r.line), r)
        return list(map(sentence, list(first.values())[:n]))

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [
            ("pass", "operation", "type", "bits lost", "went in", "came in", "added", "error", "", "line")
        ]
        for r in self.by_loss:
            forms = (f"{max(r.ulps(e)):.3g}" for e in (r.went_in, r.came_in, r.added, r.total))
            counts = ((r.overflowed, "inf"), (r.flushed, "flushed"), (r.underflowed, "tiny"), (r.decided, "decided"))
            title = r.primitive if r.operation == r.primitive else f"{r.operation}: {r.primitive}"
            table.append((
                "←" if r.backward else "→",
                f"name {r.name}" if r.name else title,
                short_type(f"{r.dtype}{list(r.shape)}"),
                f"{r.bits:.1f}",
                *forms,
                ", ".join(f"{n} {what}" for n, what in counts if n),
                ", in ".join(map(short_line, filter(None, (r.line, r.library)))),
            ))  # fmt: skip
        lines = columns(table, names=(1, 2, 9), right=range(3, 8))
        opaque = [r for r in self.rows if r.opaque]
        notes = [
            f"`{r.primitive}` at {r.where} could not be run in float64 ({r.opaque}): behind it errors are counted anew."
            for r in opaque
        ]
        return "\n".join([*notes, lines[0], "-" * len(lines[0]), *lines[1:]])

    def __repr__(self) -> str:
        return f"Precision of {len(self.rows)} equations; print it, or ask for worst()"

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(s)}</li>" for s in self.worst())
        table = html.escape(str(self))
        errors = {"value": self.value_error, **self.gradient_errors}
        numbers = ", ".join(f"{html.escape(k)} {v:.2g}" for k, v in errors.items())
        return f"<p>Relative errors: {numbers}</p><ol>{said}</ol><pre style='overflow:auto'>{table}</pre>"

    def to_pandas(self) -> DataFrame:
        """The rows as a `pandas.DataFrame`: `Rounding`'s attributes; of the errors of all steps the largest, in ulps.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = extras.load("pandas", "to_pandas needs")
        plain = "index primitive operation backward name scope line library shape opaque"
        counts = "overflowed underflowed flushed decided"
        largest = ("went_in", "came_in", "added", "total")
        return pandas.DataFrame(
            {k: getattr(r, k) for k in f"{plain} {counts}".split()}
            | {"dtype": str(r.dtype), "bits": r.bits, "times": len(r.steps)}
            | {k: float(max(r.ulps(getattr(r, k)))) for k in largest}
            for r in self.rows
        )


@dataclass(frozen=True)
class NamedValues:
    """An observer of named values and their cotangents."""

    everything: bool = False

    def forward(self, primitive: str, params: dict[str, Any], values: Sequence[Value], outs: Sequence[Value]) -> PyTree:
        return outs[0] if primitive == "name" else None

    def backward(self, entry: Entry, noted: PyTree, ct: Sequence[Cotangent]) -> PyTree:
        return (noted, ct[0]) if entry.primitive == "name" else None


class PrecisionOf:
    """The function that `precision` returns."""

    def __init__(self, f: Callable[..., PyTree], argnums: int | Sequence[int], has_aux: bool, backward: Backward):
        check_callable(f, argnums, has_aux)
        self.f, self.argnums, self.has_aux, self.backward = f, argnums, has_aux, backward
        functools.update_wrapper(self, f, updated=())

    def __repr__(self) -> str:
        return f"precision({name_of(self.f)}), to be called with the arguments of {name_of(self.f)}"

    def _traced(self, observer: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any], Found]:
        """Both passes as one program, its arguments, and what it returns but for the arrays."""
        left: list[Found] = []
        backward = self.backward.observing(observer=observer, inline_calls=True)

        def gradient(args: Any, kwargs: Any) -> Any:
            value, grads, tape, seen = gradient_observed(backward, self.f, self.argnums, self.has_aux, args, kwargs)
            shapes = by_name(tape, {place: np.zeros(entry_at(tape, place).types[0].shape) for place in seen})
            grads = jax.tree.map(lambda x: x if is_float(x) else None, grads)
            return (value[0] if self.has_aux else value, grads, by_name(tape, seen)), shapes

        differentiated = which_differentiated(self.f, self.argnums, args)
        of_arrays, arrays = holding_static(gradient, (args, kwargs), differentiated=differentiated)
        leaves, tree = jax.tree.flatten(arrays)
        leaves = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in leaves]

        def flat(*leaves: Any) -> list[Any]:
            found, shapes = of_arrays(*jax.tree.unflatten(tree, leaves))
            outs, structure = jax.tree.flatten(found)
            left.append(Found(structure, shapes))
            return outs

        return jx.trace_on(flat, leaves), leaves, left[-1]

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> Precision:
        """Run both passes equation by equation, each beside its shadow."""
        instead = "Call precision(f).errors(...) there, and this outside."
        check_concrete("precision(f)(...)", (args, kwargs), instead)
        program, leaves, found = self._traced(None, args, kwargs)
        rows, outs = beside_shadow(program, leaves)
        value, grads, _ = jax.tree.unflatten(found.structure, outs)
        paths = jax.tree_util.tree_leaves_with_path(grads, is_leaf=lambda x: isinstance(x, Pair))
        errors = {jx.path_name(path) or "gradient": p.error for path, p in paths}
        return Precision(value.actual, rows, value.error, errors)

    def errors(self, *args: PyTree, **kwargs: PyTree) -> dict[str, Errors | tuple[Errors, ...]]:
        """Measure the errors of named values and of their cotangents, in one program that runs under `jax.jit`.

        The shadow takes its own decisions here, and what the compiler keeps in more digits than the program asks for is
        no error.

        Returns:
            By name, `Errors`: the root mean square of the error by that of the shadow, in ulps of the value's type;
            float32 arrays, with an axis for each loop around the value. A name that several values bear has a tuple.
        """
        program, leaves, found = self._traced(NamedValues(), args, kwargs)
        (_, _, actual) = jax.tree.unflatten(found.structure, jx.run(program, leaves))
        with jax.enable_x64(True):
            outs = jx.run(program, list(map(widen, leaves)), Widened())
            (_, _, shadow) = jax.tree.unflatten(found.structure, outs)
            measured: dict[str, Errors | tuple[Errors, ...]] = {}
            for name, shapes in found.shapes.items():
                if isinstance(shapes, tuple):
                    measured[name] = tuple(map(_errors, actual[name], shadow[name], shapes))
                else:
                    measured[name] = _errors(actual[name], shadow[name], shapes)
            return measured


class Found(NamedTuple):
    """What a program of both passes returns, but for the arrays: the structure, and the named values' own shapes."""

    structure: Any
    shapes: dict[str, Any]


def _errors(actual: Any, shadow: Any, own: np.ndarray) -> Errors:
    return Errors(*(_relative(x, s, own.ndim) for x, s in zip(actual, shadow, strict=True)))


def _relative(x: Any, shadow: Any, rank: int) -> Any:
    axes = tuple(range(x.ndim - rank, x.ndim))
    size = lambda x: jnp.sqrt(jnp.mean(jnp.abs(x) ** 2, axis=axes))
    wrong, all_of_it = size(widen(x) - shadow), size(shadow)
    some = jnp.where(all_of_it > 0, all_of_it, 1.0)
    error = jnp.where(wrong == 0, 0.0, jnp.where(all_of_it > 0, wrong / some, 1.0))
    return (error / float(jnp.finfo(x.dtype).eps)).astype(jnp.float32)


def precision(
    f: Callable[..., PyTree],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    backward: Backward | None = None,
) -> PrecisionOf:
    """Find where numbers lose their digits: each equation of both passes beside a float64 shadow of the same program.

    The arguments are taken as given; the shadow carries each value on in float64, and goes back by the same rules. The
    error of an equation's result x̂, whose shadow is x, is divided in two, with φ the equation in float64 on the
    operands û that it got and on their shadows u:

        x̂ - x = (φ(û) - φ(u))  +  (x̂ - φ(û))
                 what came in       what the equation itself added

    Decisions (branches, masks, integers, rounding to whole numbers) are those of the program, and those that float64
    would have taken otherwise are counted. Loops are run step by step.

    Args:
        f: a function with a scalar output. Where it branches in Python on values, the shadow goes the same way.
        argnums: which arguments the gradient is taken with respect to, as in `jax.grad`.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        backward: the way of going backward, if not the default one.

    Returns:
        A function of the arguments of `f` that returns a `Precision`: `worst(5)` says where most is lost, with line and
        remedy, `rows` are a `Rounding` for each equation. Its method `errors` returns the errors of named values and
        their cotangents alone, compiled, for a look at every hundredth update.

    Raises:
        TypeError: it was called under `jax.jit`; `errors` is for that.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> loss = lambda x: jnp.sum(bp.name(1 - jnp.cos(x), "small"))
        >>> x = jnp.float32(0.001)
        >>> worst = bp.precision(loss)(x).worst(1)[0]
        >>> "`sub`" in worst, "2 sin(x/2)**2" in worst
        (True, True)
        >>> bool(jax.jit(bp.precision(loss).errors)(x)["small"].value > 1e5)
        True

    References:
        N. J. Higham, "Accuracy and Stability of Numerical Algorithms" (2002).
        F. Benz, A. Hildebrandt, S. Hack, "A dynamic program analysis to find floating-point accuracy problems" (2012).
    """
    return PrecisionOf(f, argnums, has_aux, as_backward(backward))
