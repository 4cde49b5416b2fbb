"""Backpropagation: record what a function does, then walk the record from the last step to the first.

The forward pass runs the function under a recording trace (`record.py`), which writes down each step that a perturbed
value enters. The backward pass is `pull_back`: it goes through the steps in reverse, hands each one's rule the
cotangent of its output, and adds up what comes out. For a layered network that is the textbook's recursion

    delta_l = (delta_{l+1} W'_{l+1}) * f'(net_l),

and for any other program it is the same sum over the program's graph. The rules are in `rules/`, one per operation.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import jaxpr as jx
from .cotangents import Cotangents, Zero, float0_zeros, instantiate, is_differentiable, is_inexact
from .plan import RESIDUALS, Passes
from .record import Record, Step, record
from .rules.table import REFUSED, TABLE, MissingRuleError, Rule, coverage

__all__ = ["Backward", "MissingRuleError", "Pullback", "grad", "hvp", "jacrev", "value_and_grad", "vjp"]


# --- the walk ---------------------------------------------------------------------------------------------------------


def pull_back(walker: Backward, record: Record, kept: Sequence[Any], ct_out: Sequence[Any]) -> list[Any]:
    """Cotangents of the record's inputs, given those of its outputs: the record, last step first."""
    cts = Cotangents()
    cts.add(record.outputs, ct_out)
    for step in reversed(record.steps):
        ct = cts.take(step.outputs)
        if any(c is not Zero for c in ct):
            cts.add(step.inputs, step_back(walker, step, kept, ct))
    return cts.read(record.inputs)


def step_back(walker: Backward, step: Step, kept: Sequence[Any], ct: list[Any]) -> Sequence[Any]:
    """One step of the walk: the cotangents of a step's primals, by its rule."""
    rule, res = step.rule, step.residuals(kept)
    try:
        if rule.kind == "control":
            out = rule.bwd(walker, res, ct, step.perturbed, **step.params)  # type: ignore[misc]
        else:
            out = rule.bwd(res, ct if step.several else ct[0], step.perturbed, **step.params)  # type: ignore[misc]
        if len(out) != len(step.inputs):
            raise TypeError(f"it returned {len(out)} cotangents for {len(step.inputs)} primals")
        for i, (slot, c, x) in enumerate(zip(step.inputs, out, step.types, strict=True)):
            if slot is not None and c is not None and c is not Zero:
                got = jx.type_of(c)
                if got.shape != x.shape or got.dtype != x.dtype:
                    got, wanted = (f"{t.dtype}{list(t.shape)}" for t in (got, x))
                    raise TypeError(f"its cotangent for primal {i} is {got}, and the primal is {wanted}")
    except Exception as error:
        error.add_note(f"This came from the rule {rule.name} for {step.where()}.")
        raise
    return out


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
        walker, record, in_tree, in_types, out_tree, out_types = self.static
        leaves, tree = jax.tree.flatten(ct)
        if tree != out_tree:
            raise ValueError(f"The cotangent must have the structure of the output, {out_tree}, and has {tree}.")
        cts = [_checked_ct(c, t) for c, t in zip(leaves, out_types, strict=True)]
        back = pull_back(walker, record, self.kept, cts)
        out = [
            jx.like(instantiate(c, t), t) if is_differentiable(t) else float0_zeros(t)
            for c, t in zip(back, in_types, strict=True)
        ]
        return jax.tree.unflatten(in_tree, out)


jax.tree_util.register_pytree_node(Pullback, lambda p: (p.kept, p.static), lambda static, kept: Pullback(kept, static))


def _checked_ct(ct: Any, aval: Any) -> Any:
    if not is_differentiable(aval):
        return Zero
    got = jax.typeof(ct)
    if got.shape != aval.shape or got.dtype != aval.dtype:
        raise ValueError(
            f"The cotangent of an output of type {aval.dtype}{list(aval.shape)} must have that shape and dtype, and is "
            f"{got.dtype}{list(got.shape)}."
        )
    return ct if isinstance(ct, jax.Array) else jnp.asarray(ct)


# --- the transformations ----------------------------------------------------------------------------------------------


