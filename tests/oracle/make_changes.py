"""Makes data/micro/adapters/changes.safetensors: what LyCORIS and PEFT make of each kind of change of a layer: `python make_changes.py data/micro`.

Tensors are called `CASE/KEY`, the numbers `CASE/=NAME`, PEFT's configuration is the metadata `CASE`: one file for all cases, each of a few layers. Every
network is run with LyCORIS' or PEFT's own modules in it, and must agree with the base whose weights were changed by hand, by the formulas of
docs/models.md. Needs what make_adapters.py needs, and lycoris-lora.
"""
import json
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from layout_and_retouch import Model
from make_adapters import Bench

LINEAR = [
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.2.attentions.0.transformer_blocks.0.ff.net.2",
    "mid_block.resnets.0.time_emb_proj",
]
POINT = ["down_blocks.0.attentions.0.proj_in", "up_blocks.1.resnets.0.conv_shortcut"]
WINDOW = ["down_blocks.1.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "up_blocks.1.upsamplers.0.conv"]
NORMS = ["mid_block.attentions.0.norm", "up_blocks.1.attentions.0.transformer_blocks.0.norm1", "down_blocks.1.resnets.0.norm2"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]


def unet_of(out):
    return UNet2DConditionModel.from_pretrained(out / "sd1" / "unet", torch_dtype=torch.float32).requires_grad_(False)


class Lycoris:
    """Modules of LyCORIS in a network, with random weights; what they are saved as, and what a hand makes of it."""

    def __init__(self, network, prefix, generator):
        self.network, self.prefix, self.generator, self.saved, self.modules = network, prefix, generator, {}, []

    def add(self, kind, names, multiplier=1.0, size=0.25, columns=False, **options):
        for name in names:
            layer = self.network.get_submodule(name)
            before = {k: v.detach().clone() for k, v in layer.named_parameters()}
            if columns:
                options = {**options, "weight_decompose": True, "wd_on_out": False}
            module = kind(f"{self.prefix}_{name.replace('.', '_')}", layer, multiplier, **options)
            with torch.no_grad():
                for key, parameter in module.named_parameters():
                    if key == "dora_scale":
                        parameter *= 1 + 0.3 * torch.rand(parameter.shape, generator=self.generator)
                    elif key in ("w_norm", "b_norm", "weight", "bias") and kind in (FullModule, NormModule):
                        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=self.generator) * before[key.replace("w_norm", "weight").replace("b_norm", "bias")].std().clamp(min=0.1))
                    else:
                        parameter.copy_(torch.randn(parameter.shape, generator=self.generator) * size)
                    # What is saved in float16 is what is run.
                    parameter.copy_(parameter.half().float())
            if kind is not FullModule:
                state = {k: v.detach().clone() for k, v in module.state_dict().items()}
            else:
                # apply_to adds the layer's own weight to these.
                state = {"diff": module.weight.detach().clone()} | ({} if module.bias is None else {"diff_b": module.bias.detach().clone()})
            for key, tensor in state.items():
                self.saved[f"{module.lora_name}.{key}"] = tensor.half()
            module.requires_grad_(False)
            module.apply_to()
            self.modules.append(module)


def rows(weight):
    return weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))


def columns(weight):
    return weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.dim() - 2))


