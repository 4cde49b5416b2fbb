"""The schedule of Revolve: it is optimal, and reverses each step from a state that it has."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from funcbp.control_flow.schedule import first_snapshots, schedule


@functools.cache
def fewest(steps, places):
    """How many steps must be run forward to reverse so many, by dynamic programming."""
    if steps <= 1:
        return 0
    if places == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, places - 1) + fewest(m, places) for m in range(1, steps))


def advanced(actions):
    return sum(a.stop - a.start for a in actions if a.kind == "advance")


@pytest.mark.parametrize("places", [1, 2, 3, 6])
def test_the_schedule_is_optimal(places):
    for steps in range(1, 45):
        actions = schedule(steps, places)
        # the first sweep runs on to the end, for the value: what it passes after its last snapshot is run again
        passed = steps - max(first_snapshots(steps, places))
        assert advanced(actions) <= fewest(steps, places) + passed
        assert [a.start for a in actions if a.kind == "reverse"] == list(reversed(range(steps)))


@pytest.mark.parametrize(("steps", "places"), [(1, 1), (7, 1), (20, 3), (100, 5), (286, 10), (1001, 10)])
def test_the_schedule_reverses_each_step_from_a_state_it_has(steps, places):
    stored, at = set(), 0
    for action in schedule(steps, places):
        if action.kind == "store":
            assert action.start == at
            stored.add(action.start)
            assert len(stored) <= places
        elif action.kind == "drop":
            stored.remove(action.start)
        elif action.kind == "advance":
            assert action.start == at or action.start in stored
            at = action.stop
        else:
            assert action.start == at or action.start in stored
            at = -1
    assert not stored


def test_a_thousand_steps_with_ten_snapshots():
    """C(13, 10) = 286 < 1000 ≤ C(14, 10) = 1001: no step is run more than four times."""
    runs = np.zeros(1000, int)
    stored = most = 0
    for action in schedule(1000, 10):
        runs[action.start : action.stop] += action.kind == "advance"
        stored += (action.kind == "store") - (action.kind == "drop")
        most = max(most, stored)
    assert (most, runs.sum(), runs.max()) == (10, 3640, 4)
