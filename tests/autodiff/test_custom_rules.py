"""Functions with a derivative of their own, as people write them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

HOW = pytest.mark.parametrize("how", ["eager", "jit", "vmap", "scan"])


def grad_of(f, how, **options):
    """The gradient of a function of one number, run in one of these ways."""
    in_loop = lambda x: lax.scan(lambda c, _: (c + f(x), None), jnp.zeros(()), None, 1)[0]
    return {
        "eager": bp.grad(f),
        "jit": jax.jit(bp.grad(f)),
        "vmap": lambda x: jax.vmap(bp.grad(f))(x[None])[0],
        "scan": bp.grad(in_loop),
    }[how]


@HOW
def test_a_tangent_rule_may_call_the_function_itself(how):
    """Linear functions are written so: the tangent of f is f of the tangent."""

    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (double(*primals), double(*tangents)))
    assert grad_of(lambda x: double(x) ** 2, how)(jnp.array(3.0)) == 2 * 6 * 2


@HOW
@pytest.mark.parametrize("number", [True, 2, 1.5])
def test_a_python_number_may_stand_beside_the_result(how, number):
    @jax.custom_vjp
    def doubled(x):
        return 2 * x, number

    doubled.defvjp(lambda x: ((2 * x, number), None), lambda res, ct: (2 * ct[0],))
    assert grad_of(lambda x: doubled(x)[0], how)(jnp.array(3.0)) == 2


@HOW
@pytest.mark.parametrize("number", [0, 0.0, 2.5, np.float64(2.5), False])
def test_a_cotangent_may_be_a_python_number(how, number):
    @jax.custom_vjp
    def product(a, b):
        return a * b

    product.defvjp(lambda a, b: (a * b, b), lambda b, ct: (ct * b, number))
    assert grad_of(lambda x: product(x, x + 1), how)(jnp.array(3.0)) == 4 + float(number)


@HOW
def test_a_residual_that_is_a_python_number_stays_one(how):
    """A rule may decide by it, as Equinox's do, also where its function is called in a compiled one."""

    @jax.custom_vjp
    def powers(x):
        return x**3

    def bwd(res, ct):
        doubles, n, x = res
        return ((2 if doubles else 1) * n * x ** len(range(n - 1)) * ct,)

    powers.defvjp(lambda x: (x**3, (True, 3, x)), bwd)
    assert grad_of(jax.jit(powers), how)(jnp.array(2.0)) == 2 * 3 * 4


@HOW
def test_a_residual_that_is_a_constant_is_an_array(how):
    """A rule that indexes it by a traced number, as odeint's does, needs one of JAX's."""

    @jax.custom_vjp
    def weighed(x, t):
        return x * jnp.sum(t)

    def bwd(res, ct):
        _, t = res
        return ct * lax.fori_loop(0, 2, lambda i, s: s + t[i], jnp.zeros(())), None

    weighed.defvjp(lambda x, t: (x * jnp.sum(t), (x, t)), bwd)
    inner = jax.jit(lambda x: weighed(x, np.array([1.0, 2.0])))
    assert grad_of(inner, how)(jnp.array(2.0)) == 3


@HOW
def test_a_closed_over_value_is_known_for_differentiated(how):
    """`jax.closure_convert` hoists what is being differentiated: here a weight that the function closes over."""

    def f(w):
        scaled, constants = jax.closure_convert(lambda v: w * v, jnp.ones(()))

        @jax.custom_vjp
        def apply(v, *constants):
            return scaled(v, *constants)

        apply.defvjp(
            lambda v, *constants: (scaled(v, *constants), (v, constants)),
            lambda res, ct: (ct * res[1][0], ct * res[0]),
        )
        return apply(jnp.array(5.0), *constants)

    assert grad_of(f, how)(jnp.array(2.0)) == 5


def test_a_tangent_rule_that_raises_leaves_the_next_one_alone():
    """A function that catches the error goes on: what follows is differentiated by its own rule, not by its body."""

    @jax.custom_jvp
    def raising(x):
        return x

    @raising.defjvp
    def raising_jvp(primals, tangents):
        raise ArithmeticError("on purpose")

    @jax.custom_jvp
    def tripled(x):
        return x

    tripled.defjvp(lambda primals, tangents: (primals[0], 3 * tangents[0]))

    def f(x):
        with pytest.raises(ArithmeticError):
            raising(x)
        return tripled(x)

    assert bp.grad(f)(jnp.array(2.0)) == 3


