"""`shard_map`: a program that every device runs on its part, gone back through by another one.

What the forward program saves stays on the devices: it leaves with the parts of the devices over which it varies behind
one another along its first axis, and comes in again in the same way.

With varying types a cotangent is on each device that of the device's part, and what is the same on several is summed by
the rules of the collectives. Without them (`check_vma=False`) an output that is not divided over an axis is held by all
devices along it, and its cotangent is shared out among them, so that it counts once; the cotangent of an input that is
not divided is summed over them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec

from ..autodiff.passes import passes_of
from ..cotangents import Cotangent, Zero, materialize
from ..jaxpr import (
    Program,
    axes_size,
    cotangent_spec,
    map_of_marked,
    on_each_device,
    part_type,
    run_on_devices,
    shard_map_p,
    stackable,
    stackable_type,
    stacked_spec,
    trace,
    trace_with,
    unmentioned_axes,
)
from ..jaxpr.types import Aval, PyTree, Value
from ..remat.plan import OuterNames, Plan, Residuals, plan_of_call
from ..rules.kinds import State
from ..rules.options import Options
from ..rules.registry import def_control
from ..rules.traits import CALL
from .calls import call_reached, call_res

__all__ = ["mapped_bwd", "mapped_fwd"]


class MappedResiduals(NamedTuple):
    """What the body leaves for its backward pass.

    Attributes:
        of_body: that, from all devices.
        specs: how what is saved lies over the mesh. A `vmap` of the pullback does not change that.
    """

    of_body: Residuals
    specs: Sequence[PartitionSpec]


class BackwardMap(NamedTuple):
    """The backward program that runs on the devices.

    Attributes:
        program: the program.
        specs: how the cotangents among its outputs are laid out over the mesh; the others are stacked.
        tree: the structure of its outputs.
    """

    program: Program
    specs: Sequence[PartitionSpec]
    tree: Any


def mapped_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the body's forward program; what it saves leaves stacked over the devices."""
    with on_each_device(params):
        plan = plan_of_call(passes_of(params["jaxpr"], perturbed, options.replace(factored=False)))
        program = plan.passes.made("mapped", lambda: _forward(plan))
    stacked = [stacked_spec(v.aval, params) for v in program.outvars[len(params["out_specs"]) :]]
    outs = run_on_devices(program, primals, params, params["in_specs"], (*params["out_specs"], *stacked))
    own, res, differentiable = call_res(plan, primals, outs)
    return own, MappedResiduals(res, stacked), differentiable


def mapped_bwd(
    state: State, res: MappedResiduals, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Run the body's backward program on what was saved."""
    plan, names = res.of_body.plan, state.outer_names
    nonzero = tuple(c is not Zero for c in ct)
    cts = [materialize(c) for c in ct if c is not Zero]
    ct_specs = [cotangent_spec(s) for s, z in zip(params["out_specs"], nonzero, strict=True) if z]
    if not params["check_vma"]:
        copies = [axes_size(unmentioned_axes(s, params), params) for s in ct_specs]
        cts = [_shared_out(c, n) for c, n in zip(cts, copies, strict=True)]
    summed = [() if params["check_vma"] else unmentioned_axes(cotangent_spec(s), params) for s in params["in_specs"]]
    with on_each_device(params):
        if names is not None:
            names = tuple((name, part_type(t, jax.P(), params)) for name, t in names)
        key = ("mapped", nonzero, names, tuple(params["in_specs"]), tuple(summed))
        program, specs, tree = plan.passes.made(
            key, lambda: _backward(plan, nonzero, names, params["in_specs"], summed)
        )
    in_specs = [
        *(params["in_specs"][i] for i in plan.available_inputs),
        *res.specs,
        *ct_specs,
        *(jax.P() for _ in state.outer_cotangents),
    ]
    stacked = (stacked_spec(v.aval, params) for v in program.outvars[len(specs) :])
    args = [*res.of_body.arrays, *cts, *state.outer_cotangents]
    cotangents, results = tree.unflatten(run_on_devices(program, args, params, in_specs, (*specs, *stacked)))
    state.merge(results)
    return cotangents


def _forward(plan: Plan) -> Program:
    """Have what is saved leave with an axis along which it can be stacked."""
    n = len(plan.passes.outputs)

    def forward(*args: Value) -> list[Value]:
        outs = plan.forward(*args)
        return [*outs[:n], *map(stackable, outs[n:])]

    return trace(forward, plan.passes.in_types, "mapped")


def _backward(
    plan: Plan,
    nonzero: Sequence[bool],
    names: OuterNames,
    in_specs: Sequence[PartitionSpec],
    summed: Sequence[Sequence[Hashable]],
) -> BackwardMap:
    """Take what was saved as it left the forward program; sum cotangents over these axes."""
    program, tree = plan.backward(nonzero, names)
    types: list[Aval] = [v.aval for v in program.invars]
    first = len(plan.available_inputs)
    scalars = [first <= i < first + len(plan.saved) and not t.shape for i, t in enumerate(types)]

    def backward(*args: Value) -> tuple[list[Value], Any]:
        outs = program(*(lax.squeeze(x, [0]) if s else x for x, s in zip(args, scalars, strict=True)))
        cts, results = tree.unflatten(outs)
        cts = [lax.psum(c, axes) if c is not Zero and axes else c for c, axes in zip(cts, summed, strict=True)]
        specs = [cotangent_spec(s) for c, s in zip(cts, in_specs, strict=True) if c is not Zero]
        leaves, structure = jax.tree.flatten((cts, jax.tree.map(stackable, results)))
        return leaves, (specs, structure)

    types = [stackable_type(t) if s else t for t, s in zip(types, scalars, strict=True)]
    mapped, (specs, structure) = trace_with(backward, types, "mapped_backward")
    return BackwardMap(mapped, specs, structure)


def _shared_out(ct: Value, n: int) -> Value:
    return ct / n if n > 1 else ct


def mapped_marked(params: dict[str, Any], which: Sequence[bool]) -> tuple[Sequence[bool], dict[str, Any]]:
    """Hand the body the feedback weights of its operands, laid out as these."""
    return which, map_of_marked(params, which)


def_control(
    shard_map_p, mapped_fwd, mapped_bwd, mark_inside=mapped_marked, reaches=call_reached, traits=CALL.but(cheap=False)
)
