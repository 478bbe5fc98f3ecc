//! What `train` and `finetune` share: the run itself, its files, and the estimate before it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use interp::recipe::{Precision, Recipe};
use interp::run_dir::{Kept, RUN};
use interp::texts::Texts;
use interp::train::{STATE, Trainer};
use interp::weights::MODEL_FILES;
use interp::{Config, Error, Result, disk, figure, memory};
use polars::df;
use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::cost::{self, Estimate};
use super::output::{bar, object, print, say};
use super::prompts::reading;
use super::report::{inputs, output_dir, save_figure, with_arguments};
use super::stop::Stop;
use super::{note, request};

/// Options of both commands.
#[derive(clap::Args, Debug)]
#[command(after_long_help = interp::recipe::help())]
pub struct Args {
    /// The recipe, such as models/tiny/recipe.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set a key of the recipe, such as learning_rate=1e-4; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Text to learn from: a file, a directory, .jsonl or .ndjson with a `text` field per line, .parquet, or nanoGPT's .bin; may be
    /// given several times.
    #[arg(long, value_name = "PATH")]
    pub file: Vec<PathBuf>,
    /// Text to measure on [default: the last tenth of the text].
    #[arg(long, value_name = "PATH")]
    pub val_file: Vec<PathBuf>,
    /// Parameters that stay as they are, such as 'h.[0-5].*,wte'.
    #[arg(long, value_name = "PATTERNS")]
    pub freeze: Vec<String>,
    /// Start over, even if --out holds a run that could be continued.
    #[arg(long)]
    pub restart: bool,
    /// Only say how many parameters, how much memory, how long, from some steps that are measured and forgotten.
    #[arg(long)]
    pub dry_run: bool,
}

impl Args {
    /// The recipe with all that the options change, and the directory from which its paths count.
    pub fn recipe(&self, global: &Global) -> Result<(Recipe, PathBuf)> {
        let mut set = self.set.clone();
        // 0 is a seed like any other, but not what a recipe's own gives way to unless it is asked for.
        if global.given.has("seed") {
            set.push(format!("train.seed={}", global.seed));
        }
        let mut recipe = Recipe::load_with(self.config.as_deref(), &set)?;
        if let Some(dtype) = global.dtype {
            if self.set.iter().any(|set| ["dtype", "train.dtype"].contains(&set.split('=').next().unwrap_or("").trim()))
            {
                return Err(request("--dtype and --set dtype say the same thing; give one of them"));
            }
            recipe.train.dtype = Precision::of(dtype.into())?;
        }
        let base = self.config.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_path_buf();
        // Paths on the command line count from here, those in the recipe from the recipe.
        let here = std::env::current_dir().map_err(|source| Error::Io { path: ".".into(), source })?;
        recipe.data.text.extend(self.file.iter().map(|path| here.join(path)));
        recipe.data.validation.extend(self.val_file.iter().map(|path| here.join(path)));
        recipe.train.freeze.extend(self.freeze.iter().cloned());
        if recipe.data.language.is_some() && !recipe.data.text.is_empty() {
            return Err(request("the recipe reads a language; it cannot read text as well"));
        }
        Ok((recipe, base))
    }
}

/// The texts of a recipe.
pub fn texts(recipe: &Recipe, base: &Path, global: &Global) -> Result<Texts> {
    let texts = Texts::read_with(&recipe.data, base, &reading(global))?;
    if global.allow_special && texts.is_of_tokens() {
        return Err(request("--allow-special reads text, and all that is given is tokens already"));
    }
    Ok(texts)
}

/// A line of metrics.jsonl.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Metric {
    step: u64,
    split: String,
    loss: f64,
    lr: f64,
    tokens_per_second: f64,
    /// Since the run began, over all of its parts.
    #[serde(default)]
    seconds: f64,
}

/// Directory of the model with the lowest validation loss.
const BEST: &str = "best";
/// The file with a line per measurement.
const METRICS: &str = "metrics.jsonl";

/// Takes the directory of a run before any work; none for a dry run, which writes nothing.
pub fn claim(
    command: &str,
    args: &Args,
    recipe: &Recipe,
    base: &Path,
    global: &Global,
    name: &str,
) -> Result<Option<Kept>> {
    if args.dry_run {
        return Ok(None);
    }
    let data = &recipe.data;
    let read = data.text.iter().chain(&data.validation).chain(&data.language).map(|path| base.join(path));
    let reads: Vec<PathBuf> = inputs().into_iter().chain(read).collect();
    Kept::open(&output_dir(command, global, name)?, command, &reads).map(Some)
}