def test_cotangents_of_another_type_pass_where_jax_is_told_not_to_check_them():
    @jax.custom_vjp
    def f(x, y):
        return x

    f.defvjp(lambda x, y: (x, None), lambda res, ct: (ct, jnp.full(3, 7.0)))
    grad = lambda: bp.grad(lambda x, y: jnp.sum(f(x, y)), 1)(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match="must produce an output with the same"):
        grad()
    jax.config.update("jax_disable_bwd_checks", True)
    try:
        np.testing.assert_array_equal(grad(), [7.0, 7.0, 7.0])
    finally:
        jax.config.update("jax_disable_bwd_checks", False)


def test_a_cotangent_of_another_precision_gets_that_of_its_primal():
    """JAX hands it on as it is, and raises an error where it meets one of the right precision."""
    f = jax.custom_vjp(lambda x: x)
    f.defvjp(lambda x: (x, None), lambda res, ct: ((2 * ct).astype(jnp.float32),))
    x, w = jnp.array([1.0, 3.0], jnp.bfloat16), jnp.ones((2, 2), jnp.bfloat16)
    twice = lambda x: lax.scan(lambda c, _: (f(c), None), x, length=2)[0]
    for g, slope in ((f, 2.0), (jax.jit(f), 2.0), (lambda x: f(x @ w), 4.0), (lambda x: f(x) + x, 3.0), (twice, 4.0)):
        ct = bp.grad(lambda x, g=g: jnp.sum(g(x)))(x)
        assert ct.dtype == jnp.bfloat16 and ct.tolist() == [slope, slope]
    f.defvjp(lambda x: (x, None), lambda res, ct: (np.array([5.0, 6.0]),))
    assert (bp.grad(lambda x: jnp.sum(f(x)))(x) == jnp.array([5, 6], jnp.bfloat16)).all()
    f.defvjp(lambda x: (x, None), lambda res, ct: (ct.astype(jnp.complex64) * 1j,))
    with pytest.raises(TypeError, match=r"its cotangent for primal 0 is complex64\[2\], and the primal is bfloat16"):
        bp.grad(lambda x: jnp.sum(f(x)))(x)  # JAX returns a complex gradient


def test_what_replaces_a_derivative_is_there_at_second_order():
    """A function whose derivative an option or a formula of ours replaces has that one at the next order, too."""
    by_value = lambda f, x: bp.grad(lambda x: bp.grad(lambda x: f(x) ** 2)(x))(x)  # (f²)'' = 2 f'² + 2 f f''
    x = 1.3
    tie = lambda x: jnp.logaddexp(x, 2 * x - 1.0)  # at 1: f' = 3/2, f'' = 1/4
    np.testing.assert_allclose(by_value(tie, 1.0), 2 * 1.5**2 + 2 * (1 + np.log(2)) / 4, rtol=1e-12)
    np.testing.assert_allclose(
        jax.jvp(bp.grad(lambda x: tie(x) ** 2), (1.0,), (1.0,))[1], by_value(tie, 1.0), rtol=1e-12
    )
    with_jvp, with_bwd = jax.custom_jvp(jnp.abs), jax.custom_vjp(jnp.abs)
    with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), jnp.cos(primals[0]) * tangents[0]))
    with_bwd.defvjp(lambda x: (with_bwd(x), x), lambda x, ct: (jnp.cos(x) * ct,))
    for f in (with_jvp, with_bwd):
        sine = bp.Backward(rules={f: bp.rule(lambda res, ct, perturbed: [ct * jnp.sin(res[0])], save=bp.rules.INPUTS)})
        once = sine.grad(lambda x, f=f: f(x) ** 2)  # 2 f(x) sin x
        for twice, slope in ((sine.grad, np.sin(x)), (bp.grad, np.cos(x)), (jax.grad, np.cos(x))):
            np.testing.assert_allclose(twice(once)(x), 2 * slope * np.sin(x) + 2 * x * np.cos(x), rtol=1e-12)


