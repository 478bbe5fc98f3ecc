//! The contender that `side_by_side.py` and `gpu.py` talk to: it loads a model, on a device and in a type if these are named,
//! then reads requests from standard input.
//!
//! Each request is a task and a number of tokens T, or `T×B` for a batch of B rows; the answer is the seconds that it took, until
//! the device was done.
//!
//! - `forward T`: logits at every position; `capture T [FILE]`: every site, written as safetensors on request
//! - `generate T`: T tokens after a prompt of 15, greedy, with a cache
//! - `step T`: one step of training on the rows, AdamW and clipping included
//! - `export T`: the residual stream after every layer, on the host
//! - `atp T`: attribution patching of streams, heads and patterns; `eap_ig T`: every edge, by five steps of integrated gradients;
//!   `edge T`: the mean over some hundred edges that are tried, in seconds per edge; all between the two prompts of sweeps
//! - the name of a sweep and T: patching between two prompts of T tokens that differ in one, both runs included

mod naive;

use std::collections::HashMap;
use std::error::Error;
use std::hint::black_box;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use interp::edges::{self, Steps};
use interp::gather::Gather;
use interp::generate::{Options, generate};
use interp::graph::Graph;
use interp::metric::Metric;
use interp::pair::Pair;
use interp::patch::{self, patch};
use interp::recipe::{Precision, Recipe};
use interp::sampling::Sampling;
use interp::sweep::Sweep;
use interp::target::Target;
use interp::textset::TextSet;
use interp::train::Trainer;
use interp::weights::{Checkpoint, read_small};
use interp::{Config, Gpt2, Plan, Site, Tokens};

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Result<(), String> {
    // SAFETY: no other thread has been started yet.
    #[allow(unsafe_code)]
    let ended = unsafe { interp::process::run(|_| run().map_err(|e| e.to_string())) }; // as the binary does its work
    ended.map_err(|e| e.to_string())?
}

fn run() -> Fallible<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (contender, dir, device, dtype) = match args.as_slice() {
        [contender, dir] => (contender, dir, "cpu", "f32"),
        [contender, dir, device, dtype] => (contender, dir, device.as_str(), dtype.as_str()),
        _ => {
            println!("started by benches/side_by_side.py, which needs Python peers: see the README's section on speed");
            return Ok(());
        }
    };
    let dir = Path::new(dir);
    let path = dir.join("config.json");
    let config = Config::parse(&read_small(&path, 1 << 20)?, &path)?;
    let file = dir.join("model.safetensors");
    if contender == "naive" {
        let model = naive::Gpt2::load(&file, config.n_layer, config.n_head)?;
        return serve(|task, (length, _), _| {
            let tokens = ids(length, config.vocab_size);
            let mut kept = Vec::new();
            let start = Instant::now();
            let logits = match task {
                "forward" => model.forward(&tokens, &mut |_| {})?,
                _ => model.forward(&tokens, &mut |value| kept.push(value))?,
            };
            let seconds = start.elapsed().as_secs_f64();
            black_box((logits, kept));
            Ok(seconds)
        });
    }
    let device = interp::device::open(device)?;
    let dtype: candle_core::DType = dtype.parse()?;
    let model = Checkpoint::open(&[file], &config)?.load(dtype, &device)?.model;
    let streams: Vec<Site> = (0..config.n_layer).map(Site::ResidPost).collect();
    let (mut trainer, mut gather) = (None, Gather::new(&model, &streams)?);
    serve(|task, (length, rows), out| match task {
        "generate" => write(&model, length),
        "step" => step(&model, &mut trainer, (length, rows)),
        "export" => exported(&mut gather, &config, (length, rows)),
        "forward" | "capture" => ours(&model, task, (length, rows), out),
        "atp" | "eap_ig" | "edge" => attributed(&model, task, length),
        sweep => patched(&model, sweep, length),
    })
}

/// The residual stream after every layer, as a dataset gets it: in f32 on the host.
fn exported(gather: &mut Gather<'_>, config: &Config, (length, rows): (usize, usize)) -> Fallible<f64> {
    let tokens = Tokens::from_ids(vec![ids(length, config.vocab_size); rows])?;
    let chosen = vec![(0..length as u32).collect(); rows];
    let mut into = vec![Vec::with_capacity(rows * length * config.n_embd); config.n_layer];
    let start = Instant::now();
    gather.read(&tokens, &chosen, &mut into)?;
    let seconds = start.elapsed().as_secs_f64();
    black_box(into);
    Ok(seconds)
}

fn write(model: &Gpt2, length: usize) -> Fallible<f64> {
    let tokens = Tokens::from_ids(vec![ids(15, model.config().vocab_size)])?;
    let tokenizer = interp::embedded::tokenizer()?; // ids are what counts here; their text is not looked at
    let options =
        Options { sampling: Sampling::greedy(), max_new_tokens: length, ignore_end: true, ..Options::default() };
    let start = Instant::now();
    black_box(generate(model, &tokenizer, &tokens, &[], &options, &mut |_| Ok(()))?);
    Ok(start.elapsed().as_secs_f64())
}

