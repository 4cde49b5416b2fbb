"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules.

The engine is imported here. The rest, and what it stands on (optax, SciPy, matplotlib), is imported when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import control_flow as _control_flow  # noqa: F401  enters its rules into the table
from . import rules
from ._version import __version__ as __version__
from .autodiff.marks import feedback, name
from .autodiff.transformations import Backward, grad, hessian, hvp, jacrev, value_and_grad, vjp
from .control_flow.loops import scan, while_loop
from .remat.budget import Budget
from .rules import MissingRuleError, coverage, rule

__all__ = [
    "Backward",
    "Budget",
    "MissingRuleError",
    "Trace",
    "check",
    "cotangents",
    "coverage",
    "credit",
    "curvature",
    "data",
    "diff",
    "feedback",
    "find_nan",
    "fit",
    "fit_many",
    "grad",
    "hessian",
    "hvp",
    "inspection",
    "jacrev",
    "name",
    "nets",
    "ops",
    "optim",
    "per_example",
    "plot",
    "precision",
    "reproduce",
    "residuals",
    "rule",
    "rules",
    "scan",
    "summary",
    "testing",
    "trace",
    "train",
    "value_and_grad",
    "vjp",
    "while_loop",
]

if TYPE_CHECKING:
    from . import credit, curvature, inspection, per_example, testing
    from .inspection import Trace, cotangents, diff, find_nan, trace
    from .inspection.precision import precision
    from .inspection.residuals import residuals
    from .inspection.summary import summary
    from .learn import data, nets, ops, optim, plot, reproduce, train
    from .learn.train.fit import fit
    from .learn.train.many import fit_many
    from .testing.check import check
else:
    # what is imported when it is used: the module that a name is, or that it is in
    LAZY = {
        "Trace": ".inspection",
        "check": ".testing",
        "cotangents": ".inspection",
        "credit": ".credit",
        "curvature": ".curvature",
        "data": ".learn.data",
        "diff": ".inspection",
        "find_nan": ".inspection",
        "fit": ".learn.train",
        "fit_many": ".learn.train",
        "inspection": ".inspection",
        "nets": ".learn.nets",
        "ops": ".learn.ops",
        "optim": ".learn.optim",
        "per_example": ".per_example",
        "plot": ".learn.plot",
        "precision": ".inspection",
        "reproduce": ".learn.reproduce",
        "residuals": ".inspection",
        "summary": ".inspection",
        "testing": ".testing",
        "trace": ".inspection",
        "train": ".learn.train",
    }
    globals().pop("cotangents", None)  # the engine's package of that name, which its import has put here

    def __getattr__(name: str) -> Any:
        if name not in LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_elsewhere(name)}")
        where = LAZY[name]
        module = import_module(where, __name__)
        globals()[name] = found = module if where.endswith(f".{name}") else getattr(module, name)
        return found


def _elsewhere(name: str) -> str:
    """Say where a name of JAX's is to be found, for who looks for it here."""
    theirs = next((m.__name__ for m in map(import_module, ("jax", "jax.lax")) if hasattr(m, name)), "")
    own = "of reverse mode funcbp has vjp, grad, value_and_grad, jacrev, hessian and hvp"
    return f". JAX's is {theirs}.{name}; {own}." if theirs else ""


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
