use std::path::PathBuf;

use interp::config::PUBLISHED;
use interp::weights::{self, Expected, Places, Repository};
use interp::{Error, Result, catalogue, memory};
use polars::df;
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Format, Global};
use super::bench::Bench;
use super::report::{csv, print, rows, say};
use super::source::{Bar, open_files};
use super::{convert, note, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// The built-in model and the published sizes.
    List,
    /// One model: shape, files, hashes.
    Info {
        /// As for --model.
        name: Option<String>,
    },
    /// Checks files against their hashes, tensors against the config, and values for NaN; runs the model once.
    Verify {
        /// As for --model.
        name: Option<String>,
        /// The sha256 that a single weights file must have.
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
    },
    /// Downloads into the Hugging Face cache.
    Download {
        /// A published size or owner/repo[@revision].
        name: Option<String>,
        /// All published sizes.
        #[arg(long)]
        all: bool,
    },
    /// Makes a model of a checkpoint of nanoGPT.
    Convert(convert::Args),
    /// The process in which `convert` reads a pickle.
    #[command(hide = true)]
    ReadCheckpoint(convert::ReaderArgs),
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.action {
        Action::List => list(global),
        Action::Info { name } => info(&named(global, name)),
        Action::Verify { name, sha256 } => verify(&named(global, name), sha256),
        Action::Download { name, all } => download(global, name, all),
        Action::Convert(args) => convert::run(args, global),
        Action::ReadCheckpoint(args) => convert::read(args),
    }
}

/// The options with the positional name in place of `--model`.
fn named(global: &Global, name: Option<String>) -> Global {
    let model = name.unwrap_or_else(|| global.model.clone());
    Global { model, ..global.clone() }
}

pub fn show(global: &Global, frame: &DataFrame, text: String) -> Result<()> {
    match global.format {
        Format::Text => say(global, &text),
        Format::Json => print(&(json!({ "rows": rows(frame)? }).to_string() + "\n")),
        Format::Csv => print(&csv(frame)?),
    }
}

fn list(global: &Global) -> Result<()> {
    let frame = catalogue::models(&Places::from_env()?)?;
    let text = |name: &str, i: usize| -> Result<String> {
        Ok(frame.column(name)?.str()?.get(i).unwrap_or_default().to_string())
    };
    let int = |name: &str, i: usize| -> Result<u64> { Ok(frame.column(name)?.u64()?.get(i).unwrap_or(0)) };
    let mut lines = vec!["name          layers  heads  width   parameters     size  here  repository".to_string()];
    for i in 0..frame.height() {
        let here = if frame.column("cached")?.bool()?.get(i) == Some(true) { "yes" } else { "no" };
        lines.push(format!(
            "{:<14}{:>6}{:>7}{:>7}{:>13}{:>9}  {:<4}  {}",
            text("name", i)?,
            int("layers", i)?,
            int("heads", i)?,
            int("width", i)?,
            int("parameters", i)?,
            memory::human(int("bytes", i)?),
            here,
            text("repository", i)?,
        ));
    }
    show(global, &frame, lines.join("\n"))
}

fn info(global: &Global) -> Result<()> {
    let (checkpoint, tokenizer, mut source) = open_files(global)?;
    let config = checkpoint.config();
    let origin = source.files.as_ref().map_or("built in".to_string(), |files| files.origin.clone());
    let name = source.name.clone();
    let digests = source.digests()?;
    let weights = digests.weights.join(" ");
    let frame = df!(
        "name" => [name.clone()],
        "origin" => [origin.clone()],
        "layers" => [config.n_layer as u64],
        "heads" => [config.n_head as u64],
        "width" => [config.n_embd as u64],
        "head_dim" => [config.head_dim as u64],
        "neurons" => [config.n_inner as u64],
        "context" => [config.n_positions as u64],
        "vocabulary" => [config.vocab_size as u64],
        "parameters" => [config.parameters()],
        "bytes" => [checkpoint.memory(global.dtype.into())],
        "weights_sha256" => [weights.clone()],
        "tokenizer_sha256" => [digests.tokenizer.clone()],
    )?;
    let text = format!(
        "{name}: {origin}\n  {} layers, {} heads of {}, width {}, {} neurons, context {}, vocabulary {}\n  \
         {} parameters, {} as {:?}; unembedding {}\n  weights   sha256 {weights}\n  tokenizer {}",
        config.n_layer,
        config.n_head,
        config.head_dim,
        config.n_embd,
        config.n_inner,
        config.n_positions,
        config.vocab_size,
        config.parameters(),
        memory::human(checkpoint.memory(global.dtype.into())),
        global.dtype,
        if config.tie_word_embeddings { "tied to the embedding" } else { "of its own" },
        match (&tokenizer, digests.tokenizer) {
            (Some(t), Some(sha256)) => format!("sha256 {sha256}, {} tokens", t.vocab_size()),
            _ => "none beside the model".into(),
        },
    );
    show(global, &frame, text)
}

