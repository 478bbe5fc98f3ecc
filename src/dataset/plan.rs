//! What a dataset will hold, decided before the first activation is computed: a resumed export goes by it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files;
use super::sequences::{Cut, Sequences};
use crate::error::{Error, Result, shorten, shorten_to};
use crate::shard::Layout;
use crate::site::Site;
use crate::{disk, weights};

/// The version of the layout of a dataset's directory.
const FORMAT: u32 = 2;
/// Bytes of a plan at most.
const MAX_BYTES: u64 = 64 << 20;
/// Parts of a dataset at most: their numbers have five digits.
const MAX_PARTS: usize = 100_000;
/// Sites, and labels, of a plan that was read, at most.
const MAX_NAMES: usize = 4096;
/// Tokens of a sequence at most, in a plan that was read.
const MAX_CONTEXT: usize = 1 << 24;

/// What was asked for: two exports of the same request are equal, byte for byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// sha256 of the weights' files.
    pub weights: Vec<String>,
    /// sha256 of the tokenizer.
    pub tokenizer: Option<String>,
    /// sha256 of the text's files.
    pub text: Vec<String>,
    /// The field or column that is the text.
    pub field: String,
    /// Sites, in forward order, by TransformerLens's names.
    pub sites: Vec<String>,
    /// How files are laid out.
    pub layout: Layout,
    /// How values are stored.
    pub dtype: Dtype,
    /// The type that the model computed in.
    pub computed: String,
    /// How text becomes sequences.
    pub cut: Cut,
    /// Fields of the text's files that are columns here.
    pub labels: Vec<String>,
    /// Whether covariances are kept.
    pub covariance: bool,
    /// Rows of a part, about.
    pub part_rows: u64,
    /// Padded tokens that pass through the model at once.
    pub batch_tokens: usize,
    /// Threads that computed: sums in another order may round otherwise.
    pub threads: usize,
    /// The version of this crate.
    pub version: String,
}

/// The type of stored values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As computed.
    #[default]
    F32,
    /// Rounded to half the size.
    F16,
}

/// One file of a dataset, before it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its first sequence, in the order of the export.
    pub first: usize,
    /// How many sequences it holds.
    pub sequences: usize,
    /// How many rows.
    pub rows: u64,
}

/// A request, with what the text turned out to hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the layout.
    pub format: u32,
    /// What was asked for.
    pub request: Request,
    /// Documents that were read.
    pub documents: u32,
    /// sha256 of the tokens, of the sequences' places and of the labels.
    pub digests: Vec<String>,
    /// The files to come.
    pub parts: Vec<Part>,
}

impl Request {
    /// Checks what can be checked without text, for a model that reads `n_positions` tokens.
    ///
    /// # Errors
    /// [`Error::Request`] for options that exclude each other, and as [`Cut::check`].
    pub fn check(&self, n_positions: usize) -> Result<()> {
        let cut = &self.cut;
        cut.check(n_positions)?;
        self.layout.check_names(&self.labels, &self.sites)?;
        if cut.pack && !self.labels.is_empty() {
            return Err(Error::request(
                "labels belong to documents, and packed sequences to several; leave out --pack or --label",
            ));
        }
        if self.layout != Layout::Saelens {
            return Ok(());
        }
        let fault = if self.sites.len() != 1 {
            format!("{} sites; SAELens reads one site per dataset", self.sites.len())
        } else if !cut.pack {
            "SAELens reads sequences of one length: add --pack".to_string()
        } else if cut.skip_first || cut.sample.is_some() || !cut.is_disjoint() {
            "SAELens reads whole sequences: leave out --skip-first-token, --sample and --stride".to_string()
        } else if self.dtype != Dtype::F32 {
            "SAELens reads f32: leave out --store f16".to_string()
        } else {
            return Ok(());
        };
        Err(Error::request(fault))
    }

    /// Whether a part's rows come in an order that is drawn.
    pub fn mixes_rows(&self) -> bool {
        self.cut.shuffle && self.layout != Layout::Saelens
    }

    /// Whether all rows of a part are held before the first is written.
    pub fn gathers(&self) -> bool {
        self.mixes_rows() || !self.layout.streams()
    }
}

impl Plan {
    /// Divides sequences into parts.
    ///
    /// # Errors
    /// [`Error::Request`] for more parts than a dataset has.
    pub fn new(request: Request, documents: u32, sequences: &Sequences, digests: Vec<String>) -> Result<Self> {
        let mut parts = vec![Part { first: 0, sequences: 0, rows: 0 }];
        for (i, sequence) in sequences.all().iter().enumerate() {
            let full = parts
                .last()
                .is_some_and(|part| part.rows > 0 && part.rows + u64::from(sequence.rows) > request.part_rows);
            if full {
                if parts.len() == MAX_PARTS {
                    return Err(Error::request(format!(
                        "{} rows to a part make more than {MAX_PARTS} parts; raise --part-rows",
                        request.part_rows
                    )));
                }
                parts.push(Part { first: i, sequences: 0, rows: 0 });
            }
            if let Some(part) = parts.last_mut() {
                part.sequences += 1;
                part.rows += u64::from(sequence.rows);
            }
        }
        Ok(Self { format: FORMAT, request, documents, digests, parts })
    }

