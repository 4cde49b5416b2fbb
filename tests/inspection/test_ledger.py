"""The ledger: values, cotangents and their statistics against the gradient, and the page in a browser."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp.inspection.statistics import statistics
from funcbp.learn.plot import traces

DRAW = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(DRAW.standard_normal(shape))
PARAMS = {
    "in": {"kernel": normal(4, 5)},
    "blocks": {"kernel": normal(3, 5, 5), "bias": normal(3, 5)},
    "out": {"kernel": normal(5, 2)},
}
X, Y = normal(6, 4), normal(6, 2)


def layer(h, p):
    with jax.named_scope("layer"):
        return bp.name(jnp.tanh(h @ p["kernel"] + p["bias"][None]), "h"), None


def loss(params, x, y):
    with jax.named_scope("encoder"):
        first = jax.nn.relu(x @ params["in"]["kernel"])
    h, _ = lax.scan(layer, bp.name(first, "first"), params["blocks"])
    h = lax.cond(jnp.sum(h) > -1e9, lambda h: 2 * h, lambda h: jnp.sin(h), h)
    return jnp.mean((h @ params["out"]["kernel"] - y) ** 2)


LINE = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "jax.nn.relu(x @" in text)


@pytest.fixture(scope="module")
def ledger():
    return bp.trace(loss)(PARAMS, X, Y)


def test_inputs_have_their_gradients_by_path(ledger):
    params, x, y = jax.grad(loss, (0, 1, 2))(PARAMS, X, Y)
    for layer_, leaf in (("in", "kernel"), ("blocks", "bias"), ("out", "kernel")):
        np.testing.assert_allclose(ledger[f"{layer_}/{leaf}"].cotangent, params[layer_][leaf], rtol=1e-11)
        np.testing.assert_array_equal(ledger[f"{layer_}/{leaf}"].value, PARAMS[layer_][leaf])
    np.testing.assert_allclose(ledger["x"].cotangent, x, rtol=1e-11)
    np.testing.assert_allclose(ledger["y"].cotangent, y, rtol=1e-11)


def test_values_and_cotangents_of_a_loop_are_stacked(ledger):
    h, hs = np.maximum(X @ PARAMS["in"]["kernel"], 0), []
    for w, b in zip(PARAMS["blocks"]["kernel"], PARAMS["blocks"]["bias"], strict=True):
        h = np.tanh(h @ w + b[None])
        hs.append(h)
    np.testing.assert_allclose(ledger["h"].value, np.stack(hs), rtol=1e-12)
    found = bp.cotangents(loss)(PARAMS, X, Y)[2]
    np.testing.assert_allclose(ledger["h"].cotangent, found["h"], rtol=1e-12)
    assert ledger["h"].index.count(".") == 1


def test_the_output_of_a_function_with_its_own_derivative_is_its_value(ledger):
    np.testing.assert_allclose(ledger["first"].value, np.maximum(X @ PARAMS["in"]["kernel"], 0))
    silu = lambda x: jnp.sum(jax.nn.softplus(x) * 2)
    row = bp.trace(silu)(X).rows[-4]
    np.testing.assert_allclose(row.value, np.log1p(np.exp(X)), rtol=1e-12)


def test_a_function_with_a_tangent_rule_of_its_own_is_one_row_with_its_name():
    through = jax.custom_jvp(lambda x: jnp.round(x))
    through.defjvp(lambda primals, tangents: (jnp.round(*primals), *tangents))
    t = bp.trace(lambda x: jnp.sum(bp.ops.logistic(x) * jax.nn.softplus(x)) + jnp.sum(through(x / 2)))(100 * X)
    logistic, softplus, product, *others = [r for r in t if r.kind != "no derivative"]
    assert (logistic.operation, softplus.operation, product.operation) == ("logistic", "logaddexp", "mul")
    assert [r.operation for r in others] == ["reduce_sum", "div", "reduce_sum", "add"]
    assert logistic.inputs == t["x"].outputs and softplus.inputs[0] == t["x"].outputs[0]
    assert product.inputs == logistic.outputs + softplus.outputs and logistic.of_value.saturated > 0.9
    (half,) = (r for r in t if r.primitive == "div")
    np.testing.assert_array_equal(half.value, 50 * X)  # the value, and not what is straight through


def test_rows_know_their_line_scope_rule_and_number(ledger):
    rows = list(ledger.at(LINE))
    assert rows == list(ledger.at(f"test_ledger.py:{LINE}"))
    assert rows[0].primitive == "dot_general"
    assert all(r.scope == "encoder" and r.kind == "hand-written" for r in rows)
    assert rows[0].rule == "dot_general_bwd"
    assert ledger[int(rows[0].index)] is rows[0]
    inner = [r for r in ledger if r.primitive == "tanh"]
    assert [r.scope for r in inner] == ["layer"]
    assert [r.primitive for r in ledger.at(path="blocks")] == ["scan"]  # and nothing inside, where numbers begin anew


def test_the_branch_that_was_not_taken_says_so(ledger):
    taken = {r.primitive: r.taken for r in ledger if r.index.count(".") == 2}
    assert taken == {"sin": False, "mul": True}


def test_an_unknown_name_or_line_lists_those_there_are(ledger):
    with pytest.raises(KeyError, match=r"no name or path 'kernel'; there are 'blocks/bias', 'blocks/kernel', 'in/ker"):
        ledger["kernel"]
    with pytest.raises(KeyError, match=rf"no equation of line 1; there are 'test_ledger.py:{LINE}:"):
        ledger.at(1)
    with pytest.raises(TypeError, match="inside a jitted"):
        jax.jit(lambda p: bp.trace(loss)(p, X, Y).value)(PARAMS)


def test_statistics():
    s = statistics(np.array([[3.0, 4.0], [0.0, np.nan]]))
    assert (s.mean, s.min, s.max, s.zeros, s.nonfinite) == (7 / 3, 0.0, 4.0, 0.25, 0.25)
    assert statistics(np.array([3.0, 4.0])).norm == 5.0
    assert statistics(np.array([0.999, 0.5, -1.0]), "tanh").saturated == pytest.approx(2 / 3)
    assert statistics(np.array([0.999, 0.5, 0.001]), "logistic").saturated == pytest.approx(2 / 3)
    assert statistics(np.zeros((0, 3))).nonfinite == 0
    assert statistics(np.array([3 + 4j])).max == 5.0


def test_replaced_rules_are_marked():
    options = bp.credit.straight_through(lax.round_p)
    t = bp.trace(lambda x: jnp.sum(jnp.round(x)), backward=options)(X)
    assert [(r.primitive, r.kind) for r in t] == [("round", "replaced"), ("reduce_sum", "hand-written")]


def every(w, x, y):
    """Comparisons, integers, a key, a dead end, calls and loops that no differentiated value enters."""
    keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    h = jnp.where(keep & (x > 0), x * w, jnp.zeros(()))
    dead = jnp.exp(w)
    count = lax.scan(lambda c, i: (c + i, 2 * c), 0, jnp.arange(3))[1]
    best = lax.cond(y == 1, lambda: count.sum(), lambda: 7)
    return jnp.sum(h) * (y == jnp.argmax(h) + 0 * best).astype(h.dtype), dead


@pytest.mark.parametrize("inside", [False, True])
def test_every_equation_has_a_row(inside):
    x, y = jnp.array([1.0, -2.0, 3.0]), jnp.array(1)
    f = lambda w, x: every(w, x, y)[0]
    if inside:
        f = lambda w, x: lax.scan(lambda c, _: (c + every(w, x, y)[0], None), 0.0, None, 2)[0]
    t = bp.trace(f)(2.0, x)
    found = {}
    for r in t:
        found.setdefault(r.primitive, []).append(r)
    times = (2,) if inside else ()
    shaped = lambda v: np.broadcast_to(v, times + np.shape(v))
    np.testing.assert_array_equal(found["gt"][0].value, shaped(np.asarray(x > 0)))
    assert found["gt"][0].kind == "no derivative" and found["gt"][0].cotangent is None
    np.testing.assert_array_equal(found["exp"][0].value, shaped(np.exp(2.0)))
    assert not found["exp"][0].cotangent.any() and found["exp"][0].kind == "hand-written"
    assert {"argmax", "eq", "and", "random_bits", "iota"} <= set(found)
    counting = next(r for r in found["scan"] if r.kind == "no derivative")
    np.testing.assert_array_equal(counting.values[1], shaped(np.array([0, 0, 2])))
    (step,) = (r for r in found["add"] if r.program == tuple(map(int, counting.index.split("."))))
    np.testing.assert_array_equal(step.value, shaped(np.array([0, 1, 3])))
    (branches,) = found["cond"]
    assert np.all(branches.value == 2)
    staged = {e.primitive.name for e in jax.make_jaxpr(f)(2.0, x).eqns}
    assert staged - {"jit", "pjit", "convert_element_type"} <= set(found)
    assert str(t).count("no derivative") == sum(r.kind == "no derivative" for r in t) > 10
    assert t.to_html().count('"kind":"no derivative"') == str(t).count("no derivative")
    np.testing.assert_allclose(t["w"].cotangent, jax.grad(f)(2.0, x))


def test_outputs_without_derivative_leave_the_others_their_cotangents():
    """A loop's first carry is a key or a counter; what is shown is the value that a cotangent comes to."""

    def loss(w):
        def body(carry, _):
            key, i, h = carry
            return (jax.random.split(key)[0], i + 1, h * w + i), None

        return lax.scan(body, (jax.random.key(3), 0, 1.0), None, 4)[0][2] ** 2

    t = bp.trace(loss)(0.5)
    (loop,) = (r for r in t if r.primitive == "scan")
    assert loop.value == np.sqrt(t.value) and loop.cotangent == 2 * loop.value
    assert loop.values[1] == 4 and loop.shape == "key<fry>[], int64[], float64[]"
    keys = jax.random.key(3)
    for _ in range(4):
        keys = jax.random.split(keys)[0]
    assert loop.values[0] == keys
    (split,) = (r for r in t if r.primitive == "random_split")
    assert split.value.shape == (4, 2) and split.of_value is None and split.kind == "no derivative"


