//! A GPU held against the CPU, and against itself.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use interp::agreement::{self, agreement};
use interp::gather::Gather;
use interp::generate::{Options, generate};
use interp::pair::Pair;
use interp::patch::{self, patch};
use interp::recipe::{Precision, Recipe};
use interp::sampling::Sampling;
use interp::sweep::Sweep;
use interp::target::Target;
use interp::textset::TextSet;
use interp::train::Trainer;
use interp::{Config, Error, Gpt2, LogitsAt, Plan, Result, Site, Tokens, embedded, memory};
use serde_json::json;

use super::args::{Format, Global};
use super::output::{object, print, say};

pub(super) const PROMPT: &str = "When Mary and John went to the shop, John gave a drink to";
const CORRUPT: &str = "When Mary and John went to the shop, Mary gave a drink to";

/// A GPU in a line.
pub(super) fn described(device: &Device) -> Result<String> {
    let name = interp::device::name(device);
    let gpu = interp::device::describe(device)?.ok_or_else(|| Error::Unavailable(format!("{name} is no GPU")))?;
    Ok(format!(
        "{name} ({}, capability {}, {} of {} free; driver for CUDA {}, cuBLAS {})",
        gpu.name,
        gpu.capability,
        memory::human(gpu.free),
        memory::human(gpu.memory),
        gpu.driver,
        gpu.cublas
    ))
}

/// Compares a GPU with the CPU, and measures it.
pub fn run(global: &Global) -> Result<()> {
    let device = interp::device::open(if global.device == "auto" { "cuda" } else { &global.device })?;
    if global.tf32 {
        interp::device::allow_tf32(&device)?;
    }
    let name = described(&device)?;
    let (one, tokenizer) = (embedded::model()?, embedded::tokenizer()?);
    let other = embedded::model_on(&device)?;
    let tokens = |text: &str| tokenizer.tokens(&[text], interp::text::Encoding::default());
    let target = Target::parse(&tokenizer, &[" Mary"], &[" John"])?;
    let frame = agreement(&one, &other, &tokenizer, &Pair::new(tokens(PROMPT)?, tokens(CORRUPT)?, target)?)?;
    let speeds = speeds(&device)?;
    let (what, passed) = (frame.column("what")?.str()?, frame.column("passed")?.bool()?);
    let (check, difference) = (frame.column("check")?.str()?, frame.column("difference")?.f64()?);
    let failed: Vec<&str> =
        (0..frame.height()).filter(|i| passed.get(*i) != Some(true)).filter_map(|i| what.get(i)).collect();
    if global.format == Format::Text {
        let mut lines = vec![name, format!("  largest differences from the CPU, in f32 (gate {:e})", agreement::GATE)];
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
        lines.extend(speeds.iter().map(Speed::line));
        say(global, &lines.join("\n"))?;
    } else {
        let speeds: Vec<_> = speeds
            .iter()
            .map(|s| json!({ "what": s.what, "value": s.value, "unit": s.unit, "share": s.share.map(|x| x.0), "of": s.share.map(|x| x.1) }))
            .collect();
        let agreement = interp::frame::json(&frame)?;
        print(&object(&[
            ("device", json!(name).to_string()),
            ("agreement", agreement),
            ("speeds", json!(speeds).to_string()),
        ]))?;
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Bug(format!(
            "the GPU and the CPU differ by more than {:e} at {}",
            agreement::GATE,
            failed.join(", ")
        ))),
    }
}

