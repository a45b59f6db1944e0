"""Numbers that a script and a test can both make, so that data files hold results alone."""
import math

import numpy as np
import torch


def formula(name, shape, scale):
    """Numbers in -scale .. scale: murmur3's finaliser of the index plus FNV-1a of the name."""
    salt = 2166136261
    for byte in name.encode():
        salt = (salt ^ byte) * 16777619 % 2**32
    x = (np.arange(math.prod(shape), dtype=np.uint64) + salt) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    x ^= x >> 16
    return torch.from_numpy(((x / 2**32 - 0.5) * 2 * scale).astype(np.float32)).reshape(shape)
