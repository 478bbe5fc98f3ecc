"""Our training beside PyTorch's: a small GPT-2 on a text, from the same weights, with the same settings.

    python -m venv venv && venv/bin/pip install torch==2.15.0 "transformers==5.*" matplotlib
    venv/bin/python benches/curves.py --text input.txt

`interp train` with a learning rate of 0 writes the weights that both start from, with a vocabulary of the text's characters.
Then `interp finetune` and a loop like nanoGPT's around Hugging Face's model learn the same text: same block and batch size, AdamW,
schedule, clipping and validation rows; the order of the training rows is each one's own. Settings are those nanoGPT
gives for a machine without a GPU.
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).parent.parent
SHAPE = dict(n_layer=4, n_head=4, n_embd=128)
BLOCK, BATCH, STEPS, EVERY, ROWS, WARMUP = 64, 12, 2000, 100, 64, 100
RATE, LAST, BETAS, DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0


def interp(*arguments):
    command = ["cargo", "run", "--release", "--quiet", "--", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def setting(**knobs):
    return [part for key, value in knobs.items() for part in ("--set", f"{key}={value}")]


def first_weights(text, start):
    interp("train", "--file", text, "--out", start, "--quiet", *setting(
        tokenizer="characters", **SHAPE, **{"model.block_size": BLOCK}, max_iters=1, learning_rate=0, min_lr=0, seed=7))


def ours(text, start, out, seed):
    interp("finetune", "--model", start, "--file", text, "--out", out, *setting(
        block_size=BLOCK, batch_size=BATCH, micro_batch_size=BATCH // 2, max_iters=STEPS, learning_rate=RATE, min_lr=LAST,
        warmup_iters=WARMUP, beta1=BETAS[0], beta2=BETAS[1], weight_decay=DECAY, grad_clip=CLIP, eval_interval=EVERY,
        eval_rows=ROWS, checkpoint_interval=STEPS, seed=seed))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "validation"]


def theirs(text, start, seed):
    model = transformers.AutoModelForCausalLM.from_pretrained(start)
    model.config.use_cache = False
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    characters = text.read_text()
    cut = int(len(characters) * 0.9)
    train, validation = (torch.tensor(tokenizer(part).input_ids) for part in (characters[:cut], characters[cut:]))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
    length = BLOCK + 1
    room = len(validation) + 1 - length
    held = torch.stack([validation[i * length % room:][:length] for i in range(ROWS)])
    generator = torch.Generator().manual_seed(seed)

    def loss(rows):
        logits = model(rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    curve = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            model.eval()
            with torch.no_grad():
                curve.append((step, loss(held).item()))
            model.train()
        if step == STEPS:
            return curve
        if step < WARMUP:
            rate = RATE * (step + 1) / (WARMUP + 1)
        else:
            rate = LAST + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * (RATE - LAST)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(train) + 1 - length, (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(torch.stack([train[i:i + length] for i in starts])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()


def draw(curves, path):
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, runs), color in zip(curves.items(), ["#2a5bd7", "#d9482b"]):
        for i, curve in enumerate(runs):
            axes.plot(*zip(*curve), color=color, label=name if i == 0 else None, linewidth=1.2, alpha=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss (nats per character)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each for every order of the rows")
    parser.add_argument("--figure", type=pathlib.Path, default=ROOT / "outputs/gallery/curves.png")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        start, out = pathlib.Path(folder) / "start", pathlib.Path(folder) / "out"
        text = arguments.text.resolve()
        first_weights(text, start)
        curves = {
            "interp": [ours(text, start, out / str(seed), seed) for seed in arguments.seeds],
            "PyTorch": [theirs(text, start, seed) for seed in arguments.seeds],
        }
    draw(curves, arguments.figure)
    for name, runs in curves.items():
        for step in (0, STEPS // 2, STEPS):
            losses = [loss for run in runs for at, loss in run if at == step]
            print(f"{name:8} step {step:5}: " + " ".join(f"{loss:.4f}" for loss in losses))


if __name__ == "__main__":
    main()
