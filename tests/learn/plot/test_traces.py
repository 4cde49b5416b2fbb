"""The pictures of a trace have the numbers they should."""

from itertools import combinations, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

DRAW = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(DRAW.standard_normal(shape))


@pytest.fixture(scope="module")
def ledger():
    def loss(p, x):
        h = lax.scan(lambda h, w: (bp.name(jnp.tanh(h @ w), "h"), None), jnp.tanh(x @ p["in"]), p["blocks"])[0]
        return jnp.sum(h**2)

    return bp.trace(loss)({"in": normal(3, 4), "blocks": normal(2, 4, 4)}, normal(5, 3))


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("draw", [bp.plot.gradient_flow, bp.plot.histograms, bp.plot.saturation, bp.plot.graph])
def test_axes_in_and_out(draw, ledger, tmp_path):
    ax = Figure().subplots()
    assert draw(ledger, ax=ax) is ax
    own = draw(ledger)
    own.figure.savefig(tmp_path / "picture.png")
    assert own.get_title()


def test_gradient_flow_has_a_point_per_layer(ledger):
    ax = bp.plot.gradient_flow(ledger)
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels == ["blocks[0]", "blocks[1]", "in", "x"]
    sizes = ax.lines[1].get_ydata()
    np.testing.assert_allclose(sizes[2], np.sqrt(np.mean(ledger["in"].cotangent ** 2)))
    np.testing.assert_allclose(sizes[1], np.sqrt(np.mean(ledger["blocks"].cotangent[1] ** 2)))


def test_a_picture_grows_with_what_it_shows(ledger):
    """Boxes of a graph stand apart, and names of parameters do not cover each other; too much of it is refused."""
    deep = bp.trace(lambda ws: jnp.sum(sum(jnp.tanh(w) for w in ws)))([normal(2) for _ in range(60)])
    flow = bp.plot.gradient_flow(deep)
    flow.figure.canvas.draw()
    names = [t.get_window_extent() for t in flow.get_xticklabels()]
    assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(names))
    ax = bp.plot.graph(bp.trace(lambda w, x: jnp.sum(jnp.tanh(jnp.tanh(w * x) * x) ** 2))(normal(4, 4), normal(4, 4)))
    ax.figure.canvas.draw()
    boxes = [t.get_window_extent() for t in ax.texts if t.get_bbox_patch()]
    assert len(boxes) == 8 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    with pytest.raises(ValueError, match=r"A graph of 2\d\d values .*t.to_html\(\)"):
        bp.plot.graph(bp.trace(lambda x: sum(x * i for i in range(120)))(normal(2)[0]))


def test_saturation_has_a_bar_per_layer(ledger):
    ax = bp.plot.saturation(ledger)
    widths = [p.get_width() for p in ax.patches]
    shares = [r.of_value.saturated for r in ledger if r.primitive == "tanh"]
    assert set(shares) <= set(widths) and any(shares)
    assert [t.get_text() for t in ax.texts] == [f"{100 * width:.0f} %" for width in widths]


def test_histograms_take_value_or_cotangent(ledger):
    with pytest.raises(ValueError, match='"cotangent" or "value", and was \'x\''):
        bp.plot.histograms(ledger, of="x")
    assert len(bp.plot.histograms(ledger, of="value").patches) == 1


UNITS = [bp.ops.logistic, bp.ops.tanh, bp.ops.relu, jax.nn.sigmoid, jax.nn.relu, jnp.tanh]


@pytest.mark.parametrize("unit", UNITS, ids="our logistic, our tanh, our relu, sigmoid, relu, tanh".split(", "))
def test_units_are_found_whoever_wrote_their_derivative(unit):
    t = bp.trace(lambda x: jnp.sum(unit(3 * x) + x))(jnp.arange(4.0))
    ax = bp.plot.saturation(t)
    assert len(ax.get_yticklabels()) == 1
    assert len(bp.plot.histograms(t).patches) == 1
