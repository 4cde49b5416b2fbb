"""Products as pairs of factors: what can be asked of a parameter's cotangents, example by example, without making them.

n, m: examples   g: groups   p, q: positions (time, pixels)   i: inputs   o: units

For one example, the cotangent of a weight is a product of inputs and deltas, W̄_n[g,i,o] = Σ_p x_n[g,p,i] δ_n[g,p,o]:
positions are what an example itself shares the weight over, groups are stacked layers (or groups of channels). Whatever
the contraction, convolution or lookup was, it is brought into this form, and then

    ⟨W̄_n, V̄_m⟩ = Σ_{g,p,q} (x_n[g,p] · y_m[g,q]) (δ_n[g,p] · ε_m[g,q]),

which for few positions costs next to nothing, while making W̄_n costs as much as the whole gradient, and its bytes too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..cotangents import STACKED, SUMMED, Moves, Product
from ..rules.contraction import conv_right, dot_general_left, dot_general_right
from ..rules.indexing import gather_left
from ..rules.inlined import Moved, contracted

__all__ = ["Layout", "OneHot", "Pair", "between", "einsum", "pair_of", "within"]

Array = jax.Array


def einsum(formula: str, *arrays: Array) -> Array:
    """A contraction that adds up narrow numbers in float32."""
    narrow = jnp.finfo(arrays[0].dtype).bits < 32
    return jnp.einsum(formula, *arrays, preferred_element_type=jnp.float32 if narrow else None)


# --- factors ----------------------------------------------------------------------------------------------------------


@functools.partial(jax.tree_util.register_dataclass, data_fields=["places"], meta_fields=["size"])
@dataclasses.dataclass(frozen=True)
class OneHot:
    """A factor whose vectors are one-hot codes, as a lookup has them: the places of the ones, integers (n, g, p)."""

    places: Array
    size: int


Factor = Any  # an array (n, g, p, i), or a OneHot


def width(a: Factor) -> int:
    """The length of a factor's vectors."""
    return a.size if isinstance(a, OneHot) else a.shape[-1]


def array(a: Factor, dtype: DTypeLike) -> Array:
    """The factor as an array."""
    return jax.nn.one_hot(a.places, a.size, dtype=dtype) if isinstance(a, OneHot) else a


def within(a: Factor, b: Factor) -> Array:
    """The inner products a_n[g,p] · b_n[g,q] within each example: (n, g, p, q)."""
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        return a.places[:, :, :, None] == b.places[:, :, None, :]
    if isinstance(b, OneHot):
        return jnp.take_along_axis(a, b.places[:, :, None, :], -1)
    if isinstance(a, OneHot):
        return within(b, a).swapaxes(-1, -2)
    if a.shape[2] == b.shape[2] == 1:
        return jnp.sum(_wide(a) * _wide(b), -1, keepdims=True)
    return einsum("ngpi,ngqi->ngpq", a, b)


def between(a: Factor, b: Factor) -> Array:
    """The inner products a_n[g,p] · b_m[g,q] between all examples: (g, n, p, m, q)."""
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        put = lambda f: f.places.swapaxes(0, 1)
        return put(a)[:, :, :, None, None] == put(b)[:, None, None, :, :]
    if isinstance(b, OneHot):
        look_up = jax.vmap(lambda rows, places: rows[..., places], (1, 1))
        return look_up(a, b.places)
    if isinstance(a, OneHot):
        return between(b, a).transpose(0, 3, 4, 1, 2)
    return einsum("ngpi,mgqi->gnpmq", a, b)


def _wide(a: Array) -> Array:
    return a.astype(jnp.float32) if jnp.finfo(a.dtype).bits < 32 else a


