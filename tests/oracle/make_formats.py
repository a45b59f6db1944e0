"""Makes one micro model in every file format that people have: `python make_formats.py OUT [--seed N] [--double]`.

OUT is a folder such as `data/micro`. Each file is loaded back through diffusers or torch, and every tensor is held
against the one that it was made from, before the expected numbers are written. `--double` compares with float64.
"""
import argparse
import copy
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import ldm
from layout_and_retouch import Model
from make import personalize
from micro import BLEND, GUIDANCE, PERSONAL, REFERENCE, RETOUCH, SD1, SD2, STEPS, VANILLA, build, compare, numbers, text_names, write_index, write_numbers

CONFIGS = ("tokenizer", "scheduler", "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")


def tensors_of(model, vae, dtype=torch.float16):
    parts = {"unet": model.unet.state_dict(), "vae": vae.state_dict(), "text_encoder": text_names(model.text_encoder)}
    return {part: {k: v.detach().to(dtype).contiguous() for k, v in tensors.items()} for part, tensors in parts.items()}


def file_name(part, suffix="safetensors", variant=""):
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    if suffix == "bin" and part == "text_encoder":
        stem = "pytorch_model"
    return f"{part}/{stem}{variant}.{suffix}"


def write_folder(folder, model, vae, scheduler):
    """A whole diffusers folder in float16; the modules keep their float32 weights."""
    for part, module in (("unet", model.unet), ("vae", vae), ("text_encoder", model.text_encoder)):
        copy.deepcopy(module).half().save_pretrained(folder / part)
    save_file(tensors_of(model, vae)["text_encoder"], folder / file_name("text_encoder"), {"format": "pt"})
    scheduler.save_pretrained(folder / "scheduler")
    write_index(folder)


def copy_configs(source, folder):
    for name in CONFIGS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, folder / name)


def write_parts(source, folder, parts, name=file_name, save=lambda t, p: save_file(t, p, {"format": "pt"})):
    if not folder.exists():
        copy_configs(source, folder)
    for part, tensors in parts.items():
        save(tensors, folder / name(part))


def original(model, parts, layers, vae_levels=3):
    """The single file of the family: what the weights are called there, and the odd entries that published files have."""
    tensors = {**ldm.unet(parts["unet"], layers), **ldm.vae(parts["vae"], vae_levels)}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors |= {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    if model.text_encoder.config.hidden_act == "quick_gelu":
        tensors |= ldm.clip(parts["text_encoder"])
        # Averaged weights beside the trained ones: a reader takes the trained ones, as diffusers does.
        tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
                    "model_ema.diffusion_modelout2bias": torch.full((4,), 7.0, dtype=torch.float16)}
        return tensors
    # Stable Diffusion 2 reads the last layer but one: the file has one layer more than the folder, and a projection.
    width, layers = model.text_encoder.config.hidden_size, model.text_encoder.config.num_hidden_layers
    generator = torch.Generator().manual_seed(99)
    extra = {k.replace(f"layers.{layers - 1}.", f"layers.{layers}."): torch.randn(v.shape, generator=generator).half()
             for k, v in parts["text_encoder"].items() if f"layers.{layers - 1}." in k}
    extra["text_projection.weight"] = torch.randn(width, width, generator=generator).half()
    return {**tensors, **ldm.open_clip({**parts["text_encoder"], **extra})}


def same(label, got, expected):
    assert set(got) == set(expected), (label, sorted(set(got) ^ set(expected))[:5])
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), (label, name)
    print(f"{label}: {len(expected)} tensors equal")


def check_single_file(path, folder, parts):
    """Reads a single file through diffusers with the folder's configs."""
    pipe = StableDiffusionPipeline.from_single_file(str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float16,
                                                    safety_checker=None, feature_extractor=None)
    same(f"{path.name} unet", pipe.unet.state_dict(), parts["unet"])
    same(f"{path.name} vae", pipe.vae.state_dict(), parts["vae"])
    same(f"{path.name} text", text_names(pipe.text_encoder), parts["text_encoder"])


def old_names(parts):
    """Key names of older libraries: VAE attention as query, key, value, proj_attn; a text encoder with its buffer of positions."""
    vae = {}
    for name, tensor in parts["vae"].items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        vae[name] = tensor
    text = {**parts["text_encoder"], "text_model.embeddings.position_ids": torch.arange(77)[None]}
    return {"vae": vae, "text_encoder": text}


def states(module, tensors):
    """An ordered dict with torch's own `_metadata`, as `state_dict()` gives it and `torch.save` stores it."""
    out = OrderedDict(tensors)
    out._metadata = module.state_dict()._metadata
    return out


