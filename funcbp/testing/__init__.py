"""Witnesses: is a gradient right?"""

from .check import assert_gradients as assert_gradients
from .check import check as check
from .report import Finding as Finding
from .report import LeafReport as LeafReport
from .report import Report as Report
from .rules import Claim as Claim
from .rules import check_rule as check_rule
