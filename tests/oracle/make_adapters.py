"""Makes adapters for the micro models in every dialect, and what they do: `python make_adapters.py OUT [--seed N] [--double]`.

OUT (such as `data/micro`) must hold the models of make_formats.py and make_sdxl.py; needs peft too. Each file is loaded by diffusers, the
numbers come from the network that diffusers then has, and a network whose weights were changed by hand must agree.
"""
import argparse
import copy
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import ldm
import make_sdxl
from layout_and_retouch import Model
from make_sdxl import Sdxl
from micro import PERSONAL, SD1, VANILLA, compare, two_stages, write_numbers

PROMPT, REFERENCE = "a {} teddy bear on a beach", "a photo of a {} teddy bear"
ADDED = ["a <toy> teddy bear", "<toy>", "my<toy>car", "<toy>s and <TOY>!", "<toy><toy>", "<toy>_1 alone"]


@dataclass
class Inverted(Model):
    """A model with tokens that were added; a token of several vectors is written out as diffusers does."""

    convert: object = None

    def encode(self, prompt):
        return super().encode(self.convert(prompt, self.tokenizer))

    def span(self, prompt, phrase):
        return super().span(self.convert(prompt, self.tokenizer), self.convert(phrase, self.tokenizer))


@dataclass
class InvertedSdxl(Sdxl):
    convert: object = None

    def encode(self, prompt):
        first, second = self.convert(prompt, self.tokenizer), self.convert(prompt, self.tokenizer_2)
        assert first == second
        return super().encode(first)

    def span(self, prompt, phrase):
        return super().span(self.convert(prompt, self.tokenizer), self.convert(phrase, self.tokenizer))


# LoRA: one set of deltas is {module: (down, up, alpha or None)}.

def low_rank(modules, rank, alpha, generator, size=0.4):
    """Random factors for every (name, module); a convolution's `down` has its kernel, its `up` is 1x1."""
    deltas = {}
    for name, module in modules:
        out, inner, *kernel = module.weight.shape
        down = torch.randn(rank, inner, *kernel, generator=generator) / (module.weight[0].numel()) ** 0.5
        up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator) * size
        deltas[name] = (down.half(), up.half(), alpha)
    return deltas


def is_projection(module):
    return isinstance(module, torch.nn.Linear) or isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1)


def transformers_of(unet):
    return [(n, m) for n, m in unet.named_modules() if ".attentions." in n and is_projection(m)]


def attention_of(unet):
    return [(n, m) for n, m in unet.named_modules() if re.search(r"\.attn[12]\.to_", n) and is_projection(m)]


def convolutions_of(unet):
    return [(n, m) for n, m in unet.named_modules() if isinstance(m, torch.nn.Conv2d) and re.search(r"resnets|samplers", n)]


def text_modules(encoder, attention_only=False):
    kinds = ("q_proj", "k_proj", "v_proj", "out_proj") + (() if attention_only else ("fc1", "fc2"))
    return [(n if n.startswith("text_model.") else f"text_model.{n}", m) for n, m in encoder.named_modules() if n.endswith(kinds)]


def merge(module, deltas, weight=1.0):
    """Adds deltas to the weights: W + weight * alpha / rank * up down."""
    named = dict(module.named_modules())
    for name, (down, up, alpha) in deltas.items():
        target = named[name] if name in named else named[name.removeprefix("text_model.")]
        rank = down.shape[0]
        change = (up.to(target.weight.dtype).flatten(1) @ down.to(target.weight.dtype).flatten(1)).view_as(target.weight)
        target.weight.data += weight * (rank if alpha is None else alpha) / rank * change


def peft_names(sets):
    return {f"{part}.{name}.lora_{x}.weight": t for part, deltas in sets.items() for name, (a, b, _) in deltas.items() for x, t in (("A", a), ("B", b))}


def old_names(sets):
    """Attention only: `processor.to_q_lora.down` in the U-Net, `to_q_lora.down` in the text encoder."""
    named = {}
    for part, deltas in sets.items():
        for name, (down, up, _) in deltas.items():
            if part == "unet":
                module, kind = re.match(r"(.*\.attn[12])\.(to_[a-z]+)", name).groups()
                key = f"{module}.processor.{kind}_lora"
            else:
                module, kind = name.rsplit(".", 1)
                key = f"{module}.to_{kind.removesuffix('_proj')}_lora"
            named |= {f"{part}.{key}.down.weight": down, f"{part}.{key}.up.weight": up}
    return named


