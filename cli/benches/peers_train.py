"""A training step of PyTorch + diffusers + PEFT, for `peers.py --parts train`; each measurement is a process of its own.

`train-demo` is DreamBooth on the demo model: every weight of the U-Net, 16 rows of its own size. `train-lora-256` and `-512` are a LoRA of rank 4 on the
attention of the given model's U-Net (`to_q`, `to_k`, `to_v`, `to_out.0`), one row at 256 and 512 pixels. A step is what diffusers' training scripts do between two
batches with text states and latents computed before: the noised latent, the U-Net, the mean of squares, the gradient, its norm clipped to 1, AdamW. Float32
throughout. `torch-plain` and `torch-channels_last` are the two layouts, of which the faster counts; `torch-checkpointed` has gradient checkpointing on.
The inputs are those that Retouch wrote down (`--dump`), so that the first loss must be the same; without a dump they are random ones of the same shapes.
"""
import json
import resource
import time
from pathlib import Path

PEERS = ("torch-plain", "torch-channels_last", "torch-checkpointed")
OWN = ("retouch-plain", "retouch-checkpointed")
# part: method, rows, side in pixels (None: the model's own)
TRAINED = {"train-demo": ("dreambooth", 16, None), "train-lora-256": ("lora", 1, 256), "train-lora-512": ("lora", 1, 512)}
RANK, RATE, INPUTS = 4, 1e-4, ("latents", "noise", "timesteps", "context")


def parts():
    """What `--parts train` stands for, each with who is measured. Nobody checkpoints the demo: its activations are small."""
    return {part: (OWN[:1] + PEERS[:2] if part == "train-demo" else OWN + PEERS) for part in TRAINED}


def retouch_arguments(part, who):
    """The end of the command line of `retouch-dev bench` for the same step."""
    method, rows, side = TRAINED[part]
    arguments = ["--train", method, "--batch", rows, *(["--rank", RANK] if method == "lora" else []), *(["--size", side] if side else [])]
    return arguments + (["--checkpointing"] if who.endswith("checkpointed") else [])


def inputs(folder, unet, factor, part, dump):
    import torch
    from safetensors.torch import load_file

    if dump and Path(dump).exists():
        tensors = load_file(dump)
        return [tensors[f"train.{name}"].long() if name == "timesteps" else tensors[f"train.{name}"].float() for name in INPUTS]
    _, rows, side = TRAINED[part]
    side = side // factor if side else unet.config.sample_size
    shape = (rows, unet.config.in_channels, side, side)
    generator = torch.Generator().manual_seed(0)
    normal = lambda *s: torch.randn(s, generator=generator)
    tokens = json.loads((Path(folder) / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    return [normal(*shape), normal(*shape), torch.randint(0, 1000, (rows,), generator=generator), normal(rows, tokens, unet.config.cross_attention_dim)]


def prepare(unet, method):
    """What is trained."""
    if method == "dreambooth":
        unet.requires_grad_(True)
    else:
        from peft import LoraConfig

        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    return [p for p in unet.parameters() if p.requires_grad]


def worker(folder, part, who, dump, calls, threads, device):
    """Seconds of the fastest step after one that is not counted, the losses, and the most memory in bytes; prints them as a line of JSON."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on_gpu = device.startswith("cuda")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32).to(device)
    factor = 2 ** (len(AutoencoderKL.load_config(folder, subfolder="vae")["block_out_channels"]) - 1)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False)
    latents, noise, timesteps, context = (x.to(device) for x in inputs(folder, unet, factor, part, dump))
    if who == "torch-channels_last":
        unet.to(memory_format=torch.channels_last)
        latents, noise = (x.to(memory_format=torch.channels_last) for x in (latents, noise))
    trained = prepare(unet, TRAINED[part][0])
    unet.train()
    if who == "torch-checkpointed":
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-2)
    target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    losses, best = [], float("inf")
    for call in range(calls + 1):
        start = time.perf_counter()
        loss = F.mse_loss(unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits for the device
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if call else best
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": best, "peak_memory": memory, "losses": losses}))


def measure(run, part, who):
    """One turn of `who`; `run` is peers.py's."""
    args, dump = run.args, run.scratch / f"{part}.safetensors"
    folder = run.demo_model if TRAINED[part][0] == "dreambooth" else args.folder
    common = ["--threads", args.threads, "--device", args.device, "--dump", dump]
    if who.startswith("retouch"):
        text = run.process([args.retouch_dev, "bench", "--model", folder, *retouch_arguments(part, who), "--runs", args.calls, "--json", "--dtype", "f32", *common])
        figures = json.loads(text)
        figures["seconds"] = figures["parts"][0]["min"]
    else:
        figures = json.loads(run.peer_process(part, who, folder, [*common, "--calls", args.calls]).splitlines()[-1])
    run.note(part, who, figures["seconds"], figures["peak_memory"])
    run.outputs[part, who] = figures["losses"][0]


def report(best, outputs):
    """Like is set beside like: without checkpointing against the faster of the two layouts, with it against torch's with it."""
    if not best:
        return
    print("| training | who | s a step | of torch's | most memory | of torch's | first loss, difference |\n| --- | --- | --- | --- | --- | --- | --- |")
    for (part, who), (seconds, memory) in best.items():
        same = [v for (p, w), v in best.items() if p == part and w in PEERS and w.endswith("checkpointed") == who.endswith("checkpointed")]
        ratios = (f"{seconds / min(s for s, _ in same):.2f}", f"{memory / min(m for _, m in same):.2f}") if same else ("", "")
        apart = abs(outputs[part, who] / outputs.get((part, PEERS[0]), float("nan")) - 1)
        print(f"| {part} | {who} | {seconds:.3f} | {ratios[0]} | {memory / 2**30:.2f} GiB | {ratios[1]} | {apart:.1e} |")
    print()
