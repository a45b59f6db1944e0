"""Makes data/measures.safetensors and data/measures.json: what torch, transformers, pytorch-msssim and numpy give for the measures of
docs/measuring.md: `python make_measures.py ROOT OUT` (ROOT: the repository). Needs torch, transformers, pytorch-msssim, numpy, pillow,
safetensors.

The networks have the widths, heads, patches and positions of the published ones and two layers; their weights come from a formula
(`weights`), so that the data hold results alone and the test makes the same weights. EfficientNet-Lite0 is the file in models/, computed
here by torch's own convolutions. Pictures for the networks are numbers from the same formula.
"""
import argparse
import colorsys
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from pytorch_msssim import ms_ssim, ssim
from safetensors.torch import load_file, save_file

from formula import formula


def weights(name, shape):
    """A tensor of a network by its published name: norms and layer scales about one, biases small."""
    if "norm" in name or "lambda1" in name:
        return formula(name, shape, 0.2) + (1 if name.endswith(("weight", "lambda1")) else 0)
    return formula(name, shape, 0.1 if len(shape) == 1 else 0.05)


PUBLISHED = [
    ("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"),
    ("layers.", "encoder.layer."),
]


def published(name, model):
    """The name of a tensor in published files: transformers 5 has others in memory."""
    if isinstance(model, transformers.CLIPModel):
        return name
    name = name.removeprefix("encoder.").replace("layer.", "layers.") if name.startswith("encoder.layer.") else name
    for own, old in PUBLISHED:
        if own in name and old not in name:
            name = name.replace(own, old)
    if isinstance(model, transformers.ViTModel):
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
    return name


def filled(model):
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            known = published(name, model)
            state[name] = weights(known, tuple(tensor.shape)) if tensor.dim() else tensor
        else:
            state[name] = tensor
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def networks():
    small = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2}
    picture = formula("picture", (1, 3, 224, 224), 2.0)
    made = {}
    dino = filled(transformers.ViTModel(transformers.ViTConfig(**small, intermediate_size=1536, patch_size=16, image_size=224), add_pooling_layer=False))
    made["dino"] = dino(picture).last_hidden_state[:, 0]
    options = {**small, "patch_size": 14, "image_size": 518}
    dinov2 = filled(transformers.Dinov2Model(transformers.Dinov2Config(**options)))
    made["dinov2"] = dinov2(picture).last_hidden_state[:, 0]
    registers = transformers.Dinov2WithRegistersConfig(**options, num_register_tokens=4)
    registers = filled(transformers.Dinov2WithRegistersModel(registers))
    # Its positions are resized with antialiasing where those without registers are not; at their own size there is nothing to resize.
    made["dinov2_registers"] = registers(formula("large", (1, 3, 518, 518), 2.0)).last_hidden_state[:, 0]
    made["dinov2_registers_224"] = registers(picture).last_hidden_state[:, 0]
    config = transformers.CLIPConfig(
        text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 2}, projection_dim=512,
    )
    clip = filled(transformers.CLIPModel(config))
    found = clip.get_image_features(pixel_values=picture)
    made["clip_image"] = getattr(found, "pooler_output", found)
    # "a teddy bear on a beach" by CLIP's vocabulary, between begin and end.
    ids = torch.tensor([[49406, 320, 11798, 4298, 525, 320, 2117, 49407]])
    found = clip.get_text_features(input_ids=ids)
    made["clip_text"] = getattr(found, "pooler_output", found)
    return made


BLOCKS = [(1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80), (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320)]


@torch.no_grad()
def lite0(state, x):
    state = {name: tensor.double() for name, tensor in state.items()}

    def conv(x, name, size=1, stride=1, groups=1):
        # TensorFlow's "same": what is left over stands behind.
        zeros = [max((math.ceil(side / stride) - 1) * stride + size - side, 0) for side in x.shape[-2:]]
        x = F.pad(x, (zeros[1] // 2, zeros[1] - zeros[1] // 2, zeros[0] // 2, zeros[0] - zeros[0] // 2))
        return F.conv2d(x, state[name + ".weight"], None, stride, 0, 1, groups)

    def norm(x, name):
        part = [state[f"{name}.{end}"] for end in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *part, False, 0.0, 1e-3)

    x = F.relu6(norm(conv((x.double() - 0.498) / 0.502, "_conv_stem", 3, 2), "_bn0"))
    index = 0
    for repeats, size, stride, expansion, _, _ in BLOCKS:
        for repeat in range(repeats):
            block, y = f"_blocks.{index}.", x
            if expansion > 1:
                y = F.relu6(norm(conv(y, block + "_expand_conv"), block + "_bn0"))
            step = stride if repeat == 0 else 1
            y = F.relu6(norm(conv(y, block + "_depthwise_conv", size, step, y.shape[1]), block + "_bn1"))
            y = norm(conv(y, block + "_project_conv"), block + "_bn2")
            x = x + y if y.shape == x.shape else y
            index += 1
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3)).float()