def middle_names(sets):
    """Attention only, as diffusers 0.2x wrote: `to_q.lora.down` in the U-Net, `q_proj.lora_linear_layer.down` in the text encoder."""
    infix = {"unet": "lora", "text_encoder": "lora_linear_layer"}
    return {f"{part}.{name}.{infix[part]}.{x}.weight": t for part, deltas in sets.items() for name, (a, b, _) in deltas.items()
            for x, t in (("down", a), ("up", b))}


def kohya_names(sets, prefixes, rename=lambda part, name: name):
    named = {}
    for part, deltas in sets.items():
        for name, (down, up, alpha) in deltas.items():
            key = f"{prefixes[part]}_{rename(part, name).replace('.', '_')}"
            named |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(float(alpha)).half()}
    return named


def settings_of(deltas):
    """What peft keeps of a LoRA's settings; target modules by the ends of their names."""
    down, _, alpha = next(iter(deltas.values()))
    ends = sorted({re.sub(r"^.*?(ff\.net\.\d(?:\.proj)?|to_out\.0|[a-z_]+\d?)$", r"\1", n) for n in deltas})
    config = LoraConfig(r=down.shape[0], lora_alpha=down.shape[0] if alpha is None else alpha, target_modules=ends, init_lora_weights=False).to_dict()
    return {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in config.items()}


class Bench:
    """The micro SD1 model, its inputs, and what an adapted copy of it gives."""

    def __init__(self, out, double):
        self.out, self.double = out, double
        tensors = load_file(out / "sd1.safetensors")
        self.z, self.unet_in, self.latent = (tensors[k] for k in ("noise", "unet_in", "reference_latent"))
        self.numbers = {}

    def pipe(self):
        return StableDiffusionPipeline.from_pretrained(str(self.out / "sd1"), torch_dtype=torch.float32, local_files_only=True,
                                                       safety_checker=None, feature_extractor=None)

    @torch.no_grad()
    def measure(self, personal, token=None, wide=False):
        """Text states of the personalised prompt, one call of the adapted U-Net, the retouched trajectory and its masks."""
        cast = (lambda x: x.double()) if wide else (lambda x: x)
        base = self.pipe()
        base = Model(base.unet, base.text_encoder, base.tokenizer)
        if wide:
            base.unet.double(), base.text_encoder.double()
        prompt = PROMPT.format(token) if token else PERSONAL
        t = {"text": personal.encode(prompt)}
        context = torch.cat([personal.encode(VANILLA), t["text"]])
        t["unet_out"] = personal.unet(cast(self.unet_in), torch.tensor([981, 401]), context).sample
        changes = {} if token is None else dict(prompt=prompt, reference_prompt=REFERENCE.format(token), subject=f"{token} teddy bear", context_subject="teddy bear")
        scheduler = DDIMScheduler.from_pretrained(self.out / "sd1" / "scheduler")
        stages = two_stages(base, personal, scheduler, cast(self.z), cast(self.latent), SD1["sites"], **changes)
        return t | {k: stages[k] for k in ("retouch", "masks")}

    def keep(self, label, personal, by_hand, token=None):
        """Numbers of `personal` under `label`, held against the network that was changed by hand."""
        got, other = self.measure(personal, token), self.measure(by_hand, token)
        for k in got:
            distance = (got[k] - other[k]).abs().max() / got[k].std()
            assert distance < (2e-5 if k in ("text", "unet_out") else 3e-4), (label, k, distance)
        plain = load_file(self.out / "sd1.safetensors")
        print(f"{label:14} against the base's: " + " ".join(f"{k} {(got[k] - plain[k]).abs().max() / got[k].std():.2f}" for k in got if k != "masks"))
        write_numbers(None, got, label)
        self.numbers |= {f"{label}.{k}": v for k, v in got.items()}
        if self.double:
            by_hand = copy.deepcopy(by_hand)
            by_hand.unet.double(), by_hand.text_encoder.double()
            by_hand.__post_init__()
            compare(label, got, self.measure(by_hand, token, wide=True))


