"""`jax.checkpoint`: a region that saves what the user's policy says, or our own plan, and recomputes the rest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ..autodiff.passes import passes_of
from ..cotangents import Cotangent
from ..jaxpr import bind_remat, is_planned, is_saved, offload_of, primitives, remat_of_marked, run_behind_barrier
from ..jaxpr.types import PyTree, Value
from ..remat.cut import permitted
from ..remat.plan import Residuals, plan_of_call
from ..rules.kinds import State
from ..rules.options import Options
from ..rules.registry import def_control
from ..rules.traits import CALL
from .calls import call_back, call_reached, call_res

__all__ = ["remat_bwd", "remat_fwd"]


def remat_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the region, keeping its inputs and, of what the user's policy says, no more than is needed."""
    policy, narrow = params["policy"], options.policy.narrows
    passes = passes_of(params["jaxpr"], perturbed, options.inlining)
    if is_planned(policy):
        plan = plan_of_call(passes, policy, policy.choose)
    else:
        saved, offload = functools.partial(is_saved, policy), functools.partial(offload_of, policy)
        passes = passes.made(("saving", policy), lambda: passes.saving(saved, offload))
        choose = permitted(saved, cut=narrow, offloaded=lambda eqn: offload(eqn) is not None)
        plan = plan_of_call(passes, (policy, narrow), choose, offload)
    return call_res(plan, primals, bind_remat(plan.forward, primals, params, differentiated=False))


def remat_bwd(
    state: State, res: Residuals, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Recompute what was not saved, behind a barrier that XLA does not undo, and go back."""
    if is_planned(params["policy"]):
        return call_back(state, res, ct, run_behind_barrier)
    if isinstance(waits := params["prevent_cse"], tuple):
        params["prevent_cse"] = tuple(waits[i] for i in res.plan.available_inputs)
    return call_back(state, res, ct, lambda program, args: bind_remat(program, args, params, differentiated=True))


def remat_marked(params: dict[str, Any], which: Sequence[bool]) -> tuple[Sequence[bool], dict[str, Any]]:
    """Hand the region the feedback weights of its operands."""
    return which, remat_of_marked(params, which)


def_control(
    primitives.remat_p,
    remat_fwd,
    remat_bwd,
    mark_inside=remat_marked,
    reaches=call_reached,
    traits=CALL.but(cheap=False),
)
