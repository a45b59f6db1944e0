"""Makes data/schedulers.safetensors: what diffusers' schedulers do on the tiny models: `python make_schedulers.py DATA OUT`.

Needs torch, diffusers, transformers, safetensors, numpy. DATA is the folder that `make.py` made.
The networks run in float64, so that the numbers are the definition's and not those of one order of summation: the model
that predicts v is touchy.
Latents are written as the U-Net sees them (Euler's divided by sqrt(sigma^2 + 1)). Noise is Philox4x32-10 of the seed, as
docs/method.md has it, and not torch's.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    UNet2DConditionModel, UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

CASES = {
    "ddim": (DDIMScheduler, {}, {}),
    "ddim_eta": (DDIMScheduler, {}, {"eta": 0.7}),
    "euler": (EulerDiscreteScheduler, {}, {}),
    "euler_karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, {}),
    "unipc": (UniPCMultistepScheduler, {}, {}),
    "unipc_karras": (UniPCMultistepScheduler, {"use_karras_sigmas": True}, {}),
}
# How timesteps may be laid out otherwise, and other options: tables, and trajectories of the first family alone.
LAYOUTS = {
    "default": {"timestep_spacing": None},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "sigma_min": {"final_sigmas_type": "sigma_min"},
    "no_lower_order": {"lower_order_final": False},
    "euler_at_final": {"euler_at_final": True},
}
GUIDANCE = {"tiny-sd1": 5.0, "tiny-sd2": 2.0}  # at 5 the second's float32 strays from its float64 by 4e-3
SEED, PROMPT, NEGATIVE = 7, "a teddy bear on a beach", "a red car"


def philox(counter, key):
    c, k = [np.uint64(x) for x in counter], [np.uint64(x) for x in key]
    c = [np.broadcast_to(x, np.shape(counter[0])).astype(np.uint64) for x in c]
    low = np.uint64(0xFFFFFFFF)
    for r in range(10):
        if r:
            k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
    return c


def normal(seed, step, stream, shape):
    """Standard normal numbers of one image, `[1, C, h, w]`."""
    count = int(np.prod(shape))
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    words = philox([blocks, step, stream, 0], [seed & 0xFFFFFFFF, seed >> 32])
    u = [(w.astype(np.float64) + 0.5) / 2**32 for w in words]
    pairs = []
    for a, b in ((u[0], u[1]), (u[2], u[3])):
        r = np.sqrt(-2 * np.log(a))
        pairs += [r * np.cos(2 * np.pi * b), r * np.sin(2 * np.pi * b)]
    return torch.from_numpy(np.stack(pairs, 1).reshape(-1)[:count].astype(np.float32)).reshape(1, *shape)


class Family:
    def __init__(self, folder):
        self.guidance = GUIDANCE[folder.name]
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").double().eval()
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").double().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())

    def encode(self, prompt):
        ids = self.tokenizer(prompt, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True)
        return self.text(torch.tensor([ids["input_ids"]])).last_hidden_state

    def scheduler(self, cls, options):
        config = {**self.config, **options, "_class_name": cls.__name__}
        return cls.from_config({key: value for key, value in config.items() if value is not None})

    @torch.no_grad()
    def draw(self, scheduler, steps, step_options, rescale=0.0, picture=None, strength=None, mask=None):
        """The latents of the steps that are made, as the U-Net sees them. With `picture`, image to image; with `mask` too,
        inpainting as the pipeline for U-Nets of four channels does it."""
        scheduler.set_timesteps(steps)
        sigmas = getattr(scheduler, "sigmas", None)
        euler = "Euler" in type(scheduler).__name__
        seen = lambda x, k: x / (sigmas[k] ** 2 + 1) ** 0.5 if euler else x
        shape = (4, 16, 16)
        noise = normal(SEED, 0, 0, shape).double()
        start, init = 0, noise * scheduler.init_noise_sigma
        if picture is not None:
            start = max(steps - min(int(steps * strength), steps), 0)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(start)
            if mask is None or strength < 1:
                init = scheduler.add_noise(picture, noise, scheduler.timesteps[start : start + 1])
        timesteps = scheduler.timesteps[start:]
        context = [self.encode(NEGATIVE), self.encode(PROMPT)]
        x, trajectory = init, [seen(init, start)]
        for i, t in enumerate(timesteps):
            k = start + i
            z = scheduler.scale_model_input(x, t)
            u, c = (self.unet(z, t, states).sample for states in context)
            out = u + self.guidance * (c - u)
            if rescale:
                out = rescale_noise_cfg(out, c, guidance_rescale=rescale)
            step_noise = normal(SEED, k, 1, shape).double()
            options = dict(step_options)
            if options.get("eta"):
                options["variance_noise"] = step_noise
            if isinstance(scheduler, EulerAncestralDiscreteScheduler):
                import diffusers.schedulers.scheduling_euler_ancestral_discrete as module
                module.randn_tensor = lambda *_, **__: step_noise
            x = scheduler.step(out, t, x, **options).prev_sample
            if mask is not None:
                kept = picture
                if i < len(timesteps) - 1:
                    kept = scheduler.add_noise(picture, noise, timesteps[i + 1 : i + 2])
                x = (1 - mask) * kept + mask * x
            trajectory.append(seen(x, k + 1))
        return torch.cat(trajectory)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = {"noise": normal(SEED, 0, 0, (4, 16, 16)), "noise.step_3": normal(SEED, 3, 1, (4, 16, 16))}
    for name in ("tiny-sd1", "tiny-sd2"):
        family = Family(args.data / name)
        inputs = load_file(args.data / f"{name}.safetensors")
        picture, mask = inputs["reference_latent"].double(), inputs["given_mask"][None, None].double()
        for case, (cls, options, step) in CASES.items():
            for steps in (7, 20):
                scheduler = family.scheduler(cls, options)
                scheduler.set_timesteps(steps)
                data[f"{name}.{case}.{steps}.timesteps"] = scheduler.timesteps.float().clone()
                if hasattr(scheduler, "sigmas"):
                    data[f"{name}.{case}.{steps}.sigmas"] = scheduler.sigmas.float().clone()
            draw = lambda **more: family.draw(family.scheduler(cls, options), 8, step, **more)
            data[f"{name}.{case}.plain"] = draw()
            if "karras" not in case:
                data[f"{name}.{case}.strength"] = draw(picture=picture, strength=0.6)[[0, 1, -1]]
                data[f"{name}.{case}.inpaint"] = draw(picture=picture, strength=0.8, mask=mask)[[0, 1, -1]]
        ddim, euler = (CASES[case][0] for case in ("ddim", "euler"))
        data[f"{name}.ddim.rescale"] = family.draw(family.scheduler(ddim, {}), 8, {}, rescale=0.7)
        data[f"{name}.euler.rescale"] = family.draw(family.scheduler(euler, {}), 8, {}, rescale=0.7)
        for case in ("ddim", "euler"):
            cls = CASES[case][0]
            data[f"{name}.{case}.inpaint_all"] = family.draw(
                family.scheduler(cls, {}), 8, {}, picture=picture, strength=1.0, mask=mask
            )
        for layout, changes in LAYOUTS.items() if name == "tiny-sd1" else ():
            for case, (cls, options, step) in CASES.items():
                takes = cls.__init__.__wrapped__.__code__.co_varnames if hasattr(cls.__init__, "__wrapped__") else ()
                if any(key not in takes for key in changes):
                    continue
                if layout == "no_lower_order" and case.startswith("unipc"):
                    continue  # its last step divides by zero
                if layout == "sigma_min" and case == "unipc_karras":
                    continue  # its last sigma comes twice, and the step between them divides by zero
                if layout in ("no_lower_order", "euler_at_final") and "karras" in case:
                    continue
                scheduler = family.scheduler(cls, {**options, **changes})
                scheduler.set_timesteps(7)
                data[f"{layout}.{case}.timesteps"] = scheduler.timesteps.float().clone()
                if hasattr(scheduler, "sigmas"):
                    data[f"{layout}.{case}.sigmas"] = scheduler.sigmas.float().clone()
                if "karras" not in case and case != "ddim_eta":
                    data[f"{layout}.{case}.last"] = family.draw(scheduler, 7, step)[-1:].clone()
    data = {key: value.contiguous().float() for key, value in data.items()}
    for key, value in data.items():
        assert torch.isfinite(value).all(), key
    save_file(data, args.out)
    print(len(data), "tensors,", args.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
