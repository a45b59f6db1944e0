"""Trained numbers as each program writes them: `interchange/` of make_training.py, from the runs `lora_text`, `textual_inversion` and `custom_diffusion`."""
import json
import shutil

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import training_methods as methods
from make_adapters import kohya_names


def lora(models, folder, network):
    """One LoRA on U-Net and text encoder: as diffusers' scripts save it, as PEFT's folders, and under kohya's names."""
    parts = {"unet": network.unet.float(), "text_encoder": network.encoders[0].float()}
    states = {k: get_peft_model_state_dict(m) for k, m in parts.items()}
    StableDiffusionPipeline.save_lora_weights(
        str(folder), weight_name="lora-diffusers.safetensors", **{f"{k}_lora_layers": convert_state_dict_to_diffusers(s) for k, s in states.items()}, **_collate_lora_metadata(parts))
    fresh = methods.read(models, "sd1", torch.float32)
    for (part, module), base in zip(parts.items(), fresh.modules()):
        targets = module.peft_config["default"].target_modules
        wrapped = get_peft_model(base, LoraConfig(r=methods.RANK, lora_alpha=methods.ALPHA, target_modules=targets, init_lora_weights="gaussian"))
        unknown = set_peft_model_state_dict(wrapped, {f"base_model.model.{k}": v for k, v in states[part].items()}).unexpected_keys
        assert not unknown, unknown
        wrapped.save_pretrained(str(folder / f"lora-peft-{part}"))
        (folder / f"lora-peft-{part}" / "README.md").unlink(missing_ok=True)
        path = folder / f"lora-peft-{part}" / "adapter_config.json"
        config = {**json.loads(path.read_text()), "base_model_name_or_path": None}
        config["target_modules"] = sorted(config["target_modules"])
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    deltas = {}
    for key, a in network.values().items():
        if key.endswith("lora_A.weight"):
            part, name = key.removesuffix(".lora_A.weight").split(".", 1)
            deltas.setdefault(part, {})[name] = (a.float(), network.trained[key.replace("lora_A", "lora_B")].detach().float(), float(methods.ALPHA))
    named = kohya_names(deltas, {"unet": "lora_unet", "text_encoder": "lora_te"})
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": str(methods.RANK), "ss_network_alpha": str(float(methods.ALPHA)), "ss_base_model_version": "sd_v1"}
    save_file({k: v.float().contiguous() for k, v in named.items()}, folder / "lora-kohya.safetensors", facts)


@torch.no_grad()
def check_lora(models, folder, network, ids, batch):
    """Every file does in diffusers or PEFT what the trained network does."""
    noisy, timesteps = batch["latents"].float(), batch["timesteps"][0][:2]
    expected = network.predict(noisy, timesteps, ids)
    pipe = lambda: StableDiffusionPipeline.from_pretrained(str(models / "sd1"), torch_dtype=torch.float32, local_files_only=True, safety_checker=None, feature_extractor=None)
    got = {}
    for name in ("lora-diffusers", "lora-kohya"):
        p = pipe()
        p.load_lora_weights(str(folder), weight_name=f"{name}.safetensors")
        got[name] = p.unet(noisy, timesteps, p.text_encoder(ids[0])[0]).sample
    from peft import PeftModel
    p = pipe()
    unet, text = (PeftModel.from_pretrained(m, str(folder / f"lora-peft-{k}")) for k, m in (("unet", p.unet), ("text_encoder", p.text_encoder)))
    got["lora-peft"] = unet(noisy, timesteps, text(ids[0])[0]).sample
    base = methods.read(models, "sd1", torch.float32).predict(noisy, timesteps, ids)
    for name, out in got.items():
        apart = (out - expected).abs().max() / expected.std()
        assert apart < 2e-5 < (base - expected).abs().max() / expected.std() / 10, (name, apart)
    save_file({"noisy": noisy, "timesteps": timesteps, "ids": ids[0], "prediction": expected}, folder / "lora-prediction.safetensors")


def tokens(folder, network, token):
    """textual_inversion.py's `learned_embeds`: all vectors of the token under its name."""
    [vectors] = network.values().values()
    learned = {token: vectors.float().contiguous()}
    save_file(learned, folder / "learned_embeds.safetensors", {"format": "pt"})
    torch.save(learned, folder / "learned_embeds.bin")


def custom(folder, network, token):
    """train_custom_diffusion.py's output: the processors as safetensors and pickled, and the token. (It calls the last file `<new1>.bin`, a name that Windows refuses.)"""
    place = folder / "custom-diffusion"
    for processor in network.unet.attn_processors.values():
        processor.float()
    for safe in (True, False):
        network.unet.save_attn_procs(str(place), safe_serialization=safe)
    [vector] = (v for k, v in network.values().items() if k in network.rows)
    torch.save({token: vector[0].float().clone()}, place / "new1.bin")
    kept = load_file(place / "pytorch_custom_diffusion_weights.safetensors")
    for name, tensor in kept.items():
        key = "unet." + name.replace(".processor.", ".").replace("_custom_diffusion", "")
        assert torch.equal(tensor, network.trained[key].detach().float()), name


def make(models, out, kept, batch):
    """`kept`: what training_runs.make gives."""
    folder = out / "interchange"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    network, ids = kept["lora_text"]
    lora(models, folder, network)
    check_lora(models, folder, network, ids, batch)
    tokens(folder, kept["textual_inversion"][0], "<toy>")
    custom(folder, kept["custom_diffusion"][0], "<new1>")
    print("interchange:", sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) // 1024, "KiB")
