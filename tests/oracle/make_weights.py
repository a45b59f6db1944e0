"""Numbers in fewer bits than float16, as torch and the gguf package read them, for the tests of `checkpoint/weights`.

    python make_weights.py OUT      (needs torch, numpy, safetensors and gguf; OUT is tests/oracle/data/weights)

- `float8.safetensors`: all 256 codes of both kinds of float8, and the float32 that torch makes of them.
- `kinds.gguf`: a tensor of every type that is read, written by the gguf package: shapes, metadata that is kept and that is
  passed over, and a convolution as ComfyUI-GGUF writes it, as rows of 256 with its shape beside it.
- `kinds.safetensors`: the float32 that the gguf package makes of them, under the same names and in the true shapes.
"""
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

BLOCKS = {Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210}


def float8(out):
    codes = torch.arange(256, dtype=torch.uint8)
    tensors = {}
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        tensors[name] = codes.clone().view(dtype)
        tensors[f"{name}.float32"] = codes.view(dtype).float()
    save_file(tensors, out / "float8.safetensors")


def blocks(random, kind, rows):
    """Rows of a block of 256 numbers each: any bits, but scales that are numbers of a usual size."""
    size = BLOCKS[kind]
    raw = random.integers(0, 256, (rows, size), dtype=np.uint8)
    scales = random.uniform(-0.02, 0.02, (rows, 2)).astype(np.float16).view(np.uint8)
    if kind == Type.Q6_K:
        raw[:, 208:210] = scales[:, :2]
    else:
        raw[:, :4] = scales
    return raw


def kinds(out):
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(out / "kinds.gguf", arch="sd1")
    writer.add_name("every kind")
    writer.add_quantization_version(2)
    writer.add_file_type(7)
    writer.add_array("tokenizer.ggml.tokens", ["passed", "over"] * 8)
    writer.add_array("lengths", list(range(40)))
    writer.add_bool("yes", True)
    writer.add_float64("half", 0.5)
    expected = {}

    def add(name, kind, raw, shape):
        writer.add_tensor(name, raw, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(shape)

    for name, dtype, shape in (("f32", np.float32, (3, 5)), ("f16", np.float16, (2, 3, 1, 1))):
        numbers = random.standard_normal(shape).astype(dtype)
        add(name, Type.F32 if dtype == np.float32 else Type.F16, numbers, shape)
    add("bf16", Type.BF16, gguf.quants.quantize(random.standard_normal((2, 7)).astype(np.float32), Type.BF16), (2, 7))
    for kind in (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1):
        numbers = random.standard_normal((3, 64)).astype(np.float32)
        add(kind.name, kind, gguf.quants.quantize(numbers, kind), (3, 64))
    for kind in BLOCKS:
        add(kind.name, kind, blocks(random, kind, 3), (3, 256))
    shape = (8, 16, 2, 3)
    name = "convolution.weight"
    numbers = random.standard_normal(shape).astype(np.float32).reshape(-1, 256)
    writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    add(name, Type.Q8_0, gguf.quants.quantize(numbers, Type.Q8_0), shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_numpy(expected, out / "kinds.safetensors")


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    float8(out)
    kinds(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
