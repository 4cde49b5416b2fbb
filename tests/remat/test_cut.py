"""The minimum cut is the smallest, on the graph of what can be kept."""

from __future__ import annotations

import itertools

from funcbp.remat.cut import minimum_cut
from funcbp.remat.graph import bytes_of
from funcbp.rules.cost import is_cheap

from .programs import made_again


def test_the_cut_is_the_smallest_without_dear_equations(program):
    needed, there = program.outvars, {program.invars[1]}
    values = [v for eqn in program.eqns for v in eqn.outvars]
    least = min(
        bytes_of(kept)
        for n in range(len(values) + 1)
        for kept in itertools.combinations(values, n)
        if (again := made_again(program, kept, needed, there)) is not None and all(map(is_cheap, again))
    )
    assert bytes_of(minimum_cut(program, needed, there)) == least