def write_lora(bench, seed):
    folder, pipe = bench.out / "adapters", bench.pipe()
    g = torch.Generator().manual_seed(seed + 51)
    full = {"unet": low_rank(transformers_of(pipe.unet), 4, 2, g), "text_encoder": low_rank(text_modules(pipe.text_encoder), 4, 2, g)}
    plain = {"unet": low_rank(attention_of(pipe.unet), 4, None, g, 0.2), "text_encoder": low_rank(text_modules(pipe.text_encoder, True), 4, None, g, 0.2)}
    locon = {"unet": {**low_rank(attention_of(pipe.unet), 4, 2, g), **low_rank(convolutions_of(pipe.unet), 2, 1, g)}}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    metadata = {f"{part}.{k}": v for part, deltas in full.items() for k, v in settings_of(deltas).items()}
    save_file(peft_names(full), folder / "sd1-lora-diffusers.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True)})
    trained = {"ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2", "ss_base_model_version": "sd_v1"}
    save_file(kohya_names(full, prefixes), folder / "sd1-lora-kohya.safetensors", trained)
    save_file(kohya_names(locon, prefixes), folder / "sd1-locon-kohya.safetensors", trained)
    save_file(old_names(plain), folder / "sd1-lora-old.safetensors", {"format": "pt"})
    save_file(middle_names(plain), folder / "sd1-lora-middle.safetensors", {"format": "pt"})
    torch.save({k.removeprefix("unet."): v for k, v in old_names({"unet": plain["unet"]}).items()}, folder / "sd1-lora-processors.bin")
    (folder / "sd1-lora-peft").mkdir()
    save_file({k.replace("unet.", "base_model.model.", 1): v for k, v in peft_names({"unet": full["unet"]}).items()},
              folder / "sd1-lora-peft" / "adapter_model.safetensors", {"format": "pt"})
    (folder / "sd1-lora-peft" / "adapter_config.json").write_text(json.dumps(settings_of(full["unet"]), indent=2, sort_keys=True) + "\n")

    def adapted(*files):
        pipe = bench.pipe()
        for i, (name, _) in enumerate(files):
            pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=f"a{i}")
        if len(files) > 1:
            pipe.set_adapters([f"a{i}" for i in range(len(files))], [w for _, w in files])
        return Model(pipe.unet, pipe.text_encoder, pipe.tokenizer)

    def by_hand(*sets):
        pipe = bench.pipe()
        for deltas, weight in sets:
            for part, changes in deltas.items():
                merge(getattr(pipe, part), changes, weight)
        return Model(pipe.unet, pipe.text_encoder, pipe.tokenizer)

    bench.keep("lora.full", adapted(("sd1-lora-diffusers", 1.0)), by_hand((full, 1.0)))
    bench.keep("lora.old", adapted(("sd1-lora-old", 1.0)), by_hand((plain, 1.0)))
    bench.keep("lora.locon", adapted(("sd1-locon-kohya", 1.0)), by_hand((locon, 1.0)))
    bench.keep("lora.two", adapted(("sd1-lora-diffusers", 0.7), ("sd1-locon-kohya", -0.3)), by_hand((full, 0.7), (locon, -0.3)))
    for name, label in (("sd1-lora-kohya", "lora.full"), ("sd1-lora-middle", "lora.old")):
        got = bench.measure(adapted((name, 1.0)))
        for k, v in got.items():
            assert torch.equal(v, bench.numbers[f"{label}.{k}"]), (name, k)
        print(f"{name}: as {label}, bit for bit")
    # Files for the U-Net alone: one call of it, with the base's text states.
    with torch.no_grad():
        context = load_file(bench.out / "sd1.safetensors")["unet_context"]
        unets = {"lora.unet_full": by_hand(({"unet": full["unet"]}, 1.0)).unet, "lora.unet_old": by_hand(({"unet": plain["unet"]}, 1.0)).unet}
        for label, unet in unets.items():
            bench.numbers[f"{label}.unet_out"] = unet(bench.unet_in, torch.tensor([981, 401]), context).sample
        from peft import PeftModel
        loaded = PeftModel.from_pretrained(bench.pipe().unet, str(folder / "sd1-lora-peft"))
        got = loaded(bench.unet_in, torch.tensor([981, 401]), context).sample
        assert (got - bench.numbers["lora.unet_full.unet_out"]).abs().max() / got.std() < 1e-5
        pipe = bench.pipe()
        pipe.load_lora_weights({f"unet.{k}": v for k, v in torch.load(folder / "sd1-lora-processors.bin", weights_only=True).items()})
        got = pipe.unet(bench.unet_in, torch.tensor([981, 401]), context).sample
        assert (got - bench.numbers["lora.unet_old.unet_out"]).abs().max() / got.std() < 1e-5


