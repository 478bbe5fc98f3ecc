//! What a command leaves behind: frame.parquet, figure.svg, figure.png, figure.html, run.json, and what it prints.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use interp::figure::Figure;
use interp::page::{Block, Page};
use interp::plan::Applied;
use interp::stats::Interval;
use interp::{Error, Plan, Result, Tokens, disk};
use polars::prelude::{AnyValue, DataFrame, DataType};
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::bench::Bench;

/// A result on its way to disk and to the terminal.
pub struct Report {
    command: &'static str,
    about: String,
    dir: PathBuf,
    start: Instant,
}

/// What a command computed.
pub struct Outcome<'a> {
    pub frame: DataFrame,
    pub figure: Figure,
    /// What figure.html shows; without any view there is no such file.
    pub page: Vec<Block>,
    /// For people.
    pub summary: String,
    pub how: How<'a>,
}

/// How a result was made.
pub struct How<'a> {
    pub plan: &'a Plan,
    pub applied: Vec<Applied>,
    pub tokens: Option<&'a Tokens>,
    /// Further entries of run.json.
    pub extra: Value,
}

impl Report {
    /// Creates the output directory, so that a bad one fails before the work.
    pub fn begin(command: &'static str, global: &Global, name: &str) -> Result<Self> {
        let dir = output_dir(command, global, name)?;
        claim(&dir)?;
        Ok(Self { command, about: name.to_string(), dir, start: Instant::now() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the files and prints the result.
    pub fn finish(self, global: &Global, mut bench: Bench, outcome: Outcome<'_>) -> Result<()> {
        let Outcome { mut frame, figure, page, summary, how } = outcome;
        bench.source.digests()?; // weights that are not what they should be leave no result
        interp::frame::save_parquet(&mut frame, &self.dir.join("frame.parquet"))?;
        let run = self.finish_files(global, bench, &figure, page, how)?;
        match global.format {
            Format::Text => say(global, &format!("{summary}\nwrote {}", self.dir.display())),
            Format::Json => print(&(json!({ "run": run, "rows": rows(&frame)? }).to_string() + "\n")),
            Format::Csv => print(&csv(&frame)?),
        }
    }

    /// Writes figures and run.json beside a frame that is already there.
    pub fn finish_files(
        &self,
        global: &Global,
        bench: Bench,
        figure: &Figure,
        page: Vec<Block>,
        how: How<'_>,
    ) -> Result<Value> {
        disk::write_bytes(&self.dir.join("figure.svg"), figure.svg()?.as_bytes())?;
        disk::write_bytes(&self.dir.join("figure.png"), &figure.png()?)?;
        let mut run = self.provenance(global, bench, how)?;
        if !page.is_empty() {
            match Page::new(format!("{}: {}", self.command, self.about), page).html(&run) {
                Ok(html) => disk::write_bytes(&self.dir.join("figure.html"), html.as_bytes())?,
                Err(Error::Request(why)) => {
                    super::note(global.quiet, &format!("note: there is no figure.html: {why}"));
                    run["page"] = json!(why);
                }
                Err(e) => return Err(e),
            }
        }
        let text = serde_json::to_vec_pretty(&run).map_err(|e| Error::Bug(e.to_string()))?;
        disk::write_bytes(&self.dir.join("run.json"), &text)?;
        Ok(run)
    }

    /// Everything that it takes to make the result again.
    fn provenance(&self, global: &Global, mut bench: Bench, how: How<'_>) -> Result<Value> {
        let How { plan, applied, tokens, extra } = how;
        let digests = bench.source.digests()?;
        let edits = plan.edit_list().iter().zip(applied).map(|(edit, applied)| {
            let mut value = edit.to_json();
            value["relative_change"] = json!(applied.relative_change);
            value
        });
        let total = bench.load_seconds + self.start.elapsed().as_secs_f64();
        let mut run = json!({
            "command": self.command,
            "arguments": arguments(),
            "model": {
                "name": bench.source.name,
                "origin": bench.source.files.as_ref().map(|files| &files.origin),
                "weights_sha256": digests.weights,
                "tokenizer_sha256": digests.tokenizer,
                "parameters": bench.config().parameters(),
                "config": bench.config().to_json(),
            },
            "basis": "raw",
            "bos": format!("{:?}", global.bos).to_lowercase(),
            "dtype": bench.dtype.as_str(),
            "device": bench.device,
            "seed": global.seed,
            "plan": {
                "reads": plan.read_sites().map(|site| site.to_string()).collect::<Vec<_>>(),
                "edits": edits.collect::<Vec<_>>(),
            },
            "token_ids": tokens.map(|t| (0..t.len()).map(|prompt| t.row(prompt)).collect::<Vec<_>>()),
            "versions": { "interp": env!("CARGO_PKG_VERSION") },
            "threads": rayon::current_num_threads(),
            "memory": { "peak": interp::memory::peak() },
            "seconds": { "load": bench.load_seconds, "total": total },
            "cost": global.cost(total),
            "price_per_hour": global.price,
        });
        if let (Some(run), Value::Object(extra)) = (run.as_object_mut(), extra) {
            run.extend(extra);
        }
        Ok(run)
    }
}

/// The command line, for run.json.
pub fn arguments() -> Vec<String> {
    std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// Where a command writes: --out, or a directory named after the command and by --name or what it is about.
pub fn output_dir(command: &str, global: &Global, name: &str) -> Result<PathBuf> {
    let below = Path::new("outputs").join(command);
    let dir = match (&global.out, &global.name) {
        (Some(dir), _) => dir.clone(),
        (None, Some(own)) => below.join(own),
        (None, None) => below.join(slug(name)),
    };
    if dir.exists() && !dir.is_dir() {
        return Err(Error::CannotWrite { path: dir, what: "it is a file; --out names a directory".into() });
    }
    Ok(dir)
}

/// A progress bar on stderr; hidden where nobody would see it move.
pub fn bar(quiet: bool, length: u64, style: &str) -> indicatif::ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new(length);
    match indicatif::ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A mean with its bounds, where it has some.
pub fn bounded(interval: Interval) -> String {
    let Interval { mean, low, high } = interval;
    if low.is_nan() { format!("{mean:.3}") } else { format!("{mean:.3} [{low:.3}, {high:.3}]") }
}

/// Moves a bar as analyses count: what is done, of how much.
pub fn counted(bar: &indicatif::ProgressBar) -> impl FnMut(usize, usize) -> Result<()> {
    |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        Ok(())
    }
}

/// run.json, which says that all is there, and what only some runs leave.
const SOME: [&str; 11] = [
    "subspace.safetensors",
    "calibration.parquet",
    "curve.parquet",
    "circuit.toml",
    "run.json",
    "figure.html",
    "lens.parquet",
    "attention.parquet",
    "attribution.parquet",
    "neurons.parquet",
    "questions.parquet",
];

/// Takes a directory for the output: a new one, an empty one, or one with an earlier output of ours.
fn claim(dir: &Path) -> Result<()> {
    let cannot = |what: &str| Error::CannotWrite { path: dir.to_path_buf(), what: what.into() };
    if dir.is_symlink() {
        return Err(cannot("it is a link; name the directory itself"));
    }
    disk::write_dir(dir)?;
    let ours = [
        "frame.parquet",
        "figure.svg",
        "figure.png",
        "metrics.jsonl",
        "directions.safetensors",
        "probes.safetensors",
        "probes.json",
    ];
    let foreign = std::fs::read_dir(dir)
        .map_err(|source| Error::Io { path: dir.to_path_buf(), source })?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| !name.starts_with('.') && !ours.contains(&name.as_str()) && !SOME.contains(&name.as_str()));
    if let (Some(name), false) = (foreign, dir.join("run.json").exists()) {
        return Err(cannot(&format!(
            "it holds other files ({}); name an empty or a new directory",
            name.escape_debug()
        )));
    }
    // A probe: an unwritable directory is better found now than after the work.
    let probe = dir.join(".interp-probe");
    disk::write_bytes(&probe, b"")?;
    let _ = std::fs::remove_file(&probe);
    // Incomplete from here on, and nothing of an earlier run that this one may not write itself.
    for name in SOME {
        let _ = std::fs::remove_file(dir.join(name));
    }
    Ok(())
}

/// A directory name from a text: its first words, and a hash that tells texts apart.
pub fn slug(text: &str) -> String {
    let words: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let words = words.split_whitespace().take(5).collect::<Vec<_>>().join("-");
    let words: String = words.chars().take(40).collect();
    let hash = &interp::weights::sha256_of(text.as_bytes())[..8];
    if words.is_empty() { hash.to_string() } else { format!("{}-{hash}", words.trim_matches('-')) }
}

/// Prints for people: control characters in tokens are made visible, lines stay lines.
pub fn say(global: &Global, text: &str) -> Result<()> {
    if global.quiet {
        return Ok(());
    }
    print(&(text.lines().map(interp::error::printable).collect::<Vec<_>>().join("\n") + "\n"))
}

/// Writes to stdout; a reader that went away is no error.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(source) => Err(Error::Io { path: PathBuf::from("standard output"), source }),
        Ok(()) => Ok(()),
    }
}

