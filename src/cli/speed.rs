//! `bench`: tokens per second and memory, for models and kinds of work.

use std::process::{Command, Stdio};

use interp::speed::{self, Size, Work};
use interp::{Error, Plan, Result, figure, limits, memory, stats};
use polars::prelude::*;
use serde_json::{Value, json};

use super::args::Global;
use super::bench::Bench;
use super::number::whole;
use super::output::bar;
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Models to compare, separated by commas [default: --model].
    #[arg(long, value_name = "MODELS", value_delimiter = ',', conflicts_with = "model")]
    models: Vec<String>,
    /// What is timed: generate, forward, train [default: all].
    #[arg(long, value_name = "TASKS", value_delimiter = ',', value_parser = task)]
    task: Vec<Work>,
    /// Rows or texts at once; of training, rows of a step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1, limits::BATCH))]
    batch: usize,
    /// Tokens of a row, or of a text with its prompt of 16 tokens [default: 80 to generate, else the context, up to 1024].
    #[arg(long, value_name = "N", value_parser = whole(2, limits::POSITIONS))]
    context: Option<usize>,
    /// How often each is timed, after one time that does not count.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole(1, limits::REPEATS))]
    repeats: usize,
}

fn task(name: &str) -> std::result::Result<Work, String> {
    let names = || Work::ALL.iter().map(|work| work.name());
    Work::ALL.into_iter().find(|work| work.name() == name).ok_or_else(|| interp::error::no_such("task", name, names()))
}

/// One row of the frame.
#[derive(serde::Serialize, serde::Deserialize)]
struct Row {
    model: String,
    parameters: u64,
    task: String,
    batch: u64,
    context: u64,
    repeats: u64,
    seconds: f64,
    tokens_per_second: f64,
    low: Option<f64>,
    high: Option<f64>,
    peak_bytes: u64,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let models = if args.models.is_empty() { vec![global.model.clone()] } else { args.models.clone() };
    let tasks = if args.task.is_empty() { Work::ALL.to_vec() } else { args.task.clone() };
    let about = format!("{} {}", models.join(" "), tasks.iter().map(|work| work.name()).collect::<Vec<_>>().join(" "));
    let report = Report::begin("bench", global, &about)?;
    let pairs: Vec<(&String, Work)> =
        models.iter().flat_map(|model| tasks.iter().map(move |work| (model, *work))).collect();
    let mut rows = Vec::new();
    let progress = bar(global.quiet, pairs.len() as u64, "{pos}/{len} measurements [{wide_bar}]");
    for (model, work) in &pairs {
        // What a process once held it keeps, so each measurement of memory needs a process of its own.
        rows.push(match pairs.len() {
            1 => own(model, *work, &args, global)?,
            _ => child(model, *work, &args, global)?,
        });
        progress.inc(1);
    }
    progress.finish_and_clear();
    let frame = frame(&rows, global)?;
    let bench = Bench::open(&Global { model: models[models.len() - 1].clone(), ..global.clone() })?;
    let outcome = Outcome {
        page: Vec::new(),
        figure: drawn(&rows),
        summary: summary(&rows),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: None, extra: json!({ "models": models }) },
    };
    report.finish(global, bench, outcome)
}

/// Measures in this process.
fn own(model: &str, work: Work, args: &Args, global: &Global) -> Result<Row> {
    let bench = Bench::open(&Global { model: model.to_string(), ..global.clone() })?;
    let limit = bench.config().n_positions;
    let usual = if work == Work::Generate { 80 } else { 1024 };
    let size = Size { batch: args.batch, length: args.context.unwrap_or(usual.min(limit)), repeats: args.repeats };
    size.check(work, bench.config())?;
    memory::check(work.name(), size.memory(work, bench.config()), global.memory)?;
    let mut seconds = speed::time(work, &bench.model, bench.tokenizer.as_ref(), size, global.seed)?;
    seconds.sort_unstable_by(f64::total_cmp);
    let rate = |seconds: f64| size.tokens(work) as f64 / seconds;
    let median = stats::median(&seconds);
    Ok(Row {
        model: model.to_string(),
        parameters: bench.config().parameters(),
        task: work.name().into(),
        batch: size.batch as u64,
        context: size.length as u64,
        repeats: size.repeats as u64,
        seconds: median,
        tokens_per_second: rate(median),
        low: seconds.last().filter(|_| seconds.len() > 1).map(|slowest| rate(*slowest)),
        high: seconds.first().filter(|_| seconds.len() > 1).map(|fastest| rate(*fastest)),
        peak_bytes: memory::peak().unwrap_or(0),
    })
}

