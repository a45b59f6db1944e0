"""Torch files of every format, with the tensors that torch sees in them, for nodes/tests/pickles.rs.

    python make_pickles.py OUT      (needs torch, numpy and safetensors; OUT is tests/oracle/data/pickles)

Each NAME.pt (or .ckpt, .bin) has a NAME.safetensors with the tensors that `torch.load` gives, made contiguous, under the
names that `pickle::tensors` gives. What safetensors has no type for is left out there and looked at in the test.
"""
import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

torch.manual_seed(7)
# The old format keeps the source text of modules' classes, which are not for this repository.
torch.serialization.get_source_lines_and_file = lambda *_: (["# left out\n"], 0, "container.py")


def everything():
    """Types, views, shared storages, parameters, nesting."""
    base = torch.arange(48, dtype=torch.float32).reshape(6, 8) / 7
    types_ = {
        name: (torch.arange(6) % 2 == 0 if name == "bool" else torch.arange(6).to(getattr(torch, name))).reshape(2, 3)
        for name in (
            "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
        ).split()
    }
    layer = torch.nn.Linear(3, 2)
    marked = torch.nn.Parameter(torch.ones(2))
    marked.note = "kept beside the parameter"
    return {
        "types": types_,
        "views": {
            "whole": base,
            "transposed": base.T,
            "rows": base[2:4],
            "columns": base[:, 3:5],
            "every_second": base[::2, 1::3],
            "last": base[-1, -1],
            "repeated": base[:1, :1].expand(4, 5),
            "one": torch.tensor(3.5),
            "none": torch.zeros(0, 4),
            "tail_of_none": base[6:],
        },
        "state": layer.state_dict(),
        "parameter": layer.weight,
        "marked": marked,
        "list": [torch.ones(1), {"deep": (torch.zeros(2), torch.full((1, 1, 2), 2.0))}],
        7: torch.arange(2),
        "plain": {
            "none": None, "yes": True, "no": False, "small": 5, "negative": -70000, "large": 2**62, "huge": 2**80,
            "real": 1.25, "text": "käse", "bytes": b"\x00\xffabc", "tuple": (1, "two"), "set": {3},
        },
    }


def foreign(module, name):
    """A class of a module that is not there."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


def lightning():
    """What PyTorch Lightning writes beside a state_dict."""
    callback = foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    layer = torch.nn.Linear(4, 3, bias=False).half()
    optimizer = torch.optim.Adam(layer.parameters())
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(
            [("model.diffusion_model.out.0.weight", layer.weight.detach()), ("betas", torch.linspace(0, 1, 5))]
        ),
        "callbacks": {
            callback: {"best_model_score": torch.tensor(0.5), "best_model_path": "last.ckpt", "monitor": None},
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_lr": [np.float64(1e-4)], "count": np.int64(12), "flag": np.bool_(True)}],
        "hyper_parameters": argparse.Namespace(
            seed=23, scale=np.float32(0.5), device=torch.device("cpu"), dtype=torch.float16, betas=np.linspace(0, 1, 3),
            size=torch.Size([2, 3]), counts=defaultdict(list, a=[1]),
        ),
    }


def inversion():
    """A textual inversion as the first program for it wrote them: a ParameterDict among objects."""
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.arange(8.0).reshape(2, 4))}),
        "name": "teddy",
        "step": 500,
    }


class Evil:
    """What torch.save writes of it calls a function when it is read by Python."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def flat(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, (dict, torch.nn.ParameterDict)):
        for key, item in value.items():
            if isinstance(key, (str, int)):
                yield from flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from flat(item, f"{name}.{place}" if name else str(place))


def main(out):
    out.mkdir(parents=True, exist_ok=True)

    def write(name, value, tensors=None, **settings):
        torch.save(value, out / name, **settings)
        tensors = dict(flat(value if tensors is None else tensors))
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, out / f"{name}.safetensors")

    write("zip.pt", everything())
    write("legacy.pt", everything(), _use_new_zipfile_serialization=False)
    write("zip-4.pt", everything(), pickle_protocol=4)
    write("zip-5.pt", everything(), pickle_protocol=5)
    write("legacy-4.pt", everything(), pickle_protocol=4, _use_new_zipfile_serialization=False)
    checkpoint = lightning()
    write("lightning.ckpt", checkpoint, checkpoint["state_dict"])
    write("lightning-legacy.ckpt", checkpoint, checkpoint["state_dict"], _use_new_zipfile_serialization=False)
    write("inversion.pt", inversion())
    write("inversion-legacy.pt", inversion(), _use_new_zipfile_serialization=False)
    evil = {"state_dict": {"a": torch.ones(2), "b": Evil(os.system, "touch executed")}}
    torch.save(evil, out / "evil.pt")
    torch.save(evil, out / "evil-legacy.pt", _use_new_zipfile_serialization=False)
    (out / "evil.pkl").write_bytes(pickle.dumps(Evil(eval, "open('executed', 'w')"), protocol=4))


main(Path(sys.argv[1]))
