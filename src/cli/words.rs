//! The words of a command line: what holds for every option of every command, and what is said of a mistake.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Arg, Command, CommandFactory};
use interp::error::nearest;

/// The command tree, in which the value of every option may begin with a dash: `--prompt '- a list'`, `--layer -1`.
pub fn tree() -> Command {
    fn dashes(command: Command) -> Command {
        command
            .mut_args(|arg| if is_valued(&arg) { arg.allow_hyphen_values(true) } else { arg })
            .mut_subcommands(dashes)
    }
    let mut root = dashes(super::Cli::command());
    root.build();
    root
}

/// Whether this is an option with a value.
fn is_valued(arg: &Arg) -> bool {
    !arg.is_positional() && arg.get_action().takes_values()
}

/// The command that the words name, below `root`; or what is wrong with a word before clap reads it.
///
/// A word that is itself the name of an option, of whichever command, is never taken as the value of the one before it:
/// `--prompt --layer 5` lacks the prompt.
pub fn check<'a>(root: &'a Command, words: &[OsString]) -> Result<&'a Command, String> {
    let known = names(root);
    let mut here = root;
    let mut words = words.iter().skip(1).map(|word| word.to_str().unwrap_or_default());
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if let Some(command) = here.find_subcommand(word) {
            here = command;
            continue;
        }
        if let Some(meant) = other_dash(word).filter(|meant| known.contains(name(meant))) {
            let dash = word.chars().next().map_or(0, u32::from);
            return Err(format!("`{word}` begins with the character U+{dash:04X}, which is no hyphen; write {meant}"));
        }
        let is_option = word.starts_with('-') && word != "-";
        if is_option && !known.contains(name(word)) {
            let doubled = format!("-{word}");
            if !word.starts_with("--") && known.contains(name(&doubled)) {
                return Err(format!("unexpected argument '{word}' found; write {doubled}"));
            }
            if std::path::Path::new(word).exists() {
                return Err(format!("unexpected argument '{word}' found; for the file of that name write ./{word}"));
            }
            if name(word).contains(char::is_whitespace) {
                return Err(format!("unexpected argument '{word}' found; text is given by --prompt TEXT"));
            }
        }
        if is_option && !here.get_arguments().any(|arg| is_called(arg, name(word))) {
            break; // clap says that it is none of this command
        }
        let option = here.get_arguments().find(|arg| is_valued(arg) && long(arg).as_deref() == Some(word));
        if let (Some(option), Some(next)) = (option, option.and_then(|_| words.next()))
            && known.contains(name(next))
        {
            return Err(format!(
                "a value is required for '{option}', but '{next}' after it is an option; if that is the value, write {word}={next}"
            ));
        }
    }
    Ok(here)
}

/// Refuses words that are no request.
///
/// # Errors
/// What is wrong with them.
pub fn accept(root: &Command, words: &[OsString]) -> Result<(), String> {
    let here = check(root, words)?;
    root.clone().try_get_matches_from(words).map(|_| ()).map_err(|e| explain(&e, root, here))
}

/// The names of all options of all commands, with their dashes.
fn names(command: &Command) -> BTreeSet<String> {
    let own =
        command.get_arguments().flat_map(|arg| long(arg).into_iter().chain(arg.get_short().map(|c| format!("-{c}"))));
    own.chain(command.get_subcommands().flat_map(names)).collect()
}

fn long(arg: &Arg) -> Option<String> {
    arg.get_long().map(|name| format!("--{name}"))
}

fn is_called(arg: &Arg, name: &str) -> bool {
    long(arg).as_deref() == Some(name) || arg.get_short().is_some_and(|c| name == format!("-{c}"))
}

/// The part of a word that names an option.
fn name(word: &str) -> &str {
    word.split('=').next().unwrap_or(word)
}

/// A word that begins with a dash of another kind, as word processors put it for one or two hyphens, with hyphens.
fn other_dash(word: &str) -> Option<String> {
    let is_dash = |c: char| is_other_dash(c) || c == '-';
    let rest = word.trim_start_matches(is_dash);
    word.starts_with(is_other_dash).then(|| format!("{}{rest}", if rest.chars().nth(1).is_some() { "--" } else { "-" }))
}

