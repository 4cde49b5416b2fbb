"""The pages of a trace: what is nested and marked, and the pages themselves in a browser."""

import html.parser
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.cli import main
from funcbp.inspection.outline import Group, outline
from funcbp.inspection.rows import Row
from funcbp.learn.reproduce import worked_example

from ..browser import CHROMIUM, Browser


def net(params, x):
    with jax.named_scope("net"):
        for name in ("block_0", "block_1"):
            with jax.named_scope(name):
                p = params[name]
                x = bp.name(jnp.tanh(x @ p["kernel"] + p["bias"][None]), name)
    x = lax.scan(lambda h, _: (bp.name(jnp.sin(h), "s"), None), x, None, 3)[0]
    unused = jnp.sum(jnp.exp(x) * 2)
    far = jnp.sum(jnp.tanh(1e4 * x))
    shift = lax.stop_gradient(jnp.max(x))
    return jnp.sum((x - shift) ** 2) + far, unused


@pytest.fixture(scope="module")
def trace():
    draw = np.random.default_rng(0)
    layer = lambda: {"kernel": jnp.asarray(draw.standard_normal((2, 2))), "bias": jnp.zeros(2)}
    return bp.trace(net, has_aux=True)({"block_0": layer(), "block_1": layer()}, jnp.ones((3, 2)))


def test_rows_are_nested_as_the_model_is(trace):
    shown = lambda item: item.title if isinstance(item, Group) else item.name or item.primitive
    lines = outline(trace.inputs, trace.rows).lines
    titles = [(level, shown(item)) for item, level, _ in lines]
    assert titles[:10] == [
        (0, "inputs"), (1, "block_0"), (2, "block_0/bias"), (2, "block_0/kernel"), (1, "block_1"), (2, "block_1/bias"),
        (2, "block_1/kernel"), (1, "x"), (0, "net"), (1, "block_0")
    ]  # fmt: skip
    at = titles.index((0, "inside scan"))
    assert titles[at - 1 : at + 4] == [(0, "scan"), (0, "inside scan"), (1, "sin"), (1, "s"), (0, "exp")]
    block = next(
        item for item, _, _ in lines if shown(item) == "block_1" and isinstance(item, Group) and len(item.rows) > 2
    )
    assert block.last is trace["block_1"]
    assert [lines[end - 1].item for _, _, end in lines] and lines[0].end == 8


def test_what_is_dead_is_not_what_vanishes(trace):
    """`exp(x) * 2` is for nothing, what is far out in `tanh` vanishes, what `stop_gradient` reads does neither."""
    found = outline(trace.inputs, trace.rows).marks
    marks = {(r.primitive, r.place.split(":")[1]): {*found[id(r)][0], *found[id(r)][1]} for r in trace}
    of = lambda primitive: [m for (p, _), m in marks.items() if p == primitive]
    assert of("exp") == [{"dead"}] and [r.reached for r in trace if r.primitive == "reduce_max"] == [False]
    assert of("reduce_max") == [set()]
    dead = [r.primitive for r in trace if r.dead]
    assert dead == ["exp", "mul", "reduce_sum"] and not any(r.cotangent.any() for r in trace if r.dead)
    assert {"saturated"} in of("tanh")
    rows = [Row(str(i), "f", values=(np.float64(v),), cotangents=(np.float64(c),)) for i, (v, c) in enumerate(
        [(1.0, 1.0), (2e3, 2.0), (1.0, 1e-4), (1.0, 0.0), (np.inf, 1.0), (1.0, np.nan), (1.0, 1.0)]
    )]  # fmt: skip
    found = outline([], rows)
    assert [found.marks[id(r)] for r in rows] == [
        ([], []), (["large"], []), ([], ["vanishing"]), ([], ["vanishing"]), (["not finite"], []), ([], ["not finite"]),
        ([], [])
    ]  # fmt: skip
    assert found.counts(rows) == {"not finite": 2, "vanishing": 2, "large": 1}


def test_a_loops_unused_output_is_dead_inside():
    def f(x):
        (h, _), ys = lax.scan(lambda c, _: ((c[0] * x, jnp.cos(c[1])), jnp.exp(c[0])), (x, x), None, 3)
        return h + 0 * jnp.sum(x), ys

    dead = {r.primitive: r.dead for r in bp.trace(f, has_aux=True)(2.0) if r.depth}
    assert dead == {"mul": False, "cos": True, "exp": True}


