"""One interface: the same options under the same names, looked at and checked in the same way."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import funcbp as bp
from funcbp import credit, curvature, optim, per_example, testing

OLD = {"walker", "wrt", "options", "value_and_grad", "way"}
LOOKING = [bp.trace, bp.cotangents, bp.find_nan, bp.precision, bp.residuals, bp.summary, credit.alignment]
PER_EXAMPLE = [
    per_example.norms, per_example.clipped_grad, per_example.weighted_grad, per_example.grads, per_example.moments,
    per_example.noise_scale, per_example.factors, per_example.gram, per_example.cosines, per_example.methods,
]  # fmt: skip
CURVATURE = [
    curvature.linearise, curvature.ggn, curvature.ggn_vp, curvature.diag_ggn, curvature.kfac_factors, curvature.ntk,
]  # fmt: skip
name_of = lambda f: f.__name__
NAMESPACES = [bp, per_example, curvature, credit, bp.inspection, testing, optim, bp.reproduce, bp.train]
RUN = {"f", "loss", "batch_loss", "model", "residuals", "error", "op_or_primitive"}  # first arguments that are models
OPTIONS = {"argnums", "has_aux", "backward"}
LACKS = {  # and why
    **{f: {"backward"} for f in (bp.grad, bp.value_and_grad, bp.jacrev, bp.hessian)},  # Backward's own methods
    **{f: {"backward", "argnums"} for f in (bp.vjp, bp.hvp)},  # likewise, as JAX's: all primals are differentiated
    bp.scan: OPTIONS,  # runs a step, as JAX's does
    per_example.of_batch: {"backward"},  # differentiates nothing
    bp.reproduce.run_trials: {"argnums"},  # its error is a function of the parameters alone
}


def runs_a_model(f):
    parameters = list(inspect.signature(f).parameters) if inspect.isroutine(f) else []
    return bool(parameters) and parameters[0] in RUN


PUBLIC = {id(f): f for n in NAMESPACES for k in dir(n) if not k.startswith("_") and runs_a_model(f := getattr(n, k))}


@pytest.mark.parametrize("f", LOOKING, ids=name_of)
def test_what_looks_takes_a_function_and_then_its_arguments(f):
    names = list(inspect.signature(f).parameters)
    assert names[:3] == ["f", "argnums", "has_aux"] and "backward" in names


@pytest.mark.parametrize("f", [*LOOKING, lambda f, *args, **how: bp.diff(f, f, *args)], ids=name_of)
def test_arguments_beside_the_function_that_is_looked_at_are_refused_at_once(f):
    model, (w, x) = (lambda w, x: jnp.sum(w * x)), jnp.ones((2, 3, 3))
    for beside in ((w,), (w, x), ({"w": w},), (0, x)):
        with pytest.raises(TypeError, match="go to the function that is returned"):
            f(model, *beside, backward=bp.Backward())


@pytest.mark.parametrize("f", PUBLIC.values(), ids=name_of)
def test_what_runs_a_model_takes_the_same_options_under_the_same_names(f):
    parameters = inspect.signature(f).parameters
    if "options" in parameters:  # those of check
        assert f is testing.assert_gradients
        return
    assert OPTIONS - set(parameters) == LACKS.get(f, set()) and not set(parameters) & OLD
    for name, default in (("has_aux", False), ("backward", None)):
        assert name not in parameters or parameters[name].default in (default, inspect.Parameter.empty)


def test_all_that_run_a_model_are_found():
    assert {bp.check, bp.fit, testing.check_rule, *LOOKING, *PER_EXAMPLE, *CURVATURE} <= set(PUBLIC.values())


# --- what the options do ----------------------------------------------------------------------------------------------

DOUBLE = bp.Backward(rules={lax.tanh_p: bp.rule(lambda res, ct, p, **_: (2 * ct,), save=bp.rules.NOTHING)})
W, X = jnp.array([0.3, -0.2]), jnp.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]])


def model(w, x):
    return jnp.tanh(x @ w)


def both(x, w):
    """The same with its auxiliary data, the parameters second."""
    return jnp.sum(bp.name(model(w, x), "y")), {"rows": x}


def test_what_looks_goes_backward_as_it_is_told():
    """With tanh' taken to be 2, the gradient of Σ tanh(x w) is 2 Σ x."""
    options = dict(argnums=1, has_aux=True, backward=DOUBLE)
    want, value = 2 * X.sum(0), jnp.tanh(X @ W).sum()
    t = bp.trace(both, **options)(X, W)
    np.testing.assert_allclose(t["w"].cotangent, want)
    assert [row.name for row in t.inputs] == ["w"] and t.value[1]["rows"] is X
    (got, aux), grads, found = bp.cotangents(both, **options)(X, W)
    np.testing.assert_allclose(got, value)
    np.testing.assert_allclose(grads, want)
    np.testing.assert_allclose(found["y"], jnp.ones(3))
    assert aux["rows"].shape == (3, 2)
    assert not bp.find_nan(both, **options)(X, W)
    broken = bp.Backward(edits={"y": lambda ct, cts: ct * jnp.inf})
    assert bp.find_nan(both, 1, True, backward=broken)(X, W).backward
    kept = lambda **o: bp.residuals(both, **o)(X, W).total + bp.summary(both, **o)(X, W).residuals
    assert kept(**options) < kept(argnums=1, has_aux=True)  # nothing of tanh
    assert bp.summary(both, **options)(X, W).parameters == 2
    assert bp.summary(both, (0, 1), True)(X, W).parameters == 8
    found = credit.alignment(both, **options)(X, W)
    np.testing.assert_allclose(found.ratio, np.linalg.norm(want) / np.linalg.norm((1 - jnp.tanh(X @ W) ** 2) @ X))


