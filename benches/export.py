"""Activation datasets: `interp export` against a loop around Hugging Face's model, as whole programs and as loops.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 "transformers==5.*" pyarrow==26.0.1 numpy==2.4.6
    cargo build --release && venv/bin/python benches/export.py target/release/interp --tokenizer DIR

Makes a GPT-2 of 124M shape with seeded random weights in --model (once; DIR holds GPT-2's tokenizer files) and 16,384
tokens, 128 sequences of 128. Both have two threads and write uncompressed Parquet with a fixed-size list of f32 per site.
Theirs is what one would write: batches of 32, `torch.inference_mode`, no logits, a file per 8 batches, and settings that
make pyarrow fast (no dictionaries, no statistics).

    13 sites       resid_pre.0 and resid_post of every layer; theirs by output_hidden_states, whose last is after ln_f
    resid_post.2   ours ends after that layer; theirs by a forward hook, in the whole model and in one cut to 3 layers
    forward        what a pass alone costs: ours is the export of resid_post.11 alone, theirs writes nothing

`process` is from the start of the program to its end, with imports and loading; `loop` is what the program itself takes
from the first batch to the last file, after loading. What else is in ours: sha256 of every file, mean, variance and norms
of every site, and files that are synced before they count. Before the clock runs, all that both write is compared, and what
is written is pushed to disk between runs. Every round starts each program once, in an order that alternates; one
round warms up. Medians; the last line is everything as JSON.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from side_by_side import make_model

COUNT, LENGTH, BATCH, BATCHES_PER_FILE, WIDTH, THREADS = 128, 128, 32, 8, 768, "2"
LIMITS = {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS, "RAYON_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1"}
SITES = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(12))]
TASKS = {
    "13 sites": {"interp": "resid_pre.0,resid_post.*", "Hugging Face": "hidden_states"},
    "resid_post.2": {"interp": "resid_post.2", "Hugging Face, hook": "hook", "Hugging Face, 3 layers": "cut"},
    "forward": {"interp": "resid_post.11", "Hugging Face": "forward"},
}


# Theirs: `export.py worker KIND MODEL TOKENS OUT` prints the seconds of its loop.


def write(columns, ids, first, path):
    """A file of rows: sequence, position, token id and a list of f32 per site."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.arange(ids.size, dtype=np.uint32)
    table = {"prompt": first + rows // LENGTH, "pos": rows % LENGTH, "token_id": ids.reshape(-1).astype(np.uint32)}
    for name, parts in columns.items():
        values = np.concatenate([part.numpy().reshape(-1) for part in parts])
        table[name] = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
    pq.write_table(pa.table(table), path, compression="none", use_dictionary=False, write_statistics=False)


def worker(kind, model, tokens, out):
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(int(THREADS))
    model = transformers.GPT2Model.from_pretrained(model, dtype=torch.float32).eval()
    ids = np.fromfile(tokens, np.uint16).reshape(COUNT, LENGTH)
    seen = []
    if kind == "cut":
        model.h = model.h[:3]
    if kind in ("hook", "cut"):
        keep = lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        model.h[2].register_forward_hook(keep)
    start = time.perf_counter()
    columns, first = {}, 0
    with torch.inference_mode():
        for at in range(0, COUNT, BATCH):
            batch = torch.from_numpy(ids[at : at + BATCH].astype(np.int64))
            output = model(batch, use_cache=False, output_hidden_states=kind == "hidden_states")
            if kind == "hidden_states":
                for name, values in zip(SITES, output.hidden_states, strict=True):
                    columns.setdefault(name, []).append(values)
            elif kind != "forward":
                columns.setdefault("resid_post.2", []).append(seen.pop())
            end = at + BATCH
            if columns and (end == COUNT or (end - first) // BATCH == BATCHES_PER_FILE):
                write(columns, ids[first:end], first, out / f"part-{first // BATCH:05d}.parquet")
                columns, first = {}, end
    print(time.perf_counter() - start)


# Ours, and the comparison.


def run(command, rows):
    """Seconds of the process and of its loop, and its greatest memory."""
    os.sync()
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=os.environ | LIMITS)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{said}")
    if "worker" in command:
        loop = float(said.split()[-1])
    else:
        loop = rows / float(re.search(r" rows in .* s, ([0-9.]+) per second", said)[1])
    return {"process": seconds, "loop": loop, "memory": usage.ru_maxrss * 1024}


def command_of(args, name, what, out):
    if name != "interp":
        return [sys.executable, __file__, "worker", what, args.model, args.tokens, out]
    text = ["--file", args.tokens, "--pack", "--context", LENGTH, "--bos", "no"]
    return [args.interp, "export", "--model", args.model, "--device", "cpu", "--site", what, *text, "--out", out]


def matrices(folder, sites):
    """Values of all parts, in order of sequence and position."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(sorted(folder.glob("part-*.parquet")), columns=["prompt", "pos", "token_id", *sites])
    assert (table["prompt"].to_numpy() == np.repeat(np.arange(COUNT), LENGTH)).all()
    assert (table["pos"].to_numpy() == np.tile(np.arange(LENGTH), COUNT)).all()
    values = {s: np.concatenate([c.flatten().to_numpy() for c in table[s].chunks]).reshape(-1, WIDTH) for s in sites}
    return table["token_id"].to_numpy(), values


def compare(task, *folders):
    """The largest difference between what two programs wrote, in units of each site's own size."""
    import numpy as np

    # Hugging Face's last hidden state is another one: after the final LayerNorm.
    sites = SITES[:-1] if task == "13 sites" else [task]
    (ours, *others), worst = [matrices(pathlib.Path(folder), sites) for folder in folders], 0.0
    for theirs in others:
        assert (ours[0] == theirs[0]).all(), "other tokens"
        for site in sites:
            a, b = ours[1][site], theirs[1][site]
            worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    print(f"{task}: same rows, tokens and values; the largest difference is {worst:.1e}", flush=True)
    assert worst < 1e-4, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interp", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="needed to make the model")
    parser.add_argument("--model", default=pathlib.Path(tempfile.gettempdir()) / "gpt2-124m-random", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not (args.model / "model.safetensors").exists():
        if not args.tokenizer:
            parser.error(f"there is no model in {args.model}; --tokenizer is needed to make one")
        make_model(args.model, args.tokenizer)
    vocab = json.loads((args.model / "config.json").read_text())["vocab_size"]
    contenders = [(task, name, what) for task, all_ in TASKS.items() for name, what in all_.items()]
    results = {(task, name): [] for task, name, _ in contenders}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        args.tokens = scratch / "tokens.bin"
        args.tokens.write_bytes(b"".join((i * 7919 % vocab).to_bytes(2, "little") for i in range(COUNT * LENGTH)))
        for round_ in range(-1, args.rounds):
            for task, name, what in contenders if round_ % 2 else reversed(contenders):
                out = scratch / task / name
                if name != "interp":
                    out.mkdir(parents=True)
                measured = run(command_of(args, name, what, out), COUNT * LENGTH)
                if round_ >= 0:
                    results[task, name].append(measured)
                    shutil.rmtree(out)
            if round_ < 0:
                for task, names in TASKS.items():
                    if task != "forward":
                        # In a process of its own: a process is charged with the memory of the one that started it.
                        folders = [scratch / task / name for name in names]
                        subprocess.run([sys.executable, __file__, "compare", task, *folders], check=True)
                    shutil.rmtree(scratch / task)

    middle = {
        key: {kind: statistics.median(one[kind] for one in all_) for kind in ("process", "loop", "memory")}
        for key, all_ in results.items()
    }
    print("\n| | | process | loop | tokens/s in the loop | of its own forward | memory |")
    print("|---|---|---|---|---|---|---|")
    for task, name, _ in contenders:
        own, ours = middle[task, name], middle[task, "interp"]
        ratio = lambda kind: "" if name == "interp" else f" ({own[kind] / ours[kind]:.2f}×)"
        base = middle["forward", name.split(",")[0]]["loop"]
        print(
            f"| {task} | {name} | {own['process']:.2f} s{ratio('process')} | {own['loop']:.2f} s{ratio('loop')} "
            f"| {COUNT * LENGTH / own['loop']:.0f} | {100 * base / own['loop']:.0f} % | {own['memory'] / 1e6:.0f} MB |"
        )
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "pyarrow", "numpy")}
    print(json.dumps({
        "tokens": COUNT * LENGTH, "length": LENGTH, "threads": int(THREADS), "rounds": args.rounds,
        "machine": platform.machine(), "python": platform.python_version(), **versions,
        "seconds": [{"task": task, "program": name, "runs": all_} for (task, name), all_ in results.items()],
    }))


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        compare(*sys.argv[2:])
    elif sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], *map(pathlib.Path, sys.argv[3:]))
    else:
        main()
