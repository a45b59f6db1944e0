"""Makes data/tiles.safetensors: a VAE of diffusers with `enable_tiling`: `python make_tiles.py DATA OUT`.

Needs torch, diffusers, safetensors. DATA is the folder that `make.py` made. Tiles are of 8 latent pixels instead of 64, so
that a small latent has several. Its sides leave more than the overlap for the last tile of each row and column: of a shorter rest
diffusers makes one more tile, and Retouch none.
"""
import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

TILE, FACTOR, SHAPE = 8, 8, (1, 4, 11, 16)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(arguments.data / "tiny-sd1" / "vae", torch_dtype=torch.float32).double().eval()
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE, TILE * FACTOR
    latent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(11))
    decoded = vae.decode(latent.double()).sample
    mean = vae.encode(decoded.float().double()).latent_dist.mean
    vae.disable_tiling()
    print("tiles and whole differ by", ((decoded - vae.decode(latent.double()).sample).abs().max() / decoded.std()).item())
    tensors = {"latent": latent, "decoded": decoded.float(), "mean": mean.float()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, arguments.out / "tiles.safetensors")


if __name__ == "__main__":
    main()
