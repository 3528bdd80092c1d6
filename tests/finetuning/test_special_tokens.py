"""New special tokens: where their embeddings start, which rows are trained, what is saved."""

from __future__ import annotations

import pytest
import torch
from runs import fit, make_module, share_of_digits
from test_lora import keep_rollouts, token_logprobs
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_lightning.callbacks.export import export
from grpo_lightning.finetuning.special_tokens import SPECIAL_TOKEN_MAPPING

NEW = {"<back>": "The quick fox", "<go>": "answer"}
SETTINGS = {"init_special_tokens": True, "new_special_tokens_config": NEW}
LORA = {"finetuning_type": "lora", "lora_dropout": 0.0}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model_dir(request, tmp_path):
    return save_toy_model(tmp_path / "model", tie_word_embeddings=request.param)


def matrices(model) -> list[torch.Tensor]:
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return [weight.detach() for weight in weights]


def test_rows_start_at_the_mean_of_the_description_input_and_output(model_dir, tmp_path):
    module = fit(model_dir, tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **SETTINGS)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    size = len(tokenizer)
    assert [module.policy.tokenizer.convert_tokens_to_ids(token) for token in NEW] == [size, size + 1]
    assert module.policy.model.config.vocab_size == size + 2
    for new, old in zip(matrices(module.policy.model), matrices(plain), strict=True):
        assert torch.equal(new[:size], old)
        for row, description in enumerate(NEW.values()):
            torch.testing.assert_close(new[size + row], old[tokenizer(description).input_ids].mean(0))
    tied = module.policy.model.get_output_embeddings().weight is module.policy.model.get_input_embeddings().weight
    assert tied is plain.config.tie_word_embeddings


def test_under_lora_only_the_new_rows_are_trained(model_dir, tmp_path):
    module = fit(model_dir, tmp_path, max_steps=3, **LORA, **SETTINGS)
    started = fit(model_dir, tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **SETTINGS)
    size = len(started.policy.tokenizer) - 2
    export(module, tmp_path / "export")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    moved = False
    for after, before in zip(matrices(trained), matrices(started.policy.model), strict=True):
        assert torch.equal(after[:size], before[:size])
        moved |= not torch.equal(after[size:], before[size:])
    assert moved
    rows = [name for name, p in module.policy.model.named_parameters() if p.requires_grad and "lora_" not in name]
    assert len(rows) == (1 if trained.config.tie_word_embeddings else 2)
    assert all("trainable_tokens_delta" in name for name in rows)
    ids = torch.tensor([[4, size, 9, size + 1, 17]])
    with torch.no_grad():
        expected = module.policy.model.eval()(ids).logits
        torch.testing.assert_close(trained(ids).logits, expected, rtol=0, atol=5e-5)


def test_under_qlora_the_new_rows_are_trained_beside_4_bit_weights(model_dir, tmp_path):
    four_bits = {"finetuning_type": "qlora", "lora_dropout": 0.0, "bnb_4bit_compute_dtype": "float32"}
    module = fit(model_dir, tmp_path, max_steps=3, **four_bits, **SETTINGS)
    started = fit(model_dir, tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **SETTINGS)
    export(module, tmp_path / "export")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    size, moved = len(started.policy.tokenizer) - 2, False
    for after, before in zip(matrices(trained), matrices(started.policy.model), strict=True):
        assert torch.equal(after[:size], before[:size])  # neither trained nor quantised
        moved |= not torch.equal(after[size:], before[size:])
    assert moved
    ids = torch.tensor([[4, size, 9, size + 1, 17]])
    with torch.no_grad():
        expected = module.policy.model.eval()(ids).logits
        torch.testing.assert_close(trained(ids).logits, expected, rtol=0, atol=1e-4)
    export(module, tmp_path / "adapter", forms=["adapter"])
    still = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.0),
        "adapter_name_or_path": str(tmp_path / "adapter-adapter"),
    }
    again = fit(model_dir, tmp_path, **{k: v for k, v in four_bits.items() if k != "lora_dropout"}, **still, **SETTINGS)
    with torch.no_grad():
        torch.testing.assert_close(again.policy.model.eval()(ids).logits, expected)


def test_a_step_moves_the_new_rows_along_their_gradient_in_the_plain_model(model_dir, tmp_path):
    seen = []
    module = fit(model_dir, tmp_path, on_module=lambda m: seen.append(keep_rollouts(m)), **LORA, **SETTINGS)
    ((rollouts,),) = seen
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    plain = fit(
        model_dir, tmp_path, **still, **SETTINGS
    ).policy.model.eval()  # with B = 0 the adapted policy is this model
    texts = module.policy.tokenizer.batch_decode(
        [ids.tolist() for ids in rollouts.completions()], skip_special_tokens=True
    )
    rewards = torch.tensor(share_of_digits(texts)).view(3, 4)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    rows = token_logprobs(plain, rollouts)
    loss = -sum((a * lp).sum() for a, lp in zip(advantages.flatten(), rows, strict=True)) / sum(map(len, rows))
    plain.zero_grad()
    loss.backward()
    size = len(module.policy.tokenizer) - 2
    trained = [p for name, p in module.policy.model.named_parameters() if "trainable_tokens_delta" in name]
    matrices = {id(m.weight): m.weight for m in (plain.get_input_embeddings(), plain.get_output_embeddings())}
    expected = [(w - 0.1 * w.grad)[size:].detach() for w in matrices.values()]
    torch.testing.assert_close([p.detach() for p in trained], expected, rtol=1e-4, atol=1e-6)
    assert any(w.grad[size:].abs().max() > 1e-4 for w in matrices.values())