    /// What is wrong with a plan that was read: the numbers in it are used as they are.
    fn fault(&self) -> Option<String> {
        let Request { sites, labels, cut, part_rows, batch_tokens, .. } = &self.request;
        if sites.len() > MAX_NAMES || labels.len() > MAX_NAMES {
            return Some(format!("{} sites and {} labels, at most {MAX_NAMES} each", sites.len(), labels.len()));
        }
        if let Err(e) = self.request.check(MAX_CONTEXT) {
            return Some(e.to_string());
        }
        if *part_rows == 0 || *batch_tokens == 0 || self.documents == 0 {
            return Some(format!(
                "{part_rows} rows to a part, {batch_tokens} tokens at once, {} documents",
                self.documents
            ));
        }
        match self.sites() {
            Err(e) => return Some(e.to_string()),
            Ok(known) if known.is_empty() => return Some("there is no site".into()),
            Ok(known) if sites.iter().zip(&known).any(|(name, site)| *name != site.to_string()) => {
                return Some("a site is not written as sites are".into());
            }
            Ok(known) if (1..known.len()).any(|i| known[..i].contains(&known[i])) => {
                return Some("a site is there twice".into());
            }
            Ok(_) => {}
        }
        if self.digests.len() != 2 + usize::from(!labels.is_empty()) || !self.digests.iter().all(|own| is_sha256(own)) {
            return Some("digests are not the sha256 of its files".into());
        }
        if self.parts.is_empty() || self.parts.len() > MAX_PARTS {
            return Some(format!("there are {} parts, not 1 to {MAX_PARTS}", self.parts.len()));
        }
        let mut next = 0_usize;
        for (i, part) in self.parts.iter().enumerate() {
            let end = next.checked_add(part.sequences).filter(|end| u32::try_from(*end).is_ok());
            let (true, Some(end), true) = (part.first == next, end, part.sequences > 0) else {
                return Some(format!(
                    "part {i} has {} sequences from {}, after {next} others",
                    part.sequences, part.first
                ));
            };
            let most = (part.sequences as u64).saturating_mul(cut.context as u64);
            if part.rows == 0 || part.rows > most {
                return Some(format!(
                    "part {i} has {} rows of {} sequences of {}",
                    part.rows, part.sequences, cut.context
                ));
            }
            next = end;
        }
        None
    }

    /// Checks that the parts are those of the sequences.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check_sequences(&self, sequences: &Sequences, dir: &Path) -> Result<()> {
        let own = Self::new(self.request.clone(), self.documents, sequences, self.digests.clone())?;
        match own == *self {
            true => Ok(()),
            false => Err(Error::data(path(dir), "has other parts than sequences.bin")),
        }
    }

    /// The file of a part.
    pub fn part_file(&self, index: usize) -> String {
        format!("{}.{}", stem(index), self.request.layout.extension())
    }

    /// Rows of all parts.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// The sites.
    ///
    /// # Errors
    /// [`Error::UnknownSite`].
    pub fn sites(&self) -> Result<Vec<Site>> {
        self.request.sites.iter().map(|name| name.parse()).collect()
    }

    /// What tells this plan from all others: the sha256 of its text.
    ///
    /// # Errors
    /// As serde_json.
    pub fn id(&self) -> Result<String> {
        Ok(weights::sha256_of(&self.to_json()?))
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::Bug(e.to_string()))
    }

    /// Writes it into a dataset's directory, after everything that it stands on.
    ///
    /// # Errors
    /// As [`disk::write_bytes`].
    pub fn save(&self, dir: &Path) -> Result<()> {
        disk::write_bytes(&path(dir), &self.to_json()?)
    }

    /// The plan of a directory; none where there is no dataset yet.
    ///
    /// # Errors
    /// [`Error::Data`] for what is no plan, that of another version, or one whose numbers do not fit each other.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            format: Value,
        }
        let path = path(dir);
        let Some(bytes) = files::read(&path, MAX_BYTES)? else { return Ok(None) };
        let refuse = |what: String| Error::data(&path, format!("no plan: {}", shorten_to(&what, 300)));
        let Version { format } = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        if format != FORMAT {
            let what = format!(
                "has layout {}; this version reads {FORMAT}: export the dataset again",
                shorten(&format.to_string())
            );
            return Err(Error::data(&path, what));
        }
        let plan: Self = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        match plan.fault() {
            None => Ok(Some(plan)),
            Some(what) => Err(refuse(what)),
        }
    }

    /// Checks that a new request is this plan's.
    ///
    /// # Errors
    /// [`Error::Data`] with every entry that differs.
    pub fn check_same(&self, request: &Request, dir: &Path) -> Result<()> {
        let fields = |request: &Request| serde_json::to_value(request).map_err(|e| Error::Bug(e.to_string()));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        flatten("", &fields(&self.request)?, &mut ours);
        flatten("", &fields(request)?, &mut theirs);
        let shown =
            |value: &Option<Value>| value.as_ref().map_or("nothing".into(), |value| shorten(&value.to_string()));
        let mut names: Vec<&String> = ours.iter().chain(&theirs).map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        let find =
            |list: &[(String, Value)], name: &String| list.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let differing: Vec<String> = names
            .into_iter()
            .filter_map(|name| {
                let (was, is) = (find(&ours, name), find(&theirs, name));
                (was != is).then(|| format!("{name} was {} and is {}", shown(&was), shown(&is)))
            })
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::data(
            path(dir),
            format!("another export was begun here, {}; name another --out", differing.join("; ")),
        ))
    }
}

/// Whether this is a sha256 as it is written.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What the files of a part are called, but for what they end in.
pub fn stem(index: usize) -> String {
    format!("part-{index:05}")
}

fn path(dir: &Path) -> PathBuf {
    dir.join("plan.json")
}

/// The leaves of an object, lists in one piece.
fn flatten(name: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, into);
            }
        }
        leaf => into.push((name.to_string(), leaf.clone())),
    }
}
