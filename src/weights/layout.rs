//! How the tensors of a file become those of a GPT-2: prefixes, buffers, heads of other tasks, and the orientation of
//! the matrices.

use std::collections::BTreeMap;

use super::checkpoint::list;
use crate::config::Config;
use crate::error::shorten;

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its name in the file.
    pub name: String,
    /// Its shape, or why it can hold no weights.
    pub shape: Result<Vec<usize>, String>,
}

/// Which tensors of the files are which of the model.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Canonical name → index among those that were found.
    pub tensors: BTreeMap<String, usize>,
    /// Biases that no file has; they are zero.
    pub zeros: Vec<String>,
    /// Whether the matrices of the blocks are `[out, in]`, as nn.Linear has them, rather than GPT-2's `[in, out]`.
    pub transposed: bool,
    /// A `lm_head.weight` that the config says is the token embedding.
    pub tied_copy: Option<usize>,
    /// Names of tensors that are no part of a language model.
    pub left_out: Vec<String>,
}

impl Layout {
    /// Compares names and shapes with what `config` implies; without `biases`, those may be absent, all of them.
    ///
    /// # Errors
    /// All differences together.
    pub fn fit(config: &Config, found: &[Found], biases: bool) -> Result<Self, String> {
        let names = Names::of(found)?;
        let mut differences = names.twice.iter().map(|name| format!("{name} is there twice")).collect::<Vec<_>>();
        let mut left = names.by_name;
        let wanted = config.tensors();
        let mut layout = Self { transposed: are_transposed(&wanted, found, &left), ..Self::default() };
        let with_biases = biases || left.keys().any(|name| name.ends_with(".bias") && !is_head(name));
        let mut missing = Vec::new();
        for (name, mut shape) in wanted {
            if layout.transposed && is_linear(&name) {
                shape.reverse();
            }
            match left.remove(&name) {
                Some(i) => {
                    differences.extend(difference(&name, &found[i], &shape));
                    layout.tensors.insert(name, i);
                }
                None if name.ends_with(".bias") && !with_biases => layout.zeros.push(name),
                None => missing.push(name),
            }
        }
        layout.tied_copy = if config.tie_word_embeddings { left.remove("lm_head.weight") } else { None };
        if let Some(i) = layout.tied_copy {
            differences.extend(difference("lm_head.weight", &found[i], &[config.vocab_size, config.n_embd]));
        }
        left.retain(|name, _| {
            let head = is_head(name);
            if head {
                layout.left_out.push(shorten(name));
            }
            !head
        });
        if !missing.is_empty() {
            differences.insert(0, format!("missing {}", list(&missing)));
        }
        if !left.is_empty() {
            differences.push(format!("unexpected {}", list(&left.into_keys().collect::<Vec<_>>())));
        }
        if differences.is_empty() { Ok(layout) } else { Err(list(&differences)) }
    }

    /// What a reader should know of how the weights were read.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.transposed {
            notes.push("the matrices are stored as nn.Linear has them, [out, in], and are transposed".to_string());
        }
        if !self.left_out.is_empty() {
            notes.push(format!("left out, as no part of the language model: {}", list(&self.left_out)));
        }
        if self.left_out.iter().any(|name| name == "lm_head.bias") {
            notes.push(
                "lm_head.bias is not added, as transformers does not add it: GPT-2's unembedding has no bias".into(),
            );
        }
        notes
    }
}

/// The tensors of files under the names that GPT-2's checkpoint gives them.
pub(super) struct Names {
    /// Canonical name → index among those that were found; buffers are left out.
    pub by_name: BTreeMap<String, usize>,
    /// Canonical names of more than one tensor.
    twice: Vec<String>,
}

impl Names {
    /// Takes away what exporters put before the names: `transformer.`, `model.`, `module.`, `_orig_mod.` and whatever
    /// else stands before `wte.weight`.
    ///
    /// # Errors
    /// Several token embeddings: there is more than one model.
    pub fn of(found: &[Found]) -> Result<Self, String> {
        let prefixes: Vec<&str> = found
            .iter()
            .filter_map(|tensor| tensor.name.strip_suffix("wte.weight"))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .collect();
        if let [first, second, ..] = prefixes.as_slice()
            && first != second
        {
            return Err(format!(
                "holds several models: `{}wte.weight` and `{}wte.weight`",
                shorten(first),
                shorten(second)
            ));
        }
        let prefix = prefixes.first().copied().unwrap_or("");
        let (mut by_name, mut twice) = (BTreeMap::new(), Vec::new());
        for (i, tensor) in found.iter().enumerate() {
            let name = without(prefix, &tensor.name);
            if !is_buffer(name) && by_name.insert(name.to_string(), i).is_some() {
                twice.push(name.to_string());
            }
        }
        Ok(Self { by_name, twice })
    }
}

/// A name without as much of the prefix as it has, whole parts only: `lm_head` stands further out than the blocks.
fn without<'a>(prefix: &str, name: &'a str) -> &'a str {
    let mut ends: Vec<usize> = prefix.match_indices('.').map(|(at, _)| at + 1).collect();
    ends.reverse();
    ends.into_iter().find_map(|end| name.strip_prefix(&prefix[..end])).unwrap_or(name)
}

/// The causal masks that old exports and nanoGPT carry.
fn is_buffer(name: &str) -> bool {
    name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
}

