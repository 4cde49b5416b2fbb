"""Faults planted one by one, each of which the tests named beside it must catch: `python -m tests.mutants [WORD ...]`.

A fault is a text in one file and the text in its place. It is planted in a copy of the package, never in this one, and
the tests beside it are run there. What no test catches is printed last, and the exit code is the number of those.

    python -m tests.mutants               all of them
    python -m tests.mutants remat credit  those whose file has one of these words in its path
    python -m tests.mutants --list        is each text found exactly once? nothing is run
"""

# ruff: noqa: E501  a fault is a line

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A fault: `old` in `file` becomes `new`; and the tests that must fail then."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant("cotangents/products.py", "total = array if total is Zero else jx.add(total, array)", "total = array", "autodiff/test_transformations.py"),
    Mutant("cotangents/accumulate.py", "self._of[index] = _sum(self._of[index], ct) if index in self._of else ct", "self._of[index] = ct", "autodiff/test_transformations.py"),
    Mutant("cotangents/zero.py", "\n    axes = [i for i, (n, m) in enumerate(zip(ct.shape, x.shape, strict=True)) if n != m]", "\n    axes = [i for i, (n, m) in enumerate(zip(ct.shape, x.shape, strict=True)) if n == m]", "rules/test_helpers.py"),
    Mutant("rules/special.py", "return lax.mul(lax.full_like(x, TWO_OVER_ROOT_PI), exp_of_minus_square(x))", "return lax.mul(lax.full_like(x, ROOT_PI_OVER_TWO), exp_of_minus_square(x))", "rules/test_rules.py -k erf"),
    Mutant("rules/elementwise.py", "lax.neg(unbroadcast(ct, y)) if perturbed[1] else Zero,", "unbroadcast(ct, y) if perturbed[1] else Zero,", "rules/test_rules.py -k sub"),
    Mutant("rules/contraction.py", "exchanged = (y_contract, x_contract), (y_batch, x_batch)", "exchanged = (x_contract, y_contract), (y_batch, x_batch)", "rules/test_rules.py -k dot_general"),
    Mutant("rules/contraction.py", "if axes != sorted(axes) and exchanged == sorted(exchanged):", "if False:", "rules/test_contraction.py"),
    Mutant("rules/contraction.py", "precision = precision[1], precision[0]", "precision = precision[0], precision[1]", "rules/test_contraction.py"),
    Mutant("rules/contraction.py", "ct, other = part(ct, at), part(other, y_batch[at])", "ct, other = part(ct, at), other", "rules/test_contraction.py"),
    Mutant("rules/contraction.py", "if own != sorted(own):", "if False:", "rules/test_contraction.py"),
    Mutant("rules/shape.py", "first, last = perturbed.index(True), len(perturbed) - perturbed[::-1].index(True)", "first, last = 0, len(perturbed)", "rules/test_contraction.py"),
    Mutant("remat/hoisting.py", "isinstance(rows, int) and 1 < rows <= machine.packs", "isinstance(rows, int)", "remat/test_hoisting.py"),
    Mutant("remat/hoisting.py", "read += [v for v in operands if v in parts]", "pass", "remat/test_hoisting.py"),
    Mutant("remat/hoisting.py", "isinstance(rows, int) and 1 < rows", "1 < rows", "remat/test_hoisting.py"),
    Mutant("rules/reduction.py", "if few and is_plain(aval_of(x)) and ct.size:", "if few and is_plain(aval_of(x)):", "rules/test_pooling.py"),
    Mutant("rules/contraction.py", "if cotangent_sharding(aval_of(product.other)) is not None:", "if False:", "test_mapped.py -k joined"),
    Mutant("rules/reduction.py", "which = lax.select(stays, which, lax.full_like(which, place))", "which = lax.select(stays, lax.full_like(which, place), which)", "rules/test_pooling.py"),
    Mutant("rules/reduction.py", "rest = [(0, n - size, 0)", "rest = [(n - size, 0, 0)", "rules/test_pooling.py"),
    Mutant("rules/reduction.py", "return lax.cumsum(ct, axis=axis, reverse=not reverse)", "return lax.cumsum(ct, axis=axis, reverse=reverse)", "rules/test_rules.py -k cumsum"),
    Mutant("rules/shape.py", "p_bar = lax.reduce_sum(lax.select(is_padding, ct, lax.full_like(ct, 0)), range(ct.ndim))", "p_bar = lax.reduce_sum(ct, range(ct.ndim))", "rules/test_rules.py -k pad"),
    Mutant("rules/indexing.py", "dict(allow_negative_indices=False)", "dict(allow_negative_indices=True)", "rules/test_rules.py"),
    Mutant("rules/elementwise.py", "lax.clamp(one, lax.abs(x), lax.full_like", "lax.clamp(one, one, lax.full_like", "rules/test_accuracy.py"),
    Mutant("rules/elementwise.py", "lax.gt(out, np.zeros((), out.dtype))", "lax.ge(out, np.zeros((), out.dtype))", "rules/test_rules.py"),
    Mutant("remat/hoisting.py", "made = [max(read, default=Follows.CONSTANTS)]", "made = [min(read, default=Follows.CONSTANTS)]", "remat/test_hoisting.py"),
    Mutant("rules/indexing.py", "return [x_bar, None, u_bar if u_bar is Zero else lax.neg(u_bar)]", "return [x_bar, None, u_bar]", "rules/test_rules.py -k scatter"),
    Mutant("rules/linalg.py", "off = int(unit_diagonal)", "off = 0", "rules/test_rules.py -k triangular"),
    Mutant("rules/spikes.py", "p.not_p: lambda x: 1 - x,", "p.not_p: lambda x: x,", "credit/test_schemes.py -k boolean"),
    Mutant("rules/collectives.py", "psum_invariant_p.bind(ct, axes=axes), COPIES", "ct, COPIES", "test_mapped.py -k types"),
    Mutant("rules/collectives.py", "[(to, source) for source, to in perm]", "perm", "test_mapped.py::test_values_on_eight_devices"),
    Mutant("rules/inlined.py", "one_sided = sum(x in from_ct for x in eqn.invars if not is_literal(x)) == 1", "one_sided = True", "rules/test_helpers.py"),
    Mutant("rules/options.py", "return isinstance(other, Options) and self._key == other._key", "return isinstance(other, Options)", "autodiff control_flow"),
    Mutant("rules/kinds.py", "back = ct[0].through(linear, entry.types[0], entry.params.get(self.order))", "back = ct[0]", "per_example autodiff"),
    Mutant("autodiff/fitting.py", "self.fit(ladder[-1]).peak > limit:\n", "self.fit(ladder[-1]).peak > 2 * limit:\n", "remat/test_budget.py"),
    Mutant("autodiff/fitting.py", "saved[rung.regions : -1]", "saved[rung.regions :]", "remat/test_places.py"),
    Mutant("autodiff/fitting.py", "least = fit.peak - above[at]", "pass", "remat/test_places.py"),
    Mutant("remat/cut.py", "if i in near_sink and n + e not in near_sink)", "if i in near_sink)", "remat"),
    Mutant("remat/cut.py", "narrowest(graph, near))[0] <= machine.cache", "narrowest(graph, near))[0] <= np.inf", "remat/test_price.py"),
    Mutant("inspection/residuals.py", "again = again and faster * again", "pass", "remat/test_price.py"),
    Mutant("remat/graph.py", "return sum(bytes_of([v]) // (8 if jx.packs(v.aval) else 1) for v in variables)", "return bytes_of(variables)", "remat"),
    Mutant("remat/hoisting.py", "if isinstance(steps, int) and steps <= 1:", "if False:", "remat/test_hoisting.py"),
    Mutant("remat/plan.py", "if is_repeatable(eqn) and all(jx.is_literal(v) or v in known", "if is_repeatable(eqn) and any(jx.is_literal(v) or v in known", "remat"),
    Mutant("remat/sinking.py", "if steps % k == 0), 1)", "if True), 1)", "remat/test_sinking.py"),
    Mutant("control_flow/scan.py", "return [add(a, b) for a, b in zip(totals_, terms", "return [b for a, b in zip(totals_, terms", "remat/test_sinking.py"),
    Mutant("remat/sinking.py", "return constant >= self.at_least and constant >= self.times * stacked", "return False", "remat/test_hoisting.py"),
    Mutant("control_flow/scan.py", "grown = [a or b for a, b in zip(carry, before, strict=True)]", "grown = list(before)", "control_flow/test_scan.py"),
    Mutant("control_flow/schedule.py", "steps - at(at(table, places - 1), r - 1)", "steps - 1", "control_flow/test_schedule.py"),
    Mutant("control_flow/mapped.py", "lax.psum(c, axes) if c is not Zero and axes else c", "c", "test_mapped.py -k types"),
    Mutant("control_flow/mapped.py", "return ct / n if n > 1 else ct", "return ct", "test_mapped.py::test_values_on_eight_devices"),
    Mutant("jaxpr/mapped.py", "if w else 1))", "))", "test_mapped.py -k edits"),
    Mutant("control_flow/cond.py", "return [False, *(any(r)", "return [False, *(all(r)", "control_flow/test_scan.py"),
    Mutant("jaxpr/references.py", "cell.value = moved_as(value, cell.value)", "cell.value = lax.stop_gradient(value)", "autodiff/test_references.py -k own_derivative"),
    Mutant("rules/sparse.py", "-b_bar[row] * x[indices]", "b_bar[row] * x[indices]", "rules/test_sparse.py -k system"),
    Mutant("control_flow/operations.py", "[dx * jnp.ldexp(jnp.ones_like(x), n)]", "[dx]", "rules/test_rules.py -k call_hi"),
    Mutant("autodiff/backward_pass.py", "self.observed |= {(self._at, *where): seen", "self.observed |= {(0, *where): seen", "inspection/test_ledger.py"),
    Mutant("autodiff/tape.py", "reached |= {i for i in entry.inputs if i is not None}", "reached = {i for i in entry.inputs if i is not None}", "autodiff"),
    Mutant("autodiff/feedback.py", "if any(p and not h for p, h in zip(operation.perturbed, here, strict=True)):", "if False:", "autodiff/test_marks.py"),
    Mutant("autodiff/custom_rules.py", "if not operation.is_perturbed or trace.in_tangent_rule:", "if not operation.is_perturbed:", "autodiff/test_custom_rules.py"),
    Mutant("autodiff/attach.py", "in_nzs=tuple(perturbed)", "in_nzs=(True,) * len(primals)", "autodiff/test_attach.py"),
    Mutant("autodiff/arguments.py", "if not -count <= i < count:", "if not -count <= i <= count:", "autodiff/test_transformations.py"),
    Mutant("per_example/leaf.py", "total = total + (inner if i == j else 2 * inner)", "total = total + inner", "per_example"),
    Mutant("per_example/statistics.py", "snr = [jnp.abs(m.astype(v.dtype)) / jnp.sqrt(v)", "snr = [jnp.abs(m.astype(v.dtype)) / v", "per_example/test_statistics.py"),
    Mutant("curvature/factored.py", "scale = 1 / (batch_size(x) * (samples or 1))", "scale = 1 / batch_size(x)", "curvature"),
    Mutant("curvature/gauss_newton.py", "return self.model.vjp(u / len(z))", "return self.model.vjp(u)", "curvature"),
    Mutant("curvature/output_hessian.py", "jnp.nan, jnp.sqrt(jnp.maximum(values, 0)))", "jnp.nan, jnp.maximum(values, 0))", "curvature"),
    Mutant("credit/angles.py", "half = jnp.arctan2(jnp.sqrt(jnp.sum((u - v) ** 2)), jnp.sqrt(jnp.sum((u + v) ** 2)))", "half = jnp.arctan2(jnp.sqrt(jnp.sum((u - v) ** 2)), jnp.sqrt(jnp.sum(u**2)))", "credit"),
    Mutant("credit/feedback.py", "return kept * b + step * correlation", "return b + step * correlation", "credit"),
    Mutant("credit/surrogate.py", "slope = derivative(lax.sub(*jnp.broadcast_arrays(x, y)) * sign)", "slope = derivative(lax.sub(*jnp.broadcast_arrays(x, y)))", "credit -k surrogate"),
    Mutant("inspection/live.py", "return int(max([0, *self.forward, *self.backward]))", "return int(max([0, *self.forward]))", "inspection/test_residuals.py"),
    Mutant("inspection/residuals.py", "return self.bytes * self.steps", "return self.bytes", "inspection/test_residuals.py"),
    Mutant("inspection/summary.py", "key=lambda p: sum(o.times * flops(o.eqn)", "key=lambda p: -sum(o.times * flops(o.eqn)", "inspection/test_summary.py"),
    Mutant("inspection/statistics.py", "norm = float(np.sqrt(np.sum(numbers**2)))", "norm = float(np.sum(numbers**2))", "inspection/test_ledger.py"),
    Mutant("remat/price.py", "return max(flops(eqn) / machine.balance(dtype), _streamed(eqn, machine), machine.idle)", "return max(flops(eqn), _streamed(eqn, machine), machine.idle)", "remat/test_price.py"),
    Mutant("remat/machine.py", 'bandwidth=self.bandwidth * self.balance(np.float32) / balance,', 'bandwidth=self.bandwidth * balance / self.balance(np.float32),', "remat/test_price.py"),
    Mutant("jaxpr/following.py", "return core.to_concrete_value(self.number) if isinstance(self.number, core.Tracer) else self.number", "return None", "inspection/test_following.py"),
    Mutant("inspection/precision.py", "key=lambda r: (-r.weight, r.index))", "key=lambda r: (r.weight, r.index))", "inspection/test_precision.py"),
    Mutant("inspection/shadow.py", "(relative(e - s, s), relative(x - e, s), relative(x - s, s))", "(relative(x - e, s), relative(e - s, s), relative(x - s, s))", "inspection/test_precision.py"),
    Mutant("inspection/widened.py", "        if not eqn.outvars:  # it prints, or writes, and has done so on the program's own numbers\n            return []\n", "", "inspection/test_following.py"),
    Mutant("inspection/storage.py", 'if about["format"] > FORMAT:', 'if about["format"] < FORMAT:', "inspection/test_storage.py"),
    Mutant("control_flow/loops.py", "unfinished = (count >= max_steps)", "unfinished = (count > max_steps)", "control_flow/test_loops.py"),
    Mutant("control_flow/revolve.py", "taken = stack.taken - lax.convert_element_type(start == t, np.int32)", "taken = stack.taken", "control_flow/test_revolve.py"),
    Mutant("inspection/distance.py", "finite = np.isfinite(x) & np.isfinite(y)", "finite = np.isfinite(x) | np.isfinite(y)", "inspection/test_difference.py"),
    Mutant("inspection/named.py", "found[name][twin] = jax.tree.map(jnp.add, found[name][twin], value)", "found[name][twin] = value", "inspection/test_named.py"),
    Mutant("inspection/outline.py", "elif c.norm * FACTOR < typical_cotangent and np.prod(c.shape):", "elif c.norm * FACTOR > typical_cotangent and np.prod(c.shape):", "inspection/test_pages.py"),
    Mutant("inspection/rows.py", "== [str(line)]", "== [str(line + 1)]", "inspection/test_storage.py"),
    Mutant("inspection/storage.py", "x = np.stack([x.real, x.imag], -1)", "x = np.stack([x.real, -x.imag], -1)", "inspection/test_storage.py"),
    Mutant("inspection/replay.py", "births = np.where(((births == 0) | (births == written)) & (of > 0) & (is_nan | ~nan), of, births)", "births = np.where((of > 0) & (is_nan | ~nan), of, births)", "inspection/test_nan.py"),
    Mutant("inspection/nan.py", "if rules[-1] in replaced or operation == \"custom_vjp\":", "if operation == \"custom_vjp\":", "inspection/test_nan.py"),
    Mutant("inspection/tabulate.py", "dead=derivable and used.isdisjoint(entry.outputs),", "dead=derivable and active.isdisjoint(entry.outputs),", "inspection/test_pages.py -k dead"),
    Mutant("inspection/render/table.py", "{s.norm:.4g}", "{s.norm:.2g}", "inspection/test_ledger.py -k table"),
    Mutant("inspection/render/graph.py", "  n{a} -> n{b} [label=", "  n{b} -> n{a} [label=", "inspection/test_ledger.py -k graph"),
    Mutant("inspection/render/page.py", '"off": item.dead or not item.taken,', '"off": not item.taken,', "inspection/test_pages.py -k search"),
    Mutant("inspection/render/page.js", "requestAnimationFrame(() => { waiting = false; draw(false); });", "requestAnimationFrame(() => { waiting = false; look(); });", "inspection/test_pages.py -k ten_thousand"),
    Mutant("inspection/render/play.py", "{\"learns\": r.primitive == \"input\" and r.name in update}", "{\"learns\": False}", "inspection/test_pages.py -k worked"),
    Mutant("inspection/render/arithmetic.js", "exp2: [x => 2 ** x, (x, z) => z * Math.LN2,", "exp2: [x => 2 ** x, (x, z) => z,", "inspection/test_pages.py -k computes"),
    Mutant("testing/subject.py", "return [self._back(vjp, z, cts, mapped), witness._back(jax.vjp, z, cts, mapped)]", "return [witness._back(jax.vjp, z, cts, mapped)] * 2", "testing/test_check.py"),
    Mutant("testing/numerical.py", "(plus - minus) / (2 * steps), 2, noise)", "(plus - minus) / (2 * steps), 1, noise)", "testing/test_check.py"),
    Mutant("learn/optim/quickprop.py", "parabola = jnp.where(flat, 0, d * s / jnp.where(flat, jnp.ones_like(s), p - s))", "parabola = jnp.where(flat, 0, d * s / jnp.where(flat, jnp.ones_like(s), p + s))", "learn/optim/test_formulas.py"),
    Mutant("learn/optim/rprop.py", "worse = ~(value <= state.value)", "worse = value <= state.value", "learn/optim/test_formulas.py -k rprop"),
    Mutant("learn/optim/bold_driver.py", "BoldDriverState(rate, jnp.where(rejected, state.value, value), kept, last)", "BoldDriverState(rate, value, kept, last)", "learn/optim/test_formulas.py"),
    Mutant("learn/optim/silva_almeida.py", "return moved - jnp.where(rejected, last, 0), rate", "return moved, rate", "learn/optim/test_formulas.py"),
    Mutant("learn/ops/fahlman.py", "- width * count * dwidth", "+ width * count * dwidth", "learn/ops/test_losses.py -k dead_zone"),
    Mutant("learn/optim/delta_bar_delta.py", "moved = -rate * g + number(momentum, g) * last", "moved = -rate * g", "learn/optim/test_formulas.py"),
    Mutant("learn/optim/super_sab.py", "rate = jnp.minimum(rate * factor, number(maximum, g))", "rate = rate * factor", "learn/optim/test_formulas.py"),
    Mutant("learn/train/loop.py", "key = jax.random.fold_in(state.key, state.epoch + 1)", "key = jax.random.fold_in(state.key, 1)", "learn/train"),
    Mutant("learn/train/stopping.py", "return jnp.all(jnp.abs(predictions - targets) < 0.4 * (high - low), axis=-1)", "return jnp.all(jnp.abs(predictions - targets) < 0.6 * (high - low), axis=-1)", "learn/train/test_stopping.py"),
    Mutant("learn/nets/initializers.py", "return _normal(key, shape, dtype, _ratio(2, sum(fans(shape))))", "return _normal(key, shape, dtype, _ratio(1, sum(fans(shape))))", "learn/nets/test_initializers.py"),
    Mutant("learn/data/dataset.py", "return (x - self.shift) / self.scale", "return x / self.scale - self.shift", "learn/data/test_dataset.py"),
    Mutant("learn/data/problems.py", "_as_values(on.sum(1, keepdims=True) % 2 == 1, targets)", "_as_values(on.sum(1, keepdims=True) % 2 == 0, targets)", "learn/data/test_problems.py"),
    Mutant("learn/data/corpus.py", "if not text or text in texts:", "if not text:", "learn/data/test_corpus.py"),
    Mutant("learn/data/corpus.py", 'return ["".join(rest), "".join(validation), "".join(test)]', 'return ["".join(texts), "".join(validation), "".join(test)]', "learn/data/test_corpus.py"),
    Mutant("learn/data/tokens.py", "best = min(joined)", "best = max(joined)", "learn/data/test_corpus.py -k order"),
    Mutant("learn/data/reading.py", "places = lines[named:]", "places = lines", "learn/data/test_tables.py -k certain"),
    Mutant("learn/train/language.py", "told = np.asarray(windows)[:, 1:]", "told = np.asarray(windows)[:, :-1]", "learn/train/test_language.py"),
    Mutant("learn/train/language.py", '("embedding", "attention_skip", "mlp_skip")', '("embedding", "mlp_skip")', "learn/train/test_language.py -k backward"),
    Mutant("learn/nets/transformer.py", "groups = heads if key_heads is None else key_heads", "groups = heads", "learn/nets/test_transformer.py"),
    Mutant("learn/ops/vocabulary.py", "delta = jnp.where(mine, expm1(-loss)[:, None],", "delta = jnp.where(mine, jnp.exp(-loss)[:, None],", "learn/ops/test_fused.py -k entropy"),
    Mutant("learn/plot/curves.py", "np.nanpercentile(values, [10, 50, 90], axis=0)", "np.nanpercentile(values, [0, 50, 100], axis=0)", "learn/plot/test_curves.py"),
    Mutant("learn/plot/traces.py", "(name, np.sqrt(np.mean(np.abs(c) ** 2)), np.max", "(name, np.mean(np.abs(c)), np.max", "learn/plot/test_traces.py"),
    Mutant("learn/plot/traces.py", "bounded = [r.of_value.saturated or 0.0 for", "bounded = [r.of_value.zeros or 0.0 for", "learn/plot/test_traces.py"),
    Mutant("learn/plot/traces.py", "[f\"{100 * share:.0f} %\" for", "[f\"{share:.0f} %\" for", "learn/plot/test_traces.py"),
    Mutant("learn/plot/canvas.py", "[0]) > MOST_INSIDE:", "[0]) > 100:", "learn/plot/test_canvas.py"),
    Mutant("learn/plot/judgement.py", "ax.text(j, i, str(count)", "ax.text(i, j, str(count)", "learn/plot/test_judgement.py"),
    Mutant("learn/plot/images.py", "np.argsort(-np.sum(", "np.argsort(np.sum(", "learn/plot/test_images.py"),
    Mutant("cli/sample.py", "run.context, args.seed, args.temperature)", "run.context, 0, args.temperature)", "cli/test_train_text.py -k again"),
    Mutant("cli/parser.py", "c if c.isprintable() else", "c if c else", "cli/test_train.py -k terminal"),
    Mutant("autodiff/passes.py", "options if _plans_inside(jaxpr) else _by_default(options)", "_by_default(options)", "remat/test_price.py -k inner_loop"),
    Mutant("autodiff/pullback.py", "BackwardState(self.program.options, {} if edits else None)", "BackwardState(self.program.options, {})", "credit/test_schemes.py -k angle"),
    Mutant("autodiff/recording.py", "return [m if type(m) is Lost else None for m in marks]", "return [None for m in marks]", "autodiff/test_marks.py -k lost"),
    Mutant("autodiff/references.py", "trace.index(cell.value) is not None and not differentiated)", "False)", "autodiff/test_references.py -k does_not_leave"),
    Mutant("autodiff/transformations.py", "        if j == i\n", "        if True\n", "autodiff/test_transformations.py -k equals_jax"),
    Mutant("autodiff/marks.py", "if got != wanted:", "if len(got) != len(wanted):", "autodiff/test_marks.py -k wrong_shapes"),
    Mutant("control_flow/calls.py", "    state.merge(results)\n    return cts", "    return cts", "control_flow/test_calls.py -k found_inside"),
    Mutant("control_flow/checkpoint.py", "tuple(waits[i] for i in res.plan.available_inputs)", "waits[: len(res.plan.available_inputs)]", "control_flow/test_other_calls.py -k operands_wait"),
    Mutant("curvature/linear_map.py", "transpose = unmarked.replace(rules={}, edits={})", "transpose = unmarked", "curvature/test_quantities.py -k one_map"),
    Mutant("inspection/difference.py", "tuple(map(int, beyond[which]))", "tuple(map(int, beyond[0]))", "inspection/test_difference.py -k planted"),
    Mutant("inspection/matching.py", 'a[i].primitive == "output" or shared(before, others)', "True", "inspection/test_difference.py -k on_two_inputs"),
    Mutant("inspection/called.py", "again = place and place == self.first != self.last", "again = False", "inspection/test_pages.py -k functions"),
    Mutant("inspection/ledger.py", "if not r.program and not slots.isdisjoint(r.inputs) and slots]", "if not slots.isdisjoint(r.inputs) and slots]", "inspection/test_ledger.py -k rows"),
    Mutant("jaxpr/interpreter.py", 'for i in reversed(order) if eqn.params["reverse"] else order:', "for i in order:", "jaxpr/test_interpreter.py -k what_jax_gives"),
    Mutant("jaxpr/operations.py", "moving = broadcast_prefix(moving, operation.out_aval)", "moving = broadcast_prefix(True, operation.out_aval)", "control_flow/test_operations.py -k does_not_move"),
    Mutant("jaxpr/programs.py", "str(sorted(params.items(), key=lambda item: item[0]))", '""', "remat/test_regions.py -k wiring_or"),
    Mutant("jaxpr/snapshots.py", "lane = jnp.argmax(on)", "lane = jnp.argmin(on)", "control_flow/test_revolve.py -k lanes"),
    Mutant("jaxpr/values.py", "return (shifted & np.uint8(1))", "return (eights & np.uint8(1))", "remat/test_plan.py -k mask"),
    Mutant("jaxpr/inside.py", "values = list(dict.fromkeys([*values, *made]))", "values = list(dict.fromkeys(made))", "remat/test_policies.py -k into_the_loops"),
    Mutant("remat/policies.py", "if v in read_for(forward, needed, set()) and v not in available]", "if v in read_for(forward, needed, set())]", "remat/test_policies.py -k not_stacked"),
    Mutant("remat/regions.py", "and _wiring(program, a + copies * period, period) == first:", ":", "remat/test_regions.py -k wiring_or"),
    Mutant("remat/heap.py", "if all(end < a or b < begin for a, b in taken):", "if True:", "remat/test_peak.py"),
    Mutant("remat/budget.py", "if self.fraction is not None and self.fraction > 1:", "if self.fraction is not None and self.fraction > 100:", "remat/test_budget.py -k part_of_what"),
    Mutant("rules/traits.py", "TRAITS.setdefault(key, family)", "TRAITS[key] = family", "rules/test_traits.py -k outlast"),
    Mutant("rules/fallback.py", "options.rules.get(primitive) or TABLE.get(primitive)", "TABLE.get(primitive) or options.rules.get(primitive)", "autodiff/test_transformations.py -k rule_can_be_replaced"),
    Mutant("rules/sorting.py", "reduction_dimension % x.ndim, x)", "x.ndim - 1, x)", "rules/test_rules.py -k approx"),
    Mutant("rules/placement.py", "return list(ct) if Zero in ct else", "return list(reversed(ct)) if Zero in ct else", "rules/test_rules.py -k shard_alike"),
    Mutant("per_example/clipping.py", "jnp.sum(below * mask[None]) / (len(scales) * jnp", "jnp.sum(below * mask[None]) / (jnp", "per_example/test_clipping.py -k leaf"),
    Mutant("per_example/cost.py", "max(0, n * g * p * i - product.other.size)", "n * g * p * i", "per_example/test_pairs.py -k costs_less"),
    Mutant("per_example/examples.py", "jnp.full(n, 1 / n,", "jnp.full(n, 1.0,", "per_example/test_clipping.py -k test_norms"),
    Mutant("per_example/interaction.py", "abs(float(together) - total) / n) > tolerance", "abs(float(together) - total)) > tolerance * n", "per_example/test_interaction.py"),
    Mutant("per_example/pairs.py", "config = [(low, high, gap - 1)", "config = [(low, high, 0)", "per_example/test_pairs.py -k convolutions"),
    Mutant("per_example/products.py", "jnp.where(scale > 0, scale, 1), 0)", "jnp.where(scale > 0, scale, 1), 1)", "per_example/test_products.py -k cosines"),
    Mutant("testing/witnesses.py", "size = np.maximum(np.linalg.norm(terms, axis=1), np.abs(left))", "size = np.full_like(left, np.inf)", "testing/test_check.py -k whose_fault"),
    Mutant("testing/judge.py", "kink |= both & apart & between", "kink |= both & apart", "testing/test_check.py -k kink"),
    Mutant("testing/consistency.py", "close &= distance * eps", "close = distance * eps", "testing/test_check.py -k run_to_run"),
    Mutant("learn/ops/losses.py", "return jnp.exp(log_p), expm1(log_p)", "return jnp.exp(log_p), jnp.exp(log_p) - 1", "learn/ops/test_losses.py -k exact"),
    Mutant("learn/ops/norms.py", "-r * r * along", "-r * along", "learn/ops/test_fused.py -k norms"),
    Mutant("learn/ops/attention.py", ".astype(out.dtype), slope\n", ".astype(out.dtype), 0 * slope\n", "learn/ops/test_fused.py -k test_attention"),
    Mutant("learn/ops/cells.py", "(dan + logistic(r) * dbn + bn", "(dan + dbn + bn", "learn/ops/test_fused.py -k cells"),
    Mutant("learn/ops/rotary.py", "slowness = base ** (-jnp.arange(pairs, dtype=wide) / pairs)", "slowness = base ** (-jnp.arange(pairs, dtype=wide))", "learn/ops/test_fused.py -k rotary"),
    Mutant("learn/nets/shortcut.py", "below = jnp.concatenate([below, activation(net)], axis=-1)", "below = jnp.concatenate([activation(net), below], axis=-1)", "learn/nets/test_shortcut.py -k values"),
    Mutant("learn/optim/levenberg_marquardt.py", "damping = jnp.where(tries > 0, damping * factor, damping)", "damping = damping * factor", "learn/optim/test_levenberg_marquardt.py -k one_step"),
    Mutant("learn/optim/gauss_newton.py", "jax.vmap(slope)(z, y) / len(z))", "jax.vmap(slope)(z, y))", "learn/optim/test_levenberg_marquardt.py -k gauss_newton"),
    Mutant("learn/optim/salomon.py", "smaller = state.learning_rate * scalar(zeta), state.learning_rate / scalar(zeta)", "smaller = state.learning_rate * scalar(zeta), state.learning_rate", "learn/optim/test_formulas.py -k salomon"),
    Mutant("learn/optim/inertia.py", "return (-(1 - kept) * number(learning_rate, g) * g", "return (-number(learning_rate, g) * g", "learn/optim/test_formulas.py -k inertia"),
    Mutant("learn/train/fit.py", "key=jax.random.fold_in(key, bad[0]))", "key=key)", "learn/train/test_fit.py -k names_the_equation"),
    Mutant("learn/train/drive.py", "return min(count, every - done % every) if every else count", "return count", "learn/train/test_checkpoint.py -k every_so_many"),
    Mutant("learn/train/supervised.py", "jnp.mean(y, 0, keepdims=True)", "jnp.mean(y, keepdims=True)", "learn/train/test_supervised.py -k scores"),
    Mutant("learn/train/many.py", "return halves[:, 1], jax.vmap(draw)(halves[:, 0])", "return halves[:, 0], jax.vmap(draw)(halves[:, 0])", "learn/train/test_many.py -k what_fit"),
    Mutant("rules/forms.py", 'return device_here().platform == "cpu" and plain', "return False and plain", "rules/test_convolution.py"),
    Mutant("autodiff/passes.py", "written_for_here(jx.without_references(program))", "jx.without_references(program)", "rules/test_convolution.py"),
    Mutant("rules/forms.py", "min(contracted) < max(own, default=0)", "True", "rules/test_contraction.py"),
    Mutant("rules/forms.py", "(not real or m * k * n >= ALONE)", "True", "rules/test_contraction.py"),
    Mutant("rules/forms.py", "isinstance(p, lax.Precision) for p in asked", "True for p in asked", "rules/test_contraction.py"),
    Mutant("rules/forms.py", "return _by_taps if taps <= TAPS else _in_order", "return _in_order", "rules/test_convolution.py -k written"),
    Mutant("rules/forms.py", "return _by_positions if math.prod(positions) <= POSITIONS else _in_order", "return _in_order", "rules/test_convolution.py -k written"),
    Mutant("rules/forms.py", "return _exchanged if spaced and taps", "return _in_order if spaced and taps", "rules/test_convolution.py -k holes"),
    Mutant("rules/forms.py", "in_float32(added)(", "added(", "rules/test_convolution.py -k narrow"),
    Mutant("rules/forms.py", "low = [u - 1 - lo for", "low = [u - lo for", "rules/test_convolution.py -k written"),
    Mutant("rules/indexing.py", "return (*rows, *(a for a in axes if a not in rows)) if together < TOGETHER <= apart else None", "return None", "rules/test_indexing.py"),
    Mutant("rules/indexing.py", "lookups = [a for a in range(ct.ndim) if a not in d.offset_dims]\n", "lookups = [a for a in range(ct.ndim) if a not in d.offset_dims][::-1]\n", "rules/test_indexing.py"),
]  # fmt: skip


