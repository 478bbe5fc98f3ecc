"""How fast linear probes are fitted to the same optimum: interp, scikit-learn's two quickest solvers, linfa-logistic.

    python3 -m venv venv && venv/bin/pip install scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
    cargo bench --no-run --bench probes && venv/bin/python benches/probes.py BINARY [--rounds 3] [--layers 13]

BINARY is what cargo built (target/release/deps/probes-*). Rows look like a residual stream: columns that are correlated by a
spectrum that decays, four of them large, all standardised. Labels are drawn from a logistic model on them. 10,000 x 768 f32,
C = 1, two threads for everyone. Two classes on 13 layers, ten classes on one.

Every fit counts from arrays in memory to weights. A solver of scikit-learn is given the largest tolerance at which its
objective, computed here in f64, is within 1e-6 of ours on every layer (the smallest, 1e-8, if there is none); what it takes to find that
out is not counted. Rounds are interleaved: every solver fits all layers once per round. Shown are the
median over rounds of the seconds for all layers, and its ratio to ours; `worst` is the largest excess of an
objective over the lowest for its layer, as a share (linfa-logistic penalises the intercept of two classes, too). A solver whose
round takes over `--slow` seconds runs in the first round only, and linfa-logistic on the first layer only: its seconds
are times the number of layers.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.update(OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", RAYON_NUM_THREADS="2")
import numpy as np
import scipy
import sklearn
from sklearn.linear_model import LogisticRegression

ENOUGH = 1e-6
PAUSE = 0.3  # threads of BLAS spin for a while after their last product, on cores that the next fit needs
TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]


def layer(seed, n, d, classes):
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = (rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.8) @ mix
    large = rng.choice(d, 4, replace=False)
    x[:, large] += 3 * rng.standard_normal((n, 1)) * np.abs(rng.standard_normal(4)) + rng.standard_normal((n, 4))
    x += rng.standard_normal(d)
    x = (x - x.mean(0)) / x.std(0)
    z = x @ rng.standard_normal((d, classes))
    z = (2.0 if classes > 2 else 1.4) * z / z.std(0) + rng.gumbel(size=z.shape)
    return np.ascontiguousarray(x, np.float32), z.argmax(1)


def objective(x, y, weights, intercept, alpha):
    z = x.astype(np.float64) @ weights.T + intercept
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], 1)
    top = z.max(1)
    loss = np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(y)), y]
    return loss.sum() + alpha / 2 * (weights**2).sum()


class Ours:
    """A worker that keeps running, so that starting it does not count."""

    def __init__(self, binary, shape, classes, alpha, files):
        arguments = [binary, *map(str, shape), str(classes), str(alpha)]
        self.files = files
        self.worker = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fit(self, solver, i):
        print(solver, *self.files[i], file=self.worker.stdin, flush=True)
        found = json.loads(self.worker.stdout.readline())
        if "error" in found:
            return found["seconds"], None, found["error"]
        intercept = np.array(found["intercept"])
        return found["seconds"], (np.array(found["weights"]).reshape(len(intercept), -1), intercept), found["report"]

    def close(self):
        self.worker.stdin.close()
        self.worker.wait()


def peer(solver, tolerance, x, y, alpha):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        model = LogisticRegression(C=1 / alpha, solver=solver, tol=tolerance, max_iter=5000).fit(x, y)
        seconds = time.perf_counter() - start
    said = "; ".join(sorted({str(w.message).split("\n")[0] for w in caught}))
    return seconds, (model.coef_.astype(np.float64), model.intercept_.astype(np.float64)), said


def measure(name, binary, layers, classes, arguments, place):
    n, d, alpha = arguments.rows, arguments.columns, 1.0
    data, files = [], []
    for i in range(layers):
        x, y = layer(i, n, d, classes)
        files.append((place / f"{classes}.{i}.x", place / f"{classes}.{i}.y"))
        x.tofile(files[-1][0])
        y.astype(np.uint32).tofile(files[-1][1])
        data.append((x, y))
    ours = Ours(binary, (n, d), classes, alpha, files)
    value = lambda i, found: objective(*data[i], *found, alpha) if found else float("inf")
    first = [value(i, ours.fit("interp", i)[1]) for i in range(layers)]
    tolerances = {}
    for solver in arguments.solvers if classes == 2 else arguments.solvers_many:
        reaches = lambda i, t: value(i, peer(solver, t, *data[i], alpha)[1]) <= first[i] * (1 + ENOUGH)
        usable = (t for t in arguments.tolerances if all(reaches(i, t) for i in range(layers)))
        tolerances[solver] = next(usable, arguments.tolerances[-1])
    solvers = {"interp": lambda i: ours.fit("interp", i)}
    for solver, tolerance in tolerances.items():
        label = f"scikit-learn {solver} (tol {tolerance:g})"
        solvers[label] = lambda i, s=solver, t=tolerance: peer(s, t, *data[i], alpha)
    if not arguments.no_linfa:
        solvers["linfa-logistic"] = lambda i: ours.fit("linfa", i)
    seconds, values, notes = {}, {}, {}
    for round_ in range(arguments.rounds):
        for label, fit in solvers.items():
            if round_ and statistics.median(seconds[label]) > arguments.slow:
                continue
            total = 0.0
            some = 1 if label == "linfa-logistic" else layers
            all_found = []
            for i in range(some):
                time.sleep(PAUSE)
                spent, found, note = fit(i)
                total += spent
                all_found.append(found)
                if note:
                    notes[label] = note
            for i, found in enumerate(all_found):
                values.setdefault(label, {})[i] = value(i, found)
            seconds.setdefault(label, []).append(total * layers / some)
            print(f"{name}, round {round_}: {label} {seconds[label][-1]:.3f} s", file=sys.stderr, flush=True)
    ours.close()
    lowest = [min(v[i] for v in values.values() if i in v) for i in range(layers)]
    rows = {}
    for label in solvers:
        rows[label] = {
            "seconds": seconds[label],
            "median": statistics.median(seconds[label]),
            "ratio": statistics.median(seconds[label]) / statistics.median(seconds["interp"]),
            "worst": max(v / lowest[i] - 1 for i, v in values[label].items()),
            "note": notes.get(label),
        }
    assert rows["interp"]["worst"] <= ENOUGH, rows["interp"]
    return {"name": name, "layers": layers, "rows": n, "columns": d, "classes": classes, "solvers": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--slow", type=float, default=60.0, help="seconds of a round after which it is the only one")
    parser.add_argument("--solvers", nargs="*", default=["newton-cholesky", "lbfgs"])
    parser.add_argument("--solvers-many", nargs="*", default=["lbfgs"])
    parser.add_argument("--tolerances", nargs="*", type=float, default=TOLERANCES, help="to try, loosest first")
    parser.add_argument("--no-linfa", action="store_true")
    parser.add_argument("--only", choices=["binary", "many"])
    arguments = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        results = []
        if arguments.only != "many":
            results.append(measure("two classes", arguments.binary, arguments.layers, 2, arguments, place))
        if arguments.only != "binary":
            results.append(measure(f"{arguments.classes} classes", arguments.binary, 1, arguments.classes, arguments, place))
    versions = {"scikit-learn": sklearn.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    print(json.dumps({"versions": versions, "load": [load, os.getloadavg()], "results": results}, indent=1))
    for result in results:
        print(f"\n{result['name']}, {result['layers']} x {result['rows']} x {result['columns']}\n")
        print("| solver | seconds | over ours | objective above the lowest |\n|---|---|---|---|")
        for label, row in result["solvers"].items():
            print(f"| {label} | {row['median']:.3f} | {row['ratio']:.1f}x | {row['worst']:.1e} |")


if __name__ == "__main__":
    main()
