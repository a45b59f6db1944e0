"""Where make_training.py's numbers are gathered: tensors under plain names, and what was done, as JSON in the file's metadata."""
import json

import torch
from safetensors.torch import save_file

SAMPLES = 8


class Book:
    """The tensors and facts of one file. Floating-point tensors are written in float32, whole numbers as int64."""

    def __init__(self, **facts):
        self.tensors, self.facts, self.cases = {}, facts, {}
        self.inits = {}  # case: the numbers it begins with, which later cases may share

    def put(self, prefix, tensors):
        for name, tensor in tensors.items():
            key = f"{prefix}.{name}" if prefix else name
            assert key not in self.tensors, key
            self.tensors[key] = tensor.detach().clone().contiguous()

    def case(self, name, **facts):
        self.cases[name] = facts

    def write(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.float() if v.is_floating_point() else v.long() for k, v in self.tensors.items()}
        for name, tensor in tensors.items():
            assert torch.isfinite(tensor).all(), name
        # One entry: safetensors writes several in an order that changes from run to run.
        save_file(tensors, path, {"facts": json.dumps({**self.facts, "cases": self.cases}, sort_keys=True)})
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, {len(tensors)} tensors")


def sampled(count):
    """The flat indices of the entries that a summary keeps: the middles of eight equal stretches."""
    return [(2 * k + 1) * count // (2 * SAMPLES) for k in range(SAMPLES)]


def summary(tensors):
    """[tensors, 10] in the order of the names: L2 norm, sum, and eight entries (`sampled`) of each."""
    rows = []
    for _, tensor in sorted(tensors.items()):
        flat = tensor.detach().double().flatten()
        rows.append(torch.cat([flat.norm()[None], flat.sum()[None], flat[sampled(len(flat))]]))
    return torch.stack(rows)


def distance(a, b):
    """max |a - b| / max |b|: what a relative tolerance is held against."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300)).item()
