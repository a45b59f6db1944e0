"""Gradients of single operations by torch's autograd in float64: `kernels.safetensors` of make_training.py."""
import torch
from torch.nn import functional as F

from training_book import Book, distance


class Kernels:
    """Runs one operation on random float32 numbers in float64, and keeps inputs, output and every gradient."""

    def __init__(self, seed):
        self.book, self.generator, self.worst = Book(), torch.Generator().manual_seed(seed), (0, "")

    def normal(self, *shape, scale=1.0):
        return torch.randn(shape, generator=self.generator) * scale

    def weight(self, out, *inner):
        return self.normal(out, *inner) / torch.Size(inner).numel() ** 0.5

    def keep(self, name, run, inputs, whole=None, **facts):
        """`inputs` get gradients; `whole` are whole numbers or masks, which have none."""
        results = []
        for dtype in (torch.float64, torch.float32):
            leaves = {k: v.to(dtype).requires_grad_() for k, v in inputs.items()}
            out = run(**leaves, **(whole or {}))
            if not results:
                up = self.normal(*out.shape)
            results.append((out, dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), up.to(dtype))))))
        (out, grads), (_, single) = results
        self.worst = max([self.worst] + [(distance(single[k], grads[k]), f"{name}.grad.{k}") for k in grads])
        self.book.case(name, **facts)
        self.book.put(f"{name}.in", {**inputs, **(whole or {})})
        self.book.put(name, {"out": out, "up": up})
        self.book.put(f"{name}.grad", grads)


def linear(k):
    run = lambda x, weight, bias=None: F.linear(x, weight, bias)
    for name, shape, out, bias in (("linear", (2, 7, 12), 20, True), ("linear.odd", (3, 5, 33), 17, True), ("linear.no_bias", (2, 9, 16), 8, False),
                                   ("linear.rows", (3, 40), 24, True)):
        inputs = {"x": k.normal(*shape), "weight": k.weight(out, shape[-1])}
        k.keep(name, run, {**inputs, "bias": k.normal(out)} if bias else inputs, op="linear", bias=bias)
    # The adapter's product: the frozen weight has a gradient here too, which training doesn't need.
    low = lambda x, weight, bias, down, up: F.linear(x, weight, bias) + 2.0 * F.linear(F.linear(x, down), up)
    k.keep("linear.lora", low, {"x": k.normal(2, 7, 12), "weight": k.weight(20, 12), "bias": k.normal(20), "down": k.weight(4, 12), "up": k.weight(20, 4)},
           op="linear + scale * up(down(x))", scale=2.0)
    run = lambda table, ids: F.embedding(ids, table)
    k.keep("embedding", run, {"table": k.normal(11, 6)}, {"ids": torch.tensor([[0, 3, 3, 10, 7, 1, 3], [5, 0, 2, 2, 9, 10, 4]])}, op="embedding")


def convolution(k):
    def run(x, weight, bias=None, term=None, residual=None, stride=1, padding=(0, 0, 0, 0), upsample=False):
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if upsample else x
        out = F.conv2d(F.pad(x, padding), weight, bias, stride)
        out = out if term is None else out + term[:, :, None, None]
        return out if residual is None else out + residual

    one, after = (1, 1, 1, 1), (0, 1, 0, 1)  # left, right, top, bottom
    for name, x, out, kernel, settings in (
            ("conv", (2, 8, 7, 9), 12, 3, dict(padding=one)),
            ("conv.one_image", (1, 5, 6, 4), 7, 3, dict(padding=one)),
            ("conv.channels", (1, 32, 5, 5), 16, 3, dict(padding=one)),
            ("conv.stride_symmetric", (2, 6, 8, 10), 6, 3, dict(stride=2, padding=one)),
            ("conv.stride_symmetric_odd", (2, 6, 9, 7), 10, 3, dict(stride=2, padding=one)),
            ("conv.stride_asymmetric", (2, 6, 8, 10), 6, 3, dict(stride=2, padding=after)),
            ("conv.stride_asymmetric_odd", (2, 6, 9, 7), 10, 3, dict(stride=2, padding=after)),
            ("conv.pointwise", (2, 16, 5, 6), 24, 1, {}),
            ("conv.upsampled", (2, 8, 4, 5), 8, 3, dict(padding=one, upsample=True))):
        inputs = {"x": k.normal(*x), "weight": k.weight(out, x[1], kernel, kernel), "bias": k.normal(out)}
        k.keep(name, lambda settings=settings, **t: run(**t, **settings), inputs, op="conv2d", **{"stride": 1, "padding": [0] * 4, "upsample": False, **settings})
    inputs = lambda: {"x": k.normal(2, 8, 7, 9), "weight": k.weight(12, 8, 3, 3), "bias": k.normal(12)}
    same = dict(op="conv2d", stride=1, padding=one, upsample=False)
    k.keep("conv.term", lambda **t: run(**t, padding=one), {**inputs(), "term": k.normal(2, 12)}, **same)
    k.keep("conv.residual", lambda **t: run(**t, padding=one), {**inputs(), "residual": k.normal(2, 12, 7, 9)}, **same)
    k.keep("conv.term_residual", lambda **t: run(**t, padding=one), {**inputs(), "term": k.normal(2, 12), "residual": k.normal(2, 12, 7, 9)}, **same)
    for name, stride in (("conv.lora", 1), ("conv.lora_stride", 2)):
        low = lambda x, weight, bias, down, up, stride=stride: run(x, weight, bias, stride=stride, padding=one) + 2.0 * run(run(x, down, stride=stride, padding=one), up)
        k.keep(name, low, {**inputs(), "down": k.weight(4, 8, 3, 3), "up": k.weight(12, 4, 1, 1)}, op="conv2d + scale * up(down(x))", stride=stride, padding=one, scale=2.0)


