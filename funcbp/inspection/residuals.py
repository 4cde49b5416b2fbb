"""What passes from the forward to the backward pass, in writing: each value, its bytes, and why it is kept."""

from __future__ import annotations

import functools
import html
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from jax.tree_util import KeyPath

from .. import jaxpr as jx
from ..autodiff.arguments import as_value, check_callable, checked_result, divided, is_array, numbers_of
from ..autodiff.fitting import fitted
from ..autodiff.passes import passes_of
from ..autodiff.tape import Entry, SavedIndex
from ..autodiff.transformations import Backward, as_backward
from ..control_flow.revolve import Loop, LoopResiduals
from ..cotangents import is_differentiable
from ..jaxpr.types import Atom, Aval, JaxprEqn, PyTree, Value, Var
from ..remat.budget import Budget
from ..remat.cut import speed_up
from ..remat.graph import bytes_of, kept_bytes
from ..remat.machine import Machine, machine_here
from ..remat.peak import peak_of_plan
from ..remat.plan import Plan, plan_of_call
from ..remat.policies import POLICIES
from ..remat.price import price
from ..remat.regions import in_regions
from ..rules.cost import is_cheap
from .live import Live, live_bytes
from .render.columns import WIDTH, columns, shortened
from .render.table import short_line, short_type

__all__ = ["Residual", "Residuals", "residuals"]

KEPT, ONCE, AVAILABLE, RECOMPUTED = "kept", "kept once", "available", "recomputed"


@dataclass(frozen=True)
class Residual:
    """One value that the backward pass reads.

    Attributes:
        name: the name it was given by `funcbp.name` or `checkpoint_name`, the path of the argument it is, or what made
            it.
        line: the user's line that made it.
        shape, dtype: of one step's value.
        bytes: of one step's value, as it is kept: a mask as bits.
        steps: in how many steps it is kept.
        fate: `"kept"`, `"kept once"` (the same in every step of a loop), `"available"` (an argument, what a loop
            goes along, a step's state rerun from a snapshot) or `"recomputed"`.
        why: the reason.
        wanted: the rules that want it, with their lines.
        inside: the loops and regions around it, from the outermost in.
        again: the price of making one step's value again of what is there otherwise, in bytes, to be weighed against
            `bytes`: as many could be kept in the same time. None for what cannot be made again.
    """

    name: str
    line: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    steps: int
    fate: str
    why: str
    wanted: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    again: float | None = None

    @property
    def total(self) -> int:
        """Bytes in all steps together."""
        return self.bytes * self.steps


