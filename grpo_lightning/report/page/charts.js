// Cards: one per metric, drawn by uPlot when they come into view.

const cards = []; // {metric, element, body, now, tip, plot, curves}
const sync = uPlot.sync("curves");
const watcher = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.isIntersecting && draw(cards.find((card) => card.element === entry.target))),
  { rootMargin: "300px" },
);

function buildCharts() {
  const all = [...new Set(state.runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => name !== "epoch").sort();
  const left = new Set(all);
  const root = byId("charts");
  for (const [title, patterns] of GROUPS) {
    const metrics = patterns.flatMap((pattern) => all.filter((name) => left.has(name) && matches(pattern, name) && left.delete(name)));
    if (metrics.length) root.append(make("div", { class: "group" }, make("h3", {}, title), grid(metrics)));
    if (metrics.length && title === "Time") root.lastChild.append(timeShares());
  }
  if (left.size) {
    const rest = grid([...left]);
    root.append(make("details", { class: "more group" }, make("summary", {}, `${left.size} more metrics`), rest));
  }
}

function grid(metrics) {
  const element = make("div", { class: "charts" });
  for (const metric of metrics) {
    const [title, meaning] = label(metric);
    const card = { metric, now: make("span", { class: "now" }), body: make("div", { class: "plot" }), tip: make("div", { class: "tip", hidden: "" }), plot: null, curves: [] };
    card.element = make("div", { class: "card", "data-metric": metric, title: meaning ? `${metric}: ${meaning}` : metric },
      make("header", {}, make("span", { class: "name" }, title), card.now, cardTools(card)), card.body);
    cards.push(card);
    element.append(card.element);
    watcher.observe(card.element);
  }
  return element;
}

function draw(card) {
  if (!card || card.plot) return;
  const { data, series, bands, curves, isLog } = seriesOf(card.metric);
  card.curves = curves;
  card.element.hidden = !curves.length;
  if (!curves.length) return;
  const large = state.large === card.metric, width = Math.max(200, card.element.clientWidth - 24);
  card.element.classList.toggle("large", large);
  card.plot = new uPlot({
    width,
    height: large ? Math.max(320, Math.round(window.innerHeight * 0.6)) : 190,
    series,
    bands,
    padding: [10, 14, 0, 0],
    cursor: { sync: { key: "curves", setSeries: false }, points: { size: 5 }, y: false, drag: { x: true, y: false } },
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low, high]) }, y: { distr: isLog ? 3 : 1, ...(isNothing(data) ? { range: [0, 1] } : {}) } },
    axes: axesOf(card.metric, isLog, width),
    hooks: { setCursor: [(plot) => showNow(card, plot.cursor.idx), (plot) => showTip(card, plot)] },
  }, data, card.body);
  card.plot.over.append(card.tip);
  chooseStepOnClick(card);
  sync.sub(card.plot);
  showNow(card, null);
}

/** The last value at or before a point of the horizontal axis. */
function valueAt(card, curve, index) {
  const column = card.plot.data[curve.column];
  let at = index;
  while (at > 0 && (column[at] === null || column[at] === undefined)) at--;
  return column[at];
}

const spoken = (metric, value) => (unit(metric) === "share" ? percent(value) : short(value)); // as in tiles

/** Values under the cursor, or those that the tiles have too, next to the card's name. */
function showNow(card, index) {
  const items = card.curves.map((curve) => {
    const ends = curve.members.map((run) => (card.metric === "val/accuracy" && state.runs[run].held_out ? state.runs[run].held_out : edges(state.runs[run], card.metric))[1]);
    let value = ends.some((end) => end === null) ? null : ends.reduce((sum, end) => sum + end, 0) / ends.length;
    if (card.plot && index !== null && index !== undefined) value = valueAt(card, curve, index);
    return make("span", {}, state.runs.length > 1 ? dot(color(curve.index)) : null, spoken(card.metric, value));
  });
  card.now.replaceChildren(...items);
}

function redraw() {
  for (const card of cards) {
    if (card.plot) card.plot.destroy();
    card.plot = null;
    watcher.unobserve(card.element);
    card.element.classList.toggle("large", state.large === card.metric);
    card.element.hidden = !state.runs.some((run, i) => state.shown[i] && run.metrics[card.metric]);
    watcher.observe(card.element);
  }
}

function filterMetrics(query) {
  for (const card of cards) {
    const text = card.metric + " " + label(card.metric)[0];
    card.element.style.display = text.toLowerCase().includes(query.toLowerCase()) ? "" : "none";
  }
  document.querySelectorAll("#charts .group").forEach((group) => {
    if (group.tagName === "DETAILS" && query) group.open = true;
    const empty = [...group.querySelectorAll(".card")].every((card) => card.style.display === "none");
    group.style.display = empty ? "none" : "";
  });
}

/** Where the time of a step goes, as one bar per run; a phase has one colour in all of them. */
function timeShares() {
  const box = make("div", { class: "shares" });
  const names = [...new Set(state.runs.flatMap((run) => Object.keys(run.phases)))].filter((name) => name !== "other");
  const ink = (name) => (name === "other" ? "var(--line)" : color(names.indexOf(name)));
  for (const run of state.runs) {
    const parts = Object.entries(run.phases), total = parts.reduce((sum, [, seconds]) => sum + seconds, 0);
    if (!total) continue;
    const bar = parts.map(([name, seconds]) => make("i", { style: { flexGrow: String(seconds / total), background: ink(name) } }));
    const keys = parts.map(([name, seconds]) => make("span", {}, dot(ink(name)), `${name.replaceAll("_", " ")} ${percent(seconds / total)}`));
    box.append(make("div", {}, make("p", { class: "muted" }, `Mean step of ${run.name}: ${short(total)} s`),
      make("div", { class: "stack" }, ...bar), make("div", { class: "keys" }, ...keys)));
  }
  return box;
}
