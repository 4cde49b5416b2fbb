"""A pytest plugin: other people's tests, with a reverse mode in the place of JAX's own.

    SWAP='{"module": "funcbp", "records": "records.jsonl"}' python -m pytest -p swap_reverse_mode THEIR_TESTS

It replaces `jax.grad` and the others before the tests, and what they test, are imported, and fails each test in which
JAX's own reverse mode ran all the same. Per test it writes one line of JSON: outcome, number of calls, error.
"""

from __future__ import annotations

import collections
import functools
import importlib
import inspect
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from jax._src.interpreters import ad

REVERSE_MODE = re.compile(r"(?:grad|vjp|jacrev|jacobian|hessian)\(|check_grads|check_vjp")
NAMES = ("grad", "value_and_grad", "vjp", "jacrev", "jacobian", "hessian")


class TookTooLong(BaseException):
    """Is raised in a test that is still running after its time, and is no error that the test could expect."""


def note_reverse_mode() -> list[str]:
    """Return a list that grows by the caller's place each time that JAX's own reverse mode runs."""
    ran: list[str] = []
    linearize = ad.linearize

    def noting(*args: Any, is_vjp: bool = False, **kwargs: Any) -> Any:
        if is_vjp:
            ran.append(_caller())
        return linearize(*args, is_vjp=is_vjp, **kwargs)

    ad.linearize = noting
    return ran


def _caller() -> str:
    """The nearest line outside of JAX."""
    jax_files = os.path.dirname(jax.__file__)
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((jax_files, __file__)):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def put_in_place(module: Any, calls: collections.Counter[str]) -> None:
    """Replace JAX's functions, wherever a module has them by now, by this module's, counted."""

    def counted(name: str) -> Any:
        theirs = getattr(module, "jacrev" if name == "jacobian" else name)

        @functools.wraps(theirs)
        def counting(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return theirs(*args, **kwargs)

        return counting

    new = {id(getattr(jax, name)): counted(name) for name in NAMES}
    for imported in [m for name, m in sys.modules.items() if name.split(".")[0] == "jax"]:
        for name, value in list(vars(imported).items()):
            if id(value) in new:
                setattr(imported, name, new[id(value)])


def read_records(file: str | Path) -> dict[str, dict[str, Any]]:
    """Read what became of each test, by its name: of a test's lines the last one counts."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return {record["test"]: record for record in map(json.loads, lines)}


def mentions_reverse_mode(item: pytest.Item) -> bool:
    """Tell whether a test's own text mentions reverse mode: those are run first, as time may run out."""
    try:
        text = inspect.getsource(item.function)  # type: ignore[attr-defined]
    except (AttributeError, OSError, TypeError):
        text = ""
    return REVERSE_MODE.search(text + _definition(item.path, item.name)) is not None


@functools.cache
def _definition(file: Path, test: str) -> str:
    """The text of a test, found by name: a decorator may have put a function of its own in its place."""
    name = re.sub(r"\d*(?:[\[(].*)?$", "", test)
    found = re.search(rf"^( *)def {re.escape(name)}\(.*?(?=^\1\S|\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
    return "" if found is None else found[0]


class Plugin:
    """Runs the tests that are asked for, and writes down what became of each.

    Args:
        module: whose functions take the place of JAX's; `jax` for its own, counted.
        records: the file that gets a line of JSON per test; the tests that it has already are not run again.
        only: the tests to run, by name; None for all.
        per_test: how many of a test's parametrisations to run; 0 for all.
        seconds: how long the processor may work on one test.
        minutes: how long on all of them; what is left then is not run.
        source: a copy of JAX's repository, for the modules of `jax._src` that its wheel leaves out.
    """

    def __init__(
        self,
        module: str,
        records: str,
        only: list[str] | None = None,
        per_test: int = 0,
        seconds: float = 60,
        minutes: float = 60,
        source: str | None = None,
    ) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.records, self.only, self.per_test, self.seconds = records, only, per_test, seconds
        self.done = {test for test, record in read_records(records).items() if record["outcome"] != "running"}
        self.file = Path()
        self.end = time.process_time() + 60 * minutes
        if source is not None:
            jax._src.__path__.append(os.path.join(source, "jax", "_src"))
        put_in_place(importlib.import_module(module), self.calls)
        self.ran = [] if module == "jax" else note_reverse_mode()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        rows = collections.defaultdict(list)
        for item in items:
            rows[re.sub(r"\d*(?:[\[(].*)?$", "", item.nodeid)].append(item)
        chosen = set()
        for name, row in rows.items():
            few = bool(self.per_test) and len(row) > self.per_test
            chosen.update(random.Random(name).sample(row, self.per_test) if few else row)
        if self.only is not None:
            only = set(self.only)
            chosen = {item for item in items if item.nodeid in only}
        chosen = {item for item in chosen if item.nodeid not in self.done}
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = sorted((item for item in items if item in chosen), key=lambda i: not mentions_reverse_mode(i))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        def stop(*_: Any) -> None:
            raise TookTooLong(f"It took more than {self.seconds:g} seconds of the processor.")

        if item.path != self.file:  # what a file compiled is of no use to the next one
            jax.clear_caches()
            self.file = item.path
        self.calls.clear()
        self.ran.clear()
        self.record(item, "running", "")
        before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            result = yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        if self.ran:
            pytest.fail(f"JAX's own reverse mode ran {len(self.ran)} times, first from {self.ran[0]}.")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            error = "" if call.excinfo is None else f"{call.excinfo.typename}: {str(call.excinfo.value).strip()}"
            self.record(item, report.outcome, error[:600])
        if time.process_time() > self.end:
            item.session.shouldstop = "the time is over"
        return report

    def record(self, item: pytest.Item, outcome: str, error: str) -> None:
        """Write a test's line."""
        record = {"test": item.nodeid, "outcome": outcome, "calls": self.calls.total(), "error": error}
        with open(self.records, "a") as file:
            file.write(json.dumps(record) + "\n")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Replace before the first `conftest.py` is imported."""
    early_config.pluginmanager.register(Plugin(**json.loads(os.environ["SWAP"])))
