"""The pytest plugin, run in a pytest of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import jax, jax.numpy as jnp, pytest

@jax.custom_vjp
def bad(x):
    return x**2

bad.defvjp(lambda x: (x**2, x), lambda x, ct: (ct * x,))

def test_right(gradcheck):
    report = gradcheck(jnp.tanh, 0.3)
    print("SETTINGS", report.samples, report.seed)

@pytest.mark.gradcheck(samples=4, order=2)
def test_marked(gradcheck):
    report = gradcheck(jnp.tanh, 0.3, seed=9)
    print("MARKED", report.samples, report.seed, len(report.leaves))

def test_wrong(gradcheck):
    gradcheck(bad, 0.5)

@pytest.mark.gradcheck(speed=3)
def test_unknown(gradcheck):
    pass
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "test_mine.py").write_text(TESTS)
    return run(folder, "-rA", "--strict-markers", "--gradcheck-samples=3", "--gradcheck-seed=5")


def run(folder, *options):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), *options]
    listing = "import importlib.metadata as m; print([e.value for e in m.entry_points(group='pytest11')])"
    installed = subprocess.run([sys.executable, "-c", listing], cwd=folder, capture_output=True, text=True).stdout
    if "_funcbp_pytest" not in installed:  # run from a checkout
        command[3:3] = ["-p", "no:funcbp", "-p", "_funcbp_pytest"]
    env = {"PYTHONPATH": str(root), "PATH": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=300).stdout


def test_the_fixture_checks(outcome):
    assert "2 passed, 1 failed, 1 error" in outcome or "1 failed, 2 passed, 1 error" in outcome, outcome
    assert "culprit: the custom_vjp rule of bad" in outcome
    assert re.search(r"rule of bad at .*, used at .*test_mine.py:\d+:\d+ \(test_wrong\)", outcome), outcome
    assert "def assert_gradients" not in outcome  # the traceback ends at the test's line


def test_options_reach_the_check(outcome):
    assert "SETTINGS 3 5" in outcome, outcome


def test_the_marker_goes_before_the_options_and_the_call_before_both(outcome):
    assert "MARKED 4 9 2" in outcome, outcome


def test_an_unknown_option_of_the_marker_is_named(outcome):
    assert "unknown: speed" in outcome


def test_the_marker_is_documented(tmp_path):
    assert "gradcheck(samples, seed, tolerance" in run(tmp_path, "--markers")


def test_it_does_not_import_jax(tmp_path):
    """A run that checks no gradient pays nothing for the plugin."""
    (tmp_path / "test_other.py").write_text("import sys\ndef test_lean():\n    assert 'jax' not in sys.modules\n")
    assert "1 passed" in run(tmp_path)
