use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use interp::agreement::agreement;
use interp::pair::Pair;
use interp::target::Target;
use interp::weights::Places;
use interp::{Error, Plan, Result, embedded, memory};
use serde_json::json;

use super::args::{Format, Global};
use super::report::{print, say};

const PROMPT: &str = "When Mary and John went to the shop, John gave a drink to";

const CORRUPT: &str = "When Mary and John went to the shop, Mary gave a drink to";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Hold a GPU against the CPU, on the built-in model, and measure how fast it is.
    #[arg(long)]
    gpu: bool,
}

/// Shows what there is, and checks that the built-in model says what it should.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    if args.gpu {
        return gpu(global);
    }
    let places = Places::from_env()?;
    let start = Instant::now();
    let (model, tokenizer) = (embedded::model()?, embedded::tokenizer()?);
    let load = start.elapsed();
    let tokens = tokenizer.tokens(&[PROMPT], interp::text::Encoding::default())?;
    let start = Instant::now();
    let frame = interp::predict::from_trace(&Plan::new().run(&model, &tokens)?, &tokenizer, 1)?;
    let forward = start.elapsed();
    let next = frame.column("next")?.str()?.get(frame.height() - 1).unwrap_or_default().to_string();
    let gflops = gemm_speed()?;
    let devices = devices();
    let hub = places.hub.as_ref().map(|p| p.display().to_string());
    let facts = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "threads": rayon::current_num_threads(),
        "vectors": vectors(),
        "memory_available": memory::available(),
        "devices": devices,
        "hub_cache": hub,
        "hub": places.endpoint,
        "token": places.token.is_some(),
        "offline": places.offline || global.offline,
        "model_load_seconds": load.as_secs_f64(),
        "forward_seconds": forward.as_secs_f64(),
        "matrix_gflops": gflops,
        "self_test": next,
    });
    if global.format == Format::Json {
        print(&(facts.to_string() + "\n"))?;
    } else {
        let text = format!(
            "interp {}\n  threads       {} ({})\n  memory        {} available\n  devices       {}\n  \
             hub cache     {}\n  hub           {} ({}, token {})\n  matrix speed  {gflops:.0} GFLOP/s in f32\n  \
             tiny          loads in {:.0} ms, reads 15 tokens in {:.1} ms\n  self-test     \"{PROMPT}\" →{next}",
            env!("CARGO_PKG_VERSION"),
            rayon::current_num_threads(),
            facts["vectors"].as_str().unwrap_or_default(),
            memory::available().map_or("unknown".into(), memory::human),
            devices.join(", "),
            hub.unwrap_or_else(|| "none: set HF_HOME".into()),
            places.endpoint,
            if places.offline || global.offline { "offline" } else { "online on request" },
            if places.token.is_some() { "set" } else { "not set" },
            load.as_secs_f64() * 1e3,
            forward.as_secs_f64() * 1e3,
        );
        say(global, &text)?;
    }
    if next == " Mary" {
        return Ok(());
    }
    Err(Error::Bug(format!("self-test: the built-in model says `{next}` instead of ` Mary`")))
}

/// What can be computed on.
fn devices() -> Vec<String> {
    let mut all = vec!["cpu".to_string()];
    all.extend(interp::device::open("cuda").and_then(|device| described(&device)).ok());
    if all.len() == 1 {
        all[0] += if cfg!(feature = "cuda") { " (no GPU answers)" } else { " (this build has no CUDA)" };
    }
    all
}

/// A GPU in a line.
fn described(device: &Device) -> Result<String> {
    let name = interp::device::name(device);
    let gpu = interp::device::describe(device)?.ok_or_else(|| Error::Unavailable(format!("{name} is no GPU")))?;
    Ok(format!(
        "{name} ({}, capability {}, {} of {} free)",
        gpu.name,
        gpu.capability,
        memory::human(gpu.free),
        memory::human(gpu.memory)
    ))
}

/// Compares a GPU with the CPU, and measures it.
fn gpu(global: &Global) -> Result<()> {
    let device = interp::device::open(if global.device == "auto" { "cuda" } else { &global.device })?;
    if global.tf32 {
        interp::device::allow_tf32(&device)?;
    }
    let name = described(&device)?;
    let (one, tokenizer) = (embedded::model()?, embedded::tokenizer()?);
    let other = embedded::checkpoint()?.load(DType::F32, &device)?.model;
    let tokens = |text: &str| tokenizer.tokens(&[text], interp::text::Encoding::default());
    let target = Target::parse(&tokenizer, &[" Mary"], &[" John"])?;
    let frame = agreement(&one, &other, &tokenizer, &Pair::new(tokens(PROMPT)?, tokens(CORRUPT)?, target)?)?;
    let speeds = speeds(&device)?;
    let (what, passed) = (frame.column("what")?.str()?, frame.column("passed")?.bool()?);
    let (check, difference) = (frame.column("check")?.str()?, frame.column("difference")?.f64()?);
    let failed: Vec<&str> =
        (0..frame.height()).filter(|i| passed.get(*i) != Some(true)).filter_map(|i| what.get(i)).collect();
    if global.format == Format::Text {
        let mut lines =
            vec![name, format!("  largest differences from the CPU, in f32 (gate {:e})", interp::agreement::GATE)];
        for kind in ["site", "gradient", "edit", "sweep", "generation", "training"] {
            let own = (0..frame.height()).filter(|i| check.get(*i) == Some(kind));
            let worst =
                own.max_by(|a, b| difference.get(*a).unwrap_or(0.0).total_cmp(&difference.get(*b).unwrap_or(0.0)));
            if let Some(i) = worst {
                lines.push(format!(
                    "  {kind:<12}{:>10.1e}  {}",
                    difference.get(i).unwrap_or(f64::NAN),
                    what.get(i).unwrap_or_default()
                ));
            }
        }
        lines.extend(speeds.iter().map(|(what, value, unit)| format!("  {what:<44}{value:>10.1} {unit}")));
        say(global, &lines.join("\n"))?;
    } else {
        let speeds: Vec<_> =
            speeds.iter().map(|(what, value, unit)| json!({ "what": what, "value": value, "unit": unit })).collect();
        print(
            &(json!({ "device": name, "agreement": super::report::rows(&frame)?, "speeds": speeds }).to_string()
                + "\n"),
        )?;
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Bug(format!(
            "the GPU and the CPU differ by more than {:e} at {}",
            interp::agreement::GATE,
            failed.join(", ")
        ))),
    }
}

