//! One error type: what went wrong, with the numbers, and what to do next.

use std::path::{Path, PathBuf};

use crate::site::Site;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
///
/// Every message is one line that carries the numbers and, where there is one, the next step. [`Error::kind`]
/// sorts them by whose move it is; the command line turns the kind into an exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request itself cannot be met: an unknown name, a number out of range, options that exclude each other.
    #[error("{0}")]
    Request(String),
    /// No site has this name.
    #[error("unknown site `{name}`; the nearest are {}", .nearest.join(", "))]
    UnknownSite {
        /// What was asked for.
        name: String,
        /// Names that do exist, nearest first.
        nearest: Vec<String>,
    },
    /// More tokens than the model has positions.
    #[error(
        "prompt {prompt} has {tokens} tokens; this model reads at most {limit}: shorten it or pass --truncate left|right"
    )]
    TooLong {
        /// Index of the prompt in its batch.
        prompt: usize,
        /// How many tokens it has.
        tokens: usize,
        /// How many fit.
        limit: usize,
    },
    /// A site was asked for in a run that does not pass it.
    #[error("`{site}` is never reached: {why}")]
    NotReached {
        /// The site.
        site: Site,
        /// The part of the model that the run covers.
        why: String,
    },
    /// A value was asked of a trace that its plan did not read.
    #[error("`{0}` was not read; add .read({0}) to the plan")]
    NotRead(Site),
    /// A gradient was asked of a site that its plan did not name, or that the metric does not depend on.
    #[error("no gradient at `{site}`: {why}")]
    NoGradient {
        /// The site.
        site: Site,
        /// Which of the two it is.
        why: &'static str,
    },
    /// A value stopped being a number.
    #[error("{what} first at `{site}`; weights or an edit are too large for this dtype")]
    NotFinite {
        /// The first site, in the order of the forward pass, with a value that is not finite.
        site: Site,
        /// `NaN` or `infinity`.
        what: &'static str,
    },
    /// A file that was found is not what it claims to be.
    #[error("{}: {what}", .path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file or a model that was asked for does not exist.
    #[error("{0}")]
    Missing(String),
    /// A device, a network or a feature that this build or machine does not have.
    #[error("{0}")]
    Unavailable(String),
    /// An output could not be created.
    #[error("cannot write {}: {what}", .path.display())]
    CannotWrite {
        /// The output.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// Reading or writing broke off.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It would not fit, or somebody else holds it: the same request may work later or smaller.
    #[error("{0}")]
    TryAgain(String),
    /// The user stopped it.
    #[error("interrupted{0}")]
    Interrupted(String),
    /// The system, or somebody else, stopped it.
    #[error("terminated{0}")]
    Terminated(String),
    /// A tensor operation failed. The library checks its input first, so this is a bug.
    #[error("internal: {}", said_by_candle(.0))]
    Tensor(candle_core::Error),
    /// A frame could not be built. The library checks its input first, so this is a bug.
    #[error("internal: {0}")]
    Frame(#[from] polars::error::PolarsError),
    /// A model could not be fitted. The library checks its input first, so this is a bug.
    #[error("internal: {0}")]
    Fit(#[from] linfa::Error),
    /// A promise of this crate that did not hold.
    #[error("internal: {0}")]
    Bug(String),
}

/// Whose move it is after an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request must change.
    Request,
    /// The data must change.
    Data,
    /// The input does not exist.
    Missing,
    /// This build or machine cannot.
    Unavailable,
    /// An output could not be created.
    CannotWrite,
    /// Reading or writing broke off.
    Io,
    /// The same request may work later or smaller.
    TryAgain,
    /// The user stopped it.
    Interrupted,
    /// The system, or somebody else, stopped it.
    Terminated,
    /// Report it.
    Bug,
}

/// A device that has no memory left is nobody's bug.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let what = said_by_candle(&error);
        if !what.contains("OUT_OF_MEMORY") && !what.contains("out of memory") {
            return Error::Tensor(error);
        }
        let left = crate::device::memory_left().map_or(String::new(), |(free, all)| {
            format!(": {} of {} are free", crate::memory::human(free), crate::memory::human(all))
        });
        Error::TryAgain(format!(
            "the GPU has no memory left for this{left}; give fewer or shorter prompts at once, --dtype bf16 or --device cpu"
        ))
    }
}