class Backward:
    """A way of going backward: the rules, as a value. The module's functions are those of `Backward()`.

    Args:
        rules: rules that replace those of the table, by primitive: `{jax.lax.tanh_p: bp.rule(...)}`.
        residuals: what the loops keep for their backward pass: `"min_cut"`: the fewest bytes from which the rest can be
            computed again cheaply, never repeating a contraction, convolution, loop, sort or draw; `"needed"`: all that
            the backward pass reads; `"inputs"`: the inputs of each step, computing everything again.
        on_missing: `"error"`: an equation without a rule raises; `"jax"`: JAX's reverse mode is borrowed for that
            equation alone, with a warning.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.Backward().grad(lambda x: jnp.sum(x**2))(jnp.array([1.0, 2.0]))
        Array([2., 4.], dtype=float32)
    """

    def __init__(
        self, *, rules: Mapping[Any, Rule] | None = None, residuals: str = "min_cut", on_missing: str = "error"
    ):
        if residuals not in RESIDUALS:
            raise ValueError(f"residuals is one of {', '.join(map(repr, RESIDUALS))}, and was {residuals!r}.")
        if on_missing not in ("error", "jax"):
            raise ValueError(f'on_missing is "error" or "jax", and was {on_missing!r}.')
        for key, value in (rules or {}).items():
            if not isinstance(value, Rule):
                raise TypeError(f"rules[{key}] must be made by funcbp.rule(...), and is {value!r}.")
        self.rules, self.residuals, self.on_missing = dict(rules or {}), residuals, on_missing
        self._key = (tuple(self.rules.items()), residuals, on_missing)

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
        _check_callable(f)
        leaves, in_tree = jax.tree.flatten(primals)
        values = [_as_value(x) for x in leaves]
        out_tree = None

        def flat(*xs: Any) -> tuple[list[Any], Any]:
            nonlocal out_tree
            out, aux = f(*jax.tree.unflatten(in_tree, xs)), None
            if has_aux:
                if not isinstance(out, tuple) or len(out) != 2:
                    raise TypeError(f"With has_aux=True, {_name(f)} must return a pair (output, aux).")
                out, aux = out
            outs, out_tree = jax.tree.flatten(out)
            return [_checked(o) for o in outs], aux

        rec, outs, kept, aux = record(flat, values, [True] * len(values), self)
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
        _check_callable(f)

        @functools.wraps(f)
        def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
            partial, chosen = _split_arguments(f, argnums, args, kwargs)
            for x in jax.tree.leaves(chosen):
                _check_input(x, holomorphic, allow_int, "grad")
            value, pullback, *aux = self._vjp(partial, chosen, has_aux)
            _check_scalar(value, holomorphic)
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
        _check_callable(f)

        @functools.wraps(f)
        def jacobian(*args: Any, **kwargs: Any) -> Any:
            partial, chosen = _split_arguments(f, argnums, args, kwargs)
            for x in jax.tree.leaves(chosen):
                _check_input(x, holomorphic, allow_int, "jacrev")
            value, pullback, *aux = self._vjp(partial, chosen, has_aux)
            for y in jax.tree.leaves(value):
                _check_output(y, holomorphic, "jacrev")
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


@functools.partial(jx.weakref_cache, maxsize=4096)
def _passes(jaxpr: Any, perturbed: tuple[bool, ...], walker: Backward) -> Passes:
    box: list[Record] = []

    def forward(*args: Any) -> list[Any]:
        rec, outs, kept, _ = record(lambda *xs: (jx.as_function(jaxpr)(*xs), None), args, perturbed, walker)
        box.append(rec)
        return [*outs, *kept]

    program = jx.trace(forward, jx.in_avals(jaxpr), "forward")
    (rec,) = box
    reached = [o is not None for o in rec.outputs]
    return Passes(program, functools.partial(pull_back, walker, rec), perturbed, reached)


def missing(primitive: Any) -> Rule:
    """A rule for an equation without one: an error, raised if the equation turns out to be needed."""

    def message(where: str) -> str:
        if primitive.name in REFUSED:
            return f"funcbp has no derivative for {where}: {REFUSED[primitive.name]}"
        return (
            f"funcbp has no rule for {where}. Write one, funcbp.Backward(rules={{primitive: funcbp.rule(bwd)}}), wrap "
            f'the operation in jax.custom_vjp, or borrow JAX\'s derivative for it: funcbp.Backward(on_missing="jax").'
        )

    return Rule(kind="missing", save=lambda *_: (), message=message)


class BorrowedRuleWarning(UserWarning):
    """JAX's derivative is used for an equation, under `on_missing="jax"`."""


