// A few dozen operations on small arrays, each with its rule for the way back: what a page that plays computes with.
// An array is {shape, data}, the numbers in one list. Formulas: x, y are operands, z is the result, z̄ its cotangent.
const bpArithmetic = (() => {
"use strict";
const count = shape => shape.reduce((a, b) => a * b, 1);
const times = (n, f) => Array.from({length: n}, (_, i) => f(i));
const strides = shape => shape.map((_, i) => count(shape.slice(i + 1)));
const indexOf = (flat, shape) => strides(shape).map((s, i) => Math.floor(flat / s) % shape[i]);
const flatOf = (index, shape) => strides(shape).reduce((sum, s, i) => sum + s * index[i], 0);
const sign = Math.sign, square = x => x * x, sech2 = y => (1 - y) * (1 + y);
const logistic = x => x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x));
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

// --- one number from one: f, its slope from x and z, title, forward, backward, in words -----------------------------

const ONE = {
  neg: [x => -x, () => -1, "−", "z = −x", "x̄ = −z̄", "the cotangent, with the other sign"],
  exp: [Math.exp, (x, z) => z, "exp", "z = exp x", "x̄ = z̄ · z", "the cotangent times the output itself"],
  exp2: [x => 2 ** x, (x, z) => z * Math.LN2, "2ˣ", "z = 2ˣ", "x̄ = z̄ · z ln 2", "the cotangent times the output and ln 2"],
  expm1: [Math.expm1, (x, z) => z + 1, "exp − 1", "z = exp x − 1", "x̄ = z̄ · (z + 1)", "the cotangent times exp x"],
  log: [Math.log, x => 1 / x, "log", "z = log x", "x̄ = z̄ / x", "the cotangent divided by the input"],
  log1p: [Math.log1p, x => 1 / (1 + x), "log(1 + x)", "z = log(1 + x)", "x̄ = z̄ / (1 + x)", "the cotangent divided by 1 plus the input"],
  tanh: [Math.tanh, (x, z) => sech2(z), "tanh", "z = tanh x", "x̄ = z̄ · (1 − z²)", "the cotangent times 1 minus the output squared: little where the unit is saturated"],
  logistic: [x => logistic(x), (x, z) => z * (1 - z), "logistic", "z = 1 / (1 + exp(−x))", "x̄ = z̄ · z (1 − z)", "the cotangent times output times 1 minus output: a quarter at most"],
  sin: [Math.sin, Math.cos, "sin", "z = sin x", "x̄ = z̄ · cos x", "the cotangent times the cosine"],
  cos: [Math.cos, x => -Math.sin(x), "cos", "z = cos x", "x̄ = −z̄ · sin x", "the cotangent times minus the sine"],
  tan: [Math.tan, (x, z) => 1 + z * z, "tan", "z = tan x", "x̄ = z̄ · (1 + z²)", "the cotangent times 1 plus the output squared"],
  asin: [Math.asin, x => 1 / Math.sqrt(sech2(x)), "asin", "z = asin x", "x̄ = z̄ / √(1 − x²)", "the cotangent divided by √(1 − x²)"],
  acos: [Math.acos, x => -1 / Math.sqrt(sech2(x)), "acos", "z = acos x", "x̄ = −z̄ / √(1 − x²)", "minus the cotangent divided by √(1 − x²)"],
  atan: [Math.atan, x => 1 / (1 + x * x), "atan", "z = atan x", "x̄ = z̄ / (1 + x²)", "the cotangent divided by 1 plus the input squared"],
  sinh: [Math.sinh, Math.cosh, "sinh", "z = sinh x", "x̄ = z̄ · cosh x", "the cotangent times cosh"],
  cosh: [Math.cosh, Math.sinh, "cosh", "z = cosh x", "x̄ = z̄ · sinh x", "the cotangent times sinh"],
  asinh: [Math.asinh, x => 1 / Math.hypot(1, x), "asinh", "z = asinh x", "x̄ = z̄ / √(1 + x²)", "the cotangent divided by √(1 + x²)"],
  atanh: [Math.atanh, x => 1 / sech2(x), "atanh", "z = atanh x", "x̄ = z̄ / (1 − x²)", "the cotangent divided by 1 minus the input squared"],
  sqrt: [Math.sqrt, (x, z) => .5 / z, "√", "z = √x", "x̄ = z̄ / 2z", "the cotangent divided by twice the root: without bound near 0"],
  rsqrt: [x => 1 / Math.sqrt(x), (x, z) => -.5 * z / x, "1/√", "z = 1/√x", "x̄ = −z̄ · z / 2x", "minus the cotangent times z / 2x"],
  cbrt: [Math.cbrt, (x, z) => 1 / (3 * z * z), "∛", "z = ∛x", "x̄ = z̄ / 3z²", "the cotangent divided by three times the root squared"],
  square: [square, x => 2 * x, "x²", "z = x²", "x̄ = z̄ · 2x", "the cotangent times twice the input"],
  abs: [Math.abs, sign, "|x|", "z = |x|", "x̄ = z̄ · sign x", "the cotangent, with the input's sign"],
  sign: [sign, () => 0, "sign", "z = sign x", "x̄ = 0", "nothing: flat on both sides"],
  floor: [Math.floor, () => 0, "floor", "z = ⌊x⌋", "x̄ = 0", "nothing: flat between the steps"],
  ceil: [Math.ceil, () => 0, "ceil", "z = ⌈x⌉", "x̄ = 0", "nothing: flat between the steps"],
  integer_pow: [(x, p) => x ** p.y, (x, z, p) => p.y === 0 ? 0 : p.y * x ** (p.y - 1), "xⁿ", "z = xⁿ", "x̄ = z̄ · n xⁿ⁻¹", "the cotangent times n times the next lower power"],
  relu: [x => Math.max(x, 0), x => +(x > 0), "relu", "z = max(x, 0)", "x̄ = z̄ where x > 0, else 0", "the cotangent where the unit is on, nothing where it is off"],
  softplus: [x => softplus(x), x => logistic(x), "softplus", "z = log(1 + exp x)", "x̄ = z̄ · logistic x", "the cotangent times the logistic function of the input"],
  swish: [x => x * logistic(x), x => logistic(x) * (1 + x * logistic(-x)), "swish", "z = x · logistic x", "x̄ = z̄ · σ (1 + x (1 − σ))", "the cotangent times σ (1 + x (1 − σ)), σ = logistic x"],
  not: [x => +!x, () => 0, "not"], is_finite: [x => +Number.isFinite(x), () => 0, "finite?"],
};
ONE.integer_pow[0].takesParams = true;

