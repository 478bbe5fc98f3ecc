//! The command line: one small file per command.

mod ablate;
mod apart;
mod args;
mod attention;
mod attribute;
pub mod backtrace;
mod behave;
mod bench;
mod calibrate;
mod capture;
mod check;
mod circuit;
mod completions;
mod convert;
mod cost;
mod doctor;
mod export;
mod finetune;
mod generate;
mod gpu;
mod heads;
mod honours;
mod lens;
mod models;
mod neurons;
mod number;
mod output;
mod pairs;
mod patch;
mod paths;
mod perplexity;
mod predict;
mod probe;
mod prompts;
mod report;
mod residual;
mod saliency;
mod sites;
mod source;
mod speed;
mod steer;
mod stop;
mod story;
mod subspace;
mod sweep;
mod tokens;
mod train;
mod training;
mod verify;
mod words;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use interp::error::{Kind, printable};
use interp::{Error, Result};

use args::Global;

/// A mechanistic-interpretability workbench for GPT-2.
#[derive(Parser, Debug)]
#[command(name = "interp", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Put heads, layers, neurons or edges out of action, and measure again.
    Ablate(ablate::Args),
    /// Attention patterns of a layer, one heat map per head.
    Attention(attention::Args),
    /// Direct logit attribution: what every part of the model adds to the answer.
    Attribute(attribute::Args),
    /// Behavioural experiments: suites of questions, with bounds, per template, phrasing and number of examples.
    Behave(behave::Args),
    /// How fast models run here: writing, reading, learning; and the memory they take.
    Bench(speed::Args),
    /// Values at any sites, as tidy rows or wide columns.
    Capture(capture::Args),
    /// Circuits: find the few edges that carry a behaviour, and test whether they do.
    Circuit(circuit::Args),
    /// Shell completions.
    Completions(completions::Args),
    /// What this machine and this build have, with a self-test.
    Doctor(doctor::Args),
    /// Activation datasets: any sites on any text, crash-safe, as Parquet.
    Export(export::Args),
    /// Train an existing model further, on text.
    Finetune(training::Args),
    /// Let the model write.
    Generate(generate::Args),
    /// An atlas of all heads: what they attend to, what they copy, which of them compose.
    Heads(heads::Args),
    /// What each layer would predict if the model stopped there.
    Lens(lens::Args),
    /// The published sizes, and what is in the cache.
    Models(models::Args),
    /// The strongest MLP neurons of a layer.
    Neurons(neurons::Args),
    /// Sets of prompt pairs, and how a model answers them.
    Pairs(pairs::Args),
    /// Activation patching: which activations carry the answer.
    Patch(patch::Args),
    /// Path patching: what heads and MLPs do for the answer through chosen receivers alone.
    Paths(paths::Args),
    /// How well models predict texts: loss, perplexity, bits per byte.
    Perplexity(perplexity::Args),
    /// The likeliest next tokens at every position.
    Predict(predict::Args),
    /// Fit linear probes at every layer, and hold them against controls.
    Probe(probe::Args),
    /// One page that tells the story of a prompt: predictions, lens, attention, attribution, neurons.
    Report(story::Args),
    /// Length and turn of the residual stream at every layer.
    Residual(residual::Args),
    /// Input attribution: what each token does for the answer, by gradients.
    Saliency(saliency::Args),
    /// Every site of a model: name, axes, shape, size.
    Sites,
    /// Find a direction from contrasting prompts, and add it while the model writes.
    Steer(steer::Args),
    /// Patch along a direction or a subspace: trained (DAS), principal, of a probe, of steering.
    Subspace(subspace::Args),
    /// Studies: a command over a grid of its options, from one file; interrupted ones continue.
    Sweep(sweep::Args),
    /// How a text is cut into tokens.
    Tokens(tokens::Args),
    /// Train a model from scratch by a recipe.
    Train(training::Args),
    /// Compute published figures again and compare them, value by value.
    Verify(verify::Args),
}

/// Runs a command line and returns the exit code of sysexits.h; `notes` are said first.
pub fn main(arguments: impl Iterator<Item = OsString>, notes: &[String]) -> ExitCode {
    let (arguments, root): (Vec<OsString>, _) = (arguments.collect(), words::tree());
    let here = match words::check(&root, &arguments) {
        Ok(here) => here,
        Err(what) => {
            complain(&what);
            return ExitCode::from(2);
        }
    };
    let read = root.clone().try_get_matches_from(arguments).and_then(|found| {
        let mut cli = Cli::from_arg_matches(&found)?;
        cli.global.given = honours::Given::of(&found);
        Ok(cli)
    });
    let cli = match read {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() && e.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            complain(&words::with_dashes_told(&words::explain(&e, &root, here)));
            return ExitCode::from(2);
        }
        Err(e) => {
            let _ = output::print(&e.to_string());
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    notes.iter().for_each(|text| note(cli.global.quiet, text));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(cli)));
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => failed(&e),
        Err(panic) => {
            let what = panic.downcast_ref::<String>().cloned();
            let what = what.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
            complain(&format!("internal: {what}; this is a bug, please report it with the command line"));
            backtrace::show();
            ExitCode::from(70)
        }
    }
}

