"""reasoning-gym by config alone: tasks are a function of settings and seed, and its makers score the answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import make_data, make_module, make_trainer, set_up_data

pytest.importorskip("reasoning_gym")

from reasoning_gym.factory import DATASETS

from grpo_lightning.datamodules.sources.reasoning_gym import make_tasks
from grpo_lightning.rewards import get_reward_function
from grpo_lightning.rewards.kinds.reasoning_gym import task_maker


def scores(tasks: list[dict[str, Any]], completions: list[str]) -> list[float | None]:
    columns = {name: [task[name] for task in tasks] for name in ("answer", "metadata", "reasoning_gym")}
    return get_reward_function("reasoning_gym")(prompts=["p"] * len(tasks), completions=completions, **columns)


def test_a_dataset_is_named_in_the_config_and_makes_prompts_with_what_its_reward_needs() -> None:
    data = set_up_data(
        dataset={"reasoning_gym": "leg_counting", "size": 12, "min_animals": 2, "max_animals": 2}, batch_size=3
    )
    batch = next(iter(data.train_dataloader()))
    assert len(data.train_prompts) == 12
    assert all("legs" in prompt for prompt in batch.prompts)
    assert batch.columns["ground_truth"] == batch.columns["answer"]
    assert all(one["num_animals"] == 2 for one in batch.columns["metadata"])
    reward = get_reward_function("reasoning_gym")
    right = [f"<think>so</think><answer>{answer}</answer>" for answer in batch.columns["answer"]]
    assert reward(prompts=batch.prompts, completions=right, **batch.columns) == [1.0] * 3
    assert max(reward(prompts=batch.prompts, completions=["<answer>1</answer>"] * 3, **batch.columns)) < 1.0


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    """One, which a process of its own has made; shared, so do not write to it."""
    (task,) = make_tasks({"reasoning_gym": "leg_counting", "size": 1})
    return task


def test_the_answer_is_found_in_tags_boxes_or_at_the_end(task: dict[str, Any]) -> None:
    right = task["answer"]
    texts = [
        rf"\boxed{{{right}}}",
        f"That makes {right}.",
        f"<think>{right}</think> nothing",
        f"<answer>{right}</answer>",
    ]
    assert [score == 1.0 for score in scores([task] * 4, texts)] == [True, True, False, True]


def test_rows_of_other_datasets_have_no_score(task: dict[str, Any]) -> None:
    other = {"answer": None, "metadata": None, "reasoning_gym": None}
    assert scores([task, other], [task["answer"]] * 2) == [1.0, None]


def test_other_seeds_give_other_tasks_and_the_same_seed_the_same() -> None:
    first, again, second = (make_tasks({"reasoning_gym": "leg_counting", "size": 20, "seed": s}) for s in (0, 0, 1))
    assert first == again
    assert not {task["question"] for task in first} & {task["question"] for task in second}
    assert make_tasks({"reasoning_gym": "leg_counting", "size": 20}, num_samples=3) == first[:3]


def test_tasks_are_the_same_in_every_process() -> None:
    """These draw from sets, or from Python's global generator: each rank would make others."""
    names = ("word_ladder", "isomorphic_strings", "list_functions")
    code = (
        "from grpo_lightning.datamodules.sources.reasoning_gym import make_tasks\n"
        f"for name in {names}:\n"
        "    print(make_tasks({'reasoning_gym': name, 'size': 3}))"
    )
    other = os.environ | {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    rank = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=other, check=True)
    assert rank.stdout.splitlines() == [str(make_tasks({"reasoning_gym": name, "size": 3})) for name in names]


OWN_ANSWER = {name: 1.0 for name in DATASETS} | {
    # No single answer is right: the maker keeps none.
    **{"boxnet": 0.0, "graph_color": 0.0, "propositional_logic": 0.0, "rubiks_cube": 0.01, "rush_hour": 0.01},
}


@pytest.mark.slow
def test_every_dataset_makes_tasks_offline_and_scores_its_own_answer() -> None:
    found = {}
    for name in DATASETS.keys() - {"composite"}:  # which is made of others
        task = task_maker(name, {"size": 1, "seed": 3})[0]
        task["reasoning_gym"] = {"name": name, "settings": {}, "question": task["question"]}
        found[name] = scores([task], [f"<answer>{task['answer']}</answer>"])[0]
    assert found == {name: score for name, score in OWN_ANSWER.items() if name in found}
    assert len(found) == 105


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": {"reasoning_gym": "leg_cuonting"}},
            r"reasoning_gym='leg_cuonting' is not a dataset .* leg_counting",
        ),
        ({"dataset": {"reasoning_gym": "leg_counting", "legs": 3}}, r"legs.*Its settings are: seed, .*min_animals"),
        ({"dataset": {"reasoning_gym": "leg_counting", "min_animals": 0}}, r"reasoning_gym=leg_counting: min_animals"),
        ({"dataset": {"reasoning_gym": "leg_counting", "split": "train"}}, r"split has no effect on reasoning_gym"),
        ({"dataset": {"reasoning_gym": "leg_counting", "file_name": "a"}}, r"needs exactly one of hf_hub_url"),
        (
            {
                "dataset": {"reasoning_gym": "leg_counting"},
                "eval_dataset": {"reasoning_gym": "leg_counting", "size": 9},
            },
            r"data.eval_dataset makes the tasks of reasoning_gym=leg_counting from seed=0, as data.dataset does",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_in_the_words_of_the_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_up_data(**settings)


def test_a_run_trains_and_evaluates_on_it_with_its_own_reward(tiny_model_dir: Path, tmp_path: Path) -> None:
    dataset = {"reasoning_gym": "leg_counting", "size": 6, "converter_args": {"system_prompt": "Answer in <answer>."}}
    module = make_module(tiny_model_dir, rewards="reasoning_gym", max_completion_length=4)
    data = make_data(tmp_path, dataset=dataset, eval_dataset={**dataset, "seed": 1, "size": 2}, batch_size=3)
    trainer = make_trainer(tmp_path, 2, val_check_interval=1)
    trainer.fit(module, datamodule=data)
    assert 0 <= module.step_metrics["rewards/reasoning_gym/mean"] <= 1
    assert "val/rewards/reasoning_gym" in trainer.callback_metrics
    assert module.last_step.batch.prompts[0][0]["content"] == "Answer in <answer>."
