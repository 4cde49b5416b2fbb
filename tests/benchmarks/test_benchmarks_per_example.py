"""The benchmarks of per-example quantities and curvature on toy sizes: that they compare, and print what they say."""

import functools

import jax.numpy as jnp
import pytest

import benchmarks.__main__ as command
from benchmarks import curvature, peers, per_example, workloads

TOYS = {
    "W1 MLP": lambda: per_example.case_of(functools.partial(workloads.mlp, (6, 5, 3), batch=4)),
    "W9 least squares": lambda: per_example.least_squares((4, 3, 1), 4),
}


@pytest.mark.slow
def test_per_example_rows():
    table = per_example.run(2, cases=TOYS, growth=(2, 4), networks={})
    names = ["W1 MLP: norms", "W1 MLP: clipping", "W9 least squares: Gram"]
    names += ["W1 MLP: clipping, batch 2", "W1 MLP: clipping, batch 4"]
    assert [row.name for row in table.rows] == names
    assert not any(row.refused for row in table.rows)
    for row in table.rows[:3]:
        assert set(per_example.COLUMNS) == set(row.cells)
        assert all(cell.value > 0 for cell in row.cells.values())
    assert table.rows[3].cells["compile, to the first"].value == 1


@pytest.mark.slow
def test_curvature_rows(monkeypatch):
    monkeypatch.setattr(peers, "CURVATURE", {})
    table = curvature.run(2, sizes=(6, 5, 3), batch=4)
    assert [row.name for row in table.rows] == [f"W1 MLP: {what}" for what in curvature.QUANTITIES]
    assert not any(row.refused for row in table.rows)


def test_a_wrong_result_is_not_timed(monkeypatch):
    twice = lambda case: (lambda params, batch: 2 * jnp.ones(3), lambda params, batch: jnp.ones(3))
    monkeypatch.setitem(per_example.QUANTITIES, "norms", twice)
    case = TOYS["W1 MLP"]()
    row = per_example.quantity_row("W1 MLP", "norms", case, per_example.plain_gradient(case), 1)
    assert row.refused and "results differ by 1.0e+00" in row.cells["time"].remark


def test_a_peer_that_is_not_installed_is_named():
    which = {"clipping, somebody's": (("no_such_module",), None)}
    (row,) = peers.peer_rows("W1 MLP", lambda: peers.mlp((2, 2), 2), which)
    assert row.cells["time"].remark == "skipped: no_such_module not installed"


def test_the_command_knows_the_tables():
    assert {"per_example", "curvature"} <= set(command.TABLES)
