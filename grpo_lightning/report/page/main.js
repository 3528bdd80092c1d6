// Puts the page together.

const COLUMNS = [
  ["step", "Step", "3.2rem", true], ["prompt", "Prompt", "minmax(0, 1fr)", false], ["completion", "Completion", "minmax(0, 2fr)", false],
  ["reward", "Reward", "4.2rem", true], ["advantage", "Advantage", "4.8rem", true], ["length", "Tokens", "3.6rem", true],
  ["flags", "Stands out", "9.5rem", false],
];

const sorting = { column: "step", descending: false };
const filter = { text: "", fromStep: -Infinity, toStep: Infinity, uid: null, fromReward: null, toReward: null, dead: false, truncated: false, missing: false };
let all = null, list = null;

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function fillRow(element, row) {
  const item = all.get(row);
  if (!element.childElementCount) {
    for (const [name, , , number] of COLUMNS) element.append(make("span", { class: name + (number ? " number" : ""), role: "gridcell" }));
  }
  const [step, prompt, completion, reward, advantage, length, flags] = element.children;
  step.textContent = item.step;
  prompt.textContent = gist(item.prompt).slice(0, 300);
  completion.textContent = item.completion.slice(0, 400);
  reward.textContent = short(item.reward);
  advantage.textContent = short(item.advantage);
  advantage.className = "advantage number " + (item.advantage > 0 ? "plus" : item.advantage < 0 ? "minus" : "");
  length.textContent = item.length;
  flags.replaceChildren(...badges(item));
  if (state.runs.length > 1) {
    element.classList.add("of-run");
    element.style.setProperty("--run", color(item.run));
  }
}

function refresh() {
  const rows = sortRows(all, filtered(all, filter), sorting.column, sorting.descending);
  list.show(rows);
  const tables = all.tables.filter(Boolean), total = tables.reduce((sum, table) => sum + table.total, 0);
  const left = total > all.size ? ` (${total.toLocaleString("en")} on disk)` : "";
  byId("count").textContent = `${rows.length.toLocaleString("en")} of ${all.size.toLocaleString("en")}${left}`;
}

function later(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

function buildFilters() {
  const form = byId("filters"), soon = later(refresh, 160);
  const number = (value, otherwise) => (value.trim() === "" || Number.isNaN(Number(value)) ? otherwise : Number(value));
  const field = (id, type, hint, set) => make("input", { id, type, step: "any", placeholder: hint, "aria-label": hint, oninput: (event) => { set(event.target.value); soon(); } });
  const check = (id, text) => make("label", { class: "check" }, make("input", { id, type: "checkbox", onchange: (event) => { filter[id] = event.target.checked; refresh(); } }), text);
  const [low, high] = all.steps.length ? [Math.min(...all.steps), Math.max(...all.steps)] : [0, 0];
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    Object.assign(filter, { text: "", fromStep: -Infinity, toStep: Infinity, uid: null, fromReward: null, toReward: null, dead: false, truncated: false, missing: false });
    soon();
  });
  form.append(
    field("search", "search", "Search prompts and completions", (value) => { filter.text = value; }),
    make("label", {}, "Steps", field("from-step", "number", String(low), (value) => { filter.fromStep = number(value, -Infinity); }),
      "–", field("to-step", "number", String(high), (value) => { filter.toStep = number(value, Infinity); })),
    make("label", {}, "Reward", field("from-reward", "number", "min", (value) => { filter.fromReward = number(value, null); }),
      "–", field("to-reward", "number", "max", (value) => { filter.toReward = number(value, null); })),
    make("label", {}, "Prompt", field("uid", "number", "any", (value) => { filter.uid = number(value, null); })),
    check("dead", "dead groups"), check("truncated", "truncated"), check("missing", "no reward"),
    make("button", { type: "reset" }, "Clear"),
  );
}

function buildColumns() {
  const head = byId("columns");
  document.documentElement.style.setProperty("--grid", COLUMNS.map(([, , width]) => width).join(" "));
  const update = () => head.replaceChildren(...COLUMNS.map(([column, title, , isNumber]) => {
    const active = sorting.column === column;
    return make("button", {
      type: "button", class: isNumber ? "number" : "", "data-sort": column, "aria-sort": active ? (sorting.descending ? "descending" : "ascending") : null,
      onclick: () => {
        Object.assign(sorting, { column, descending: active ? !sorting.descending : isNumber && column !== "step" });
        update();
        refresh();
      },
    }, title + (active ? (sorting.descending ? " ↓" : " ↑") : ""));
  }));
  update();
}

function buildCompletions() {
  all = new Completions(state.completions);
  if (!all.size) {
    byId("count").textContent = "This run wrote none.";
    document.querySelector(".browser").hidden = true;
    document.querySelector(".browser").style.display = "none";
    return;
  }
  const show = (row) => showDetail(all, row, filter.text, show);
  list = new VirtualTable(byId("rows"), byId("spacer"), fillRow, show);
  buildFilters();
  buildColumns();
  refresh();
}

async function start() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const overview = await decode("data-overview");
  // Metrics may be called constructor: no object has them by itself.
  const named = (values) => Object.assign(Object.create(null), values);
  state.runs = overview.runs.map((run) => ({ ...run, metrics: named(run.metrics), settings: named(run.settings) }));
  state.shown = overview.runs.map(() => true);
  for (const run of state.runs) {
    const times = run.metrics["step_time"];
    let seconds = 0;
    if (times) run.elapsed = [times[0], times[1].map((value) => (seconds += value))];
    if (times) run.hours = [times[0], run.elapsed[1].map((value) => value / 3600)];
  }
  buildOverview();
  buildCharts();
  buildSettings();
  const update = () => { redraw(); if (list) refresh(); };
  buildRunChips(update);
  document.documentElement.style.scrollPaddingTop = `${document.querySelector(".top").offsetHeight + 4}px`;
  byId("smoothing").addEventListener("input", (event) => { state.smoothing = Number(event.target.value); redraw(); });
  byId("axis").addEventListener("change", (event) => { state.axis = event.target.value; redraw(); });
  byId("metric-filter").addEventListener("input", (event) => filterMetrics(event.target.value));
  byId("theme").addEventListener("click", () => { setTheme(theme() === "dark" ? "light" : "dark"); redraw(); });
  window.addEventListener("resize", later(redraw, 200));
  const ages = state.runs.map((run) => `${run.name} last wrote ${duration(run.age)} before`);
  byId("footer").textContent = `Made ${overview.made} by grpo_lightning ${overview.version}; ${ages.join(", ")}. Curves drawn by uPlot (MIT).`;
  await new Promise((resolve) => setTimeout(resolve)); // curves first, then the long part
  state.completions = await decode("data-completions");
  buildCompletions();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("notices").append(make("div", { class: "notice bad" }, `This page could not be drawn: ${error.message}. A browser of 2023 or later is needed.`));
  throw error;
});
