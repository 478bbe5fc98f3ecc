//! Runs every run of a study, each in a process of its own: one that fails, or that the system kills, leaves the others alone.
//!
//! A directory holds `study.toml`, `runs/ID/`, what each run leaves behind, and `frame.parquet` with `runs.parquet` at the end. An
//! ID is made of what the run is: its options and the content of the files that it reads. A run is done when its run.json is there,
//! and is taken by a lock, so that several processes can share a directory.

mod child;
mod runs;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use interp::run_dir::{Kept, RUN};
use interp::study::{self, Study, shown};
use interp::{Error, Result, disk, figure, memory, weights};
use polars::prelude::*;
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::cost::{Estimate, duration};
use super::note;
use super::output::{object, print, say};
use super::report::{inputs, output_dir, save_figure, with_arguments};
use super::stop::Stop;
use child::Ended;
pub use child::error;
use runs::Run;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The study: a command, the options that all runs share, and what is varied, as TOML.
    #[arg(value_name = "STUDY")]
    study: PathBuf,
    /// Set a key of the study, such as max_iters=20 or 'grid.seed=[1, 2]'; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only say how long all runs would take, how much memory, and what they cost.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let own = "model, tokenizer, dtype, bos, allow_special and seed of a sweep stand in the study, in [options]";
    global.refuse(&["model tokenizer dtype bos allow_special seed"], own)?;
    let text = weights::read_text(&args.study, 1 << 20)?;
    let study = Study::parse_with(&text, &args.study, &args.set)?;
    let runs = runs::read(&study, &args.study, &args.set, global)?;
    let name = args.study.file_stem().map_or("study".into(), |stem| stem.to_string_lossy().into_owned());
    let dir = match (&global.out, &global.name) {
        (None, None) => Path::new("outputs/sweep").join(name),
        _ => output_dir("sweep", global, &name)?,
    };
    if args.dry_run {
        runs::check_dry(&study)?;
        return estimate(&dir, &runs, global);
    }
    let set: String = args.set.iter().map(|word| format!("\n# --set {}", word.escape_debug())).collect();
    // Processes share it: it is nobody's while runs are done.
    drop(claim(&dir, &args.study, global.out.is_none() && global.name.is_none(), &format!("{text}{set}"))?);
    let (started, stop) = (SystemTime::now(), Stop::listen());
    let mut ended: Vec<Ended> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let (outcome, seconds) = child::run(&dir, run, started, &stop)?;
        if stop.is_asked() {
            let done = ended.iter().filter(|outcome| matches!(outcome, Ended::Done)).count();
            return Err(stop.error(format!(" after {done} of {} runs; the same command continues", runs.len())));
        }
        let how = match (&outcome, seconds) {
            (Ended::Done, None) => "done before".to_string(),
            (Ended::Done, Some(seconds)) => format!("{seconds:.1} s"),
            (Ended::Failed(_, message), _) => format!("failed: {message}"),
            (Ended::Elsewhere(who), _) => format!("in another process ({who})"),
        };
        note(global.quiet, &format!("run {} of {}, {}: {how}", i + 1, runs.len(), run.words()));
        ended.push(outcome);
    }
    // What another process had may be done by now, or may have been left by it.
    for (run, outcome) in runs.iter().zip(&mut ended) {
        if matches!(outcome, Ended::Elsewhere(_)) {
            *outcome = child::run(&dir, run, started, &stop)?.0;
        }
    }
    if stop.is_asked() {
        return Err(stop.error("; the same command continues".into()));
    }
    let held: Vec<&String> = ended
        .iter()
        .filter_map(|outcome| match outcome {
            Ended::Elsewhere(who) => Some(who),
            _ => None,
        })
        .collect();
    if let Some(who) = held.first() {
        return Err(Error::TryAgain(format!(
            "another process does {} of {} runs, and collects the results; the same command would, once those are done ({who})",
            held.len(),
            runs.len()
        )));
    }
    collect(&dir, &study, &runs, &ended, global)
}

/// What a sweep writes beside its runs once these are done.
const RESULTS: [&str; 5] = [RUN, "frame.parquet", "runs.parquet", "figure.svg", "figure.png"];
/// How long to wait for another process that begins or collects in the same directory.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory for runs: a new one, an empty one, or one of a sweep; `own` if it must be of this very study.
fn claim(dir: &Path, study: &Path, own: bool, text: &str) -> Result<Kept> {
    let mut kept = Kept::open_shared(dir, "sweep", &inputs(), PATIENCE)?;
    let of = std::fs::canonicalize(study).unwrap_or_else(|_| study.to_path_buf()).display().to_string();
    if let Some(other) = kept.of().filter(|other| own && *other != of) {
        let what = format!("it is the sweep of {}; name another directory with --out", other.escape_debug());
        return Err(Error::CannotWrite { path: dir.to_path_buf(), what });
    }
    kept.set_of(of);
    disk::write_bytes(&kept.write_file("study.toml")?, text.as_bytes())?;
    kept.write_dir("runs")?;
    // Incomplete from here on.
    RESULTS.iter().try_for_each(|name| kept.remove_file(name))?;
    Ok(kept)
}