/// One thing that was checked.
struct Check {
    what: String,
    result: std::result::Result<String, String>,
}

fn verify(global: &Global, sha256: Option<String>) -> Result<()> {
    let (_, _, source) = open_files(global)?;
    let files = source.files.as_ref().map(|files| files.weights.clone()).unwrap_or_default();
    let mut checks =
        vec![Check { what: "tensors".into(), result: Ok("names, shapes and types fit config.json".into()) }];
    checks.extend(hashes(&files, sha256)?);
    let bench = Bench::open(&Global { strict: true, ..global.clone() })?;
    checks.push(Check { what: "values".into(), result: Ok("all finite".into()) });
    let token = bench.tokenizer.as_ref().and_then(interp::Tokenizer::end_of_text).unwrap_or(0);
    let tokens = interp::Tokens::from_ids(vec![vec![token]])?;
    let forward = interp::Plan::new().run(&bench.model, &tokens).map(|_| "finite logits".to_string());
    checks.push(Check { what: "forward".into(), result: forward.map_err(|e| e.to_string()) });
    let frame = df!(
        "check" => checks.iter().map(|c| c.what.clone()).collect::<Vec<_>>(),
        "passed" => checks.iter().map(|c| c.result.is_ok()).collect::<Vec<_>>(),
        "detail" => checks.iter().map(|c| c.result.clone().unwrap_or_else(|e| e)).collect::<Vec<_>>(),
    )?;
    let lines: Vec<String> = checks
        .iter()
        .map(|c| match &c.result {
            Ok(detail) => format!("  pass  {}: {detail}", c.what),
            Err(detail) => format!("  FAIL  {}: {detail}", c.what),
        })
        .collect();
    show(global, &frame, lines.join("\n"))?;
    match checks.iter().find_map(|c| c.result.as_ref().err().map(|e| (&c.what, e))) {
        Some((what, error)) => Err(Error::Data { path: PathBuf::from(what), what: error.clone() }),
        None => Ok(()),
    }
}

/// Hashes of the weights against the one given, or the one that the cache promises.
fn hashes(files: &[PathBuf], given: Option<String>) -> Result<Vec<Check>> {
    if let (Some(_), true) = (&given, files.len() != 1) {
        return Err(request(format!("--sha256 is for one weights file; this model has {}", files.len())));
    }
    let given = match given {
        Some(hex) => match Expected::from_etag(&hex.to_lowercase()) {
            Some(expected @ Expected::Sha256(_)) => Some(expected),
            _ => return Err(request("--sha256 takes 64 hexadecimal digits")),
        },
        None => None,
    };
    files
        .iter()
        .map(|file| {
            let what = file.display().to_string();
            let result = match given.clone().or_else(|| interp::weights::promised(file)) {
                None => Ok(format!("sha256 {} (nothing to compare with)", weights::sha256(file)?)),
                Some(expected) => match expected.of_file(file)? {
                    found if found == expected.hex() => Ok(format!("hash {found} as expected")),
                    found => Err(format!("hash is {found}, expected {}", expected.hex())),
                },
            };
            Ok(Check { what, result })
        })
        .collect()
}

fn download(global: &Global, name: Option<String>, all: bool) -> Result<()> {
    let names: Vec<String> = match (name, all) {
        (Some(name), false) => vec![name],
        (None, true) => PUBLISHED.iter().map(|p| p.0.to_string()).collect(),
        _ => return Err(request("name one model, or --all")),
    };
    let mut places = Places::from_env()?;
    places.offline |= global.offline;
    for name in names {
        let repository = Repository::parse(&name)?;
        let dir = match weights::cached(&repository, &places) {
            Some(files) => {
                note(global.quiet, &format!("{name}: already here"));
                files.config.parent().map(PathBuf::from).unwrap_or_default()
            }
            None => {
                let mut bar = Bar::new(global.quiet);
                let dir = weights::download(&repository, &places, &mut bar)?;
                bar.finish();
                dir
            }
        };
        say(global, &format!("{name}: {}", dir.display()))?;
    }
    Ok(())
}
