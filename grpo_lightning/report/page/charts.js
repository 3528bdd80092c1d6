// Curves: one card per metric, all runs in it, drawn by uPlot when they come into view.

const GROUPS = [
  ["Is it learning?", ["reward", "rewards/*/mean", "val/accuracy", "val/*", "frac_reward_zero_std", "reward_group_std", "reward_std"]],
  ["Completions", ["completions/mean_length", "completions/clipped_ratio", "completions/max_length", "completions/mean_terminated_length", "rewards/*/errors"]],
  ["Policy", ["entropy", "kl", "clip_ratio/region_mean", "grad_norm", "loss", "learning_rate"]],
  ["Sampler against trainer", ["sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/mean", "sampling/effective_sample_size"]],
  ["Time", ["step_time", "tokens_per_second", "time/*"]],
];

const LABELS = {
  "reward": ["Reward", "Mean weighted sum of all rewards"],
  "frac_reward_zero_std": ["Dead groups", "Share of groups whose rewards are all equal: they teach nothing"],
  "reward_group_std": ["Reward spread in a group", "Mean standard deviation of rewards inside a group"],
  "reward_std": ["Reward spread in a batch", "Standard deviation of rewards over the batch"],
  "completions/mean_length": ["Length", "Mean tokens of a completion"],
  "completions/clipped_ratio": ["Truncated", "Share of completions that ran into max_completion_length"],
  "completions/max_length": ["Longest completion", "Tokens"],
  "completions/mean_terminated_length": ["Length of ended completions", "Mean tokens of those that were not truncated"],
  "entropy": ["Entropy", "Nats per token"],
  "kl": ["KL to the reference", "Nats per token"],
  "clip_ratio/region_mean": ["Clipped tokens", "Share of tokens whose gradient was clipped"],
  "grad_norm": ["Gradient norm", "Before clipping"],
  "loss": ["Loss", "Not a measure of progress in GRPO"],
  "learning_rate": ["Learning rate", ""],
  "sampling/sampling_logp_difference/mean": ["Mismatch, mean", "Nats per token between the sampler's and the trainer's logprobs"],
  "sampling/sampling_logp_difference/max": ["Mismatch, largest", "Nats"],
  "sampling/importance_sampling_ratio/mean": ["Importance ratio", "Mean correction for the sampler"],
  "sampling/effective_sample_size": ["Effective sample size", "1 where the sampler and the trainer agree"],
  "step_time": ["Step time", "Seconds"],
  "tokens_per_second": ["Speed", "Completion tokens per second, over the whole step"],
};

const SHARES = new Set(["frac_reward_zero_std", "completions/clipped_ratio", "val/accuracy"]); // read as per cent, in cards as in tiles

const cards = []; // {metric, element, plot}
const sync = uPlot.sync("curves");
const watcher = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.isIntersecting && draw(cards.find((card) => card.element === entry.target))),
  { rootMargin: "300px" },
);

function label(metric) {
  if (Object.hasOwn(LABELS, metric)) return LABELS[metric];
  const parts = metric.match(/^rewards\/(.+)\/mean$/);
  if (parts) return ["Reward: " + parts[1], "Mean of this reward"];
  const errors = metric.match(/^rewards\/(.+)\/errors$/);
  if (errors) return ["Errors of reward " + errors[1], "Completions it failed on"];
  if (metric === "time/rewards/wait") return ["Seconds: waiting for rewards", "Of a step, inside its phases"];
  const calls = metric.match(/^time\/rewards\/(.+?)(\/max)?$/);
  if (calls) return [`Seconds of a call: ${calls[1]}${calls[2] ? ", longest" : ""}`, "Of this reward, at the same time as others"];
  if (metric.startsWith("time/")) return ["Seconds: " + metric.slice(5).replaceAll("_", " "), "Of a step"];
  if (metric.startsWith("val/")) return ["Held out: " + metric.slice(4), "Validation"];
  return [metric, ""];
}

function matches(pattern, metric) {
  if (!pattern.includes("*")) return pattern === metric;
  const [before, after] = pattern.split("*");
  return metric.startsWith(before) && metric.endsWith(after) && metric.length >= before.length + after.length;
}

