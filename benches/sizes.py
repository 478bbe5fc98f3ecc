"""Loads all four GPT-2 shapes, with random weights made on the spot, and measures `interp attention` on each.

    cargo build --release && python3 benches/sizes.py --tokenizer DIR [--keep DIR]

Needs 7 GB of disk for the largest. Only the standard library is used: the files are written by hand, so that nothing
but the program under test holds them in memory. DIR holds GPT-2's vocab.json and merges.txt.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
SHAPES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
VOCAB, POSITIONS = 50257, 1024
PROMPT = "When Mary and John went to the shop, John gave a drink to"


def tensors(layers, width):
    yield "wte.weight", (VOCAB, width)
    yield "wpe.weight", (POSITIONS, width)
    for layer in range(layers):
        for norm in ("ln_1", "ln_2"):
            yield f"h.{layer}.{norm}.weight", (width,)
            yield f"h.{layer}.{norm}.bias", (width,)
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width),
        ):
            yield f"h.{layer}.{name}.weight", (rows, columns)
            yield f"h.{layer}.{name}.bias", (columns,)
    yield "ln_f.weight", (width,)
    yield "ln_f.bias", (width,)


def write_model(directory, layers, heads, width):
    header, offset = {}, 0
    for name, shape in tensors(layers, width):
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(0)
    noise = struct.pack("<65536f", *(rng.gauss(0, 0.02) for _ in range(65536)))
    ones = struct.pack("<1f", 1.0)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(layers, width):
            begin, end = header[name]["data_offsets"]
            if "ln_" in name and name.endswith("weight"):
                file.write(ones * shape[0])
                continue
            left = end - begin
            while left:
                # A start that differs from piece to piece, so that tensors differ.
                start = 4 * rng.randrange(32768)
                piece = noise[start : start + min(left, 131072)]
                file.write(piece)
                left -= len(piece)
    config = {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": width, "vocab_size": VOCAB}
    config |= {"n_positions": POSITIONS, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    (directory / "config.json").write_text(json.dumps(config))


def run(binary, directory, *more):
    """Wall seconds and peak bytes of a command on the model, from a child of its own."""
    command = [binary, *more, "--model", directory, "--prompt", PROMPT, "--out", directory / "out", "--offline", "-q"]
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path)
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binary = target / "release/interp"
    print("| shape | file | `attention` | first run | loading | peak memory | peak ÷ file |")
    print("|---|---|---|---|---|---|---|")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            directory = pathlib.Path(scratch)
            write_model(directory, *SHAPES[size])
            for file in ("vocab.json", "merges.txt"):
                shutil.copy(args.tokenizer / file, directory)
            runs = [run(binary, directory, "attention", "--layer", "5") for _ in range(args.rounds)]
            record = json.loads((directory / "out/run.json").read_text())
            bytes_ = (directory / "model.safetensors").stat().st_size
            best, peak = min(seconds for seconds, _ in runs), max(peak for _, peak in runs)
            load = record["seconds"]["load"]
            print(
                f"| {size} | {bytes_ / 1e6:.0f} MB | {best:.2f} s | {runs[0][0]:.2f} s | {load:.2f} s "
                f"| {peak / 1e6:.0f} MB | {peak / bytes_:.2f} |",
                flush=True,
            )


main()
