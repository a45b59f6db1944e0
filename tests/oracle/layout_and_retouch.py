"""Layout-and-Retouch on diffusers modules: the slow, plain version that the expected numbers come from.

Every definition follows docs/method.md. Branches run one after another and attention is written
out as softmax(q k^T * scale) v in float32, so that each number can be traced.
"""
from dataclasses import dataclass

import torch


class Processor:
    """Attention processor that hands q, k, v of one layer to the hub."""

    def __init__(self, name, hub):
        self.name, self.hub = name, hub

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.view(x.shape[0], x.shape[1], attn.heads, -1).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        out = self.hub.attend(self.name, encoder_hidden_states is None, q, k, v, attn.scale)
        return attn.to_out[0](out.transpose(1, 2).reshape(hidden_states.shape))


def attention(q, k, v, scale, bias=None):
    scores = q @ k.transpose(-1, -2) * scale
    return (scores if bias is None else scores + bias).softmax(-1) @ v


class Hub:
    """Records, or controls, every attention call of one U-Net."""

    def __init__(self, unet):
        unet.set_attn_processor({name: Processor(name, self) for name in unet.attn_processors})
        part = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        order = lambda n: (part[n.split(".")[0]], [int(p) for p in n.split(".") if p.isdigit()])
        self.sites = sorted((n for n in unet.attn_processors if ".attn1." in n), key=order)
        self.self_qkv, self.cross_maps, self.control = {}, [], None

    def attend(self, name, is_self, q, k, v, scale):
        if not is_self:
            self.cross_maps.append((q @ k.transpose(-1, -2) * scale).softmax(-1))
            return self.cross_maps[-1] @ v
        self.self_qkv[name] = (q, k, v)
        if self.control is not None:
            out = self.control(self.sites.index(name), name, q, k, v, scale)
            if out is not None:
                return out
        return attention(q, k, v, scale)


@dataclass
class Model:
    unet: object
    text_encoder: object
    tokenizer: object

    def __post_init__(self):
        self.hub = Hub(self.unet)

    def encode(self, prompt):
        ids = self.tokenizer(prompt, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True)
        return self.text_encoder(torch.tensor([ids["input_ids"]])).last_hidden_state

    def encode_negative(self, negative):
        """A negative prompt; "" is one that was not given."""
        return self.encode(negative)

    def span(self, prompt, phrase):
        """Token positions of `phrase` in `prompt` (first occurrence)."""
        ids = self.tokenizer(prompt)["input_ids"]
        part = self.tokenizer(phrase)["input_ids"][1:-1]
        for i in range(len(ids) - len(part) + 1):
            if ids[i : i + len(part)] == part:
                return list(range(i, i + len(part)))
        raise ValueError(f"{phrase!r} is not in {prompt!r}")

    def predict(self, z, t, context, control=None):
        """One half of guidance: the network's output, the self-attention q, k, v, the cross-attention maps."""
        self.hub.self_qkv, self.hub.cross_maps, self.hub.control = {}, [], control
        out = self.unet(z, t, context).sample
        self.hub.control = None
        return out, self.hub.self_qkv, self.hub.cross_maps


class Ddim:
    """DDIM with eta 0, and its inverse, on a diffusers DDIMScheduler's tables."""

    def __init__(self, scheduler, steps):
        scheduler.set_timesteps(steps)
        self.timesteps = [int(t) for t in scheduler.timesteps]
        self.stride = scheduler.config.num_train_timesteps // steps
        self.prediction = scheduler.config.prediction_type
        self.alphas, self.final = scheduler.alphas_cumprod, scheduler.final_alpha_cumprod

    def alpha(self, t):
        return self.alphas[t] if t >= 0 else self.final

    def _move(self, z, out, a, b):
        if self.prediction == "v_prediction":
            x0, eps = a.sqrt() * z - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * z
        else:
            x0, eps = (z - (1 - a).sqrt() * out) / a.sqrt(), out
        return b.sqrt() * x0 + (1 - b).sqrt() * eps

    def step(self, z, out, t):
        return self._move(z, out, self.alpha(t), self.alpha(t - self.stride))

    def inverse_step(self, z, out, t):
        """Moves a latent at t - stride to t; `out` was predicted for (z, t)."""
        return self._move(z, out, self.alpha(t - self.stride), self.alpha(t))


def guided(model, z, t, prompt, guidance, negative=""):
    """Both halves, u + g (c - u); at g = 1 the u half is not run. Returns noise, (u, c) self-attention, c maps."""
    c, c_qkv, maps = model.predict(z, t, model.encode(prompt))
    if guidance == 1:
        return c, (None, c_qkv), maps
    u, u_qkv, _ = model.predict(z, t, model.encode_negative(negative))
    return u + guidance * (c - u), (u_qkv, c_qkv), maps


