// Ticks that people can read: round numbers, no two that look alike, and the last step among them.

const AXES = { step: "step", tokens: "tokens", hours: "hours of training" };

/** The smallest of 1, 2, 5, 10, ... that cuts ``span`` into at most ``most`` parts. */
function roundStep(span, most) {
  const power = 10 ** Math.floor(Math.log10(span / most || 1));
  return [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= most) || 10 * power;
}

/** Ticks of the horizontal axis: round ones, and the last point in the place of one that would touch it. */
function endingTicks(low, high, most, whole) {
  if (!(high > low)) return [low];
  const size = Math.max(roundStep(high - low, most), whole ? 1 : 0), ticks = [];
  for (let i = Math.ceil(low / size); i * size <= high; i++) ticks.push(i * size);
  const kept = ticks.filter((tick) => high - tick > 0.6 * size);
  return [...kept, high];
}

/** Texts of ticks, with as many digits as it takes to tell them apart. */
function tickTexts(ticks) {
  const known = ticks.filter((tick) => tick !== null && tick !== undefined);
  const distinct = (texts) => new Set(texts).size === new Set(known).size;
  if (distinct(known.map(short))) return ticks.map((tick) => (tick === null || tick === undefined ? "" : short(tick)));
  for (let digits = 4; digits < 16; digits++) {
    const exact = (value) => String(Number(value.toPrecision(digits))).replace("-", "−");
    if (distinct(known.map(exact)) || digits === 15) return ticks.map((tick) => (tick === null || tick === undefined ? "" : exact(tick)));
  }
  return [];
}

/** Whether every curve lies at 0, of which uPlot would make an axis up to 100, also of a share. */
const isNothing = (data) => data.slice(1).every((column) => column.every((value) => !value));

function axesOf(metric, isLog, size) {
  const stroke = cssColor("--muted"), lines = { stroke: cssColor("--line"), width: 1 }, ticks = { show: false };
  const font = "11px system-ui, sans-serif", named = { stroke, font, ticks, labelFont: font, labelSize: 16, labelGap: 0 };
  const most = Math.max(2, Math.floor(size / 75));
  const vertical = { ...named, grid: lines, size: 54, values: (_, values) => (isLog ? values.map((value) => (value === null ? "" : short(value))) : tickTexts(values)) };
  if (unit(metric)) vertical.label = unit(metric);
  return [
    {
      ...named, label: AXES[state.axis], grid: { show: false }, size: 24,
      splits: (_, __, low, high) => endingTicks(low, high, most, state.axis === "step"), values: (_, values) => tickTexts(values),
    },
    vertical,
  ];
}
