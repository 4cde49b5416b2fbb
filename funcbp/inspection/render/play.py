"""A small network's two passes and its update, played step by step on a page that can compute them itself."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ...autodiff.backward_pass import listed
from ...cotangents import Moves
from ...rules.traits import traits_of
from ..rows import NO_DERIVATIVE, Row
from .graph import nodes_and_edges, positions
from .page import file_beside, script_with

__all__ = ["LARGEST", "play"]

LARGEST = 256  # numbers in the boxes


def play(
    inputs: Sequence[Row],
    rows: Sequence[Row],
    outputs: Sequence[int | None],
    update: Sequence[str] | None,
    learning_rate: float,
) -> str:
    """The page, whole. See `Trace.play`."""
    outer = [*inputs, *(r for r in rows if not r.program)]
    at = {id(r): i for i, r in enumerate(outer)}
    made: dict[Any, Row] = {slot: r for r in outer for slot in r.outputs if slot is not None}
    if outputs[0] not in made:
        raise ValueError("What plays is a whole trace, and this one is a part: the function's output is not in it.")
    carried = _carried(outer, made)
    source = lambda slot: carried.get(slot, slot) if slot is not None else None
    kept = {id(r): r for r in outer[len(inputs) :] if carried.keys().isdisjoint(r.outputs)}
    for i, r in list(kept.items()):
        kept[i] = dataclasses.replace(r, inputs=tuple(map(source, r.inputs)))
    drawn, edges = nodes_and_edges(inputs, list(kept.values()))
    number = {id(new): at[old] for old, new in kept.items()} | {id(r): at[id(r)] for r in inputs}
    numbers = sum(max(1, math.prod(np.shape(r.value))) for r in drawn)
    if numbers > LARGEST:
        raise ValueError(
            f"A page that plays shows up to {LARGEST} numbers, and this function has {numbers:,}. "
            "Trace a smaller network or fewer examples; `to_html()` shows one of any size."
        )
    names = [r.name for r in inputs]
    unknown = [name for name in update or () if name not in names]
    if unknown:
        raise KeyError(f"There is no input {unknown[0]!r} to update; there are {listed(names)}.")
    if update is None:
        update = [r.name for r in inputs if not r.argument] or names
    data = {
        "nodes": [
            _node(r, outer, at, made, carried) | {"learns": r.primitive == "input" and r.name in update} for r in outer
        ],
        "places": [[number[id(r)], *p] for r, p in zip(drawn, positions(len(drawn), edges), strict=True)],
        "output": at[id(made[source(outputs[0])])],
        "rate": learning_rate,
    }
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Forward, back, and a step</title>'
    head += '<meta name="viewport" content="width=device-width,initial-scale=1">'
    style = f"<style>{file_beside('page.css')}{file_beside('play.css')}</style>"
    body = f'<body style="margin:0"><div class="bp play">{style}'
    arithmetic = f"<script>{file_beside('arithmetic.js')}</script>"
    return f"{head}{body}{arithmetic}{script_with(data, 'play.js')}</div></body></html>"


def _carried(outer: Sequence[Row], made: dict[Any, Row]) -> dict[Any, Any]:
    """The values that are another one as it is, by the slot of that: of another type or shape, or with a name."""
    carried: dict[Any, Any] = {}
    for r in outer:
        moves = r.kind != NO_DERIVATIVE and not r.function and traits_of(r.primitive).moves is not Moves.NOT
        if moves and len(r.inputs) == len(r.outputs) == 1:
            before = made[r.inputs[0]].value if r.inputs[0] in made else None
            if before is not None and np.array_equal(np.ravel(before), np.ravel(r.value), equal_nan=True):
                carried[r.outputs[0]] = carried.get(r.inputs[0], r.inputs[0])
    return carried


def _node(
    row: Row, outer: Sequence[Row], at: dict[int, int], made: dict[Any, Row], carried: dict[Any, Any]
) -> dict[str, Any]:
    """A value as the script knows it; `operands` is missing where it cannot be computed again."""
    derivable = row.kind != NO_DERIVATIVE
    node = {
        "op": row.operation,
        "known": not row.function or _of_a_library(row.function),
        "name": row.name,
        "index": row.index,
        "line": row.place,
        "rule": row.rule,
        "kind": row.kind,
        "usual": row.kind in ("", "hand-written", NO_DERIVATIVE),
        "derivable": derivable,
        "shape": list(np.shape(row.value)),
        "type": str(row.types[0].dtype if row.types else getattr(row.value, "dtype", "")),
        "value": _flat(row.value),
        "cotangent": _flat(row.cotangent) if derivable else None,
        "carries": at[id(made[carried[row.outputs[0]]])] if row.outputs and row.outputs[0] in carried else None,
        "from": [at[id(made[slot])] if slot in made else None for slot in row.inputs],
    }
    if row.primitive != "input" and len(row.values) == 1 and (row.operands or not row.inputs):
        node["params"] = dict(row.params)
        node["operands"] = [
            _operand(slot, known, made, outer, at) for slot, known in zip(row.inputs, row.operands, strict=True)
        ]
    return node


def _of_a_library(function: str) -> bool:
    """Whether a function is JAX's or ours: one that the page may compute by its name."""
    return any(f" at {os.path.dirname(file)}" in function for file in (jax.__file__, __file__.split("inspection")[0]))


def _operand(slot: int | None, known: Any, made: dict[Any, Row], outer: Sequence[Row], at: dict[int, int]) -> Any:
    """The number of the node that an operand is, or a constant."""
    if slot is not None:
        return at[id(made[slot])] if slot in made else None
    if isinstance(known, tuple):
        index, which = known
        row = next(r for r in outer if r.index == index)
        return at[id(row)] if which == 0 and len(row.values) == 1 else None
    return {"shape": list(np.shape(known)), "value": _flat(known)}


def _flat(x: Any) -> list[float | str] | None:
    """The numbers of an array, if they are few and real."""
    if not isinstance(x, np.ndarray | np.generic) or np.iscomplexobj(x) or np.size(x) > LARGEST:
        return None
    named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # as scripts call them
    return [v if math.isfinite(v) else named[str(v)] for v in np.asarray(x).astype(np.float64).ravel().tolist()]
