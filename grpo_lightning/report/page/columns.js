// The columns of the list of completions, and its filters.

/** [name, title, width, whether it is a number]; each reward has its own. */
function columns() {
  const rewards = all.names.length > 1 || all.names.some((name) => name !== "reward") ? all.names : [];
  return [
    ["step", "Step", "3.4rem", true], ["prompt", "Prompt", "minmax(5.4rem, 2fr)", false], ["completion", "Completion", "minmax(11rem, 6fr)", false],
    ["reward", "Reward", "4rem", true], ...rewards.map((name) => ["rewards/" + name, name, "4.8rem", true]),
    ["advantage", "Advantage", "5.2rem", true], ["length", "Tokens", "3.6rem", true], ["flags", "Stands out", "5.8rem", false],
  ];
}

const NARROWEST = 44.5; // rem of the columns that are no reward's, with the gaps between them

function fillRow(element, row) {
  const item = all.get(row), shown = list ? list.columns : columns();
  if (element.childElementCount !== shown.length) {
    element.replaceChildren(...shown.map(([name, , , number]) => make("span", { class: (name.startsWith("rewards/") ? "part" : name) + (number ? " number" : ""), role: "gridcell", "data-column": name })));
  }
  shown.forEach(([name, title], i) => {
    const cell = element.children[i];
    if (name === "prompt") cell.textContent = gist(item.prompt).slice(0, 300);
    else if (name === "completion") cell.textContent = readable(item.completion).slice(0, 600);
    else if (name === "flags") cell.replaceChildren(...badges(item));
    else if (name.startsWith("rewards/")) cell.textContent = short(Object.hasOwn(item.rewards, title) ? item.rewards[title] : null);
    else if (name === "reward" || name === "advantage") cell.textContent = short(item[name]);
    else cell.textContent = item[name];
    if (name === "advantage") cell.className = "advantage number " + (item.advantage > 0 ? "plus" : item.advantage < 0 ? "minus" : "");
  });
  if (state.runs.length > 1) {
    element.classList.add("of-run");
    element.style.setProperty("--run", color(item.run));
  }
}

function buildColumns() {
  const head = byId("columns"), shown = columns();
  list.columns = shown;
  const sheet = byId("sheet");
  sheet.style.setProperty("--grid", shown.map(([, , width]) => width).join(" "));
  sheet.style.setProperty("--sheet", `${NARROWEST + 5.5 * (shown.length - 7)}rem`);
  const update = () => head.replaceChildren(...shown.map(([column, title, , isNumber]) => {
    const active = sorting.column === column, arrow = active ? (sorting.descending ? "↓" : "↑") : "";
    return make("button", {
      type: "button", class: isNumber ? "number" : "", title: `Sort by ${title}`, "data-sort": column, "aria-sort": active ? (sorting.descending ? "descending" : "ascending") : null,
      onclick: () => {
        Object.assign(sorting, { column, descending: active ? !sorting.descending : isNumber && column !== "step" });
        update();
        refresh();
      },
    }, make("span", { class: "title" }, title), active ? make("span", { class: "arrow" }, " " + arrow) : null);
  }));
  if (!shown.some(([column]) => column === sorting.column)) Object.assign(sorting, { column: "step", descending: false });
  update();
  hintScroll(byId("sheet").parentElement);
  hintScroll(head);
}

/** Fades the side of a box towards which there is more to scroll to. */
function hintScroll(box) {
  const update = () => {
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    box.classList.toggle("more-left", box.scrollLeft > 2);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
  update();
}

const FIELDS = { search: "text", "from-step": "fromStep", "to-step": "toStep", "from-reward": "fromReward", "to-reward": "toReward", uid: "uid" };

/** Puts the filter's values into its fields. */
function fillFilters() {
  for (const [id, name] of Object.entries(FIELDS)) byId(id).value = filter[name] === NO_FILTER[name] ? "" : filter[name];
  for (const name of ["dead", "truncated", "missing"]) byId(name).checked = filter[name];
}

function buildFilters() {
  const form = byId("filters"), soon = later(refresh, 160);
  const read = (name, text) => {
    const isText = NO_FILTER[name] === "", value = text.trim();
    filter[name] = isText ? text : value === "" || Number.isNaN(Number(value)) ? NO_FILTER[name] : Number(value);
    soon();
  };
  const field = (id, type, hint) => make("input", { id, type, step: "any", placeholder: hint, "aria-label": hint, oninput: (event) => read(FIELDS[id], event.target.value) });
  const check = (id, text) => make("label", { class: "check" }, make("input", { id, type: "checkbox", onchange: (event) => { filter[id] = event.target.checked; refresh(); } }), text);
  const [low, high] = all.steps.length ? [Math.min(...all.steps), Math.max(...all.steps)] : [0, 0];
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => { Object.assign(filter, NO_FILTER); soon(); });
  form.append(
    field("search", "search", "Search all texts"),
    make("label", {}, "Steps", field("from-step", "number", String(low)), "–", field("to-step", "number", String(high))),
    make("label", {}, "Reward", field("from-reward", "number", "min"), "–", field("to-reward", "number", "max")),
    make("label", {}, "Prompt", field("uid", "number", "any")),
    check("dead", "dead groups"), check("truncated", "truncated"), check("missing", "no reward"),
    make("button", { type: "reset" }, "Clear"),
  );
  fillFilters();
}
