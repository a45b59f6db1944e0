"""Segment Anything of random weights: `networks/sam.rs` against transformers' SamModel.

    python make_sam.py

Writes `data/sam.safetensors`: a network for pictures of 64 pixels by transformers' names (float16), a picture `[3, 48, 64]` in
0..=1, and for each prompt (a point; two points, one of them beside; a box; a box and a point) the logits of the masks and
the scores, as the processor of transformers would hand the picture over (no resizing is needed).

Needs torch, transformers, safetensors.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import SamConfig, SamModel

HERE = Path(__file__).resolve().parent
SIDE, WIDTH, HEIGHT, C = 64, 64, 48, 16
MEAN = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)
DEVIATION = torch.tensor([58.395, 57.12, 57.375]).reshape(3, 1, 1)

torch.manual_seed(7)
config = SamConfig(
    vision_config={
        "hidden_size": 24, "output_channels": C, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
        "patch_size": 16, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 96, "num_pos_feats": C // 2,
        "use_rel_pos": True, "use_abs_pos": True,
    },
    prompt_encoder_config={
        "hidden_size": C, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 16, "image_embedding_size": SIDE // 16,
    },
    mask_decoder_config={
        "hidden_size": C, "mlp_dim": 2048, "num_hidden_layers": 2, "num_attention_heads": 8, "iou_head_depth": 3,
        "iou_head_hidden_dim": 256,
    },
)
model = SamModel(config).eval()
with torch.no_grad():
    for name, p in model.named_parameters():
        p.copy_((torch.randn(p.shape) * (0.25 if p.dim() < 2 else 1.5 / p[0].numel() ** 0.5) + (1 if "norm" in name and name.endswith("weight") else 0)).half().float())
    shared = torch.randn(2, C // 2).half().float()
    model.shared_image_embedding.positional_embedding.copy_(shared)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)

picture = torch.rand(3, HEIGHT, WIDTH)
x = torch.zeros(1, 3, SIDE, SIDE)
x[0, :, :HEIGHT, :WIDTH] = (picture * 255 - MEAN) / DEVIATION
prompts = {
    "point": dict(points=[(0.25, 0.5, 1)], box=None),
    "points": dict(points=[(0.25, 0.5, 1), (0.75, 0.25, 0)], box=None),
    "box": dict(points=[], box=(0.125, 0.25, 0.75, 0.875)),
    "both": dict(points=[(0.5, 0.5, 1)], box=(0.125, 0.25, 0.75, 0.875)),
}
out = {f"weights.{k}": v.half().contiguous() for k, v in model.state_dict().items() if k != "prompt_encoder.shared_embedding.positional_embedding"}
out["picture"] = picture
with torch.no_grad():
    for name, prompt in prompts.items():
        arguments = {}
        if prompt["points"]:
            arguments["input_points"] = torch.tensor([[[(px * WIDTH, py * HEIGHT) for px, py, _ in prompt["points"]]]])
            arguments["input_labels"] = torch.tensor([[[label for _, _, label in prompt["points"]]]])
        if prompt["box"]:
            l, t, r, b = prompt["box"]
            arguments["input_boxes"] = torch.tensor([[[l * WIDTH, t * HEIGHT, r * WIDTH, b * HEIGHT]]])
        several = len(prompt["points"]) == 1 and not prompt["box"]
        made = model(pixel_values=x, multimask_output=several, **arguments)
        out[f"{name}.masks"] = made.pred_masks[0, 0].contiguous()
        out[f"{name}.scores"] = made.iou_scores[0, 0].contiguous()
        print(name, made.pred_masks.shape, made.pred_masks.std().item(), made.iou_scores)
save_file(out, HERE / "data" / "sam.safetensors")
