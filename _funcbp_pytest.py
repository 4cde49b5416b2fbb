"""The pytest plugin: a fixture, a marker, and three options.

pytest loads it in every run, so it lies outside of the package: JAX is imported when a gradient is checked, not before.

def test_my_loss(gradcheck):
    gradcheck(my_loss, params, batch, argnums=0)

@pytest.mark.gradcheck(samples=4, order=2)
def test_my_activation(gradcheck):
    gradcheck(my_activation, 0.3)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

OPTIONS = ("samples", "seed", "tolerance", "order", "argnums", "has_aux", "backward", "vjp", "complex_step")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--gradcheck-samples`, `--gradcheck-seed`, `--gradcheck-tolerance`: for all checks of a run."""
    group = parser.getgroup("gradcheck", "derivatives checked by funcbp")
    add = group.addoption
    add("--gradcheck-samples", type=int, metavar="N", help="random cotangents per check (default: 2)")
    add("--gradcheck-seed", type=int, metavar="SEED", help="of the random cotangents and directions (default: 0)")
    add(
        "--gradcheck-tolerance",
        type=float,
        metavar="UNITS",
        help="in units of what the reference can tell (default: 20)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "gradcheck(samples, seed, tolerance, order, ...): options for the checks that the test makes by `gradcheck`",
    )


@pytest.fixture
def gradcheck(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`gradcheck(f, *args, **options)`: `funcbp.testing.assert_gradients` with the run's and the marker's options.

    The options of the call go before the marker's, and those before the command line's.
    """
    options: dict[str, Any] = {}
    for name in ("samples", "seed", "tolerance"):
        value = request.config.getoption(f"--gradcheck-{name}")
        if value is not None:
            options[name] = value
    marker = request.node.get_closest_marker("gradcheck")
    if marker is not None:
        unknown = sorted(set(marker.kwargs) - set(OPTIONS))
        if marker.args or unknown:
            what = f"unknown: {', '.join(unknown)}" if unknown else "they are passed by name"
            raise pytest.UsageError(f"The marker gradcheck takes the options {', '.join(OPTIONS)}; {what}.")
        options |= marker.kwargs

    def run(f: Callable[..., Any], *args: Any, **own: Any) -> Any:
        __tracebackhide__ = True
        from funcbp.testing import assert_gradients

        return assert_gradients(f, *args, **(options | own))

    return run
