// Puts the page together.

const NO_FILTER = { text: "", fromStep: -Infinity, toStep: Infinity, uid: null, fromReward: null, toReward: null, dead: false, truncated: false, missing: false };
const sorting = { column: "step", descending: false };
const filter = { ...NO_FILTER };
let all = null, list = null;

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function refresh() {
  const rows = sortRows(all, filtered(all, filter), sorting.column, sorting.descending);
  list.show(rows);
  const tables = all.tables.filter(Boolean), total = tables.reduce((sum, table) => sum + table.total, 0);
  const left = total > all.size ? ` (${total.toLocaleString("en")} on disk)` : "";
  byId("count").textContent = `${rows.length.toLocaleString("en")} of ${all.size.toLocaleString("en")}${left}`;
  remember();
}

/** Lists the completions of a step, or of the nearest one that has some. */
function showCompletionsOf(step) {
  if (!all || !all.size) return;
  const steps = [...new Set(all.tables.flatMap((table, run) => (table && state.shown[run] ? table.step : [])))];
  if (!steps.length) return;
  const nearest = steps.reduce((best, other) => (Math.abs(other - step) < Math.abs(best - step) ? other : best));
  Object.assign(filter, { ...NO_FILTER, fromStep: nearest, toStep: nearest });
  fillFilters();
  refresh();
  byId("completions").scrollIntoView();
}

function later(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

function buildCompletions(row) {
  all = new Completions(state.completions);
  if (!all.size) {
    byId("count").textContent = "This run wrote none.";
    document.querySelector(".browser").hidden = true;
    document.querySelector(".browser").style.display = "none";
    return;
  }
  const show = (shown) => { showDetail(all, shown, filter.text, show); remember(); };
  list = new VirtualTable(byId("rows"), byId("spacer"), fillRow, show);
  buildFilters();
  buildColumns();
  refresh();
  const at = row === null ? -1 : list.rows.indexOf(row);
  if (at >= 0) list.reveal(at);
}

/** Controls of the curves, as the address has them. */
function buildControls() {
  const chart = (change) => { change(); redraw(); remember(); };
  const switched = (id, name) => {
    byId(id).checked = state[name];
    byId(id).addEventListener("change", (event) => chart(() => { state[name] = event.target.checked; }));
  };
  byId("smoothing").value = state.smoothing;
  byId("smoothing").addEventListener("input", (event) => chart(() => { state.smoothing = Number(event.target.value); }));
  byId("axis").value = state.axis;
  byId("axis").addEventListener("change", (event) => chart(() => { state.axis = event.target.value; }));
  switched("log", "log");
  switched("together", "together");
  byId("seeds").hidden = !state.seeds.length;
  byId("metric-filter").addEventListener("input", (event) => { filterMetrics(event.target.value); remember(); });
  if (byId("metric-filter").value) filterMetrics(byId("metric-filter").value);
  byId("theme").addEventListener("click", () => { setTheme(theme() === "dark" ? "light" : "dark"); redraw(); });
  window.addEventListener("resize", later(redraw, 200));
  window.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.large) enlarge(""); });
  document.querySelectorAll("nav a").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault(); // the address holds what was chosen
    document.querySelector(link.getAttribute("href")).scrollIntoView();
  }));
}

async function start() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const overview = await decode("data-overview");
  // Metrics may be called constructor: no object has them by itself.
  const named = (values) => Object.assign(Object.create(null), values);
  state.runs = overview.runs.map((run) => ({ ...run, metrics: named(run.metrics), edges: named(run.edges), settings: named(run.settings) }));
  state.seeds = overview.seeds;
  state.shown = overview.runs.map(() => true);
  for (const run of state.runs) {
    const times = run.metrics["step_time"];
    let seconds = 0;
    if (times) run.elapsed = [times[0], times[1].map((value) => (seconds += value))];
    if (times) run.hours = [times[0], run.elapsed[1].map((value) => value / 3600)];
  }
  const row = recall();
  buildOverview();
  buildHeldOut();
  buildCharts();
  buildSettings();
  const update = () => { redraw(); if (list) refresh(); else remember(); };
  buildRunChips(update);
  document.documentElement.style.scrollPaddingTop = `${document.querySelector(".top").offsetHeight + 4}px`;
  buildControls();
  const ages = state.runs.map((run) => `${run.name} last wrote ${duration(run.age)} before`);
  byId("footer").textContent = `Made ${overview.made} by grpo_lightning ${overview.version}; ${ages.join(", ")}. Curves drawn by uPlot (MIT).`;
  await new Promise((resolve) => setTimeout(resolve)); // curves first, then the long part
  state.completions = await decode("data-completions");
  buildCompletions(row);
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("notices").append(make("div", { class: "notice bad" }, `This page could not be drawn: ${error.message}. A browser of 2023 or later is needed.`));
  throw error;
});
