"""Makes data/perceptual.json: LPIPS as the package `lpips` computes it: `python make_perceptual.py OUT`. Needs torch, torchvision, lpips.

The networks are AlexNet and VGG16 in their real shapes, with weights from formula.py, so that the data hold
results alone and the test makes the same weights and pictures.
"""
import json
import sys
from pathlib import Path

import lpips
import torch

from formula import formula


def weight(name, shape):
    """Convolutions keep the spread of what goes through them; the weights of the layers are positive."""
    if name.startswith("lin"):
        return formula(name, shape, 0.5) + 0.5
    if len(shape) == 1:
        return formula(name, shape, 0.1)
    return formula(name, shape, (6 / (shape[1] * shape[2] * shape[3])) ** 0.5)


@torch.no_grad()
def distances(net):
    model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, lpips=True, version="0.1", verbose=False).eval()
    # The convolutions by their numbers in torchvision's `features`.
    slices = [module for name, module in model.net.named_children() if name.startswith("slice")]
    for part in slices:
        for number, module in part.named_children():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(weight(f"features.{number}.weight", tuple(module.weight.shape)))
                module.bias.copy_(weight(f"features.{number}.bias", tuple(module.bias.shape)))
    for layer in range(5):
        head = getattr(model, f"lin{layer}").model[1].weight
        head.copy_(weight(f"lin{layer}.model.1.weight", tuple(head.shape)))
    pictures = [formula(f"picture{i}", (1, 3, 48, 64), 0.5) + 0.5 for i in range(3)]
    # A picture near the first.
    pictures.append((pictures[0] * 0.9).clamp(0, 1))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    return {f"{i},{j}": model(pictures[i], pictures[j], normalize=True).item() for i, j in pairs}


if __name__ == "__main__":
    made = {"alexnet": distances("alex"), "vgg16": distances("vgg")}
    Path(sys.argv[1], "perceptual.json").write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))
