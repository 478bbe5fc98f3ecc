"""A Python contender of side_by_side.py: `peer.py hf|hooked|bridge MODEL_DIR`, then requests on standard input.

hf      transformers.GPT2LMHeadModel, its default attention; it has no capture
hooked  transformer_lens.HookedTransformer (version 2), raw weights
bridge  transformer_lens.TransformerBridge (version 4), raw weights
"""

import sys
import time
from functools import partial

import torch
import transformers

torch.set_grad_enabled(False)
torch.set_num_threads(2)


def hf(directory):
    model = transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    optimizer = None

    def generate(ids):
        return model.generate(
            ids[:, :15], attention_mask=torch.ones_like(ids[:, :15]), do_sample=False, max_new_tokens=ids.shape[1],
            min_new_tokens=ids.shape[1], eos_token_id=[], pad_token_id=0,
        )

    def step(ids):  # nanoGPT's inner loop
        nonlocal optimizer
        if optimizer is None:
            groups = [
                {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
                {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=3e-5, betas=(0.9, 0.95))
        with torch.enable_grad():
            logits = model(ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"forward": lambda ids: model(ids, use_cache=False).logits, "generate": generate, "step": step}


def sweeps(model):
    """TransformerLens's own patching functions; the corrupted prompt differs at two thirds of its length, where the second name stands in the IOI sentences of 15 tokens."""
    from transformer_lens import patching

    def sweep(name):
        def run(ids):
            corrupt = ids.clone()
            corrupt[0, 2 * ids.shape[1] // 3] += 1
            _, cache = model.run_with_cache(ids)
            metric = lambda logits: logits[0, -1, 3] - logits[0, -1, 8]
            return getattr(patching, f"get_act_patch_{name}")(model, corrupt, cache, metric)
        return run

    return {name: sweep(name) for name in ("resid_pre", "attn_head_out_all_pos", "attn_head_out_by_pos")}


def between(ids):
    """The corrupted prompt, and the metric."""
    corrupt = ids.clone()
    corrupt[0, 2 * ids.shape[1] // 3] += 1
    return corrupt, lambda logits: logits[0, -1, 3] - logits[0, -1, 8]


def attribution(model, layers):
    """Attribution patching as in TransformerLens's demonstration: (clean - corrupted) * gradient in the corrupted run."""
    sites = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", *(f"attn.hook_{part}" for part in ("q", "k", "v", "z", "pattern"))]
    names = [f"blocks.{layer}.{site}" for layer in range(layers) for site in sites]

    def run(ids):
        corrupt, metric = between(ids)
        _, clean = model.run_with_cache(ids, names_filter=lambda name: name in names)
        kept = {}

        def keep(value, hook, name):
            if not value.requires_grad:
                value.requires_grad_()
            value.retain_grad()
            kept[name] = value

        with torch.enable_grad():
            hooks = [(name, partial(keep, name=name)) for name in names]
            metric(model.run_with_hooks(corrupt, fwd_hooks=hooks)).backward()
        # The bridge shows some values beside the way that they are computed on: those have no gradient.
        graded = [name for name in names if kept[name].grad is not None]
        return {name: ((clean[name] - kept[name]) * kept[name].grad).sum(-1) for name in graded}

    return run


def edges(model):
    """EAP-IG as its authors' code has it, one step after the other, and edges tried by a loop of hooks."""
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    reads = [f"blocks.{layer}.hook_{part}_input" for layer in range(layers) for part in "qkv"]
    ends = reads + [f"blocks.{layer}.hook_mlp_in" for layer in range(layers)] + [f"blocks.{layers - 1}.hook_resid_post"]
    writes = ["hook_embed", "hook_pos_embed"]
    writes += [f"blocks.{layer}.{site}" for layer in range(layers) for site in ("attn.hook_result", "hook_mlp_out")]

    def split(on):
        model.set_use_split_qkv_input(on)
        model.set_use_hook_mlp_in(on)
        model.set_use_attn_result(on)

    def sources(cache):  # [source, pos, dim] in forward order
        rows = [(cache["hook_embed"] + cache["hook_pos_embed"])[0][None]]
        for layer in range(layers):
            rows += [cache[f"blocks.{layer}.attn.hook_result"][0].transpose(0, 1), cache[f"blocks.{layer}.hook_mlp_out"][0][None]]
        return torch.cat(rows)

    def outputs(ids):
        _, cache = model.run_with_cache(ids, names_filter=lambda name: name in writes)
        return sources(cache), cache["hook_embed"]

    def eap_ig(ids, m=5):
        corrupt, metric = between(ids)
        split(True)
        (clean, start), (other, far) = outputs(ids), outputs(corrupt)
        difference, total = clean - other, {}
        for k in range(m):
            kept = {}

            def keep(value, hook):
                value.retain_grad()
                kept[hook.name] = value

            def interpolate(value, hook):
                return (far + k / m * (start - far)).requires_grad_()

            with torch.enable_grad():
                hooks = [("hook_embed", interpolate)] + [(name, keep) for name in ends]
                metric(model.run_with_hooks(ids, fwd_hooks=hooks)).backward()
            for name, value in kept.items():
                total[name] = total.get(name, 0) + value.grad[0] / m
        split(False)
        return {name: torch.einsum("spd,p...d->s...", difference, gradient) for name, gradient in total.items()}

    def edge(ids, count=12):
        corrupt, metric = between(ids)
        split(True)
        start = time.perf_counter()
        difference = outputs(corrupt)[0] - outputs(ids)[0]
        for i in range(count):  # from the first head of a layer to the queries of a head five layers on
            layer = i % (layers - 5)
            source, head = difference[1 + layer * (heads + 1)], i % heads

            def change(value, hook):
                value[0, :, head] += source
                return value

            metric(model.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer + 5}.hook_q_input", change)]))
        seconds = (time.perf_counter() - start) / count
        split(False)
        return seconds

    return {"eap_ig": eap_ig, "edge": edge}


def hooked(directory):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    source = transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    c = source.config
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=c.n_layer, n_heads=c.n_head, d_model=c.n_embd, d_head=c.n_embd // c.n_head, d_mlp=4 * c.n_embd,
            d_vocab=c.vocab_size, n_ctx=c.n_positions, act_fn="gelu_new", normalization_type="LN",
            eps=c.layer_norm_epsilon, device="cpu", default_prepend_bos=False,
        )
    )
    state = convert_gpt2_weights(source, model.cfg)
    state["unembed.b_U"] = torch.zeros(c.vocab_size)
    model.load_state_dict(state, strict=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    more = {"atp": attribution(model, c.n_layer)} | edges(model)
    return {"forward": model, "capture": lambda ids: model.run_with_cache(ids)} | sweeps(model) | more


def bridge(directory):
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    source = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    model = TransformerBridge.boot_transformers(directory, hf_model=source, tokenizer=tokenizer, device="cpu")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    more = {"atp": attribution(model, source.config.n_layer)}
    return {"forward": model, "capture": lambda ids: model.run_with_cache(ids)} | sweeps(model) | more


def main():
    contender, directory = sys.argv[1:]
    tasks = {"hf": hf, "hooked": hooked, "bridge": bridge}[contender](directory)
    vocab = transformers.GPT2Config.from_pretrained(directory).vocab_size
    print("ready", flush=True)
    for line in sys.stdin:
        task, length, *_ = line.split()
        count = max(int(length), 15) if task == "generate" else int(length)
        ids = torch.tensor([[(i * 7919 + 13) % vocab for i in range(count)]])
        start = time.perf_counter()
        result = tasks[task](ids)
        seconds = result if task == "edge" else time.perf_counter() - start
        if task == "capture" and line.split()[2:]:
            import safetensors.torch

            logits, cache = result
            # Version 2 shows LayerNorm's output where version 3 and we show its input over its scale.
            values = {k: v.clone(memory_format=torch.contiguous_format) for k, v in cache.items() if not k.endswith("hook_normalized")}
            safetensors.torch.save_file(values | {"logits": logits.contiguous()}, line.split()[2])
        del result
        print(seconds, flush=True)


main()
