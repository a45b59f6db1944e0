"""Micro models (a few thousand weights a layer) and the expected numbers that every file format and adapter is held to."""
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from layout_and_retouch import MARGINS, Model, invert, retouch, step_blend_sample
from make import spread

VANILLA, PERSONAL, REFERENCE = "a teddy bear on a beach", "a sks teddy bear on a beach", "a photo of a sks teddy bear"
STEPS, GUIDANCE, BLEND = 6, 5.0, 2
RETOUCH = dict(subject="teddy bear", start_step=1, from_step=2, structure_until=4, smooth=1, blend_steps=BLEND)
LEVELS = 3
SD1 = dict(
    unet=dict(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32, attention_head_dim=2),
    text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, hidden_act="quick_gelu"),
    prediction="epsilon", sites=range(3, 7), attention=(1.0, 3.0), index="StableDiffusionPipeline",
)
SD2 = dict(
    unet=dict(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=48, attention_head_dim=(1, 2, 2),
              use_linear_projection=True),
    text=dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, hidden_act="gelu"),
    prediction="v_prediction", sites=range(3, 7), attention=(1.0, 1.0), index="StableDiffusionPipeline",
)


def copy_tokenizer(folder, **changes):
    """The tokenizer of tiny-sd1: training one breaks ties by chance, and then ids differ from run to run."""
    shutil.copytree(Path(__file__).parent / "data" / "tiny-sd1" / "tokenizer", folder, dirs_exist_ok=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder))


def build(folder, family, seed):
    """Makes a model's modules, in float32 with float16 weights, and writes its tokenizer."""
    tokenizer = copy_tokenizer(folder / "tokenizer")
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
                                        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **family["text"]))
    unet = UNet2DConditionModel(sample_size=16, **family["unet"], down_block_types=("CrossAttnDownBlock2D",) * (LEVELS - 1) + ("DownBlock2D",),
                                up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (LEVELS - 1))
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
                        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.18215)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1, prediction_type=family["prediction"])
    spread(unet, seed + 1, attention=family["attention"]), spread(text, seed + 2), spread(vae, seed + 3)
    return Model(unet, text, tokenizer), vae, scheduler


def text_names(module):
    """A text encoder's tensors under the names of published checkpoints; transformers 5 has dropped `text_model.`."""
    return {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in module.state_dict().items()}


def write_index(folder, name="StableDiffusionPipeline", **more):
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, **parts, **more}, indent=2) + "\n")


@torch.no_grad()
def two_stages(model, personal, scheduler, z, latent, sites, prompt=PERSONAL, reference_prompt=REFERENCE, vanilla_prompt=VANILLA, guidance=GUIDANCE,
               mask_grid=(16, 16), steps=STEPS, **changes):
    """The layout, the inverted reference, the retouched trajectory and its masks, by the settings of RETOUCH."""
    MARGINS.clear()
    settings = {**RETOUCH, **changes}
    t = {"layout": torch.cat(step_blend_sample(model, personal, vanilla_prompt, prompt, z, scheduler, steps, guidance, settings["blend_steps"])),
         "inverted": torch.cat(invert(personal, latent, scheduler, steps))}
    trajectory, masks = retouch(personal, prompt, list(t["layout"].split(1)), list(t["inverted"].split(1)), scheduler, steps, guidance,
                                reference_prompt=reference_prompt, sites=sites, mask_grid=mask_grid, vanilla=model, vanilla_prompt=vanilla_prompt, **settings)
    t["retouch"], t["masks"] = torch.cat(trajectory), torch.stack([torch.stack(m) for m in masks])
    return t


@torch.no_grad()
def numbers(model, personal, vae, scheduler, sites, inputs):
    """Expected outputs of every part and of the two stages; `inputs` has noise, unet_in and image."""
    t = dict(inputs)
    t["text"], t["text_empty"] = personal.encode(PERSONAL), personal.encode("")
    t["unet_context"] = torch.cat([personal.encode(VANILLA), t["text"]])
    t["unet_out"] = model.unet(inputs["unet_in"], torch.tensor([981, 401]), t["unet_context"]).sample
    t["vae_mean"], t["vae_decoded"] = vae.encode(inputs["image"]).latent_dist.mean, vae.decode(inputs["noise"]).sample
    t["reference_latent"] = t["vae_mean"] * vae.config.scaling_factor
    t |= two_stages(model, personal, scheduler, inputs["noise"], t["reference_latent"], sites)
    t["picture"] = vae.decode(t["retouch"][-1:] / vae.config.scaling_factor).sample.clamp(-1, 1)
    return t


def write_numbers(path, tensors, name="", skip=()):
    std = {k: tensors[k].std().item() for k in ("text", "unet_out", "vae_mean", "vae_decoded", "retouch") if k in tensors}
    print(f"{name or path.name:28} margin {min(MARGINS, default=1):.1e}", {k: round(v, 2) for k, v in std.items()},
          [round(x, 2) for x in tensors["masks"].mean((0, 2, 3)).tolist()] if "masks" in tensors else "")
    if path is not None:
        save_file({k: v.contiguous().float() for k, v in tensors.items() if k not in skip}, path)


def compare(label, single, double):
    """Prints how far a float64 run of the same code is from the numbers: the honest floor of any tolerance."""
    for k in single:
        if k not in ("noise", "unet_in", "image"):
            d = (single[k].double() - double[k]).abs().max() / single[k].double().std().clamp_min(1e-30)
            if k == "masks" and d > 0:
                print(f"  {label} {k}: {int((single[k].double() != double[k]).sum())} pixels differ")
            elif k != "masks":
                print(f"  {label} {k}: {d:.1e}", end="")
    print()
