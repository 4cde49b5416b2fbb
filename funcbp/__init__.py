"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules."""

from . import curvature, data, nets, ops, optim, per_example, plot, rules, testing, train
from .backward import Backward, MissingRuleError, grad, hvp, jacrev, value_and_grad, vjp
from .rules import coverage, rule
from .testing import check

__version__ = "0.1.0"

__all__ = [
    "Backward",
    "MissingRuleError",
    "check",
    "coverage",
    "curvature",
    "data",
    "grad",
    "hvp",
    "jacrev",
    "nets",
    "ops",
    "optim",
    "per_example",
    "plot",
    "rule",
    "rules",
    "testing",
    "train",
    "value_and_grad",
    "vjp",
]
