//! Which command honours which of the options that every command takes. The others are refused: an option that does nothing
//! would be believed, and recorded.

use clap::ArgMatches;
use clap::parser::ValueSource;
use interp::Result;

use super::request;

/// What opens a model.
const MODEL: &str = "model tokenizer device tf32 dtype strict memory";
/// What turns a text into tokens.
const TEXT: &str = "bos allow_special";
/// Where results are written.
const OUT: &str = "out name";

/// Every command, and what it refuses; it honours all else. Commands refuse more where it depends on their own options
/// ([`super::args::Global::refuse`]).
const REFUSED: &[(&str, &[&str])] = &[
    ("ablate", &[]),
    ("attention", &["seed"]),
    ("attribute", &[]),
    ("behave", &[]),
    ("bench", &[TEXT]),
    ("capture", &["seed"]),
    ("circuit find", &[]),
    ("circuit list", &[MODEL, TEXT, OUT, "seed price"]),
    ("circuit test", &[]),
    ("completions", &[MODEL, TEXT, OUT, "seed price format quiet offline"]),
    ("doctor", &["model tokenizer dtype strict memory", TEXT, OUT, "seed price"]),
    ("export", &[]),
    ("export merge", &[MODEL, TEXT, OUT, "seed price"]),
    ("export verify", &[MODEL, TEXT, OUT, "seed price format"]),
    ("finetune", &["bos"]),
    ("generate", &[]),
    ("heads", &[]),
    ("lens", &["seed"]),
    ("models convert", &["model device tf32 dtype memory", TEXT, "seed price"]),
    ("models download", &[MODEL, TEXT, OUT, "seed price format"]),
    ("models info", &["device tf32 strict memory", TEXT, OUT, "seed price"]),
    ("models list", &[MODEL, TEXT, OUT, "seed price"]),
    ("models read-characters", &[MODEL, TEXT, OUT, "seed price format quiet offline"]),
    ("models read-checkpoint", &[MODEL, TEXT, OUT, "seed price format quiet offline"]),
    ("models verify", &[TEXT, OUT, "seed price"]),
    ("neurons", &["seed"]),
    ("pairs", &[]),
    ("patch", &[]),
    ("paths", &[]),
    ("perplexity", &["seed"]),
    ("predict", &["seed"]),
    ("probe", &[]),
    ("probe apply", &["seed"]),
    ("probe eval", &[]),
    ("probe tasks", &[MODEL, TEXT, OUT, "seed price format"]),
    ("probe train", &[]),
    ("probe view", &[]),
    ("report", &["seed"]),
    ("residual", &["seed"]),
    ("saliency", &["seed"]),
    ("sites", &[TEXT, "seed"]),
    ("steer", &[]),
    ("subspace", &[]),
    ("sweep", &[]),
    ("tokens", &["seed"]),
    ("train", &["model strict bos"]),
    ("verify", &[TEXT, "seed"]),
];

/// What a command that lists what comes with the workbench has no use for.
pub const LISTS: &[&str] = &[MODEL, TEXT, OUT, "seed price"];
/// What goes with text of one's own.
pub const OF_TEXT: &[&str] = &[TEXT];

/// Why an option would do nothing.
fn why(option: &str) -> &'static str {
    match option {
        "seed" => "nothing in it is drawn by chance",
        "bos" | "allow_special" => "it turns no text into tokens",
        "out" | "name" => "it leaves no directory",
        "price" => "it computes nothing that costs",
        "format" => "it has one form of output",
        "dtype" => "it computes in no type of its own",
        _ => "it opens no model for it",
    }
}

/// What was given on a command line: the names of the command, and the ids of the options.
#[derive(Clone, Debug, Default)]
pub struct Given {
    command: String,
    options: Vec<String>,
}

impl Given {
    pub fn of(matches: &ArgMatches) -> Self {
        let (mut at, mut names) = (matches, Vec::new());
        while let Some((name, below)) = at.subcommand() {
            names.push(name);
            at = below;
        }
        let ids = at.ids().map(|id| id.as_str());
        let is_given = |id: &&str| at.value_source(id) == Some(ValueSource::CommandLine);
        Self { command: names.join(" "), options: ids.filter(is_given).map(str::to_string).collect() }
    }

    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }

    /// Refuses what the command does not honour.
    pub fn check(&self) -> Result<()> {
        let refused =
            REFUSED.iter().find(|(command, _)| *command == self.command).map_or(&[][..], |(_, refused)| refused);
        match words(refused).find(|option| self.has(option)) {
            Some(option) => self.refuse(&[option], &format!("`interp {}`: {}", self.command, why(option))),
            None => Ok(()),
        }
    }

    /// Refuses options that nothing reads here.
    pub fn refuse(&self, options: &[&str], why: &str) -> Result<()> {
        match words(options).find(|option| self.has(option)) {
            Some(option) => {
                Err(request(format!("--{} would do nothing: {why}; leave it out", option.replace('_', "-"))))
            }
            None => Ok(()),
        }
    }
}

fn words<'a>(lists: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    lists.iter().flat_map(|list| list.split(' '))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    /// The commands that can be run, by all their names.
    fn commands(command: &clap::Command, names: &str, found: &mut BTreeSet<String>) {
        let below: Vec<&clap::Command> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        let runs = below.is_empty() || !command.is_subcommand_required_set();
        if runs && !names.is_empty() {
            found.insert(names.to_string());
        }
        for below in below {
            let names = format!("{names} {}", below.get_name());
            commands(below, names.trim(), found);
        }
    }

    #[test]
    fn every_command_says_what_it_honours() {
        let root = super::super::Cli::command();
        let mut found = BTreeSet::new();
        commands(&root, "", &mut found);
        let own: BTreeSet<String> = REFUSED.iter().map(|(command, _)| command.to_string()).collect();
        assert_eq!(own.len(), REFUSED.len(), "a command is there twice");
        assert_eq!(own, found);
        let options: BTreeSet<&str> = root
            .get_arguments()
            .filter(|option| option.is_global_set())
            .map(|option| option.get_id().as_str())
            .collect();
        let given = |command: &str, option: &str| Given { command: command.into(), options: vec![option.into()] };
        for (command, refused) in REFUSED {
            let refused: BTreeSet<&str> = words(refused).collect();
            assert!(refused.is_subset(&options), "{command}: {refused:?}");
            for option in &options {
                let answer = given(command, option).check();
                assert_eq!(answer.is_err(), refused.contains(option), "{command} --{option}: {answer:?}");
            }
        }
        let error = given("predict", "seed").check().unwrap_err().to_string();
        assert!(
            error.contains("--seed would do nothing: `interp predict`: nothing in it is drawn by chance"),
            "{error}"
        );
    }

    #[test]
    fn what_is_given_is_what_stands_on_the_command_line() {
        let of = |line: &str| Given::of(&super::super::Cli::command().get_matches_from(line.split(' ')));
        let given = of("interp --seed 3 circuit find --pairs ioi --bos yes");
        assert_eq!(given.command, "circuit find");
        assert!(given.has("seed") && given.has("bos") && given.has("pairs"));
        assert!(!given.has("model") && !given.has("method"), "defaults are not given");
        assert!(of("interp --allow-special models list").check().is_err());
    }
}
