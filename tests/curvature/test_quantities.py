"""Curvature against dense Jacobians and Hessians, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import funcbp as bp

TOLERANCE = 1e-10
curvature = bp.curvature


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs), initial=0) <= tolerance * max(np.max(np.abs(theirs), initial=0), 1e-3)


def normal(i, *shape):
    return jax.random.normal(jax.random.key(i), shape)


def plain(params, x):
    """A network of plain operations, a weight used at several positions and once more."""
    h = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.sum(jnp.tanh(h @ params["w"]) @ params["v"], 0)


def convex(z, y):
    """A convex loss that nobody wrote a Hessian for."""
    return jax.nn.logsumexp(z) + 0.5 * jnp.sum((z - y) ** 2) ** 2


NET = bp.nets.mlp([4, 5, 3], activation=bp.ops.tanh)
PLAIN = {"w": normal(0, 4, 4), "b": normal(1, 4), "v": normal(2, 4, 3)}
X, ROWS = normal(3, 5, 4), normal(4, 5, 2, 4)
CLASSES, PROBABILITIES = jnp.array([0, 2, 1, 1, 0]), jax.nn.softmax(normal(5, 5, 3))
PROBLEMS = {
    "squared error, our network": (NET.apply, bp.ops.squared_error, X, normal(6, 5, 3)),
    "classes": (plain, bp.ops.softmax_cross_entropy_with_integer_labels, ROWS, CLASSES),
    "probabilities": (plain, bp.ops.softmax_cross_entropy, ROWS, PROBABILITIES),
    "any convex loss": (plain, convex, ROWS, normal(6, 5, 3)),
}


@functools.cache
def dense(name):
    """Parameters, and the Gauss-Newton matrix from `jax.jacrev` and `jax.hessian` of a loss JAX can differentiate."""
    model, loss, x, y = PROBLEMS[name]
    params = NET.init(jax.random.key(7), x[0]) if model is NET.apply else PLAIN
    w, unravel = ravel_pytree(params)
    z = jax.vmap(model, (None, 0))(params, x)
    jacobian = jax.vmap(jax.jacrev(lambda w, x: model(unravel(w), x)), (None, 0))(w, x)
    hessian = jax.vmap(jax.jacrev(jax.grad(loss)))(z, y)
    return params, jnp.einsum("nki,nkl,nlj->ij", jacobian, hessian, jacobian) / len(x), jacobian


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gauss_newton_product(name):
    model, loss, x, y = PROBLEMS[name]
    params, matrix, _ = dense(name)
    w, unravel = ravel_pytree(params)
    v = normal(8, w.size)
    ours = jax.jit(curvature.ggn_vp(model, loss))(params, x, y, unravel(v))
    assert_close(ravel_pytree(ours)[0], matrix @ v)


@pytest.mark.parametrize("name", PROBLEMS)
def test_diagonal(name):
    model, loss, x, y = PROBLEMS[name]
    params, matrix, _ = dense(name)
    assert_close(ravel_pytree(jax.jit(curvature.diag_ggn(model, loss))(params, x, y))[0], jnp.diag(matrix))


@pytest.mark.parametrize("name", ["classes", "any convex loss"])
def test_diagonal_by_draws(name):
    """The mean of many draws; the error of a mean of n draws is its standard deviation over √n."""
    model, loss, x, y = PROBLEMS[name]
    params, matrix, _ = dense(name)
    draws = jax.jit(curvature.diag_ggn(model, loss, samples=4000))(params, x, y, jax.random.key(9))
    assert_close(ravel_pytree(draws)[0], jnp.diag(matrix), 0.06)


def test_hessian_product():
    loss = lambda params, x: jnp.mean(jax.vmap(lambda x: convex(plain(params, x), jnp.ones(3)))(x))
    w, unravel = ravel_pytree(PLAIN)
    v = normal(8, w.size)
    hessian = jax.jit(jax.hessian(lambda w: loss(unravel(w), ROWS)))(w)
    of = jax.jit(lambda p, v: bp.hvp(lambda p: loss(p, ROWS), (p,), (v,)))
    assert_close(ravel_pytree(of(PLAIN, unravel(v)))[0], hessian @ v)


@pytest.mark.slow
def test_linearisation_crosses_jit_and_is_used_again():
    name = "squared error, our network"
    model, loss, x, y = PROBLEMS[name]
    params, matrix, jacobian = dense(name)
    w, unravel = ravel_pytree(params)
    g = jax.jit(curvature.ggn(model, loss))(params, x, y)
    for seed in (10, 11):
        v = normal(seed, w.size)
        assert_close(g.model.jvp(unravel(v)), jnp.einsum("nki,i->nk", jacobian, v))
        assert_close(ravel_pytree(g(unravel(v)))[0], matrix @ v)
    damped = lambda v: jax.tree.map(lambda a, b: a + 0.1 * b, g(v), v)
    solution, _ = jax.scipy.sparse.linalg.cg(damped, unravel(v), tol=1e-12)
    expected = jnp.linalg.solve(matrix + 0.1 * jnp.eye(w.size), v)
    assert_close(ravel_pytree(solution)[0], expected, 1e-8)


@pytest.mark.slow
def test_the_neural_tangent_kernel():
    name = "classes"
    model, _, x, _ = PROBLEMS[name]
    params, _, jacobian = dense(name)
    ours = jax.jit(curvature.ntk(model))(params, x)
    assert_close(ours, jnp.einsum("nki,mli->nkml", jacobian, jacobian))
    assert_close(curvature.ntk(model)(params, x[:2], x[1:]), ours[:2, :, 1:])


# --- Kronecker factors ------------------------------------------------------------------------------------------------


def kron(a, s):
    """A ⊗ S as a matrix over the elements (i, o) of a kernel."""
    return jnp.einsum("ij,op->iojp", a, s).reshape(a.shape[0] * s.shape[0], -1)


def positions_averaged(params, x):
    return jnp.mean(x @ params["w"], 0)


def kernel_ggn(model, loss, params, x, y):
    w, unravel = ravel_pytree(params)
    jacobian = jax.vmap(jax.jacrev(lambda w, x: model(unravel(w), x).reshape(-1)), (None, 0))(w, x)
    z = jax.vmap(model, (None, 0))(params, x)
    flat = lambda z, y: loss(z.reshape(model(params, x[0]).shape), y)
    hessian = jax.vmap(jax.jacrev(jax.grad(flat)))(z.reshape(len(x), -1), y)
    return jnp.einsum("nki,nkl,nlj->ij", jacobian, hessian, jacobian) / len(x)


@pytest.mark.parametrize(
    ("shared", "model"),
    [("expand", lambda params, x: x @ params["w"]), ("reduce", positions_averaged)],
    ids=["expand", "reduce"],
)
def test_kronecker_factors_are_exact_where_they_should_be(shared, model):
    """Expand: a loss that is a sum over the positions; reduce: a model that averages over them."""
    params = {"w": normal(12, 4, 3)}
    y = normal(6, 5, 2, 3) if shared == "expand" else normal(6, 5, 3)
    loss = lambda z, y: 0.5 * jnp.sum((z - y) ** 2)
    a, s = jax.jit(curvature.kfac_factors(model, loss, shared=shared))(params, ROWS, y)["w"]
    expected = jax.jit(lambda params: kernel_ggn(model, loss, params, ROWS, y))(params)
    assert_close(kron(a, s), expected)


def test_kronecker_factors_of_a_network():
    name = "squared error, our network"
    model, loss, x, y = PROBLEMS[name]
    params, _, _ = dense(name)
    factors = jax.jit(curvature.kfac_factors(model, loss))(params, x, y)
    hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None])
    assert set(factors) == {"dense_0/kernel", "dense_1/kernel"}
    assert_close(factors["dense_1/kernel"][0], hidden.T @ hidden / len(x))
    assert_close(factors["dense_1/kernel"][1], jnp.eye(3))
    slopes = (1 - hidden**2)[:, :, None] * params["dense_1"]["kernel"][None]
    assert_close(factors["dense_0/kernel"][1], jnp.einsum("nok,npk->op", slopes, slopes) / len(x))


@pytest.mark.slow
def test_kronecker_factors_empirical_and_by_draws():
    name = "classes"
    model, loss, x, y = PROBLEMS[name]
    params, _, _ = dense(name)
    one = lambda params, example: loss(model(params, example[0]), example[1])
    inputs, deltas = bp.per_example.factors(one)(params, (x, y))["v"]
    a, s = curvature.kfac_factors(model, loss, "empirical")(params, x, y)["v"]
    assert_close(a, jnp.einsum("npi,npj->ij", inputs, inputs) / (len(x) * inputs.shape[1]))
    assert_close(s, jnp.einsum("npo,npq->oq", deltas, deltas) / len(x))
    exact = jax.jit(curvature.kfac_factors(model, loss))(params, x, y)
    drawn = jax.jit(curvature.kfac_factors(model, loss, "monte_carlo", samples=3000))(params, x, y, jax.random.key(13))
    for path in exact:
        assert_close(drawn[path][0], exact[path][0])
        assert_close(drawn[path][1], exact[path][1], 0.06)


def test_a_stack_of_layers_has_factors_for_each():
    def model(params, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0]

    params = {"w": normal(14, 2, 4, 4)}
    a, s = curvature.kfac_factors(model, bp.ops.squared_error)(params, X, X)["w"]
    assert a.shape == s.shape == (2, 4, 4)
    assert_close(a[0], X.T @ X / len(X))


def test_refusals():
    with pytest.raises(ValueError, match="kind is"):
        curvature.kfac_factors(plain, convex, "approximate")
    with pytest.raises(ValueError, match="shared is"):
        curvature.kfac_factors(plain, convex, shared="pooled")
    with pytest.raises(ValueError, match="Draws need a key"):
        curvature.diag_ggn(plain, convex, samples=1)(PLAIN, ROWS, CLASSES)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("quantity", [curvature.diag_ggn, curvature.kfac_factors], ids=lambda f: f.__name__)
def test_a_loss_that_is_not_convex_in_the_output_is_refused(quantity):
    """cos z has the second derivative -cos z, and no root: nothing is made of what is left of it."""
    model, x, y = lambda w, x: x @ w, jnp.array([[1.0, 0.0], [3.0, 0.0]]), jnp.zeros(2)
    w = jnp.ones((2, 1))
    of = quantity(model, lambda z, y: jnp.cos(z[0]) + y)
    with pytest.raises(ValueError, match=r"negative eigenvalues for 1 of 2 examples, first for example 0"):
        of(w, x, y)
    assert any(np.isnan(leaf).all() for leaf in jax.tree.leaves(jax.jit(of)(w, x, y)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of(w, x[1:], y[1:])))  # -cos 3 > 0


@pytest.mark.slow
def test_cross_entropy_at_several_positions():
    """One number for each position is no loss; their sum is one."""
    model, v = lambda w, x: x @ w, jnp.ones((4, 3))
    several, classes = bp.ops.softmax_cross_entropy_with_integer_labels, jnp.ones((5, 2), int)
    for quantity in (curvature.ggn(model, several), curvature.diag_ggn(model, several)):
        with pytest.raises(ValueError, match=r"output of shape \[2, 3\] is not one number, .* sum them up"):
            quantity(v, ROWS, classes)(v)
    total = curvature.ggn_vp(model, lambda z, y: jnp.sum(several(z, y)))(v, ROWS, classes, v.at[0].set(0))
    z, u = ROWS @ v, ROWS @ v.at[0].set(0)
    p = jax.nn.softmax(z)
    expected = jnp.einsum("npi,npo->io", ROWS, p * (u - jnp.sum(p * u, -1, keepdims=True))) / len(ROWS)
    assert_close(total, expected)


def test_a_linearisation_by_other_rules_is_one_map_in_both_directions():
    halved = bp.rules.Rule(lambda res, ct, perturbed, **_: [0.5 * ct * res[1], 0.5 * ct * res[0]])
    found = curvature.linearise(lambda w: w * w, backward=bp.Backward(rules={lax.mul_p: halved}))(jnp.array([3.0, 5.0]))
    assert found.vjp(jnp.array([1.0, 2.0])).tolist() == found.jvp(jnp.array([1.0, 2.0])).tolist() == [3, 10]
