"""Backpropagation: record what a function does, then walk the record from the last step to the first.

The forward pass runs the function under a recording trace (`record.py`), which writes down each step that a perturbed
value enters. The backward pass is `pull_back`: it goes through the steps in reverse, hands each one's rule the
cotangent of its output, and adds up what comes out. For a layered network that is the textbook's recursion

    delta_l = (delta_{l+1} W'_{l+1}) * f'(net_l),

and for any other program it is the same sum over the program's graph. The rules are in `rules/`, one per operation.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import jaxpr as jx
from .arguments import (
    as_value,
    check_callable,
    check_input,
    check_output,
    check_scalar,
    checked,
    checked_ct,
    name_of,
    split_arguments,
)
from .cotangents import Cotangents, Factored, Linear, Zero, dense, float0_zeros, instantiate, is_differentiable
from .plan import Passes, records_inside
from .policies import Budget, check_residuals
from .record import Record, Step, Watch, record
from .rules.fallback import borrowed, missing
from .rules.table import TABLE, MissingRuleError, Rule, coverage
from .straight import in_regions

__all__ = ["Backward", "MissingRuleError", "Pullback", "grad", "hvp", "jacrev", "value_and_grad", "vjp"]


# --- the walk ---------------------------------------------------------------------------------------------------------


def pull_back(walk: Walk, record: Record, kept: Sequence[Any], ct_out: Sequence[Any]) -> list[Any]:
    """Cotangents of the record's inputs, given those of its outputs: the record, last step first."""
    cts = Cotangents()
    cts.add(record.outputs, ct_out)
    for step in reversed(record.steps):
        ct = cts.take(step.outputs)
        if any(c is not Zero for c in ct):
            cts.add(step.inputs, step_back(walk, step, kept, ct))
    return cts.read(record.inputs)


def step_back(walk: Walk, step: Step, kept: Sequence[Any], ct: list[Any]) -> Sequence[Any]:
    """One step of the walk: the cotangents of a step's primals, by its rule."""
    rule, (res, noted) = step.rule, step.residuals(kept)
    try:
        with jx.written_at(step.source, rule.name):
            ct = walk.meet(step, noted, ct)
            if rule.kind == "control":
                out = rule.bwd(walk.inside(step), res, ct, step.perturbed, **step.params)  # type: ignore[misc]
            elif rule.kind == "linear" and type(ct[0]) is Factored:
                linear = Linear(rule.bwd, res, step.perturbed, step.params, rule.isometric)  # type: ignore[arg-type]
                out = [ct[0].through(linear, step.types[0]), *(None for _ in step.inputs[1:])]
            else:
                ct = [dense(c) for c in ct]
                bwd = (walk.walker.factored and rule.factors) or rule.bwd
                out = bwd(res, ct if step.several else ct[0], step.perturbed, **step.params)  # type: ignore[misc]
        if len(out) != len(step.inputs):
            raise TypeError(f"it returned {len(out)} cotangents for {len(step.inputs)} primals")
        for i, (slot, c, x) in enumerate(zip(step.inputs, out, step.types, strict=True)):
            if slot is not None and c is not None and c is not Zero:
                got = c if type(c) is Factored else jx.type_of(c)
                if got.shape != x.shape or (got.dtype != x.dtype and x.dtype != bool):
                    got, wanted = (f"{t.dtype}{list(t.shape)}" for t in (got, x))
                    raise TypeError(f"its cotangent for primal {i} is {got}, and the primal is {wanted}")
    except Exception as error:
        error.add_note(f"This came from the rule {rule.name} for {step.where()}.")
        raise
    return out


