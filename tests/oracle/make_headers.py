"""Makes data/headers.json.gz: names and shapes of the tensors of published checkpoints, without a weight: `python make_headers.py OUT`.

Needs torch, diffusers and transformers. Networks are built on the meta device from the configurations below (the published ones, as far
as they shape a network); their names in the original layout come from ldm.py, and diffusers' own conversion has to give back every name.
Buffers and averages beside them are those that the training code registers (CompVis' DDPM.register_schedule and LitEma).
"""
import argparse
import gzip
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import ldm

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def blocks(*attends):
    """Block types, of whether each level has attention, finest first."""
    return {"down_block_types": tuple((CROSS if a else PLAIN)[0] for a in attends), "up_block_types": tuple((CROSS if a else PLAIN)[1] for a in reversed(attends))}


SD1 = dict(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8, sample_size=64, **blocks(1, 1, 1, 0))
SD2 = {**SD1, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = dict(block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
            sample_size=128, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816, **blocks(0, 1, 1))
REFINER = {**SDXL, "block_out_channels": (384, 768, 1536, 1536), "cross_attention_dim": 1280, "attention_head_dim": (6, 12, 24, 24),
           "transformer_layers_per_block": 4, "projection_class_embeddings_input_dim": 2560, **blocks(0, 1, 1, 0)}
UNETS = {
    "sd1": SD1, "sd1-inpainting": {**SD1, "in_channels": 9}, "sd1-pix2pix": {**SD1, "in_channels": 8},
    "sd2": SD2, "sd2-inpainting": {**SD2, "in_channels": 9}, "sdxl": SDXL, "sdxl-inpainting": {**SDXL, "in_channels": 9}, "refiner": REFINER,
    # Fewer layers, unequal depths, one ResNet block in the middle.
    "ssd-1b": {**SDXL, "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": (1, (2, 2), (4, 4)),
               "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1)},
    "bk-sdm-base": {**SD1, "layers_per_block": 1}, "bk-sdm-small": {**SD1, "layers_per_block": 1, "mid_block_type": None},
    "bk-sdm-tiny": {**SD1, "layers_per_block": 1, "mid_block_type": None, "block_out_channels": (320, 640, 1280), **blocks(1, 1, 1)},
    "lcm": {**SD1, "time_cond_proj_dim": 256},
}
FOLDERS = ("sd1", "ssd-1b", "bk-sdm-small", "lcm", "sdxl-inpainting")  # those that are tried in diffusers' layout too
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4,
           up_block_types=("UpDecoderBlock2D",) * 4)
TEXTS = {
    "clip-l": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768),
    "open-clip-h": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, projection_dim=1024),
    "open-clip-g": dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280),
}


def original_unet(model):
    tensors = model.state_dict()
    layers = model.config.layers_per_block
    named = ldm.unet({k: v for k, v in tensors.items() if "cond_proj" not in k}, layers)
    config = {**model.config, "layers_per_block": layers}
    back = convert_ldm_unet_checkpoint(dict(named), config)
    missing = set(tensors) ^ set(back)
    assert not {name for name in missing if "cond_proj" not in name}, sorted(missing)[:5]
    return named


def shapes(tensors):
    return {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}


def averages(names):
    """LitEma's: dots are dropped from the names."""
    return {f"model_ema.{name.removeprefix('model.').replace('.', '')}": shape for name, shape in names.items()} | {"model_ema.decay": [], "model_ema.num_updates": []}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    tables = {}
    with torch.device("meta"):
        for name, config in UNETS.items():
            model = UNet2DConditionModel(**config)
            if name in FOLDERS:
                tables[f"folder/unet/{name}"] = shapes(model.state_dict())
            tables[f"unet/{name}"] = shapes(original_unet(model))
        vae = AutoencoderKL(**VAE)
        named = ldm.vae(vae.state_dict(), 4)
        back = convert_ldm_vae_checkpoint(dict(named), dict(vae.config))
        assert set(back) == set(vae.state_dict())
        tables["folder/vae"], tables["vae"] = shapes(vae.state_dict()), shapes(named)
        for name, config in TEXTS.items():
            config = CLIPTextConfig(vocab_size=49408, **config)
            cls = CLIPTextModel if name == "clip-l" else CLIPTextModelWithProjection
            tensors = {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in cls(config).state_dict().items()}
            if name != "open-clip-h":
                tables[f"folder/text/{name}"] = shapes(tensors)
            original = ldm.clip(tensors, "") if name == "clip-l" else ldm.open_clip(tensors, "")
            tables[f"text/{name}"] = shapes(original)
    schedule = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
                "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
                "posterior_mean_coef1", "posterior_mean_coef2", "logvar")
    tables["schedule"] = {name: [1000] for name in schedule}
    tables["ema/sd1"] = averages(tables["unet/sd1"])
    tables["ema/sd1-pix2pix"] = averages(tables["unet/sd1-pix2pix"])
    text = json.dumps(tables, separators=(",", ":"), sort_keys=True).encode()
    path = args.out / "headers.json.gz"
    path.write_bytes(gzip.compress(text, 9, mtime=0))
    print({name: len(table) for name, table in tables.items()}, len(text), path.stat().st_size)


if __name__ == "__main__":
    main()
