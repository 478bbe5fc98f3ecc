//! The runs of a study as command lines.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory};
use interp::error::no_such;
use interp::recipe::Recipe;
use interp::study::{Study, shown};
use interp::{Error, Result, weights};
use toml::{Table, Value};

use super::super::args::Global;
use super::super::output::slug;
use super::super::words;

/// Commands whose runs can be a study's.
const COMMANDS: [&str; 16] = [
    "ablate",
    "attribute",
    "behave",
    "bench",
    "finetune",
    "generate",
    "heads",
    "lens",
    "patch",
    "paths",
    "perplexity",
    "probe",
    "saliency",
    "steer",
    "subspace",
    "train",
];
/// Options that are the sweep's own, or say where a run happens.
const OURS: [&str; 14] = [
    "out",
    "name",
    "format",
    "quiet",
    "dry_run",
    "help",
    "price",
    "device",
    "memory",
    "offline",
    "restart",
    "tf32",
    "strict",
    "escape_formulas",
];

/// One run.
pub struct Run {
    /// The name of its directory.
    pub id: String,
    /// What is varied, with its values in this run.
    pub varied: Table,
    /// What the child is told, without --out.
    pub arguments: Vec<OsString>,
    /// What it reads, with the hash that stands for its content.
    inputs: Vec<(PathBuf, String)>,
}

impl Run {
    /// Where it writes.
    pub fn dir(&self, sweep: &Path) -> PathBuf {
        sweep.join("runs").join(&self.id)
    }

    /// Whether all of its files are there.
    pub fn is_done(&self, sweep: &Path) -> bool {
        ["run.json", "frame.parquet"].iter().all(|name| self.dir(sweep).join(name).exists())
    }

