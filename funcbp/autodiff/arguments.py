"""Arguments of the transformations: which are differentiated, and what is said about those that cannot be."""

from __future__ import annotations

import functools
import operator
import reprlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from .. import jaxpr as jx
from ..cotangents import Zero, is_differentiable
from ..jaxpr.types import Aval, PyTree, T, Value

__all__ = [
    "ArgnumsError",
    "arrays_apart",
    "as_value",
    "check_axes",
    "check_callable",
    "check_concrete",
    "check_input",
    "check_output",
    "check_scalar",
    "checked",
    "checked_arrays",
    "checked_ct",
    "checked_result",
    "divided",
    "flags_of",
    "holding_static",
    "indices_of",
    "is_array",
    "name_of",
    "numbers_of",
    "parameters_first",
    "split_arguments",
    "which_differentiated",
    "without_aux",
]


def name_of(f: object) -> str:
    return getattr(f, "__name__", repr(f))


ARGUMENTS_COME_SECOND = "The arguments of f go to the function that is returned: bp.grad(f)(*args), bp.trace(f)(*args)."


def check_callable(f: object, argnums: Any = None, has_aux: object = False) -> None:
    """Refuse what is no function, and arguments of the function in the place of options."""
    if not callable(f):
        raise TypeError(f"Expected a function to differentiate, got {f!r} of type {type(f).__name__}.")
    if not isinstance(has_aux, (bool, np.bool_)):
        raise TypeError(f"has_aux must be a bool, and is {reprlib.repr(has_aux)}. {ARGUMENTS_COME_SECOND}")
    if argnums is not None:
        indices_of(argnums)


PARTITION = (
    "A model that has such leaves, as an Equinox module, is divided first: params, static = eqx.partition(model, "
    "eqx.is_inexact_array); then params are differentiated, of lambda params, *args: f(eqx.combine(params, static), "
    "*args)."
)


def check_concrete(what: str, args: PyTree, instead: str) -> None:
    """Refuse the arguments of a compiled or mapped function, which are no numbers yet, and types in their place."""
    if types := [x for x in jax.tree.leaves(args) if isinstance(x, jax.ShapeDtypeStruct)]:
        raise TypeError(
            f"{what} runs the program on numbers, and was given {types[0]}: summary and residuals take types."
        )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args)):
        raise TypeError(
            f"{what} runs the program on numbers, and was called inside a jitted or mapped function, where there are "
            f"none. {instead}"
        )


