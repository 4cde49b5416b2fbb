"""The witnesses of a check: dot products, differences, `jax.vjp`; and the complex step, which is shown only."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..jaxpr.types import PyTree, T
from ..rules.cost import flops
from .numerical import LEVELS, STEP, Evaluator, compiled
from .programs import Frozen, draws_implicitly, stops_gradients, stops_in_loops
from .subject import Subject, first_line

__all__ = ["Setting", "Witnesses", "gather", "or_none", "random_cotangents"]

FULL = 10_000  # up to this many entries, the whole Jacobian is compared
FULL_LOOPING = 512  # and up to this many where the function is evaluated one value at a time
FULL_WORK = 3e10  # floating-point operations that it may take, about: seconds
CONVOLVED = 64  # times as long an operation takes in a convolution each of whose examples has a kernel of its own
WIDE_STEP = 2.0**-4  # where the function cannot be evaluated in float64


@dataclass
class Setting:
    """How a check is made.

    Attributes:
        vjp: the derivative under test.
        samples: how many random cotangents, and directions of each leaf.
        tolerance: units that an entry may be off.
        rng: where the random numbers come from.
        complex_step: whether to compute the complex step.
        resolution: the precision the function computes in.
        notes: what there is to say, added to as it is found out.
    """

    vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]]
    samples: int
    tolerance: float
    rng: np.random.Generator
    complex_step: bool
    resolution: float
    notes: list[str]


@dataclass
class Witnesses:
    """What the entries of all leaves are judged by.

    Attributes:
        subject: the function.
        evaluator: its values around the point.
        frozen: makes the same of the function with its stopped gradients frozen, or None if it has none or it cannot be
            had; asked only where a leaf needs it.
        cotangents: those of the output that were pulled back, `(k, m)`: `samples` random ones, then the unit ones, if
            all coordinates are looked at.
        samples: how many of them are random.
        got: the cotangents of the input, `(k, n)`, by the derivative under test.
        jax: by `jax.vjp`, or None.
        dots: for each leaf, how far the dot-product identity with `jax.jvp` is from holding, relative; or None.
        complex_steps: for each leaf, how far the complex step is, relative, if it was asked for.
        stops: the lines where the program stops gradients.
        implicit: whether it draws numbers whose derivative is that of their distribution.
        coarse: whether it casts to less than double precision, or computes in less.
        tolerance: units that an entry may be off.
        full: whether all coordinates are looked at.
    """

    subject: Subject
    evaluator: Evaluator
    frozen: Callable[[], Evaluator | None]
    cotangents: np.ndarray
    samples: int
    got: np.ndarray
    jax: np.ndarray | None
    dots: list[float] | None
    complex_steps: list[float] | None
    stops: list[str]
    implicit: bool
    coarse: bool
    tolerance: float
    full: bool
    rng: np.random.Generator

    def project(self, values: np.ndarray, bound: bool) -> np.ndarray:
        """Cotangents acting on outputs, `(..., m)` to `(..., k)`; on absolute values, by their absolute values."""
        random = self.cotangents[: self.samples]
        with np.errstate(all="ignore"):
            some = np.stack([np.sum(values * (np.abs(c) if bound else c), -1) for c in random], -1)
        unit = len(self.cotangents) - self.samples
        return np.concatenate([some, values[..., :unit]], -1) if unit else some


def gather(
    subject: Subject, setting: Setting, random: np.ndarray, program: jx.Program | Any, jax_subject: Subject | None
) -> Witnesses:
    """Ask all witnesses about a function.

    Args:
        subject: the function, in float64 where it can be had so.
        random: the random cotangents of its output, `(samples, m)`.
        program: of the function, or None if it cannot be traced.
        jax_subject: the function whose `jax.vjp` is the witness; None if it cannot be had.
    """
    n, m = subject.inputs.size, subject.outputs.size
    step = STEP if subject.inputs.dtype == np.float64 else WIDE_STEP
    evaluate = lambda f: Evaluator(f, subject.point, setting.resolution, step, subject.value)
    full = 0 < n * m <= (FULL if program is not None else FULL_LOOPING) and _work(program, n, m) <= FULL_WORK
    cotangents = np.concatenate([random, np.eye(m)]) if full else random
    is_jax, by_jax, reason = setting.vjp is jax.vjp and jax_subject is subject, None, ""
    together = None if is_jax or jax_subject is None else subject.rows_beside(setting.vjp, jax_subject, cotangents)
    if together is not None:
        got, by_jax = together
    else:
        got, reason = subject.rows(setting.vjp, cotangents)
    if reason:
        setting.notes.append(f"The pullback was run without jit: {reason}")
    if len(got) < len(cotangents):  # they cannot be mapped over: the random ones must do
        cotangents = random[: len(got)]
        got = got[: len(cotangents)]
    if is_jax:
        by_jax = got
    elif by_jax is None and jax_subject is not None:
        by_jax = or_none(lambda: jax_subject.rows(jax.vjp, cotangents)[0], setting.notes, "jax.vjp")
        by_jax = None if by_jax is None or len(by_jax) < len(got) else by_jax
    samples = min(len(random), len(cotangents))
    dots = or_none(lambda: _dot_products(subject, random[:samples], got, setting.rng), setting.notes, "jax.jvp")
    stops = stops_gradients(program) if program is not None else []
    implicit = program is not None and draws_implicitly(program)
    if implicit:
        setting.notes.append(
            "It draws gamma variates, whose derivative is that of their distribution, not of how they were drawn: "
            "differences do not see it, and JAX is the witness"
        )

    @functools.cache
    def frozen() -> Evaluator | None:
        if program is None or stops_in_loops(program):  # then JAX says what is stopped
            return None
        with contextlib.suppress(Exception):
            still = Frozen(program, subject)
            return evaluate(still) if still.stopped else None
        return None

    steps = _complex_steps(subject, random, got, setting.notes) if setting.complex_step else None
    return Witnesses(
        subject,
        evaluate(subject.in_coordinates),
        frozen,
        cotangents,
        samples,
        got,
        by_jax,
        dots,
        steps,
        stops,
        implicit,
        setting.resolution > 1e-10,
        setting.tolerance,
        full,
        setting.rng,
    )


def _work(program: jx.Program | Any, n: int, m: int) -> float:
    """How many operations the whole Jacobian takes: along n coordinates at each step, and back from m outputs."""
    if program is None:
        return 0.0
    passes = 2 * LEVELS * n + 3 * m  # of the function; going back takes about two more
    weight = lambda eqn: CONVOLVED if eqn.primitive is jx.primitives.conv_general_dilated_p else 1
    return passes * sum(weight(eqn) * flops(eqn) for eqn in program.eqns)


def random_cotangents(rng: np.random.Generator, samples: int, size: int) -> np.ndarray:
    """Random multiples of 1/8 between 1/2 and 1, of both signs: exact in every dtype, and none of them small."""
    return rng.integers(4, 9, (samples, size)) / 8 * rng.choice([-1.0, 1.0], (samples, size))


def or_none(compute: Callable[[], T], notes: list[str], who: str) -> T | Any:
    """What this computes, or None with a note if that witness cannot be had."""
    try:
        return compute()
    except Exception as error:
        notes.append(f"{who} is no witness here: {first_line(error)}")
        return None


def _dot_products(subject: Subject, random: np.ndarray, got: np.ndarray, rng: np.random.Generator) -> list[float]:
    """For each leaf, how far ⟨ū, J v⟩ = ⟨Jᵀ ū, v⟩ is from holding, relative to the terms' length."""
    count = len(random)
    leaves = len(subject.inputs.types)
    directions = np.zeros((leaves, count, subject.inputs.size))
    for i, where in enumerate(subject.inputs.slices):
        directions[i, :, where] = rng.standard_normal((count, where.stop - where.start))
    if not subject.inputs.size:
        return [0.0] * leaves
    z = jnp.asarray(subject.point)

    def forward(d: jax.Array) -> jax.Array:
        return jax.jvp(subject.in_coordinates, (z,), (d,))[1]

    flat = jnp.asarray(directions.reshape(-1, subject.inputs.size), subject.inputs.dtype)
    try:
        moved = compiled(jax.vmap(forward))(flat)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        moved = jnp.stack([forward(d) for d in flat])
    moved = np.asarray(moved, np.float64).reshape(leaves, count, -1)
    out = []
    with np.errstate(all="ignore"):
        for i in range(leaves):
            left = np.sum(moved[i] * random, 1)
            terms = got[:count] * directions[i]
            size = np.maximum(np.linalg.norm(terms, axis=1), np.abs(left))
            off = np.abs(left - terms.sum(1))
            relative = np.where(off > 0, off / np.where(size > 0, size, 1.0), 0.0)
            out.append(float(np.max(np.nan_to_num(relative, nan=np.inf), initial=0.0)))
    return out


