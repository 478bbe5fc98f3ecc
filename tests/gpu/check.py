"""Runs the CUDA kernels of src/ops/cuda/*.cu on a GPU in software and holds them against PyTorch.

    python -m venv venv && venv/bin/pip install torch==2.15.0 numpy==2.4.6
    venv/bin/python tests/gpu/check.py

What runs is the PTX that nvcc makes, on tests/gpu/driver.cpp: checked are the kernels' arithmetic, their use of shared memory and
shuffles, and that they stay within what they are given; not their speed, nor what the translation of PTX to the real machine does.
References are computed in f64 by PyTorch's own operations and by its autograd, from inputs that were rounded to the kernel's type.
"""

import ctypes
import os
import pathlib
import subprocess
import tempfile
import warnings

import numpy as np
import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).parent
TYPES = {"f32": (torch.float32, 2e-6), "f64": (torch.float64, 1e-13), "f16": (torch.float16, 6e-4), "bf16": (torch.bfloat16, 5e-3)}
IGNORE = 0xFFFFFFFF
CHECKED = {}
EQUAL = []


def build():
    out, modules = pathlib.Path(tempfile.mkdtemp()), []
    subprocess.run([HERE / "build.sh", out], check=True)
    driver = ctypes.CDLL(str(out / "libcuda.so.1"))
    for name in ("kernels", "whole"):
        source, ptx, module = HERE.parents[1] / "src" / "ops" / "cuda" / f"{name}.cu", out / f"{name}.ptx", ctypes.c_void_p()
        subprocess.run(["nvcc", "--ptx", "-arch=sm_80", "-O3", "-std=c++17", source, "-o", ptx], check=True)
        assert driver.cuModuleLoadData(ctypes.byref(module), ptx.read_bytes() + b"\0") == 0
        modules.append(module)
    return driver, modules


DRIVER, MODULES = build()


def kernel(name):
    function = ctypes.c_void_p()
    found = any(DRIVER.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0 for module in MODULES)
    assert found, f"there is no kernel {name}"
    return function


warnings.filterwarnings("ignore", message="CUDA initialization")  # PyTorch finds that driver, and not enough in it
STREAM = ctypes.c_void_p(1)


def launch(name, grid, threads, *arguments):
    """Tensors are copied to the device and back, numbers go by their ctypes type; `grid` is (columns, rows)."""
    kept, copied = [], []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            assert argument.is_contiguous()
            place, size = ctypes.c_uint64(), ctypes.c_size_t(argument.numel() * argument.element_size())
            known = [place for tensor, place, _ in copied if tensor.data_ptr() == argument.data_ptr()]
            if not known:
                assert DRIVER.cuMemAllocAsync(ctypes.byref(place), size, STREAM) == 0
                assert DRIVER.cuMemcpyHtoDAsync_v2(place, ctypes.c_void_p(argument.data_ptr()), size, STREAM) == 0
                copied.append((argument, place, size))
            kept.append(known[0] if known else place)
        elif argument is None:
            kept.append(ctypes.c_uint64(0))
        else:
            kept.append(argument)
    function = kernel(name)
    pointers = (ctypes.c_void_p * len(kept))(*(ctypes.addressof(x) for x in kept))
    size = (*grid, 1, threads, 1, 1)
    assert DRIVER.cuLaunchKernel(function, *size, 0, STREAM, pointers, None) == 0, f"{name} cannot be launched"
    for tensor, place, size in copied:
        assert DRIVER.cuMemcpyDtoHAsync_v2(ctypes.c_void_p(tensor.data_ptr()), place, size, STREAM) == 0
        assert DRIVER.cuMemFreeAsync(place, STREAM) == 0


def u64(x):
    return ctypes.c_uint64(int(x))


def u32(x):
    return ctypes.c_uint32(int(x))


def real(x):
    return ctypes.c_double(x)


def close(name, found, wanted, tolerance):
    """Within a share of each value, and of the largest for those that are small because large ones cancel."""
    found, wanted = found.double(), wanted.double()
    limit = tolerance * (wanted.abs() + 0.02 * wanted.abs().max())
    worst = ((found - wanted).abs() / limit.clamp_min(1e-300)).max().item()
    assert worst <= 1.0 and torch.equal(found.isfinite(), wanted.isfinite()), f"{name}: {worst} times the limit"
    CHECKED[name] = max(CHECKED.get(name, 0.0), worst)


