"""Eight-bit optimiser states: `eight_bit.safetensors` of make_training.py, in numpy, after Dettmers et al. 2021 (arXiv 2110.02861).

A code stands for a number in [-1, 1] (first moments) or [0, 1] (second moments): a power of ten, told by the count of leading zero bits, times a fraction,
told by the bits that are left. The fractions of one exponent are the middles of equal parts of [0.1, 1]. Zero and one have a code of their own.
"""
import numpy as np
import torch

from training_book import Book

BLOCK, EXPONENTS = 256, 7
RATE, BETAS, EPSILON, DECAY, STEPS = 1e-2, (0.9, 0.999), 1e-8, 1e-2, 5


def dynamic_map(signed):
    """The 256 numbers in rising order, float32."""
    values = [0.0, 1.0]
    for i in range(EXPONENTS):
        parts = 2**i if signed else 2 ** (i + 1)
        fractions = 0.1 + 0.9 * (np.arange(parts) + 0.5) / parts
        values += list(10.0 ** (i - EXPONENTS + 1) * fractions) + (list(-(10.0 ** (i - EXPONENTS + 1)) * fractions) if signed else [])
    assert len(values) == 256
    return np.sort(np.array(values)).astype(np.float32)


def quantise(x, table):
    """Codes (the nearest number of x / absmax) and the absmax of every block of 256 of the flat tensor; the last block may be shorter."""
    flat = x.astype(np.float32).ravel()
    codes, largest = np.empty(flat.size, np.uint8), []
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        most = np.abs(block).max()
        scaled = block / most if most > 0 else block
        codes[start : start + BLOCK] = np.abs(scaled[:, None] - table[None]).argmin(1)
        largest.append(most)
    return codes.reshape(x.shape), np.array(largest, np.float32)


def dequantise(codes, largest, table):
    return (table[codes.ravel()] * np.repeat(largest, BLOCK)[: codes.size]).reshape(codes.shape)


def adamw(start, gradients, signed, unsigned):
    """AdamW as torch's, with both moments kept in eight bits between steps; the step itself uses the moments before they are rounded."""
    p = start.astype(np.float64)
    m, v = (quantise(np.zeros_like(start), t) for t in (signed, unsigned))
    for t, g in enumerate(gradients.astype(np.float64), 1):
        first = BETAS[0] * dequantise(*m, signed) + (1 - BETAS[0]) * g
        second = BETAS[1] * dequantise(*v, unsigned) + (1 - BETAS[1]) * g * g
        p *= 1 - RATE * DECAY
        p -= RATE / (1 - BETAS[0] ** t) * first / (np.sqrt(second / (1 - BETAS[1] ** t)) + EPSILON)
        m, v = quantise(first, signed), quantise(second, unsigned)
    return p, m, v


def make(_, out, seed):
    random = np.random.default_rng(seed + 76)
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    book = Book(block=BLOCK, rate=RATE, betas=BETAS, epsilon=EPSILON, weight_decay=DECAY)
    put = lambda prefix, **arrays: book.put(prefix, {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in arrays.items()})
    put("map", signed=signed, unsigned=unsigned)
    # Numbers over many powers of ten, three whole blocks and a short one of zeros and one number.
    x = (random.standard_normal((3, 300)) * 10.0 ** random.uniform(-6, 0, (3, 300))).astype(np.float32)
    x.ravel()[768:] = 0
    x.ravel()[800] = -3e-4
    for name, table, values in (("signed", signed, x), ("unsigned", unsigned, x * x)):
        codes, largest = quantise(values, table)
        put(name, x=values, codes=codes, absmax=largest, back=dequantise(codes, largest, table))
    start, gradients = random.standard_normal((3, 300)).astype(np.float32), random.uniform(0.5, 1.5, (STEPS, 3, 300)).astype(np.float32)
    # Within a block the squares span less than the map's 3e-7: a second moment that is rounded to zero would make of the first one a step without bounds.
    gradients *= (random.choice([-1, 1], (STEPS, 3, 300)) * 10.0 ** random.uniform(-1.5, 0, (3, 300))).astype(np.float32)
    p, (m, m_largest), (v, v_largest) = adamw(start, gradients, signed, unsigned)
    put("adamw", start=start, gradients=gradients, final=p, first=dequantise(m, m_largest, signed), second=dequantise(v, v_largest, unsigned))
    whole = torch.nn.Parameter(torch.from_numpy(start).double())
    optimizer = torch.optim.AdamW([whole], lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    for g in torch.from_numpy(gradients).double():
        whole.grad = g
        optimizer.step()
    book.put("adamw", {"final_without": whole})
    print(f"  eight bits differ by {np.abs(p - whole.detach().numpy()).max() / RATE:.2f} steps after {STEPS}, {np.abs(p - whole.detach().numpy()).mean() / RATE:.3f} on average")
    book.write(out / "eight_bit.safetensors")