/// The device's own ceilings, and how near the model comes to them: what, how much, of what. Sizes are those of a large GPU, less
/// on a device that would take long for them.
fn speeds(device: &Device) -> Result<Vec<(String, f64, &'static str)>> {
    /// Sides of matrices, and bytes of a copy: a GPU needs that much before it shows what it can do.
    const SIDES: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
    const BYTES: [usize; 4] = [1 << 22, 1 << 24, 1 << 26, 1 << 28];
    /// Tokens that are read: rows and how long each is.
    const TOKENS: [(usize, usize); 5] = [(1, 16), (1, 128), (1, 1024), (4, 1024), (8, 1024)];
    /// Where something takes so many seconds, nothing larger is tried.
    const LONG: f64 = 0.02;
    let once = |f: &dyn Fn() -> Result<()>| -> Result<f64> {
        let start = Instant::now();
        f()?;
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let timed = |f: &dyn Fn() -> Result<()>| -> Result<f64> {
        once(f)?; // the first time loads kernels
        let mut best = once(f)?;
        for _ in 0..if best < LONG { 4 } else { 0 } {
            best = best.min(once(f)?);
        }
        Ok(best)
    };
    let mut all = Vec::new();
    for (what, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let (side, seconds) = largest(&SIDES, LONG, |side| {
            let x = Tensor::ones((side, side), dtype, device)?;
            timed(&|| Ok(x.matmul(&x).map(|_| ())?))
        })?;
        let flops = 2.0 * (side as f64).powi(3);
        all.push((format!("product of matrices of {side}, {what}"), flops / seconds / 1e12, "TFLOP/s"));
    }
    for (what, passes, unit) in [("on", 2.0, "GB/s read and written"), ("to", 1.0, "GB/s"), ("from", 1.0, "GB/s")] {
        let (bytes, seconds) = largest(&BYTES, LONG, |bytes| {
            let here = Tensor::zeros(bytes / 4, DType::F32, &Device::Cpu)?;
            let there = here.to_device(device)?;
            timed(&|| {
                Ok(match what {
                    "on" => there.copy(),
                    "to" => here.to_device(device),
                    _ => there.to_device(&Device::Cpu),
                }
                .map(|_| ())?)
            })
        })?;
        all.push((format!("copy {what} the device"), passes * bytes as f64 / seconds / 1e9, unit));
    }
    let config = interp::Config::published("gpt2").ok_or_else(|| Error::Bug("gpt2 has no shape".into()))?;
    for (what, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let draw = interp::initial::draw(&config, 0);
        let model = interp::Gpt2::new(config.clone(), |name| Ok(draw(name)?.to_device(device)?.to_dtype(dtype)?))?;
        let ((rows, count), seconds) = largest(&TOKENS, LONG, |(rows, count)| {
            let id = |row: usize, i: usize| (row * count + i * 7) as u32 % config.vocab_size as u32;
            let ids = (0..rows).map(|row| (0..count).map(|i| id(row, i)).collect()).collect();
            let (tokens, plan) = (interp::Tokens::from_ids(ids)?, Plan::new().logits(interp::LogitsAt::None));
            timed(&|| plan.run(&model, &tokens).map(|_| ()))
        })?;
        let speed = (rows * count) as f64 / seconds / 1e3;
        all.push((format!("gpt2's shape reads {rows} × {count}, {what}"), speed, "thousand tokens per second"));
    }
    Ok(all)
}

/// The largest of some sizes that is tried, from the least on until one takes long, with the seconds that it took.
fn largest<S: Copy>(sizes: &[S], long: f64, seconds: impl Fn(S) -> Result<f64>) -> Result<(S, f64)> {
    let mut tried = Err(Error::Bug("no size to try".into()));
    for size in sizes {
        let taken = seconds(*size)?;
        tried = Ok((*size, taken));
        if taken > long {
            break;
        }
    }
    tried
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
    let device = candle_core::Device::Cpu;
    let (a, b) = (
        candle_core::Tensor::ones((512, 768), candle_core::DType::F32, &device)?,
        candle_core::Tensor::ones((768, 3072), candle_core::DType::F32, &device)?,
    );
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        a.matmul(&b)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * 512.0 * 768.0 * 3072.0 / best / 1e9)
}
