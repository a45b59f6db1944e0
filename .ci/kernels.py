"""Compiles CUDA sources as the program does (NVRTC, to PTX) and then for each card (ptxas); prints the registers of
each kernel. `kernels.py TOOLKIT SOURCE`. Fails when one cannot be compiled, spills registers, or keeps numbers in local memory."""

import ctypes
import re
import subprocess
import sys
import tempfile

CARDS = {"sm_75": "T4, RTX 20", "sm_80": "A100", "sm_86": "RTX 30", "sm_89": "RTX 40, L4", "sm_90": "H100, H200", "sm_120": "RTX 50"}


def ptx(toolkit, source):
    nvrtc = ctypes.CDLL(f"{toolkit}/lib/libnvrtc.so.13")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None) == 0
    result = nvrtc.nvrtcCompileProgram(program, 0, None)
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    if result != 0 or log.value.strip():
        sys.exit(f"NVRTC: {log.value.decode()}")
    assert nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetPTX(program, text) == 0
    return text.value


def main(toolkit, path):
    with open(path, "rb") as file:
        text = ptx(toolkit, file.read())
    spilling = 0
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(text)
        file.flush()
        for card, cards in CARDS.items():
            command = [f"{toolkit}/bin/ptxas", "-v", f"-arch={card}", file.name, "-o", "/dev/null"]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode != 0:
                sys.exit(f"ptxas {card}: {said.stderr}")
            found = re.findall(r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", said.stderr, re.S)
            assert found, said.stderr
            bad = {name for name, *memory, _ in found if memory != ["0"] * 3}
            print(f"{card} ({cards}): " + ", ".join(f"{name} {registers} registers{' AND MEMORY' if name in bad else ''}" for name, *_, registers in sorted(found)))
            spilling += len(bad)
    if spilling:
        sys.exit(f"{spilling} kernels spill registers or keep numbers in local memory")


main(*sys.argv[1:])