def check(suffix, dtype, tolerance, generator):
    def draw(*shape, spread=1.0):
        return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    def empty(*shape):
        return torch.full(shape, 7.0, dtype=dtype)

    def run(name, grid, threads, *arguments):
        launch(f"{name}_{suffix}", grid if isinstance(grid, tuple) else (grid, 1), threads, *arguments)

    def same(name, found, wanted, slack=1.0):
        close(f"{name}_{suffix}", found, wanted, slack * tolerance)

    wide = lambda *tensors: [x.double().clone().requires_grad_() for x in tensors]

    # LayerNorm, with a huge activation in one row as GPT-2 has.
    for rows, d, threads in [(5, 96, 64), (3, 7, 32), (2, 768, 256)]:
        x, gain, bias, grad = draw(rows, d), draw(d), draw(d), draw(rows, d)
        x[0, d // 2] = 300.0
        scale, out = empty(rows, 1), empty(rows, d)
        wx, wgain, wbias = wide(x, gain, bias)
        wanted = (wx.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        run("norm_scale", rows, threads, x, scale, u64(d), real(1e-5))
        same("norm_scale", scale, wanted)
        run("normalize", rows, threads, x, scale, out, u64(d))
        same("normalize", out, (wx - wx.mean(-1, keepdim=True)) / scale.double())
        run("layer_norm", rows, threads, x, gain, bias, out, u64(d), real(1e-5))
        wanted = F.layer_norm(wx, (d,), wgain, wbias, 1e-5)
        same("layer_norm", out, wanted)
        wanted.backward(grad.double())
        run("layer_norm_grad", rows, threads, grad, x, gain, out, u64(d), real(1e-5))
        same("layer_norm_grad", out, wx.grad, 20)
        run("affine", rows, threads, x, gain, bias, out, u64(d))
        same("affine", out, x.double() * gain.double() + bias.double())
        out = x.clone()
        run("add_bias", rows, threads, out, bias, u64(d))
        same("add_bias", out, x.double() + bias.double())
        summed = (x.double() + bias.double()).to(dtype).double()
        for exact, form in [(0, "tanh"), (1, "none")]:
            out = x.clone()
            run("bias_gelu", rows, threads, out, bias, u64(d), u32(exact))
            same("bias_gelu", out, F.gelu(summed, approximate=form), 2)
        run("add", 1, threads, x, grad, out, u64(rows * d))
        same("add", out, x.double() + grad.double())

    # The causal mask, with keys before the first query and with holes.
    masks = [(2, 3, 5, 5, None), (2, 2, 4, 9, [[2, 5], [0, 0]]), (1, 1, 40, 70, [[30, 33]]), (1, 2, 40, 64, [[9, 25]])]
    for prompts, heads, queries, keys, holes in masks:
        offset = keys - queries
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(offset).expand(prompts, heads, queries, keys).clone()
        packed = None
        if holes:
            packed = torch.from_numpy(np.array(holes, dtype=np.uint32).view(np.int32))
            for prompt, (first, end) in enumerate(holes):
                seen[prompt, ..., first:end] = False
        scores, grad = draw(prompts, heads, queries, keys, spread=3), draw(prompts, heads, queries, keys)
        rows = prompts * heads * queries
        sizes = [u64(heads), u64(queries), u64(keys), u64(offset), packed]
        out = empty(*scores.shape)
        (wide_scores,) = wide(scores)
        wanted = wide_scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        run("causal_softmax", rows, 64, scores, out, *sizes)
        same("causal_softmax", out, wanted.detach(), 2)
        pattern = wanted.detach().to(dtype)
        run("causal_softmax_grad", rows, 64, pattern, grad, out, u64(queries), u64(keys), u64(offset))
        p, g = pattern.double(), grad.double()
        same("causal_softmax_grad", out, p * (g - (p * g).sum(-1, keepdim=True)), 4)
        wanted.backward(g)
        close(f"causal_softmax_grad_{suffix}, by autograd", out, wide_scores.grad, 40 * tolerance)
        out = scores.clone()
        run("hide", rows, 64, out, *sizes, real(-np.inf))
        assert torch.equal(out, scores.masked_fill(~seen, -torch.inf))
        run("hide", rows, 32, out, *sizes, real(0.0))
        assert torch.equal(out, scores.masked_fill(~seen, 0.0))
    # A row of which nothing is seen is all 0.
    scores, out = torch.full((1, 1, 1, 8), -torch.inf, dtype=dtype), empty(1, 1, 1, 8)
    run("causal_softmax", 1, 32, scores, out, u64(1), u64(1), u64(8), u64(7), None)
    assert torch.equal(out, torch.zeros_like(out))

    # Heads of a fused projection, some of which can be read 16 bytes at a time.
    for prompts, pos, heads, dim in [(2, 5, 3, 3), (2, 5, 3, 4), (2, 3, 2, 16)]:
        fused = draw(prompts, pos, 3, heads, dim)
        keys, out, back = fused[:, :, 1], empty(prompts, heads, pos, dim), empty(prompts, pos, heads, dim)
        base, sizes = fused.reshape(-1)[heads * dim :].clone(), [u64(pos), u64(heads), u64(dim)]
        run("pack", prompts * pos, 32, base, out, *sizes, *map(u64, keys.stride()[:3]))
        assert torch.equal(out, keys.transpose(1, 2))
        run("unpack", prompts * pos, 32, out, back, *sizes)
        assert torch.equal(back, keys)

    # Attention as a whole, beside its three steps with their roundings.
    if suffix in ("f16", "bf16"):
        for prompts, heads, queries, keys, dim, holes in [
            (2, 2, 70, 70, 64, None), (2, 3, 17, 150, 32, [[3, 90], [0, 0]]), (2, 1, 150, 150, 32, [[0, 0], [100, 150]])
        ]:
            fused = draw(prompts, keys, 3, heads, dim)
            q = fused[:, keys - queries :, 0].clone() if queries < keys else fused[:, :, 0]
            k, v = fused[:, :, 1], fused[:, :, 2]
            seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(prompts, heads, queries, keys).clone()
            packed = None
            if holes:
                packed = torch.from_numpy(np.array(holes, dtype=np.uint32).view(np.int32))
                for prompt, (first, end) in enumerate(holes):
                    seen[prompt, ..., first:end] = False
            scale = dim**-0.5
            turn = lambda x: x.double().transpose(1, 2)
            steps = (scale * (turn(q) @ turn(k).transpose(2, 3))).to(dtype)
            pattern = steps.double().masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0).to(dtype)
            wanted = (pattern.double() @ turn(v)).transpose(1, 2)
            out = empty(prompts, queries, heads, dim)
            views = [x.reshape(-1) if x.is_contiguous() else fused.reshape(-1)[x.storage_offset() :].clone() for x in (q, k, v)]
            strides = [u64(stride) for x in (q, k, v) for stride in x.stride()[:3]]
            sizes = [u64(heads), u64(queries), u64(keys), u64(keys - queries)]
            given = [*views, *sizes, *strides, packed, real(scale)]
            grid = (prompts * heads, -(-queries // 64))
            run(f"attention_{dim}", grid, 128, *given, out)
            same(f"attention_{dim}", out, wanted, 8)
            equal = (out == wanted.to(dtype)).double().mean().item()
            assert equal > 0.9, f"attention_{dim}_{suffix}: {equal:.1%} are as in steps"
            EQUAL.append((suffix, dim, equal))
            if queries != keys:
                continue
            # Its gradients, beside autograd through the same inputs in f64: no further from it than the steps with their roundings are.
            grad, to = draw(prompts, queries, heads, dim), empty(prompts, queries, 3, heads, dim)
            known = torch.full((prompts * heads * queries, 3), 7.0)
            run(f"attention_grad_q_{dim}", grid, 128, *given, out, grad, to, known)
            run(f"attention_grad_kv_{dim}", grid, 128, *given, grad, to, known)
            (wide_fused,) = wide(fused)
            wide_q, wide_k, wide_v = (wide_fused[:, :, i].transpose(1, 2) for i in range(3))
            p = (scale * wide_q @ wide_k.transpose(2, 3)).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
            ((p @ wide_v).transpose(1, 2) * grad.double()).sum().backward()
            p, g = pattern.double(), (turn(grad) @ turn(v).transpose(2, 3)).to(dtype).double().masked_fill(~seen, 0.0)
            ds = (p * (g - (p * g).sum(-1, keepdim=True))).to(dtype).double()
            steps = [scale * ds @ turn(k), scale * ds.transpose(2, 3) @ turn(q), p.transpose(2, 3) @ turn(grad)]
            for i, (name, step) in enumerate(zip("qkv", steps)):
                wanted = wide_fused.grad[:, :, i]
                away = lambda x: ((x.double() - wanted).norm() / wanted.norm()).item()
                ours, theirs = away(to[:, :, i]), away(step.transpose(1, 2).to(dtype))
                assert ours < 1.2 * theirs, f"attention_grad_{name}_{dim}_{suffix}: {ours} from autograd, in steps {theirs}"
                CHECKED[f"attention_grad_{name}_{dim}_{suffix}"] = ours / (1.2 * theirs)

    x, grad = draw(301, spread=3), draw(301)
    out = empty(301)
    for exact, form in [(0, "tanh"), (1, "none")]:
        (wx,) = wide(x)
        wanted = F.gelu(wx, approximate=form)
        run("gelu", 2, 64, x, out, u32(exact), u64(301))
        same("gelu", out, wanted.detach(), 2)
        wanted.backward(grad.double())
        run("gelu_grad", 2, 64, x, grad, out, u32(exact), u64(301))
        same("gelu_grad", out, wx.grad, 4)

    rows, vocab = 6, 205
    logits, grad = draw(rows, vocab, spread=4), draw(rows)
    targets = torch.tensor([3, 204, IGNORE - (1 << 32), 0, 17, IGNORE - (1 << 32)], dtype=torch.int32)
    scored = torch.tensor([3, 204, -100, 0, 17, -100])
    (wide_logits,) = wide(logits)
    wanted = F.cross_entropy(wide_logits, scored, reduction="none")
    # Losses and their gradients are f32 where logits have 16 bits.
    kept = torch.float64 if suffix == "f64" else torch.float32
    losses, grad = torch.full((rows,), 7.0, dtype=kept), grad.to(kept)
    apart = vocab + 5  # rows begin further apart than they are long
    spaced = torch.full((rows, apart), 9.0, dtype=dtype)
    spaced[:, :vocab] = logits
    run("cross_entropy", rows, 128, spaced, losses, targets, u64(vocab), u64(apart))
    close(f"cross_entropy_{suffix}", losses, wanted.detach(), 2 * TYPES["f64" if suffix == "f64" else "f32"][1])
    wanted.backward(grad.double())
    run("cross_entropy_grad", rows, 128, spaced, grad, targets, u64(vocab), u64(apart))
    assert (spaced[:, vocab:] == 9).all(), "what is between rows is not theirs"
    out = spaced[:, :vocab]
    same("cross_entropy_grad", out, wide_logits.grad, 4)

    # Sums of gradients are kept in f32 where these have 16 bits.
    exact = 2 * TYPES["f64" if suffix == "f64" else "f32"][1]
    for rows, d, tall in [(70, 45, 32), (3, 96, 32), (33, 32, 8)]:
        x, y, parts = draw(rows, d), draw(rows, d), -(-rows // tall)
        middle, out = torch.zeros(parts, d, dtype=kept), torch.full((d,), 7.0, dtype=kept)
        for other, add, wanted in [(u64(0), 0, x.double().sum(0)), (y, 1, x.double().sum(0) + (x.double() * y.double()).sum(0))]:
            run("sum_rows_parts", (-(-d // 32), parts), 256, x, other, middle, u64(rows), u64(d), u64(tall))
            run("sum_rows_whole", 1, 64, middle, out, u64(parts), u64(d), u32(add))
            close(f"sum_rows_{suffix}", out, wanted, 4 * exact)

    ids = torch.tensor([4, 1, 4, 0, 4, 1])
    table, x = draw(6, 40).to(kept), draw(6, 40)
    met = torch.tensor([0, 1, 4], dtype=torch.int32)
    starts, order = torch.tensor([0, 1, 3, 6], dtype=torch.int32), torch.tensor([3, 1, 5, 0, 2, 4], dtype=torch.int32)
    wanted = table.double().index_add(0, ids, x.double())
    run("add_rows", 3, 32, table, x, met, starts, order, u64(40))
    close(f"add_rows_{suffix}", table, wanted, exact)

    # AdamW, three steps, clipped by a factor.
    p, m, v = draw(77), torch.zeros(77, dtype=dtype), torch.zeros(77, dtype=dtype)
    for step in range(1, 4):
        grad, (p0, m0, v0) = draw(77), (x.double().clone() for x in (p, m, v))
        rate, correction = 1e-2 / (1 - 0.9**step), (1 - 0.95**step) ** -0.5
        run("adamw", 2, 32, p, m, v, grad, *map(real, (0.5, 0.9, 0.95, rate, correction, 1e-8, 1 - 1e-3)), u64(77))
        wm, wv = 0.9 * m0 + 0.1 * 0.5 * grad.double(), 0.95 * v0 + 0.05 * (0.5 * grad.double()) ** 2
        same("adamw", m, wm, 6)
        same("adamw", v, wv, 6)
        same("adamw", p, p0 * (1 - 1e-3) - rate * wm / (wv.sqrt() * correction + 1e-8), 6)

    value, part = draw(3, 4, 5, 6), draw(2, 4, 2, 3)
    wanted = value.clone()
    wanted[1:3, :, 2:4, 3:6] = part
    sizes, strides = [1, 2, 4, 2, 3], [0, 120, 30, 6, 1]
    run("write_box", 2, 32, value, part, *map(u64, sizes), *map(u64, strides), u64(120 + 2 * 6 + 3), u64(part.numel()))
    assert torch.equal(value, wanted)

    for bad, wanted in [(None, 0), (torch.nan, 1), (torch.inf, 1), (-torch.inf, 1)]:
        x, flag = draw(500), torch.zeros(1, dtype=torch.int32)
        if bad is not None:
            x[417] = bad
        run("not_finite", 2, 64, x, flag, u64(500))
        assert flag.item() == wanted, bad
    x, parts = draw(900), torch.zeros(3, dtype=torch.float64)
    run("squares", 3, 64, x, parts, u64(900))
    close(f"squares_{suffix}", parts.sum(), (x.double() ** 2).sum(), 1e-12)


def strict():
    """The GPU in software notices what a real one leaves undefined."""
    def new(count, stream=STREAM):
        place = ctypes.c_uint64()
        assert DRIVER.cuMemAllocAsync(ctypes.byref(place), ctypes.c_size_t(4 * count), stream) == 0
        return place

    def fill(place, values):
        assert DRIVER.cuMemcpyHtoDAsync_v2(place, values.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(values.nbytes), STREAM) == 0

    def double(place, count):
        function = kernel("add_f32")
        kept = [place, place, place, u64(count)]
        pointers = (ctypes.c_void_p * 4)(*(ctypes.addressof(x) for x in kept))
        assert DRIVER.cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, STREAM, pointers, None) == 0

    copies, event, pinned = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    assert DRIVER.cuStreamCreate(ctypes.byref(copies), 1) == 0 and DRIVER.cuEventCreate(ctypes.byref(event), 0) == 0
    assert DRIVER.cuMemHostAlloc(ctypes.byref(pinned), ctypes.c_size_t(400), 0) == 0
    x = np.arange(100, dtype=np.float32)
    there = np.ctypeslib.as_array(ctypes.cast(pinned, ctypes.POINTER(ctypes.c_float)), (100,))
    for waits in (False, True):
        place = new(100)
        fill(place, x)
        double(place, 100)
        if waits:
            assert DRIVER.cuEventRecord(event, STREAM) == 0 and DRIVER.cuStreamWaitEvent(copies, event, 0) == 0
        assert DRIVER.cuMemcpyDtoHAsync_v2(pinned, place, ctypes.c_size_t(400), copies) == 0
        assert DRIVER.cuStreamSynchronize(copies) == 0
        assert np.array_equal(there, 2 * x) == waits, "a copy that does not wait must not see what was asked for before"
    for fault in ("reads past the end", "is used after it was freed"):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            place = new(100)
            if fault.startswith("is used"):
                DRIVER.cuMemFreeAsync(place, STREAM)
            double(place, 101 if fault.startswith("reads") else 100)
            DRIVER.cuStreamSynchronize(STREAM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0, f"memory that a kernel {fault} ends nothing"
    print("a missing wait, an access out of bounds and one after a free are noticed")


def main():
    strict()
    for suffix, (dtype, tolerance) in TYPES.items():
        check(suffix, dtype, tolerance, torch.Generator().manual_seed(0))
    for name, worst in sorted(CHECKED.items()):
        print(f"{name:<44} {100 * worst:5.1f} % of the limit")
    for suffix, dim, equal in EQUAL:
        print(f"attention_{dim}_{suffix}: {equal:.2%} of its values are bit for bit what its steps give")
    print(f"{len(CHECKED)} checks agree")


main()