def test_check_takes_a_backward_pass_or_a_reverse_mode():
    f = lambda x, w: both(x, w)[0]
    assert bp.check(f, X, W, argnums=1).ok and bp.check(both, X, W, argnums=1, has_aux=True).ok
    assert not bp.check(f, X, W, argnums=1, backward=DOUBLE).ok
    assert bp.check(f, X, W, argnums=1, vjp=jax.vjp).ok
    with pytest.raises(TypeError, match=r"backward=, a funcbp.Backward, or vjp=, .*: one of the two"):
        bp.check(f, X, W, backward=DOUBLE, vjp=jax.vjp)


def test_hessian_products_are_called_as_jvp_is():
    f = lambda w: (jnp.sum(w**3), w)
    product, aux = bp.hvp(f, (W,), (jnp.ones(2),), has_aux=True)
    np.testing.assert_allclose(product, 6 * W)
    np.testing.assert_array_equal(aux, W)
    assert list(inspect.signature(bp.hvp).parameters)[:3] == ["f", "primals", "tangents"]
    assert not hasattr(curvature, "hvp")


def with_aux(f):
    return lambda *args: (f(*args), args[1] if not isinstance(args[1], tuple) else args[1][0])


def test_auxiliary_data_come_last():
    loss = lambda w, x: model(w, x) ** 2
    for f in PER_EXAMPLE:
        more = {per_example.clipped_grad: (0.1,), per_example.weighted_grad: (lambda norms, losses: norms,)}.get(f, ())
        plain, found = f(loss, *more)(W, X), f(with_aux(loss), *more, has_aux=True)(W, X)
        if f is per_example.methods:
            assert found == plain
            continue
        *values, aux = found
        np.testing.assert_array_equal(aux, X)
        jax.tree.map(np.testing.assert_allclose, plain if len(values) > 1 else (plain,), tuple(values))
    rows, y = lambda w, x: model(w, x)[None], jnp.ones((3, 1))
    for f, *more in (
        (curvature.ggn_vp, X, y, W), (curvature.diag_ggn, X, y), (curvature.kfac_factors, X, y), (curvature.ntk, X)
    ):  # fmt: skip
        loss = () if f is curvature.ntk else (bp.ops.squared_error,)
        plain, (found, aux) = f(rows, *loss)(W, *more), f(with_aux(rows), *loss, has_aux=True)(W, *more)
        jax.tree.map(np.testing.assert_allclose, plain, found)
        np.testing.assert_array_equal(aux, X)
    matrix, aux = curvature.ggn(with_aux(rows), bp.ops.squared_error, has_aux=True)(W, X, y)
    np.testing.assert_allclose(matrix(W), curvature.ggn_vp(rows, bp.ops.squared_error)(W, X, y, W))


def swapped(f):
    return lambda *args: f(args[1], args[0], *args[2:])


