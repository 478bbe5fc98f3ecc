//! The runs of a study as command lines.

use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory};
use interp::error::no_such;
use interp::recipe::Recipe;
use interp::study::{Study, shown};
use interp::{Error, Result, weights};
use toml::{Table, Value};

use super::super::args::Global;
use super::super::report::slug;

/// Commands whose runs can be a study's.
const COMMANDS: [&str; 13] = [
    "ablate",
    "attribute",
    "behave",
    "bench",
    "finetune",
    "generate",
    "heads",
    "lens",
    "patch",
    "perplexity",
    "probe",
    "steer",
    "train",
];
/// Options that are the sweep's own, or say where a run happens.
const OURS: [&str; 13] = [
    "out", "name", "format", "quiet", "dry_run", "help", "price", "device", "memory", "offline", "restart", "tf32",
    "strict",
];

/// One run.
pub struct Run {
    /// The name of its directory.
    pub id: String,
    /// What is varied, with its values in this run.
    pub varied: Table,
    /// What the child is told, without --out.
    pub arguments: Vec<String>,
}

impl Run {
    /// Where it writes.
    pub fn dir(&self, sweep: &Path) -> PathBuf {
        sweep.join("runs").join(&self.id)
    }

    /// Whether all of its files are there.
    pub fn is_done(&self, sweep: &Path) -> bool {
        self.dir(sweep).join("run.json").exists()
    }

    /// What is varied, on one line.
    pub fn words(&self) -> String {
        words(&self.varied)
    }
}

fn words(varied: &Table) -> String {
    varied.iter().map(|(key, value)| format!("{key}={}", shown(value))).collect::<Vec<_>>().join(" ")
}

/// All runs, with options that their command knows: nothing is started before all are right.
pub fn read(study: &Study, path: &Path, set: &[String], global: &Global) -> Result<Vec<Run>> {
    let wrong = |what: String| Error::Data { path: path.to_path_buf(), what };
    if !COMMANDS.contains(&study.command.as_str()) {
        return Err(wrong(no_such("command for a sweep", &study.command, COMMANDS.into_iter())));
    }
    let mut root = super::super::Cli::command();
    root.build();
    let Some(command) = root.find_subcommand(&study.command).cloned() else {
        return Err(Error::Bug(format!("{} is no command", study.command)));
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for varied in study.runs() {
        let mut all = study.options.clone();
        all.extend(varied.clone());
        let (mut options, mut positional, mut read) = (vec![study.command.clone()], Vec::new(), String::new());
        for (key, value) in &all {
            // Paths in a study count from the study, those on the command line from here.
            let from_here = set
                .iter()
                .any(|word| word.split('=').next().is_some_and(|own| own.trim().rsplit('.').next() == Some(key)));
            let base = if from_here { Path::new("") } else { base };
            let told = told(&command, &study.command, key, value, base).map_err(wrong)?;
            read += &told.read;
            if told.positional { &mut positional } else { &mut options }.extend(told.words);
        }
        let what = format!("{options:?} {positional:?} {read} {}", env!("CARGO_PKG_VERSION"));
        let mut arguments = options;
        arguments.push("--quiet".into());
        arguments.extend(global.machine());
        if !positional.is_empty() {
            arguments.push("--".into());
            arguments.append(&mut positional);
        }
        let line = std::iter::once("interp").chain(arguments.iter().map(String::as_str));
        root.clone()
            .try_get_matches_from(line)
            .map_err(|e| wrong(format!("run {}: {}", found.len() + 1, super::super::one_line(&e.to_string()))))?;
        let hash = slug(&what);
        let (named, hash) = (slug(&words(&varied)), &hash[hash.len() - 8..]);
        let name = named.rsplit_once('-').map_or("run", |(words, _)| words);
        found.push(Run { id: format!("{name}-{hash}"), varied, arguments });
    }
    Ok(found)
}

/// A key of a study as words of a command line.
struct Told {
    words: Vec<String>,
    positional: bool,
    /// Digests of the files that it names.
    read: String,
}

fn told(
    command: &clap::Command,
    name: &str,
    key: &str,
    value: &Value,
    base: &Path,
) -> std::result::Result<Told, String> {
    let recipes = ["train", "finetune"].contains(&name);
    let recipe_keys = if recipes { Recipe::keys() } else { Vec::new() };
    let arguments = || command.get_arguments().filter(|arg| !OURS.contains(&arg.get_id().as_str()));
    let Some(argument) = arguments().find(|arg| arg.get_id() == key) else {
        // The last part of a key is enough, as for --set.
        if recipe_keys.iter().any(|known| known == key || known.ends_with(&format!(".{key}"))) {
            let assignment = format!("{key}={value}");
            Recipe::load_with(None, std::slice::from_ref(&assignment)).map_err(|e| e.to_string())?;
            return Ok(Told { words: vec!["--set".into(), assignment], positional: false, read: String::new() });
        }
        let known: Vec<&str> = arguments()
            .map(|arg| arg.get_id().as_str())
            .chain(recipe_keys.iter().filter_map(|key| key.split('.').next_back()))
            .collect();
        return Err(no_such(&format!("option of {name}"), key, known.into_iter()));
    };
    let names_file = argument
        .get_value_names()
        .is_some_and(|names| names.iter().any(|name| ["PATH", "FILE"].contains(&name.as_str())));
    let mut read = String::new();
    let mut text = |value: &Value| -> std::result::Result<String, String> {
        let text = shown(value);
        let beside = base.join(&text);
        // A model or a suite may be a name as well.
        let may_be = ["model", "models", "suites", "pairs", "tokenizer"].contains(&key);
        let is_path = names_file || (may_be && beside.exists());
        if !is_path {
            return Ok(text);
        }
        if beside.is_file() {
            read += &weights::sha256(&beside).map_err(|e| e.to_string())?;
        }
        Ok(beside.display().to_string())
    };
    let values: Vec<&Value> = value.as_array().map_or(vec![value], |values| values.iter().collect());
    let positional = argument.is_positional();
    let long = format!("--{}", argument.get_long().unwrap_or(key));
    let words = match (argument.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => vec![long],
        (ArgAction::SetTrue, Value::Boolean(false)) => Vec::new(),
        (ArgAction::SetTrue, _) => return Err(format!("`{key}` is true or false")),
        _ if positional => values.into_iter().map(&mut text).collect::<std::result::Result<_, _>>()?,
        _ if argument.get_value_delimiter().is_some() => {
            let all = values.into_iter().map(&mut text).collect::<std::result::Result<Vec<_>, _>>()?;
            vec![format!("{long}={}", all.join(","))]
        }
        _ => values
            .into_iter()
            .map(|value| Ok(format!("{long}={}", text(value)?)))
            .collect::<std::result::Result<_, String>>()?,
    };
    Ok(Told { words, positional, read })
}