/// Says what went wrong, and its exit code.
pub fn failed(e: &Error) -> ExitCode {
    match e.kind() {
        Kind::Request => complain(&words::with_dashes_told(&e.to_string())),
        _ => complain(&e.to_string()),
    }
    if let Error::Tensor(e) = e {
        backtrace::of_candle(e);
    }
    ExitCode::from(exit_code(e.kind()))
}

fn run(cli: Cli) -> Result<()> {
    let Cli { global, command } = cli;
    global.given.check()?;
    if global.escape_formulas && global.format != args::Format::Csv {
        return Err(request("--escape-formulas is for --format csv: text and JSON hold no formulas"));
    }
    match command {
        Command::Ablate(args) => ablate::run(args, &global),
        Command::Attention(args) => attention::run(args, &global),
        Command::Attribute(args) => attribute::run(args, &global),
        Command::Behave(args) => behave::run(args, &global),
        Command::Bench(args) => speed::run(args, &global),
        Command::Capture(args) => capture::run(args, &global),
        Command::Circuit(args) => circuit::run(args, &global),
        Command::Completions(args) => completions::run(args, &mut Cli::command()),
        Command::Doctor(args) => doctor::run(&args, &global),
        Command::Export(args) => export::run(args, &global),
        Command::Finetune(args) => finetune::run(args, &global),
        Command::Generate(args) => generate::run(args, &global),
        Command::Heads(args) => heads::run(args, &global),
        Command::Lens(args) => lens::run(args, &global),
        Command::Models(args) => models::run(args, &global),
        Command::Neurons(args) => neurons::run(args, &global),
        Command::Pairs(args) => pairs::run(args, &global),
        Command::Patch(args) => patch::run(args, &global),
        Command::Paths(args) => paths::run(&args, &global),
        Command::Perplexity(args) => perplexity::run(args, &global),
        Command::Predict(args) => predict::run(args, &global),
        Command::Probe(args) => probe::run(args, &global),
        Command::Report(args) => story::run(&args, &global),
        Command::Residual(args) => residual::run(args, &global),
        Command::Saliency(args) => saliency::run(&args, &global),
        Command::Sites => sites::run(&global),
        Command::Steer(args) => steer::run(args, &global),
        Command::Subspace(args) => subspace::run(&args, &global),
        Command::Sweep(args) => sweep::run(args, &global),
        Command::Tokens(args) => tokens::run(args, &global),
        Command::Train(args) => train::run(args, &global),
        Command::Verify(args) => verify::run(args, &global),
    }
}

fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Request => 2,
        Kind::Data => 65,
        Kind::Missing => 66,
        Kind::Unavailable => 69,
        Kind::Bug => 70,
        Kind::CannotWrite => 73,
        Kind::Io => 74,
        Kind::TryAgain => 75,
        Kind::Interrupted => 130,
        Kind::Terminated => 143,
    }
}

/// One line on stderr.
fn complain(message: &str) {
    use std::io::Write;
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if red { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    // A closed stderr must not become a panic.
    let _ = writeln!(std::io::stderr(), "{on}error{off}: {}", printable(message));
}

/// A remark on stderr.
fn note(quiet: bool, message: &str) {
    use std::io::Write;
    if !quiet {
        let _ = writeln!(std::io::stderr(), "{}", printable(message));
    }
}

/// Parses an index that may count from the end, for clap.
fn index(text: &str) -> std::result::Result<i64, String> {
    text.parse().map_err(|_| format!("`{}` is not a whole number", text.escape_debug()))
}

/// Parses `5`, `-1` or `3-7` as layers of a model, both ends included.
fn layer_range(text: &str, layers: usize) -> Result<(usize, usize)> {
    let sites = interp::Site::matching(&format!("resid_pre.{text}"), layers)?;
    let all = || sites.iter().filter_map(|site| site.layer());
    match (all().min(), all().max()) {
        (Some(first), Some(last)) => Ok((first, last)),
        _ => Err(request(format!("`{}` names no layer; write 5, -1 or 3-7", text.escape_debug()))),
    }
}

/// What stands in a list for the second time.
fn doubled<T: Ord>(all: &[T]) -> Option<&T> {
    let mut seen = std::collections::BTreeSet::new();
    all.iter().find(|one| !seen.insert(*one))
}

/// A bad option.
fn request(what: impl Into<String>) -> Error {
    Error::Request(what.into())
}
