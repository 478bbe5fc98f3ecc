use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use interp::dataset::documents::{self, Documents};
use interp::dataset::manifest::Manifest;
use interp::dataset::plan::{Dtype, Plan, Request};
use interp::dataset::sequences::Cut;
use interp::error::no_such;
use interp::export::{self, Export, Piece, Progress, row_bytes};
use interp::shard::Layout;
use interp::site::Site;
use interp::text::Bos;
use interp::{Error, Result, figure, gather, limits, memory, weights};
use polars::prelude::{DataFrame, df};
use serde_json::json;

use super::args::{Format, Global};
use super::bench::Bench;
use super::cost::{self, Estimate};
use super::number::{long, whole};
use super::output::{bar, object, print, say};
use super::prompts::{no_special_in_tokens, reading};
use super::report::{output_dir, save_figure};
use super::stop::Stop;
use super::{note, request};

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Check every part of a dataset against its manifest.
    Verify {
        /// The dataset's directory.
        dir: PathBuf,
    },
    /// Seal a dataset whose parts were exported by several --shard pieces.
    Merge {
        /// The dataset's directory.
        dir: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
struct Options {
    /// Sites, such as resid_post.3, blocks.*.hook_resid_post, z.0-5; separated by commas.
    #[arg(long, value_name = "SITE", value_delimiter = ',')]
    site: Vec<String>,
    /// A kind of site at every layer, such as resid_post.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    every_layer: Vec<String>,
    /// A text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Files of texts: a line each; .jsonl or .ndjson, an object per line; .parquet, a row each; .bin, nanoGPT's tokens.
    #[arg(long, value_name = "PATH", conflicts_with = "prompt")]
    file: Vec<PathBuf>,
    /// The field or column with the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// Fields that become columns of the dataset; separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    label: Vec<String>,
    /// Tokens of a sequence at most [default: what the model reads].
    #[arg(long, value_name = "N", value_parser = whole(1, limits::POSITIONS))]
    context: Option<usize>,
    /// Tokens between the starts of two windows of a long text [default: as long as they are].
    #[arg(long, value_name = "N", value_parser = whole(1, limits::POSITIONS))]
    stride: Option<usize>,
    /// Fill sequences across texts, with the token that ends a text, such as <|endoftext|>, between them.
    #[arg(long)]
    pack: bool,
    /// Leave out the position at which a sequence starts, whose activations are huge.
    #[arg(long)]
    skip_first_token: bool,
    /// So many positions of each sequence, drawn by --seed.
    #[arg(long, value_name = "N", value_parser = whole(1, limits::POSITIONS))]
    sample: Option<usize>,
    /// So many rows at most.
    #[arg(long, value_name = "N", value_parser = long(1, limits::PART_ROWS))]
    max_tokens: Option<u64>,
    /// Rows in an order that --seed decides: sequences among all, rows within a part.
    #[arg(long)]
    shuffle: bool,
    /// How files are laid out: parquet, npz (numpy), safetensors, or saelens (what SAELens and datasets.load_from_disk read).
    #[arg(long, value_name = "LAYOUT", default_value = "parquet", value_parser = layout)]
    layout: Layout,
    /// How values are stored: f32 or f16.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = dtype)]
    store: Dtype,
    /// Keep the covariance of every site too.
    #[arg(long)]
    covariance: bool,
    /// Rows of a part [default: as many as fit 256 MB].
    #[arg(long, value_name = "N", value_parser = long(1, limits::PART_ROWS))]
    part_rows: Option<u64>,
    /// Only parts of the I-th of N pieces, from 0: another machine takes the others; then `export merge`.
    #[arg(long, value_name = "I/N", value_parser = piece)]
    shard: Option<Piece>,
    /// Only say what it would amount to.
    #[arg(long)]
    dry_run: bool,
}

fn dtype(name: &str) -> std::result::Result<Dtype, String> {
    match name {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        other => Err(no_such("type of stored values", other, ["f32", "f16"].into_iter())),
    }
}

fn layout(name: &str) -> std::result::Result<Layout, String> {
    let found = Layout::ALL.iter().find(|(own, _)| *own == name).map(|(_, layout)| *layout);
    found.ok_or_else(|| no_such("layout", name, Layout::ALL.iter().map(|(name, _)| *name)))
}

fn piece(text: &str) -> std::result::Result<Piece, String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((index, of)) if index < of => Ok(Piece { index, of }),
        _ => Err(format!("`{}` is no piece; write 0/8 … 7/8", text.escape_debug())),
    }
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.command {
        Some(Command::Verify { dir }) => verify(&dir, global),
        Some(Command::Merge { dir }) => merge(&dir, global),
        None => export(args.options, global),
    }
}

