"""Each rule against the formula as its source gives it, written for one weight in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from funcbp import optim

RNG = np.random.default_rng(0)
# gradients with runs of one sign, changes, exact zeros and repeats
STREAM = np.concatenate(
    [RNG.normal(size=25).cumsum() * 0.3, [0.0, 0.0, 0.5, 0.5, -0.5, 1e-30, -1e-30], RNG.normal(size=25)]
)
VALUES = np.abs(RNG.normal(1.0, 0.3, size=STREAM.size))


def handed_out(optimizer, stream=STREAM, values=VALUES):
    """The updates for a stream of gradients that do not depend on them."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, seen):
        w, state = carry
        g, value = seen
        update, state = optimizer.update(g, state, w, value=value)
        return (w + update, state), update

    w = jnp.array([0.3])
    seen = jnp.asarray(stream)[:, None], jnp.asarray(values)
    return np.asarray(jax.lax.scan(step, (w, optimizer.init(w)), seen)[1])[:, 0]


@pytest.mark.parametrize("momentum", [0.0, 0.4, 1.0])
def test_inertia_weighs_the_gradient_and_the_last_change(momentum):
    """The gradient alone at 0, the last change alone (there is none) at 1; and sgd's with a rate of its own."""
    got, last = handed_out(optim.inertia(0.1, momentum)), 0.0
    for update, g in zip(got, STREAM, strict=True):
        last = -(1 - momentum) * 0.1 * g + momentum * last
        np.testing.assert_allclose(update, last, rtol=1e-12, atol=1e-15)
    if momentum < 1:
        np.testing.assert_allclose(got, handed_out(optax.sgd(0.1 * (1 - momentum), momentum)), rtol=1e-12, atol=1e-15)


def rprop(kind, stream, values, size=0.1, up=1.2, down=0.5, largest=50.0, smallest=1e-6):
    last_g = last = 0.0
    last_value = np.inf
    for g, value in zip(stream, values, strict=True):
        s = np.sign(g) * np.sign(last_g)
        if s > 0:
            size = min(size * up, largest)
            move = -np.sign(g) * size
        elif s < 0:
            size = max(size * down, smallest)
            if kind == "rprop_plus":
                move = -last
            elif kind == "rprop_minus":
                move = -np.sign(g) * size
            elif kind == "irprop_plus":
                move = -last if value > last_value else 0.0
            else:
                move = 0.0
            if kind != "rprop_minus":
                g = 0.0
        else:
            move = -np.sign(g) * size
        last_g, last, last_value = g, move, value
        yield move


@pytest.mark.parametrize("kind", ["rprop_plus", "rprop_minus", "irprop_plus", "irprop_minus"])
def test_rprop(kind):
    np.testing.assert_allclose(handed_out(getattr(optim, kind)()), list(rprop(kind, STREAM, VALUES)), rtol=1e-14)
    short = list(rprop(kind, STREAM, VALUES, 0.1, 2.0, 0.1, largest=0.3, smallest=0.05))
    np.testing.assert_allclose(handed_out(getattr(optim, kind)(0.1, 0.1, 2.0, 0.05, 0.3)), short, rtol=1e-14)


@pytest.mark.parametrize(("value", "moved"), [(0.9, 0.0), (1.0, 0.0), (1.1, 0.1), (np.nan, 0.1)])
def test_irprop_plus_takes_back_what_made_it_worse(value, moved):
    """An equal error is not worse; one that is not a number is."""
    optimizer = optim.irprop_plus(0.1)
    _, state = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)), value=1.0)
    np.testing.assert_allclose(optimizer.update(-jnp.ones(1), state, value=value)[0], [moved])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_irprop_minus_is_optax_s_to_the_last_bit(dtype):
    """optax 0.2.8 computes the same steps, but hands each one out an update late (google-deepmind/optax#1725)."""
    stream = RNG.normal(size=(60, 5)).astype(dtype)
    w, ours, theirs = jnp.zeros(5, dtype), optim.irprop_minus(0.1), optax.rprop(0.1)
    state, their_state = ours.init(w), theirs.init(w)
    last, late = np.zeros(5, dtype), None
    for g in stream:
        update, state = ours.update(g, state)
        with jax.numpy_dtype_promotion("standard"):
            theirs_out, their_state = theirs.update(g, their_state)
        np.testing.assert_array_equal(update, -their_state[0].prev_updates)
        np.testing.assert_array_equal(state.step_sizes, their_state[0].step_sizes)
        late = not np.any(theirs_out) if late is None else late
        # what is late is left out where the sign has changed since: ours moves against the gradient
        np.testing.assert_array_equal(theirs_out, np.where(g * last > 0, 0, last) if late else update)
        last = np.asarray(update)