class Walk:
    """One walk: the rules it goes by, and what it has met on its way.

    Attributes:
        walker: the rules, as a value.
        named: the cotangents of the named values passed so far, by name; a loop's are stacked over its steps. None in a
            rehearsal, which finds out what the backward pass reads and edits nothing.
        watched: what the walker's watch made of the steps, by the steps' numbers, from the outermost record in.
    """

    def __init__(self, walker: Backward, named: Mapping[str, Any] | None = None):
        self.walker = walker
        self.named = None if named is None else dict(named)
        self.watched: dict[tuple[int, ...], Any] = {}
        self._new: dict[str, Any] = {}
        self._place = -1

    def meet(self, step: Step, noted: Any, ct: list[Any]) -> list[Any]:
        """Note a step's cotangents where they are asked for, and edit them."""
        walker = self.walker
        if walker.edits and step.primitive == "name" and self.named is not None:
            name = step.params["name"]
            if name in walker.edits:
                ct = [edited(walker.edits[name], name, dense(ct[0]), self.named, step.types[0])]
            self.named[name] = self._new[name] = ct[0] = dense(ct[0])
        if walker.watch is not None:
            seen = walker.watch.see(step, noted, ct := [dense(c) for c in ct])
            if seen is not None:
                self.watched[step.number,] = seen
        return ct

    def inside(self, step: Step) -> Walk:
        """The walk, at a step that has programs of its own inside."""
        self._place = step.number
        return self

    @property
    def given(self) -> tuple[tuple[str, Any], ...] | None:
        """The names and types of what the walk brings to a program inside; nothing where no edit could read it."""
        if not self.walker.edits or self.named is None:
            return None
        return tuple((name, jx.type_of(ct)) for name, ct in self.named.items())

    @property
    def brought(self) -> list[Any]:
        """The cotangents `given` speaks of."""
        return [] if self.given is None else list((self.named or {}).values())

    @property
    def found(self) -> tuple[dict[str, Any], dict[tuple[int, ...], Any]]:
        """What this walk adds to that of the program around it."""
        return self._new, self.watched

    def take_in(self, found: tuple[dict[str, Any], dict[tuple[int, ...], Any]]) -> None:
        """Add what was found inside the step at hand."""
        new, watched = found
        if self.named is not None:
            self.named |= new
        self._new |= new
        self.watched |= {(self._place, *where): seen for where, seen in watched.items()}


def edited(
    edit: Callable[[Any, Mapping[str, Any]], Any], name: str, ct: Any, named: Mapping[str, Any], aval: Any
) -> Any:
    """The cotangent that the user's function puts in the place of a named value's."""
    out = jnp.asarray(edit(ct, Passed(named)))
    if out.shape != aval.shape or out.dtype != aval.dtype:
        got, wanted = (f"{t.dtype}{list(t.shape)}" for t in (out, aval))
        also = f" The names passed by then are {listed(named)}." if named else ""
        raise TypeError(f"The edit of {name!r} returned {got}, and the named value is {wanted}.{also}")
    return out


