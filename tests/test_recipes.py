"""The recipes of `docs/contributing.md`, run as they stand there, against numbers worked out here."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from tests.test_docs import PLAIN, ROOT

CONTRIBUTING = (ROOT / "docs" / "contributing.md").read_text()
RECIPES = {
    title: (program, printed)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", CONTRIBUTING, re.DOTALL | re.MULTILINE)
    for program, printed in re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
}


def run(program):
    """What a program prints in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=PLAIN, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(printed):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", printed)]


@pytest.fixture(params=RECIPES)
def recipe(request):
    return request.param


@pytest.mark.slow
def test_a_recipe_prints_what_it_says(recipe):
    program, printed = RECIPES[recipe]
    assert run(program) == printed


def test_a_recipe_says_lines_file_and_row(recipe):
    text = CONTRIBUTING.split(f"## {recipe}\n")[1].split("\n## ")[0]
    assert all(f"- **{what}**" in text for what in ("Lines", "File", "Row", "Pitfall"))


def test_the_rule_is_the_slope_of_squareplus():
    z = lambda x: (x + np.sqrt(x**2 + 4)) / 2
    assert numbers(RECIPES["A rule"][1]) == [round((z(1.5 + 1e-6) - z(1.5 - 1e-6)) / 2e-6, 4)]


def test_the_optimiser_is_kestens_rule():
    """Steps of η / (1 + changes of sign): 0, 0, 1 and 2 of them so far."""
    gradients, changes = [1, 1, -1, 1], [0, 0, 1, 2]
    want = [-0.1 * g / (1 + n) for g, n in zip(gradients, changes, strict=True)]
    np.testing.assert_allclose(numbers(RECIPES["An optimiser"][1]), want, atol=5e-5)


@pytest.mark.slow
def test_the_optimiser_keeps_its_row():
    """The row that the recipe adds, through the first of the tests that every row goes through."""
    (name, rest) = re.search(r'`"(\w+)": \(optim\.\w+, (.*?)\),`', CONTRIBUTING).groups()
    row = f"\nfrom tests.learn.optim import test_rules\ntest_rules.test_learns_and_resumes({name}, {rest})\n"
    run(RECIPES["An optimiser"][0] + row)


def test_the_scheme_passes_the_largest_deltas_only():
    x, out = np.array([[1.0, 10.0]]), np.array([1.0, -3.0, 2.0])
    largest = np.array([0.0, -3.0, 2.0])
    want = [*np.outer(x, out).ravel(), *np.outer(x, largest).ravel()]
    np.testing.assert_array_equal(numbers(RECIPES["A credit scheme"][1]), want)


def test_the_policy_saves_the_narrow_value_and_the_carry():
    """By the chain rule; a wide value of 64 bytes and a narrow one of 4 are needed in each step, or the carry of 4."""
    steps, weights, c, slope = 5, np.arange(16) / 100, 0.5, 1.0
    for _ in range(steps):
        after = np.exp(-np.sin(c * weights).sum())
        c, slope = after, slope * -after * np.sum(weights * np.cos(c * weights))
    found = np.reshape(numbers(RECIPES["A residual policy"][1]), (3, 2))
    np.testing.assert_array_equal(found[:, 0], [steps * (64 + 4), steps * (4 + 4), steps * 4])
    np.testing.assert_allclose(found[:, 1], slope, atol=5e-7)
