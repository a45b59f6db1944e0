"""Key names of the original (LDM) single-file layout, from the names of diffusers and transformers.

Every function maps {diffusers name: tensor} to {original name: tensor}. `make_formats.py` and `make_sdxl.py` load
what comes out back through diffusers and hold every tensor against the one it came from.
"""
import re

import torch

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
       "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2"}


def unet_block(name, layers):
    """The original name of a U-Net module `name` (without `.weight`), `layers` being layers_per_block."""
    for new, old in TOP.items():
        if name == new:
            return old
    kind, rest = name.split(".", 1)
    if kind == "mid_block":
        part, index, rest = rest.split(".", 2)
        place = "middle_block.1" if part == "attentions" else f"middle_block.{2 * int(index)}"
    else:
        level, part, index, rest = rest.split(".", 3)
        level, index = int(level), int(index)
        down = kind == "down_blocks"
        first = level * (layers + 1) + down  # input block 0 is the first convolution
        if part == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        if part == "upsamplers":
            return f"output_blocks.{first + layers}.UPSAMPLER.{rest}"  # its place depends on the block's attention
        place = f"{'input_blocks' if down else 'output_blocks'}.{first + index}.{int(part == 'attentions')}"
    return f"{place}.{RESNET.get(rest, rest)}"


def unet(tensors, layers):
    named = {}
    for name, tensor in tensors.items():
        module, kind = name.rsplit(".", 1)
        named[f"{unet_block(module, layers)}.{kind}"] = tensor
    attended = {n.rsplit(".1.", 1)[0] for n in named if re.match(r"output_blocks\.\d+\.1\.(norm|proj_in)\.", n)}
    place = lambda n: "2" if n.split(".UPSAMPLER.")[0] in attended else "1"
    return {f"model.diffusion_model.{n.replace('UPSAMPLER', place(n))}": t for n, t in named.items()}


def vae(tensors, levels):
    named = {}
    for name, tensor in tensors.items():
        n = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        n = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", n)
        n = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", n)
        n = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", n)
        n = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", n)
        n = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", n)
        if "mid_block.attentions.0" in n:
            n = n.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm").replace("to_out.0", "proj_out")
            n = re.sub(r"\.to_([qkv])\.", r".\1.", n)
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]  # the original projects by 1x1 convolutions
        named[f"first_stage_model.{n}"] = tensor
    return named


def clip(tensors, prefix="cond_stage_model.transformer."):
    """OpenAI's encoder, held by the original code as a transformers module: `text_model.` and a buffer of positions."""
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    length = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
    named[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(length)[None]
    return named


def open_clip(tensors, prefix="cond_stage_model.model."):
    """OpenCLIP's encoder: fused q, k, v; the projection is stored as its transpose."""
    named = {}
    for name, tensor in tensors.items():
        n = name.removeprefix("text_model.")
        if n == "text_projection.weight":
            named["text_projection"] = tensor.T.contiguous()
            continue
        n = n.replace("embeddings.token_embedding", "token_embedding").replace("embeddings.position_embedding.weight", "positional_embedding")
        n = n.replace("final_layer_norm", "ln_final").replace("encoder.layers.", "transformer.resblocks.")
        n = n.replace("layer_norm", "ln_").replace("self_attn", "attn").replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        match = re.match(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", n)
        if match is None:
            named[n] = tensor
        elif match[2] == "q":
            parts = [tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            named[f"{match[1]}.in_proj_{match[3]}"] = torch.cat(parts)
    named["logit_scale"] = torch.tensor(4.6052).to(next(iter(tensors.values())).dtype)
    return {prefix + n: t for n, t in named.items()}