class Passed(dict[str, Any]):
    """The cotangents of the names that the walk has passed."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"The walk has not passed the name {name!r}; by then it had passed {listed(self)}.")


def names_in(record: Record) -> dict[str, None]:
    """The names of the values in a record, in the order they were met, those inside its loops and branches included."""
    names: dict[str, None] = {}
    for step in record.steps:
        if step.primitive == "name":
            names[step.params["name"]] = None
        for inside in records_inside(step):
            names |= names_in(inside)
    return names


def check_names(wanted: Collection[str], record: Record, what: str) -> None:
    """Refuse names that no value between the perturbed inputs and the outputs has."""
    there = names_in(record)
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise ValueError(
            f"{what} the {'name' if len(unknown) == 1 else 'names'} {listed(unknown)}, and the names there are: "
            f"{listed(there)}. A name counts where a differentiated value goes through it on its way to the output."
        )


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


class Pullback:
    """The function `vjp` returns: from a cotangent of the output to the cotangents of the primals.

    It is a pytree of the arrays that the forward pass kept, so it can be returned from one jitted function and called
    in another.
    """

    def __init__(self, kept: Sequence[Any], static: tuple[Any, ...]):
        self.kept, self.static = tuple(kept), static

    def __call__(self, ct: Any) -> tuple[Any, ...]:
        """The cotangents of the primals, as a tuple.

        Args:
            ct: a pytree like the function's output, with its shapes and dtypes (float0 for integer outputs).
        """
        return self.walk(ct)[0]

    def walk(self, ct: Any, edits: bool = True) -> tuple[tuple[Any, ...], dict[tuple[int, ...], Any]]:
        """The cotangents of the primals, and what the walker's watch saw, by the steps' numbers.

        Args:
            ct: as above.
            edits: whether the walker's edits are made; without them, the same record gives the true cotangents.
        """
        _, _, in_tree, in_types, out_tree, out_types = self.static
        leaves, tree = jax.tree.flatten(ct)
        if tree != out_tree:
            raise ValueError(f"The cotangent must have the structure of the output, {out_tree}, and has {tree}.")
        back, watched = self.follow([checked_ct(c, t) for c, t in zip(leaves, out_types, strict=True)], edits)
        out = [
            jx.like(instantiate(c, t), t) if is_differentiable(t) else float0_zeros(t)
            for c, t in zip(back, in_types, strict=True)
        ]
        return jax.tree.unflatten(in_tree, out), watched

    def follow(self, cts: Sequence[Any], edits: bool = True) -> tuple[list[Any], dict[tuple[int, ...], Any]]:
        """The same for flat lists, the cotangents as the walk leaves them: arrays, `Zero`, or products (`Factored`)."""
        walker, record, *_ = self.static
        walk = Walk(walker, {} if edits else None)
        return pull_back(walk, record, self.kept, cts), walk.watched

    @property
    def record(self) -> Record:
        """What was recorded, without its numbers."""
        return self.static[1]


jax.tree_util.register_pytree_node(Pullback, lambda p: (p.kept, p.static), lambda static, kept: Pullback(kept, static))


# --- the transformations ----------------------------------------------------------------------------------------------


class Backward:
    """A way of going backward: the rules, as a value. The module's functions are those of `Backward()`.

    Args:
        rules: rules that replace those of the table, by primitive: `{jax.lax.tanh_p: bp.rule(...)}`.
        residuals: what the loops keep for their backward pass: `"min_cut"`: the fewest bytes from which the rest can be
            computed again cheaply, never repeating a contraction, convolution, loop, sort or draw; `"needed"`: all that
            the backward pass reads; `"inputs"`: the inputs of each step, computing everything again; a
            `Budget`: the least work done again that fits into a number of bytes.
        outside_loops: whether the same is planned for what is outside loops: the function is then traced as under `jit`
            and cut into regions, stretches that repeat (equal layers in a Python loop) alike, and each region computes
            again, behind a barrier, what its plan did not keep.
        edits: functions that replace the cotangents of named values, by name: `{"h1": lambda ct, cts: ...}`. `cts` has
            the cotangents of the names that the walk has passed by then: those between the value and the output. An
            edit's result has the shape and dtype of the value.
        on_missing: `"error"`: an equation without a rule raises; `"jax"`: JAX's reverse mode is borrowed for that
            equation alone, with a warning.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.Backward().grad(lambda x: jnp.sum(x**2))(jnp.array([1.0, 2.0]))
        Array([2., 4.], dtype=float32)
    """

    def __init__(
        self,
        *,
        rules: Mapping[Any, Rule] | None = None,
        edits: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] | None = None,
        residuals: str | Budget = "min_cut",
        outside_loops: bool = False,
        on_missing: str = "error",
    ):
        check_residuals(residuals)
        if on_missing not in ("error", "jax"):
            raise ValueError(f'on_missing is "error" or "jax", and was {on_missing!r}.')
        for key, value in (rules or {}).items():
            if not isinstance(value, Rule):
                raise TypeError(f"rules[{key}] must be made by funcbp.rule(...), and is {value!r}.")
        self.rules, self.edits = dict(rules or {}), dict(edits or {})
        self.residuals, self.on_missing, self.outside_loops = residuals, on_missing, outside_loops
        self.opens_calls = any(rule.kind == "step" for rule in self.rules.values())
        self.watch: Watch | None = None
        self.factored = False

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        options = (self.residuals, self.outside_loops, self.on_missing, self.watch, self.factored, self.opens_calls)
        return (tuple(self.rules.items()), tuple(self.edits.items()), *options)

    def looking(self, watch: Watch | None = None, factored: bool = False, opens_calls: bool = False) -> Backward:
        """The same, with something that watches the steps; or with products left as factors where they leave a loop;
        or running what calls have inside one by one, as a plain call otherwise compiles it.
        """
        other = copy.copy(self)
        other.__dict__.pop("_key", None)
        other.watch, other.factored = watch or self.watch, factored or self.factored
        other.opens_calls = opens_calls or self.opens_calls
        return other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backward) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def lookup(self, primitive: Any) -> Rule:
        """The rule for a primitive: the option, the table, or the way this value treats missing ones."""
        rule = self.rules.get(primitive) or TABLE.get(primitive)
        if rule is None:
            rule = borrowed(primitive) if self.on_missing == "jax" else missing(primitive)
        return rule

    def coverage(self) -> dict[str, str]:
        """How each primitive is differentiated under these options: see `funcbp.coverage`."""
        table = coverage(borrow=self.on_missing == "jax")
        return table | dict.fromkeys((p.name for p in self.rules), "replaced")

    def passes(self, jaxpr: Any, perturbed: Sequence[bool]) -> Passes:
        """The two passes of a body that arrives as a jaxpr, recorded once for each set of perturbed inputs."""
        return _passes(jaxpr, tuple(perturbed), self)

    def vjp(self, f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
        """The value of `f` and its pullback, as `jax.vjp`.

        Args:
            f: a function of `primals` whose output is a pytree of arrays; with `has_aux`, a pair (output, anything).
            primals: pytrees of arrays.
            has_aux: whether `f` also returns auxiliary data.

        Returns:
            `(out, pullback)`, or `(out, pullback, aux)`. `pullback(ct)` takes a pytree like `out` and returns a tuple
            of pytrees like `primals`; integer leaves have cotangents of dtype float0.

        Raises:
            MissingRuleError: an equation between a primal and the output has no rule.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> y, pullback = bp.vjp(lambda x: x**2, jnp.array([1.0, 3.0]))
            >>> pullback(jnp.ones(2))[0]
            Array([2., 6.], dtype=float32)
        """
        return self._vjp(f, primals, has_aux)

    def _vjp(self, f: Callable[..., Any], primals: tuple[Any, ...], has_aux: bool) -> Any:
        check_callable(f)
        leaves, in_tree = jax.tree.flatten(primals)
        values = [as_value(x) for x in leaves]
        out_tree = None

        def flat(*xs: Any) -> tuple[list[Any], Any]:
            nonlocal out_tree
            out, aux = f(*jax.tree.unflatten(in_tree, xs)), None
            if has_aux:
                if not isinstance(out, tuple) or len(out) != 2:
                    raise TypeError(f"With has_aux=True, {name_of(f)} must return a pair (output, aux).")
                out, aux = out
            outs, out_tree = jax.tree.flatten(out)
            return [checked(o) for o in outs], aux

        run = with_aux(in_regions, flat, self.residuals) if self.outside_loops else flat
        rec, outs, kept, aux = record(run, values, [True] * len(values), self)
        check_names(self.edits, rec, "Backward(edits=...) has")
        types = [jax.typeof(v) for v in values], [jax.typeof(o) for o in outs]
        pullback = Pullback(kept, (self, rec, in_tree, tuple(types[0]), out_tree, tuple(types[1])))
        out = jax.tree.unflatten(out_tree, outs)
        return (out, pullback, aux) if has_aux else (out, pullback)

    def value_and_grad(
        self,
        f: Callable[..., Any],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
    ) -> Callable[..., Any]:
        """A function that computes both the value of `f` and its gradient, as `jax.value_and_grad`.

        Args:
            f: a function with a scalar output (or a pair (scalar, aux) with `has_aux`).
            argnums: which positional arguments to differentiate with respect to: an int, or a sequence of ints.
            has_aux: whether `f` returns a pair (output, auxiliary data).
            holomorphic: whether `f` is promised to be holomorphic; then inputs and output must be complex.
            allow_int: whether integer arguments are allowed; their gradients have dtype float0.

        Returns:
            A function with the arguments of `f` that returns `(value, gradient)`, or `((value, aux), gradient)`. The
            gradient has the structure of the argument, or is a tuple of them if `argnums` is a sequence.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.value_and_grad(lambda x: jnp.sum(x**3))(jnp.array([1.0, 2.0]))
            (Array(9., dtype=float32), Array([ 3., 12.], dtype=float32))
        """
        check_callable(f)

        @functools.wraps(f)
        def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
            partial, chosen = split_arguments(f, argnums, args, kwargs)
            for x in jax.tree.leaves(chosen):
                check_input(x, holomorphic, allow_int, "grad")
            value, pullback, *aux = self._vjp(partial, chosen, has_aux)
            check_scalar(value, holomorphic)
            grads = pullback(jnp.ones_like(value))
            grads = grads[0] if isinstance(argnums, int) else tuple(grads)
            return ((value, aux[0]), grads) if has_aux else (value, grads)

        return value_and_gradient

    def grad(
        self,
        f: Callable[..., Any],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
    ) -> Callable[..., Any]:
        """A function that computes the gradient of `f`, as `jax.grad`. Arguments as in `value_and_grad`.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.grad(jnp.tanh)(0.0)
            Array(1., dtype=float32, weak_type=True)
        """
        both = self.value_and_grad(f, argnums, has_aux, holomorphic, allow_int)

        @functools.wraps(f)
        def gradient(*args: Any, **kwargs: Any) -> Any:
            value, grads = both(*args, **kwargs)
            return (grads, value[1]) if has_aux else grads

        return gradient

    def jacrev(
        self,
        f: Callable[..., Any],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
    ) -> Callable[..., Any]:
        """A function that computes the Jacobian of `f` row by row with one vectorised walk, as `jax.jacrev`.

        Returns:
            A function with the arguments of `f` whose result has, for every leaf y of the output and x of the argument,
            an array of shape `y.shape + x.shape`, nested as the output's tree of the argument's tree.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.jacrev(lambda x: x**2)(jnp.array([1.0, 2.0]))
            Array([[2., 0.],
                   [0., 4.]], dtype=float32)
        """
        check_callable(f)

        @functools.wraps(f)
        def jacobian(*args: Any, **kwargs: Any) -> Any:
            partial, chosen = split_arguments(f, argnums, args, kwargs)
            for x in jax.tree.leaves(chosen):
                check_input(x, holomorphic, allow_int, "jacrev")
            value, pullback, *aux = self._vjp(partial, chosen, has_aux)
            for y in jax.tree.leaves(value):
                check_output(y, holomorphic, "jacrev")
            leaves, tree = jax.tree.flatten(value)
            sizes = [y.size for y in leaves]
            rows = []
            for i, y in enumerate(leaves):  # the unit cotangents of one output leaf, zero for the others
                basis = [
                    jnp.eye(sizes[i], dtype=z.dtype).reshape(sizes[i], *z.shape)
                    if j == i
                    else jnp.zeros((sizes[i], *z.shape), z.dtype)
                    for j, z in enumerate(leaves)
                ]
                cts = jax.vmap(pullback)(jax.tree.unflatten(tree, basis))
                rows.append(jax.tree.map(lambda c, y=y: c.reshape(*y.shape, *c.shape[1:]), cts))
            rows = [r[0] if isinstance(argnums, int) else tuple(r) for r in rows]
            out = jax.tree.unflatten(tree, rows)
            return (out, aux[0]) if has_aux else out

        return jacobian

    def hvp(self, f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        """The Hessian of a scalar function times a vector: the forward derivative of our gradient.

        Args:
            f: a function of `primals` with a scalar output.
            primals: a tuple of pytrees of arrays.
            tangents: a tuple of pytrees with their structure, shapes and dtypes.

        Returns:
            H v, structured like `primals[0]` if there is one primal, otherwise a tuple structured like `primals`.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
            >>> bp.hvp(lambda x: jnp.sum(x**3), (x,), (v,))
            Array([6., 0.], dtype=float32)
        """
        argnums = 0 if len(primals) == 1 else tuple(range(len(primals)))
        return jax.jvp(self.grad(f, argnums), tuple(primals), tuple(tangents))[1]


def with_aux(change: Callable[..., Any], f: Callable[..., tuple[list[Any], Any]], *options: Any) -> Callable[..., Any]:
    """`f`, a function to (arrays, pytree of arrays), changed by what changes functions to arrays."""

    def run(*args: Any) -> tuple[list[Any], Any]:
        count, tree = 0, None

        def leaves(*xs: Any) -> list[Any]:
            nonlocal count, tree
            outs, aux = f(*xs)
            count, (rest, tree) = len(outs), jax.tree.flatten(aux)
            return [*outs, *rest]

        outs = change(leaves, *options)(*args)
        return outs[:count], jax.tree.unflatten(tree, outs[count:])

    return run


@functools.partial(jx.weakref_cache, maxsize=4096)
def _passes(jaxpr: Any, perturbed: tuple[bool, ...], walker: Backward) -> Passes:
    box: list[Record] = []

    def forward(*args: Any) -> list[Any]:
        rec, outs, kept, _ = record(lambda *xs: (jx.as_function(jaxpr)(*xs), None), args, perturbed, walker)
        box.append(rec)
        return [*outs, *kept]

    program = jx.trace(forward, jx.in_avals(jaxpr), "forward")
    (rec,) = box

    def back(kept: Sequence[Any], ct: Sequence[Any], named: Mapping[str, Any] | None) -> tuple[list[Any], Any]:
        walk = Walk(walker, named)
        return pull_back(walk, rec, kept, ct), walk.found

    return Passes(program, back, perturbed, [o is not None for o in rec.outputs], walker.factored, rec)


_default = Backward()
vjp, grad, value_and_grad = _default.vjp, _default.grad, _default.value_and_grad
jacrev, hvp = _default.jacrev, _default.hvp
