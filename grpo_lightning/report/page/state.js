// Data of the page, decoded on demand, and what the reader has chosen.

const NUM_COLORS = 8; // --c0 to --c7 in style.css, light and dark

const DEFAULTS = { smoothing: 0.6 };

const state = {
  runs: [],        // overview of each run: metrics, settings, notices
  completions: [], // columns of each run, or null
  seeds: [],       // runs of one config that differ in their seed alone, as lists of their numbers
  shown: [],       // which runs are switched on
  axis: "step",
  smoothing: DEFAULTS.smoothing,
  log: false,      // vertical axes
  together: false, // seeds as mean and spread
  large: "",       // the metric that has the whole width
};

const byId = (id) => document.getElementById(id);
const theme = () => document.documentElement.dataset.theme;
const color = (i) => `var(--c${i % NUM_COLORS})`;
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The JSON in a data element: base64 of gzip. The element is emptied, since its text is large. */
async function decode(id) {
  const element = byId(id);
  const text = atob(element.textContent.trim());
  element.textContent = "";
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** An element with attributes and children. Children that are strings become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const dot = (color) => make("span", { class: "dot", style: { background: color } });
