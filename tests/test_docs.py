"""What the documents show is what the code prints: the README's programs, and every example in a docstring."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import funcbp

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
PROGRAMS = [
    pytest.param(program, printed, id=f"{title}: {re.search(r'bp[.][a-z_.]+', program)[0]}")
    for title, text in SECTIONS
    for program, printed in re.findall(r"```python\n(import.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
]
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in Path(funcbp.__file__).parent.rglob("*.py")
    if p.stem not in ("__main__", "plugin")
)
# a fresh process: the tests' own settings (float64, strict promotion) are not a reader's
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "Agg",
}

DOCTESTS = """
import doctest, importlib, sys
tried = failed = 0
for name in sys.argv[1:]:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tried, failed = tried + result.attempted, failed + result.failed
print(f"{tried} tried, {failed} failed")
sys.exit(failed > 0 or tried < 20)
"""


def run(source, *args):
    return subprocess.run(
        [sys.executable, "-c", source, *args], capture_output=True, text=True, cwd=ROOT, env=PLAIN, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_readme_programs_print_what_it_says(program, printed):
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed


def test_the_readme_has_programs_and_commands():
    assert len(PROGRAMS) >= 2
    assert len(re.findall(r"^python -m pip install .*&& python -m (?:pytest|funcbp train digits)$", README, re.M)) == 2
    assert "@@" not in README


def test_the_readme_shows_the_backward_pass_as_it_is():
    (shown,) = re.findall(r"```python\n(def backward_pass.*?)```", README, re.DOTALL)
    source = (ROOT / "funcbp" / "autodiff/backward_pass.py").read_text()
    unannotated = re.sub(
        r"def backward_pass\(.*?\) -> list\[Any\]:", "def backward_pass(state, tape, saved, ct_out):", source
    )
    assert shown.strip() in unannotated


@pytest.mark.slow
def test_docstring_examples():
    result = run(DOCTESTS, *MODULES)
    assert result.returncode == 0, result.stdout + result.stderr
