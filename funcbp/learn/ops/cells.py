"""Recurrent cells: one step in time, to be carried along by a scan.

b..: any leading axes    i: inputs    j: units    a: the net inputs of the gates

The products with the weights are `dense`; what the gates do with the net inputs is one operation, with its tangent rule
under it, carried by `jax.custom_jvp`. It keeps the net inputs and what was carried in, and computes the gates again. A
cell is Σ slope · tangent of these; read backward, each cotangent is the sum over what it went into.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...jaxpr.types import Value
from ...rules.elementwise import logistic_slope
from .activations import logistic, tanh
from .dense import dense

Array = jax.Array


def lstm_cell(
    x: ArrayLike,
    state: tuple[ArrayLike, ArrayLike],
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """One step of a long short-term memory with a forget gate.

    Forward, with the net inputs (a_i, a_f, a_g, a_o) = x W + h U + β, σ the logistic function,

        c' = σ(a_f) c + σ(a_i) tanh(a_g)        h' = σ(a_o) tanh(c')

    Backward, with the delta of the memory δ = c̄' + h̄' σ(a_o) sech²(c'),

        ā_i = δ tanh(a_g) σ'(a_i)    ā_f = δ c σ'(a_f)    ā_g = δ σ(a_i) sech²(a_g)    ā_o = h̄' tanh(c') σ'(a_o)

    and c̄ = δ σ(a_f): along the memory the delta is only ever multiplied by the forget gate.

    Args:
        x: inputs, shape (batch..., in), floating point.
        state: (h, c), what the cell says and what it remembers, each of shape (batch..., units).
        kernel: W, shape (in, 4 units), the gates in the order i, f, g, o, as in PyTorch.
        recurrent_kernel: U, shape (units, 4 units).
        bias: β, shape (4 units,), or None for a cell without.

    Returns:
        (h', c').

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import ops
        >>> w, u, xs = jnp.ones((1, 8)), jnp.ones((2, 8)), jnp.ones((3, 1))  # three steps
        >>> step = lambda state, x: (ops.lstm_cell(x, state, w, u), None)
        >>> (h, c), _ = jax.lax.scan(step, (jnp.zeros(2), jnp.zeros(2)), xs)
        >>> print(f"{h[0]:.4f} {c[0]:.4f}")
        0.8925 2.0798

    References:
        S. Hochreiter, J. Schmidhuber, "Long short-term memory", 1997.
        F. Gers, J. Schmidhuber, F. Cummins, "Learning to forget: continual prediction with LSTM", 2000.
    """
    h, c = map(jnp.asarray, state)
    net = dense(x, kernel) + dense(h, recurrent_kernel, bias)
    if h.shape != c.shape or net.shape != (*c.shape[:-1], 4 * c.shape[-1]):
        raise ValueError(
            f"lstm_cell needs h and c of one shape (batch..., units) and kernels to 4 units, and got h {h.shape}, c "
            f"{c.shape} and net inputs of shape {net.shape}."
        )
    return _lstm(net, c)


@jax.custom_jvp
def _lstm(net: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = jnp.split(net, 4, -1)
    c = logistic(f) * c + logistic(i) * tanh(g)
    return logistic(o) * tanh(c), c


@_lstm.defjvp
def lstm_tangent(primals: Sequence[Array], tangents: Sequence[Value]) -> Value:
    """ċ' = c σ'(f) ḟ + σ(f) ċ + tanh(g) σ'(i) i̇ + σ(i) sech²(g) ġ, and ḣ' = tanh(c') σ'(o) ȯ + σ(o) sech²(c') ċ'."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(net: Array, c: Array, dnet: Array, dc: Array) -> tuple[Array, Array]:
        i, f, g, o = jnp.split(net, 4, -1)
        di, df, dg, do = jnp.split(dnet, 4, -1)
        dc = c * logistic_slope(f) * df + logistic(f) * dc
        dc += tanh(g) * logistic_slope(i) * di + logistic(i) * _tanh_slope(g) * dg
        c = logistic(f) * c + logistic(i) * tanh(g)
        return tanh(c) * logistic_slope(o) * do + logistic(o) * _tanh_slope(c) * dc, dc

    return _lstm(*primals), tangent(*primals, *tangents)


def gru_cell(
    x: ArrayLike,
    h: ArrayLike,
    kernel: ArrayLike,
    recurrent_kernel: ArrayLike,
    bias: ArrayLike | None = None,
    recurrent_bias: ArrayLike | None = None,
) -> Array:
    """One step of a gated recurrent unit, whose reset gate acts on the product with the weights, as in cuDNN.

    Forward, with the net inputs (a_r, a_z, a_n) = x W + β and (b_r, b_z, b_n) = h U + β', σ the logistic function,

        r = σ(a_r + b_r)    z = σ(a_z + b_z)    n = tanh(a_n + r b_n)        h' = (1 - z) n + z h

    Backward, with the deltas δ_n = h̄' (1 - z) (1 - n²), δ_z = h̄' (h - n) z (1 - z) and δ_r = δ_n b_n r (1 - r),

        ā = (δ_r, δ_z, δ_n)        b̄ = (δ_r, δ_z, δ_n r)        h̄ = h̄' z + b̄ U'

    Args:
        x: inputs, shape (batch..., in), floating point.
        h: what the cell said before, shape (batch..., units).
        kernel: W, shape (in, 3 units), the gates in the order r, z, n, as in PyTorch.
        recurrent_kernel: U, shape (units, 3 units).
        bias: β, shape (3 units,), or None.
        recurrent_bias: β', shape (3 units,), or None.

    Returns:
        h', shape (batch..., units).

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> h = ops.gru_cell(jnp.ones(1), jnp.zeros(1), jnp.ones((1, 3)), jnp.ones((1, 3)))
        >>> print(f"{h[0]:.4f}")
        0.2048

    References:
        K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
        2014.
    """
    h = jnp.asarray(h)
    a, b = dense(x, kernel, bias), dense(h, recurrent_kernel, recurrent_bias)
    if not a.shape == b.shape == (*h.shape[:-1], 3 * h.shape[-1]):
        raise ValueError(
            f"gru_cell needs an h of shape (batch..., units) and kernels to 3 units, and got h {h.shape} and net "
            f"inputs of shapes {a.shape} and {b.shape}."
        )
    return _gru(a, b, h)


@jax.custom_jvp
def _gru(a: Array, b: Array, h: Array) -> Array:
    (r, z, n), (_, _, inner) = jnp.split(a + b, 3, -1), jnp.split(b, 3, -1)
    n = tanh(n - inner + logistic(r) * inner)
    return logistic(-z) * n + logistic(z) * h


@_gru.defjvp
def gru_tangent(primals: Sequence[Array], tangents: Sequence[Value]) -> Value:
    """ḣ' = (1 - z) ṅ + z ḣ + (h - n) ż, with ṅ = (1 - n²) (ȧ_n + r ḃ_n + b_n ṙ)."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(a: Array, b: Array, h: Array, da: Array, db: Array, dh: Array) -> Array:
        (ar, az, an), (br, bz, bn) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
        (dar, daz, dan), (dbr, dbz, dbn) = jnp.split(da, 3, -1), jnp.split(db, 3, -1)
        r, z = ar + br, az + bz
        inner = an + logistic(r) * bn
        dn = _tanh_slope(inner) * (dan + logistic(r) * dbn + bn * logistic_slope(r) * (dar + dbr))
        return logistic(-z) * dn + logistic(z) * dh + (h - tanh(inner)) * logistic_slope(z) * (daz + dbz)

    return _gru(*primals), tangent(*primals, *tangents)


def _tanh_slope(x: Array) -> Array:
    """sech² x, without the difference that vanishes in the tails."""
    return 4 * logistic_slope(2 * x)
