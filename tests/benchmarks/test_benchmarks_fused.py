"""The benchmark of fused operations on toy sizes: that it compares, and prints what it says."""

import pytest

import benchmarks.__main__ as command
from benchmarks import fused
from benchmarks.report import Target


def test_rows():
    assert command.TABLES["fused"] is fused.run
    cases = {"W5 toy": fused.Case(lambda f, size: fused.output_layer(f, size, 3), [(4, 5)], {"time": Target(1e9)})}
    table = fused.run(1, ["W5"], {**cases, "W8 toy": fused.CASES["W8 attention"]})
    assert [row.name for row in table.rows] == ["W5 toy, 4 x 5: funcbp", "W5 toy, 4 x 5: jax"]
    for row in table.rows:
        assert not row.refused and row.cells["contractions"].value == pytest.approx(4 / 3)  # the logits, once again
    assert "met" in str(table.rows[0].cells["time"])
