"""Stage 2 with matched values, on the tiny models: `python make_matching.py data`.

Reads the models and the inputs that make.py wrote, and writes `data/matching.safetensors`: the trajectories `FAMILY/retouch.VARIANT`, their masks `FAMILY/masks.VARIANT`, and
one site by itself, whose matches are known: a reference that is the context moved by one place, its keys in another order.
"""
import argparse
import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from layout_and_retouch import TIES, Model, matched_values, retouch


def model(folder, unet):
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
    network = UNet2DConditionModel.from_pretrained(unet, torch_dtype=torch.float32)
    return Model(network.eval(), text.eval(), CLIPTokenizer.from_pretrained(folder / "tokenizer"))


def trajectories(data, name):
    facts, t = json.loads((data / f"{name}.json").read_text()), load_file(data / f"{name}.safetensors")
    vanilla = model(data / name, data / name / "unet")
    personal = model(data / name, data / f"{name}-personal" / "unet")
    scheduler = DDIMScheduler.from_pretrained(data / name / "scheduler")
    rows = lambda x: list(x[:, None])
    common = dict(reference_prompt=facts["reference_prompt"], subject=facts["subject"], sites=range(10, 16), from_step=1, structure_until=4, mask_grid=(16, 16),
                  vanilla=vanilla, vanilla_prompt=facts["vanilla_prompt"], blend_steps=3, values="matched")
    variants = {"matched": {}, "matched_masked": dict(reference_mask=t["given_mask"], blend="context", start_step=2)}
    for variant, change in variants.items():
        TIES.clear()
        out, masks = retouch(personal, facts["personalized_prompt"], rows(t["layout"]), rows(t["inverted"]), scheduler, 8, 5.0, **{**common, **change})
        print(f"{name} {variant}: closest two {min(TIES):.1e}, from attended {(out[-1] - t['retouch.default'][-1]).abs().max() / out[-1].std():.2f} standard deviations")
        yield f"{name}/retouch.{variant}", torch.cat(out)
        yield f"{name}/masks.{variant}", torch.stack([torch.stack(m) for m in masks])


def site():
    """Keys and values of one site of 4 x 6 places, two heads of 8, and what is read through them."""
    g = torch.Generator().manual_seed(11)
    h, w, heads, d = 4, 6, 2, 8
    k_ctx, v_ctx = torch.randn(1, heads, h * w, d, generator=g), torch.randn(1, heads, h * w, d, generator=g)
    order = torch.randperm(h * w, generator=g)
    along = lambda x: x.view(1, heads, h, w, d).roll(1, 3).flatten(2, 3)[:, :, order]
    k_ref = along(k_ctx) + 0.1 * torch.randn(1, heads, h * w, d, generator=g)
    v_ref = torch.randn(1, heads, h * w, d, generator=g)
    counts, mask = torch.rand(h * w, generator=g) < 0.8, torch.rand(h * w, generator=g)
    out = matched_values(k_ctx, v_ctx, (h, w), k_ref, v_ref, counts, mask)
    flat = lambda x: x.transpose(1, 2).flatten(2)[0]
    return {"k_ctx": flat(k_ctx), "v_ctx": flat(v_ctx), "k_ref": flat(k_ref), "v_ref": flat(v_ref), "counts": counts.nonzero().flatten().to(torch.int64), "mask": mask, "values": flat(out)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    tensors = {f"site.{k}": v for k, v in site().items()}
    for family in ("tiny-sd1", "tiny-sd2"):
        tensors.update(trajectories(data, family))
    save_file({k: v.contiguous() for k, v in tensors.items()}, data / "matching.safetensors")
