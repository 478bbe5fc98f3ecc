"""Ours on a GPU against PyTorch there, on the same random weights: for a machine that has both and no network.

    python3 benches/gpu.py WORKER INTERP --out DIR [--sizes gpt2 gpt2-xl] [--rounds 5] [--device cuda]

WORKER is what `cargo bench --no-run --bench forward --features cuda` built, INTERP the binary. It writes gpu.json and gpu.md into DIR,
and begins nothing after --minutes: what is left out is named. Hugging Face takes part where its transformers are installed. The rest of PyTorch's
side is in this file: GPT-2 as nanoGPT writes it, because TransformerLens may not be there, in three ways to use it:

    fused     scaled_dot_product_attention, and GELU as one operation
    hooked    attention in steps with a hook at every place that we call a site, as TransformerLens runs it
    nanoGPT   the training step: autocast to bf16, fused AdamW, clipping, compiled

What is timed ends when the device is done. Contenders of a task take turns, in an order that alternates; medians, after two rounds
to warm up, and fewer rounds where one takes long. A task that a contender fails is reported with its last words. First `interp doctor --gpu` holds the GPU against the CPU,
and measures its products and copies: of those ceilings the table gives our share.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time

SHAPES = {
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600),
    "small": dict(n_layer=2, n_head=2, n_embd=64),  # to try this script without a GPU
}
VOCAB, POSITIONS = 50257, 1024


# The model that both read.


def shapes(n_layer, n_head, n_embd):
    yield "wte.weight", (VOCAB, n_embd)
    yield "wpe.weight", (POSITIONS, n_embd)
    for layer in range(n_layer):
        for name, shape in [
            ("ln_1.weight", (n_embd,)), ("ln_1.bias", (n_embd,)),
            ("attn.c_attn.weight", (n_embd, 3 * n_embd)), ("attn.c_attn.bias", (3 * n_embd,)),
            ("attn.c_proj.weight", (n_embd, n_embd)), ("attn.c_proj.bias", (n_embd,)),
            ("ln_2.weight", (n_embd,)), ("ln_2.bias", (n_embd,)),
            ("mlp.c_fc.weight", (n_embd, 4 * n_embd)), ("mlp.c_fc.bias", (4 * n_embd,)),
            ("mlp.c_proj.weight", (4 * n_embd, n_embd)), ("mlp.c_proj.bias", (n_embd,)),
        ]:
            yield f"h.{layer}.{name}", shape
    yield "ln_f.weight", (n_embd,)
    yield "ln_f.bias", (n_embd,)


def make_model(directory, shape):
    """Weights drawn as GPT-2 begins, as Hugging Face stores them."""
    import torch

    generator, header, at, values = torch.Generator().manual_seed(0), {}, 0, []
    for name, dims in shapes(**shape):
        value = 0.02 * torch.randn(dims, generator=generator)
        if name.split(".")[-2].startswith("ln_") and name.endswith("weight"):
            value += 1
        header[name] = {"dtype": "F32", "shape": list(dims), "data_offsets": [at, at + 4 * value.numel()]}
        at += 4 * value.numel()
        values.append(value)
    header["__metadata__"] = {"format": "pt"}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in values:
            file.write(value.numpy().tobytes())
    config = dict(model_type="gpt2", vocab_size=VOCAB, n_positions=POSITIONS, activation_function="gelu_new", **shape)
    (directory / "config.json").write_text(json.dumps(config))


# PyTorch's side: `gpu.py worker KIND DIR DEVICE TYPE` prints `ready`, then a time for every request.


def worker(kind, directory, device, dtype):
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    ids = lambda length, rows=1: torch.tensor([[(i * 7919 + 13) % VOCAB for i in range(length)]] * rows, device=device)
    if kind == "Hugging Face":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.set_grad_enabled(False)
        return serve(hugging_face(directory, device, getattr(torch, dtype), ids), wait)
    config = json.loads((directory / "config.json").read_text())
    layers, heads, width = config["n_layer"], config["n_head"], config["n_embd"]
    data = (directory / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, state = json.loads(data[8 : 8 + size]), {}
    header.pop("__metadata__")
    for name, entry in header.items():
        begin, end = (8 + size + at for at in entry["data_offsets"])
        state[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(entry["shape"])
    exact = kind == "nanoGPT"  # trains f32 weights under autocast
    kept = torch.float32 if exact else getattr(torch, dtype)
    torch.backends.cuda.matmul.allow_tf32 = exact
    weights = {name: value.to(device, kept) for name, value in state.items()}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.names = {name: name.replace(".", "_") for name in weights}
            for name, value in weights.items():
                self.register_parameter(self.names[name], torch.nn.Parameter(value))

        def forward(self, ids, hook=lambda name, value: value, past=None, logits="all"):
            get = lambda name: getattr(self, self.names[name])
            rows, count = ids.shape
            before = past[0][0].shape[2] if past and past[0] is not None else 0
            x = hook("embed", F.embedding(ids, get("wte.weight")))
            x = x + hook("pos_embed", get("wpe.weight")[before : before + count].expand(rows, -1, -1))
            for layer in range(layers):
                own = lambda name: get(f"h.{layer}.{name}")
                at = lambda name, value: hook(f"{name}.{layer}", value)
                x = at("resid_pre", x)
                n = self.norm(x, own("ln_1.weight"), own("ln_1.bias"), lambda name, value: at("ln1_" + name, value))
                qkv = F.linear(n, own("attn.c_attn.weight").T, own("attn.c_attn.bias")).view(rows, count, 3, heads, -1)
                q, k, v = (at(name, qkv[:, :, i]).transpose(1, 2) for i, name in enumerate("qkv"))
                if past is not None:
                    if past[layer] is not None:
                        k, v = torch.cat([past[layer][0], k], 2), torch.cat([past[layer][1], v], 2)
                    past[layer] = (k, v)
                if hook is quiet:
                    z = F.scaled_dot_product_attention(q, k, v, is_causal=before == 0).transpose(1, 2)
                else:
                    scores = q @ k.transpose(2, 3) / (width // heads) ** 0.5
                    mask = torch.ones(count, count, dtype=torch.bool, device=ids.device).tril()
                    scores = at("attn_scores", scores.masked_fill(~mask, -torch.inf))
                    z = (at("pattern", scores.softmax(-1)) @ v).transpose(1, 2)
                z = at("z", z).reshape(rows, count, width)
                x = at("resid_mid", x + at("attn_out", F.linear(z, own("attn.c_proj.weight").T, own("attn.c_proj.bias"))))
                n = self.norm(x, own("ln_2.weight"), own("ln_2.bias"), lambda name, value: at("ln2_" + name, value))
                inner = at("pre", F.linear(n, own("mlp.c_fc.weight").T, own("mlp.c_fc.bias")))
                inner = at("post", F.gelu(inner, approximate="tanh"))
                x = at("resid_post", x + at("mlp_out", F.linear(inner, own("mlp.c_proj.weight").T, own("mlp.c_proj.bias"))))
            if logits == "none":
                return x
            if logits == "last":
                x = x[:, -1:]
            x = self.norm(x, get("ln_f.weight"), get("ln_f.bias"), lambda name, value: hook("ln_final_" + name, value))
            return F.linear(x, get("wte.weight"))

        def norm(self, x, gain, bias, hook):
            if kind != "hooked":
                return F.layer_norm(x, (width,), gain, bias, 1e-5)
            x = x - x.mean(-1, keepdim=True)
            scale = hook("scale", (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
            return hook("normalized", x / scale) * gain + bias

    quiet = Model.forward.__defaults__[0]
    model = Model().to(device)

    def forward(length, rows):
        model(ids(length, rows))

    def capture(length, rows):
        cache = {}

        def keep(name, value):
            cache[name] = value
            return value

        model(ids(length, rows), keep)

    def generate(length, rows):
        past, text = [None] * layers, ids(15)
        token = model(text, past=past, logits="last").argmax(-1)
        for _ in range(length - 1):
            token = model(token, past=past, logits="last").argmax(-1)

    def resid_pre(length, rows):
        clean, cache = ids(length), {}
        corrupt = clean.clone()
        corrupt[0, 2 * length // 3] += 1

        def keep(name, value):
            cache[name] = value
            return value

        model(clean, keep)
        effects = torch.zeros(layers, length)
        for layer in range(layers):
            for pos in range(length):

                def patch(name, value):
                    if name == f"resid_pre.{layer}":
                        value = value.clone()
                        value[:, pos] = cache[name][:, pos]
                    return value

                logits = model(corrupt, patch)[0, -1]
                effects[layer, pos] = (logits[3] - logits[8]).item()

    def export(length, rows):
        kept = []

        def keep(name, value):
            if name.startswith("resid_post."):
                kept.append(value.float().to("cpu"))
            return value

        model(ids(length, rows), keep, logits="none")

    trained = {}

    def step(length, rows):
        if not trained:
            decay = [p for p in model.parameters() if p.dim() >= 2]
            rest = [p for p in model.parameters() if p.dim() < 2]
            groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
            fused = device.startswith("cuda")
            trained["optimizer"] = torch.optim.AdamW(groups, lr=3e-5, betas=(0.9, 0.95), fused=fused)
            trained["model"] = torch.compile(model) if fused else model
        batch = ids(length + 1, rows)
        with torch.enable_grad(), torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            logits = trained["model"](batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trained["optimizer"].step()
        trained["optimizer"].zero_grad(set_to_none=True)
        loss.item()

    torch.set_grad_enabled(kind == "nanoGPT")
    serve(dict(forward=forward, capture=capture, generate=generate, resid_pre=resid_pre, export=export, step=step), wait)


def hugging_face(directory, device, dtype, ids):
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(directory).eval().to(device, dtype)

    def generate(length, rows):
        text = ids(15, rows)
        model.generate(
            text, attention_mask=text * 0 + 1, do_sample=False, max_new_tokens=length, min_new_tokens=length, eos_token_id=[], pad_token_id=0
        )

    return dict(forward=lambda length, rows: model(ids(length, rows), use_cache=False).logits, generate=generate)


def serve(tasks, wait):
    print("ready", flush=True)
    for line in sys.stdin:
        task, length, *_ = line.split()
        length, _, rows = length.partition("×")
        wait()
        start = time.perf_counter()
        tasks[task](int(length), int(rows or 1))
        wait()
        print(time.perf_counter() - start, flush=True)


# The race.


class Contender:
    def __init__(self, name, command):
        self.name, self.errors = name, tempfile.TemporaryFile("w+")
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env
        )
        self.alive = self.line() == "ready"

    def line(self):
        return self.process.stdout.readline().strip()

    def ask(self, *request):
        if not self.alive:
            return None
        try:
            self.process.stdin.write(" ".join(map(str, request)) + "\n")
            self.process.stdin.flush()
            return float(self.line())
        except (ValueError, BrokenPipeError):
            self.alive = False
            return None

    def last_words(self):
        self.errors.seek(0)
        return self.errors.read().strip().splitlines()[-3:]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# Task, size of its request, type, and who takes part beside us.
HF = ["Hugging Face"] if importlib.util.find_spec("transformers") else []
TASKS = [
    ("forward", "1024×16", "bfloat16", ["fused", *HF]),
    ("forward", "1024×16", "float32", ["fused", *HF]),
    ("forward", "15", "float32", ["fused", "hooked", *HF]),
    ("capture", "128×8", "float32", ["hooked"]),
    ("resid_pre", "15", "float32", ["hooked"]),
    ("generate", "128", "float32", ["fused", *HF]),
    ("export", "1024×16", "float32", ["hooked"]),
    ("step", "1024×8", "bfloat16", ["nanoGPT"]),
]


# Seconds after which a task gets no further round.
PATIENCE = 30


def race(args, size, directory, deadline):
    rows = []
    for task, request, dtype, peers in TASKS:
        if args.tasks and task not in args.tasks:
            continue
        if time.monotonic() > deadline:
            print(f"left out for want of time: {task} of {size} in {dtype}", flush=True)
            continue
        request = args.request or request
        short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        commands = {"interp": [args.worker, "ours", directory, args.device, short]}
        commands |= {
            peer: [sys.executable, __file__, "worker", peer, directory, args.device, dtype] for peer in peers
        }
        contenders = [Contender(name, command) for name, command in commands.items()]
        times, start = {contender.name: [] for contender in contenders}, time.monotonic()
        for turn in range(-2, args.rounds):
            if turn > 0 and time.monotonic() > min(start + PATIENCE, deadline):
                break
            for contender in contenders if turn % 2 else reversed(contenders):
                seconds = contender.ask(task, request)
                if seconds is not None and turn >= 0:
                    times[contender.name].append(seconds)
        medians = {name: statistics.median(own) if own else None for name, own in times.items()}
        failed = {c.name: c.last_words() for c in contenders if not c.alive}
        rows.append(dict(size=size, task=task, request=request, dtype=dtype, medians=medians, runs=times, failed=failed))
        for contender in contenders:
            contender.close()
        print(json.dumps(rows[-1]), flush=True)
    return rows


def share(row, seconds, doctor):
    """The part that we reach of what the device can do, as doctor measured it: of its products' speed, or of what bounds a task instead."""
    speeds = {speed["what"]: speed["value"] for speed in (doctor or {}).get("speeds", [])}
    find = lambda *words: next((value for what, value in speeds.items() if all(word in what for word in words)), None)
    shape, (length, _, rows) = SHAPES[row["size"]], row["request"].partition("×")
    length, rows, layers, width = int(length), int(rows or 1), shape["n_layer"], shape["n_embd"]
    weights = 12 * layers * width**2 + VOCAB * width
    flops = 2 * rows * length * weights + 2 * layers * rows * length**2 * width  # of attention those that causality leaves
    if row["task"] in ("forward", "capture"):
        amount, ceiling, of = flops / 1e12, find("product", row["dtype"].replace("float", "f")), "products"
    elif row["task"] == "step":
        amount, ceiling, of = 3 * flops / 1e12, find("product", "bf16"), "products"
    elif row["task"] == "generate":
        amount, ceiling, of = length * 4 * weights / 1e9, find("copy on"), "memory"
    elif row["task"] == "export":
        amount, ceiling, of = 4 * rows * length * layers * width / 1e9, find("copy from"), "copies to the host"
    else:
        return "–"
    return f"{100 * amount / seconds / ceiling:.0f} % of {of}" if ceiling and seconds else "–"


