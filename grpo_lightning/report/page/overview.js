// The top of the page: what stands out, and the runs in numbers.

const LEVELS = { bad: "✕ Fix", warn: "! Look", info: "i Note" };

const FACTS = [
  ["Reward", (run) => change(edges(run.metrics["reward"]), short)],
  ["Held-out accuracy", (run) => heldOut(run)],
  ["Length, tokens", (run) => change(edges(run.metrics["completions/mean_length"]), short)],
  ["Truncated", (run) => change(edges(run.metrics["completions/clipped_ratio"]), percent)],
  ["Dead groups", (run) => change(edges(run.metrics["frac_reward_zero_std"]), percent)],
  ["Entropy, nats", (run) => change(edges(run.metrics["entropy"]), short)],
  ["Steps", (run) => [String(stepCount(run)), run.elapsed ? `in ${duration(run.elapsed[1].at(-1))}` : ""]],
  ["Tokens/s", (run) => [short(edges(run.metrics["tokens_per_second"])[1]), ""]],
];

function change([first, last], format) {
  if (last === null) return ["–", ""];
  return [format(last), `from ${format(first)}`];
}

function heldOut(run) {
  const summary = run.summary;
  if (summary && typeof summary.strict_after === "number") return [percent(summary.strict_after), `from ${percent(summary.strict_before)}`];
  const series = run.metrics["val/accuracy"];
  return series ? [percent(series[1].at(-1)), `from ${percent(series[1][0])}`] : ["–", ""];
}

const stepCount = (run) => (run.metrics["reward"] ? run.metrics["reward"][0].length : 0);

function buildOverview() {
  const several = state.runs.length > 1;
  state.runs.forEach((run) => {
    for (const notice of run.notices) {
      byId("notices").append(make("div", { class: `notice ${notice.level}` },
        make("span", { class: "level" }, LEVELS[notice.level]),
        make("span", {}, make("b", {}, (several ? run.name + ": " : "") + notice.title + ". "), notice.text)));
    }
  });
  const facts = FACTS.filter(([, of]) => state.runs.some((run) => of(run)[0] !== "–"));
  if (!several) {
    for (const [name, of] of facts) {
      const [value, note] = of(state.runs[0]);
      byId("tiles").append(make("div", { class: "tile" }, make("div", { class: "muted" }, name),
        make("div", { class: "value" }, value + " ", make("small", {}, note))));
    }
    return;
  }
  const head = make("tr", {}, make("th", {}, "Run"), ...facts.map(([name]) => make("th", {}, name)));
  const rows = state.runs.map((run, i) => make("tr", {}, make("td", {}, dot(color(i)), " " + run.name),
    ...facts.map(([, of]) => {
      const [value, note] = of(run);
      return make("td", {}, value + " ", make("span", { class: "muted" }, note));
    })));
  byId("summary").append(make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
}

function buildRunChips(onChange) {
  if (state.runs.length < 2) return;
  const box = byId("runs");
  box.hidden = false;
  state.runs.forEach((run, i) => {
    const toggle = make("input", { type: "checkbox", checked: "", onchange: (event) => { state.shown[i] = event.target.checked; onChange(); } });
    box.append(make("label", {}, toggle, dot(color(i)), run.name));
  });
}
