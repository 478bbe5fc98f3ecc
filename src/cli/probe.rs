use std::path::{Path, PathBuf};

use interp::dataset::documents;
use interp::dataset::reader::Dataset;
use interp::labelled::{Kind, Labelled};
use interp::probe::{self, At, Options, Study, Summary};
use interp::task::{SHIPPED, Task};
use interp::tokens::Tokens;
use interp::{Error, Gpt2, Plan, Result, Site, figure, gather, initial};
use ndarray::Array2;
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::Global;
use super::bench::{Bench, batches};
use super::report::{How, Outcome, Report, bar, counted};
use super::{note, request};

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: Train,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Fit probes at every layer, and hold them against controls; the same as no subcommand.
    Train(Box<Train>),
    /// The tasks that come with the workbench.
    Tasks,
}

#[derive(clap::Args, Debug)]
struct Train {
    /// Tasks: names as `probe tasks` lists them, or files such as probes/tiny-number.toml.
    #[arg(value_name = "TASK")]
    tasks: Vec<String>,
    /// Instead of a task: texts with labels, .jsonl or .parquet.
    #[arg(long, value_name = "PATH", conflicts_with = "tasks", requires = "label")]
    file: Option<PathBuf>,
    /// Instead of a task: a dataset that `export` made, with its sites and labels.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tasks", "file"], requires = "label")]
    data: Option<PathBuf>,
    /// The field or column with what is to be read.
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// The field or column with what belongs together, and is never on both sides of a split [default: the text].
    #[arg(long, value_name = "NAME", requires = "label")]
    group: Option<String>,
    /// The field with the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// The token of a text that is read: first, last or all.
    #[arg(long, value_name = "WHERE", default_value = "last", requires = "label")]
    at: String,
    /// Labels are numbers, and probes regressions.
    #[arg(long, requires = "label")]
    regression: bool,
    /// Sites by name or pattern, several with commas [default: resid_pre.0, resid_post.*; of a dataset, all].
    #[arg(long, value_name = "SITES", value_delimiter = ',')]
    site: Vec<String>,
    /// Texts of a task [default: what the task says].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    examples: Option<u64>,
    /// Splits, each with its own control task.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Share of the rows that probes are judged on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    test_share: f64,
    /// Strengths of the penalty (1/C in scikit-learn), several with commas; one of them is chosen by cross-validation.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "0.1,1,10,100,1000")]
    alpha: Vec<f64>,
    /// Folds of that cross-validation.
    #[arg(long, value_name = "N", default_value_t = 3)]
    folds: usize,
    /// Steps of a fit at most.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_iterations: usize,
    /// Leave out the model of the same shape that has learned nothing.
    #[arg(long)]
    no_random_model: bool,
}

/// Rows with labels, and the activations at them.
struct Rows {
    name: String,
    sites: Vec<Site>,
    features: Vec<Array2<f32>>,
    random: Option<Vec<Array2<f32>>>,
    labelled: Labelled,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.command {
        Some(Command::Tasks) => tasks(global),
        Some(Command::Train(train)) => fit(&train, global),
        None => fit(&args.train, global),
    }
}

fn tasks(global: &Global) -> Result<()> {
    let mut lines = Vec::new();
    for (name, _) in SHIPPED {
        if let Some(task) = Task::shipped(name) {
            let task = task?;
            lines.push(format!("{name:<22} {:<6} {}", task.suits, task.about));
        }
    }
    super::report::say(global, &lines.join("\n"))
}

