"""Retouch against its peers on one model, in one run: `python cli/benches/peers.py DIR [--retouch target/release/retouch]`.

DIR is a Stable Diffusion 1.x or 2.x model as a diffusers folder: `retouch-dev make-random sd15 DIR` makes one of the real size. Needs
torch, diffusers, transformers, openvino, safetensors, numpy, pillow (PyPI); nothing else in the project does.

Retouch measures itself (`retouch-dev bench --model DIR`) and writes down what its networks were given; the peers are given the
same. Each measurement is a process of its own, so that neither memory nor threads mix, with as many threads as there are
cores; they take turns for `--rounds` rounds, and the fastest call of all rounds counts, after one that loads. The peers are set as
one would set them for speed: inference mode, attention by torch's own fused function, channels last where that is faster;
OpenVINO with one stream and its own hint of the precision. Nothing is compiled ahead for Retouch that is not for the others.

`demo` is the whole main workflow (workflows/layout-and-retouch.yaml, 50 steps, the demo model) against the same method on
diffusers' modules, the halves of guidance and both sources of the swap in one call where the method allows. The
seconds of `retouch-loaded` and `torch-f32` are those of a run in a process that has loaded the models and drawn before, without
imports; all others are of whole processes that draw once, `retouch-fresh` with nothing kept and `retouch-cached` with an empty cache.

`train` are steps of training, measured only where they are asked for (peers_train.py; needs peft too).
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import peers_train

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    # part: who is measured on it; the first is Retouch itself, the differences are from torch's float32
    "unet": ("retouch-f32", "torch-f32", "openvino-f32", "retouch-bf16", "torch-bf16", "openvino-bf16"),
    "vae": ("retouch-f32", "torch-f32", "openvino-f32", "retouch-bf16", "torch-bf16", "openvino-bf16"),
    "vae-encode": ("retouch-f32", "torch-f32"),
    "text": ("retouch-f32", "torch-f32", "retouch-bf16", "torch-bf16"),
    "demo": ("retouch-loaded", "retouch-fresh", "retouch-cached", "torch-f32", "torch-process"),
}
TRAIN = peers_train.parts()
# On a GPU, where half precision is float16 and nothing but torch has a peer's word. Float32 is float32 there, not TF32, on both sides.
ON_GPU = ("retouch-f32", "torch-f32", "retouch-f16", "torch-f16")
GIVEN = {"unet": ("unet.latent", "unet.timestep", "unet.context"), "vae": ("vae.latent",), "vae-encode": ("vae-encode.picture",), "text": ("text.ids",)}
GAVE = {"unet": "unet.output", "vae": "vae.picture", "vae-encode": "vae-encode.mean", "text": "text.states"}
# What workflows/layout-and-retouch.yaml says.
STEPS, GUIDANCE, SEED, BLEND_STEPS, FROM_STEP, STRUCTURE_UNTIL = 50, 4.0, 43, 10, 4, 20
VANILLA, PERSONAL, REFERENCE = "a teddy bear on a beach", "a sks teddy bear on a beach", "a photo of a sks teddy bear"
SUBJECT, SITES, MASK_GRID = "teddy bear", range(3, 7), (16, 16)


# What runs in a process of its own.

def network(folder, part, dtype):
    """The part as a module that takes what GIVEN names, in torch."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    if part == "unet":
        m = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
        call = lambda latent, t, context: m(latent, t, context, return_dict=False)[0]
    elif part == "text":
        m = CLIPTextModel.from_pretrained(Path(folder) / "text_encoder", torch_dtype=dtype)
        call = lambda ids: m(ids.long())[0]
    else:
        m = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        call = (lambda z: m.decode(z, return_dict=False)[0]) if part == "vae" else (lambda x: m.encode(x).latent_dist.mean)

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = m

        def forward(self, *given):
            return call(*given)

    return Part().eval()


def given(dump, part):
    import torch
    from safetensors.numpy import load_file

    tensors = load_file(dump)
    return [torch.from_numpy(tensors[name]) for name in GIVEN[part]]