def test_the_reference_has_the_rows_as_they_started(model_dir, tmp_path):
    module = fit(model_dir, tmp_path, max_steps=2, beta=0.1, **LORA, **SETTINGS)
    started = fit(model_dir, tmp_path, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **SETTINGS)
    ids = torch.arange(len(module.policy.tokenizer) - 12, len(module.policy.tokenizer))[None]
    with torch.no_grad(), module.reference_passes.reference.active():
        torch.testing.assert_close(
            module.reference_passes.reference.model.eval()(ids).logits, started.policy.model.eval()(ids).logits
        )


def test_tokens_are_saved_with_the_tokenizer_and_seen_by_rewards(model_dir, tmp_path):
    module = fit(model_dir, tmp_path, **SETTINGS)
    export(module, tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    ids = tokenizer("1<back>2<go>").input_ids
    assert [i for i in ids if i >= len(tokenizer) - 2] == [len(tokenizer) - 2, len(tokenizer) - 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "1<back>2<go>"


def test_a_run_from_an_export_does_not_start_the_rows_again(model_dir, tmp_path):
    first = fit(model_dir, tmp_path, max_steps=2, **SETTINGS)
    export(first, tmp_path / "export")
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    second = fit(tmp_path / "export", tmp_path, **still, **SETTINGS)
    assert all(token.is_started for token in second.policy.new_tokens)
    for after, before in zip(matrices(second.policy.model), matrices(first.policy.model), strict=True):
        assert torch.equal(after, before)


def test_lora_on_an_export_trains_the_rows_that_it_came_with(model_dir, tmp_path):
    first = fit(model_dir, tmp_path, max_steps=1, **SETTINGS)
    export(first, tmp_path / "export")
    second = fit(tmp_path / "export", tmp_path, max_steps=2, **LORA, **SETTINGS)
    ids = [token.id for token in second.policy.new_tokens]
    for after, before in zip(matrices(second.policy.model), matrices(first.policy.model), strict=True):
        assert not torch.equal(after[ids], before[ids])
        others = torch.ones(len(before), dtype=torch.bool)
        others[ids] = False
        assert torch.equal(after[others], before[others])


def test_an_adapter_with_new_rows_continues_with_them(model_dir, tmp_path):
    first = fit(model_dir, tmp_path, max_steps=2, **LORA, **SETTINGS)
    export(first, tmp_path / "export", forms=["adapter"])
    path = str(tmp_path / "export-adapter")
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "finetuning_type": "lora"}
    second = fit(model_dir, tmp_path, adapter_name_or_path=path, **still, **SETTINGS)
    ids = torch.arange(len(first.policy.tokenizer) - 12, len(first.policy.tokenizer))[None]
    with torch.no_grad():
        torch.testing.assert_close(second.policy.model.eval()(ids).logits, first.policy.model.eval()(ids).logits)
    with pytest.raises(
        ValueError, match=r"trained the row of token \d+, but the model has \d+. Set model.init_special"
    ):
        fit(model_dir, tmp_path, adapter_name_or_path=path, **still)


def test_a_reserved_token_keeps_its_id_and_starts_at_its_description(tmp_path):
    directory = save_toy_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reserved = tokenizer.convert_tokens_to_ids("<|im_start|>")
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    settings = {"init_special_tokens": True, "new_special_tokens_config": {"<|im_start|>": "answer"}}
    module = fit(directory, tmp_path, **still, **settings)
    assert len(module.policy.tokenizer) == len(tokenizer)
    old = AutoModelForCausalLM.from_pretrained(directory).get_input_embeddings().weight
    expected = old[tokenizer("answer").input_ids].mean(0)
    torch.testing.assert_close(module.policy.model.get_input_embeddings().weight[reserved], expected)


def test_the_template_says_which_tokens_where_the_config_does_not(tiny_model_dir):
    module = make_module(tiny_model_dir, init_special_tokens=True, template="qwen3")
    assert [new.token for new in module.policy.new_tokens] == list(SPECIAL_TOKEN_MAPPING["qwen3"]) == ["<|BACKTRACK|>"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_special_tokens_config": NEW}, "model.new_special_tokens_config has no effect without"),
        ({"template": "qwen3"}, "model.template has no effect without model.init_special_tokens=true"),
        ({"init_special_tokens": True}, "Set model.new_special_tokens_config"),
        ({"init_special_tokens": True, "template": "gpt9"}, "model.template='gpt9' has no special tokens"),
        ({"init_special_tokens": True, "new_special_tokens_config": {"<a>": ""}}, "has '<a>': ''"),
    ],
)
def test_special_tokens_that_are_not_described_are_refused(tiny_model_dir, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(tiny_model_dir, **settings)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="nothing would set those of ids"):
        fit(tiny_model_dir, tmp_path, tokenizer_name_or_path=str(tmp_path / "tokenizer"))