def table(rows, doctor):
    lines = ["| shape | task | tokens | type | interp | of the ceiling | peer | peer ÷ interp |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        ours = row["medians"]["interp"]
        for name, seconds in row["medians"].items():
            if name == "interp":
                continue
            show = lambda x: "failed" if x is None else f"{1e3 * x:.2f} ms"
            ratio = f"{seconds / ours:.2f}" if ours and seconds else "–"
            dtype = row["dtype"] if row["task"] != "step" else f"{row['dtype']} of float32 weights"
            cells = [row["size"], row["task"], row["request"], dtype, show(ours), share(row, ours, doctor), f"{name} {show(seconds)}", ratio]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    if sys.argv[1:2] == ["worker"]:
        kind, directory, device, dtype = sys.argv[2:]
        return worker(kind, pathlib.Path(directory), device, dtype)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker")
    parser.add_argument("interp")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["gpt2", "gpt2-xl"], choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--request", help="tokens of every task, T or T×B")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    doctor, rows, deadline = None, [], time.monotonic() + 60 * args.minutes
    if args.device.startswith("cuda"):
        done = subprocess.run([args.interp, "doctor", "--gpu", "--format", "json"], capture_output=True, text=True)
        doctor = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr, "said": done.stdout}
        print(json.dumps(doctor)[:2000], flush=True)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as directory:
            directory = pathlib.Path(directory)
            make_model(directory, SHAPES[size])
            rows += race(args, size, directory, deadline)
            # What there is by now stays, should the next one be cut off.
            (args.out / "gpu.json").write_text(json.dumps({"doctor": doctor, "rows": rows}, indent=1))
            (args.out / "gpu.md").write_text(table(rows, doctor))
    print(table(rows, doctor))


if __name__ == "__main__":
    main()