def fastest(call, calls, wait=lambda: None):
    """Seconds of the fastest call after one that is not counted, and what it gave."""
    out, best = call(), float("inf")
    for _ in range(calls):
        wait()
        start = time.perf_counter()
        out = call()
        wait()
        best = min(best, time.perf_counter() - start)
    return best, out


def with_torch(folder, part, dump, precision, calls, threads, device):
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
    with torch.inference_mode():
        inputs = [x.to(device) if part == "text" or x.dim() == 1 else x.to(device, dtype) for x in given(dump, part)]
        module = network(folder, part, dtype).to(device)
        layouts = [torch.contiguous_format] if part == "text" else [torch.contiguous_format, torch.channels_last]
        best = (float("inf"), None)
        for layout in layouts:
            module = module.to(memory_format=layout)
            laid = [x.to(memory_format=layout) if x.dim() == 4 else x for x in inputs]
            seconds, out = fastest(lambda: module(*laid), calls, wait)
            best = min(best, (seconds, out), key=lambda pair: pair[0])
        return best[0], best[1].float().cpu().numpy()


def convert(folder, part, dump, file):
    import openvino as ov
    import torch

    with torch.inference_mode():
        inputs = given(dump, part)
        model = ov.convert_model(network(folder, part, torch.float32), example_input=tuple(inputs), input=[tuple(x.shape) for x in inputs])
    ov.save_model(model, file, compress_to_fp16=False)


def with_openvino(file, part, dump, precision, calls, threads):
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(file, "CPU", settings).create_infer_request()
    inputs = [x.numpy() for x in given(dump, part)]
    return fastest(lambda: request.infer(inputs)[0], calls)


