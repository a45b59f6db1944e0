"""Makes data/references.safetensors: stage 2 with two references of different sizes: `python make_references.py DATA OUT`.

Needs what `make.py` needs. DATA is the folder that `make.py` made. The keys and values of both references stand one after
another, each under its own given mask; everything else is as in `layout_and_retouch.py`.
"""
import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from layout_and_retouch import Ddim, Model, attention, grid_of, guided, invert, nearest

STEPS, GUIDANCE, SITES, FROM_STEP, STRUCTURE_UNTIL = 8, 5.0, range(10, 16), 1, 4
PROMPT = "a sks teddy bear on a beach"
REFERENCE_PROMPTS = ("a photo of a sks teddy bear", "a sks teddy bear in the snow")


@torch.no_grad()
def retouch(model, context, references, masks, blend_mask, scheduler):
    ddim, z = Ddim(scheduler, STEPS), context[0]
    trajectory = [z]
    contexts = [model.encode(""), model.encode(PROMPT)]
    for k, t in enumerate(ddim.timesteps):
        _, ctx, _ = guided(model, context[k], t, PROMPT, GUIDANCE)
        sources = [guided(model, r[k], t, p, GUIDANCE)[1] for r, p in zip(references, REFERENCE_PROMPTS)]

        def control_for(half):
            def control(index, name, q, _k, _v, scale):
                if index not in SITES:
                    return None
                q_ctx, k_ctx, v_ctx = ctx[half][name]
                outside = lambda query: attention(query, k_ctx, v_ctx, scale)
                if k < FROM_STEP:
                    return outside(q_ctx)
                keys = torch.cat([source[half][name][1] for source in sources], 2)
                values = torch.cat([source[half][name][2] for source in sources], 2)
                inside = torch.cat([
                    nearest(mask, grid_of(source[half][name][1].shape[2], reference[0])).flatten()
                    for mask, source, reference in zip(masks, sources, references)
                ]) >= 0.5
                rows = nearest(blend_mask, grid_of(q.shape[2], z)).view(1, 1, -1, 1)
                query = q_ctx if k < STRUCTURE_UNTIL else q
                bias = torch.where(inside, 0.0, float("-inf")).to(q.dtype)
                return rows * attention(query, keys, values, scale, bias) + (1 - rows) * outside(query)
            return control

        u, c = (model.predict(z, t, contexts[half], control_for(half))[0] for half in (0, 1))
        z = ddim.step(z, u + GUIDANCE * (c - u), t)
        trajectory.append(z)
    return torch.cat(trajectory)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.data / "tiny-sd1"
    inputs = {k: v.double() for k, v in load_file(args.data / "tiny-sd1.safetensors").items()}
    model = Model(
        UNet2DConditionModel.from_pretrained(args.data / "tiny-sd1-personal" / "unet").double().eval(),
        CLIPTextModel.from_pretrained(folder / "text_encoder").double().eval(),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    )
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    wide = inputs["layout_wide"][-1:] * 0.5
    masks = [inputs["given_mask"], torch.zeros(16, 24).double()]
    masks[1][3:12, 2:15] = 1
    references = [invert(model, inputs["reference_latent"], scheduler, STEPS), invert(model, wide, scheduler, STEPS)]
    context = list(inputs["personalized_only"].split(1))
    data = {
        "second_latent": wide,
        "outside_mask": 1 - masks[0],
        "second_mask": masks[1],
        "blend_mask": inputs["given_mask"].flip(1),
        "retouch": retouch(model, context, references, masks, inputs["given_mask"].flip(1), scheduler),
        "retouch.second_masked_out": retouch(model, context, references, [1 - masks[0], 0 * masks[1]], inputs["given_mask"].flip(1), scheduler),
    }
    save_file({k: v.contiguous().float() for k, v in data.items()}, args.out)
    print({k: tuple(v.shape) for k, v in data.items()}, args.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
