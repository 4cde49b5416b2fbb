"""`fit`: every mode against a loop in Python, and all that happens around the loop."""

import csv
import itertools
import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcbp as bp
from funcbp import nets, ops
from funcbp.learn.train import stopping

X = jax.random.normal(jax.random.key(0), (20, 3))
DATA = X, jnp.sin(X[:, :1])
HELD_OUT = X[:5] + 0.5, jnp.sin(X[:5, :1] + 0.5)
NET = nets.mlp([3, 4, 1], ops.tanh)
PARAMS = NET.init(jax.random.key(1), X)
KEY = jax.random.key(3)


def loss(params, batch):
    x, y = batch
    return ops.squared_error(NET.apply(params, x), y, "mean")


def plain_loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None])
    out = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"][None]
    return jnp.sum((out - y) ** 2) / (2 * len(x))


@jax.jit
def plain_gradient(params, batch):
    return jax.value_and_grad(plain_loss)(params, batch)


def by_hand(optimizer, batches_of, epochs):
    """The same learning as a loop in Python, with JAX's gradient: parameters, and the loss of each epoch."""
    params, memory, history = PARAMS, optimizer.init(PARAMS), []
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in batches_of(jax.random.fold_in(KEY, epoch)):
            value, gradient = plain_gradient(params, batch)
            with jax.numpy_dtype_promotion("standard"):
                updates, memory = optimizer.update(gradient, memory, params)
            params = optax.apply_updates(params, updates)
            losses.append(float(value))
        history.append(np.mean(losses))
    return params, history


def close(got, want, rtol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14), got, want)


def same(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), got, want)


def take(places):
    return jax.tree.map(lambda a: a[places], DATA)


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.05, 0.9, nesterov=True), pytest.param(optax.adam(0.01), marks=pytest.mark.slow)],
    ids=["nesterov", "adam"],
)
def test_stochastic(optimizer):
    batches = lambda key: map(take, jax.random.permutation(key, 20)[:18].reshape(3, 6))
    params, losses = by_hand(optimizer, batches, 2)
    fit = bp.fit(loss, PARAMS, DATA, optimizer=optimizer, batch_size=6, epochs=2, key=KEY, validation=HELD_OUT)
    close(fit.params, params)
    np.testing.assert_allclose(fit.history["loss"], losses, rtol=1e-12)
    assert fit.history["validation_loss"][-1] == pytest.approx(float(plain_loss(params, HELD_OUT)), rel=1e-11)
    assert (fit.reason, fit.epochs, fit.attempts, fit.divergence) == ("epochs", 2, 1, None)


def test_with_replacement():
    batches = lambda key: map(take, jax.random.randint(key, (3, 6), 0, 20))
    params, losses = by_hand(optax.sgd(0.1), batches, 2)
    fit = bp.fit(loss, PARAMS, DATA, optimizer=optax.sgd(0.1), batch_size=6, replacement=True, epochs=2, key=KEY)
    close(fit.params, params)
    np.testing.assert_allclose(fit.history["loss"], losses, rtol=1e-12)


@pytest.mark.slow
def test_batch():
    params, losses = by_hand(optax.sgd(0.1), lambda key: [DATA], 3)
    fit = bp.fit(loss, PARAMS, DATA, optimizer=optax.sgd(0.1), mode="batch", epochs=3)
    close(fit.params, params)
    np.testing.assert_allclose(fit.history["loss"], losses, rtol=1e-12)


def test_online_from_arrays_and_from_a_stream():
    params, losses = by_hand(optax.sgd(0.1), lambda key: (take(slice(i, i + 1)) for i in range(20)), 2)
    options = dict(optimizer=optax.sgd(0.1), mode="online", epochs=2)
    fit = bp.fit(loss, PARAMS, DATA, **options)
    close(fit.params, params)
    np.testing.assert_allclose(fit.history["loss"], losses, rtol=1e-12)
    read = 0

    def examples():
        nonlocal read
        for i in itertools.cycle(range(20)):
            read += 1
            yield take(i)

    streamed = bp.fit(loss, PARAMS, examples(), updates=20, **options)
    close(streamed.params, params, 1e-13)
    np.testing.assert_allclose(streamed.history["loss"], losses, rtol=1e-12)
    assert read == 40, "nothing is read that is not learned from"