def write_inversions(bench, seed):
    folder, pipe = bench.out / "adapters", bench.pipe()
    g = torch.Generator().manual_seed(seed + 52)
    table = pipe.text_encoder.get_input_embeddings().weight
    vectors = lambda n: (torch.randn(n, table.shape[1], generator=g) * table.std()).detach()
    one, three, old = vectors(1), vectors(3), vectors(2)
    save_file({"<toy>": one}, folder / "sd1-ti-one.safetensors", {"format": "pt"})
    save_file({"<toy>": three}, folder / "sd1-ti-three.safetensors", {"format": "pt"})
    torch.save({"<toy>": three}, folder / "sd1-ti-three.bin")
    torch.save({"<toy>": one[0]}, folder / "sd1-ti-one.bin")  # one vector as older scripts saved it: no leading axis
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": old.clone().requires_grad_()}, "name": "old-toy", "step": 1500,
                "sd_checkpoint": "0123abcd", "sd_checkpoint_name": None}, folder / "old-toy.pt")
    ids = {}
    for label, file, vectors, token in (("ti.one", "sd1-ti-one.safetensors", one, "<toy>"), ("ti.three", "sd1-ti-three.safetensors", three, "<toy>"),
                                        ("ti.a1111", "old-toy.pt", old, "old-toy")):
        pipe = bench.pipe()
        source = torch.load(folder / file, weights_only=True) if file.endswith(".pt") else str(folder / file)
        pipe.load_textual_inversion(source)
        hand = bench.pipe()
        names = [token] + [f"{token}_{i}" for i in range(1, len(vectors))]
        hand.tokenizer.add_tokens(names)
        hand.text_encoder.resize_token_embeddings(len(hand.tokenizer), mean_resizing=False)
        hand.text_encoder.get_input_embeddings().weight.data[-len(vectors):] = vectors
        models = [Inverted(p.unet, p.text_encoder, p.tokenizer, p.maybe_convert_prompt) for p in (pipe, hand)]
        bench.keep(label, *models, token=token)
        prompts = [p.replace("<toy>", token).replace("<TOY>", token.upper()) for p in ADDED]
        ids[label] = {"tokens": names, "ids": {p: pipe.tokenizer(pipe.maybe_convert_prompt(p, pipe.tokenizer))["input_ids"] for p in prompts},
                      "span": models[0].span(PROMPT.format(token), f"{token} teddy bear")}
    for name in ("sd1-ti-one", "sd1-ti-three"):
        a, b = load_file(folder / f"{name}.safetensors")["<toy>"], torch.load(folder / f"{name}.bin", weights_only=True)["<toy>"]
        assert torch.equal(a.squeeze(0), b)
    return ids


