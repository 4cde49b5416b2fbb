"""What is asked of a training: its `Learner`, whether it makes sense, and what a checkpoint of it must agree with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from ...autodiff.arguments import parameters_first, without_aux
from ...autodiff.transformations import Backward, as_backward
from ...jaxpr.types import PyTree
from . import fingerprint
from . import optimizer as optimizers
from .layout import Placement
from .loop import MODES, Learner
from .stopping import Restart, StoppingRule


def make_learner(
    loss: Callable[..., jax.Array],
    optimizer: Any,
    mode: str,
    *,
    streams: bool,
    batch_size: int,
    replacement: bool,
    stop: Any,
    restart: Restart | None,
    score: Callable[..., jax.Array] | Mapping[str, Callable[..., jax.Array]] | None,
    correct: Callable[..., jax.Array] | None,
    validates: bool,
    argnums: int,
    has_aux: bool,
    backward: Backward | None,
    placement: Placement | None,
) -> tuple[Learner, tuple[str, ...]]:
    """The learner of what `fit` and `fit_many` are given, and what its stopping rules are called."""
    rules, names = _rules_of(stop)
    learner = Learner(
        loss=parameters_first(without_aux(loss) if has_aux else loss, argnums),
        optimizer=optimizers.as_transformation(optimizer),
        mode="stream" if streams else mode,
        batch_size=1 if mode == "online" else batch_size,
        replacement=replacement,
        rules=rules,
        restart=restart,
        scores=_scores_of(score),
        correct=correct,
        validates=validates,
        backward=as_backward(backward),
        placement=placement,
    )
    return learner, names


def _rules_of(stop: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The stopping rules, and what they are called."""
    if isinstance(stop, Mapping):
        return tuple(stop.values()), tuple(stop)
    rules = tuple(stop) if isinstance(stop, list | tuple) and not isinstance(stop, StoppingRule) else (stop,)
    return rules, tuple(f"stop[{i}]" for i in range(len(rules)))


def _scores_of(score: Any) -> tuple[tuple[str, Any], ...]:
    """The scores, by the names of their columns."""
    scores = score if isinstance(score, Mapping) else {} if score is None else {"score": score}
    return tuple((f"validation_{name}", f) for name, f in scores.items())


def settings_of(
    learner: Learner, mode: str, key: jax.Array, data: PyTree, validation: PyTree | None, updates: int
) -> dict[str, Any]:
    """What the course of a training depends on, beside what the state shows; a checkpoint must agree."""
    settings: dict[str, Any] = {"mode": mode, "key": fingerprint.of_arrays(key)}
    if validation is not None:
        settings["validation"] = fingerprint.of_arrays(validation)
    if learner.mode == "stream":
        return {**settings, "updates": updates}
    settings |= {"batch_size": learner.batch_size, "replacement": learner.replacement}
    return {**settings, "data": fingerprint.of_arrays(data)}


def programs_of(learner: Learner, params: PyTree, data: PyTree) -> dict[str, str]:
    """Fingerprints of what is computed in an update: the loss, how it goes backward, and the optimiser's step."""
    key = jax.random.key(0)

    def batch_of(data: PyTree) -> PyTree:
        items, batch_of = learner.batches(data, key)
        return batch_of(jax.tree.map(lambda a: a[0], items))

    batch = jax.eval_shape(batch_of, data)
    memory = jax.eval_shape(functools.partial(optimizers.init, learner.optimizer), params)
    loss = lambda params, batch: learner.on_batch(batch, key)(params)
    value = jax.eval_shape(loss, params, batch)
    return {
        "loss": fingerprint.of_program(loss, params, batch),
        "optimizer": fingerprint.of_program(
            lambda g, m, w, e, b: learner.step(g, m, w, e, b, key), params, memory, params, value, batch
        ),
        "backward": fingerprint.placeless(repr(learner.backward)),
    }


def check(learner: Learner, mode: str, data: PyTree, epochs: int, updates: int) -> None:
    """Raise if what is asked for makes no sense."""
    if not isinstance(learner.optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer is an optax transformation, such as optax.sgd(0.1), and was {learner.optimizer!r}.")
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(map(repr, MODES))}, and was {mode!r}.")
    for name, value in (("epochs", epochs), ("batch_size", learner.batch_size), ("updates", updates)):
        if not value >= 1:
            raise ValueError(f"{name} is at least 1, and was {value}.")
        if not float(value).is_integer():
            raise ValueError(f"{name} is a whole number, and was {value}.")
    if learner.replacement and mode != "stochastic":
        raise ValueError(f'replacement=True is for mode="stochastic": in mode={mode!r} no example is drawn.')
    if learner.scores and not learner.validates:
        raise ValueError("score is of the validation examples, and there are none: give validation=.")
    _check_rules(learner)
    if learner.mode == "stream":
        if mode == "batch":
            raise ValueError('mode="batch" needs all examples at once, and an iterator does not give them.')
        if learner.correct:
            raise ValueError("correct is of all training examples, and an iterator does not give them.")
        return
    for leaf in jax.tree.leaves(data):
        if hasattr(leaf, "__iter__") and not hasattr(leaf, "shape"):
            raise ValueError(
                f"data holds a {type(leaf).__name__}, which is no array. A loader of batches is given as an iterator, "
                "iter(loader)."
            )
    leaves = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = sorted({shape[0] if shape else -1 for shape in leaves})
    if len(lengths) != 1 or lengths == [-1]:
        raise ValueError(
            f"The examples are a pytree of arrays with a common leading axis, and the shapes are "
            f"{', '.join(map(str, leaves)) or 'none at all'}."
        )
    if lengths == [0]:
        raise ValueError("Learning needs at least one example, and the leading axis has length 0.")
    if isinstance(learner.placement, Placement):
        learner.placement.check_batch(lengths[0] if mode == "batch" else min(learner.batch_size, lengths[0]))


def _check_rules(learner: Learner) -> None:
    """Raise if something is no rule, or a rule judges by what will not be known."""
    known = {"epoch", "loss", *learner.columns}
    for rule in (*learner.rules, *([learner.restart.when] if learner.restart else [])):
        if not isinstance(rule, StoppingRule):
            raise TypeError(f"stop is of rules such as train.stopping.target_error(0.01), and {rule!r} is none.")
        for name in rule.needs:
            if name not in known:
                what, argument = _GIVEN.get(name, (f"{name!r}, which nothing reports", "another rule"))
                raise ValueError(f"A rule of stop or restart judges by {what}: give {argument}.")


_GIVEN = {
    "validation_loss": ("the validation loss, and there are no validation examples", "validation="),
    "correct": ("which training examples are right, and nothing says so", "correct="),
}