def test_irprop_minus_sees_signs_that_optax_s_product_loses():
    """1e-30 times 1e-30 is 0 in float32, and then no step would ever grow."""
    state, optimizer = optim.irprop_minus(0.1).init(jnp.zeros(1, jnp.float32)), optim.irprop_minus(0.1)
    for _ in range(2):
        update, state = optimizer.update(jnp.full(1, 1e-30, jnp.float32), state)
    np.testing.assert_allclose(update, [-0.12], rtol=1e-6)


def quickprop(stream, w=0.3, epsilon=0.7, mu=1.75, decay=1e-4):
    """From the Lisp program, with its signs: the slope points downhill."""
    shrink, d, p = mu / (1 + mu), 0.0, 0.0
    for g in stream:
        s = -g - decay * w
        step = 0.0
        if d > 0:
            if s > 0:
                step += epsilon * s
            step += mu * d if s > shrink * p else d * s / (p - s)
        elif d < 0:
            if s < 0:
                step += epsilon * s
            step += mu * d if s < shrink * p else d * s / (p - s)
        else:
            step += epsilon * s
        w, d, p = w + step, step, s
        yield step


def test_quickprop():
    expected = list(quickprop(STREAM[:20]))
    np.testing.assert_allclose(handed_out(optim.quickprop(0.7), STREAM[:20], VALUES[:20]), expected, rtol=1e-9)
    assert len({np.sign(x) for x in expected}) == 2
    assert not np.allclose(expected, list(quickprop(STREAM[:20], decay=0.0)), rtol=1e-6)


@pytest.mark.slow
def test_quickprop_divides_epsilon_by_the_inputs_of_a_unit():
    ones = {"dense_0": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones((2, 2, 5, 3))}}
    optimizer = optim.quickprop(1.0, decay=0.0)
    update = optimizer.update(ones, optimizer.init(ones))[0]
    fans = jax.tree.map(lambda u: float(-1 / u.ravel()[0]), update)
    assert fans == {
        "dense_0": {"kernel": pytest.approx(5), "bias": pytest.approx(5)},
        "b": {"kernel": pytest.approx(20)},
    }


def delta_bar_delta(stream, rate=0.1, kappa=0.03, phi=0.2, theta=0.7, alpha=0.4):
    average = last = 0.0
    for g in stream:
        product = np.sign(average) * np.sign(g)
        rate += kappa if product > 0 else -phi * rate if product < 0 else 0.0
        last = -rate * g + alpha * last
        average = (1 - theta) * g + theta * average
        yield last


def test_delta_bar_delta():
    optimizer = optim.delta_bar_delta(0.1, 0.03, 0.2, 0.7, 0.4)
    np.testing.assert_allclose(handed_out(optimizer), list(delta_bar_delta(STREAM)), rtol=1e-12)


def super_sab(stream, rate=0.1, up=1.5, down=0.5, alpha=0.3, maximum=0.4):
    last_g = last = 0.0
    for g in stream:
        if np.sign(g) * np.sign(last_g) >= 0:
            rate = min(rate * up, maximum)
            move = last = -rate * g + alpha * last
            last_g = g
        else:
            rate *= down
            move, last, last_g = -last, 0.0, 0.0
        yield move


def test_super_sab():
    optimizer = optim.super_sab(0.1, eta_plus=1.5, momentum=0.3, maximum=0.4)
    np.testing.assert_allclose(handed_out(optimizer), list(super_sab(STREAM)), rtol=1e-12)


def ravine(w):
    return 0.5 * (w[0] ** 2 + 20 * w[1] ** 2)


