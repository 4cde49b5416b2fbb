"""The plan in writing: what is kept, where it was made, how large it is, which rule wants it, and why."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import funcbp as bp

PARAMS = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}


def loss(params, xs, label=None):
    first = xs[0]

    def step(h, x):
        net = checkpoint_name(x @ params["w"] + h, "net")
        h = jnp.where(first > 0, jnp.tanh(net) * jnp.exp(-net) * params["b"], 0.0)
        return lax.scan(lambda c, _: (jnp.sin(c), None), h, None, 2)[0], h

    h, hs = lax.scan(step, jnp.ones(3), xs)
    return (h * hs.sum(0)).sum()


XS = jnp.linspace(-1, 1, 15).reshape(5, 3)


@pytest.fixture(scope="module")
def report():
    return bp.residuals(loss)(PARAMS, XS, label="unused")


def values(report, **wanted):
    return [v for v in report.values if all(getattr(v, k) == x for k, x in wanted.items())]


def test_each_value_is_listed_with_its_name_line_type_bytes_and_rule(report):
    (net,) = values(report, name="net")
    assert (net.shape, net.dtype, net.bytes, net.steps, net.total) == ((3,), "float64", 24, 5, 120)
    (tanh,) = values(report, name="tanh")
    assert (tanh.fate, tanh.why) == ("recomputed", "cheap to make of what is kept")
    assert "test_residuals.py" in tanh.line
    assert any(w.startswith("tanh_bwd for `tanh` at ") and "test_residuals.py" in w for w in tanh.wanted)
    assert tanh.inside[0].startswith("loop of 5 steps at ")
    (xs,) = values(report, name="xs[step]")
    assert xs.fate == "available"
    assert values(report, name="params/w", fate="available") == []  # nobody asked for the cotangent of xs
    assert values(report, name="params/b", fate="available")
    (mask,) = values(report, fate="kept once")
    assert (mask.dtype, mask.steps, mask.why) == ("bool", 1, "the same in every step of a loop")


def test_an_inner_loops_values_count_for_all_steps_of_both(report):
    inner = [v for v in report.values if len(v.inside) == 2 and v.fate == "kept"]
    assert [(v.name, v.steps, v.why) for v in inner] == [("carry 0", 10, "the state before the step")]


def test_the_total_is_what_the_loops_hand_over(report):
    """Everything that the forward half of the traced gradient hands to the backward half, and nothing else."""
    _, pullback = bp.vjp(lambda p: loss(p, XS), PARAMS)
    arrays = {id(x): x for x in jax.tree.leaves(pullback)}
    given = [np.asarray(x) for x in (*PARAMS.values(), XS)]
    own = [x for x in map(np.asarray, arrays.values()) if not any(x.shape == g.shape and (x == g).all() for g in given)]
    assert report.total == sum(x.nbytes for x in own)


def test_policies_differ_in_what_they_keep():
    plain = {r: bp.residuals(loss, backward=bp.Backward(residuals=r))(PARAMS, XS) for r in ("needed", "inputs")}
    assert plain["needed"].recomputed == 0
    assert plain["inputs"].total < plain["needed"].total
    (tanh,) = values(plain["inputs"], name="tanh")
    assert (tanh.fate, tanh.why) == ("recomputed", "dot_general is run again to save it")
    assert plain["inputs"].live.between < plain["needed"].live.between
    assert plain["needed"].live.between - plain["needed"].total < 100  # and the loss itself


def test_it_is_printed_in_a_terminal_a_notebook_and_as_json(report):
    text = str(report)
    assert text.splitlines()[0] == f"loss: {report.total:,} bytes kept, {report.recomputed:,} recomputed   (min_cut)"
    _, head, *lines = text.splitlines()
    assert head.split() == ["value", "type", "times", "bytes", "again", "wanted", "by", "line"]
    assert {line.split(": ")[1] for line in lines if line.startswith("  ") and ": " in line} == {
        v.why for v in report.values
    }
    assert "/" not in next(line for line in lines if " tanh, " in line)  # lines without their folders
    page = report._repr_html_()
    groups = {(v.inside, v.fate, v.why) for v in report.values}
    assert page.count("colspan=7") == len(groups)
    assert page.count("<tr>") == len(report.values) + len(groups) + 1
    assert "loop of 5 steps" in page
    content = json.loads(report.to_json())
    assert content["total"] == report.total
    assert sum(v["total"] for v in content["values"] if v["fate"].startswith("kept")) == report.total


def test_equal_layers_are_one_row_and_arguments_one_line():
    """Twelve layers of a wide network, of which the text says what one does, and how often."""

    def deep(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    like = jax.ShapeDtypeStruct
    report = bp.residuals(deep)([like((64, 64), jnp.float32)] * 12, like((8, 64), jnp.float32))
    lines = str(report).splitlines()
    layers = [line.split()[1:4] for line in lines if line.split()[0] == "tanh"]  # the first and the last differ
    assert layers == [["f32[8,64]", f"{n}", f"{n * 8 * 64 * 4:,}"] for n in (1, 10, 1)]
    (at,) = (i for i, line in enumerate(lines) if "available" in line)
    assert re.fullmatch(r"    weights/1, weights/2, .* and \d+ more", lines[at + 1])
    assert f"available, {(11 * 64 + 8) * 64 * 4:,} bytes: an argument" in lines[at]
    assert len(lines) < 10 < len(report.values)
    page = report._repr_html_()
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in page.split("<tr>")]
    assert [row[1:4] for row in cells if row and row[0] == "tanh"] == layers
    assert lines[at].strip() in page
    assert str(bp.residuals(jnp.sum)(jnp.ones(3))).count("\n") == 0  # nothing is kept: no table


def test_the_staircase_is_drawn_side_by_side(report):
    figure = bp.plot.memory(report, bp.residuals(loss, backward=bp.Backward(residuals="needed"))(PARAMS, XS))
    assert [ax.get_title() for ax in figure.axes] == ["loss\nresiduals: min_cut", "loss\nresiduals: needed"]
    drawn = [line.get_ydata() for line in figure.axes[0].lines[:2]]
    assert max(drawn[0]) * (2**10 if "KiB" in figure.axes[0].get_ylabel() else 1) == max(report.live.forward)
    assert drawn[1][0] == drawn[0][-1]  # backward begins with what is kept
    also = [bp.residuals(loss, backward=bp.Backward(outside_loops=o))(PARAMS, XS) for o in (False, True)]
    titles = [ax.get_title() for ax in bp.plot.memory(*also).axes]
    assert titles == ["loss\nresiduals: min_cut", "loss\nresiduals: min_cut, outside_loops=True"]


def test_the_peak_may_be_on_the_way_back():
    """One number of w is read; its cotangent is as large as w."""
    live = bp.residuals(lambda w: jnp.sin(w[0, 0]))(jnp.ones((64, 64))).live
    assert max(live.forward) < 64 * 64 * 8 <= live.peak


@dataclasses.dataclass(frozen=True)
class KeepAll(bp.remat.Policy):
    def choose(self, forward, needed, available, steps=1):
        return [v for v in needed if v not in available]


def test_what_is_kept_for_no_width_is_kept_because_the_policy_says_so():
    """cos keeps its operand, of 8 numbers as what it is made of; log that sum, one number of 8."""
    step = lambda c: jnp.log(jnp.sum(jnp.cos(c + 1.0))) * c
    loop = lambda c: jnp.sum(jax.lax.scan(lambda c, _: (step(c), None), c, length=3)[0])
    found = bp.residuals(loop, backward=bp.Backward(residuals=KeepAll()))(jnp.ones(8))
    said = {v.name: v.why for v in found.values if v.fate == "kept"}
    assert said["add"] == "the policy saves it" and said["reduce_sum"] == "narrower than what it is made of"


def test_what_a_function_made_bears_its_name():
    """relu has a derivative of its own, the draw is compiled; neither is told as the call that it is."""
    f = lambda w, key: jnp.sum(jax.nn.relu(2 * w) ** 3 * jax.random.normal(key, w.shape))
    found = bp.residuals(f)(jnp.ones(3), jax.random.key(0))
    assert {v.name for v in found.values} == {"relu", "normal", "gt"}
