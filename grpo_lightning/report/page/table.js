// The list of completions: only the rows in view exist as elements.

class VirtualTable {
  constructor(container, spacer, fill, onSelect) {
    Object.assign(this, { container, spacer, fill, onSelect, rows: new Int32Array(0), pool: [], columns: [], selected: -1 });
    container.addEventListener("scroll", () => this.render(), { passive: true });
    container.addEventListener("keydown", (event) => this.onKey(event));
    container.addEventListener("click", (event) => {
      const element = event.target.closest(".row");
      if (element) this.select(Number(element.dataset.at));
    });
    new ResizeObserver(() => this.render(true)).observe(container);
  }

  get rowHeight() {
    return matchMedia("(max-width: 640px)").matches ? 84 : 34;
  }

  show(rows) {
    this.rows = rows;
    this.selected = -1;
    this.container.scrollTop = 0;
    this.render(true);
  }

  render(force = false) {
    const height = this.rowHeight, first = Math.max(0, Math.floor(this.container.scrollTop / height) - 4);
    const count = Math.min(this.rows.length - first, Math.ceil(this.container.clientHeight / height) + 8);
    if (!force && first === this.first && count === this.count) return;
    Object.assign(this, { first, count });
    this.spacer.style.height = `${this.rows.length * height}px`;
    while (this.pool.length < count) {
      const element = make("div", { class: "row", role: "row" });
      this.pool.push(element);
      this.container.append(element);
    }
    this.pool.forEach((element, i) => {
      const at = first + i, used = i < count;
      element.style.display = used ? "" : "none";
      if (!used) return;
      element.style.top = `${at * height}px`;
      element.dataset.at = at;
      element.classList.toggle("selected", at === this.selected);
      element.setAttribute("aria-selected", at === this.selected);
      this.fill(element, this.rows[at]);
    });
  }

  select(at) {
    if (at < 0 || at >= this.rows.length) return;
    this.selected = at;
    this.render(true);
    this.onSelect(this.rows[at]);
  }

  /** Selects a row and brings it into view. */
  reveal(at) {
    this.container.scrollTop = Math.max(0, (at - 3) * this.rowHeight);
    this.select(at);
  }

  onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = Math.min(this.rows.length - 1, Math.max(0, this.selected + step)), top = at * this.rowHeight;
    if (top < this.container.scrollTop) this.container.scrollTop = top;
    const below = top + this.rowHeight - this.container.clientHeight;
    if (below > this.container.scrollTop) this.container.scrollTop = below;
    this.select(at);
  }
}
