//! Probes on disk: `probes.safetensors` with their numbers, and `probes.json` with what they are of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::fitted::{Probe, Reads};
use super::layers::{Kept, Studied, Study};
use crate::config::Config;
use crate::disk;
use crate::error::{Error, Result};
use crate::fit::standardiser::Standardiser;
use crate::gather::{check_sites, width};
use crate::labelled::{Labels, Row};
use crate::site::Site;
use crate::weights;

/// The names of the files.
pub const FILES: [&str; 2] = ["probes.safetensors", "probes.json"];

/// What activations were made by; probes fit no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// sha256 of the model's weights, file by file.
    pub weights_sha256: Vec<String>,
    /// The type that the model computed in.
    pub dtype: String,
    /// Whether texts begin with the token that ends a text.
    pub bos: bool,
}

/// The probes of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The task.
    pub name: String,
    /// The classes that they tell apart; none for numbers.
    pub classes: Option<Vec<String>>,
    /// A probe per site, with its scores on what it was not fitted on.
    pub kept: Vec<Kept>,
    /// Hashes of the groups and of the texts that they were fitted on.
    learned: BTreeSet<String>,
}

/// probes.json.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: String,
    #[serde(flatten)]
    stamp: Stamp,
    tasks: Vec<Task>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    name: String,
    classes: Option<Vec<String>>,
    learned_from: BTreeSet<String>,
    probes: Vec<Entry>,
}

/// One probe; its tensors are named by `name`: `….mean`, `….deviation`, and `….theta`, for every score its weights and then its
/// intercept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    site: String,
    present: Option<Vec<usize>>,
    alpha: f64,
    constant_features: usize,
    scores: BTreeMap<String, f64>,
    standardiser_sha256: String,
    theta_sha256: String,
}

const FORMAT: &str = "interp probes 1";

/// What a group or a text is known by.
fn short(name: &str) -> String {
    weights::sha256_of(name.as_bytes())[..16].to_string()
}

impl Saved {
    /// The probes that a study found.
    pub fn of(study: &Study<'_>, studied: &Studied) -> Self {
        let rows = study.rows;
        let groups = studied.split.train.iter().map(|row| &rows.group_names[rows.groups[*row] as usize]);
        let texts = studied.split.train.iter().filter_map(|row| rows.texts[*row].as_ref());
        Self {
            name: study.name.to_string(),
            classes: match &rows.labels {
                Labels::Classes { names, .. } => Some(names.clone()),
                Labels::Values(_) => None,
            },
            kept: studied.kept.clone(),
            learned: groups.chain(texts).map(|name| short(name)).collect(),
        }
    }

    /// Whether the probes were fitted on rows of the same group, or of the same text.
    pub fn learned_from(&self, row: &Row) -> bool {
        [Some(&row.group), row.text.as_ref()].into_iter().flatten().any(|name| self.learned.contains(&short(name)))
    }

    /// The probe that did best on what it was not fitted on, the first of equals.
    pub fn best(&self) -> Option<&Kept> {
        let score = |kept: &Kept| {
            let found = ["accuracy", "r2"].iter().find_map(|name| kept.scores.get(*name));
            found.copied().unwrap_or(f64::NEG_INFINITY)
        };
        self.kept.iter().reduce(|best, kept| if score(kept) > score(best) { kept } else { best })
    }
}

