"""The benchmark for accelerators on toys: that every way goes through, and that a machine without one is told."""

import jax
import pytest

import benchmarks.__main__ as command
from benchmarks import accelerator


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("number", ["G1", "G2", "G3", "G4"])
def test_toys(number, capsys):
    assert command.main(["accelerator", "--tiny", "--pairs", "1", "--only", number]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {number}")]
    for what in ("jax |", "dots with no batch dims", "nothing saved", "min_cut |", "balance 600", "inputs"):
        assert any(what in line for line in lines), what
    assert any("outside_loops" in line for line in lines) == (number == "G3")
    assert sum("torch.compile" in line for line in lines) == (3 if number == "G1" else 0)


def test_without_an_accelerator_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    (row,) = accelerator.run(1, ["none"]).rows  # were it not refused, there would be no row
    assert "no accelerator" in str(row.cells["ms"])
