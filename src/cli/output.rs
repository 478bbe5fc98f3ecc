//! Commands print lines for people, JSON and CSV here, show their progress, and name the directories that they write.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use interp::stats::Interval;
use interp::{Error, Result};
use polars::prelude::DataFrame;

use super::args::{Format, Global};

/// A line with a JSON object of values that are JSON already. Keys keep their order, and so do those of the values.
pub fn object(values: &[(&str, String)]) -> String {
    let values: Vec<String> = values.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}\n", values.join(","))
}

/// Prints a frame as the format that was asked for: `text` for people, or all of it as JSON or CSV.
pub fn show(global: &Global, frame: &DataFrame, text: String) -> Result<()> {
    match global.format {
        Format::Text => say(global, &text),
        Format::Json => print(&object(&[("rows", interp::frame::json(frame)?)])),
        Format::Csv => print(&global.csv().text(frame)?),
    }
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
    match interval {
        Interval { mean, bounds: Some((low, high)) } => format!("{mean:.3} [{low:.3}, {high:.3}]"),
        Interval { mean, bounds: None } => format!("{mean:.3}"),
    }
}

/// Moves a bar as analyses count: what is done, of how much.
pub fn counted(bar: &indicatif::ProgressBar) -> impl FnMut(usize, usize) -> Result<()> {
    |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        Ok(())
    }
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
