"""Makes what training is held to: `python make_training.py MICRO OUT [--seed N] [--parts kernels,gradients,...]` (`data/micro data/training`).

Needs torch, diffusers, transformers, peft, safetensors, numpy (PyPI) and the models of make_formats.py and make_sdxl.py in MICRO. All is computed in float64 and
written in float32; README.md says what is in each file.
"""
import argparse
from pathlib import Path

import torch

import training_eight_bit
import training_gradients
import training_kernels
import training_runs

PARTS = {
    "kernels": lambda micro, out, seed: training_kernels.make(out, seed),
    "gradients": training_gradients.make,
    "eight_bit": training_eight_bit.make,
    "runs": training_runs.make,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("micro", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.parts:
        PARTS[part](args.micro, args.out, args.seed)


if __name__ == "__main__":
    main()