@dataclass(frozen=True)
class Residuals:
    """What is kept between the passes of a function, and what is recomputed.

    Attributes:
        name: of the function.
        policy: how it was planned.
        values: a `Residual` for each value that the backward pass reads.
        live: the bytes in use along both passes, for `funcbp.plot.memory`.
        peak: the bytes that the compiled gradient is predicted to have in use at most, beside arguments and results: to
            be compared with `compiled.memory_analysis().temp_size_in_bytes`.
    """

    name: str
    policy: str
    values: tuple[Residual, ...]
    live: Live = field(repr=False)
    peak: int

    @property
    def total(self) -> int:
        """The bytes that are kept, in all."""
        return sum(v.total for v in self.values if v.fate in (KEPT, ONCE))

    @property
    def recomputed(self) -> int:
        """The bytes that were not kept, because they are recomputed."""
        return sum(v.total for v in self.values if v.fate == RECOMPUTED)

    def to_json(self) -> str:
        """As JSON: the attributes but for `live`, and the sums."""
        values = [{**asdict(v), "total": v.total} for v in self.values]
        sums = {"total": self.total, "recomputed": self.recomputed, "peak": self.peak}
        return json.dumps({"name": self.name, "policy": self.policy, **sums, "values": values}, indent=2)

    def _title(self) -> str:
        return f"{self.name}: {self.total:,} bytes kept, {self.recomputed:,} recomputed   ({self.policy})"

    def __str__(self) -> str:
        """A line for each value that is kept or recomputed, those of equal layers in one; what is available together.

        They stand by what is around them, and by their fate and its reason.
        """
        rows: list[tuple[str, ...]] = [_TITLES]
        lines: list[str | None] = []  # None: the next of the rows
        for where, fates in self._grouped().items():
            lines.append(f"{where}:")
            for (fate, why), group in fates.items():
                lines.append(f"  {_of_group(fate, why, group)}")
                merged = [] if fate == AVAILABLE else _merged(group)
                rows += merged
                lines += [None] * len(merged) or [_together([v.name for v in group])]
        cells = iter(columns(rows, names=(0, 5, 6), right=_NUMBERS, indent="    "))
        head = [next(cells)] if len(rows) > 1 else []
        return "\n".join([self._title(), *head, *(next(cells) if line is None else line for line in lines)])

    def _grouped(self) -> dict[str, dict[tuple[str, str], list[Residual]]]:
        """The values by what is around them, and then by their fate and its reason."""
        grouped: dict[str, dict[tuple[str, str], list[Residual]]] = {}
        for v in self.values:
            where = " > ".join(map(short_line, v.inside)) or "outside loops and regions"
            grouped.setdefault(where, {}).setdefault((v.fate, v.why), []).append(v)
        return grouped

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The lines of the text as a table, of what is available together as well."""
        cell = lambda tag, i, c: f"<{tag}{' align=right' if i in _NUMBERS else ''}>{html.escape(c)}</{tag}>"
        line = lambda tag, r: "<tr>" + "".join(cell(tag, i, c) for i, c in enumerate(r)) + "</tr>"
        across = lambda text: f"<tr><th colspan={len(_TITLES)} align=left>{html.escape(text)}</th></tr>"
        body = ""
        for where, fates in self._grouped().items():
            for (fate, why), group in fates.items():
                body += across(f"{where}: {_of_group(fate, why, group)}")
                body += "".join(line("td", row) for row in _merged(group))
        head = f"<thead>{line('th', _TITLES)}</thead>"
        return f"<p>{html.escape(self._title())}</p><table>{head}<tbody>{body}</tbody></table>"


_TITLES = ("value", "type", "times", "bytes", "again", "wanted by", "line")
_NUMBERS = (2, 3, 4)


def _of_group(fate: str, why: str, group: Sequence[Residual]) -> str:
    return f"{fate}, {sum(v.total for v in group):,} bytes: {why}"


def _merged(group: Sequence[Residual]) -> list[tuple[str, ...]]:
    """The cells of each value, those of values of which nothing else differs in one row: how often, and all bytes."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for v in group:
        row = rows.setdefault(_shown(v), [0, 0])
        row[0], row[1] = row[0] + v.steps, row[1] + v.total
    return [(n, k, f"{times:,}", f"{total:,}", a, w, at) for (n, k, a, w, at), (times, total) in rows.items()]


def _together(names: Sequence[str]) -> str:
    """As many of these names as a line holds, and how many more there are."""
    line = "    " + shortened(names[0], WIDTH - 20)
    for i, name in enumerate(names[1:], 1):
        if len(line) + len(name) > WIDTH - 20:
            return f"{line} and {len(names) - i} more"
        line += f", {name}"
    return line


def _shown(v: Residual) -> tuple[str, str, str, str, str]:
    """A value's cells but for how often it is there: its name, type, price, who wants it, and its line."""
    kind = short_type(f"{v.dtype}[{','.join(map(str, v.shape))}]")
    rules = list(dict.fromkeys(w.split(" ")[0].removesuffix("_bwd") for w in v.wanted))
    again = "-" if v.again is None else f"{v.again:,.0f}"
    return v.name, kind, again, ", ".join(rules) or "-", short_line(v.line) or "-"


