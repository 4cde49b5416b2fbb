"""Operations that are written as classes (`jax.experimental.hijax`): by the methods that their authors gave them."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src import hijax

import funcbp as bp

Base = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive


class Operation(Base):
    """One that takes arrays of one type, or a dict of them, and returns as many."""

    def __init__(self, *operands):
        self.in_avals = jax.tree.map(jax.typeof, operands)
        self.out_aval = self.in_avals[0]
        self.params = {}
        super().__init__()

    @classmethod
    def of(cls, *operands):
        return cls(*operands)(*operands)


class Cubed(Operation):
    """x ↦ x³, whose author says that it goes back as x̄ = 5 x² ȳ."""

    def expand(self, x):
        return x**3

    def vjp_fwd(self, moving, x):
        return self(x), x

    def vjp_bwd_retval(self, x, ct):
        return (5 * x**2 * ct,)


class Pair(Operation):
    """(a, b) ↦ (a b, a + b), of which the author says that the first is a constant of b."""

    def expand(self, d):
        return {"a": d["a"] * d["b"], "b": d["a"] + d["b"]}

    def vjp_fwd(self, moving, d):
        return self(d), d["b"]

    def vjp_bwd(self, b, ct, into):
        array = lambda c: jnp.zeros(c.aval.shape, c.aval.dtype) if hasattr(c, "aval") and not hasattr(c, "size") else c
        into["a"].accum(array(ct["a"]) * b + array(ct["b"]))
        into["b"].accum(array(ct["b"]))


class HalfStill(Operation):
    """(a, b) ↦ (2 a, 3 b), of which the author says that the second does not move."""

    def expand(self, d):
        return {"a": 2 * d["a"], "b": 3 * d["b"]}

    def vjp_fwd(self, moving, d):
        return self(d), None, {"a": True, "b": False}

    def vjp_bwd(self, res, ct, into):
        into["a"].accum(2 * ct["a"])
        if isinstance(ct["b"], jax.Array):
            into["b"].accum(3 * ct["b"])


class Squared(Operation):
    """x ↦ x², whose author says that it moves by 3 x ẋ; within that rule it is applied to a tangent."""

    def expand(self, x):
        return x**2

    def jvp(self, primals, tangents):
        (x,), (t,) = primals, tangents
        return self(x), 3 * x * Doubled.of(t)


class Halved(Operation):
    """x ↦ x / 2, whose author says by a linearization that it moves by 7 ẋ."""

    def expand(self, x):
        return x / 2

    def lin(self, moving, x):
        return self(x), 7.0

    def linearized(self, seven, t):
        return seven * t


class Doubled(Operation):
    """x ↦ 2 x, a linear operation, whose author says that it goes back as x̄ = 11 ȳ."""

    def expand(self, x):
        return 2 * x

    def transpose(self, ct, into):
        into.accum(11 * ct)


class Bare(Operation):
    def expand(self, x):
        return x + 1


X = jnp.array([0.3, 0.7])
loss = lambda f: lambda x: jnp.sum(jnp.sin(f(x)))
WRAPS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "scan": lambda f: lambda x: lax.scan(lambda c, _: (c, f(x)), 0.0, length=1)[1][0],
    "cond": lambda f: lambda x: lax.cond(x[0] > 0, f, jnp.cos, x),
    "checkpoint": jax.checkpoint,
}
SLOPES = {  # an operation, its value, and what its author says that its slope is
    Cubed: (lambda x: x**3, lambda x: 5 * x**2),
    Squared: (lambda x: x**2, lambda x: 33 * x),
    Halved: (lambda x: x / 2, lambda x: 7 + 0 * x),
}


@pytest.mark.slow(once=["operation", "how"])
@pytest.mark.parametrize("operation", SLOPES)
@pytest.mark.parametrize("how", WRAPS)
def test_an_operation_goes_back_as_its_author_says(operation, how):
    value, slope = SLOPES[operation]
    np.testing.assert_allclose(bp.grad(loss(WRAPS[how](operation.of)))(X), np.cos(value(X)) * slope(X), rtol=1e-12)


def test_an_operation_of_trees_is_given_its_cotangents_as_a_tree():
    f = lambda a, b: Pair.of({"a": a, "b": b})
    both = lambda a, b: jnp.sum(f(a, b)["a"]) + 3 * jnp.sum(f(a, b)["b"])
    np.testing.assert_allclose(bp.grad(both, (0, 1))(X, 2 * X), [2 * X + 3, [3, 3]])
    np.testing.assert_allclose(jax.jit(bp.grad(lambda a: jnp.sum(f(a, 2 * X)["a"])))(X), 2 * X)  # and of one alone


def test_an_output_of_which_the_author_says_that_it_does_not_move_has_no_derivative():
    slopes = bp.grad(lambda d: jnp.sum(sum(HalfStill.of(d).values())))({"a": X, "b": X})
    np.testing.assert_array_equal([slopes["a"], slopes["b"]], [[2, 2], [0, 0]])


def test_a_second_derivative_is_that_of_the_authors_backward_pass():
    twice = bp.grad(lambda x: jnp.sum(bp.grad(lambda x: jnp.sum(Cubed.of(x)))(x)))
    np.testing.assert_allclose(twice(X), 10 * X)


class ByOurs(Operation):
    """x ↦ sin(x)³, whose author goes back by a pullback of ours, into what he is given to add to."""

    def expand(self, x):
        return jnp.sin(x) ** 3

    def vjp_fwd(self, moving, x):
        return bp.vjp(self.expand, x)

    def vjp_bwd(self, pullback, ct, into):
        pullback.with_refs(into)(ct)


@pytest.mark.parametrize("how", WRAPS)
def test_a_pullback_adds_into_what_an_operation_is_given_to_add_to(how):
    for grad in (bp.grad, jax.grad):
        if grad is jax.grad and how == "checkpoint":
            continue  # JAX asks for a `jvp` there
        got = grad(lambda x: jnp.sum(WRAPS[how](ByOurs.of)(x) * X))(X)
        np.testing.assert_allclose(got, 3 * np.sin(X) ** 2 * np.cos(X) * X, rtol=1e-12)


def test_an_operation_without_a_derivative_is_an_error():
    with pytest.raises(bp.MissingRuleError, match=r"`Bare`, .*test_operations.* neither a `vjp_fwd` nor a `jvp`"):
        bp.grad(loss(Bare.of))(X)
    np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(x * Bare.of(X)))(X), X + 1)  # it is not differentiated


@contextlib.contextmanager
def turned_on(flag):
    if not hasattr(jax.config, flag):
        pytest.skip("this JAX has no such flag")
    jax.config.update(flag, True)
    try:
        yield
    finally:
        jax.config.update(flag, False)


def test_custom_vjp_functions_are_operations_under_their_flag():
    with turned_on("jax_custom_vjp3"):

        @jax.custom_vjp
        def f(x, n):
            return {"y": x**n, "one": 1}  # a Python number stands beside the result

        f.defvjp(lambda x, n: (f(x, n), (x, n)), lambda res, ct: (5 * res[0] * ct["y"], None))
        g = lambda x: f(x, jnp.full_like(x, 2))["y"]
        for how in ("eager", "jit", "scan", "checkpoint"):
            np.testing.assert_allclose(bp.grad(loss(WRAPS[how](g)))(X), np.cos(X**2) * 5 * X, rtol=1e-12)
        np.testing.assert_allclose(jax.vmap(bp.grad(lambda x: jnp.sin(g(x))))(X), np.cos(X**2) * 5 * X, rtol=1e-12)


@pytest.mark.parametrize("flag", ["jax_custom_vjp3", "jax_custom_jvp3", "jax_remat3"])
def test_attached_functions_go_back_under_these_flags(flag):
    attach = bp.Backward(rules={lax.sin_p: bp.rule(lambda res, ct, perturbed, **_: [7 * res[0] * ct])}).attach
    with turned_on(flag):
        for how, wrap in WRAPS.items():
            for f in (wrap(attach(jnp.sin)), attach(wrap(jnp.sin))):
                np.testing.assert_allclose(jax.grad(lambda x, f=f: jnp.sum(f(x)))(X), 7 * X, rtol=1e-12, err_msg=how)
        mapped = jax.vmap(jax.grad(attach(jnp.sin)))
        np.testing.assert_allclose(jax.jit(mapped)(X), 7 * X, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(jax.grad(attach(jnp.sin)))(0.3), 7.0, rtol=1e-12)


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.save_only_these_names("h")])
def test_checkpointed_functions_are_operations_under_their_flag(policy):
    """Gradients and plans are what they are without it."""

    def f(x):
        return lax.scan(
            jax.checkpoint(lambda c, x: (jnp.sin(bp.name(jnp.exp(c), "h") * x), None), policy=policy), 0.1, x
        )

    planned = lambda: (
        bp.grad(lambda x: f(x)[0])(X),
        [(v.name, v.fate) for v in bp.residuals(lambda x: f(x)[0])(X).values],
    )
    gradient, plan = planned()
    with turned_on("jax_remat3"):
        assert "call_hi_primitive" in str(jax.make_jaxpr(f)(X).eqns[0].params["jaxpr"].eqns[0].primitive)
        gradient_as_operations, plan_of_operations = planned()
    np.testing.assert_array_equal(gradient_as_operations, gradient)
    assert plan_of_operations == plan and (("h", "kept") in plan) == (policy is not None)


def test_names_of_what_is_not_differentiated_are_kept_under_their_flag():
    """The policy speaks of it, so it is kept; and nothing else is."""
    policy = jax.checkpoint_policies.save_only_these_names("kept")
    name = jax.ad_checkpoint.checkpoint_name

    @functools.partial(jax.checkpoint, policy=policy)
    def f(x):
        return x * name(jnp.exp(X), "kept") * name(jnp.sin(X), "not kept")

    def plan():
        return [(v.name, v.fate) for v in bp.residuals(lambda x: jnp.sum(f(x)))(X).values]

    without = plan()
    with turned_on("jax_remat3"):
        assert plan() == without and ("kept", "kept") in without
        np.testing.assert_allclose(bp.grad(lambda x: jnp.sum(f(x)))(X), np.exp(X) * np.sin(X))


def test_references_in_a_checkpointed_function_are_followed_under_its_flag():
    with turned_on("jax_remat3"):

        @jax.checkpoint
        def f(x, r):
            r[...] = jnp.sin(x) * r[...]

        def g(x):
            r = jax.new_ref(x)
            f(x, r)
            return r[...]

        np.testing.assert_allclose(bp.grad(g)(0.3), np.sin(0.3) + 0.3 * np.cos(0.3))


# --- types that people define -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Two:
    """A value that is no array: a pair of them."""

    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class TwoType(hijax.HiType):
    """The type of pairs. Tangents and cotangents are pairs, too."""

    each: Any

    def lo_ty(self):
        return [self.each, self.each]

    def lower_val(self, pair):
        return [pair.first, pair.second]

    def raise_val(self, first, second):
        return Two(first, second)

    def to_tangent_aval(self):
        return TwoType(self.each.to_tangent_aval())

    def vspace_zero(self):
        return pair(jnp.zeros(self.each.shape, self.each.dtype), jnp.zeros(self.each.shape, self.each.dtype))

    def vspace_add(self, x, y):
        return pair(part(x, 0) + part(y, 0), part(x, 1) + part(y, 1))

    def leading_axis_spec(self):
        return self.each.leading_axis_spec()

    def dec_rank(self, size, spec):
        return TwoType(self.each.dec_rank(size, spec))

    def inc_rank(self, size, spec):
        return TwoType(self.each.inc_rank(size, spec))

    def str_short(self, *_, **__):
        return f"two {self.each.str_short()}"


hijax.register_hitype(Two, lambda two: TwoType(jax.typeof(two.first).strip_weak_type()))


class MakePair(Base):
    """(a, b) as a pair, whose author says that a goes back 5 times."""

    def __init__(self, a, b):
        self.in_avals, self.out_aval, self.params = (a, b), TwoType(a.strip_weak_type()), {}
        super().__init__()

    def expand(self, a, b):
        return Two(a, b)

    def vjp_fwd(self, moving, a, b):
        return self(a, b), None

    def vjp_bwd_retval(self, res, ct):
        return 5 * part(ct, 0), part(ct, 1)


class Part(Base):
    def __init__(self, two, i):
        self.in_avals, self.out_aval, self.params = (two,), two.each, {"i": i}
        super().__init__()

    def expand(self, two):
        return (two.first, two.second)[self.i]

    def vjp_fwd(self, moving, two):
        return self(two), None

    def vjp_bwd_retval(self, res, ct):
        return (pair(*(ct if i == self.i else jnp.zeros_like(ct) for i in range(2))),)


class Quantize(Base):
    """Numbers rounded to tenths, as integers: a value whose tangent is an array."""

    def __init__(self, x):
        self.in_avals, self.out_aval, self.params = (x,), TenthsType(x.strip_weak_type()), {}
        super().__init__()

    def expand(self, x):
        return Tenths(jnp.round(10 * x).astype(int))

    def vjp_fwd(self, moving, x):
        return self(x), None

    def vjp_bwd_retval(self, res, ct):
        return (ct,)


class Dequantize(Quantize):
    def __init__(self, tenths):
        self.in_avals, self.out_aval, self.params = (tenths,), tenths.of, {}
        Base.__init__(self)

    def expand(self, tenths):
        return tenths.numbers.astype(float) / 10


@dataclasses.dataclass
class Tenths:
    numbers: Any


@dataclasses.dataclass(frozen=True)
class TenthsType(hijax.HiType):
    of: Any

    def lo_ty(self):
        return [self.of.update(dtype=jnp.dtype(int), weak_type=False)]

    def lower_val(self, tenths):
        return [tenths.numbers]

    def raise_val(self, numbers):
        return Tenths(numbers)

    def to_tangent_aval(self):
        return self.of

    def str_short(self, *_, **__):
        return "tenths"


hijax.register_hitype(
    Tenths, lambda t: TenthsType(jax.typeof(t.numbers).update(dtype=jnp.dtype(float), weak_type=False))
)
pair = lambda a, b: MakePair(jax.typeof(a), jax.typeof(b))(a, b)
part = lambda two, i: Part(jax.typeof(two), i)(two)
rounded = lambda x: Quantize(jax.typeof(x))(x)
numbers = lambda t: Dequantize(jax.typeof(t))(t)


def through_a_pair(x):
    """sin(x)² cos(x), where what goes back through sin is 5 times as much."""
    two = pair(jnp.sin(x), jnp.cos(x))
    return part(two, 0) * part(two, 1) * part(two, 0)


def through_rounding(x):
    return numbers(rounded(x)) * jnp.cos(x)


THROUGH = {
    through_a_pair: lambda x: 10 * np.sin(x) * np.cos(x) ** 2 - np.sin(x) ** 3,
    through_rounding: lambda x: np.cos(x) - np.round(x, 1) * np.sin(x),
}


@pytest.mark.parametrize("f", THROUGH)
@pytest.mark.parametrize("how", ["eager", "jit", "scan", "checkpoint"])
def test_values_of_types_that_people_define_have_the_cotangents_that_their_authors_say(f, how):
    if how != "eager" and f is through_a_pair and not hasattr(hijax, "HiPrim"):
        pytest.skip("JAX 0.10 does not trace operations that return cotangents of such types")
    x = X + 0.03
    np.testing.assert_allclose(bp.grad(lambda x: jnp.sum(WRAPS[how](f)(x)))(x), THROUGH[f](np.array(x)), rtol=1e-12)


def test_arguments_and_outputs_may_be_of_types_that_people_define():
    two = Two(X, 2 * X)
    ct = bp.grad(lambda two, y: jnp.sum(part(two, 0) * part(two, 1)) + y, (0, 1))(two, 1.0)
    np.testing.assert_allclose([ct[0].first, ct[0].second], [2 * X, X])
    unread, _ = bp.grad(lambda two, y: y, (0, 1))(two, 1.0)
    np.testing.assert_array_equal([unread.first, unread.second], jnp.zeros((2, 2)))
    _, pullback = bp.vjp(lambda x: pair(x, x * x), X)
    np.testing.assert_allclose(pullback(Two(X, X))[0], 5 * X + 2 * X * X)
    with pytest.raises(ValueError, match=r"output of type two float64\[2\] must be of type two .*, and is of float64"):
        pullback(X)
    with pytest.raises(TypeError, match=r"Output had type: two float64\[2\]"):
        bp.grad(lambda x: pair(x, x))(X)
    assert "two float64[2]" in str(pullback)


@pytest.mark.skipif(not hasattr(hijax, "HiPrim"), reason="JAX 0.10 does not trace loops over such values")
def test_loops_may_carry_and_go_along_values_of_types_that_people_define():
    def f(x):
        step = lambda two, x: (pair(part(two, 1), part(two, 0) * x), pair(x, x * x))
        two, along = lax.scan(step, pair(1.0, 2.0), x)
        total, _ = lax.scan(lambda c, two: (c + part(two, 0) * part(two, 1), None), 0.0, along, length=2)
        return part(two, 0) * part(two, 1) + total  # the total is Σ x x²

    x = np.array(X)
    of_carry = [5 * 2 * x[1], 2 * x[0]]  # the last pair is (x₀, 2 x₁), and its first goes back 5 times
    np.testing.assert_allclose(bp.grad(f)(X), of_carry + (5 + 2) * x**2, rtol=1e-12)


@pytest.mark.parametrize("prevent_cse", [True, False])
def test_values_of_types_that_people_define_wait_at_the_barrier_of_a_checkpointed_function(prevent_cse):
    """Where the region is run again, the compiler finds nothing of it already computed."""
    region = jax.checkpoint(lambda t: jnp.sin(jnp.sin(numbers(t))), prevent_cse=prevent_cse)
    text = jax.jit(bp.grad(lambda x: jnp.sum(region(rounded(x))))).lower(X).as_text()
    waiting = [line for line in text.splitlines() if "optimization_barrier" in line]
    assert ["i64" in line for line in waiting] == [True] * prevent_cse
    x = np.round(np.asarray(X), 1)
    np.testing.assert_allclose(
        jax.jit(bp.grad(lambda x: jnp.sum(region(rounded(x)))))(X), np.cos(np.sin(x)) * np.cos(x), rtol=1e-12
    )


def product(two, y):
    return jnp.sum(part(two, 0) * part(two, 1)) + y


ATTACHED = {  # of x and its square, multiplied, where what goes back to x itself is 5 times as much
    "taken": lambda attach, x: attach(product)(pair(x, x * x), 1.0),
    "closed over": lambda attach, x: (lambda two: attach(lambda y: product(two, y))(1.0))(pair(x, x * x)),
    "returned": lambda attach, x: product(attach(lambda x: pair(x, x * x))(x), 1.0),
    "in a loop": lambda attach, x: lax.scan(
        lambda c, _: (product(attach(lambda x: pair(x, x * x))(x), c), None), 1.0, length=1
    )[0],
}


@pytest.mark.parametrize("how", ATTACHED)
def test_attached_functions_of_types_that_people_define(how):
    f = lambda x: ATTACHED[how](bp.Backward().attach, x)
    for grad in (bp.grad(f), jax.jit(bp.grad(f))):
        np.testing.assert_allclose(grad(X), 7 * X**2, rtol=1e-12)
    for grad in (jax.grad(f), jax.jit(jax.grad(f))):
        if hasattr(hijax, "HiPrim"):
            np.testing.assert_allclose(grad(X), 7 * X**2, rtol=1e-12)
        else:
            with pytest.raises(
                NotImplementedError, match=r"cannot differentiate what is attached .* Take funcbp\.grad"
            ):
                grad(X)
