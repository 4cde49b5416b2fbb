"""What a quick run leaves out is covered by what it takes: each rule, policy, scheme and command has a quick test."""

from __future__ import annotations

import inspect
import re

from funcbp import credit
from funcbp.cli.main import parser
from funcbp.remat.policies import POLICIES

from .rules.rows import ROWS


def values(tests, file, parameter):
    """The values that a parameter has in the tests of a file."""
    calls = [test.callspec for test in tests if test.path.match(file) and hasattr(test, "callspec")]
    return {call.params[parameter] for call in calls if parameter in call.params}


def text(tests):
    """The source of these tests, and their parameters."""
    sources = map(inspect.getsource, {test.function for test in tests})
    return "\n".join([*sources, *(str(test.callspec.params) for test in tests if hasattr(test, "callspec"))])


def test_each_rule(quick_tests):
    tested = {row.primitive for row in values(quick_tests, "rules/test_rules.py", "row")}
    assert tested == {row.primitive for row in ROWS}


def test_each_policy(quick_tests):
    assert values(quick_tests, "remat/test_plan.py", "residuals") == set(POLICIES)


def test_each_scheme(quick_tests):
    said = text([test for test in quick_tests if test.path.match("credit/*.py")])
    schemes = [name for name, value in vars(credit).items() if inspect.isfunction(value)]
    assert [name for name in schemes if not re.search(rf"\b{name}\b", said)] == []


def test_each_command(quick_tests):
    (commands,) = parser()._subparsers._group_actions
    calls = {"main", *(f"run_{name}_command" for name in commands.choices)}
    said = text([test for test in quick_tests if calls.intersection(test.function.__code__.co_names)])
    called = [name for name in commands.choices if re.search(rf'main\(\["{name}"|run_{name}_command\(', said)]
    assert called == list(commands.choices)
