use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use interp::train::{Recipe, STATE, Trainer};
use interp::{Error, Result, disk, figure, language};
use polars::df;
use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::{Format, Global};
use super::note;
use super::report::{arguments, csv, print, rows, say, slug};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The recipe, such as models/tiny/recipe.toml.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Start over, even if --out holds a run that could be continued.
    #[arg(long)]
    restart: bool,
}

/// A line of metrics.jsonl.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Metric {
    step: u64,
    split: String,
    loss: f64,
    lr: f64,
    tokens_per_second: f64,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let recipe = Recipe::load(&args.config)?;
    let base = args.config.parent().unwrap_or(Path::new("."));
    let path = base.join(&recipe.data.language);
    let bytes = interp::weights::read_small(&path, 4 << 20)?;
    let text = String::from_utf8(bytes).map_err(|e| Error::Data { path: path.clone(), what: e.to_string() })?;
    let language = language::Language::parse(&text, &path)?;
    let dir = match &global.out {
        Some(dir) => dir.clone(),
        None => Path::new("outputs").join("train").join(slug(&args.config.display().to_string())),
    };
    if dir.exists() && !dir.is_dir() {
        return Err(Error::CannotWrite { path: dir, what: "it is a file; --out names a directory".into() });
    }
    disk::write_dir(&dir)?;
    let _lock = lock(&dir)?;
    let mut trainer = Trainer::new(recipe, language)?;
    let metrics_path = dir.join("metrics.jsonl");
    let mut metrics = Vec::new();
    if dir.join(STATE).exists() && !args.restart {
        trainer.load_state(&dir)?;
        metrics = read_metrics(&metrics_path, trainer.steps())?;
        note(global.quiet, &format!("continuing at step {}", trainer.steps()));
    }
    write_metrics(&metrics_path, &metrics)?;
    let model = trainer.model().config();
    note(
        global.quiet,
        &format!(
            "{} parameters, {} tokens per step, {} threads",
            model.parameters(),
            trainer.tokens_per_step(),
            rayon::current_num_threads()
        ),
    );
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first one asks to stop after the step; the second ends the process, whose last checkpoint is whole.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone());
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    train(&mut trainer, &dir, &metrics_path, &mut metrics, &stop, global)?;
    if stop.load(Ordering::Relaxed) {
        trainer.save_state(&dir)?;
        return Err(Error::Interrupted(format!(" at step {}; the same command continues", trainer.steps())));
    }
    trainer.save_model(&dir)?;
    finish(&trainer, &dir, &metrics, global)
}

/// One trainer per directory.
fn lock(dir: &Path) -> Result<std::fs::File> {
    let path = dir.join(".lock");
    let file =
        std::fs::File::create(&path).map_err(|e| Error::CannotWrite { path: path.clone(), what: e.to_string() })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(Error::TryAgain(format!("{}: another process is training here", dir.display()))),
    }
}

