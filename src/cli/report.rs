//! What a command leaves behind: frame.parquet, figure.svg, figure.png, figure.html, run.json, and what it prints.

use std::path::{Path, PathBuf};
use std::time::Instant;

use interp::figure::{Figure, MAX_SIDE, PNG_SCALE};
use interp::page::{Block, Page};
use interp::plan::Applied;
use interp::run_dir::Claim;
use interp::{Error, Plan, Result, Tokens, disk, memory};
use polars::prelude::DataFrame;
use serde_json::{Value, json};

use clap::CommandFactory;

use super::args::{Format, Global};
use super::bench::Bench;
use super::output::{object, print, say, slug};

/// A result on its way to disk and to the terminal.
pub struct Report {
    command: &'static str,
    about: String,
    claim: Claim,
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
    /// Takes the output directory, so that a bad one fails before the work; what is in it stays as it is until the result is complete.
    pub fn begin(command: &'static str, global: &Global, name: &str) -> Result<Self> {
        let claim = Claim::open(&output_dir(command, global, name)?, command, &inputs())?;
        Ok(Self { command, about: name.to_string(), claim, start: Instant::now() })
    }

    /// Where files of the result are written first.
    pub fn dir(&self) -> &Path {
        self.claim.dir()
    }

    /// Where they are in the end.
    pub fn out(&self) -> &Path {
        self.claim.out()
    }

    /// Writes the files and prints the result.
    pub fn finish(self, global: &Global, mut bench: Bench, outcome: Outcome<'_>) -> Result<()> {
        let Outcome { mut frame, figure, page, summary, how } = outcome;
        bench.source.digests()?; // weights that are not what they should be leave no result
        room_for(&figure, global)?; // nor does a picture without room
        interp::frame::save_parquet(&mut frame, &self.dir().join("frame.parquet"))?;
        let out = self.out().display().to_string();
        let run = self.finish_files(global, bench, &figure, page, how)?;
        match global.format {
            Format::Text => say(global, &format!("{summary}\nwrote {out}")),
            Format::Json => print(&object(&[("run", run.to_string()), ("rows", interp::frame::json(&frame)?)])),
            Format::Csv => print(&global.csv().text(&frame)?),
        }
    }

    /// Writes figures and run.json beside a frame that is already there, and puts all in place.
    pub fn finish_files(
        self,
        global: &Global,
        bench: Bench,
        figure: &Figure,
        page: Vec<Block>,
        how: How<'_>,
    ) -> Result<Value> {
        let smaller = save_figure(self.dir(), figure, global)?;
        let mut run = self.provenance(global, bench, how)?;
        if let Some(why) = smaller {
            run["figure"] = json!(why);
        }
        if !page.is_empty() {
            match Page::new(format!("{}: {}", self.command, self.about), page).html(&run) {
                Ok(html) => disk::write_bytes(&self.dir().join("figure.html"), html.as_bytes())?,
                Err(Error::Request(why)) => {
                    super::note(global.quiet, &format!("note: there is no figure.html: {why}"));
                    run["page"] = json!(why);
                }
                Err(e) => return Err(e),
            }
        }
        self.claim.finish(run)
    }

    /// Everything that it takes to make the result again.
    fn provenance(&self, global: &Global, mut bench: Bench, how: How<'_>) -> Result<Value> {
        let How { plan, applied, tokens, extra } = how;
        let digests = bench.source.digests()?;
        let edits = plan.edit_list().iter().zip(applied).map(|(edit, applied)| {
            let mut value = edit.to_json();
            value["relative_change"] = match applied.relative_change {
                // JSON has no infinity; Python and JavaScript read this text as one.
                Some(change) if change.is_infinite() => json!("Infinity"),
                change => json!(change),
            };
            if applied.missed > 0 {
                value["missed_texts"] = json!(applied.missed);
            }
            value
        });
        let total = bench.load_seconds + self.start.elapsed().as_secs_f64();
        let mut run = json!({
            "command": self.command,
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
            "memory": { "peak": memory::peak() },
            "seconds": { "load": bench.load_seconds, "total": total },
            "cost": global.cost(total),
            "price_per_hour": global.price,
        });
        if let (Some(run), Value::Object(extra)) = (run.as_object_mut(), extra) {
            run.extend(extra);
        }
        Ok(with_arguments(run))
    }
}

