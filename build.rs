//! Compiles the CUDA kernels where the feature `cuda` is on.

use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/ops/cuda/kernels.cu";

fn main() {
    println!("cargo::rerun-if-changed={KERNELS}");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-env=CUDA_MAJOR={}", major());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
    // PTX of the oldest architecture that is supported: the driver translates it for whatever GPU there is.
    let mut command = Command::new(nvcc());
    command.args(["--ptx", "-arch=compute_80", "-O3", "-std=c++17", KERNELS, "-o"]).arg(&out);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("nvcc ended with {status}: {command:?}"),
        Err(e) => {
            panic!("cannot run nvcc ({e}): the feature `cuda` needs a CUDA toolkit, 12 or 13, on PATH or in CUDA_HOME")
        }
    }
}

/// The version of CUDA, whose libraries have it in their names.
fn major() -> String {
    let said = Command::new(nvcc()).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let release = said.split("release ").nth(1).and_then(|rest| rest.split('.').next());
    release.expect("`nvcc --version` names a release: the feature `cuda` needs a CUDA toolkit, 12 or 13").to_string()
}

fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let there = homes.map(|home| Path::new(&home).join("bin").join("nvcc")).find(|path| path.exists());
    there.unwrap_or_else(|| "nvcc".into())
}