def borrowed(primitive: Any) -> Rule:
    """A rule for an equation without one: JAX's reverse mode, for this equation alone."""

    def borrowed_bwd(res: Any, ct: Any, perturbed: Sequence[bool], **params: Any) -> list[Any]:
        chosen = [i for i, p in enumerate(perturbed) if p]

        def equation(*xs: Any) -> Any:
            primals = list(res)
            for i, x in zip(chosen, xs, strict=True):
                primals[i] = x
            return primitive.bind(*primals, **params)

        outs, pullback = jax.vjp(equation, *(res[i] for i in chosen))
        if primitive.multiple_results:
            ct = [
                instantiate(c, jax.typeof(o)) if is_differentiable(o) else float0_zeros(o)
                for c, o in zip(ct, outs, strict=True)
            ]
        back = dict(zip(chosen, pullback(ct), strict=True))
        return [back.get(i) for i in range(len(perturbed))]

    message = f"JAX's derivative of `{primitive}` is borrowed: funcbp has no rule for it."
    warnings.warn(message, BorrowedRuleWarning, stacklevel=2)
    return Rule(borrowed_bwd)


# --- arguments --------------------------------------------------------------------------------------------------------


def _name(f: Any) -> str:
    return getattr(f, "__name__", repr(f))


def _check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"Expected a function to differentiate, got {f!r} of type {type(f).__name__}.")


def _checked(x: Any) -> Any:
    try:
        jax.typeof(x)
    except TypeError as error:
        raise TypeError(f"{x!r} of type {type(x).__name__} is not a valid JAX type; arrays and numbers are.") from error
    return x


def _as_value(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else jnp.asarray(_checked(x))


def _split_arguments(
    f: Callable[..., Any], argnums: int | Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """`f` as a function of the arguments chosen by `argnums` alone, and those arguments."""
    if not isinstance(argnums, int) and not all(isinstance(i, int) for i in argnums):
        raise TypeError(f"argnums must be an int or a sequence of ints, and is {argnums!r}.")
    numbers = [argnums] if isinstance(argnums, int) else list(argnums)
    for i in numbers:
        if not -len(args) <= i < len(args):
            raise ValueError(
                f"argnums={argnums!r} asks for positional argument {i}, and {_name(f)} was called with {len(args)}. "
                "Arguments passed by keyword cannot be differentiated with respect to."
            )
    numbers = [i % len(args) for i in numbers]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"argnums={argnums!r} names an argument twice.")

    def partial(*chosen: Any) -> Any:
        full = list(args)
        for i, x in zip(numbers, chosen, strict=True):
            full[i] = x
        return f(*full, **kwargs)

    return partial, tuple(args[i] for i in numbers)


def _check_input(x: Any, holomorphic: bool, allow_int: bool, what: str) -> None:
    dtype = jx.type_of(_checked(x)).dtype
    if not holomorphic and (allow_int or is_inexact(dtype)):
        return
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) and not allow_int:
        raise TypeError(f"{what} cannot differentiate with respect to an input of dtype {dtype}.")
    if holomorphic:
        if not jax.dtypes.issubdtype(dtype, np.complexfloating):
            raise TypeError(f"{what} with holomorphic=True requires complex inputs, and got {dtype}.")
    else:
        raise TypeError(
            f"{what} requires real- or complex-valued inputs (a sub-dtype of np.inexact), and got {dtype}. "
            "Convert integers to floating point, leave them out of argnums, or pass allow_int=True."
        )


def _check_scalar(value: Any, holomorphic: bool) -> None:
    if not jax.tree_util.all_leaves([value]):
        raise TypeError(f"Gradient only defined for scalar-output functions. Output was {value!r}.")
    aval = jax.typeof(value)
    if aval.shape != ():
        raise TypeError(f"Gradient only defined for scalar-output functions. Output had shape: {aval.shape}.")
    _check_output(value, holomorphic, "grad")


def _check_output(y: Any, holomorphic: bool, what: str) -> None:
    dtype = jax.typeof(y).dtype
    if holomorphic:
        if not jax.dtypes.issubdtype(dtype, np.complexfloating):
            raise TypeError(f"{what} with holomorphic=True requires complex outputs, and got {dtype}.")
    elif jax.dtypes.issubdtype(dtype, np.complexfloating):
        raise TypeError(
            f"{what} requires real-valued outputs (a sub-dtype of np.floating), and got {dtype}. For holomorphic "
            "differentiation pass holomorphic=True; otherwise use vjp."
        )
    elif not jax.dtypes.issubdtype(dtype, np.floating):
        raise TypeError(f"{what} requires real-valued outputs (a sub-dtype of np.floating), and got {dtype}.")


_default = Backward()
vjp, grad, value_and_grad = _default.vjp, _default.grad, _default.value_and_grad
jacrev, hvp = _default.jacrev, _default.hvp