/// Two prompts that differ in one token.
fn pair(model: &Gpt2, length: usize) -> Fallible<Pair> {
    let clean = ids(length, model.config().vocab_size);
    let mut corrupt = clean.clone();
    corrupt[2 * length / 3] += 1;
    let tokens = |ids| Tokens::from_ids(vec![ids]);
    Ok(Pair::new(tokens(clean)?, tokens(corrupt)?, Target::new(vec![3], vec![8])?)?)
}

fn attributed(model: &Gpt2, task: &str, length: usize) -> Fallible<f64> {
    let pair = pair(model, length)?;
    let start = Instant::now();
    match task {
        "atp" => {
            let names = ["resid_pre", "attn_out", "mlp_out", "attn_head_by_pos_every"];
            let sweeps: Vec<Sweep> = names.into_iter().map(Sweep::named).collect::<Result<Vec<_>, _>>()?.concat();
            black_box(patch::attribute(model, &pair, &sweeps, &[Metric::LogitDiff], patch::Options::default())?);
        }
        "eap_ig" => {
            black_box(edges::attribute(model, &[pair], Metric::LogitDiff, Steps::Integrated(5), None, &mut |_, _| {
                Ok(())
            })?);
        }
        _ => {
            let some: Vec<usize> = (0..Graph::of(model.config()).edges()).step_by(97).collect();
            black_box(edges::exact(model, &pair, Metric::LogitDiff, &some, None, &mut |_, _| Ok(()))?);
            return Ok(start.elapsed().as_secs_f64() / some.len() as f64);
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

fn patched(model: &Gpt2, sweep: &str, length: usize) -> Fallible<f64> {
    let pair = pair(model, length)?;
    let start = Instant::now();
    black_box(patch(model, &pair, &Sweep::named(sweep)?, patch::Options::default(), &mut |_, _| Ok(()))?);
    Ok(start.elapsed().as_secs_f64())
}

type Shape = (usize, usize);

fn step(model: &Gpt2, trainer: &mut Option<(Shape, Trainer)>, (length, rows): Shape) -> Fallible<f64> {
    if trainer.as_ref().is_none_or(|(of, _)| *of != (length, rows)) {
        *trainer = None; // two at once would not fit into a small machine
        let set = [
            format!("block_size={length}"),
            format!("batch_size={rows}"),
            format!("micro_batch_size={rows}"),
            "max_iters=1000000".into(),
        ];
        let mut recipe = Recipe::load_with(None, &set)?;
        recipe.train.dtype = Precision::of(model.dtype())?;
        let text = ids(length + 1, model.config().vocab_size);
        let text = TextSet::new((text.clone(), text), 0, length)?;
        let tokenizer = interp::embedded::tokenizer()?;
        *trainer = Some(((length, rows), Trainer::from_model(recipe, model, "", tokenizer, Box::new(text))?));
    }
    let Some((_, trainer)) = trainer else { return Err("no trainer".into()) };
    let start = Instant::now();
    black_box(trainer.step()?);
    if trainer.micro_batch_size() < rows {
        return Err(format!("no memory for {rows} rows at once").into());
    }
    model.device().synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Answers requests until standard input ends.
fn serve(mut run: impl FnMut(&str, Shape, Option<&str>) -> Fallible<f64>) -> Fallible<()> {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [task, length, rest @ ..] = words.as_slice() else { return Err(format!("`{line}` is no request").into()) };
        let (length, rows) = length.split_once('×').unwrap_or((length, "1"));
        println!("{}", run(task, (length.parse()?, rows.parse()?), rest.first().copied())?);
    }
    Ok(())
}

fn ours(model: &Gpt2, task: &str, (length, rows): Shape, out: Option<&str>) -> Fallible<f64> {
    let tokens = Tokens::from_ids(vec![ids(length, model.config().vocab_size); rows])?;
    // One stream per head is left out of the comparison: TransformerLens forms it on request only.
    let sites = || Site::all(model.config().n_layer).filter(|site| !site.is_on_request());
    let start = Instant::now();
    if task == "forward" {
        let logits = model.forward(&tokens)?;
        model.device().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        black_box(logits);
        return Ok(seconds);
    }
    let trace = Plan::new().reads(sites()).run(model, &tokens)?;
    model.device().synchronize()?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(out) = out {
        let values: HashMap<String, _> =
            sites().map(|site| Ok((site.long(), trace.get(site)?.contiguous()?))).collect::<Fallible<_>>()?;
        candle_core::safetensors::save(&values, out)?;
    }
    black_box(trace);
    Ok(seconds)
}

/// The same text for every contender.
fn ids(length: usize, vocab: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 7919 + 13) % vocab) as u32).collect()
}
