"""Eight devices: values as on one, types as JAX's, and no more communication than JAX's gradient has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .devices import environment

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def layouts():
    program = Path(__file__).with_name("sharded_program.py")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment(8), timeout=600)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_layout_ran(layouts):
    assert len({each["layout"] for each in layouts}) == 12


def test_values_equal_one_device(layouts):
    for each in layouts:
        assert each["against one device"] <= 5e-6, each
        assert each["eager"] <= 5e-6, each


def test_cotangents_have_the_types_of_jax(layouts):
    assert [each["layout"] for each in layouts if not each["same types"]] == []


def test_no_more_collectives_than_jax(layouts):
    for each in layouts:
        for kind, count in each["collectives"].items():
            assert count <= each["jax's"].get(kind, 0), each
    assert any(each["collectives"] for each in layouts)
