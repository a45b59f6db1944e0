"""Makes data/clip_tokens.json.gz: 10,000 odd strings and their CLIP token ids.

`python make_tokens.py [OUT]` with transformers 5 writes the ids of its CLIPTokenizer, without begin, end and padding. With
transformers 4 (which has a tokenizer in Python, "slow", and one in Rust, "fast") it writes nothing: it compares both with
the file and says where they differ.

CLIP's vocabulary comes from nodes/diffusion/data, so nothing is downloaded.
"""
import gzip
import json
import random
import sys
import tempfile
from pathlib import Path

import transformers

HERE = Path(__file__).resolve().parent
MERGES = HERE.parent.parent / "nodes" / "diffusion" / "data" / "clip-merges.txt.gz"
SEED = 6
COUNT = 10_000


def byte_characters():
    """The printable stand-in of every byte, in the order of CLIP's ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary():
    merges = gzip.decompress(MERGES.read_bytes()).decode().splitlines()[1:]
    words = byte_characters()
    words += [c + "</w>" for c in words]
    words += [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


WORDS = (
    "a an the photo of teddy bear on beach in style of van gogh watercolor portrait highly detailed artstation 8k trending "
    "masterpiece best quality donaudampfschifffahrtsgesellschaft antidisestablishmentarianism sks photorealistic cinematic "
    "lighting bokeh unreal engine greg octane render d'artagnan naïve café résumé übermensch ångström señor coöperate zoë "
    "supercalifragilisticexpialidocious hippopotomonstrosesquippedaliophobia"
).split()
CONTRACTIONS = ["I'm", "don't", "we're", "they've", "she'll", "he'd", "it's", "'tis", "rock'n'roll", "Y'ALL'D'VE", "it’s", "'S", "'ll", "''s", "'re're"]
SPECIAL = [
    "</w>", "<|endoftext|>", "<|startoftext|>", "word</w>", "a<|endoftext|>b", "<|EndOfText|>", " <|endoftext|> ", "<|endoftext", "|>", "<w/>", "<cat>", "<s>",
    "&amp;", "&lt;b&gt;", "&quot;x&quot;", "&#39;", "&nbsp;", "&eacute;", "&#x1F600;", "(word:1.2)", "[word]", "\\(", "BREAK", "a:b", "<lora:x:0.5>", "{a|b}", "__wild__",
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u200b", "\ufeff", "\u0085", "\x0b", "\x0c", "\x1c", "\x1f", "\u180e", "\u202f", "\u205f"]
CONTROL = ["\x00", "\x01", "\x07", "\x08", "\x1b", "\x7f", "\u0080", "\u009f", "\u200d", "\u200e", "\u202e", "\ufffd", "\ufffe", "\U000e0001", "\U0010ffff", "\ue000"]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "1️⃣", "❤️", "☃", "✨✨✨", "🐻", "🧸", "©", "™", "🫠"]
COMBINING = ["e\u0301", "a\u0308", "n\u0303", "o\u0302\u0301", "Z\u0351\u0362", "\u0301", "q\u0323\u0307", "\u1e9b\u0323", "한", "\u1112\u1161\u11ab", "\u212b", "\u2126", "\ufb01", "\u0344", "ｆｕｌｌ", "Å", "が", "か\u3099"]
CASES = ["ŒUVRE", "STRASSE", "ẞ", "İstanbul", "ISTANBUL", "ΣΊΣΥΦΟΣ", "ΑΣ", "ǅ", "ЁЛКА", "ԱՐԵՒ", "ᏣᎳᎩ", "Ⅷ", "ⓐⒷ", "K", "ſ", "TeDdY", "McDonald", "iPhone"]
DIGITS = ["1234567890", "3.14159", "1,000,000", "2nd", "x86", "½", "²³", "٣٤٥", "๓๔", "四", "𝟛", "Ⅳ", "1e-5", "0xFF", "f/1.8", "50mm", "16:9", "①", "٠١"]
PUNCTUATION = ["!!!", "...", "…", "—", "–", "“quoted”", "«guillemets»", "¿qué?", "#hash", "@at", "a/b", "a_b", "~`^", "$€£¥", "%", "\\", "||", "((()))", "[[", "://", "-->", "·", "、", "。", "！", "?!?!"]


def script_word(random_):
    ranges = [
        (0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x0400, 0x052F), (0x0370, 0x03FF), (0x0590, 0x05FF), (0x0600, 0x06FF),
        (0x0900, 0x097F), (0x0E00, 0x0E7F), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x2200, 0x22FF), (0x00A0, 0x024F), (0x1E00, 0x1EFF),
        (0x10A0, 0x10FF), (0x1100, 0x11FF), (0xA000, 0xA48C), (0x13A0, 0x13FF), (0xFF00, 0xFFEF), (0x0300, 0x036F), (0x2460, 0x24FF), (0x1D400, 0x1D7FF),
    ]
    low, high = random_.choice(ranges)
    return "".join(chr(random_.randint(low, high)) for _ in range(random_.randint(1, 6)))


def any_character(random_):
    while True:
        c = random_.choice([random_.randint(0, 0x7F), random_.randint(0, 0x2FFF), random_.randint(0, 0xFFFF), random_.randint(0, 0x10FFFF)])
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def long_word(random_):
    alphabet = random_.choice(["abcdefghijklmnopqrstuvwxyz", "aeiou", "ab", "éüß", "!?#", "я"])
    return "".join(random_.choice(alphabet) for _ in range(random_.randint(30, 200)))


def change_case(random_, word):
    return random_.choice([str.upper, str.title, str.swapcase, lambda w: "".join(random_.choice([c.lower(), c.upper()]) for c in w)])(word)


def piece(random_):
    kind = random_.random()
    for share, make in [
        (0.34, lambda: random_.choice(WORDS)), (0.06, lambda: change_case(random_, random_.choice(WORDS))), (0.08, lambda: random_.choice(CONTRACTIONS)),
        (0.07, lambda: random_.choice(SPECIAL)), (0.04, lambda: random_.choice(CONTROL)), (0.07, lambda: random_.choice(EMOJI)),
        (0.06, lambda: random_.choice(COMBINING)), (0.05, lambda: random_.choice(CASES)), (0.06, lambda: random_.choice(DIGITS)),
        (0.07, lambda: random_.choice(PUNCTUATION)), (0.06, lambda: script_word(random_)), (0.03, lambda: any_character(random_)),
    ]:
        if kind < share:
            return make()
        kind -= share
    return "".join(random_.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(random_.randint(1, 9)))


def strings():
    random_ = random.Random(SEED)
    made = ["", " ", "\n", *CONTRACTIONS, *SPECIAL, *SPACES, *CONTROL, *EMOJI, *COMBINING, *CASES, *DIGITS, *PUNCTUATION]
    made += [f"a{space}b" for space in SPACES] + [f"a{c}b" for c in CONTROL]
    made += [long_word(random_) for _ in range(100)]
    seen = dict.fromkeys(made)
    while len(seen) < COUNT:
        text = ""
        for _ in range(random_.randint(1, 6)):
            text += piece(random_) + (random_.choice(SPACES) if random_.random() < 0.15 else random_.choice([" ", " ", " ", ""]))
        seen.setdefault(text)
    return list(seen)


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def compare(file):
    """Says how the two tokenizers of transformers 4 differ from the ids in the file."""
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    cases = json.loads(gzip.decompress(file.read_bytes()))
    vocab, merges = vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        for name, tokenizer in [("slow", CLIPTokenizer.from_pretrained(folder)), ("fast", CLIPTokenizerFast.from_pretrained(folder))]:
            differ = sorted((text for text, ids in cases if plain(tokenizer, text) != ids), key=len)
            print(f"transformers {transformers.__version__} {name}: {len(differ)} of {len(cases)} differ, the shortest: {differ[:60]!a}")


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "data"
    file = out / "clip_tokens.json.gz"
    if int(transformers.__version__.split(".")[0]) < 5:
        compare(file)
        return
    vocab, merges = vocabulary()
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges])
    cases = [[text, plain(tokenizer, text)] for text in strings()]
    text = json.dumps(cases, ensure_ascii=True, separators=(",", ":"))
    file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(cases)} strings, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
