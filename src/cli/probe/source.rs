//! Where rows come from: tasks, texts with labels, datasets.

use std::path::{Path, PathBuf};

use interp::dataset::reader::Dataset;
use interp::error::no_such;
use interp::labelled::{Kind, Row};
use interp::probe::saved::Stamp;
use interp::probe::{self, At};
use interp::target::Target;
use interp::task::{SHIPPED, Task};
use interp::tokens::Tokens;
use interp::{Error, Gpt2, Result, Site, gather, limits, memory};
use ndarray::Array2;

use super::super::args::Global;
use super::super::bench::Bench;
use super::super::honours::OF_TEXT;
use super::super::number::long;
use super::super::prompts::reading;
use super::super::request;

#[derive(clap::Args, Debug)]
#[group(id = "source")]
pub struct Args {
    /// Tasks: names as `probe tasks` lists them, or files such as probes/tiny-number.toml.
    #[arg(value_name = "TASK")]
    pub tasks: Vec<String>,
    /// Instead of a task: texts with labels, .jsonl or .parquet.
    #[arg(long, value_name = "PATH", conflicts_with = "tasks", requires = "label")]
    pub file: Option<PathBuf>,
    /// Instead of a task: a dataset that `export` made, with its sites and labels.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tasks", "file"], requires = "label")]
    pub data: Option<PathBuf>,
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
    /// Texts of a task [default: what the task says].
    #[arg(long, value_name = "N", value_parser = long(2, limits::EXAMPLES))]
    examples: Option<u64>,
}

/// A source of rows.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Task(&'a str),
    File(&'a Path),
    Data(&'a Path),
}

/// A source whose rows are known, or that can be read, but of which nothing has been computed.
pub struct Opened {
    pub name: String,
    pub kind: Kind,
    /// How activations are made, or were.
    pub stamp: Stamp,
    /// Where it asks to be read, if it does: a task's own patterns, or what a dataset has.
    pub sites: Vec<String>,
    from: From,
}

enum From {
    Text { tokens: Tokens, rows: Vec<Row>, targets: Option<Vec<Target>> },
    Data(Box<Dataset>),
}

/// Rows and their activations.
pub struct Given {
    pub rows: Vec<Row>,
    /// `[row, d]` per site.
    pub features: Vec<Array2<f32>>,
    /// The same of another model, if that was asked for.
    pub random: Option<Vec<Array2<f32>>>,
    /// The texts, where they are at hand.
    pub tokens: Option<Tokens>,
    /// How they go on, where the task says so.
    pub targets: Option<Vec<Target>>,
}

impl Args {
    /// What was named, at least one source.
    pub fn sources(&self) -> Result<Vec<Source<'_>>> {
        let file = self.file.iter().map(|path| Source::File(path));
        let data = self.data.iter().map(|path| Source::Data(path));
        let all: Vec<_> = self.tasks.iter().map(|name| Source::Task(name)).chain(file).chain(data).collect();
        match all.is_empty() {
            true => {
                Err(request("no rows: name a task (`probe tasks` lists them), or give --file or --data with --label"))
            }
            false => Ok(all),
        }
    }

    /// A name for all of it.
    pub fn name(&self) -> String {
        match self.file.as_ref().or(self.data.as_ref()) {
            Some(path) => format!("{} {}", path.display(), self.label.as_deref().unwrap_or_default()),
            None => self.tasks.join(" "),
        }
    }

    pub fn open(&self, source: Source<'_>, bench: &mut Bench, global: &Global) -> Result<Opened> {
        let at = At::parse(&self.at)?;
        let label = self.label.as_deref().unwrap_or_default();
        let given = if self.regression { Kind::Value } else { Kind::Classes };
        let weights_sha256 = bench.source.digests()?.weights;
        let (name, kind, sites, tokens, rows, targets) = match source {
            Source::Data(dir) => {
                if self.file.is_none() && self.tasks.is_empty() {
                    global.refuse(OF_TEXT, "the activations of a data set are of tokens already")?;
                }
                let data = Dataset::open(dir)?;
                let asked = &data.plan().request;
                if asked.weights != weights_sha256 {
                    return Err(Error::Data {
                        path: dir.to_path_buf(),
                        what: format!("is of another model than {}; name its own with --model", bench.source.name),
                    });
                }
                let dtype = asked.computed.split(' ').next().unwrap_or_default().to_string();
                let stamp = Stamp { weights_sha256, dtype, bos: asked.cut.start.is_some() };
                let sites = asked.sites.clone();
                let from = From::Data(Box::new(data));
                return Ok(Opened { name: label.to_string(), kind: given, stamp, sites, from });
            }
            Source::Task(name) => {
                let task = task(name)?;
                let count = self.examples.unwrap_or(task.usual);
                let examples = task.examples(count, global.seed, bench.tokenizer()?, global.encoding())?;
                (short(name), task.kind, task.sites.clone(), examples.tokens, examples.rows, examples.targets)
            }
            Source::File(path) => {
                let names: Vec<String> = [label].into_iter().chain(self.group.as_deref()).map(str::to_string).collect();
                let documents = reading(global).field(&self.field).labels(&names).open(path)?;
                let (tokens, rows) = probe::from_documents(documents, &at, bench.tokenizer()?, global.encoding())?;
                (label.to_string(), given, Vec::new(), tokens, rows, None)
            }
        };
        tokens.check(bench.config(), 0)?;
        let stamp = stamp(weights_sha256, bench, &tokens);
        Ok(Opened { name, kind, stamp, sites, from: From::Text { tokens, rows, targets } })
    }

    /// Rows with their activations, computed or read, if there is memory for them.
    pub fn read(
        &self,
        opened: Opened,
        sites: &[Site],
        bench: &Bench,
        other: Option<&Gpt2>,
        global: &Global,
    ) -> Result<Given> {
        let rows = match &opened.from {
            From::Text { rows, .. } => rows.len() as u64,
            From::Data(data) => data.manifest().rows,
        };
        let widths: usize = sites.iter().map(|site| gather::width(bench.config(), *site)).sum();
        // A site's rows are copied where they are standardised, and a dataset's where they are chosen.
        let copies = if other.is_some() || matches!(opened.from, From::Data(_)) { 2 } else { 1 };
        let widest = sites.iter().map(|site| gather::width(bench.config(), *site)).max().unwrap_or(0);
        let needed = 4 * rows * (copies * widths + 3 * widest) as u64;
        let what = format!("probing {rows} rows at {} sites", sites.len());
        match bench.room(global)? {
            Some(room) => memory::check_left(&what, needed, Some(room))?,
            None => memory::check(&what, needed, None)?,
        }
        match opened.from {
            From::Text { tokens, rows, targets } => {
                let features = probe::features(&bench.model, sites, &tokens, &rows)?;
                let random = other.map(|model| probe::features(model, sites, &tokens, &rows)).transpose()?;
                Ok(Given { rows, features, random, tokens: Some(tokens), targets })
            }
            From::Data(data) => {
                let names: Vec<String> = sites.iter().map(Site::to_string).collect();
                let (identity, features) = data.read(&names)?;
                let by = (self.label.as_deref().unwrap_or_default(), self.group.as_deref());
                let cut = &data.plan().request.cut;
                let cut = (cut.start, cut.sample.is_none() && !cut.skip_first && cut.max_tokens.is_none());
                let (chosen, rows) = probe::from_identity(&identity, by, &At::parse(&self.at)?, cut)?;
                let features = features.iter().map(|x| x.select(ndarray::Axis(0), &chosen)).collect();
                Ok(Given { rows, features, random: None, tokens: None, targets: None })
            }
        }
    }
}

