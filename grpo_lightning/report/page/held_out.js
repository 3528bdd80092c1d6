// Held-out prompts that were answered before and after training, compared word by word; where a run measured first when it went on
// from a checkpoint, after that step.

function buildHeldOut() {
  for (const run of state.runs) {
    const samples = Array.isArray(run.summary.samples) ? run.summary.samples : [];
    if (!samples.length) continue;
    const step = run.summary.step_before, first = step ? `step ${step}` : "before";
    const when = step ? `after ${first} and at the end` : "before and after training";
    const title = `The same held-out prompts ${when}` + (state.runs.length > 1 ? `: ${run.name}` : "");
    byId("held-out").append(make("details", { class: "more", open: state.runs.length === 1 ? "" : null }, make("summary", {}, title),
      make("div", { class: "samples" }, ...samples.map((sample) => heldOutSample(sample, first)))));
  }
}

function heldOutSample({ prompt, before, after, reward_before: first, reward_after: last }, earlier) {
  return make("div", { class: "card" }, make("div", { class: "asked" }, gist(String(prompt))),
    make("div", { class: "text" }, ...compared(String(before), String(after), `${earlier} (reward ${short(first)})`, `after (reward ${short(last)})`)));
}