fn fit(args: &Train, global: &Global) -> Result<()> {
    if args.tasks.is_empty() && args.file.is_none() && args.data.is_none() {
        return Err(request(
            "nothing to probe: name a task (`probe tasks` lists them), or give --file or --data with --label",
        ));
    }
    let mut bench = Bench::open(global)?;
    let name = match (&args.file, &args.data) {
        (Some(path), _) | (_, Some(path)) => {
            format!("{} {}", path.display(), args.label.as_deref().unwrap_or_default())
        }
        _ => args.tasks.join(" "),
    };
    let mut options = Options {
        alphas: args.alpha.clone(),
        folds: args.folds,
        test_share: args.test_share,
        seeds: args.seeds,
        seed: global.seed,
        ..Options::default()
    };
    options.fitting.max_iterations = args.max_iterations;
    let untrained = if args.no_random_model || args.data.is_some() {
        None
    } else {
        Some(Gpt2::new(bench.config().clone(), initial::draw(bench.config(), global.seed))?)
    };
    if args.data.is_some() && !args.no_random_model {
        note(
            global.quiet,
            "note: no model that has learned nothing: a dataset has the activations of its own model only",
        );
    }
    let report = Report::begin("probe", global, &name)?;
    let mut frame: Option<DataFrame> = None;
    let mut told = Vec::new();
    for rows in sources(args) {
        let rows = rows.read(args, &mut bench, untrained.as_ref(), global)?;
        let bar = bar(global.quiet, 0, "{msg}: {pos}/{len} probes [{wide_bar}] {eta} left");
        bar.set_message(rows.name.clone());
        let study = Study {
            name: &rows.name,
            sites: &rows.sites,
            features: &rows.features,
            random: rows.random.as_deref(),
            rows: &rows.labelled,
        };
        let own = probe::layers(&study, &options, &mut counted(&bar))?;
        bar.finish_and_clear();
        told.push(json!({
            "probe": rows.name, "prompts": distinct(&rows.labelled.prompt), "rows": rows.labelled.labels.len(), "groups": distinct(&rows.labelled.groups),
            "control_types": distinct(&rows.labelled.controls),
        }));
        interp::frame::append(&mut frame, own)?;
    }
    let frame = frame.ok_or_else(|| Error::Bug("no task".into()))?;
    let outcome = Outcome {
        figure: figure::probes(&frame)?,
        summary: summary(&Summary::of(&frame)?),
        frame,
        how: How {
            plan: &Plan::new(),
            applied: Vec::new(),
            tokens: None,
            extra: json!({
                "probes": told, "seeds": options.seeds, "test_share": options.test_share,
                "alphas": options.alphas, "folds": options.folds, "max_iterations": options.fitting.max_iterations,
                "tolerance": options.fitting.tolerance, "random_model": untrained.is_some(),
            }),
        },
    };
    report.finish(global, bench, outcome)
}

fn distinct(codes: &[u32]) -> usize {
    codes.iter().collect::<std::collections::BTreeSet<_>>().len()
}

/// Where rows are from.
enum Source<'a> {
    Task(&'a str),
    File(&'a Path),
    Data(&'a Path),
}

fn sources(args: &Train) -> Vec<Source<'_>> {
    let file = args.file.iter().map(|path| Source::File(path));
    let data = args.data.iter().map(|path| Source::Data(path));
    args.tasks.iter().map(|name| Source::Task(name)).chain(file).chain(data).collect()
}

impl Source<'_> {
    fn read(self, args: &Train, bench: &mut Bench, untrained: Option<&Gpt2>, global: &Global) -> Result<Rows> {
        let kind = if args.regression { Kind::Value } else { Kind::Classes };
        let label = args.label.as_deref().unwrap_or_default();
        let at = At::parse(&args.at)?;
        let (name, tokens, labelled) = match self {
            Source::Data(dir) => return dataset(dir, args, (kind, label, &at), bench),
            Source::Task(name) => {
                let task = task(name)?;
                let (tokens, labelled) = task.rows(
                    args.examples.unwrap_or(task.examples),
                    global.seed,
                    bench.tokenizer()?,
                    global.encoding(),
                )?;
                (short(name), tokens, labelled)
            }
            Source::File(path) => {
                let names: Vec<String> = [label].into_iter().chain(args.group.as_deref()).map(str::to_string).collect();
                let documents = documents::open(path, &args.field, &names)?;
                let (tokens, labelled) =
                    probe::from_documents(documents, &at, kind, bench.tokenizer()?, global.encoding())?;
                (label.to_string(), tokens, labelled)
            }
        };
        tokens.check(bench.config(), 0)?;
        let sites = sites(args, bench.config().n_layer)?;
        let features = features(&bench.model, &sites, &tokens, &labelled)?;
        let random = untrained.map(|model| self::features(model, &sites, &tokens, &labelled)).transpose()?;
        Ok(Rows { name, sites, features, random, labelled })
    }
}

