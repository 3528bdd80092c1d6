// Held-out prompts that were answered before and after training, compared word by word.

function buildHeldOut() {
  for (const run of state.runs) {
    const samples = Array.isArray(run.summary.samples) ? run.summary.samples : [];
    if (!samples.length) continue;
    const title = "The same held-out prompts before and after training" + (state.runs.length > 1 ? `: ${run.name}` : "");
    byId("held-out").append(make("details", { class: "more", open: state.runs.length === 1 ? "" : null }, make("summary", {}, title),
      make("div", { class: "samples" }, ...samples.map(heldOutSample))));
  }
}

function heldOutSample({ prompt, before, after, reward_before: first, reward_after: last }) {
  return make("div", { class: "card" }, make("div", { class: "asked" }, gist(String(prompt))),
    make("div", { class: "text" }, ...compared(String(before), String(after), `before (reward ${short(first)})`, `after (reward ${short(last)})`)));
}
