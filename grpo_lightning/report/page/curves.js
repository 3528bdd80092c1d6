// The curves of a metric: one per run, or with seeds together one per config, as mean and spread.

function xValues(run, steps) {
  if (state.axis === "step") return steps;
  const source = state.axis === "tokens" ? run.metrics["num_tokens"] : run.hours;
  if (!source) return steps;
  let i = 0;
  return steps.map((step) => {
    while (i + 1 < source[0].length && source[0][i + 1] <= step) i++;
    return source[1][i];
  });
}

function smoothed(values, weight) {
  let total = 0, norm = 0;
  return values.map((value) => {
    total = weight * total + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return total / norm;
  });
}

/** {name, index, steps, x, y, low, high} of each curve; low and high are null without seeds. */
function curvesOf(metric) {
  const drawn = state.runs.map((run, index) => ({ run, index, data: run.metrics[metric] })).filter(({ index, data }) => state.shown[index] && data);
  const single = ({ run, index, data }) => ({ name: run.name, index, members: [index], steps: data[0], x: xValues(run, data[0]), y: data[1], low: null, high: null });
  if (!state.together) return drawn.map(single);
  const groupOf = (index) => state.seeds.findIndex((group) => group.includes(index));
  const groups = new Map();
  for (const curve of drawn) {
    const key = groupOf(curve.index) < 0 ? `run ${curve.index}` : groupOf(curve.index);
    groups.set(key, [...(groups.get(key) || []), curve]);
  }
  return [...groups.values()].map((members) => (members.length < 2 ? single(members[0]) : overSeeds(members.map(single))));
}

/** Mean of several curves at each step that any of them has, and a sample standard deviation to both sides. */
function overSeeds(curves) {
  const points = new Map();
  for (const { steps, x, y } of curves) steps.forEach((step, i) => points.set(step, [...(points.get(step) || []), [x[i], y[i]]]));
  const steps = [...points.keys()].sort((a, b) => a - b);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const spread = (values) => Math.sqrt(values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / Math.max(1, values.length - 1));
  const ys = steps.map((step) => points.get(step).map(([, y]) => y)), y = ys.map(mean), deviation = ys.map(spread);
  return {
    name: `mean of ${curves.length} seeds: ${curves.map((curve) => curve.name).join(", ")}`, index: curves[0].index,
    members: curves.map((curve) => curve.index), steps, x: steps.map((step) => mean(points.get(step).map(([x]) => x))), y,
    low: y.map((value, i) => value - deviation[i]), high: y.map((value, i) => value + deviation[i]),
  };
}

/** What uPlot draws: columns, series, bands; and for each curve where its columns are. */
function seriesOf(metric) {
  const tables = [], series = [{}], bands = [], curves = curvesOf(metric);
  const isLog = state.log && curves.some((curve) => curve.y.some((value) => value > 0));
  const drawable = (values) => (isLog ? values.map((value) => (value > 0 ? value : null)) : values);
  for (const curve of curves) {
    const ink = cssColor(`--c${curve.index % NUM_COLORS}`), sparse = curve.x.length < 3;
    const smooth = state.smoothing > 0 && curve.x.length > 4, fit = (values) => (smooth ? smoothed(values, state.smoothing) : values);
    curve.column = series.length;
    tables.push([curve.x, drawable(curve.y), drawable(fit(curve.y))]);
    series.push({ stroke: ink + (smooth && !curve.low ? "40" : "00"), width: 1, points: { show: false }, spanGaps: true });
    series.push({ stroke: ink, width: 2, points: { show: sparse, size: 6, fill: ink }, spanGaps: true });
    if (!curve.low) continue;
    tables.at(-1).push(drawable(fit(curve.high)), drawable(fit(curve.low)));
    bands.push({ series: [series.length, series.length + 1], fill: ink + "26" });
    for (let i = 0; i < 2; i++) series.push({ stroke: ink + "00", width: 0, points: { show: false }, spanGaps: true });
  }
  return { data: tables.length ? uPlot.join(tables) : [[], []], series, bands, curves, isLog };
}

/** The step of a curve whose point is nearest to x. */
function stepAt(curve, x) {
  let best = 0;
  curve.x.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(curve.x[best] - x)) best = i; });
  return curve.steps[best];
}
