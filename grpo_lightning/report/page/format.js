// Numbers as people read them.

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9) return trim(value / 1e9, 2) + " G";
  if (size >= 1e6) return trim(value / 1e6, 2) + " M";
  if (size >= 1e4) return trim(value / 1e3, 1) + " k";
  if (size >= 100) return trim(value, 0);
  if (size >= 1e-3) return trim(value, 2 - Math.floor(Math.log10(size)));
  return value.toExponential(1).replace("e-", "e−");
}

const trim = (value, digits) => String(Number(value.toFixed(digits))).replace("-", "−");
const percent = (value) => (value === null || value === undefined ? "–" : trim(100 * value, value < 0.1 ? 1 : 0) + "%");

function duration(seconds) {
  if (seconds < 90) return trim(seconds, 0) + " s";
  if (seconds < 5400) return trim(seconds / 60, 0) + " min";
  return trim(seconds / 3600, 1) + " h";
}

/** Means over the first and the last tenth of a metric, which the report counted: the one number of it on this page. */
const edges = (run, metric) => run.edges[metric] || [null, null];
