// What a card can do: say the value under the cursor, grow, be saved, and lead to the completions of a step.

function cardTools(card) {
  const button = (name, text, hint, action) => make("button", { type: "button", class: name, title: hint, "aria-label": hint, onclick: action }, text);
  return make("span", { class: "tools" },
    button("enlarge", "⤢", "Enlarge", () => enlarge(state.large === card.metric ? "" : card.metric)),
    button("png", "PNG", "Save as an image", () => savePicture(card)),
    button("csv", "CSV", "Save the values", () => save(new Blob([csvOf(card.metric)], { type: "text/csv" }), fileName(card.metric, "csv"))));
}

/** Gives one card the whole width; none with an empty name. */
function enlarge(metric) {
  state.large = metric;
  redraw();
  const card = cards.find((other) => other.metric === metric);
  if (card) card.element.scrollIntoView({ block: "nearest" });
  remember();
}

/** Step and values beside the line under the cursor; cards that only follow it show their line alone. */
function showTip(card, plot) {
  const { left, idx } = plot.cursor;
  const isHere = idx !== null && idx !== undefined && left >= 0 && card.element.matches(":hover");
  card.tip.hidden = !isHere;
  if (!isHere) return;
  const x = plot.data[0][idx], several = card.curves.length > 1;
  const at = card.curves.length ? stepAt(card.curves[0], x) : x;
  const title = `step ${at}` + (state.axis === "step" ? "" : ` · ${short(x)} ${AXES[state.axis]}`);
  const lines = card.curves.map((curve) => {
    const value = spoken(card.metric, valueAt(card, curve, idx)), spread = curve.low ? ` ± ${short(curve.y[curve.steps.indexOf(at)] - curve.low[curve.steps.indexOf(at)])}` : "";
    return make("div", {}, several ? dot(color(curve.index)) : null, value + spread, several ? make("span", { class: "muted" }, " " + curve.name) : null);
  });
  card.tip.replaceChildren(make("b", {}, title), ...lines);
  const width = plot.over.clientWidth;
  Object.assign(card.tip.style, left > width / 2 ? { left: "", right: `${width - left + 8}px` } : { right: "", left: `${left + 8}px` });
}

/** A click, which is no drag, lists the completions of the step under it. */
function chooseStepOnClick(card) {
  let pressed = 0;
  card.plot.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
  card.plot.over.addEventListener("click", (event) => {
    const { idx } = card.plot.cursor;
    if (Math.abs(event.clientX - pressed) > 3 || idx === null || idx === undefined || !card.curves.length) return;
    showCompletionsOf(stepAt(card.curves[0], card.plot.data[0][idx]));
  });
}

const fileName = (metric, kind) => `${metric.replace(/[^A-Za-z0-9._-]+/g, "-")}.${kind}`;

function save(blob, name) {
  const address = URL.createObjectURL(blob), link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** The shown runs' values as they were logged, a row per step; quoted as RFC 4180 has it. */
function csvOf(metric) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const columns = state.runs.filter((run, i) => state.shown[i] && run.metrics[metric]);
  const byStep = columns.map((run) => new Map(run.metrics[metric][0].map((step, i) => [step, run.metrics[metric][1][i]])));
  const steps = [...new Set(byStep.flatMap((values) => [...values.keys()]))].sort((a, b) => a - b);
  const head = ["step", ...columns.map((run) => (columns.length > 1 ? `${run.name}: ${metric}` : metric))].map(quoted);
  return [head, ...steps.map((step) => [step, ...byStep.map((values) => values.get(step) ?? "")])].map((row) => row.join(",") + "\r\n").join("");
}

/** The chart with its title and the runs' names on the page's background. */
function savePicture(card) {
  draw(card);
  const source = card.body.querySelector("canvas"), scale = devicePixelRatio, margin = 40 * scale;
  const canvas = make("canvas", { width: source.width, height: source.height + margin });
  const context = canvas.getContext("2d");
  context.fillStyle = cssColor("--card");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = cssColor("--text");
  context.font = `600 ${14 * scale}px system-ui, sans-serif`;
  context.fillText(label(card.metric)[0], 10 * scale, 17 * scale);
  context.font = `${11 * scale}px system-ui, sans-serif`;
  let left = 10 * scale;
  for (const curve of card.curves) {
    context.fillStyle = cssColor(`--c${curve.index % NUM_COLORS}`);
    context.fillText(curve.name, left, 33 * scale);
    left += context.measureText(curve.name).width + 14 * scale;
  }
  context.drawImage(source, 0, margin);
  canvas.toBlob((blob) => save(blob, fileName(card.metric, "png")));
}
