// The top of the page: what stands out, and the runs in numbers.

const LEVELS = { bad: "✕ Fix", warn: "! Look", info: "i Note" };

const FACTS = [
  ["Reward", (run) => change(edges(run, "reward"), short)],
  ["Held-out accuracy", (run) => change(run.held_out || [null, null], percent)],
  ["Length, tokens", (run) => change(edges(run, "completions/mean_length"), short)],
  ["Truncated", (run) => change(edges(run, "completions/clipped_ratio"), percent)],
  ["Dead groups", (run) => change(edges(run, "frac_reward_zero_std"), percent)],
  ["Entropy, nats", (run) => change(edges(run, "entropy"), short)],
  ["Steps", (run) => [String(run.steps), run.elapsed ? `in ${duration(run.elapsed[1].at(-1))}` : ""]],
  ["Tokens/s", (run) => [short(edges(run, "tokens_per_second")[1]), ""]],
];

function change([first, last], format) {
  if (last === null) return ["–", ""];
  return [format(last), `from ${format(first)}`];
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

function buildOverview() {
  const several = state.runs.length > 1;
  state.runs.forEach((run) => {
    if (run.headline) byId("headlines").append(make("p", { class: "headline" }, (several ? run.name + ": " : "") + (several ? run.headline : sentence(run.headline))));
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
    const toggle = make("input", { type: "checkbox", checked: state.shown[i] ? "" : null, onchange: (event) => { state.shown[i] = event.target.checked; onChange(); } });
    box.append(make("label", {}, toggle, dot(color(i)), run.name));
  });
}