impl Error {
    /// Sorts the error by whose move it is.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Request(_)
            | Error::UnknownSite { .. }
            | Error::TooLong { .. }
            | Error::NotReached { .. }
            | Error::NotRead(_)
            | Error::NoGradient { .. } => Kind::Request,
            Error::Data { .. } | Error::NotFinite { .. } => Kind::Data,
            Error::Missing(_) => Kind::Missing,
            Error::Unavailable(_) => Kind::Unavailable,
            Error::CannotWrite { .. } => Kind::CannotWrite,
            Error::Io { .. } => Kind::Io,
            Error::TryAgain(_) => Kind::TryAgain,
            Error::Interrupted(_) => Kind::Interrupted,
            Error::Terminated(_) => Kind::Terminated,
            Error::Tensor(_) | Error::Frame(_) | Error::Fit(_) | Error::Bug(_) => Kind::Bug,
        }
    }

    pub(crate) fn request(what: impl Into<String>) -> Self {
        Error::Request(what.into())
    }

    /// That there is no such thing, and the nearest that there is.
    pub(crate) fn no_such<'a>(kind: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Error::Request(no_such(kind, name, known.into_iter()))
    }

    pub(crate) fn data(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// Turns what the system said about `path` into the error that fits: missing input, or broken reading.
    pub(crate) fn reading(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref();
        match source.kind() {
            std::io::ErrorKind::NotFound => Error::Missing(format!("{}: no such file", path.display())),
            std::io::ErrorKind::PermissionDenied => Error::Missing(format!("{}: permission denied", path.display())),
            _ => Error::Io { path: path.to_path_buf(), source },
        }
    }

    /// Turns what the system said about writing `path` into the error that fits: cannot create, or broken writing.
    pub(crate) fn writing(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::*;
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            StorageFull | QuotaExceeded | WriteZero | FileTooLarge | Other => Error::Io { path, source },
            _ => Error::CannotWrite { path, what: source.to_string() },
        }
    }
}

/// The fault of a TOML text on one line, with the number of the line that has it.
pub(crate) fn toml_fault(text: &str, fault: &toml::de::Error) -> String {
    let mut what = fault.message().split_whitespace().collect::<Vec<_>>().join(" ");
    // "unknown field `x`, expected one of `a`, `b`" is a list to search through, and may be a long one.
    let quoted: Vec<&str> = what.split('`').skip(1).step_by(2).collect();
    let kind =
        [("unknown field", "key"), ("unknown variant", "value")].iter().find(|(start, _)| what.starts_with(start));
    if let (Some((_, kind)), [unknown, known @ ..]) = (kind, quoted.as_slice())
        && !known.is_empty()
    {
        what = no_such(kind, unknown, known.iter().copied());
    }
    what = in_plain_words(&what);
    match fault.span() {
        Some(span) => {
            let line = text.get(..span.start).map_or(0, |before| before.matches('\n').count());
            format!("line {}: {what}", line + 1)
        }
        None => what,
    }
}

/// serde's "invalid type: string "a", expected usize" for who knows no Rust.
fn in_plain_words(what: &str) -> String {
    let said = what.strip_prefix("invalid type: ").or_else(|| what.strip_prefix("invalid value: "));
    let Some((found, expected)) = said.and_then(|said| said.rsplit_once(", expected ")) else { return what.into() };
    let expected = match expected {
        "usize" | "u64" | "u32" | "u8" => "a whole number not below 0",
        "isize" | "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a sequence" => "a list",
        "path string" => "text",
        other => other,
    };
    format!("expected {expected}, found {found}")
}

/// Says that there is no such thing, and which name is the nearest of those that there are.
pub fn no_such<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let shown = shorten(name);
    match known.len() {
        0 => format!("there is no {kind} `{shown}`"),
        1..=12 => format!("there is no {kind} `{shown}`, {}", nearest(name, known.into_iter())),
        _ => format!("there is no {kind} `{shown}`; {}", nearest(name, known.into_iter())),
    }
}

/// Which of the known names is nearest to one that is not among them; all of them, where they are few.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let folded = name.trim().to_lowercase();
    let best = known.iter().min_by_key(|other| crate::site::distance(&folded, &other.to_lowercase()));
    // A word of a longer name is nearer to it than by its letters.
    let holds = |other: &&&str| folded.chars().count() > 2 && other.to_lowercase().contains(&folded);
    let holding: Vec<&str> = known.iter().filter(holds).copied().take(6).collect();
    if known.len() > 12 && holding.len() > 1 {
        return format!("near to it are {}", holding.join(", "));
    }
    let best = holding.first().copied().or(best.copied());
    match (best, known.len()) {
        (None, _) => "there is none".into(),
        (Some(best), 1) => format!("there is only `{best}`"),
        (Some(best), 2..=12) => format!("the nearest is `{best}`; there are {}", known.join(", ")),
        (Some(best), _) => format!("the nearest is `{best}`"),
    }
}

/// What candle says, without the backtrace that it appends where `RUST_BACKTRACE` is set.
pub(crate) fn said_by_candle(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.split("\n   0: ").next().unwrap_or_default().trim_end().to_string()
}

/// At most 60 characters of `text`, with control characters made visible, for a message.
pub(crate) fn shorten(text: &str) -> String {
    shorten_to(text, 60)
}

/// At most `limit` characters of `text`, with control characters made visible, for a message.
pub(crate) fn shorten_to(text: &str, limit: usize) -> String {
    let visible: String = text.chars().take(limit).flat_map(visible).collect();
    if text.chars().nth(limit).is_some() { format!("{visible}…") } else { visible }
}

/// Text as a terminal may show it, on one line.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

/// A character as a terminal may show it: what would move the cursor or turn the text around is escaped.
pub(crate) fn visible(c: char) -> impl Iterator<Item = char> {
    let hidden = c.is_control()
        || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
        || matches!(c, '\u{FFF9}'..='\u{FFFB}' | '\u{FFFE}' | '\u{FFFF}' | '\u{E0000}'..='\u{E007F}');
    let escaped = hidden.then(|| c.escape_default().collect::<String>());
    let plain = escaped.is_none().then_some(c);
    escaped.unwrap_or_default().chars().collect::<Vec<_>>().into_iter().chain(plain)
}