@torch.no_grad()
def step_blend_sample(vanilla, personalized, vanilla_prompt, personalized_prompt, z, scheduler, steps, guidance, blend_steps, negative=""):
    """Stage 1. Returns the trajectory z_0 .. z_T, noisiest first."""
    ddim, trajectory = Ddim(scheduler, steps), [z]
    for k, t in enumerate(ddim.timesteps):
        model, prompt = (vanilla, vanilla_prompt) if k < blend_steps else (personalized, personalized_prompt)
        out, _, _ = guided(model, z, t, prompt, guidance, negative)
        z = ddim.step(z, out, t)
        trajectory.append(z)
    return trajectory


@torch.no_grad()
def invert(model, z, scheduler, steps, prompt=""):
    """DDIM inversion, guidance 1. Returns the trajectory, noisiest first."""
    ddim, trajectory, context = Ddim(scheduler, steps), [z], model.encode(prompt)
    for t in reversed(ddim.timesteps):
        z = ddim.inverse_step(z, model.predict(z, t, context)[0], t)
        trajectory.append(z)
    return trajectory[::-1]


def otsu_bin(values, bins=64):
    """The first bin that maximises Otsu's between-class variance of values in [0, 1]; the threshold is its upper edge."""
    index = (values * bins).floor().clamp(max=bins - 1).long().flatten()
    p = torch.bincount(index, minlength=bins).double() / index.numel()
    centre = (torch.arange(bins).double() + 0.5) / bins
    w, mu = p.cumsum(0), (p * centre).cumsum(0)
    between = (mu[-1] * w - mu) ** 2 / (w * (1 - w)).clamp_min(1e-12)
    return between.argmax().item()


