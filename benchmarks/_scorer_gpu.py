import math, time, sys, torch, os
import grpo_lightning.logprobs as L, grpo_lightning.logprob_kernels as K
from grpo_lightning.scoring import Scorer
from grpo_lightning.types import Rollouts
from transformers import Qwen2Config, Qwen2ForCausalLM
print(torch.__version__, torch.cuda.get_device_name(), "triton", K.AVAILABLE, flush=True)
def ms(f, n=5):
    f(); f(); ts = []
    for _ in range(n):
        torch.cuda.synchronize(); a = time.perf_counter(); f(); torch.cuda.synchronize(); ts.append(time.perf_counter() - a)
    return round(sorted(ts)[n // 2] * 1e3, 2)
def head(H, T=16384, V=151936):
    torch.manual_seed(0)
    h = torch.randn(T, H, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    w = (torch.randn(V, H, device="cuda", dtype=torch.bfloat16) * .05).requires_grad_()
    y = torch.randint(V, (T,), device="cuda")
    def go(chunk, ent=True):
        w.grad = h.grad = None
        L.selected_logprobs(h, w, y, chunk_tokens=chunk, with_entropy=ent)[0].sum().backward()
    print("H", H, "floor ms at 700T", round(8 * T * V * H / 700e12 * 1e3, 1))
    old = L._add_product
    def direct(total, left, right):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    for fused in (True, False):
        L._fused = (lambda r: True) if fused else (lambda r: False)
        for chunk in (1024, 2048, 4096, 8192):
            if not fused and chunk > 2048: continue
            L._add_product = old; a = ms(lambda: go(chunk))
            try:
                L._add_product = direct; b = ms(lambda: go(chunk))
            except Exception as e: b = repr(e)[:150]
            L._add_product = old
            print("  fused" if fused else "  torch", "chunk", chunk, "ms", a, "addmm out_dtype", b, flush=True)
    L._fused = lambda r: K.AVAILABLE and r.is_cuda and r.dtype != torch.float64
    with torch.no_grad():
        print("  forward only 4096", ms(lambda: L.selected_logprobs(h, w, y, chunk_tokens=4096, with_entropy=True)))
        raw = torch.nn.functional.linear(h[:4096], w)
        print("  mm 4096", ms(lambda: torch.nn.functional.linear(h[:4096], w)), "stats", ms(lambda: K.softmax_statistics(raw, y[:4096], L.LogitTransform())),
              "grad", ms(lambda: K.logit_gradient_(raw, y[:4096], torch.full((4096,), 30., device="cuda"), torch.ones(4096, device="cuda"), None, L.LogitTransform())), flush=True)
        for wp in (4, 8, 16):
            for bl in (2048, 4096, 8192):
                K.WARPS, K.BLOCK = wp, bl
                raw = torch.nn.functional.linear(h[:4096], w)
                print("  warps", wp, "block", bl, "stats", ms(lambda: K.softmax_statistics(raw, y[:4096], L.LogitTransform())),
                  "grad", ms(lambda: K.logit_gradient_(raw, y[:4096], torch.full((4096,), 30., device="cuda"), torch.ones(4096, device="cuda"), None, L.LogitTransform())), flush=True)
        K.WARPS, K.BLOCK = 8, 4096
def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    P = torch.randint(60, 200, (64,), generator=g).tolist()
    C = torch.exp(torch.randn(64, 8, generator=g) * 0.6 + math.log(220)).clamp(8, 1024).int().flatten().tolist()
    tok = lambda n: torch.randint(0, 150000, (n,), generator=g).tolist()
    return Rollouts.from_lists([tok(p) for p in P], [tok(c) for c in C], [[0.] * c for c in C], [False] * 512, [i // 8 for i in range(512)])
def e2e(name, hid, inter, layers, heads, budgets, pads):
    r = batch(); rows = torch.arange(512)
    useful = int(r.prompt_lengths.sum() + r.completion_lengths.sum())
    cfg = Qwen2Config(vocab_size=151936, hidden_size=hid, intermediate_size=inter, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32768)
    with torch.device("cuda"): m = Qwen2ForCausalLM._from_config(cfg, dtype=torch.bfloat16)
    n = sum(p.numel() for p in m.parameters())
    for layout, share, budget in [("packed", True, b) for b in budgets] + [("packed", False, b) for b in budgets[-1:]] + [("padded", True, b) for b in pads]:
        s = Scorer(m, 1.0, layout, share)
        def go():
            m.zero_grad()
            for part in s.plan(r, rows, budget):
                (s.score(r, part, "cuda", with_entropy=True).logprobs.sum() / 1e5).backward()
        try:
            go(); torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
            t = ms(go, 3)
            print("E2E", name, layout, "shared" if share else "unshared", budget, "parts", len(s.plan(r, rows, budget)), "ms", t, "TFLOP/s useful", round(6 * n * useful / t / 1e9, 1), "peak GiB", round(torch.cuda.max_memory_allocated() / 2**30, 1), flush=True)
        except torch.OutOfMemoryError: print("E2E", name, layout, share, budget, "OOM", flush=True)
    if os.environ.get("PROF"):
        from torch.profiler import profile, ProfilerActivity
        s = Scorer(m, 1.0, "packed"); part = s.plan(r, rows, 16384)[0]
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as p:
            a = time.perf_counter(); o = s.score(r, part, "cuda", with_entropy=True).logprobs.sum(); b = time.perf_counter(); o.backward(); c = time.perf_counter(); torch.cuda.synchronize(); print("host fwd", b - a, "bwd", c - b, "sync", time.perf_counter() - c)
        print(p.key_averages().table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=70)[:7000])
    del m; torch.cuda.empty_cache()
for part in sys.argv[1:]:
    if part == "head": head(896); head(1536)
    if part == "0.5b": e2e("0.5b", 896, 4864, 24, 14, [8192, 16384, 32768], [8192])
    if part == "1.5b": e2e("1.5b", 1536, 8960, 28, 12, [8192, 16384], [8192])