def is_array(x: object) -> bool:
    """Tell whether this is an array or a number to JAX; a type that stands for one is none."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return False
    try:
        jax.typeof(x)
    except TypeError:
        return False
    return True


def checked(x: Value, where: str = "") -> Value:
    """Refuse what is no array. `where`: which leaf of its argument it is, if it is one among others."""
    if isinstance(x, jax.ShapeDtypeStruct):
        raise TypeError(
            f"Argument {x}{where} is a type and no array. Of types there are jax.eval_shape, and jit's lower."
        )
    if not is_array(x):
        raise TypeError(
            f"Argument {str(x)!r}{where} of type {type(x)} is not a valid JAX type; arrays and numbers are. {PARTITION}"
        )
    return x


def checked_result(f: object, y: Value) -> Value:
    """Refuse an output of `f` that is no array."""
    if not is_array(y):
        raise TypeError(
            f"{name_of(f)} returned {str(y)!r} of type {type(y)}, which is not a valid JAX type; arrays and numbers "
            "are. What is no array is returned beside the output, with has_aux=True."
        )
    return y


def flags_of(flags: PyTree, tree: PyTreeDef, name: str) -> list[bool]:
    """Read a bool for each leaf of a tree: one for all, or containers of them that are its own as far as they go.

    Containers are compared by their numbers of children, so that a tuple may stand for any of them.
    """
    if isinstance(flags, bool):
        return [flags] * tree.num_leaves
    children = tree.children()
    parts = list(flags.values()) if isinstance(flags, dict) else list(flags) if isinstance(flags, (list, tuple)) else []
    if not parts or len(parts) != len(children):
        raise ValueError(
            f"{name} is a bool, or a tree of bools like the primals, and has {flags!r} where they have {tree}."
        )
    return [b for part, child in zip(parts, children, strict=True) for b in flags_of(part, child, name)]


def checked_arrays(tree: T) -> T:
    """Refuse a pytree with leaves that are neither arrays nor numbers, nor types in their place; return any other."""
    for x in jax.tree.leaves(tree):
        if not isinstance(x, jax.ShapeDtypeStruct):
            checked(x)
    return tree


def as_value(x: Value) -> Value:
    """Read a primal: as an array, or, where it cannot be differentiated, as JAX hands it on; that may be a number."""
    if isinstance(x, (jax.Array, jax.Ref)):
        return x
    return x if jx.is_high(checked(x)) else jnp.asarray(x) if is_differentiable(jx.type_of(x)) else jx.with_dtype(x)


class ArgnumsError(TypeError, ValueError):
    """No argument is where `argnums` asks for one: for JAX, a TypeError in `grad`, and a ValueError in `jacrev`."""


def indices_of(argnums: Any) -> int | tuple[int, ...]:
    """Read `argnums`: an integer of any kind, or a sequence of them."""
    try:
        return operator.index(argnums)
    except TypeError:
        pass
    try:
        return tuple(map(operator.index, argnums))
    except TypeError:
        said = f"argnums must be an int or a sequence of ints, and is {reprlib.repr(argnums)}."
        raise TypeError(f"{said} {ARGUMENTS_COME_SECOND}") from None


def check_axes(reduce_axes: Sequence[Hashable]) -> None:
    """Refuse what JAX has given up, and still takes empty."""
    if reduce_axes:
        raise NotImplementedError(
            f"reduce_axes={reduce_axes!r} is given up in JAX, too: sum over a named axis with jax.lax.psum."
        )


def numbers_of(f: Callable[..., PyTree], argnums: int | Sequence[int], count: int) -> list[int]:
    """List the numbers of the arguments that `argnums` asks for, of the `count` with which `f` was called."""
    indices = indices_of(argnums)
    numbers = [indices] if isinstance(indices, int) else list(indices)
    for i in numbers:
        if not -count <= i < count:
            least = i + 1 if i >= 0 else -i
            raise ArgnumsError(
                f"differentiating with respect to argnums={argnums!r} requires at least {least} positional arguments "
                f"to be passed by the caller, but got only {count} positional arguments. Arguments passed to "
                f"{name_of(f)} by keyword cannot be differentiated with respect to."
            )
    numbers = [i % count for i in numbers]
    if len(set(numbers)) < len(numbers):
        raise ArgnumsError(f"argnums={argnums!r} names an argument twice.")
    return numbers


def split_arguments(
    f: Callable[..., PyTree], argnums: int | Sequence[int], args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
    """Return `f` as a function of the arguments chosen by `argnums` alone, and those arguments."""
    numbers = numbers_of(f, argnums, len(args))

    def partial(*chosen: PyTree) -> PyTree:
        full = list(args)
        for i, x in zip(numbers, chosen, strict=True):
            full[i] = x
        return f(*full, **kwargs)

    partial.__name__ = name_of(f)  # errors speak of the user's function
    return partial, tuple(args[i] for i in numbers)


def which_differentiated(
    f: Callable[..., PyTree], argnums: int | Sequence[int], args: tuple[PyTree, ...]
) -> tuple[tuple[bool, ...], bool]:
    """Say of each positional argument whether `argnums` asks for it, and of the keyword ones that it does not."""
    numbers = numbers_of(f, argnums, len(args))
    return tuple(i in numbers for i in range(len(args))), False


def arrays_apart(
    leaves: Sequence[PyTree], arrays: Sequence[bool]
) -> tuple[list[Any], Callable[[Iterable[Any]], list[Any]]]:
    """Return the leaves that are arrays, and what puts others in their places.

    That holds none of them: a tracer that is held has leaked.
    """
    others = [None if a else x for a, x in zip(arrays, leaves, strict=True)]

    def put(given: Iterable[Any]) -> list[Any]:
        values = iter(given)
        return [next(values) if a else x for a, x in zip(arrays, others, strict=True)]

    return [x for a, x in zip(arrays, leaves, strict=True) if a], put


def holding_static(
    partial: Callable[..., PyTree],
    chosen: tuple[PyTree, ...],
    keep: Callable[[object], bool] = is_array,
    differentiated: PyTree = True,
) -> tuple[Callable[..., PyTree], tuple[PyTree, ...]]:
    """Make it a function of the arrays in its arguments alone, and return these: other leaves are held, and None here.

    What only looks takes any model as it is, such as an Equinox module with its activation functions. Numbers of Python
    are held too, which may be sizes and switches, but for those that `differentiated`, a prefix of the tree, says have
    a derivative.
    """
    leaves, tree = jax.tree.flatten(chosen)
    flags = jax.tree.leaves(jax.tree.broadcast(differentiated, chosen))
    python = lambda x, d: isinstance(x, int if d else (int, float, complex))
    arrays = [keep(x) and not python(x, d) for x, d in zip(leaves, flags, strict=True)]
    _, put = arrays_apart(leaves, arrays)
    of_arrays = lambda *given: partial(*jax.tree.unflatten(tree, put(jax.tree.leaves(given))))
    of_arrays.__name__ = name_of(partial)  # errors speak of the user's function
    return of_arrays, jax.tree.unflatten(tree, [x if a else None for a, x in zip(arrays, leaves, strict=True)])


def parameters_first(f: Callable[..., PyTree], argnums: int) -> Callable[..., PyTree]:
    """Swap the first two arguments of `f`, the parameters and the data, if the parameters are the second."""
    if not isinstance(argnums, int):
        raise TypeError(
            f"argnums is the number of the one argument of {name_of(f)} that holds the parameters, 0 or 1, and was "
            f"{argnums!r}: the other holds the data. Parameters in several arguments become one, as a tuple."
        )
    if argnums not in (0, 1, -2, -1):
        raise ValueError(
            f"argnums={argnums} asks for another argument than the two of {name_of(f)}, the parameters and the data: "
            "it is 0 or 1."
        )
    if argnums in (0, -2):
        return f

    @functools.wraps(f)
    def swapped(first: PyTree, second: PyTree, *args: PyTree, **kwargs: PyTree) -> PyTree:
        return f(second, first, *args, **kwargs)

    return swapped


def without_aux(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Leave out the auxiliary data that `f` returns beside its output."""

    @functools.wraps(f)
    def output(*args: PyTree, **kwargs: PyTree) -> PyTree:
        return divided(f, f(*args, **kwargs))[0]

    return output


