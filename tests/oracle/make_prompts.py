"""Makes data/prompts.json and data/prompts.safetensors: how prompts are read, by the AUTOMATIC1111 web UI itself.

`python make_prompts.py WEBUI [OUT]`: WEBUI is a checkout of that UI, whose own code (prompt_parser.py, sd_hijack_clip.py,
sd_emphasis.py) parses and encodes; nothing of it is here. Needs torch, transformers, safetensors.

- `parsed`: random prompts full of brackets, with CLIP's own ids and weights of every chunk;
- `encoded`: some prompts encoded with the tiny models, by name of the tensor.
"""
import json
import random
import re
import sys
import tempfile
import types
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from make_tokens import vocabulary

HERE = Path(__file__).resolve().parent
SEED = 7
COUNT = 500
ATOMS = (
    "a photo, red, teddy bear, very detailed, (, (, (, ), ), ), [, ], \\(, \\), \\[, \\], \\\\, \\x, \\, :, :1.2), :1.2), :0.5), : 1.3 ), :-1), :+.5), :2.), "
    ":1.2, :b), BREAK, BREAK, BREAKING, _BREAK, BREAK!, 1.5, comma\\,, sunset, 8k, ünïcode 😀, it's, , "
).split(", ") + [",", ", ", " ", "\n", ", "]


def webui(folder):
    """The UI's modules, with stand-ins for the parts of it that reading prompts does not need."""
    sys.path.insert(0, str(folder))
    options = types.SimpleNamespace(emphasis="Original", comma_padding_backtrack=20, CLIP_stop_at_last_layers=1, use_old_emphasis_implementation=False,
                                    textual_inversion_add_hashes_to_infotext=False)
    stubs = {"devices": dict(device="cpu", torch_npu_set_device=lambda: None), "sd_hijack": {}, "shared": dict(opts=options)}
    sys.modules["lark"] = MagicMock()
    import modules

    for name, content in stubs.items():
        module = types.ModuleType(f"modules.{name}")
        module.__dict__.update(content)
        sys.modules[f"modules.{name}"] = module
        setattr(modules, name, module)
    from modules import sd_hijack_clip

    return sd_hijack_clip, options


def embedder(clip, tokenizer, transformer, pad):
    database = types.SimpleNamespace(find_embedding_at_position=lambda tokens, position: (None, None))
    hijack = types.SimpleNamespace(embedding_db=database, extra_generation_params={})
    wrapped = types.SimpleNamespace(tokenizer=tokenizer, transformer=transformer)
    made = clip.FrozenCLIPEmbedderWithCustomWords(wrapped, hijack)
    made.id_pad = pad
    return made


def prompts(random_):
    """Random prompts; some long. What the UI reads otherwise than as brackets (prompt editing, AND) is left out."""
    made = ["", "BREAK", "a BREAK b", "a (b:1.1) [c] d", "((a) [b] c", "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))."]
    made += [f"a, {'b ' * n}, c d e f" for n in (52, 53, 54, 55, 70, 71, 72, 73, 74)]
    made += [", " * 80, "a " * 76, "a " * 75, "a " * 74 + ", b", "a " * 75 + ", b", "BREAK " * 3 + "x"]
    while len(made) < COUNT:
        length = random_.choice([3, 6, 12, 40, 120])
        joint = random_.choice(["", " ", " "])
        made.append(joint.join(random_.choice(ATOMS) for _ in range(random_.randint(1, length))))
    return made


def main():
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "data"
    torch.set_num_threads(1)
    clip, options = webui(sys.argv[1])
    vocab, merges = vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges])
    parser = embedder(clip, tokenizer, None, 0)
    parsed = []
    for prompt in dict.fromkeys(prompts(random.Random(SEED))):
        # A weight multiplied into a BREAK makes the UI read it as the word "BREAK": left out, as we break there.
        pieces = clip.prompt_parser.parse_prompt_attention(prompt)
        # Prompt editing and AND are other features of the UI, which are refused here.
        if any(text == "BREAK" and weight != -1 for text, weight in pieces) or re.search(r":\s*[-+]?[.\d]+\s*\]|\bAND\b", prompt):
            continue
        chunks, _ = parser.tokenize_line(prompt)
        # Only the words: begin, end and padding follow.
        ends = [next(i for i, id in enumerate(c.tokens) if id == parser.id_end) for c in chunks]
        parsed.append([prompt, [[c.tokens[1:end], [float(torch.tensor(w, dtype=torch.float32)) for w in c.multipliers[1:end]]] for c, end in zip(chunks, ends)]])
    tensors, encoded = {}, []
    long = "a photo of a teddy bear on a beach, " * 12
    for family in ("tiny-sd1", "tiny-sd2"):
        folder = HERE / "data" / family
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        transformer = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float64).eval()  # the mean that is restored is near 0 here
        object.__setattr__(transformer, "text_model", transformer)  # its name up to transformers 4
        made = embedder(clip, tokenizer, transformer, tokenizer.pad_token_id)
        for name, skip, pair in [
            ("weights", 1, ["a (teddy bear:1.4) on a [beach]", ""]),
            ("skip", 2, ["a (teddy bear:1.4) on a [beach]", "a red car"]),
            ("chunks", 1, [long + "(sunset:1.3) BREAK [snow]", "a (red:0.2) car"]),
        ]:
            if (family, name) == ("tiny-sd1", "chunks"):
                continue  # it only pads otherwise
            options.CLIP_stop_at_last_layers = skip
            # One at a time: the UI takes the mean that it restores over all prompts of a call.
            count = max(len(made.tokenize_line(p)[0]) for p in pair)
            with torch.no_grad():
                states = [made([p]) for p in pair]
                empty = made([""])
            states = [torch.cat([s, *[empty] * (count - s.shape[1] // 77)], 1) for s in states]
            key = f"{family}.{name}"
            tensors[key] = torch.cat(states).float()
            encoded.append(dict(tensor=key, family=family, clip_skip=skip, prompts=pair))
    (out / "prompts.json").write_text(json.dumps(dict(parsed=parsed, encoded=encoded), separators=(",", ":")))
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "prompts.safetensors")
    print(len(parsed), "prompts,", {k: tuple(v.shape) for k, v in tensors.items()})


if __name__ == "__main__":
    main()