function buildCharts() {
  const all = [...new Set(state.runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => name !== "epoch").sort();
  const left = new Set(all);
  const root = byId("charts");
  for (const [title, patterns] of GROUPS) {
    const metrics = patterns.flatMap((pattern) => all.filter((name) => left.has(name) && matches(pattern, name) && left.delete(name)));
    if (metrics.length) root.append(make("div", { class: "group" }, make("h3", {}, title), grid(metrics)));
    if (title === "Time") root.lastChild.append(timeShares());
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
    const now = make("span", { class: "now" });
    const body = make("div", { class: "plot" });
    const card = make("div", { class: "card", "data-metric": metric, title: meaning ? `${metric}: ${meaning}` : metric },
      make("header", {}, make("span", { class: "name" }, title), now), body);
    cards.push({ metric, element: card, body, now, plot: null });
    element.append(card);
    watcher.observe(card);
  }
  return element;
}

function xValues(run, steps) {
  if (state.axis === "step") return steps;
  const source = state.axis === "tokens" ? run.metrics["num_tokens"] : run.hours;
  if (!source) return steps;
  let i = 0;
  return steps.map((step) => {
    while (i + 1 < source[0].length && source[0][i + 1] <= step) i++;
    return source[1][i];
  });
}

function smoothed(values, weight) {
  let total = 0, norm = 0;
  return values.map((value) => {
    total = weight * total + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return total / norm;
  });
}

function seriesOf(metric) {
  const tables = [], series = [{}], owners = [];
  state.runs.forEach((run, index) => {
    const data = run.metrics[metric];
    if (!state.shown[index] || !data) return;
    const x = xValues(run, data[0]), ink = cssColor(`--c${index % NUM_COLORS}`), sparse = data[0].length < 3;
    const smooth = state.smoothing > 0 && data[0].length > 4;
    tables.push([x, data[1], smooth ? smoothed(data[1], state.smoothing) : data[1]]);
    series.push({ stroke: ink + (smooth ? "40" : "00"), width: 1, points: { show: false }, spanGaps: true });
    series.push({ stroke: ink, width: 2, points: { show: sparse, size: 6, fill: ink }, spanGaps: true });
    owners.push(index);
  });
  return { data: tables.length ? uPlot.join(tables) : [[], []], series, owners };
}

function draw(card) {
  if (!card || card.plot) return;
  const { data, series, owners } = seriesOf(card.metric);
  card.owners = owners;
  card.element.hidden = !owners.length;
  if (!owners.length) return;
  const grid = { stroke: cssColor("--line"), width: 1 }, ticks = { show: false }, stroke = cssColor("--muted");
  const font = "11px system-ui, sans-serif";
  card.plot = new uPlot({
    width: Math.max(200, card.element.clientWidth - 24),
    height: 170,
    series,
    padding: [10, 8, 0, 0],
    cursor: { sync: { key: "curves", setSeries: false }, points: { size: 5 }, y: false, drag: { x: true, y: false } },
    scales: { x: { time: false } },
    axes: [
      { stroke, font, grid: { show: false }, ticks, size: 26, values: (_, ticks) => ticks.map(short) },
      { stroke, font, grid, ticks, size: 52, values: (_, ticks) => ticks.map(short) },
    ],
    hooks: { setCursor: [(plot) => showNow(card, plot.cursor.idx)] },
  }, data, card.body);
  sync.sub(card.plot);
  showNow(card, null);
}

/** Values under the cursor, or those that the tiles have too, next to the card's name. */
function showNow(card, index) {
  const items = card.owners.map((run, i) => {
    const column = card.plot ? card.plot.data[2 * i + 1] : [];
    let at = index, value = edges(state.runs[run], card.metric)[1];
    if (card.metric === "val/accuracy" && state.runs[run].held_out) value = state.runs[run].held_out[1];
    if (index !== null && index !== undefined) {
      while (at > 0 && (column[at] === null || column[at] === undefined)) at--;
      value = column[at];
    }
    const many = state.runs.length > 1;
    return make("span", {}, many ? dot(color(run)) : null, SHARES.has(card.metric) ? percent(value) : short(value));
  });
  card.now.replaceChildren(...items);
}

function redraw() {
  for (const card of cards) {
    if (card.plot) card.plot.destroy();
    card.plot = null;
    watcher.unobserve(card.element);
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
