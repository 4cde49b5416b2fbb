"""Run a program one operation at a time, loops, branches and calls included, the common operations by NumPy.

Nothing is compiled but the rarer operations, once per process and shape: judging a program costs what tracing it costs.
"""

from __future__ import annotations

import string

import jax
import jax.numpy as jnp
import numpy as np

from funcbp import jaxpr as jx


def interpreted(f, *args):
    """What `f` returns, from the operations that it traces to."""
    closed, out = jax.make_jaxpr(f, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(out), jx.run(closed, jax.tree.leaves(args), NumPy()))


class NumPy(jx.Visitor):
    """Runs each operation by itself, the common ones by NumPy."""

    enters = jx.CALLS | jx.CONTROL

    def equation(self, eqn, args):
        name, params = eqn.primitive.name, eqn.params
        if name in NUMPY and not any(map(is_key, args)):
            with np.errstate(all="ignore"):
                outs = NUMPY[name](*map(np.asarray, args), **params)
        else:
            outs = eqn.primitive.bind(*map(jnp.asarray, args), **params)
        outs = outs if eqn.primitive.multiple_results else [outs]
        for y, v in zip(outs, eqn.outvars, strict=True):
            assert y.shape == v.aval.shape and y.dtype == v.aval.dtype, (name, y.shape, y.dtype, v.aval)
        return outs

    def row(self, x, i):
        return x[i] if is_key(x) else np.asarray(x)[i]

    def stack(self, rows, aval):
        return np.stack(rows) if rows else np.zeros(aval.shape, aval.dtype)


def is_key(x):
    """Whether NumPy cannot hold it."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# --- operations by NumPy ----------------------------------------------------------------------------------------------

ELEMENTWISE = """
    add sub mul atan2:arctan2 max:maximum min:minimum eq:equal ne:not_equal lt:less le:less_equal gt:greater
    ge:greater_equal and:bitwise_and or:bitwise_or not:bitwise_not neg:negative sin cos tan tanh exp exp2 expm1 log
    log1p sqrt cbrt sign floor ceil abs square is_finite:isfinite add_any:add pow:power
"""


def elementwise(name):
    apply = getattr(np, {"sub": "subtract", "mul": "multiply"}.get(name, name))
    return lambda *xs, **params: np.asarray(apply(*xs))


def divide(x, y):
    return np.asarray(np.divide(x, y) if jnp.issubdtype(x.dtype, jnp.inexact) else np.trunc(x / y).astype(x.dtype))


def broadcast_in_dim(x, *, shape, broadcast_dimensions, sharding):
    aligned = [1] * len(shape)
    for n, axis in zip(x.shape, broadcast_dimensions, strict=True):
        aligned[axis] = n
    return np.broadcast_to(x.reshape(aligned), shape)


def dot_general(x, y, *, dimension_numbers, preferred_element_type=None, **params):
    (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
    letters = iter(string.ascii_letters)
    of_x = [next(letters) for _ in range(x.ndim)]
    met = dict(zip([*y_contract, *y_batch], [of_x[i] for i in (*x_contract, *x_batch)], strict=True))
    of_y = [met[j] if j in met else next(letters) for j in range(y.ndim)]
    out = [of_x[i] for i in x_batch]
    out += [a for i, a in enumerate(of_x) if i not in (*x_contract, *x_batch)]
    out += [a for j, a in enumerate(of_y) if j not in met]
    return np.einsum(f"{''.join(of_x)},{''.join(of_y)}->{''.join(out)}", x, y).astype(preferred_element_type or x.dtype)


def select_n(which, *cases):
    return np.choose(which.astype(int), cases).astype(cases[0].dtype)


def cumulative(op):
    def along(x, *, axis, reverse):
        return np.flip(op(np.flip(x, axis), axis), axis) if reverse else op(x, axis)

    return along


NUMPY = {word.partition(":")[0]: elementwise(word.partition(":")[2] or word) for word in ELEMENTWISE.split()} | {
    "div": divide,
    "integer_pow": lambda x, *, y: np.asarray(x ** float(y) if y < 0 else x**y, x.dtype),
    "rsqrt": lambda x, **_: np.asarray(1 / np.sqrt(x)),
    "logistic": lambda x, **_: np.asarray(1 / (1 + np.exp(-x))),
    "select_n": select_n,
    "real": lambda x, **_: np.asarray(np.real(x)),
    "imag": lambda x, **_: np.asarray(np.imag(x)),
    "conj": lambda x, **_: np.asarray(np.conj(x) + 0j),
    "complex": lambda x, y: np.asarray(x + 1j * y),
    "stop_gradient": lambda x, **_: x,
    "copy": lambda x, **_: x,
    "copy_p": lambda x, **_: x,
    "convert_element_type": lambda x, *, new_dtype, **_: (
        x if np.issubdtype(new_dtype, np.complexfloating) else np.asarray(x.real)
    ).astype(new_dtype),
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": lambda x, *, new_sizes, dimensions, **_: (
        x if dimensions is None else np.transpose(x, dimensions)
    ).reshape(new_sizes),
    "squeeze": lambda x, *, dimensions: np.squeeze(x, dimensions),
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, dimensions),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "slice": lambda x, *, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))
    ],
    "iota": lambda *, dtype, shape, dimension, **_: np.moveaxis(
        np.broadcast_to(np.arange(shape[dimension], dtype=dtype), (*np.delete(shape, dimension), shape[dimension])),
        -1,
        dimension,
    ),
    "dot_general": dot_general,
    "reduce_sum": lambda x, *, axes, **_: np.asarray(np.sum(x, axes), x.dtype),
    "reduce_prod": lambda x, *, axes, **_: np.asarray(np.prod(x, axes), x.dtype),
    "reduce_max": lambda x, *, axes, **_: np.asarray(np.max(x, axes)),
    "reduce_min": lambda x, *, axes, **_: np.asarray(np.min(x, axes)),
    "reduce_and": lambda x, *, axes, **_: np.asarray(np.all(x, axes)),
    "reduce_or": lambda x, *, axes, **_: np.asarray(np.any(x, axes)),
    "argmax": lambda x, *, axes, index_dtype: np.argmax(x, axes[0]).astype(index_dtype),
    "cumsum": cumulative(np.cumsum),
    "cumprod": cumulative(np.cumprod),
    "cummax": cumulative(np.maximum.accumulate),
}