def walk(optimizer, rate_of, count=40, w=(3.0, 1.0)):
    """The points a rule goes through, with the rate it has at each."""
    w, points = jnp.array(w), []
    state = optimizer.init(w)
    for _ in range(count):
        value, g = bp.value_and_grad(ravine)(w)
        update, state = optimizer.update(g, state, w, value=value, value_fn=ravine)
        w = optax.apply_updates(w, update)
        points.append([*np.asarray(w), *np.ravel(rate_of(state))])
    return np.array(points)


def driven(grow, shrink, alpha, tolerance, rate=0.2, count=40):
    """Evaluate, then keep the point or go back to the one before: every trial is one evaluation."""
    slopes = np.array([1.0, 20.0])
    error = lambda w: 0.5 * np.sum(slopes * w**2)
    kept, last = np.array([3.0, 1.0]), np.zeros(2)
    value = error(kept)
    trial = None
    for _ in range(count):
        if trial is not None:
            if error(trial) > value * (1 + tolerance):
                rate, last = rate * shrink, np.zeros(2)
            else:
                if error(trial) < value:
                    rate *= grow
                last, kept, value = trial - kept, trial, error(trial)
        trial = kept - rate * slopes * kept + alpha * last
        yield [*trial, rate]


def test_bold_driver_and_vogl():
    points = walk(optim.bold_driver(0.2, momentum=0.3), lambda s: s.learning_rate)
    np.testing.assert_allclose(points, list(driven(1.1, 0.5, 0.3, 0.0)), rtol=1e-9, atol=1e-13)
    points = walk(optim.vogl(0.2), lambda s: s.learning_rate)
    np.testing.assert_allclose(points, list(driven(1.05, 0.7, 0.9, 0.04)), rtol=1e-9, atol=1e-13)


def test_a_step_to_where_the_error_is_no_number_is_taken_back():
    for optimizer in (optim.bold_driver(0.1), optim.vogl(0.1), optim.silva_almeida(0.1)):
        w = jnp.array([1.0])
        state = optimizer.init(w)
        first, state = optimizer.update(jnp.array([2.0]), state, w, value=1.0)
        second, state = optimizer.update(jnp.array([np.nan]), state, w + first, value=np.nan)
        if isinstance(state, optim.BoldDriverState):
            shrunk = float(state.learning_rate) / 0.1
            np.testing.assert_allclose(first + second, shrunk * first, rtol=1e-12)
            assert shrunk < 1
        assert np.isfinite(float(state.value))


def test_silva_almeida():
    slopes = np.array([1.0, 20.0])
    error = lambda w: 0.5 * np.sum(slopes * w**2)
    rates, kept, z, value, failures = np.full(2, 0.4), np.zeros(2), np.zeros(2), np.inf, 0
    w, expected, halved = np.array([3.0, 1.0]), [], 0
    for _ in range(40):
        g = slopes * w
        s = np.sign(g) * np.sign(kept)
        rates = rates * np.where(s < 0, 0.8, np.where((s > 0) & (error(w) <= value), 1.2, 1))
        if error(w) > value:
            failures, z = failures + 1, slopes * kept
            if failures == 5:
                rates, failures, halved = rates / 2, 0, halved + 1
        else:
            failures, value, kept, z = 0, error(w), w, g + 0.3 * z
        w = kept - rates * z
        expected.append([*w, *rates])
    assert halved
    points = walk(optim.silva_almeida(0.4, momentum=0.3), lambda s: s.learning_rates)
    np.testing.assert_allclose(points, expected, rtol=1e-9, atol=1e-13)


def test_silva_almeida_recovers_from_any_step():
    """On a curved surface, too, where the sign does not change however far a step goes."""
    error = lambda w: jnp.log1p(w[0] ** 2) + 10 * jnp.log1p((w[1] - w[0]) ** 2)
    optimizer = optim.silva_almeida(0.5)

    def step(carry, _):
        w, state = carry
        value, gradient = bp.value_and_grad(error)(w)
        update, state = optimizer.update(gradient, state, w, value=value)
        return (w + update, state), None

    w = jnp.array([3.0, -2.0])
    (_, state), _ = jax.lax.scan(step, (w, optimizer.init(w)), length=300)
    assert state.value < 1e-6


