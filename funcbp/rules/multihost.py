"""`jax.experimental.multihost_utils`: the host's part of an array, and the whole.

JAX does not import it by itself, and nor does anybody here: these rules are entered when a primitive without one is met
(`registry.enter_later`).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.multihost_utils import global_array_to_host_local_array_p as to_part_p
from jax.experimental.multihost_utils import host_local_array_to_global_array_p as to_whole_p

from ..cotangents import Moves
from ..jaxpr.types import Aval
from .placement import PLACED
from .registry import def_linear


def to_whole_back(ct: jax.Array, x: Aval, **params: Any) -> jax.Array:
    """Parts of the cotangent of the whole."""
    return to_part_p.bind(ct, **params)


def to_part_back(ct: jax.Array, x: Aval, **params: Any) -> jax.Array:
    """The whole of which this host has a part of the cotangent."""
    return to_whole_p.bind(ct, **params)


def_linear(to_whole_p, to_whole_back, Moves.ALL, traits=PLACED)
def_linear(to_part_p, to_part_back, Moves.ALL, traits=PLACED)
