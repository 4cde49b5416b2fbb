"""The rules of backpropagation: one per operation, one file per family. See `contract.py` for what a rule is."""

from ..cotangents import Zero, unbroadcast
from . import contraction, elementwise, indexing, linalg, placement, reduction, shape, sorting, unsupported
from .contract import INPUTS, NOTHING, OUTPUT, TYPES, MissingRuleError
from .elementwise import tanh_from_input
from .kinds import Rule
from .registry import (
    TABLE,
    UNSUPPORTED,
    coverage,
    def_bilinear,
    def_body,
    def_control,
    def_elementwise,
    def_linear,
    def_named,
    def_nondiff,
    def_rule,
    def_tangent,
    def_unsupported,
    def_zero,
    rule,
)

__all__ = [
    "INPUTS",
    "NOTHING",
    "OUTPUT",
    "TABLE",
    "TYPES",
    "UNSUPPORTED",
    "MissingRuleError",
    "Rule",
    "Zero",
    "contraction",
    "coverage",
    "def_bilinear",
    "def_body",
    "def_control",
    "def_elementwise",
    "def_linear",
    "def_named",
    "def_nondiff",
    "def_rule",
    "def_tangent",
    "def_unsupported",
    "def_zero",
    "elementwise",
    "indexing",
    "linalg",
    "placement",
    "reduction",
    "rule",
    "shape",
    "sorting",
    "tanh_from_input",
    "unbroadcast",
    "unsupported",
]