@pytest.mark.parametrize(
    "run",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: lambda x: lax.cond(x > 0, f, f, x),
        lambda f: lambda x: lax.scan(lambda c, _: f(c), x, length=1),
    ],
    ids=["jit", "checkpoint", "cond", "scan"],
)
def test_a_backward_rule_may_read_something_else_where_a_cotangent_is_zero(run):
    """What a program inside keeps is decided before it is known which of its outputs' cotangents are zero."""
    f = jax.custom_vjp(lambda x: (x, -x))

    def bwd(res, ct):
        of_zero = isinstance(ct[1], jax.custom_derivatives.SymbolicZero)
        return (ct[0] * res,) if of_zero else (ct[0] + ct[1],)

    f.defvjp(lambda x: ((x.value, -x.value), 3 * x.value), bwd, symbolic_zeros=True)
    assert bp.grad(lambda x: run(f)(x)[0])(2.0) == 6.0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_rule_inside_a_map_of_which_no_operand_is_mapped_counts_once(compiled):
    x = jnp.array([0.3, -0.7])
    call = jax.jit(jnp.logaddexp) if compiled else jnp.logaddexp
    f = lambda x: jax.vmap(lambda k: k * call(x, 2 * x).sum())(jnp.arange(3.0)).sum()  # 3 (logaddexp(x, 2x))
    want = 3 * (1 + np.exp(x) / (1 + np.exp(x)))
    np.testing.assert_allclose(bp.grad(f)(x), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(bp.grad(f))(x), want, rtol=1e-6)
    program = jax.make_jaxpr(f)(x)
    of_program = lambda x: jax.core.eval_jaxpr(program.jaxpr, program.consts, x)[0]
    np.testing.assert_allclose(bp.grad(of_program)(x), want, rtol=1e-6)


@pytest.mark.parametrize("how", ["eager", "jit", "python"])
@pytest.mark.parametrize("name", ["logaddexp", "logaddexp2"])
def test_a_mapped_function_of_two_meets_its_operands(name, how):
    """By the rule that stands in front of JAX's, too, whichever axes `vmap` maps."""
    f, rate = {"logaddexp": (jnp.logaddexp, 1.0), "logaddexp2": (jnp.logaddexp2, np.log(2))}[name]
    x, y, w = (
        np.arange(9.0).reshape(3, 3) / 4,
        np.cos(np.arange(9.0)).reshape(3, 3),
        np.sin(np.arange(9.0)).reshape(3, 3),
    )
    sigma = lambda d: 1 / (1 + np.exp(-rate * d))
    run = (lambda g, *args: jax.jit(g)(*args)) if how == "jit" else lambda g, *args: g(*args)
    with jax.disable_jit(how == "python"):
        along = lambda x, y: jnp.sum(w * jax.vmap(f, in_axes=(0, 1))(x, y))
        x_bar, y_bar = run(bp.grad(along, (0, 1)), x, y)
        np.testing.assert_allclose(x_bar, w * sigma(x - y.T), rtol=1e-12)
        np.testing.assert_allclose(y_bar, (w * sigma(y.T - x)).T, rtol=1e-12)
        second = run(bp.grad(lambda x: bp.grad(along)(x, y).sum()), x)
        np.testing.assert_allclose(second, w * rate * sigma(x - y.T) * sigma(y.T - x), rtol=1e-12)
        outer = lambda x, y: jnp.sum(w * jax.vmap(lambda a: jax.vmap(lambda b: f(a, b))(y))(x))
        x_bar, y_bar = run(bp.grad(outer, (0, 1)), x[1], y[2])
        np.testing.assert_allclose(x_bar, (w * sigma(x[1, :, None] - y[2])).sum(1), rtol=1e-12)
        np.testing.assert_allclose(y_bar, (w * sigma(y[2] - x[1, :, None])).sum(0), rtol=1e-12)


def scaled_bwd(res, ct, perturbed):
    """x̄ and ȳ of x sin(y) / |x|, for vectors x and y."""
    x, y = res
    size = jnp.sqrt(jnp.sum(x * x))
    x_bar = ct * jnp.sin(y) / size
    return x_bar - x * jnp.sum(x * x_bar) / size**2, ct * x * jnp.cos(y) / size