def with_torch_demo(calls, threads):
    """The main workflow on diffusers' modules; see the head of this file."""
    sys.path.insert(0, str(ROOT / "tests" / "oracle"))
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from layout_and_retouch import Ddim, Model, binarise, raw_map
    from make_schedulers import normal
    from PIL import Image
    from torch.nn.functional import scaled_dot_product_attention as attend
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.set_num_threads(threads)

    class Hub:
        """What the attention of the call at hand does beside attention."""

        def __init__(self):
            self.capture, self.swap, self.qkv, self.maps = False, None, {}, []

    class Processor:
        def __init__(self, site, hub):
            self.site, self.hub = site, hub

        def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
            source = x if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (y.view(y.shape[0], y.shape[1], attn.heads, -1).transpose(1, 2) for y in (attn.to_q(x), attn.to_k(source), attn.to_v(source)))
            hub = self.hub
            if self.site is None and hub.capture and q.shape[2] == MASK_GRID[0] * MASK_GRID[1]:
                weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
                hub.maps.append(weights)
                out = weights @ v
            elif self.site in SITES and hub.swap is not None:
                k_step, qkv, m_ref, rows = hub.swap
                q_all, k_all, v_all = qkv[self.site]
                query = q_all[2:] if k_step < STRUCTURE_UNTIL else q
                keys = nearest_flat(m_ref, q.shape[2]) >= 0.5
                bias = torch.where(keys, 0.0, float("-inf")) if keys.any() else None
                bias = None if bias is None else bias.expand(query.shape[2], -1)
                inside = nearest_flat(rows, q.shape[2]).view(1, 1, -1, 1)
                out = inside * attend(query, k_all[:2], v_all[:2], attn_mask=bias) + (1 - inside) * attend(query, k_all[2:], v_all[2:])
            else:
                if self.site in SITES and hub.capture:
                    hub.qkv[self.site] = (q, k, v)
                out = attend(q, k, v)
            return attn.to_out[0](out.transpose(1, 2).reshape(x.shape))

    def nearest_flat(m, pixels):
        step = m.shape[0] // int(pixels**0.5)
        return m[::step, ::step].flatten()

    class Peer(Model):
        def __post_init__(self):
            self.hub = Hub()
            part = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
            order = lambda n: (part[n.split(".")[0]], [int(p) for p in n.split(".") if p.isdigit()])
            sites = sorted((n for n in self.unet.attn_processors if ".attn1." in n), key=order)
            self.unet.set_attn_processor({n: Processor(sites.index(n) if n in sites else None, self.hub) for n in self.unet.attn_processors})

    def load(name):
        folder = ROOT / "models" / name
        return Peer(UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval(),
                    CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder / "tokenizer"))

    world, teddy = load("world"), load("world-teddy")
    vae = AutoencoderKL.from_pretrained(ROOT / "models" / "world" / "vae", torch_dtype=torch.float32).eval()
    scheduler = DDIMScheduler.from_pretrained(ROOT / "models" / "world" / "scheduler")

    def guided(out):
        u, c = out.chunk(2)
        return u + GUIDANCE * (c - u)

    @torch.inference_mode()
    def run():
        ddim = Ddim(scheduler, STEPS)
        of_world = torch.cat([world.encode(""), world.encode(VANILLA)])
        empty, personal, about = teddy.encode(""), teddy.encode(PERSONAL), teddy.encode(REFERENCE)
        of_teddy = torch.cat([empty, personal])
        layout = [normal(SEED, 0, 0, (8, 16, 16))]
        for k, t in enumerate(ddim.timesteps):
            model, context = (world, of_world) if k < BLEND_STEPS else (teddy, of_teddy)
            layout.append(ddim.step(layout[-1], guided(model.unet(layout[-1].expand(2, -1, -1, -1), t, context).sample), t))
        photo = Image.open(ROOT / "references" / "teddy" / "01.png").convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
        photo = torch.from_numpy(np.asarray(photo, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        reference = [vae.encode(photo).latent_dist.mean * vae.config.scaling_factor]
        for t in reversed(ddim.timesteps):
            reference.append(ddim.inverse_step(reference[-1], teddy.unet(reference[-1], t, empty).sample, t))
        reference = reference[::-1]
        # The photo's branch and the layout's, both halves of each, in one call.
        sources = torch.cat([empty, about, empty, personal])
        hub, z = teddy.hub, layout[BLEND_STEPS]
        for k, t in list(enumerate(ddim.timesteps))[BLEND_STEPS:]:
            assert k >= FROM_STEP
            hub.capture, hub.qkv, hub.maps = True, {}, []
            both = torch.cat([reference[k], reference[k], layout[k], layout[k]])
            teddy.unet(both, t, sources)
            hub.capture = False
            m_ref = binarise(raw_map([m[1:2] for m in hub.maps], teddy.span(REFERENCE, SUBJECT), MASK_GRID, 1), "otsu")
            m_ctx = binarise(raw_map([m[3:4] for m in hub.maps], teddy.span(PERSONAL, SUBJECT), MASK_GRID, 1), "otsu")
            hub.swap = (k, hub.qkv, m_ref, m_ctx)
            z = ddim.step(z, guided(teddy.unet(z.expand(2, -1, -1, -1), t, of_teddy).sample), t)
            hub.swap = None
        pictures = [vae.decode(latent / vae.config.scaling_factor).sample.clamp(-1, 1) for latent in (layout[-1], z)]
        return ((pictures[1][0].permute(1, 2, 0) + 1) * 127.5).round().numpy()

    return fastest(run, calls)


def worker(args):
    """Measures in this process; prints a line of JSON and writes the output beside it."""
    if args.who == "convert":
        return convert(args.folder, args.part, args.dump, args.model)
    if args.part in TRAIN:
        return peers_train.worker(args.folder, args.part, args.who, args.dump, args.calls, args.threads, args.device)
    kind, precision = args.who.split("-")
    if args.part == "demo":
        seconds, out = with_torch_demo(args.calls, args.threads)
    elif kind == "torch":
        seconds, out = with_torch(args.folder, args.part, args.dump, precision, args.calls, args.threads, args.device)
    else:
        seconds, out = with_openvino(args.model, args.part, args.dump, precision, args.calls, args.threads)
    np.save(args.out, out)
    print(json.dumps({"seconds": seconds, "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


# What starts the processes.

class Run:
    def __init__(self, args, scratch):
        self.args, self.scratch, self.best, self.outputs = args, Path(scratch), {}, {}

    def process(self, command):
        environment = {**os.environ, "RETOUCH_CONFIG": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.args.threads)}
        environment.pop("RETOUCH_NO_CACHE", None)
        done = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
        return done.stdout

    def note(self, part, who, seconds, memory=None):
        print(f"{part:10} {who:15} {seconds:9.4f} s", file=sys.stderr, flush=True)
        before = self.best.get((part, who), (float("inf"), None))
        self.best[part, who] = (min(before[0], seconds), max(memory or 0, before[1] or 0) or None)

    def dump(self, part, precision):
        return self.scratch / f"{part}-{precision}.safetensors"

    def retouch(self, part, precision):
        from safetensors.numpy import load_file

        dump = self.dump(part, precision)
        # The peers' VAE is of the type that is asked for; Retouch's only where that is asked for too.
        half = ["--half-vae"] if part.startswith("vae") and precision != "f32" else []
        text = self.process([self.args.retouch_dev, "bench", "--model", self.args.folder, "--parts", part, "--runs", self.args.calls, "--json",
                             "--dtype", precision, "--threads", self.args.threads, "--device", self.args.device, "--dump", dump, *half, *self.size()])
        figures = json.loads(text)
        self.note(part, f"retouch-{precision}", figures["parts"][0]["min"], figures["peak_memory"])
        self.outputs[part, f"retouch-{precision}"] = load_file(dump)[GAVE[part]]

    def size(self):
        return ["--size", self.args.size] if self.args.size else []

    def peer(self, part, who):
        dump, out = self.dump(part, "f32"), self.scratch / f"{part}-{who}.npy"
        whole = who == "torch-process"
        command = [sys.executable, __file__, "--worker", "torch-f32" if whole else who, "--part", part, "--dump", dump, "--out", out,
                   "--calls", 0 if whole else self.args.calls, "--threads", self.args.threads, "--device", self.args.device, self.args.folder]
        if who.startswith("openvino"):
            model = self.scratch / f"{part}.xml"
            command += ["--openvino-model", model]
            if not model.exists():
                self.process([sys.executable, __file__, "--worker", "convert", "--part", part, "--dump", dump, "--openvino-model", model, self.args.folder])
        start = time.perf_counter()
        figures = json.loads(self.process(command).splitlines()[-1])
        seconds = time.perf_counter() - start if whole else figures["seconds"]
        self.note(part, who, seconds, figures["peak_memory"])
        self.outputs[part, who] = np.load(out)

    demo_model = ROOT / "models" / "world"

    def peer_process(self, part, who, folder, more):
        return self.process([sys.executable, __file__, "--worker", who, "--part", part, *more, folder])

    def demo(self, who, turn):
        """The whole process: with nothing kept between nodes, or as a user's first run, with an empty cache."""
        from PIL import Image

        if who == "retouch-loaded":
            text = self.process([self.args.retouch_dev, "bench", "--workflow", "--runs", self.args.calls, "--json", "--threads", self.args.threads])
            return self.note("demo", who, json.loads(text)["rows"][0]["min"])
        out = self.scratch / f"{who}-{turn}"
        keep = ["--no-cache"] if who == "retouch-fresh" else ["--cache-dir", out / "cache"]
        start = time.perf_counter()
        self.process([self.args.retouch, "run", ROOT / "workflows" / "layout-and-retouch.yaml", "--quiet", "--threads", self.args.threads, "--out", out, *keep])
        self.note("demo", who, time.perf_counter() - start)
        picture = next(p for p in out.rglob(f"{SEED}-raw.png"))
        self.outputs["demo", who] = np.asarray(Image.open(picture).convert("RGB"), dtype=np.float32)

    def measure(self):
        for part in self.args.parts:
            for turn in range(self.args.rounds):
                for who in TRAIN.get(part) or (PARTS[part] if self.args.device == "cpu" else ON_GPU):
                    if part in TRAIN:
                        if not (self.args.peers_only and who.startswith("retouch")):
                            peers_train.measure(self, part, who)
                    elif part == "demo" and who.startswith("retouch"):
                        self.demo(who, turn)
                    elif who.startswith("retouch"):
                        self.retouch(part, who.split("-")[1])
                    else:
                        self.peer(part, who)

    def report(self):
        processor = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
        names = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", *(["openvino"] if self.args.device == "cpu" and set(self.args.parts) - set(TRAIN) else [])))
        print(f"{processor}, {self.args.threads} threads, {self.args.device}; {names}; fastest of {self.args.rounds} x {self.args.calls} calls\n")
        peers_train.report({k: v for k, v in self.best.items() if k[0] in TRAIN}, self.outputs)
        if all(part in TRAIN for part in self.args.parts):
            return
        print("| part | Retouch | s | peer | s | Retouch / peer |\n| --- | --- | --- | --- | --- | --- |")
        for (part, own), (seconds, _) in self.best.items():
            if part in TRAIN or not own.startswith("retouch"):
                continue
            for (other, peer), (theirs, _) in self.best.items():
                # Of the demo like with like: a run in a process that is warm, or a whole process.
                same = (own == "retouch-loaded") == (peer == "torch-f32") if part == "demo" else peer.split("-")[1] == own.split("-")[1]
                if other == part and not peer.startswith("retouch") and same:
                    print(f"| {part} | {own.split('-')[1]} | {seconds:.3f} | {peer} | {theirs:.3f} | {seconds / theirs:.2f} |")
        print("\n| part | who | difference from torch-f32, largest / std | root mean square / std | most memory |\n| --- | --- | --- | --- | --- |")
        for (part, who), out in self.outputs.items():
            if part in TRAIN:
                continue
            expected = self.outputs[part, "torch-f32"]
            d, memory = np.abs(out.astype(np.float64) - expected), self.best[part, who][1]
            memory = f"{memory / 2**30:.2f} GiB" if memory else ""
            print(f"| {part} | {who} | {d.max() / expected.std():.1e} | {np.sqrt((d**2).mean()) / expected.std():.1e} | {memory} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the model, a folder in the diffusers layout")
    parser.add_argument("--retouch", default=ROOT / "target" / "release" / "retouch", help="the program, built for release")
    parser.add_argument("--retouch-dev", help="the program that measures; `retouch-dev` beside the other unless given")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"{','.join(PARTS)} (all these unless given), {','.join(TRAIN)}; train: those three")
    parser.add_argument("--peers-only", action="store_true", help="of training, measure the peers alone, on inputs of their own")
    parser.add_argument("--rounds", type=int, default=2, help="how often everybody has a turn")
    parser.add_argument("--calls", type=int, default=3, help="calls that are measured in a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="cpu or cuda; the demo is measured on the cpu alone")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels; default: what the model was made for")
    parser.add_argument("--worker", dest="who", help=argparse.SUPPRESS)
    for name in ("part", "dump", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--openvino-model", dest="model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.who:
        return worker(args)
    args.retouch_dev = args.retouch_dev or Path(args.retouch).with_name("retouch-dev")
    args.parts = [p for part in args.parts for p in (TRAIN if part == "train" else [part])]
    unknown = set(args.parts) - set(PARTS) - set(TRAIN)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if args.device != "cpu":
        args.parts = [part for part in args.parts if part != "demo"]
    with tempfile.TemporaryDirectory(prefix="retouch-peers-") as scratch:
        run = Run(args, scratch)
        run.measure()
        run.report()


if __name__ == "__main__":
    main()
