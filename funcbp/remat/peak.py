"""The most bytes that a compiled program has in use, predicted from its equations: what XLA calls temporary bytes.

The program is gone through as XLA compiles it: calls are inlined, what is elementwise is fused with what reads it, an
operation that frees more than it makes runs as soon as it can, and what a loop stacks is there from its beginning.
Arguments and results of the whole program are not counted: they have buffers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.lax import GatherScatterMode

from .. import jaxpr as jx
from ..jaxpr import Kind, Program, is_literal, primitives
from .compiled import (
    FUSED,
    Facts,
    as_matrices,
    bytes_in_float32,
    facts_of,
    is_narrow,
    size_of,
    swapped_products,
)
from .heap import CONSTANT, Node, Op, clusters, in_order, lent, literals_of, most_in_use, users_of
from .plan import Plan

__all__ = ["Flow", "peak_of_plan"]


def peak_of_plan(plan: Plan) -> int:
    """Predict the temporary bytes of both passes of a plan whose inputs are available.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)
        >>> args = jnp.ones((64, 64)), jnp.ones((128, 64))
        >>> bp.residuals(loss)(*args).peak
        32768
    """
    flow, n = Flow(), len(plan.passes.outputs)
    inputs = [flow.new() for _ in plan.passes.in_types]
    made = flow.call(plan.forward, inputs)
    backward, _ = plan.backward(plan.passes.differentiable, None)
    given = [inputs[i] for i in plan.available_inputs]
    types = zip(plan.passes.outputs, plan.passes.differentiable, strict=True)
    cts = [
        None if getattr(v.aval, "shape", None) == () else flow.new() for v, d in types if d
    ]  # that of a number is one
    return flow.peak([*made[:n], *flow.call(backward, [*given, *made[n:], *cts])])


class Flow:
    """A flat program, written call by call, and its peak.

    Args:
        known: what is known of equations and of the programs inside them, to be shared between flows.
        inside: as what the program runs that is inside another one; there the operands of convolutions are left as they
            lie.
    """

    def __init__(self, known: dict[Any, Any] | None = None, inside: Kind | None = None):
        self.inside = inside
        self.ops: list[Op] = []
        self.count = 0
        self.masks: set[int | None] = set()
        self.made: dict[int, float] = {}
        self.reciprocals: dict[tuple[int | None, int], int] = {}
        self.widened: dict[int, int] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.transposed: dict[int | None, tuple[int, tuple[int, ...], tuple[int, ...]]] = {}
        self.swapped: set[int] = set()
        self.turned: dict[tuple[int, tuple[int, ...]], int] = {}
        self.spreads: set[int | None] = set()
        self.zeros: dict[int, int] = {}
        self.merged: dict[Any, Sequence[int | None]] = {}
        self.views: dict[int | None, int | None] = {}
        self.seen_otherwise: set[int | None] = set()
        self.known = {} if known is None else known

    def new(self) -> int:
        """Number a new value."""
        self.count += 1
        return self.count

    def call(self, program: Any, args: Sequence[int | None]) -> list[int | None]:
        """Write a program out on values, those of its last inputs; None for constants and literals."""
        jaxpr = getattr(program, "jaxpr", program)
        invars = jaxpr.invars[len(jaxpr.invars) - len(args) :]
        env: dict[Any, int | None] = dict(zip(invars, args, strict=True))
        self.swapped |= self._known(jaxpr, swapped_products)
        for eqn in jaxpr.eqns:
            facts = self._known(eqn, facts_of)
            given = [env.get(v) if v else None for v in facts.operands]
            same = facts.merges and (facts.merges, *(n or v for n, v in zip(given, facts.operands, strict=True)))
            outs = self.merged.get(same) if same else None
            if outs is None:
                outs = self._equation(eqn, facts, given)
                if same:
                    self.merged[same] = outs
            env.update(zip(eqn.outvars, outs, strict=True))
        return [None if is_literal(v) else env.get(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, facts: Facts, given: list[int | None]) -> Sequence[int | None]:
        """Write an equation as it is compiled, and return its results."""
        if facts.inside.programs and facts.inside.kind & jx.CALLS:
            called = facts.inside.programs[0]
            return self.call(called, given[len(given) - len(getattr(called, "jaxpr", called).invars) :])
        reads, made = [*map(self._whole, given)], [self.new() for _ in eqn.outvars]
        if facts.alias:
            whole, v = next((r, v) for r, v in zip(reads, eqn.invars, strict=True) if r or len(reads) == 1)
            self.views[made[0]] = whole
            if v.aval.shape != eqn.outvars[0].aval.shape:
                self.seen_otherwise.add(whole)
            return made
        self._note(eqn, facts, reads, made)
        facts, reads = self._as_compiled(eqn, facts, reads)
        first, n = facts.over
        over = [*zip(reads[first:], made[:n], strict=False)] if n else []
        if facts.inside.kind is Kind.SCAN and self.inside is None:
            over += self._zeros(made[n:], facts.sizes[n:])
            reads = [*reads, *(z for z, _ in over[n:])]
        reshaped = self._reshaped(eqn, facts, reads)
        self.shapes |= {v: facts.stored_as or o.aval.shape for v, o in zip(made, eqn.outvars, strict=True)}
        return self._write(facts, reads, made, eqn, over, reshaped)

    def _reshaped(self, eqn: Any, facts: Facts, reads: Sequence[int | None]) -> frozenset[int]:
        """Collect what an equation reads in another shape than it was made in."""
        numbers = eqn.params.get("dimension_numbers")
        if eqn.primitive is primitives.dot_general_p and facts.stored_as is not None:
            longest = len(numbers[1][0]) + 2
            return frozenset(r for r, v in zip(reads, eqn.invars, strict=True) if r and v.aval.ndim > longest)
        if getattr(numbers, "inserted_window_dims", ()) and reads[2]:  # a scatter takes slices, too
            return frozenset({reads[2]})
        made = self.shapes
        return frozenset(r for r, s in zip(reads, facts.shapes, strict=False) if r in made and made[r] != s)

    def _whole(self, v: int | None) -> int | None:
        """Return the value that another one is, seen otherwise."""
        return self.views.get(v, v)

    def apart(self, program: Program, args: Sequence[int | None]) -> list[int | None]:
        """Write a program that is compiled apart from what is around it, such as one behind a barrier."""
        inside, sizes = jx.Inside(Kind.COND, (program.jaxpr,)), tuple(map(size_of, program.outvars))
        facts = FUSED._replace(sizes=sizes, fuses=False, takes=False, inside=inside)
        return list(self._write(facts, args, [self.new() for _ in program.outvars], program))

    def add(self, a: int, b: int, size: int) -> int:
        """Write the sum of two values."""
        return self._write(FUSED._replace(sizes=(size,)), [a, b], [self.new()], self)[0]

    def _write(
        self,
        facts: Facts,
        reads: Sequence[int | None],
        makes: Sequence[int],
        eqn: Any,
        over: Iterable[tuple[int | None, int]] = (),
        reshaped: frozenset[int] = frozenset(),
    ) -> Sequence[int]:
        """Write an equation; a copy (of no equation) after what makes that of which it is one."""
        reads = [*map(self._whole, reads)]
        read = tuple([r for r in reads if r])
        at = (
            float(len(self.ops))
            if eqn is not None
            else max((self.made[r] + 0.5 for r in read if r in self.made), default=-1.0)
        )
        self.made |= dict.fromkeys(makes, at)
        wide = read if facts.wide is None else tuple([r for i in facts.wide if (r := reads[i])])
        self.ops.append(Op(facts, read, tuple(makes), eqn, at, tuple(over), wide, reshaped))
        return makes

    def _note(self, eqn: Any, facts: Facts, reads: Sequence[int | None], makes: Sequence[int | None]) -> None:
        """Note what of an equation others ask for."""
        if eqn.primitive is primitives.broadcast_in_dim_p:
            self.spreads.add(makes[0])
        if eqn.primitive is primitives.convert_element_type_p and eqn.invars[0].aval.dtype == bool:
            self.masks.add(makes[0])
        if eqn.primitive is primitives.transpose_p and reads[0]:
            self.transposed[makes[0]] = reads[0], eqn.params["permutation"], eqn.invars[0].aval.shape
        if eqn.primitive is primitives.dot_general_p:  # its operands are made matrices
            self.seen_otherwise |= {r for r, v in zip(reads, eqn.invars, strict=True) if v.aval.ndim > 2}

    def _as_compiled(self, eqn: Any, facts: Facts, reads: list[int | None]) -> tuple[Facts, list[int | None]]:
        """Return what XLA makes of an equation that it writes anew, and write what comes before that."""
        if eqn.primitive is primitives.mul_p and not self.masks.isdisjoint(reads):
            facts = facts._replace(chooses=True, library=False)  # a number or zero, by a mask
        if eqn.primitive is primitives.dot_general_p:
            facts, reads = self._of_matrices(eqn, facts, reads)
        if eqn.primitive is primitives.gather_p and eqn.params["mode"] is GatherScatterMode.FILL_OR_DROP:
            taken = self._write(facts, reads, [self.new()], None)  # and a choice between that and what is filled in
            self.shapes[taken[0]] = facts.stored_as or eqn.outvars[0].aval.shape
            return FUSED._replace(sizes=facts.sizes, chooses=True, wide=(0,)), [*taken, reads[1]]
        if self.inside is None or eqn.primitive is not primitives.conv_general_dilated_p:
            for i, order in facts.turned:
                if (r := reads[i]) is not None:
                    reads[i] = self._turned_over(size_of(eqn.invars[i]), r, order)
        if eqn.primitive is primitives.dot_general_p and is_narrow(eqn.outvars[0]):
            # in float32, of operands in float32; what is rounded afterwards is not rounded by each of its readers
            reads = [self._widened(v, r) if r and is_narrow(v) else r for v, r in zip(eqn.invars, reads, strict=True)]
            product = self._write(facts._replace(sizes=(bytes_in_float32(eqn.outvars[0]),)), reads, [self.new()], None)
            facts, reads = FUSED._replace(sizes=facts.sizes, dear=True), [*product]
        elif eqn.primitive is primitives.random_bits_p:
            # two halves of four bytes, which a loop of the generator's rounds works on, with two more of the kind in a
            # round, and which what reads them combines
            half = 4 * eqn.outvars[0].aval.size
            apart = FUSED._replace(fuses=False, takes=False, sizes=(half, half), scratch=2 * half)
            halves = self._write(apart, reads, [self.new(), self.new()], None)
            facts, reads = FUSED._replace(sizes=facts.sizes), [*halves]
        elif eqn.primitive is primitives.div_p and is_literal(eqn.invars[1]):
            facts = facts._replace(dear=False)  # a product with the reciprocal
        elif eqn.primitive is primitives.div_p and None not in reads and size_of(eqn.invars[1]) < facts.sizes[0]:
            # a product with the reciprocal, which is spread once for all that is divided by it
            key = reads[1], facts.sizes[0]
            if key not in self.reciprocals:
                spread = FUSED._replace(library=facts.library)
                (self.reciprocals[key],) = self._made(facts.sizes[0], reads[1:], spread)
                self.spreads.add(self.reciprocals[key])
            facts, reads = FUSED._replace(sizes=facts.sizes, library=facts.library), [reads[0], self.reciprocals[key]]
        elif eqn.primitive is primitives.select_and_scatter_add_p:
            # a scatter, to places found on the way forward among the coordinates of all elements, one array an axis,
            # which are made at the very beginning
            source, operand = (v.aval for v in eqn.invars)
            apart = FUSED._replace(fuses=False, takes=False)
            axes = [self._made(4 * operand.size, [], apart)[0] for _ in operand.shape]
            zeros = self._made(size_of(eqn.invars[1]), [], apart)
            coordinates = 4 * source.size * source.ndim
            found = self._made(coordinates + size_of(eqn.invars[0]), [reads[1], *axes], apart)
            reads = [reads[0], *self._made(coordinates, found, apart), *zeros]
        return facts, reads

    def _of_matrices(self, product: Any, facts: Facts, reads: list[int | None]) -> tuple[Facts, list[int | None]]:
        """Return how a product is made of matrices, and what it reads: what is transposed as it was before, or a copy
        that is turned over.
        """
        reads, shapes = [*reads], [tuple(map(jx.closed_size, v.aval.shape)) for v in product.invars]
        summed, batch = map(list, product.params["dimension_numbers"])
        for i, r in enumerate(reads):
            if r in self.transposed:
                reads[i], order, shape = self.transposed[r]
                shapes[i] = tuple(map(jx.closed_size, shape))
                summed[i], batch[i] = (tuple(order[a] for a in axes) for axes in (summed[i], batch[i]))
        if id(product) in self.swapped:
            for both in (reads, shapes, summed, batch):
                both.reverse()
        how = as_matrices(tuple(shapes), tuple(summed), tuple(batch))
        for i, order in how.turned:
            if (r := reads[i]) is not None:
                size = math.prod(shapes[i]) * product.invars[0].aval.dtype.itemsize
                reads[i] = self._turned_over(size, r, order)
        return facts._replace(stored_as=how.stored_as, library=how.library), reads

    def _turned_over(self, size: int, number: int, order: tuple[int, ...]) -> int:
        """Write a copy of a value with its axes in this order, once for all that read it so."""
        if (number, order) not in self.turned:
            (self.turned[number, order],) = self._made(size, [number], FUSED._replace(moves=True))
        return self.turned[number, order]

    def _widened(self, v: Any, number: int) -> int:
        """Write a narrow value in float32, once for all products that read it."""
        if number not in self.widened:
            (self.widened[number],) = self._made(bytes_in_float32(v), [number])
        return self.widened[number]

    def _zeros(self, stacks: Sequence[int], sizes: Sequence[int]) -> list[tuple[int | None, int]]:
        """Write the zeros that a loop's stacks are written over: made first of all, as they wait for nothing."""
        zeros = [self._made(size, [], FUSED._replace(fuses=False, takes=False))[0] for size in sizes]
        self.zeros.update(zip(zeros, stacks, strict=True))
        return [*zip(zeros, stacks, strict=True)]

    def _made(self, size: int, reads: Sequence[int | None], facts: Facts = FUSED) -> Sequence[int]:
        """Write something of so many bytes that is made of this and is no equation."""
        return self._write(facts._replace(sizes=(size,)), reads, [self.new()], None)

    def _known(self, x: Any, make: Callable[[Any], Any]) -> Any:
        """Return what was made of this object, or make it; the object is kept, so that its number stays its own."""
        if (id(x), make) not in self.known:
            self.known[id(x), make] = x, make(x)
        return self.known[id(x), make][1]

    def peak(
        self, outs: Sequence[int | None], stored: Sequence[int | None] = (), state: dict[int, int] | None = None
    ) -> int:
        """Predict the most bytes in use beside arguments and results.

        Args:
            outs: the results, which have buffers of their own.
            stored: results that are stored here all the same: the state of a loop after a step.
            state: that before it, and its bytes, which it may be written over.
        """
        return self.highest(outs, stored, state)[0]

    def highest(
        self, outs: Sequence[int | None], stored: Sequence[int | None] = (), state: dict[int, int] | None = None
    ) -> tuple[int, float]:
        """Predict the peak; and find which operation runs then, by how many were written before it."""
        outs, stored = [*map(self._whole, outs)], [*map(self._whole, stored)]
        ops, kept, state = self._read(outs), {s for s in stored if s}, state or {}
        nodes, sizes, own, users = self._nodes(ops, {o for o in outs if o}, kept, [o for o in outs if o])
        nodes = in_order(nodes, self._inputs(ops, outs), users)
        sizes |= state
        if self.inside in (None, Kind.COND):
            sizes |= dict.fromkeys(lent(nodes, sizes, kept, own), 0)
        most, node = most_in_use(nodes, sizes, kept, state)
        return most - sum(state.values()), -1.0 if node is None else self.made[node.makes[0]]

    def _read(self, outs: Sequence[int | None]) -> list[Op]:
        """List the operations that the results depend on."""
        wanted, ops = {o for o in outs if o}, []
        for op in reversed(self.ops):
            if not wanted.isdisjoint(op.makes):
                wanted.update(r for r in op.reads if r not in self.zeros or self.zeros[r] in wanted)
                ops.append(op)
        return sorted(ops[::-1], key=lambda op: op.at)

    def _inputs(self, ops: list[Op], outs: Sequence[int | None]) -> list[int]:
        """Order what is read and not made here: the arguments of the whole program by their numbers, those of one
        inside as they are come upon from its results, the operands of each operation in turn; a constant after them.
        """
        maker = {v: op for op in ops for v in op.makes}
        if self.inside is None:
            return [*sorted({r for op in ops for r in op.reads if r not in maker}), CONSTANT]
        met: dict[int, None] = {}
        todo = [o for o in reversed(outs) if o]
        while todo:
            if (v := todo.pop()) not in met:
                met[v] = None
                todo += reversed(maker[v].reads) if v in maker else ()
        return [*(v for v in met if v not in maker), CONSTANT]

    def _nodes(
        self, ops: list[Op], outs: set[int], stored: set[int], results: Sequence[int]
    ) -> tuple[list[Node], dict[int, int], dict[int, int], dict[int, list[int]]]:
        """Fuse: list what runs as one, the bytes of what is stored, those of results with buffers of their own, and
        what reads each value, in the compiler's order.
        """
        readers: dict[int, list[Op]] = {}
        maker = {v: op for op in ops for v in op.makes}
        for op in ops:
            for r in set(op.reads):
                readers.setdefault(r, []).append(op)
        written: set[int] = set()
        for op in reversed(ops):  # where a loop's result is one of the program, the state is there from the beginning
            before = {v: r for r, v in op.over if r and v in outs - stored and len(readers[r]) == 1}
            outs |= {*before.values()}
            written |= {*before}
        root = clusters(ops, readers, maker, outs | stored)
        inner = {v for v in root if root[v] != v}
        demanded = {r for op in ops if not op.facts.takes or op.makes[0] in root for r in op.reads} - inner
        literals: dict[tuple[float, int], int] = {}
        numbers: dict[tuple[float, int], set[int]] = {}  # by which kernels or other operations a number is read
        for op in ops if root else ():
            for key in literals_of(op):
                numbers.setdefault(key, set()).add(root.get(op.makes[0], op.makes[0]))
        apart = stored
        once = self._once(ops, maker, readers, root)
        stored = stored | demanded | once
        kept, anew = self._fused(ops, readers, root, stored, once)
        through: dict[int, frozenset[int]] = {}  # what is read, where a value is made as it is read
        elsewhere: dict[int, frozenset[int]] = {}  # and of that, what is read at another place than it is made for
        nodes: list[Node] = []
        sizes: dict[int, int] = {}
        own: dict[int, int] = {}
        for op in ops:
            alone = not op.facts.fuses or op.makes[0] in root
            reads = frozenset({r for r in op.reads if r not in through or (alone and r in sizes)})
            reads = reads.union(*[through[r] for r in op.reads if r not in reads])
            if op.makes[0] in root:
                own_numbers = (k for k in literals_of(op) if len(numbers[k]) > 1)
                reads |= {literals.setdefault(k, self.new()) for k in own_numbers}
            beyond: frozenset[int] = frozenset().union(*[elsewhere[r] for r in op.reads if r in elsewhere])
            if op.makes[0] in inner:
                through[op.makes[0]] = reads
                elsewhere[op.makes[0]] = beyond if op.facts.fuses and not op.facts.moves else reads
                continue
            moved = reads if op.facts.moves else beyond.union(*[through.get(r, {r}) for r in op.reshaped])
            if op.facts.fuses:
                v = op.makes[0]
                if v in anew:
                    through[v], elsewhere[v] = reads, moved
                if v not in kept and v not in outs:
                    continue
            for v, size in zip(op.makes, op.facts.sizes, strict=True):
                if v in outs and v not in apart:
                    sizes[v] = 0
                    if v not in written:
                        own[v] = size
                elif v in readers or v in stored:
                    sizes[v] = size
            reads = reads or (frozenset({CONSTANT}) if op.eqn is not None else reads)
            over = reads - moved if op.facts.fuses else frozenset(r for r, _ in op.over if r)
            by = readers.get(op.makes[0], [])
            if op.facts.fuses and by and all(op.makes[0] in reader.reshaped for reader in by):
                over = frozenset()  # it is made in the other shape
            if self.inside is Kind.COND and not apart.isdisjoint(op.makes):
                over = frozenset()  # a branch's result has the buffer that all branches write into
            nodes.append(Node(op.makes, reads, self._scratch(op, sizes), op.facts.fuses, over))
        nodes += [Node((v,), frozenset({CONSTANT}), 0, True, frozenset()) for v in literals.values()]
        sizes |= {v: size for (_, size), v in literals.items()}
        return nodes, sizes, own, users_of(ops, root, anew, kept | outs, results)

    def _fused(
        self, ops: list[Op], readers: dict[int, list[Op]], root: dict[int, int], stored: set[int], once: set[int]
    ) -> tuple[set[int], set[int]]:
        """Collect what is stored of what could be made where it is read, and what is made there, stored or not.

        What is dear is made at one place only. Those places are found from the last reader on, as XLA fuses: two
        readers that are made where a third one is are one place, and one that is made anew at two places is two.
        """
        kept: set[int] = set()
        anew: set[int] = set()
        repeated: set[int] = set()  # of what is made anew, what is read several times
        places: dict[int, frozenset[int]] = {}  # where a value is read: two places, if there are more
        for op in reversed(ops):
            v = op.makes[0]
            if not op.facts.fuses or (v in root and root[v] != v):
                continue
            at: set[int] = set()
            others = again = False
            for reader in readers.get(v, ()):
                r = reader.makes[0]
                if not reader.facts.takes or r in root:
                    others = True
                    continue
                at |= places.get(r, frozenset({r}))
                again |= r in repeated or reader.facts.sizes[0] > op.facts.sizes[0]
            if v in stored or v in root or (op.facts.dear and (again or len(at) + others > 1)):
                kept.add(v)
            once_only = v in once or v in root or (v in kept and op.facts.dear)
            large = [r for r in op.wide if r not in self.spreads]
            if not once_only and (v not in kept or len(large) < 2 or v in self.seen_otherwise):
                anew.add(v)
                places[v] = frozenset(sorted({*at, v} if v in kept else at)[:2])
                if again:
                    repeated.add(v)
        return kept, anew

    def _once(
        self, ops: list[Op], maker: dict[int, Op], readers: dict[int, list[Op]], root: dict[int, int]
    ) -> set[int]:
        """Collect what is not made anew by each of its readers, though it could be: what reads more than it makes, and
        comes to a reader by way of a product or the like, too (XLA's `InstructionFusion::ComputeGloballyUnfusible`).
        """
        once: set[int] = set()
        bits: dict[int, int] = {}  # of what several read and is made of several
        follows: dict[int, int] = {}  # from which of them a value follows
        apart: dict[int, int] = {}  # and from which by a way that is not fused
        for op in ops:
            reads = set(op.reads)
            far = before = 0
            for r in reads:
                made = maker.get(r)
                fuses = made is not None and made.facts.fuses and not (made.facts.dear and len(readers[r]) > 1)
                fuses = fuses and r not in root
                way = 0 if fuses and r not in once and op.facts.takes and op.makes[0] not in root else follows.get(r, 0)
                far |= apart.get(r, 0) | way
                # before a product, what is made a matrix is seen otherwise, and that is what reads it
                before |= apart.get(r, 0) | (0 if fuses and r in self.seen_otherwise else way)
            for r in reads:
                if bits.get(r, 0) & before:
                    once.add(r)
                    far |= follows[r]
            new = 0
            for r in reads:
                new |= follows.get(r, 0)
            if op.facts.fuses and len(readers.get(op.makes[0], ())) > 1 and len({*op.wide} - self.spreads) > 1:
                bits[op.makes[0]] = 1 << len(bits)
                new |= bits[op.makes[0]]
            follows |= dict.fromkeys(op.makes, new)
            apart |= dict.fromkeys(op.makes, far)
        return once

    def _scratch(self, op: Op, sizes: dict[int, int]) -> int:
        """Predict the bytes in use while an operation runs, beside its results."""
        kind = op.facts.inside.kind
        if not op.facts.inside.programs:
            return op.facts.scratch
        if kind is not Kind.COND:
            return max(self._inner(op.eqn, p, kind) for p in op.facts.inside.programs)
        read = [v in sizes for v in op.makes]
        stored = [sizes.get(v, 0) > 0 for v in op.makes]
        made = sum(sizes.get(v, 0) for v in op.makes)
        return max(self._inner(None, p, kind, tuple(read), tuple(stored)) for p in op.facts.inside.programs) - made

    def _inner(
        self, eqn: Any, program: Any, kind: Kind, read: tuple[bool, ...] = (), stored: tuple[bool, ...] = ()
    ) -> int:
        """Predict the peak of a program inside, of a branch with those of its results that are stored outside it.

        Args:
            read, stored: of the results of a branch, which are wanted at all, and which of these are stored outside;
                the others are results of the whole program.
        """
        if (id(program), kind, read, stored) not in self.known:
            jaxpr = getattr(program, "jaxpr", program)
            n_slices = n_carry = 0
            if kind is Kind.SCAN:
                _, n_consts, n_carry = jx.scan_parts(eqn.params)
                n_slices = len(jaxpr.invars) - n_consts - n_carry
            elif kind is Kind.WHILE and len(jaxpr.outvars) == len(eqn.outvars):
                n_carry = len(jaxpr.outvars)
            if kind is not Kind.COND:
                read, stored = (True,) * len(jaxpr.outvars), tuple(i < n_carry for i in range(len(jaxpr.outvars)))
            peak = self._inside(jaxpr, n_slices, n_carry, kind, read, stored)
            self.known[id(program), kind, read, stored] = program, peak
        return self.known[id(program), kind, read, stored][1]

    def _inside(
        self, jaxpr: Any, n_slices: int, n_carry: int, kind: Kind, read: Sequence[bool], stored: Sequence[bool]
    ) -> int:
        """Predict the peak of a program whose last inputs are slices, those before and its first results a state."""
        flow = Flow(self.known, kind)
        args = [flow.new() for _ in jaxpr.invars]
        end = len(args) - n_slices
        state = {args[i]: size_of(jaxpr.invars[i]) for i in range(end - n_carry, end)}
        for i in range(end, len(args)):
            (args[i],) = flow._made(size_of(jaxpr.invars[i]), args[i : i + 1])
        outs = [o if r else None for o, r in zip(flow.call(jaxpr, args), read, strict=True)]
        return flow.peak(outs, [o for o, s in zip(outs, stored, strict=True) if s], state)
