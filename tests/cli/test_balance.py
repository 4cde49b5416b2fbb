"""`funcbp balance` measures what a plan otherwise takes from a table."""

from __future__ import annotations

import re

import pytest

from funcbp.cli import balance, main
from funcbp.remat.measured import Measured


def test_what_is_printed_is_what_backward_takes(capsys):
    assert main(["balance", "--size", "256"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^cpu \(cpu\)\nproducts .* Gflop/s in float32\nkeeping .* GB/s", out)
    assert re.search(r"Backward\(balance=\d+\)\n.* 100 operations per byte, from the table$", out.strip())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("8", "'8' is not a whole number of at least 64"),
        ("99999999", "no memory for --size 99999999: take a smaller one."),
        ("100", "keeping takes no time that can be measured: take a larger one."),
    ],
)
def test_sizes_that_measure_nothing(capsys, monkeypatch, size, message):
    if size == "100":
        monkeypatch.setattr(balance, "measure_balance", lambda size: Measured(products=1e9, kept=2e10))
    assert main(["balance", "--size", size]) == 2
    assert message in capsys.readouterr().err


def test_the_balance_is_operations_per_byte():
    assert Measured(products=8e12, kept=2e10).balance == 400