def pictures(root):
    files = sorted((root / "references/teddy").glob("0?.png"))
    return torch.stack([torch.from_numpy(np.asarray(Image.open(f).convert("RGB"))).permute(2, 0, 1) / 255 for f in files])


def hues(picture, mask, bins=24):
    histogram = np.zeros(bins)
    for (red, green, blue), inside in zip(picture.reshape(3, -1).T.tolist(), mask.reshape(-1).tolist()):
        if inside < 0.5:
            continue
        chroma = max(red, green, blue) - min(red, green, blue)
        place = colorsys.rgb_to_hsv(red, green, blue)[0] * bins
        histogram[int(place) % bins] += chroma * (1 - place % 1)
        histogram[(int(place) + 1) % bins] += chroma * (place % 1)
    return histogram / histogram.sum()


def numbers(root, photos):
    masks = [np.asarray(Image.open(f).convert("L")) / 255 for f in sorted((root / "references/teddy").glob("0?-mask.png"))]
    of = [hues(p, m) for p, m in zip(photos, masks)]
    wanted = (of[1] + of[2]) / 2
    made = {"look": [float(np.minimum(one, wanted).sum()) for one in of]}
    cut = [m >= 0.5 for m in masks]
    pairs = [(i, j) for i in range(len(cut)) for j in range(i)]
    places = [np.argwhere(c) + 0.5 for c in cut]
    centres, areas = np.array([p.mean(0) for p in places]), np.array([len(p) for p in places])
    boxes = np.array([p.max(0) - p.min(0) + 1 for p in places])
    made["layout"] = {
        "layout": float(np.mean([1 - (cut[i] & cut[j]).sum() / (cut[i] | cut[j]).sum() for i, j in pairs])),
        "centre_spread": float(np.sqrt((centres.std(0, ddof=1) ** 2).sum()) / np.sqrt(areas).mean()),
        "area_spread": float(np.log(areas).std(ddof=1)),
        "aspect_spread": float(np.log(boxes[:, 1] / boxes[:, 0]).std(ddof=1)),
    }
    rows = F.normalize(torch.from_numpy(formula("rows", (6, 10), 1.0).numpy()).double())
    kernel = (rows @ rows.T).numpy()
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 0]
    made["vendi"] = float(np.exp(-(values * np.log(values)).sum()))
    made["diversity"] = float((1 - kernel[np.tril_indices(len(kernel), -1)]).mean())
    a, b = photos[0:1].double(), photos[2:3].double()
    # 181 rows and 201 columns of the formula: odd sides, five scales.
    c = (formula("c", (1, 3, 181, 201), 0.5) + 0.5).double()
    d = (c + formula("d", (1, 3, 181, 201), 0.1).double()).clamp(0, 1)
    c, d = c.float().double(), d.float().double()
    made["errors"] = {
        "photos": {"psnr": float(-10 * torch.log10(F.mse_loss(a, b))), "ssim": float(ssim(a, b, data_range=1.0))},
        "formula": {"psnr": float(-10 * torch.log10(F.mse_loss(c, d))), "ssim": float(ssim(c, d, data_range=1.0)), "ms_ssim": float(ms_ssim(c, d, data_range=1.0))},
    }
    return made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    photos = pictures(arguments.root)
    made = networks()
    large = F.interpolate(photos, (224, 224), mode="bicubic").clamp(0, 1)
    made["lite0"] = lite0(load_file(arguments.root / "models/lite0.safetensors"), large)
    small = F.interpolate(F.avg_pool2d(photos, 2), (224, 224), mode="bicubic").clamp(0, 1)
    features = lite0(load_file(arguments.root / "models/lite0.safetensors"), small)
    heads = load_file(arguments.root / "models/world-scorer.safetensors")
    for head in ("thing", "place"):
        made[head] = (features @ heads[head + ".weight"].T + heads[head + ".bias"]).softmax(-1)
    line = torch.tensor([0.0, 1, 4, 9, 5, 2, 7]).view(1, 1, 1, 7)
    for size in (3, 12):
        for antialias in (False, True):
            name = f"bicubic_{'smooth_' if antialias else ''}{size}"
            made[name] = F.interpolate(line, (1, size), mode="bicubic", antialias=antialias).flatten()
    crop = Image.open(sorted((arguments.root / "references/teddy").glob("0?.png"))[0]).convert("RGB")
    crop = crop.resize((256, 256), Image.BICUBIC).crop((16, 16, 240, 240))
    made["crop"] = torch.from_numpy(np.asarray(crop)[::16, ::16].copy()).permute(2, 0, 1).float().div(255).contiguous()
    save_file({name: tensor.float().contiguous() for name, tensor in made.items()}, arguments.out / "measures.safetensors")
    text = json.dumps(numbers(arguments.root, photos), indent=1)
    (arguments.out / "measures.json").write_text(text + "\n")


main()
