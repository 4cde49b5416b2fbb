"""Attention in blocks: no array of queries by keys is ever alive, in neither pass.

b: batch    t: queries    s: keys    k: heads of keys    g: query heads to each of them    d: units of a head

The forward pass goes over the keys block by block with a running softmax and keeps one number per query beside the
output: L, the logarithm of the sum of its exponentials. Any weight is had again from it as p = e^(z - L). The tangent
rule does that, block by block, and is linear in the tangents; read backward it is FlashAttention's backward pass. So
the one rule, carried by `jax.custom_jvp`, serves forward and reverse mode, ours and JAX's, to any order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree, Value
from .dense import accumulator

Array = jax.Array
STRIPS = 4  # of queries under a causal mask, each of which sees the keys up to its own end


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    block: int = 512,
    implementation: str | None = None,
) -> Array:
    """Attend to values by the likeness of queries and keys, in memory that grows with the length, not its square.

    Forward, with z[t,s] = scale q[t]·k[s] where t may see s and -∞ elsewhere,

        p[t,s] = e^(z[t,s] - L[t]),  L[t] = log Σ_s e^(z[t,s])        o[t] = Σ_s p[t,s] v[s]

    Backward, with p computed again from L, block by block,

        z̄[t,s] = p[t,s] (ō[t]·v[s] - ō[t]·o[t])        v̄[s] = Σ_t p[t,s] ō[t]
        q̄[t] = scale Σ_s z̄[t,s] k[s]                   k̄[s] = scale Σ_t z̄[t,s] q[t]

    It keeps its arguments, o and L. Products of bfloat16 or float16 numbers are added up in float32, and so are blocks.
    A query that may see no key has the output 0 and no gradient, where `jax.nn.dot_product_attention` gives the mean of
    all values.

    Args:
        query: q, shape (batch, T, N, D) or (T, N, D), floating point.
        key: k, shape (batch, S, K, D) or (S, K, D), where N is a multiple of K: each head of keys serves N / K heads of
            queries.
        value: v, shape (batch, S, K, E) or (S, K, E).
        mask: which keys a query may see, booleans that broadcast to (batch, N, T, S); all if None.
        is_causal: whether query t sees only keys s ≤ t. Of the blocks above the diagonal most are never computed.
        scale: what the products are multiplied by, a Python number; 1/√D if None.
        block: how many queries and keys are looked at together.
        implementation: None for these blocks, in plain JAX; or what `jax.nn.dot_product_attention` is to use instead,
            `"cudnn"` or `"xla"`. Its derivative then is JAX's: of cuDNN's kernel the rule that its authors gave, which
            knows no forward mode and no second order.

    Returns:
        o, shape (batch, T, N, E) or (T, N, E), in the dtype of the arguments.

    Raises:
        ValueError: the shapes do not fit together, or the block is not positive.
        TypeError: the dtypes differ or are not floating, or the mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> q = k = v = jnp.arange(6.0).reshape(3, 1, 2)
        >>> o = ops.attention(q, k, v, is_causal=True, scale=0.1)
        >>> [f"{x:.2f}" for x in o[:, 0, 0]]
        ['0.00', '1.46', '3.63']

    References:
        T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, "FlashAttention: fast and memory-efficient exact attention with
        IO-awareness", 2022.
        M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018.
        M. Rabe, C. Staats, "Self-attention does not need O(n²) memory", 2021.
    """
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    mask = None if mask is None else jnp.asarray(mask)
    _check(query, key, value, mask, block)
    if implementation is not None:
        options: dict[str, Any] = dict(is_causal=is_causal, scale=scale, implementation=implementation)
        return jax.nn.dot_product_attention(query, key, value, mask=mask, **options)
    if query.ndim == 3:
        out = attention(query[None], key[None], value[None], mask, is_causal=is_causal, scale=scale, block=block)
        return out[0]
    (b, t, n, d), (_, s, heads, _) = query.shape, key.shape
    if 0 in (*query.shape, *value.shape):
        return jnp.zeros((b, t, n, value.shape[-1]), query.dtype)
    tiles = Tiles.of(t, s, block, is_causal, 1 / math.sqrt(d) if scale is None else float(scale))
    q = _blocks(query.reshape(b, t, heads, n // heads, d).transpose(0, 2, 3, 1, 4), tiles.rows)
    k, v = (_blocks(x.transpose(0, 2, 1, 3), tiles.columns) for x in (key, value))
    seen = None if mask is None else tiles.grouped(mask, heads)
    out, _ = _attention(q, k, v, seen, tiles)
    out = jnp.moveaxis(out, 0, -3).reshape(b, heads, n // heads, -1, value.shape[-1])[..., :t, :]
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, -1)


class Axis(NamedTuple):
    """A length in blocks of equal size, of which the last may be longer than what is left."""

    length: int
    size: int
    blocks: int

    @classmethod
    def of(cls, length: int, block: int) -> Axis:
        blocks = -(-length // block)
        return cls(length, -(-length // blocks), blocks)

    @property
    def missing(self) -> int:
        return self.size * self.blocks - self.length


class Tiles(NamedTuple):
    """How the queries and the keys are cut into blocks, and which pairs are to be looked at."""

    rows: Axis
    columns: Axis
    is_causal: bool
    scale: float

    @classmethod
    def of(cls, t: int, s: int, block: int, is_causal: bool, scale: float) -> Tiles:
        return cls(Axis.of(t, block), Axis.of(s, block), is_causal, scale)

    def strips(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first block of queries, the one after the last, how many blocks of keys these see)."""
        rows, columns = self.rows, self.columns
        strips = min(STRIPS, rows.blocks) if self.is_causal else 1
        ends = [rows.blocks * (i + 1) // strips for i in range(strips)]
        for start, stop in zip([0, *ends], ends, strict=False):
            seen = min(-(-stop * rows.size // columns.size), columns.blocks) if self.is_causal else columns.blocks
            yield start, stop, seen

    def grouped(self, mask: Array, heads: int) -> Array:
        """Bring a mask to (batch, heads of keys, query heads to each, T, S), 1 for all; T and S in whole blocks."""
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        b, n, t, s = mask.shape
        mask = mask.reshape(b, 1 if n == 1 else heads, 1 if n == 1 else n // heads, t, s)
        ends = [(0, axis.missing if size > 1 else 0) for axis, size in ((self.rows, t), (self.columns, s))]
        return jnp.pad(mask, [(0, 0)] * 3 + ends)

    def logits(self, q: Array, k: Array, mask: Array | None, i: Array, j: Array) -> Array:
        """z of block i of the queries and block j of the keys, -∞ where a query may not see a key."""
        rows, columns = self.rows, self.columns
        z = self.scale * _product("bkgtd,bksd->bkgts", q, k)
        t = i * rows.size + lax.broadcasted_iota(jnp.int32, z.shape[-2:], 0)
        s = j * columns.size + lax.broadcasted_iota(jnp.int32, z.shape[-2:], 1)
        sees = [s < columns.length] if columns.missing else []
        sees += [s <= t] if self.is_causal else []
        if mask is not None:
            zero = jnp.zeros_like(i)
            cuts = [
                (n * axis.size, axis.size) if length > 1 else (zero, 1)
                for n, axis, length in zip((i, j), (rows, columns), mask.shape[3:], strict=True)
            ]
            starts, sizes = zip(*cuts, strict=True)
            sees.append(lax.dynamic_slice(mask, (zero, zero, zero, *starts), (*mask.shape[:3], *sizes)))
        for may in sees:
            z = jnp.where(may, z, -jnp.inf)
        return z


def _blocks(x: Array, axis: Axis) -> Array:
    """Cut the last axis but one into blocks, which come first."""
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, axis.missing), (0, 0)])
    return jnp.moveaxis(x.reshape(*x.shape[:-2], axis.blocks, axis.size, x.shape[-1]), -3, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _attention(q: Array, k: Array, v: Array, mask: Array | None, tiles: Tiles) -> tuple[Array, Array]:
    """o and L, in blocks of queries."""

    def rows(i: Array, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        def columns(carry: PyTree, along: PyTree) -> tuple[PyTree, None]:
            (largest, total, out), (j, k, v) = carry, along
            z = tiles.logits(q, k, mask, i, j)
            top = jnp.maximum(largest, jnp.max(z, -1))
            shift = jnp.where(top == -jnp.inf, 0, top)
            p, shrink = jnp.exp(z - shift[..., None]), jnp.exp(largest - shift)
            out = shrink[..., None] * out + _product("bkgts,bksd->bkgtd", p.astype(v.dtype), v)
            return (top, shrink * total + jnp.sum(p, -1), out), None

        none = jnp.full(q.shape[:-1], -jnp.inf, accumulator(q.dtype))
        start = none, jnp.zeros_like(none), jnp.zeros((*none.shape, v.shape[-1]), none.dtype)
        (largest, total, out), _ = _scan(columns, start, (jnp.arange(len(k), dtype=jnp.int32), k, v))
        sees = total != 0
        safe = jnp.where(sees, total, 1)
        return (out / safe[..., None]).astype(v.dtype), jnp.where(sees, largest + jnp.log(safe), jnp.inf)

    return _over_strips(rows, tiles, (q,), (k, v))


@functools.partial(_attention.defjvp, symbolic_zeros=True)
def attention_tangent(tiles: Tiles, primals: Sequence[Value], tangents: Sequence[Value]) -> Value:
    """ȯ = Σ_s p (ż v + v̇) - o Σ_s p ż and L̇ = Σ_s p ż, with ż = scale (q̇·k + q·k̇) and p had again from L."""
    q, k, v, mask = primals
    out, log_sum = _attention(q, k, v, mask, tiles)
    dq, dk, dv = (None if isinstance(d, SymbolicZero) else d.astype(accumulator(d.dtype)) for d in tangents[:3])

    def rows(i: Array, q: Array, dq: Value, out: Array, log_sum: Array, k: Array, *keys: Value) -> Value:
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def columns(carry: PyTree, along: PyTree) -> tuple[PyTree, None]:
            (change, slope), (j, k, dk, v, dv) = carry, along
            p = jnp.exp(tiles.logits(q, k, mask, i, j) - log_sum[..., None])
            dz = []
            if dq is not None:
                dz.append(_linear("bkgtd,bksd->bkgts", dq.astype(q.dtype), k))
            if dk is not None:
                dz.append(_linear("bkgtd,bksd->bkgts", q, dk.astype(k.dtype)))
            if dz:
                pdz = p * (tiles.scale * sum(dz))
                slope += jnp.sum(pdz, -1)
                change += _linear("bkgts,bksd->bkgtd", pdz.astype(v.dtype), v)
            if dv is not None:
                change += _linear("bkgts,bksd->bkgtd", p.astype(v.dtype), dv.astype(v.dtype))
            return (change, slope), None

        start = jnp.zeros(out.shape, log_sum.dtype), jnp.zeros_like(log_sum)
        (change, slope), _ = _scan(columns, start, (jnp.arange(len(k), dtype=jnp.int32), k, *keys))
        return (change - slope[..., None] * out.astype(slope.dtype)).astype(out.dtype), slope

    over = jax.checkpoint(lambda r, c: _over_strips(rows, tiles, r, c), prevent_cse=False)
    return (out, log_sum), over((q, dq, out, log_sum), (k, dk, v, dv))


def _over_strips(f: Callable[..., PyTree], tiles: Tiles, rows: PyTree, columns: PyTree) -> PyTree:
    """f(i, *block i of rows, *those blocks of columns that these see) of all blocks i."""
    found = []
    for start, stop, seen in tiles.strips():
        keys = jax.tree.map(lambda x, n=seen: x[:n], columns)
        along = jnp.arange(start, stop, dtype=jnp.int32), *jax.tree.map(lambda x, a=start, b=stop: x[a:b], rows)
        body = lambda _, blocks, keys=keys: (None, f(*blocks, *keys))
        found.append(_scan(body, None, along)[1])
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *found) if len(found) > 1 else found[0]


def _scan(body: Callable[..., PyTree], carry: PyTree, along: PyTree) -> tuple[PyTree, PyTree]:
    """`lax.scan`, without a loop where there is one step."""
    if len(jax.tree.leaves(along)[0]) > 1:
        return lax.scan(body, carry, along)
    carry, found = body(carry, jax.tree.map(lambda x: x[0], along))
    return carry, jax.tree.map(lambda x: x[None], found)


def _product(formula: str, x: Array, y: Array) -> Array:
    return jnp.einsum(formula, x, y, preferred_element_type=accumulator(x.dtype))


def _linear(formula: str, x: Array, y: Array) -> Array:
    """A product in a tangent: rounded to the type of its factors, so that the products that it is on the way back,
    whose one factor is a cotangent, are products of narrow numbers too.
    """
    return jnp.einsum(formula, x, y).astype(accumulator(x.dtype))


def _check(query: Array, key: Array, value: Array, mask: Array | None, block: int) -> None:
    shapes = f"query {query.shape}, key {key.shape} and value {value.shape}"
    if query.ndim not in (3, 4) or not query.ndim == key.ndim == value.ndim:
        raise ValueError(
            f"attention needs a query of shape (batch, T, N, D), and key and value of shape (batch, S, K, D), or all "
            f"three without batch, and got {shapes}."
        )
    if key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1] or query.shape[:-3] != key.shape[:-3]:
        raise ValueError(
            f"attention needs key and value of one length and number of heads, a query and a key of as many units, and "
            f"one batch, and got {shapes}."
        )
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"attention needs as many heads of queries as of keys, or a multiple, and got {query.shape[-2]} and "
            f"{key.shape[-2]}."
        )
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise TypeError(
            f"attention needs query, key and value of one floating dtype, and got {query.dtype}, {key.dtype} and "
            f"{value.dtype}."
        )
    if block < 1:
        raise ValueError(f"attention needs a block of at least 1, and got {block}.")
    if mask is None:
        return
    if mask.dtype != jnp.bool_:
        raise TypeError(f"attention needs a mask of booleans, True where a query sees a key, and got {mask.dtype}.")
    whole = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    if mask.ndim > len(whole) or any(m not in (1, n) for m, n in zip(mask.shape[::-1], whole[::-1], strict=False)):
        raise ValueError(f"attention needs a mask that broadcasts to {whole}, and got shape {mask.shape}.")
