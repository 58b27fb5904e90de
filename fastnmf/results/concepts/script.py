"""Style and script of the concepts on a page. The script makes elements of the data in the page and
takes texts as texts only."""

from __future__ import annotations

STYLE = """
#map-box { height: min(24rem, 80vw); border: 1px solid var(--line); border-radius: .5rem; }
#map { width: 100%; height: 100%; display: block;
  cursor: crosshair; }
#controls { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center;
  margin: 1rem 0 .3rem; }
#controls input[type=search], #controls select, #pager button { font: inherit; color: inherit;
  background: var(--ground); border: 1px solid var(--line); border-radius: .4rem;
  padding: .3rem .6rem; max-width: 100%; min-height: 2.4rem; }
#cards { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .8rem; min-width: 0;
  background: var(--ground); }
.card.chosen { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.card header { display: flex; justify-content: space-between; align-items: baseline; gap: .5rem; }
.card .figures { font-size: .85rem; color: var(--muted); margin: .1rem 0 .5rem; }
.card img { display: block; width: 100%; max-height: 14rem; object-fit: contain;
  object-position: left; image-rendering: pixelated; margin-bottom: .5rem; }
.card summary { color: var(--muted); font-size: .85rem; cursor: pointer; }
.card button { font: inherit; font-size: .85rem; color: var(--accent); background: none;
  border: 0; padding: .2rem 0; text-decoration: underline; cursor: pointer; }
.features { list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .85rem; }
.features li { display: grid; grid-template-columns: minmax(3rem, 9rem) 1fr 4rem; gap: .5rem;
  align-items: center; }
.features li span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.features li span:last-child { text-align: right; color: var(--muted);
  font-variant-numeric: tabular-nums; }
.bar { height: .5rem; border-radius: .2rem; background: var(--accent); min-width: 1px; }
.bar.minus { background: var(--bad); }
.histogram { display: flex; align-items: flex-end; gap: 1px; height: 2.2rem;
  border-bottom: 1px solid var(--line); }
.histogram i { flex: 1; background: var(--second); min-height: 0; }
.scale { display: flex; justify-content: space-between; font-size: .75rem; color: var(--muted);
  margin-bottom: .4rem; }
.rows { list-style: none; margin: 0; padding: 0; font-size: .85rem; }
.rows li { border-top: 1px solid var(--line); padding: .2rem 0; overflow-wrap: anywhere; }
.rows mark { background: none; color: var(--accent); font-weight: 700; }
.rows b { color: var(--muted); font-weight: normal; font-variant-numeric: tabular-nums;
  margin-right: .5rem; }
#pager { display: flex; gap: 1rem; align-items: center; justify-content: center;
  margin-top: 1rem; }
#pager button:disabled { opacity: .45; }
"""

