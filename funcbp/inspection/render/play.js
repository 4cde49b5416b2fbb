// A small network that learns before your eyes: forward pass, error, backward pass, update, step by step.
(() => {
"use strict";
const root = document.querySelector(".bp.play");
const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
const nodes = data.nodes, {knows, says, value, back} = bpArithmetic;
const escaped = s => String(s ?? "").replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const short = x => typeof x === "string" ? x : x === 0 ? "0" : !Number.isFinite(x) ? String(x) : String(+x.toPrecision(4)).replace("-", "−");
const numbers = list => list && list.map(Number);
nodes.forEach((node, id) => {
  node.id = id;
  node.input = node.op === "input";
  node.recorded = {value: numbers(node.value), cotangent: numbers(node.cotangent)};
  node.title = node.input ? node.name : says(node.op)[0];
});
// What only carries a value on has no box: whatever it is read from is its source.
const source = id => id === null ? null : nodes[id].carries ?? id;
for (const node of nodes) if (node.op === "name" && node.carries !== null) { const of = nodes[source(node.id)]; of.title = of.input ? of.title : `${node.name} = ${of.title}`; }
const places = new Map(data.places.map(([id, column, row]) => [id, {column, row}]));
const drawn = [...places.keys()].sort((a, b) => a - b), output = nodes[data.output];
const readers = nodes.map(() => []);
nodes.forEach(node => node.derivable && node.from.forEach((from, k) => { if (from !== null && places.has(node.id) && places.has(source(from))) readers[source(from)].push({node, k}); }));

// --- what the page can compute ----------------------------------------------------------------------------------------

const varies = nodes.map(() => false), unknown = new Map();
for (const node of nodes) {
  const from = [...node.from, ...(node.operands ?? [])].filter(k => typeof k === "number");
  varies[node.id] = node.input || from.some(id => varies[id]);
  if (node.input && node.recorded.value) continue;
  if (!varies[node.id]) continue;
  const whole = node.operands && node.operands.every(k => typeof k === "number" ? varies[k] || nodes[k].recorded.value : k?.value);
  if (!node.usual) unknown.set(node.op, `its rule is ${node.kind}`);
  else if (!knows(node)) unknown.set(node.op, node.known && node.rule ? `its rule is ${node.rule}` : node.known ? "" : "somebody's own");
  else if (!whole || !node.recorded.value) unknown.set(node.op, "not all of its operands are on the page");
}

// Everything again, from these numbers of the inputs: values, cotangents, and what each rule hands to each operand.
function compute(inputs) {
  const values = [], cts = nodes.map(() => null), to = [], local = [];
  const operand = k => typeof k === "number" ? {shape: nodes[k].shape, data: values[k]} : {shape: k.shape, data: k.value.map(Number)};
  for (const node of nodes) values.push(node.input ? inputs[node.id] : varies[node.id] ? value(node, node.operands.map(operand)) : node.recorded.value);
  cts[output.id] = values[output.id].map(() => 1);
  for (const node of [...nodes].reverse()) {
    if (node.input || !node.derivable || !cts[node.id] || !node.from.some(k => k !== null)) continue;
    const found = back(node, node.operands.map(operand), values[node.id], cts[node.id]);
    to[node.id] = found.to;
    local[node.id] = found.local;
    node.from.forEach((k, i) => { if (k !== null) cts[k] = found.to[i].map((c, j) => c + (cts[k]?.[j] ?? 0)); });
  }
  nodes.forEach(node => { if (node.derivable && node.recorded.cotangent) cts[node.id] ??= values[node.id].map(() => 0); });
  return {values, cts, to, local};
}
const recorded = {values: nodes.map(n => n.recorded.value), cts: nodes.map(n => n.recorded.cotangent), to: [], local: []};
const start = nodes.map(node => node.input ? node.recorded.value : null);

// Whether the page's numbers are the recorded ones, to the precision of their arrays.
const NEAR = {float64: 1e-7, float32: 1e-4, float16: 3e-2, bfloat16: .2};
const near = state => drawn.every(id => [["values", "value"], ["cts", "cotangent"]].every(([ours, theirs]) => {
  const wanted = nodes[id].recorded[theirs], got = state[ours][id];
  const size = Math.max(1e-3, ...(wanted ?? []).map(Math.abs).filter(Number.isFinite));
  return !wanted || wanted.every((x, i) => Object.is(x, got[i]) || x === got[i] || Math.abs(x - got[i]) <= size * NEAR[nodes[id].type]);
}));
let live = unknown.size === 0, why = "";
if (!live) why = `This page cannot compute ${[...unknown].map(([op, reason]) => `<b>${escaped(op)}</b>${reason ? ` (${escaped(reason)})` : ""}`).join(", ")}: it plays the recorded numbers, and the sliders are off.`;
let inputs = start.map(v => v && [...v]), rate = data.rate, state = live ? compute(inputs) : recorded;
if (live && !near(state)) {
  [live, state] = [false, recorded];
  why = "What this page computes differs from what was recorded: it plays the recorded numbers, and the sliders are off.";
}
const errors = [state.values[output.id]?.[0]];

// --- the steps --------------------------------------------------------------------------------------------------------

const PHASES = ["forward", "error", "backward", "update"];
const steps = [{phase: 0, nodes: drawn.filter(id => nodes[id].input)}];
for (const id of drawn) if (!nodes[id].input) steps.push({phase: 0, nodes: [id]});
steps.push({phase: 1, nodes: [output.id]});
for (const id of [...drawn].reverse()) if (!nodes[id].input && nodes[id].from.some(k => places.has(source(k))) && nodes[id].recorded.cotangent) steps.push({phase: 2, nodes: [id]});
const learning = drawn.filter(id => nodes[id].learns);
steps.push({phase: 3, nodes: learning});
const forwardAt = new Map(), backwardAt = new Map(), completeAt = new Map([[output.id, steps.findIndex(s => s.phase === 1)]]);
steps.forEach(({phase, nodes: ids}, t) => ids.forEach(id => { if (phase === 0) forwardAt.set(id, t); if (phase === 2) backwardAt.set(id, t); }));
for (const id of drawn) {
  const all = readers[id].map(({node}) => backwardAt.get(node.id) ?? 0);
  if (all.length) completeAt.set(id, Math.max(...all, completeAt.get(id) ?? 0));
}
let at = 0, playing = null;

// --- the page's parts -------------------------------------------------------------------------------------------------

const part = (tag, css, inner = "") => { const e = document.createElement(tag); e.className = css; e.innerHTML = inner; return e; };
const sliders = drawn.filter(id => nodes[id].input).sort((a, b) => nodes[b].learns - nodes[a].learns);
const label = (id, i) => nodes[id].shape.length ? `${i === undefined ? "" : `[${unravel(i, nodes[id].shape)}]`}` : "";
function unravel(i, shape) { const at = []; for (const n of [...shape].reverse()) { at.unshift(i % n); i = Math.floor(i / n); } return at.join(", "); }
const slider = (css, low, high, x, name) => `<label class="${css}"><span>${escaped(name)}</span><input type="range" min="${low}" max="${high}" step="any" value="${x}" ${live ? "" : "disabled"}><output>${short(x)}</output></label>`;
const body = part("div", "stage", `
<h3 class="title">Forward, back, and a step</h3>
<div class="tools"><button class="back" title="one step back (←)">◂ back</button><button class="go" title="play or pause (space)">▶ play</button><button class="next" title="one step on (→)">step ▸</button>
<ol class="phases">${PHASES.map(p => `<li>${p}</li>`).join("")}</ol>
<button class="many" ${live ? "" : "disabled"} title="a hundred updates at once">100 updates</button><button class="reset" title="the recorded numbers again">reset</button><button class="dark" title="light or dark" aria-label="light or dark">◐</button></div>
${why ? `<p class="warning" role="alert">${why}</p>` : ""}
<div class="says" aria-live="polite"></div>
<div class="picture" tabindex="0" aria-label="the graph"></div>
<div class="side"><div class="set curve"><b>error</b> <span class="e"></span><svg viewBox="0 0 240 60" preserveAspectRatio="none"><polyline fill="none"/></svg><span class="s updates"></span>${slider("rate", 0, Math.max(2, 2 * rate), rate, "learning rate η")}</div>
${sliders.map(id => `<details class="set" open><summary>${escaped(nodes[id].name)} <span class="s">${nodes[id].learns ? "learns" : "given"}</span></summary>
${start[id].map((x, i) => { const reach = Math.max(1, 2 * Math.abs(x)); return slider(`of" data-id="${id}" data-i="${i}`, x - reach, x + reach, x, label(id, i)); }).join("")}</details>`).join("")}</div>`);
root.append(body);
const $ = s => body.querySelector(s);

// --- the graph --------------------------------------------------------------------------------------------------------

const COLUMNS = 4, ROWS = 5, CHAR = 7, LINE = 15, CELL = 58;
const GAP = edgesOfScalars() ? 74 : 44;
function edgesOfScalars() { return drawn.some(id => !nodes[id].input && !nodes[id].shape.length && nodes[id].from.filter(k => k !== null).every(k => !nodes[k].shape.length)); }
const rowsOf = (list, shape) => {  // a vector as a line, a matrix by its rows, what is larger by its first numbers
  const wide = shape.length ? shape.at(-1) : 1, tall = list.length / (wide || 1);
  const lines = [];
  for (let r = 0; r < Math.min(tall, ROWS); r++) lines.push([...list.slice(r * wide, r * wide + Math.min(wide, COLUMNS)), ...wide > COLUMNS ? ["…"] : []]);
  if (tall > ROWS) lines.push(["⋮"]);
  return lines.length ? lines : [["empty"]];
};
const cell = x => {  // as many digits as the cell has room for
  if (typeof x === "string") return x;
  const texts = [4, 3, 2, 1].map(n => String(+x.toPrecision(n)).replace("-", "−"));
  return texts.find(t => t.length <= 7) ?? x.toExponential(Math.abs(x) < 1e-99 ? 0 : 1).replace("+", "").replace(/-/g, "−");
};
const boxes = new Map();
for (const id of drawn) {
  const node = nodes[id], lines = rowsOf(start[id] ?? node.recorded.value ?? [], node.shape);
  const wide = Math.max(...lines.map(l => l.length)), kind = node.shape.length ? ` ${node.shape.join("×")}` : "";
  boxes.set(id, {w: Math.max(wide * CELL + 14, (node.title.length + kind.length) * CHAR + 26, 92), lines: lines.length, h: 26 + 2 * lines.length * LINE + 10, kind});
}
const columnX = [], rowY = [], last = {column: Math.max(...[...places.values()].map(p => p.column)), row: Math.max(...[...places.values()].map(p => p.row))};
for (let c = 0, x = 10; c <= last.column; c++) { columnX[c] = x; x += Math.max(60, ...drawn.filter(id => places.get(id).column === c).map(id => boxes.get(id).w)) + GAP; columnX[c + 1] = x; }
for (let r = 0, y = 10; r <= last.row; r++) { rowY[r] = y; y += Math.max(40, ...drawn.filter(id => places.get(id).row === r).map(id => boxes.get(id).h)) + 34; rowY[r + 1] = y; }
for (const [id, box] of boxes) { const p = places.get(id); Object.assign(box, {x: columnX[p.column], y: rowY[p.row], column: p.column}); }
const edges = [];
for (const node of nodes) if (places.has(node.id) && node.derivable) {
  const into = node.from.map((from, k) => ({from: source(from), k})).filter(e => places.has(e.from));
  into.forEach((e, port) => edges.push({...e, to: node.id, port: (port + 1) / (into.length + 1)}));
}
function pathOf(edge, k) {
  const a = boxes.get(edge.from), b = boxes.get(edge.to);
  const x0 = a.x + a.w, y0 = a.y + a.h / 2, x1 = b.x, y1 = b.y + b.h * edge.port;
  const between = [...boxes.values()].filter(box => box.column > a.column && box.column < b.column && box.y < Math.max(y0, y1) + 20 && box.y + box.h > Math.min(y0, y1) - 20);
  if (!between.length) { const bend = (x0 + x1) / 2; return `M${x0} ${y0} C${bend} ${y0} ${bend} ${y1} ${x1 - 3} ${y1}`; }
  const low = Math.max(...between.map(box => box.y + box.h)) + 8 + 3 * (k % 6);
  return `M${x0} ${y0} C${x0 + 40} ${y0} ${x0 + 14} ${low} ${x0 + 54} ${low} L${x1 - 54} ${low} C${x1 - 14} ${low} ${x1 - 40} ${y1} ${x1 - 3} ${y1}`;
}
const wide = columnX[last.column + 1] - GAP + 12, tall = Math.max(rowY[last.row + 1], ...edges.map((e, k) => Math.max(...pathOf(e, k).match(/[\d.]+/g).filter((_, i) => i % 2).map(Number)) + 12));
$(".picture").innerHTML = `<svg style="width:max(${0.8 * wide}px, min(100%, ${wide}px))" viewBox="0 0 ${wide} ${tall}"><defs>${["edge", "lit", "back"].map(n => `<marker id="bp-${n}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path class="tip ${n}" d="M0 0L8 4L0 8z"/></marker>`).join("")}</defs>
${edges.map((e, k) => `<path class="edge" data-edge="${k}" d="${pathOf(e, k)}"/>`).join("")}
${drawn.map(id => { const b = boxes.get(id); return `<g class="box${nodes[id].input ? " input" : ""}${nodes[id].learns ? " learns" : ""}" data-id="${id}"><title>${escaped(nodes[id].line)}</title><rect x="${b.x}" y="${b.y}" width="${b.w}" height="${b.h}" rx="7"/><text class="name" x="${b.x + 10}" y="${b.y + 18}">${escaped(nodes[id].title)}<tspan class="s">${escaped(b.kind)}</tspan></text><g class="numbers"></g></g>`; }).join("")}
${edges.map((e, k) => `<text class="local" data-local="${k}" text-anchor="end"></text>`).join("")}</svg>`;

const list = (xs, most = 6) => xs ? (xs.length === 1 ? short(xs[0]) : `[${xs.slice(0, most).map(short).join(", ")}${xs.length > most ? ", …" : ""}]`) : "?";
const updated = id => state.values[id].map((w, i) => w - rate * state.cts[id][i]);
const named = id => `<b>${escaped(nodes[id].title)}</b>`;

function draw() {
  const step = steps[at], lit = new Set(step.nodes);
  body.querySelectorAll(".phases li").forEach((li, i) => li.setAttribute("aria-current", i === step.phase ? "step" : "false"));
  for (const id of drawn) {
    const g = body.querySelector(`.box[data-id="${id}"]`), b = boxes.get(id), node = nodes[id];
    const hasValue = (forwardAt.get(id) ?? 0) <= at, hasCt = completeAt.has(id) && completeAt.get(id) <= at;
    const moved = step.phase === 3 && node.learns;
    const write = (css, xs, y) => rowsOf(xs, node.shape).map((line, r) => line.map((x, c) => `<text class="${css}" x="${b.x + 10 + c * CELL}" y="${y + r * LINE}">${cell(x)}</text>`).join("")).join("");
    const y = b.y + 35;
    g.querySelector(".numbers").innerHTML = (hasValue ? write(moved ? "value new" : "value", moved && state.cts[id] ? updated(id) : state.values[id] ?? [], y) : "") + (hasCt && state.cts[id] ? write("ct", state.cts[id], y + b.lines * LINE + 2) : "");
    g.classList.toggle("waits", !hasValue);
    g.classList.toggle("lit", lit.has(id));
    g.classList.toggle("back", lit.has(id) && (step.phase === 1 || step.phase === 2));
  }
  edges.forEach((edge, k) => {
    const path = body.querySelector(`[data-edge="${k}"]`), text = body.querySelector(`[data-local="${k}"]`);
    const now = step.phase === 0 && lit.has(edge.to) || step.phase === 2 && lit.has(edge.to);
    path.classList.toggle("lit", now);
    path.classList.toggle("back", now && step.phase === 2);
    const passed = (backwardAt.get(edge.to) ?? Infinity) <= at, b = boxes.get(edge.to);
    const local = state.local[edge.to]?.[edge.k];
    text.textContent = passed && local && local.length === 1 ? `× ${short(local[0])}` : "";
    text.setAttribute("x", b.x - 8);
    text.setAttribute("y", b.y + b.h * edge.port - 5);
  });
  $(".says").innerHTML = explain(step);
  $(".e").textContent = short(state.values[output.id]?.[0]);
  $(".updates").textContent = errors.length > 1 ? `after ${errors.length - 1} update${errors.length > 2 ? "s" : ""}` : live ? "no update yet" : "";
  const known = errors.filter(Number.isFinite), high = Math.max(...known), low = Math.min(0, ...known);
  $("polyline").setAttribute("points", errors.map((e, i) => `${(240 * i / Math.max(1, errors.length - 1)).toFixed(1)},${(58 - 56 * (e - low) / (high - low || 1)).toFixed(1)}`).join(" "));
  $(".back").disabled = at === 0;
  $(".next").textContent = at === steps.length - 1 ? (live ? "update ▸" : "again ▸") : "step ▸";
}

function operandsOf(node) {  // by name, a constant by its numbers
  return node.from.map(source).map((k, i) => {
    const known = node.operands?.[i], fixed = typeof known === "number" ? nodes[known].recorded.value : known?.value;
    return k !== null ? named(k) : fixed && new Set(fixed).size === 1 ? short(fixed[0]) : fixed ? list(fixed.map(Number), 4) : "a constant";
  });
}
function explain({phase, nodes: ids}) {
  const node = nodes[ids[0]];
  if (phase === 0 && node?.input) return `<b>The numbers that are given.</b> Inputs and weights; those that learn have a thick border. Every box shows its <span class="value">value</span>, and below it, once it is known, its <span class="ct">cotangent</span>: how the error changes with it.`;
  if (phase === 0) return `<b>Forward: ${escaped(node.title)}.</b> ${escaped(says(node.op)[1] ?? node.op)}, here of ${operandsOf(node).join(" and ")}: <span class="value">${list(state.values[node.id])}</span>.`;
  if (phase === 1) return `<b>The error: ${list(state.values[output.id])}.</b> From here back. How much the error changes with itself is <span class="ct">1</span>; every other cotangent follows from that by the chain rule, one rule for each box.`;
  if (phase === 3) return ids.length ? `<b>Update: w ← w − η w̄.</b> Each number that learns moves against its cotangent, by the learning rate η = ${short(rate)}: ${ids.slice(0, 3).map(id => `${named(id)} from ${list(state.values[id], 3)} to <span class="new">${list(updated(id), 3)}</span>`).join("; ")}.` : "<b>Nothing learns here.</b>";
  const [, , formula, words] = says(node.op), local = state.local[node.id], to = state.to[node.id];
  const parts = node.from.map(source).map((k, i) => !places.has(k) ? "" : `to ${named(k)}${to ? ` goes <span class="ct">${list(to[i])}</span>` : ""}${local?.[i] && node.op !== "add" ? `, by the local derivative ${list(local[i])}` : ""}${readers[k].length > 1 ? `, added to what comes from its other uses` : ""}`).filter(Boolean);
  return `<b>Back through ${escaped(node.title)}.</b> Its cotangent is z̄ = <span class="ct">${list(state.cts[node.id])}</span>. ${formula ? `The rule: <b>${escaped(formula)}</b>, ${escaped(words)}.` : `By the rule ${escaped(node.rule)}.`} ${parts.length ? `So ${parts.join("; ")}.` : ""}`;
}

// --- what the reader does ---------------------------------------------------------------------------------------------

function fit(x) { return Math.min(Math.max(x, 0), steps.length - 1); }
function show() {
  draw();
  const box = boxes.get(steps[at].nodes[0]), picture = $(".picture"), by = $(".picture svg").clientWidth / wide;
  if (box && steps[at].nodes.length === 1) picture.scrollTo({left: by * (box.x + box.w / 2) - picture.clientWidth / 2, top: by * (box.y + box.h / 2) - picture.clientHeight / 2, behavior: matchMedia("(prefers-reduced-motion:reduce)").matches ? "auto" : "smooth"});
  else picture.scrollTo({left: 0});
}
function again() {
  if (live) state = compute(inputs);
  body.querySelectorAll("label.of").forEach(e => {
    const x = inputs[e.dataset.id][e.dataset.i], range = e.querySelector("input");
    if (x < +range.min) range.min = x;
    if (x > +range.max) range.max = x;
    range.value = x;
    e.querySelector("output").textContent = short(x);
  });
}
function learn() {
  for (const id of learning) if (state.cts[id]) inputs[id] = updated(id);
  again();
  errors.push(state.values[output.id][0]);
}
function next() {
  if (at < steps.length - 1) at++;
  else { if (live) learn(); at = 0; }
  show();
}
function pause() { clearInterval(playing); playing = null; $(".go").textContent = "▶ play"; }
function play() {
  if (playing) return pause();
  playing = setInterval(next, 1100);
  $(".go").textContent = "❚❚ pause";
  next();
}
$(".next").addEventListener("click", () => { pause(); next(); });
$(".back").addEventListener("click", () => { pause(); at = fit(at - 1); show(); });
$(".go").addEventListener("click", play);
$(".many").addEventListener("click", () => { pause(); for (let i = 0; i < 100; i++) learn(); draw(); });
$(".reset").addEventListener("click", () => {
  pause();
  [inputs, rate, at] = [start.map(v => v && [...v]), data.rate, 0];
  $(".rate input").value = rate;
  $(".rate output").textContent = short(rate);
  state = recorded;
  again();
  errors.splice(0, errors.length, state.values[output.id]?.[0]);
  show();
});
$(".rate input").addEventListener("input", event => { rate = +event.target.value; $(".rate output").textContent = short(rate); draw(); });
body.querySelectorAll("label.of input").forEach(range => range.addEventListener("input", () => {
  const {id, i} = range.parentElement.dataset;
  inputs[id][i] = +range.value;
  again();
  errors.splice(0, errors.length, state.values[output.id][0]);
  draw();
}));
body.querySelectorAll(".phases li").forEach((li, i) => li.addEventListener("click", () => { pause(); at = steps.findIndex(s => s.phase === i); show(); }));
$(".dark").addEventListener("click", () => {
  const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});
document.addEventListener("keydown", event => {
  if (event.target.closest?.("input,button,summary") && event.key !== "Escape") return;
  const action = {ArrowRight: () => { pause(); next(); }, ArrowLeft: () => { pause(); at = fit(at - 1); show(); }, " ": play, Escape: pause}[event.key];
  if (action) { event.preventDefault(); action(); }
});
window.bpPlay = {compute, recorded, nodes, start, get state() { return state; }, get live() { return live; }, get at() { return at; }, steps, get inputs() { return inputs; }};
show();
})();
