"""The rich look inside: both passes of a program as a ledger, a row per equation with its value and its cotangent."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..autodiff.arguments import (
    check_callable,
    check_concrete,
    check_scalar,
    holding_static,
    is_array,
    numbers_of,
    split_arguments,
)
from ..autodiff.backward_pass import listed
from ..autodiff.transformations import Backward, as_backward
from ..cotangents import is_differentiable
from ..jaxpr import extras
from ..jaxpr.types import PyTree, Value
from .files import write_atomically
from .render import graph
from .render.page import document, page
from .render.play import play
from .render.table import table
from .rows import Row, chosen, within
from .storage import Stored, to_columns
from .tabulate import Everything, rows_of

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Trace", "trace"]


class Trace(Stored):
    """What `trace` returns: the two passes of one call, row by row.

    It prints as a table, and shows as a page in a notebook.

    Attributes:
        value: what the function returned.
        inputs: a row for each floating-point array among the arguments.
        rows: a row for each equation, in the order they ran; those of a loop once, with stacked values. Calls are
            opened; a function with a derivative of its own is one row.
    """

    _what: ClassVar = "trace"
    _parts: ClassVar = {"value": None, "inputs": Row, "rows": Row, "outputs": None}

    def __init__(self, value: Value, inputs: Sequence[Row], rows: Sequence[Row], outputs: Sequence[int | None]):
        self.value, self.inputs, self.rows, self.outputs = value, list(inputs), list(rows), tuple(outputs)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, key: str | int | slice) -> Row | Any:
        """The row of an input by its path, of a named value by its name, or of an equation by its number: 3, or "3.1".

        Of a name that several values bear, a tuple; of a slice, a trace of these rows.
        """
        if isinstance(key, slice):
            return Trace(self.value, [], self.rows[key], self.outputs)
        named = [r for r in (*self.inputs, *self.rows) if r.name == key]
        found = named or [r for r in self.rows if r.index == str(key)]
        if not found and isinstance(key, int):
            last = self.rows[-1].index.split(".")[0] if self.rows else "none"
            raise KeyError(f"There is no equation {key}; the last is {last}.")
        if not found:
            names = dict.fromkeys(r.name for r in (*self.inputs, *self.rows) if r.name)
            raise KeyError(f"There is no name or path {key!r}; there are {listed(names)}.")
        return found[0] if len(found) == 1 else tuple(found)

    def at(
        self,
        line: int | str | None = None,
        *,
        operation: str | None = None,
        kind: str | None = None,
        scope: str | None = None,
        path: str | None = None,
    ) -> Trace:
        """Choose rows; those that meet all that is asked for. The result is a trace, too: it prints, and is saved.

        Args:
            line: of the user's program: its number, or `"file.py:12"`.
            operation: the primitive: `"dot_general"`.
            kind: of the rule: `"replaced"`.
            scope: the name scope or one around it, as a pattern: `"block_*/attention"`.
            path: of an input, or of the part of the parameters it is in, as a pattern: `"dense_*/kernel"`. The rows are
                the inputs, and the equations of the outermost program that they enter.

        Returns:
            A `Trace` of the rows, in their order.

        Raises:
            KeyError: no row is left; the message lists what there is.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> t = bp.trace(lambda p, x: jnp.sum(jnp.tanh(p["w"] * x) * p["v"]))({"w": 1.0, "v": 2.0}, 3.0)
            >>> [row.index for row in t.at(operation="mul")], [row.rule for row in t.at(path="v")]
            (['0', '2'], ['mul_bwd'])
        """
        inputs, rows = self.inputs, self.rows
        if path is not None:
            inputs = [r for r in inputs if within(r.name, path)]
            slots = {slot for r in inputs for slot in r.outputs}
            rows = [r for r in rows if not r.program and not slots.isdisjoint(r.inputs) and slots]
            if not inputs:
                raise KeyError(f"There is no input {path!r}; there are {listed(r.name for r in self.inputs)}.")
        if any(x is not None for x in (line, operation, kind, scope)):
            inputs, rows = [], chosen(rows, line=line, operation=operation, kind=kind, scope=scope)
        return Trace(self.value, inputs, rows, self.outputs)

    def to_pandas(self) -> DataFrame:
        """The inputs and the equations as a `pandas.DataFrame`, a row each.

        Columns: `equation` is the row's index and `type` the type of its outputs; `primitive`, `name`, `kind`, `rule`,
        `scope`, `line`, `number`, `depth` and `taken` are as in `Row`; `value_norm`, `value_mean`, `value_min`,
        `value_max`, `value_zeros`, `value_saturated` and `value_nonfinite` are the statistics of the value, and
        `cotangent_norm` and so on those of the cotangent, missing where there is none.

        Raises:
            ImportError: pandas is not installed.
        """
        return extras.load("pandas", "to_pandas needs").DataFrame(to_columns([*self.inputs, *self.rows]))

    def __str__(self) -> str:
        return table(self.value, self.inputs, self.rows)

    def __repr__(self) -> str:
        return f"Trace of {len(self.rows)} equations; print it, or show it in a notebook"

    def _repr_html_(self) -> str:
        value = self.value[0] if isinstance(self.value, tuple) else self.value  # without auxiliary data
        return page(value, self.inputs, self.rows)

    def to_html(self) -> str:
        """The page as a whole file: search, filters, what is nested folded, and a map of both passes.

        It needs nothing from elsewhere, and shows ten thousand equations as well as three.

        Returns:
            The text of the file.

        Example:
            >>> import pathlib, tempfile, jax.numpy as jnp, funcbp as bp
            >>> t = bp.trace(lambda x: jnp.sum(jnp.sin(x)))(jnp.ones(3))
            >>> pathlib.Path(tempfile.mkdtemp(), "page.html").write_text(t.to_html()) > 1000
            True
        """
        return document(self.value, self.inputs, self.rows)

    def play(self, path: str | Path, *, update: Sequence[str] | None = None, learning_rate: float = 0.5) -> None:
        """Write a page on which a small network learns before your eyes: both passes and the update, step by step.

        The page draws the graph, and fills in each value, local derivative and cotangent where and when it is made,
        with the rule in words. By sliders for inputs, weights and the learning rate it computes everything again: it
        runs the equations of this trace on other numbers, and does not decide a Python `if` anew. Where an equation is
        not among those that the page can compute, it says so and plays the recorded numbers, without sliders.

        Args:
            path: where to write it.
            update: the paths of the inputs that learn, w ← w - η w̄; if None, those in the function's first argument.
            learning_rate: η, to begin with.

        Raises:
            ValueError: the function is too large to be drawn, more than 256 numbers; or the trace is a part of one.
            KeyError: there is no input of a path in `update`.

        Example:
            >>> import pathlib, tempfile, jax.numpy as jnp, funcbp as bp
            >>> t = bp.trace(lambda w, x: (jnp.tanh(w * x) - 1.0) ** 2)(0.5, 2.0)
            >>> t.play(pathlib.Path(tempfile.mkdtemp(), "page.html"))
        """
        page = play(self.inputs, self.rows, self.outputs, update, learning_rate)
        write_atomically(path, lambda file: file.write(page.encode()))

    def to_dot(self) -> str:
        """The graph of the outermost program, for Graphviz."""
        return graph.to_dot(self.inputs, self.rows)

    def to_mermaid(self) -> str:
        """The graph of the outermost program, for Mermaid."""
        return graph.to_mermaid(self.inputs, self.rows)

    def to_svg(self) -> str:
        """The graph of the outermost program as inline SVG: a box per value, with its value and its gradient."""
        return graph.to_svg(self.inputs, self.rows)


def trace(
    f: Callable[..., PyTree],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    *,
    backward: Backward | None = None,
) -> Callable[..., Trace]:
    """Trace both passes of a call of a scalar function: every value, its cotangent, its rule and its line.

    Everything is kept: this is for looking, not for training. For a few cotangents inside a training loop see
    `cotangents`.

    Args:
        f: a function of any arguments with a scalar output.
        argnums: which positional arguments to differentiate with respect to; if None, all that have floating-point
            leaves, those passed by keyword among them.
        has_aux: whether `f` returns a pair (output, auxiliary data); then `value` of the trace is that pair.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of the arguments of `f` that returns a `Trace`. `t["h1"]` is the row of the value named "h1",
        `t["dense_0/kernel"]` that of a parameter, `t.at(line=12)` are those of a line of the program; `.value` and
        `.cotangent` of a row are arrays, `.of_value` and `.of_cotangent` their statistics.

    Raises:
        TypeError: `f` is no function, or the call is inside a jitted or mapped function; the output is no scalar.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, x: jnp.sum(x * bp.name(jnp.tanh(w * x), "h"))
        >>> t = bp.trace(loss)(jnp.array([1.0, 0.0]), jnp.array([1.0, 2.0]))
        >>> [row.primitive for row in t]
        ['mul', 'tanh', 'name', 'mul', 'reduce_sum']
        >>> t["h"].cotangent.round(3), t["w"].cotangent.round(3)
        (array([1., 2.], dtype=float32), array([0.42, 4.  ], dtype=float32))
    """
    check_callable(f, argnums, has_aux)
    observing = as_backward(backward).observing(observer=Everything(), inline_calls=True)

    @functools.wraps(f)
    def traced(*args: PyTree, **kwargs: PyTree) -> Trace:
        instead = "Call it outside; cotangents(f, names=...)(...) returns those of named values inside."
        check_concrete("trace(f)(...)", (args, kwargs), instead)
        parts, paths = (*args, kwargs), _paths(f, args, kwargs)
        numbers = [i for i, part in enumerate(parts) if any(map(_is_float, jax.tree.leaves(part)))]
        if argnums is not None:
            numbers = numbers_of(f, argnums, len(args))
        whole = functools.wraps(f)(lambda *parts: f(*parts[:-1], **parts[-1]))
        partial, chosen = holding_static(*split_arguments(whole, numbers, parts, {}), keep=_is_float)
        value, pullback, *aux = observing.vjp(partial, *chosen, has_aux=has_aux)
        check_scalar(value, False)
        grads, seen = pullback.observed(jnp.ones_like(value))
        number = lambda x: np.asarray(jnp.asarray(x))
        names = [
            (name, i)
            for i in numbers
            for name, x in zip(paths[i], jax.tree.leaves(parts[i]), strict=True)
            if _is_float(x)
        ]
        inputs = [
            Row(
                "",
                "input",
                name=name,
                values=(number(x),),
                cotangents=(np.asarray(g),),
                outputs=(s,),
                argument=i,
            )
            for (name, i), x, g, s in zip(
                names, jax.tree.leaves(chosen), jax.tree.leaves(grads), pullback.tape.inputs, strict=True
            )
        ]
        rows = list(rows_of(observing, pullback, pullback.tape, seen))
        return Trace((value, aux[0]) if has_aux else value, inputs, rows, pullback.tape.outputs)

    return traced


def _is_float(x: Any) -> bool:
    return is_array(x) and is_differentiable(jax.typeof(x))


def _paths(f: Callable[..., PyTree], args: PyTree, kwargs: PyTree) -> list[list[str]]:
    """The paths of the leaves of each argument, and of those by keyword: within the first argument their own, elsewhere
    preceded by the argument's name.
    """
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        names = []
    paths: list[list[str]] = [[] for _ in range(len(args) + 1)]
    for path, _ in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        which, argument, *inner = path
        own = jax.tree_util.keystr(tuple(inner), simple=True, separator="/")
        if which.idx == 1:
            name = str(argument.key)
        else:
            name = names[argument.idx] if argument.idx < len(names) else f"argument {argument.idx}"
        first = which.idx == 0 and argument.idx == 0
        part = paths[argument.idx if which.idx == 0 else -1]
        part.append(own if first and own else "/".join(filter(None, (name, own))))
    return paths
