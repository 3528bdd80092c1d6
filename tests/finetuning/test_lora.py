"""LoRA training against plain peft, and what of it is kept, resumed and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel, get_peft_model
from runs import fit, make_data, make_module, make_trainer, share_of_digits, token_logprobs, write_prompts
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.callbacks.export import export
from grpo_lightning.finetuning.settings import FinetuningSettings
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.rewards import AccuracyReward
from grpo_lightning.training.experience_maker import has_dropout

LORA = {"finetuning_type": "lora", "lora_dropout": 0.0}
LEARNING_RATE = 0.1


def keep_rollouts(module) -> list:
    seen = []
    original = module.source.generate

    def generate(batch, *args, **kwargs):
        seen.append(original(batch, *args, **kwargs))
        return seen[-1]

    module.source.generate = generate
    return seen


def adapter_weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if "lora_" in name}


def base_weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    kept = {name: p.detach() for name, p in policy.named_parameters() if "lora_" not in name}
    return {name.removeprefix("base_model.model.").replace("base_layer.", ""): p for name, p in kept.items()}


def test_two_steps_move_a_and_b_as_plain_peft_would_and_leave_the_base_alone(tiny_model_dir, tmp_path):
    seen, start = [], []

    def watch(module):
        seen.append(keep_rollouts(module))
        module.configure_optimizers, original = (
            lambda: start.append(adapter_weights(module.policy.model)) or original(),
            module.configure_optimizers,
        )

    module = fit(tiny_model_dir, tmp_path, max_steps=2, on_module=watch, lora_rank=4, lora_alpha=12, **LORA)

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.load_state_dict(start[0], strict=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for rollouts in seen[0]:
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rollouts.completions()]
        rewards = torch.tensor(share_of_digits(texts)).view(3, 4)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        rows = token_logprobs(model, rollouts)
        terms = [a * (lp - lp.detach()).exp() for a, lp in zip(advantages.flatten(), rows, strict=True)]
        loss = -sum(term.sum() for term in terms) / sum(len(lp) for lp in rows)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= LEARNING_RATE * parameter.grad
    torch.testing.assert_close(adapter_weights(module.policy.model), adapter_weights(model), rtol=1e-4, atol=1e-6)
    moved = [name for name, w in adapter_weights(module.policy.model).items() if not torch.equal(w, start[0][name])]
    assert len(moved) == 2 * 2 * 7  # A and B of seven linear layers in each of two blocks

    pristine = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    for name, weight in base_weights(module.policy.model).items():
        assert torch.equal(weight, pristine.get_parameter(name)), name
    assert not any(p.requires_grad for name, p in module.policy.model.named_parameters() if "lora_" not in name)


def test_rollouts_come_from_the_adapted_policy(tiny_model_dir, tmp_path):
    def as_the_second_batch_was_sampled(module):
        rollouts.append(keep_rollouts(module))
        module.advantages, original = (
            lambda *args: (
                expected.append(token_logprobs(module.policy.model.eval(), rollouts[0][-1])) or original(*args)
            ),
            module.advantages,
        )

    rollouts, expected = [], []
    module = fit(tiny_model_dir, tmp_path, max_steps=2, on_module=as_the_second_batch_was_sampled, **LORA)
    adapted = torch.cat(expected[1]).detach()
    torch.testing.assert_close(rollouts[0][1].sampling_logprobs, adapted, rtol=0, atol=1e-5)
    with torch.no_grad(), module.policy.model.disable_adapter():
        bare = torch.cat(token_logprobs(module.policy.model, rollouts[0][1]))
    assert (adapted - bare).abs().max() > 1e-3


def test_old_and_reference_logprobs_have_no_dropout(tiny_model_dir, tmp_path):
    seen = []

    def watch(module):
        rollouts = keep_rollouts(module)
        module.updates.of_step, original = (
            lambda experience, step: seen.append((experience, rollouts[-1])) or original(experience, step),
            module.updates.of_step,
        )

    module = fit(
        tiny_model_dir, tmp_path, on_module=watch, finetuning_type="lora", lora_dropout=0.5, lora_alpha=64, beta=0.1
    )
    ((experience, rollouts),) = seen
    assert module.policy.model.training and has_dropout(module.policy.model)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)  # B is 0 before the first step
    expected = torch.cat(token_logprobs(plain, rollouts)).detach()
    torch.testing.assert_close(experience.old_logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(experience.ref_logprobs, expected, rtol=0, atol=1e-5)
    assert module.step_metrics["sampling/sampling_logp_difference/max"] < 1e-5


def test_with_dropout_the_sampler_is_compared_with_quiet_logprobs_and_without_no_pass_is_spent(
    tiny_model_dir, tmp_path
):
    passes = []

    def count(module):
        own = module.passes
        own.score, original = (lambda *a, **k: passes.append(1) or original(*a, **k), own.score)

    noisy = fit(tiny_model_dir, tmp_path, max_steps=2, on_module=count, finetuning_type="lora", lora_dropout=0.5)
    assert len(passes) == 2
    assert noisy.step_metrics["sampling/sampling_logp_difference/max"] < 1e-5
    passes.clear()
    fit(tiny_model_dir, tmp_path, max_steps=2, on_module=count, **LORA)
    assert not passes


def test_gradient_checkpointing_leaves_the_gradient_of_an_adapter_as_it_is(tiny_model_dir, tmp_path):
    plain = fit(tiny_model_dir, tmp_path, max_steps=2, **LORA)
    saving = fit(tiny_model_dir, tmp_path, max_steps=2, gradient_checkpointing=True, **LORA)
    torch.testing.assert_close(
        adapter_weights(saving.policy.model), adapter_weights(plain.policy.model), rtol=1e-4, atol=1e-6
    )


def test_mixed_precision_holds_the_base_in_bfloat16_and_the_adapter_in_float32(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, trainer={"precision": "bf16-mixed"}, **LORA)
    dtypes = {p.requires_grad: p.dtype for p in module.policy.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert module.step_metrics["grad_norm"] > 0


@pytest.mark.slow
def test_the_quickstart_learns_with_lora(tmp_path):
    root = Path(__file__).parents[2] / "assets/quickstart"
    rewards = []
    module = GRPOModule(
        model_name_or_path=str(root / "model"),
        rewards=[AccuracyReward(mode="exact", extraction="strict")],
        max_completion_length=64,
        generator=TransformersGenerator(),
        lora_rank=16,
        lora_alpha=32,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
        **LORA,
    )
    module.end_step, original = (
        lambda report: (original(report), rewards.append(module.step_metrics["reward"])),
        module.end_step,
    )
    data = GRPODataModule(dataset=str(root / "train.jsonl"), batch_size=32)
    make_trainer(tmp_path, max_steps=10).fit(module, datamodule=data)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.25, rewards


# ---- checkpoints


def run(model_dir: Path, folder: Path, max_steps: int, resume_from: int | None = None, **settings):
    """Trains with everything random or stateful switched on; leaves step=N.ckpt of every step behind."""
    options = {
        "finetuning_type": "lora",
        "lora_dropout": 0.3,
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-2),
    }
    module = make_module(model_dir, **(options | settings))
    every_step = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = make_trainer(folder, max_steps, callbacks=[every_step], enable_checkpointing=True)
    path = None if resume_from is None else str(folder / f"step={resume_from}.ckpt")
    trainer.fit(module, datamodule=make_data(folder), ckpt_path=path)
    return module


@pytest.mark.parametrize("settings", [{}, {"sync_ref_model": False}], ids=["moving reference", "adapters off"])
def test_a_resumed_run_ends_bit_for_bit_where_a_whole_one_does(tiny_model_dir, tmp_path, settings):
    whole = adapter_weights(run(tiny_model_dir, tmp_path, 5, **settings).policy.model)
    stored = torch.load(tmp_path / "step=5.ckpt")["reference"]
    (tmp_path / "step=5.ckpt").unlink()
    resumed = adapter_weights(run(tiny_model_dir, tmp_path, 5, resume_from=3, **settings).policy.model)
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    again = torch.load(tmp_path / "step=5.ckpt")["reference"]
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)
    assert bool(stored) is not bool(settings)


def test_a_checkpoint_holds_adapters_only(tiny_model_dir, tmp_path):
    module = run(tiny_model_dir, tmp_path, 1)
    checkpoint = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    assert {name.removeprefix("policy.model.") for name in checkpoint["state_dict"]} == set(
        adapter_weights(module.policy.model)
    )
    assert checkpoint["adapter"]["peft_config"]["r"] == 8
    assert len(checkpoint["adapter"]["base"]["weights_sha256"]) == 64
    assert (tmp_path / "step=1.ckpt").stat().st_size < 3 * (tiny_model_dir / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": 32}, "The checkpoint's adapter has other settings than this config: lora_alpha was 16, is 32"),
        ({"lora_rank": 4}, "r was 8, is 4"),
        (
            {"finetuning_type": "full", "lora_dropout": 0.05},
            "The checkpoint holds other weights than this config trains",
        ),
        ({"lora_target": "q_proj"}, "The checkpoint holds other weights than this config trains"),
    ],
)
def test_a_checkpoint_that_would_mean_another_model_is_refused(tiny_model_dir, tmp_path, settings, message):
    run(tiny_model_dir, tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        run(tiny_model_dir, tmp_path, 2, resume_from=1, **settings)


def test_a_checkpoint_on_another_base_is_refused(tiny_model_dir, tmp_path):
    run(tiny_model_dir, tmp_path, 1)
    other = save_toy_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"The checkpoint's adapter was trained on .*: the weights differ"):
        run(other, tmp_path, 2, resume_from=1)


# ---- starting points


def test_training_continues_from_an_adapter_which_is_the_reference_too(tiny_model_dir, tmp_path):
    first = fit(tiny_model_dir, tmp_path, max_steps=2, lora_rank=4, **LORA)
    export(first, tmp_path / "model", forms=["adapter"])
    trained = adapter_weights(first.policy.model)
    start = []

    def watch(module):
        module.updates.of_step, original = (lambda e, s: start.append(e) or original(e, s), module.updates.of_step)

    second = fit(
        tiny_model_dir,
        tmp_path,
        on_module=watch,
        finetuning_type="lora",
        adapter_name_or_path=str(tmp_path / "model-adapter"),
        beta=0.1,
    )
    assert second.policy.model.peft_config["default"].r == 4
    torch.testing.assert_close(second.reference_passes.reference.weights, trained)
    sampled = start[0].rollouts.sampling_logprobs
    torch.testing.assert_close(start[0].ref_logprobs, sampled, rtol=0, atol=1e-5)  # same policy, before the step
    assert any(not torch.equal(w, trained[name]) for name, w in adapter_weights(second.policy.model).items())


def test_the_head_can_be_trained_beside_lora(tiny_model_dir, tmp_path):
    config = LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj"], modules_to_save=["lm_head"])
    module = fit(tiny_model_dir, tmp_path, max_steps=2, finetuning_type="lora", peft_config=config, beta=0.1)
    head = module.policy.model.get_base_model().lm_head
    assert not torch.equal(head.modules_to_save["default"].weight, head.original_module.weight)
    original = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).lm_head.weight
    assert torch.equal(head.original_module.weight, original)
    export(module, tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(exported.lm_head.weight, head.modules_to_save["default"].weight)
    bare = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(bare, tmp_path / "model-adapter").eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, module.policy.model.eval()(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_the_embeddings_can_be_trained_beside_lora(tmp_path, tied):
    directory = save_toy_model(tmp_path / "model", tie_word_embeddings=tied)
    config = LoraConfig(
        r=4, lora_dropout=0.0, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=tied
    )
    module = fit(directory, tmp_path, max_steps=2, finetuning_type="lora", peft_config=config, beta=0.1)
    export(module, tmp_path / "export")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert not torch.equal(exported.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert torch.equal(exported.get_output_embeddings().weight, start.get_output_embeddings().weight) is not tied
    assert (exported.get_output_embeddings().weight is exported.get_input_embeddings().weight) is tied
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = module.policy.model.eval()(ids).logits
        torch.testing.assert_close(exported(ids).logits, expected, rtol=0, atol=5e-5)
        with module.reference_passes.reference.active():  # adapters off: the embeddings as they were
            torch.testing.assert_close(module.policy.model(ids).logits, start(ids).logits)


def test_one_of_two_tied_matrices_is_not_trained_alone(tmp_path):
    tied = save_toy_model(tmp_path / "tied", tie_word_embeddings=True)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.raises(
        ValueError, match=r"share one matrix with model.embed_tokens / lm_head. Set ensure_weight_tying"
    ):
        fit(tied, tmp_path, finetuning_type="lora", peft_config=config)


# ---- settings


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("q_proj, v_proj", {"q_proj", "v_proj"}),
        (["k_proj"], {"k_proj"}),
        (r".*layers\.1\.mlp\.(up|down)_proj", {"up_proj", "down_proj"}),
    ],
)
def test_targets_are_all_names_or_a_regular_expression(tiny_model_dir, tmp_path, target, layers):
    module = make_module(tiny_model_dir, lora_target=target, **LORA)
    module.trainer = make_trainer(tmp_path)
    module.configure_model()
    names = {name.split(".lora_")[0] for name in adapter_weights(module.policy.model)}
    assert {name.rsplit(".", 1)[-1] for name in names} == layers
    if isinstance(target, str) and "layers" in target:
        assert all(".layers.1." in name for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning_type": "lorra"}, "model.finetuning_type='lorra' is none of full, lora, qlora"),
        ({"lora_rank": 16}, "model.lora_rank has no effect with model.finetuning_type=full"),
        ({"load_in_4bit": True}, "model.load_in_4bit has no effect with model.finetuning_type=full"),
        ({"adapter_name_or_path": "x"}, "model.adapter_name_or_path has no effect with model.finetuning_type=full"),
        ({"bnb_4bit_quant_type": "fp4", **LORA}, "model.bnb_4bit_quant_type has no effect on a base that is not in 4"),
        ({"lora_rank": 0, **LORA}, "model.lora_rank=0"),
        ({"finetuning_type": "lora", "lora_dropout": 1.0}, "model.lora_dropout=1.0"),
        ({"lora_target": "(", **LORA}, r"model.lora_target='\(' is no regular expression"),
        ({"lora_target": [], **LORA}, "names no layer"),
        ({"peft_config": LoraConfig(bias="all"), "finetuning_type": "lora"}, "trains biases of the base itself"),
        (
            {"peft_config": LoraConfig(), "lora_rank": 4, "finetuning_type": "lora"},
            "model.lora_rank has no effect beside model.peft_config",
        ),
        (
            {"adapter_name_or_path": "x", "lora_alpha": 4, "finetuning_type": "lora"},
            "model.lora_alpha has no effect beside model.adapter_name_or_path",
        ),
        ({"ref_model_device": "cpu", "beta": 0.1, **LORA}, "adapters need no copy of the model"),
        ({"ref_model_dtype": "bfloat16"}, "model.ref_model_dtype='bfloat16' has no effect: model.beta=0 needs none"),
        ({"ref_model_dtype": "int3", "beta": 0.1}, "model.ref_model_dtype='int3' is unknown"),
        ({"ref_model_device": "gpu7", "beta": 0.1}, "model.ref_model_device='gpu7' is no device"),
    ],
)
def test_settings_without_effect_or_sense_are_refused_by_name(tiny_model_dir, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(tiny_model_dir, **settings)


def test_targets_that_no_layer_has_are_refused_in_the_words_of_the_config(tiny_model_dir, tmp_path):
    with pytest.raises(
        ValueError, match=r"^model.lora_target .* names c_attn, and no layer of Qwen2ForCausalLM is called so"
    ):
        fit(tiny_model_dir, tmp_path, lora_target="c_attn", **LORA)


def test_the_defaults_are_those_of_the_seeds(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir, finetuning_type="lora")
    module.trainer = make_trainer(tmp_path)
    module.configure_model()
    config = module.policy.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    layers = {name.rsplit(".lora_A", 1)[0] for name, _ in module.policy.model.named_parameters() if "lora_A" in name}
    assert len(layers) == 7 * 2  # every linear layer of both blocks, the head not


def test_peft_options_come_by_class_path_on_the_command_line(tiny_model_dir, tmp_path):
    from grpo_lightning.commands.cli import GRPOCLI

    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "devices": 1, "max_steps": 1},
        "model": {
            "model_name_or_path": str(tiny_model_dir),
            "rewards": "runs.share_of_digits",
            "generator": "TransformersGenerator",
            "num_generations": 4,
            "max_completion_length": 6,
            "finetuning_type": "lora",
            "peft_config": {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "use_dora": True}},
        },
        "data": {"dataset": str(write_prompts(tmp_path / "train.jsonl")), "batch_size": 3},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    cli = GRPOCLI(args=["fit", "--config", str(tmp_path / "run.yaml"), "--trainer.enable_progress_bar=false"])
    assert any("lora_magnitude_vector" in name for name, _ in cli.model.policy.model.named_parameters())
    assert cli.model.policy.model.peft_config["default"].r == 2
    assert (tmp_path / "run/hf/last-adapter/adapter_model.safetensors").is_file()


def test_lora_target_peft_adapts_the_layers_that_peft_chooses(tiny_model_dir: Path):
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    chosen = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM"))  # none are named
    expected = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in chosen.named_parameters() if ".lora_A" in name
    }
    settings = FinetuningSettings(finetuning_type="lora", lora_target="peft")
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert set(settings.make_peft_config(fresh).target_modules) == expected == {"q_proj", "v_proj"}
    fresh.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match=r"names no layers for unheard_of\. Use all, or names"):
        settings.make_peft_config(fresh)
