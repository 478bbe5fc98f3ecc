//! Prompts: from options, files and standard input, as text and as tokens that fit.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use interp::text::{Bos, Encoding};
use interp::{Error, Result, Tokenizer, Tokens};

use super::args::{Side, Text};

/// Largest file of prompts.
const MAX_TEXT: u64 = 64 << 20;

/// The texts that the options name.
pub fn read_prompts(text: &Text) -> Result<Vec<String>> {
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
    let (bytes, path) = match &text.file {
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
            (bytes, path)
        }
        Some(path) => (interp::weights::read_small(path, MAX_TEXT)?, path.clone()),
        None => return Err(Error::Request("no text: give --prompt TEXT, --file PATH, or - for standard input".into())),
    };
    if bytes.len() as u64 > MAX_TEXT {
        return Err(Error::Data { path, what: format!("more than the {MAX_TEXT} bytes that are read") });
    }
    let content = decode(&bytes, text.lossy, &path)?;
    let content = content.strip_prefix('\u{feff}').unwrap_or(&content);
    let prompts: Vec<String> = match path.extension().is_some_and(|e| e == "jsonl") {
        true => interp::texts::jsonl_texts(content, &path)?,
        false => content.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect(),
    };
    if prompts.is_empty() {
        return Err(Error::Request(format!("{} holds no text", path.display())));
    }
    Ok(prompts)
}

pub fn decode(bytes: &[u8], lossy: bool, path: &Path) -> Result<String> {
    if lossy {
        return Ok(String::from_utf8_lossy(bytes).into_owned());
    }
    std::str::from_utf8(bytes).map(str::to_string).map_err(|e| Error::Data {
        path: path.to_path_buf(),
        what: format!("not UTF-8 at byte {}; pass --lossy to replace such bytes", e.valid_up_to()),
    })
}

/// Drops tokens on one side; a prepended end-of-text token stays first.
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
            let bos = encoding.bos != Bos::No && row.first().copied() == tokenizer.end_of_text();
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
