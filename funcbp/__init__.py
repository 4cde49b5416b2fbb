"""Backpropagation you can open: JAX's `vjp` and `grad`, with a backward pass made of hand-written rules."""

from . import data, inspection, nets, ops, optim, plot, reproduce, rules, testing, train
from .backward import Backward, MissingRuleError, grad, hvp, jacrev, value_and_grad, vjp
from .inspection import residuals
from .loops import scan, while_loop
from .policies import Budget
from .rules import coverage, rule
from .testing import check
from .train import fit, fit_many

__version__ = "0.1.0"

__all__ = [
    "Backward",
    "Budget",
    "MissingRuleError",
    "check",
    "coverage",
    "data",
    "fit",
    "fit_many",
    "grad",
    "hvp",
    "inspection",
    "jacrev",
    "nets",
    "ops",
    "optim",
    "plot",
    "reproduce",
    "residuals",
    "rule",
    "rules",
    "scan",
    "testing",
    "train",
    "value_and_grad",
    "vjp",
    "while_loop",
]
