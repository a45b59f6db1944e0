"""Gradients of whole networks: `gradients*.safetensors` of make_training.py."""
import torch

import training_methods as methods
from training_book import Book, distance, summary

PROMPTS = ["a photo of a sks teddy bear", "a sks teddy bear on a beach"]
TOKEN_PROMPTS = ["a photo of a <toy> <toy>_1 teddy bear", "a <toy> <toy>_1 on a beach"]
CUSTOM_PROMPTS = ["a photo of a <new1> teddy bear", "a <new1> teddy bear on a beach"]
TOKENS, INITIAL = ["<toy>", "<toy>_1"], "bear"
LARGEST = 300_000  # bytes of gradients that are written whole
GAMMA, BACKGROUND = 5.0, 0.2

# case: model, what is trained, prompts, the loss' settings
CASES = {
    "dreambooth": ("sd1", lambda n, s: methods.train_all(n), PROMPTS, {}),
    "dreambooth_masked": ("sd1", lambda n, s: methods.train_all(n), PROMPTS, dict(background=BACKGROUND)),
    "dreambooth_masked_normalised": ("sd1", lambda n, s: methods.train_all(n), PROMPTS, dict(background=BACKGROUND, normalised=True)),
    "dreambooth_min_snr": ("sd1", lambda n, s: methods.train_all(n), PROMPTS, dict(gamma=GAMMA)),
    "dreambooth_v": ("sd2", lambda n, s: methods.train_all(n), PROMPTS, {}),
    "dreambooth_v_min_snr": ("sd2", lambda n, s: methods.train_all(n), PROMPTS, dict(gamma=GAMMA)),
    "lora_attention": ("sd1", lambda n, s: methods.train_lora(n, s, zero=False), PROMPTS, {}),
    "lora_attention_conv": ("sd1", lambda n, s: methods.train_lora(n, s, convolutions=True, zero=False), PROMPTS, {}),
    "lora_text": ("sd1", lambda n, s: methods.train_lora(n, s, text=True, zero=False), PROMPTS, {}),
    "textual_inversion": ("sd1", lambda n, s: methods.add_tokens(n, TOKENS, INITIAL, s), TOKEN_PROMPTS, {}),
    "custom_diffusion": ("sd1", lambda n, s: methods.train_custom(n, "<new1>", INITIAL, s), CUSTOM_PROMPTS, {}),
    "sdxl_dreambooth": ("sdxl", lambda n, s: methods.train_all(n), PROMPTS, {}),
    "sdxl_lora_text": ("sdxl", lambda n, s: methods.train_lora(n, s, text=True, zero=False), PROMPTS, {}),
    "sdxl_textual_inversion": ("sdxl", lambda n, s: methods.add_tokens(n, TOKENS, INITIAL, s), TOKEN_PROMPTS, {}),
}
FILES = {"gradients-all": "dreambooth", "gradients-lora": "lora", "gradients-tokens": ("textual", "custom"), "gradients-sdxl": "sdxl"}


def inputs(seed):
    """Two latents that are not square, with noise, timesteps far apart, and a soft mask."""
    g = torch.Generator().manual_seed(seed)
    return {"latents": 0.9 * torch.randn(2, 4, 8, 12, generator=g), "noise": torch.randn(2, 4, 8, 12, generator=g), "timesteps": torch.tensor([701, 57]),
            "mask": torch.rand(2, 1, 8, 12, generator=g).mul(3).sub(1).clamp(0, 1)}


def run(models, case, batch, seed, dtype):
    model, prepare, prompts, settings = CASES[case]
    network = prepare(methods.read(models, model, dtype), seed)
    start = network.values()
    batch = {**batch, "ids": network.ids(prompts)}
    loss, prediction = methods.loss_of(network, batch, **settings)
    loss.backward()
    return network, start, batch, loss, prediction, network.gradients()


def keep(book, models, case, batch, seed):
    network, start, batch, loss, prediction, gradients = run(models, case, batch, seed, torch.float64)
    single = run(models, case, batch, seed, torch.float32)
    largest = max(g.abs().max() for g in gradients.values())
    # Where the function does not depend on a parameter, as on the bias of the keys, its gradient is rounding in any arithmetic.
    silent = sorted(k for k, g in gradients.items() if g.abs().max() < 1e-9 * largest)
    worst = max((distance(single[-1][k], g), k) for k, g in gradients.items() if k not in silent)
    size = 4 * sum(g.numel() for g in gradients.values())
    book.put(case, {"loss": loss, "prediction": prediction, **{f"ids{i or ''}": x for i, x in enumerate(batch["ids"])}})
    adapted = {k: v for k, v in start.items() if "lora_" in k or k in network.rows}
    book.put(f"{case}.init", adapted)
    if size <= LARGEST:
        book.put(f"{case}.grad", gradients)
    else:
        book.put(case, {"grad_summary": summary(gradients)})
    model, _, prompts, settings = CASES[case]
    book.case(case, model=model, prompts=prompts, parameters=sorted(gradients), silent=silent, whole=size <= LARGEST, rows=network.rows,
              loss=settings, prediction_type=network.scheduler.config.prediction_type)
    print(f"  {case}: {len(gradients)} parameters, {size / 1024:.0f} KiB, {len(silent)} silent, loss {loss:.4f}; float32 differs by {worst[0]:.1e} ({worst[1]})")


def make(models, out, seed):
    for file, kinds in FILES.items():
        book, batch = Book(rank=methods.RANK, alpha=methods.ALPHA, init_word=INITIAL), inputs(seed + 72)
        book.put("", batch)
        for case in CASES:
            if case.startswith(kinds):
                keep(book, models, case, batch, seed + 73)
        book.write(out / f"{file}.safetensors")