@pytest.mark.slow
def test_a_stream_of_batches_that_ends():
    order = jax.random.permutation(KEY, 20)
    batches = [take(order[i : i + 6]) for i in range(0, 20, 6)]  # the last is smaller
    params, _ = by_hand(optax.sgd(0.1), lambda key: batches, 1)
    fit = bp.fit(loss, PARAMS, iter(batches), optimizer=optax.sgd(0.1), updates=2, epochs=100)
    close(fit.params, params)
    assert (fit.reason, fit.epochs) == ("data", 3)


@pytest.mark.slow
def test_batches_larger_than_the_data_are_the_data():
    fits = [bp.fit(loss, PARAMS, DATA, optimizer=optax.sgd(0.1), batch_size=n, epochs=1) for n in (20, 1000)]
    same(fits[0].params, fits[1].params)


def test_parameters_are_the_callers():
    before = jax.tree.map(np.array, PARAMS)
    bp.fit(loss, PARAMS, DATA, optimizer=optax.sgd(0.1), epochs=1, validation=HELD_OUT)
    same(PARAMS, before)


def test_a_loss_with_a_key_gets_a_new_one_for_every_update():
    seen = lambda params, batch, key=None: params * (0.0 if key is None else jax.random.uniform(key, dtype=float))
    fit = bp.fit(seen, jnp.array(1.0), X, optimizer=optax.sgd(0.0), epochs=3, batch_size=20, validation=X, key=KEY)
    draw = lambda epoch: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(KEY, epoch), 0), dtype=float)
    np.testing.assert_array_equal(fit.history["loss"], [draw(epoch) for epoch in (1, 2, 3)])
    np.testing.assert_array_equal(fit.history["validation_loss"], 0.0)


@pytest.mark.slow
def test_optimisers_that_need_the_value():
    """L-BFGS and its line search, which evaluates and differentiates, and a rule that compares errors."""
    fit = bp.fit(loss, PARAMS, DATA, optimizer=optax.lbfgs(), mode="batch", epochs=60)
    assert fit.history["loss"][-1] < 1e-3 < fit.history["loss"][5]
    fit = bp.fit(loss, PARAMS, DATA, optimizer=bp.optim.bold_driver(0.1), mode="batch", epochs=40)
    assert fit.history["loss"][-1] < 0.3 * fit.history["loss"][0]


def test_the_backward_pass_is_the_one_that_is_given():
    stopped = bp.rule(lambda y, ct, perturbed, **params: (0 * ct,), save=bp.rules.OUTPUT)
    tanh_loss = lambda params, batch: jnp.mean((jnp.tanh(batch[0] @ params["w"]) - batch[1]) ** 2)
    params = {"w": jnp.ones((3, 1))}
    backward = bp.Backward(rules={jax.lax.tanh_p: stopped})
    fit = bp.fit(tanh_loss, params, DATA, optimizer=optax.sgd(0.1), epochs=1, backward=backward)
    same(fit.params, params)


# --- stopping, restarting, diverging ----------------------------------------------------------------------------------


def test_stopping_rules_and_the_best_parameters():
    """The validation loss of w is (w - 1)²; w goes up by 0.1 an epoch."""
    validation_loss = lambda w, batch: jnp.where(jnp.size(batch) == 1, (w - 1.0) ** 2, -0.1 * w)
    options = dict(optimizer=optax.sgd(1.0), mode="batch", epochs=100, validation=jnp.ones(1))
    stop = {"never": stopping.target_error(-100.0), "up": stopping.up_strips(2, strip=2)}
    fit = bp.fit(validation_loss, jnp.array(0.0), jnp.ones(2), stop=stop, **options)
    assert (fit.reason, fit.epochs, fit.best_epoch) == ("up", 14, 10)
    assert float(fit.best_params) == pytest.approx(1.0) and float(fit.params) == pytest.approx(1.4)
    assert len(fit.history["loss"]) == 14
    fit = bp.fit(validation_loss, jnp.array(0.0), jnp.ones(2), stop=stopping.maximum_epochs(3), **options)
    assert (fit.reason, fit.epochs) == ("stop[0]", 3)


