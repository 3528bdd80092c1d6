// Word-by-word difference of two texts (Myers, "An O(ND) Difference Algorithm", 1986).

const MOST_EDITS = 1200; // memory grows with the square of this

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];

/** [[kind, text], ...] with kind "same", "del" (only in a) or "ins" (only in b). */
function difference(a, b) {
  const left = words(a), right = words(b);
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start++;
  let end = 0;
  while (end < left.length - start && end < right.length - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end++;
  const middle = edits(left.slice(start, left.length - end), right.slice(start, right.length - end));
  const parts = [["same", left.slice(0, start).join("")], ...middle, ["same", left.slice(left.length - end).join("")]];
  return parts.filter(([, text]) => text).reduce((merged, [kind, text]) => {
    const last = merged[merged.length - 1];
    if (last && last[0] === kind) last[1] += text;
    else merged.push([kind, text]);
    return merged;
  }, []);
}

function edits(a, b) {
  const trace = [];
  let frontier = new Map([[1, 0]]);
  const most = Math.min(a.length + b.length, MOST_EDITS);
  for (let d = 0; d <= most; d++) {
    trace.push(frontier);
    const next = new Map();
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && frontier.get(k - 1) < frontier.get(k + 1));
      let x = down ? frontier.get(k + 1) : frontier.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      next.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, trace);
    }
    frontier = next;
  }
  return [["del", a.join("")], ["ins", b.join("")]]; // too different for a diff to help
}

function walkBack(a, b, trace) {
  const parts = [];
  let x = a.length, y = b.length;
  for (let d = trace.length - 1; d >= 0; d--) {
    const frontier = trace[d], k = x - y;
    const down = k === -d || (k !== d && frontier.get(k - 1) < frontier.get(k + 1));
    const from = down ? k + 1 : k - 1;
    const startX = d ? frontier.get(from) : 0, startY = d ? startX - from : 0;
    while (x > startX && y > startY && x > 0 && y > 0 && a[x - 1] === b[y - 1]) { parts.push(["same", a[--x]]); y--; }
    if (d) parts.push(down ? ["ins", b[--y]] : ["del", a[--x]]);
  }
  return parts.reverse();
}
