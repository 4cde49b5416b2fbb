"""`funcbp balance` measures what a plan otherwise takes from a table."""

from __future__ import annotations

import re

from funcbp.cli import main
from funcbp.remat.measured import Measured


def test_what_is_printed_is_what_backward_takes(capsys):
    assert main(["balance", "--size", "8"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^cpu \(cpu\)\nproducts .* Gflop/s in float32\nkeeping .* GB/s", out)
    assert re.search(r"Backward\(balance=\d+\)\n.* 100 operations per byte, from the table$", out.strip())


def test_the_balance_is_operations_per_byte():
    assert Measured(products=8e12, kept=2e10).balance == 400
