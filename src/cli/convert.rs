//! `models convert`: PyTorch's weights become a model that every command reads.

use std::path::{Path, PathBuf};

use interp::ops::Gelu;
use interp::run_dir::Claim;
use interp::weights::{Checkpoint, Places, find_torch, write_model};
use interp::{Config, Error, Result, Tokenizer};
use polars::df;
use serde_json::json;

use super::apart::{self, Activation, ModelArgs, Read};
use super::args::Global;
use super::note;
use super::output::show;
use super::report::{inputs, output_dir, with_arguments};
use super::source::Bar;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// nanoGPT's checkpoint (out/ckpt.pt), a state_dict (.pt, .pth, .bin), a directory with pytorch_model.bin, or
    /// owner/repo[@revision] whose weights are such a file.
    #[arg(value_name = "FILE|DIR|OWNER/REPO")]
    input: PathBuf,
    /// nanoGPT's vocabulary of characters [default: meta.pkl beside the checkpoint, or data/DATASET/meta.pkl below the
    /// current directory].
    #[arg(long, value_name = "meta.pkl", conflicts_with = "tokenizer")]
    meta: Option<PathBuf>,
    /// GELU with which it was trained, where no config.json says so: gelu is today's nanoGPT, gelu_new its older versions,
    /// minGPT's and GPT-2's [default for nanoGPT's checkpoints: gelu].
    #[arg(long, value_enum)]
    activation: Option<Activation>,
    /// Heads per block of a state_dict that has no config.json beside it.
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Keep the rows with which nanoGPT pads GPT-2's vocabulary from 50,257 to 50,304.
    #[arg(long)]
    keep_padding: bool,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let out = output_dir("convert", global, &args.input.display().to_string())?;
    let claim = Claim::open(&out, "convert", &inputs())?;
    let given = match (&args.meta, &global.tokenizer) {
        (Some(meta), _) => Some(apart::characters(meta)?),
        (None, Some(path)) => Some(Tokenizer::load(path)?),
        (None, None) => None,
    };
    let mut places = Places::from_env()?;
    places.offline |= global.offline;
    let mut bar = Bar::new(global.quiet);
    let files = find_torch(&args.input, &places, &mut bar)?;
    bar.finish();
    let scratch = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let Read { dataset, steps, trimmed, notes } = apart::model(&ModelArgs {
        files: files.weights.clone(),
        to: scratch.path().to_path_buf(),
        beside: files.dir.clone(),
        activation: args.activation,
        heads: args.heads,
        keep_padding: args.keep_padding,
    })?;
    for text in notes {
        note(global.quiet, &format!("note: {text}"));
    }
    let tokenizer = match (given, &files.tokenizer) {
        (Some(tokenizer), _) => Some(tokenizer),
        (None, Some(path)) => Some(Tokenizer::load(path)?),
        (None, None) => vocabulary(&files.dir, dataset.as_deref())?,
    };

    let config_path = scratch.path().join("config.json");
    let config = Config::parse(&interp::weights::read_small(&config_path, 1 << 20)?, &config_path)?;
    interp::weights::check_vocabulary(tokenizer.as_ref(), &config)?;
    let tokenizer = tokenizer.map(|own| interp::weights::load_roles(own, &files.dir, &config)).transpose()?;
    if let Some(tokenizer) = &tokenizer {
        super::bench::remarks(tokenizer, global);
    }
    let checkpoint = Checkpoint::open(&[scratch.path().join("model.safetensors")], &config)?;
    let loaded = checkpoint.load(candle_core::DType::F32, &candle_core::Device::Cpu)?;
    if !loaded.not_finite.is_empty() && global.strict {
        let what = format!("{} holds values that are not finite", loaded.not_finite.join(", "));
        return Err(Error::Data { path: args.input, what });
    }
    write_model(claim.dir(), &loaded.model, tokenizer.as_ref())?;
    let run = json!({
        "command": "convert",
        "input": args.input.to_string_lossy(),
        "model": config.to_json(),
        "steps": steps,
        "dataset": dataset,
        "versions": { "interp": env!("CARGO_PKG_VERSION") },
    });
    claim.finish(with_arguments(run))?;

    let frame = df!(
        "model" => [out.display().to_string()],
        "layers" => [config.n_layer as u64],
        "heads" => [config.n_head as u64],
        "width" => [config.n_embd as u64],
        "context" => [config.n_positions as u64],
        "vocabulary" => [config.vocab_size as u64],
        "parameters" => [config.parameters()],
        "steps" => [steps],
        "dataset" => [dataset.clone()],
        "trimmed" => [trimmed as u64],
    )?;
    let vocabulary = match (&tokenizer, trimmed) {
        (Some(t), 0) if t.is_of_characters() => format!("{} characters", t.vocab_size()),
        (Some(t), 0) => format!("{} tokens", t.vocab_size()),
        (Some(t), n) => format!("{} tokens; {n} rows of padding are left out", t.vocab_size()),
        (None, _) => "no tokenizer: pass --tokenizer with GPT-2's files here, or wherever the model is used".into(),
    };
    let text = format!(
        "{} layers, {} heads, width {}, context {}, {} parameters, {}{}\n{vocabulary}\nwrote {}",
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_positions,
        config.parameters(),
        if config.activation == Gelu::Erf { "exact GELU" } else { "GELU in its tanh form" },
        steps.map_or(String::new(), |steps| format!(", trained for {steps} steps")),
        out.display(),
    );
    show(global, &frame, text)
}

/// The characters that sample.py of nanoGPT would use.
fn vocabulary(dir: &Path, dataset: Option<&str>) -> Result<Option<Tokenizer>> {
    let below = dataset
        .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)))
        .map(|name| Path::new("data").join(name).join("meta.pkl"));
    let beside = dir.join("meta.pkl");
    let meta = [Some(beside), below].into_iter().flatten().find(|path| path.is_file());
    meta.map(|path| apart::characters(&path)).transpose()
}