def residuals(
    f: Callable[..., PyTree],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    backward: Backward | None = None,
) -> Callable[..., Residuals]:
    """Report what is kept between the two passes of a gradient, with the reasons: the plan in writing.

    The function is traced as under `jit`; nothing is computed. What the backward pass itself stores on its way, such as
    the factors of products that are summed in blocks of steps (`remat.sinking.Blocks`), is not kept between the passes
    and not listed; how many steps a block has is said where a value is inside a loop.

    Args:
        f: a function of pytrees of arrays to a pytree of arrays.
        argnums: which arguments are differentiated with respect to, as in `grad`.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        backward: the way of going backward, if not the default one.

    Returns:
        A function with the arguments of `f` that returns a `Residuals`: a table in a terminal and a notebook. In the
        place of arrays it takes their types, each a `jax.ShapeDtypeStruct`: a plan for what does not fit this machine.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> step = lambda c, _: (jnp.tanh(jnp.exp(c)), None)
        >>> report = bp.residuals(lambda x: jax.lax.scan(step, x, length=7)[0])(1.0)
        >>> report.total, [(v.name, v.steps, v.fate) for v in report.values]
        (28, [('exp', 7, 'kept'), ('tanh', 7, 'recomputed')])
    """
    check_callable(f, argnums, has_aux)
    backward = as_backward(backward)
    options = backward.options

    @functools.wraps(f)
    def report(*args: PyTree, **kwargs: PyTree) -> Residuals:
        numbers = numbers_of(f, argnums, len(args))
        leaves, tree = jax.tree_util.tree_flatten_with_path(args)
        typed = [isinstance(x, jax.ShapeDtypeStruct) for _, x in leaves]
        is_number = lambda x: is_array(x) and not isinstance(x, int)  # Python's integers are sizes and switches
        chosen = [path[0].idx in numbers and (t or is_number(x)) for (path, x), t in zip(leaves, typed, strict=True)]
        given = [
            c or t or isinstance(x, (jax.Array, np.ndarray)) for c, t, (_, x) in zip(chosen, typed, leaves, strict=True)
        ]
        arrays = [i for i, g in enumerate(given) if g]
        types = [jx.type_of_struct(x) if typed[i] else jax.typeof(as_value(x)) for i in arrays for x in [leaves[i][1]]]

        def flat(*xs: Value) -> list[Value]:
            full = [x for _, x in leaves]
            for i, x in zip(arrays, xs, strict=True):
                full[i] = x
            args = list(jax.tree.unflatten(tree, full))
            if numbers:
                args[numbers[0]] = backward.marked(args[numbers[0]])
            out = f(*args, **kwargs)
            return [checked_result(f, y) for y in jax.tree.leaves(divided(f, out)[0] if has_aux else out)]

        perturbed = [chosen[i] and is_differentiable(t) for i, t in zip(arrays, types, strict=True)]
        fit = fitted(flat, types, perturbed, options) if isinstance(options.policy, Budget) else None
        regions = in_regions(flat, options.policy) if options.outside_loops else flat
        program = jx.trace(regions if fit is None else fit.run, types)
        n = len(program.consts)
        how = options if fit is None else fit.options
        plan = plan_of_call(passes_of(program.closed, [False] * n + perturbed, how))
        paths = ["constant"] * n + [_path(f, leaves[i][0]) for i in arrays]
        policy = next((name for name, p in POLICIES.items() if p == options.policy), repr(options.policy))
        policy += ", outside_loops=True" if options.outside_loops else ""
        name = getattr(f, "__name__", repr(f))
        names, machine = dict(zip(plan.passes.forward.invars, paths, strict=True)), machine_here(backward.balance)
        found = tuple(_of_plan(plan, names, 1, (), "outside", machine))
        return Residuals(name, policy, found, live_bytes(plan), peak_of_plan(plan) if fit is None else fit.peak)

    return report


def _path(f: Callable[..., PyTree], path: KeyPath) -> str:
    """The path of a leaf of the arguments, beginning with the argument's name."""
    number = path[0].idx
    try:
        name = list(inspect.signature(f).parameters)[number]
    except (TypeError, ValueError, IndexError):
        name = f"argument {number}"
    return "/".join(filter(None, [name, jx.path_name(path[1:])]))


# --- a plan, read aloud -----------------------------------------------------------------------------------------------


