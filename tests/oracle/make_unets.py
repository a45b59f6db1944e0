"""Makes data/unets.safetensors: U-Nets that are shown a picture beside the latent, and U-Nets of other shapes than the published
base models': `python make_unets.py DATA OUT`. Needs what make_schedulers.py needs and pillow.

The first are the U-Net of data/micro/sd1 with another first convolution, run by diffusers' own pipelines in float64; the noise is
Philox of seed 7, and the VAE gives the mean of its distribution where the inpainting pipeline would draw from it."""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint as inpaint_module
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix as edit_module
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from make import spread
from make_schedulers import NEGATIVE, PROMPT, SEED, normal

STEPS, GUIDANCE = 6, 5.0
# Stacks of unequal depth within a level and on the way up, a middle of one ResNet block: all that SSD-1B has otherwise than its base; and
# levels of unequal length.
UNEQUAL = dict(
    sample_size=16, block_out_channels=(8, 8, 8), layers_per_block=(1, 2, 1), norm_num_groups=4, cross_attention_dim=32,
    attention_head_dim=(1, 2, 4), use_linear_projection=True, mid_block_type="UNetMidBlock2D",
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, (2, 1), (2,)), reverse_transformer_layers_per_block=((1, 3), (2, 1, 1), 1),
)


def widened(folder, channels, seed):
    """The U-Net with a first convolution of so many channels, and that convolution's weights."""
    base = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet = UNet2DConditionModel.from_config({**base.config, "in_channels": channels})
    fresh = spread(UNet2DConditionModel.from_config({**base.config, "in_channels": channels}), seed).conv_in.weight
    unet.load_state_dict({**base.state_dict(), "conv_in.weight": fresh})
    return unet.double().eval(), fresh.detach().half().clone()


class Parts:
    def __init__(self, folder):
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").double().eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").double().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())

    def run(self, cls, unet, scheduler, **options):
        """Every latent of a pipeline's run, as the U-Net sees it."""
        config = {key: value for key, value in self.config.items() if value is not None}
        pipe = cls(vae=self.vae, text_encoder=self.text, tokenizer=self.tokenizer, unet=unet, scheduler=scheduler.from_config(config),
                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        seen = []
        def keep(_, i, t, tensors):
            seen.append(tensors["latents"].clone())
            return {}
        pipe(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, output_type="latent", callback_on_step_end=keep, **options)
        if "Euler" in type(pipe.scheduler).__name__:
            seen = [x / (sigma**2 + 1) ** 0.5 for x, sigma in zip(seen, pipe.scheduler.sigmas[1:], strict=True)]
        return torch.cat(seen)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, data = args.data / "micro" / "sd1", {}
    noise = normal(SEED, 0, 0, (4, 16, 16)).double()
    for module in (inpaint_module, edit_module):
        module.randn_tensor = lambda *_, **__: noise.clone()
        module.retrieve_latents = lambda encoded, generator=None, sample_mode="argmax": encoded.latent_dist.mode()
    parts = Parts(folder)
    picture = Image.open(args.data / "micro" / "reference.png").convert("RGB")
    # Soft, so that where it is cut shows; no pixel is at the half.
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = (1.2 - ((y - 25.3) ** 2 + (x - 37.1) ** 2) ** 0.5 / 40).clamp(0, 1)
    data["mask"] = mask

    unet, data["inpainting.conv_in"] = widened(folder, 9, 91)
    shown = {"image": picture, "mask_image": mask[None, None], "guidance_scale": GUIDANCE, "height": 64, "width": 64}
    run = lambda scheduler, **more: parts.run(inpaint_module.StableDiffusionInpaintPipeline, unet, scheduler, **{**shown, **more})
    data["inpainting.ddim"] = run(DDIMScheduler, strength=1.0)
    data["inpainting.euler"] = run(EulerDiscreteScheduler, strength=1.0)
    data["inpainting.unguided"] = run(DDIMScheduler, strength=1.0, guidance_scale=1.0)
    data["inpainting.strength"] = run(DDIMScheduler, strength=0.67)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].double() / 127.5 - 1
    hidden = pixels * (mask < 0.5)
    data["inpainting.shown"] = parts.vae.encode(hidden).latent_dist.mode() * parts.vae.config.scaling_factor

    unet, data["editing.conv_in"] = widened(folder, 8, 81)
    run = lambda scheduler, **more: parts.run(edit_module.StableDiffusionInstructPix2PixPipeline, unet, scheduler,
                                              **{"image": picture, "guidance_scale": GUIDANCE, "image_guidance_scale": 1.5, **more})
    data["editing.ddim"] = run(DDIMScheduler)
    data["editing.euler"] = run(EulerDiscreteScheduler)
    data["editing.one"] = run(DDIMScheduler, image_guidance_scale=1.0)
    data["editing.unguided"] = run(DDIMScheduler, guidance_scale=1.0)

    # Other shapes: the network alone, on the inputs of micro/sd1.safetensors.
    inputs = load_file(args.data / "micro" / "sd1.safetensors")
    call = lambda unet: unet.double()(inputs["unet_in"].double(), torch.tensor([981, 401]), inputs["unet_context"].double()).sample
    base = UNet2DConditionModel.from_pretrained(folder / "unet")
    bare = UNet2DConditionModel.from_config({**base.config, "mid_block_type": None})
    bare.load_state_dict({k: v for k, v in base.state_dict().items() if not k.startswith("mid_block.")})
    data["bare.unet_out"] = call(bare.eval())
    unequal = spread(UNet2DConditionModel(**UNEQUAL), 71)
    data |= {f"unequal/{k}": v.half() for k, v in unequal.state_dict().items()}
    data["unequal.unet_out"] = call(unequal.eval())

    for name, tensor in data.items():
        assert tensor.isfinite().all(), name
        if not name.startswith("unequal/"):
            print(f"{name:24} {tuple(tensor.shape)} std {tensor.double().std():.3f}")
    differ = lambda a, b: ((data[a] - data[b]).abs().max() / data[b].std()).item()
    print("euler against ddim", differ("inpainting.euler", "inpainting.ddim"), "with and without image guidance", differ("editing.one", "editing.ddim"))
    half = lambda name, tensor: tensor if name.endswith("conv_in") or name.startswith("unequal/") else tensor.float()
    save_file({k: half(k, v).contiguous() for k, v in data.items()}, args.out / "unets.safetensors")


if __name__ == "__main__":
    main()
