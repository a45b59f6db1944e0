"""Makes data/micro/adapters/peft-patterns.*: what PEFT makes of `alpha_pattern` and `rank_pattern`: `python make_patterns.py data/micro`.

Each case is the weights of `sd1-lora-peft` with another configuration, applied by peft to the micro U-Net. Where a case has `halved`, the modules
whose name it ends have the first two of their four ranks alone. Needs what make_adapters.py needs.
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

CASES = {
    "order": {"alpha_pattern": {"to_q": 32, "attn1.to_q": 1}},
    "other_order": {"alpha_pattern": {"attn1.to_q": 1, "to_q": 32}},
    "regex": {"alpha_pattern": {r"down_blocks\.\d+\..*attn2\.to_k": 32, "to_k": 1, "o_v": 64}},
    "look_around": {"alpha_pattern": {r"(?!up_blocks).*attn1\.to_(k|v)": 16, "mid_block.*": 8}, "use_rslora": True},
    "rank": {"alpha_pattern": {"attn2.to_v": 6}, "rank_pattern": {r".*attn2\.to_v": 2}, "halved": "attn2.to_v"},
}


@torch.no_grad()
def main(out):
    folder = out / "adapters"
    inputs = load_file(out / "sd1.safetensors")
    numbers = {}
    for name, changes in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            place = Path(place)
            shutil.copytree(folder / "sd1-lora-peft", place, dirs_exist_ok=True)
            config = json.loads((place / "adapter_config.json").read_text())
            changes = dict(changes)
            halved = changes.pop("halved", None)
            (place / "adapter_config.json").write_text(json.dumps({**config, **changes}))
            if halved:
                weights = load_file(place / "adapter_model.safetensors")
                for key in weights:
                    if f"{halved}.lora_A" in key:
                        weights[key] = weights[key][:2].contiguous()
                    elif f"{halved}.lora_B" in key:
                        weights[key] = weights[key][:, :2].contiguous()
                save_file(weights, place / "adapter_model.safetensors")
            unet = UNet2DConditionModel.from_pretrained(out / "sd1" / "unet", torch_dtype=torch.float32)
            adapted = PeftModel.from_pretrained(unet, str(place))
            numbers[f"{name}.unet_out"] = adapted(inputs["unet_in"], torch.tensor([981, 401]), inputs["unet_context"]).sample
    plain = load_file(folder / "sd1.safetensors")["lora.unet_full.unet_out"]
    for name, t in numbers.items():
        distances = [(t - other).abs().max() / t.std() for other in (plain, *(o for k, o in numbers.items() if k != name))]
        print(name, f"at least {min(distances):.2f} standard deviations from the others")
        assert min(distances) > 0.05
    save_file({k: v.contiguous().float() for k, v in numbers.items()}, folder / "peft-patterns.safetensors")
    (folder / "peft-patterns.json").write_text(json.dumps(CASES, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