# --- where a product goes ---------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where the product [g, i, o] goes in the parameter.

    Attributes:
        group, inputs, units: the axes of the parameter that each letter stands for, in order.
        sizes: the sizes of the parameter's axes, before what follows.
        then: isometries that follow, and `STACKED` for stacks of their results.
        outer: the sizes of those stacks, the outermost first; they are the first part of g.
    """

    group: tuple[int, ...]
    inputs: tuple[int, ...]
    units: tuple[int, ...]
    sizes: tuple[int, ...]
    then: tuple[Any, ...] = ()
    outer: tuple[int, ...] = ()

    def stacked(self, n: int) -> Layout:
        """The layout of a stack of such products along a new first axis, which is a group."""
        if self.then:
            return self._replace(then=(*self.then, STACKED), outer=(n, *self.outer))
        group, inputs, units = (tuple(a + 1 for a in axes) for axes in self[:3])
        return Layout((0, *group), inputs, units, (n, *self.sizes))

    def moved(self, linear: Any) -> Layout:
        """The layout after an isometry. A transposition leaves it plain; others are done when the product is placed."""
        if linear.moves is Moves.STAYS:
            return self
        if "permutation" not in linear.params or self.then:
            return self._replace(then=(*self.then, linear))
        order = [int(a) for a in linear.params["permutation"]]
        to = np.argsort(order).tolist() if isinstance(linear, Moved) else order  # a rule goes the other way
        group, inputs, units = (tuple(to[a] for a in axes) for axes in self[:3])
        return Layout(group, inputs, units, tuple(self.sizes[a] for a in np.argsort(to)))

    @property
    def flipped(self) -> Layout:
        return self._replace(inputs=self.units, units=self.inputs)

    def place(self, product: Array) -> Array:
        """The parameter's cotangent, from the product [g, i, o]."""
        return self._follow(product.reshape(*self.outer, -1, *product.shape[1:]), len(self.then))

    def _follow(self, product: Array, n: int) -> Array:
        if n == 0:
            axes = (*self.group, *self.inputs, *self.units)
            return jnp.transpose(product.reshape([self.sizes[a] for a in axes]), np.argsort(axes).tolist())
        what = self.then[n - 1]
        inner = lambda part: self._follow(part, n - 1)
        return jax.vmap(inner)(product) if what is STACKED else what(inner(product))


class Pair(NamedTuple):
    """The factors of a parameter's cotangents, one product per example.

    Attributes:
        inputs: x, an array (n, g, p, i), or one-hot codes.
        deltas: δ, an array (n, g, p, o), or one-hot codes.
        layout: where the product goes.
    """

    inputs: Factor
    deltas: Factor
    layout: Layout

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The numbers of examples, groups, positions, inputs and units."""
        n, g, p = _leading(self.inputs)[:3]
        return n, g, p, width(self.inputs), width(self.deltas)

    @property
    def dtype(self) -> np.dtype:
        return (self.deltas if isinstance(self.inputs, OneHot) else self.inputs).dtype

    def aligned(self, other: Pair) -> Pair | None:
        """This pair with its factors named so that they meet those of the other one, if they can."""
        if self.layout == other.layout:
            return self
        if self.layout.flipped == other.layout:
            return Pair(self.deltas, self.inputs, other.layout)
        return None

    def products(self) -> Array:
        """The products, made: (n, g, i, o)."""
        if isinstance(self.inputs, OneHot):
            add = lambda places, deltas: (
                jnp.zeros((self.inputs.size, deltas.shape[1]), deltas.dtype).at[places].add(deltas)
            )
            return jax.vmap(jax.vmap(add))(self.inputs.places, self.deltas)
        if isinstance(self.deltas, OneHot):
            return Pair(self.deltas, self.inputs, self.layout).products().swapaxes(-1, -2)
        return einsum("ngpi,ngpo->ngio", self.inputs, self.deltas)

    def squared(self) -> Array:
        """Σ_n of the squares of the products' elements, (g, i, o): one contraction, where there is one position."""
        if self.shape[2] == 1:
            x, d = (_wide(array(f, self.dtype)) for f in (self.inputs, self.deltas))
            return einsum("ngpi,ngpo->gio", x * x, d * d)
        return jnp.sum(_wide(self.products()) ** 2, 0)


# --- from products to pairs -------------------------------------------------------------------------------------------


