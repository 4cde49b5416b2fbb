"""JAX's transformations, as methods of the options.

The forward pass runs the function under a recording trace (`recording.py`), which puts each equation that a perturbed
value enters on a tape. The backward pass goes through the tape in reverse (`backward_pass.py`), by the rules in
`rules/`, one per operation. Here the two are put together.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..jaxpr.types import P, PyTree, T, Value, Var
from ..remat.budget import Budget
from ..remat.policies import Policy, policy_of
from ..remat.regions import in_regions
from ..rules.kinds import Rule
from ..rules.options import Edit, Observer, Options
from ..rules.registry import coverage
from .arguments import (
    arrays_apart,
    as_value,
    check_axes,
    check_callable,
    check_input,
    check_output,
    check_scalar,
    checked_arrays,
    checked_result,
    divided,
    flags_of,
    indices_of,
    split_arguments,
)
from .attach import attached
from .backward_pass import check_names
from .fitting import fitted
from .marks import feedback
from .pullback import Program, Pullback
from .recording import record

__all__ = ["Backward", "as_backward", "grad", "hessian", "hvp", "jacrev", "value_and_grad", "vjp"]

Aux = TypeVar("Aux")


def _operation(key: Any) -> Any:
    """Find what a rule is given for: a primitive, by itself or by JAX's function of the same name; or a function with a
    derivative of its own, by where it was written, which is what is left of it inside a loop.
    """
    if isinstance(key, (jax.custom_vjp, jax.custom_jvp)):
        return jx.written_where(key)
    name, module = getattr(key, "__name__", key), getattr(key, "__module__", None) or ""
    operation = getattr(jax.lax, f"{name}_p", None) if module.startswith("jax") else None
    found = key if hasattr(key, "bind") else operation
    if found is None:
        raise TypeError(
            f"rules={{...}} has {name!r}, which is not one operation: rules are by primitive, as jax.lax.tanh_p, by "
            "JAX's function that is it, as jnp.tanh, or by a function made by jax.custom_vjp or jax.custom_jvp. "
            "jax.make_jaxpr shows which primitives a function is made of; to replace the cotangent of a function's "
            "result, name that with funcbp.name and use edits={...}."
        )
    return found


def as_backward(backward: Any) -> Backward:
    """Take what was given as `backward=`: a `Backward`, or None for the default one."""
    if backward is None:
        return Backward()
    if not isinstance(backward, Backward):
        raise TypeError(f"backward= is a funcbp.Backward, as Backward(residuals='inputs'), and was {_shown(backward)}.")
    return backward


# --- the transformations ----------------------------------------------------------------------------------------------


class Backward:
    """A way of going backward: the rules, as a value. The module's functions are those of `Backward()`.

    Its methods are JAX's transformations, and `attach`, which puts it into a function that others differentiate.

    Args:
        rules: rules that replace those of the table, by primitive, `{jax.lax.tanh_p: bp.rule(...)}`, by the function
            that is that operation, `{jnp.tanh: bp.rule(...)}`, or by a function with a derivative of its own, made by
            `jax.custom_vjp` or `jax.custom_jvp`: `{bp.ops.logistic: bp.rule(...)}`; or a
            `Backward` that has nothing but rules, such as `funcbp.credit` returns.
        residuals: what the loops save for their backward pass: `"min_cut"`: what takes the least time to keep and to
            recompute, by the balance of the machine; never repeating a draw, collective, callback or custom call;
            `"min_cut_cheap"`: the fewest bytes from which the rest can be recomputed cheaply, never repeating a
            contraction, convolution, loop or sort either; `"needed"`: all that the backward pass reads; `"inputs"`: the
            inputs of each step, recomputing everything; a `Budget`: the fastest plan that is predicted to fit, of the
            whole gradient; or a policy of your own, a function `(forward, needed, available) -> variables to save` or a
            subclass of `funcbp.remat.Policy`.
        balance: for `"min_cut"`, how many operations in float32 the machine does while it moves a byte; left out, that
            of JAX's default device, from a table. The higher, the more is recomputed. `funcbp balance` measures it.
        outside_loops: whether the same is planned for what is outside loops: the function is then traced as under `jit`
            and cut into regions, stretches that repeat (equal layers in a Python loop) alike, and each region
            recomputes, behind a barrier, what its plan did not save.
        edits: functions that replace the cotangents of named values, by name: `{"h1": lambda ct, cts: ...}`. `cts` has
            the cotangents of the names that the backward pass has passed by then: those between the value and the
            output. An edit's result has the shape and dtype of the value.
        feedback: feedback weights for the first argument that is differentiated, a pytree like it with None for leaves
            that have none: deltas go back through these in the place of the weights. See `funcbp.feedback`.
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
        rules: Mapping[Any, Rule] | Backward | None = None,
        edits: Mapping[str, Edit] | None = None,
        feedback: PyTree | None = None,
        residuals: str | Policy | Callable[[jx.Program, list[Var], set[Var]], list[Var]] = "min_cut",
        balance: float | None = None,
        outside_loops: bool = False,
        on_missing: str = "error",
    ):
        if on_missing not in ("error", "jax"):
            raise ValueError(f'on_missing is "error" or "jax", and was {on_missing!r}.')
        for what, given in {"rules": rules, "edits": edits}.items():
            if not isinstance(given, Mapping | Backward | None):
                raise TypeError(f"{what}= is a dict, of what is replaced by what, and was {_shown(given)}.")
        own = _rules_of(rules) if isinstance(rules, Backward) else dict(rules or {})
        for key, value in own.items():
            if not isinstance(value, Rule):
                raise TypeError(f"rules[{key}] must be made by funcbp.rule(...), and is {value!r}.")
        for name, edit in dict(edits or {}).items():
            if not callable(edit):
                raise TypeError(
                    f"edits[{name!r}] is a function of the cotangent and of those passed before, such as "
                    f"lambda ct, cts: 2 * ct, and was {edit!r}."
                )
        arguments: dict[str, Any] = dict(
            rules=own,
            edits=dict(edits or {}),
            residuals=residuals,
            balance=balance,
            outside_loops=outside_loops,
            on_missing=on_missing,
        )
        self._arguments = {k: v for k, v in arguments.items() if v != _DEFAULTS[k]}
        if feedback is not None:
            self._arguments["feedback"] = feedback
        self.feedback, self.balance = feedback, balance
        self.options = Options(
            rules={_operation(key): rule for key, rule in own.items()},
            edits=dict(edits or {}),
            policy=policy_of(residuals, balance),
            outside_loops=outside_loops,
            on_missing=on_missing,
        )

    def __repr__(self) -> str:
        return f"Backward({', '.join(f'{k}={_shown(v)}' for k, v in self._arguments.items())})"

    def replace(self, **changes: Any) -> Backward:
        """Return the same but for these arguments.

        Example:
            >>> import funcbp as bp
            >>> bp.Backward(residuals="inputs").replace(outside_loops=True)
            Backward(residuals='inputs', outside_loops=True)
        """
        return type(self)(**{**self._arguments, **changes})

    def __or__(self, other: Backward) -> Backward:
        """Join two: all rules and edits, and of every other argument the one that is not left out.

        Raises:
            ValueError: the two give the same argument, rule or edit differently.

        Example:
            >>> import funcbp as bp
            >>> bp.Backward(residuals="inputs") | bp.Backward(outside_loops=True)
            Backward(residuals='inputs', outside_loops=True)
        """
        if not isinstance(other, Backward):
            return NotImplemented
        mine, theirs = self._arguments, other._arguments
        merged = {**mine, **theirs}
        for name in mine.keys() & theirs.keys():
            if name in ("rules", "edits"):
                both = [k for k in mine[name].keys() & theirs[name].keys() if mine[name][k] is not theirs[name][k]]
                if both:
                    raise ValueError(f"Both backward passes have {name} for {', '.join(map(_key, both))}: which holds?")
                merged[name] = {**mine[name], **theirs[name]}
            elif not (_same_weights if name == "feedback" else operator.eq)(mine[name], theirs[name]):
                given = f"{name}={_shown(mine[name])}, the other {name}={_shown(theirs[name])}"
                raise ValueError(f"One backward pass has {given}: which holds?")
        return type(self)(**merged)

    def observing(
        self, observer: Observer | None = None, factored: bool = False, inline_calls: bool = False
    ) -> Backward:
        """Return the same with an observer of the entries; or with products left as factors where they leave a loop;
        or running what calls have inside one by one, as a plain call otherwise compiles it.
        """
        other = copy.copy(self)
        other.options = self.options.replace(
            observer=observer or self.options.observer,
            factored=factored or self.options.factored,
            inline_calls=inline_calls or self.options.inline_calls,
        )
        return other

    def marked(self, primal: PyTree) -> PyTree:
        """Give the first argument that is differentiated its feedback weights, if there are any."""
        return primal if self.feedback is None else feedback(primal, self.feedback)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Backward):
            return NotImplemented
        return self.options == other.options and _same_weights(self.feedback, other.feedback)

    def __hash__(self) -> int:
        return hash(self.options)

    def coverage(self) -> dict[str, str]:
        """List how each primitive is differentiated under these options: see `funcbp.coverage`."""
        table = coverage(borrow=self.options.on_missing == "jax")
        return table | dict.fromkeys((getattr(p, "name", p) for p in self.options.rules), "replaced")

    def attach(self, f: Callable[P, T]) -> Callable[P, T]:
        """Make the same function with this backward pass in it, for loops and libraries that call `jax.grad`.

        Whatever differentiates it in reverse, `jax.grad` or `funcbp.grad`, alone or in the middle of another function,
        inside `jit`, `vmap`, `scan` and `jax.checkpoint`, goes back through it by these rules, edits, feedback weights
        and plan. What it closes over is differentiated too. Second derivatives are those of this backward pass, by
        whatever takes them; only reverse mode over forward mode is refused, by JAX.

        Args:
            f: a function of pytrees to a pytree. As by `jax.checkpoint`, it is traced with its arrays; what else its
                arguments have (numbers, strings, functions) it gets as it is, and what else it returns is returned as
                it is. Feedback weights are those of its first argument.

        Returns:
            A function of the same arguments with the same values.

        Raises:
            TypeError: in forward mode: JAX has none for functions with a backward rule of their own.
            ValueError: f writes into its arguments.

        Example:
            >>> import jax, jax.numpy as jnp, funcbp as bp
            >>> clip = bp.Backward(edits={"h": lambda ct, cts: jnp.clip(ct, -1, 1)})
            >>> loss = clip.attach(lambda w, x: jnp.sum(bp.name(w * x, "h") ** 2))
            >>> jax.grad(loss)(jnp.array(3.0), jnp.array([1.0, 10.0]))
            Array(11., dtype=float32, weak_type=True)
        """
        check_callable(f)
        unmarked = copy.copy(self)
        unmarked.feedback = None
        marked = functools.wraps(f)(lambda *args, **kwargs: f(*map(self.marked, args[:1]), *args[1:], **kwargs))
        return attached(marked, unmarked.vjp)

    @overload
    def vjp(
        self,
        fun: Callable[..., T],
        *primals: PyTree,
        has_aux: Literal[False] = False,
        reduce_axes: Sequence[Hashable] = (),
        saveable_args: PyTree = True,
        in_nzs: PyTree | None = None,
    ) -> tuple[T, Pullback]: ...

    @overload
    def vjp(
        self,
        fun: Callable[..., tuple[T, Aux]],
        *primals: PyTree,
        has_aux: Literal[True],
        reduce_axes: Sequence[Hashable] = (),
        saveable_args: PyTree = True,
        in_nzs: PyTree | None = None,
    ) -> tuple[T, Pullback, Aux]: ...

    @overload
    def vjp(
        self,
        fun: Callable[..., PyTree],
        *primals: PyTree,
        has_aux: bool,
        reduce_axes: Sequence[Hashable] = (),
        saveable_args: PyTree = True,
        in_nzs: PyTree | None = None,
    ) -> tuple[Any, ...]: ...

    def vjp(
        self,
        fun: Callable[..., PyTree],
        *primals: PyTree,
        has_aux: bool = False,
        reduce_axes: Sequence[Hashable] = (),
        saveable_args: PyTree = True,
        in_nzs: PyTree | None = None,
    ) -> tuple[PyTree, ...]:
        """Compute the value of `fun` and its pullback, as `jax.vjp`.

        Args:
            fun: a function of `primals` whose output is a pytree of arrays; with `has_aux`, a pair (output, anything).
            primals: pytrees of arrays.
            has_aux: whether `fun` also returns auxiliary data.
            reduce_axes: empty.
            saveable_args: whether the pullback may hold primals: a bool, or a tree of them whose containers are, as
                far as it goes, those of `primals`. In the place of those that it needs and may not hold, its `args_res`
                has `NotSaveable()`, until they are put back.
            in_nzs: likewise, which primals are differentiated; all, if left out. The cotangents of the others are zero.

        Returns:
            `(out, pullback)`, or `(out, pullback, aux)`. `pullback(ct)` takes a pytree like `out` and returns a tuple
            of pytrees like `primals`; integer leaves have cotangents of dtype float0. See `Pullback` for what else it
            offers.

        Raises:
            MissingRuleError: an equation between a primal and the output has no rule.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> y, pullback = bp.vjp(lambda x: x**2, jnp.array([1.0, 3.0]))
            >>> pullback(jnp.ones(2))[0]
            Array([2., 6.], dtype=float32)
        """
        check_axes(reduce_axes)
        check_callable(fun)
        options = self.options
        leaves, in_tree = jax.tree.flatten(primals)
        values = [as_value(x) for x in leaves]

        def flat(*xs: Value) -> tuple[list[Value], tuple[PyTree, _Static]]:
            args = jax.tree.unflatten(in_tree, xs)
            out = fun(*map(self.marked, args[:1]), *args[1:])
            out, aux = divided(fun, out) if has_aux else (out, None)
            outs, out_tree = jax.tree.flatten(out)
            return [checked_result(fun, o) for o in outs], (aux, _Static(out_tree))

        perturbed = [True] * len(values) if in_nzs is None else flags_of(in_nzs, in_tree, "in_nzs")
        run: Callable[..., Any] = flat
        if isinstance(options.policy, Budget):
            arrays, whole = apart(flat)
            fit = fitted(arrays, [*map(jax.typeof, values)], perturbed, options)
            run, options = (lambda *xs: whole(fit.run(*xs))), fit.options
        elif options.outside_loops:
            run = with_aux(in_regions, flat, options.policy)
        saveable = flags_of(saveable_args, in_tree, "saveable_args")
        tape, outs, saved, (aux, out_tree) = record(run, values, perturbed, options)
        check_names(options.edits, tape, "Backward(edits=...) has")
        types = tuple(map(jax.typeof, values)), tuple(map(jax.typeof, outs))
        program = Program(options, tape, in_tree, types[0], out_tree.value, types[1], ())
        pullback = Pullback.of(saved, values, saveable, program)
        out = jax.tree.unflatten(out_tree.value, outs)
        return (out, pullback, aux) if has_aux else (out, pullback)

    def value_and_grad(
        self,
        fun: Callable[P, T],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
        reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[P, tuple[T, PyTree]]:
        """Make a function that computes both the value of `fun` and its gradient, as `jax.value_and_grad`.

        Args:
            fun: a function with a scalar output (or a pair (scalar, aux) with `has_aux`).
            argnums: which positional arguments to differentiate with respect to: an int, or a sequence of ints.
            has_aux: whether `fun` returns a pair (output, auxiliary data).
            holomorphic: whether `fun` is promised to be holomorphic; then inputs and output must be complex.
            allow_int: whether integer arguments are allowed; their gradients have dtype float0.
            reduce_axes: empty.

        Returns:
            A function with the arguments of `fun` that returns `(value, gradient)`, or `((value, aux), gradient)`. The
            gradient has the structure of the argument, or is a tuple of them if `argnums` is a sequence.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.value_and_grad(lambda x: jnp.sum(x**3))(jnp.array([1.0, 2.0]))
            (Array(9., dtype=float32), Array([ 3., 12.], dtype=float32))
        """
        check_axes(reduce_axes)
        check_callable(fun)
        indices = indices_of(argnums)

        @functools.wraps(fun)
        def value_and_gradient(*args: PyTree, **kwargs: PyTree) -> PyTree:
            partial, chosen = split_arguments(fun, indices, args, kwargs)
            for x in jax.tree.leaves(chosen):
                check_input(x, holomorphic, allow_int, "grad", chosen)
            value, pullback, *aux = self.vjp(partial, *chosen, has_aux=has_aux)
            check_scalar(value, holomorphic)
            grads = pullback(jx.ones_as_cotangent(value))
            grads = grads[0] if isinstance(indices, int) else tuple(grads)
            return ((value, aux[0]), grads) if has_aux else (value, grads)

        return value_and_gradient

    def grad(
        self,
        fun: Callable[P, PyTree],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
        reduce_axes: Sequence[Hashable] = (),
    ) -> Callable[P, PyTree]:
        """Make a function that computes the gradient of `fun`, as `jax.grad`. Arguments as in `value_and_grad`.

        Returns:
            A function of the same arguments that returns the gradient: in the structure of the argument that `argnums`
            names, a tuple of such where it names several; with `has_aux`, the pair (gradient, auxiliary data).

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.grad(jnp.tanh)(0.0)
            Array(1., dtype=float32, weak_type=True)
        """
        both = self.value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes)

        @functools.wraps(fun)
        def gradient(*args: PyTree, **kwargs: PyTree) -> PyTree:
            value, grads = both(*args, **kwargs)
            return (grads, value[1]) if has_aux else grads

        return gradient

    def jacrev(
        self,
        fun: Callable[P, PyTree],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
    ) -> Callable[P, PyTree]:
        """Make a function that computes the Jacobian of `fun` by one vectorised backward pass, as `jax.jacrev`.

        Arguments as in `value_and_grad`.

        Returns:
            A function with the arguments of `fun` whose result has, for every leaf y of the output and x of the
            argument, an array of shape `y.shape + x.shape`, nested as the output's tree of the argument's tree.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.jacrev(lambda x: x**2)(jnp.array([1.0, 2.0]))
            Array([[2., 0.],
                   [0., 4.]], dtype=float32)
        """
        check_callable(fun)
        indices = indices_of(argnums)

        @functools.wraps(fun)
        def jacobian(*args: PyTree, **kwargs: PyTree) -> PyTree:
            partial, chosen = split_arguments(fun, indices, args, kwargs)
            for x in jax.tree.leaves(chosen):
                check_input(x, holomorphic, allow_int, "jacrev", chosen)
            value, pullback, *aux = self.vjp(partial, *chosen, has_aux=has_aux)
            for y in jax.tree.leaves(value):
                check_output(y, holomorphic, "jacrev")
            leaves, tree = jax.tree.flatten(jax.tree.map(jx.as_array, value))
            sizes = [y.size for y in leaves]
            rows = []
            for i, y in enumerate(leaves):  # the unit cotangents of one output leaf, zero for the others
                with jx.width_of(leaves):
                    basis = [
                        jnp.eye(sizes[i], dtype=z.dtype).reshape(sizes[i], *z.shape)
                        if j == i
                        else jnp.zeros((sizes[i], *z.shape), z.dtype)
                        for j, z in enumerate(leaves)
                    ]
                basis = [jx.like(jx.laid_out_as(b, z), jx.type_of(z)) for b, z in zip(basis, leaves, strict=True)]
                cts = jax.vmap(pullback)(jax.tree.unflatten(tree, basis))
                rows.append(jax.tree.map(functools.partial(_block, y), cts, tuple(chosen)))
            rows = [r[0] if isinstance(indices, int) else tuple(r) for r in rows]
            out = jax.tree.unflatten(tree, rows)
            return (out, aux[0]) if has_aux else out

        return jacobian

    def hessian(
        self,
        fun: Callable[P, PyTree],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
    ) -> Callable[P, PyTree]:
        """Make a function that computes the Hessian of `fun`, as `jax.hessian`: the forward derivative of our Jacobian.

        Arguments as in `value_and_grad`.

        Returns:
            A function with the arguments of `fun` whose result has, for every leaf y of the output and leaves x, z of
            the argument, an array of shape `y.shape + x.shape + z.shape`, nested as the output's tree of the argument's
            tree of the argument's tree.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> bp.hessian(lambda x: jnp.sum(x**3))(jnp.array([1.0, 2.0]))
            Array([[ 6.,  0.],
                   [ 0., 12.]], dtype=float32)
        """
        indices = indices_of(argnums)
        second = jax.jacfwd(self.jacrev(fun, argnums, has_aux, holomorphic), indices, has_aux, holomorphic)

        @functools.wraps(fun)
        def jacobian_of_jacobian(*args: PyTree, **kwargs: PyTree) -> PyTree:
            checked_arrays(split_arguments(fun, argnums, args, kwargs)[1])
            return second(*args, **kwargs)

        return jacobian_of_jacobian

    def hvp(
        self, f: Callable[..., PyTree], primals: Sequence[PyTree], tangents: Sequence[PyTree], has_aux: bool = False
    ) -> PyTree:
        """Multiply the Hessian of a scalar function by a vector: the forward derivative of our gradient.

        It takes its arguments as `jax.jvp` does. For parameters alone, close over the rest:
        `bp.hvp(lambda p: loss(p, x), (params,), (v,))`.

        Args:
            f: a function of `primals` with a scalar output.
            primals: a tuple of pytrees of arrays.
            tangents: a tuple of pytrees with their structure, shapes and dtypes.
            has_aux: whether `f` returns a pair (output, auxiliary data).

        Returns:
            H v, structured like `primals[0]` if there is one primal, otherwise a tuple structured like `primals`; with
            `has_aux`, the pair of that and the auxiliary data.

        Example:
            >>> import jax.numpy as jnp, funcbp as bp
            >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
            >>> bp.hvp(lambda x: jnp.sum(x**3), (x,), (v,))
            Array([6., 0.], dtype=float32)

        References:
            B. Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
        """
        for what, given in (("primals", primals), ("tangents", tangents)):
            if not isinstance(given, (tuple, list)):
                raise TypeError(
                    f"The {what} of hvp are a tuple, of what f is called with, as in jax.jvp: hvp(f, (x,), (v,)); they "
                    f"were of type {type(given).__name__}."
                )
        checked_arrays((primals, tangents))
        argnums = 0 if len(primals) == 1 else tuple(range(len(primals)))
        _, *found = jax.jvp(self.grad(f, argnums, has_aux), tuple(primals), tuple(tangents), has_aux=has_aux)
        return tuple(found) if has_aux else found[0]


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["value"])
@dataclasses.dataclass(frozen=True)
class _Static:
    """Something that is no array, in a pytree of arrays."""

    value: Any


