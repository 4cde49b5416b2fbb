"""The planted faults keep step with the code; `python -m tests.mutants` runs them."""

from . import mutants


def test_each_fault_can_be_planted():
    assert mutants.misplaced() == []


def test_nearly_every_file_that_computes_has_one():
    assert len({m.file for m in mutants.MUTANTS}) >= 140