def norms(k):
    for name, shape, groups, eps, silu in (("group_norm_silu", (2, 64, 3, 5), 32, 1e-5, True), ("group_norm_silu.odd", (3, 12, 7, 3), 4, 1e-5, True),
                                           ("group_norm_silu.wide", (1, 8, 17, 19), 4, 1e-5, True), ("group_norm", (1, 64, 3, 5), 32, 1e-6, False)):
        def run(x, weight, bias, groups=groups, eps=eps, silu=silu):
            out = F.group_norm(x, groups, weight, bias, eps)
            return F.silu(out) if silu else out
        x = k.normal(*shape, scale=2.0) + k.normal(shape[0], shape[1], 1, 1)
        k.keep(name, run, {"x": x, "weight": 1 + k.normal(shape[1], scale=0.3), "bias": k.normal(shape[1], scale=0.3)}, op="group_norm", groups=groups, eps=eps, silu=silu)
    for name, shape in (("layer_norm", (2, 7, 24)), ("layer_norm.odd", (3, 5, 33))):
        run = lambda x, weight, bias: F.layer_norm(x, (x.shape[-1],), weight, bias, 1e-5)
        x = k.normal(*shape, scale=2.0) + k.normal(*shape[:-1], 1)
        k.keep(name, run, {"x": x, "weight": 1 + k.normal(shape[-1], scale=0.3), "bias": k.normal(shape[-1], scale=0.3)}, op="layer_norm", eps=1e-5)


def activations(k):
    large = torch.tensor([-20.0, -8.0, -3.0, -1.0, -1e-4, 0.0, 1e-4, 1.0, 3.0, 8.0, 20.0])
    for name, run in (("silu", lambda x: F.silu(x)), ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)), ("gelu", lambda x: F.gelu(x)), ("gelu.tanh", lambda x: F.gelu(x, approximate="tanh"))):
        k.keep(name, run, {"x": torch.cat([large, k.normal(50, scale=2.0)])}, op=name)

    def geglu(x):
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)

    k.keep("geglu", geglu, {"x": k.normal(2, 7, 32, scale=2.0)}, op="geglu: first half * gelu(second half)")
    k.keep("geglu.odd", geglu, {"x": k.normal(3, 5, 34, scale=2.0)}, op="geglu: first half * gelu(second half)")
    k.keep("geglu.projected", lambda x, weight, bias: geglu(F.linear(x, weight, bias)), {"x": k.normal(2, 7, 12), "weight": k.weight(48, 12), "bias": k.normal(48)},
           op="geglu of a linear layer")


def attention(k):
    def run(q, k, v, heads, causal=False):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    for name, batch, of_kv, m, n, heads, depth, causal in (
            ("attention.self", 2, 2, 17, 17, 4, 8, False), ("attention.cross", 2, 2, 23, 11, 4, 10, False), ("attention.cross_one", 2, 2, 12, 1, 2, 8, False),
            ("attention.shared", 3, 1, 15, 13, 2, 8, False), ("attention.one_head", 2, 2, 9, 21, 1, 5, False), ("attention.causal", 2, 2, 13, 13, 4, 8, True),
            ("attention.long", 1, 1, 150, 150, 2, 8, False), ("attention.sharp", 1, 1, 20, 20, 2, 8, False)):
        scale = 6.0 if name == "attention.sharp" else 1.5
        inputs = {"q": k.normal(batch, m, heads * depth, scale=scale), "k": k.normal(of_kv, n, heads * depth, scale=scale), "v": k.normal(of_kv, n, heads * depth)}
        k.keep(name, lambda heads=heads, causal=causal, **t: run(**t, heads=heads, causal=causal), inputs, op="attention", heads=heads, causal=causal, scale=depth**-0.5)


def losses(k):
    """The mean of squares, alone and with a weight for every row and pixel: the first gradient of any training."""
    run = lambda prediction, target, weight: ((prediction - target) ** 2 * weight).mean()
    target, weight = k.normal(2, 4, 5, 6), torch.rand(2, 1, 5, 6, generator=k.generator)
    k.keep("mse", lambda prediction: F.mse_loss(prediction, target.to(prediction.dtype)), {"prediction": k.normal(2, 4, 5, 6)}, op="mse")
    k.book.put("mse.in", {"target": target})
    k.keep("mse.weighted", lambda prediction: run(prediction, target.to(prediction.dtype), weight.to(prediction.dtype)), {"prediction": k.normal(2, 4, 5, 6)},
           op="mean(weight * (prediction - target)^2)")
    k.book.put("mse.weighted.in", {"target": target, "weight": weight})


def make(out, seed):
    kernels = Kernels(seed + 71)
    for kind in (linear, convolution, norms, activations, attention, losses):
        kind(kernels)
    kernels.book.write(out / "kernels.safetensors")
    print(f"  torch's float32 differs from float64 by {kernels.worst[0]:.1e} of the largest entry at most ({kernels.worst[1]})")
