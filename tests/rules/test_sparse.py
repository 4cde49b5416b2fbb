"""`jax.experimental.sparse`: gradients are those of the same function of dense matrices, where these have entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import funcbp as bp

rng = np.random.default_rng(0)
DENSE = jnp.asarray(rng.normal(size=(4, 5)) * (rng.random((4, 5)) < 0.5))
THERE = jnp.sign(jnp.abs(DENSE))  # 1 where it has entries
STACK = jnp.stack([DENSE, -2 * DENSE])
X, Y, Z = (jnp.asarray(rng.normal(size=shape)) for shape in ((5, 2), (4, 3), (3, 5)))


def loss(y):
    return jnp.sum(jnp.sin(y) * jnp.arange(1.0, y.size + 1).reshape(y.shape))


def with_data(m, data):
    """The same matrix with other entries, of any of the formats."""
    leaves, tree = jax.tree.flatten(m)
    return tree.unflatten([data, *leaves[1:]])


@jax.jit  # one program in place of fifty
def formats(dense, stack):
    n = np.count_nonzero(DENSE)
    padded, batched = sparse.BCOO.fromdense(dense, nse=17), sparse.BCOO.fromdense(stack, n_batch=1, nse=n)
    return padded, batched, *(t.fromdense(dense, nse=n) for t in (sparse.BCOO, sparse.BCSR, sparse.COO, sparse.CSR))


PADDED, BATCHED, BCOO, BCSR, COO, CSR = formats(DENSE, STACK)
dense_of = lambda m: m.todense() if isinstance(m, sparse.JAXSparse) else m
several = (((2,), (0,)), ((), ()))


def dot(m, x):
    return sparse.bcoo_dot_general(m, x, dimension_numbers=several) if dense_of(m).ndim == 3 else m @ x


# a matrix, and a function of it and of one that is dense, which is the same function of two dense ones
OF_A_MATRIX = {
    "bcoo": (BCOO, lambda m, x: loss(m @ x)),
    "bcoo padded": (PADDED, lambda m, x: loss(m @ x)),
    "bcoo from the right": (BCOO, lambda m, x: loss(x.T @ m.T)),
    "bcoo batched": (BATCHED, lambda m, x: loss(dot(m, x))),
    "bcoo todense": (PADDED, lambda m, x: loss(sparse.todense(m)) * jnp.sum(x)),
    "bcoo twice": (BCOO, lambda m, x: loss(dense_of(m @ m.T)) * jnp.sum(x)),
    "bcoo sums": (BCOO, lambda m, x: loss(dense_of((m + m).sum(0))) * jnp.sum(x)),
    "bcoo times dense": (BCOO, lambda m, x: loss(dense_of(m * (DENSE + jnp.sum(x))))),
    "sparsify": (BCOO, sparse.sparsify(lambda m, x: jnp.sum(jnp.sin(m @ x) + (2 * m) @ x**2))),
    "in a scan": (BCOO, lambda m, x: loss(lax.scan(lambda c, _: (jnp.tanh(m.T @ (m @ c)), None), x, length=2)[0])),
    "bcsr": (BCSR, lambda m, x: loss(m @ x)),
    "bcsr todense": (BCSR, lambda m, x: loss(sparse.todense(m)) * jnp.sum(x)),
    "coo": (COO, lambda m, x: loss(m @ x)),
    "coo times vector": (COO, lambda m, x: loss(m @ x[:, 0])),
    "coo todense": (COO, lambda m, x: loss(dense_of(m)) * jnp.sum(x)),
    "csr": (CSR, lambda m, x: loss(m @ x)),
    "csr times vector": (CSR, lambda m, x: loss(m.T @ (m @ x[:, 0]))),
    "csr todense": (CSR, lambda m, x: loss(dense_of(m)) * jnp.sum(x)),
}


def entries_of(m, dense):
    """The numbers of a dense array where the matrix has entries."""
    where = with_data(m, jnp.arange(1.0, m.data.size + 1).reshape(m.data.shape)).todense().astype(int)
    numbers = jnp.zeros(m.data.size + 1).at[where].set(dense)
    return numbers[1:].reshape(m.data.shape)


@pytest.mark.slow(once=["m"])
@pytest.mark.parametrize(("m", "f"), OF_A_MATRIX.values(), ids=OF_A_MATRIX)
def test_a_matrix_is_differentiated_as_a_dense_one(m, f):
    of_entries = lambda data, x: f(with_data(m, data), x)
    of_matrix, of_x = jax.jit(jax.grad(f, (0, 1)))(m.todense(), X)
    got, got_x = jax.jit(bp.grad(of_entries, (0, 1)))(m.data, X)
    np.testing.assert_allclose(got, entries_of(m, of_matrix), rtol=1e-12)
    np.testing.assert_allclose(got_x, of_x, rtol=1e-12)


def test_a_second_derivative_is_that_of_a_dense_matrix():
    f = lambda data: loss(with_data(BCOO, data) @ X[:, 0])
    dense = jax.jvp(jax.grad(lambda d: loss(d @ X[:, 0])), (DENSE,), (DENSE,))[1]
    twice = bp.grad(lambda data: jnp.vdot(bp.grad(f)(data), BCOO.data))
    np.testing.assert_allclose(jax.jit(twice)(BCOO.data), entries_of(BCOO, dense), rtol=1e-12)


FROM_DENSE = {
    "bcoo": (DENSE, lambda d: sparse.BCOO.fromdense(d, nse=20), lambda d: d),
    "bcsr": (DENSE, lambda d: sparse.BCSR.fromdense(d, nse=20), lambda d: d),
    "coo": (DENSE, lambda d: sparse.COO.fromdense(d, nse=20), lambda d: d),
    "csr": (DENSE, lambda d: sparse.CSR.fromdense(d, nse=20), lambda d: d),
    "extracted": (DENSE, lambda d: sparse.bcoo_extract(BCOO, 2 * d), lambda d: 2 * d * THERE),
    "extracted by rows": (
        DENSE,
        lambda d: with_data(BCSR, sparse.bcsr_extract(BCSR.indices, BCSR.indptr, 2 * d)),
        lambda d: 2 * d * THERE,
    ),
    "sampled": (
        Y,
        lambda y: with_data(
            BCOO,
            sparse.bcoo_dot_general_sampled(y, Z, BCOO.indices, dimension_numbers=(((1,), (0,)), ((), ()))),
        ),
        lambda y: (y @ Z) * THERE,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("x", "f", "same"), FROM_DENSE.values(), ids=FROM_DENSE)
def test_what_becomes_sparse_is_differentiated_where_it_has_entries(x, f, same):
    there = lambda d: jnp.sum(jnp.sin(d) * THERE)
    want = jax.grad(lambda x: there(same(x)) + jnp.sum(same(x) ** 2 * THERE))(x)
    got = jax.jit(bp.grad(lambda x: there(f(x).todense()) + jnp.sum(f(x).data ** 2)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_a_sparse_system_is_solved():
    """A x = b:  b̄ = A⁻ᵀ x̄,  Ā = -b̄ x' where A has entries."""
    data, columns, starts = jnp.array([2.0, 0.5, -1.0, 0.7, 3.0]), jnp.array([0, 1, 0, 2, 1]), jnp.array([0, 2, 4, 5])
    rows, b, ct = jnp.array([0, 0, 1, 1, 2]), jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0])
    a = np.zeros((3, 3))
    a[rows, columns] = data
    solve = lambda data, b: sparse.linalg.spsolve(data, columns, starts, b)
    x, pullback = bp.vjp(solve, data, b)
    b_bar = np.linalg.solve(a.T, ct)
    np.testing.assert_allclose(x, np.linalg.solve(a, b))
    np.testing.assert_allclose(pullback(ct)[1], b_bar)
    np.testing.assert_allclose(pullback(ct)[0], -np.outer(b_bar, x)[rows, columns])


def test_a_matrix_is_an_argument_and_its_gradient_a_matrix():
    f = lambda m, x: jnp.sum(m @ x)
    of_m = bp.grad(f, allow_int=True)(BCOO, X)
    assert isinstance(of_m, sparse.BCOO) and of_m.indices.dtype == jax.dtypes.float0
    np.testing.assert_allclose(of_m.data, jnp.sum(X, 1)[BCOO.indices[:, 1]])
    attached = sparse.grad(bp.Backward().attach(f))(BCOO, X)
    np.testing.assert_array_equal(attached.data, of_m.data)
    mapped = jax.vmap(bp.grad(f, 1), (None, 0))(BCOO, jnp.stack([X, X]))
    np.testing.assert_allclose(mapped, jnp.broadcast_to(jnp.sum(DENSE, 0)[:, None], (2, 5, 2)))
