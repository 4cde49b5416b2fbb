"""A function with a backward pass of ours in it, under whatever differentiates it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import checkify

import funcbp as bp
from funcbp import credit

TEN = bp.Backward(edits={"h": lambda ct, cts: 10 * ct})
W, X = jnp.array(3.0), jnp.array([1.0, 10.0])
NEVER = lambda w, x: w


@TEN.attach
def loss(w, x, power=2):
    """Σ (w x)²: by its edit, ten times the derivative 2 w Σ x² = 606."""
    return jnp.sum(bp.name(w * x, "h") ** power)


def closing(w):
    return TEN.attach(lambda x: jnp.sum(bp.name(w * x, "h") ** 2))(X)


def over_two(f):
    """The mean of f over two steps of a loop."""
    return lambda w: lax.scan(lambda c, x: (c + f(w, x) / 2, None), jnp.zeros(()), jnp.stack([X, X]))[0]


USES = {
    "eager": loss,
    "jit": jax.jit(loss),
    "with an option": lambda w, x: loss(w, x, power=2),
    "checkpoint": jax.checkpoint(loss),
    "scan": lambda w, x: over_two(loss)(w),
    "scan of checkpoint": lambda w, x: over_two(jax.checkpoint(loss))(w),
    "cond": lambda w, x: lax.cond(w > 0, loss, NEVER, w, x),
    "vmap": lambda w, x: jax.vmap(loss, (None, 0))(w, jnp.stack([x, 0 * x])).sum(),
    "closed over": lambda w, x: closing(w),
    "closed over in a loop": lambda w, x: over_two(lambda w, x: closing(w))(w),
    "closed over in checkpoint": lambda w, x: jax.checkpoint(closing)(w),
    "beside another output": lambda w, x: TEN.attach(lambda w, i: (i + 1, jnp.sum(bp.name(w * x, "h") ** 2)))(
        w, jnp.arange(2)
    )[1],
}


@pytest.mark.parametrize("grad", [jax.grad, bp.grad], ids=["jax", "ours"])
@pytest.mark.parametrize("use", USES)
def test_its_derivative_is_that_of_the_backward_pass(use, grad):
    np.testing.assert_allclose(grad(USES[use])(W, X), 6060.0)
    if use in ("eager", "closed over"):
        np.testing.assert_allclose(
            jax.jit(jax.vmap(grad(USES[use]), (0, None)))(jnp.stack([W, 2 * W]), X), [6060, 12120]
        )


def test_it_is_the_same_function_and_differentiates_what_is_asked_for():
    assert loss(W, X) == 909.0 and loss.__name__ == "loss"
    f = bp.Backward().attach(lambda w, x: jnp.sum(w * jnp.sin(x)))
    _, pullback = jax.vjp(lambda w: f(w, jnp.arange(8.0)), W)
    assert sum(r.size for r in jax.tree.leaves(pullback)) <= 8 + 1  # sin x, and not x, which is not differentiated
    np.testing.assert_allclose(jax.grad(loss, 1)(W, X), 10 * 2 * 9 * X)


RUNS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "region": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_it_keeps_no_tracer_of_its_arguments(run):
    """d sin²(x) x₀/dx, where JAX looks for tracers that outlive their trace."""
    x = jnp.array([0.3, -0.7])
    f = bp.Backward().attach(lambda x, more: jnp.sum(jnp.sin(x) ** 2) * more["scale"])
    with jax.checking_leaks():
        got = jax.grad(lambda x: run(lambda x: f(x, {"scale": x[0], "name": "a"}))(x))(x)
    want = jnp.sin(2 * x) * x[0] + jnp.array([1.0, 0.0]) * jnp.sum(jnp.sin(x) ** 2)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_second_derivatives_are_those_of_this_backward_pass():
    """The gradient is 20 w Σ x² = 2020 w, by whatever takes its derivative; forward mode is refused by JAX."""
    for second in (jax.grad(jax.grad(loss)), jax.hessian(loss), bp.grad(bp.grad(loss)), bp.hessian(loss)):
        np.testing.assert_allclose(second(W, X), 2020.0)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda w: loss(w, X), (W,), (W,))


# --- a training loop that knows nothing of it -------------------------------------------------------------------------


def train(loss, params, batches, optimizer):
    """Somebody's loop."""

    @jax.jit
    def run(params):
        def step(carry, batch):
            params, state = carry
            grads = jax.grad(loss)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    return run(params)


