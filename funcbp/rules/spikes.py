"""Booleans on their way to a number: a spike that is moved, negated, counted or multiplied before it is converted.

A comparison that has a surrogate derivative (`SurrogateRule`) gives its boolean a cotangent, which is a number. What is
done to the boolean, or to the integers that are made of it, is recorded as the same operation on the numbers 0 and 1,
by the table's rule; the program's own values stay booleans and integers. What no rule for numbers says anything about
(a comparison of counts, an integer division) stops the cotangent, and says so if it is between an input and the output.
A spike that only chooses, as in `jnp.where(spike, reset, v)`, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import numpy as np
from jax import lax

from .. import jaxpr as jx
from ..cotangents import is_differentiable, is_inexact
from ..jaxpr import primitives as p
from ..jaxpr.types import Primitive, Value
from .contract import MissingRuleError
from .kinds import BodyRule, CallRule, ControlRule, MissingRule, Operation, Recorder, SurrogateRule, ZeroRule
from .registry import TABLE

__all__ = ["SpikeRecorder", "has_spike", "record_spikes"]


class SpikeRecorder(Recorder, Protocol):
    """What is asked of the trace that records these operations. See `autodiff/recording.py`."""

    def above(self) -> AbstractContextManager[object]: ...
    def index(self, x: Value) -> int | None: ...
    def with_index(self, value: Value, index: int | None) -> Value: ...


def has_spike(operation: Operation) -> bool:
    """Whether a boolean or an integer that has a cotangent goes in."""
    pairs = zip(operation.indices, operation.values, strict=True)
    return any(i is not None and not is_differentiable(jx.type_of(x)) for i, x in pairs)


# what an operation on booleans is on numbers
ON_NUMBERS: dict[Primitive | Any, Callable[..., Value]] = {
    p.not_p: lambda x: 1 - x,
    p.and_p: lax.mul,
    p.or_p: lambda x, y: x + y - x * y,
    p.xor_p: lambda x, y: x + y - 2 * x * y,
    p.ne_p: lambda x, y: x + y - 2 * x * y,
    p.eq_p: lambda x, y: 1 - x - y + 2 * x * y,
}
OTHERWISE_ON_NUMBERS = {p.div_p, p.rem_p}  # of integers, another function than of numbers
# which operands are data, where others say where
DATA = {
    **{p.gather_p: (0,), p.dynamic_slice_p: (0,), p.dynamic_update_slice_p: (0, 1)},
    **{p.scatter_p: (0, 2), p.scatter_add_p: (0, 2)},
}


def record_spikes(recorder: SpikeRecorder, operation: Operation) -> Value:
    """The outputs of an operation that a boolean or an integer with a cotangent enters."""
    primitive, rule = operation.primitive, TABLE.get(operation.primitive)
    if isinstance(rule, (BodyRule, CallRule)):
        return rule.record(recorder, operation)
    if isinstance(rule, ControlRule):
        return _entered(recorder, operation, rule)
    if primitive is p.convert_element_type_p:
        if is_inexact(operation.params["new_dtype"]):
            return rule.record(recorder, operation)  # type: ignore[union-attr]
        if np.dtype(operation.params["new_dtype"]) == np.bool_ and operation.values[0].dtype != np.bool_:
            return _stopped(recorder, operation)
        return recorder.with_index(recorder.run(operation), operation.indices[0])
    if primitive is p.select_n_p and not _spikes_among(operation, range(1, len(operation.values))):
        return rule.record(recorder, operation)  # type: ignore[union-attr]
    differentiable = rule is not None and not isinstance(rule, (ZeroRule, SurrogateRule))
    logical = primitive in ON_NUMBERS and all(x.dtype == np.bool_ for x in operation.values)
    if logical or (differentiable and primitive not in OTHERWISE_ON_NUMBERS):
        return _on_numbers(recorder, operation)
    return _stopped(recorder, operation)


def _spikes_among(operation: Operation, positions: Sequence[int]) -> bool:
    types = [jx.type_of(x) for x in operation.values]
    return any(operation.indices[k] is not None and not is_differentiable(types[k]) for k in positions)


def _on_numbers(recorder: SpikeRecorder, operation: Operation) -> Value:
    """Record the same on numbers; what comes out are the program's own values, with the numbers' indices."""
    primitive, params = operation.primitive, operation.params
    inexact = [x.dtype for x in operation.values if is_differentiable(jx.type_of(x))]
    dtype = inexact[0] if inexact else jax.dtypes.canonicalize_dtype(float)
    data = DATA.get(primitive, range(primitive is p.select_n_p, len(operation.values)))
    operands = []
    for k, (x, i) in enumerate(zip(operation.values, operation.indices, strict=True)):
        if is_differentiable(jx.type_of(x)) or k not in data:
            operands.append(recorder.with_index(x, i) if is_differentiable(jx.type_of(x)) else x)
            continue
        with recorder.below():
            number = lax.convert_element_type(x, jax.dtypes.canonicalize_dtype(float))
        with recorder.above():
            operands.append(lax.convert_element_type(recorder.with_index(number, i), dtype))
    if "preferred_element_type" in params and not inexact:
        params = dict(params, preferred_element_type=dtype)
    outs = recorder.run(operation)
    with recorder.above():
        on_numbers = ON_NUMBERS.get(primitive, lambda *xs: primitive.bind(*xs, **params))(*operands)
    if not primitive.multiple_results:
        return recorder.with_index(outs, recorder.index(on_numbers))
    return [recorder.with_index(y, recorder.index(n)) for y, n in zip(outs, on_numbers, strict=True)]


WAY_OUT = (
    "Make the spike a number before it, `spike.astype(float)`, or, where no derivative is meant to go through, compare "
    "`jax.lax.stop_gradient(v)`."
)


def _stopped(recorder: SpikeRecorder, operation: Operation) -> Value:
    """An operation whose output has no cotangent: an error, if it turns out to be between an input and the output."""
    message = lambda where: f"The surrogate derivative of a spike does not go through {where}. {WAY_OUT}"
    outs = recorder.run(operation)
    count = len(outs) if operation.primitive.multiple_results else 1
    return recorder.write(MissingRule(message=message), operation, outs, (), differentiable=[True] * count)


def _entered(recorder: SpikeRecorder, operation: Operation, rule: ControlRule) -> Value:
    """A loop, branch or region; a branch's index only chooses."""
    first = 1 if operation.primitive is p.cond_p else 0
    if not _spikes_among(operation, range(first, len(operation.values))):
        return rule.record(recorder, operation)
    line = jx.user_line(jx.current_source())
    where = f"`{operation.primitive}`{f' at {line}' if line else ''}"
    raise MissingRuleError(f"The surrogate derivative of a spike does not enter {where} as a boolean. {WAY_OUT}")
