mod find;
mod test;

use std::path::Path;

use interp::error::no_such;
use interp::graph::{CircuitFile, Instead, Judge, SHIPPED};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::{Error, Result, weights};
use serde_json::json;

use super::args::{Format, Global};
use super::output::{print, say};
use super::{note, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// From prompts to a circuit: edges are attributed, or tried, and the fewest are kept that carry the behaviour.
    Find(Box<find::Args>),
    /// Whether a circuit is faithful, complete and minimal, beside random circuits of its size.
    Test(Box<test::Args>),
    /// The circuits that come with the workbench.
    List,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.command {
        Command::Find(args) => find::run(&args, global),
        Command::Test(args) => test::run(&args, global),
        Command::List => list(global),
    }
}

fn instead(name: &str) -> std::result::Result<Instead, String> {
    let found = Instead::ALL.into_iter().find(|instead| instead.name() == name);
    found.ok_or_else(|| no_such("ablation", name, Instead::ALL.iter().map(|instead| instead.name())))
}

/// A circuit by name or path.
fn read(name: &str) -> Result<CircuitFile> {
    if let Some(file) = CircuitFile::shipped(name)? {
        return Ok(file);
    }
    let path = Path::new(name);
    if !path.exists() && path.extension().is_none() {
        return Err(request(no_such("circuit", name, SHIPPED.iter().map(|(name, _)| *name))));
    }
    CircuitFile::parse(&weights::read_text(path, 64 << 20)?, path)
}

/// Whether some pairs find something and others judge it.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Split {
    /// All pairs find, and all of them judge: for comparisons with what does not hold pairs back. The numbers are then of the very
    /// pairs that were found with.
    #[arg(long)]
    no_split: bool,
}

impl Split {
    /// Pairs to find something with, the even ones, and others to judge it by, the odd ones; a single pair has to do for both.
    pub fn halves(self, pairs: &[Pair], quiet: bool) -> (Vec<Pair>, Vec<Pair>) {
        if self.no_split || pairs.len() < 2 {
            let why = if self.no_split { "--no-split" } else { "there is but one pair; several are split in two" };
            note(quiet, &format!("note: the numbers are of the pairs that it was found with ({why})"));
            return (pairs.to_vec(), pairs.to_vec());
        }
        let every = |first: usize| pairs.iter().skip(first).step_by(2).cloned().collect();
        (every(0), every(1))
    }

    /// Whether it was asked for.
    pub fn is_given(self) -> bool {
        self.no_split
    }

    /// For run.json: whether the pairs that judge are others than those that find.
    pub fn held_out(self, pairs: &[Pair]) -> bool {
        !self.no_split && pairs.len() > 1
    }
}

/// The mean metric with all edges and with none.
fn ends(judge: &Judge<'_>) -> String {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (full, empty) = (mean(judge.full()), mean(judge.empty()));
    format!("{} {full:.3} with all edges, {empty:.3} with none", judge.metric().name())
}

fn metric(name: &str) -> std::result::Result<Metric, String> {
    Metric::named(name).map_err(|e| e.to_string())
}

fn list(global: &Global) -> Result<()> {
    let mut lines = Vec::new();
    for (name, _) in SHIPPED {
        let file = CircuitFile::shipped(name)?.ok_or_else(|| Error::Bug(format!("{name} is gone")))?;
        let circuit = file.circuit()?;
        match global.format {
            Format::Text => lines.push(format!(
                "{name:<16} {:<6} {} edges, {} heads and MLPs: {}\n{:24}{}",
                file.suits,
                circuit.len(),
                circuit.nodes().len(),
                file.about,
                "",
                file.source
            )),
            Format::Json => lines.push(
                json!({ "circuit": name, "suits": file.suits, "about": file.about, "source": file.source,
                    "edges": circuit.len(), "nodes": circuit.nodes().iter().map(ToString::to_string).collect::<Vec<_>>() })
                .to_string(),
            ),
            Format::Csv => return Err(request("the list of circuits has no columns; use --format json")),
        }
    }
    match global.format {
        Format::Json => print(&format!("[{}]\n", lines.join(",\n"))),
        _ => say(global, &lines.join("\n")),
    }
}
