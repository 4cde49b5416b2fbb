"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules."""

from . import (
    credit,
    curvature,
    data,
    inspection,
    nets,
    ops,
    optim,
    per_example,
    plot,
    reproduce,
    rules,
    testing,
    train,
)
from .backward import Backward, MissingRuleError, grad, hvp, jacrev, value_and_grad, vjp
from .inspection import cotangents, find_nan, residuals, summary, trace
from .loops import scan, while_loop
from .ops.marks import feedback, name
from .policies import Budget
from .rules import coverage, rule
from .testing import check
from .train import fit, fit_many

__version__ = "0.2.0"

__all__ = [
    "Backward",
    "Budget",
    "MissingRuleError",
    "check",
    "cotangents",
    "coverage",
    "credit",
    "curvature",
    "data",
    "feedback",
    "find_nan",
    "fit",
    "fit_many",
    "grad",
    "hvp",
    "inspection",
    "jacrev",
    "name",
    "nets",
    "ops",
    "optim",
    "per_example",
    "plot",
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
