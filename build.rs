//! Compiles the CUDA kernels where the feature `cuda` is on.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernels are, and the two modules that they make.
const FOLDER: &str = "src/ops/cuda";
const MODULES: [&str; 2] = ["kernels", "whole"];

fn main() {
    println!("cargo::rerun-if-changed={FOLDER}/values.cuh");
    MODULES.iter().for_each(|module| println!("cargo::rerun-if-changed={FOLDER}/{module}.cu"));
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rustc-env=CUDA_MAJOR={}", major());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for module in MODULES {
        // PTX of the oldest architecture that is supported: the driver translates it for whatever GPU there is.
        let mut command = Command::new(nvcc());
        command.args(["--ptx", "-arch=compute_80", "-O3", "-std=c++17", &format!("{FOLDER}/{module}.cu"), "-o"]);
        command.arg(out.join(module).with_extension("ptx"));
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("nvcc ended with {status}: {command:?}"),
            Err(e) => panic!(
                "cannot run nvcc ({e}): the feature `cuda` needs a CUDA toolkit, 12 or 13, on PATH or in CUDA_HOME"
            ),
        }
    }
}

/// The version of CUDA, whose libraries have it in their names: that of the nvcc on PATH, which cudarc asks too.
fn major() -> String {
    let ask = |nvcc: PathBuf| Command::new(nvcc).arg("--version").output();
    let said = ask("nvcc".into()).or_else(|_| ask(nvcc())).map(|output| output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let release = said.split("release ").nth(1).and_then(|rest| rest.split('.').next());
    release.expect("`nvcc --version` names a release: the feature `cuda` needs a CUDA toolkit, 12 or 13").to_string()
}

fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let there = homes.map(|home| Path::new(&home).join("bin").join("nvcc")).find(|path| path.exists());
    there.unwrap_or_else(|| "nvcc".into())
}
