"""Packed attention against one span at a time, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from toy_models import build_model
from transformers import MistralConfig, MistralForCausalLM

from grpo_lightning.scoring import packed_attention as attention
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.packed_attention import install_packed_attention, packed_attention
from grpo_lightning.scoring.packing import AttentionSpans, pack
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

HEADS, KEY_HEADS, DIM = 4, 2, 8


def a_pack(share_prompts: bool = True) -> tuple[AttentionSpans, int]:
    """Two groups with completions of very unequal length."""
    lengths = [1, 9, 30, 2, 3, 17]
    rollouts = Rollouts.from_lists(
        [[1] * 7, [1] * 2], [[1] * n for n in lengths], [[0.0] * n for n in lengths], [False] * 6, [0, 1, 0, 1, 0, 0]
    )
    batch = pack(rollouts, torch.tensor([4, 0, 1, 2, 3, 5]), share_prompts)
    return batch.spans, batch.input_ids.numel()


def tensors(length: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    drawn = [torch.randn(1, count, length, DIM, generator=generator, dtype=torch.float64) for count in heads]
    return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: AttentionSpans,
    scale: float,
    window: int,
    softcap: float,
    sinks: Tensor | None = None,
) -> Tensor:
    """(1, L, heads, D): softmax written out for every query on its own."""
    rows = []
    key_index = torch.arange(query.shape[2]) if spans.key_index is None else spans.key_index
    for s in range(len(spans.cu_seq_q) - 1):
        keys = key_index[spans.cu_seq_k[s] : spans.cu_seq_k[s + 1]]
        queries = range(int(spans.cu_seq_q[s]), int(spans.cu_seq_q[s + 1]))
        for place, position in enumerate(queries, start=len(keys) - len(queries)):
            seen = keys[max(0, place + 1 - window) : place + 1]
            heads = []
            for head in range(HEADS):
                k, v = (tensor[0, head // (HEADS // KEY_HEADS), seen] for tensor in (key, value))
                scores = softcap * torch.tanh(k @ query[0, head, position] * scale / softcap)
                beside = 0.0 if sinks is None else sinks[head].exp()  # one more term of the sum, without a value
                heads.append((scores.exp() / (scores.exp().sum() + beside)) @ v)
            rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize(
    ("window", "softcap"), [(None, None), (5, None), (1, None), (1000, None), (None, 0.5), (5, 0.5)]
)
def test_packed_attention_equals_softmax_written_out_with_gradients(share_prompts, window, softcap):
    spans, length = a_pack(share_prompts)
    inputs = tensors(length)
    options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap, "packing": Packing(spans)}
    found, weights = packed_attention("sdpa", nn.Module(), *inputs, None, **options)
    expected = one_by_one(*inputs, spans, 0.3, window or length, softcap or 1e9)
    assert weights is None
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if softcap else {}  # the capped softmax is float32
    torch.testing.assert_close(found, expected, **tolerance)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad((found * upstream).sum(), inputs),
        torch.autograd.grad((expected * upstream).sum(), inputs),
        **tolerance,
    )


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_sinks_are_one_more_term_of_the_softmax_with_gradients(share_prompts, window):
    spans, length = a_pack(share_prompts)
    inputs = [*tensors(length), torch.tensor([-1.0, 0.5, 2.0, 4.0], dtype=torch.float64, requires_grad=True)]
    options = {"scaling": 0.3, "sliding_window": window, "packing": Packing(spans), "s_aux": inputs[3]}
    found, _ = packed_attention("sdpa", nn.Module(), *inputs[:3], None, **options)
    expected = one_by_one(*inputs[:3], spans, 0.3, window or length, 1e9, inputs[3])
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad((found * upstream).sum(), inputs), torch.autograd.grad((expected * upstream).sum(), inputs)
    )


def test_without_a_scale_scores_are_divided_by_the_root_of_the_head_size():
    spans, length = a_pack()
    inputs = tensors(length)
    default = packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans))
    given = packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans), scaling=DIM**-0.5)
    torch.testing.assert_close(default[0], given[0], rtol=0, atol=0)


def test_changing_one_completion_leaves_every_other_span_bit_equal():
    spans, length = a_pack()
    first, last = int(spans.cu_seq_q[2]), int(spans.cu_seq_q[3])
    inputs = [tensor.detach() for tensor in tensors(length, torch.float32)]
    before, _ = packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans))
    for tensor in inputs:
        tensor[:, :, first:last] += 100.0
    after, _ = packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans))
    changed = (before != after).flatten(2).any(-1)[0]
    assert changed[first:last].all()
    assert not changed[:first].any()
    assert not changed[last:].any()


def test_what_the_packed_kernels_do_not_do_is_refused():
    spans, length = a_pack()
    inputs = tensors(length)
    bidirectional = nn.Module()
    bidirectional.is_causal = False
    with pytest.raises(NotImplementedError, match="no dropout, the model asks for"):
        packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans), dropout=0.1)
    with pytest.raises(NotImplementedError, match="is causal, Module is not"):
        packed_attention("sdpa", bidirectional, *inputs, None, packing=Packing(spans))
    with pytest.raises(NotImplementedError, match="does not know the argument position_bias"):
        packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans), position_bias=torch.zeros(1))


@pytest.mark.parametrize("previous", ["sdpa", "eager"])
def test_a_model_with_packed_attention_gives_the_same_logits_in_unpacked_calls(previous):
    config = MistralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    model = MistralForCausalLM._from_config(config, attn_implementation=previous).eval()
    ids = torch.randint(0, 50, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # left padding, as in generation
    before = model(input_ids=ids, attention_mask=mask).logits
    assert install_packed_attention(model) == previous
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before, rtol=0, atol=0)


def test_under_autocast_attention_computes_in_its_precision_whatever_queries_and_keys_arrive_in():
    """A rotary embedding with float32 cosines hands over float32 queries; on a GPU they then missed the flash kernel."""
    spans, length = a_pack()
    query, key, value = tensors(length, torch.float32)
    packing = Packing(spans)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = packed_attention("sdpa", nn.Module(), query, key, value.bfloat16(), None, packing=packing)
    halves = [tensor.bfloat16() for tensor in (query, key, value)]
    expected, _ = packed_attention("sdpa", nn.Module(), *halves, None, packing=Packing(spans))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, expected, rtol=0, atol=0)
    gradients = torch.autograd.grad(mixed.float().square().sum(), (query, key, value))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_under_autocast_the_kernels_of_a_whole_model_are_handed_half_precision(monkeypatch):
    handed = set()

    def blocks(query, key, value, *further):
        handed.update(tensor.dtype for tensor in (query, key, value))
        return in_blocks(query, key, value, *further)

    in_blocks = attention._in_blocks
    monkeypatch.setattr(attention, "_in_blocks", blocks)
    rollouts = Rollouts.from_lists([[1] * 4], [[2] * 3, [3] * 5], [[0.0] * 3, [0.0] * 5], [False] * 2, [0, 0])
    scorer = Scorer(build_model(), 1.0, "packed")
    with torch.autocast("cpu", torch.bfloat16):
        scorer.score(rollouts, torch.arange(2)).logprobs.sum().backward()
    assert handed == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_autocast_attention_computes_in_what_it_is_given(dtype):
    spans, length = a_pack()
    found, _ = packed_attention("sdpa", nn.Module(), *tensors(length, dtype), None, packing=Packing(spans))
    assert found.dtype == dtype


def test_float64_stays_float64_under_autocast():
    spans, length = a_pack()
    inputs = tensors(length)
    expected, _ = packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = packed_attention("sdpa", nn.Module(), *inputs, None, packing=Packing(spans))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_under_autocast_the_flash_kernel_runs_on_float32_queries():
    spans, length = a_pack()
    query, key, value = tensors(length, torch.float32, "cuda")
    packing = Packing(spans, "cuda")
    with (
        torch.autocast("cuda", torch.bfloat16),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile,
    ):
        packed_attention("sdpa", nn.Module(), query, key, value.bfloat16(), None, packing=packing)
    assert packing.slow_path is None
    assert any("flash" in event.key.lower() for event in profile.key_averages())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_the_flash_kernel_equals_the_float64_blocks(share_prompts, window):
    spans, length = a_pack(share_prompts)
    exact, rounded = tensors(length), tensors(length, torch.bfloat16, "cuda")
    for double, half in zip(exact, rounded, strict=True):
        double.data.copy_(half.data)
    options = {"scaling": 1 / math.sqrt(DIM), "sliding_window": window}
    expected, _ = packed_attention("sdpa", nn.Module(), *exact, None, packing=Packing(spans), **options)
    found, _ = packed_attention("sdpa", nn.Module(), *rounded, None, packing=Packing(spans, "cuda"), **options)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0.02, atol=0.02)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * upstream).sum(), exact)
    gradients = torch.autograd.grad((found * upstream.to("cuda", torch.bfloat16)).sum(), rounded)
    for gradient, reference in zip(gradients, wanted, strict=True):
        assert (gradient.cpu().double() - reference).norm() < 0.02 * reference.norm()