// --- one number from two: f, a slope for each, title, forward, backward, in words ------------------------------------

const tie = test => (x, y) => x === y ? .5 : +test(x, y);
const truth = (f, title) => [(x, y) => +f(x, y), () => 0, () => 0, title];
const TWO = {
  add: [(x, y) => x + y, () => 1, () => 1, "+", "z = x + y", "x̄ = z̄, ȳ = z̄", "a sum hands its cotangent to both, as it is"],
  sub: [(x, y) => x - y, () => 1, () => -1, "−", "z = x − y", "x̄ = z̄, ȳ = −z̄", "as it is to the first, with the other sign to the second"],
  mul: [(x, y) => x * y, (x, y) => y, x => x, "×", "z = x · y", "x̄ = z̄ · y, ȳ = z̄ · x", "to each factor the cotangent times the other factor"],
  div: [(x, y) => x / y, (x, y) => 1 / y, (x, y) => -x / (y * y), "÷", "z = x / y", "x̄ = z̄ / y, ȳ = −z̄ · z / y", "divided by y to the first, times −z / y to the second"],
  pow: [Math.pow, (x, y) => y === 0 ? 0 : y * x ** (y - 1), (x, y, z) => x > 0 ? z * Math.log(x) : x === 0 ? 0 : NaN, "xʸ", "z = xʸ", "x̄ = z̄ · y xʸ⁻¹, ȳ = z̄ · z log x", "to the base by the power rule, to the exponent times z log x"],
  atan2: [Math.atan2, (x, y) => y / (x * x + y * y), (x, y) => -x / (x * x + y * y), "atan2", "z = angle of (y, x)", "x̄ = z̄ · y / r², ȳ = −z̄ · x / r²", "across the direction, divided by the distance squared"],
  max: [Math.max, tie((x, y) => x > y), tie((x, y) => y > x), "max", "z = the larger of x, y", "z̄ to the larger", "all to the larger one, nothing to the other; half each at a tie"],
  min: [Math.min, tie((x, y) => x < y), tie((x, y) => y < x), "min", "z = the smaller of x, y", "z̄ to the smaller", "all to the smaller one, nothing to the other; half each at a tie"],
  logaddexp: [(x, y) => x === y ? x + Math.LN2 : Math.max(x, y) + softplus(-Math.abs(x - y)), (x, y) => logistic(x - y), (x, y) => logistic(y - x), "logaddexp", "z = log(exp x + exp y)", "x̄ = z̄ · logistic(x − y), ȳ = z̄ · logistic(y − x)", "shared by the logistic function of the difference"],
  gt: truth((x, y) => x > y, ">"), ge: truth((x, y) => x >= y, "≥"), lt: truth((x, y) => x < y, "<"), le: truth((x, y) => x <= y, "≤"),
  eq: truth((x, y) => x === y, "="), ne: truth((x, y) => x !== y, "≠"), and: truth((x, y) => x && y, "and"), or: truth((x, y) => x || y, "or"),
};
TWO.add_any = TWO.add;