def test_of_epochs_that_are_equally_good_the_first_is_the_best():
    """The validation loss of w is (w - 2)² and w goes up by 1 an epoch, from 0 by way of 1 and 3, which are as good."""
    validation_loss = lambda w, batch: jnp.where(jnp.size(batch) == 1, jnp.where(w == 2, 9.0, (w - 2.0) ** 2), -w)
    fit = bp.fit(
        validation_loss,
        jnp.array(0.0),
        jnp.ones(2),
        optimizer=optax.sgd(1.0),
        mode="batch",
        epochs=4,
        validation=jnp.ones(1),
    )
    np.testing.assert_array_equal(fit.history["validation_loss"], [1, 9, 1, 4])
    assert (fit.best_epoch, float(fit.best_params), float(fit.params)) == (1, 1.0, 4.0)


def test_all_correct():
    correct = lambda params, batch: stopping.right_class(
        jnp.hstack([-(batch[0] @ params), batch[0] @ params]), batch[1]
    )
    labels = (X[:, 0] > 0).astype(int)
    right = lambda params, batch: jnp.mean(
        jax.nn.softplus((1.0 - 2 * batch[1][:, None].astype(float)) * (batch[0] @ params))
    )
    fit = bp.fit(
        right,
        -jnp.ones((3, 1)),
        (X, labels),
        optimizer=optax.sgd(0.5),
        mode="batch",
        epochs=500,
        correct=correct,
        stop=stopping.all_correct(),
    )
    assert fit.reason == "stop[0]" and 1 < fit.epochs < 500
    assert fit.history["correct"][-1] == 1.0 > fit.history["correct"][-2]


def test_restarts_begin_again_until_one_succeeds():
    """Descent on w² from a draw: only attempts that begin near 0 reach the goal in 5 epochs."""
    begin = lambda key: jax.random.uniform(key, (), minval=-2.0, maxval=2.0, dtype=float)
    begins = [5.0] + [float(begin(jax.random.fold_in(jax.random.fold_in(KEY, 0), i))) for i in range(1, 9)]
    wins = next(i for i, w in enumerate(begins) if w**2 * 0.8 ** (2 * 4) < 0.05)
    assert wins > 1
    options = dict(optimizer=optax.sgd(0.1), mode="batch", epochs=1000, key=KEY, stop=stopping.target_error(0.05))
    restart = stopping.Restart(stopping.maximum_epochs(5), begin, at_most=8)
    square = lambda w, batch: w**2 + 0 * jnp.sum(batch)
    fit = bp.fit(square, jnp.array(5.0), X, restart=restart, **options)
    assert (fit.reason, fit.attempts) == ("stop[0]", wins + 1)
    assert 5 * wins < fit.epochs <= 5 * (wins + 1) and len(fit.history["loss"]) == fit.epochs
    np.testing.assert_allclose(fit.history["loss"][::5][: wins + 1], np.square(begins[: wins + 1]), rtol=1e-12)
    fit = bp.fit(square, jnp.array(5.0), X, restart=restart._replace(at_most=1), **options)
    assert (fit.reason, fit.attempts, fit.epochs) == ("restarts", 2, 10)


def test_divergence_keeps_the_last_good_parameters_and_says_where():
    grows = lambda w, batch: jnp.sum(jnp.exp(w * batch))  # w falls, until an example is below 0
    data = jnp.ones(40).at[25].set(-1e4)
    options = dict(optimizer=optax.sgd(0.01), mode="online")
    fit = bp.fit(grows, jnp.array(0.1), data, epochs=10, **options)
    assert (fit.reason, fit.epochs) == ("diverged", 0)
    assert float(fit.params) == 0.1 and len(fit.history["loss"]) == 0
    d = fit.divergence
    assert (d.epoch, d.update) == (1, 26) and d.batch.tolist() == [-1e4]
    assert np.isfinite(d.params) and not np.isfinite(grows(d.params, d.batch))
    assert str(d).startswith("learning diverged in epoch 1, at update 26: the loss is no longer a finite number")
    assert "`exp`" in d.equation and Path(__file__).name in d.equation