def pair_of(product: Product) -> Pair | None:
    """The pair of a product whose factors have a leading axis of examples, or None where it has none."""
    if product.rule not in FORMS or any(not (isinstance(w, str) or w.isometric) for w in product.then):
        return None
    loops = sum(isinstance(what, str) for what in product.then)
    layouts: list[Layout] = []

    def form(ct: Array, other: Array) -> Any:
        made = FORMS[product.rule](product, ct, other)
        layouts.extend([] if made is None else [made.layout])
        return None if made is None else (made.inputs, made.deltas)

    for _ in range(1 + loops):
        form = jax.vmap(form)
    factors = form(product.ct, product.other)
    if not layouts:
        return None
    layout = layouts[0]
    for what in product.then:  # the innermost loop comes first, and its axis last
        if what is STACKED:  # one more group
            layout = layout.stacked(_leading(factors[0])[loops])
            factors = [_each(a, functools.partial(_merged, axis=loops)) for a in factors]
        elif what is SUMMED:  # more positions
            factors = [_each(a, functools.partial(_merged_inward, axis=loops)) for a in factors]
        else:
            layout = layout.moved(what)
        loops -= isinstance(what, str)
    dtype = functools.reduce(np.promote_types, [a.dtype for a in factors if not isinstance(a, OneHot)])
    inputs, deltas = (a if isinstance(a, OneHot) else a.astype(dtype) for a in factors)
    return Pair(inputs, deltas, layout)


def _leading(a: Factor) -> tuple[int, ...]:
    return (a.places if isinstance(a, OneHot) else a).shape


def _each(a: Factor, f: Factor) -> Factor:
    return OneHot(f(a.places), a.size) if isinstance(a, OneHot) else f(a)


def _merged(a: Array, axis: int) -> Array:
    """Merge an axis with the next one."""
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])


def _merged_inward(a: Array, axis: int) -> Array:
    """Merge an axis with the one after the next."""
    return _merged(jnp.moveaxis(a, axis, axis + 1), axis + 1)


def _grouped(a: Array, *axes: Sequence[int]) -> Array:
    """The array with these groups of axes in this order, each merged into one."""
    moved = jnp.transpose(a, [i for group in axes for i in group])
    return moved.reshape([math.prod(a.shape[i] for i in group) for group in axes])


def _left_form(product: Product, ct: Array, y: Array) -> Pair:
    (x_contract, y_contract), (x_batch, y_batch) = product.params["dimension_numbers"]
    x_own = _others(len(product.aval.shape), x_contract, x_batch)
    y_own = _others(y.ndim, y_contract, y_batch)
    g, o, p = _consecutive(x_batch, x_own, y_own)
    layout = Layout(tuple(x_batch), tuple(x_contract), x_own, product.aval.shape)
    return Pair(_grouped(y, y_batch, y_own, y_contract), _grouped(ct, g, p, o), layout)


def _right_form(product: Product, ct: Array, x: Array) -> Pair:
    (x_contract, y_contract), (x_batch, y_batch) = product.params["dimension_numbers"]
    x_own = _others(x.ndim, x_contract, x_batch)
    y_own = _others(len(product.aval.shape), y_contract, y_batch)
    g, p, o = _consecutive(x_batch, x_own, y_own)
    layout = Layout(tuple(y_batch), tuple(y_contract), y_own, product.aval.shape)
    return Pair(_grouped(x, x_batch, x_own, x_contract), _grouped(ct, g, p, o), layout)


def _contracted_form(product: Product, ct: Array, other: Array) -> Pair:
    (left_contract, right_contract), (left_batch, right_batch) = product.params["dimension_numbers"]
    ct_first = product.params["ct_first"]
    left, right = (ct, other) if ct_first else (other, ct)
    left_own = _others(left.ndim, left_contract, left_batch)
    right_own = _others(right.ndim, right_contract, right_batch)
    g, i, o = _consecutive(left_batch, left_own, right_own)
    first = _grouped(left, left_batch, left_contract, left_own)
    second = _grouped(right, right_batch, right_contract, right_own)
    layout = Layout(g, i, o, product.aval.shape)
    return Pair(second, first, layout.flipped) if ct_first else Pair(first, second, layout)