SCRIPT = r"""
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const K = data.energy.length, PAGE = 24, find = (id) => document.getElementById(id);
const all = Array.from({ length: K }, (_, k) => k);
let shown = all, first = 0, chosen = -1;
const hasCodes = data.active[0] !== null;

function make(tag, kind, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}
function percent(share) {
  if (share === 0) return "0 %";
  const value = 100 * share;
  return (value >= 0.01 ? Number(value.toPrecision(3)) : value.toExponential(1)) + " %";
}
function short(value) {
  return Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}
function texts(k) {
  const more = data.details[k] || {};
  const words = (more.features || []).map((each) => each[0]);
  for (const row of more.rows || []) words.push(row.name || "", row.word || "");
  return data.features[k].concat(words).join(" ").toLowerCase();
}
const searched = all.map(texts);

function choose() {
  const word = find("search").value.trim().toLowerCase(), by = find("sort").value;
  const fits = /^\d+$/.test(word)
    ? (k) => k === Number(word) || data.features[k].includes(word)
    : (k) => searched[k].includes(word);
  shown = word ? all.filter(fits) : all.slice();
  const key = by === "index" ? (k) => -k : (k) => data[by][k] ?? 0;
  shown.sort((a, b) => key(b) - key(a) || a - b);
  if (find("twins").checked) {
    const left = new Set(shown), order = [];
    for (const k of shown) {
      if (!left.delete(k)) continue;
      order.push(k);
      if (data.cosine[k] >= 0.9 && left.delete(data.twin[k])) order.push(data.twin[k]);
    }
    shown = order;
  }
  first = 0;
  render();
}
function features(k) {
  const given = data.details[k] && data.details[k].features;
  if (!given) return make("p", "figures", data.features[k].join(", "));
  const list = make("ul", "features");
  list.setAttribute("aria-label", "top features and their weights");
  const most = Math.max(...given.map((each) => Math.abs(each[1])), 1e-30);
  for (const [name, weight] of given) {
    const item = make("li"), bar = make("div", weight < 0 ? "bar minus" : "bar");
    const label = make("span", "", name);
    label.title = name;
    bar.style.width = 100 * Math.abs(weight) / most + "%";
    item.append(label, bar, make("span", "", short(weight)));
    list.append(item);
  }
  return list;
}
function histogram(k) {
  const bars = data.details[k].histogram, most = Math.max(...bars, 1);
  const box = make("div"), figure = make("div", "histogram"), scale = make("div", "scale");
  figure.setAttribute("role", "img");
  figure.setAttribute("aria-label", "histogram of the codes that are not zero, up to "
    + data.largest[k]);
  for (const count of bars) {
    const bar = make("i");
    bar.style.height = 100 * Math.log1p(count) / Math.log1p(most) + "%";
    bar.title = count + " rows";
    figure.append(bar);
  }
  scale.append(make("span", "", "0"), make("span", "", "codes (rows on a log scale)"),
    make("span", "", data.largest[k]));
  box.append(figure, scale);
  return box;
}
function rows(k) {
  const list = make("ul", "rows");
  list.setAttribute("aria-label", "top rows");
  for (const row of data.details[k].rows) {
    const item = make("li");
    item.append(make("b", "", short(row.code)));
    if (row.word === undefined) item.append(row.name || "row " + row.row);
    else {
      if (row.name) item.append(row.name + ": ");
      item.append(row.before + " ", make("mark", "", row.word), " " + row.after);
    }
    list.append(item);
  }
  return list;
}
function card(k) {
  const box = make("article", k === chosen ? "card chosen" : "card"), head = make("header");
  const more = data.details[k], figures = make("p", "figures");
  const title = make("h3", "", "Concept " + k);
  title.id = "concept-" + k;
  box.setAttribute("aria-labelledby", title.id);
  head.append(title, make("strong", "", percent(data.energy[k])));
  figures.textContent = hasCodes ? "active in " + percent(data.active[k]) + " of rows, mean code "
    + data.mean[k] + ", largest " + data.largest[k] : "share of the energy";
  box.append(head, figures);
  if (more && more.picture) {
    const picture = make("img");
    picture.src = more.picture;
    picture.alt = more.alt;
    box.append(picture);
  }
  if (more && more.histogram) box.append(histogram(k));
  const listed = more && more.rows && more.rows.length ? [features(k), rows(k)] : [features(k)];
  if (more && more.picture) {
    const folded = make("details");
    folded.append(make("summary", "", "features and rows"), ...listed);
    box.append(folded);
  } else box.append(...listed);
  if (data.twin[k] >= 0) {
    const like = make("button", "", "most like concept " + data.twin[k] + " (cosine "
      + data.cosine[k].toFixed(2) + ")");
    like.type = "button";
    like.addEventListener("click", () => show(data.twin[k]));
    box.append(like);
  }
  return box;
}
function render() {
  const page = shown.slice(first, first + PAGE);
  find("cards").replaceChildren(...page.map(card));
  const many = shown.length.toLocaleString("en");
  find("count").textContent = shown.length === 1 ? "1 concept" : many + " concepts";
  find("place").textContent = shown.length ? (first + 1).toLocaleString("en") + " to "
    + (first + page.length).toLocaleString("en") + " of " + many : "none";
  find("previous").disabled = first === 0;
  find("next").disabled = first + PAGE >= shown.length;
  draw();
}
function show(k) {
  if (!shown.includes(k)) { find("search").value = ""; choose(); }
  chosen = k;
  first = Math.floor(shown.indexOf(k) / PAGE) * PAGE;
  render();
  const title = find("concept-" + k);
  title.tabIndex = -1;
  title.focus();
  title.scrollIntoView({ block: "center" });
}
const canvas = find("map"), pen = canvas.getContext("2d"), EDGE = 14;
const strongest = Math.max(...data.energy, 1e-30);
const busiest = Math.max(...data.active.map((share) => share || 0), 1e-30);
const drawn = all.slice().sort((a, b) => data.energy[b] - data.energy[a]);
function spot(k) {
  return [EDGE + (data.x[k] + 1) / 2 * (canvas.clientWidth - 2 * EDGE),
    EDGE + (1 - data.y[k]) / 2 * (canvas.clientHeight - 2 * EDGE)];
}
function size(k) {
  return 2 + 10 * Math.sqrt(data.energy[k] / strongest);
}
function draw() {
  const scale = window.devicePixelRatio || 1, style = getComputedStyle(document.body);
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const wanted = shown.length < K ? new Set(shown) : null;
  for (const k of drawn) {
    const [x, y] = spot(k), radius = size(k);
    const share = hasCodes ? Math.sqrt((data.active[k] || 0) / busiest) : 0.6;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.globalAlpha = wanted && !wanted.has(k) ? 0.06 : 0.2 + 0.6 * share;
    pen.fillStyle = style.getPropertyValue("--accent");
    pen.fill();
    if (k === chosen) {
      pen.globalAlpha = 1;
      pen.lineWidth = 3;
      pen.strokeStyle = style.getPropertyValue("--bad");
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  if (K > 60) return;
  pen.fillStyle = style.getPropertyValue("--ink");
  pen.font = "12px system-ui, sans-serif";
  for (const k of drawn) {
    const [x, y] = spot(k), right = x > canvas.clientWidth - 40;
    const beside = size(k) + 3;
    pen.textAlign = right ? "right" : "left";
    pen.fillText(k, x + (right ? -beside : beside), y + 4);
  }
}
canvas.addEventListener("click", (event) => {
  const box = canvas.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  let best = -1, least = 20 * 20;
  for (const k of all) {
    const [u, v] = spot(k), far = (u - x) ** 2 + (v - y) ** 2;
    if (far < least) { best = k; least = far; }
  }
  if (best >= 0) show(best);
});
find("controls").addEventListener("submit", (event) => event.preventDefault());
find("search").addEventListener("input", choose);
find("sort").addEventListener("change", choose);
find("twins").addEventListener("change", choose);
find("previous").addEventListener("click", () => { first -= PAGE; render(); });
find("next").addEventListener("click", () => { first += PAGE; render(); });
find("concepts").hidden = false;
new ResizeObserver(draw).observe(find("map-box"));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
choose();
})();
"""