/// What --memory leaves for pictures, if there is enough for an SVG.
fn room_for(figure: &Figure, global: &Global) -> Result<Option<u64>> {
    interp::process::hand_back_freed();
    let room = global.memory.map(|limit| limit.saturating_sub(memory::held().unwrap_or(0)));
    memory::check_left("figure.svg", figure.memory(None), room)?;
    Ok(room)
}

/// Writes figure.svg and figure.png. Where --memory or the machine has no room for the usual PNG it is drawn with one pixel to a unit, and
/// where there is none for that either it is left out; what was done is said, and returned for run.json.
pub fn save_figure(dir: &Path, figure: &Figure, global: &Global) -> Result<Option<String>> {
    if let Some((width, height)) = figure.cut() {
        let text = format!("note: the figure is {width} × {height} units; what lies beyond {MAX_SIDE} is cut off");
        super::note(global.quiet, &text);
    }
    let room = room_for(figure, global)?;
    disk::write_bytes(&dir.join("figure.svg"), figure.svg()?.as_bytes())?;
    let mut refusal = None;
    for scale in (1..=PNG_SCALE).rev() {
        match figure.png_at(scale, room) {
            Ok(png) => {
                disk::write_bytes(&dir.join("figure.png"), &png)?;
                let smaller = refusal.map(|why| format!("figure.png has {scale} pixel to a unit: {why}"));
                smaller.iter().for_each(|what| super::note(global.quiet, &format!("note: {what}")));
                return Ok(smaller);
            }
            Err(Error::TryAgain(why)) => refusal = refusal.or(Some(why)),
            Err(e) => return Err(e),
        }
    }
    let _ = std::fs::remove_file(dir.join("figure.png")); // one of an earlier run would be another picture
    let gone = format!("there is no figure.png: {}; figure.svg is the same picture", refusal.unwrap_or_default());
    super::note(global.quiet, &format!("note: {gone}"));
    Ok(Some(gone))
}

/// A record with the command line; where that is not UTF-8 the record says that bytes of it are replaced.
pub fn with_arguments(mut run: Value) -> Value {
    let told: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    run["arguments"] = json!(told.iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>());
    if told.iter().any(|argument| argument.to_str().is_none()) {
        run["arguments_lossy"] = json!(true);
    }
    run
}

/// Options whose values are the names of files or directories, beside those that say so.
const NAMES_OR_PATHS: [&str; 12] =
    ["model", "models", "suites", "pairs", "set", "tokenizer", "tasks", "circuit", "along", "start", "study", "input"];

/// Files and directories that the command line names to be read, where they are there.
pub fn inputs() -> Vec<PathBuf> {
    let Ok(mut found) = super::words::tree().try_get_matches_from(std::env::args_os()) else { return Vec::new() };
    let root = super::Cli::command();
    let mut command = &root;
    let mut inputs = Vec::new();
    loop {
        let takes_path = |arg: &&clap::Arg| {
            let kinds = ["PATH", "FILE", "DIR", "meta.pkl"];
            let named =
                arg.get_value_names().is_some_and(|names| names.iter().any(|name| kinds.contains(&name.as_str())));
            arg.get_id() != "out" && (named || NAMES_OR_PATHS.contains(&arg.get_id().as_str()))
        };
        for arg in root.get_arguments().chain(command.get_arguments()).filter(takes_path) {
            for value in found.try_get_raw(arg.get_id().as_str()).ok().flatten().into_iter().flatten() {
                let name = value.to_str().unwrap_or("");
                // What a text starts with is a text, or a file after this word.
                let path = match arg.get_id() == "start" {
                    true => name.strip_prefix("FILE:").map(PathBuf::from),
                    false => Some(PathBuf::from(value)).filter(|_| !super::words::is_name(name)),
                };
                inputs.extend(path.filter(|path| path.exists()));
            }
        }
        let Some((name, below)) = found.remove_subcommand() else { return inputs };
        let Some(next) = command.find_subcommand(&name) else { return inputs };
        (found, command) = (below, next);
    }
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
