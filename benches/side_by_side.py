"""Ours against Hugging Face, TransformerLens and a naive candle forward, on the same weights and the same threads.

    python -m venv new && new/bin/pip install torch==2.15.0 "transformers==5.*" "transformer_lens==4.3.*"
    python -m venv old && old/bin/pip install torch==2.15.0 "transformers==4.*" transformer_lens==2.16.1
    new/bin/python benches/side_by_side.py --new new/bin/python --old old/bin/python --tokenizer DIR

Makes a GPT-2 of 124M shape with seeded random weights in --model (once), checks that every site and the logits agree
with TransformerLens and Hugging Face, then times: every round asks each contender once, in an order that alternates,
and the table shows medians and ratios to ours. `generate` writes T tokens after 15 with a cache; `step` is a
training step on one row of T tokens (nanoGPT's loop around Hugging Face's model). The
sweeps patch between two prompts of 15 tokens that differ in one; between the same two, `atp` attributes all nodes, `eap_ig` all edges in
five steps, and `edge` is the time of one edge that is tried. DIR holds GPT-2's tokenizer files; only the bridge asks for them.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
GRADED = ["atp", "eap_ig", "edge"]
SWEEPS = ["resid_pre", "attn_head_out_all_pos", "attn_head_out_by_pos"]
THREADS = {"OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


def make_model(directory, tokenizer):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + noise if "ln_" in name and name.endswith("weight") else noise
    model.save_pretrained(directory)
    for file in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / file).exists():
            shutil.copy(tokenizer / file, directory / file)


def our_worker():
    """The path of the benchmark binary, built if need be."""
    command = ["cargo", "bench", "--bench", "forward", "--no-run", "--message-format", "json"]
    output = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout
    messages = [json.loads(line) for line in output.splitlines()]
    return next(m["executable"] for m in messages if m.get("target", {}).get("name") == "forward" and m["executable"])


class Contender:
    def __init__(self, name, command, tasks, **env):
        self.name, self.tasks = name, tasks
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | THREADS | env,
        )
        while (line := self.process.stdout.readline()) != "ready\n":
            if not line:
                sys.exit(f"{name} did not start: {' '.join(map(str, command))}")

    def ask(self, *request):
        self.process.stdin.write(" ".join(map(str, request)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} failed at {request}")
        return float(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(ours, theirs, length):
    """The largest difference over all sites, in units of each site's own size (its largest magnitude, at least 1)."""
    import safetensors.torch

    with tempfile.TemporaryDirectory() as scratch:
        files = [pathlib.Path(scratch) / name for name in ("ours", "theirs")]
        for contender, file in zip((ours, theirs), files):
            contender.ask("capture", length, file)
        a, b = (safetensors.torch.load_file(file) for file in files)
    shared = sorted(a.keys() & b.keys())
    worst = ("", 0.0)
    for name in shared:
        x, y = a[name].double(), b[name].double()
        finite = y.isfinite()
        assert x.shape == y.shape and (finite == x.isfinite()).all(), name
        difference = ((x - y)[finite].abs().max() / max(1.0, y[finite].abs().max())).item()
        worst = max(worst, (name, difference), key=lambda pair: pair[1])
    print(f"T={length}: {len(shared)} sites agree with {theirs.name}; largest difference {worst[1]:.1e} at {worst[0]}")
    assert worst[1] < 1e-4 and len(shared) > 150, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", required=True, help="python with transformers 5 and transformer_lens 4")
    parser.add_argument("--old", required=True, help="python with transformers 4 and transformer_lens 2")
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path)
    parser.add_argument("--model", default=pathlib.Path(tempfile.gettempdir()) / "gpt2-124m-random", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lengths", type=int, nargs="+", default=[15, 128, 1024])
    parser.add_argument("--tasks", nargs="+", choices=["forward", "capture", "generate", "step", *SWEEPS, *GRADED])
    args = parser.parse_args()
    if not (args.model / "model.safetensors").exists():
        make_model(args.model, args.tokenizer)
    worker, both = our_worker(), ["forward", "capture"]
    everything = {"forward": args.lengths, "capture": args.lengths, "generate": [64], "step": [128, 512]}
    everything |= {task: [15] for task in SWEEPS + GRADED}
    contenders = [
        Contender("interp", [worker, "ours", args.model], list(everything)),
        Contender("candle, naive", [worker, "naive", args.model], both),
        Contender("Hugging Face", [args.new, HERE / "peer.py", "hf", args.model], ["forward", "generate", "step"]),
        Contender("TransformerLens 2.16", [args.old, HERE / "peer.py", "hooked", args.model], both + SWEEPS + GRADED),
        Contender("TransformerLens 4.3 bridge", [args.new, HERE / "peer.py", "bridge", args.model], both + SWEEPS + ["atp"]),
    ]
    for length in (1, 15, 128):
        compare(contenders[0], contenders[3], length)
    print("\n| | T | " + " | ".join(c.name for c in contenders) + " |")
    print("|---|---|" + "---|" * len(contenders))
    for task in args.tasks or everything:
        for length in everything[task]:
            racing = [c for c in contenders if task in c.tasks]
            times = {c.name: [] for c in racing}
            # Two rounds to warm up; a sweep is many runs already, and takes minutes elsewhere.
            for round_ in range(1) if task in SWEEPS else range(-2, args.rounds):
                for contender in racing if round_ % 2 else reversed(racing):
                    seconds = contender.ask(task, length)
                    if round_ >= 0:
                        times[contender.name].append(seconds)
            median = {name: statistics.median(values) for name, values in times.items()}
            cell = lambda m: f"{1e3 * m:.1f} ms" + ("" if m == median["interp"] else f" ({m / median['interp']:.2f}×)")
            cells = [cell(median[c.name]) if c.name in median else "–" for c in contenders]
            print(f"| {task} | {length} | " + " | ".join(cells) + " |", flush=True)
    for contender in contenders:
        contender.close()


if __name__ == "__main__":
    main()
