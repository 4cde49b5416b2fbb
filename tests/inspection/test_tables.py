"""What the looking functions print fits a hundred columns, however long the names."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp
from funcbp.inspection.render.columns import columns, shortened
from funcbp.testing import LeafReport

LONG = "a_transformer_block_with_a_long_name"
PARAMS = {f"{LONG}_{i}": {"attention_of_many_heads": {"projection_of_queries": jnp.eye(2) + i}} for i in range(2)}


def a_model_whose_author_wrote_all_words_out(params, x):
    for i, block in enumerate(params.values()):
        with jax.named_scope(f"{LONG}_{i}"), jax.named_scope("attention_of_many_heads"):
            x = bp.name(x @ block["attention_of_many_heads"]["projection_of_queries"], f"{LONG}_{i}/net")
    x = jnp.broadcast_to(jnp.exp(lax.scan(lambda c, _: (jnp.tanh(c), None), x, None, length=3)[0]), (1000, 2, 2))
    return jnp.sum(x * jnp.arange(1000.0)[:, None, None])


def checked(f):
    leaf = LeafReport(f"{LONG}_0/projection_of_queries/kernel", (768, 3072), "float32", "not informative", order=2,
                      error=-2e-10, reference_error=2e-10, worst=(767, 3071), against_jax=2e-10, dot=2e-10,
                      own_ulps=2e10, jax_ulps=2e10)  # fmt: skip
    return lambda *args: bp.testing.Report(f.__name__, (leaf,))


@pytest.mark.parametrize("look", [bp.trace, bp.precision, bp.summary, bp.residuals, checked])
def test_a_hundred_columns(look):
    filled = 80 if look is bp.summary else 90  # it names operations and lines, not parameters and scopes
    text = str(look(a_model_whose_author_wrote_all_words_out)(PARAMS, 0.3 + jnp.arange(4.0).reshape(2, 2) / 10))
    assert filled < max(map(len, text.splitlines())) <= 100


def test_names_are_shortened_and_numbers_are_not():
    rows = [("name", "bytes", "fate"), ("begins" + 100 * "-" + "ends", "1,234,567", "kept"), ("x", "8", "-")]
    head, row, last = columns(rows, names=[0], right=[1])
    assert len(row) == 100 and row.startswith("begins") and row.endswith("ends  1,234,567  kept") and "-…-" in row
    assert (head.index("bytes") + len("bytes"), last.rindex("8") + 1) == (row.index("kept") - 2,) * 2


def test_a_column_that_says_nothing_makes_room_for_names():
    rows = [("name", "bytes", "own", "again"), ("n" * 88, "1,234", "-", "-"), ("x", "8", "-", "-")]
    assert columns(rows, names=[0], right=[1, 2])[1] == "n" * 88 + "  1,234"
    assert columns([("name", "own"), ("x", "-")], names=[0])[0] == "name  own"  # there is room


def test_what_tells_two_paths_apart_is_not_cut():
    paths = [f"params/ResBlock_{i}/BatchNorm_{j}/scale" for i in range(2) for j in range(2)]
    cut = [shortened(path, 24) for path in paths]
    assert len(set(cut)) == 4 and {len(c) for c in cut} == {24}
    assert all(c.count("/") == 3 and c.endswith("/scale") for c in cut)


def test_nothing_is_said_by_halves_of_a_row():
    """Of what is to be said behind a line that is full, what matters least is left out."""
    scale = jnp.zeros((8, 8, 8, 8))
    text = str(bp.trace(lambda w, x: jnp.sum(bp.name(w * 0.0 * x, "a name that takes its room") ** 2))(scale, scale))
    assert max(map(len, text.splitlines())) <= 100 and "vanishing" in text and "…\n" not in text


def test_a_loop_is_shown_by_the_output_that_a_cotangent_comes_back_to():
    """The first output is the last state, which nothing reads; the gradient is not lost in the loop."""
    loop = lambda w: jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c * w), c), w, None, length=3)[1])
    (row,) = (r for r in bp.trace(loop)(jnp.ones(2)) if r.primitive == "scan")
    assert row.value.shape == (3, 2) and (row.cotangent == 1).all()
