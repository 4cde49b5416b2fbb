"""What is made again under a plan, and the weights of programs to plan for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from funcbp import jaxpr as jx


def made_again(program, kept, needed, there):
    """The equations that run again, or None if what is needed cannot be had from what is kept."""
    given, again = {*kept, *there}, []
    wanted = set(needed) - given
    for eqn in reversed(program.eqns):
        if any(v in wanted for v in eqn.outvars):
            again.append(eqn)
            wanted |= {v for v in eqn.invars if not jx.is_literal(v)} - given
    return None if any(v in wanted for v in program.invars) else again


rng = np.random.default_rng(0)
W = {k: jnp.asarray(rng.normal(size=s) * 0.3) for k, s in {"up": (4, 16), "gate": (4, 16), "down": (16, 4)}.items()}
X = jnp.asarray(rng.normal(size=(8, 4)))
