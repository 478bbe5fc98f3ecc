#!/usr/bin/env bash
# Executes the notebooks headless and keeps their outputs: installs Jupyter and the Rust kernel from the package registries
# if they are not there, fails on any error output or missing figure.
#
#     notebooks/run.sh [NOTEBOOK...]      # all of them without names
#
# What it installs and builds lives below ${INTERP_NOTEBOOKS:-target/notebooks-env}: a Python environment, the kernel
# (evcxr_jupyter) and the kernel's build of the workbench, which the first run makes and later ones use again.
set -euo pipefail
cd "$(dirname "$0")"

evcxr=0.22.0
jupyter="nbconvert==7.17.* nbclient==0.11.* ipykernel==7.* jupyter-core==5.*"
peers="polars==2.* pandas==3.* pyarrow==26.* scikit-learn==1.9.* safetensors==0.8.*"

env=${INTERP_NOTEBOOKS:-$PWD/../target/notebooks-env}
mkdir -p "$env"
env=$(cd "$env" && pwd)
export JUPYTER_PATH=$env/share/jupyter EVCXR_TMPDIR=$env/evcxr IPYTHONDIR=$env/ipython
export PATH=$env/bin:$env/python/bin:$PATH

[ -x "$env/python/bin/python" ] || python3 -m venv "$env/python"
"$env/python/bin/python" -m pip install --quiet --disable-pip-version-check $jupyter $peers
if ! cargo install --list --root "$env" | grep -q "^evcxr_jupyter v$evcxr:"; then
    cargo install evcxr_jupyter --version "$evcxr" --locked --quiet --root "$env"
fi
mkdir -p "$JUPYTER_PATH" "$EVCXR_TMPDIR"
"$env/bin/evcxr_jupyter" --install >/dev/null 2>&1
# The versions that the workbench is tested with.
[ -f "$EVCXR_TMPDIR/Cargo.lock" ] || cp ../Cargo.lock "$EVCXR_TMPDIR/"

# The Python companion drives the binary and reads what it wrote.
cargo build --release --quiet --manifest-path ../Cargo.toml
target=$(cargo metadata --format-version 1 --no-deps --manifest-path ../Cargo.toml |
    "$env/python/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
export PATH=$target/release:$PATH PYTHONPATH=$PWD/../python${PYTHONPATH:+:$PYTHONPATH}

books=("$@")
[ ${#books[@]} -gt 0 ] || books=(*.ipynb)
"$env/python/bin/python" execute.py "${books[@]}"