def divided(f: Callable[..., PyTree], out: PyTree) -> tuple[PyTree, PyTree]:
    """Divide what `f` returned with `has_aux`: its output, and the auxiliary data."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        got = f"{len(out)} elements" if isinstance(out, (tuple, list)) else f"a {type(out).__name__}"
        raise TypeError(
            f"With has_aux=True, {name_of(f)} must return a two-element tuple (output, aux), and returned {got}."
        )
    return out[0], out[1]


def check_input(x: Any, holomorphic: bool, allow_int: bool, what: str, arguments: PyTree = ()) -> None:
    if jx.is_reference(checked(x, _leaf_named(x, arguments))):
        raise TypeError(
            f"{what} cannot return the derivative with respect to a mutable reference. Use vjp, and "
            "pullback.with_refs(accumulator); or leave the reference out of argnums."
        )
    if not holomorphic and (allow_int or is_differentiable(jx.type_of(x))):
        return
    if jx.is_high(x):
        raise TypeError(f"{what} cannot differentiate with respect to an input of type {jx.type_of(x)}.")
    dtype = jx.type_of(x).dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) and not allow_int:
        raise TypeError(
            f"{what} cannot differentiate with respect to an input of dtype {dtype}{_leaf_named(x, arguments)}. Leave "
            "it out of argnums: pass it as an argument of its own."
        )
    if holomorphic:
        if not jax.dtypes.issubdtype(dtype, np.complexfloating):
            raise TypeError(f"{what} with holomorphic=True requires inputs with complex dtype, but got {dtype}.")
    else:
        raise TypeError(
            f"{what} requires real- or complex-valued inputs (input dtype that is a sub-dtype of np.inexact), but got "
            f"{dtype}{_leaf_named(x, arguments)}. Convert integers to floating point, leave them out of argnums (of a "
            "module, split off its parameters and differentiate these), or pass allow_int=True."
        )


def _leaf_named(x: Any, arguments: PyTree) -> str:
    """Which leaf of its argument this is, if it is one among others."""
    paths = (jx.path_name(path[1:]) for path, leaf in jax.tree.leaves_with_path(arguments) if leaf is x)
    return f" at {path}" if (path := next(paths, "")) else ""


def check_scalar(value: Value, holomorphic: bool) -> None:
    if not jax.tree_util.all_leaves([value]):
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        aux = " If its second part is auxiliary data, pass has_aux=True." if pair else ""
        raise TypeError(f"Gradient only defined for scalar-output functions. Output was {value!r}.{aux}")
    aval = jax.typeof(value)
    if jx.is_high(aval):
        raise TypeError(f"Gradient only defined for scalar-output functions. Output had type: {jx.shown_type(aval)}.")
    if aval.shape != ():
        number = "return its number, output.reshape(())" + (" or output[0]" if aval.ndim == 1 else "") + "; "
        raise TypeError(
            f"Gradient only defined for scalar-output functions. Output had shape: {aval.shape}. To have a gradient, "
            f"{number if aval.size == 1 else ''}sum it, output.sum(); or take all of its derivatives, jacrev "
            "(jax.jacobian)."
        )
    check_output(value, holomorphic, "grad")


def check_output(y: Any, holomorphic: bool, what: str) -> None:
    if jx.is_high(y):
        raise TypeError(f"{what} requires outputs that are arrays, but got {jx.type_of(y)}.")
    dtype = jax.typeof(y).dtype
    if holomorphic:
        if not jax.dtypes.issubdtype(dtype, np.complexfloating):
            raise TypeError(f"{what} with holomorphic=True requires outputs with complex dtype, but got {dtype}.")
    elif jax.dtypes.issubdtype(dtype, np.complexfloating):
        raise TypeError(
            f"{what} requires real-valued outputs (output dtype that is a sub-dtype of np.floating), but got {dtype}. "
            "For holomorphic differentiation pass holomorphic=True; otherwise use vjp."
        )
    elif not jax.dtypes.issubdtype(dtype, np.floating):
        raise TypeError(
            f"{what} requires real-valued outputs (output dtype that is a sub-dtype of np.floating), but got {dtype}."
        )


def checked_ct(ct: Value, aval: Aval) -> Value:
    if not is_differentiable(aval):  # nothing can come back from it, so as in JAX its own value may stand for a zero
        number = isinstance(ct, jax.Array | np.ndarray | np.generic | bool | int | float | complex)
        if not number or np.shape(ct) != aval.shape:
            kind = f"{type(ct).__name__} {ct!r}" if not hasattr(ct, "dtype") else f"{ct.dtype}{list(np.shape(ct))}"
            raise ValueError(
                f"The cotangent of an output of type {aval.dtype}{list(aval.shape)} is an array of that shape, best "
                f"np.zeros({aval.shape}, jax.dtypes.float0), and is {kind}."
            )
        return Zero
    got = jax.typeof(ct)
    if jx.is_high(aval) and not jx.takes(aval, got):
        raise ValueError(
            f"The cotangent of an output of type {jx.shown_type(aval)} must be of type "
            f"{jx.shown_type(aval.to_ct_aval())}, and is of {jx.shown_type(got)}."
        )
    if not jx.takes(aval, got):
        raise ValueError(
            f"The cotangent of an output of type {jx.shown_type(aval)} must have that shape and dtype, and is "
            f"{jx.shown_type(got)}."
        )
    if jx.is_high(aval):
        return ct
    if jx.varying(got) != jx.varying(aval):
        raise ValueError(
            f"The cotangent of an output of type {aval} must vary over the mesh axes that the output varies over, and "
            f"is {got}. Use jax.lax.pcast or jax.lax.psum."
        )
    return ct if isinstance(ct, jax.Array) else jnp.asarray(ct)