def test_parameters_may_be_the_second_argument():
    loss, rows, y = lambda w, x: model(w, x) ** 2, lambda w, x: model(w, x)[None], jnp.ones((3, 1))
    squared = bp.ops.squared_error
    for f, g, *more, rest in (
        *((f, loss, ()) for f in PER_EXAMPLE if f not in (per_example.clipped_grad, per_example.weighted_grad)),
        (per_example.clipped_grad, loss, 0.1, (jnp.array([1, 0, 1]),)),
        (per_example.weighted_grad, loss, lambda norms, losses: norms, ()),
        (curvature.ggn_vp, rows, squared, (y, W)), (curvature.diag_ggn, rows, squared, (y,)),
        (curvature.kfac_factors, rows, squared, (y,)), (curvature.ntk, rows, (X,)),
    ):  # fmt: skip
        want, got = (lambda: f(g, *more)(W, X, *rest)), (lambda: f(swapped(g), *more, argnums=1)(X, W, *rest))  # noqa: B023
        if f is per_example.methods:
            assert got() == want()
        else:  # the other way round they would not even fit
            assert jax.eval_shape(got) == jax.eval_shape(want)
    one_batch = lambda w, x: jnp.mean(jax.vmap(loss, (None, 0))(w, x))
    of_one = per_example.of_batch(swapped(with_aux(one_batch)), W, X, argnums=1, has_aux=True)
    np.testing.assert_allclose(
        per_example.norms(of_one, argnums=1, has_aux=True)(X, W)[0], per_example.norms(loss)(W, X)
    )
    v = W, X
    linear = curvature.linearise(model, argnums=(0, 1))(W, X)
    np.testing.assert_allclose(linear.jvp(v), jax.jvp(model, (W, X), v)[1])
    u = jnp.ones(3)
    jax.tree.map(np.testing.assert_allclose, linear.vjp(u), jax.vjp(model, W, X)[1](u))
    np.testing.assert_allclose(curvature.linearise(swapped(model), argnums=1)(X, W).vjp(u), linear.vjp(u)[0])


@pytest.mark.parametrize("argnums, error, message", [
    ((0, 1), TypeError, r"the one argument of model .*was \(0, 1\).*become one, as a tuple"),
    (2, ValueError, "argnums=2 asks for another argument than the two of model"),
])  # fmt: skip
def test_parameters_are_in_one_of_two_arguments(argnums, error, message):
    for run in (per_example.norms, curvature.ntk):
        with pytest.raises(error, match=message):
            run(model, argnums=argnums)


def test_a_rule_is_checked_in_the_operands_that_are_chosen():
    """The derivative in y is wrong, so the rule holds in x alone; what comes beside the result is left out."""
    wrong = bp.Backward(rules={lax.add_p: bp.rule(lambda res, ct, p, **_: (ct, 2 * ct), save=bp.rules.NOTHING)})
    add = lambda x, y: (lax.add(x, y), "aux")
    check = functools.partial(testing.check_rule, add, W, X[0], has_aux=True, backward=wrong, order=1)
    check(argnums=0)
    with pytest.raises(AssertionError, match="order 1 is right"):
        check(argnums=1)


def test_trials_leave_auxiliary_data_out():
    outcome = bp.reproduce.run_trials(
        lambda w: ((jnp.sum(w**2), jnp.abs(w) < 0.4), {"w": w}), lambda key: jnp.ones(1), optax.sgd(0.25),
        seed=0, trials=1, most=10, has_aux=True,
    )  # fmt: skip
    assert outcome.epochs.tolist() == [2]


def test_the_models_edits_are_not_made_in_its_loss():
    """A name of the model is none of the loss's, and J v is the transpose of the edited J'."""
    rows, y = lambda w, x: bp.name(model(w, x)[None], "y"), jnp.ones((3, 1))
    double = bp.Backward(edits={"y": lambda ct, cts: 2 * ct})
    for loss in (bp.ops.squared_error, lambda z, y: jnp.sum((z - y) ** 4)):
        got = curvature.ggn_vp(rows, loss, backward=double)(W, X, y, W)
        np.testing.assert_allclose(got, 4 * curvature.ggn_vp(rows, loss)(W, X, y, W), rtol=1e-12)


def test_training_leaves_auxiliary_data_out_and_takes_parameters_second():
    loss = lambda batch, w: (jnp.mean((batch * w - 2 * batch) ** 2), batch)
    options = dict(optimizer=optax.sgd(0.1), mode="batch", epochs=50, has_aux=True, argnums=1)
    np.testing.assert_allclose(bp.fit(loss, jnp.array(0.0), jnp.ones(3), **options).params, 2, rtol=1e-3)
    many = bp.fit_many(loss, jnp.zeros(2), jnp.ones(3), key=jax.random.key(0), **options)
    np.testing.assert_allclose(many.params, [2, 2], rtol=1e-3)
    optimizer = optim.levenberg_marquardt(lambda x, w: (w * x - 2 * x, x), mu=1e-6, has_aux=True, argnums=1)
    w = jnp.array(0.0)
    np.testing.assert_allclose(optimizer.update(None, optimizer.init(w), w, batch=jnp.ones(3))[0], 2, rtol=1e-5)
    squared = bp.ops.squared_error
    newton = optim.gauss_newton(lambda x, w: (jnp.stack([w * x]), x), squared, has_aux=True, argnums=1)
    update, _ = newton.update(None, newton.init(w), w, batch=(jnp.ones(3), 2 * jnp.ones((3, 1))))
    np.testing.assert_allclose(update, 2, rtol=2e-3)


