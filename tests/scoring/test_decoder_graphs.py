"""Passes by CUDA graphs against the same passes kernel by kernel."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_packing import rollouts_of
from test_scorer import toy

from grpo_lightning.scoring.decoder_graphs import DecoderGraphs
from grpo_lightning.scoring.fast_kernels import compile_layers, use_liger_kernels
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.scoring.weight_gradients import WeightGradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BATCHES = [
    rollouts_of([12, 7], [30, 20, 11, 9], [0, 0, 1, 1]),
    rollouts_of([9, 8], [25, 22, 13, 10], [0, 0, 1, 1]),  # of the same shape
    rollouts_of([5, 6, 7], [40, 60, 20], [0, 1, 2]),  # no prompt in common
    rollouts_of([40, 50], [80, 70, 90, 66], [0, 0, 1, 1]),
]


def trained(kernels="plain"):
    """A small model on a GPU, as a run has it; its vocabulary holds the tokens of the batches."""
    model = toy("qwen2", vocab_size=1024).cuda().train()
    gradients = WeightGradients()
    if kernels == "liger":
        pytest.importorskip("liger_kernel")
        use_liger_kernels(model)
    if kernels == "compiled":
        compile_layers(model)
    else:
        gradients.install(model)
    return model, gradients


def gradient_of(model, gradients, graphs, batches=BATCHES):
    """Of the sum over batches, each of them a pass of its own, and the logprobs of all."""
    scorer, found = Scorer(model, 1.0), []
    scorer.use_graphs(graphs)
    model.zero_grad()
    for rollouts in batches:
        with torch.autocast("cuda", torch.bfloat16):
            scores = scorer.score(rollouts, torch.arange(rollouts.num_completions)).logprobs
            found.append(scores.detach().clone())
            with gradients.in_place():
                (scores * torch.linspace(-1, 1, len(scores), device="cuda")).sum().backward()
    of_weights = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat(found), of_weights


def assert_close(found, expected):
    for name, reference in expected.items():
        assert (found[name] - reference).norm() <= 0.02 * reference.norm(), name


@pytest.mark.parametrize("kernels", ["plain", "liger", "compiled"])
def test_logprobs_and_gradients_are_those_of_passes_kernel_by_kernel(kernels, caplog):
    model, gradients = trained(kernels)
    logprobs, expected = gradient_of(model, gradients, None)
    graphs = DecoderGraphs(gradients)
    for _ in range(2):  # recorded, and launched again on gradients that are there no more
        found, of_weights = gradient_of(model, gradients, graphs)
        torch.testing.assert_close(found, logprobs, rtol=0.02, atol=0.02)
        assert of_weights.keys() == expected.keys()
        assert_close(of_weights, expected)
    assert "could not record" not in caplog.text
    assert len(graphs._graphs) == 3


def test_weights_that_an_optimizer_has_moved_are_those_of_the_next_pass():
    model, gradients = trained()
    graphs, optimizer = DecoderGraphs(gradients), torch.optim.SGD(model.parameters(), 0.1)
    gradient_of(model, gradients, graphs)
    optimizer.step()
    found, _ = gradient_of(model, gradients, graphs)
    expected, _ = gradient_of(model, gradients, None)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_adapters_over_frozen_weights_get_their_gradients():
    model, gradients = trained()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    _, expected = gradient_of(model, gradients, None)
    _, found = gradient_of(model, gradients, DecoderGraphs(gradients))
    assert found.keys() == expected.keys()
    assert_close(found, expected)


def test_a_pass_before_the_gradient_of_another_one_leaves_that_its_memory():
    model, gradients = trained()
    graphs, scorer = DecoderGraphs(gradients), Scorer(model, 1.0)
    first, second = BATCHES[:2]

    def total():
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            sums = [scorer.score(each, torch.arange(each.num_completions)).logprobs.sum() for each in (first, second)]
            (sums[0] + 2 * sums[1]).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = total()
    scorer.use_graphs(graphs)
    assert_close(total(), expected)


def test_float32_passes_whose_attention_has_other_indices_in_every_batch_are_not_recorded(caplog):
    model, gradients = trained()
    graphs, found = DecoderGraphs(gradients), []
    for used in (None, graphs):
        scorer = Scorer(model, 1.0)
        scorer.use_graphs(used)
        found.append([scorer.score(each, torch.arange(each.num_completions)).logprobs for each in BATCHES[:2]])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert "without a flash kernel" in caplog.text


@pytest.mark.parametrize("kernels", ["plain", "liger"])
def test_passes_kernel_by_kernel_in_between_leave_nothing_that_the_next_recording_fails_on(kernels, caplog):
    model, gradients = trained(kernels)
    _, expected = gradient_of(model, gradients, None, BATCHES[2:])
    graphs = DecoderGraphs(gradients)
    gradient_of(model, gradients, graphs, BATCHES[:1])
    with torch.autocast("cuda", torch.bfloat16):
        left: list[object] = [Scorer(model, 1.0).score(BATCHES[1], torch.arange(4)).logprobs.sum()]
    left.append(left)  # until it is collected its weights' gradients belong to another stream
    del left
    _, found = gradient_of(model, gradients, graphs, BATCHES[2:])
    assert_close(found, expected)
    assert "could not record" not in caplog.text
    assert len(graphs._graphs) >= 2


def test_without_triton_gathered_keys_are_not_recorded(monkeypatch, caplog):
    monkeypatch.setattr("grpo_lightning.numerics.kernel_language.AVAILABLE", False)
    model, gradients = trained()
    _, expected = gradient_of(model, gradients, None)
    _, found = gradient_of(model, gradients, DecoderGraphs(gradients))
    assert_close(found, expected)
    assert "without triton" in caplog.text


def test_a_second_backward_pass_says_what_to_change():
    model, gradients = trained()
    scorer, rollouts = Scorer(model, 1.0), BATCHES[0]
    scorer.use_graphs(DecoderGraphs(gradients))
    with torch.autocast("cuda", torch.bfloat16):
        loss = scorer.score(rollouts, torch.arange(rollouts.num_completions)).logprobs.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"model\.cuda_graphs"):
        loss.backward()


def test_hooks_are_called_in_every_pass_and_that_is_said_once(caplog):
    model, gradients = trained()
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    graphs = DecoderGraphs(gradients)
    gradient_of(model, gradients, graphs)
    seen = len(calls)
    gradient_of(model, gradients, graphs)
    assert len(calls) - seen >= len(BATCHES)
    assert caplog.text.count("in spite of model.cuda_graphs=true") == 1


def test_what_cannot_be_recorded_is_launched_kernel_by_kernel_and_said_once(caplog):
    model, gradients = trained()
    _, expected = gradient_of(model, gradients, None)
    layer = model.model.layers[1].mlp
    plain = layer.forward
    layer.forward = lambda rows: plain(rows) * (1.0 if float(rows.detach().abs().max()) < 1e9 else 0.0)  # asks the GPU
    _, found = gradient_of(model, gradients, DecoderGraphs(gradients))
    assert_close(found, expected)
    assert caplog.text.count("model.cuda_graphs=true could not record") == 1
    torch.rand(1, device="cuda")  # torch's random numbers go on