fn is_other_dash(c: char) -> bool {
    matches!(c, '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{FE58}' | '\u{FE63}' | '\u{FF0D}')
}

/// What clap says of the words for a command, on one line, with what to write instead.
pub fn explain(error: &Error, root: &Command, here: &Command) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (option, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let invalid = |why: String| format!("invalid value '{value}' for '{option}': {why}");
    match error.kind() {
        ErrorKind::InvalidValue if !value.is_empty() => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(known)) => invalid(nearest(value, known.iter().map(String::as_str))),
            _ => one_line(error),
        },
        ErrorKind::ValueValidation => match no_number(error, value, here, option) {
            Some(why) => invalid(why),
            None => one_line(error),
        },
        ErrorKind::InvalidSubcommand => {
            let wrong = text(ContextKind::InvalidSubcommand);
            let known = here.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name);
            format!("unrecognized subcommand '{wrong}': {}", nearest(wrong, known))
        }
        ErrorKind::UnknownArgument => unknown(option, root, here),
        ErrorKind::InvalidUtf8 => {
            let words = std::env::args_os().filter(|word| word.to_str().is_none());
            let words: Vec<String> = words.map(|word| format!("`{}`", word.to_string_lossy())).collect();
            format!(
                "{} is not UTF-8, and an option that takes a name or a path wants that; rename it, or make a link to it with another name",
                words.join(" or ")
            )
        }
        _ => one_line(error),
    }
}

/// What is wrong with a value that should be a number.
fn no_number(error: &Error, value: &str, here: &Command, option: &str) -> Option<String> {
    let source = std::error::Error::source(error)?;
    if source.is::<ParseFloatError>() {
        return Some("it is not a number; write digits, such as 0.5, -2 or 1e-3".into());
    }
    let whole = source.downcast_ref::<ParseIntError>()?;
    let negative =
        value.strip_prefix('-').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
    let kind = here.get_arguments().find(|arg| arg.to_string() == option).map(|arg| arg.get_value_parser().type_id());
    let largest = |largest: u64| format!("it is larger than {largest}");
    Some(match whole.kind() {
        IntErrorKind::InvalidDigit if negative => "it is below 0".into(),
        IntErrorKind::PosOverflow => match kind {
            Some(kind) if kind == TypeId::of::<i64>() || kind == TypeId::of::<u32>() => largest(i64::MAX as u64),
            _ => largest(u64::MAX),
        },
        IntErrorKind::NegOverflow => format!("it is below {}", i64::MIN),
        _ => "it is not a whole number; write digits alone, such as 1000".into(),
    })
}

/// What is said of a word that looks like an option, or that nothing takes.
fn unknown(word: &str, root: &Command, here: &Command) -> String {
    let command = here.get_bin_name().unwrap_or("interp").to_string();
    let found = format!("unexpected argument '{word}' found");
    if !word.starts_with('-') {
        let text = here.get_arguments().any(|arg| arg.get_id() == "prompt");
        let hint = if text { "; text is given by --prompt TEXT" } else { "" };
        return format!("{found}: {command} takes no such word{hint}");
    }
    let options = |command: &Command| -> Vec<String> {
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
        shown.filter_map(long).collect()
    };
    // An option of other commands is one to move, or to do without; it is no misspelling.
    let mut others = Vec::new();
    owners(root, word, &mut others);
    if !others.is_empty() {
        let (more, shown) = (others.len() > 4, others.iter().take(4).cloned().collect::<Vec<_>>().join(", "));
        let etc = if more { " and others" } else { "" };
        let hint = if here.has_subcommands() { "; write it after the command" } else { "" };
        return format!("{found}: it is an option of {shown}{etc}, not of `{command}`{hint}");
    }
    if !word.starts_with("--") {
        return format!("{found}: options begin with two hyphens; `{command} --help` lists them");
    }
    format!("{found}: {}", nearest(word, options(here).iter().map(String::as_str)))
}

