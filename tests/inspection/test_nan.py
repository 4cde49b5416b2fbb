"""Programs that make numbers which are not finite, and programs whose infinities are meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

where, total = jnp.where, jnp.sum
f32 = lambda *xs: jnp.asarray(xs, jnp.float32)
f16 = lambda *xs: jnp.asarray(xs, jnp.float16)
f64 = lambda *xs: jnp.asarray(xs, jnp.float64)
STEPS = f64(2, 1, 0, 3, 4)


def in_scan(f, xs):
    """The third step of five goes wrong."""
    return lambda w: lax.scan(lambda c, x: (c + f(w, x), None), jnp.zeros(()), xs)[0]


def attention(scores):
    return total(jax.nn.softmax(scores, axis=-1) ** 2)


@jax.custom_jvp
def own(x):
    return x


own.defjvp(lambda p, t: (p[0], t[0] / p[0]))


def with_bwd(bwd):
    """x, with this derivative, written by somebody."""
    f = jax.custom_vjp(lambda x: 1 * x)
    f.defvjp(lambda x: (1 * x, x), lambda x, ct: (bwd(x, ct),))
    return f


divided, logged = with_bwd(lambda x, ct: ct / x), with_bwd(lambda x, ct: ct * jnp.log(x))
same = jnp.diag(f64(4, 1, 1))
joined = lambda x: jnp.concatenate([jnp.full(1, -jnp.inf), jnp.log(x)])
overflowing = lambda x: total(jnp.log(1 + jnp.exp(x)))
with_infinite_mask = lambda x: attention(where(jnp.zeros(x.shape, bool), x, -jnp.inf))

# name: (loss, argument, operation, in the backward pass, trap, the source of the program where it is a thread's)
PROGRAMS = {
    # where over a bad branch
    "jax#347: where and sqrt": (lambda x: total(where(x > 0, jnp.sqrt(x), 0)), f64(4, 0), "sqrt", True, "where"),
    "jax#1052: where and log": (lambda x: total(where(x > 0, jnp.log(x), 0)), f64(4, 0), "log", True, "where"),
    "jax#475: where and division": (lambda x: total(where(x != 0, 1 / x, 0)), f64(4, 0), "div", True, "where"),
    "diffrax#742: where and norm": (
        lambda x: where(total(x) > 0, jnp.linalg.norm(x), 0.0), f64(0, 0), "sqrt", True, "where"),
    "where and power": (lambda x: total(where(x > 0, x**0.5, 0)), f64(4, 0), "pow", True, "where"),
    "where and exp": (lambda x: total(where(x < 10, jnp.exp(x), x)), f64(1, 1000), "exp", False, "where"),
    "where in jit": (jax.jit(lambda x: total(where(x > 0, jnp.sqrt(x), 0))), f64(4, 0), "sqrt", True, "where"),
    # derivatives that are infinite
    "jax#5698: norm at 0": (lambda x: jnp.linalg.norm(x), f64(0, 0), "sqrt", True, "norm"),
    "jax#25643: sqrt at 0": (lambda x: total(jnp.sqrt(x)), f64(4, 0), "sqrt", True, "sqrt"),
    "sqrt of a sum of squares": (lambda x: jnp.sqrt(total(x**2)), f64(0, 0), "sqrt", True, "sqrt"),
    "standard deviation of equal numbers": (lambda x: jnp.std(x), f64(3, 3), "sqrt", True, "sqrt"),
    "log at 0": (lambda x: total(jnp.log(x)), f64(4, 0), "log", False, "log"),
    "entropy": (lambda p: -total(p * jnp.log(p)), f64(0.5, 0), "log", False, "log"),
    "power at 0": (lambda x: total(x**0.5), f64(4, 0), "pow", True, "pow"),
    "power of two arrays": (lambda x: total(x ** jnp.full(2, 0.3)), f64(4, 0), "pow", True, "pow"),
    "cube root at 0": (lambda x: total(jnp.cbrt(x)), f64(4, 0), "cbrt", True, "pow"),
    "1 / sqrt at 0": (lambda x: total(lax.rsqrt(x)), f64(4, 0), "rsqrt", False, "division"),
    "log1p at -1": (lambda x: total(jnp.log1p(x)), f64(4, -1), "log1p", False, "log"),
    "a pole": (lambda x: total(lax.lgamma(x)), f64(4, 0), "lgamma", False, "edge"),
    "beyond all poles": (lambda x: total(lax.lgamma(x)), f32(4, 1e38), "lgamma", False, "overflow"),
    "jax#669: eigenvectors of equal eigenvalues": (
        lambda m: total(jnp.linalg.eigh(m)[1]), same, "eigh", True, "spectrum"),
    "jax#8732: singular vectors, in a loop": (
        lambda m: total(lax.fori_loop(0, 2, lambda _, c: c + jnp.linalg.svd(c)[0], m)), same, "svd", True, "spectrum"),
    "a singular matrix": (lambda m: total(jnp.linalg.inv(m)), jnp.ones((2, 2)), "custom_linear_solve", False, "matrix"),
    "no positive definite matrix": (
        lambda m: total(jnp.linalg.cholesky(m)), -jnp.eye(2), "cholesky", False, "matrix"),
    "negative power at 0": (lambda x: total(x**-2), f64(4, 0), "integer_pow", False, "division"),
    "division by 0": (lambda x: total(1 / x), f64(4, 0), "div", False, "division"),
    "0 / 0": (lambda x: total(x / total(x)), f64(0, 0), "div", False, "division"),
    "sqrt of a negative": (lambda x: total(jnp.sqrt(x - 1)), f64(4, 0), "sqrt", False, "negative"),
    "log of a negative": (lambda x: total(jnp.log(x - 1)), f64(4, 0), "log", False, "negative"),
    # infinities
    "jax#25701: all masked": (with_infinite_mask, f64(1, 2), "sub", False, "softmax"),
    "softmax by hand": (
        lambda x: total(jnp.exp(x) / total(jnp.exp(x))), f64(1000, 0), "exp", False, "overflow"),
    "softplus by hand": (overflowing, f64(1000, 0), "exp", False, "overflow"),
    "inf - inf": (lambda x: total((x + jnp.inf) - (x * 2 + jnp.inf)), f64(1, 2), "sub", False, "inf"),
    "arccos at 1": (lambda x: total(jnp.arccos(x)), f64(0, 1), "acos", True, "edge"),
    "arcsin beyond 1": (lambda x: total(jnp.arcsin(x)), f64(0, 2), "asin", False, "negative"),
    "bfloat16 reaches as far as float32": (
        lambda x: total(jnp.exp(x)), jnp.array([90, 0], jnp.bfloat16), "exp", False, "overflow"),
    "half precision": (lambda x: total(x * x).astype(jnp.float32), f16(300, 1), "mul", False, "half"),
    "half precision, backward": (
        lambda x: total(x.astype(jnp.float32)) * 1e6, f16(1, 1), "convert_element_type", True, "half"),
    "overflow in a product": (lambda x: total(x * x), f32(1e30, 1), "mul", False, "overflow"),
    # inside other programs
    "marin#5030: in a loop": (in_scan(lambda w, x: jnp.sqrt(w * x), STEPS), f64(1)[0], "sqrt", True, "sqrt"),
    "log in a loop": (in_scan(lambda w, x: jnp.log(w * x), STEPS), f64(1)[0], "log", False, "log"),
    "in a region": (jax.checkpoint(lambda x: total(jnp.sqrt(x))), f64(4, 0), "sqrt", True, "sqrt"),
    "in a branch": (
        lambda x: lax.cond(x[0] > 0, lambda x: total(jnp.log(x)), total, x), f64(4, 0), "log", False, "log"),
    "in a while loop": (
        lambda x: total(x) + lax.while_loop(lambda c: c > 0, lambda c: jnp.log(c - 3), lax.stop_gradient(x[0])),
        f64(5, 0), "log", False, "negative"),
    # what was not chosen is not to blame
    "numpyro#236: an infinity on the other side": (
        lambda x: where(x > 1, -jnp.inf, jnp.log(x)), f64(0)[0], "log", False, "log"),
    "an infinity of another element": (
        lambda x: total(where(x > 1, -jnp.inf, jnp.log(x))), f64(0, 2), "log", False, "log"),
    "an infinity that is cut off": (
        lambda x: total(jnp.take(joined(x), jnp.array([1, 2]))), f64(4, 0), "log", False, "log"),
    "an infinity in another branch": (
        lambda x: lax.switch(1, [lambda x: x - jnp.inf, jnp.log], x), f64(0)[0], "log", False, "log"),
    # derivatives that somebody wrote
    "mxnet#8816: a bwd divides": (lambda x: total(divided(x)), f64(4, 0), "custom_vjp", True, "division"),
    "a bwd in scan takes a log": (
        lambda x: total(lax.scan(lambda c, _: (logged(c), None), x, length=2)[0]),
        f64(4, 0), "custom_vjp", True, "log"),
    "an inner gradient is no derivative of ours": (
        lambda x: jax.grad(jnp.sqrt)(x[1]) * x[0], f64(4, 0), "div", False, "division"),
    "a rule of one's own": (lambda x: total(own(x)), f64(4, 0), "div", True, "division"),
}  # fmt: skip


STEP_OF = {
    "marin#5030: in a loop": (2,), "log in a loop": (2,), "in a while loop": (1,),
    "jax#8732: singular vectors, in a loop": (0,), "a bwd in scan takes a log": (1,),
}  # fmt: skip


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_first_one_is_blamed(name):
    loss, x, operation, backward, trap = PROGRAMS[name]
    find = bp.find_nan(loss)
    found = find(x)
    assert found, "nothing found"
    assert (found.operation, found.backward) == (operation, backward), str(found)
    assert found.trap == bp.inspection.nan.TRAPS[trap].name, str(found)
    assert found.remedy in str(found)
    assert "test_nan.py" in found.line
    assert all(s.nonfinite == 0 for s in found.operands) or trap in ("softmax", "inf")
    assert found.result.nonfinite > 0
    assert found.steps == STEP_OF.get(name, ())
    assert find.whether(x)


def masked(x):
    mask = jnp.tril(jnp.ones((3, 3), bool))
    return attention(where(mask, x, -jnp.inf))


def log_mask(x):
    return attention(x + jnp.log(jnp.tril(jnp.ones((3, 3)))))


@pytest.mark.parametrize(("backward", "operation", "trap"), [
    (bp.Backward(rules={lax.tanh_p: bp.rule(lambda x, ct, p, **_: (ct / x[0],))}), "tanh", "division by 0"),
    (bp.Backward(edits={"h": lambda ct, passed: jnp.log(ct - 1)}), "name", "log at 0"),
], ids=["a replaced rule", "an edit"])  # fmt: skip
def test_what_somebody_put_into_the_backward_pass_has_the_trap_of_what_it_does(backward, operation, trap):
    found = bp.find_nan(lambda x: total(bp.name(jnp.tanh(x), "h")), backward=backward)(f64(1, 0))
    assert (found.operation, found.backward, found.trap) == (operation, True, trap), str(found)


def test_an_infinity_is_shown_as_one_and_a_number_in_its_type():
    text = str(bp.find_nan(lambda x: total(jnp.log(x * 1e30) * 1e30))(f32(1e-30, 0)))
    assert "operand 0: float32[2] min 0 mean 0.5 max 1, 50% zero" in text and "50% -inf" in text and "% nan" not in text
    text = str(bp.find_nan(lambda x: jnp.log(x))(f32(0)[0]))
    assert "operand 0: float32[] 0\n" in text and "result:    float32[] -inf\n" in text
    text = str(bp.find_nan(lambda x: x * jnp.float32(1) * 1e38)(f32(10)[0]))
    assert "float64" not in text and "operand 1: float32[] 1e+38" in text


MEANT = {
    "attention masked with -inf": (masked, jnp.eye(3)),
    "attention masked with the log of a mask": (log_mask, jnp.eye(3)),
    "dot_product_attention": (
        lambda x: total(jax.nn.dot_product_attention(x, x, x, is_causal=True) ** 2),
        jnp.ones((1, 3, 1, 2), jnp.float32)),
    "double where": (lambda x: total(where(x > 0, jnp.sqrt(where(x > 0, x, 1)), 0)), f64(4, 0)),
    "maximum that starts at -inf": (
        lambda x: total(lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "SAME")), f64(1, 2, 3)),
    "logsumexp with -inf": (lambda x: jax.nn.logsumexp(jnp.concatenate([x, jnp.array([-jnp.inf])])), f64(1, 2)),
    "clipping at infinity": (lambda x: total(jnp.clip(x, -jnp.inf, jnp.inf)), f64(1, 2)),
    "a division behind stop_gradient and where": (
        lambda x: total(where(x > 0, x, lax.stop_gradient(1 / x))), f64(1, 2)),
    "an infinity forward, in 1 / inf": (lambda x: total(x / (1 + lax.stop_gradient(jnp.exp(-x * 1000)))), f64(1, -1)),
    "smallest of a running minimum": (
        lambda x: lax.scan(lambda c, a: (jnp.minimum(c, a), c), jnp.asarray(jnp.inf), x)[0], f64(3, 2)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MEANT)
def test_what_is_meant_is_not_blamed(name):
    loss, x = MEANT[name]
    find = bp.find_nan(loss)
    found = find(x)
    assert not found, str(found)
    assert str(found) == "The value and the gradient are finite."
    assert not find.whether(x)


def test_the_report_reads_like_one():
    def loss(params, x):
        with jax.named_scope("encoder"):
            return total(jnp.sqrt(x @ params["w"]))

    text = str(bp.find_nan(loss)({"w": jnp.zeros((2, 1))}, jnp.ones((1, 2))))
    assert text.startswith("The first inf is made in the backward pass of `sqrt` at ")
    assert "encoder" in text
    assert "operand 0: float64[1, 1] min 1 mean 1 max 1" in text or "operand 0: float64[1, 1]" in text
    assert "This is a known trap: sqrt at 0." in text


def test_arguments_that_were_not_finite_are_named():
    found = bp.find_nan(lambda params, x: total(params["w"] * x))({"w": f64(1, np.nan)}, f64(1, 1))
    assert found.arguments == ("params/w",)
    assert str(found) == "There is nan in params/w, before anything was computed."


def test_whether_under_jit_and_not_the_replay():
    find = bp.find_nan(lambda x: total(jnp.sqrt(x)))
    assert jax.jit(find.whether)(f64(0, 1))
    assert not jax.jit(find.whether)(f64(2, 1))
    with pytest.raises(TypeError, match=r"Call find_nan\(f\).whether\(...\) there, and this outside"):
        jax.jit(lambda x: bool(find(x)))(f64(0, 1))


def test_auxiliary_data_and_integers_do_not_disturb():
    loss = lambda w, n: (total(jnp.log(w) * n.astype(w.dtype)), n)
    assert bp.find_nan(loss, has_aux=True)(f64(0, 1), jnp.asarray(2)).operation == "log"


def test_what_was_traced_elsewhere_first_bears_the_line_of_this_call():
    """JAX keeps the program of its own sqrt, which here was traced first in a backward pass, at a line of the loss."""
    jax.clear_caches()
    elsewhere = lambda x: jnp.sum(bp.name(jnp.tanh(x), "h"))
    bp.cotangents(elsewhere, reduce=lambda ct: jnp.sqrt(jnp.sum(ct)))(jnp.ones(2))
    here = lambda x: jnp.sqrt(jnp.sum(x))
    assert f":{here.__code__.co_firstlineno}:" in bp.find_nan(here)(jnp.zeros(2)).line


def test_nothing_is_said_where_there_are_no_integers_of_64_bits():
    """A warning of JAX's would be an error here; the infinity is born in the loop and moved."""
    with jax.enable_x64(False):
        step = lambda c, x: (c * x, jnp.reshape(c, (1,)))
        found = bp.find_nan(lambda x: jnp.sum(lax.scan(step, x, jnp.full(5, 1e10, jnp.float32))[1]))(jnp.float32(1))
    assert (found.operation, found.backward) == ("mul", False)
