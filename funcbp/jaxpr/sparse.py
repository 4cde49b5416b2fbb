"""`jax.experimental.sparse`: its primitives, and the dense programs that they are computed by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from jax.experimental import sparse
from jax.experimental.sparse import bcoo, bcsr, coo, csr, linalg

from .types import Primitive, Value

__all__ = ["dense_programs", "spsolve_p"]

spsolve_p = linalg.spsolve_p


def dense_programs() -> dict[Primitive, Callable[..., Sequence[Value]]]:
    """The program that each primitive is computed by, where no library of a device's has it."""
    of_all = [vars(m) for m in (sys.modules[sparse.todense.__module__], bcoo, bcsr, coo, csr)]
    computes = lambda module, name: module.get(f"_{name.removesuffix('_p')}_impl")
    return {m[name]: computes(m, name) for m in of_all for name in m if name.endswith("_p") and computes(m, name)}