# --- models with leaves that are no arrays ----------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class Layer:
    """As an Equinox module: its activation function is a leaf."""

    def __init__(self, w, activation):
        self.w, self.activation = w, activation

    def tree_flatten(self):
        return (self.w, self.activation), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_models_with_other_leaves_are_looked_at_as_they_are():
    layer, loss = Layer(W, jnp.tanh), lambda layer, x: jnp.sum(layer.activation(x @ layer.w))
    want = jax.grad(lambda w: loss(Layer(w, jnp.tanh), X))(W)
    _, grads, _ = bp.cotangents(loss)(layer, X)
    np.testing.assert_allclose(grads.w, want)
    assert grads.activation is None
    assert bp.check(loss, layer, X).ok
    assert not bp.find_nan(loss)(layer, X)
    assert bp.find_nan(loss)(Layer(W.at[0].set(jnp.nan), jnp.tanh), X).arguments
    np.testing.assert_allclose(bp.trace(loss)(layer, X)["0"].cotangent, want)
    assert bp.summary(loss)(layer, X).parameters == 2
    assert bp.residuals(loss)(layer, X).values


LAYER, SUMMED = Layer(W, jnp.tanh), lambda layer, x: jnp.sum(layer.activation(x @ layer.w))
RATE, ROWS, SQUARED = optax.sgd(0.1), lambda layer, x: layer.activation(x @ layer.w)[None], bp.ops.squared_error
REFUSED = {
    "grad": lambda: bp.grad(SUMMED)(LAYER, X),
    "vjp": lambda: bp.vjp(SUMMED, LAYER, X),
    "jacrev": lambda: bp.jacrev(SUMMED)(LAYER, X),
    "hessian": lambda: bp.hessian(SUMMED)(LAYER, X),
    "hvp": lambda: bp.hvp(SUMMED, (LAYER,), (LAYER,)),
    "alignment": lambda: credit.alignment(SUMMED, backward=DOUBLE)(LAYER, X),
    **{
        f.__name__: lambda f=f: f(SUMMED)(LAYER, X)
        for f in PER_EXAMPLE
        if f not in (per_example.clipped_grad, per_example.weighted_grad)
    },
    "clipped_grad": lambda: per_example.clipped_grad(SUMMED, 1.0)(LAYER, X),
    "weighted_grad": lambda: per_example.weighted_grad(SUMMED, lambda n, _: n)(LAYER, X),
    "linearise": lambda: curvature.linearise(SUMMED)(LAYER, X),
    "ntk": lambda: curvature.ntk(SUMMED)(LAYER, X),
    **{f.__name__: lambda f=f: f(ROWS, SQUARED)(LAYER, X, X) for f in (curvature.ggn, curvature.kfac_factors)},
    "fit": lambda: bp.fit(SUMMED, LAYER, X, optimizer=RATE),
    "fit_many": lambda: bp.fit_many(SUMMED, LAYER, X, optimizer=RATE, key=jax.random.key(0)),
    "fit_many, drawn": lambda: bp.fit_many(
        SUMMED, lambda _: LAYER, X, optimizer=RATE, key=jax.random.split(jax.random.key(0))
    ),
    "levenberg_marquardt": lambda: optim.levenberg_marquardt(ROWS).init(LAYER),
    "gauss_newton": lambda: optim.gauss_newton(ROWS, SQUARED, batch=(X, X)).update(None, None, LAYER),
    "run_trials": lambda: bp.reproduce.run_trials(
        lambda w: (SUMMED(w, X), X), lambda _: LAYER, RATE, seed=0, trials=1, most=1
    ),
    "count": lambda: bp.nets.count(LAYER),
}


@pytest.mark.parametrize("run", REFUSED.values(), ids=REFUSED)
def test_where_gradients_are_for_learning_one_message_says_how(run):
    with pytest.raises(TypeError, match=r"is not a valid JAX type.*eqx\.partition\(model, eqx\.is_inexact_array\)"):
        run()


def test_a_module_that_can_be_called_holds_the_members_parameters():
    """As Equinox's modules; what draws parameters is a function."""
    Layer.__call__ = lambda self, x: x
    try:
        members, loss = Layer(jnp.zeros(2), None), lambda layer, x: jnp.mean((x * layer.w - 2 * x) ** 2)
        options = dict(optimizer=RATE, mode="batch", epochs=50, key=jax.random.key(0))
        np.testing.assert_allclose(bp.fit_many(loss, members, jnp.ones(3), **options).params.w, [2, 2], rtol=1e-3)
    finally:
        del Layer.__call__