def test_branches_inside_branches_and_loops_say_when_they_ran():
    inner = lambda c: lax.cond(c > 1, jnp.sin, jnp.tanh, c)
    step = lambda c, a: (lax.cond(a > 0, inner, lambda c: c * 3, c), None)
    xs = jnp.array([1.0, -1.0, 1.0, -1.0])
    t = bp.trace(lambda x: lax.scan(step, x, xs)[0])(0.5)
    of = {r.primitive: r for r in t}
    ran = {"tanh": [True, False, False, False], "sin": [False, False, True, False], "mul": [False, True, False, True]}
    assert {p: list(of[p].steps) for p in ran} == ran
    np.testing.assert_allclose(of["mul"].of_value.min, 3 * np.tanh(0.5))  # not the zero of other steps
    assert of["tanh"].of_value.zeros == 0 and "taken 2 of 4" in str(t) and "taken 2 of 4 times" in t.to_html()
    alone = {r.primitive: r.taken for r in bp.trace(lambda x: lax.cond(x > 0, inner, lambda c: c * 3, x))(0.5)}
    assert (alone["sin"], alone["tanh"], alone["mul"]) == (False, True, False)


def in_scan(w, x):
    return jnp.sum(bp.scan(lambda c, w: (bp.name(jnp.tanh(c @ w), "h"), None), x, w, snapshots=2)[0])


