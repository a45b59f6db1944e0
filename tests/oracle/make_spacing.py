"""Makes data/spacing.safetensors: few steps with each spacing of the timesteps, and schedules of zero terminal SNR, on the tiny
models: `python make_spacing.py DATA OUT`. Needs what make_schedulers.py needs; networks run in float64."""
import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from make_schedulers import CASES, Family

SOLVERS = ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = {}

    def keep(family, name, case, options, steps, wide=False, **more):
        cls, own, step = CASES[case]
        make = lambda: family.scheduler(cls, {**own, **options})
        scheduler = make()
        scheduler.set_timesteps(steps)
        data[f"{name}.timesteps"] = scheduler.timesteps.float().clone()
        if hasattr(scheduler, "sigmas"):
            data[f"{name}.sigmas"] = scheduler.sigmas.float().clone()
        scheduler = make()
        if wide:
            # Between a sigma of 4096 and the next the ancestral step cancels: in float32 what it takes away is off by some percent.
            lay_out = scheduler.set_timesteps
            def set_timesteps(count):
                lay_out(count)
                scheduler.sigmas = scheduler.sigmas.double()
            scheduler.set_timesteps = set_timesteps
        data[f"{name}.last"] = family.draw(scheduler, steps, step, **more)[-1:]
        assert data[f"{name}.last"].isfinite().all(), name
        print(name, data[f"{name}.timesteps"].tolist(), f"{data[f'{name}.last'].std():.2f}")

    family = Family(args.data / "tiny-sd1")
    for case in SOLVERS:
        for steps in (1, 4):
            keep(family, f"trailing.{case}.{steps}", case, {"timestep_spacing": "trailing"}, steps)
    for spacing in ("leading", "linspace"):
        for case in ("ddim", "euler"):
            keep(family, f"{spacing}.{case}.1", case, {"timestep_spacing": spacing}, 1)
    family = Family(args.data / "tiny-sd2")
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for case in SOLVERS:
        keep(family, f"zero_snr.{case}.4", case, zero, 4, wide=case == "euler_ancestral")
    picture = load_file(args.data / "tiny-sd2.safetensors")["reference_latent"].double()
    keep(family, "zero_snr.strength.4", "ddim", zero, 4, picture=picture, strength=1.0)
    scheduler = family.scheduler(CASES["ddim"][0], zero)
    data["zero_snr.alphas"] = scheduler.alphas_cumprod.float().clone()
    save_file({k: v.contiguous().float() for k, v in data.items()}, args.out / "spacing.safetensors")


if __name__ == "__main__":
    main()