/// Carries out a run in the directory that was taken for it, or says what it would take.
pub fn run(
    command: &'static str,
    mut trainer: Trainer,
    kept: Option<Kept>,
    args: &Args,
    global: &Global,
) -> Result<()> {
    fits(&trainer, global)?;
    let Some(mut kept) = kept else { return estimate(trainer, global) };
    let (mut metrics, mut lines) = (Vec::new(), Vec::new());
    if kept.has(STATE) && !args.restart {
        trainer.load_state(&kept.dir())?;
        (metrics, lines) = read_metrics(&kept, trainer.steps())?;
        note(global.quiet, &format!("continuing at step {}", trainer.steps()));
    }
    if !trainer.is_done() {
        // Unfinished from here on.
        kept.remove_file(RUN)?;
    }
    if args.restart {
        kept.remove_file(STATE)?;
    }
    disk::write_atomic(&kept.write_file(METRICS)?, |file| lines.iter().try_for_each(|line| writeln!(file, "{line}")))?;
    note(
        global.quiet,
        &format!(
            "{} parameters, {} of them learn, {} tokens per step, {} threads",
            trainer.model().config().parameters(),
            trainer.trainable(),
            trainer.tokens_per_step(),
            rayon::current_num_threads()
        ),
    );
    // What it ends with is the last checkpoint, which is whole.
    let stop = Stop::listen();
    train(&mut trainer, &mut kept, &mut metrics, &stop, global)?;
    if stop.is_asked() {
        save_state(&trainer, &mut kept)?;
        return Err(stop.error(format!(" at step {}; the same command continues", trainer.steps())));
    }
    save_model(&trainer, &mut kept, "")?;
    finish(command, &trainer, &mut kept, &metrics, global)
}

fn save_state(trainer: &Trainer, kept: &mut Kept) -> Result<()> {
    kept.write_file(STATE)?;
    trainer.save_state(&kept.dir())
}

/// Writes the model into the run's directory, or into one below it.
fn save_model(trainer: &Trainer, kept: &mut Kept, below: &str) -> Result<()> {
    let below = Path::new(below);
    for name in MODEL_FILES {
        kept.write_file(&below.join(name).to_string_lossy())?;
    }
    trainer.save_model(&kept.dir().join(below))
}

/// Refuses a model that --memory has no room for, before its weights are drawn or copied.
pub fn can_start(config: &Config, global: &Global) -> Result<()> {
    match global.memory {
        Some(_) => {
            memory::check(&format!("training {} parameters", config.parameters()), config.start_memory(), global.memory)
        }
        None => Ok(()),
    }
}

/// Refuses a run that would not fit into memory, and says what would.
fn fits(trainer: &Trainer, global: &Global) -> Result<()> {
    let limit = global.memory;
    // A GPU's memory is its own, and rows that it has none for pass in parts.
    if limit.is_none() && !trainer.model().device().is_cpu() {
        return Ok(());
    }
    let t = &trainer.recipe().train;
    let most = t.batch_size * t.gradient_accumulation_steps;
    let what = format!(
        "a step of {most} rows and a validation of {} rows, of {} tokens each,",
        t.validation_rows(),
        trainer.block_size()
    );
    memory::check(&what, trainer.rows_memory(), limit).map_err(|e| match e {
        Error::TryAgain(what) => {
            Error::TryAgain(format!("{what}: lower batch_size, gradient_accumulation_steps or eval_rows"))
        }
        other => other,
    })?;
    let (rows, length) = (t.micro_batch_size, trainer.block_size());
    let Err(refusal) = memory::check("a training step", trainer.memory(rows, length), limit) else { return Ok(()) };
    let room = limit.or_else(memory::available).unwrap_or(u64::MAX);
    let smaller = std::iter::successors(Some(length), |n| (*n > 32).then_some(n / 2));
    let fitting = smaller.map(|n| (n, trainer.memory(1, n))).find(|(_, needed)| *needed <= room);
    Err(Error::TryAgain(match fitting {
        Some((n, needed)) => format!(
            "{refusal}; micro_batch_size=1 with block_size={n} needs {}: lower batch_size and raise \
             gradient_accumulation_steps to learn from as many rows",
            memory::human(needed)
        ),
        None => format!("{refusal}; shorter rows do not help: --freeze layers or take a smaller model"),
    }))
}