def in_while(w, x):
    step = lambda c: (bp.name(jnp.tanh(c[0] @ w[0]), "h"), c[1] + 1)
    return jnp.sum(bp.while_loop(lambda c: c[1] < 3, step, (x, 0), max_steps=4, snapshots=2)[0])


@pytest.mark.parametrize("f, length", [(in_scan, 3), (in_while, 4)])
def test_loops_with_snapshots_are_shown_with_their_inside(f, length):
    w, x = jnp.asarray(0.3 * np.random.default_rng(1).standard_normal((1, 2, 2)).repeat(3, 0)), jnp.ones(2)
    hs, ct, cts = [x], np.ones(2), []
    for _ in range(3):
        hs.append(np.tanh(hs[-1] @ w[0]))
    for h in hs[:0:-1]:
        cts.insert(0, ct)
        ct = (ct * (1 - h**2)) @ w[0].T
    unused = np.zeros((length - 3, 2))
    t = bp.trace(f)(w, x)
    np.testing.assert_allclose(t["h"].value, np.concatenate([hs[1:], unused]), rtol=1e-12)
    np.testing.assert_allclose(t["h"].cotangent, np.concatenate([cts, unused]), rtol=1e-12)
    inside = [r for r in t if r.depth]
    assert [r.primitive for r in inside if r.kind != "no derivative"][-3:] == ["dot_general", "tanh", "name"]
    assert all(f'"index":"{r.index}","op":"{r.primitive}"' in t.to_html() for r in inside)
    np.testing.assert_array_equal(bp.cotangents(f)(w, x)[2]["h"], t["h"].cotangent)
    (found,) = (v for v in bp.residuals(f)(w, x).values if v.name == "h")
    (around,) = found.inside
    assert (found.fate, found.steps) == ("recomputed", length) and f"{length} steps with snapshots=2" in around
    assert traces._layers(t)[0][0] == ("w[0]" if f is in_scan else "w")  # gone along, or a constant