/// What every run left, as one frame and one figure.
fn collect(dir: &Path, study: &Study, runs: &[Run], ended: &[Ended], global: &Global) -> Result<()> {
    let keys = study.varied();
    let (mut results, mut facts, mut varied) = (Vec::new(), Vec::new(), Vec::new());
    for (run, outcome) in runs.iter().zip(ended) {
        facts.push(Facts::of(dir, run, outcome, global)?);
        if matches!(outcome, Ended::Done) {
            let frame = interp::frame::load_parquet(&run.dir(dir).join("frame.parquet"))?;
            let rows = study::result(&study.command, frame)?;
            varied.extend(std::iter::repeat_n(run.varied.clone(), rows.height()));
            results.push(rows);
        }
    }
    let all = stacked(&keys, results, &varied)?;
    let mut table = table(&keys, runs, &facts)?;
    let mut kept = Kept::open_shared(dir, "sweep", &[], PATIENCE)?;
    interp::frame::save_parquet(&mut table, &kept.write_file("runs.parquet")?)?;
    let failed: Vec<(&Run, i32, &String)> = runs
        .iter()
        .zip(ended)
        .filter_map(|(run, outcome)| match outcome {
            Ended::Failed(code, message) => Some((run, *code, message)),
            _ => None,
        })
        .collect();
    let fault = failed.first().map(|(run, code, message)| {
        let more = format!("{} of {} runs failed", failed.len(), runs.len());
        child::error(*code, format!("{more}; the first, {}: {message}; the same command tries again", run.words()))
    });
    let Some(mut frame) = all else {
        return Err(fault.unwrap_or_else(|| Error::Bug("no run and no fault".into())));
    };
    interp::frame::save_parquet(&mut frame, &kept.write_file("frame.parquet")?)?;
    let seconds: f64 = facts.iter().filter_map(|facts| facts.seconds).sum();
    let record = json!({
        "command": "sweep",
        "study": { "about": study.about, "command": study.command, "varied": keys },
        "runs": runs.len(),
        "failed": failed.len(),
        "seconds": { "total": seconds },
        "cost": global.cost(seconds),
        "price_per_hour": global.price,
        "versions": { "interp": env!("CARGO_PKG_VERSION") },
    });
    // What cannot be drawn is no reason to lose what was computed.
    let drawn = figure::study(study, &frame);
    if let Ok(Some(figure)) = &drawn {
        kept.write_file("figure.svg")?;
        kept.write_file("figure.png")?;
        save_figure(&kept.dir(), figure, global)?;
    }
    let record = kept.write_run(with_arguments(record))?;
    if let Ok(None) = &drawn {
        note(
            global.quiet,
            "note: no figure: several rows of a run stand at one place; [figure] x, y and where say what counts",
        );
    }
    match global.format {
        Format::Text => say(
            global,
            &format!(
                "{} of {} runs, {} rows, {} of computing\nwrote {}",
                runs.len() - failed.len(),
                runs.len(),
                frame.height(),
                duration(seconds),
                dir.display()
            ),
        )?,
        Format::Json => {
            let (rows, runs) = (interp::frame::json(&frame)?, interp::frame::json(&table)?);
            print(&object(&[("run", record.to_string()), ("rows", rows), ("runs", runs)]))?
        }
        Format::Csv => print(&global.csv().text(&frame)?)?,
    }
    fault.map_or(drawn.map(|_| ()), Err)
}

