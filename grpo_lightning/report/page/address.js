// What the reader chose, in the page's address, so that it can be reloaded, kept and sent.

/** Writes the choices that differ from what the page starts with. */
function remember() {
  const chosen = new URLSearchParams();
  const note = (name, value, usual) => { if (value !== usual && value !== null && value !== "") chosen.set(name, String(value)); };
  note("axis", state.axis, "step");
  note("smoothing", state.smoothing, DEFAULTS.smoothing);
  note("log", state.log, false);
  note("together", state.together, false);
  note("large", state.large, "");
  note("metrics", byId("metric-filter").value, "");
  if (state.shown.includes(false)) chosen.set("runs", state.shown.flatMap((shown, i) => (shown ? [i] : [])).join("."));
  for (const [name, usual] of Object.entries(NO_FILTER)) note(name, filter[name], usual);
  note("sort", (sorting.descending ? "-" : "") + sorting.column, "step");
  note("row", list && list.selected >= 0 ? list.rows[list.selected] : null, null);
  const text = chosen.toString();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
}

/** Takes the address's choices over before anything is drawn; returns the row that it names. */
function recall() {
  const chosen = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const number = (name, otherwise) => (chosen.has(name) && Number.isFinite(Number(chosen.get(name))) ? Number(chosen.get(name)) : otherwise);
  if (Object.hasOwn(AXES, chosen.get("axis") ?? "")) state.axis = chosen.get("axis");
  state.smoothing = Math.min(0.98, Math.max(0, number("smoothing", state.smoothing)));
  state.log = chosen.get("log") === "true";
  state.together = chosen.get("together") === "true" && state.seeds.length > 0;
  state.large = chosen.get("large") ?? "";
  byId("metric-filter").value = chosen.get("metrics") ?? "";
  if (chosen.has("runs")) {
    const shown = chosen.get("runs").split(".").map(Number);
    state.shown = state.shown.map((_, i) => shown.includes(i));
  }
  for (const [name, usual] of Object.entries(NO_FILTER)) {
    if (!chosen.has(name)) continue;
    const isNumber = usual === null || typeof usual === "number";
    filter[name] = isNumber ? number(name, usual) : typeof usual === "boolean" ? chosen.get(name) === "true" : chosen.get(name);
  }
  const sort = chosen.get("sort");
  if (sort) Object.assign(sorting, { column: sort.replace(/^-/, ""), descending: sort.startsWith("-") });
  return number("row", null);
}