fn export(options: Options, global: &Global) -> Result<()> {
    if !options.dry_run {
        global.refuse(&["price"], "an export does not say what it cost; --dry-run says what it would")?;
    }
    let mut bench = Bench::open(global)?;
    let config = bench.config().clone();
    let sites = sites(&options, config.n_layer)?;
    gather::check_sites(&sites)?;
    let request = asked(&options, &sites, &mut bench, global)?;
    request.check(config.n_positions)?;
    let per_row = row_bytes(&config, &sites, request.dtype);
    if let Some(room) = bench.room(global)? {
        // One batch is computed while the one before it is written; a part that is shuffled or an archive is held as a whole.
        let batch = (request.batch_tokens as u64).saturating_mul(per_row);
        let part = if request.gathers() { request.part_rows.saturating_mul(per_row) } else { 0 };
        let needed = batch.max(part).saturating_mul(3);
        memory::check("a batch and the rows that wait to be written", needed, Some(room))?;
    }
    let texts = options.prompt.clone();
    let files = options.file.clone();
    let reading = reading(global).field(&options.field).labels(&options.label);
    no_special_in_tokens(global, &files)?;
    let documents = || -> Result<Documents> {
        if files.is_empty() {
            return Ok(documents::given(texts.clone()));
        }
        let mut all: Documents = Box::new(std::iter::empty());
        for path in &files {
            all = Box::new(all.chain(reading.open(path)?));
        }
        Ok(all)
    };
    drop(documents()?); // what cannot be read is better found before a directory is made
    let names: Vec<String> = sites.iter().map(Site::to_string).collect();
    if options.dry_run {
        return dry_run(&bench, &request, documents, per_row, global);
    }
    let dir = output_dir("export", global, &format!("{} {}", names.join(" "), request.text.join(" ")))?;
    let tokenizer = bench.tokenizer()?;
    let mut work = Export::open(&bench.model, tokenizer, &dir, &request, documents)?;
    if request.gathers() {
        let most = work.plan().parts.iter().map(|part| part.rows).max().unwrap_or(0);
        let what =
            format!("a part of {most} rows, which is held as a whole (--part-rows makes it smaller in another --out),");
        memory::check(&what, memory::product(&[3, most, per_row]), bench.room(global)?)?;
    }
    let bytes = work.plan().rows().saturating_mul(per_row);
    room_on_disk(&dir, bytes)?;
    let piece = options.shard.unwrap_or(Piece { index: 0, of: 1 });
    let (parts, all) = (work.plan().parts.len(), work.plan().rows());
    let (n, of) = (counted(sites.len(), "site"), counted(parts, "part"));
    note(global.quiet, &format!("{n}, {all} rows in {of}: about {}", memory::human(bytes)));
    let stop = Stop::listen();
    let start = Instant::now();
    let bar = bar(global.quiet, 0, "{pos}/{len} rows [{wide_bar}] {per_sec}, {msg}, {eta} left");
    let mut last = Progress::default();
    let mut progress = |now: Progress| {
        bar.set_length(now.all);
        bar.set_position(now.rows);
        let written = (now.rows - now.before) * per_row;
        let rate = written as f64 / start.elapsed().as_secs_f64().max(1e-3);
        bar.set_message(format!("{}/s", memory::human(rate as u64)));
        last = now;
        Ok(())
    };
    let done = work.run(piece, &mut progress, &|| !stop.is_asked());
    bar.finish_and_clear();
    if !done? {
        return Err(stop.error(format!(" at {} of {} rows; the same command continues", last.rows, last.all)));
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = (last.rows - last.before) as f64 / seconds;
    let how = match last.before {
        0 => format!("{} rows in {seconds:.1} s, {rate:.0} per second", last.rows),
        before => format!("{} rows, of them {before} from earlier; {seconds:.1} s", last.rows),
    };
    if piece.of > 1 {
        let merge = format!("interp export merge {}", dir.display());
        return say(
            global,
            &format!("{how}\npiece {} of {} is written; after all of them: {merge}", piece.index, piece.of),
        );
    }
    sealed(&dir, work.seal()?, work.plan(), &how, global)
}

/// Draws the sites of a dataset that is complete, and says what there is.
fn sealed(dir: &Path, manifest: Manifest, plan: &Plan, how: &str, global: &Global) -> Result<()> {
    let frame = statistics(&manifest, plan)?;
    let picture = figure::export(&frame)?;
    save_figure(dir, &picture, global)?;
    let size = memory::human(manifest.bytes);
    let parts = manifest.parts.len();
    let summary = format!("{how}\n{}, {size}, sealed\nwrote {}", counted(parts, "part"), dir.display());
    let mut data = vec![("dir", json!(dir.to_string_lossy()).to_string())];
    if dir.to_str().is_none() {
        data.push(("dir_is_lossy", "true".to_string()));
        note(
            global.quiet,
            &format!("note: the name of {} is not UTF-8, and is shown with � for what is not", dir.display()),
        );
    }
    match global.format {
        Format::Text => say(global, &summary),
        Format::Csv => print(&global.csv().text(&frame)?),
        Format::Json => {
            data.extend([
                ("rows", manifest.rows.to_string()),
                ("bytes", manifest.bytes.to_string()),
                ("parts", parts.to_string()),
                ("sites", interp::frame::json(&frame)?),
                ("memory", json!({ "peak": memory::peak() }).to_string()),
            ]);
            print(&object(&data))
        }
    }
}

/// What is true of each site as a whole.
fn statistics(manifest: &Manifest, plan: &Plan) -> Result<DataFrame> {
    let of = |f: fn(&interp::dataset::statistics::Statistics) -> f64| -> Vec<f64> {
        plan.request.sites.iter().map(|site| manifest.statistics.get(site).map_or(f64::NAN, f)).collect()
    };
    Ok(df!(
        "site" => plan.request.sites.clone(),
        "rows" => of(|s| s.count as f64).into_iter().map(|n| n as u64).collect::<Vec<_>>(),
        "mean_norm" => of(|s| s.mean_norm),
        "max_norm" => of(|s| s.max_norm),
        "variance" => of(|s| s.variance().iter().sum::<f64>()),
        "not_finite" => of(|s| s.not_finite as f64).into_iter().map(|n| n as u64).collect::<Vec<_>>(),
    )?)
}

fn sites(options: &Options, layers: usize) -> Result<Vec<Site>> {
    let every = options.every_layer.iter().map(|kind| format!("{kind}.*"));
    let mut asked = Vec::new();
    for pattern in options.site.iter().cloned().chain(every) {
        asked.extend(Site::matching(&pattern, layers)?);
    }
    if asked.is_empty() {
        return Err(request("say what to export with --site or --every-layer"));
    }
    Ok(Site::all(layers).filter(|site| asked.contains(site)).collect())
}

/// The request as the plan records it.
fn asked(options: &Options, sites: &[Site], bench: &mut Bench, global: &Global) -> Result<Request> {
    let text = match options.file.as_slice() {
        [] if options.prompt.is_empty() => return Err(request("no text: give --prompt TEXT or --file PATH")),
        [] => vec![weights::sha256_of(options.prompt.join("\0").as_bytes())],
        files => files.iter().map(|file| weights::sha256(file)).collect::<Result<_>>()?,
    };
    let config = bench.config().clone();
    let tokenizer = bench.tokenizer()?;
    let end = tokenizer.end_of_text();
    let start = match (global.encoding().bos, tokenizer.bos()) {
        (Bos::No, _) => None,
        (Bos::Yes, None) => return Err(request("this tokenizer has no token to start sequences with; use --bos no")),
        (_, start) => start,
    };
    if options.pack && end.is_none() {
        return Err(request("this tokenizer has no end-of-text token to keep packed texts apart"));
    }
    let context = options.context.unwrap_or(config.n_positions);
    let cut = Cut {
        context,
        stride: options.stride.unwrap_or(context.saturating_sub(usize::from(start.is_some()))),
        pack: options.pack,
        whole: options.layout == Layout::Saelens,
        start,
        start_twice: start.is_some() && global.encoding().bos == Bos::Yes,
        between: end.filter(|_| options.pack),
        skip_first: options.skip_first_token,
        sample: options.sample,
        max_tokens: options.max_tokens,
        shuffle: options.shuffle,
        seed: global.seed,
        allow_special: global.allow_special,
    };
    let digests = bench.source.digests()?;
    let usual = export::request(&bench.model, bench.tokenizer()?, sites);
    Ok(Request {
        weights: digests.weights,
        tokenizer: digests.tokenizer,
        text,
        field: options.field.clone(),
        layout: options.layout,
        dtype: options.store,
        computed: format!("{}{}", usual.computed, if global.tf32 { " in tf32" } else { "" }),
        cut,
        labels: options.label.clone(),
        covariance: options.covariance,
        part_rows: options.part_rows.unwrap_or_else(|| export::part_rows(&config, sites, options.store)),
        batch_tokens: usual.batch_tokens.max(context),
        ..usual
    })
}

/// `1 part`, `2 parts`.
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Refuses what the disk cannot hold, before it is full.
fn room_on_disk(dir: &Path, bytes: u64) -> Result<()> {
    let written = std::fs::read_dir(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
    let written = written.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum();
    let bytes = bytes.saturating_sub(written);
    match interp::disk::free(dir) {
        Some(free) if free < bytes => Err(Error::CannotWrite {
            path: dir.to_path_buf(),
            what: format!("the dataset needs about {} more, {} are free", memory::human(bytes), memory::human(free)),
        }),
        _ => Ok(()),
    }
}

/// Says what an export would amount to, from the text itself and one measured batch.
fn dry_run(
    bench: &Bench,
    request: &Request,
    documents: impl Fn() -> Result<Documents>,
    per_row: u64,
    global: &Global,
) -> Result<()> {
    let dir = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let mut work = Export::open(&bench.model, bench.tokenizer()?, dir.path(), request, documents)?;
    let (all, parts) = (work.plan().rows(), work.plan().parts.len());
    let rate = work.measure()?;
    let bytes = all.saturating_mul(per_row);
    let seconds = all as f64 / rate;
    let free = interp::disk::free(&std::env::current_dir().unwrap_or_default());
    let estimate = Estimate {
        seconds: bench.load_seconds + seconds,
        peak: cost::peak(),
        facts: json!({ "documents": work.plan().documents, "rows": all, "parts": parts, "bytes": bytes,
            "rows_per_second": rate, "seconds": seconds, "free": free }),
        lines: vec![
            ("documents", format!("{}, {all} rows in {}", work.plan().documents, counted(parts, "part"))),
            (
                "on disk",
                format!(
                    "{}; {} are free here",
                    memory::human(bytes),
                    free.map_or("unknown amounts".into(), memory::human)
                ),
            ),
            ("rows", format!("{rate:.0} per second")),
        ],
    };
    estimate.show(global)
}

fn verify(dir: &Path, global: &Global) -> Result<()> {
    let (manifest, faults) = Manifest::faults(dir)?;
    if let Some(first) = faults.first() {
        let more = if faults.len() > 1 { format!(", and {} more faults", faults.len() - 1) } else { String::new() };
        for fault in faults.iter().skip(1) {
            note(global.quiet, &format!("note: {fault}"));
        }
        return Err(Error::Data { path: dir.to_path_buf(), what: format!("{first}{more}") });
    }
    let parts = counted(manifest.parts.len(), "part");
    say(global, &format!("{parts}, {} rows: all as they were sealed", manifest.rows))
}

fn merge(dir: &Path, global: &Global) -> Result<()> {
    let plan = Plan::open(dir)?.ok_or_else(|| Error::Missing(format!("{}: there is no plan.json", dir.display())))?;
    let manifest = Manifest::seal(dir, &plan, &BTreeSet::new())?;
    sealed(dir, manifest, &plan, &format!("{} rows", plan.rows()), global)
}
