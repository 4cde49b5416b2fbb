"""What came of a suite, and the table of all."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """What came of one suite.

    Attributes:
        suite, version: its name, and that of the package it tests.
        stock: the tests that call reverse mode and pass with JAX's own.
        ours: those of them that pass with ours.
        calls: calls of our functions in them.
        failures: the error of each other test, by the test's name.
        note: why there is nothing to count.
    """

    suite: str
    version: str
    stock: int = 0
    ours: int = 0
    calls: int = 0
    failures: Mapping[str, str] = {}
    note: str = ""

    def kinds(self) -> str:
        """The failures, by class of error, the most frequent first."""
        count = collections.Counter(error.split(":")[0] for error in self.failures.values())
        return ", ".join(f"{n} {kind}" for kind, n in count.most_common())

    def line(self) -> str:
        """This row of the table."""
        if self.note:
            return f"| {self.suite} | {self.version} | | | | {self.note} |"
        return f"| {self.suite} | {self.version} | {self.stock} | {self.ours} | {self.calls} | {self.kinds()} |"

    def details(self) -> str:
        """What failed: each message with the tests that it comes from."""
        tests = collections.defaultdict(list)
        for test, error in self.failures.items():
            tests[" ".join(error.split())[:300]].append(test)
        found = sorted(tests.items(), key=lambda each: -len(each[1]))
        return "\n".join(f"{len(names)} x {error}\n" + "\n".join(f"    {n}" for n in names) for error, names in found)


HEADER = """| suite | version | pass with JAX's | pass with ours | calls | failures by kind |
| --- | --- | --- | --- | --- | --- |"""