def test_equations_inside_a_while_are_listed_without_numbers():
    def loss(x):
        return x * lax.while_loop(lambda i: i < 5, lambda i: lax.fori_loop(0, 2, lambda _, k: k + 1, jnp.abs(i)), 0)

    t = bp.trace(loss)(2.0)
    assert [(r.index, r.primitive) for r in t][:5] == [
        ("0", "while"), ("0.0.0", "lt"), ("0.1.0", "abs"), ("0.1.1", "scan"), ("0.1.1.0", "add")
    ]  # fmt: skip
    assert t[0].value == 6 and t["0.1.0"].value is None and t["0.1.0"].shape == "int64[]"
    assert all(r.kind == "no derivative" and "test_ledger.py" in r.line for r in t if r.index.startswith("0"))
    assert t.to_html() and re.search(r"\n0\.1\.0 +abs +i64\[\] +…", str(t))


def test_what_jax_calls_for_the_user_bears_the_users_line():
    x = jnp.array([0.5, 2.0])
    jnp.where(x > 1, x, 2.0)

    def loss(x):
        y = lax.map(
            lambda a: jnp.where(a > 1, a, jnp.sin(a)),  # the line wanted
            x,
        )
        return lax.switch(1, [jnp.sum, jnp.prod], y)

    t = bp.trace(loss)(x)
    inside = {r.primitive: Path(__file__).read_text().splitlines()[r.number - 1] for r in t}
    assert all("the line wanted" in inside[p] for p in ("sin", "gt", "select_n"))
    assert "lax.switch" in inside["reduce_prod"]
    found = bp.find_nan(lambda x: jnp.sum(lax.map(jnp.sqrt, x)))(0 * x)
    assert "test_what_jax_calls_for_the_user" in found.line


@pytest.mark.parametrize("f, x", [
    (lambda x: x.sum() * lax.scan(lambda c, a: (c + 1, c), 0, x[:0])[0].astype(x.dtype), X),
    (lambda x: jnp.sum(jnp.abs(lax.complex(x, 2 * x))), X),
    (lambda z: jnp.real(z * jnp.conj(z)), jnp.array(1 + 2j)),
    (lambda x: jnp.sum(x) + jnp.sum(jnp.sin(x[:0])), X.astype(jnp.bfloat16)),
], ids=["an integer loop of length 0", "complex inside", "complex input", "bfloat16 and size 0"])  # fmt: skip
def test_unusual_values_are_shown(f, x):
    t = bp.trace(f)(x)
    assert str(t) and t._repr_html_() and t.to_dot() and t.to_mermaid()
    np.testing.assert_allclose(t.inputs[0].cotangent, jax.grad(f)(x))


def test_rows_by_number(ledger):
    inside = next(r for r in ledger if r.depth)
    assert ledger[0] is ledger.rows[0] and ledger[inside.index] is inside
    with pytest.raises(KeyError, match=r"no equation 99; the last is \d+"):
        ledger[99]


def test_the_table(ledger):
    text = str(ledger)
    head, rows = text.split("-" * 100 + "\n")
    assert len(rows.splitlines()) == 6 + len(ledger) and max(map(len, text.splitlines())) <= 100
    assert re.search(rf"\n0 +dot_general +f64\[6,5\] .* …st_ledger.py:{LINE}\n", rows)
    assert "not taken" in rows
    norm, ct = np.linalg.norm(ledger["h"].value), np.linalg.norm(ledger["h"].cotangent)
    assert re.search(rf"\n  layer +5 +{norm:.4g} +{ct:.4g}\n", head)


# --- pictures ---------------------------------------------------------------------------------------------------------


def micro(a, b, c):
    return jnp.tanh(a * b + c) * a


@pytest.fixture(scope="module")
def small():
    return bp.trace(micro)(2.0, -3.0, 6.5)


def test_the_graph_has_the_local_derivatives(small):
    dot = small.to_dot()
    assert 'n0 [label="{a|value 2|grad' in dot
    tanh = float(1 - np.tanh(0.5) ** 2)
    for edge in ('n0 -> n3 [label="-3"]', 'n1 -> n3 [label="2"]', f'n4 -> n5 [label="{tanh:.4g}"]'):
        assert edge in dot
    assert dot.count("->") == small.to_mermaid().count("-->") == 7
    assert small.to_mermaid().startswith("flowchart LR\n")


def test_a_cast_that_changes_nothing_is_no_row():
    def f(w, x):
        return jnp.sum(jnp.asarray(w, jnp.float32) * x).astype(jnp.float16)

    t = bp.trace(f)(jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float32))
    assert [r.primitive for r in t] == ["mul", "reduce_sum", "convert_element_type"]


def test_a_long_path_keeps_its_beginning_and_its_end():
    params = {"Block_0": {"MultiHeadDotProductAttention_0": {"query": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}}}
    t = bp.trace(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)))(params)
    assert "B…_0/M…_0/query/kernel" in str(t) and "B…k_0/M…n_0/query/bias" in str(t)