/// What was measured, and which part of what the device can do that is.
struct Speed {
    what: String,
    value: f64,
    unit: &'static str,
    share: Option<(f64, &'static str)>,
}

impl Speed {
    fn line(&self) -> String {
        let share = self.share.map_or(String::new(), |(share, of)| format!("  {:.0} % of {of}", 100.0 * share));
        let digits = if self.value < 10.0 { 3 } else { 1 };
        format!("  {:<52}{:>10.digits$} {}{share}", self.what, self.value, self.unit)
    }
}

/// Where something takes so many seconds, nothing larger is tried, and it is not done again.
const LONG: f64 = 0.02;

/// Seconds until the device has done something: the least of five times after one that loads kernels, or of one where it takes long.
fn seconds(device: &Device, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let mut once = || -> Result<f64> {
        let start = Instant::now();
        work()?;
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    once()?;
    let mut best = once()?;
    for _ in 0..if best < LONG { 4 } else { 0 } {
        best = best.min(once()?);
    }
    Ok(best)
}

/// The largest of some sizes that is tried, from the least on until one takes long, with the seconds that it took.
fn largest<S: Copy>(sizes: &[S], seconds: impl Fn(S) -> Result<f64>) -> Result<(S, f64)> {
    let mut tried = Err(Error::Bug("no size to try".into()));
    for size in sizes {
        let taken = seconds(*size)?;
        tried = Ok((*size, taken));
        if taken > LONG {
            break;
        }
    }
    tried
}

/// The device's own ceilings, and how near the workbench comes to them with a model of gpt2's shape, or on a device that would take
/// long for it, of the built-in one's.
fn speeds(device: &Device) -> Result<Vec<Speed>> {
    /// Sides of matrices, and bytes of a copy: a GPU needs the largest before it shows what it can do.
    const SIDES: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];
    const BYTES: [usize; 4] = [1 << 22, 1 << 24, 1 << 26, 1 << 28];
    /// TFLOP/s of a GPU that is worth its name.
    const FAST: f64 = 1.0;
    let (mut all, mut products, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for dtype in [DType::F32, DType::BF16] {
        let (side, taken) = largest(&SIDES, |side| {
            let x = Tensor::ones((side, side), dtype, device)?;
            seconds(device, &mut || Ok(x.matmul(&x).map(|_| ())?))
        })?;
        let value = 2.0 * (side as f64).powi(3) / taken / 1e12;
        let what = format!("product of matrices of {side}, {}", dtype.as_str());
        all.push(Speed { what, value, unit: "TFLOP/s", share: None });
        products.push(value);
    }
    for (what, passes, unit) in [("on", 2.0, "GB/s read and written"), ("to", 1.0, "GB/s"), ("from", 1.0, "GB/s")] {
        let (bytes, taken) = largest(&BYTES, |bytes| {
            let here = Tensor::zeros(bytes / 4, DType::F32, &Device::Cpu)?;
            let there = here.to_device(device)?;
            seconds(device, &mut || {
                let copied = match what {
                    "on" => there.copy(),
                    "to" => here.to_device(device),
                    _ => there.to_device(&Device::Cpu),
                };
                Ok(copied.map(|_| ())?)
            })
        })?;
        let value = passes * bytes as f64 / taken / 1e9;
        all.push(Speed { what: format!("copy {what} the device"), value, unit, share: None });
        copies.push(value);
    }
    let fast = products[0] >= FAST;
    let published = Config::published("gpt2").ok_or_else(|| Error::Bug("gpt2 has no shape".into()))?;
    let config = if fast { published } else { embedded::config()? };
    for (dtype, product) in [DType::F32, DType::BF16].into_iter().zip(products) {
        let draw = interp::initial::draw(&config, 0);
        let model = Gpt2::new(config.clone(), |name| Ok(draw(name)?.to_device(device)?.to_dtype(dtype)?))?;
        let (rows, length) = if fast { (8, 1024) } else { (1, 16) };
        all.extend(of_model(&model, (rows, length), Ceilings { product, copy: copies[0] })?);
    }
    Ok(all)
}

/// TFLOP/s of products, and GB/s of copies on the device.
#[derive(Clone, Copy)]
struct Ceilings {
    product: f64,
    copy: f64,
}

/// How fast a model on a device does what the workbench is for, on so many rows of such a length.
fn of_model(model: &Gpt2, (rows, length): (usize, usize), ceilings: Ceilings) -> Result<Vec<Speed>> {
    const PROMPT: usize = 15;
    const WRITTEN: usize = 32;
    let (config, device, dtype) = (model.config(), model.device(), model.dtype());
    let vocab = config.vocab_size;
    let ids = |row: usize, n: usize| -> Vec<u32> { (0..n).map(|i| ((row * n + i) * 7919 % vocab) as u32).collect() };
    let tokens = Tokens::from_ids((0..rows).map(|row| ids(row, length)).collect())?;
    let count = tokens.count() as f64;
    let thousands = |what: &str, taken: f64, share| Speed {
        what: format!("{what} {rows} × {length}, {}", dtype.as_str()),
        value: count / taken / 1e3,
        unit: "thousand tokens per second",
        share,
    };
    // Products of the layers' matrices; those of attention come on top.
    let flops = count * 24.0 * (config.n_layer * config.n_embd * config.n_embd) as f64 / 1e12;
    let of_products = |times: f64, taken: f64| Some((times * flops / taken / ceilings.product, "the product's speed"));

    let plan = Plan::new().logits(LogitsAt::None);
    let forward = seconds(device, &mut || plan.run(model, &tokens).map(|_| ()))?;
    let mut all = vec![thousands("reads", forward, of_products(1.0, forward))];

    let sites = Site::all(config.n_layer).filter(|site| !site.is_on_request() && *site != Site::Logits);
    let plan = Plan::new().reads(sites).logits(LogitsAt::None);
    let taken = seconds(device, &mut || plan.run(model, &tokens).map(|_| ()))?;
    all.push(thousands("keeps every site of", taken, Some((forward / taken, "reading alone"))));

    let streams: Vec<Site> = (0..config.n_layer).map(Site::ResidPost).collect();
    let chosen: Vec<Vec<u32>> = vec![(0..length as u32).collect(); rows];
    let (mut gather, mut into) = (Gather::new(model, &streams)?, vec![Vec::new(); streams.len()]);
    let taken = seconds(device, &mut || {
        into.iter_mut().for_each(Vec::clear);
        gather.read(&tokens, &chosen, &mut into)
    })?;
    drop((gather, into));
    all.push(thousands("brings every stream to the host of", taken, Some((forward / taken, "reading alone"))));

    let clean = ids(0, PROMPT);
    let mut corrupt = clean.clone();
    corrupt[PROMPT / 2] += 1;
    let of = |ids| Tokens::from_ids(vec![ids]);
    let pair = Pair::new(of(clean.clone())?, of(corrupt)?, Target::new(vec![3], vec![8])?)?;
    let sweep = Sweep::named("resid_pre")?;
    let taken = seconds(device, &mut || {
        patch(model, &pair, &sweep, patch::Options::default(), &mut |_, _| Ok(())).map(|_| ())
    })?;
    all.push(Speed {
        what: format!("patches layers × {PROMPT} positions, {}", dtype.as_str()),
        value: (config.n_layer * PROMPT) as f64 / taken,
        unit: "runs per second",
        share: None,
    });

    let tokenizer = embedded::tokenizer()?; // ids are what counts here; their text is not looked at
    let prompt = of(clean)?;
    let options =
        Options { sampling: Sampling::greedy(), max_new_tokens: WRITTEN, ignore_end: true, ..Options::default() };
    let taken =
        seconds(device, &mut || generate(model, &tokenizer, &prompt, &[], &options, &mut |_| Ok(())).map(|_| ()))?;
    // Every weight is read for every token.
    let bytes = (config.parameters() as usize * dtype.size_in_bytes() * WRITTEN) as f64 / 1e9;
    all.push(Speed {
        what: format!("writes {WRITTEN} tokens, {}", dtype.as_str()),
        value: WRITTEN as f64 / taken,
        unit: "tokens per second",
        share: Some((bytes / taken / ceilings.copy, "the memory's speed")),
    });

    let set = [
        format!("block_size={length}"),
        format!("batch_size={rows}"),
        format!("micro_batch_size={rows}"),
        "max_iters=1000".into(),
    ];
    let mut recipe = Recipe::load_with(None, &set)?;
    recipe.train.dtype = Precision::of(dtype)?;
    let text = TextSet::new((ids(0, length + 1), ids(1, length + 1)), 0, length)?;
    let mut trainer = Trainer::from_model(recipe, model, "", tokenizer, Box::new(text))?;
    let taken = seconds(device, &mut || trainer.step().map(|_| ()))?;
    all.push(thousands("trains on", taken, of_products(3.0, taken)));
    Ok(all)
}