def _gather_form(product: Product, ct: Array, indices: Array) -> Pair | None:
    """A lookup of whole rows along one axis: x is the one-hot code of the row. One that does not exist has no delta."""
    d, shape = product.params["dimension_numbers"], product.aval.shape
    clips = lax.GatherScatterMode.from_any(product.params["mode"]) == lax.GatherScatterMode.CLIP
    window = dict(zip(_others(len(shape), d.collapsed_slice_dims), (ct.shape[a] for a in d.offset_dims), strict=False))
    looked_up = [a for a, n in enumerate(shape) if window.get(a, 0) != n]
    if d.operand_batching_dims or len(looked_up) != 1 or window.get(looked_up[0], 1) != 1:
        return None
    (axis,) = looked_up
    if axis not in d.start_index_map or (len(d.start_index_map) > 1 and not clips):
        return None
    rest = _others(len(shape), (axis,))
    deltas = _grouped(ct, (), _others(ct.ndim, d.offset_dims), d.offset_dims)
    places = indices[..., d.start_index_map.index(axis)].reshape(1, -1)
    last = jnp.asarray(shape[axis] - 1, places.dtype)
    if not clips:
        exists = (places >= 0) & (places <= last)
        deltas = jnp.where(exists[..., None], deltas, jnp.zeros((), deltas.dtype))
    places = jnp.clip(places, jnp.zeros_like(last), last)
    return Pair(OneHot(places, shape[axis]), deltas, Layout((), (axis,), rest, shape))


def _conv_form(product: Product, ct: Array, x: Array) -> Pair | None:
    """A convolution: x has a patch for each position of the output, cut out by strided slices."""
    params, shape = product.params, product.aval.shape
    x_spec, w_spec, z_spec = params["dimension_numbers"]
    groups, space = params["feature_group_count"], range(2, len(shape))
    if params["batch_group_count"] > 1:
        return None
    x = jnp.transpose(x, x_spec)
    config = [(low, high, gap - 1) for (low, high), gap in zip(params["padding"], params["lhs_dilation"], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *config])
    out = [ct.shape[a] for a in z_spec[2:]]
    kernel = [shape[a] for a in w_spec[2:]]
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    reach = [s * (n - 1) + 1 for s, n in zip(strides, out, strict=True)]
    patches = []
    for offset in np.ndindex(*kernel):
        start = [k * r for k, r in zip(offset, dilation, strict=True)]
        limit = [a + b for a, b in zip(start, reach, strict=True)]
        patches.append(lax.slice(x, (0, 0, *start), (*x.shape[:2], *limit), (1, 1, *strides)))
    stack = jnp.stack(patches, 2)  # examples, channels, offset, *out
    n, channels = stack.shape[:2]
    stack = stack.reshape(n, groups, channels // groups, len(patches), -1)
    inputs = stack.transpose(1, 0, 4, 2, 3).reshape(groups, -1, channels // groups * len(patches))
    deltas = jnp.transpose(ct, z_spec).reshape(n, groups, shape[w_spec[0]] // groups, -1)
    deltas = deltas.transpose(1, 0, 3, 2).reshape(groups, inputs.shape[1], -1)
    # the kernel, its output channels split: group, unit, input channel, *space; and then to where the axes are
    sizes = (groups, shape[w_spec[0]] // groups, channels // groups, *kernel)
    layout = Layout((0,), tuple(a + 1 for a in (1, *space)), (1,), sizes, (Kernel(w_spec, shape),))
    return Pair(inputs, deltas, layout)


class Kernel(NamedTuple):
    """Puts the axes of a kernel, with its output channels split into groups, in their places."""

    spec: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, w: Array) -> Array:
        return jnp.transpose(w.reshape([self.shape[a] for a in self.spec]), np.argsort(self.spec).tolist())


FORMS: dict[Any, Any] = {
    dot_general_left: _left_form,
    dot_general_right: _right_form,
    contracted: _contracted_form,
    gather_left: _gather_form,
    conv_right: _conv_form,
}


def _others(n: int, *axes: Sequence[int]) -> tuple[int, ...]:
    taken = {a for group in axes for a in group}
    return tuple(a for a in range(n) if a not in taken)


def _consecutive(*like: Sequence[int]) -> list[tuple[int, ...]]:
    """Axes 0, 1, 2, ... in groups as large as these."""
    out, start = [], 0
    for group in like:
        out.append(tuple(range(start, start + len(group))))
        start += len(group)
    return out
