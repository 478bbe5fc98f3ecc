use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use interp::weights::Places;
use interp::{Error, Plan, Result, embedded, memory};
use serde_json::json;

use super::args::{Format, Global};
use super::gpu::{self, PROMPT, described};
use super::output::{print, say};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Hold a GPU against the CPU, on the built-in model, and measure how fast it is.
    #[arg(long)]
    gpu: bool,
}

/// Shows what there is, and checks that the built-in model says what it should.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    if global.format == Format::Csv {
        return Err(super::request("what doctor finds has no columns; use --format json"));
    }
    if args.gpu {
        return gpu::run(global);
    }
    let places = Places::from_env()?;
    let (device, why) = super::bench::chosen(global)?;
    let name = interp::device::name(&device);
    let tested = SelfTest::on(&device);
    let gflops = gemm_speed()?;
    let devices = devices(&device, why);
    let hub = places.hub.as_ref().map(|p| p.display().to_string());
    let test = tested.as_ref().ok();
    let facts = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "threads": rayon::current_num_threads(),
        "vectors": vectors(),
        "memory_available": memory::available(),
        "devices": devices,
        "hub_cache": hub,
        "hub": places.endpoint,
        "token": token(&places) == "set",
        "offline": places.offline || global.offline,
        "matrix_gflops": gflops,
        "device": name,
        "model_load_seconds": test.map(|test| test.load.as_secs_f64()),
        "forward_seconds": test.map(|test| test.forward.as_secs_f64()),
        "self_test": test.map(|test| &test.next),
    });
    if global.format == Format::Json {
        print(&(facts.to_string() + "\n"))?;
    } else {
        let mut text = format!(
            "interp {}\n  threads       {} ({})\n  memory        {} available\n  devices       {}\n  \
             hub cache     {}\n  hub           {} ({}, token {})\n  matrix speed  {gflops:.0} GFLOP/s in f32 on the CPU",
            env!("CARGO_PKG_VERSION"),
            rayon::current_num_threads(),
            facts["vectors"].as_str().unwrap_or_default(),
            memory::available().map_or("unknown".into(), memory::human),
            devices.join(", "),
            hub.unwrap_or_else(|| "none: set HF_HOME".into()),
            places.endpoint,
            if places.offline || global.offline { "offline" } else { "online on request" },
            token(&places),
        );
        if let Some(SelfTest { load, forward, next }) = test {
            text += &format!(
                "\n  tiny          loads in {:.0} ms, reads 15 tokens in {:.1} ms on {name}\n  self-test     \"{PROMPT}\" →{next}",
                load.as_secs_f64() * 1e3,
                forward.as_secs_f64() * 1e3,
            );
        }
        say(global, &text)?;
    }
    match tested?.next.as_str() {
        " Mary" => Ok(()),
        next => Err(Error::Bug(format!("self-test on {name}: the built-in model says `{next}` instead of ` Mary`"))),
    }
}

/// The built-in model, read with on a device.
struct SelfTest {
    load: Duration,
    forward: Duration,
    /// What it says comes next.
    next: String,
}

impl SelfTest {
    fn on(device: &Device) -> Result<Self> {
        let start = Instant::now();
        let (model, tokenizer) = (embedded::model_on(device)?, embedded::tokenizer()?);
        let load = start.elapsed();
        let tokens = tokenizer.tokens(&[PROMPT], interp::text::Encoding::default())?;
        let read = || interp::predict::from_trace(&Plan::new().run(&model, &tokens)?, &tokenizer, 1);
        // A GPU's driver translates kernels when they are first asked for.
        read()?;
        let start = Instant::now();
        let frame = read()?;
        let forward = start.elapsed();
        let next = frame.column("next")?.str()?.get(frame.height() - 1).unwrap_or_default().to_string();
        Ok(Self { load, forward, next })
    }
}

/// What can be computed on: the CPU, and the GPU that was chosen or is the first; where none is, why.
fn devices(chosen: &Device, why: Option<String>) -> Vec<String> {
    let (device, why) = match why {
        None if chosen.is_cpu() => interp::device::find(),
        why => (chosen.clone(), why.unwrap_or_default()),
    };
    match device.is_cuda() {
        true => vec!["cpu".into(), described(&device).unwrap_or_else(|e| e.to_string())],
        false => vec![format!("cpu ({why})")],
    }
}

/// The widest vector instructions that the kernels will use.
fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512vl") {
            return "AVX-512";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "baseline"
}

/// Speed of a product of GPT-2's shape, best of a few.
fn gemm_speed() -> Result<f64> {
    let device = Device::Cpu;
    let (a, b) = (
        candle_core::Tensor::ones((512, 768), DType::F32, &device)?,
        candle_core::Tensor::ones((768, 3072), DType::F32, &device)?,
    );
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        a.matmul(&b)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * 512.0 * 768.0 * 3072.0 / best / 1e9)
}

/// Whether there is a token, which is never shown.
fn token(places: &Places) -> &'static str {
    match places.token.read() {
        Ok(Some(_)) => "set",
        Ok(None) => "not set",
        Err(_) => "set, but unusable",
    }
}