def test_divergence_names_the_first_bad_equation():
    """`find_nan` is asked about the loss, at the update where it happened."""
    root = lambda w, batch: jnp.sqrt(w) + 0 * jnp.sum(batch)
    line = root.__code__.co_firstlineno
    fit = bp.fit(root, jnp.array(1.0), X, optimizer=optax.sgd(0.4), mode="batch", epochs=30)
    assert "`sqrt`" in fit.divergence.equation and f"test_fit.py:{line}:" in fit.divergence.equation
    assert str(fit.divergence).endswith(fit.divergence.equation)


def test_divergence_names_the_equation_with_the_draws_of_that_update():
    def loss(w, batch, key):
        kept = jax.random.bernoulli(key, 0.8).astype(w.dtype)
        return w * jnp.sum(batch**2) / kept

    fit = bp.fit(loss, jnp.array(1.0), X, optimizer=optax.sgd(0.0), batch_size=2, epochs=3, key=KEY)
    assert fit.reason == "diverged" and "`div`" in fit.divergence.equation and fit.divergence.update > 1


def test_divergence_of_the_step_alone():
    """Loss and gradient are finite, and there is no equation to blame."""
    square = lambda w, batch: jnp.sum(w**2 * batch)
    fit = bp.fit(square, jnp.array(1e10), jnp.ones(1), optimizer=optax.sgd(1e300), mode="batch", epochs=3)
    assert (fit.reason, fit.divergence.update, fit.divergence.equation) == ("diverged", 1, None)
    assert str(fit.divergence).endswith("gradient are finite numbers, and the parameters after the update are not")
    assert float(fit.params) == 1e10


def test_levenberg_marquardt_gets_the_batch():
    """Least squares in one step of nearly no damping; and by mini-batches, each its own."""
    residual = lambda w, example: example[0] @ w - example[1]
    loss = lambda w, batch: jnp.sum(jax.vmap(residual, (None, 0))(w, batch) ** 2)
    x = jax.random.normal(KEY, (40, 3))
    y = x @ jnp.arange(3.0)
    for options in (dict(mode="batch", epochs=2), dict(mode="stochastic", batch_size=10, epochs=2)):
        optimizer = bp.optim.levenberg_marquardt(residual, mu=1e-6)
        fit = bp.fit(loss, jnp.zeros(3), (x, y), optimizer=optimizer, key=KEY, **options)
        np.testing.assert_allclose(fit.params, jnp.arange(3.0), atol=1e-6)


def test_divergence_of_the_gradient_and_of_the_validation_loss():
    root = lambda w, batch: jnp.sqrt(w) + 0 * jnp.sum(batch)  # its derivative at 0 is not finite, though it is
    fit = bp.fit(root, jnp.array(0.0), X, optimizer=optax.sgd(0.1), mode="batch", epochs=3)
    assert (fit.reason, fit.divergence.update, float(fit.params)) == ("diverged", 1, 0.0)
    assert fit.divergence.finite_loss and "the loss is finite, and its gradient is not; The" in str(fit.divergence)
    square = lambda w, batch: jnp.sum(w**2 * batch)
    fit = bp.fit(square, jnp.array(1e100), jnp.ones(1), optimizer=optax.sgd(1e30), mode="batch", epochs=9)
    d = fit.divergence  # the parameters after epoch 2 are finite, and their loss is not
    assert (fit.reason, fit.epochs, d.epoch, d.update) == ("diverged", 2, 3, 1)
    assert np.isfinite(d.params) and np.isinf(square(d.params, d.batch)) and np.isfinite(square(fit.params, d.batch))
    log = lambda w, batch: jnp.mean(jnp.log(w * batch))
    fit = bp.fit(log, jnp.array(1.0), jnp.ones(4), optimizer=optax.sgd(0.1), epochs=3, validation=jnp.zeros(1))
    assert (fit.reason, fit.divergence.update) == ("diverged", None) and "at validation" in str(fit.divergence)


# --- what is seen from outside ----------------------------------------------------------------------------------------


class Tracker:
    def __init__(self):
        self.seen = []

    def log(self, metrics, *, step):
        self.seen.append((step, metrics))


class Bar:
    """Stands in for tqdm."""

    def __init__(self, **options):
        self.options, self.n, self.after = options, 0, Bar.after
        Bar.last = self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def set_postfix_str(self, text, refresh):
        self.text = text

    def update(self, n):
        self.n += n
        self.after()

    after = staticmethod(lambda: None)