/// The frame as JSON rows; what is not a finite number is null.
pub fn rows(frame: &DataFrame) -> Result<Vec<Value>> {
    let columns = frame.columns();
    (0..frame.height())
        .map(|i| {
            let mut row = serde_json::Map::new();
            for column in columns {
                row.insert(column.name().to_string(), cell(column.get(i)?));
            }
            Ok(Value::Object(row))
        })
        .collect()
}

fn cell(value: AnyValue<'_>) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => b.into(),
        AnyValue::String(s) => s.into(),
        AnyValue::StringOwned(s) => s.as_str().into(),
        AnyValue::UInt32(n) => n.into(),
        AnyValue::UInt64(n) => n.into(),
        AnyValue::Int32(n) => n.into(),
        AnyValue::Int64(n) => n.into(),
        // Through text, so that 0.1 as f32 prints as 0.1 and not as 0.10000000149.
        AnyValue::Float32(x) => x.to_string().parse::<f64>().ok().and_then(serde_json::Number::from_f64).into(),
        AnyValue::Float64(x) => serde_json::Number::from_f64(x).into(),
        AnyValue::Array(series, _) | AnyValue::List(series) => series.iter().map(cell).collect(),
        other => other.to_string().into(),
    }
}

/// The frame as CSV. Text is JSON inside the cell, so it always starts with a quotation mark: lossless, and no
/// spreadsheet takes it for a formula.
pub fn csv(frame: &DataFrame) -> Result<String> {
    let mut out = String::new();
    let names: Vec<String> = frame.columns().iter().map(|c| c.name().to_string()).collect();
    out.push_str(&names.join(","));
    out.push('\n');
    let text: Vec<bool> = frame.columns().iter().map(|c| c.dtype() == &DataType::String).collect();
    for i in 0..frame.height() {
        for (c, column) in frame.columns().iter().enumerate() {
            if c > 0 {
                out.push(',');
            }
            match cell(column.get(i)?) {
                Value::Null => {}
                value if text[c] || value.is_array() => {
                    let json = value.to_string();
                    out.push('"');
                    out.push_str(&json.replace('"', "\"\""));
                    out.push('"');
                }
                value => out.push_str(&value.to_string()),
            }
        }
        out.push('\n');
    }
    Ok(out)
}