def _complex_steps(subject: Subject, random: np.ndarray, got: np.ndarray, notes: list[str]) -> list[float] | None:
    """For each leaf, how far Im f(x + i h v) / h is from ⟨Jᵀ ū, v⟩, relative; real functions only."""
    if any(subject.inputs.complex) or any(subject.outputs.complex):
        notes.append("The complex step needs real inputs and outputs.")
        return None
    h = 1e-20
    out = []

    def along(v: np.ndarray) -> np.ndarray:
        types = [jax.ShapeDtypeStruct(t.shape, np.complex128) for t in subject.inputs.types]
        z = np.concatenate([subject.point, h * v])
        parts = [jnp.asarray(z[: len(v)][s] + 1j * z[len(v) :][s]) for s in subject.inputs.slices]
        floats = [p.reshape(t.shape) for p, t in zip(parts, types, strict=True)]
        outs, _ = subject.outputs_of(subject.chosen(subject.with_floats(floats)))
        ys = [jnp.ravel(jnp.imag(jnp.asarray(outs[i]))) for i in subject.out_float_ids]
        return np.asarray(jnp.concatenate(ys), np.float64) / h

    try:
        for where in subject.inputs.slices:
            v = np.zeros(subject.inputs.size)
            v[where] = 1.0
            terms = got[0] * v
            off = abs(float(np.sum(along(v) * random[0])) - float(terms.sum()))
            out.append(off / max(float(np.linalg.norm(terms)), 1e-300))
    except Exception as error:
        notes.append(f"The complex step cannot be had here: {first_line(error)}")
        return None
    return out