fn ran_out(rows: usize) -> String {
    format!("note: memory ran out: {rows} rows pass at once from here on")
}

/// Steps that a dry run times.
const STEPS: u32 = 2;

/// Takes some steps to see how long they take, and says what the whole run would.
fn estimate(mut trainer: Trainer, global: &Global) -> Result<()> {
    let before = memory::peak().unwrap_or(0);
    // The first step touches all memory for the first time; a long run is made of later ones.
    trainer.step()?;
    let start = Instant::now();
    for _ in 0..STEPS {
        trainer.step()?;
    }
    let step = start.elapsed().as_secs_f64() / f64::from(STEPS);
    let start = Instant::now();
    trainer.validation_loss()?;
    let evaluation = start.elapsed().as_secs_f64();
    if trainer.micro_batch_size() < trainer.recipe().train.micro_batch_size {
        note(global.quiet, &ran_out(trainer.micro_batch_size()));
    }
    let t = &trainer.recipe().train;
    let seconds = step * t.max_iters as f64 + evaluation * (t.max_iters / t.eval_interval + 1) as f64;
    let (all, learning) = (trainer.model().config().parameters(), trainer.trainable() as u64);
    let peak = cost::peak();
    let human = memory::human;
    let estimate = Estimate {
        seconds,
        peak,
        facts: json!({
            "parameters": all,
            "trainable_parameters": learning,
            "tokens_per_step": trainer.tokens_per_step(),
            "weights_bytes": 4 * all,
            "gradients_bytes": 4 * learning,
            "optimizer_bytes": 8 * learning,
            "activations_bytes": peak.saturating_sub(before),
            "step_seconds": step,
            "evaluation_seconds": evaluation,
            "steps": t.max_iters,
        }),
        lines: vec![
            ("parameters", format!("{all}, {learning} of them learn")),
            (
                "of memory",
                format!(
                    "weights {}, gradients {}, optimizer {}, activations and the rest {}",
                    human(4 * all),
                    human(4 * learning),
                    human(8 * learning),
                    human(peak.saturating_sub(4 * all + 12 * learning))
                ),
            ),
            (
                "a step",
                format!(
                    "{step:.2} s for {} tokens, {:.0} tokens/s",
                    trainer.tokens_per_step(),
                    trainer.tokens_per_step() as f64 / step
                ),
            ),
            ("steps", t.max_iters.to_string()),
        ],
    };
    estimate.show(global)
}

