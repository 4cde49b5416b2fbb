"""`fit_many`: one training under `jax.vmap`, over seeds, learning rates and whatever else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from ...autodiff.arguments import checked_arrays
from ...autodiff.transformations import Backward
from ...jaxpr.types import PyTree
from . import fingerprint, loop
from .checkpoint import Store, store_of
from .drive import HostConfig, drive
from .fit import Fit, fit_of
from .layout import MemberPlacement
from .loop import Learner
from .setup import check, make_learner, programs_of, settings_of
from .stopping import Restart, StoppingRule

Stop = StoppingRule | Callable[..., StoppingRule]


def fit_many(
    loss: Callable[..., jax.Array],
    params: PyTree,
    data: PyTree,
    *,
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    key: jax.Array,
    over: Mapping[str, jax.Array | Any] | None = None,
    mode: str = "stochastic",
    epochs: int = 100,
    batch_size: int = 32,
    replacement: bool = False,
    validation: PyTree | None = None,
    score: Callable[..., jax.Array] | Mapping[str, Callable[..., jax.Array]] | None = None,
    correct: Callable[..., jax.Array] | None = None,
    stop: Stop | Sequence[Stop] | Mapping[str, Stop] = (),
    restart: Restart | None = None,
    progress: bool | Callable[..., Any] = False,
    checkpoint: str | Path | Store | None = None,
    resume: bool | str = False,
    mesh: Mesh | None = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Fit:
    """Train many networks at once, in one compiled loop: `fit` over seeds, learning rates, and any other number.

    Each member learns as `fit` would teach it alone, and stops on its own: from then on its parameters stay as they
    are, and the loop ends with the last one.

    Args:
        loss: `loss(params, batch) -> scalar`, as for `fit`. It may have further parameters that `over` names.
        params: `params(key) -> pytree`, the initial parameters of a member; or a pytree with a leading axis of members.
        data: the examples, the same for all members.
        optimizer: an optax transformation; or a function of numbers that `over` names, which returns one.
        key: typed keys, shape (members,), or one key to split. A member's key is split in two: for its initial
            parameters, if they are drawn, and for the order of its examples.
        over: hyperparameters by name, arrays with a leading axis of members. Each goes to those of `loss`, `optimizer`
            and the stopping rules that have a parameter of its name.
        mode, epochs, batch_size, replacement, validation, score, correct, restart: as for `fit`.
        stop: rules as for `fit`, or functions of numbers that `over` names, which return one.
        progress, checkpoint, resume, argnums, has_aux, backward: as for `fit`.
        mesh: devices to divide the members over, along all axes.

    Returns:
        As `fit` returns it, with a leading axis of members in the parameters, `epochs`, `best_epoch` and `attempts`, a
        list of reasons, and the history with shape (epochs, members), nan where a member had stopped.

    Raises:
        ValueError: an argument makes no sense; the message says which.

    Example:
        >>> import jax, jax.numpy as jnp, optax, funcbp as bp
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> loss = lambda w, batch: jnp.mean((w * batch - 2 * batch) ** 2)
        >>> rates = jnp.array([0.001, 0.1, 1.0])
        >>> many = bp.fit_many(
        ...     loss, lambda key: jnp.array(0.0), x, optimizer=lambda rate: optax.sgd(rate), over={"rate": rates},
        ...     key=jax.random.key(0), mode="batch", epochs=100, stop={"learned": bp.train.stopping.target_error(1e-6)},
        ... )
        >>> many.reason
        ['epochs', 'learned', 'diverged']
    """
    over = {name: jnp.asarray(value) for name, value in (over or {}).items()}
    learner, names = make_learner(
        loss,
        optimizer,
        mode,
        streams=False,
        batch_size=batch_size,
        replacement=replacement,
        stop=stop,
        restart=restart,
        score=score,
        correct=correct,
        validates=validation is not None,
        argnums=argnums,
        has_aux=has_aux,
        backward=backward,
        placement=MemberPlacement(mesh, ()) if mesh is not None else None,
    )
    keys, params = _members(params, key, over)
    _check_names(over, learner)
    one = learner.bind({name: value[0] for name, value in over.items()})
    check(one, mode, data, epochs, 1)
    data, validation = learner.put(data), learner.put(validation)
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        settings = settings_of(one, mode, keys, data, validation, 1) | {"over": fingerprint.of_arrays(over)}
        settings |= programs_of(one, jax.tree.map(lambda a: a[0], params), data)
    out = drive(
        learner,
        params,
        keys,
        itertools.repeat(data),
        validation,
        over,
        HostConfig(epochs, progress, None, store_of(checkpoint), resume, settings, names),
    )
    return fit_of(learner, out, jax.vmap(learner.judged)(out.state), np.asarray, out.reasons)


def _members(params: PyTree, key: jax.Array, over: Mapping[str, jax.Array]) -> tuple[jax.Array, PyTree]:
    """The members' keys and initial parameters."""
    drawn = callable(params) and jax.tree_util.all_leaves([params])  # and not a module, a pytree that can be called
    draw = lambda key: checked_arrays(params(key))
    lengths = {name: value.shape[0] if value.ndim else 0 for name, value in over.items()}
    if not drawn:
        checked_arrays(params)
        lengths |= {
            f"params at {jax.tree_util.keystr(path)}": jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0
            for path, leaf in jax.tree.leaves_with_path(params)
        }
    if key.ndim:
        lengths["key"] = key.shape[0]
    if not lengths:
        raise ValueError("How many members there are is said by over=, by a leading axis of params, or by keys.")
    count = next(iter(lengths.values()))
    if count < 1 or set(lengths.values()) != {count}:
        shown = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise ValueError(f"Everything has a leading axis of members, of one length, and {shown}.")
    keys = key if key.ndim else jax.random.split(key, count)
    halves = jax.vmap(jax.random.split)(keys)
    return halves[:, 1], jax.vmap(draw)(halves[:, 0]) if drawn else jax.tree.map(jnp.asarray, params)


def _check_names(over: Mapping[str, ArrayLike], learner: Learner) -> None:
    """Raise if a hyperparameter goes to nothing."""
    optimizer = learner.optimizer
    takers: list[Any] = [learner.loss, *(rule for rule in learner.rules if not isinstance(rule, StoppingRule))]
    if not isinstance(optimizer, optax.GradientTransformation):
        if not callable(optimizer):
            raise TypeError(f"optimizer is an optax transformation, or a function that returns one, not {optimizer!r}.")
        takers.append(optimizer)
    known = {name for taker in takers for name in loop.parameters(taker)}
    for name in over:
        if name not in known:
            raise ValueError(
                f"over has {name!r}, and neither the loss, nor the optimizer, nor a stopping rule has a parameter of "
                f"that name. An optimizer that depends on it is a function: lambda {name}: optax.sgd({name})."
            )
