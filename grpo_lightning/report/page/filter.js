// Which completions are listed, and in which order.

/** All runs' completions behind one numbering: global row -> run and row in its columns. */
class Completions {
  constructor(tables) {
    this.tables = tables;
    this.starts = [];
    this.size = 0;
    tables.forEach((table) => {
      this.starts.push(this.size);
      this.size += table ? table.step.length : 0;
    });
    this.names = [...new Set(tables.flatMap((table) => (table ? Object.keys(table.rewards) : [])))];
    this.steps = tables.flatMap((table) => (table ? [Math.min(...ends(table.step)), Math.max(...ends(table.step))] : []));
  }

  locate(row) {
    let run = this.starts.length - 1;
    while (run > 0 && (this.starts[run] > row || !this.tables[run])) run--;
    return [run, row - this.starts[run]];
  }

  get(row) {
    const [run, i] = this.locate(row), table = this.tables[run];
    return {
      row, run, i, table,
      step: table.step[i], uid: table.uid[i], sample: table.sample[i], prompt: table.prompts[table.prompt[i]],
      images: table.thumbnails[table.images[i]],
      completion: table.completion[i], reward: table.reward[i], advantage: table.advantage[i], length: table.length[i],
      logprob: table.mean_logprob[i], truncated: table.truncated[i], dead: table.dead[i], extras: table.extras[table.columns[i]],
      rewards: Object.fromEntries(Object.entries(table.rewards).map(([name, values]) => [name, values[i]])),
    };
  }

  /** Rows of the same prompt, optionally of one step, of the same run. */
  related(item, sameStep) {
    const rows = [], { table } = item;
    for (let i = 0; i < table.step.length; i++) {
      if (table.uid[i] === item.uid && (!sameStep || table.step[i] === item.step)) rows.push(this.starts[item.run] + i);
    }
    return rows;
  }
}

const ends = (values) => [values[0], values[values.length - 1]]; // files are read in order of steps

const matcher = (query) => new RegExp(query.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i");

/** Global rows that pass the filter, in file order. */
function filtered(all, filter) {
  const rows = new Int32Array(all.size);
  const text = filter.text ? matcher(filter.text) : null;
  let count = 0;
  all.tables.forEach((table, run) => {
    if (!table || !state.shown[run]) return;
    const promptFits = text && table.prompts.map((prompt) => text.test(prompt));
    for (let i = 0; i < table.step.length; i++) {
      const reward = table.reward[i], step = table.step[i];
      if (step < filter.fromStep || step > filter.toStep) continue;
      if (filter.uid !== null && table.uid[i] !== filter.uid) continue;
      if (filter.fromReward !== null && !(reward !== null && reward >= filter.fromReward)) continue;
      if (filter.toReward !== null && !(reward !== null && reward <= filter.toReward)) continue;
      if (filter.dead && !table.dead[i]) continue;
      if (filter.truncated && !table.truncated[i]) continue;
      if (filter.missing && !isMissing(table, i)) continue;
      if (text && !promptFits[table.prompt[i]] && !text.test(table.completion[i])) continue;
      rows[count++] = all.starts[run] + i;
    }
  });
  return rows.subarray(0, count);
}

/** True where some reward gave no value: it does not apply, or it failed. */
function isMissing(table, i) {
  if (table.reward[i] === null) return true;
  for (const name in table.rewards) if (table.rewards[name][i] === null) return true;
  return false;
}

/** Sorts rows in place by a column; ties stay in file order, missing values come last. */
function sortRows(all, rows, column, descending) {
  if (column === "step" && !descending) return rows;
  const keys = new Map(), textual = column === "prompt" || column === "completion";
  const valueOf = (row) => {
    const [run, i] = all.locate(row), table = all.tables[run];
    if (column === "prompt") return table.prompts[table.prompt[i]];
    if (column === "flags") return table.truncated[i] + 2 * table.dead[i] + 4 * isMissing(table, i);
    const values = column.startsWith("rewards/") ? table.rewards[column.slice(8)] : table[column];
    return values ? values[i] : null;
  };
  for (const row of rows) keys.set(row, valueOf(row));
  const sign = descending ? -1 : 1;
  const compare = (a, b) => {
    const x = keys.get(a), y = keys.get(b);
    if (x === y) return a - b;
    if (x === null) return 1;
    if (y === null) return -1;
    return sign * (textual ? (x < y ? -1 : 1) : x - y) || a - b;
  };
  return rows.sort(compare);
}
