"""Makes data/lora_headers.json.gz: the headers of adapters as their trainers write them: `python make_lora_headers.py data`.

Names, shapes and types of tensors and the metadata that matters, no numbers. Nothing is copied from a file: networks of the published sizes are
made on torch's meta device, and each trainer's rule (which modules, by which names) is applied to them: of kohya-ss/sd-scripts networks/lora.py, of
LyCORIS its own code, of diffusers and PEFT theirs, of diffusers' LCM script examples/consistency_distillation, of OneTrainer
modules/util/convert/lora and modelSaver, of ComfyUI comfy_extras/nodes_lora_extract.py. Needs what make_adapters.py needs, and lycoris-lora.
"""
import gzip
import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from lycoris.kohya import LycorisNetworkKohya
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import ldm

SD1 = dict(cross_attention_dim=768, sample_size=64)
SDXL = dict(cross_attention_dim=2048, sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20],
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32, projection_dim=1280)
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]


def meta(kind, config):
    with torch.device("meta"):
        return kind(config) if not isinstance(config, dict) else kind(**config)


def unet(config):
    return meta(UNet2DConditionModel, config)


def text(config, kind=CLIPTextModel):
    return meta(kind, CLIPTextConfig(**config))


def inside(root, classes, linear=True):
    """kohya's choice: every linear layer and convolution inside modules of these classes."""
    found = {}
    for name, module in root.named_modules():
        if module.__class__.__name__ in classes:
            for child, layer in module.named_modules():
                if layer.__class__.__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear", "LoRACompatibleConv"):
                    found[f"{name}.{child}"] = layer
    return found


def encoder(model):
    """Layers of a text encoder by the names that transformers had before version 5."""
    layers = inside(model, ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"))
    return {n if n.startswith("text_model.") else f"text_model.{n}": m for n, m in layers.items()}


def flat(name):
    return name.replace(".", "_")


def originals(layers):
    named = ldm.unet({f"{name}.weight": layer for name, layer in layers.items()}, 2)
    return {name.removeprefix("model.diffusion_model.").removesuffix(".weight"): layer for name, layer in named.items()}


def pair(layer, rank, extra=None, magnitude=False):
    """The tensors of kohya's module for a layer."""
    out, inner, *kernel = layer.weight.shape
    made = {"lora_down.weight": [rank, inner, *kernel], "lora_up.weight": [out, rank, *[1] * len(kernel)], "alpha": []}
    if magnitude:
        made["dora_scale"] = [out, *[1] * (1 + len(kernel))]
    return made


def kohya(layers, prefix, rank, conv=None, separator="_", **options):
    made = {}
    for name, layer in layers.items():
        window = layer.weight.dim() == 4 and layer.kernel_size != (1, 1)
        if window and conv is None:
            continue
        own = flat(name) if separator == "_" else name
        made |= {f"{prefix}{separator}{own}.{key}": shape for key, shape in pair(layer, conv if window else rank, **options).items()}
    return made


def typed(shapes, dtype="F16"):
    return [[key, dtype, list(shape)] for key, shape in sorted(shapes.items())]


def of_state(state, dtype):
    return typed({key: tensor.shape for key, tensor in state.items()}, dtype)


def ss(**more):
    """What kohya's scripts say of a training."""
    known = {"ss_network_module": "networks.lora", "ss_network_dim": "32", "ss_network_alpha": "16", "ss_base_model_version": "sd_v1", "ss_resolution": "(512, 512)",
             "ss_num_train_images": "240", "ss_epoch": "10", "ss_steps": "1200", "ss_clip_skip": "2", "ss_tag_frequency": json.dumps({"10_subject": {"subject": 24, "outdoors": 9}}),
             "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-v1/lora"}
    return {key: value for key, value in {**known, **more}.items() if value is not None}


def lycoris(module, unet_config, text_config, **options):
    # What it trains of a U-Net by default, without what it has added for other families.
    preset = {"unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"], "unet_target_name": ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"],
              "text_encoder_target_module": ["CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"]}
    network = LycorisNetworkKohya.apply_preset(preset)(text(text_config), unet(unet_config), lora_dim=8, alpha=4, conv_lora_dim=4, conv_alpha=2, network_module=module, **options)
    state = {}
    for lora in network.text_encoder_loras + network.unet_loras:
        name = lora.lora_name
        if name.startswith("lora_te_") and "text_model" not in name:
            name = name.replace("lora_te_", "lora_te_text_model_", 1)
        for key, tensor in lora.state_dict().items():
            state[f"{name}.{key}"] = tensor
    return state