// --- numbers that move: which of the operand's numbers each of the result's is, title, forward, backward, in words --

const same = node => times(count(node.shape), i => i);
const AS_IT_IS = ["z = x", "x̄ = z̄", "the cotangent as it is"];
const ARRANGED = ["the same numbers in another arrangement", "x̄ = z̄, arranged back", "the cotangent, arranged back"];
const MOVES = {
  name: [same, "name", ...AS_IT_IS], copy: [same, "copy", ...AS_IT_IS], copy_p: [same, "copy", ...AS_IT_IS],
  convert_element_type: [same, "type", ...AS_IT_IS], stop_gradient: [same, "stop", "z = x", "", "nothing goes back"],
  reshape: [same, "reshape", ...ARRANGED], squeeze: [same, "reshape", ...ARRANGED], expand_dims: [same, "reshape", ...ARRANGED],
  transpose: [(node, shape) => times(count(node.shape), i => {
    const at = indexOf(i, node.shape), from = [];
    node.params.permutation.forEach((axis, k) => { from[axis] = at[k]; });
    return flatOf(from, shape);
  }), "transpose", ...ARRANGED],
  rev: [(node, shape) => times(count(node.shape), i => flatOf(indexOf(i, node.shape).map((k, axis) => node.params.dimensions.includes(axis) ? shape[axis] - 1 - k : k), shape)), "reverse", ...ARRANGED],
  slice: [(node, shape) => times(count(node.shape), i => flatOf(indexOf(i, node.shape).map((k, axis) => node.params.start_indices[axis] + k * (node.params.strides?.[axis] ?? 1)), shape)), "slice", "a part of x", "x̄ = z̄ at its place, 0 elsewhere", "the cotangent at its place, zeros around it"],
  broadcast_in_dim: [(node, shape) => times(count(node.shape), i => {
    const at = indexOf(i, node.shape);
    return flatOf(shape.map((n, k) => n === 1 ? 0 : at[node.params.broadcast_dimensions[k]]), shape);
  }), "repeat", "x, repeated", "x̄ = the sum of z̄ over the copies", "what was used several times gets the sum of what comes back"],
};

// --- and the others: a product's pairs, reductions, choices ------------------------------------------------------------

function pairs(node, a, b, visit) {  // each product that goes into a matrix product
  const [[over, overB], [batch, batchB]] = node.params.dimension_numbers;
  const freeA = a.shape.map((_, i) => i).filter(i => !over.includes(i) && !batch.includes(i));
  const freeB = b.shape.map((_, i) => i).filter(i => !overB.includes(i) && !batchB.includes(i));
  const inner = over.map(i => a.shape[i]);
  for (let o = 0; o < count(node.shape); o++) for (let k = 0; k < count(inner); k++) {
    const at = indexOf(o, node.shape), sum = indexOf(k, inner), ia = [], ib = [];
    batch.forEach((axis, i) => { ia[axis] = at[i]; ib[batchB[i]] = at[i]; });
    freeA.forEach((axis, i) => { ia[axis] = at[batch.length + i]; });
    freeB.forEach((axis, i) => { ib[axis] = at[batch.length + freeA.length + i]; });
    over.forEach((axis, i) => { ia[axis] = sum[i]; ib[overB[i]] = sum[i]; });
    visit(flatOf(ia, a.shape), flatOf(ib, b.shape), o);
  }
}
const reduced = (node, shape) => times(count(shape), i => flatOf(indexOf(i, shape).filter((_, axis) => !node.params.axes.includes(axis)), node.shape));
const halves = (y, node, term) => times(count(node.shape), o => {
  const each = y.data.length / count(node.shape);
  return times(each, k => term(o * each + k)).reduce((a, b) => a + b, 0);
});
const extreme = pick => ({
  value(node, [x]) {
    const data = Array(count(node.shape)).fill(-pick(-1, 1) * Infinity);
    reduced(node, x.shape).forEach((o, i) => { data[o] = pick(data[o], x.data[i]); });
    return data;
  },
  back(node, [x], z, ct) {
    const to = reduced(node, x.shape), ties = Array(z.length).fill(0);
    to.forEach((o, i) => { ties[o] += x.data[i] === z[o]; });
    return [to.map((o, i) => x.data[i] === z[o] ? ct[o] / ties[o] : 0)];
  },
});
const OTHERS = {
  dot_general: {
    value(node, [a, b]) {
      const data = Array(count(node.shape)).fill(0);
      pairs(node, a, b, (i, j, o) => { data[o] += a.data[i] * b.data[j]; });
      return data;
    },
    back(node, [a, b], z, ct) {
      const to = [Array(a.data.length).fill(0), Array(b.data.length).fill(0)];
      pairs(node, a, b, (i, j, o) => { to[0][i] += ct[o] * b.data[j]; to[1][j] += a.data[i] * ct[o]; });
      return to;
    },
    says: ["x @ w", "z = x w", "x̄ = z̄ w', w̄ = x' z̄", "backward through the same weights, transposed; to each weight, its input times the cotangent where it leads"],
  },
  reduce_sum: {
    value(node, [x]) {
      const data = Array(count(node.shape)).fill(0);
      reduced(node, x.shape).forEach((o, i) => { data[o] += x.data[i]; });
      return data;
    },
    back: (node, [x], z, ct) => [reduced(node, x.shape).map(o => ct[o])],
    says: ["Σ", "z = Σ x", "x̄ = z̄ for each", "a sum hands its cotangent to every term"],
  },
  _half_square: {  // of the library's losses
    value: (node, [y, t]) => halves(y, node, i => .5 * (y.data[i] - t.data[i]) ** 2),
    back(node, [y, t], z, ct) {
      const each = y.data.length / ct.length, ȳ = y.data.map((x, i) => ct[Math.floor(i / each)] * (x - t.data[i]));
      return [ȳ, ȳ.map(c => -c)];
    },
    says: ["½ Σ (y − t)²", "z = ½ Σ (y − t)²", "ȳ = z̄ · (y − t), t̄ = −ȳ", "to each output its difference from the target"],
  },
  reduce_max: {...extreme(Math.max), says: ["max", "z = the largest of x", "z̄ to the largest", "all to the largest; shared at a tie"]},
  reduce_min: {...extreme(Math.min), says: ["min", "z = the smallest of x", "z̄ to the smallest", "all to the smallest; shared at a tie"]},
  select_n: {
    value: (node, [which, ...cases]) => cases[0].data.map((_, i) => cases[+which.data[which.data.length === 1 ? 0 : i]].data[i]),
    back: (node, [which, ...cases], z, ct) => [null, ...cases.map((_, k) => ct.map((c, i) => +which.data[which.data.length === 1 ? 0 : i] === k ? c : 0))],
    says: ["choose", "z = the chosen case", "z̄ to the chosen case", "all to the case that was chosen, nothing to the other"],
  },
};