def with_aux(change: Callable[..., Any], f: Callable[..., tuple[list[Any], Any]], *options: Any) -> Callable[..., Any]:
    """Change `f`, a function to (arrays, anything), by what changes functions to arrays."""

    def run(*args: Any) -> tuple[list[Any], Any]:
        arrays, whole = apart(f)
        return whole(change(arrays, *options)(*args))

    return run


def apart(f: Callable[..., Any]) -> tuple[Callable[..., list[Any]], Callable[[Sequence[Any]], Any]]:
    """Make a function of the arrays alone of what `f` returns; and one that puts that together of these, once the
    first has run. Python's and NumPy's numbers stay out of the program: they come back as they are, as from JAX.
    """
    left: list[Any] = []

    def arrays(*xs: Any) -> list[Any]:
        leaves, tree = jax.tree.flatten(f(*xs))
        values, put = arrays_apart(leaves, [isinstance(x, (jax.Array, jax.Ref)) or jx.is_high(x) for x in leaves])
        left[:] = [tree, put]
        return values

    def whole(found: Sequence[Any]) -> Any:
        tree, put = left
        return jax.tree.unflatten(tree, put(found))

    return arrays, whole


def _key(key: Any) -> str:
    return repr(key) if isinstance(key, str) else getattr(key, "__name__", None) or str(key)


