"""Pictures with the settings of other programs in their EXIF, for the tests of `checkpoint/exif.rs`.

    python make_settings.py OUT      (needs pillow; OUT is nodes/tests/data)

- `a1111.jpg`, `a1111.webp`: as the AUTOMATIC1111 web UI writes them (`modules/images.py`): the user's comment in UTF-16, big-endian.
- `little.jpg`: the same in the other order, as some programs do.
- `comfyui.webp`: as ComfyUI writes animations (`nodes_images.py`): the graph as the camera's model.
- `camera.jpg`: what a camera writes.
"""
import json
import sys
from pathlib import Path

from PIL import Image

TEXT = (
    "a käse on a table, (red:1.2)\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 42, Size: 512x512, Model: anything"
)
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 8.0, "model": ["4", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
}


def comment(bytes_, **more):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = bytes_
    for tag, text in more.items():
        exif[int(tag[1:], 16)] = text
    return exif


def main(out):
    picture = Image.new("RGB", (16, 8), (200, 30, 40))
    a1111 = comment(b"UNICODE\0" + TEXT.encode("utf-16-be"))
    picture.save(out / "a1111.jpg", exif=a1111)
    picture.save(out / "a1111.webp", exif=a1111, lossless=True)
    picture.save(out / "little.jpg", exif=comment(b"UNICODE\0" + TEXT.encode("utf-16-le")))
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    exif[0x010F] = "workflow:" + json.dumps({"nodes": []})
    picture.save(out / "comfyui.webp", exif=exif, lossless=True)
    picture.save(out / "camera.jpg", exif=comment(b"ASCII\0\0\0holiday", x0110="Kamera 3"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