def _of_plan(
    plan: Plan,
    names: Mapping[Var, str],
    steps: int,
    inside: tuple[str, ...],
    kind: str,
    machine: Machine,
    redone: Collection[Var] = (),
) -> Iterator[Residual]:
    """The values of one plan, those of the plans inside in the place of what these hand out.

    What a loop or region inside keeps is `redone` where that runs once more on the way back.
    """
    forward = plan.passes.forward
    maker = {v: eqn for eqn in forward.eqns for v in eqn.outvars}
    wanted, plans, loop_invariant = _wanted(plan)
    given = {e.invars[0]: e.params["name"] for e in forward.eqns if e.primitive.name == "name"}
    given |= {e.outvars[0]: e.params["name"] for e in forward.eqns if e.primitive.name == "name"}
    free = [forward.invars[i] for i in plan.available_inputs]
    fates = {v: ONCE if v in loop_invariant else KEPT for v in plan.saved if v not in redone}
    fates |= {v: AVAILABLE for v in free}
    # what this loop keeps once is made outside it, and listed there
    values = [v for v in dict.fromkeys([*plan.saved, *free, *plan.needed]) if v not in plan.hoisted]
    snapshots = _snapshots(plan)
    reruns: dict[int, tuple[JaxprEqn | Any, tuple[Entry, Loop, Plan]]] = {}
    opened: set[int] = set()
    dear = _dear(forward.eqns, fates)
    faster = 1.0 if plan.question is None else speed_up(*plan.question, machine)
    for v in values:
        eqn, fate = maker.get(v), fates.get(v, RECOMPUTED)
        inner = plans.get(id(eqn.params.get("jaxpr"))) if eqn is not None else None
        if eqn is not None and inner is not None and eqn.outvars.index(v) >= len(inner.passes.outputs):
            if id(eqn) not in opened:
                opened.add(id(eqn))
                yield from _of_inner(eqn, inner, names, given, steps, inside, machine, fates)
            continue
        made_by = "snapshots" if v in snapshots else _operation(eqn) if eqn is not None else "input"
        name = given.get(v) or names.get(v) or made_by
        line = jx.user_line(eqn.source_info) if eqn is not None else ""
        times = 1 if fate in (ONCE, AVAILABLE) else steps
        size = kept_bytes([v]) if plan.storage.get(v) is jx.Bits else bytes_of([v])
        stacked = v in plan.passes.stacks
        why = "saved in a loop by the region's policy" if stacked else _why(fate, eqn, kind, dear.get(v, ""))
        if v in redone:
            why = "made again with what it is inside of"
        if v in snapshots:
            entry, loop, _ = snapshots[v]
            why, reruns[entry.number] = f"the state before {loop.snapshots} of {loop.steps} steps", (eqn, snapshots[v])
        rules, again = tuple(wanted.get(v, ())), _again(v, maker, {*fates, *plan.hoisted}, machine)
        again = again and faster * again
        aval: Aval = v.aval
        yield Residual(name, line, aval.shape, str(aval.dtype), size, times, fate, why, rules, inside, again)
    for eqn, (entry, loop, step) in reruns.values():
        label = (
            f"loop of {'' if loop.condition is None else 'at most '}{loop.steps} steps with snapshots={loop.snapshots}"
        )
        carries = {v: f"carry {i}" for i, v in enumerate(step.passes.forward.invars[loop.n_consts :][: loop.n_state])}
        outer = dict(zip(step.passes.forward.invars, _operands(eqn, loop), strict=False))
        known = {v: n for v, o in outer.items() if not jx.is_literal(o) and (n := given.get(o) or names.get(o))}
        yield from _of_plan(
            step, known | carries, steps * loop.steps, (*inside, _located(label, entry.source)), "rerun", machine
        )


def _of_inner(
    eqn: JaxprEqn,
    plan: Plan,
    names: Mapping[Var, str],
    given: Mapping[Any, str],
    steps: int,
    inside: tuple[str, ...],
    machine: Machine,
    fates: Mapping[Var, str],
) -> Iterator[Residual]:
    """The values of the plan of a loop or a region; those that it hands out and that have no fate are made again."""
    runs = jx.inside_of(eqn).kind
    loop = runs is jx.Kind.SCAN
    label = "branch" if runs is jx.Kind.COND else "region"
    if loop:
        _, body = plan.backward(plan.passes.differentiable, None)
        blocks = f", gone back in blocks of {body.block}" if body.block not in (1, eqn.params["length"]) else ""
        label = f"loop of {eqn.params['length']} steps{blocks}"
    invars, operands = plan.passes.forward.invars, eqn.invars[-len(plan.passes.in_types) :]
    inner: dict[Var, str] = {}
    _, n_consts, n_carry = jx.scan_parts(eqn.params) if loop else (None, len(invars), 0)
    n_consts -= len(eqn.invars) - len(operands) if loop else 0
    for i, (v, outer) in enumerate(zip(invars, operands, strict=True)):
        if n_consts <= i < n_consts + n_carry:
            inner[v] = f"carry {i - n_consts}"
        elif not jx.is_literal(outer) and (name := given.get(outer) or names.get(outer)):
            inner[v] = f"{name}[step]" if i >= n_consts + n_carry else name
    times = steps * (eqn.params["length"] if loop else 1)
    where = _located(label, eqn.source_info)
    handed_out = zip(plan.saved, eqn.outvars[len(plan.passes.outputs) :], strict=False)
    redone = {v for v, outer in handed_out if outer not in fates}
    yield from _of_plan(plan, inner, times, (*inside, where), "loop" if loop else "region", machine, redone)