/// Measures in a process of its own.
fn child(model: &str, work: Work, args: &Args, global: &Global) -> Result<Row> {
    let cannot = |source| Error::Io { path: "interp".into(), source };
    let dir = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    command.args(["bench", "--format=json", "--model", model, "--task", work.name()]);
    command.args(global.machine()).arg(format!("--dtype={:?}", global.dtype()).to_lowercase());
    command.args([
        format!("--seed={}", global.seed),
        format!("--batch={}", args.batch),
        format!("--repeats={}", args.repeats),
    ]);
    command.args(global.tokenizer.iter().map(|path| format!("--tokenizer={}", path.display())));
    command.args(args.context.map(|context| format!("--context={context}"))).arg("--out").arg(dir.path());
    let output = command.stdin(Stdio::null()).output().map_err(cannot)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("it ended early");
        return Err(super::sweep::error(
            output.status.code().unwrap_or(75),
            format!("{model}, {}: {line}", work.name()),
        ));
    }
    let said: Value = serde_json::from_slice(&output.stdout).map_err(|e| Error::Bug(e.to_string()))?;
    let mut row: Row = serde_json::from_value(said["rows"][0].clone()).map_err(|e| Error::Bug(e.to_string()))?;
    row.model = model.to_string();
    Ok(row)
}

/// | column | |
/// |---|---|
/// | `model`, `parameters`, `task`, `batch`, `context`, `repeats` | what was timed |
/// | `seconds` | the median of one time |
/// | `tokens_per_second`, `low`, `high` | at the median, the slowest and the fastest; a single time has neither of these |
/// | `peak_bytes` | the most memory that the process held |
/// | `cost_per_million_tokens` | at a price per hour; null without one |
fn frame(rows: &[Row], global: &Global) -> Result<DataFrame> {
    let of = |f: fn(&Row) -> f64| rows.iter().map(f).collect::<Vec<f64>>();
    let count = |f: fn(&Row) -> u64| rows.iter().map(f).collect::<Vec<u64>>();
    Ok(df!(
        "model" => rows.iter().map(|row| row.model.clone()).collect::<Vec<_>>(),
        "parameters" => count(|row| row.parameters),
        "task" => rows.iter().map(|row| row.task.clone()).collect::<Vec<_>>(),
        "batch" => count(|row| row.batch),
        "context" => count(|row| row.context),
        "repeats" => count(|row| row.repeats),
        "seconds" => of(|row| row.seconds),
        "tokens_per_second" => of(|row| row.tokens_per_second),
        "low" => rows.iter().map(|row| row.low).collect::<Vec<_>>(),
        "high" => rows.iter().map(|row| row.high).collect::<Vec<_>>(),
        "peak_bytes" => count(|row| row.peak_bytes),
        "cost_per_million_tokens" => rows.iter().map(|row| global.cost(1e6 / row.tokens_per_second)).collect::<Vec<_>>(),
    )?)
}

fn summary(rows: &[Row]) -> String {
    let mut lines = vec!["    tokens/s    (slowest to fastest)      memory  task, batch × context, model".to_string()];
    lines.extend(rows.iter().map(|row| {
        let range = row.low.zip(row.high).map(|(low, high)| format!("{low:>10.1} to {high:>8.1}"));
        format!(
            "  {:>10.1}  {:>22}  {:>10}  {}, {} × {}, {}",
            row.tokens_per_second,
            range.unwrap_or("timed once".into()),
            memory::human(row.peak_bytes),
            row.task,
            row.batch,
            row.context,
            row.model
        )
    }));
    lines.join("\n")
}

fn drawn(rows: &[Row]) -> figure::Figure {
    let bar = |row: &Row| {
        let text = format!("{:.0}, {}", row.tokens_per_second, memory::human(row.peak_bytes));
        (format!("{}, {}", row.task, row.model), row.tokens_per_second, text)
    };
    figure::Bars {
        title: "Speed on this machine".into(),
        note: "the median of all times, and the most memory that the process held".into(),
        value_name: "tokens per second".into(),
        bars: rows.iter().map(bar).collect(),
    }
    .draw()
}
