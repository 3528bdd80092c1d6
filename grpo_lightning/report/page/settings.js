// Settings of the runs, what differs between them, and what they ran on.

function buildSettings() {
  const root = byId("configs"), runs = state.runs;
  if (runs.length > 1) root.append(make("h3", {}, "What differs"), differing(runs));
  root.append(make("h3", {}, "System"), systemTable(runs));
  runs.forEach((run, i) => {
    if (!run.config) return;
    root.append(make("details", { class: "more", open: runs.length === 1 ? "" : null },
      make("summary", {}, runs.length > 1 ? dot(color(i)) : null, ` config.yaml of ${run.name}`),
      make("pre", { class: "config" }, run.config)));
  });
}

function differing(runs) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))].sort();
  const rows = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1);
  if (!rows.length) return make("p", { class: "muted" }, "Nothing: the settings are equal.");
  return compare(runs, rows, (run, key) => run.settings[key]);
}

function systemTable(runs) {
  const flat = runs.map((run) => ({ ...run.system, ...(run.system.packages || {}), launches: run.launches }));
  const keys = [...new Set(flat.flatMap((system) => Object.keys(system)))].filter((key) => key !== "packages");
  const text = (value) => (Array.isArray(value) ? value.join("; ") || "none" : value ?? "–");
  return compare(runs, keys, (run, key) => text(flat[runs.indexOf(run)][key]));
}

function compare(runs, keys, valueOf) {
  const head = make("tr", {}, make("th", {}, ""), ...runs.map((run) => make("th", {}, run.name)));
  const rows = keys.map((key) => make("tr", {}, make("td", {}, key),
    ...runs.map((run) => make("td", { class: "wide" }, String(valueOf(run, key) ?? "–")))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}