def smoothed(m):
    """One pass of the 3x3 binomial filter, borders repeated."""
    h, w = m.shape
    m = m[torch.arange(-1, h + 1).clamp(0, h - 1)][:, torch.arange(-1, w + 1).clamp(0, w - 1)]
    weights = (1, 2, 1)
    return sum(weights[i] * weights[j] * m[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 16


def raw_map(cross_maps, span, grid, smooth):
    """[h, w] in [0, 1] from maps [1, heads, pixels, tokens] of every layer on this grid."""
    maps = torch.stack([m[0].mean(0)[:, span].sum(-1) for m in cross_maps if m.shape[2] == grid[0] * grid[1]])
    m = maps.mean(0).view(grid)
    for _ in range(smooth):
        m = smoothed(m)
    return (m - m.min()) / (m.max() - m.min()).clamp_min(1e-8)


MARGINS = []  # distance of the nearest pixel from its threshold, one a binarised map


def binarise(m, threshold):
    if threshold == "soft":
        return m
    cut = (otsu_bin(m) + 1) / 64 if threshold == "otsu" else threshold
    MARGINS.append((m - cut).abs().min().item())
    return (m > cut).to(m.dtype)


def nearest(m, grid):
    rows = torch.arange(grid[0]) * m.shape[0] // grid[0]
    columns = torch.arange(grid[1]) * m.shape[1] // grid[1]
    return m[rows][:, columns]


def grid_of(tokens, latent):
    """(h, w) of a layer with this many pixels, in a network that halves the latent's sides."""
    h, w = latent.shape[-2:]
    while h * w > tokens:
        h, w = (h + 1) // 2, (w + 1) // 2
    assert h * w == tokens
    return h, w


TIES = []  # how much more alike the best match is than the second, the least of a site


def matched_values(k_ctx, v_ctx, grid, k_ref, v_ref, counts, mask):
    """DreamMatcher's appearance matching on keys less their mean: v of the context's places `[1, heads, N, d]`, inside the mask `[N]` that
    of the place of the reference which is most like it, where the way back ends no more than an eighth of the grid away."""
    flat = lambda x: x.transpose(1, 2).flatten(2)[0]
    a, b = flat(k_ctx), flat(k_ref)
    a = torch.nn.functional.normalize(a - a.mean(0), dim=1)
    b = torch.nn.functional.normalize(b - b.mean(0), dim=1)
    index = counts.nonzero().flatten()
    cosines = a @ b[index].T
    best = cosines.topk(2, 1).values
    TIES.append((best[:, 0] - best[:, 1]).min().item())
    forth, back = cosines.argmax(1), cosines.argmax(0)
    out = v_ctx.clone()
    h, w = grid
    for place in range(h * w):
        again = back[forth[place]].item()
        if abs(again // w - place // w) <= -(-h // 8) and abs(again % w - place % w) <= -(-w // 8):
            m = mask[place]
            out[:, :, place] = m * v_ref[:, :, index[forth[place]]] + (1 - m) * v_ctx[:, :, place]
    return out


@torch.no_grad()
def retouch(personalized, prompt, context, reference, scheduler, steps, guidance, *, reference_prompt, subject, sites, from_step, structure_until,
            mask_grid, start_step=0, until_step=10**9, lock=True, blend="union", threshold="otsu", smooth=1, reference_subject=None, negative="",
            reference_mask=None, context_mask=None, blend_mask=None, values="attended",
            vanilla=None, vanilla_prompt=None, blend_steps=0, context_prompt=None, context_subject=None, context_negative=""):
    """Stage 2. `context_prompt` drew the context's steps from `blend_steps` on. Returns the target's trajectory and
    the masks (reference, context, blend) of the steps in which the swap is on."""
    ddim, z, previous = Ddim(scheduler, steps), context[0], None
    contexts = [personalized.encode_negative(negative), personalized.encode(prompt)]
    reference_subject, context_prompt = reference_subject or subject, context_prompt or prompt
    context_subject = context_subject or subject
    trajectory, masks = [z], []
    for k, t in enumerate(ddim.timesteps):
        if k < start_step:
            z = context[k + 1]
            trajectory.append(z)
            continue
        swapping = from_step <= k < until_step
        model, drew = (vanilla, vanilla_prompt) if k < blend_steps else (personalized, context_prompt)
        _, ctx_qkv, ctx_maps = guided(model, context[k], t, drew, guidance, context_negative)
        m_ctx = context_mask
        if m_ctx is None:
            m_ctx = binarise(raw_map(ctx_maps, model.span(drew, context_subject), mask_grid, smooth), threshold)
        if swapping:
            _, ref_qkv, ref_maps = guided(personalized, reference[k], t, reference_prompt, guidance)
            m_ref = reference_mask
            if m_ref is None:
                m_ref = binarise(raw_map(ref_maps, personalized.span(reference_prompt, reference_subject), mask_grid, smooth), threshold)
            m = blend_mask
            if m is None:
                last = m_ctx if previous is None else previous
                m = {"context": m_ctx, "target": last, "union": torch.maximum(m_ctx, last)}[blend]
            masks.append((m_ref, m_ctx, m))

        def control_for(half):
            def control(index, name, q, _k, _v, scale):
                if index not in sites or k >= until_step:
                    return None
                q_ctx, k_ctx, v_ctx = ctx_qkv[half][name]
                if k < from_step:
                    return attention(q_ctx, k_ctx, v_ctx, scale) if lock else None
                _, k_ref, v_ref = ref_qkv[half][name]
                keys = nearest(m_ref, grid_of(k_ref.shape[2], reference[0])).flatten()
                rows = nearest(m, grid_of(q.shape[2], z)).view(1, 1, -1, 1)
                query = q_ctx if k < structure_until else q
                inside = keys >= 0.5
                if values == "matched":
                    counts = inside if inside.any() else torch.ones_like(inside)
                    v = matched_values(k_ctx, v_ctx, grid_of(k_ctx.shape[2], z), k_ref, v_ref, counts, rows.flatten())
                    return attention(query, k_ctx, v, scale)
                bias = torch.where(inside, 0.0, float("-inf")) if inside.any() else None
                return rows * attention(query, k_ref, v_ref, scale, bias) + (1 - rows) * attention(query, k_ctx, v_ctx, scale)
            return control

        c, _, maps = personalized.predict(z, t, contexts[1], control_for(1))
        out = c
        if guidance != 1:
            u, _, _ = personalized.predict(z, t, contexts[0], control_for(0))
            out = u + guidance * (c - u)
        previous = binarise(raw_map(maps, personalized.span(prompt, subject), mask_grid, smooth), threshold)
        z = ddim.step(z, out, t)
        trajectory.append(z)
    return trajectory, masks


@torch.no_grad()
def masactrl(model, prompt, reference_prompt, z, reference, scheduler, steps, guidance, from_step=4, sites=range(10, 16)):
    """MasaCtrl, written on its own (a batch of [reference, target], keys and values copied), to hold `retouch` against."""
    ddim, trajectory = Ddim(scheduler, steps), [z]
    for k, t in enumerate(ddim.timesteps):
        def control(index, name, q, key, value, scale):
            if index in sites and k >= from_step:
                key, value = key[:1].expand_as(key), value[:1].expand_as(value)
            return attention(q, key, value, scale)

        both = torch.cat([reference[k], z])
        c, _, _ = model.predict(both, t, torch.cat([model.encode(reference_prompt), model.encode(prompt)]), control)
        u, _, _ = model.predict(both, t, torch.cat([model.encode_negative(""), model.encode_negative("")]), control)
        z = ddim.step(z, (u + guidance * (c - u))[1:], t)
        trajectory.append(z)
    return trajectory