def test_measurements_go_to_files_trackers_and_the_bar(tmp_path):
    tracker = Tracker()
    fit = bp.fit(
        loss,
        PARAMS,
        DATA,
        optimizer=optax.sgd(0.1),
        epochs=3,
        validation=HELD_OUT,
        score={"spread": lambda params, batch: jnp.std(NET.apply(params, batch[0]))},
        log=[tmp_path / "m.jsonl", str(tmp_path / "m.csv"), tracker],
        progress=Bar,
    )
    names = ["loss", "validation_loss", "validation_spread", "seconds"]
    assert list(fit.history) == names
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["epoch", *names]] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["validation_spread"] for row in rows] == fit.history["validation_spread"].tolist()
    with open(tmp_path / "m.csv", newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == fit.history["loss"].tolist()
    assert [step for step, _ in tracker.seen] == [1, 2, 3]
    assert [row["loss"] for _, row in tracker.seen] == fit.history["loss"].tolist()
    assert Bar.last.options["total"] == 3 and Bar.last.n == 3
    assert Bar.last.text.startswith(f"loss {fit.history['loss'][-1]:.4f}, validation loss ")


def test_ctrl_c_keeps_what_was_reached(monkeypatch):
    monkeypatch.setattr(Bar, "after", staticmethod(lambda: signal.raise_signal(signal.SIGINT)))
    monkeypatch.setattr("funcbp.learn.train.drive.FLOPS_PER_CALL", 1.0)  # an epoch a call
    handler = signal.getsignal(signal.SIGINT)
    options = dict(optimizer=optax.sgd(0.1), key=KEY)
    fit = bp.fit(loss, PARAMS, DATA, epochs=50, progress=Bar, **options)
    assert (fit.reason, fit.epochs, len(fit.history["loss"])) == ("interrupted", 1, 1)
    close(fit.params, bp.fit(loss, PARAMS, DATA, epochs=1, **options).params)
    assert signal.getsignal(signal.SIGINT) is handler

    def twice():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Bar, "after", staticmethod(twice))
    with pytest.raises(KeyboardInterrupt):
        bp.fit(loss, PARAMS, DATA, epochs=50, progress=Bar, **options)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_small_problem_is_one_call_and_repeating_it_compiles_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr("funcbp.learn.train.drive.agree", lambda *values: calls.append(values) or list(values))
    optimizer = optax.sgd(0.1)
    first = bp.fit(loss, PARAMS, DATA, optimizer=optimizer, mode="batch", epochs=500)
    assert len(calls) == 1
    monkeypatch.setattr("funcbp.learn.train.loop.Learner.update", None)  # it is not traced again
    again = bp.fit(loss, PARAMS, DATA, optimizer=optimizer, mode="batch", epochs=500)
    same(first.params, again.params)


# --- requests that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "minibatch"}, "mode is one of 'online', 'batch', 'stochastic', and was 'minibatch'"),
        ({"epochs": 0}, "epochs is at least 1, and was 0"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"mode": "batch", "replacement": True}, 'replacement=True is for mode="stochastic"'),
        ({"score": loss}, "score is of the validation examples, and there are none"),
        ({"data": (X, X[:3])}, r"a common leading axis, and the shapes are \(20, 3\), \(3, 3\)"),
        ({"data": jnp.array(1.0)}, r"a common leading axis, and the shapes are \(\)"),
        ({"data": X[:0]}, "at least one example"),
        ({"data": iter([]), "mode": "batch"}, "an iterator does not give them"),
        ({"data": iter([]), "correct": loss}, "correct is of all training examples"),
        ({"log": "metrics.txt"}, "to .jsonl or .csv files, and 'metrics.txt' is neither"),
        ({"layout": "fsdp"}, r"there is no mesh: give --mesh \(mesh=\)"),
        ({"stop": stopping.all_correct()}, "judges by which training examples are right.* give correct="),
        ({"stop": [stopping.generalization_loss()]}, "by the validation loss, and there are no .* give validation="),
        ({"stop": stopping.any_of(stopping.up_strips(), stopping.target_error(0))}, "give validation="),
        (
            {"restart": stopping.Restart(stopping.plateau(3, of="validation_loss"), lambda key: PARAMS)},
            "of stop or restart judges by the validation loss",
        ),
        (
            {"stop": stopping.StoppingRule(tuple, lambda s, seen: (s, False), ("error",))},
            "by 'error', which nothing reports",
        ),
    ],
)
def test_nonsense_is_refused(options, message):
    options = {"data": DATA, "optimizer": optax.sgd(0.1), **options}
    with pytest.raises(ValueError, match=message):
        bp.fit(loss, PARAMS, options.pop("data"), **options)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="optimizer is an optax transformation, such as"):
        bp.fit(loss, PARAMS, DATA, optimizer=0.1)
    for stop in (0.1, stopping.all_correct, "plateau", [stopping.all_correct]):
        with pytest.raises(TypeError, match="stop is of rules such as train"):
            bp.fit(loss, PARAMS, DATA, optimizer=optax.sgd(0.1), stop=stop)
    with pytest.raises(TypeError, match="A tracker has a method log"):
        bp.fit(loss, PARAMS, DATA, optimizer=optax.sgd(0.1), log=print)