normal = lambda i, *shape: np.asarray(jax.random.normal(jax.random.key(i), shape))


def test_feedback_alignment_in_a_loop_written_for_jax():
    params = {"a": {"kernel": normal(0, 3, 4)}, "b": {"kernel": normal(1, 4, 2)}}
    batches = normal(2, 2, 5, 3)
    net = lambda p, x: jnp.sum((jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"]) ** 2)
    aligned = credit.feedback_alignment(jax.random.key(7), params)
    got = train(aligned.attach(net), params, batches, optax.sgd(0.01))
    (a, b), feedback = (params[k]["kernel"] for k in "ab"), np.asarray(aligned.feedback["b"]["kernel"])
    for x in batches:
        h = np.tanh(x @ a)
        delta = 2 * h @ b
        a, b = a - 0.01 * x.T @ (delta @ feedback.T * (1 - h**2)), b - 0.01 * h.T @ delta
    np.testing.assert_allclose(got["a"]["kernel"], a, rtol=1e-6)
    np.testing.assert_allclose(got["b"]["kernel"], b, rtol=1e-6)


def test_a_plan_in_a_loop_written_for_jax():
    """The numbers are JAX's, and between the passes there is one number a step, where JAX keeps several."""
    f = lambda w, x: lax.scan(lambda c, x: (jnp.sin(jnp.sin(jnp.sin(c * w)) + x), None), w, x)[0]
    x = jnp.arange(8.0)
    planned = bp.Backward(residuals="inputs").attach(f)
    train_both = [train(g, W, jnp.stack([x, x]), optax.sgd(0.1)) for g in (f, planned)]
    np.testing.assert_allclose(*train_both, rtol=1e-6)
    kept = lambda g: sum(r.size for r in jax.tree.leaves(jax.vjp(lambda w: g(w, x), W)[1]))
    assert kept(planned) <= 2 * 8 + 2 < 3 * 8 <= kept(f)


def test_what_is_written_into_an_argument_is_not_lost_in_silence():
    """As a layer writes its statistics: the arguments are copies here, so the caller's would stay as they were."""

    def counting(state, x):
        state["seen"] = state["seen"] + 1
        return jnp.sum(x**2)

    with pytest.raises(ValueError, match="counting changes an argument in place"):
        jax.grad(TEN.attach(counting), 1)({"seen": jnp.zeros(())}, X)


def test_what_is_taken_out_of_an_argument_is_not_lost():
    """By the edit, ten times the derivative of (3 w)², 18 w = 54 at 3."""
    popping = lambda w, batch: bp.name(w * batch.pop("x"), "h") ** 2
    assert jax.jit(jax.grad(TEN.attach(popping)))(W, {"x": jnp.array(3.0)}) == 540


def test_what_is_put_back_into_an_argument_as_it_was_is_no_change():
    """As `flax.nnx.remat` and `nnx.jit` put a model's parameters back, out of a region, a loop or a branch."""
    identity = lambda state: jax.tree.map(lambda v: v, state)
    step = lambda c, w: (c, jax.jit(jax.checkpoint(identity))(w))
    ways = {
        "remat": jax.checkpoint(identity),
        "scan over it": lambda state: lax.scan(step, 0.0, state)[1],
        "scan that carries it": lambda state: lax.scan(lambda c, _: (identity(c), None), state, length=2)[0],
        "cond": lambda state: lax.cond(state["w"][0] > 0, identity, identity, state),
    }
    for name, way in ways.items():

        def putting_back(state, x, way=way):
            state.update(way(state))
            return jnp.sum(bp.name(state["w"] * x, "h") ** 2)

        state = {"w": W * jnp.ones(2), "b": jnp.zeros(2)}
        np.testing.assert_allclose(jax.grad(TEN.attach(putting_back))(state, X)["w"], 20 * W * X**2, err_msg=name)


CHANGES = {
    "exchanged": lambda state, x: state.update(a=state["b"], b=state["a"]),
    "another argument": lambda state, x: state.update(a=x),
    "carried to another place": lambda state, x: state.update(
        zip("ab", lax.scan(lambda c, _: ((c[1], c[0]), None), (state["a"], state["b"]), length=1)[0], strict=True)
    ),
    "another row": lambda state, x: state.update(a=lax.scan(lambda c, v: (c, c), state["a"][0], state["a"])[1]),
    "in one branch": lambda state, x: state.update(a=lax.cond(x[0] > 0, lambda a: a, lambda a: 2 * a, state["a"])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_arguments_that_are_put_in_other_places_are_not_lost_in_silence(change):
    def changing(state, x):
        CHANGES[change](state, x)
        return jnp.sum(x**2)

    with pytest.raises(ValueError, match="changing changes an argument in place"):
        jax.grad(TEN.attach(changing), 1)({"a": X, "b": 0 * X}, X)


def test_what_it_returns_beside_arrays_is_returned_as_it_is():
    def described(w):
        return bp.name(w * w, "h"), {"text": "squared", "steps": 3, "function": jnp.tanh}

    ((value, aux), slope) = jax.value_and_grad(TEN.attach(described), has_aux=True)(W)
    assert (value, slope) == (9, 60)
    assert aux == {"text": "squared", "steps": 3, "function": jnp.tanh}


X3 = jnp.array([1.0, 2.0, 4.0])
MAPPED = {  # a function that is mapped over X3, and what the sum of its outputs is, by w²
    "gathered": (lambda w, x: jnp.sum(lax.all_gather(w * x, "n") ** 2), 3 * 21),
    "scattered": (lambda w, x: lax.psum_scatter(jnp.stack([w * x] * 3), "n") ** 2, 3 * 49),
    "size": (lambda w, x: jnp.sum(lax.all_gather(w * x, "n") ** 2) / lax.axis_size("n"), 21),
    "summed": (lambda w, x: lax.psum(w * x, "n") ** 2, 3 * 49),
    "a mean beside a penalty": (lambda w, x: (lax.pmean((w * x) ** 2, "n"), w**2), 21 + 3),
    "an example's beside all examples'": (lambda w, x: ((w * x) ** 2, w**2), 21 + 3),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", MAPPED)
def test_what_all_examples_of_a_map_share_counts_once(name, jit):
    """JAX maps backward rules by themselves: a shared output's cotangent counts thrice, or the axis is unknown."""
    f, value = MAPPED[name]
    attached = bp.Backward().attach(f)
    mapped = lambda w: sum(map(jnp.sum, jax.tree.leaves(jax.vmap(attached, (None, 0), axis_name="n")(w, X3))))
    mapped = jax.jit(mapped) if jit else mapped
    looped = lambda w: lax.scan(lambda c, _: (jax.checkpoint(mapped)(c) / c, None), w, length=1)[0]
    for grad in (jax.grad, bp.grad):
        np.testing.assert_allclose(grad(mapped)(W), 2 * value * W, rtol=1e-6)
        np.testing.assert_allclose(grad(grad(mapped))(W), 2 * value, rtol=1e-6)
        np.testing.assert_allclose(grad(looped)(W), value, rtol=1e-6)


def test_an_output_that_all_examples_share_may_leave_the_map_once():
    """Σ (w x)² + w² = 22 w²."""
    attached = bp.Backward().attach(MAPPED["an example's beside all examples'"][0])
    total = lambda w: sum(map(jnp.sum, jax.vmap(attached, (None, 0), (0, None))(w, X3)))
    np.testing.assert_allclose(jax.grad(total)(W), 2 * 22 * W)


def test_an_edit_is_of_one_example_under_any_order_of_map_and_derivative():
    """By its edit the cotangent at h is a unit vector for each example: w̄ = Σ x · 2 w x / |2 w x|, √(1 + 4) and 4."""
    unit = bp.Backward(edits={"h": lambda ct, cts: ct / jnp.linalg.norm(ct)})
    f = unit.attach(lambda w, x: jnp.sum(bp.name(w * x, "h") ** 2))
    xs, each = jnp.array([[1.0, 2.0], [0.0, 4.0]]), [np.sqrt(5), 4]
    over = lambda w: jnp.sum(jax.vmap(f, (None, 1))(w, xs.T))
    nested = lambda w: jnp.sum(jax.vmap(lambda s: jax.vmap(f, (None, 0), axis_name="n")(w * s, xs))(jnp.ones(3)))
    for grad in (jax.grad, bp.grad):
        np.testing.assert_allclose(jax.vmap(grad(f), (None, 0))(W, xs), each, rtol=1e-6)
        np.testing.assert_allclose(grad(over)(W), sum(each), rtol=1e-6)
        np.testing.assert_allclose(jax.jit(grad(nested))(W), 3 * sum(each), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_checks_in_it_are_made(jit):
    """By the edit, the derivative of w² is 20 w; `checkify` inside and outside of the derivative, and of a map."""

    @TEN.attach
    def checked(w):
        checkify.check(w < 5, "too large: {w}", w=w)
        return bp.name(w * w, "h")

    compiled = jax.jit if jit else lambda f: f
    outside = compiled(checkify.checkify(jax.grad(checked)))
    inside = compiled(jax.grad(lambda w: checkify.checkify(checked)(w)[::-1], has_aux=True))
    all_of = lambda ws: jax.vmap(checked)(ws).sum()
    mapped = compiled(jax.grad(lambda ws: checkify.checkify(all_of)(ws)[::-1], has_aux=True))
    for w, message in ((3.0, None), (6.0, "too large")):
        for error, slope in (outside(w), inside(w)[::-1], mapped(jnp.array([1.0, w]))[::-1]):
            np.testing.assert_allclose(np.ravel(slope)[-1], 20 * w)
            assert (error.get() is None) if message is None else (message in error.get())


# --- mutable references -----------------------------------------------------------------------------------------------

C = jnp.array([0.3, -0.7, 1.1])


def making(x):
    """Make a reference inside what is attached: (x₀ x₁ + x₁) x₁, by steps."""
    a = jax.new_ref(x)

    def step(c, i):
        a[i] = a[i] * c
        return c + a[i], None

    return lax.scan(step, x[1], jnp.arange(2))[0] + jnp.sum(a[...])


def writing(r, c):
    """Write into a reference that is an argument."""
    r[0] = r[1] * c
    return r[0]


def over_argument(attach):
    def f(x):
        r = jax.new_ref(x)
        return attach(writing)(r, x[0]) + jnp.sum(r[...])

    return f


def over_closed(attach):
    def f(x):
        r = jax.new_ref(x)
        return attach(lambda c: writing(r, c))(x[0]) + jnp.sum(r[...])

    return f


def in_snapshots(attach):
    def f(x):
        r = jax.new_ref(x)

        def step(c, i):
            own = jax.new_ref(c)
            r[i % 3] = jnp.sin(r[(i + 1) % 3] * own[...])
            return c + r[i % 3], None

        return attach(lambda c: bp.scan(step, c, jnp.arange(6), snapshots=2)[0])(x[1]) + jnp.sum(r[...])

    return f


def in_bounded_loop(attach):
    def f(x):
        r = jax.new_ref(x)

        def step(state):
            i, c = state
            own = jax.new_ref(c)
            r[i % 3] = jnp.sin(r[(i + 1) % 3] * own[...])
            return i + 1, c + r[i % 3]

        loop = lambda c: bp.while_loop(lambda state: state[0] < 5, step, (0, c), max_steps=8)[1]
        return attach(loop)(x[1]) + jnp.sum(r[...])

    return f


WITH_REFERENCES = {
    "made": lambda attach: attach(making),
    "argument": over_argument,
    "closed over": over_closed,
    "snapshots": in_snapshots,
    "bounded loop": in_bounded_loop,
}
DIFFERENTIATED = {
    "jax": jax.grad,
    "ours": bp.grad,
    "jit of jax": lambda f: jax.jit(jax.grad(f)),
    "jax of jit": lambda f: jax.grad(jax.jit(f)),
    "ours of jit": lambda f: bp.grad(jax.jit(f)),
    "vmap of jax": lambda f: lambda x: jax.vmap(jax.grad(f))(x[None])[0],
    "ours of vmap": lambda f: bp.grad(lambda x: jax.vmap(f)(x[None])[0]),
    "ours of checkpoint": lambda f: bp.grad(jax.checkpoint(f)),
}


@pytest.mark.parametrize("program", WITH_REFERENCES)
@pytest.mark.parametrize("how", DIFFERENTIATED)
def test_attached_functions_read_and_write_references(program, how):
    """Against differences of the same program without any derivative."""
    with jax.enable_x64(True):
        x = np.asarray(C, np.float64)
        f = WITH_REFERENCES[program](bp.Backward().attach)
        plain = WITH_REFERENCES[program](lambda f: f)
        want = [(plain(jnp.asarray(x + d)) - plain(jnp.asarray(x - d))) / 2e-5 for d in 1e-5 * np.eye(3)]
        np.testing.assert_allclose(DIFFERENTIATED[how](f)(jnp.asarray(x)), want, atol=1e-8)


def test_what_is_stopped_is_written_into_a_reference_outside():
    r = jax.new_ref(jnp.zeros(()))

    @bp.Backward().attach
    def adding(x):
        r[...] += lax.stop_gradient(x)
        return x * x + r[...]

    @bp.Backward().attach
    def setting(x):
        r[...] = lax.stop_gradient(x)
        return x * x + r[...]

    assert jax.grad(adding)(3.0) == 6.0 and r[...] == 3.0
    assert jax.jit(jax.grad(adding))(4.0) == 8.0 and r[...] == 7.0
    for i, grad in enumerate((jax.grad, bp.grad, jax.jit(jax.grad(setting)), jax.jit(bp.grad(setting)))):
        gradient = grad(setting) if i < 2 else grad
        assert gradient(float(i)) == 2.0 * i and r[...] == i


STOPPED = {
    "called": lambda f: f,
    "compiled": jax.jit,
    "attached again": bp.Backward().attach,
    "in a loop": lambda f: lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0],
    "in a branch": lambda f: lambda x: lax.cond(x > 0, f, jnp.sin, x),
    "checkpointed": jax.checkpoint,
}


@pytest.mark.parametrize("where, how", [*((w, "ours") for w in STOPPED), *((w, "jax") for w in list(STOPPED)[:-1])])
def test_what_is_stopped_is_added_to_a_reference_outside(where, how):
    """y = x² r, where r = 1 + x is held as constant:  y' = 2 x r, then 2 r. JAX adds a checkpointed region's twice."""
    grad = {"ours": bp.grad, "jax": jax.grad}[how]
    first, second = jax.new_ref(1.0), jax.new_ref(1.0)

    def adding(r):
        @bp.Backward().attach
        def f(x):
            r[...] += lax.stop_gradient(x)
            return x * x * r[...]

        return STOPPED[where](f)

    assert grad(adding(first))(3.0) == 24.0 and first[...] == 4.0
    assert grad(grad(adding(second)))(3.0) == 8.0 and second[...] == 4.0
