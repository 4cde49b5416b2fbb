"""The table of predicted peaks, on toys: that each program is planned, compiled, and counted."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import __main__ as command
from benchmarks import peaks, workloads


@pytest.mark.slow
def test_every_program_has_its_numbers(usual_jax):
    table = peaks.run(1, tiny=True)
    *rows, last = table.rows
    assert [row.name for row in rows] == list(peaks.PROGRAMS)
    for row in rows:
        assert tuple(row.cells) == peaks.COLUMNS
        assert all(cell.value >= 0 for cell in row.cells.values())
    assert last.name == "within 10%"
    for plan in peaks.PLANS:
        good = sum(0.9 <= row.cells[f"{plan}: ratio"].value <= 1.1 for row in rows)
        assert str(last.cells[f"{plan}: ratio"]) == f"{good} of {len(rows)}"


def test_a_prediction_is_counted_where_it_is_within_a_tenth(monkeypatch):
    found = {"a": (105, 100), "b": (89, 100), "c": (90, 100)}
    monkeypatch.setattr(peaks, "peaks_of", lambda name, backward: found[name])
    table = peaks.run(1, programs={name: lambda n, name=name: name for name in found})
    assert str(table.rows[-1].cells["default: ratio"]) == "2 of 3"
    assert table.rows[1].cells["default: ratio"].value == 0.89


def test_what_is_compared_is_the_gradient_with_its_value(usual_jax):
    """Of x -> sum((x W) V)² on 64 x 64 the cotangent of x W is all that waits, with x W itself."""
    square = jnp.ones((64, 64))
    loss = lambda w, x: jnp.sum(((x @ w[0]) @ w[1]) ** 2)
    workload = workloads.gradient_of(lambda: loss, (square, square), square)
    predicted, compiled = peaks.peaks_of(workload, peaks.PLANS["default"])
    assert predicted == compiled


def test_the_command_takes_parts_of_names(capsys, tmp_path):
    assert command.main(["peaks", "--tiny", "--only", "w1 mlp", "--json", str(tmp_path / "out.json")]) == 0
    assert "| W1 MLP |" in capsys.readouterr().out
    (table,) = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert [row["workload"] for row in table["rows"]] == ["W1 MLP", "within 10%"]
