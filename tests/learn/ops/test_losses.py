"""The losses against their plain formulas, optax, finite differences, and at special values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from funcbp import ops

grads = pytest.mark.parametrize(
    "grad", [bp.grad, pytest.param(jax.grad, marks=pytest.mark.slow)], ids=["funcbp", "jax"]
)


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def weighted(loss, weights):
    return lambda *args: jnp.sum(weights * loss(*args))


def assert_same_gradients(ours, plain, args, grad, argnums):
    np.testing.assert_allclose(ours(*args), plain(*args), rtol=1e-12)
    once = jax.jit(grad(ours, argnums))(*args), jax.jit(jax.grad(plain, argnums))(*args)
    for got, want in zip(*once, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-14)

    def twice(f, grad):
        return jax.jit(grad(lambda *a: sum(jnp.sum(jnp.sin(g)) for g in grad(f, argnums)(*a)), argnums))(*args)

    for got, want in zip(twice(ours, grad), twice(plain, jax.grad), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


def assert_finite_difference(f, x, h=1e-4):
    f, direction = jax.jit(f), normal(9, x.shape)
    slope = float(jnp.sum(bp.grad(f)(x) * direction))
    assert slope == pytest.approx(float((f(x + h * direction) - f(x - h * direction)) / (2 * h)), rel=1e-6)


# --- squared error ----------------------------------------------------------------------------------------------------


@pytest.mark.slow(once=["reduction"])
@grads
@pytest.mark.parametrize("reduction", ["sum", "mean", None])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)], ids=str)
def test_squared_error(grad, reduction, shape):
    y, t, weights = normal(0, shape), normal(1, shape), normal(2, shape[:-1] if reduction is None else ())
    n = math.prod(shape[:-1]) if reduction == "mean" else 1

    def plain(y, t):
        per_unit = (t - y) ** 2 / 2
        return jnp.sum(per_unit, -1) if reduction is None else jnp.sum(per_unit) / n

    ours = weighted(lambda y, t: ops.squared_error(y, t, reduction), weights)
    assert_same_gradients(ours, weighted(plain, weights), (y, t), grad, (0, 1))
    assert_finite_difference(lambda y: ours(y, t), y)


def test_squared_error_is_the_seeds():
    error = ops.squared_error(jnp.array([0.75136507, 0.772928465]), jnp.array([0.01, 0.99]))
    assert float(error) == pytest.approx(0.274811083 + 0.023560026, abs=2e-9)


def test_squared_error_at_special_values():
    assert ops.squared_error(jnp.zeros((0, 3)), jnp.zeros((0, 3))) == 0
    assert ops.squared_error(jnp.zeros((2, 0)), jnp.zeros((2, 0)), None).shape == (2,)
    assert np.isnan(ops.squared_error(jnp.array([np.nan]), jnp.array([0.0])))
    narrow = jnp.ones((4, 2), jnp.bfloat16)
    assert bp.grad(ops.squared_error)(narrow, jnp.zeros_like(narrow)).dtype == jnp.bfloat16


def test_squared_error_refuses():
    with pytest.raises(ValueError, match=r"one shape, and got \(4, 1\) and \(4,\)"):
        ops.squared_error(jnp.ones((4, 1)), jnp.ones(4))
    with pytest.raises(ValueError, match="got a scalar"):
        ops.squared_error(1.0, 2.0)
    with pytest.raises(ValueError, match='"sum", "mean" or None, and got \'total\''):
        ops.squared_error(jnp.ones(2), jnp.ones(2), "total")


# --- softmax cross-entropy --------------------------------------------------------------------------------------------


@pytest.mark.slow(once=["sums_to_one"])
@grads
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("sums_to_one", [True, False])
def test_softmax_cross_entropy(grad, axis, sums_to_one):
    logits, raw = normal(0, (4, 5, 3)), jnp.exp(normal(1, (4, 5, 3)))
    labels = raw / jnp.sum(raw, axis, keepdims=True) if sums_to_one else raw
    weights = normal(2, np.delete(logits.shape, axis))

    def plain(x, y):
        return -jnp.sum(y * jnp.log(jnp.exp(x) / jnp.sum(jnp.exp(x), axis, keepdims=True)), axis)

    ours = weighted(lambda x, y: ops.softmax_cross_entropy(x, y, axis), weights)
    assert_same_gradients(ours, weighted(plain, weights), (logits, labels), grad, (0, 1))
    assert_finite_difference(lambda x: ours(x, labels), logits)
    np.testing.assert_allclose(
        ops.softmax_cross_entropy(logits, labels, axis), optax.softmax_cross_entropy(logits, labels, axis), rtol=1e-12
    )


@pytest.mark.slow(once=[])
@grads
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8], ids=lambda d: d.__name__)
def test_integer_labels(grad, axis, dtype):
    logits = normal(0, (4, 5, 3))
    labels = (jnp.arange(logits.size // logits.shape[axis]) % logits.shape[axis]).astype(dtype)
    labels = labels.reshape(np.delete(logits.shape, axis))
    weights = normal(2, labels.shape)

    def plain(x):
        one_hot = jax.nn.one_hot(labels, x.shape[axis], axis=axis, dtype=x.dtype)
        return -jnp.sum(one_hot * jnp.log(jnp.exp(x) / jnp.sum(jnp.exp(x), axis, keepdims=True)), axis)

    ours = weighted(lambda x: ops.softmax_cross_entropy_with_integer_labels(x, labels, axis), weights)
    assert_same_gradients(ours, weighted(plain, weights), (logits,), grad, (0,))
    assert_finite_difference(ours, logits)
    np.testing.assert_allclose(
        ops.softmax_cross_entropy_with_integer_labels(logits, labels, axis),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32), axis),
        rtol=1e-12,
    )


def test_softmax_cross_entropy_far_out():
    logits = jnp.array([[1e30, -1e30], [-1e30, 1e30]], jnp.float32)
    labels = jnp.array([[1, 0], [0, 1]], jnp.float32)
    for loss, y in [
        (ops.softmax_cross_entropy, labels),
        (ops.softmax_cross_entropy_with_integer_labels, jnp.array([0, 1])),
    ]:
        np.testing.assert_array_equal(loss(logits, y), [0, 0])
        np.testing.assert_array_equal(bp.grad(lambda x, f=loss, y=y: jnp.sum(f(x, y)))(logits), np.zeros((2, 2)))
        wrong = bp.grad(lambda x, f=loss, y=y: jnp.sum(f(x, y)))(-logits)
        np.testing.assert_array_equal(wrong, [[-1, 1], [1, -1]])


def test_a_class_of_label_zero_may_be_impossible():
    logits, labels = jnp.array([0.0, -jnp.inf]), jnp.array([1.0, 0.0])
    assert ops.softmax_cross_entropy(logits, labels) == 0
    np.testing.assert_array_equal(bp.grad(ops.softmax_cross_entropy)(logits, labels), [0, 0])


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_gives_nan(label):
    assert np.isnan(ops.softmax_cross_entropy_with_integer_labels(jnp.zeros(3), jnp.array(label)))


@pytest.mark.slow
def test_softmax_cross_entropy_sizes_and_dtypes():
    assert ops.softmax_cross_entropy(jnp.zeros((0, 3)), jnp.zeros((0, 3))).shape == (0,)
    assert ops.softmax_cross_entropy_with_integer_labels(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)).shape == (0,)
    narrow = jnp.ones((4, 2), jnp.bfloat16)
    labels = jnp.zeros(4, jnp.int32)
    assert ops.softmax_cross_entropy_with_integer_labels(narrow, labels).dtype == jnp.bfloat16
    gradient = bp.grad(lambda x: jnp.sum(ops.softmax_cross_entropy_with_integer_labels(x, labels)))(narrow)
    np.testing.assert_array_equal(np.asarray(gradient, np.float64), [[-0.5, 0.5]] * 4)


def test_softmax_cross_entropy_refuses():
    with pytest.raises(ValueError, match=r"one shape, and got \(4, 3\) and \(4,\)"):
        ops.softmax_cross_entropy(jnp.ones((4, 3)), jnp.ones(4))
    with pytest.raises(ValueError, match=r"labels of shape \(4,\) for logits of shape \(4, 3\).*got shape \(3,\)"):
        ops.softmax_cross_entropy_with_integer_labels(jnp.ones((4, 3)), jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match="have no axis 2"):
        ops.softmax_cross_entropy_with_integer_labels(jnp.ones((4, 3)), jnp.ones(4, jnp.int32), axis=2)
    with pytest.raises(TypeError, match="integer labels, and got float64"):
        ops.softmax_cross_entropy_with_integer_labels(jnp.ones((4, 3)), jnp.ones(4))


# --- logistic cross-entropy -------------------------------------------------------------------------------------------


@grads
def test_logistic_cross_entropy(grad):
    x, y, weights = normal(0, (4, 3)), jax.nn.sigmoid(normal(1, (4, 3))), normal(2, (4, 3))

    def plain(x, y):
        p = 1 / (1 + jnp.exp(-x))
        return -y * jnp.log(p) - (1 - y) * jnp.log(1 - p)

    ours = weighted(ops.logistic_cross_entropy, weights)
    assert_same_gradients(ours, weighted(plain, weights), (x, y), grad, (0, 1))
    assert_finite_difference(lambda x: ours(x, y), x)
    np.testing.assert_allclose(ops.logistic_cross_entropy(x, y), optax.sigmoid_binary_cross_entropy(x, y), rtol=1e-12)


def test_logistic_cross_entropy_keeps_its_digits_in_the_tails():
    x, y = jnp.array([40.0, -40.0, 1e30, -1e30], jnp.float32), jnp.array([1.0, 0.0, 1.0, 0.0], jnp.float32)
    tiny = np.exp(-40.0)
    np.testing.assert_allclose(ops.logistic_cross_entropy(x, y), [tiny, tiny, 0, 0], rtol=1e-6)
    gradient = bp.grad(lambda x: jnp.sum(ops.logistic_cross_entropy(x, y)))
    np.testing.assert_allclose(gradient(x), [-tiny, tiny, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(gradient(-x), [-1, 1, -1, 1])


def test_logistic_cross_entropy_labels_may_be_integers():
    assert ops.logistic_cross_entropy(jnp.zeros(2), jnp.array([0, 1])).dtype == jnp.float64
    with pytest.raises(ValueError, match=r"one shape, and got \(2,\) and \(3,\)"):
        ops.logistic_cross_entropy(jnp.zeros(2), jnp.zeros(3))


# --- forward mode, and the tails --------------------------------------------------------------------------------------


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("loss", ["softmax", "classes", "logistic", "squares", "dead zone", "hyper"])
def test_forward_mode_is_the_reverse_mode(loss):
    x = normal(0, (4, 3)) / 4
    labels = jax.nn.softmax(normal(1, (4, 3)))
    f = {
        "softmax": lambda x: jnp.sum(ops.softmax_cross_entropy(x, labels)),
        "classes": lambda x: jnp.sum(ops.softmax_cross_entropy_with_integer_labels(x, jnp.array([0, 1, 2, 0]))),
        "logistic": lambda x: jnp.sum(ops.logistic_cross_entropy(x, labels)),
        "squares": lambda x: ops.squared_error(x, labels),
        "dead zone": lambda x: ops.dead_zone_error(x, labels),
        "hyper": lambda x: ops.hyper_error(x, labels),
    }[loss]
    np.testing.assert_allclose(jax.jacfwd(f)(x), jax.grad(f)(x), rtol=1e-12, atol=1e-15)
    want = jax.jacfwd(jax.jacfwd(f))(x)
    for hessian in (jax.hessian(f), bp.jacrev(bp.grad(f)), jax.jacfwd(bp.grad(f))):
        np.testing.assert_allclose(hessian(x), want, rtol=1e-11, atol=1e-13)


GAPS = np.float32([2, 8, 17, 20, 40, 80])


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("loss", ["softmax", "softmax, unsure", "classes", "classes, masked"])
@grads
def test_a_sure_answer_leaves_the_exact_rest(loss, grad):
    """With logits g and 0, E = log(1 + e^-g), and its slopes are -e^-g / (1 + e^-g) and the opposite; from p - 1, 0."""
    target = jnp.array([1.0, 0.0], jnp.float32)
    f = {
        "softmax": lambda x: ops.softmax_cross_entropy(x, target),
        "softmax, unsure": lambda x: ops.softmax_cross_entropy(x[::-1], target[::-1]),
        "classes": lambda x: ops.softmax_cross_entropy_with_integer_labels(x, jnp.array(0)),
        "classes, masked": lambda x: ops.softmax_cross_entropy_with_integer_labels(
            jnp.concatenate([x, jnp.array([99.0], jnp.float32)]), jnp.array(0), where=jnp.array([True, True, False])
        ),
    }[loss]
    wide = GAPS.astype(np.float64)
    share = np.exp(-wide) / (1 + np.exp(-wide))
    x = jnp.stack([GAPS, jnp.zeros_like(GAPS)], -1)
    np.testing.assert_allclose(jax.vmap(f)(x), np.log1p(np.exp(-wide)), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(grad(f))(x), np.stack([-share, share], -1), rtol=1e-6)
    curvature = jax.vmap(grad(lambda x: grad(f)(x)[0]))(x)  # ∂²E/∂x_0² = p_0 p_1
    second = share / (1 + np.exp(-wide))
    np.testing.assert_allclose(curvature, np.stack([second, -second], -1), rtol=1e-6)
    wrong = jax.vmap(grad(lambda x: grad(f)(-x)[1]))(x)  # the wrong answer, as sure
    np.testing.assert_allclose(wrong, np.stack([second, -second], -1), rtol=1e-6)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev, bp.jacrev], ids=["forward", "reverse", "funcbp"])
def test_a_saturated_softmax_has_its_exact_slopes(mode):
    wide = GAPS.astype(np.float64)
    slope = np.exp(-wide) / (1 + np.exp(-wide)) ** 2
    got = jax.vmap(mode(ops.softmax))(jnp.stack([GAPS, jnp.zeros_like(GAPS)], -1))
    np.testing.assert_allclose(
        got, np.stack([np.stack([slope, -slope], -1), np.stack([-slope, slope], -1)], -1), rtol=1e-5
    )


# --- where, as in optax -----------------------------------------------------------------------------------------------

MASKS = {
    "classes": np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]], bool),
    "examples": np.array([1, 0, 1], bool),
    "a column": np.array([[1], [0], [1]], bool),
}


@pytest.mark.slow(once=["mask", "kind", "jacobian"])
@pytest.mark.parametrize("jacobian", [bp.jacrev, jax.jacrev, jax.jacfwd], ids=["funcbp", "jax", "forward"])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("kind", ["probabilities", "numbers"])
@pytest.mark.parametrize("mask", MASKS)
def test_where(jacobian, axis, kind, mask):
    """The values are optax's; the slopes p Σ y - y over the classes there are, example by example."""
    where, x = MASKS[mask], np.array(normal(0, (3, 4)))
    exists = np.broadcast_to(where if where.ndim == 2 else where[:, None], x.shape)
    y = np.array(jax.nn.softmax(normal(1, (3, 4)))) if kind == "probabilities" else np.eye(4)[[3, 0, 1]]
    e = np.where(exists, np.exp(x), 0)
    p, y = e / np.maximum(e.sum(-1, keepdims=True), 1e-300), np.where(exists, y, 0)
    want = p * y.sum(-1, keepdims=True) - y

    name = "softmax_cross_entropy" + "_with_integer_labels" * (kind == "numbers")
    target = np.argmax(np.eye(4)[[3, 0, 1]], -1) if kind == "numbers" else y
    turn = (lambda a: a.T) if axis == 0 else (lambda a: a)
    args = jnp.asarray(turn(x)), jnp.asarray(turn(target)), axis, jnp.asarray(turn(where))
    np.testing.assert_allclose(getattr(ops, name)(*args), getattr(optax.losses, name)(*args), rtol=1e-12)
    slopes = np.asarray(jacobian(getattr(ops, name))(*args))  # one axis of examples, then the logits'
    own = np.stack([turn(slopes[n])[n] for n in range(3)])
    np.testing.assert_allclose(own, want, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(slopes.sum(0), turn(want), rtol=1e-11, atol=1e-15)


def test_what_is_masked_may_be_nan():
    """In neither pass, of either argument, does a class or example that is left out matter."""
    x, y = jnp.array([[1.0, 2.0, jnp.nan], [jnp.nan] * 3]), jnp.array([[1.0, 0, 0], [0, 1, 0]])
    where = jnp.array([[True, True, False], [False, False, False]])
    loss, grads = jax.value_and_grad(lambda *a: jnp.sum(ops.softmax_cross_entropy(*a, where=where)), (0, 1))(x, y)
    p = np.exp([1, 2]) / np.exp([1, 2]).sum()
    np.testing.assert_allclose(loss, -np.log(p[0]))
    np.testing.assert_allclose(grads[0], [[p[0] - 1, p[1], 0], [0, 0, 0]], rtol=1e-12)
    np.testing.assert_allclose(grads[1], [[*-np.log(p), 0], [0, 0, 0]], rtol=1e-12)


def test_a_masked_label_is_as_in_optax():
    """The right class is measured against those there are: E = log Σ e^(x_l) - x_c, without c in the sum."""
    x, where = jnp.array([1.0, 2.0, 99.0], jnp.float32), jnp.array([True, True, False])
    args = x, jnp.array(2)
    ours, theirs = ops.softmax_cross_entropy_with_integer_labels, optax.losses.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(ours(*args, where=where), theirs(*args, where=where), rtol=1e-6)
    p = np.exp([1, 2]) / np.exp([1, 2]).sum()
    for grad in (jax.grad, bp.grad):
        np.testing.assert_allclose(grad(ours)(*args, where=where), [*p, -1], rtol=1e-6)


def test_where_refuses_another_shape():
    for loss, target in [
        (ops.softmax_cross_entropy, jnp.ones((2, 3))),
        (ops.softmax_cross_entropy_with_integer_labels, jnp.zeros(2, jnp.int32)),
    ]:
        with pytest.raises(ValueError, match=r"where of the shape of its logits, \(2, 3\), .* and got \(1, 4\)"):
            loss(jnp.ones((2, 3)), target, where=jnp.ones(4, bool)[None])


def test_a_wider_dead_zone_costs_its_width_for_each_error_outside():
    """∂E/∂width = -width n, of n = 2 errors outside."""
    y, t = jnp.array([0.95, 0.5, 0.2]), jnp.ones(3)
    np.testing.assert_allclose(bp.grad(ops.dead_zone_error, argnums=2)(y, t, 0.125), -0.25, rtol=1e-6)