/// All results under each other, with what is varied before them.
///
/// A column of the command that has the name of what is varied is left out where it says the same of all rows of a run; else
/// what is varied goes by `option.NAME`.
fn stacked(keys: &[String], mut results: Vec<DataFrame>, varied: &[toml::Table]) -> Result<Option<DataFrame>> {
    if results.is_empty() {
        return Ok(None);
    }
    let mut columns = study::columns(keys, varied);
    for (key, column) in keys.iter().zip(&mut columns) {
        let constant = |frame: &DataFrame| frame.column(key).map_or(Ok(true), |own| own.n_unique().map(|n| n <= 1));
        if results.iter().map(constant).collect::<PolarsResult<Vec<bool>>>()?.iter().all(|constant| *constant) {
            results = results.into_iter().map(|frame| frame.drop(key).unwrap_or(frame)).collect();
        } else {
            column.rename(format!("option.{key}").into());
        }
    }
    // Runs that ask for different things have different columns; numbers may be missing in one.
    let mut names: Vec<(PlSmallStr, DataType)> = Vec::new();
    for column in results.iter().flat_map(|frame| frame.columns()) {
        let own = if column.null_count() == column.len() { DataType::Null } else { column.dtype().clone() };
        match names.iter_mut().find(|(name, _)| name == column.name()) {
            None => names.push((column.name().clone(), own)),
            Some((_, known)) if *known == own || own == DataType::Null => {}
            Some((_, known)) if *known == DataType::Null => *known = own,
            Some((_, known)) if known.is_primitive_numeric() && own.is_primitive_numeric() => {
                *known = DataType::Float64
            }
            Some((_, known)) => *known = DataType::String,
        }
    }
    let mut all = None;
    for frame in results {
        let of = |(name, dtype): &(PlSmallStr, DataType)| -> Result<Column> {
            Ok(match frame.column(name) {
                Ok(own) if own.dtype() == dtype => own.clone(),
                // A column that is null everywhere keeps its type.
                Ok(own) if *dtype == DataType::Null => own.clone(),
                Ok(own) => own.cast(dtype)?,
                Err(_) => Column::full_null(name.clone(), frame.height(), dtype),
            })
        };
        let part = DataFrame::new_infer_height(names.iter().map(of).collect::<Result<Vec<_>>>()?)?;
        interp::frame::append(&mut all, part)?;
    }
    if let Some(all) = &all {
        columns.extend(all.columns().iter().cloned());
    }
    Ok(Some(DataFrame::new_infer_height(columns)?))
}

/// What is known of a run after it.
struct Facts {
    status: &'static str,
    error: Option<String>,
    seconds: Option<f64>,
    peak: Option<u64>,
    cost: Option<f64>,
}

impl Facts {
    fn of(dir: &Path, run: &Run, outcome: &Ended, global: &Global) -> Result<Self> {
        if let Ended::Failed(_, message) = outcome {
            return Ok(Self { status: "failed", error: Some(message.clone()), seconds: None, peak: None, cost: None });
        }
        let path = run.dir(dir).join("run.json");
        let record: Value = serde_json::from_str(&weights::read_text(&path, 1 << 30)?)
            .map_err(|e| Error::Data { path: path.clone(), what: e.to_string() })?;
        Ok(Self {
            status: "done",
            error: None,
            seconds: record["seconds"]["total"].as_f64(),
            peak: record["memory"]["peak"].as_u64(),
            cost: record["cost"].as_f64().or(record["seconds"]["total"].as_f64().and_then(|s| global.cost(s))),
        })
    }
}

/// runs.parquet: what is varied, `run`, `status`, `error`, `seconds`, `peak_bytes`, `cost`, `directory`.
fn table(keys: &[String], runs: &[Run], facts: &[Facts]) -> Result<DataFrame> {
    let varied: Vec<toml::Table> = runs.iter().map(|run| run.varied.clone()).collect();
    let mut columns = study::columns(keys, &varied);
    let own = df!(
        "run" => (0..runs.len() as u32).collect::<Vec<_>>(),
        "status" => facts.iter().map(|facts| facts.status).collect::<Vec<_>>(),
        "error" => facts.iter().map(|facts| facts.error.clone()).collect::<Vec<_>>(),
        "seconds" => facts.iter().map(|facts| facts.seconds).collect::<Vec<_>>(),
        "peak_bytes" => facts.iter().map(|facts| facts.peak).collect::<Vec<_>>(),
        "cost" => facts.iter().map(|facts| facts.cost).collect::<Vec<_>>(),
        "directory" => runs.iter().map(|run| format!("runs/{}", run.id)).collect::<Vec<_>>(),
    )?;
    columns.retain(|column| own.column(column.name()).is_err());
    columns.extend(own.columns().iter().cloned());
    Ok(DataFrame::new_infer_height(columns)?)
}

/// What all runs that are not done would take, from the dry run of each.
fn estimate(dir: &Path, runs: &[Run], global: &Global) -> Result<()> {
    let (mut seconds, mut peak, mut each) = (0.0, 0_u64, Vec::new());
    let waiting: Vec<&Run> = runs.iter().filter(|run| !run.is_done(dir)).collect();
    for run in &waiting {
        let said = child::dry(run)?;
        let (own, bytes) =
            (said["total_seconds"].as_f64().unwrap_or(f64::NAN), said["peak_bytes"].as_u64().unwrap_or(0));
        note(global.quiet, &format!("{}: {}, {}", run.words(), duration(own), memory::human(bytes)));
        let varied: serde_json::Map<String, Value> =
            run.varied.iter().map(|(key, value)| (key.clone(), json!(shown(value)))).collect();
        each.push(json!({ "varied": varied, "total_seconds": own, "peak_bytes": bytes, "cost": global.cost(own) }));
        seconds += own;
        peak = peak.max(bytes);
    }
    let estimate = Estimate {
        seconds,
        peak,
        facts: json!({ "runs": runs.len(), "done": runs.len() - waiting.len(), "each": each }),
        lines: vec![("runs", format!("{}, {} of them done", runs.len(), runs.len() - waiting.len()))],
    };
    estimate.show(global)
}