def scaled_of(kind):
    plain = lambda x, y: x * jnp.sin(y) / jnp.sqrt(jnp.sum(x * x))
    f = {"jvp": jax.custom_jvp, "vjp": jax.custom_vjp}[kind](plain)
    if kind == "jvp":
        f.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    else:
        f.defvjp(lambda x, y: (plain(x, y), (x, y)), lambda res, ct: scaled_bwd(res, ct, (True, True)))
    return f, plain


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
@pytest.mark.parametrize("rule", ["bwd", "fwd", "save"])
@pytest.mark.parametrize("how", ["eager", "jit", "scan", "region", "mapped twice"])
def test_a_replaced_rule_is_of_one_example_of_a_mapped_function(kind, rule, how):
    """Whichever axes `vmap` maps, the rule gets what the function gets; an operand that is shared gets the sum."""
    f, plain = scaled_of(kind)
    given = {
        "bwd": bp.rule(scaled_bwd),
        "fwd": bp.rule(scaled_bwd, fwd=lambda x, y: (plain(x, y), (x, y))),
        "save": bp.rule(scaled_bwd, save=lambda primals, outs, perturbed, params: primals),
    }[rule]
    x, y = np.arange(9.0).reshape(3, 3) + 1, np.cos(np.arange(9.0)).reshape(3, 3)
    w = np.sin(np.arange(27.0)).reshape(3, 3, 3) if how == "mapped twice" else np.sin(np.arange(9.0)).reshape(3, 3)
    run = {
        "jit": jax.jit,
        "region": jax.checkpoint,
        "scan": lambda g: lambda *args: lax.scan(lambda c, _: (c, g(*args)), 0.0, None, 1)[1][0],
    }.get(how, lambda g: g)
    all_pairs = lambda g: jax.vmap(jax.vmap(g, in_axes=(None, 1)), in_axes=(1, None))
    maps = [all_pairs] if how == "mapped twice" else [
        lambda g: jax.vmap(g, in_axes=(0, 1)),
        lambda g: jax.vmap(g, in_axes=(1, 1), out_axes=1),
        lambda g: jax.vmap(g),
        lambda g: lambda x, y: jax.vmap(g, in_axes=(None, 0))(x[1], y),
    ]  # fmt: skip
    for mapped in maps:
        total = lambda g, mapped=mapped: lambda x, y: jnp.sum(w * mapped(g)(x, y))
        got = bp.Backward(rules={f: given}).grad(total(run(f)), (0, 1))(x, y)
        want = jax.grad(total(plain), (0, 1))(x, y)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-14), got, want)


def closing_over(w, kind):
    """x ↦ sin(w x), where w is an operand of the call if that stands in a program."""

    @kind
    def f(x):
        return jnp.sin(w * x)

    if kind is jax.custom_vjp:
        f.defvjp(lambda x: (f(x), x), lambda x, ct: (ct * w * jnp.cos(w * x),))
    else:
        f.defjvp(lambda x, t: (f(*x), t[0] * w * jnp.cos(w * x[0])))
    return f


INSIDE = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "jit in jit": lambda f: jax.jit(lambda x: jax.jit(f)(x)),
    "checkpoint": jax.checkpoint,
    "scan": lambda f: lambda x: lax.scan(lambda c, _: (c, f(x)), 0.0, length=1)[1][0],
    "cond": lambda f: lambda x: lax.cond(x[0] < 9, f, lambda x: x, x),
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "jit of vmap": lambda f: lambda x: jax.jit(jax.vmap(f))(x[None])[0],
    "vmap of jit": lambda f: lambda x: jax.vmap(jax.jit(f), in_axes=1)(x[:, None])[0],
    "jit of vmap of jit of vmap": lambda f: lambda x: jax.jit(jax.vmap(jax.jit(jax.vmap(f))))(x[None, None])[0, 0],
}


@pytest.mark.parametrize("kind", [jax.custom_jvp, jax.custom_vjp])
@pytest.mark.parametrize("inside", INSIDE)
def test_a_rule_given_for_a_function_is_of_its_own_arguments(inside, kind):
    """Also where what it closes over has become an operand of the call."""
    x, w = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 3.0])
    f = closing_over(w, kind)
    given = bp.rule(lambda res, ct, perturbed: [10 * ct * res[0]], save=bp.rules.INPUTS)
    backward = bp.Backward(rules={f: given})
    loss = lambda x: jnp.sum(INSIDE[inside](f)(x))
    for compile in (lambda f: f, jax.jit):
        np.testing.assert_allclose(compile(backward.grad(loss))(x), 10 * x)


@pytest.mark.parametrize("kind", [jax.custom_jvp, jax.custom_vjp])
def test_a_differentiated_value_that_such_a_function_closes_over_is_refused(kind):
    given = bp.rule(lambda res, ct, perturbed: [ct], save=bp.rules.INPUTS)
    backward = bp.Backward(rules={closing_over(1.0, kind): given})
    with pytest.raises(ValueError, match=r"The function f at .*test_custom_rules.py:\d+ closes over"):
        backward.grad(lambda w: jax.jit(closing_over(w, kind))(1.0))(2.0)


