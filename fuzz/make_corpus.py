"""Makes the seeds in fuzz/corpus: a few small files per parser, from files of the project. Needs only Python's standard library.

    python fuzz/make_corpus.py INTERP        # the built binary, which writes the datasets and directions

What a fuzzer found lies beside them under other names, and stays.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
FIXTURES = ROOT / "tests/fixtures"


def seed(target, name, data):
    path = HERE / "corpus" / target / f"seed-{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def copy(target, *paths):
    for path in paths:
        stem = path.stem if path.stem not in ("config", "model", "ckpt", "edit", "tokenizer") else path.parent.name
        seed(target, stem, path.read_bytes())


def smallest(files, count):
    return sorted(files, key=lambda path: path.stat().st_size)[:count]


def st(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


copy("config", FIXTURES / "parity/one/config.json", *(FIXTURES / "hostile/config").glob("n_*/config.json"))
seed("config", "index", '{"metadata": {}, "weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}}')
copy("weights", FIXTURES / "parity/one/model.safetensors")
copy("tokenizer", *(p for p in (FIXTURES / "hostile/tokenizer").glob("*/tokenizer.json") if p.stat().st_size < 9000))
seed(
    "tokenizer",
    "bytes",
    json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": 4, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
                {"id": 5, "content": "user", "special": False, "single_word": True, "lstrip": True, "rstrip": True, "normalized": True},
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"]},
        }
    ),
)
copy("checkpoint", FIXTURES / "nanogpt/half/ckpt.pt", FIXTURES / "nanogpt/refused/legacy.pt", FIXTURES / "nanogpt/refused/bare.pt")
copy("characters", *(FIXTURES / "nanogpt/data").glob("*/meta.pkl"))
copy("edits", *(FIXTURES / "hostile/edit").glob("*/edit.toml"))
seed("edits", "all", '[[edit]]\nsite = "resid_post.2"\nop = "scale"\nvalue = 1.5\npos = [-3, -1]\n[[edit]]\nsite = "pattern.*"\nop = "set"\nvalue = [1.0, 2e3]\nhead = 1\nquery = [0, 2]\nkey = -1\nprompt = 0\n')
copy("pair_set", *smallest((ROOT / "probes/pairs").glob("*.toml"), 3))
copy("suite", *smallest((ROOT / "probes/behave").glob("*.toml"), 4), ROOT / "probes/behave/tiny-few-shot.toml")
copy("task", *smallest((ROOT / "probes").glob("*.toml"), 3))
copy("study", *(ROOT / "probes/studies").glob("*.toml"))
copy("circuit", *(ROOT / "probes/circuits").glob("*.toml"))
seed("circuit", "eap", json.dumps({"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8}, "nodes": {"input": {"in_graph": True}, "a0.h0": {"in_graph": True}, "m0": {"in_graph": False}, "logits": {"in_graph": True}}, "edges": {"input->a0.h0<q>": {"score": 0.5, "in_graph": True}, "input->logits": {"score": -1e9, "in_graph": False}}}))
seed("recipe", "tiny", (ROOT / "models/tiny/recipe.toml").read_bytes())
copy("recipe", *(FIXTURES / "hostile/recipe").glob("*/*.toml"))
seed(
    "language",
    "small",
    '[class.name]\nfields = ["they", "them"]\nshare = { female = ["she", "her"] }\nfemale = ["Mary", "Anna"]\nheld = ["Anna"]\n'
    '[class.noun]\nnumbered = true\nrows = [["key", "keys"]]\n[class.year]\nrange = [1000, 1010]\n'
    '[family.one]\ntemplates = ["When {A:name} saw {n:noun_pl}[ they| it] left in {y:year}."]\nheld = ["{A:name} and {A.they}"]\n',
)
seed("figures", "one", json.dumps({"prompts": {"clean": [[1, 2]], "corrupt": [[1, 3]], "answers": [[3, 8]]}, "cells": []}))
seed("figures", "cells", '[{"cell": 1, "figures": [{"data": [{"type": "heatmap", "z": [[1.0, 2.0]]}], "layout": {"title": "Logit difference"}}]}]')
lines = [
    {"text": "one", "label": 1},
    {"text": "", "label": 2.5},
    {"text": "d\u00e9j\u00e0", "label": 9007199254740993},
    {"text": "x", "label": None},
]
seed("documents", "rows", "\ufeff" + "\r\n".join(map(json.dumps, lines)))
for i, name in enumerate(["resid_post.3", "blocks.*.attn.hook_z", "z.0-5", "owner/name@main", "1.5GB", "a0.h1->m3", "input->logits", "a3.h2<q>", "*****x"]):
    seed("names", str(i), name)
seed("subspace", "basis", st({"__metadata__": {"site": "resid_post.1", "model_sha256": "fingerprint"}, "basis": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, struct.pack("<4f", 1, 0, 0, 1)))
entry = json.dumps([{"site": "resid_post.1", "method": "mean", "pool": "last", "length": "1", "norm": "1", "explained": None}])
seed("directions", "one", st({"__metadata__": {"interp.directions": entry, "interp.model": "of the fixture"}, "resid_post.1": {"dtype": "F32", "shape": [128], "data_offsets": [0, 512]}}, struct.pack("<128f", 1, *[0.0] * 127)))

with tempfile.TemporaryDirectory() as temporary:
    out = pathlib.Path(temporary)
    (out / "a.txt").write_text("One two three.\nFour.\n")
    for dtype in ("f32", "f16"):
        command = [sys.argv[1], "-q", "export", "--site", "z.0", "--file", "a.txt", "--out", dtype, "--store", dtype]
        subprocess.run(command, cwd=out, check=True)
    for name in ("plan", "manifest"):
        seed(name, "export", (out / f"f32/{name}.json").read_bytes())
    for part in out.glob("*/part-00000.parquet"):
        seed("parquet", part.parent.name, part.read_bytes())