def _rules_of(backward: Backward) -> dict[Any, Rule]:
    """Take the rules of a backward pass that has nothing else."""
    if more := sorted(backward._arguments.keys() - {"rules"}):
        raise ValueError(f"rules={backward!r} has {', '.join(more)} besides rules. Join the two by |.")
    return dict(backward._arguments.get("rules", {}))


def _shown(value: object) -> str:
    """Write an argument as it would be given; an array by its type."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        shown = ", ".join(map(_shown, value))
        return f"[{shown}]" if isinstance(value, list) else f"({shown},)" if len(value) == 1 else f"({shown})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return getattr(value, "__name__", None) or repr(value)


def _block(y: jax.Array, ct: jax.Array, x: jax.Array) -> jax.Array:
    """Shape the cotangents of x, one for each number in y, as ∂y/∂x: for an integer zeros of its type, as in JAX."""
    if ct.dtype == jax.dtypes.float0:
        return jnp.zeros((*y.shape, *jnp.shape(x)), jnp.result_type(x))
    return ct.reshape(*y.shape, *ct.shape[1:])


def _same_weights(a: PyTree, b: PyTree) -> bool:
    """Tell whether two trees of feedback weights are the same arrays, not of the same numbers, which may be tracers."""
    (x, tree), (y, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return bool(tree == other) and all(p is q for p, q in zip(x, y, strict=True))  # type: ignore[operator]


_DEFAULTS: dict[str, Any] = dict(
    rules={}, edits={}, residuals="min_cut", balance=None, outside_loops=False, on_missing="error"
)
_default = Backward()
vjp, grad, value_and_grad = _default.vjp, _default.grad, _default.value_and_grad
jacrev, hessian, hvp = _default.jacrev, _default.hessian, _default.hvp
