//! What a person types about a recipe: the list of keys for `--help`, and what is said of a key that there is not.

use std::fmt::Write;

use super::{DataRecipe, ModelRecipe, Recipe, TrainRecipe};
use crate::error::{no_such, toml_fault};

/// Width of the list of keys.
const WIDTH: usize = 98;

/// Settings of nanoGPT's train.py that are no keys here, and what to give instead.
const ELSEWHERE: [(&str, &str); 17] = [
    ("out_dir", "give the directory by --out DIR"),
    ("log_interval", "leave it out: every step is written to metrics.jsonl"),
    ("eval_only", "leave it out: `interp perplexity --model DIR --file TEXT` measures a model without training it"),
    (
        "always_save_checkpoint",
        "leave it out: the last state is kept every checkpoint_interval steps, and with keep_best=true the model of the \
         lowest validation loss beside it",
    ),
    (
        "init_from",
        "leave it out: `interp train` starts from scratch, `interp finetune --model NAME` from a model, and both resume what \
         --out holds",
    ),
    ("wandb_log", "leave it out: nothing is sent anywhere, losses are in metrics.jsonl and frame.parquet"),
    ("wandb_project", "leave it out: nothing is sent anywhere, losses are in metrics.jsonl and frame.parquet"),
    ("wandb_run_name", "leave it out: nothing is sent anywhere, losses are in metrics.jsonl and frame.parquet"),
    ("dataset", "name the text by --file PATH or by data.text"),
    ("data_dir", "name the text by --file PATH or by data.text"),
    ("bias", "leave it out: every linear layer and LayerNorm has a bias, as in GPT-2"),
    ("backend", "leave it out: one process trains, on one device"),
    ("device", "give --device auto, cpu or cuda:N"),
    ("device_type", "give --device auto, cpu or cuda:N"),
    ("compile", "leave it out: there is nothing to compile"),
    ("meta_vocab_size", "set vocab_size"),
    ("model_type", "leave it out: `interp finetune --model NAME` starts from a model"),
];

/// The list of all keys with their defaults, as `--help` shows it.
pub fn help() -> String {
    let mut out = String::from(
        "Keys of a recipe, with their defaults: for --set KEY=VALUE, or below [train], [data] and [model] in the file of \
         --config. Most have nanoGPT's names.\n",
    );
    for (section, keys) in sections() {
        let _ = write!(out, "\n[{section}]\n");
        for (key, about) in keys {
            let _ = writeln!(out, "  {key} = {}", default(section, key));
            wrap(&mut out, about);
        }
    }
    out.trim_end().to_string()
}

