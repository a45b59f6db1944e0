"""Torch files with objects of other programs in them, and tensors that are written in unusual ways, for nodes/tests/pickles.rs.

    python make_foreign.py OUT      (needs torch, numpy, omegaconf and safetensors; OUT is tests/oracle/data/pickles)

- `omegaconf.ckpt`, `omegaconf-legacy.ckpt`: what the original training code (Lightning, with OmegaConf's settings) saves.
- `containers.pt`: ParameterDict, ParameterList, parameters with a state, tensors of the first kind.
- `numpy.pt`, `numpy-5.pt`: tensors that torch writes of devices without storages (Apple GPUs, XLA): as arrays of numpy.
- `quantised.pt`, `sparse.pt`, `function.pt`: what stays refused.

Of each that is read, NAME.safetensors has the tensors that `torch.load` gives, as in make_pickles.py.
"""
import datetime
import pathlib
import sys
import typing
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

torch.manual_seed(11)


class Holder:
    """An object with a tensor inside, which nobody but itself knows to find."""

    def __init__(self):
        self.hidden = torch.ones(3)


class Settings(dict):
    """A dictionary of a class of its own."""


def lightning():
    config = OmegaConf.create(
        {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {"linear_start": 0.00085, "timesteps": 1000, "conditioning_key": "crossattn", "attention": [4, 2, 1]},
        }
    )
    return {
        "epoch": 2,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(
            [("model.diffusion_model.out.0.weight", torch.randn(4, 3).half()), ("betas", torch.linspace(0, 1, 5))]
        ),
        "hyper_parameters": {
            "unet_config": config,
            "ckpt_path": pathlib.PurePosixPath("models/last.ckpt"),
            "made": datetime.datetime(2022, 8, 22, 10, 0),
            "took": datetime.timedelta(hours=3),
            "optional": typing.Optional[int],
            "holder": Holder(),
            "settings": Settings(a=1, b=torch.zeros(2)),
        },
    }


def containers():
    marked = torch.nn.Parameter(torch.ones(2))
    marked.note = "kept beside the parameter"
    return {
        "string_to_param": torch.nn.ParameterDict({"*": torch.randn(2, 4), "<cat>": torch.nn.Parameter(torch.randn(1, 4))}),
        "list": torch.nn.ParameterList([torch.randn(3), torch.randn(2, 2)]),
        "marked": marked,
        "first": First(torch.arange(6.0).reshape(2, 3)),
    }


class First:
    """A tensor as torch before 0.4 wrote it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        t = self.tensor
        return torch._utils._rebuild_tensor, (t.storage(), t.storage_offset(), tuple(t.shape), t.stride())


class OfDevice:
    """A tensor as torch writes it of a device without storages (`Tensor._reduce_ex_internal`)."""

    def __init__(self, array, dtype=torch.float32):
        self.array, self.dtype = array, dtype

    def __reduce__(self):
        return torch._utils._rebuild_device_tensor_from_numpy, (self.array, self.dtype, "cpu", False)


class Parameter:
    def __init__(self, inner):
        self.inner = inner

    def __reduce__(self):
        return torch._utils._rebuild_parameter, (self.inner, True, OrderedDict())


def arrays():
    numbers = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    return {
        "wide": OfDevice(numbers),
        "parameter": Parameter(OfDevice(numbers[0])),
        "half": OfDevice(numbers.astype(np.float16), torch.float16),
        "fortran": OfDevice(np.asfortranarray(numbers * 2)),
        "whole": OfDevice(np.arange(-3, 3), torch.int64),
        "bytes": OfDevice(np.arange(256, dtype=np.uint8), torch.uint8),
        "one": OfDevice(np.array(1.5, dtype=np.float32)),
    }


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def make_something(*_):
    return None


def flat(value, name=""):
    join = lambda key: f"{name}.{key}" if name else str(key)
    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, (dict, torch.nn.ParameterDict)) and not isinstance(value, Settings):
        for key, item in value.items():
            yield from flat(item, join(key))
    elif isinstance(value, (list, tuple, torch.nn.ParameterList)):
        for place, item in enumerate(value):
            yield from flat(item, join(place))


def main(out):
    def write(name, value, part=None, **settings):
        torch.save(value, out / name, **settings)
        read = torch.load(out / name, weights_only=False)
        tensors = dict(flat(read[part] if part else read))
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, out / f"{name}.safetensors")

    write("omegaconf.ckpt", lightning(), "state_dict")
    write("omegaconf-legacy.ckpt", lightning(), "state_dict", _use_new_zipfile_serialization=False)
    write("containers.pt", containers())
    write("numpy.pt", arrays())
    write("numpy-5.pt", arrays(), pickle_protocol=5)
    torch.save({"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}, out / "quantised.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, out / "sparse.pt")
    torch.save({"a": torch.ones(2), "b": Calls(make_something, 1)}, out / "function.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
