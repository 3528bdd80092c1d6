// What metrics are called, in which groups and in which units they are shown.

const GROUPS = [
  ["Is it learning?", ["reward", "rewards/*/mean", "val/accuracy", "val/*", "frac_reward_zero_std", "reward_group_std", "reward_std"]],
  ["Completions", ["completions/mean_length", "completions/length_p*", "completions/clipped_ratio", "completions/max_length", "completions/mean_terminated_length", "rewards/*/errors"]],
  ["Policy", ["entropy", "kl", "clip_ratio/region_mean", "grad_norm", "loss", "learning_rate", "update/changed_since_start"]],
  ["Sampler against trainer", ["sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/mean", "sampling/effective_sample_size", "sampling/staleness_steps*", "sampling/staleness_updates", "sampling/age/*"]],
  ["Time", ["step_time", "tokens_per_second", "generation/tokens_per_second", "system/gpu_utilization", "time/*"]],
  ["Memory", ["memory/*"]],
];

const LABELS = {
  "reward": ["Reward", "Mean weighted sum of all rewards"],
  "frac_reward_zero_std": ["Dead groups", "Share of groups whose rewards are all equal: they teach nothing"],
  "reward_group_std": ["Reward spread in a group", "Mean standard deviation of rewards inside a group"],
  "reward_std": ["Reward spread in a batch", "Standard deviation of rewards over the batch"],
  "completions/mean_length": ["Length", "Mean tokens of a completion"],
  "completions/length_p10": ["Length, 10th percentile", "Of the completions that were kept on disk"],
  "completions/length_p50": ["Length, median", "Half of the completions are no longer"],
  "completions/length_p90": ["Length, 90th percentile", "90% of the completions are no longer"],
  "completions/length_p99": ["Length, 99th percentile", "99% of the completions are no longer"],
  "completions/clipped_ratio": ["Truncated", "Share of completions that ran into max_completion_length"],
  "completions/max_length": ["Longest completion", "Tokens"],
  "completions/mean_terminated_length": ["Length of ended completions", "Mean tokens of those that were not truncated"],
  "entropy": ["Entropy", "Nats per token"],
  "kl": ["KL to the reference", "Nats per token"],
  "clip_ratio/region_mean": ["Clipped tokens", "Share of tokens whose gradient was clipped"],
  "grad_norm": ["Gradient norm", "Before clipping"],
  "loss": ["Loss", "Not a measure of progress in GRPO"],
  "learning_rate": ["Learning rate", ""],
  "update/changed_since_start": ["Changed weights", "Share of the trained weights that differ from those at the start"],
  "sampling/sampling_logp_difference/mean": ["Mismatch, mean", "Nats per token between the sampler's and the trainer's logprobs"],
  "sampling/sampling_logp_difference/max": ["Mismatch, largest", "Nats"],
  "sampling/importance_sampling_ratio/mean": ["Importance ratio", "Mean correction for the sampler"],
  "sampling/effective_sample_size": ["Effective sample size", "1 where the sampler and the trainer agree"],
  "sampling/staleness_steps": ["Staleness", "Steps by which the sampler's weights were older, mean over completions"],
  "sampling/staleness_steps_p50": ["Staleness, median", "Half of the completions are no older"],
  "sampling/staleness_steps_p90": ["Staleness, 90th percentile", "90% of the completions are no older"],
  "sampling/staleness_steps_p99": ["Staleness, 99th percentile", "99% of the completions are no older"],
  "sampling/staleness_steps_max": ["Staleness, largest", "Of a completion of the step"],
  "sampling/staleness_updates": ["Staleness in updates", "Optimizer steps by which the sampler's weights were older"],
  "sampling/age/mean": ["Age", "Steps by which the weights that sampled a trained token were older, mean over tokens"],
  "sampling/age/oldest": ["Age of the first tokens", "Steps, mean over completions of their oldest token"],
  "sampling/age/off_policy": ["Tokens of older weights", "Share of the trained tokens"],
  "sampling/age/carried_groups": ["Carried groups", "Groups that a rank leaves to the next step"],
  "step_time": ["Step time", "Seconds"],
  "tokens_per_second": ["Speed", "Completion tokens per second, over the whole step"],
  "generation/tokens_per_second": ["Engine throughput", "Completion tokens per second while they were generated"],
  "system/gpu_utilization": ["GPU busy", "Share of the time in which kernels ran on it, of any process; mean over GPUs"],
  "memory/peak_gib": ["Peak memory of training", "Of torch's allocator, since training began"],
};

const UNITS = [
  [/^(frac_reward_zero_std|completions\/clipped_ratio|clip_ratio\/.*|sampling\/age\/off_policy|update\/changed_since_start|system\/gpu_utilization|val\/(.*\/)?accuracy)$/, "share"],
  [/^completions\/.*length/, "tokens"],
  [/^(entropy|kl|sampling\/sampling_logp_difference\/.*)$/, "nats"],
  [/^(step_time|time\/.*)$/, "seconds"],
  [/tokens_per_second$/, "tokens/s"],
  [/^memory\/.*_gib$/, "GiB"],
  [/^sampling\/(staleness_.*|age\/(mean|oldest))$/, "steps"],
  [/\/errors$/, "completions"],
];

function unit(metric) {
  const found = UNITS.find(([pattern]) => pattern.test(metric));
  if (found) return found[1];
  return metric.startsWith("val/") ? unit(metric.slice(4)) : "";
}

function label(metric) {
  if (Object.hasOwn(LABELS, metric)) return LABELS[metric];
  const parts = metric.match(/^rewards\/(.+)\/mean$/);
  if (parts) return ["Reward: " + parts[1], "Mean of this reward"];
  const errors = metric.match(/^rewards\/(.+)\/errors$/);
  if (errors) return ["Errors of reward " + errors[1], "Completions it failed on"];
  if (metric === "time/rewards/wait") return ["Seconds: waiting for rewards", "Of a step, inside its phases"];
  const calls = metric.match(/^time\/rewards\/(.+?)(\/max)?$/);
  if (calls) return [`Seconds of a call: ${calls[1]}${calls[2] ? ", longest" : ""}`, "Of this reward, at the same time as others"];
  if (metric.startsWith("time/")) return ["Seconds: " + metric.slice(5).replaceAll("_", " "), "Of a step"];
  if (metric.startsWith("val/")) {
    const name = label(metric.slice(4))[0];
    return ["Held out: " + name[0].toLowerCase() + name.slice(1), "Validation"];
  }
  return [metric, ""];
}

function matches(pattern, metric) {
  if (!pattern.includes("*")) return pattern === metric;
  const [before, after] = pattern.split("*");
  return metric.startsWith(before) && metric.endsWith(after) && metric.length >= before.length + after.length;
}