/// A key, and the lines that say what it means.
type Key = (&'static str, &'static [&'static str]);

/// The sections, with their keys and what these mean.
fn sections() -> [(&'static str, &'static [Key]); 3] {
    [("train", TrainRecipe::KEYS), ("data", DataRecipe::KEYS), ("model", ModelRecipe::KEYS)]
}

/// The default of a key, as one would write it.
fn default(section: &str, key: &str) -> String {
    let recipe = Recipe { model: Some(ModelRecipe::default()), ..Recipe::default() };
    let table = toml::Table::try_from(recipe).unwrap_or_default();
    match table.get(section).and_then(|fields| fields.get(key)) {
        None => "(none)".into(),
        Some(toml::Value::Float(x)) => format!("{x:?}"),
        Some(value) => value.to_string(),
    }
}

/// The lines of a comment, filled anew.
fn wrap(out: &mut String, about: &[&str]) {
    let mut width = 0;
    for word in about.iter().flat_map(|line| line.split_whitespace()) {
        let word = word.replace('`', "");
        let length = word.chars().count() + 1;
        if width == 0 || width + length > WIDTH {
            out.push_str(if width == 0 { "         " } else { "\n         " });
            width = 9;
        }
        let _ = write!(out, " {word}");
        width += length;
    }
    out.push('\n');
}

/// What is said of a key that a section does not have, or that none has.
pub(super) fn unknown(section: Option<&str>, key: &str) -> String {
    if let Some((name, instead)) = ELSEWHERE.iter().find(|(name, _)| *name == key) {
        return format!("nanoGPT's {name} is no key here; {instead}");
    }
    let all = || sections().into_iter().flat_map(|(section, keys)| keys.iter().map(move |(key, _)| (section, *key)));
    if let Some(asked) = section {
        if !sections().iter().any(|(known, _)| *known == asked) {
            return no_such("section", asked, sections().iter().map(|(known, _)| *known));
        }
        if let Some((own, _)) = all().find(|(_, known)| *known == key) {
            return format!("{key} is no key of [{asked}]; it is one of [{own}]");
        }
    }
    let known = all().filter(|(own, _)| section.is_none_or(|asked| asked == *own));
    no_such("key", key, known.map(|(_, key)| key))
}

/// A fault of a recipe's TOML in words for who wrote it.
pub(super) fn fault(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let line = error.span().map(|span| text.get(..span.start).map_or(0, |before| before.matches('\n').count()) + 1);
    let at = line.map_or(String::new(), |line| format!("line {line}: "));
    if let (true, Some(key)) = (message.starts_with("unknown field"), quoted.first()) {
        // Where it stands decides what it may be called.
        let section = text.lines().take(line.unwrap_or(0)).filter_map(header).last();
        let outside =
            sections().into_iter().find(|(_, keys)| section.is_none() && keys.iter().any(|(own, _)| own == key));
        return match outside {
            Some((own, _)) => format!("{at}{key} stands before any section; write it below [{own}]"),
            None => format!("{at}{}", unknown(section, key)),
        };
    }
    if message.starts_with("unknown variant `float16`") {
        return format!("{at}training is in float32 or bfloat16; gradients in float16 would have to be scaled");
    }
    toml_fault(text, error)
}

/// The section that a line begins.
fn header(line: &str) -> Option<&str> {
    line.trim().strip_prefix('[')?.split(']').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_key_and_a_default_that_sets_it() {
        let help = help();
        let all: Vec<String> = sections()
            .into_iter()
            .flat_map(|(section, keys)| keys.iter().map(move |(key, _)| format!("{section}.{key}")))
            .collect();
        let mut known = Recipe::keys();
        known.sort();
        let mut listed = all.clone();
        listed.sort();
        assert_eq!(listed, known);
        for key in all {
            let (section, name) = key.split_once('.').unwrap();
            let line = format!("  {name} = {}\n", default(section, name));
            assert!(help.contains(&line), "{line}");
            if default(section, name) != "(none)" {
                let set = Recipe::load_with(None, &[format!("{key}={}", default(section, name))]).unwrap();
                let model = set.model.clone().unwrap_or_default();
                assert_eq!((set.train, set.data, model), Default::default(), "{key}");
            }
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100 || !line.starts_with(' ')), "{help}");
    }

    #[test]
    fn every_setting_of_nanogpt_is_a_key_or_says_what_to_give_instead() {
        let settings = "out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log \
                        wandb_project wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head \
                        n_embd dropout bias learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters \
                        lr_decay_iters min_lr backend device dtype compile vocab_size";
        let keys = Recipe::keys();
        for setting in settings.split_whitespace() {
            let is_key = keys.iter().any(|key| key.split('.').next_back() == Some(setting));
            let elsewhere = ELSEWHERE.iter().any(|(name, _)| *name == setting);
            assert!(is_key != elsewhere, "{setting}");
        }
    }

    #[test]
    fn a_key_that_is_not_there_has_its_place_or_its_nearest_name_told() {
        for (text, why) in [
            ("[train]\nlerning_rate = 1", "line 2: there is no key `lerning_rate`; the nearest is `learning_rate`"),
            ("learning_rate = 1", "line 1: learning_rate stands before any section; write it below [train]"),
            ("[trian]\nseed = 1", "line 1: there is no section `trian`, the nearest is `train`; there are "),
            ("[train]\nn_layer = 1", "line 2: n_layer is no key of [train]; it is one of [model]"),
            ("[train]\n\nlog_interval = 1", "line 3: nanoGPT's log_interval is no key here; leave it out"),
            ("[train]\ndtype = 'float16'", "line 2: training is in float32 or bfloat16"),
            ("[train]\ndtype = 'bfloat'", "line 2: there is no value `bfloat`, the nearest is `bfloat16`; there are "),
            ("[train]\nmax_iters = '1'", "line 2: expected a whole number not below 0, found string \"1\""),
            ("[train]\nmax_iters = -1", "line 2: expected a whole number not below 0, found integer `-1`"),
            ("[train]\nfreeze = 'wte'", "line 2: expected a list, found string \"wte\""),
        ] {
            let error = toml::from_str::<Recipe>(text).unwrap_err();
            assert!(fault(text, &error).contains(why), "{text}: {}", fault(text, &error));
        }
    }
}