def difference(t, shape, alpha=None):
    """The difference of a weight by its saved tensors, times alpha / R."""
    get = lambda key: t[key].float() if key in t else None
    core = lambda c, a, b: torch.einsum("ij...,ip,jr->pr...", c, a, b)
    alpha = float(t["alpha"]) if "alpha" in t else alpha
    if "diff" in t:
        return get("diff").view(shape)
    if "lora_up.weight" in t:
        up, down, mid = get("lora_up.weight").flatten(1), get("lora_down.weight"), get("lora_mid.weight")
        rank = down.shape[0]
        full = core(mid, up.T, down.flatten(1)) if mid is not None else up @ down.flatten(1)
    elif "hada_w1_a" in t:
        rank = t["hada_w1_b"].shape[0]
        if "hada_t1" in t:
            one, two = (core(get(f"hada_t{i}"), get(f"hada_w{i}_a"), get(f"hada_w{i}_b")) for i in "12")
        else:
            one, two = (get(f"hada_w{i}_a") @ get(f"hada_w{i}_b") for i in "12")
        full = one * two
    else:
        rank = next((t[k].shape[0] for k in ("lokr_w1_b", "lokr_w2_b") if k in t), None)
        one = get("lokr_w1") if "lokr_w1" in t else get("lokr_w1_a") @ get("lokr_w1_b")
        if "lokr_t2" in t:
            two = core(get("lokr_t2"), get("lokr_w2_a"), get("lokr_w2_b"))
        else:
            two = get("lokr_w2") if "lokr_w2" in t else get("lokr_w2_a") @ get("lokr_w2_b")
        two = two.reshape(two.shape[0], -1, *shape[2:])
        full = torch.kron(one.view(*one.shape, *[1] * (two.dim() - 2)), two)
    return full.reshape(shape) * (1 if rank is None or alpha is None else alpha / rank)


@torch.no_grad()
def merge(network, prefix, saved, weight=1.0, decompose=None):
    """W + weight (W' - W) for every layer of a file."""
    names = {f"{prefix}_{n.replace('.', '_')}": m for n, m in network.named_modules()}
    modules = {}
    for key, tensor in saved.items():
        module, _, kind = key.partition(".")
        modules.setdefault(module, {})[kind] = tensor
    for name, t in modules.items():
        layer = names[name]
        if "w_norm" in t or "diff" in t:
            layer.weight += weight * t.get("w_norm", t.get("diff")).float().view_as(layer.weight)
            if "b_norm" in t or "diff_b" in t:
                layer.bias += weight * t.get("b_norm", t.get("diff_b")).float()
            continue
        base = layer.weight.detach().clone()
        made = base + difference(t, base.shape)
        if "dora_scale" in t:
            scale = t["dora_scale"].float()
            norm = rows(made) if scale.shape[0] == base.shape[0] else columns(made)
            made = made * scale.view_as(norm) / norm
        layer.weight += weight * (made - base)


def close(what, a, b, limit=2e-5):
    off = ((a - b).abs().max() / b.std()).item()
    print(f"{what}: {off:.1e}")
    assert off < limit, what


