//! `models verify`: whether a model is what it should be.

use std::path::PathBuf;

use interp::known::{self, Check, Record};
use interp::weights::{self, Expected};
use interp::{Error, Plan, Result, Tokenizer, Tokens, disk};
use polars::df;

use super::args::Global;
use super::bench::Bench;
use super::output::show;
use super::source::open_files;
use super::{note, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// As for --model.
    #[arg(value_name = "NAME")]
    pub named: Option<String>,
    /// The sha256 that a single weights file must have.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Hold every tensor, the tokenizer and numbers against this record.
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    known: Option<PathBuf>,
    /// Write such a record of this model, which should be right.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    if (args.known.is_some() || args.record.is_some()) && global.dtype() != super::args::Dtype::F32 {
        return Err(request("records are of values in f32; leave out --dtype"));
    }
    let record = args.known.as_deref().map(Record::load).transpose()?;
    if let Some(path) = args.record.as_deref().filter(|path| path.is_symlink() || path.exists()) {
        // An earlier record may be written again, and nothing else.
        if path.is_symlink() || Record::load(path).is_err() {
            return Err(Error::CannotWrite {
                path: path.into(),
                what: "it is there, and no record; name a new file".into(),
            });
        }
    }
    let (_, _, source) = open_files(global)?;
    let files = source.files.as_ref().map(|files| files.weights.clone()).unwrap_or_default();
    let mut checks = vec![Check::new("tensors", Ok("names, shapes and types fit config.json".into()))];
    checks.extend(hashes(&files, args.sha256.clone())?);
    let bench = Bench::open(&Global { strict: true, ..global.clone() })?;
    checks.push(Check::new("values", Ok("all finite".into())));
    let (model, tokenizer) = (&bench.model, bench.tokenizer.as_ref());
    let token = tokenizer.and_then(Tokenizer::bos).unwrap_or(0);
    let tokens = Tokens::from_ids(vec![vec![token]])?;
    let forward = Plan::new().run(model, &tokens).map(|_| "finite logits".to_string());
    checks.push(Check::new("forward", forward.map_err(|e| e.to_string())));
    let published = known::published_numbers(&global.model);
    match (&record, published.is_empty()) {
        (Some(record), _) => checks.extend(record.check(model, tokenizer)?),
        (None, false) => checks.extend(known::check_numbers(&published, model, bench.tokenizer()?)?),
        (None, true) if args.record.is_none() => {
            note(global.quiet, "note: no numbers are known of this model; --record writes them, --known compares them");
        }
        _ => {}
    }
    let frame = df!(
        "check" => checks.iter().map(|c| c.what.clone()).collect::<Vec<_>>(),
        "passed" => checks.iter().map(|c| c.result.is_ok()).collect::<Vec<_>>(),
        "detail" => checks.iter().map(|c| c.result.clone().unwrap_or_else(|e| e)).collect::<Vec<_>>(),
    )?;
    let line = |c: &Check| match &c.result {
        Ok(detail) => format!("  pass  {}: {detail}", c.what),
        Err(detail) => format!("  FAIL  {}: {detail}", c.what),
    };
    show(global, &frame, checks.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    let failed: Vec<(&String, &String)> =
        checks.iter().filter_map(|c| c.result.as_ref().err().map(|e| (&c.what, e))).collect();
    if let Some((what, error)) = failed.first() {
        let more = if failed.len() > 1 {
            format!(" ({} of {} checks failed)", failed.len(), checks.len())
        } else {
            String::new()
        };
        return Err(Error::Data { path: PathBuf::from(what), what: format!("{error}{more}") });
    }
    match &args.record {
        Some(path) => {
            let text =
                serde_json::to_vec_pretty(&Record::of(model, tokenizer)?).map_err(|e| Error::Bug(e.to_string()))?;
            disk::write_bytes(path, &text)?;
            note(global.quiet, &format!("wrote {}", path.display()));
            Ok(())
        }
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
            let result = match given.clone().or_else(|| interp::weights::promised(file)) {
                None => Ok(format!("sha256 {} (nothing to compare with)", weights::sha256(file)?)),
                Some(expected) => match expected.of_file(file)? {
                    found if found == expected.hex() => Ok(format!("hash {found} as expected")),
                    found => Err(format!("hash is {found}, expected {}", expected.hex())),
                },
            };
            Ok(Check::new(file.display().to_string(), result))
        })
        .collect()
}