/// A task by the name of a shipped one or of a file.
fn task(name: &str) -> Result<Task> {
    if let Some(task) = Task::shipped(name) {
        return task;
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(Error::Missing(format!(
            "there is no task or file `{}`; the tasks are {}",
            interp::error::printable(name),
            SHIPPED.map(|(name, _)| name).join(", ")
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::Data { path: path.into(), what: e.to_string() })?;
    Task::parse(&text, path)
}

/// A file's name without its folder and ending.
fn short(name: &str) -> String {
    Path::new(name).file_stem().map_or_else(|| name.to_string(), |stem| stem.to_string_lossy().into_owned())
}

fn sites(args: &Train, layers: usize) -> Result<Vec<Site>> {
    let usual = ["resid_pre.0".to_string(), "resid_post.*".to_string()];
    let patterns = if args.site.is_empty() { &usual[..] } else { &args.site };
    let mut sites: Vec<Site> = Vec::new();
    for pattern in patterns {
        let found = Site::matching(pattern, layers)?;
        sites.extend(found.into_iter().filter(|site| !sites.contains(site)).collect::<Vec<_>>());
    }
    interp::export::check_sites(&sites)?;
    Ok(sites)
}

/// The activations at the labelled positions, `[row, d]` per site.
fn features(model: &Gpt2, sites: &[Site], tokens: &Tokens, labelled: &Labelled) -> Result<Vec<Array2<f32>>> {
    let chosen = labelled.positions(tokens.len());
    let mut all = vec![Vec::new(); sites.len()];
    for (first, batch) in batches(tokens) {
        gather::read_rows(model, sites, &batch, &chosen[first..first + batch.len()], &mut all)?;
    }
    let rows = labelled.labels.len();
    let table = |values: Vec<f32>| Array2::from_shape_vec((rows, values.len() / rows), values);
    all.into_iter().map(|values| table(values).map_err(|e| Error::Bug(e.to_string()))).collect()
}

/// Rows of an exported dataset, which must be of this model.
fn dataset(dir: &Path, args: &Train, (kind, label, at): (Kind, &str, &At), bench: &mut Bench) -> Result<Rows> {
    let data = Dataset::open(dir)?;
    let weights = bench.source.digests()?.weights;
    if data.plan().request.weights != weights {
        return Err(Error::Data {
            path: dir.to_path_buf(),
            what: format!("is of another model than {}; name its own with --model", bench.source.name),
        });
    }
    let own = data.plan().sites()?;
    let sites: Vec<Site> = match args.site.is_empty() {
        true => own,
        false => sites(args, bench.config().n_layer)?,
    };
    let group = args.group.as_deref().unwrap_or("document");
    let start = data.plan().request.cut.start;
    let names: Vec<String> = sites.iter().map(Site::to_string).collect();
    let (identity, features) = data.read(&names)?;
    let (chosen, labelled) = probe::from_identity(&identity, (label, group), at, kind, start)?;
    let features = features.iter().map(|x| x.select(ndarray::Axis(0), &chosen)).collect();
    Ok(Rows { name: label.to_string(), sites, features, random: None, labelled })
}

/// A table per task: what each site says, and what it must be held against.
fn summary(all: &Summary) -> String {
    let mut lines = Vec::new();
    for name in all.probes() {
        let metric = all.score(&name);
        lines.push(format!("{name}: {metric} on rows that were not fitted (95 % over splits)"));
        lines.push(format!(
            "  {:<14}{:>22}{:>10}{:>12}{:>10}{:>10}{:>10}{:>12}",
            "site", "probe", "control", "selectivity", "random", "shuffled", "majority", "compression"
        ));
        let get = |split: &str, metric: &str, site: usize| all.get(&name, split, metric)?.get(&site).copied();
        for (i, site) in all.sites(&name).iter().enumerate() {
            let probe = get("test", metric, i)
                .map_or(String::new(), |p| format!("{:.3} [{:.3}, {:.3}]", p.mean, p.low, p.high));
            let cell = |split: &str, metric: &str| match get(split, metric, i) {
                Some(interval) => format!("{:.3}", interval.mean),
                None => "–".into(),
            };
            lines.push(format!(
                "  {site:<14}{probe:>22}{:>10}{:>12}{:>10}{:>10}{:>10}{:>12}",
                cell("control", metric),
                cell("test", "selectivity"),
                cell("random", metric),
                cell("shuffled", metric),
                cell("majority", metric),
                cell("all", "compression"),
            ));
        }
    }
    lines.join("\n")
}
