"""In which order of axes what was looked up is written back."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp

rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
columns = jnp.asarray(rng.integers(-9, 140, 60))  # some of them count from the end, some are there twice
there = jnp.where(columns < 0, columns + 128, columns)
chosen = lambda mode: jnp.minimum(there, 127) if mode == "clip" else there  # one that is not there is a row of zeros
code = lambda mode: (jnp.arange(128)[:, None] == chosen(mode)[None]).astype(float)

LOOKED_UP = {
    "columns": ((96, 128), lambda x, mode: x.at[:, columns].get(mode=mode), "bn,nk->bk"),
    "channels of images": ((8, 4, 4, 128), lambda x, mode: x.at[..., columns].get(mode=mode), "bhwn,nk->bhwk"),
    "an axis before a short one": ((96, 128, 2), lambda x, mode: x.at[:, columns].get(mode=mode), "bnc,nk->bkc"),
    "by a matrix": (
        (96, 128),
        lambda x, mode: x.at[:, columns.reshape(5, 12)].get(mode=mode).reshape(96, 60),
        "bn,nk->bk",
    ),
    "mapped": ((96, 128), lambda x, mode: jax.vmap(lambda r: r.at[columns].get(mode=mode))(x), "bn,nk->bk"),
}


def scatters(f, *args):
    eqns = jax.make_jaxpr(f)(*args).eqns
    return [e.params["dimension_numbers"] for e in eqns if e.primitive.name == "scatter-add"]


@pytest.mark.parametrize("mode", ["clip", "fill"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", LOOKED_UP)
def test_columns_that_were_looked_up_are_written_back_as_rows(name, dtype, mode):
    shape, f, product = LOOKED_UP[name]
    x = normal(*shape).astype(dtype)
    ct = jnp.round(normal(*f(x, mode).shape) * 4).astype(dtype)  # numbers that bfloat16 has
    back = lambda ct: bp.vjp(lambda x: f(x, mode), x)[1](ct)[0]
    got = jax.jit(back)(ct)
    take, code_of, into = *product.split("->")[0].split(","), product.split("->")[1]
    want = jnp.einsum(f"{into},{code_of}->{take}", ct.astype(float), code(mode))
    np.testing.assert_array_equal(got, want.astype(dtype))
    (numbers,) = scatters(back, ct)
    assert numbers.inserted_window_dims == (0,)


def test_rows_that_lie_together_are_written_as_they_are(monkeypatch):
    """So are few numbers, and columns on another device than a CPU."""
    columns_of = lambda x: x[:, columns % x.shape[1]]
    turns = lambda f, *shape: (
        scatters(bp.grad(lambda x: (f(x) ** 2).sum()), normal(*shape))[0].inserted_window_dims == (0,)
    )
    assert turns(columns_of, 96, 128)
    assert not turns(columns_of, 96, 128, 8)
    assert not turns(columns_of, 5, 128)
    monkeypatch.setattr("funcbp.rules.indexing.device_here", lambda: SimpleNamespace(platform="gpu"))
    assert not turns(columns_of, 96, 128)