def test_what_several_devices_do_is_said():
    rows = [Row("0", "shard_map", devices=8), Row("0.0", "sin", program=(0,)), Row("1", "mul")]
    titles = [item.title for item, _, _ in outline([], rows).lines if isinstance(item, Group)]
    assert titles == ["inside shard_map, on 8 devices"]


class Checker(html.parser.HTMLParser):
    """Tags that close, and no reference to anything outside."""

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.data = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag == "meta" else [tag]
        self.outside += [v for k, v in attrs if k in ("src", "href")] + ([tag] if tag == "link" else [])

    def handle_data(self, data):
        self.data = data if self.open[-1:] == ["script"] and data.startswith("{") else self.data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("made", ["whole", "part"])
def test_the_page_is_whole_and_alone(trace, made):
    page = trace.to_html() if made == "whole" else trace._repr_html_()
    checker = Checker()
    checker.feed(page)
    assert [tag for tag in checker.open if tag not in ("html", "body")] == [] and checker.outside == []
    lines = json.loads(checker.data)["lines"]
    assert sum("group" not in line for line in lines) == len(trace.inputs) + len(trace)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: the pages are not looked at in a browser")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


in_browser = pytest.mark.slow


@pytest.fixture(scope="module")
def page(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "page.html"
    path.write_text(trace.to_html())
    return path


texts = lambda browser: browser.run("[...document.querySelectorAll('.line .op')].map(e => e.textContent)")
chosen = lambda browser: browser.run("document.querySelector('[aria-selected=true] .op')?.textContent")


@in_browser
def test_search_fold_and_links(browser, page):
    browser.open(page)
    assert texts(browser)[:3] == ["inputs", "block_0", "block_0/bias"]
    browser.press("/", *"tanh")
    assert texts(browser) == ["net", "block_0", "tanh", "block_1", "tanh", "tanh"]
    assert browser.run("document.querySelector('.found').textContent").startswith("3 of ")
    browser.press("Enter")
    assert chosen(browser) == "tanh" and browser.run("location.hash") != ""
    browser.press("[")  # to what made it
    assert chosen(browser) == "add" and "read by" in browser.run("document.querySelector('.detail').textContent")
    browser.click(".detail dd a:last-of-type")
    assert chosen(browser) in ("dot_general", "tanh", "broadcast_in_dim")
    browser.press("c")
    assert texts(browser)[:3] == ["inputs", "net", "scan"]
    browser.press("Home", "ArrowDown", "ArrowRight")
    assert texts(browser)[:5] == ["inputs", "net", "block_0", "block_1", "scan"]
    browser.press("ArrowLeft")
    assert texts(browser)[:3] == ["inputs", "net", "scan"]
    browser.click(".line:nth-child(1)")
    assert texts(browser)[:2] == ["inputs", "block_0"]
    browser.click("[data-mark=dead]")
    assert texts(browser) == ["exp", "mul", "reduce_sum"]
    assert browser.run("document.querySelectorAll('.line.off').length") == 3
    browser.press("Escape")
    browser.click(".map")
    assert chosen(browser) is not None
    assert browser.problems == []


@in_browser
def test_an_address_names_a_line(browser, page, trace):
    index = next(r.index for r in trace if r.depth)
    browser.open(page, wide=390, dark=True, at=f"#{index}")
    assert chosen(browser) == "sin"
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("getComputedStyle(document.querySelector('.bp')).backgroundColor") == "rgb(21, 24, 30)"
    assert browser.problems == []


@in_browser
def test_ten_thousand_rows(browser, tmp_path):
    rows = [
        Row(str(i), "tanh", "hand-written", "tanh_bwd", scope=f"block_{i // 100}/part_{i // 10 % 10}",
            values=(np.float64(1 + i),), cotangents=(np.float64(i),), outputs=(i,), inputs=(i - 1,))
        for i in range(10_000)
    ]  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(bp.inspection.ledger.Trace(1.0, [], rows, (9999,)).to_html())
    work = browser.work(lambda: browser.open(path))
    assert 0 < max(work.values()) < 10 * len(rows)  # a few looks at each row, never at each pair of them
    assert len(texts(browser)) < 100
    browser.run("document.querySelector('.list').focus()")
    browser.press("e", "End")
    assert chosen(browser) == "tanh" and "9999" in browser.run("document.querySelector('.detail').textContent")
    assert len(texts(browser)) < 100
    browser.press("[")
    assert "9998 tanh" in browser.run("document.querySelector('.detail b').textContent")
    frame = "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
    scroll = f"(async () => {{ for (const top of [0, 5e3, 1e5]) {{ list.scrollTop = top; {frame} }} }})()"
    seen = browser.run("Math.ceil(document.querySelector('.list').clientHeight / 24)")
    browser.run(f"window.list = document.querySelector('.list'); {scroll}")
    work = browser.work(lambda: browser.run(scroll))  # three frames, each of as much as is seen, whatever there is
    assert work.get("look", 0) == 0 < work["draw"] <= 4 and work["shown"] <= 3 * (seen + 22)
    assert max(work.values()) < 3 * 20 * (seen + 22) < 9999
    assert browser.problems == []


# --- a network that plays ---------------------------------------------------------------------------------------------


def many_operations(x, y):
    """Each operation that the page can compute, on numbers that all of them take."""
    j, near = jnp, 0.3 * x
    of_one = [
        j.exp(-x), j.exp2(x), j.expm1(x), j.log(x), j.log1p(x), j.tanh(x), lax.logistic(x), j.sin(x), j.cos(x),
        j.tan(x), j.arcsin(near), j.arccos(near), j.arctan(x), j.sinh(x), j.cosh(x), j.arcsinh(x), j.arctanh(near),
        j.sqrt(x), lax.rsqrt(x), j.cbrt(x), lax.square(x), j.abs(x - 1), x * lax.sign(x), lax.floor(x) + lax.ceil(x),
        x**3, x**-2, jax.nn.relu(x - 1), bp.ops.swish(x), bp.ops.softplus(x), bp.ops.logistic(x),
    ]  # fmt: skip
    of_two = [x + y, x - y, x * y, x / y, x**y, j.arctan2(x, y), j.maximum(x, y), j.minimum(x, y), j.logaddexp(x, y)]
    grid = x[:, None] * y[None, :]
    moved = [
        grid.T[::-1, :1].ravel(),
        lax.squeeze(grid[:1], (0,)),
        grid @ y,
        grid.max(0) - grid.min(1),
        lax.stop_gradient(x),
    ]
    chosen = [j.where((x > 1) & ~(y < 1), x * x, y), j.where(j.isfinite(x) | (x == y), x, 1.0)]
    return (
        sum(j.sum(v) for v in [*of_one, *of_two, *moved, *chosen])
        + bp.ops.squared_error(x, y)
        + lax.reduce_max(x, (0,))
    )


def attention(w, x):
    h = jax.nn.relu(bp.name(x @ w["in"], "h"))
    return jnp.sum(jax.nn.softmax(h @ h.T) @ h * w["out"][None])


SMALL = {"in": jnp.array([[0.5, -1.0], [2.0, 0.3]]), "out": jnp.array([1.0, -2.0])}


@in_browser
@pytest.mark.parametrize(
    "f, args",
    [
        (many_operations, (jnp.array([0.7, 1.6]), jnp.array([1.6, 0.4]))),
        (attention, (SMALL, jnp.array([[1.0, 2], [0.5, -1]]))),
    ],
    ids=["many operations", "attention"],
)
def test_the_page_computes_what_the_trace_has(browser, tmp_path, f, args, monkeypatch):
    monkeypatch.setattr("funcbp.inspection.render.play.LARGEST", 1000)
    path = tmp_path / "play.html"
    bp.trace(f)(*args).play(path)
    browser.open(path)
    assert browser.run("document.querySelector('.warning')?.textContent") is None
    for moved in (0.0, 0.13):  # the recorded numbers, and others
        args = jax.tree.map(lambda a, moved=moved: a + moved, args)
        again = bp.trace(f)(*args)
        outer = [*again.inputs, *(r for r in again if not r.program)]
        leaves = [np.ravel(r.value).tolist() for r in again.inputs]
        found = browser.run(f"bpPlay.compute({json.dumps(leaves)})")
        for r, value, ct in zip(outer, found["values"], found["cts"], strict=True):
            if np.isinf(r.value).any():
                continue  # JSON has none
            np.testing.assert_allclose(value, np.ravel(r.value), rtol=1e-6, atol=1e-12, err_msg=str(r))
            if r.kind != "no derivative" and r.reached:
                np.testing.assert_allclose(ct, np.ravel(r.cotangent), rtol=1e-6, atol=1e-12, err_msg=str(r))
    assert browser.problems == []


@in_browser
def test_the_worked_example_learns(browser, tmp_path):
    """The error at first and after one update, and that it falls; the sliders, and the steps."""
    path = tmp_path / "play.html"
    assert main(["play", "worked-example", "--out", str(path)]) == 0
    browser.open(path, wide=390)
    error = lambda: browser.run("bpPlay.state.values.at(-1)[0]")
    phase = lambda: browser.run("document.querySelector('.phases [aria-current=step]').textContent")
    assert error() == pytest.approx(0.298371109, abs=1e-9)
    steps = browser.run("bpPlay.steps.length")
    seen = [phase()]
    for _ in range(steps - 1):
        browser.press("ArrowRight")
        seen.append(phase())
    assert list(dict.fromkeys(seen)) == ["forward", "error", "backward", "update"]
    assert "0.3589" in browser.run("document.querySelector('.says').textContent")  # w5, after its update
    assert browser.run("document.querySelectorAll('.box .ct').length") > 20
    browser.press("ArrowRight")
    with jax.enable_x64(True):
        once = float(worked_example.error(worked_example.at_once(worked_example.start()[0])))
    assert phase() == "forward" and error() == pytest.approx(once, abs=1e-12)
    browser.click(".many")
    assert error() < 0.03 and "101 updates" in browser.run("document.querySelector('.updates').textContent")
    browser.click(".reset")
    slide = "s.value = 1; s.dispatchEvent(new Event('input'))"
    browser.run(f"(s => {{ {slide} }})(document.querySelector('[data-id] input'))")
    assert error() != pytest.approx(0.298371109, abs=1e-4)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.problems == []


@in_browser
def test_what_the_page_cannot_compute_is_played_as_recorded(browser, tmp_path):
    path = tmp_path / "play.html"
    replaced = bp.credit.straight_through(lax.round_p)
    bp.trace(lambda w, x: jnp.sum(jnp.round(jnp.cumsum(w * x))), backward=replaced)(jnp.array([1.0, 2]), 3.0).play(path)
    browser.open(path)
    said = browser.run("document.querySelector('.warning').textContent")
    assert (
        "cannot compute cumsum (its rule is cumsum_bwd), round (its rule is replaced)" in said
        and "sliders are off" in said
    )
    assert browser.run("[...document.querySelectorAll('input')].every(e => e.disabled)")
    for _ in range(browser.run("bpPlay.steps.length")):
        browser.press("ArrowRight")
    assert browser.run("bpPlay.at") == 0 and browser.problems == []


def test_what_cannot_be_played_is_refused(tmp_path):
    t = bp.trace(lambda w, x: jnp.sum(jnp.tanh(x @ w)))(jnp.ones((20, 20)), jnp.ones((3, 20)))
    with pytest.raises(ValueError, match=r"shows up to 256 numbers, and this function has 581\. Trace a smaller"):
        t.play(tmp_path / "play.html")
    with pytest.raises(KeyError, match="no input 'v' to update; there are 'w', 'x'"):
        bp.trace(lambda w, x: w * x)(1.0, 2.0).play(tmp_path / "play.html", update=["v"])
    assert main(["play", "perpetual-motion"]) == 2


# --- a model without scopes -------------------------------------------------------------------------------------------


def dense(w, x):
    return jnp.tanh(x @ w)


def block(w, x, dense=dense):
    return x + dense(w, dense(w, x))


def stacked(w, x, dense=dense):
    for _ in range(2):
        x = block(w, x, dense)
    return dense(w, x)


def groups(f):
    lines = bp.trace(f)(jnp.eye(2), jnp.ones((1, 2)))
    lines = outline([], lines.rows).lines
    return [f"{'  ' * level}{item.title}: {len(item.rows)}" for item, level, _ in lines if isinstance(item, Group)]


CALLS = [
    *(line for i in range(2) for line in (f"  block {i}: 5", "    dense 0: 2", "    dense 1: 2")),
    "  dense: 2",
]


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda w, x: jnp.sum(stacked(w, x)), ["stacked: 12", *CALLS]),
        (lambda w, x: jnp.sum(jax.vmap(lambda x: stacked(w, x))(x)), ["stacked: 12", *CALLS]),
        (lambda w, x: jnp.sum(jax.jit(stacked)(w, x)), ["stacked: 12", *CALLS]),
        (lambda w, x: jnp.sum(stacked(w, x, jax.jit(dense))), ["stacked: 12", *CALLS]),
        (
            lambda w, x: jnp.sum(lax.scan(lambda x, _: (block(w, x), None), x, None, 3)[0]),
            ["inside scan: 5", "  dense 0: 2", "  dense 1: 2"],
        ),
    ],
    ids=["plain", "mapped", "jitted", "jitted inside", "loop"],
)
def test_without_scopes_functions_are_the_groups(f, expected):
    assert groups(f) == expected


def test_scopes_come_before_functions():
    def f(w, x):
        with jax.named_scope("all"):
            return jnp.sum(block(w, x))

    assert groups(f) == ["all: 6"]
