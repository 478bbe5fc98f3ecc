"""How fast 1 GB of activations becomes Parquet: the shard writer, polars in Rust, pyarrow, and polars in Python.

    python3 -m venv venv && venv/bin/pip install pyarrow==26.0.1 polars==2.1.0 numpy==2.4.6
    cargo bench --no-run --bench writer && venv/bin/python benches/writer.py BINARY DIR...

BINARY is what cargo built (target/release/deps/writer-*). 13 columns of 768 f32 in 26,000 rows, row groups of 1,024
rows, no compression, no dictionary, no statistics; two threads each; synced at the end. All start from arrays in memory
and count from opening the file. Best and median of 5 after 1 to warm up; ratios are of the best, to which other work on
the machine adds least. The last line is the bare values written without Parquet: nothing that uses write() is faster.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.update(POLARS_MAX_THREADS="2", RAYON_NUM_THREADS="2", OMP_NUM_THREADS="2")
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROWS, COLUMNS, WIDTH, GROUP, REPETITIONS = 26_000, 13, 768, 1024, 6
BYTES = ROWS * COLUMNS * WIDTH * 4


def table():
    i = np.arange(ROWS, dtype=np.uint32)
    columns = {"prompt": i // 1024, "pos": i % 1024, "token_id": i * 7 % 50_257}
    columns["token"] = pa.array([f" t{t}" for t in columns["token_id"]], pa.large_string())
    rng = np.random.default_rng(0)
    for c in range(COLUMNS):
        values = pa.array(rng.random(ROWS * WIDTH, dtype=np.float32))
        columns[f"resid_post.{c}"] = pa.FixedSizeListArray.from_arrays(values, WIDTH)
    return pa.table(columns)


def sync(path):
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def with_pyarrow(data, path, group):
    pq.write_table(
        data, path, compression="none", use_dictionary=False, write_statistics=False, row_group_size=group,
        store_schema=True, write_batch_size=1024 * WIDTH, data_page_size=1 << 20,
    )


def with_polars(frame, path, group):
    frame.write_parquet(path, compression="uncompressed", statistics=False, row_group_size=group)


def timed(write, data, path, group):
    seconds = []
    for _ in range(REPETITIONS):
        pathlib.Path(path).unlink(missing_ok=True)
        start = time.perf_counter()
        write(data, path, group)
        sync(path)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def ours(binary, kind, path):
    done = subprocess.run([binary, kind, path], check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()][1:]


def main():
    binary, *places = sys.argv[1:]
    pa.set_cpu_count(2)
    data = table()
    frame = pl.from_arrow(data)
    print(f"pyarrow {pa.__version__}, polars {pl.__version__}, {BYTES / 1e9:.2f} GB")
    for place in places:
        path = str(pathlib.Path(place) / "writer-bench.parquet")
        results = {
            "shard writer": ours(binary, "shard", path),
            "polars, Rust": ours(binary, "polars", path),
            "pyarrow": timed(with_pyarrow, data, path, GROUP),
            "pyarrow, one row group": timed(with_pyarrow, data, path, ROWS),
            "polars, Python": timed(with_polars, frame, path, GROUP),
            "polars, Python, default row groups": timed(with_polars, frame, path, None),
            "bare values": ours(binary, "memory", path),
        }
        pathlib.Path(path).unlink()
        print(f"\n{place}")
        for name, seconds in results.items():
            best, median = min(seconds), statistics.median(seconds)
            ratio = best / min(results["shard writer"])
            print(f"  {name:36} {best:6.3f} s (median {median:6.3f})  {BYTES / best / 1e9:5.2f} GB/s  {ratio:5.2f} x our time")


if __name__ == "__main__":
    main()