/// Writes probes into a directory.
///
/// # Errors
/// [`Error::CannotWrite`] or [`Error::Io`].
pub fn save(dir: &Path, stamp: &Stamp, all: &[Saved]) -> Result<()> {
    let mut numbers: Vec<(String, Vec<usize>, &[f64])> = Vec::new();
    let mut tasks = Vec::new();
    for saved in all {
        let mut probes = Vec::new();
        for Kept { site, probe, scores } in &saved.kept {
            let name = format!("{}/{site}", saved.name);
            let (standardiser, d) = (&probe.standardiser, probe.width());
            numbers.push((format!("{name}.mean"), vec![d], &standardiser.mean));
            numbers.push((format!("{name}.deviation"), vec![d], &standardiser.deviation));
            numbers.push((format!("{name}.theta"), vec![probe.theta.len() / (d + 1), d + 1], &probe.theta));
            probes.push(Entry {
                name,
                site: site.to_string(),
                present: match &probe.reads {
                    Reads::Classes { present, .. } => Some(present.clone()),
                    Reads::Value => None,
                },
                alpha: probe.alpha,
                constant_features: standardiser.constant,
                scores: scores.clone(),
                standardiser_sha256: hash(&[&standardiser.mean, &standardiser.deviation]),
                theta_sha256: hash(&[&probe.theta]),
            });
        }
        tasks.push(Task {
            name: saved.name.clone(),
            classes: saved.classes.clone(),
            learned_from: saved.learned.clone(),
            probes,
        });
    }
    let fault = |e: String| Error::Bug(format!("probes cannot be written: {e}"));
    let views = numbers
        .iter()
        .map(|(name, shape, values)| {
            let view = TensorView::new(Dtype::F64, shape.clone(), bytemuck::cast_slice(values));
            Ok((name.as_str(), view.map_err(|e| fault(e.to_string()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| fault(e.to_string()))?;
    let index = Index { format: FORMAT.into(), stamp: stamp.clone(), tasks };
    let json = serde_json::to_vec_pretty(&index).map_err(|e| fault(e.to_string()))?;
    disk::write_bytes(&dir.join(FILES[0]), &bytes)?;
    disk::write_bytes(&dir.join(FILES[1]), &json)
}

/// Reads the probes in a directory, for a model of this shape and activations that are made like this.
///
/// # Errors
/// [`Error::Missing`] for a directory without probes; [`Error::Data`] for probes of another model, of another site than there
/// is, of activations that were made otherwise, and for numbers or a standardiser that are not those that were saved.
pub fn load(dir: &Path, config: &Config, stamp: &Stamp) -> Result<Vec<Saved>> {
    let [tensors, index] = FILES.map(|name| dir.join(name));
    if !index.exists() {
        return Err(Error::Missing(format!("{}: no probes.json; `probe train` writes one", dir.display())));
    }
    let wrong = |what: String| Error::data(&index, what);
    let found: Index =
        serde_json::from_str(&weights::read_text(&index, 64 << 20)?).map_err(|e| wrong(e.to_string()))?;
    if found.format != FORMAT {
        return Err(wrong(format!("its format is `{}`; this version reads `{FORMAT}`", found.format)));
    }
    check(&found.stamp, stamp).map_err(wrong)?;
    let bytes = weights::read_tensors(&tensors, 1 << 30)?;
    let numbers = Numbers {
        all: SafeTensors::deserialize(&bytes).map_err(|e| Error::data(&tensors, e.to_string()))?,
        path: &tensors,
    };
    // Each has three tensors of its own.
    let probes = found.tasks.iter().map(|task| task.probes.len()).sum::<usize>();
    if 3 * probes > numbers.all.len() {
        return Err(wrong(format!(
            "it tells of {probes} probes; the numbers beside it are of {}",
            numbers.all.len() / 3
        )));
    }
    let mut all = Vec::new();
    for task in found.tasks {
        let classes = task.classes.as_ref().map(Vec::len);
        let probe = |entry: &Entry| -> Result<Kept> {
            let site: Site = entry.site.parse().map_err(|e| wrong(format!("{e}")))?;
            if site.layer() >= Some(config.n_layer) || check_sites(&[site]).is_err() {
                return Err(wrong(format!("`{site}` is no site of this model that a probe reads")));
            }
            Ok(Kept { site, probe: numbers.probe(entry, width(config, site), classes)?, scores: entry.scores.clone() })
        };
        let kept = task.probes.iter().map(probe).collect::<Result<Vec<_>>>()?;
        if kept.is_empty() {
            return Err(wrong(format!("`{}` has no probe", task.name)));
        }
        all.push(Saved { name: task.name, classes: task.classes, kept, learned: task.learned_from });
    }
    Ok(all)
}

/// What is different about how activations were made, in words.
fn check(of: &Stamp, now: &Stamp) -> std::result::Result<(), String> {
    if of.weights_sha256 != now.weights_sha256 {
        let brief = |all: &[String]| {
            all.iter().map(|hash| hash.chars().take(12).collect::<String>() + "…").collect::<Vec<_>>().join("+")
        };
        return Err(format!(
            "its probes are of a model with sha256 {}, this one has {}: name that model with --model, or fit them anew",
            brief(&of.weights_sha256),
            brief(&now.weights_sha256)
        ));
    }
    if of.dtype != now.dtype {
        return Err(format!(
            "its probes were fitted on {} activations, not {}: give --dtype {}",
            of.dtype, now.dtype, of.dtype
        ));
    }
    match of.bos == now.bos {
        true => Ok(()),
        false => Err(format!(
            "its probes were fitted on texts {} <|endoftext|> before them: give --bos {}",
            if of.bos { "with" } else { "without" },
            if of.bos { "yes" } else { "no" }
        )),
    }
}

/// The tensors of a file.
struct Numbers<'a> {
    all: SafeTensors<'a>,
    path: &'a Path,
}

impl Numbers<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let wrong = |what: String| Error::data(self.path, what);
        let found = self.all.tensor(name).map_err(|_| wrong(format!("has no tensor `{name}`")))?;
        if found.dtype() != Dtype::F64 || found.shape() != shape {
            let (dtype, own) = (found.dtype(), found.shape());
            return Err(wrong(format!("`{name}` is {dtype:?} {own:?}, wanted F64 {shape:?}")));
        }
        let (numbers, _) = found.data().as_chunks::<8>();
        Ok(numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    fn probe(&self, entry: &Entry, width: usize, classes: Option<usize>) -> Result<Probe> {
        let wrong = |what: String| Error::data(self.path, format!("`{}`: {what}", entry.name));
        let (scores, reads) = match (&entry.present, classes) {
            (Some(present), Some(classes)) => {
                let rising = present.windows(2).all(|pair| pair[0] < pair[1]);
                if present.is_empty() || !rising || present.last().is_some_and(|last| *last >= classes) {
                    return Err(wrong(format!("has the classes {present:?} of {classes}")));
                }
                let scores = if present.len() < 3 { present.len() - 1 } else { present.len() };
                (scores, Reads::Classes { present: present.clone(), classes })
            }
            (None, None) => (1, Reads::Value),
            _ => return Err(wrong("is not of the kind of its task".into())),
        };
        let get = |part: &str, shape: &[usize]| self.get(&format!("{}.{part}", entry.name), shape);
        let (mean, deviation) = (get("mean", &[width])?, get("deviation", &[width])?);
        let theta = get("theta", &[scores, width + 1])?;
        if hash(&[&mean, &deviation]) != entry.standardiser_sha256 {
            return Err(wrong("its standardiser is not the one that it was fitted with".into()));
        }
        if hash(&[&theta]) != entry.theta_sha256 {
            return Err(wrong("its weights are not those that were saved".into()));
        }
        let standardiser = Standardiser { mean, deviation, constant: entry.constant_features };
        Ok(Probe { standardiser, theta, reads, alpha: entry.alpha, converged: true })
    }
}

fn hash(parts: &[&[f64]]) -> String {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter()).flat_map(|x| x.to_le_bytes()).collect();
    weights::sha256_of(&bytes)
}