def with_the_mean(kind):
    """sin(x_j) times the mean of x over the axis "examples", whose rules take means over it themselves."""
    f = kind(lambda x: jnp.sin(x) * lax.pmean(x, "examples"))
    if kind is jax.custom_vjp:
        back = lambda x, ct: jnp.cos(x) * lax.pmean(x, "examples") * ct + lax.pmean(jnp.sin(x) * ct, "examples")
        f.defvjp(lambda x: (f(x), x), lambda x, ct: (back(x, ct),))
    else:
        along = lambda x, t: jnp.cos(x) * lax.pmean(x, "examples") * t + jnp.sin(x) * lax.pmean(t, "examples")
        f.defjvp(lambda x, t: (f(*x), along(*x, *t)))
    return f


@pytest.mark.parametrize("kind", [jax.custom_jvp, jax.custom_vjp])
@pytest.mark.parametrize("inside", [name for name in INSIDE if name != "cond"])
def test_rules_with_collectives_where_the_vmap_that_names_the_axis_is_over(inside, kind):
    """JAX traces a rule when it is asked for, and finds no such axis if that is after a `jit` around the `vmap`."""
    x, w = jnp.array([[0.3], [0.7], [-1.1]]), jnp.array([[1.0], [2.0], [3.0]])
    along = jnp.array([[0.4], [-0.2], [0.9]])
    mapped = jax.vmap(INSIDE[inside](with_the_mean(kind)), axis_name="examples")
    loss = lambda x: jnp.sum(w * jnp.sin(mapped(x)))
    plain = lambda x: float(np.sum(w * np.sin(np.sin(x) * np.mean(x))))
    basis = 1e-5 * np.eye(3)[..., None]
    want = np.array([plain(x + e) - plain(x - e) for e in basis])[:, None] / 2e-5
    attached = bp.Backward().attach
    for grad in (bp.grad(loss), jax.grad(attached(loss)), bp.grad(jax.jit(loss)), bp.grad(jax.checkpoint(loss))):
        np.testing.assert_allclose(grad(x), want, rtol=1e-8)
    slope = lambda grad: lambda x: jnp.sum(along * grad(loss)(x))
    step = lambda x: float(slope(bp.grad)(x))
    again = np.array([step(x + e) - step(x - e) for e in basis])[:, None] / 2e-5
    np.testing.assert_allclose(bp.grad(slope(bp.grad))(x), again, rtol=1e-7)
    np.testing.assert_allclose(bp.grad(slope(lambda f: bp.grad(jax.jit(f))))(x), again, rtol=1e-7)


def powers(around):
    """x ↦ x³ by a function whose rule closes over a value of the jit or loop around, as JAX's own rules may not."""

    def cube(x, n):
        f = jax.custom_jvp(lambda x: x**n)
        f.defjvp(lambda x, t: (f(*x), n * x[0] ** (n - 1) * t[0]))
        return f(x)

    if around == "jit":
        return lambda x: jax.jit(cube)(x, 3.0)
    return lambda x: lax.scan(lambda c, n: (cube(c, n), None), x, jnp.array([3.0]))[0]


@pytest.mark.parametrize("around", ["jit", "scan"])
def test_a_rule_that_closes_over_what_is_over_is_explained(around):
    with pytest.raises((TypeError, jax.errors.UnexpectedTracerError)):
        jax.grad(powers(around))(2.0)
    with pytest.raises(jax.errors.UnexpectedTracerError) as raised:
        bp.grad(bp.grad(powers(around)))(2.0)
    (note,) = [n for n in raised.value.__notes__ if n.startswith("If the function stores no value away: ")]
    assert note.endswith("Make the value an argument of its own.")


@pytest.mark.parametrize("name", ["exp1", "expn"])
def test_exponential_integrals_twice(name):
    """The second derivative of E1 is exp(-x) (1/x + 1/x²), that of E2 is exp(-x) / x; JAX 0.10 has neither."""
    f = {"exp1": jax.scipy.special.exp1, "expn": lambda x: jax.scipy.special.expn(2, x)}[name]
    want = np.exp(-0.7) / 0.7 * (1 + 1 / 0.7 if name == "exp1" else 1)
    first = {"exp1": -np.exp(-0.7) / 0.7, "expn": -float(jax.scipy.special.exp1(0.7))}[name]
    np.testing.assert_allclose(bp.grad(f)(0.7), first, rtol=1e-12)
    if jax.__version_info__ < (0, 11):  # its rule takes a value of its own jit
        with pytest.raises(jax.errors.UnexpectedTracerError) as raised:
            bp.grad(bp.grad(f))(0.7)
        assert any("jax.scipy.special.expn" in note for note in raised.value.__notes__)
    else:
        np.testing.assert_allclose(bp.grad(bp.grad(f))(0.7), want, rtol=1e-12)
