"""Other backward passes, against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp
from funcbp import credit

KEY = jax.random.key(3)
normal = lambda i, *shape: jax.random.normal(jax.random.fold_in(KEY, i), shape)
PARAMS = {f"dense_{i}": {"kernel": normal(i, 4, 4), "bias": normal(9 + i, 4)} for i in range(3)}
X = normal(20, 5, 4)


def loss(params, x):
    for i in range(3):
        p = params[f"dense_{i}"]
        x = bp.name(jnp.tanh(x @ p["kernel"] + p["bias"][None]), f"h{i}")
    return jnp.sum(x**2)


# --- feedback weights -------------------------------------------------------------------------------------------------


def test_feedback_weights_are_arrays_for_weights_and_none_for_the_rest():
    random = credit.feedback_weights(KEY, PARAMS)
    for weights in (
        random,
        credit.feedback_alignment(KEY, PARAMS).feedback,
        credit.uniform_sign(PARAMS).feedback,
        credit.batchwise_sign(KEY, PARAMS).feedback,
        credit.fixed_sign(random, PARAMS).feedback,
    ):
        assert weights["dense_1"]["bias"] is None
        assert weights["dense_1"]["kernel"].shape == (4, 4)
        assert weights["dense_1"]["kernel"].dtype == jnp.float64
    assert not np.allclose(random["dense_0"]["kernel"], random["dense_1"]["kernel"])


def test_sign_concordant_feedback_has_the_signs_of_the_weights():
    w = PARAMS["dense_0"]["kernel"]
    uniform = credit.uniform_sign(PARAMS).feedback["dense_0"]["kernel"]
    np.testing.assert_allclose(uniform, np.sign(w) / 2)
    one, other = (credit.batchwise_sign(jax.random.key(i), PARAMS).feedback["dense_0"]["kernel"] for i in range(2))
    np.testing.assert_array_equal(np.sign(one), np.sign(w))
    assert not np.allclose(one, other)


def by_hand(b):
    """The gradient with the deltas going through b, layer by layer."""
    h, layers = [X], list(PARAMS)
    for layer in layers:
        h.append(jnp.tanh(h[-1] @ PARAMS[layer]["kernel"] + PARAMS[layer]["bias"][None]))
    delta, grads = 2 * h[-1] * (1 - h[-1] ** 2), {}
    for i in reversed(range(3)):
        grads[layers[i]] = {"kernel": h[i].T @ delta, "bias": delta.sum(0)}
        delta = delta @ b[layers[i]]["kernel"].T * (1 - h[i] ** 2)
    return grads


def test_a_backward_pass_goes_back_through_its_feedback_weights():
    backward = credit.feedback_alignment(KEY, PARAMS)
    want = by_hand(backward.feedback)
    close = lambda got: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, want)
    close(backward.grad(loss)(PARAMS, X))
    close(jax.jit(lambda p: backward.vjp(lambda p: loss(p, X), p)[1])(PARAMS)(jnp.array(1.0))[0])
    close(bp.grad(lambda p: loss(bp.feedback(p, backward.feedback), X))(PARAMS))
    close(backward.grad(lambda x, p: loss(p, x), 1)(X, PARAMS))
    close(bp.cotangents(loss, backward=backward)(PARAMS, X)[1])
    close(jax.tree.map(lambda g: g.sum(0), bp.per_example.grads(one_loss, backward=backward)(PARAMS, X)))
    t = bp.trace(loss, backward=backward)(PARAMS, X)
    np.testing.assert_allclose(t["dense_0/kernel"].cotangent, want["dense_0"]["kernel"], rtol=1e-12)
    np.testing.assert_allclose(
        backward.jacrev(loss)(PARAMS, X)["dense_0"]["kernel"], want["dense_0"]["kernel"], rtol=1e-12
    )


def test_feedback_weights_are_kept_between_the_passes():
    kept = lambda backward: {v.name for v in bp.residuals(loss, backward=backward)(PARAMS, X).values}
    assert "constant" in kept(credit.feedback_alignment(KEY, PARAMS)) - kept(bp.Backward())


def one_loss(params, x):
    return loss(params, x[None])


def test_schemes_are_backward_passes_that_join():
    key, surrogate = jax.random.key(0), credit.triangular()
    weights = credit.feedback_weights(key, PARAMS)
    schemes = [
        credit.feedback_alignment(key, PARAMS), credit.uniform_sign(PARAMS), credit.fixed_sign(weights, PARAMS),
        credit.batchwise_sign(key, PARAMS), credit.direct_feedback({"h0": jnp.eye(4)}, error="h2"),
        credit.straight_through(), credit.spikes(surrogate), bp.optim.sigmoid_prime_offset(),
    ]  # fmt: skip
    assert all(type(scheme) is bp.Backward for scheme in schemes)
    stepped = lambda p, x: jnp.sum(jnp.round(jnp.tanh(x @ p["kernel"])) @ p["out"])
    params = {"kernel": normal(0, 4, 3), "out": normal(1, 3, 2)}
    both = bp.Backward(feedback={"kernel": None, "out": normal(2, 3, 2)}) | credit.straight_through()
    slope = 1 - jnp.tanh(X @ params["kernel"]) ** 2
    want = X.T @ (jnp.ones((5, 2)) @ normal(2, 3, 2).T * slope)
    np.testing.assert_allclose(both.grad(stepped)(params, X)["kernel"], want, rtol=1e-12)
    assert credit.straight_through() | credit.straight_through(lax.floor_p) == credit.straight_through()
    with pytest.raises(ValueError, match=r"has feedback={.*float64\[4,4\].*}, the other .*: which holds\?"):
        credit.feedback_alignment(key, PARAMS) | credit.uniform_sign(PARAMS)


def test_kolen_pollack_brings_weights_and_feedback_weights_together():
    w, b = PARAMS, credit.feedback_weights(KEY, PARAMS)
    gap = w["dense_0"]["kernel"] - b["dense_0"]["kernel"]
    for i in range(3):
        w, b = credit.kolen_pollack(w, b, jax.tree.map(lambda x, i=i: normal(i, *x.shape), PARAMS), decay=0.25)
    np.testing.assert_allclose(w["dense_0"]["kernel"] - b["dense_0"]["kernel"], 0.75**3 * gap, rtol=1e-10)
    assert b["dense_0"]["bias"] is None


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_a_weight_mirror_tends_to_the_weights(kind):
    if kind == "dense":
        w, layer, noise = normal(0, 4, 3), lambda w, x: x @ w, normal(1, 20_000, 4)
    else:
        w, noise = normal(0, 3, 2, 3), normal(1, 4000, 4, 2)
        layer = lambda w, x: lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    b = credit.weight_mirror(layer, w, jnp.zeros_like(w), noise, rate=1.0)
    cosine = jnp.vdot(b, w) / jnp.linalg.norm(b) / jnp.linalg.norm(w)
    assert cosine > 0.995
    np.testing.assert_allclose(credit.weight_mirror(layer, w, w, 0 * noise, decay=0.5), w / 2)


# --- rules and edits --------------------------------------------------------------------------------------------------


def test_direct_feedback_is_nokland_equations():
    b = {"h0": normal(30, 4, 4), "h1": normal(31, 4, 4)}
    got = credit.direct_feedback(b, error="h2").grad(loss)(PARAMS, X)
    kernels, biases = zip(*((p["kernel"], p["bias"]) for p in PARAMS.values()), strict=True)
    h = [X]
    for w, c in zip(kernels, biases, strict=True):
        h.append(jnp.tanh(h[-1] @ w + c[None]))
    error = 2 * h[3]
    deltas = [error @ b["h0"] * (1 - h[1] ** 2), error @ b["h1"] * (1 - h[2] ** 2), error * (1 - h[3] ** 2)]
    for i, delta in enumerate(deltas):
        np.testing.assert_allclose(got[f"dense_{i}"]["kernel"], h[i].T @ delta, rtol=1e-12)
        np.testing.assert_allclose(got[f"dense_{i}"]["bias"], delta.sum(0), rtol=1e-12)


def test_direct_feedback_leaves_the_unused_products_out():
    products = lambda f: jax.jit(f).lower(PARAMS, X).compile().as_text().count(" dot(")
    narrow = credit.direct_feedback({"h1": normal(31, 4, 4)}, error="h2")
    detached = bp.Backward(edits={"h1": lambda ct, cts: jnp.zeros_like(ct)})
    assert products(narrow.grad(loss)) == products(bp.grad(loss))  # one delta not carried down, one fed back
    assert products(detached.grad(loss)) < products(bp.grad(loss))


def test_straight_through():
    rules = credit.straight_through()
    x = jnp.array([0.3, 1.7, -2.2])
    for step in (jnp.round, jnp.floor, jnp.ceil, jnp.sign):
        np.testing.assert_allclose(rules.grad(lambda x, step=step: jnp.sum(step(x) * x))(x), step(x) + x)
    only = credit.straight_through(lax.floor_p)
    np.testing.assert_array_equal(only.grad(lambda x: jnp.sum(jnp.round(x)))(x), 0)


WIDE = "boxcar leaky_boxcar triangular parabolic cosine logistic sech gaussian multi_gaussian exponential fast_sigmoid"
SURROGATES = {name: getattr(credit, name)(2.0) for name in f"{WIDE} arctan q_pseudo".split()}
SURROGATES |= {"straight": credit.straight(), "superspike": credit.superspike()}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_is_one_at_the_threshold_even_and_finite(name):
    h = SURROGATES[name]
    u = jnp.array([0.0, 0.1, 0.3, 1.0, 4.0, 1e3])
    values = h(u)
    np.testing.assert_allclose(values[0], 1, rtol=1e-15)
    assert values.shape == u.shape
    assert jnp.isfinite(values).all()
    np.testing.assert_allclose(h(-u), values, rtol=1e-12)
    assert name == "multi_gaussian" or (np.diff(values) <= 0).all()
    assert name in ("straight", "leaky_boxcar", "superspike") or abs(values[-1]) < 1e-3


@pytest.mark.parametrize(
    ("smooth", "h", "k"),
    [
        (lambda x: x / (1 + jnp.abs(x)), credit.fast_sigmoid, 1.0),
        (jnp.arctan, credit.arctan, 2 / np.pi),
        (lambda x: 4 * jax.nn.sigmoid(x), credit.logistic, 1.0),
        (lambda x: jax.scipy.special.erf(x / np.sqrt(2)) * np.sqrt(np.pi / 2), credit.gaussian, 1.0),
        (lambda x: jnp.arctan(jnp.sinh(x)), credit.sech, 1.0),
    ],
    ids=["fast_sigmoid", "arctan", "logistic", "gaussian", "sech"],
)
def test_a_surrogate_is_the_derivative_of_what_it_says(smooth, h, k):
    u, e = jnp.array([-1.5, -0.2, 0.4, 2.0]), 1e-6
    np.testing.assert_allclose(h(k)(u), (smooth(u + e) - smooth(u - e)) / (2 * e), rtol=1e-8)


def times_a_boolean(x, t):
    with jax.numpy_dtype_promotion("standard"):
        return 1.0 * (x > t)


UNITS = {
    ">": (lambda x, t: (x > t).astype(x.dtype), 1),
    ">=": (lambda x, t: (x >= t).astype(x.dtype), 1),
    "<": (lambda x, t: (x < t).astype(x.dtype), -1),
    "swapped": (lambda x, t: (t < x).astype(x.dtype), 1),
    "where": (lambda x, t: jnp.where(x > t, 1.0, 0.0), 1),
    "where of two heights": (lambda x, t: jnp.where(x > t, 3.0, 1.0) / 2, 1),
    "times a boolean": (times_a_boolean, 1),
}


@pytest.mark.slow(once=["unit", "how"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("how", ["plain", "jit", "scan"])
def test_a_plain_comparison_gets_the_surrogate(unit, how):
    f, sign = UNITS[unit]
    above = lambda u: jnp.where(u > 0, 1.0, 0.5)  # another height on either side of the threshold
    options = credit.spikes(lambda u: above(u) * credit.triangular(0.5)(u))
    x, t, c = jnp.array([0.2, 0.9, 1.3, 5.0]), jnp.full(4, 1.0), jnp.array([1.0, 2.0, 3.0, 4.0])
    run = {"plain": f, "jit": jax.jit(f), "scan": lambda x, t: lax.scan(lambda _, a: (None, f(*a)), None, (x, t))[1]}
    grads = options.grad(lambda x, t: jnp.sum(c * run[how](x, t)), (0, 1))(x, t)
    want = sign * c * np.maximum(1 - 0.5 * np.abs(x - t), 0) * above(sign * (x - t))
    np.testing.assert_allclose(grads, (want, -want), atol=1e-15)
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(run[how](x, t)))(x), 0)


MASK = np.array([True, False, True, True])
COUNTED = {  # what a spike may go through as a boolean, and the derivative of the sum in units of h
    "copied": (lambda z, c: jnp.array(z, c.dtype) @ c, lambda c: c),
    "reshaped": (lambda z, c: z[None, :, None].astype(c.dtype)[0, :, 0] @ c, lambda c: c),
    "negated": (lambda z, c: (~z).astype(c.dtype) @ c, lambda c: -c),
    "counted": (lambda z, c: 2.0 * jnp.sum(z), lambda c: 2 + 0 * c),
    "counted as not zero": (lambda z, c: 2.0 * jnp.count_nonzero(z), lambda c: 2 + 0 * c),
    "averaged": (lambda z, c: jnp.mean(z), lambda c: 0.25 + 0 * c),
    "summed as int32": (lambda z, c: 1.5 * jnp.sum(z.astype(jnp.int32) * jnp.arange(4)), lambda c: 1.5 * np.arange(4)),
    "joined": (lambda z, c: jnp.concatenate([MASK, z]).astype(c.dtype)[4:] @ c, lambda c: c),
    "masked": (lambda z, c: (z & MASK).astype(c.dtype) @ c, lambda c: c * MASK),
    "or": (lambda z, c: (z | MASK).astype(c.dtype) @ c, lambda c: c * ~MASK),
    "other than": (lambda z, c: (z ^ MASK).astype(c.dtype) @ c, lambda c: np.where(MASK, -c, c)),
    "as": (lambda z, c: (z == MASK).astype(c.dtype) @ c, lambda c: np.where(MASK, c, -c)),
    "multiplied into a matrix": (lambda z, c: jnp.sum(z @ jnp.outer(c, jnp.ones(2))), lambda c: 2 * c),
    "at one index": (lambda z, c: z[1].astype(c.dtype) * 3, lambda c: np.array([0.0, 3.0, 0.0, 0.0])),
    "as two dtypes": (
        lambda z, c: jnp.sum(z.astype(jnp.float32)).astype(c.dtype) + z.astype(c.dtype) @ c,
        lambda c: 1 + c,
    ),
}


@pytest.mark.slow(once=["way", "how"])
@pytest.mark.parametrize("way", COUNTED)
@pytest.mark.parametrize("how", ["plain", "jit", "vmap", "scan"])
def test_a_boolean_on_its_way_to_a_number_keeps_the_surrogate(way, how):
    of, want = COUNTED[way]
    backward = credit.spikes(credit.triangular(0.5))
    x, c = jnp.array([0.2, 0.9, 1.3, 2.0]), jnp.array([1.0, 2.0, 3.0, 4.0])
    f = lambda x: of(x > 1, c)
    in_loop = lambda x: lax.scan(lambda s, _: (s + f(x), None), jnp.zeros(()), None, 2)[0] / 2
    grad = {
        "plain": backward.grad(f),
        "jit": jax.jit(backward.grad(f)),
        "vmap": lambda x: jax.vmap(backward.grad(f))(x[None])[0],
        "scan": backward.grad(in_loop),
    }[how]
    h = np.maximum(1 - 0.5 * np.abs(np.asarray(x) - 1), 0)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(grad(x), h * want(np.asarray(c)), rtol=1e-6)


@pytest.mark.parametrize(
    ("what", "f"),
    {
        "`gt`": lambda x: (jnp.sum(x > 1) > 1).astype(x.dtype) * 1.0,
        "`div`": lambda x: 1.0 * (jnp.sum(x > 1) // 2),
        "`scan`": lambda x: lax.scan(lambda z, _: (z, z.astype(x.dtype).sum()), x > 1, None, 2)[1].sum(),
    }.items(),
)
def test_what_stops_a_spikes_cotangent_is_named(what, f):
    backward = credit.spikes(credit.straight())
    message = f"surrogate derivative of a spike .*{what} at .*test_schemes.py"
    with pytest.raises(bp.MissingRuleError, match=message), jax.numpy_dtype_promotion("standard"):
        backward.grad(f)(jnp.array([0.5, 1.5]))


def test_a_comparison_that_only_chooses_is_left_alone():
    options = credit.spikes(credit.straight())
    x = jnp.array([-1.0, 2.0])
    np.testing.assert_array_equal(options.grad(lambda x: jnp.sum(jnp.where(x > 0, x, 0 * x)))(x), [0, 1])
    np.testing.assert_array_equal(options.grad(lambda x: jnp.sum(jax.nn.relu(x)))(x), [0, 1])


def test_a_spiking_unit_over_time_learns_its_slope():
    options = credit.spikes(credit.fast_sigmoid(slope=1.0))

    def count(slope, current):
        def step(v, i):
            z = (slope * (v - 1.0) > 0).astype(v.dtype)
            return 0.9 * v * (1 - z) + i, z

        return lax.scan(step, jnp.zeros(()), current)[1].sum()

    def smooth(slope, current):
        """The same in Python, forward and backward: the tangent of v and z with respect to the slope."""
        v = dv = total = 0.0
        for i in current:
            u, du = slope * (v - 1), (v - 1) + slope * dv
            z, dz = float(u > 0), du / (1 + abs(u)) ** 2
            v, dv, total = 0.9 * v * (1 - z) + i, 0.9 * (dv * (1 - z) - v * dz), total + dz
        return total

    current = jnp.array([0.3, 0.5, 0.8, 0.1, 0.9, 0.4])
    np.testing.assert_allclose(
        options.grad(count)(jnp.array(2.0), current), smooth(2.0, np.asarray(current)), rtol=1e-12
    )


# --- alignment --------------------------------------------------------------------------------------------------------


def angle(a, b):
    return np.degrees(np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))


@bp.rule
def doubled(res, ct, perturbed, **params):
    """y = tanh(x): x̄ = 2 ȳ."""
    return (2 * ct,)


ALIGNED = {
    "feedback": credit.feedback_alignment(KEY, PARAMS),
    "edits": credit.direct_feedback({"h0": normal(30, 4, 4), "h1": normal(31, 4, 4)}, error="h2"),
    "feedback and edits": credit.feedback_alignment(KEY, PARAMS) | bp.Backward(edits={"h1": lambda ct, cts: ct**3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ALIGNED)
def test_alignment_is_angle_and_ratio_to_the_gradient(scheme):
    true, other = bp.grad(loss)(PARAMS, X), ALIGNED[scheme].grad(loss)(PARAMS, X)
    found = credit.alignment(loss, backward=ALIGNED[scheme])(PARAMS, X)
    for layer in PARAMS:
        for leaf in PARAMS[layer]:
            a, b, got = other[layer][leaf], true[layer][leaf], found[layer][leaf]
            np.testing.assert_allclose(got.ratio, np.linalg.norm(a) / np.linalg.norm(b))
            if layer == "dense_2":
                assert got.angle < 1e-6
            else:
                np.testing.assert_allclose(got.angle, angle(a, b))


def test_alignment_runs_the_forward_pass_once():
    calls = []
    counted = lambda params, x: (calls.append(1), loss(params, x))[1]
    for scheme in ALIGNED.values():
        credit.alignment(counted, backward=scheme)(PARAMS, X)
    assert len(calls) == len(ALIGNED)


def test_alignment_of_replaced_rules_is_to_the_true_gradient():
    """tanh taken for twice the identity: far from tanh, the gradient of the first layer has another direction."""
    backward = bp.Backward(rules={lax.tanh_p: doubled})
    square = lambda x, w: (jnp.sum(jnp.tanh(x @ w) ** 2), "aux")
    found = credit.alignment(square, (1, 0), True, backward=backward)(3 * X, normal(0, 4, 4))
    x, w = 3 * X, normal(0, 4, 4)
    y = jnp.tanh(x @ w)
    other, true = 4 * y, 2 * y * (1 - y**2)
    np.testing.assert_allclose(found[0].angle, angle(x.T @ other, x.T @ true))
    np.testing.assert_allclose(found[1].ratio, np.linalg.norm(other @ w.T) / np.linalg.norm(true @ w.T))


# --- edits that cannot be ---------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_those_there_are():
    options = bp.Backward(edits={"h7": lambda ct, cts: ct})
    with pytest.raises(ValueError, match=r"has the name 'h7', and the names there are: 'h0', 'h1', 'h2'\."):
        options.grad(loss)(PARAMS, X)
    in_loop = lambda w: lax.scan(lambda h, _: (bp.name(jnp.tanh(h @ w), "state"), None), X, None, length=2)[0].sum()
    with pytest.raises(ValueError, match="the names there are: 'state'"):
        jax.jit(options.grad(in_loop))(PARAMS["dense_0"]["kernel"])


def test_a_name_not_passed_yet_is_an_error_that_lists_those_passed():
    options = bp.Backward(edits={"h1": lambda ct, cts: cts["h0"]})
    with pytest.raises(KeyError, match="has not passed the name 'h0'; by then it had passed 'h2'"):
        options.grad(loss)(PARAMS, X)


def test_an_edit_of_another_shape_is_an_error_with_the_names():
    options = bp.Backward(edits={"h1": lambda ct, cts: cts["h2"][:1]})
    with pytest.raises(TypeError, match=r"edit of 'h1' returned float64\[1, 4\].* The names passed by then are 'h2'"):
        options.grad(loss)(PARAMS, X)