fn train(
    trainer: &mut Trainer,
    dir: &Path,
    metrics_path: &Path,
    metrics: &mut Vec<Metric>,
    stop: &AtomicBool,
    global: &Global,
) -> Result<()> {
    let knobs = trainer.recipe().train.clone();
    let bar = progress(global.quiet, knobs.max_iters, trainer.steps());
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(metrics_path)
        .map_err(|source| Error::Io { path: metrics_path.to_path_buf(), source })?;
    let mut record = |metrics: &mut Vec<Metric>, metric: Metric| -> Result<()> {
        let line = serde_json::to_string(&metric).map_err(|e| Error::Bug(e.to_string()))?;
        metrics.push(metric);
        writeln!(file, "{line}").map_err(|source| Error::Io { path: metrics_path.to_path_buf(), source })
    };
    while trainer.steps() < knobs.max_iters && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let step = trainer.step()?;
        let tokens_per_second = trainer.tokens_per_step() as f64 / start.elapsed().as_secs_f64();
        let metric =
            |split: &str, loss| Metric { step: step.step, split: split.into(), loss, lr: step.lr, tokens_per_second };
        record(metrics, metric("train", step.loss))?;
        let last = step.step == knobs.max_iters;
        if step.step % knobs.eval_interval == 0 || last {
            record(metrics, metric("validation", trainer.validation_loss()?))?;
        }
        if let Some(bar) = &bar {
            bar.set_position(step.step);
            bar.set_message(format!("loss {:.4}, {tokens_per_second:.0} tokens/s", step.loss));
        }
        if step.step % knobs.checkpoint_interval == 0 || last {
            trainer.save_state(dir)?;
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(())
}

fn progress(quiet: bool, steps: u64, done: u64) -> Option<indicatif::ProgressBar> {
    if quiet || !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = indicatif::ProgressBar::new(steps).with_position(done);
    let style = "step {pos}/{len} [{wide_bar}] {msg}, {eta} left";
    if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.reset_eta();
    Some(bar)
}

/// The metrics up to a step: later ones belong to steps that a kill undid.
fn read_metrics(path: &Path, steps: u64) -> Result<Vec<Metric>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&interp::weights::read_small(path, 1 << 30)?).into_owned();
    // A line that a kill cut short does not parse, and is of a step that was undone.
    let known = text.lines().filter_map(|line| serde_json::from_str::<Metric>(line).ok());
    Ok(known.filter(|metric| metric.step <= steps).collect())
}

fn write_metrics(path: &Path, metrics: &[Metric]) -> Result<()> {
    disk::write_atomic(path, |file| {
        metrics.iter().try_for_each(|metric| writeln!(file, "{}", serde_json::to_string(metric)?))
    })
}

fn finish(trainer: &Trainer, dir: &Path, metrics: &[Metric], global: &Global) -> Result<()> {
    let mut frame: DataFrame = df!(
        "step" => metrics.iter().map(|m| m.step).collect::<Vec<_>>(),
        "split" => metrics.iter().map(|m| m.split.clone()).collect::<Vec<_>>(),
        "loss" => metrics.iter().map(|m| m.loss).collect::<Vec<_>>(),
        "lr" => metrics.iter().map(|m| m.lr).collect::<Vec<_>>(),
        "tokens_per_second" => metrics.iter().map(|m| m.tokens_per_second).collect::<Vec<_>>(),
    )?;
    interp::frame::save_parquet(&mut frame, &dir.join("frame.parquet"))?;
    let figure = figure::training(&frame)?;
    disk::write_bytes(&dir.join("figure.svg"), figure.svg()?.as_bytes())?;
    disk::write_bytes(&dir.join("figure.png"), &figure.png()?)?;
    let run = json!({
        "command": "train",
        "arguments": arguments(),
        "recipe": trainer.recipe(),
        "model": trainer.model().config().to_json(),
        "weights_sha256": interp::weights::sha256(&dir.join("model.safetensors"))?,
        "tokenizer_sha256": interp::weights::sha256(&dir.join("tokenizer.json"))?,
        "device": "cpu",
        "dtype": "f32",
        "seed": trainer.recipe().train.seed,
        "versions": { "interp": env!("CARGO_PKG_VERSION") },
        "threads": rayon::current_num_threads(),
    });
    let text = serde_json::to_vec_pretty(&run).map_err(|e| Error::Bug(e.to_string()))?;
    disk::write_bytes(&dir.join("run.json"), &text)?;
    let last = |split: &str| metrics.iter().rev().find(|m| m.split == split).map_or(f64::NAN, |m| m.loss);
    match global.format {
        Format::Text => say(
            global,
            &format!(
                "step {}: loss {:.4} on training rows, {:.4} on validation rows\nwrote {}",
                trainer.steps(),
                last("train"),
                last("validation"),
                dir.display()
            ),
        ),
        Format::Json => print(&(json!({ "run": run, "rows": rows(&frame)? }).to_string() + "\n")),
        Format::Csv => print(&csv(&frame)?),
    }
}