def misplaced() -> list[str]:
    """The faults whose text is not found exactly once: the code has moved on, and the list must follow."""
    count = lambda m: (ROOT / "funcbp" / m.file).read_text().count(m.old)
    return [f"{m.file}: found {count(m)} times: {m.old}" for m in MUTANTS if count(m) != 1]


def caught(mutant: Mutant) -> bool | None:
    """Whether the tests fail where this fault is planted; None where this JAX has not what they test."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("funcbp", "tests"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("conftest.py", "pyproject.toml", "_funcbp_pytest.py"):
            shutil.copy(ROOT / file, folder)
        planted = Path(folder, "funcbp", mutant.file)
        planted.write_text(planted.read_text().replace(mutant.old, mutant.new))
        where = [
            w if w.startswith("-") or before == "-k" else f"tests/{w}" for before, w in _pairs(mutant.tests.split())
        ]
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", *where]
        compiled = str(ROOT / ".pytest_cache" / "compiled")
        environment = {**os.environ, "PYTHONPATH": folder, "JAX_COMPILATION_CACHE_DIR": compiled}
        for more in ((), ("--all",)):  # the quick tests first
            code = subprocess.run([*command, *more], cwd=folder, env=environment, capture_output=True).returncode
            if code == 1:
                return True
    if code not in (0, 5):
        raise RuntimeError(f"{mutant.file}: the tests {mutant.tests} did not run (pytest ended with {code}).")
    return None if code == 5 else False


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *words], words, strict=False))


def main(words: list[str]) -> int:
    if wrong := misplaced():
        print("\n".join(wrong))
        return len(wrong)
    if "--list" in words:
        print(f"{len(MUTANTS)} faults in {len({m.file for m in MUTANTS})} files, each text found once")
        return 0
    chosen = [m for m in MUTANTS if not words or any(w in m.file for w in words)]
    outcomes = []
    for i, mutant in enumerate(chosen, 1):
        outcomes.append(caught(mutant))
        said = {True: "caught  ", False: "SURVIVED", None: "not here"}[outcomes[-1]]
        print(f"{i:2} of {len(chosen)}  {said}  {mutant.file}: {mutant.new}", flush=True)
    print(f"{outcomes.count(True)} of {len(chosen)} caught, {outcomes.count(None)} are not in this JAX")
    return outcomes.count(False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
