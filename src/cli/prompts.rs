//! Prompts: from options, files and standard input, as text and as tokens that fit.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use interp::dataset::documents::{Content, Documents, Form, Reading, read_form};
use interp::text::{Bos, Encoding};
use interp::{Error, Result, Tokenizer, Tokens};

use super::args::{Global, Side, Text};
use super::{note, request};

/// Largest file of prompts.
const MAX_TEXT: u64 = 64 << 20;

/// How every command reads files of texts: what is left out is said.
pub fn reading(global: &Global) -> Reading {
    let quiet = global.quiet;
    Reading::default().hearing(move |what| note(quiet, &format!("note: {what}")))
}

/// Refuses --allow-special where all files hold tokens already.
pub fn no_special_in_tokens(global: &Global, files: &[PathBuf]) -> Result<()> {
    let mut of_tokens = !files.is_empty();
    for path in files {
        of_tokens &= read_form(path)? == Form::Tokens;
    }
    match global.allow_special && of_tokens {
        true => Err(request("--allow-special reads text, and all that is given is tokens already")),
        false => Ok(()),
    }
}

/// The texts that the options name.
pub fn read_prompts(text: &Text, global: &Global) -> Result<Vec<String>> {
    let from_stdin = match &text.stdin {
        Some(dash) if dash == "-" => true,
        Some(other) => {
            let other = other.to_string_lossy();
            return Err(Error::Request(format!("`{}` is not an option; write --prompt TEXT", other.escape_debug())));
        }
        None => text.file.as_deref() == Some(Path::new("-")),
    };
    let sources = usize::from(!text.prompt.is_empty()) + usize::from(text.file.is_some() || text.stdin.is_some());
    if sources > 1 || (text.file.is_some() && text.stdin.is_some()) {
        return Err(Error::Request("give text by one of --prompt, --file and -, not by several".into()));
    }
    if !text.prompt.is_empty() {
        return text
            .prompt
            .iter()
            .enumerate()
            .map(|(i, prompt)| decode(prompt.as_encoded_bytes(), text.lossy, Path::new(&format!("prompt {i}"))))
            .collect();
    }
    let reading = reading(global).lossy(text.lossy);
    let (documents, path) = match &text.file {
        _ if from_stdin => {
            if std::io::stdin().is_terminal() {
                return Err(Error::Request("standard input is a terminal; give --prompt TEXT or pipe text in".into()));
            }
            let mut bytes = Vec::new();
            let path = PathBuf::from("standard input");
            std::io::stdin()
                .take(MAX_TEXT + 1)
                .read_to_end(&mut bytes)
                .map_err(|source| Error::Io { path: path.clone(), source })?;
            small(bytes.len() as u64, &path)?;
            (reading.parse(bytes, &path)?, path)
        }
        Some(path) => {
            let documents = reading.open(path)?;
            if read_form(path)? == Form::Tokens {
                return Err(request(format!(
                    "{} holds tokens and not prompts; perplexity, export, train and finetune read it",
                    path.display()
                )));
            }
            small(std::fs::metadata(path).map_or(0, |file| file.len()), path)?;
            (documents, path.clone())
        }
        None => return Err(Error::Request("no text: give --prompt TEXT, --file PATH, or - for standard input".into())),
    };
    let prompts = texts(documents)?;
    if prompts.is_empty() {
        return Err(Error::Request(format!("{} holds no text", path.display())));
    }
    Ok(prompts)
}

/// The texts of documents that are text.
pub fn texts(documents: Documents) -> Result<Vec<String>> {
    let text = |content| match content {
        Content::Text(text) => Ok(text),
        Content::Tokens { .. } => Err(request("tokens, where text is wanted")),
    };
    documents.map(|document| document.and_then(|document| text(document.content))).collect()
}

fn small(bytes: u64, path: &Path) -> Result<()> {
    match bytes > MAX_TEXT {
        true => Err(Error::Data { path: path.into(), what: format!("more than the {MAX_TEXT} bytes that are read") }),
        false => Ok(()),
    }
}

fn decode(bytes: &[u8], lossy: bool, path: &Path) -> Result<String> {
    if lossy {
        return Ok(String::from_utf8_lossy(bytes).into_owned());
    }
    std::str::from_utf8(bytes).map(str::to_string).map_err(|e| Error::Data {
        path: path.to_path_buf(),
        what: format!("not UTF-8 at byte {}; pass --lossy to replace such bytes", e.valid_up_to()),
    })
}

/// Drops tokens on one side; a prepended token that starts the text stays first.
pub fn truncated(
    tokens: &Tokens,
    limit: usize,
    side: Side,
    tokenizer: &Tokenizer,
    encoding: Encoding,
) -> Result<Tokens> {
    let rows: Vec<Vec<u32>> = (0..tokens.len())
        .map(|prompt| {
            let row = tokens.row(prompt);
            let bos = encoding.bos != Bos::No && row.first().is_some_and(|id| tokenizer.bos() == Some(*id));
            match side {
                _ if row.len() <= limit => row.to_vec(),
                Side::Right => row[..limit].to_vec(),
                Side::Left if bos => row[..1].iter().chain(&row[row.len() - (limit - 1)..]).copied().collect(),
                Side::Left => row[row.len() - limit..].to_vec(),
            }
        })
        .collect();
    let text = rows.iter().map(|row| row.iter().map(|&id| tokenizer.text(id)).collect()).collect();
    Tokens::from_ids(rows)?.with_text(text)
}