class Maker:
    def __init__(self, out):
        self.out, self.inputs, self.tensors, self.metadata = out, load_file(out / "sd1.safetensors"), {}, {}
        self.plain = self.run(unet_of(out))

    @torch.no_grad()
    def run(self, unet):
        return unet(self.inputs["unet_in"], torch.tensor([981, 401]), self.inputs["unet_context"]).sample

    def keep(self, case, saved, numbers):
        for key, tensor in saved.items():
            self.tensors[f"{case}/{key}"] = tensor.contiguous()
        for key, tensor in numbers.items():
            self.tensors[f"{case}/={key}"] = tensor.contiguous().float()
        if "unet_out" in numbers:
            apart = ((numbers["unet_out"] - self.plain).abs().max() / self.plain.std()).item()
            print(case, f"{apart:.2f} standard deviations from the base")
            assert apart > 0.05, case

    def lycoris(self, case, fill, seed):
        """A file of LyCORIS' modules on the U-Net."""
        unet = unet_of(self.out)
        made = Lycoris(unet, "lora_unet", torch.Generator().manual_seed(seed))
        fill(made)
        numbers = {"unet_out": self.run(unet)}
        by_hand = unet_of(self.out)
        merge(by_hand, "lora_unet", made.saved)
        close(case, numbers["unet_out"], self.run(by_hand))
        if case in ("loha", "dora"):
            half = unet_of(self.out)
            merge(half, "lora_unet", made.saved, 0.5)
            numbers["unet_out_half"] = self.run(half)
        self.keep(case, made.saved, numbers)
        return made.saved

    def peft(self, case, config, seed):
        """A folder of PEFT's on the U-Net."""
        generator = torch.Generator().manual_seed(seed)
        model = get_peft_model(unet_of(self.out), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                if "magnitude" in name:
                    parameter *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
                else:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
                parameter.copy_(parameter.half().float())
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            saved = load_file(Path(place) / "adapter_model.safetensors")
            settings = json.loads((Path(place) / "adapter_config.json").read_text())
        wanted = ("peft_type", "r", "alpha", "lora_alpha", "alpha_pattern", "rank_pattern", "use_dora", "use_rslora", "lora_bias")
        self.metadata[case] = json.dumps({k: v for k, v in settings.items() if k in wanted and v is not None})
        self.keep(case, {k: v.half() for k, v in saved.items()}, {"unet_out": self.run(model)})


@torch.no_grad()
def main(out):
    maker = Maker(out)
    every = LINEAR + POINT + WINDOW
    maker.lycoris("loha", lambda m: (m.add(LohaModule, LINEAR + POINT, lora_dim=4, alpha=2.0, size=0.5), m.add(LohaModule, WINDOW[:1], lora_dim=3, alpha=3.0, size=0.4),
                                     m.add(LohaModule, WINDOW[1:], lora_dim=4, alpha=2.0, use_tucker=True, size=0.4)), 1)
    maker.lycoris("lokr", lambda m: (
        m.add(LokrModule, LINEAR[:2], lora_dim=1, alpha=2.0, factor=2, size=0.3),
        m.add(LokrModule, LINEAR[2:4], lora_dim=2, alpha=1.0, factor=8, decompose_both=True, size=0.3),
        m.add(LokrModule, LINEAR[4:] + POINT, lora_dim=4, alpha=7.0, factor=4, full_matrix=True, size=0.2),
        m.add(LokrModule, WINDOW[:1], lora_dim=1, alpha=1.0, factor=2, size=0.2),
        m.add(LokrModule, WINDOW[1:2], lora_dim=2, alpha=1.0, factor=2, use_tucker=True, size=0.4),
        m.add(LokrModule, WINDOW[2:], lora_dim=16, alpha=1.0, factor=4, size=0.1)), 2)
    maker.lycoris("tucker", lambda m: m.add(LoConModule, every, lora_dim=4, alpha=2.0, use_tucker=True, size=0.4), 3)
    maker.lycoris("dora", lambda m: m.add(LoConModule, every, lora_dim=4, alpha=2.0, weight_decompose=True, size=0.3), 4)
    maker.lycoris("dora_columns", lambda m: m.add(LoConModule, every, lora_dim=4, alpha=4.0, columns=True, size=0.3), 5)
    maker.lycoris("decomposed", lambda m: (m.add(LohaModule, LINEAR, lora_dim=4, alpha=2.0, weight_decompose=True, size=0.5),
                                           m.add(LokrModule, WINDOW, lora_dim=1, alpha=1.0, factor=2, weight_decompose=True, size=0.2)), 6)
    maker.lycoris("full", lambda m: (m.add(FullModule, every), m.add(NormModule, NORMS)), 7)
    targets = dict(target_modules=every)
    maker.peft("peft_dora", LoraConfig(r=4, lora_alpha=3, use_dora=True, init_lora_weights=True, **targets), 8)
    maker.peft("peft_bias", LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=LINEAR[2:], init_lora_weights=True), 9)
    maker.peft("peft_loha", LoHaConfig(r=4, alpha=2, use_effective_conv2d=True, init_weights=True, **targets), 10)
    maker.peft("peft_lokr", LoKrConfig(r=2, alpha=3, decompose_both=True, decompose_factor=4, use_effective_conv2d=True, rank_pattern={"time_emb_proj": 64}, **targets), 11)

    # All kinds in one file, on both networks, drawn with.
    bench = Bench(out, False)
    pipe = bench.pipe()
    pipe.unet.requires_grad_(False), pipe.text_encoder.requires_grad_(False)
    unet = Lycoris(pipe.unet, "lora_unet", torch.Generator().manual_seed(12))
    unet.add(LohaModule, LINEAR[:2], lora_dim=4, alpha=2.0, size=0.5)
    unet.add(LokrModule, LINEAR[2:4], lora_dim=2, alpha=1.0, factor=4, size=0.3)
    unet.add(LoConModule, LINEAR[4:5] + WINDOW[:1], lora_dim=4, alpha=2.0, weight_decompose=True, size=0.3)
    unet.add(LoConModule, WINDOW[1:2], lora_dim=4, alpha=2.0, use_tucker=True, size=0.3)
    unet.add(LoConModule, POINT, lora_dim=4, alpha=2.0, size=0.3)
    unet.add(FullModule, WINDOW[2:])
    unet.add(NormModule, NORMS)
    text_network = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    text = Lycoris(text_network, "lora_te_text_model", torch.Generator().manual_seed(13))
    text.add(LohaModule, TEXT[:1], lora_dim=4, alpha=2.0, size=0.5)
    text.add(LoConModule, TEXT[1:], lora_dim=4, alpha=2.0, weight_decompose=True, size=0.3)
    text.add(NormModule, ["final_layer_norm"])
    numbers = bench.measure(Model(pipe.unet, pipe.text_encoder, pipe.tokenizer))
    maker.keep("mix", unet.saved | text.saved, numbers)
    other = bench.pipe()
    merge(other.unet, "lora_unet", unet.saved)
    merge(getattr(other.text_encoder, "text_model", other.text_encoder), "lora_te_text_model", text.saved)
    by_hand = bench.measure(Model(other.unet, other.text_encoder, other.tokenizer))
    for key in ("text", "unet_out"):
        close(f"mix {key}", numbers[key], by_hand[key])
    close("mix retouch", numbers["retouch"], by_hand["retouch"], 3e-4)

    # A LoRA, and after it a DoRA of the weights that it leaves.
    for name in ("then_dora",):
        unet = unet_of(out)
        low = load_file(out / "adapters" / "sd1-lora-kohya.safetensors")
        low = {k: v for k, v in low.items() if k.startswith("lora_unet_")}
        merge(unet, "lora_unet", low, 0.7)
        merge(unet, "lora_unet", {k.removeprefix("dora/"): v for k, v in maker.tensors.items() if k.startswith("dora/l")})
        maker.keep(name, {}, {"unet_out": maker.run(unet)})

    # What Custom Diffusion's own code saves: `custom.kv` of make_adapters.py in one file with its token.
    custom = out / "adapters" / "sd1-custom-kv"
    kv = load_file(custom / "pytorch_custom_diffusion_weights.safetensors")
    kv = {k.removeprefix("unet.").replace(".processor", "").replace("_custom_diffusion", ""): v for k, v in kv.items()}
    torch.save({"unet": kv, "modifier_token": torch.load(custom / "new1.bin", weights_only=True)}, out / "adapters" / "delta.bin")

    # The second encoder's projection of SDXL.
    sdxl(maker, out)
    save_file(maker.tensors, out / "adapters" / "changes.safetensors", metadata=maker.metadata)


def sdxl(maker, out):
    from diffusers import StableDiffusionXLPipeline
    from micro import PERSONAL
    pipe = StableDiffusionXLPipeline.from_pretrained(str(out / "sdxl"), torch_dtype=torch.float32, local_files_only=True)
    generator = torch.Generator().manual_seed(14)
    layer = pipe.text_encoder_2.text_projection
    down = (torch.randn(2, layer.weight.shape[1], generator=generator) * 0.3).half()
    up = (torch.randn(layer.weight.shape[0], 2, generator=generator) * 0.3).half()
    layer.weight.data += 0.5 * up.float() @ down.float()
    _, _, pooled, _ = pipe.encode_prompt(PERSONAL, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    key = "lora_te2_text_projection"
    saved = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0).half()}
    maker.keep("projection", saved, {"pooled": pooled})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