def main(out):
    made = {}

    def add(name, tensors, metadata=None, alpha=None, config=None):
        made[name] = {"tensors": tensors, "metadata": metadata or {}, "alpha": alpha, "config": config}

    sd1, sdxl = unet(SD1), unet(SDXL)
    clip, clip_1, clip_2 = text(CLIP_L), text(CLIP_L), text(CLIP_G, CLIPTextModelWithProjection)
    transformers, resnets = ("Transformer2DModel",), ("ResnetBlock2D", "Downsample2D", "Upsample2D")

    add("kohya sd1", typed(kohya(inside(sd1, transformers), "lora_unet", 32) | kohya(encoder(clip), "lora_te", 32)), ss(), 16)
    add("kohya sd1 locon", typed(kohya(inside(sd1, transformers + resnets), "lora_unet", 16, 8) | kohya(encoder(clip), "lora_te", 16)),
        ss(ss_network_dim="16", ss_network_alpha="8", ss_network_args=json.dumps({"conv_dim": "8", "conv_alpha": "4"})), 8)
    xl = originals(inside(sdxl, transformers))
    texts = kohya(encoder(clip_1), "lora_te1", 32) | kohya(encoder(clip_2), "lora_te2", 32)
    of_xl = ss(ss_base_model_version="sdxl_base_v1-0", ss_resolution="(1024, 1024)", ss_clip_skip=None, **{"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})
    add("kohya sdxl", typed(kohya(xl, "lora_unet", 32) | texts), of_xl, 16)
    add("kohya sdxl dora", typed(kohya(xl, "lora_unet", 16, magnitude=True)), {**of_xl, "ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "lora", "dora_wd": "True"})}, 16)

    loha = lycoris("loha", SD1, CLIP_L)
    add("lycoris loha sd1", of_state(loha, "F16"), ss(ss_network_module="lycoris.kohya", ss_network_args=json.dumps({"algo": "loha"})), 4)
    lokr = lycoris("lokr", SD1, CLIP_L, factor=8)
    add("lycoris lokr sd1", of_state(lokr, "F16"), ss(ss_network_module="lycoris.kohya", ss_network_args=json.dumps({"algo": "lokr", "factor": "8"})), 4)

    with torch.device("meta"):
        model = get_peft_model(unet(SD1), LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION))
    state = get_peft_model_state_dict(model)
    bare = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    add("diffusers sd1", of_state({f"unet.{key}": t for key, t in bare.items()}, "F32"),
        {"format": "pt", "lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 4, "unet.use_dora": False, "unet.use_rslora": False})})
    add("diffusers 0.2x sd1", of_state({f"unet.{key}": t for key, t in convert_state_dict_to_diffusers(bare).items()}, "F32"), {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "alpha_pattern": {}, "rank_pattern": {}, "use_dora": False, "use_rslora": False}
    add("peft folder sd1", of_state(state, "F32"), {"format": "pt"}, None, config)
    old = {}
    for key, tensor in bare.items():
        module, _, kind = key.rpartition(".lora_")
        place, _, projection = module.replace("to_out.0", "to_out").rpartition(".")
        old[f"{place}.processor.{projection}_lora.{'down' if kind.startswith('A') else 'up'}.weight"] = tensor
    add("diffusers attn procs sd1", of_state(old, "F32"), {"format": "pt"})

    every = ATTENTION + ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]
    lcm = {name: layer for name, layer in sd1.named_modules() if any(name.endswith(f".{end}") for end in every)}
    add("lcm-lora sd1", typed(kohya(lcm, "lora_unet", 64, 64)), {}, 64)
    lcm = {name: layer for name, layer in sdxl.named_modules() if any(name.endswith(f".{end}") for end in every)}
    add("lcm-lora sdxl", typed(kohya(lcm, "lora_unet", 64, 64)), {}, 64)

    def extracted(model, prefix, rank):
        layers = originals({name: m for name, m in model.named_modules() if getattr(m, "weight", None) is not None})
        shapes = {}
        for name, layer in layers.items():
            if layer.weight.dim() < 2:
                shapes[f"{prefix}{name}.diff"] = layer.weight.shape
            else:
                wide = min(rank, *layer.weight.shape[:2])
                shapes |= {f"{prefix}{name}.{key}": shape for key, shape in pair(layer, wide).items() if key != "alpha"}
            if getattr(layer, "bias", None) is not None:
                shapes[f"{prefix}{name}.diff_b"] = layer.bias.shape
        return shapes
    add("comfyui extracted sd1", typed(extracted(sd1, "diffusion_model.", 8)))

    transformer = inside(sd1, transformers)
    add("onetrainer sd1", typed(kohya(transformer, "lora_unet", 16) | kohya(encoder(clip), "lora_te", 16) | {"bundle_emb.<subject>.clip_l": [2, 768]}, "BF16"),
        {"ss_base_model_version": "", "ot_branch": "master"}, 1)
    omi = kohya(originals(inside(sdxl, transformers)), "unet", 16, separator=".")
    omi |= kohya(encoder(clip_1), "clip_l", 16, separator=".") | kohya(encoder(clip_2), "clip_g", 16, separator=".")
    omi |= {"bundle_emb.<subject>.clip_l": [2, 768], "bundle_emb.<subject>.clip_g": [2, 1280]}
    add("onetrainer sdxl omi", typed(omi, "BF16"), {"ot_branch": "master"}, 1)

    text_json = json.dumps(made, separators=(",", ":"))
    path = out / "lora_headers.json.gz"
    with open(path, "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=9, mtime=0) as packed:
        packed.write(text_json.encode())
    for name, header in made.items():
        print(f"{name}: {len(header['tensors'])} tensors")
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
