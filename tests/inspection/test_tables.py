"""What the looking functions print fits a hundred columns, however long the names."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import funcbp as bp
from funcbp.inspection.render.columns import columns
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
