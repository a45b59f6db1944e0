"""Makes a micro SDXL model and its expected numbers: `python make_sdxl.py OUT [--seed N] [--double]` (OUT: `data/micro`)."""
import argparse
import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import ldm
from layout_and_retouch import Model, step_blend_sample
from make import personalize, spread
from make_formats import file_name, same
from micro import GUIDANCE, PERSONAL, REFERENCE, RETOUCH, VANILLA, compare, copy_tokenizer, text_names, two_stages, write_index, write_numbers

STEPS, BLEND, LAYERS, FACTOR, SITES, GRID = 8, 3, 2, 4, range(8, 17), (8, 8)
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


@dataclass
class Sdxl(Model):
    """Two text encoders and size conditioning. A prompt's encoding is the pair (states, pooled)."""

    text_encoder_2: object = None
    tokenizer_2: object = None
    zero_empty: bool = True  # force_zeros_for_empty_prompt

    def encode(self, prompt):
        states, pooled = [], None
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
            out = encoder(torch.tensor([ids["input_ids"]]), output_hidden_states=True)
            states.append(out.hidden_states[-2])  # before the last layer, without the final norm
            pooled = out.text_embeds if encoder is self.text_encoder_2 else None
        return torch.cat(states, -1), pooled

    def encode_negative(self, negative):
        states, pooled = self.encode(negative)
        if negative == "" and self.zero_empty:
            return torch.zeros_like(states), torch.zeros_like(pooled)
        return states, pooled

    def forward(self, z, t, encoded):
        states, pooled = encoded
        h, w = FACTOR * z.shape[-2], FACTOR * z.shape[-1]  # the picture that is drawn: its own size, not cropped, as the target
        times = torch.tensor([[h, w, 0, 0, h, w]] * len(z), dtype=z.dtype)
        return self.unet(z, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": times}).sample

    def predict(self, z, t, encoded, control=None):
        self.hub.self_qkv, self.hub.cross_maps, self.hub.control = {}, [], control
        out = self.forward(z, t, encoded)
        self.hub.control = None
        return out, self.hub.self_qkv, self.hub.cross_maps

    def with_unet(self, unet):
        return Sdxl(unet, self.text_encoder, self.tokenizer, self.text_encoder_2, self.tokenizer_2)


def build(folder, seed):
    """The modules in float32 with float16 weights; writes both tokenizers."""
    tokenizer, tokenizer_2 = copy_tokenizer(folder / "tokenizer"), copy_tokenizer(folder / "tokenizer_2", pad_token="!")
    # The ids that published configs name (0, 1, 2) are not those of the vocabulary; 2 makes transformers pool at the highest id.
    common = dict(vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=0, pad_token_id=1, eos_token_id=2)
    text = CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, hidden_act="quick_gelu", **common))
    text_2 = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=40, intermediate_size=80, num_hidden_layers=3, num_attention_heads=5, hidden_act="gelu",
                                                        projection_dim=24, **common))
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16, 16), layers_per_block=LAYERS, norm_num_groups=4, cross_attention_dim=72, attention_head_dim=(1, 2, 2),
        use_linear_projection=True, transformer_layers_per_block=[1, 1, 2], addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
                        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.13025)
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")
    for i, module in enumerate((unet, text, text_2, vae)):
        spread(module, seed + 31 + i, scale=1.0 if module is unet else 1.6, attention=(1.0, 3.0))  # deep: more would amplify rounding
    return Sdxl(unet, text, tokenizer, text_2, tokenizer_2), vae, scheduler


