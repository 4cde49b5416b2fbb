"""A decoder-only transformer: each position of a sequence tells what comes next from what came before.

b: sequences    t, s: positions    v: tokens    d: width    n: heads of queries    k: heads of keys    h: of a head
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...autodiff.marks import name
from ...jaxpr.types import PyTree
from .. import ops
from .net import Net, check_sizes, dtype_like

Array = jax.Array
BLOCK = 128  # of queries and keys that are looked at together
NORMS = ("attention_norm", "mlp_norm")


def transformer(
    vocabulary: int,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    *,
    key_heads: int | None = None,
    hidden: int | None = None,
    mlp: str = "swiglu",
    base: float = 10_000.0,
    dtype: DTypeLike | None = None,
    scanned: bool = True,
) -> Net:
    """A decoder-only transformer as they are built today: RMSNorm, rotary positions, grouped heads, a gated MLP.

    With E the embedding, which reads the tokens and names them, and norm(x) = x / √(mean x²) · scale:

        x_0 = √d E[token]
        x'  = x_l + Attention(norm(x_l)),   x_{l+1} = x' + MLP(norm(x')),        l = 0, ..., layers - 1
        logits = norm(x_layers) E'

    Attention(x) = softmax(q k' / √h, over s ≤ t) v Wo, with q and k turned by an angle that grows with the position
    (`ops.rotary`), and a head of keys for `heads / key_heads` of queries. MLP(x) is
    (swish(x Wg) · x Wu) Wd, or gelu(x Wu) Wd.

    The parameters of all blocks are stacked, and one block is compiled, under `jax.lax.scan`. What a block adds to x is
    named `attention` and `mlp`, what leaves it `block`; what the norms hand out `attention_input`, `mlp_input` and
    `norm`, what goes past them `attention_skip` and `mlp_skip`; `embedding` and `logits` are names too (`funcbp.name`).

    Args:
        vocabulary: how many tokens there are.
        width: d, numbers for each position; a multiple of `heads`.
        layers: how many blocks.
        heads: n; width / heads is even.
        key_heads: k, heads of keys and of values, a divisor of `heads`; as many as `heads`, if not given.
        hidden: units of the MLP; by default 4 d, or for swiglu, which has three kernels, 8/3 d (a multiple of 8).
        mlp: `"swiglu"` or `"gelu"`.
        base: of the angles of positions, see `ops.rotary`.
        dtype: in which the blocks compute, such as `jnp.bfloat16`; norms, the stream x and the logits stay in the
            parameters' own, and so do the gradients. By default that of the parameters.
        scanned: whether the blocks are a scan. If not, they are written out one after another, and their names have
            numbers: `block_0`, ...

    Returns:
        A network from tokens, whole numbers of shape (batch..., t), to logits of shape (batch..., t, vocabulary); the
        parameters are float32.

    Raises:
        ValueError: the sizes do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets
        >>> net, tokens = nets.transformer(256, width=32, layers=2, heads=4, key_heads=2), jnp.arange(10)
        >>> params = net.init(jax.random.key(0), tokens)
        >>> params["blocks"]["key"]["kernel"].shape, net.apply(params, tokens).shape
        ((2, 32, 16), (10, 256))

    References:
        A. Vaswani et al., "Attention is all you need", 2017; B. Zhang, R. Sennrich, "Root mean square layer
        normalization", 2019; J. Su et al., "RoFormer", 2021; N. Shazeer, "GLU variants improve transformer", 2020;
        J. Ainslie et al., "GQA", 2023; O. Press, L. Wolf, "Using the output embedding to improve language models",
        2017.
    """
    if mlp not in ("swiglu", "gelu"):
        raise ValueError(f"mlp is 'swiglu' or 'gelu', and was {mlp!r}.")
    gated = mlp == "swiglu"
    groups = heads if key_heads is None else key_heads
    if hidden is None:
        hidden = 8 * math.ceil(width / 3) if gated else 4 * width
    check_sizes("transformer", [vocabulary, width, layers, heads, groups, hidden], 6)
    if width % heads or (width // heads) % 2:
        raise ValueError(f"The width is an even multiple of the heads, and was {width} with {heads} heads.")
    if heads % groups:
        raise ValueError(f"key_heads is a divisor of heads, and was {groups} with {heads} heads.")
    kernels = _kernels(width, groups * (width // heads), hidden, gated)
    into_stream = 1 / math.sqrt(2 * layers)  # so that what all of them add has the size of what is there
    block = Block(width // heads, gated, base, dtype)

    def init(key: Array, x: Array) -> dict[str, PyTree]:
        check_tokens(x)
        keys = jax.random.split(key, len(kernels) + 1)
        blocks: dict[str, PyTree] = {each: {"scale": jnp.ones((layers, width), dtype_like(x))} for each in NORMS}
        for k, (each, shape) in zip(keys, kernels.items(), strict=False):
            size_of_them = (into_stream if each in ("out", "down") else 1) / math.sqrt(shape[0])
            blocks[each] = {"kernel": size_of_them * jax.random.normal(k, (layers, *shape), dtype_like(x))}
        embedding = jax.random.normal(keys[-1], (vocabulary, width), dtype_like(x)) / math.sqrt(width)
        return {
            "embedding": {"kernel": embedding},
            "blocks": blocks,
            "norm": {"scale": jnp.ones(width, dtype_like(x))},
        }

    def numbered(i: int, x: Array, what: str) -> Array:
        return name(x, f"{what}_{i}")

    def apply(params: PyTree, x: Array, *, key: Array | None = None) -> Array:
        check_tokens(x)
        kernel = params["embedding"]["kernel"]
        h = kernel[x.reshape(-1, x.shape[-1])] * jnp.asarray(math.sqrt(width), kernel.dtype)
        h = name(h, "embedding")
        if scanned:
            h, _ = lax.scan(lambda h, p: (block(h, p, name), None), h, params["blocks"])
        else:
            for i in range(layers):
                p = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
                h = block(h, p, partial(numbered, i))
        h = name(ops.rms_norm(h, params["norm"]["scale"]).astype(dtype or h.dtype), "norm")
        logits = lax.dot_general(
            h, kernel.astype(h.dtype), (((2,), (1,)), ((), ())), preferred_element_type=kernel.dtype
        )
        return name(logits.reshape(*x.shape, vocabulary), "logits")

    return Net(init, apply)


def _kernels(width: int, keys: int, hidden: int, gated: bool) -> dict[str, tuple[int, int]]:
    """The shapes of a block's kernels, from the width, that of all keys together, and the units of the MLP."""
    return {
        "query": (width, width),
        "key": (width, keys),
        "value": (width, keys),
        "out": (width, width),
        **({"gate": (width, hidden)} if gated else {}),
        "up": (width, hidden),
        "down": (hidden, width),
    }


class Block(NamedTuple):
    """One block: x' = x + Attention(norm(x)), and then x' + MLP(norm(x')).

    Attributes:
        size: h, numbers of a head.
        gated: whether the MLP is.
        base: of the angles of positions.
        dtype: in which attention and MLP compute, if not in that of the stream.
    """

    size: int
    gated: bool
    base: float
    dtype: DTypeLike | None

    def __call__(self, x: Array, p: PyTree, named: Callable[[Array, str], Array]) -> Array:
        """The stream after the block, x of shape (b, t, d), with `named` to name what is in it."""
        wide, narrow = x.dtype, self.dtype or x.dtype
        p = {each: layer if each in NORMS else {"kernel": layer["kernel"].astype(narrow)} for each, layer in p.items()}

        def normed(which: str) -> Array:
            return named(ops.rms_norm(x, p[f"{which}_norm"]["scale"]).astype(narrow), f"{which}_input")

        y = self.attention(normed("attention"), p)
        x = named(x, "attention_skip") + named(y.astype(wide), "attention")
        y = self.mlp(normed("mlp"), p)
        x = named(x, "mlp_skip") + named(y.astype(wide), "mlp")
        return named(x, "block")

    def attention(self, y: Array, p: PyTree) -> Array:
        """softmax(q k' / √h, over s ≤ t) v Wo, the heads beside each other."""
        heads_of = lambda y: y.reshape(*y.shape[:-1], -1, self.size)
        q, k, v = (heads_of(ops.dense(y, p[each]["kernel"])) for each in ("query", "key", "value"))
        q, k = (ops.rotary(y, base=self.base) for y in (q, k))
        out = ops.attention(q, k, v, is_causal=True, block=BLOCK)
        return ops.dense(out.reshape(*y.shape), p["out"]["kernel"])

    def mlp(self, y: Array, p: PyTree) -> Array:
        """(swish(y Wg) · y Wu) Wd, or gelu(y Wu) Wd."""
        up = ops.dense(y, p["up"]["kernel"])
        up = ops.swish(ops.dense(y, p["gate"]["kernel"])) * up if self.gated else ops.gelu(up)
        return ops.dense(up, p["down"]["kernel"])


def check_tokens(x: Array) -> None:
    """Raise if these are no tokens."""
    if not x.ndim or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"A transformer reads whole numbers of shape (batch..., t), and got {x.dtype}{list(x.shape)}.")
