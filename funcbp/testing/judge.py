"""The verdict on each leaf: a derivative against its three witnesses.

An entry is one number: a cotangent of the output, pulled back, in one direction of the input. With the whole Jacobian
at hand every coordinate is a direction. Otherwise each leaf has random directions of its own, and a leaf that does not
fit along them is looked at coordinate by coordinate.

An entry fits if it is within `tolerance` units of the slope by differences, a unit being the largest of: the slope's
own error estimate, its median over the leaf, and a few ulps of the leaf's largest element. One that does not fit is
measured again with other steps, then asked whether it is a kink, the edge of a domain, or a stopped gradient, and
called wrong if it is none of these.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from .numerical import LEVELS, Evaluator, Slopes, power_of_two
from .witnesses import Witnesses

__all__ = ["Judgement", "judge_leaf"]

FEW_ULPS = 64.0
UNDERFLOW = 2.0**-960  # differences below this are lost products, not wrong derivatives
MIXED = 1e-11  # of the largest element: what rounding may leave of sums of larger terms; only where JAX agrees
BLUNT = 1e-4  # a slope whose tolerance is more than this part of the leaf's largest element does not settle it alone
USELESS = 0.1  # and one beyond this says nothing
REEXAMINED = 64  # coordinates of a leaf that are measured again
SCALES = 2.0 ** np.array([-5, -10, -17])  # of the step, relative to the leaf's
FITS, WRONG, NOT_FINITE, KINK, STOPPED, SILENT = range(6)
WORDS = {WRONG: "wrong", NOT_FINITE: "not finite", KINK: "kink", STOPPED: "stopped gradient"}


@dataclass
class Judgement:
    """The verdict on a leaf, with what led to it. `coordinate` is that of the worst element, if it is known."""

    verdict: str
    error: float | None = None
    reference_error: float | None = None
    coordinate: int | None = None
    got: float | None = None
    wanted: float | None = None
    size: float = 0.0
    against_jax: float | None = None
    note: str = ""


def judge_leaf(w: Witnesses, leaf: int) -> Judgement:
    """The verdict on one leaf."""
    where = w.subject.inputs.slices[leaf]
    n = where.stop - where.start
    if n == 0 or w.subject.outputs.size == 0:
        return Judgement("not informative", note="nothing to differentiate: no elements")
    scale = _scale(w.subject.point[where])
    if w.full:
        return _coordinates(w, leaf, np.arange(n), scale)
    along = _along(w, leaf, scale)
    suspects = np.zeros(0, int) if along.verdict in ("ok", "not informative") else _suspects(w, leaf, scale)
    if not len(suspects):
        return along
    judged = _coordinates(w, leaf, suspects, scale)
    if judged.verdict in ("ok", "not informative") and along.verdict == "wrong":
        return along
    return judged


def _scale(values: np.ndarray) -> float:
    usable = values[np.isfinite(values) & (values != 0)]
    return float(power_of_two(np.sqrt(np.mean(np.square(usable))) if usable.size else 1.0))


# --- random directions ------------------------------------------------------------------------------------------------


def _along(w: Witnesses, leaf: int, scale: float) -> Judgement:
    """The verdict along random directions: multiples of 1/8, so that moving along them is exact."""
    where = w.subject.inputs.slices[leaf]
    n = where.stop - where.start
    v = w.rng.integers(4, 9, (w.samples, n)) / 8 * w.rng.choice([-1.0, 1.0], (w.samples, n))
    directions = np.zeros((w.samples, w.subject.inputs.size))
    directions[:, where] = v
    own = np.arange(w.samples)
    measured = lambda scale: w.evaluator.slopes(directions, np.full(w.samples, scale), w.project).at((own, own))
    found = measured(scale)
    got_parts = w.got[: w.samples, where] * v
    with np.errstate(all="ignore"):
        got, size = got_parts.sum(1), np.linalg.norm(got_parts, axis=1)
        jax = None if w.jax is None else (w.jax[: w.samples, where] * v).sum(1)
        if w.jax is not None:
            size = np.maximum(size, np.linalg.norm(w.jax[: w.samples, where] * v, axis=1))
    unit = np.maximum(found.error, FEW_ULPS * w.evaluator.resolution * size)
    state = _fit(w, leaf, got, jax, found, unit, size)
    # of many rectifiers, one has its kink within the steps, and spoils them all alike
    if (state == WRONG).any() or not np.all(_settled(w, unit, size)):
        tries = [found, *(measured(scale * s) for s in SCALES)]
        found = _best(tries, "error", "central")
        unit = np.maximum(found.error, FEW_ULPS * w.evaluator.resolution * size)
        state = _fit(w, leaf, got, jax, found, unit, size)
    verdict = _verdict(state, got, found.central, unit * w.tolerance, size)
    if verdict == "ok" and w.jax is not None:
        elements = np.abs(w.got[: w.samples, where] - w.jax[: w.samples, where])
        largest = np.max(np.abs(w.jax[: w.samples, where]), axis=1, keepdims=True)
        if np.any(elements > 1e-6 * largest):
            verdict = "wrong"  # along these directions it fits, element by element it need not
    k, note = _worst(w, verdict, state, got, found, unit, size, "directions")
    return _judgement(w, leaf, verdict, got, found.central, unit, size, jax, k, None, note)


def _suspects(w: Witnesses, leaf: int, scale: float) -> np.ndarray:
    """Coordinates of a leaf to be looked at one by one: found by halving, by differing from JAX's, and by chance."""
    where = w.subject.inputs.slices[leaf]
    n = where.stop - where.start
    if n <= REEXAMINED:
        return np.arange(n)
    chosen: list[int] = []
    if w.jax is not None:
        with np.errstate(all="ignore"):
            off = np.nan_to_num(np.abs(w.got[: w.samples, where] - w.jax[: w.samples, where]), nan=np.inf).max(0)
        chosen += np.argsort(-off)[: REEXAMINED // 3].tolist()
    for k in range(w.samples):
        support = np.arange(n)
        signs = w.rng.choice([-1.0, 1.0], n)
        while len(support) > 1:
            halves = np.array_split(support, 2)
            directions = np.zeros((2, w.subject.inputs.size))
            for row, half in enumerate(halves):
                directions[row, where.start + half] = signs[half]
            found = w.evaluator.slopes(directions, np.full(2, scale), w.project)
            with np.errstate(all="ignore"):
                got = directions @ np.nan_to_num(w.got[k])
                off = np.nan_to_num(np.abs(got - found.central[:, k]), nan=np.inf)
            support = halves[int(np.argmax(off))]
        chosen.append(int(support[0]))
    chosen += w.rng.choice(n, REEXAMINED // 2, replace=False).tolist()
    return np.unique(chosen)


# --- coordinates ------------------------------------------------------------------------------------------------------


def _coordinates(w: Witnesses, leaf: int, chosen: np.ndarray, scale: float) -> Judgement:
    """The verdict on some coordinates of a leaf, for all cotangents that were pulled back: entries `(k, chosen)`."""
    start = w.subject.inputs.slices[leaf].start
    columns = start + chosen
    got = w.got[:, columns]
    jax = None if w.jax is None else w.jax[:, columns]
    found = _columns(w.evaluator, w, columns, np.full(len(columns), scale))
    size = _sizes(got, jax, found.central)
    unit = _unit(w, found, size)
    state = _fit(w, leaf, got, jax, found, unit, size)
    unsettled = ~_settled(w, unit, size) & (size > 0)  # other steps may settle it
    doubtful = np.flatnonzero(np.any((state != FITS) | _bent(found) | unsettled, 0))
    if len(doubtful):
        worst_first = doubtful[np.argsort(-_off(got, found.central, size)[:, doubtful].max(0), kind="stable")]
        again = worst_first[:REEXAMINED]
        fields = [np.array(a) for a in found]
        state[:, again], better = _reexamine(w, leaf, got[:, again], jax, again, columns[again], scale, found, size)
        for a, b in zip(fields, better, strict=True):
            a[:, again] = b
        found = Slopes(*fields)
        left = np.setdiff1d(doubtful, again)
        if len(left):  # as the worst of those that were looked at
            gravest = np.min(np.where(state[:, again] == FITS, SILENT, state[:, again]))
            state[:, left] = np.where((state[:, left] != FITS) | _bent(found.at((slice(None), left))), gravest, FITS)
    unit = _unit(w, found, size)
    verdict = _verdict(state, got, found.central, unit * w.tolerance, np.broadcast_to(size, got.shape))
    at, note = _worst(w, verdict, state, got, found, unit, size, "elements")
    return _judgement(w, leaf, verdict, got, found.central, unit, size, jax, at, int(chosen[at[-1]]), note)


def _settled(w: Witnesses, unit: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where differences alone settle an entry: what they leave room for is small beside the leaf's largest element.

    As small as `BLUNT`; in a function of less precision, as small as that lets it be.
    """
    least = w.tolerance * FEW_ULPS * w.evaluator.resolution
    return w.tolerance * unit <= min(max(BLUNT, 4 * least), USELESS) * size


def _worst(
    w: Witnesses,
    verdict: str,
    state: np.ndarray,
    got: np.ndarray,
    found: Slopes,
    unit: np.ndarray,
    size: np.ndarray,
    what: str,
) -> tuple[tuple[int, ...], str]:
    """Of the entries that the verdict is about, the one with the largest error; and what is to be said of the others.

    The error of an entry that differences do not settle is that of the differences, so of right entries the worst is
    one that they settle, if there is any.
    """
    about = [code for code, word in WORDS.items() if word == verdict]
    among, note = np.isin(state, about or ([FITS] if verdict == "ok" else [FITS, SILENT])), ""
    settled = among & _settled(w, unit, size)
    vague = np.count_nonzero(np.any(np.atleast_2d(~settled), 0))
    if verdict == "ok" and vague:
        other = "jax.vjp" if w.jax is not None else "the dot product" if w.dots is not None else "no other witness"
        note = f"differences are too coarse to settle {vague} of {got.shape[-1]} {what}, which rest on {other}"
        among = settled if settled.any() else among
    off = np.where(among, _off(got, found.central, size), -1.0)
    return tuple(map(int, np.unravel_index(int(np.argmax(off)), off.shape))), note


def _columns(evaluator: Evaluator, w: Witnesses, columns: np.ndarray, scales: np.ndarray) -> Slopes:
    """Slopes along coordinates, `(k, columns)`."""
    directions = np.zeros((len(columns), w.subject.inputs.size))
    directions[np.arange(len(columns)), columns] = 1
    return Slopes(*(a.T for a in evaluator.slopes(directions, scales, w.project)))


def _sizes(got: np.ndarray, jax: np.ndarray | None, reference: np.ndarray) -> np.ndarray:
    """The largest element for each cotangent, `(k, 1)`: by the derivative under test and JAX's, or by differences."""
    largest = lambda a: np.max(np.abs(a), axis=1, keepdims=True, initial=0.0, where=np.isfinite(a))
    size = largest(got) if jax is None else np.maximum(largest(got), largest(jax))
    size = np.where(size > 0, size, np.max(size, initial=0.0))
    return np.where(size > 0, size, largest(reference))


def _unit(w: Witnesses, found: Slopes, size: np.ndarray) -> np.ndarray:
    finite = np.where(np.isfinite(found.error), found.error, np.nan)
    with np.errstate(all="ignore"):
        typical = np.sort(finite, 1)[:, [(finite.shape[1] - 1) // 2]]
    typical = np.minimum(np.nan_to_num(typical), 1e-8 * size)
    return np.maximum(np.maximum(found.error, typical), FEW_ULPS * w.evaluator.resolution * size)


def _off(got: np.ndarray, wanted: np.ndarray, size: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        off = np.abs(got - wanted)
        return np.nan_to_num(np.where(off > 0, off / np.where(size > 0, size, off), 0.0), nan=np.inf)


def _fit(
    w: Witnesses, leaf: int, got: np.ndarray, jax: np.ndarray | None, found: Slopes, unit: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """FITS where an entry fits, WRONG where it must be looked at again."""
    with np.errstate(all="ignore"):
        fits = np.abs(got - found.central) <= w.tolerance * unit + UNDERFLOW
        blunt = w.tolerance * unit > BLUNT * size
        if jax is not None:
            fits &= ~(blunt & ~_agree(w, got, jax, size, found.noise))
        elif w.dots is not None:
            fits &= ~(blunt & np.full(np.shape(got), w.dots[leaf] > _coarseness(w)))
    return np.where(fits & np.isfinite(got), FITS, WRONG)


def _coarseness(w: Witnesses) -> float:
    return 1e-3 if w.coarse else 1e-6


def _agree(w: Witnesses, got: np.ndarray, jax: np.ndarray, size: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Whether two derivatives by rules are the same, where both are finite; not finite alike is the same too.

    `noise` is what rounding the values does to a slope; a few hundredths of it may happen inside a rule too.
    """
    with np.errstate(all="ignore"):
        close = np.abs(got - jax) <= _coarseness(w) * size + np.nan_to_num(noise) / 16
    return close | (~np.isfinite(got) & ~np.isfinite(jax))


def _reexamine(
    w: Witnesses,
    leaf: int,
    got: np.ndarray,
    jax: np.ndarray | None,
    again: np.ndarray,
    columns: np.ndarray,
    scale: float,
    first: Slopes,
    size: np.ndarray,
) -> tuple[np.ndarray, Slopes]:
    """What doubtful entries are, and the best slopes that could be had for them."""
    own = power_of_two(w.subject.point[columns])
    scales = [np.full(len(columns), scale * s) for s in SCALES]
    scales += [own, own * 2.0**-8, np.ones(len(columns)), np.full(len(columns), 2.0**-10)]
    tries = [first.at((slice(None), again)), *(_columns(w.evaluator, w, columns, s) for s in scales)]
    relative = [1.0, *SCALES]
    best = _best(tries, "error", "central")
    jax = None if jax is None else jax[:, again]
    unit = np.maximum(best.error, FEW_ULPS * w.evaluator.resolution * size)
    state = _fit(w, leaf, got, jax, best, unit, size)
    todo = (state == WRONG) | _bent(best)
    if not todo.any():
        return state, best
    noise = np.nan_to_num(first.at((slice(None), again)).noise)
    same = np.full(got.shape, True) if jax is None else _agree(w, got, jax, size, noise)
    with np.errstate(all="ignore"):
        kink, edge = _kinks(w, got, tries, relative, size)
        state[todo & edge] = FITS
        state[todo & kink] = KINK
        unusable = ~np.isfinite(best.central) | ~np.isfinite(best.error) | ~np.isfinite(got)
        state[(state == WRONG) & unusable & same] = NOT_FINITE
        # that JAX agrees and one set of steps does not is not enough: two sets must say the same, beyond rounding
        sure = _confirmed(w, got, tries, size) & ~_rounding(w, got, tries, columns, scale, noise, size)
        sure &= jax is None or not w.implicit
        state[(state == WRONG) & same & ~unusable & ~sure] = SILENT
        if jax is not None and w.dots is not None and w.dots[leaf] <= _coarseness(w):
            # rules differ, differences do not say which is right, and the dot product has no objection
            blunt = w.tolerance * unit > BLUNT * size
            near = np.abs(got - best.central) <= w.tolerance * unit
            state[(state == WRONG) & ~same & blunt & near] = SILENT
    if (state == WRONG).any() and w.stops:
        state = _stopped(w, got, jax, columns, scale, size, state, noise)
    return state, best


def _best(tries: list[Slopes], error: str, value: str) -> Slopes:
    """Of several measurements of each entry the one with the least error; last those with a kink within their steps."""
    errors = np.stack([getattr(t, error) for t in tries])
    errors = np.where(np.isfinite(np.stack([getattr(t, value) for t in tries])), errors, np.inf)
    bent = np.stack([_bent(t) for t in tries])
    order = np.where(np.isnan(errors), np.inf, errors)
    if value == "central":
        order = np.where(bent & np.isfinite(order), 1e200 + np.minimum(order, 1e200), order)
    which = np.argmin(order, 0)[None]
    return Slopes(*(np.take_along_axis(np.stack([t[i] for t in tries]), which, 0)[0] for i in range(len(tries[0]))))


def _bent(t: Slopes) -> np.ndarray:
    """Where the slopes of the two sides are apart, by more than their errors."""
    with np.errstate(all="ignore"):
        room = np.maximum(
            10 * np.maximum(t.right_error, t.left_error), 1e-3 * np.maximum(np.abs(t.right), np.abs(t.left))
        )
        return np.abs(t.right - t.left) > room


def _rounding(
    w: Witnesses, got: np.ndarray, tries: list[Slopes], columns: np.ndarray, scale: float, noise: np.ndarray, size: Any
) -> np.ndarray:
    """Where the difference may come from rounding inside the function, which the size of its value does not show.

    Either it is a few eps |f| / |x|, as for sin(x) / x next to 0, or next to nothing where larger terms
    cancel, as in a Fourier transform; or the function does not change at all, and by the
    value at hand would change by less than x's own rounding, as for a saturated loss.
    """
    x = np.abs(w.subject.point[columns].astype(np.float64))
    value_rounding = noise * w.evaluator.step * 2.0 ** (1 - LEVELS) * scale
    off = np.min([np.abs(got - t.central) for t in tries], axis=0)
    few = (off <= np.minimum(64 * value_rounding / x, BLUNT * size)) | (off <= MIXED * size)
    still = np.all([t.central == 0 for t in tries], axis=0)
    largest = np.max(np.abs(w.subject.point), initial=0.0, where=np.isfinite(w.subject.point))
    return few | (still & (np.abs(got) * w.evaluator.step * scale <= w.evaluator.resolution * largest))


def _kinks(
    w: Witnesses, got: np.ndarray, tries: list[Slopes], relative: list[float], size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the slopes of both sides differ and the value lies between; where only one side exists and it fits."""
    kink, edge = np.zeros(got.shape, bool), np.zeros(got.shape, bool)
    right, left = _best(tries, "right_error", "right"), _best(tries, "left_error", "left")
    r, re, le = right.right, right.right_error, left.left_error
    lft = left.left
    slack = w.tolerance * np.maximum(np.maximum(re, le), FEW_ULPS * w.evaluator.resolution * size)
    both = np.isfinite(r) & np.isfinite(lft) & np.isfinite(slack)
    apart = np.abs(r - lft) > np.maximum(slack, 1e-6 * np.maximum(np.abs(r), np.abs(lft)))
    between = (got >= np.minimum(r, lft) - slack) & (got <= np.maximum(r, lft) + slack)
    kink |= both & apart & between
    none_central = ~np.isfinite(_best(tries, "error", "central").central)
    for side, error in ((r, re), (lft, le)):
        room = w.tolerance * np.maximum(error, FEW_ULPS * w.evaluator.resolution * size)
        edge |= none_central & np.isfinite(side) & (np.abs(got - side) <= room) & (room <= USELESS * size)
    # at a step the slope of one side is the step's height divided by h
    heights = np.stack([np.abs(t.right - t.left) * s for t, s in zip(tries, relative, strict=False)])
    steady = np.all(np.abs(heights - heights[0]) <= 0.1 * heights[0], 0) & (heights[0] > size)
    sides = [side for t in tries for side in (t.right, t.left)]
    kink |= steady & (got >= functools.reduce(np.fmin, sides)) & (got <= functools.reduce(np.fmax, sides))
    return kink, edge


def _confirmed(w: Witnesses, got: np.ndarray, tries: list[Slopes], size: np.ndarray) -> np.ndarray:
    """Where two sets of steps agree with each other and not with the value."""
    off = np.stack([t.central - got for t in tries])
    room = np.stack([w.tolerance * np.maximum(t.error, FEW_ULPS * w.evaluator.resolution * size) for t in tries])
    excludes = np.isfinite(off) & (np.abs(off) > room)
    sure = np.zeros(got.shape, bool)
    for i in range(len(tries)):
        for j in range(i):
            close = np.abs(off[i] - off[j]) <= 0.1 * np.minimum(np.abs(off[i]), np.abs(off[j]))
            sure |= excludes[i] & excludes[j] & close
    return sure


def _stopped(
    w: Witnesses,
    got: np.ndarray,
    jax: np.ndarray | None,
    columns: np.ndarray,
    scale: float,
    size: np.ndarray,
    state: np.ndarray,
    noise: np.ndarray,
) -> np.ndarray:
    """Entries that are right with what `stop_gradient` stops held still; where that cannot be had, those JAX has."""
    alike = np.full(got.shape, False) if jax is None else _agree(w, got, jax, size, noise)
    frozen = w.frozen()
    if frozen is not None:
        found = [_columns(frozen, w, columns, np.full(len(columns), scale * s)) for s in (1.0, *SCALES)]
        best = _best(found, "error", "central")
        unit = np.maximum(best.error, FEW_ULPS * w.evaluator.resolution * size)
        alike = np.abs(got - best.central) <= w.tolerance * unit
    return np.where((state == WRONG) & alike, STOPPED, state)


# --- the verdict ------------------------------------------------------------------------------------------------------


def _verdict(state: np.ndarray, got: np.ndarray, wanted: np.ndarray, room: np.ndarray, size: np.ndarray) -> str:
    for code, word in WORDS.items():
        if np.any(state == code):
            return word
    with np.errstate(all="ignore"):
        zero = (np.abs(got) <= room) & (np.abs(wanted) <= room)
        silent = (state == SILENT) | zero | (room > USELESS * size) | (size == 0)
    return "not informative" if np.all(silent) else "ok"


def _judgement(
    w: Witnesses,
    leaf: int,
    verdict: str,
    got: np.ndarray,
    wanted: np.ndarray,
    unit: np.ndarray,
    size: np.ndarray,
    jax: np.ndarray | None,
    at: Any,
    coordinate: int | None,
    note: str = "",
) -> Judgement:
    sizes = np.broadcast_to(size, got.shape)
    of = float(sizes[at]) or 1.0
    against = None
    if jax is not None:
        with np.errstate(all="ignore"):
            rows = np.abs(got - jax) / np.where(sizes > 0, sizes, 1.0)
        against = float(np.max(np.where(np.isfinite(rows), rows, 0.0), initial=0.0))
    sign = _sign(w, leaf, coordinate)
    with np.errstate(all="ignore"):
        own = float(unit[at] / of)
        coarse = verdict == "not informative" and own * w.tolerance > USELESS
        if coarse:
            note = note or f"differences are too coarse to tell: {own:.0e} of its largest element"
        return Judgement(
            verdict,
            error=float(np.abs(got[at] - wanted[at]) / of),
            reference_error=own,
            coordinate=coordinate,
            got=float(sign * got[at]),
            wanted=float(sign * wanted[at]),
            size=float(sizes[at]),
            against_jax=against,
            note=note,
        )


def _sign(w: Witnesses, leaf: int, coordinate: int | None) -> float:
    """A cotangent's coordinates are those of its conjugate: undo that for the imaginary part."""
    space = w.subject.inputs
    return -1.0 if coordinate is not None and space.complex[leaf] and coordinate >= space.counts[leaf] else 1.0
