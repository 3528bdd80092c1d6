"""The curve of one training run, measured by the same code on both sides and on disk after every step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sides.addition import right_sum
from sides.learning_run import LearningRun
from sides.record import versions


def held_out_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], max_completion_length: int
) -> float:
    """Share of right greedy answers, by ``generate`` of transformers: neither side's sampler takes part.

    Weights as they are; on a GPU computed in bfloat16, as they are trained.
    """
    conversations = [row["prompt"] for row in rows]
    texts = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch = batch.to(model.device)
    was_training = model.training
    model.eval()
    limit = {"max_new_tokens": max_completion_length, "do_sample": False}
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        found = model.generate(
            **batch, **limit, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
        )
    model.train(was_training)
    answers = tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(right_sum(answers, [row["ground_truth"] for row in rows])) / len(rows)


class Curve:
    """Steps and evaluations of one run; its clock stands still while it evaluates.

    Seconds are those of training steps, from the start of the first one: imports, weights and the engine's start come before.

    Args:
        run: Settings.
        side: Who trains.
        seed: Of the run.
        born: ``time.time()`` when the run, or its process, began.
    """

    def __init__(self, run: LearningRun, side: str, seed: int, born: float) -> None:
        self.run = run
        self.path = run.record_file(side, seed)
        lines = run.held_out_file.read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines[: run.held_out]]
        self.born = born
        self.seconds = 0.0
        self.record: dict[str, Any] = {"side": side, "seed": seed, "settings": run.settings(), "steps": []}
        self.record |= {"evaluations": [], "finished": False, "versions": versions()}

    def start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Call it just before the first step."""
        self.model, self.tokenizer = model, tokenizer
        self.record["device"] = torch.cuda.get_device_name() if self.run.on_gpu else "cpu"
        self.record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        self.record["weights"] = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.record["seconds_before_the_first_step"] = round(time.time() - self.born, 2)
        self._evaluate(0)
        self._mark = self._now()

    def end_step(self, step: int, reward: float) -> None:
        """Call it at the end of step 1, 2, ...; ``reward`` is the mean over its completions."""
        passed = self._now() - self._mark
        self.seconds += passed
        self.record["steps"].append({**self._place(step), "step_seconds": round(passed, 4), "reward": round(reward, 5)})
        if step % self.run.eval_every == 0 or step == self.run.steps:
            self._evaluate(step)
        self.record["finished"] = step == self.run.steps
        self._save()
        self._mark = self._now()

    def _place(self, step: int) -> dict[str, Any]:
        completions = step * self.run.prompts_per_step * self.run.num_generations
        return {"step": step, "completions": completions, "seconds": round(self.seconds, 4)}

    def _evaluate(self, step: int) -> None:
        started = self._now()
        accuracy = held_out_accuracy(self.model, self.tokenizer, self.rows, self.run.max_completion_length)
        evaluation = {**self._place(step), "accuracy": round(accuracy, 5)}
        self.record["evaluations"].append(evaluation | {"evaluation_seconds": round(self._now() - started, 3)})
        side, seed = self.record["side"], self.record["seed"]
        print(f"{side} seed {seed}: step {step}, {self.seconds:.1f} s, held-out accuracy {accuracy:.3f}", flush=True)
        self._save()

    def _now(self) -> float:
        if self.run.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _save(self) -> None:
        part = Path(f"{self.path}.part")
        part.write_text(json.dumps(self.record) + "\n", encoding="utf-8")
        part.replace(self.path)
