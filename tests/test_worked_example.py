"""The seeds' 2-2-2 network in float64, to all printed digits; the example scripts run and agree."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets, ops

EXAMPLES = Path(__file__).parent.parent / "examples"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


X, T = jnp.array([0.05, 0.10]), jnp.array([0.01, 0.99])
NET = nets.mlp([2, 2, 2], output=ops.logistic)
PARAMS = {
    "dense_0": {"kernel": jnp.array([[0.15, 0.25], [0.20, 0.30]]), "bias": jnp.full(2, 0.35)},
    "dense_1": {"kernel": jnp.array([[0.40, 0.50], [0.45, 0.55]]), "bias": jnp.full(2, 0.60)},
}


def error(params):
    return ops.squared_error(NET.apply(params, X), T)


def update(params, with_biases=False):
    """One step of size ½; the example leaves the biases as they are."""
    gradient = bp.grad(error)(params)
    rate = {"kernel": 0.5, "bias": 0.5 if with_biases else 0.0}
    return {layer: {k: w - rate[k] * gradient[layer][k] for k, w in leaves.items()} for layer, leaves in params.items()}


def after(updates, rule=update):
    return jax.jit(lambda p: jax.lax.scan(lambda p, _: (rule(p), None), p, length=updates)[0])(PARAMS)


def printed(value, digits):
    """Whether a number, rounded to the digits of the printed one, is it."""
    return f"{float(value):.{len(digits.partition('.')[2])}f}" == digits


def test_forward():
    hidden = ops.dense(X, **PARAMS["dense_0"])
    out_h = ops.logistic(hidden)
    net_o = ops.dense(out_h, **PARAMS["dense_1"])
    assert printed(hidden[0], "0.3775")
    assert printed(out_h[0], "0.593269992") and printed(out_h[1], "0.596884378")
    assert printed(net_o[0], "1.105905967")
    y = NET.apply(PARAMS, X)
    assert printed(y[0], "0.75136507") and printed(y[1], "0.772928465")
    per_unit = ops.squared_error(y[:, None], T[:, None], None)
    assert printed(per_unit[0], "0.274811083") and printed(per_unit[1], "0.023560026")
    assert printed(error(PARAMS), "0.298371109")


@pytest.mark.parametrize("grad", [bp.grad, jax.grad], ids=["funcbp", "jax"])
def test_gradient(grad):
    gradient = grad(error)(PARAMS)
    assert printed(gradient["dense_1"]["kernel"][0, 0], "0.082167041")
    assert printed(gradient["dense_0"]["kernel"][0, 0], "0.000438568")
    # the cotangent of the bias is the sum over one example of the deltas: the delta itself
    assert printed(gradient["dense_1"]["bias"][0], "0.138498562")


def test_new_weights():
    new = update(PARAMS)
    hidden, output = new["dense_0"]["kernel"].T.ravel(), new["dense_1"]["kernel"].T.ravel()
    for value, digits in zip(hidden, ["0.149780716", "0.19956143", "0.24975114", "0.29950229"], strict=True):
        assert printed(value, digits)
    for value, digits in zip(output, ["0.35891648", "0.408666186", "0.511301270", "0.561370121"], strict=True):
        assert printed(value, digits)


def test_all_weights_at_once():
    assert float(error(update(PARAMS))) == pytest.approx(0.29102777369359933, rel=1e-15)
    end = after(10_000)
    assert float(error(end)) == pytest.approx(3.510187782978859e-05, rel=1e-12)
    np.testing.assert_allclose(NET.apply(end, X), [0.01591362044355068, 0.9840642735146238], rtol=1e-13)


def test_output_weights_first_is_what_was_published():
    example = script("worked_example")
    weights = example.update_output_first(example.example()[0])
    assert printed(example.error(weights), "0.291027924")
    np.testing.assert_allclose(
        weights.hidden.T.ravel(), [0.149817639, 0.199635277, 0.249788195, 0.299576370], atol=5e-10
    )
    end = example.after(10_000, example.update_output_first)
    assert printed(example.forward(end)[3][0], "0.015912196") and printed(example.forward(end)[3][1], "0.984065734")
    assert float(example.error(end)) == pytest.approx(3.5084786e-05, rel=1e-8)


def test_with_biases_too():
    def rule(params):
        return update(params, with_biases=True)

    assert float(error(rule(PARAMS))) == pytest.approx(0.28047144679143016, rel=1e-14)
    end = after(10_000, rule)
    assert float(error(end)) == pytest.approx(2.4475622359322466e-06, rel=1e-12)
    np.testing.assert_allclose(NET.apply(end, X), [0.01158752739, 0.98845893503], atol=5e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"),
    [("worked_example", "0.000035085."), ("textbook", "dense_2/bias")],
)
def test_the_scripts_run(name, last):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, encoding="utf-8", env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert last in run.stdout.splitlines()[-1]


def test_a_wrong_digit_is_caught():
    with pytest.raises(AssertionError, match=r"E is 0.29102777.*, and the slides print 0.291027924"):
        script("worked_example").show("E", error(update(PARAMS)), "0.291027924")
