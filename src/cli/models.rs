use std::path::PathBuf;

use interp::config::{Config, PUBLISHED};
use interp::weights::{self, Places, Repository};
use interp::{Error, Result, catalogue, memory};
use polars::df;

use super::args::Global;
use super::output::{say, show};
use super::source::{Bar, open_files};
use super::{apart, check, convert, note, request};

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
        #[arg(value_name = "NAME")]
        named: Option<String>,
    },
    /// Checks files against their hashes, tensors against the config, values for NaN, and what the model computes against what is
    /// known of it: published numbers, or a record.
    Verify(check::Args),
    /// Downloads into the Hugging Face cache.
    Download {
        /// A published size or owner/repo[@revision].
        #[arg(value_name = "NAME")]
        named: Option<String>,
        /// All published sizes.
        #[arg(long)]
        all: bool,
    },
    /// Makes a model of PyTorch's weights: a checkpoint of nanoGPT, pytorch_model.bin, or a state_dict.
    Convert(convert::Args),
    /// The process in which weights are read from a pickle.
    #[command(hide = true)]
    ReadCheckpoint(apart::ModelArgs),
    /// The process in which a vocabulary is read from a pickle.
    #[command(hide = true)]
    ReadCharacters(apart::CharactersArgs),
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.action {
        Action::List => list(global),
        Action::Info { named: name } => info(&named(global, name)?),
        Action::Verify(args) => check::run(&args, &named(global, args.named.clone())?),
        Action::Download { named: name, all } => download(global, name, all),
        Action::Convert(args) => convert::run(args, global),
        Action::ReadCheckpoint(args) => apart::read_model(&args),
        Action::ReadCharacters(args) => apart::read_characters(&args),
    }
}

/// The options with the positional name in place of `--model`.
fn named(global: &Global, name: Option<String>) -> Result<Global> {
    let Some(model) = name else { return Ok(global.clone()) };
    global.refuse(&["model"], &format!("{model} is named as well"))?;
    Ok(Global { model, ..global.clone() })
}

fn list(global: &Global) -> Result<()> {
    let frame = catalogue::models(&Places::from_env()?)?;
    let text = |name: &str, i: usize| -> Result<String> {
        Ok(frame.column(name)?.str()?.get(i).unwrap_or_default().to_string())
    };
    let int = |name: &str, i: usize| -> Result<u64> { Ok(frame.column(name)?.u64()?.get(i).unwrap_or(0)) };
    let mut lines = vec![
        "name          layers  heads  width   parameters     size   to run  to tune  here  repository".to_string(),
    ];
    for i in 0..frame.height() {
        let here = if frame.column("cached")?.bool()?.get(i) == Some(true) { "yes" } else { "no" };
        lines.push(format!(
            "{:<14}{:>6}{:>7}{:>7}{:>13}{:>9}{:>9}{:>9}  {:<4}  {}",
            text("name", i)?,
            int("layers", i)?,
            int("heads", i)?,
            int("width", i)?,
            int("parameters", i)?,
            memory::human(int("bytes", i)?),
            memory::human(int("run_bytes", i)?),
            memory::human(int("finetune_bytes", i)?),
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
    for text in checkpoint.notes() {
        note(global.quiet, &format!("note: {text}"));
    }
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
        "bytes" => [checkpoint.memory(global.dtype().into())],
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
        memory::human(checkpoint.memory(global.dtype().into())),
        global.dtype(),
        if config.tie_word_embeddings { "tied to the embedding" } else { "of its own" },
        match (&tokenizer, digests.tokenizer) {
            (Some(t), Some(sha256)) => format!("sha256 {sha256}, {} tokens", t.vocab_size()),
            _ => "none beside the model".into(),
        },
    );
    show(global, &frame, text)
}

/// Says how much all of them are, and refuses what the disk has no room for.
fn room(names: &[String], places: &Places, global: &Global) -> Result<()> {
    let mut needed = 0;
    for name in names {
        if weights::cached(&Repository::parse(name)?, places).is_none() {
            needed += Config::published(name).map_or(0, |config| 4 * config.parameters());
        }
    }
    let Some(hub) = &places.hub else { return Ok(()) };
    let free = interp::disk::free(hub);
    let shown = free.map_or("an unknown amount is".into(), |free| format!("{} are", memory::human(free)));
    note(global.quiet, &format!("{} models, {} to download; {shown} free", names.len(), memory::human(needed)));
    match free {
        Some(free) if needed > free => Err(Error::CannotWrite {
            path: hub.clone(),
            what: format!("the models need {}, {} are free", memory::human(needed), memory::human(free)),
        }),
        _ => Ok(()),
    }
}

fn download(global: &Global, name: Option<String>, all: bool) -> Result<()> {
    let names: Vec<String> = match (name, all) {
        (Some(name), false) => vec![name],
        (None, true) => PUBLISHED.iter().map(|p| p.0.to_string()).collect(),
        _ => return Err(request("name one model, or --all")),
    };
    let mut places = Places::from_env()?;
    places.offline |= global.offline;
    if all {
        room(&names, &places, global)?;
    }
    for name in names {
        let repository = Repository::parse(&name)?;
        let dir = match weights::cached(&repository, &places) {
            Some(files) => {
                note(global.quiet, &format!("{name}: already here"));
                files.config.parent().map(PathBuf::from).unwrap_or_default()
            }
            None => {
                let mut bar = Bar::new(global.quiet);
                let dir = weights::download(&repository, weights::Format::Safetensors, &places, &mut bar)?;
                bar.finish();
                dir
            }
        };
        say(global, &format!("{name}: {}", dir.display()))?;
    }
    Ok(())
}
