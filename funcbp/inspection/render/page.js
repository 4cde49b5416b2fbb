// The page of a trace: draws the lines that are seen of those that are there. Each page on a document is on its own.
(() => {
"use strict";
const root = [...document.querySelectorAll(".bp:not(.ready)")].find(e => e.querySelector("script[type='application/json']"));
if (!root) return;
const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
const lines = data.lines, whole = root.classList.contains("whole"), FIRST = 60;
const MEANS = {
  large: `a norm over ${data.factor} times the median of the page's values, or of its cotangents`,
  vanishing: `a cotangent that is zero, or over ${data.factor} times smaller than the median`,
  saturated: "more than half of the elements within 1 % of the unit's bounds",
  "not finite": "nan or infinity",
  dead: "computed for nothing: the output does not depend on it. Counted apart from cotangents that vanish",
};
const escaped = s => String(s ?? "").replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const short = x => {
  if (typeof x === "string" || x === 0) return String(x);
  const n = +x.toPrecision(4), size = Math.abs(n);
  return (size >= 1e6 || size < 1e-4 ? n.toExponential() : String(n)).replace("e+", "e");
};
const finite = s => s && typeof s.norm === "number" && s.norm > 0;

// --- what there is: parents, the text that is searched, the range of the bars ---------------------------------------

const parents = [];
lines.forEach((line, id) => {
  while (parents.length && lines[parents.at(-1)].end <= id) parents.pop();
  line.parent = parents.at(-1) ?? -1;
  if (line.group !== undefined) parents.push(id);
  line.said = [...new Set([...line.of ?? [], ...line.back ?? []])];
  line.text = [line.group, line.index, line.op, line.name, line.type, line.line, line.scope, line.rule, line.kind, line.when]
    .filter(Boolean).join(" ").toLowerCase();
});
const counts = {};
for (const line of lines) for (const mark of line.group === undefined ? line.said : []) counts[mark] = (counts[mark] ?? 0) + 1;
const total = lines.filter(line => line.group === undefined).length;
const range = which => {
  const norms = lines.filter(l => l.group === undefined && finite(l[which])).map(l => Math.log10(l[which].norm)).sort((a, b) => a - b);
  const low = norms[Math.floor(norms.length * .005)] ?? 0, high = norms[Math.floor(norms.length * .995)] ?? 1;  // a few outliers shall not flatten the rest
  return x => Math.min(1, Math.max(.04, (Math.log10(x) - low + .25) / (high - low + .25)));
};
const scale = {value: range("value"), cotangent: range("cotangent")};

// --- the page's parts -------------------------------------------------------------------------------------------------

const part = (tag, css, inner = "") => { const e = document.createElement(tag); e.className = css; e.innerHTML = inner; return e; };
const body = part("div", "body", `<h3 class="title">${escaped(data.title.split(";")[0])}</h3>
<p class="lead">Going forward each line makes a <b class="v">value ↓</b>. Going back, upwards, it receives its <b class="c">cotangent ↑</b>:
how the result changes with that value. Bars are norms, on a logarithmic scale.</p>
<div class="tools"><input type="search" placeholder="search: operation, name, scope, file:line …" aria-label="search">
${data.marks.map(m => `<button class="filter" data-mark="${m}" aria-pressed="false" title="${MEANS[m]}" ${counts[m] ? "" : "disabled"}>${m} <b>${counts[m] ?? 0}</b></button>`).join("")}
<button class="open" title="key e">unfold</button><button class="close" title="key c">fold</button>
<button class="dark" title="light or dark" aria-label="light or dark">◐</button><span class="found" role="status"></span></div>
<div class="heads"><div class="head"><span>equation</span><span class="type">type</span><span class="num">value ↓</span><span class="num">cotangent ↑</span><span class="said">rule, remarks</span><span class="at">line</span></div><span>map</span></div>
<div class="both"><div class="list" tabindex="0" role="tree" aria-label="equations"></div><div class="map" title="norms along both passes: value left, cotangent right; click to go there"><canvas></canvas><div class="view"></div></div></div>
<div class="detail" aria-live="polite"></div>
<div class="keys"><kbd>/</kbd> search · <kbd>↑</kbd><kbd>↓</kbd> go · <kbd>→</kbd><kbd>←</kbd> unfold, fold · <kbd>[</kbd> to what made it · <kbd>]</kbd> to what reads it · <kbd>n</kbd> next with a mark · <kbd>e</kbd><kbd>c</kbd> unfold, fold all · <kbd>Esc</kbd> clear</div>`);
root.querySelector(".plain").after(body);
root.classList.add("ready");
const $ = s => body.querySelector(s);
const list = $(".list"), search = $("input"), map = $(".map"), canvas = $("canvas"), view = $(".view");
const space = part("div", "");
space.style.position = "relative";
list.append(space);

// --- what is seen -----------------------------------------------------------------------------------------------------

const opened = new Set(), chosenMarks = new Set();
let visible = [], place = new Int32Array(lines.length).fill(-1), chosen = -1, terms = [], height = 24;

const filtering = () => terms.length > 0 || chosenMarks.size > 0;
const matches = line => line.group === undefined && terms.every(t => line.text.includes(t))
  && (chosenMarks.size === 0 || line.said.some(m => chosenMarks.has(m)));

function openAsFits() {
  const inside = id => { let n = 0; for (let i = id + 1; i < lines[id].end; i = lines[i].end) n++; return n; };
  let seen = lines.filter(line => line.parent < 0).length;
  const groups = lines.map((line, id) => id).filter(id => lines[id].group !== undefined);
  const inputs = lines[0]?.group === "inputs" ? lines[0].end : 0;  // these last: most are parameters
  const deepest = Math.max(0, ...groups.map(id => lines[id].level));
  for (const under of [id => id >= inputs, id => id < inputs]) {
    for (let level = 0; level <= deepest; level++) {  // a whole level, or none of it and of what is behind it
      const here = groups.filter(id => under(id) && lines[id].level === level), more = here.reduce((n, id) => n + inside(id), 0);
      if (seen + more > FIRST) return;
      here.forEach(id => opened.add(id));
      seen += more;
    }
  }
}

function look() {
  visible = [];
  place.fill(-1);
  if (filtering()) {
    const keep = new Uint8Array(lines.length);
    let found = 0;
    lines.forEach((line, id) => {
      if (!matches(line)) return;
      found++;
      for (let i = id; i >= 0 && !keep[i]; i = lines[i].parent) keep[i] = 1;
    });
    for (let id = 0; id < lines.length; id++) if (keep[id]) visible.push(id);
    $(".found").textContent = `${found.toLocaleString("en")} of ${total.toLocaleString("en")} rows`;
  } else {
    for (let id = 0; id < lines.length; id = lines[id].group === undefined || opened.has(id) ? id + 1 : lines[id].end) visible.push(id);
    $(".found").textContent = `${total.toLocaleString("en")} rows`;
  }
  visible.forEach((id, at) => { place[id] = at; });
  height = parseInt(getComputedStyle(list).getPropertyValue("--row"));
  body.classList.toggle("short", lines.length * height < (whole ? 340 : 560));
  space.style.height = `${Math.max(1, visible.length) * height}px`;
  draw(true);
}

let drawn = "";
function draw(again) {
  const first = Math.max(0, Math.floor(list.scrollTop / height) - 10);
  const last = Math.min(visible.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 10);
  const key = `${first} ${last}`;
  if (again || key !== drawn) space.innerHTML = visible.slice(first, last).map((id, k) => shown(id, (first + k) * height)).join("")
    || `<p class="s" style="padding:6px 8px;margin:0">Nothing fits. <kbd>Esc</kbd> clears.</p>`;
  drawn = key;
  list.setAttribute("aria-activedescendant", chosen >= 0 ? `${uid}-${chosen}` : "");
  const top = visible[Math.min(visible.length - 1, Math.floor(list.scrollTop / height))] ?? 0;
  const at = Math.min(visible.length, Math.ceil((list.scrollTop + list.clientHeight) / height));
  const bottom = at < visible.length ? visible[at] : lines.length;
  view.style.top = `${100 * top / lines.length}%`;
  view.style.height = `${100 * (bottom - top) / lines.length}%`;
}

const uid = `bp${document.querySelectorAll(".bp").length}`;
function size(s, which) {
  const css = which === "value" ? "num v" : "num c";
  if (!s) return `<span class="${css}"></span>`;
  const bar = finite(s) ? `<i style="width:${(100 * scale[which](s.norm)).toFixed(1)}%"></i>` : "";
  return `<span class="${css}"><span>${bar}</span><b>${short(s.is ?? s.norm)}</b></span>`;
}
const marked = (m, text = m) => `<span class="mark ${m === "not finite" ? "bad" : m}" title="${MEANS[m]}">${escaped(text)}</span>`;

function shown(id, top) {
  const line = lines[id], group = line.group !== undefined, expanded = group && (filtering() || opened.has(id));
  let what, said;
  const indent = `<span style="display:inline-block;width:${line.level * 1.1}em"></span>`;
  if (group) {
    what = `${indent}<span class="fold">${expanded ? "▾" : "▸"}</span><span class="op">${escaped(line.group)}</span> <span class="s">${line.rows.toLocaleString("en")} rows</span>`;
    said = Object.entries(line.counts ?? {}).map(([m, n]) => marked(m, `${n} ${m}`)).join("");
  } else {
    const input = line.op === "input";
    what = `${indent}<span class="n">${escaped(line.index)}</span><span class="op">${escaped(input ? line.name : line.op)}</span>${line.name && !input ? `<span class="tag">${escaped(line.name)}</span>` : ""}`;
    const share = line.value?.saturated, zero = line.kind === "no derivative" ? 0 : line.value?.zero;
    said = line.said.map(m => marked(m, m === "saturated" ? `${Math.round(100 * share)}% saturated` : m)).join("")
      + (line.when ? `<span class="mark">${escaped(line.when)}</span>` : "")
      + `<span class="s">${escaped(line.kind || (input ? "input" : line.rule))}${zero >= .05 ? `, ${Math.round(100 * zero)}% zero` : ""}</span>`;
  }
  const expands = group ? ` aria-expanded="${expanded}"` : "";
  return `<div class="line${group ? " group" : ""}${line.off ? " off" : ""}" id="${uid}-${id}" data-id="${id}" role="treeitem" aria-level="${line.level + 1}"${expands} aria-selected="${id === chosen}" style="top:${top}px">
<span class="what">${what}</span><span class="type s">${escaped(line.type)}</span>${size(line.value, "value")}${size(line.cotangent, "cotangent")}<span class="said">${said}</span>${group ? "" : `<span class="at s" title="${escaped(line.line)}">${escaped(base(line.line))}</span>`}</div>`;
}
const base = path => (path ?? "").split(" ")[0].split(/[\\/]/).at(-1);

// --- the chosen line --------------------------------------------------------------------------------------------------

function links(ids) {
  if (!ids?.length) return "nothing in this program";
  const title = id => `${lines[id].index ?? ""} ${lines[id].op === "input" ? lines[id].name : lines[id].op}`;
  return ids.slice(0, 12).map(id => `<a role="link" tabindex="0" data-to="${id}">${escaped(title(id))}</a>`).join(", ")
    + (ids.length > 12 ? ` and ${ids.length - 12} more` : "");
}
function numbers(s) {
  if (!s) return "none";
  const all = "mean" in s ? `norm ${short(s.norm)}, mean ${short(s.mean)}, from ${short(s.min)} to ${short(s.max)}` : short(s.is);
  return all + ["zero", "saturated", "not finite"].filter(k => k in s && "mean" in s).map(k => `, ${short(100 * s[k])} % ${k}`).join("");
}
function detail() {
  const line = lines[chosen];
  if (!line) { $(".detail").innerHTML = `<span class="s">Choose a line to see its numbers, what made it and what reads it. The marks:</span>
<dl>${data.marks.map(m => `<dt>${marked(m)}</dt><dd class="s">${MEANS[m]}</dd>`).join("")}</dl>`; return; }
  if (line.group !== undefined) {
    $(".detail").innerHTML = `<b>${escaped(line.group)}</b>, ${line.rows.toLocaleString("en")} rows. Sizes are those of what comes out of it: value ${numbers(line.value)}; cotangent ${numbers(line.cotangent)}.`;
    return;
  }
  const why = line.said.map(m => `${m}: ${MEANS[m]}`).join("; ");
  $(".detail").innerHTML = `<b>${escaped(line.index)} ${escaped(line.op)}</b> ${line.name ? `<span class="tag">${escaped(line.name)}</span>` : ""} <span class="s">${escaped(line.type)} ${escaped(line.scope)}</span>
<dl><dt>value</dt><dd>${numbers(line.value)}</dd><dt>cotangent</dt><dd>${line.kind === "no derivative" ? "no derivative" : numbers(line.cotangent)}</dd>
${why ? `<dt>marks</dt><dd>${escaped(why)}</dd>` : ""}<dt>made of</dt><dd>${links(line.from)}</dd><dt>read by</dt><dd>${links(line.to)}</dd>
<dt>rule</dt><dd>${escaped(line.rule ?? "none")} ${line.kind ? `(${escaped(line.kind === "stopped" ? "stopped: no derivative comes back to it" : line.kind)})` : ""}</dd>${line.line ? `<dt>line</dt><dd>${escaped(line.line)}</dd>` : ""}</dl>`;
}
function choose(id, scroll = true) {
  chosen = id;
  if (scroll && place[id] >= 0) {
    const top = place[id] * height, low = list.scrollTop, high = low + list.clientHeight - height;
    if (top < low || top > high) list.scrollTop = Math.abs(top - low) < 4 * height || Math.abs(top - high) < 4 * height ? (top < low ? top : top - list.clientHeight + height) : top - list.clientHeight / 3;
  }
  draw(true);
  detail();
  if (whole && lines[id] && lines[id].group === undefined) history.replaceState(null, "", `#${encodeURIComponent(lines[id].index || lines[id].name)}`);
}
function reveal(id) {
  if (filtering() && place[id] < 0) clear();
  for (let i = lines[id].parent; i >= 0; i = lines[i].parent) opened.add(i);
  look();
  choose(id);
}
function toggle(id) {
  if (filtering()) return;
  opened.has(id) ? opened.delete(id) : opened.add(id);
  look();
}
function clear() {
  search.value = "";
  terms = [];
  chosenMarks.clear();
  body.querySelectorAll(".filter").forEach(b => b.setAttribute("aria-pressed", "false"));
}
function all(open) {
  opened.clear();
  if (open) lines.forEach((line, id) => { if (line.group !== undefined) opened.add(id); });
  look();
  if (chosen >= 0 && place[chosen] >= 0) choose(chosen);
}

// --- the map ----------------------------------------------------------------------------------------------------------

function drawMap() {
  const dense = window.devicePixelRatio || 1, w = map.clientWidth, h = map.clientHeight;
  canvas.width = w * dense;
  canvas.height = h * dense;
  const pen = canvas.getContext("2d"), style = getComputedStyle(probe), step = h / lines.length;
  pen.scale(dense, dense);
  const tall = Math.max(1, step - (step > 4 ? 1 : 0)), lane = w / 2 - 3;
  const colours = Object.fromEntries(["value", "back", "soft", "bad"].map(k => { probe.style.color = `var(--${k})`; return [k, style.color]; }));
  lines.forEach((line, id) => {
    if (line.group !== undefined) return;
    [["value", 2, colours.value], ["cotangent", w / 2 + 1, colours.back]].forEach(([which, x, colour]) => {
      const s = line[which];
      if (!s) return;
      const broken = s["not finite"] && line.said.includes("not finite");
      pen.globalAlpha = broken ? 1 : Math.min(line.off ? .5 : .75, Math.max(.08, 1.5 * step));
      pen.fillStyle = broken ? colours.bad : line.off ? colours.soft : colour;
      const wide = broken ? lane : finite(s) ? lane * scale[which](s.norm) : 1;
      pen.fillRect(x, id * step, wide, broken ? Math.max(2, tall) : tall);
    });
  });
}
const probe = part("span", "");
probe.hidden = true;
body.append(probe);

// --- what the reader does ---------------------------------------------------------------------------------------------

let waiting = false;
list.addEventListener("scroll", () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(false); });
});
list.addEventListener("click", event => {
  const line = event.target.closest(".line");
  if (!line) return;
  const id = +line.dataset.id;
  if (lines[id].group !== undefined) toggle(id);
  choose(id, false);
});
map.addEventListener("click", event => {
  const box = map.getBoundingClientRect();
  let id = Math.max(0, Math.min(lines.length - 1, Math.floor((event.clientY - box.top) / box.height * lines.length)));
  while (lines[id].group !== undefined && id + 1 < lines.length) id++;
  reveal(id);
});
$(".detail").addEventListener("click", event => { if (event.target.dataset.to) { reveal(+event.target.dataset.to); list.focus({preventScroll: true}); } });
$(".detail").addEventListener("keydown", event => { if (event.key === "Enter" && event.target.dataset.to) reveal(+event.target.dataset.to); });
search.addEventListener("input", () => {
  terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  list.scrollTop = 0;
  look();
});
body.querySelectorAll(".filter").forEach(button => button.addEventListener("click", () => {
  const mark = button.dataset.mark;
  chosenMarks.has(mark) ? chosenMarks.delete(mark) : chosenMarks.add(mark);
  button.setAttribute("aria-pressed", chosenMarks.has(mark));
  list.scrollTop = 0;
  look();
}));
$(".open").addEventListener("click", () => all(true));
$(".close").addEventListener("click", () => all(false));
$(".dark").addEventListener("click", () => {
  const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
  drawMap();
});
const move = by => choose(visible[Math.max(0, Math.min(visible.length - 1, (chosen >= 0 && place[chosen] >= 0 ? place[chosen] : by > 0 ? -1 : 0) + by))]);
const screen = () => Math.max(1, Math.floor(list.clientHeight / height) - 1);
const KEYS = {
  ArrowDown: () => move(1), j: () => move(1), ArrowUp: () => move(-1), k: () => move(-1),
  PageDown: () => move(screen()), PageUp: () => move(-screen()), Home: () => choose(visible[0]), End: () => choose(visible.at(-1)),
  ArrowRight: () => { const line = lines[chosen]; if (line?.group !== undefined) opened.has(chosen) || filtering() ? move(1) : toggle(chosen); },
  ArrowLeft: () => { const line = lines[chosen]; if (line?.group !== undefined && opened.has(chosen) && !filtering()) toggle(chosen); else if (line && line.parent >= 0) choose(line.parent); },
  Enter: () => { if (lines[chosen]?.group !== undefined) toggle(chosen); },
  "[": () => { const to = lines[chosen]?.from?.[0]; if (to !== undefined) reveal(to); },
  "]": () => { const to = lines[chosen]?.to?.[0]; if (to !== undefined) reveal(to); },
  n: () => { for (let i = 1; i <= lines.length; i++) { const id = (chosen + i) % lines.length; if (lines[id].group === undefined && lines[id].said.length) return reveal(id); } },
  e: () => all(true), c: () => all(false),
};
list.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS) || !visible.length) return;
  event.preventDefault();
  event.stopPropagation();
  KEYS[event.key]();
});
body.addEventListener("keydown", event => {
  if (event.key === "/" && event.target !== search) { event.preventDefault(); search.focus(); search.select(); }
  if (event.key === "Escape") { clear(); look(); if (chosen >= 0) reveal(chosen); list.focus(); }
  if (event.key === "Enter" && event.target === search) { const first = visible.find(id => lines[id].group === undefined); if (first !== undefined) choose(first); list.focus(); }
});
if (whole) document.addEventListener("keydown", event => {
  if (event.target === document.body && (event.key === "/" || event.key in KEYS)) {
    event.preventDefault();
    event.key === "/" ? search.focus() : (list.focus(), KEYS[event.key]());
  }
});
new ResizeObserver(() => { look(); drawMap(); }).observe(list);
matchMedia("(prefers-color-scheme:dark)").addEventListener("change", drawMap);

openAsFits();
look();
detail();
const asked = () => {
  const key = decodeURIComponent(location.hash.slice(1));
  const id = key ? lines.findIndex(line => line.group === undefined && (line.index || line.name) === key) : -1;
  if (id >= 0) reveal(id);
};
if (whole) { asked(); addEventListener("hashchange", asked); }
})();
