"""Makes data/solvers.safetensors and data/solvers.json: what diffusers' schedulers do, option by option, with a fixed function in
place of the network, and some of them on tiny-sd1: `python make_solvers.py DATA OUT`. Needs what make_schedulers.py needs, scipy and torchsde.

The function is written so that it depends on latent, timestep and place, and is not linear in any (`network`). It predicts
the noise, v or the latent without noise, as the case has it: the three are different functions, not the same in
other words. Everything runs in float64 but for the tables, which are the classes' own. Latents are written as the U-Net sees
them. Noise is Philox4x32-10 of the seed, not torch's; that of DPM++ SDE is the classes' Brownian motion drawn by it (`brownian`).
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
import diffusers
import diffusers.schedulers.scheduling_lcm as lcm_module
import diffusers.schedulers.scheduling_euler_ancestral_discrete as ancestral_module
import diffusers.schedulers.scheduling_dpmsolver_multistep as multistep_module
from safetensors.torch import save_file

from make_schedulers import NEGATIVE, PROMPT, SEED as FAMILY_SEED, Family, normal

SEED, SHAPE = 11, (4, 6, 6)
BASE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
CLASSES = {
    "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler", "lms": "LMSDiscreteScheduler", "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler", "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler", "unipc": "UniPCMultistepScheduler", "lcm": "LCMScheduler",
}
KARRAS, EXPONENTIAL, BETA = ({f"use_{name}": True} for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas"))
V, X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}


def cases():
    """(name, options of the configuration, steps); the solver is what the name begins with."""
    for solver in CLASSES:
        own = {"skip_prk_steps": True} if solver == "pndm" else {}
        for steps in (1, 2, 5, 16):
            yield solver, f"steps_{steps}", own, steps
        yield solver, "v", {**own, **V}, 7
        # Not all of these classes read it; those that do not are given the same in other words (`Drawn.step`).
        yield solver, "sample", {**own, **X0}, 7
        yield solver, "cosine", {**own, "beta_schedule": "squaredcos_cap_v2"}, 7
        if solver not in ("lcm", "dpmpp_2s"):
            for spacing in ("leading", "linspace", "trailing"):
                yield solver, spacing, {**own, "timestep_spacing": spacing}, 6
        yield solver, "offset_0", {**own, "steps_offset": 0, "timestep_spacing": "leading"}, 6
        yield solver, "zero_snr", {**own, **ZERO}, 6
    for solver in ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2s", "dpmpp_sde", "unipc"):
        for name, options in (("karras", KARRAS), ("exponential", EXPONENTIAL), ("beta", BETA)):
            yield solver, name, options, 8
            yield solver, f"{name}_range", {**options, "sigma_min": 0.1, "sigma_max": 9.0}, 8
            yield solver, f"{name}_leading", {**options, "timestep_spacing": "leading"}, 3
    for solver in ("ddim", "heun", "lcm"):
        yield solver, "clip", {"clip_sample": True}, 7
        yield solver, "clip_2", {"clip_sample": True, "clip_sample_range": 2.0, **V}, 7
    yield "ddim", "clip_eta", {"clip_sample": True, "eta": 0.6}, 7
    yield "ddim", "clip_default", {"clip_sample": None}, 7
    yield "heun", "defaults_of_ddim", {"clip_sample": None, "written_for": "DDIMScheduler"}, 7
    for one in (True, False):
        yield "ddim", f"alpha_to_one_{one}", {"set_alpha_to_one": one}, 7
        yield "pndm", f"alpha_to_one_{one}", {"set_alpha_to_one": one, "skip_prk_steps": True}, 7
    for final in ("zero", "sigma_min"):
        for steps in (7, 18):
            for solver in ("euler", "unipc", "dpmpp_2m", "dpmpp_2s"):
                yield solver, f"{final}_{steps}", {"final_sigmas_type": final}, steps
            for order in (1, 3):
                for solver in ("unipc", "dpmpp_2m", "dpmpp_2s"):
                    yield solver, f"order_{order}_{final}_{steps}", {"final_sigmas_type": final, "solver_order": order}, steps
    for order in (1, 2, 3):
        order_is = {"solver_order": order}
        for steps in (3, 7, 18):
            yield "dpmpp_2m", f"sde_{order}_{steps}", {**SDE, **order_is}, steps
            yield "dpmpp_2m", f"heun_{order}_{steps}", {"solver_type": "heun", **order_is}, steps
            yield "dpmpp_2s", f"heun_{order}_{steps}", {"solver_type": "heun", **order_is}, steps
            yield "unipc", f"bh1_{order}_{steps}", {"solver_type": "bh1", "final_sigmas_type": "sigma_min", **order_is}, steps
        yield "dpmpp_2m", f"sde_heun_{order}", {**SDE, **order_is, "solver_type": "heun"}, 9
        yield "dpmpp_2m", f"sde_karras_{order}", {**SDE, **KARRAS, **order_is}, 9
        yield "dpmpp_2m", f"high_{order}", {**order_is, "lower_order_final": False}, 9
        yield "dpmpp_2m", f"euler_at_final_{order}", {**order_is, "euler_at_final": True, "final_sigmas_type": "sigma_min"}, 18
        yield "dpmpp_2s", f"high_{order}", {**order_is, "lower_order_final": False, "final_sigmas_type": "sigma_min"}, 6
        yield "dpmpp_2s", f"low_{order}", {**order_is, "lower_order_final": True, "final_sigmas_type": "sigma_min"}, 6
        yield "unipc", f"high_{order}", {**order_is, "lower_order_final": False, "final_sigmas_type": "sigma_min"}, 9
        yield "unipc", f"no_corrector_{order}", {**order_is, "disable_corrector": [0, 3]}, 9
    for steps in (3, 9, 20):
        yield "dpmpp_2m", f"lu_{steps}", {"use_lu_lambdas": True}, steps
    yield "dpmpp_2m", "lu_cosine", {"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2"}, 8
    yield "dpmpp_2m", "lu_range", {"use_lu_lambdas": True, "sigma_min": 0.1, "sigma_max": 9.0}, 8
    yield "dpmpp_2m", "deis", {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"}, 8
    for name, options in {
        "original_20": {"original_inference_steps": 20}, "scaling": {"timestep_scaling": 0.01}, "kolors": {"num_train_timesteps": 1100},
    }.items():
        yield "lcm", name, options, 4


def network(z, t):
    """What stands for the network: a function of the latent, the timestep and the place."""
    place = torch.arange(z[0].numel(), dtype=torch.float64).reshape(z[0].shape)
    wave = torch.sin(place * 0.37 + float(t) * 0.004)
    return torch.tanh(z * (0.9 - float(t) * 0.0003)) + 0.35 * wave + 0.05 * z


class Drawn:
    """One trajectory of a scheduler, from noise or from a picture."""

    def __init__(self, solver, options, steps, network=network, seed=SEED, shape=SHAPE):
        self.network, self.seed, self.shape = network, seed, shape
        config = {**BASE, **options}
        self.eta = config.pop("eta", 0.0)
        written_for = config.pop("written_for", None)
        config = {key: value for key, value in config.items() if value is not None}
        self.prediction = config.get("prediction_type", "epsilon")
        cls = getattr(diffusers, CLASSES[solver])
        if written_for:
            config = dict(getattr(diffusers, written_for).from_config(config).config)
        else:
            config["_class_name"] = CLASSES[solver]
        # Classes that do not read a latent without noise are given the noise in it.
        self.in_other_words = self.prediction == "sample" and solver in ("euler_ancestral", "pndm", "dpmpp_sde")
        if self.in_other_words:
            config["prediction_type"] = "epsilon"
        self.solver, self.steps, self.scheduler = solver, steps, cls.from_config(config)
        zero = config.get("rescale_betas_zero_snr")
        if zero and solver in ("heun", "lms", "pndm", "dpmpp_2s", "dpmpp_sde"):
            # Their classes leave the option out; the network was trained so all the same.
            reader = diffusers.EulerDiscreteScheduler.from_config({**config, "_class_name": "EulerDiscreteScheduler"})
            self.scheduler.alphas_cumprod = reader.alphas_cumprod.clone()
        self.scheduler.set_timesteps(steps)
        if hasattr(self.scheduler, "sigmas"):
            # Where a sigma is 4096 float32 cancels.
            self.scheduler.sigmas = self.scheduler.sigmas.double()
        if hasattr(self.scheduler, "alphas_cumprod"):
            self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.double()
        self.k = 0
        noise = lambda *_, **__: normal(self.seed, self.k, 1, self.shape).double()
        for module in (lcm_module, ancestral_module, multistep_module):
            module.randn_tensor = noise
        if solver == "dpmpp_sde":
            self.scheduler.noise_sampler = self.brownian
        self.euler = solver in ("euler", "euler_ancestral", "heun", "lms", "dpmpp_sde")

    def brownian(self, sigma, sigma_next):
        """The increment of a Brownian motion over sigma from where step k begins to `sigma_next`, over its deviation: the
        first part of the step by one noise, the second part by another."""
        sigmas = self.scheduler.sigmas
        start, end = sigmas[2 * self.k], sigmas[2 * self.k + 1]
        half = (start.log() / 2 + end.log() / 2).exp()
        first, second = (normal(self.seed, self.k, stream, self.shape).double() for stream in (1, 2))
        if sigma_next > (half + end) / 2:
            return first
        return (first * (start - half) ** 0.5 + second * (half - end) ** 0.5) / (start - end) ** 0.5

    def level(self, t, index):
        """Signal and noise before a call."""
        if hasattr(self.scheduler, "sigmas"):
            sigma = self.scheduler.sigmas[index]
            middle = getattr(self.scheduler, "mid_point_sigma", None)
            sigma = sigma if middle is None else middle
            return 1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5
        alpha = self.scheduler.alphas_cumprod[int(t)]
        return alpha**0.5, (1 - alpha) ** 0.5

    def calls(self, first):
        """The timesteps of the calls from step `first` on, by step."""
        t = self.scheduler.timesteps
        if self.solver in ("heun", "dpmpp_sde"):
            pairs = [t[max(2 * k, 0) : 2 * k + 2] for k in range(self.steps)]
            return pairs[first:]
        if self.solver == "pndm":
            own = [t[0]] + list(t[2:]) if len(t) > self.steps else list(t)
            own = own[first:]
            return [own[:2]] + [[x] for x in own[1:]] if len(own) > 1 else [own]
        return [[x] for x in t[first:]]

    def run(self, picture=None, first=0):
        scheduler = self.scheduler
        noise = normal(self.seed, 0, 0, self.shape).double()
        x = noise * scheduler.init_noise_sigma
        twice = self.solver in ("heun", "dpmpp_sde")
        if picture is not None:
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first * (2 if twice else 1))
            a, s = self.level(self.calls(first)[0][0], first * (2 if twice else 1))
            # As `add_noise` has it, in the latents' own space.
            x = picture + noise * s / a if self.euler else a * picture + s * noise
        seen = lambda x, sigma: x / (sigma**2 + 1) ** 0.5 if self.euler else x
        sigma_before = lambda k: scheduler.sigmas[min(2 * k, len(scheduler.sigmas) - 1) if twice else k] if self.euler else None
        latents = [seen(x, sigma_before(first))]
        index = first * (2 if twice else 1)
        for i, calls in enumerate(self.calls(first)):
            self.k = first + i
            for j, t in enumerate(calls):
                z = scheduler.scale_model_input(x, t)
                out = self.network(z, t)
                if self.in_other_words:
                    a, s = self.level(t, index)
                    out = (z - a * out) / s
                options = {}
                if self.solver == "lms":
                    # From a picture diffusers takes weights of order 4 for the one slope that there is.
                    options["order"] = min(i + 1, 4)
                if self.eta:
                    options.update(eta=self.eta, variance_noise=normal(self.seed, self.k, 1, self.shape).double())
                x = scheduler.step(out, t, x, **options).prev_sample
                index += 1
            latents.append(seen(x, sigma_before(self.k + 1)))
        return torch.cat(latents)


def guided(family):
    """The network of a tiny model with its prompts and guidance."""
    context = [family.encode(NEGATIVE), family.encode(PROMPT)]

    @torch.no_grad()
    def call(z, t):
        u, c = (family.unet(z, t, states).sample for states in context)
        return u + family.guidance * (c - u)

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, listed = {}, []
    picture = normal(SEED, 5, 1, SHAPE).double() * 0.8
    for solver, name, options, steps in cases():
        try:
            drawn = Drawn(solver, options, steps).run()
        except Exception as error:
            print(f"{solver}.{name}: {type(error).__name__} {error}")
            raise
        key = f"{solver}.{name}"
        assert key not in data, key
        if not drawn.isfinite().all():
            print("not finite:", key)
            continue
        data[key] = drawn[-1:]
        listed.append({"name": key, "solver": solver, "options": options, "steps": steps})
        if name == "steps_5":
            data[f"{key}.all"] = drawn
            data[f"{key}.timesteps"] = Drawn(solver, options, steps).scheduler.timesteps.float()
            for first in (2, 4):
                data[f"{key}.from_{first}"] = Drawn(solver, options, steps).run(picture, first)[[0, 1, -1]]
    for order in (1, 2, 3):
        for solver in ("unipc", "dpmpp_2m", "dpmpp_2s"):
            options = {"solver_order": order}
            for first in (2, 3, 4):
                key = f"{solver}.order_{order}.from_{first}"
                data[key] = Drawn(solver, options, 8).run(picture, first)[-1:]
                listed.append({"name": key, "solver": solver, "options": options, "steps": 8, "first": first})
    family = Family(args.data / "tiny-sd1")
    call = guided(family)
    for solver, options in {
        "heun": {}, "lms": {}, "pndm": {"skip_prk_steps": True}, "dpmpp_3m": {"solver_order": 3}, "dpmpp_2m_sde": SDE,
        "dpmpp_3m_sde": {**SDE, "solver_order": 3}, "dpmpp_2s": {}, "dpmpp_sde": {}, "lcm": {},
    }.items():
        cls = "dpmpp_2m" if solver in ("dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde") else solver
        config = {key: value for key, value in family.config.items() if not key.startswith("_")}
        drawn = Drawn(cls, {**config, **options}, 5, call, FAMILY_SEED, (4, 16, 16)).run()
        data[f"tiny-sd1.{solver}"] = drawn[[0, 1, -1]]
        assert drawn.isfinite().all(), solver
    save_file({k: v.contiguous().float() for k, v in data.items()}, args.out / "solvers.safetensors")
    (args.out / "solvers.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in listed) + "\n]\n")
    print(len(listed), "cases", (args.out / "solvers.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
