"""What XLA makes of an equation: whether its result is stored or made where it is read, in which order and by whom."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import jaxpr as jx
from ..jaxpr import Kind, inside_of, is_literal, primitives
from ..rules.cost import flops, is_cheap, is_repeatable
from ..rules.traits import Moves, Traits, traits_of

__all__ = [
    "FUSED",
    "Facts",
    "as_matrices",
    "bytes_in_float32",
    "facts_of",
    "is_narrow",
    "size_of",
    "swapped_products",
]


class Facts(NamedTuple):
    """What an equation does with memory.

    Attributes:
        sizes: bytes of its results.
        fuses: whether its result is made where it is read, if what reads it can do that, and not stored.
        takes: whether it makes its operands as it reads them.
        dear: whether its result is stored all the same where several read it.
        alias: whether its result is its operand, seen otherwise.
        inside: the programs inside it that are compiled as such, and how they run.
        turned: which operands are turned over first, in copies, and to which order of their axes.
        stored_as: the shape in which XLA makes its result, if that is another one.
        library: whether XLA's library for kernels makes it.
        scratch: bytes in use while it runs, beside its results, that are not those of a program inside.
        over: which operands are written over by its first results, if nothing else reads them: from which on, how many.
        chooses: whether it chooses between its operands, which no cluster does.
        moves: whether it reads numbers elsewhere than where it writes them, so that it cannot write over them.
        operands: variables that it reads, None for a literal.
        shapes: those of its operands.
        merges: what equations share that XLA merges where they read the same; None for one that it keeps apart.
        wide: which operands have as many axes as its result, not counting those of length one; None where all have.
    """

    sizes: tuple[int, ...]
    fuses: bool
    takes: bool
    dear: bool
    alias: bool
    inside: jx.Inside
    turned: tuple[tuple[int, tuple[int, ...]], ...]
    over: tuple[int, int]
    operands: tuple[Any, ...] = ()
    shapes: tuple[Any, ...] = ()
    merges: tuple[Any, ...] | None = None
    chooses: bool = False
    moves: bool = False
    wide: tuple[int, ...] | None = None
    stored_as: tuple[int, ...] | None = None
    library: bool = False
    scratch: int = 0


# what does no more than a reshape where it makes as many numbers as it reads
RESHAPES = {
    getattr(primitives, f"{name}_p") for name in "broadcast_in_dim reduce_max reduce_min reduce_sum reshape".split()
}
BARRIERS = jx.primitive("optimization_barrier_p"), jx.barrier_p
FUSED = Facts((), True, True, False, False, jx.NOTHING_INSIDE, (), (0, 0))
# what XLA does not compute twice: its `InstructionFusion::IsExpensive`
TWICE = (
    "atan2 cbrt cos cosh div erf erf_inv erfc exp exp2 expm1 gather lgamma log log1p logistic pow rsqrt sin sinh sqrt "
    "tan tanh"
)
DEAR = frozenset(getattr(primitives, f"{name}_p") for name in TWICE.split())
# what XLA's library for kernels makes (its `YnnMatcher`), beside products, and of how many numbers on
MOVED = frozenset({primitives.broadcast_in_dim_p, primitives.transpose_p, primitives.iota_p, primitives.pad_p})
KERNELS = (
    "abs add ceil convert_element_type cos div erf exp expm1 floor integer_pow log log1p logistic max min mul neg pow "
    "reduce_max reduce_min reduce_sum round rsqrt sign sin sqrt square sub tan tanh"
)
LIBRARY = MOVED | {jx.primitive("add_any_p")} | {getattr(primitives, f"{name}_p") for name in KERNELS.split()}
ENOUGH = 4096
WINDOW = 32  # a sum of more numbers than this, and not of the library, is one of sums (XLA's `TreeReductionRewriter`)


def facts_of(eqn: Any) -> Facts:
    """Read off an equation what it does with memory."""
    inside, traits = inside_of(eqn), traits_of(eqn.primitive)
    sizes, read = [*map(size_of, eqn.outvars)], [*map(size_of, eqn.invars)]
    nested = bool(inside.programs) and bool(inside.kind & (jx.CALLS | jx.CONTROL))
    cheap = not nested and is_cheap(eqn)
    computes = cheap and flops(eqn) > 0
    reduces = computes and sum(sizes) < max(read, default=0)
    split = reduces and not _in_library(eqn) and sum(sizes) * WINDOW < max(read)
    turns = eqn.primitive is primitives.transpose_p and eqn.outvars[0].aval.ndim == 2
    same = sizes == read[:1] and eqn.primitive in RESHAPES
    seen = turns or same or eqn.primitive is primitives.stop_gradient_p or _is_identity(eqn)
    stays = cheap and (traits.moves is Moves.STAYS or seen) and len(sizes) == 1 and sizes[0] in read
    inside, dear = inside if nested else jx.NOTHING_INSIDE, eqn.primitive in DEAR
    over = _overwritten(eqn, inside.kind, traits)
    axes = max(map(_axes, eqn.outvars), default=0)
    wide = tuple(i for i, v in enumerate(eqn.invars) if _axes(v) >= axes)
    made_where_read = cheap or (traits.moves is not Moves.NOT and not nested)  # a lookup, too
    return Facts(
        sizes=tuple(sizes),
        fuses=made_where_read and not reduces,
        takes=made_where_read and not split,
        dear=dear,
        alias=stays,
        inside=inside,
        turned=_turned(eqn),
        stored_as=_with_slices(eqn),
        library=_in_library(eqn),
        over=over,
        operands=tuple(None if is_literal(v) else v for v in eqn.invars),
        shapes=tuple(getattr(v.aval, "shape", None) for v in eqn.invars),
        merges=None if nested else _merged_by(eqn),
        chooses=eqn.primitive is primitives.select_n_p,
        moves=Moves.NOT < traits.moves < Moves.STAYS and eqn.primitive is not primitives.select_n_p and not stays,
        wide=wide if len(wide) < len(eqn.invars) else None,
    )


def _axes(v: Any) -> int:
    """Count the axes of a value that are longer than one."""
    return sum(n != 1 for n in getattr(v.aval, "shape", ()))


def size_of(v: Any) -> int:
    shape, dtype = getattr(v.aval, "shape", None), getattr(v.aval, "dtype", None)
    if shape is None or dtype is None or not hasattr(dtype, "itemsize"):  # no array, or of a dtype of somebody's own
        return jx.bytes_of_type(v.aval)
    return math.prod(map(jx.closed_size, shape)) * dtype.itemsize


def is_narrow(v: Any) -> bool:
    """Tell whether a value is of a type that XLA computes with in float32."""
    return getattr(v.aval, "dtype", None) in (jnp.bfloat16, jnp.float16)


def bytes_in_float32(v: Any) -> int:
    """Count the bytes of a value in float32."""
    return 4 * math.prod(map(jx.closed_size, v.aval.shape))


Pair = tuple[tuple[int, ...], tuple[int, ...]]  # of both operands of a product


class Matrices(NamedTuple):
    """How a product is made one of matrices.

    Attributes:
        turned: which operands are turned over in copies, and to which order of their axes.
        stored_as: the shape in which its result is made, if that is another one.
        library: whether XLA's library for kernels makes it: it reads the first operand row by row.
    """

    turned: tuple[tuple[int, tuple[int, ...]], ...]
    stored_as: tuple[int, ...] | None
    library: bool


@functools.cache
def as_matrices(shapes: Pair, summed: Pair, batch: Pair) -> Matrices:
    """Find how a product of operands of these shapes is made one of matrices.

    XLA's products have their batch axes first, and one axis of each operand that is summed and one that is not. Of
    others the axes are brought into this order, and taken together. A matrix that is just transposed is read so,
    without a copy.
    """
    n = len(batch[0])
    leads = [tuple(b) == tuple(range(n)) for b in batch]
    if all(leads) and all(len(s) == 1 and len(x) <= n + 2 for x, s in zip(shapes, summed, strict=True)):
        sizes = [math.prod(x[n:]) // x[c[0]] for x, c in zip(shapes, summed, strict=True)]
        return Matrices((), None, min(sizes) > 1 and summed[0][0] == len(shapes[0]) - 1)
    turned, sizes, in_rows = [], [], True
    for i, (shape, s, b) in enumerate(zip(shapes, summed, batch, strict=True)):
        free = [a for a in range(len(shape)) if a not in s and a not in b]
        order = (*b, *free, *s) if i == 0 else (*b, *s, *free)
        moved = [a for a in order if shape[a] != 1]
        if moved != sorted(moved):
            if not leads[i] or len(s) != 1 or len(free) != 1:
                turned.append((i, order))
            elif i == 0:
                in_rows = False
        sizes.append(math.prod(shape[a] for a in free))
    shape = (*(shapes[0][a] for a in batch[0]), *(size for size in sizes if size > 1))
    return Matrices(tuple(turned), shape, min(sizes) > 1 and in_rows)


def swapped_products(jaxpr: Any) -> set[int]:
    """Find the products of several matrices at once of which only the transposed result is read: these are made the
    other way round.
    """
    makes = {e.outvars[0]: e for e in jaxpr.eqns if e.primitive is primitives.dot_general_p}
    makes = {v: e for v, e in makes.items() if (n := len(e.params["dimension_numbers"][1][0])) and v.aval.ndim == n + 2}
    if not makes:
        return set()
    reads: dict[Any, list[Any]] = {v: [] for v in makes}
    for eqn in jaxpr.eqns:
        for v in eqn.invars:
            if not is_literal(v) and v in reads:
                reads[v].append(eqn)
    for v in jaxpr.outvars:
        if not is_literal(v) and v in reads:
            reads[v].append(None)
    crossed = lambda eqn, n: (
        eqn is not None
        and eqn.primitive is primitives.transpose_p
        and eqn.params["permutation"] == (*range(n), n + 1, n)
    )
    return {id(e) for v, e in makes.items() if len(reads[v]) == 1 and crossed(reads[v][0], v.aval.ndim - 2)}


def _is_identity(eqn: Any) -> bool:
    """Tell whether this is the larger one of a value and minus infinity, as a softmax has it: that value."""
    numbers = [v.val for v in eqn.invars if is_literal(v)]
    return eqn.primitive is primitives.max_p and len(numbers) == 1 and numbers[0] == -math.inf


def _in_library(eqn: Any) -> bool:
    """Tell whether XLA's library for kernels makes this: of enough numbers, and of types that it knows."""
    if eqn.primitive not in LIBRARY:
        return False
    types = [v.aval for v in (*eqn.invars, *eqn.outvars) if not is_literal(v)]
    elements = [math.prod(map(jx.closed_size, t.shape)) for t in types]
    known = all(t.dtype in (jnp.float32, jnp.float64, jnp.bfloat16) for t in types)
    return known and (eqn.primitive in MOVED or max(elements, default=0) >= ENOUGH)