def modules_of(model, vae):
    return {"text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2, "unet": model.unet, "vae": vae}


def write_folder(folder, model, vae, scheduler):
    parts = {}
    for part, module in modules_of(model, vae).items():
        half = copy.deepcopy(module).half()
        half.save_pretrained(folder / part)
        parts[part] = {k: v.contiguous() for k, v in (text_names(half) if part.startswith("text") else half.state_dict()).items()}
        name = f"{part}/model.safetensors" if part.startswith("text") else file_name(part)
        save_file(parts[part], folder / name, {"format": "pt"})
        same(f"sdxl {part}", load_file(folder / name), parts[part])
    scheduler.save_pretrained(folder / "scheduler")
    path = folder / "scheduler" / "scheduler_config.json"  # the entries that SDXL base's file has
    config = {**json.loads(path.read_text()), "clip_sample": False, "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_index(folder, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True, scheduler=["diffusers", "EulerDiscreteScheduler"],
                text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer_2=["transformers", "CLIPTokenizer"])
    return parts


def original(parts):
    return {**ldm.unet(parts["unet"], LAYERS), **ldm.vae(parts["vae"], 3), **ldm.clip(parts["text_encoder"], "conditioner.embedders.0.transformer."),
            **ldm.open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model.")}


def check(folder, single, parts):
    """Reads the folder and the single file through diffusers, and holds the prompt's encoding against the pipeline's own."""
    quiet = dict(local_files_only=True, torch_dtype=torch.float16)
    for label, pipe in (("sdxl", StableDiffusionXLPipeline.from_pretrained(str(folder), **quiet)),
                        (single.name, StableDiffusionXLPipeline.from_single_file(str(single), config=str(folder), **quiet))):
        for part in PARTS:
            module = getattr(pipe, part)
            same(f"{label} {part}", text_names(module) if part.startswith("text") else module.state_dict(), parts[part])
    return StableDiffusionXLPipeline.from_pretrained(str(folder), local_files_only=True, torch_dtype=torch.float32)


@torch.no_grad()
def numbers(model, personal, vae, scheduler, inputs):
    t = dict(inputs)
    t["text"], t["pooled"] = personal.encode(PERSONAL)
    t["text_vanilla"], t["pooled_vanilla"] = personal.encode(VANILLA)
    t["text_blank"], t["pooled_blank"] = personal.encode("")
    both = tuple(torch.cat([t[f"{k}_vanilla"], t[k]]) for k in ("text", "pooled"))
    t["unet_out"] = model.forward(inputs["unet_in"], torch.tensor([981, 401]), both)
    t["vae_mean"], t["vae_decoded"] = vae.encode(inputs["image"]).latent_dist.mean, vae.decode(inputs["noise"]).sample
    t["reference_latent"] = t["vae_mean"] * vae.config.scaling_factor
    t["layout_negative"] = torch.cat(step_blend_sample(model, personal, VANILLA, PERSONAL, inputs["noise"], scheduler, STEPS, GUIDANCE, BLEND, "a red car"))
    t |= two_stages(model, personal, scheduler, inputs["noise"], t["reference_latent"], SITES, mask_grid=GRID, steps=STEPS, blend_steps=BLEND)
    t["picture"] = vae.decode(t["retouch"][-1:] / vae.config.scaling_factor).sample.clamp(-1, 1)
    return t


def read_inputs(out):
    """The inputs of the other micro models."""
    import numpy
    tensors = load_file(out / "sd1.safetensors")
    image = torch.from_numpy(numpy.array(Image.open(out / "reference.png"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    return {"noise": tensors["noise"], "unet_in": tensors["unet_in"], "image": image}


def main(out, seed, double):
    for folder in out.glob("sdxl*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    folder, single = out / "sdxl", out / "sdxl-single.safetensors"
    model, vae, euler = build(folder, seed)
    personal = model.with_unet(personalize(model, seed + 4).unet)
    parts = write_folder(folder, model, vae, euler)
    copy.deepcopy(personal.unet).half().save_pretrained(out / "sdxl-personal" / "unet")
    save_file(original(parts), single, {"format": "pt"})
    pipe = check(folder, single, parts)
    with torch.no_grad():
        expected = pipe.encode_prompt(PERSONAL, device="cpu", do_classifier_free_guidance=True, num_images_per_prompt=1)
        mine = (*personal.encode(PERSONAL), *personal.encode_negative(""))
        for a, b in zip((expected[0], expected[2], expected[1], expected[3]), mine):
            assert torch.equal(a, b), "the encoding is the pipeline's own"
        # Only a negative prompt that was not given is zeros: the prompt "" is encoded.
        expected = pipe.encode_prompt("", device="cpu", do_classifier_free_guidance=True, num_images_per_prompt=1)
        for a, b in zip((expected[0], expected[2]), personal.encode("")):
            assert torch.equal(a, b) and a.abs().max() > 0
    # DDIM from a config that was written for Euler: its betas, spacing and offset.
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                              timestep_spacing="leading", prediction_type="epsilon")
    inputs = read_inputs(out)
    t = numbers(model, personal, vae, scheduler, inputs)
    write_numbers(out / "sdxl.safetensors", t, skip=inputs)
    if double:
        wide = [copy.deepcopy(m).double() for m in (model.unet, personal.unet, model.text_encoder, model.text_encoder_2, vae)]
        pair = [Sdxl(u, wide[2], model.tokenizer, wide[3], model.tokenizer_2) for u in wide[:2]]
        compare("sdxl", t, numbers(*pair, wide[4], scheduler, {k: v.double() for k, v in inputs.items()}))
    bang = "wow! a teddy bear !! hi!"
    facts = dict(steps=STEPS, guidance=GUIDANCE, vanilla_prompt=VANILLA, personalized_prompt=PERSONAL, reference_prompt=REFERENCE, **{**RETOUCH, "blend_steps": BLEND},
                 unet_timesteps=[981, 401], unet_time_ids=[48, 80, 0, 0, 48, 80], time_ids=[64, 64, 0, 0, 64, 64], sites=[SITES[0], SITES[-1] + 1],
                 number_of_sites=len(model.hub.sites), mask_grid=list(GRID), blend="union", threshold="otsu", lock=True,
                 layout_negative="a red car", exclamation_marks=dict(prompt=bang, tokenizer=model.tokenizer(bang)["input_ids"],
                                                                     tokenizer_2=model.tokenizer_2(bang)["input_ids"]))
    (out / "sdxl-settings.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.out, arguments.seed, arguments.double)