impl Opened {
    /// The sites to read at: those that are asked for by name or pattern, else its own, else the residual stream.
    pub fn sites(&self, asked: &[String], layers: usize) -> Result<Vec<Site>> {
        let usual = ["resid_pre.0".to_string(), "resid_post.*".to_string()];
        let patterns = [asked, &self.sites, &usual].into_iter().find(|patterns| !patterns.is_empty());
        let sites = Site::matching_all(patterns.unwrap_or(&usual), layers)?;
        gather::check_sites(&sites)?;
        Ok(sites)
    }
}

/// How the activations of a text are made.
pub fn stamp(weights_sha256: Vec<String>, bench: &Bench, tokens: &Tokens) -> Stamp {
    let start = bench.tokenizer.as_ref().and_then(interp::Tokenizer::bos);
    let bos = start.is_some() && tokens.row(0).first().copied() == start;
    Stamp { weights_sha256, dtype: bench.dtype.as_str().to_string(), bos }
}

/// A task by the name of a shipped one or of a file.
fn task(name: &str) -> Result<Task> {
    if let Some(task) = Task::shipped(name) {
        return task;
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(Error::Missing(no_such("task or file", name, SHIPPED.iter().map(|(name, _)| *name))));
    }
    Task::parse(&interp::weights::read_text(path, 16 << 20)?, path)
}

/// A file's name without its folder and ending.
pub fn short(name: &str) -> String {
    Path::new(name).file_stem().map_or_else(|| name.to_string(), |stem| stem.to_string_lossy().into_owned())
}
