"""The micro models as diffusers' training scripts see them: what each method trains, the noised input and the loss.

Written after diffusers' examples (train_dreambooth.py, train_dreambooth_lora.py, train_text_to_image.py, textual_inversion.py, train_custom_diffusion.py) with
their own building blocks: diffusers' U-Net, DDPMScheduler, compute_snr and Custom Diffusion processor, transformers' text encoders, PEFT.
"""
import json
from dataclasses import dataclass, field

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from diffusers.training_utils import compute_snr
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, inject_adapter_in_model
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from make_adapters import attention_of, convolutions_of, text_modules

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
RANK, ALPHA, FACTOR = 4, 8, 4  # FACTOR: the VAE's, for SDXL's sizes
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass
class Network:
    """U-Net, text encoders and tokenizers of one micro model, all frozen, in `dtype`; `trained` maps the names that are published to parameters."""

    unet: object
    encoders: list
    tokenizers: list
    scheduler: object
    dtype: torch.dtype
    trained: dict = field(default_factory=dict)
    rows: dict = field(default_factory=dict)  # name of an embedding table -> the rows that are trained

    def modules(self):
        return [self.unet, *self.encoders]

    def ids(self, prompts):
        """[encoders][prompts, 77]"""
        return [torch.tensor(t(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"]) for t in self.tokenizers]

    def condition(self, ids, shape):
        """What the U-Net is told: the states of the prompts, and for SDXL the pooled state and the sizes."""
        if len(self.encoders) == 1:
            return self.encoders[0](ids[0])[0], None
        outs = [encoder(i, output_hidden_states=True) for encoder, i in zip(self.encoders, ids)]
        height, width = FACTOR * shape[-2], FACTOR * shape[-1]
        times = torch.tensor([[height, width, 0, 0, height, width]] * len(ids[0]), dtype=self.dtype)
        return torch.cat([o.hidden_states[-2] for o in outs], -1), {"text_embeds": outs[1].text_embeds, "time_ids": times}

    def predict(self, noisy, timesteps, ids):
        states, added = self.condition(ids, noisy.shape)
        return self.unet(noisy, timesteps, states, added_cond_kwargs=added).sample

    def values(self):
        """The trained numbers; of an embedding table only the rows that are trained."""
        return {k: p.detach()[self.rows[k]].clone() if k in self.rows else p.detach().clone() for k, p in self.trained.items()}

    def gradients(self):
        return {k: p.grad[self.rows[k]] if k in self.rows else p.grad for k, p in self.trained.items()}


def read(out, name, dtype):
    folder = out / name
    load = lambda kind, part: kind.from_pretrained(str(folder / part), torch_dtype=torch.float32, local_files_only=True).to(dtype)
    kinds = {"text_encoder": CLIPTextModel} | ({"text_encoder_2": CLIPTextModelWithProjection} if (folder / "text_encoder_2").exists() else {})
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    network = Network(load(UNet2DConditionModel, "unet"), [load(kind, part) for part, kind in kinds.items()],
                      [CLIPTokenizer.from_pretrained(str(folder / part.replace("text_encoder", "tokenizer"))) for part in kinds],
                      DDPMScheduler(clip_sample=False, **{k: config[k] for k in keys if k in config}), dtype)
    for module in network.modules():
        module.requires_grad_(False)
        module.train()  # no part of these models has dropout
    if len(kinds) == 2:
        for module in network.encoders[1].modules():  # the published config's id is not the vocabulary's: see README
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = network.tokenizers[1].eos_token_id
    return network


def part_names(network):
    return [("unet", network.unet), *((f"text_encoder{'_2' if i else ''}", e) for i, e in enumerate(network.encoders))]


def published(part, name):
    """The name under which a parameter is saved: transformers 5 has dropped `text_model.`, PEFT adds its adapter's and its wrapper's name."""
    name = name.replace(".default.", ".").replace(".base_layer.", ".")
    prefix = "text_model." if part != "unet" and not name.startswith(("text_model.", "text_projection.")) else ""
    return f"{part}.{prefix}{name}"


def read_alone(network):
    """Without what the loss does not reach: of encoder 1 SDXL reads the states before the last layer, and nothing else."""
    if len(network.encoders) == 2:
        last = max(int(n.split("layers.")[1].split(".")[0]) for n, _ in network.encoders[0].named_parameters() if "layers." in n)
        unused = (f"text_encoder.text_model.encoder.layers.{last}.", "text_encoder.text_model.final_layer_norm.")
        network.trained = {k: p for k, p in network.trained.items() if not k.startswith(unused)}
    return network


def train_all(network, text=True):
    """DreamBooth: every weight of the U-Net, and of the text encoders."""
    for part, module in part_names(network)[: None if text else 1]:
        module.requires_grad_(True)
        network.trained |= {published(part, n): p for n, p in module.named_parameters()}
    return read_alone(network)


def train_lora(network, seed, convolutions=False, text=False, zero=True):
    """Adapters by PEFT. A is normal with deviation 1 / rank as diffusers' scripts have it (`init_lora_weights="gaussian"`); B is zero, or random for a gradient that reaches A."""
    generator = torch.Generator().manual_seed(seed)
    for part, module in part_names(network)[: None if text else 1]:
        if part == "unet":
            targets = [n for n, _ in attention_of(module) + (convolutions_of(module) if convolutions else [])]
        else:
            targets = [n for n, _ in module.named_modules() if n.endswith(TEXT_ATTENTION)]
        # Not `add_adapter`: that of transformers 5.24 asks for a PEFT later than any that is published.
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights="gaussian"), module)
        for name, p in module.named_parameters():
            if "lora_" in name:
                fan = p[0].numel()
                value = torch.randn(p.shape, generator=generator) * (1 / RANK if "lora_A" in name else 0 if zero else 0.2 / fan**0.5)
                p.data = value.to(network.dtype)
                p.requires_grad_(True)
                network.trained[published(part, name)] = p
    return read_alone(network)


def add_tokens(network, tokens, initial, seed):
    """New tokens in each encoder: a row beginning as the initial word's, with a little noise from the second on."""
    generator = torch.Generator().manual_seed(seed)
    for (part, encoder), tokenizer in zip(part_names(network)[1:], network.tokenizers):
        assert tokenizer.add_tokens(tokens) == len(tokens)
        word = tokenizer(initial)["input_ids"][1]
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings()
        ids = tokenizer.convert_tokens_to_ids(tokens)
        with torch.no_grad():
            start = table.weight[word].float().expand(len(ids), -1).clone()
            start[1:] += 0.1 * torch.randn(start[1:].shape, generator=generator)
            table.weight[ids] = start.to(network.dtype)
        table.weight.requires_grad_(True)
        name = published(part, "embeddings.token_embedding.weight")
        network.trained[name], network.rows[name] = table.weight, ids
    return network


def train_custom(network, token, initial, seed):
    """Custom Diffusion: keys and values of cross-attention in diffusers' processor, and a token."""
    processors = {}
    for name in network.unet.attn_processors:
        attn, cross = network.unet.get_submodule(name.removesuffix(".processor")), ".attn2." in name
        processor = CustomDiffusionAttnProcessor(train_kv=cross, train_q_out=False, hidden_size=attn.to_q.weight.shape[0],
                                                 cross_attention_dim=attn.to_k.weight.shape[1] if cross else None)
        if cross:
            processor.to_k_custom_diffusion.weight.data.copy_(attn.to_k.weight)
            processor.to_v_custom_diffusion.weight.data.copy_(attn.to_v.weight)
            processor.to(network.dtype)
            for which in ("k", "v"):
                key = f"unet.{name.removesuffix('.processor')}.to_{which}.weight"
                network.trained[key] = getattr(processor, f"to_{which}_custom_diffusion").weight
        processors[name] = processor
    network.unet.set_attn_processor(processors)
    return add_tokens(network, [token], initial, seed)


# The loss.

def min_snr(network, timesteps, gamma):
    """Min-SNR weights of the rows (Hang et al. 2023), as train_text_to_image.py has them."""
    snr = compute_snr(network.scheduler, timesteps).to(network.dtype)
    least = snr.clamp(max=gamma)
    return least / (snr + 1 if network.scheduler.config.prediction_type == "v_prediction" else snr)


def loss_of(network, batch, gamma=None, background=None, normalised=False, prior=None):
    """(loss, prediction). `batch`: latents, noise, timesteps, ids, and `mask` [rows, 1, h, w] with `background`.

    With `prior` the second half of the rows are class pictures, and their mean is added `prior` times. `background` weighs each pixel's square by
    w = mask + background (1 - mask) before the mean over all pixels; `normalised` divides w by its mean over the picture first.
    """
    latents, noise = (batch[k].to(network.dtype) for k in ("latents", "noise"))
    noisy = network.scheduler.add_noise(latents, noise, batch["timesteps"])
    target = noise if network.scheduler.config.prediction_type == "epsilon" else network.scheduler.get_velocity(latents, noise, batch["timesteps"])
    prediction = network.predict(noisy, batch["timesteps"], batch["ids"])
    squares = F.mse_loss(prediction, target, reduction="none")
    if background is not None:
        mask = batch["mask"].to(network.dtype)
        weight = mask + background * (1 - mask)
        squares = squares * (weight / weight.mean(dim=(1, 2, 3), keepdim=True) if normalised else weight)
    rows = squares.mean(dim=(1, 2, 3))
    if gamma is not None:
        rows = rows * min_snr(network, batch["timesteps"], gamma)
    if prior is None:
        return rows.mean(), prediction
    instance, of_class = rows.chunk(2)
    return instance.mean() + prior * of_class.mean(), prediction