# --- optax's wrappers -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_updates_that_are_left_out_are_no_divergence():
    """A batch with a nan in it, of an optimiser that bears one, and none."""
    x = np.arange(8.0)
    x[3] = np.nan
    mean = lambda w, b: jnp.mean((b - w) ** 2)
    learn = lambda most: bp.fit(
        mean, jnp.array(0.0), x, optimizer=optax.apply_if_finite(optax.sgd(0.1), most), mode="online", epochs=2
    )
    w, losses = 0.0, []
    for each in [*np.delete(x, 3)] * 2:
        losses.append((each - w) ** 2)
        w += 0.2 * (each - w)
    tolerant = learn(1)
    assert (tolerant.reason, tolerant.epochs) == ("epochs", 2)
    np.testing.assert_allclose(tolerant.params, w, rtol=1e-12)
    np.testing.assert_allclose(tolerant.history["loss"], np.reshape(losses, (2, 7)).mean(1), rtol=1e-12)
    strict = learn(0)
    assert strict.reason == "diverged" and (strict.divergence.epoch, strict.divergence.update) == (1, 4)


def test_gradients_are_gathered_over_mini_batches():
    """`optax.MultiSteps` as it is: two batches of two make the step of one of four."""
    mean = lambda w, b: jnp.mean((b - w) ** 2)
    options = dict(mode="stochastic", key=KEY, epochs=1)
    gathered = optax.MultiSteps(optax.sgd(0.1), 4)
    got = bp.fit(mean, jnp.array(0.0), jnp.arange(8.0), optimizer=gathered, batch_size=2, **options)
    want = bp.fit(mean, jnp.array(0.0), jnp.arange(8.0), optimizer=optax.sgd(0.1), batch_size=8, **options)
    np.testing.assert_allclose(got.params, want.params, rtol=1e-7)  # optax divides by 4 in float32


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (None, "Item 2 of the iterator is None, and should be examples to learn from"),
        (
            {"x": np.ones(2)},
            r"Item 2 of the iterator has the structure PyTreeDef\(\{'x': \*\}\), and the first one has",
        ),
    ],
)
def test_a_stream_that_changes(second, message):
    with pytest.raises(ValueError, match=message):
        bp.fit(lambda w, b: jnp.sum(w * b), jnp.array(0.0), iter([np.ones(2), second]), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([1.0, 2.0], r"Item 1 of the iterator holds 1.0 without a leading axis of examples. Lists of .* numpy.asarray"),
        (np.array(["a", "b"]), r"Item 1 of the iterator holds .*'a'.*, which is no number"),
    ],
    ids=["a list", "words"],
)
def test_a_stream_of_what_is_no_batch(item, message):
    with pytest.raises(ValueError, match=message):
        bp.fit(lambda w, b: jnp.sum(w * b[0]), jnp.array(0.0), iter([item]), optimizer=optax.sgd(0.1))


def test_a_loader_that_is_no_iterator():
    class Loader:
        def __iter__(self):
            return iter([np.ones(2)])

    with pytest.raises(ValueError, match=r"data holds a Loader, which is no array.*as an iterator, iter\(loader\)"):
        bp.fit(lambda w, b: jnp.sum(w * b), jnp.array(0.0), Loader(), optimizer=optax.sgd(0.1))
