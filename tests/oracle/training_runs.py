"""Twenty steps of each method: `runs*.safetensors` of make_training.py, with torch's AdamW, diffusers' schedules and EMAModel."""
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

import training_files
import training_methods as methods
from training_book import Book, distance, summary
from training_gradients import BACKGROUND, CUSTOM_PROMPTS, GAMMA, INITIAL, LARGEST, PROMPTS, TOKEN_PROMPTS, TOKENS

STEPS, WARMUP, BETAS, EPSILON, DECAY, OFFSET = 20, 5, (0.9, 0.999), 1e-8, 1e-2, 0.1
CLASS_PROMPT = "a photo of a teddy bear"
WHOLE = ("lora", "lora_text", "textual_inversion", "custom_diffusion")  # the trained numbers are written whole

ALL = lambda n, s: methods.train_all(n)
LORA = lambda n, s: methods.train_lora(n, s)
USUAL = dict(model="sd1", prompts=PROMPTS, rate=2e-3, schedule="constant_with_warmup", warmup=WARMUP, max_norm=1.0)
CASES = {
    "dreambooth": (ALL, dict(rate=5e-4)),
    "dreambooth_ema": (lambda n, s: methods.train_all(n, text=False), dict(rate=5e-4, ema=[0.99, 0.6])),
    "dreambooth_prior": (ALL, dict(rate=5e-4, prior=1.0)),
    "dreambooth_v_min_snr": (ALL, dict(rate=5e-4, model="sd2", gamma=GAMMA)),
    "lora": (LORA, {}),
    "lora_conv": (lambda n, s: methods.train_lora(n, s, convolutions=True), {}),
    "lora_text": (lambda n, s: methods.train_lora(n, s, text=True), {}),
    "lora_text_rate": (lambda n, s: methods.train_lora(n, s, text=True), dict(text_rate=5e-4)),
    "lora_cosine": (LORA, dict(schedule="cosine")),
    "lora_min_snr": (LORA, dict(gamma=GAMMA)),
    "lora_prior_min_snr": (LORA, dict(gamma=GAMMA, prior=0.5)),
    "lora_masked": (LORA, dict(background=BACKGROUND)),
    "lora_masked_normalised": (LORA, dict(background=BACKGROUND, normalised=True)),
    "lora_offset": (LORA, dict(offset=OFFSET)),
    "lora_accumulation": (LORA, dict(accumulation=2)),
    "textual_inversion": (lambda n, s: methods.add_tokens(n, TOKENS, INITIAL, s), dict(prompts=TOKEN_PROMPTS, rate=5e-3, schedule="constant", warmup=0, max_norm=None)),
    "custom_diffusion": (lambda n, s: methods.train_custom(n, "<new1>", INITIAL, s), dict(prompts=CUSTOM_PROMPTS)),
    "sdxl_lora_text": (lambda n, s: methods.train_lora(n, s, text=True), dict(model="sdxl")),
}
FILES = {"runs-dreambooth": "dreambooth", "runs-lora": ("lora", "sdxl"), "runs-tokens": ("textual", "custom")}


def inputs(seed):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g)
    return {"latents": 0.9 * normal(2, 4, 8, 8), "class_latents": 0.9 * normal(2, 4, 8, 8), "noise": normal(STEPS, 4, 4, 8, 8), "offset_noise": normal(STEPS, 2, 4),
            "timesteps": torch.randint(0, 1000, (STEPS, 4), generator=g), "mask": torch.rand(2, 1, 8, 8, generator=g).mul(3).sub(1).clamp(0, 1)}


def batches(given, step, ids, class_ids, settings):
    """The micro-batches of one step."""
    noise, timesteps, latents = given["noise"][step], given["timesteps"][step], given["latents"]
    pair = lambda rows: {"latents": latents, "noise": noise[rows], "timesteps": timesteps[rows], "ids": ids, "mask": given["mask"]}
    if settings.get("prior") is not None:
        both = [torch.cat([a, b]) for a, b in zip(ids, class_ids)]
        return [{"latents": torch.cat([latents, given["class_latents"]]), "noise": noise, "timesteps": timesteps, "ids": both}]
    if settings.get("accumulation"):
        return [pair(slice(0, 2)), pair(slice(2, 4))]
    first = pair(slice(0, 2))
    if settings.get("offset") is not None:
        first["noise"] = first["noise"] + settings["offset"] * given["offset_noise"][step][:, :, None, None]
    return [first]


def optimizer_of(network, settings):
    text = {id(p) for k, p in network.trained.items() if k.startswith("text_encoder")}
    groups = [{"params": [p for p in network.trained.values() if id(p) not in text], "lr": settings["rate"]},
              {"params": [p for p in network.trained.values() if id(p) in text], "lr": settings.get("text_rate", settings["rate"])}]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=BETAS, eps=EPSILON, weight_decay=DECAY)


