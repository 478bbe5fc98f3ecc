"""Reads what the `interp` workbench writes: runs, datasets, probes, directions; and runs it.

    import interp

    run = interp.run("lens", "--prompt", "The capital of France is")
    run.frame                       # pyarrow table; run.polars(), run.pandas() where these are installed
    run.meta["model"]["name"]

    data = interp.load("streams")   # a dataset of `interp export`
    data.arrays["resid_post.2"]     # numpy, [row, d]
    data.frame                      # the other columns
"""

from interp._read import Arrays, Dataset, Run, load
from interp._tensors import read_safetensors
from interp._run import InterpError, Listing, binary, run

__all__ = ["Arrays", "Dataset", "InterpError", "Listing", "Run", "binary", "load", "read_safetensors", "run"]