@pytest.mark.parametrize("normalize", [False, True])
def test_salomon(normalize):
    slopes, w, rate, expected = np.array([1.0, 20.0]), np.array([3.0, 1.0]), 0.02, []
    error = lambda w: 0.5 * np.sum(slopes * w**2)
    for _ in range(30):
        g = slopes * w
        g = g / np.linalg.norm(g) if normalize else g
        rate = min((rate * 1.8, rate / 1.8), key=lambda r: error(w - r * g))
        w = w - rate * g
        expected.append([*w, rate])
    points = walk(optim.salomon(0.02, normalize=normalize), lambda s: s.learning_rate, 30)
    np.testing.assert_allclose(points, expected, rtol=1e-9, atol=1e-13)


def test_by_path():
    params = {"dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "dense_1": {"kernel": jnp.ones((2, 1))}}
    rules = {"*/bias": optax.set_to_zero(), "dense_0/*": optim.quickprop(0.5, decay=0.0), "*": optax.sgd(0.01)}
    updates = jax.jit(lambda p: optim.by_path(rules).update(p, optim.by_path(rules).init(p), p)[0])(params)
    # the bias has a rule of its own, so that quickprop does not see it beside the kernel
    assert jax.tree.map(lambda u: float(u.ravel()[0]), updates) == {
        "dense_0": {"kernel": -0.25, "bias": 0.0},
        "dense_1": {"kernel": -0.01},
    }
    with pytest.raises(ValueError, match="no pattern for the parameter dense_1/kernel"):
        optim.by_path({"dense_0/*": optax.sgd(0.1)}).init(params)
    with pytest.raises(ValueError, match=r"pattern 'dense_7/\*' is the first to match none of dense_0/bias, "):
        optim.by_path({"dense_7/*": optax.sgd(0.1), "*": optax.sgd(0.1)}).init(params)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optim.irprop_plus(), r"irprop_plus compares the error with the one before: call .*value=loss\)"),
        (optim.bold_driver(0.1), "bold_driver compares the error with the one before"),
        (optim.vogl(), "vogl compares the error with the one before"),
        (optim.silva_almeida(0.1), "silva_almeida compares the error with the one before"),
        (optim.salomon(0.1), r"salomon tries two learning rates: call .*value_fn=loss_function\)"),
        (optim.quickprop(0.1), "quickprop with a decay needs the parameters"),
    ],
)
def test_what_is_missing_is_said(optimizer, message):
    w = jnp.ones(2)
    with pytest.raises(ValueError, match=message):
        optimizer.update(w, optimizer.init(w))


def test_sigmoid_prime_offset():
    backward = optim.sigmoid_prime_offset(0.1)
    for x in (0.0, 3.0, -40.0):
        y = jax.nn.sigmoid(x)
        for logistic in (jax.nn.sigmoid, bp.ops.logistic):
            np.testing.assert_allclose(backward.grad(logistic)(x), y * (1 - y) + 0.1, rtol=1e-14)
    np.testing.assert_allclose(bp.grad(jax.nn.sigmoid)(0.0), 0.25)


D = np.array([-1.0, -0.99, -0.5, -0.11, -0.05, 0.0, 0.05, 0.11, 0.5, 1.0])


@pytest.mark.slow
def test_fahlman_s_errors():
    t = jnp.where(D < 0, 1.0, 0.0)
    y = t + D
    np.testing.assert_allclose(bp.grad(bp.ops.dead_zone_error)(y, t), np.where(np.abs(D) > 0.1, D, 0), atol=1e-15)
    with np.errstate(divide="ignore"):
        hyper = np.clip(np.log((1 + D) / (1 - D)), -17, 17)
    np.testing.assert_allclose(bp.grad(bp.ops.hyper_error)(y, t), hyper, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(bp.grad(bp.ops.hyper_error, 1)(y, t), -hyper, rtol=1e-12, atol=1e-15)
    smooth = np.array([2, 4, 6, 8])  # away from the edges, where the derivative jumps
    for error in (bp.ops.dead_zone_error, bp.ops.hyper_error):
        bp.testing.assert_gradients(lambda y, error=error: error(y, t[smooth]), y[smooth])
        with pytest.raises(ValueError, match="needs predictions and targets of one shape"):
            error(y, t[:3])
    width = lambda width: bp.ops.dead_zone_error(y, t, width)
    np.testing.assert_allclose(bp.grad(width)(0.2), -0.2 * np.sum(np.abs(D) > 0.2), rtol=1e-14)