fn train(
    trainer: &mut Trainer,
    kept: &mut Kept,
    metrics: &mut Vec<Metric>,
    stop: &Stop,
    global: &Global,
) -> Result<()> {
    let knobs = trainer.recipe().train.clone();
    let bar = bar(global.quiet, knobs.max_iters, "step {pos}/{len} [{wide_bar}] {msg}, {eta} left");
    bar.set_position(trainer.steps());
    bar.reset_eta();
    let metrics_path = kept.write_file(METRICS)?;
    let mut file = disk::open_append(&metrics_path)?;
    let (begun, before) = (Instant::now(), metrics.last().map_or(0.0, |metric| metric.seconds));
    let mut record = |metrics: &mut Vec<Metric>, mut metric: Metric| -> Result<()> {
        metric.seconds = before + begun.elapsed().as_secs_f64();
        let line = serde_json::to_string(&metric).map_err(|e| Error::Bug(e.to_string()))?;
        metrics.push(metric);
        writeln!(file, "{line}").map_err(|source| Error::Io { path: metrics_path.clone(), source })
    };
    let mut rows = knobs.micro_batch_size;
    if trainer.steps() == 0 && metrics.is_empty() {
        let loss = trainer.evaluate()?.0;
        record(metrics, Metric { step: 0, split: "validation".into(), loss, ..Metric::default() })?;
    }
    while !trainer.is_done() && !stop.is_asked() {
        let start = Instant::now();
        let step = trainer.step()?;
        if trainer.micro_batch_size() < rows {
            rows = trainer.micro_batch_size();
            bar.suspend(|| note(global.quiet, &ran_out(rows)));
        }
        let tokens_per_second = trainer.tokens_per_step() as f64 / start.elapsed().as_secs_f64();
        let metric = |split: &str, loss| Metric {
            step: step.step,
            split: split.into(),
            loss,
            lr: step.lr,
            tokens_per_second,
            seconds: 0.0,
        };
        record(metrics, metric("train", step.loss))?;
        let last = step.step == knobs.max_iters;
        if step.step % knobs.eval_interval == 0 || last {
            let (loss, lowest) = trainer.evaluate()?;
            record(metrics, metric("validation", loss))?;
            if lowest && knobs.keep_best {
                save_model(trainer, kept, BEST)?;
            }
        }
        bar.set_position(step.step);
        bar.set_message(format!("loss {:.4}, {tokens_per_second:.0} tokens/s", step.loss));
        if step.step % knobs.checkpoint_interval == 0 || last || trainer.is_done() {
            save_state(trainer, kept)?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// The metrics up to a step, and their lines as they stand in the file: later ones belong to steps that a kill undid.
fn read_metrics(kept: &Kept, steps: u64) -> Result<(Vec<Metric>, Vec<String>)> {
    if !kept.has(METRICS) {
        return Ok((Vec::new(), Vec::new()));
    }
    let text = String::from_utf8_lossy(&interp::weights::read_small(&kept.dir().join(METRICS), 1 << 30)?).into_owned();
    // A line that a kill cut short does not parse, and is of a step that was undone.
    let known = text.lines().filter_map(|line| Some((serde_json::from_str::<Metric>(line).ok()?, line.to_string())));
    Ok(known.filter(|(metric, _)| metric.step <= steps).unzip())
}

fn finish(command: &str, trainer: &Trainer, kept: &mut Kept, metrics: &[Metric], global: &Global) -> Result<()> {
    let mut frame: DataFrame = df!(
        "step" => metrics.iter().map(|m| m.step).collect::<Vec<_>>(),
        "split" => metrics.iter().map(|m| m.split.clone()).collect::<Vec<_>>(),
        "loss" => metrics.iter().map(|m| m.loss).collect::<Vec<_>>(),
        "lr" => metrics.iter().map(|m| m.lr).collect::<Vec<_>>(),
        "tokens_per_second" => metrics.iter().map(|m| m.tokens_per_second).collect::<Vec<_>>(),
        "seconds" => metrics.iter().map(|m| m.seconds).collect::<Vec<_>>(),
        "cost" => metrics.iter().map(|m| global.cost(m.seconds)).collect::<Vec<_>>(),
    )?;
    let seconds = metrics.last().map_or(0.0, |m| m.seconds);
    interp::frame::save_parquet(&mut frame, &kept.write_file("frame.parquet")?)?;
    let figure = figure::training(&frame)?;
    kept.write_file("figure.svg")?;
    kept.write_file("figure.png")?;
    let dir = kept.dir();
    save_figure(&dir, &figure, global)?;
    let mut run: Value = json!({
        "command": command,
        "recipe": trainer.recipe(),
        "rows_at_once": trainer.micro_batch_size(),
        "model": trainer.model().config().to_json(),
        "weights_sha256": interp::weights::sha256(&dir.join("model.safetensors"))?,
        "tokenizer_sha256": interp::weights::sha256(&dir.join("tokenizer.json"))?,
        "device": interp::device::name(trainer.model().device()),
        "dtype": trainer.recipe().train.dtype.dtype().as_str(),
        "seed": trainer.recipe().train.seed,
        "lowest_validation_loss": trainer.progress().best,
        "versions": { "interp": env!("CARGO_PKG_VERSION") },
        "threads": rayon::current_num_threads(),
        "memory": { "peak": memory::peak() },
        "seconds": { "total": seconds },
        "cost": global.cost(seconds),
        "price_per_hour": global.price,
    });
    if trainer.recipe().recorded() != *trainer.recipe() {
        run["recipe_lossy"] = json!(true);
    }
    let run = kept.write_run(with_arguments(run))?;
    let last = |split: &str| metrics.iter().rev().find(|m| m.split == split).map_or(f64::NAN, |m| m.loss);
    match global.format {
        Format::Text => say(
            global,
            &format!(
                "step {}: loss {:.4} on training rows, {:.4} on validation rows\nwrote {}",
                trainer.steps(),
                last("train"),
                last("validation"),
                kept.out().display()
            ),
        ),
        Format::Json => print(&object(&[("run", run.to_string()), ("rows", interp::frame::json(&frame)?)])),
        Format::Csv => print(&global.csv().text(&frame)?),
    }
}