/// The commands below that have an option of this name.
fn owners(command: &Command, word: &str, found: &mut Vec<String>) {
    if command.get_arguments().any(|arg| !arg.is_global_set() && long(arg).as_deref() == Some(word)) {
        found.extend(command.get_bin_name().map(|name| format!("`{name}`")));
    }
    command.get_subcommands().filter(|command| !command.is_hide_set()).for_each(|command| owners(command, word, found));
}

/// clap's message without its usage and help lines.
fn one_line(error: &Error) -> String {
    let message = error.to_string();
    let kept: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .take_while(|line| !line.starts_with("Usage:"))
        .collect();
    kept.join(" ").trim_start_matches("error: ").to_string()
}

/// A message with what a person cannot see in it: that a minus sign or a dash in it is another character than a hyphen.
pub fn with_dashes_told(message: &str) -> String {
    let after = |(at, c): (usize, char)| message[at + c.len_utf8()..].chars().next();
    let found =
        message.char_indices().find(|&(at, c)| is_other_dash(c) && after((at, c)).is_some_and(|c| c.is_ascii_digit()));
    match found {
        Some((_, c)) => {
            format!("{message} (`{c}` here is the character U+{:04X}; a number takes the hyphen, -)", u32::from(c))
        }
        None => message.to_string(),
    }
}

/// Tells whether a model, a suite, a set of pairs or a task that is shipped has this name.
pub fn is_name(text: &str) -> bool {
    let models = interp::config::PUBLISHED.iter().map(|published| published.0).chain(["tiny"]);
    let suites = interp::suite::SHIPPED.iter().map(|(name, _)| *name);
    let pairs = interp::pairset::SHIPPED.iter().map(|(name, _)| *name);
    let tasks = interp::task::SHIPPED.iter().map(|(name, _)| *name);
    models.chain(suites).chain(pairs).chain(tasks).any(|name| name == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command with its path.
    fn walk<'a>(command: &'a Command, path: &[&'a str], found: &mut Vec<(Vec<&'a str>, &'a Command)>) {
        found.push((path.to_vec(), command));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            walk(below, &[path, &[below.get_name()]].concat(), found);
        }
    }

    #[test]
    fn every_option_of_every_command_takes_a_value_that_begins_with_a_dash() {
        let root = tree();
        let mut all = Vec::new();
        walk(&root, &["interp"], &mut all);
        assert!(all.len() > 40, "{}", all.len());
        let mut tried = 0;
        for (path, command) in &all {
            for option in command.get_arguments().filter(|arg| is_valued(arg)) {
                let long = long(option).expect("every option has a long name");
                for value in ["- a list", "-1", "--", "---", "-x=1", "--no such option"] {
                    let words: Vec<OsString> =
                        path.iter().copied().chain([long.as_str(), value]).map(Into::into).collect();
                    let here = check(&root, &words).unwrap();
                    assert_eq!(here.get_name(), command.get_name());
                    let Err(error) = root.clone().try_get_matches_from(&words) else { continue };
                    // What is wrong with it is wrong with the value, or with what else the command needs.
                    let fine = match error.kind() {
                        ErrorKind::MissingRequiredArgument
                        | ErrorKind::ArgumentConflict
                        | ErrorKind::MissingSubcommand => true,
                        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => true,
                        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                            let first = value.split(',').next().unwrap_or_default();
                            matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(text)) if text == first)
                        }
                        _ => false,
                    };
                    assert!(fine, "{words:?}: {:?} {error}", error.kind());
                }
                // The name of an option is none, unless it is said.
                let next = if long == "--seed" { "--quiet" } else { "--seed" };
                let words: Vec<OsString> = path.iter().copied().chain([long.as_str(), next]).map(Into::into).collect();
                let what = check(&root, &words).unwrap_err();
                let tip = what.rsplit("write ").next().unwrap();
                assert_eq!(tip, format!("{long}={next}"));
                let words: Vec<OsString> = path.iter().copied().chain([tip]).map(Into::into).collect();
                assert!(check(&root, &words).is_ok());
                tried += 1;
            }
        }
        assert!(tried > 500, "{tried}");
    }
}