/// What stands on top of the blocks for other tasks: classifiers, value and reward heads, a bias of the unembedding.
fn is_head(name: &str) -> bool {
    const HEADS: [&str; 7] =
        ["score", "classifier", "classification_head", "multiple_choice_head", "qa_outputs", "summary", "regressor"];
    let first = name.split('.').next().unwrap_or("");
    match first {
        "lm_head" => name == "lm_head.bias",
        "h" | "wte" | "wpe" | "ln_f" => false,
        _ => HEADS.contains(&first) || first.ends_with("_head"),
    }
}

/// The matrices that nn.Linear and GPT-2's Conv1D store in different orientations.
pub(super) fn is_linear(name: &str) -> bool {
    name.starts_with("h.")
        && ["attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// Whether the matrices are `[out, in]`. Square ones say nothing; of each block `c_attn` or `c_proj` is none.
fn are_transposed(wanted: &[(String, Vec<usize>)], found: &[Found], names: &BTreeMap<String, usize>) -> bool {
    let (mut as_wanted, mut reversed) = (0, 0);
    for (name, shape) in wanted.iter().filter(|(name, shape)| is_linear(name) && shape[0] != shape[1]) {
        let Some(Ok(stored)) = names.get(name).map(|&i| &found[i].shape) else { continue };
        as_wanted += usize::from(stored == shape);
        reversed += usize::from(stored.len() == 2 && stored.iter().rev().eq(shape));
    }
    reversed > as_wanted
}

fn difference(name: &str, found: &Found, wanted: &[usize]) -> Option<String> {
    let shape = match &found.shape {
        Ok(shape) => shape,
        Err(why) => return Some(format!("{name} {why}")),
    };
    if shape == wanted {
        return None;
    }
    let transposed = is_linear(name) && shape.len() == 2 && shape.iter().rev().eq(wanted);
    let hint =
        if transposed { " (transposed, unlike most others: GPT-2 stores [in, out], nn.Linear [out, in])" } else { "" };
    Some(format!("{name} has shape {shape:?} instead of {wanted:?}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &Config, transposed: bool, rename: impl Fn(&str) -> String) -> Vec<Found> {
        let tensors = config.tensors().into_iter().map(|(name, mut shape)| {
            if transposed && is_linear(&name) {
                shape.reverse();
            }
            Found { name: rename(&name), shape: Ok(shape) }
        });
        tensors.collect()
    }

    #[test]
    fn prefixes_end_where_the_embedding_begins() {
        let config = Config::new(2, 2, 8, 11, 5);
        for prefix in
            ["", "transformer.", "model.", "module.", "_orig_mod.transformer.", "module.model.gpt.transformer."]
        {
            let mut tensors = found(&config, false, |name| format!("{prefix}{name}"));
            let outer = prefix.strip_suffix("transformer.").unwrap_or(prefix);
            for more in ["lm_head.weight", "score.weight", "v_head.summary.bias", "lm_head.bias"] {
                tensors.push(Found { name: format!("{outer}{more}"), shape: Ok(vec![11, 8]) });
            }
            tensors.push(Found { name: format!("{prefix}h.0.attn.bias"), shape: Err("is BOOL".into()) });
            let layout = Layout::fit(&config, &tensors, true).unwrap();
            assert_eq!(layout.left_out, ["lm_head.bias", "score.weight", "v_head.summary.bias"], "{prefix}");
            assert!(layout.tied_copy.is_some() && !layout.transposed, "{prefix}");
            assert_eq!(layout.notes().len(), 2);
        }
    }

    #[test]
    fn orientation_is_decided_by_all_matrices_together() {
        // c_proj is square; with n_inner = n_embd those of the MLP are square as well.
        let mut config = Config::new(1, 2, 8, 11, 5);
        for inner in [32, 8] {
            config.n_inner = inner;
            assert!(Layout::fit(&config, &found(&config, true, str::to_string), true).unwrap().transposed);
            assert!(!Layout::fit(&config, &found(&config, false, str::to_string), true).unwrap().transposed);
        }
        config.n_inner = 32;
        let mut mixed = found(&config, false, str::to_string);
        mixed.iter_mut().find(|t| t.name == "h.0.mlp.c_fc.weight").unwrap().shape = Ok(vec![32, 8]);
        let error = Layout::fit(&config, &mixed, true).unwrap_err();
        assert!(error.contains("h.0.mlp.c_fc.weight has shape [32, 8] instead of [8, 32] (transposed"), "{error}");
    }

    #[test]
    fn what_would_change_the_model_is_never_left_out() {
        let config = Config::new(1, 2, 8, 11, 5);
        for more in ["h.0.attn.rotary.weight", "projection.weight", "h.1.ln_1.weight", "wte.scale", "lm_head.scale"] {
            let mut tensors = found(&config, false, str::to_string);
            tensors.push(Found { name: more.into(), shape: Ok(vec![8]) });
            assert!(Layout::fit(&config, &tensors, true).unwrap_err().contains(&format!("unexpected {more}")));
        }
        let mut two = found(&config, false, |name| format!("model.{name}"));
        two.extend(found(&config, false, |name| format!("ref_model.{name}")));
        assert!(Layout::fit(&config, &two, true).unwrap_err().contains("several models"));
        // Biases may be absent together, and only where that was agreed on.
        let mut bare = found(&config, false, str::to_string);
        bare.retain(|t| !t.name.ends_with(".bias"));
        assert_eq!(Layout::fit(&config, &bare, false).unwrap().zeros.len(), 7);
        assert!(Layout::fit(&config, &bare, true).is_err());
        bare.push(Found { name: "ln_f.bias".into(), shape: Ok(vec![8]) });
        assert!(Layout::fit(&config, &bare, false).unwrap_err().contains("missing h.0.ln_1.bias"));
    }
}
