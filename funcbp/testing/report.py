"""What a check found, as a table."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from xml.etree import ElementTree

from ..inspection.render.columns import columns
from ..inspection.render.table import short_type

__all__ = ["Finding", "LeafReport", "Report"]

LEGEND = (
    "error, ref.: of the worst element, and the reference's own, by the leaf's largest element;",
    "vs jax: the largest difference from jax.vjp, likewise; dot: how far <u, Jv> is from <J'u, v>;",
    "own ulp, jax ulp: the error in the leaf's own type, and that of jax.vjp; -: cannot be had.",
)
VERDICTS = ("wrong", "not finite", "kink", "stopped gradient", "not informative", "ok")


@dataclass(frozen=True)
class LeafReport:
    """What was found of one leaf.

    Attributes:
        path, shape, dtype: which leaf.
        verdict: `"ok"`, `"wrong"`, `"kink"` (the slopes on both sides differ and the value lies between them),
            `"not informative"` (saturated, constant, or too coarse to tell), `"stopped gradient"` (differences see what
            `stop_gradient` hides) or `"not finite"`. Only `"wrong"` fails.
        order: 1 for the gradient, 2 for the derivative of the gradient.
        error: the largest difference from the reference, relative to the leaf's largest element.
        reference_error: the reference's own estimate of its error, in the same unit.
        worst: index of the worst element, None for what is known of a direction only.
        got, wanted: its values.
        ulps: their distance in units in the last place of the leaf's dtype, at the size of the leaf's largest element.
        against_jax: the largest difference from `jax.vjp` in float64, relative; None where JAX has no derivative.
        dot: |⟨ū, J v⟩ - ⟨Jᵀ ū, v⟩| by `jax.jvp`, relative; None where there is no forward derivative.
        own_ulps, jax_ulps: the error of the derivative under test, and of JAX's, computed in the leaf's dtype.
        complex_step: the largest difference from the complex step, relative, if it was asked for and could be done.
        note: what else there is to say.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    verdict: str
    order: int = 1
    error: float | None = None
    reference_error: float | None = None
    worst: tuple[int, ...] | None = None
    got: float | None = None
    wanted: float | None = None
    ulps: float | None = None
    against_jax: float | None = None
    dot: float | None = None
    own_ulps: float | None = None
    jax_ulps: float | None = None
    complex_step: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One line of the consistency block: what was compared, how it came out, and whether that is a failure."""

    name: str
    result: str
    ok: bool = True


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        name: of the function.
        leaves: a `LeafReport` for each floating-point leaf and order.
        consistency: the derivative against itself: eager, compiled, mapped, called again; its types and structure.
        notes: what blinds the check, and which witnesses could not be had.
        culprit: on failure, the equation whose rule is wrong.
        seed, samples, mode: how the directions were drawn; whether the whole Jacobian was compared.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.testing import check
        >>> report = check(lambda w: jnp.sum(jnp.tanh(w)), jnp.array([0.1, 0.2]))
        >>> report.ok, report.worst.path
        (True, 'w')
    """

    name: str
    leaves: tuple[LeafReport, ...]
    consistency: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    culprit: str = ""
    seed: int = 0
    samples: int = 2
    mode: str = ""
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(leaf.verdict != "wrong" for leaf in self.leaves) and all(f.ok for f in self.consistency)

    @property
    def worst(self) -> LeafReport | None:
        """The leaf with the gravest verdict, and of those the one with the largest error."""
        rank = lambda leaf: (-VERDICTS.index(leaf.verdict), _number(leaf.error))
        return max(self.leaves, key=rank, default=None)

    def to_json(self) -> str:
        """The report as JSON: its attributes, and `ok`."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, default=str, allow_nan=True)

    def to_junit(self) -> str:
        """The report as JUnit XML, which CI systems show: a test case for each leaf and each line of consistency."""
        cases = [
            (
                f"{leaf.path}{' (second order)' if leaf.order == 2 else ''}",
                leaf.verdict == "wrong",
                f"{leaf.verdict}: got {_value(leaf.got)}, wanted {_value(leaf.wanted)} {leaf.note}".rstrip(),
            )
            for leaf in self.leaves
        ]
        cases += [(finding.name, not finding.ok, finding.result) for finding in self.consistency]
        suite = ElementTree.Element("testsuite", name=f"funcbp check {self.name}", tests=str(len(cases)))
        suite.set("failures", str(sum(failed for _, failed, _ in cases)))
        for name, failed, said in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=self.name, name=name)
            if failed:
                ElementTree.SubElement(case, "failure", message=said).text = str(self)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "WRONG"
        lines = [f"{self.name}: {verdict}   ({self.mode}, {self.samples} samples, seed {self.seed})"]
        rows = [_HEAD, *map(_row, self.leaves)]
        lines += columns(rows, _NAMES, _NUMBERS, indent="  ")
        for leaf in self.leaves:
            if leaf.verdict == "wrong":
                where = f"{leaf.path}{_index(leaf.worst)}"
                order = " (second order)" if leaf.order == 2 else ""
                lines.append(
                    f"  wrong: {where}{order} got {_value(leaf.got)}, wanted {_value(leaf.wanted)}"
                    + (f" ({leaf.ulps:.3g} ulp of {leaf.dtype})" if leaf.ulps is not None else "")
                )
            if leaf.note:
                lines.append(f"  {leaf.path}: {leaf.note}")
        if self.culprit:
            lines.append(f"  culprit: {self.culprit}")
        for finding in self.consistency:
            lines.append(f"  {'' if finding.ok else 'FAILED '}{finding.name}: {finding.result}")
        lines += [f"  note: {n}" for n in self.notes]
        lines += [f"  {line}" for line in LEGEND]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(h)}</th>" for h in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in _row(leaf)) + "</tr>" for leaf in self.leaves
        )
        below = str(self).splitlines()[len(self.leaves) + 2 :]
        rest = "".join(f"<li>{html.escape(line.strip())}</li>" for line in below)
        title = html.escape(str(self).splitlines()[0])
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{rest}</ul>"


_HEAD = ("leaf", "type", "verdict", "error", "ref.", "worst", "vs jax", "dot", "own ulp", "jax ulp")
_NAMES = (0, 1, 5)
_NUMBERS = range(3, len(_HEAD))


def _row(leaf: LeafReport) -> tuple[str, ...]:
    order = " (2nd)" if leaf.order == 2 else ""
    return (
        leaf.path + order,
        short_type(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"),
        leaf.verdict,
        _small(leaf.error),
        _small(leaf.reference_error),
        _index(leaf.worst).replace(" ", "") or "-",
        _small(leaf.against_jax),
        _small(leaf.dot),
        _small(leaf.own_ulps),
        _small(leaf.jax_ulps),
    )


def _number(x: float | None) -> float:
    return -1.0 if x is None or x != x else x


def _small(x: float | None) -> str:
    return "-" if x is None else f"{x:.0e}" if x and (abs(x) >= 100 or abs(x) < 0.1) else f"{x:.2g}"


def _value(x: float | None) -> str:
    return "-" if x is None else f"{x:.9g}"


def _index(index: tuple[int, ...] | None) -> str:
    return "" if index is None else f"[{', '.join(map(str, index))}]"
