//! Compiles the CUDA kernels where the feature `cuda` is on.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernels are, and the two modules that they make.
const FOLDER: &str = "src/ops/cuda";
const MODULES: [&str; 2] = ["kernels", "whole"];
const NEEDED: &str = "the feature `cuda` needs nvcc of a CUDA toolkit, 12 or 13, on PATH or in CUDA_HOME";

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
    let (major, minor) = release(nvcc()).expect(NEEDED);
    // As the driver counts them: a driver that is older refuses the PTX.
    println!("cargo::rustc-env=CUDA_VERSION={}", 1000 * major + 10 * minor);
    // Libraries have it in their names: cudarc asks the nvcc on PATH.
    println!("cargo::rustc-env=CUDA_MAJOR={}", release("nvcc".into()).map_or(major, |(major, _)| major));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for module in MODULES {
        // PTX of the oldest architecture that is supported: the driver translates it for whatever GPU there is.
        let mut command = Command::new(nvcc());
        command.args(["--ptx", "-arch=compute_80", "-O3", "-std=c++17", &format!("{FOLDER}/{module}.cu"), "-o"]);
        command.arg(out.join(module).with_extension("ptx"));
        let status = command.status().expect(NEEDED);
        assert!(status.success(), "nvcc ended with {status}: {command:?}");
    }
}

/// The version of CUDA that a compiler is of, before and behind the point; none where it does not run.
fn release(nvcc: PathBuf) -> Option<(u32, u32)> {
    let said = Command::new(nvcc).arg("--version").output().ok()?.stdout;
    let said = String::from_utf8_lossy(&said);
    let (major, rest) = said.split("release ").nth(1)?.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let there = homes.map(|home| Path::new(&home).join("bin").join("nvcc")).find(|path| path.exists());
    there.unwrap_or_else(|| "nvcc".into())
}