def main(out, seed, double):
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed + 5)
    inputs = {"noise": torch.randn(1, 4, 16, 16, generator=generator), "unet_in": torch.randn(2, 4, 12, 20, generator=generator)}
    pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(out / "reference.png")
    inputs["image"] = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    for name, family in (("sd1", SD1), ("sd2", SD2)):
        for folder in out.glob(f"{name}*"):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        folder = out / name
        model, vae, scheduler = build(folder, family, seed)
        personal = personalize(model, seed + 4)
        write_folder(folder, model, vae, scheduler)
        personal_unet = copy.deepcopy(personal.unet).half()
        personal_unet.save_pretrained(out / f"{name}-personal" / "unet")
        parts = tensors_of(model, vae)
        for part in parts:
            same(f"{name}/{part}", load_file(folder / file_name(part)), parts[part])

        single = original(model, parts, family["unet"]["layers_per_block"])
        save_file(single, out / f"{name}-single.safetensors", {"format": "pt"})
        check_single_file(out / f"{name}-single.safetensors", folder, parts)
        sets = {name: (model, personal, vae)}
        if name == "sd1":
            whole = {"state_dict": single, "global_step": 12345, "epoch": 3}
            torch.save(whole, out / "sd1-zip.ckpt")
            torch.save(whole, out / "sd1-legacy.ckpt", _use_new_zipfile_serialization=False)
            for kind in ("zip", "legacy"):
                same(f"sd1-{kind}.ckpt", torch.load(out / f"sd1-{kind}.ckpt", weights_only=True)["state_dict"], single)
            # As old libraries saved.
            modules, old = {"unet": model.unet, "vae": vae, "text_encoder": model.text_encoder}, {**parts, **old_names(parts)}
            write_parts(folder, out / "sd1-bin", {p: states(modules[p], t) for p, t in old.items()}, lambda p: file_name(p, "bin"), torch.save)
            # As new libraries save: a sharded U-Net, and a text encoder without `text_model.` in its names.
            single_precision = tensors_of(model, vae, torch.float32)
            stripped = {k.removeprefix("text_model."): v for k, v in single_precision["text_encoder"].items()}
            write_parts(folder, out / "sd1-sharded-f32", {"vae": single_precision["vae"], "text_encoder": stripped})
            model.unet.save_pretrained(out / "sd1-sharded-f32" / "unet", max_shard_size="150KB")
            pieces = sorted((out / "sd1-sharded-f32" / "unet").glob("*.safetensors"))
            assert len(pieces) == 3, pieces
            same("sd1-sharded-f32", {k: v for p in pieces for k, v in load_file(p).items()}, single_precision["unet"])
            # The plain files are bfloat16 (weights of their own), the `fp16` variant is sd1: which was read shows.
            bf16 = copy.deepcopy(model.unet), copy.deepcopy(vae), copy.deepcopy(model.text_encoder)
            for module in bf16:
                module.bfloat16().float()
            plain = Model(bf16[0], bf16[2], model.tokenizer)
            bf16_parts = tensors_of(plain, bf16[1], torch.bfloat16)
            write_parts(folder, out / "sd1-bf16", bf16_parts)
            write_parts(folder, out / "sd1-bf16", parts, lambda p: file_name(p, variant=".fp16"))
            sets["sd1-bf16"] = (plain, Model(copy.deepcopy(personal.unet), plain.text_encoder, model.tokenizer), bf16[1])
            for label, variant in (("sd1-bin", None), ("sd1-sharded-f32", None), ("sd1-bf16", "fp16"), ("sd1-bf16", None)):
                pipe = StableDiffusionPipeline.from_pretrained(str(out / label), variant=variant, torch_dtype=torch.float32, local_files_only=True,
                                                               use_safetensors=label != "sd1-bin", safety_checker=None, feature_extractor=None)
                expected = bf16_parts if (label, variant) == ("sd1-bf16", None) else parts
                expected = {p: {k: v.float() for k, v in t.items()} for p, t in expected.items()}
                same(f"{label} {variant} unet", pipe.unet.state_dict(), expected["unet"])
                same(f"{label} {variant} vae", pipe.vae.state_dict(), expected["vae"])
                same(f"{label} {variant} text", text_names(pipe.text_encoder), expected["text_encoder"])
        for label, (vanilla, subject, decoder) in sets.items():
            t = numbers(vanilla, subject, decoder, scheduler, family["sites"], inputs)
            write_numbers(out / f"{label}.safetensors", t, skip=("image",))
            if double:
                modules = [copy.deepcopy(m).double() for m in (vanilla.unet, subject.unet, vanilla.text_encoder, decoder)]
                wide = Model(modules[0], modules[2], model.tokenizer), Model(modules[1], modules[2], model.tokenizer)
                compare(label, t, numbers(*wide, modules[3], scheduler, family["sites"], {k: v.double() for k, v in inputs.items()}))
    facts = dict(steps=STEPS, guidance=GUIDANCE, vanilla_prompt=VANILLA, personalized_prompt=PERSONAL, reference_prompt=REFERENCE, **RETOUCH,
                 unet_timesteps=[981, 401], sites={"sd1": [3, 7], "sd2": [3, 7]}, mask_grid=[16, 16], blend="union", threshold="otsu", lock=True)
    (out / "settings.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.out, arguments.seed, arguments.double)