// --- one way to ask for any of them -----------------------------------------------------------------------------------

const spread = (x, shape) => times(count(shape), i => x.data.length === 1 ? 0 : flatOf(indexOf(i, shape).map((k, axis) => x.shape[axis] === 1 ? 0 : k), x.shape));
const knows = node => node.known && [ONE, TWO, MOVES, OTHERS].some(t => Object.hasOwn(t, node.op))
  && !(/^u?int/.test(node.type) && ["div", "pow"].includes(node.op)) && !/complex|key/.test(node.type);
const says = op => (ONE[op]?.slice(2) ?? TWO[op]?.slice(3) ?? MOVES[op]?.slice(1) ?? OTHERS[op]?.says ?? [op]);

function value(node, xs) {
  const one = ONE[node.op], two = TWO[node.op], move = MOVES[node.op];
  if (one) return xs[0].data.map(x => one[0].takesParams ? one[0](x, node.params) : one[0](x));
  if (two) {
    const [at, bt] = xs.map(x => spread(x, node.shape));
    return at.map((i, k) => two[0](xs[0].data[i], xs[1].data[bt[k]]));
  }
  if (move) {
    const data = move[0](node, xs[0].shape).map(i => xs[0].data[i]);
    return node.op !== "convert_element_type" || /float/.test(node.type) ? data : data.map(node.type === "bool" ? x => +(x !== 0) : Math.trunc);
  }
  return OTHERS[node.op].value(node, xs);
}

// What goes back to each operand, and where the rule is a factor for each number, these factors: the local derivatives.
function back(node, xs, z, ct) {
  const one = ONE[node.op], two = TWO[node.op], move = MOVES[node.op];
  if (one) {
    const local = xs[0].data.map((x, i) => one[1](x, z[i], node.params));
    return {to: [local.map((s, i) => s * ct[i])], local: [local]};
  }
  if (two) {
    const at = xs.map(x => spread(x, node.shape));
    const local = [1, 2].map(k => z.map((_, i) => two[k](xs[0].data[at[0][i]], xs[1].data[at[1][i]], z[i])));
    const to = xs.map((x, k) => {
      const sum = Array(x.data.length).fill(0);
      at[k].forEach((i, o) => { sum[i] += local[k][o] * ct[o]; });
      return sum;
    });
    return {to, local};
  }
  if (move) {
    const sum = Array(xs[0].data.length).fill(0);
    move[0](node, xs[0].shape).forEach((i, o) => { sum[i] += ct[o]; });
    return {to: [sum]};
  }
  return {to: OTHERS[node.op].back(node, xs, z, ct)};
}
return {knows, says, value, back};
})();