    /// What it reads and is not as it was when the run got its name.
    pub fn changed(&self) -> Result<Option<&Path>> {
        for (path, hash) in &self.inputs {
            if digest(path)? != *hash {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// What is varied, on one line.
    pub fn words(&self) -> String {
        in_words(&self.varied)
    }
}

fn in_words(varied: &Table) -> String {
    varied.iter().map(|(key, value)| format!("{key}={}", shown(value))).collect::<Vec<_>>().join(" ")
}

/// All runs, with options that their command knows: nothing is started before all are right.
pub fn read(study: &Study, path: &Path, set: &[String], global: &Global) -> Result<Vec<Run>> {
    let wrong = |what: String| Error::Data { path: path.to_path_buf(), what };
    if !COMMANDS.contains(&study.command.as_str()) {
        return Err(wrong(no_such("command for a sweep", &study.command, COMMANDS.into_iter())));
    }
    let root = words::tree();
    let Some(command) = root.find_subcommand(&study.command).cloned() else {
        return Err(Error::Bug(format!("{} is no command", study.command)));
    };
    let here = std::env::current_dir().map_err(|source| Error::Io { path: ".".into(), source })?;
    let beside = here.join(path.parent().unwrap_or(Path::new("")));
    let mut hashes: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut found: Vec<Run> = Vec::new();
    for varied in study.runs() {
        let mut all = study.options.clone();
        all.extend(varied.clone());
        let told = Told::of(&command, study, &all, |key| {
            // Paths in a study count from the study, those on the command line from here.
            let own =
                |word: &String| word.split('=').next().is_some_and(|own| own.trim().rsplit('.').next() == Some(key));
            if set.iter().any(own) { here.clone() } else { beside.clone() }
        });
        let told = told.map_err(wrong)?;
        if all.contains_key("model") && all.contains_key("models") {
            return Err(wrong("`model` and `models` exclude each other".into()));
        }
        let mut inputs = Vec::new();
        for path in told.inputs {
            let hash = match hashes.get(&path) {
                Some(hash) => hash.clone(),
                None => hashes.entry(path.clone()).or_insert(digest(&path)?).clone(),
            };
            inputs.push((path, hash));
        }
        let read: Vec<&String> = inputs.iter().map(|(_, hash)| hash).collect();
        // What a run is: its options as they are written, what it reads, and what decides the last bits.
        let what = format!(
            "{} {all:?} {read:?} {} {} {}",
            study.command,
            global.device,
            global.tf32,
            env!("CARGO_PKG_VERSION")
        );
        let mut arguments = vec![OsString::from(&study.command)];
        arguments.extend(told.options);
        arguments.push("--quiet".into());
        arguments.extend(global.machine().into_iter().map(OsString::from));
        if !told.positional.is_empty() {
            arguments.push("--".into());
            arguments.extend(told.positional);
        }
        let name = OsString::from("interp");
        let line: Vec<OsString> = std::iter::once(name).chain(arguments.iter().cloned()).collect();
        words::accept(&root, &line).map_err(|what| wrong(format!("run {}: {what}", found.len() + 1)))?;
        let named = slug(&in_words(&varied));
        let name = named.rsplit_once('-').map_or("run", |(words, _)| words);
        let id = format!("{name}-{}", &weights::sha256_of(what.as_bytes())[..16]);
        if found.iter().any(|other| other.id == id) {
            return Err(wrong(format!("run {} is the same as an earlier one", found.len() + 1)));
        }
        found.push(Run { id, varied, arguments, inputs });
    }
    Ok(found)
}

/// Refuses a command that cannot say what it would take.
///
/// # Errors
/// A request, with those that can.
pub fn check_dry(study: &Study) -> Result<()> {
    let root = super::super::Cli::command();
    let can =
        |name: &str| root.find_subcommand(name).is_some_and(|c| c.get_arguments().any(|arg| arg.get_id() == "dry_run"));
    match can(&study.command) {
        true => Ok(()),
        false => {
            let all: Vec<&str> = COMMANDS.into_iter().filter(|name| can(name)).collect();
            Err(Error::Request(format!("{} has no --dry-run; there is one of {}", study.command, all.join(", "))))
        }
    }
}

/// What stands for the content of a file, or of all files below a directory.
fn digest(path: &Path) -> Result<String> {
    digest_below(path, 0)
}

/// Directories in each other that are read: a link to a directory above it would have no end.
const DEEPEST: usize = 16;

fn digest_below(path: &Path, depth: usize) -> Result<String> {
    if depth > DEEPEST {
        let what = format!("more than {DEEPEST} directories in each other; a link may lead back");
        return Err(Error::Data { path: path.to_path_buf(), what });
    }
    if !path.is_dir() {
        return weights::sha256(path);
    }
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(io)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(io))
        .collect::<Result<_>>()?;
    entries.sort_unstable();
    let mut all = String::new();
    for entry in entries {
        all += &format!("{:?} {}\n", entry.file_name(), digest_below(&entry, depth + 1)?);
    }
    Ok(weights::sha256_of(all.as_bytes()))
}

/// The keys of a run as words of a command line.
#[derive(Default)]
struct Told {
    options: Vec<OsString>,
    positional: Vec<OsString>,
    /// Files and directories that it reads.
    inputs: Vec<PathBuf>,
}

/// Values of these keys are paths, unless they are names.
const NAMES_OR_PATHS: [&str; 9] =
    ["model", "models", "suites", "pairs", "tokenizer", "tasks", "dataset", "reference", "along"];
/// Keys of the recipe that are paths.
const RECIPE_PATHS: [&str; 3] = ["text", "validation", "language"];

impl Told {
    fn of(
        command: &clap::Command,
        study: &Study,
        all: &Table,
        base: impl Fn(&str) -> PathBuf,
    ) -> std::result::Result<Self, String> {
        let mut told = Self::default();
        let mut set = Vec::new();
        let recipes = ["train", "finetune"].contains(&study.command.as_str());
        let recipe_keys = if recipes { Recipe::keys() } else { Vec::new() };
        for (key, value) in all {
            let arguments = || command.get_arguments().filter(|arg| !OURS.contains(&arg.get_id().as_str()));
            let in_recipe = recipe_keys.iter().any(|known| known == key || known.ends_with(&format!(".{key}")));
            // --seed 0 leaves the recipe's own, and a learned tokenizer is no path.
            let rather = recipes
                && (key == "seed" || (key == "tokenizer" && ["bpe", "characters"].contains(&shown(value).as_str())));
            match arguments().find(|arg| arg.get_id() == key) {
                Some(argument) if !(rather && in_recipe) => told.option(argument, key, value, &base(key))?,
                _ if in_recipe => {
                    let last = key.rsplit('.').next().unwrap_or(key);
                    let value =
                        if RECIPE_PATHS.contains(&last) { absolute(value, &base(last))? } else { value.clone() };
                    set.push(format!("{key}={value}"));
                }
                _ => {
                    let known: Vec<&str> = arguments()
                        .map(|arg| arg.get_id().as_str())
                        .chain(recipe_keys.iter().filter_map(|key| key.split('.').next_back()))
                        .collect();
                    return Err(no_such(&format!("option of {}", study.command), key, known.into_iter()));
                }
            }
        }
        if recipes {
            let config = all.get("config").map(|path| base("config").join(shown(path)));
            let recipe = Recipe::load_with(config.as_deref(), &set).map_err(|e| e.to_string())?;
            let beside = config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
            let read = recipe.data.text.iter().chain(&recipe.data.validation).chain(&recipe.data.language);
            told.inputs.extend(read.map(|path| beside.join(path)).filter(|path| path.exists()));
        }
        told.options.extend(set.into_iter().map(|assignment| OsString::from(format!("--set={assignment}"))));
        Ok(told)
    }

    /// A value, of which paths count from `base`.
    fn value(&mut self, argument: &clap::Arg, key: &str, value: &Value, base: &Path) -> OsString {
        let text = shown(value);
        if let Some(path) = text.strip_prefix("FILE:").filter(|_| key == "start") {
            let path = base.join(path);
            self.inputs.extend(path.exists().then(|| path.clone()));
            return joined([OsStr::new("FILE:"), path.as_os_str()]);
        }
        let kinds = ["PATH", "FILE", "DIR"];
        let is_path =
            argument.get_value_names().is_some_and(|names| names.iter().any(|name| kinds.contains(&name.as_str())));
        let path = base.join(&text);
        // A name means the same wherever one stands.
        let is_path = is_path || (NAMES_OR_PATHS.contains(&key) && path.exists() && !words::is_name(&text));
        if !is_path {
            return text.into();
        }
        self.inputs.extend(path.exists().then(|| path.clone()));
        path.into()
    }

    fn option(
        &mut self,
        argument: &clap::Arg,
        key: &str,
        value: &Value,
        base: &Path,
    ) -> std::result::Result<(), String> {
        let mut values: Vec<Value> = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        let several = argument.get_value_delimiter().is_some();
        if let (true, Value::String(text)) = (several, value) {
            values = text.split(',').map(|part| Value::String(part.to_string())).collect();
        }
        let long = format!("--{}", argument.get_long().unwrap_or(key));
        if matches!(argument.get_action(), ArgAction::SetTrue) {
            match value {
                Value::Boolean(true) => self.options.push(long.into()),
                Value::Boolean(false) => {}
                _ => return Err(format!("`{key}` is true or false")),
            }
            return Ok(());
        }
        let words: Vec<OsString> = values.iter().map(|value| self.value(argument, key, value, base)).collect();
        let long = OsString::from(long + "=");
        match (argument.is_positional(), several) {
            (true, _) => self.positional.extend(words),
            (false, true) => self.options.push(joined([&long, &words.join(OsStr::new(","))])),
            (false, false) => self.options.extend(words.iter().map(|word| joined([&long, word]))),
        }
        Ok(())
    }
}

/// Paths of the recipe, which would otherwise count from where the command runs.
fn absolute(value: &Value, base: &Path) -> std::result::Result<Value, String> {
    if let Value::Array(values) = value {
        return Ok(Value::Array(
            values.iter().map(|value| absolute(value, base)).collect::<std::result::Result<_, _>>()?,
        ));
    }
    let path = base.join(shown(value));
    let text =
        path.to_str().ok_or_else(|| format!("{} is not UTF-8, as a recipe's paths have to be", path.display()))?;
    Ok(Value::String(text.to_string()))
}

fn joined<S: AsRef<OsStr>>(parts: [S; 2]) -> OsString {
    parts.iter().map(AsRef::as_ref).collect()
}
