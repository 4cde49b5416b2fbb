"""Memory in use along the two passes of a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import TRAINING, VALIDATION, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...inspection.residuals import Residuals

FORWARD, BACKWARD = TRAINING, VALIDATION
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def memory(*reports: Residuals, axes: np.ndarray | Any = None) -> Figure | Any:
    """The bytes in use along both passes of a gradient, a staircase up and one down, for each report side by side.

    Args:
        reports: what `funcbp.residuals` returned, of one function under different policies, or of several.
        axes: as many axes to draw on.

    Returns:
        The figure.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> f = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=9)[0]
        >>> all_kept = bp.Backward(residuals="needed")
        >>> len(bp.plot.memory(bp.residuals(f, backward=all_kept)(1.0), bp.residuals(f)(1.0)).axes)
        2
    """
    axes = np.atleast_1d(new_axes(5.0 * len(reports), 3.6, len(reports)) if axes is None else axes)
    most = max([1, *(r.live.peak for r in reports)])
    unit, name = next((u, n) for u, n in UNITS if most >= u)
    for ax, report in zip(axes, reports, strict=True):
        live, n = report.live, len(report.live.forward)
        between = live.between / unit
        backward = np.concatenate([live.forward[-1:], live.backward])
        for part, start, color, label in (
            (live.forward, 0, FORWARD, "forward"),
            (backward, n - 1, BACKWARD, "backward"),
        ):
            places = np.arange(start, start + len(part))
            ax.fill_between(places, part / unit, step="post", color=color, alpha=0.25, linewidth=0)
            ax.step(places, part / unit, where="post", color=color, label=label)
        ax.axhline(between, color="0.4", linewidth=1, linestyle=":")
        ax.text(
            n - 1, between / 2, f"{between:.3g} {name} kept\nbetween the passes", ha="center", va="center", fontsize=8
        )
        ax.set(xlabel="equations, loops step by step", ylabel=f"{name} in use")
        ax.set_title(f"{report.name}\nresiduals: {report.policy}")
        ax.set_ylim(0, 1.2 * most / unit)
        ax.legend(frameon=False, loc="upper left", ncols=2, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    return axes[0].figure
