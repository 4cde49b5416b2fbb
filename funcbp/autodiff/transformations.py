"""Backpropagation: record what a function does, then walk the record from the last step to the first.

The forward pass runs the function under a recording trace (`record.py`), which writes down each step that a perturbed
value enters. The backward pass goes through the steps in reverse (`walk.py`), by the rules in `rules/`, one per
operation. Here the two are put together: `Backward`, the options as a value, has JAX's transformations as its methods.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..cotangents import float0_zeros, instantiate, is_differentiable
from ..remat.plan import Passes
from ..remat.policies import Budget, check_residuals
from ..remat.regions import in_regions
from ..rules.fallback import borrowed, missing
from ..rules.registry import TABLE, MissingRuleError, Rule, coverage
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
from .backward_pass import BackwardState, backward_pass, check_names
from .recording import Observer, Tape, record

__all__ = ["Backward", "MissingRuleError", "Pullback", "grad", "hvp", "jacrev", "value_and_grad", "vjp"]


class Pullback:
    """The function `vjp` returns: from a cotangent of the output to the cotangents of the primals.

    It is a pytree of the arrays that the forward pass kept, so it can be returned from one jitted function and called
    in another.
    """

    def __init__(self, saved: Sequence[Any], static: tuple[Any, ...]):
        self.saved, self.static = tuple(saved), static

    def __call__(self, ct: Any) -> tuple[Any, ...]:
        """The cotangents of the primals, as a tuple.

        Args:
            ct: a pytree like the function's output, with its shapes and dtypes (float0 for integer outputs).
        """
        return self.state(ct)[0]

    def state(self, ct: Any, edits: bool = True) -> tuple[tuple[Any, ...], dict[tuple[int, ...], Any]]:
        """The cotangents of the primals, and what the walker's watch saw, by the steps' numbers.

        Args:
            ct: as above.
            edits: whether the walker's edits are made; without them, the same record gives the true cotangents.
        """
        _, _, in_tree, in_types, out_tree, out_types = self.static
        leaves, tree = jax.tree.flatten(ct)
        if tree != out_tree:
            raise ValueError(f"The cotangent must have the structure of the output, {out_tree}, and has {tree}.")
        back, observed = self.follow([checked_ct(c, t) for c, t in zip(leaves, out_types, strict=True)], edits)
        out = [
            jx.like(instantiate(c, t), t) if is_differentiable(t) else float0_zeros(t)
            for c, t in zip(back, in_types, strict=True)
        ]
        return jax.tree.unflatten(in_tree, out), observed

    def follow(self, cts: Sequence[Any], edits: bool = True) -> tuple[list[Any], dict[tuple[int, ...], Any]]:
        """The same for flat lists, the cotangents as the walk leaves them: arrays, `Zero`, or products (`Factored`)."""
        options, record, *_ = self.static
        state = BackwardState(options, {} if edits else None)
        return backward_pass(state, record, self.saved, cts), state.observed

    @property
    def record(self) -> Tape:
        """What was recorded, without its numbers."""
        return self.static[1]


jax.tree_util.register_pytree_node(
    Pullback, lambda p: (p.saved, p.static), lambda static, saved: Pullback(saved, static)
)


def _operation(key: Any) -> Any:
    """What a rule is given for: a primitive, by itself or by JAX's function of the same name; or a function that has a
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


# --- the transformations ----------------------------------------------------------------------------------------------


class Backward:
    """A way of going backward: the rules, as a value. The module's functions are those of `Backward()`.

    Args:
        rules: rules that replace those of the table, by primitive, `{jax.lax.tanh_p: bp.rule(...)}`, by the function
            that is that operation, `{jnp.tanh: bp.rule(...)}`, or by a function with a derivative of its own, made by
            `jax.custom_vjp` or `jax.custom_jvp`: `{bp.ops.logistic: bp.rule(...)}`.
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
        self.rules = {_operation(key): rule for key, rule in (rules or {}).items()}
        self.edits = dict(edits or {})
        self.residuals, self.on_missing, self.outside_loops = residuals, on_missing, outside_loops
        self.opens_calls = any(rule.kind == "step" for rule in self.rules.values())
        self.observer: Observer | None = None
        self.factored = False

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        options = (self.residuals, self.outside_loops, self.on_missing, self.observer, self.factored, self.opens_calls)
        return (tuple(self.rules.items()), tuple(self.edits.items()), *options)

    def observing(
        self, observer: Observer | None = None, factored: bool = False, opens_calls: bool = False
    ) -> Backward:
        """The same, with something that watches the steps; or with products left as factors where they leave a loop;
        or running what calls have inside one by one, as a plain call otherwise compiles it.
        """
        other = copy.copy(self)
        other.__dict__.pop("_key", None)
        other.observer, other.factored = observer or self.observer, factored or self.factored
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
        return table | dict.fromkeys((getattr(p, "name", p) for p in self.rules), "replaced")

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
        tape, outs, saved, aux = record(run, values, [True] * len(values), self)
        check_names(self.edits, tape, "Backward(edits=...) has")
        types = [jax.typeof(v) for v in values], [jax.typeof(o) for o in outs]
        pullback = Pullback(saved, (self, tape, in_tree, tuple(types[0]), out_tree, tuple(types[1])))
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
def _passes(jaxpr: Any, perturbed: tuple[bool, ...], options: Backward) -> Passes:
    box: list[Tape] = []

    def forward(*args: Any) -> list[Any]:
        tape, outs, saved, _ = record(lambda *xs: (jx.as_function(jaxpr)(*xs), None), args, perturbed, options)
        box.append(tape)
        return [*outs, *saved]

    program = jx.trace(forward, jx.in_avals(jaxpr), "forward")
    (tape,) = box

    def back(saved: Sequence[Any], ct: Sequence[Any], named: Mapping[str, Any] | None) -> tuple[list[Any], Any]:
        state = BackwardState(options, named)
        return backward_pass(state, tape, saved, ct), state.results

    return Passes(program, back, perturbed, [o is not None for o in tape.outputs], options.factored, tape)


_default = Backward()
vjp, grad, value_and_grad = _default.vjp, _default.grad, _default.value_and_grad
jacrev, hvp = _default.jacrev, _default.hvp
