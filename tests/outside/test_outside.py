"""JAX's own examples of some primitives; and whether wrong derivatives, and JAX's own, are seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src.interpreters import ad

import funcbp as bp

from . import programs
from .report import Row
from .suites import suite
from .swap_reverse_mode import note_reverse_mode, read_records

ROOT = Path(__file__).parents[2]
SOME = (
    "cumsum dot_general dynamic_slice gather pad pow reduce_max scatter_add select_n sort tanh triangular_solve".split()
)
THEIR_TESTS = """
import jax, os, pytest
def test_that_crashes(): jax.grad(lambda x: x**2)(3.0); os.abort()
def test_grad(): assert jax.grad(lambda x: x**2)(3.0) == 6.0
@pytest.mark.parametrize("x", [2.0, 3.0])
def test_vjp(x): assert jax.vjp(lambda x: x**2, x)[1](1.0)[0] == 2 * x
def test_jacrev(): assert jax.jacrev(lambda x: x**2)(3.0) == 6.0
def test_that_fails_on_jax(): assert jax.grad(lambda x: x**2)(3.0) == 7.0
def test_without_reverse_mode(): assert jax.jvp(lambda x: x**2, (3.0,), (1.0,))[1] == 6.0
"""
WRONG = """
from funcbp import *
from jax import vjp
import funcbp
def grad(f): return lambda x: 1.01 * funcbp.grad(f)(x)
"""


def test_who_runs_the_reverse_mode_of_jax_is_noted(monkeypatch):
    monkeypatch.setattr(ad, "linearize", ad.linearize)  # is put back after the test
    ran = note_reverse_mode()
    assert (bp.grad(jnp.sin)(0.0), ran) == (1.0, [])
    assert jax.grad(jnp.sin)(0.0) == 1.0
    assert [where.split(":")[0] for where in ran] == ["test_outside.py"]


@pytest.mark.slow
def test_a_wrong_derivative_and_one_of_jax_fail_their_tests(tmp_path, monkeypatch):
    (tmp_path / "test_theirs.py").write_text(THEIR_TESTS)
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    run = lambda: suite(
        "theirs", "1.0", tmp_path, [tmp_path / "test_theirs.py"], "wrong", per_test=1, records=str(tmp_path / "records")
    )
    row = run()
    assert row[:5] == ("theirs", "1.0", 3, 1, 3)
    assert [name.split("::")[1].split("[")[0] for name in row.failures] == ["test_grad", "test_vjp"]
    assert row.kinds() == "1 AssertionError, 1 Failed"
    assert "first from test_theirs.py:6." in row.details()
    records = read_records(tmp_path / "records" / "theirs-wrong.jsonl")
    assert len(records) == 6 and records["test_theirs.py::test_that_crashes"]["error"].startswith("Crashed: ")
    (tmp_path / "test_theirs.py").write_text("")
    assert run() == row  # nothing was left to run


def test_a_row_of_the_table_counts_failures_by_kind():
    row = Row("theirs", "1.0", 9, 6, 12, {"a": "TypeError: x", "b": "Not run", "c": "TypeError: y"})
    assert row.line() == "| theirs | 1.0 | 9 | 6 | 12 | 2 TypeError, 1 Not run |"
    assert row.details() == "1 x TypeError: x\n    a\n1 x Not run\n    b\n1 x TypeError: y\n    c"


@pytest.mark.slow
def test_some_of_the_examples():
    command = [sys.executable, "-m", "tests.outside", "harnesses", "--per-primitive", "1", "--only", *SOME]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "| harnesses, eager 32 bits |" in result.stdout, result.stderr
    assert result.returncode == 0, result.stdout


def test_a_wrong_gradient_of_a_program_is_counted(monkeypatch):
    monkeypatch.setattr(bp, "grad", lambda f: lambda x: 1.01 * jax.grad(f)(x))
    monkeypatch.setitem(programs.PROGRAMS, "jax", [lambda: (lambda x: x**2, jnp.float32(3.0))])
    (row,) = programs.rows(["jax"])
    assert (row.stock, row.ours, row.kinds()) == (4, 2, "2 AssertionError")
    assert list(row.failures) == ["<lambda>, jit, grad", "<lambda>, vmap, grad"]
    monkeypatch.setitem(programs.PROGRAMS, "jax", [lambda: (lambda x: x.no_such_name, jnp.float32(3.0))])
    (row,) = programs.rows(["jax"])
    assert "NOT RUN: fails with JAX's own: AttributeError" in row.line()
    (row,) = programs.rows(["no-such-package"])
    assert "NOT RUN: PackageNotFoundError" in row.line()