def _again(v: Var, maker: Mapping[Var, JaxprEqn], given: Collection[Var], machine: Machine) -> float | None:
    """Return the price of making a value of what is given beside it; None if it cannot be made of that."""
    total, seen, wanted = 0.0, set(), [v]
    while wanted:
        eqn = maker.get(u := wanted.pop())
        if eqn is None or (own := price(eqn, machine)) is None:
            return None
        if id(eqn) not in seen:
            seen.add(id(eqn))
            total += own
            wanted += [w for w in eqn.invars if not jx.is_literal(w) and (w is u or w not in given)]
    return total


def _operation(eqn: JaxprEqn) -> str:
    """The operation's name; of a call, the function's."""
    inside = jx.inside_of(eqn)
    called = inside.kind & (jx.Kind.JIT | jx.Kind.CALL | jx.Kind.CUSTOM)
    return (called and jx.function_name(inside.programs[0]).lstrip("_")) or eqn.primitive.name


def _located(label: str, source: Any) -> str:
    line = jx.user_line(source)
    return f"{label} at {line}" if line else label


def _operands(eqn: JaxprEqn, loop: Loop) -> Sequence[Atom]:
    """The constants of a loop with snapshots, among the operands of the loop that stores them."""
    end = jx.scan_parts(eqn.params)[1] if loop.condition is None else sum(jx.while_parts(eqn.params)[1:])
    return eqn.invars[end - loop.n_consts : end]


def _wanted(plan: Plan) -> tuple[dict[Var, list[str]], dict[int, Plan], set[Var]]:
    """Which rules want each candidate; the plans of the programs inside, by their forward passes; and the candidates
    that a loop inside keeps once.
    """
    wanted: dict[Var, list[str]] = {}
    plans: dict[int, Plan] = {}
    loop_invariant: set[Var] = set()
    for step in plan.passes.tape.entries:
        candidates = [plan.passes.candidates[r.at] for r in step.res if type(r) is SavedIndex]
        for v in candidates:
            if not jx.is_literal(v):
                wanted.setdefault(v, []).append(f"{step.rule.name} for {step.where()}")
        for inner in (r for r in step.res if isinstance(r, Plan)):
            plans |= {id(inner.forward.closed): inner, id(inner.forward.jaxpr): inner}
            if step.inside.kind is jx.Kind.SCAN:  # it keeps (constants, once, xs, stacks)
                first = sum(i < jx.scan_parts(step.params)[1] for i in inner.available_inputs)
                once = candidates[first : first + len(inner.hoisted)]
                loop_invariant.update(v for v in once if not jx.is_literal(v))
    return wanted, plans, loop_invariant


def _snapshots(plan: Plan) -> dict[Var, tuple[Entry, Loop, Plan]]:
    """The states that loops store on their way: of which entry, which loop that is, and the plan of its steps."""
    found: dict[Var, tuple[Entry, Loop, Plan]] = {}
    for entry in plan.passes.tape.entries:
        res, _ = entry.tree.unflatten(entry.res)
        if isinstance(res, LoopResiduals):
            loop = Loop.of(entry.params)
            stored = (plan.passes.candidates[s.at] for s in res.snapshots)
            found |= dict.fromkeys(stored, (entry, loop, res.plan))
    return found


def _dear(eqns: Sequence[JaxprEqn], fates: Mapping[Var, str]) -> dict[Var, str]:
    """For what is not there, an operation that is not cheap and has to be run again to make it."""
    dear: dict[Var, str] = {}
    for eqn in eqns:
        before = next((dear[v] for v in eqn.invars if not jx.is_literal(v) and v in dear), "")
        name = before if is_cheap(eqn) else eqn.primitive.name
        if name:
            dear |= dict.fromkeys((v for v in eqn.outvars if v not in fates), name)
    return dear


def _why(fate: str, eqn: JaxprEqn | None, kind: str, dear: str) -> str:
    if fate == ONCE:
        return "the same in every step of a loop"
    if fate == AVAILABLE:
        along = "the loop's constant, or what it goes along"
        why = {"outside": "an argument", "loop": along, "rerun": "an input of the step, rerun from a snapshot"}
        return why.get(kind, "an input")
    if fate == RECOMPUTED:
        return f"{dear} is run again to save it" if dear else "cheap to make of what is kept"
    if kind == "outside":
        return "outside loops, whatever is read is kept"
    if eqn is None:
        return "the state before the step"
    if not is_cheap(eqn):
        return f"{eqn.primitive.name} is not run again"
    operands = {v for v in eqn.invars if not jx.is_literal(v)}
    return "narrower than what it is made of" if bytes_of(eqn.outvars) < bytes_of(operands) else "the policy saves it"