def write_custom(bench, seed):
    """Custom Diffusion: cross-attention's keys and values (and, in the second, queries and outputs), and one new token."""
    folder = bench.out / "adapters"
    g = torch.Generator().manual_seed(seed + 53)
    for label, with_q in (("kv", False), ("q_out", True)):
        pipe, hand = bench.pipe(), bench.pipe()
        processors = {}
        for name in pipe.unet.attn_processors:
            attn = pipe.unet.get_submodule(name.removesuffix(".processor"))
            cross = "attn2" in name
            width = attn.to_q.weight.shape[0]
            processor = CustomDiffusionAttnProcessor(train_kv=cross, train_q_out=cross and with_q, hidden_size=width,
                                                     cross_attention_dim=attn.to_k.weight.shape[1] if cross else None)
            target = hand.unet.get_submodule(name.removesuffix(".processor"))
            for key, value in processor.state_dict().items():
                own = key.replace("_custom_diffusion", "")
                base = attn.get_parameter(own).data
                noise = torch.randn(value.shape, generator=g) * (0.4 * base.std() if base.dim() > 1 else 0.05)
                value.copy_((base + noise).half().float())
                target.get_parameter(own).data.copy_(value)
            processors[name] = processor
        pipe.unet.set_attn_processor(processors)
        place = folder / f"sd1-custom-{label}"
        for safe in (True, False):
            half = copy.deepcopy(pipe.unet)
            for processor in half.attn_processors.values():
                processor.half()
            half.save_attn_procs(str(place), safe_serialization=safe)
        # The new token as the training script saves it: one vector, here a row inside a larger storage. (It calls the file `<new1>.bin`.)
        table = hand.text_encoder.get_input_embeddings().weight
        rows = (torch.randn(3, table.shape[1], generator=g) * table.std()).detach()
        torch.save({"<new1>": rows[1]}, place / "new1.bin")
        # diffusers 0.42 sets the processors only where it is told of a pipeline.
        reader = bench.pipe()
        read = reader.unet
        read.load_attn_procs(str(place), weight_name="pytorch_custom_diffusion_weights.bin", use_safetensors=False, _pipeline=reader)
        assert all(isinstance(p, CustomDiffusionAttnProcessor) for p in read.attn_processors.values())
        kept = load_file(place / "pytorch_custom_diffusion_weights.safetensors")
        pickled = torch.load(place / "pytorch_custom_diffusion_weights.bin", weights_only=True)
        assert kept.keys() == {k for k, v in pickled.items() if torch.is_tensor(v)} and all(torch.equal(v, pickled[k]) for k, v in kept.items())
        with torch.no_grad():
            context, steps = load_file(bench.out / "sd1.safetensors")["unet_context"], torch.tensor([981, 401])
            theirs, mine = (u.eval()(bench.unet_in, steps, context).sample for u in (read, hand.unet))
        assert (theirs - mine).abs().max() / mine.std() < 2e-5, "the processors of diffusers agree with changed weights"
        for p in (pipe, hand):
            p.load_textual_inversion({"<new1>": rows[1]})
        copied = copy.deepcopy(hand.unet)
        models = [Inverted(u, p.text_encoder, p.tokenizer, p.maybe_convert_prompt) for u, p in ((hand.unet, hand), (copied, pipe))]
        bench.keep(f"custom.{label}", *models, token="<new1>")


