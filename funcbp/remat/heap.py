"""In which order a compiled program runs, what runs as one, and what it has in use, as XLA does it on a CPU."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..jaxpr import Kind, is_literal, primitives
from .compiled import Facts

__all__ = [
    "CONSTANT",
    "NEGLIGIBLE",
    "Node",
    "Op",
    "clusters",
    "in_order",
    "lent",
    "literals_of",
    "most_in_use",
    "users_of",
]

CONSTANT = 0  # the number of all constants
NEGLIGIBLE = 1000  # what has no more than this part of all stored bytes is not looked at one by one


class Op(NamedTuple):
    """An equation of a flat program: what it does with memory, and the numbers of the values it reads and makes.

    `reshaped` are those that it reads in another shape than they are made in.
    """

    facts: Facts
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    eqn: Any
    at: float
    over: Sequence[tuple[int | None, int]]
    wide: tuple[int, ...]
    reshaped: frozenset[int]


class Node(NamedTuple):
    """What runs as one in the compiled program.

    Attributes:
        makes: the values it stores.
        reads: the stored ones that it reads.
        scratch: bytes in use while it runs.
        fused: whether it is elementwise.
        over: the values that it may write its results over.
    """

    makes: tuple[int, ...]
    reads: frozenset[int]
    scratch: int
    fused: bool
    over: frozenset[int]


def literals_of(op: Op) -> list[tuple[float, int]]:
    """List the numbers that an elementwise operation reads, each with the bytes that it has at full size."""
    if not op.facts.fuses or not hasattr(op.eqn, "invars") or op.facts.sizes[0] <= NEGLIGIBLE:
        return []
    if op.eqn.primitive is primitives.div_p:  # a product with the reciprocal
        values = [1 / float(v.val) for v in op.eqn.invars[1:] if is_literal(v) and v.val]
    else:
        values = [float(v.val) for v in op.eqn.invars if is_literal(v) and jnp.isrealobj(v.val)]
    return [(value, op.facts.sizes[0]) for value in values]


def clusters(
    ops: list[Op], readers: dict[int, list[Op]], maker: dict[int, Op], outs: Collection[int]
) -> dict[int, int]:
    """Find what is compiled as one kernel of a library: a sum or the like, what it alone reads, what alone reads it.

    For each value of such a cluster, which is its result (XLA's `LibraryRewriter`).
    """
    root: dict[int, int] = {}
    for seed in reversed(ops):
        if not seed.facts.library or not seed.facts.takes or seed.facts.fuses or seed.makes[0] in root:
            continue
        cluster, result, grows = {seed.makes[0]}, seed, True
        while grows:
            grows = False
            todo = [r for v in cluster for r in maker[v].reads]
            while todo:
                if (r := todo.pop()) in maker and r not in root and r not in cluster and r not in outs:
                    op = maker[r]
                    if op.facts.library and all(reader.makes[0] in cluster for reader in readers[r]):
                        cluster.add(r)
                        todo += op.reads
                        grows = True
            while len(after := readers.get(result.makes[0], [])) == 1 and result.makes[0] not in outs:
                op = after[0]
                if not op.facts.library or op.makes[0] in root:
                    break
                cluster.add(op.makes[0])
                result, grows = op, True
        root |= dict.fromkeys(cluster, result.makes[0])
    return root


def _come_upon(ops: list[Op], results: Iterable[int]) -> list[Op]:
    """Order operations as they are come upon from the results, the operands of each one first; from loops before that,
    as some of their results are read by nothing. So XLA lists what reads a value (`MakeInstructionPostOrder`).
    """
    maker = {v: n for n, op in enumerate(ops) for v in op.makes}
    loops = [n for n, op in enumerate(ops) if op.facts.inside.programs and op.facts.inside.kind is not Kind.COND]
    order: dict[int, Op] = {}
    begun: set[int] = set()
    todo = [*loops, *(maker[v] for v in results if v in maker)][::-1]
    while todo:
        n = todo[-1]
        if n in begun:
            order.setdefault(todo.pop(), ops[n])
            continue
        begun.add(n)
        todo += [m for r in reversed(ops[n].reads) if (m := maker.get(r)) is not None and m not in begun]
    return list(order.values())


def users_of(
    ops: list[Op], root: dict[int, int], anew: set[int], stored: Collection[int], results: Iterable[int]
) -> dict[int, list[int]]:
    """List what reads each value, in the order in which XLA has it after fusing: in which it becomes ready.

    What is fused takes the place of what it is fused of. Where something is made anew, one more reader comes last;
    where one is fused into a reader that is there already, the last one moves to its place (`HloInstruction::Users`).

    Args:
        anew: what is made where it is read, `stored` or not.
    """
    users: dict[int, list[int]] = {}
    reshaped: dict[int, bool] = {}
    for op in _come_upon(ops, results):
        for r in dict.fromkeys(op.reads):
            users.setdefault(r, []).append(op.makes[0])
            reshaped[r] = r in op.reshaped and reshaped.get(r, True)

    def remove(user: int, v: int) -> None:
        i = users[v].index(user)
        users[v][i] = users[v][-1]
        users[v].pop()

    def fuse(op: Op, into: int, gone: bool) -> None:
        for r in dict.fromkeys(op.reads):
            if into not in users[r]:
                users[r].append(into)
            if gone:
                remove(op.makes[0], r)

    maker = {op.makes[0]: op for op in ops}
    place = {v: i for i, v in enumerate(maker)}
    for v, op in maker.items():
        if op.facts.takes and not op.facts.fuses and reshaped.get(v):  # what has one operand is made before the reshape
            users[v].sort(key=lambda u: len(maker[u].reads) == 1 and maker[u].facts.fuses)
    for op in reversed(ops):
        if (result := root.get(op.makes[0], op.makes[0])) != op.makes[0]:
            fuse(op, result, gone=True)
    for op in reversed(ops):
        v = op.makes[0]
        if v in root or not op.facts.takes or (v in anew and v not in stored):
            continue
        waiting = anew & {*op.reads}
        while waiting:
            p = max(waiting, key=place.__getitem__)
            waiting.discard(p)
            remove(v, p)
            fuse(maker[p], v, gone=not users[p] and p not in stored)
            waiting |= anew & {*maker[p].reads}
    return users


def in_order(nodes: list[Node], inputs: Sequence[int], users: dict[int, list[int]]) -> list[Node]:
    """Order nodes as XLA's scheduler for CPUs does: what is ready first runs first, beginning with these inputs.

    Args:
        users: what reads each value, in the order in which it becomes ready.
    """
    maker = {v: n for n, node in enumerate(nodes) for v in node.makes}
    made = [*(node.makes for node in nodes), *((v,) for v in inputs if v not in maker)]
    maker |= {v: n for n, v in enumerate((v for v in inputs if v not in maker), len(nodes))}
    waits = [{maker[r] for r in node.reads - {CONSTANT} if r in maker} for node in nodes]
    waits += [set() for _ in range(len(made) - len(nodes))]
    then: list[list[int]] = [[] for _ in waits]
    for n, before in enumerate(waits):
        for b in before:
            then[b].append(n)
    order = [n for n, before in enumerate(waits) if not before]
    order.sort(key=lambda n: n < len(nodes))  # what is given, and then what is made of constants
    for n in order:  # which grows
        place = {maker[u]: i for v in made[n] for i, u in enumerate(users.get(v, ())) if u in maker}
        for m in sorted(then[n], key=lambda m: (place.get(m, len(place)), not nodes[m].fused)):
            waits[m].discard(n)
            if not waits[m]:
                order.append(m)
    return [nodes[n] for n in order if n < len(nodes)]


def lent(nodes: list[Node], sizes: dict[int, int], kept: set[int], own: dict[int, int]) -> list[int]:
    """Find what is put into buffers of results before these are written: the widest first, into the narrowest that
    holds it and is free as long as it is needed.
    """
    made = {v: i for i, node in enumerate(nodes) for v in node.makes}
    last = {v: i for i, node in enumerate(nodes) for v in (*node.makes, *node.reads)}
    buffers = sorted((size, [(made[v], len(nodes))]) for v, size in own.items() if v in made)
    least = sum(sizes.values()) // NEGLIGIBLE
    waiting = sorted((v for v in made if sizes.get(v, 0) > least and v not in kept), key=lambda v: (-sizes[v], made[v]))
    lent = []
    for v in waiting:
        begin, end = made[v], last[v]
        for _, taken in buffers[bisect.bisect_left(buffers, sizes[v], key=lambda b: b[0]) :]:
            if all(end < a or b < begin for a, b in taken):
                taken.append((begin, end))
                lent.append(v)
                break
    return lent


def most_in_use(
    nodes: list[Node], sizes: dict[int, int], kept: set[int], state: Collection[int]
) -> tuple[int, Node | None]:
    """Return the most bytes in use while nodes run in this order, and the node that runs then."""
    last = {v: i for i, node in enumerate(nodes) for v in (*node.makes, *node.reads)} | dict.fromkeys(kept, len(nodes))
    live = most = sum(sizes[v] for v in state if v in last)
    highest: Node | None = None
    for i, node in enumerate(nodes):
        made = sum(sizes.get(v, 0) for v in node.makes)
        spent = {v: sizes[v] for v in (*node.makes, *node.reads) if v in sizes and last[v] == i}
        free = sorted(spent[v] for v in node.over if v in spent)
        over = 0
        for size in (sizes.get(v, 0) for v in node.makes):
            if size in free:
                free.remove(size)
                over += size
        if live + made - over + node.scratch > most:
            most, highest = live + made - over + node.scratch, node
        live += made - sum(spent.values())
    return most, highest