def _with_slices(eqn: Any) -> tuple[int, ...] | None:
    """Return the shape in which a lookup makes its result: with the axes of length one of the slices that it takes."""
    if eqn.primitive is not primitives.gather_p or not eqn.params["dimension_numbers"].collapsed_slice_dims:
        return None
    return (*eqn.invars[1].aval.shape[:-1], *eqn.params["slice_sizes"])


def _turned(eqn: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """List the operands of a convolution that have not the batch, or what is summed, where XLA wants it."""
    if eqn.primitive is not primitives.conv_general_dilated_p:
        return ()
    numbers, n = eqn.params["dimension_numbers"], eqn.invars[0].aval.ndim
    wanted = (0, n - 1, *range(1, n - 1)), (n - 1, n - 2, *range(n - 2))
    specs = map(tuple, (numbers.lhs_spec, numbers.rhs_spec))
    return tuple((i, spec) for i, spec in enumerate(specs) if spec != wanted[i])


def _overwritten(eqn: Any, kind: Kind, traits: Traits) -> tuple[int, int]:
    """Find which operands are written over: a loop's state, and what other numbers are written into."""
    if kind is Kind.SCAN:
        _, n_consts, n_carry = jx.scan_parts(eqn.params)
        return n_consts, n_carry
    if kind is Kind.WHILE:
        return len(eqn.invars) - len(eqn.outvars), len(eqn.outvars)
    return 0, int(traits.writes)


def _merged_by(eqn: Any) -> tuple[Any, ...] | None:
    """Return what equations with no program inside share that XLA merges; None for one that it keeps apart."""
    if not is_repeatable(eqn) or eqn.primitive in BARRIERS:
        return None
    how = [str(sorted(eqn.params.items())) if eqn.params else "", *(str(v) for v in eqn.invars if is_literal(v))]
    return eqn.primitive, *how, *((getattr(v.aval, "shape", None), getattr(v.aval, "dtype", None)) for v in eqn.outvars)