@torch.no_grad()
def write_sdxl(out, seed, double):
    folder, sdxl = out / "adapters", str(out / "sdxl")
    open_pipe = lambda: StableDiffusionXLPipeline.from_pretrained(sdxl, torch_dtype=torch.float32, local_files_only=True)
    g = torch.Generator().manual_seed(seed + 54)
    pipe = open_pipe()
    sets = {"unet": low_rank(transformers_of(pipe.unet), 2, 1, g), "text_encoder": low_rank(text_modules(pipe.text_encoder), 2, 1, g),
            "text_encoder_2": low_rank(text_modules(pipe.text_encoder_2), 2, 1, g)}
    metadata = {f"{part}.{k}": v for part, deltas in sets.items() for k, v in settings_of(deltas).items()}
    save_file(peft_names(sets), folder / "sdxl-lora-diffusers.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True)})
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    rename = lambda part, name: ldm.unet_block(name, make_sdxl.LAYERS) if part == "unet" else name
    save_file(kohya_names(sets, prefixes, rename), folder / "sdxl-lora-kohya.safetensors", {"ss_network_dim": "2", "ss_base_model_version": "sdxl_base_v1-0"})
    embedding = {"clip_l": pipe.text_encoder.get_input_embeddings().weight, "clip_g": pipe.text_encoder_2.get_input_embeddings().weight}
    embedding = {k: (torch.randn(2, w.shape[1], generator=g) * w.std()).detach() for k, w in embedding.items()}
    save_file(embedding, folder / "sdxl-ti.safetensors", {"format": "pt"})

    tensors, inputs = load_file(out / "sdxl.safetensors"), load_file(out / "sd1.safetensors")
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)

    def measure(personal, token=None, wide=False):
        cast = (lambda x: x.double()) if wide else (lambda x: x)
        base = open_pipe()
        if wide:
            base.unet.double(), base.text_encoder.double(), base.text_encoder_2.double()
        base = Sdxl(base.unet, base.text_encoder, base.tokenizer, base.text_encoder_2, base.tokenizer_2)
        prompt = PROMPT.format(token) if token else PERSONAL
        t = dict(zip(("text", "pooled"), personal.encode(prompt)))
        both = tuple(torch.cat([a, b]) for a, b in zip(personal.encode(VANILLA), (t["text"], t["pooled"])))
        t["unet_out"] = personal.forward(cast(inputs["unet_in"]), torch.tensor([981, 401]), both)
        changes = {} if token is None else dict(prompt=prompt, reference_prompt=REFERENCE.format(token), subject=f"{token} teddy bear", context_subject="teddy bear")
        stages = two_stages(base, personal, scheduler, cast(inputs["noise"]), cast(tensors["reference_latent"]), make_sdxl.SITES, mask_grid=make_sdxl.GRID, **changes)
        return t | {k: stages[k] for k in ("retouch", "masks")}

    numbers = {}

    def keep(label, personal, by_hand, token=None):
        got, other = measure(personal, token), measure(by_hand, token)
        for k in got:
            distance = (got[k] - other[k]).abs().max() / got[k].std()
            assert distance < (2e-5 if k in ("text", "pooled", "unet_out") else 3e-4), (label, k, distance)
        write_numbers(None, got, f"sdxl {label}")
        numbers.update({f"{label}.{k}": v for k, v in got.items()})
        if double:
            wide = copy.deepcopy(by_hand)
            wide.unet.double(), wide.text_encoder.double(), wide.text_encoder_2.double()
            wide.__post_init__()
            compare(f"sdxl {label}", got, measure(wide, token, wide=True))

    def model(pipe, kind=Sdxl, *more):
        return kind(pipe.unet, pipe.text_encoder, pipe.tokenizer, pipe.text_encoder_2, pipe.tokenizer_2, True, *more)

    hand = open_pipe()
    for part, deltas in sets.items():
        merge(getattr(hand, part), deltas)
    pipes = [open_pipe(), open_pipe()]
    for pipe, name in zip(pipes, ("sdxl-lora-diffusers", "sdxl-lora-kohya")):
        pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors")
    keep("lora.full", model(pipes[0]), model(hand))
    for k, v in measure(model(pipes[1])).items():
        assert torch.equal(v, numbers[f"lora.full.{k}"]), k
    print("sdxl-lora-kohya: as lora.full, bit for bit")

    pipe, hand = open_pipe(), open_pipe()
    for p in (pipe, hand):
        # transformers pools at the highest id where a config names end-of-text 2, and an added token's id is higher: name it rightly.
        p.text_encoder_2.text_model.eos_token_id = p.tokenizer_2.eos_token_id
    pipe.load_textual_inversion(embedding["clip_l"], token="<toy>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(embedding["clip_g"], token="<toy>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    for tokenizer, encoder, key in ((hand.tokenizer, hand.text_encoder, "clip_l"), (hand.tokenizer_2, hand.text_encoder_2, "clip_g")):
        tokenizer.add_tokens(["<toy>", "<toy>_1"])
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        encoder.get_input_embeddings().weight.data[-2:] = embedding[key]
    keep("ti", *(model(p, InvertedSdxl, p.maybe_convert_prompt) for p in (pipe, hand)), token="<toy>")
    save_file({k: v.contiguous().float() for k, v in numbers.items()}, folder / "sdxl.safetensors")


def main(out, seed, double):
    folder = out / "adapters"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    bench = Bench(out, double)
    write_lora(bench, seed)
    ids = write_inversions(bench, seed)
    write_custom(bench, seed)
    save_file({k: v.contiguous().float() for k, v in bench.numbers.items()}, folder / "sd1.safetensors")
    write_sdxl(out, seed, double)
    facts = dict(prompt=PERSONAL, prompt_with_token=PROMPT, reference_prompt_with_token=REFERENCE, subject_with_token="{} teddy bear", context_subject="teddy bear",
                 lora_two={"sd1-lora-diffusers": 0.7, "sd1-locon-kohya": -0.3}, tokens=ids)
    (folder / "settings.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.out, arguments.seed, arguments.double)