def train(models, case, given, seed, dtype):
    """Losses of the micro-batches, norms of the gradients before clipping, rates of the steps; the trained numbers before and after."""
    prepare, changes = CASES[case]
    settings = {**USUAL, **changes}
    network = prepare(methods.read(models, settings["model"], dtype), seed)
    ids, class_ids = network.ids(settings["prompts"]), network.ids([CLASS_PROMPT] * 2)
    start = network.values()
    parameters = list(network.trained.values())
    optimizer = optimizer_of(network, settings)
    schedule = get_scheduler(settings["schedule"], optimizer, num_warmup_steps=settings["warmup"], num_training_steps=STEPS)
    averages = [EMAModel(parameters, decay=decay) for decay in settings.get("ema", [])]
    others = {k: network.trained[k].detach().clone() for k in network.rows}
    losses, norms, rates = [], [], []
    options = {k: settings[k] for k in ("gamma", "background", "normalised", "prior") if k in settings}
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = batches(given, step, ids, class_ids, settings)
        for batch in parts:
            loss, _ = methods.loss_of(network, batch, **options)
            (loss / len(parts)).backward()
            losses.append(loss.detach())
        for name, rows in network.rows.items():  # train_custom_diffusion.py: the other rows have no part in the norm
            keep = torch.zeros(len(network.trained[name]), 1, dtype=dtype)
            keep[rows] = 1
            network.trained[name].grad *= keep
        limit = float("inf") if settings["max_norm"] is None else settings["max_norm"]
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, limit))
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        for name, rows in network.rows.items():  # textual_inversion.py: the other rows stay, whatever AdamW's decay did to them
            with torch.no_grad():
                now = others[name].clone()
                now[rows] = network.trained[name][rows]
                network.trained[name].copy_(now)
        for average in averages:
            average.step(parameters)
    ema = {decay: dict(zip(network.trained, (p.clone() for p in average.shadow_params))) for decay, average in zip(settings.get("ema", []), averages)}
    return network, dict(ids=ids, class_ids=class_ids), settings, torch.stack(losses), torch.stack(norms), torch.tensor(rates, dtype=torch.float64), start, network.values(), ema


def less(after, before):
    return {k: after[k] - before[k] for k in before}


def keep(book, models, case, given, seed):
    network, ids, settings, losses, norms, rates, start, final, ema = train(models, case, given, seed, torch.float64)
    single = train(models, case, given, seed, torch.float32)
    change, rounded = less(final, start), less(single[7], single[6])
    apart = {k: distance(rounded[k], change[k]) for k in change}
    loose = sorted(k for k, d in apart.items() if d > 2e-3)  # Adam makes a step of the gradient's sign, also where that is rounding
    size, whole = 4 * sum(v.numel() for v in final.values()), case in WHOLE
    assert not whole or size <= LARGEST
    book.put(case, {"losses": losses, "norms": norms, "rates": rates, **{f"ids{i or ''}": x for i, x in enumerate(ids["ids"])}})
    if "prior" in settings:
        book.put(case, {f"class_ids{i or ''}": x for i, x in enumerate(ids["class_ids"])})
    drawn = {k: v for k, v in start.items() if k in network.rows or "lora_A" in k}
    same = next((c for c, init in book.inits.items() if init.keys() == drawn.keys() and all(torch.equal(v, init[k]) for k, v in drawn.items())), None)
    if drawn and same is None:
        book.put(f"{case}.init", drawn)
        book.inits[case] = drawn
    if whole:
        book.put(f"{case}.final", final)
    book.put(case, {"change_summary": summary(change), **{f"ema_{d}_summary": summary(less(e, start)) for d, e in ema.items()}})
    book.case(case, **settings, parameters=sorted(final), rows=network.rows, loose=loose, whole=whole, init=(same or case) if drawn else None)
    tight = max((d for k, d in apart.items() if k not in loose), default=0)
    print(f"  {case}: loss {losses[0]:.3f} .. {losses[-1]:.3f}, norm {norms.min():.2f} .. {norms.max():.2f}; float32 differs in losses by "
          f"{((single[3].double() - losses).abs() / losses).max():.1e}, in changes by {tight:.1e}, loose {len(loose)} of {len(apart)}")
    return network, ids["ids"]


def make(models, out, seed):
    kept = {}
    for file, kinds in FILES.items():
        book = Book(steps=STEPS, betas=BETAS, epsilon=EPSILON, weight_decay=DECAY, rank=methods.RANK, alpha=methods.ALPHA, init_word=INITIAL)
        given = inputs(seed + 74)
        book.put("", given)
        for case in CASES:
            if case.startswith(kinds):
                kept[case] = keep(book, models, case, given, seed + 75)
        book.write(out / f"{file}.safetensors")
    training_files.make(models, out, kept, given)
