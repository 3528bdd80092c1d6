// One completion in full: its rewards, its group, and how answers to its prompt changed.

function badges(item) {
  const found = [];
  if (isMissing(item.table, item.i)) found.push(make("span", { class: "badge none", title: "A reward gave no value" }, "no reward"));
  if (item.truncated) found.push(make("span", { class: "badge cut", title: "Ran into max_completion_length" }, "truncated"));
  if (item.dead) found.push(make("span", { class: "badge dead", title: "Dead group: all its rewards are equal" }, "dead"));
  return found;
}

/** Text with what was searched for marked. */
function marked(text, query, box = make("div", { class: "text" })) {
  if (!query) return box.append(text), box;
  const pattern = new RegExp(matcher(query).source, "gi");
  let from = 0;
  for (const match of text.matchAll(pattern)) {
    box.append(text.slice(from, match.index), make("mark", {}, match[0]));
    from = match.index + match[0].length;
  }
  box.append(text.slice(from));
  return box;
}

/** The turns of a conversation, as [whose, "role: content" lines with calls]; null for any other text, as a list of a policy's own is. */
function turnsOf(text) {
  if (!text.startsWith("[{")) return null;
  try {
    const messages = JSON.parse(text);
    return messages.every((message) => typeof message.role === "string") ? messages.map((message) => [message.role, turn(message)]) : null;
  } catch {
    return null; // text that only looks like a conversation
  }
}

/** A conversation as lines; any other text as it is. */
function readable(text) {
  return turnsOf(text)?.map(([, lines]) => lines).join("\n\n") ?? text;
}

/** A completion in which what tools and users said is set apart: only the policy's turns are trained on. */
function turnByTurn(text, query) {
  const turns = turnsOf(text);
  if (!turns) return marked(text, query);
  const parts = turns.map(([role, lines]) => marked(lines, query, make("span",
    role === "assistant" ? { class: "own" } : { class: "given", title: "Mask 0: said to the policy, not trained on" })));
  return make("div", { class: "text" }, ...parts.flatMap((part, n) => (n ? ["\n\n", part] : [part])));
}

/** What was said; a block of an image as a mark in its place. */
function said(content) {
  if (!Array.isArray(content)) return content;
  return content.map((block) => (block.type === "image" ? "[image]" : block.text ?? JSON.stringify(block))).join("");
}

/** The images that the prompt shows, as the run stored them: small, and inside this file. */
function thumbnails(item) {
  const shown = item.images.map((source, n) => make("img", { src: source, alt: `Image ${n + 1} of the prompt` }));
  return shown.length ? [make("div", { class: "thumbnails" }, ...shown)] : [];
}

function turn(message) {
  const calls = (message.tool_calls || []).map(({ function: call }) => `${call.name}(${JSON.stringify(call.arguments)})`);
  const who = message.role === "tool" && message.name ? `tool ${message.name}` : message.role;
  return `${who}: ${[said(message.content), ...calls].filter(Boolean).join("\n")}`;
}

/** What was asked, without the system prompt and earlier turns: one line of the list. */
function gist(prompt) {
  return readable(prompt).split(/(?:^|\n\n)user: /).at(-1);
}

function showDetail(all, row, query, choose) {
  const item = all.get(row), panel = byId("detail");
  const group = all.related(item, true);
  const close = make("button", { class: "close", type: "button", onclick: () => openDetail(false) }, "Close");
  const run = state.runs.length > 1 ? ` · ${state.runs[item.run].name}` : "";
  const values = Object.entries({
    reward: short(item.reward), ...Object.fromEntries(Object.entries(item.rewards).map(([name, value]) => ["· " + name, short(value)])),
    advantage: short(item.advantage), tokens: String(item.length), "mean logprob": short(item.logprob) + " nats",
    ...parsedExtras(item.extras),
  });
  panel.replaceChildren(
    make("div", { class: "title" }, `Step ${item.step} · prompt ${item.uid} · ${item.sample + 1} of ${group.length}${run}`, close),
    make("div", {}, ...badges(item)),
    make("h3", {}, "Prompt"), ...thumbnails(item), marked(readable(item.prompt), query),
    make("h3", {}, "Completion"), turnByTurn(item.completion, query),
    make("h3", {}, "Values"), make("div", { class: "values" }, ...values.flatMap(([name, value]) => [make("span", {}, name), make("span", {}, value)])),
    make("h3", {}, "Its group"), members(all, group, row, choose),
    ...changes(all, item),
  );
  panel.scrollTop = 0;
  openDetail(true);
}

/** Beside the list, which has the whole width otherwise; on a phone over it. */
function openDetail(isOpen) {
  byId("detail").classList.toggle("open", isOpen);
  document.querySelector(".browser").classList.toggle("reading", isOpen);
}

function parsedExtras(text) {
  let entries = [["columns", text]];
  try {
    entries = Object.entries(JSON.parse(text || "{}") || {});
  } catch {
    // of another program, or with numbers that JSON does not have
  }
  return Object.fromEntries(entries.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]));
}

function members(all, rows, chosen, choose) {
  const items = rows.map((row) => all.get(row)).sort((a, b) => b.advantage - a.advantage);
  return make("div", { class: "members" }, ...items.map((item) => make("button", {
    type: "button", class: item.row === chosen ? "selected" : "", onclick: () => choose(item.row),
  }, make("span", {}, "#" + (item.sample + 1)), make("span", {}, short(item.reward)), make("span", {}, readable(item.completion)))));
}

/** Two texts as one, what only one of them has marked, after a line that says so; or that they are equal. */
function compared(before, after, first, second) {
  if (before === after) return [make("p", { class: "legend" }, first === second ? "One text, compared with itself." : `Word for word the same in ${first} and ${second}.`), before];
  return [
    make("p", { class: "legend" }, make("del", {}, `only in ${first}`), " ", make("ins", {}, `only in ${second}`)),
    ...difference(before, after).map(([kind, part]) => (kind === "same" ? part : make(kind, {}, part))),
  ];
}

/** The same prompt at another step: the best completion of each, word by word. */
function changes(all, item) {
  const rows = all.related(item, false), best = new Map();
  for (const row of rows) {
    const other = all.get(row), kept = best.get(other.step);
    if (!kept || (other.reward ?? -Infinity) > (kept.reward ?? -Infinity)) best.set(other.step, other);
  }
  const steps = [...best.keys()].sort((a, b) => a - b);
  if (steps.length < 2) return [make("h3", {}, "The same prompt at other steps"), make("p", { class: "muted" }, "It came up in this step only.")];
  const text = make("div", { class: "text", id: "diff" });
  const pick = (name, chosen) => make("select", { id: name, onchange: () => update() }, ...steps.map((step) =>
    make("option", { value: step, selected: step === chosen ? "" : null }, `step ${step} · reward ${short(best.get(step).reward)}`)));
  const from = pick("diff-from", steps[0]), to = pick("diff-to", steps[steps.length - 1]);
  const update = () => {
    const a = best.get(Number(from.value)), b = best.get(Number(to.value));
    text.replaceChildren(...compared(readable(a.completion), readable(b.completion), `step ${a.step}`, `step ${b.step}`));
  };
  update();
  return [make("h3", {}, `The same prompt at ${steps.length} steps: the best completion of each`),
    make("div", { class: "pick" }, "from", from, "to", to), text];
}
