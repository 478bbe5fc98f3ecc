#!/usr/bin/env bash
# Builds the wheel, installs it into a new environment, and tests the reader and the binary that it carries.
#
#     python/build.sh [DIR]     # the wheel is left in DIR, target/wheels without it
set -euo pipefail
cd "$(dirname "$0")"
wheels=${1:-../target/wheels}
mkdir -p "$wheels"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m venv "$scratch/build"
"$scratch/build/bin/python" -m pip install --quiet --disable-pip-version-check "maturin==1.16.*"
"$scratch/build/bin/maturin" build --release --quiet --out "$scratch/wheel"

python3 -m venv "$scratch/use"
"$scratch/use/bin/python" -m pip install --quiet --disable-pip-version-check "$scratch"/wheel/*.whl polars pandas safetensors
env -u PYTHONPATH -u INTERP PATH="$scratch/use/bin:/usr/bin:/bin" "$scratch/use/bin/python" tests/test_interp.py
cp "$scratch"/wheel/*.whl "$wheels/"
ls -l "$wheels"/*.whl
