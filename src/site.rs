//! Where a value lives in the forward pass: its name, its axes, its place in the order.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::limits::{self, fits_pattern};

/// A named place in the forward pass of a GPT-2.
///
/// Names, tensors and axis order are TransformerLens's (legacy `HookedTransformer` names, raw weights). Every site
/// prints short (`resid_post.6`) and long (`blocks.6.hook_resid_post`), and parses from both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Token embedding, `[prompt, pos, dim]`.
    Embed,
    /// Position embedding, `[prompt, pos, dim]`.
    PosEmbed,
    /// Residual stream before a block, `[prompt, pos, dim]`.
    ResidPre(usize),
    /// What each head's queries read: a copy of the residual stream for every head, before LayerNorm, `[prompt, pos, head,
    /// d_model]`.
    QInput(usize),
    /// What each head's keys read, `[prompt, pos, head, d_model]`.
    KInput(usize),
    /// What each head's values read, `[prompt, pos, head, d_model]`.
    VInput(usize),
    /// Standard deviation that the attention's LayerNorm divides by, `[prompt, pos, 1]`.
    Ln1Scale(usize),
    /// Centred and scaled input of the attention, before gain and bias, `[prompt, pos, dim]`.
    Ln1Normalized(usize),
    /// Queries, `[prompt, pos, head, dim]`.
    Q(usize),
    /// Keys, `[prompt, pos, head, dim]`.
    K(usize),
    /// Values, `[prompt, pos, head, dim]`.
    V(usize),
    /// Attention scores after division by √d_head and after the causal mask, `[prompt, head, query, key]`.
    AttnScores(usize),
    /// Attention weights, `[prompt, head, query, key]`.
    Pattern(usize),
    /// Weighted values of each head, `[prompt, pos, head, dim]`.
    Z(usize),
    /// What each head writes: `z · W_O`, without the output bias, `[prompt, pos, head, dim]`.
    Result(usize),
    /// What the attention adds to the residual stream, bias included, `[prompt, pos, dim]`.
    AttnOut(usize),
    /// Residual stream between attention and MLP, `[prompt, pos, dim]`.
    ResidMid(usize),
    /// What the MLP reads: a copy of the residual stream, before LayerNorm, `[prompt, pos, dim]`.
    MlpIn(usize),
    /// Standard deviation that the MLP's LayerNorm divides by, `[prompt, pos, 1]`.
    Ln2Scale(usize),
    /// Centred and scaled input of the MLP, before gain and bias, `[prompt, pos, dim]`.
    Ln2Normalized(usize),
    /// Neurons before GELU, `[prompt, pos, neuron]`.
    MlpPre(usize),
    /// Neurons after GELU, `[prompt, pos, neuron]`.
    MlpPost(usize),
    /// What the MLP adds to the residual stream, `[prompt, pos, dim]`.
    MlpOut(usize),
    /// Residual stream after a block, `[prompt, pos, dim]`.
    ResidPost(usize),
    /// Standard deviation that the last LayerNorm divides by, `[prompt, pos, 1]`.
    LnFinalScale,
    /// Centred and scaled final residual, before gain and bias, `[prompt, pos, dim]`.
    LnFinalNormalized,
    /// Next-token logits, `[prompt, pos, vocab]`.
    Logits,
}

/// The meaning of one dimension of a site's tensor. Its name is the edit selector, the column and the axis label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Axis {
    /// Which prompt of the batch.
    Prompt,
    /// Which token.
    Pos,
    /// Which attention head.
    Head,
    /// Which token looks.
    Query,
    /// Which token is looked at.
    Key,
    /// Which coordinate of a d_model- or d_head-dimensional vector.
    Dim,
    /// Which MLP neuron.
    Neuron,
    /// Which entry of the vocabulary.
    Vocab,
    /// A dimension of length 1, kept for TransformerLens's shapes.
    One,
}

/// The lengths that a model and a batch give to the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Prompts in the batch.
    pub prompts: usize,
    /// Tokens that pass through the model.
    pub pos: usize,
    /// Tokens that can be looked at: `pos`, and with a key–value cache what came before.
    pub keys: usize,
    /// Heads per layer.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub model: usize,
    /// Neurons per layer.
    pub neurons: usize,
    /// Vocabulary.
    pub vocab: usize,
}

use Axis::*;

const STREAM: &[Axis] = &[Prompt, Pos, Dim];
const SCALE: &[Axis] = &[Prompt, Pos, One];
const HEADS: &[Axis] = &[Prompt, Pos, Head, Dim];
const MAP: &[Axis] = &[Prompt, Head, Query, Key];
const NEURONS: &[Axis] = &[Prompt, Pos, Neuron];
const VOCAB: &[Axis] = &[Prompt, Pos, Vocab];

/// One kind of site: how it is written, and how it is made from a layer.
struct Form {
    short: &'static str,
    /// The TransformerLens name, without `blocks.L.` where there is a layer.
    long: &'static str,
    /// Other names of the very same tensor.
    aliases: &'static [&'static str],
    axes: &'static [Axis],
    make: Make,
}

enum Make {
    Once(Site),
    Layer(fn(usize) -> Site),
}

const fn form(short: &'static str, long: &'static str, axes: &'static [Axis], make: Make) -> Form {
    Form { short, long, aliases: &[], axes, make }
}

const fn aka(mut form: Form, aliases: &'static [&'static str]) -> Form {
    form.aliases = aliases;
    form
}

/// Every kind of site, in the order of the forward pass. Adding a site means a variant, a row here and one
/// `hooks.at(..)` line in the model; parsing, listing, frames and the conformance tests follow from this table.
const FORMS: &[Form] = &[
    aka(form("embed", "hook_embed", STREAM, Make::Once(Site::Embed)), &["embed.hook_out"]),
    aka(form("pos_embed", "hook_pos_embed", STREAM, Make::Once(Site::PosEmbed)), &["pos_embed.hook_out"]),
    aka(form("resid_pre", "hook_resid_pre", STREAM, Make::Layer(Site::ResidPre)), &["hook_in"]),
    form("q_input", "hook_q_input", HEADS, Make::Layer(Site::QInput)),
    form("k_input", "hook_k_input", HEADS, Make::Layer(Site::KInput)),
    form("v_input", "hook_v_input", HEADS, Make::Layer(Site::VInput)),
    form("ln1_scale", "ln1.hook_scale", SCALE, Make::Layer(Site::Ln1Scale)),
    form("ln1_normalized", "ln1.hook_normalized", STREAM, Make::Layer(Site::Ln1Normalized)),
    form("q", "attn.hook_q", HEADS, Make::Layer(Site::Q)),
    form("k", "attn.hook_k", HEADS, Make::Layer(Site::K)),
    form("v", "attn.hook_v", HEADS, Make::Layer(Site::V)),
    form("attn_scores", "attn.hook_attn_scores", MAP, Make::Layer(Site::AttnScores)),
    form("pattern", "attn.hook_pattern", MAP, Make::Layer(Site::Pattern)),
    form("z", "attn.hook_z", HEADS, Make::Layer(Site::Z)),
    form("result", "attn.hook_result", HEADS, Make::Layer(Site::Result)),
    aka(form("attn_out", "hook_attn_out", STREAM, Make::Layer(Site::AttnOut)), &["attn.hook_out"]),
    form("resid_mid", "hook_resid_mid", STREAM, Make::Layer(Site::ResidMid)),
    form("mlp_in", "hook_mlp_in", STREAM, Make::Layer(Site::MlpIn)),
    form("ln2_scale", "ln2.hook_scale", SCALE, Make::Layer(Site::Ln2Scale)),
    form("ln2_normalized", "ln2.hook_normalized", STREAM, Make::Layer(Site::Ln2Normalized)),
    form("mlp_pre", "mlp.hook_pre", NEURONS, Make::Layer(Site::MlpPre)),
    form("mlp_post", "mlp.hook_post", NEURONS, Make::Layer(Site::MlpPost)),
    aka(form("mlp_out", "hook_mlp_out", STREAM, Make::Layer(Site::MlpOut)), &["mlp.hook_out"]),
    aka(form("resid_post", "hook_resid_post", STREAM, Make::Layer(Site::ResidPost)), &["hook_out"]),
    form("ln_final_scale", "ln_final.hook_scale", SCALE, Make::Once(Site::LnFinalScale)),
    form("ln_final_normalized", "ln_final.hook_normalized", STREAM, Make::Once(Site::LnFinalNormalized)),
    aka(form("logits", "unembed.hook_out", VOCAB, Make::Once(Site::Logits)), &["hook_logits"]),
];

impl Form {
    fn site(&self, layer: usize) -> Site {
        match self.make {
            Make::Once(site) => site,
            Make::Layer(make) => make(layer),
        }
    }

    fn is_layered(&self) -> bool {
        matches!(self.make, Make::Layer(_))
    }

    /// Every spelling of this kind at `layer`, canonical ones first.
    fn spellings(&self, layer: usize) -> Vec<String> {
        if !self.is_layered() {
            let others = self.aliases.iter().map(|alias| alias.to_string());
            return [self.short.to_string(), self.long.to_string()].into_iter().chain(others).collect();
        }
        let others = self.aliases.iter().map(|alias| format!("blocks.{layer}.{alias}"));
        [format!("{}.{layer}", self.short), format!("blocks.{layer}.{}", self.long)].into_iter().chain(others).collect()
    }
}

impl Site {
    /// Every site of a model with `layers` blocks, in the order in which the forward pass reaches them.
    pub fn all(layers: usize) -> impl Iterator<Item = Site> {
        let once = |forms: &'static [Form]| forms.iter().filter(|f| !f.is_layered()).map(|f| f.site(0));
        let first_layered = FORMS.iter().position(Form::is_layered).unwrap_or(FORMS.len());
        let (before, rest) = FORMS.split_at(first_layered);
        let blocks = (0..layers).flat_map(|l| FORMS.iter().filter(|f| f.is_layered()).map(move |f| f.site(l)));
        once(before).chain(blocks).chain(once(rest))
    }

    fn form(self) -> &'static Form {
        // The table is complete: `site::tests` walks every variant through it.
        let layer = self.layer().unwrap_or(0);
        FORMS.iter().find(|form| form.site(layer) == self).expect("every site has a row in FORMS")
    }

    /// The block that this site belongs to.
    pub fn layer(self) -> Option<usize> {
        use Site::*;
        match self {
            Embed | PosEmbed | LnFinalScale | LnFinalNormalized | Logits => None,
            QInput(l) | KInput(l) | VInput(l) | MlpIn(l) => Some(l),
            ResidPre(l) | Ln1Scale(l) | Ln1Normalized(l) | Q(l) | K(l) | V(l) | AttnScores(l) => Some(l),
            Pattern(l) | Z(l) | Result(l) | AttnOut(l) | ResidMid(l) | Ln2Scale(l) => Some(l),
            Ln2Normalized(l) | MlpPre(l) | MlpPost(l) | MlpOut(l) | ResidPost(l) => Some(l),
        }
    }

    /// The same kind of site in another layer; itself, if it belongs to none.
    pub fn in_layer(self, layer: usize) -> Self {
        self.form().site(layer)
    }

    /// The kind of site, without its layer: `resid_post`.
    pub fn kind(self) -> &'static str {
        self.form().short
    }

    /// TransformerLens's name: `blocks.6.hook_resid_post`.
    pub fn long(self) -> String {
        match self.layer() {
            Some(layer) => format!("blocks.{layer}.{}", self.form().long),
            None => self.form().long.to_string(),
        }
    }

    /// The axes of the value here, outermost first.
    pub fn axes(self) -> &'static [Axis] {
        self.form().axes
    }

    /// The shape of the value here.
    pub fn shape(self, extents: &Extents) -> Vec<usize> {
        let vector = match self {
            Site::Q(_) | Site::K(_) | Site::V(_) | Site::Z(_) => extents.head_dim,
            _ => extents.model,
        };
        self.axes()
            .iter()
            .map(|axis| match axis {
                Prompt => extents.prompts,
                Pos | Query => extents.pos,
                Key => extents.keys,
                Head => extents.heads,
                Dim => vector,
                Neuron => extents.neurons,
                Vocab => extents.vocab,
                One => 1,
            })
            .collect()
    }

    /// Whether the values here are attention between two positions.
    pub fn is_attention_map(self) -> bool {
        self.axes() == MAP
    }

    /// Whether the value is formed only where somebody wants it: one residual stream for every head.
    pub fn is_on_request(self) -> bool {
        matches!(self, Site::Result(_) | Site::QInput(_) | Site::KInput(_) | Site::VInput(_))
    }

    /// Whether each position has a vector per head here.
    pub fn has_heads(self) -> bool {
        self.axes().contains(&Head)
    }

    /// Every site of a model with `layers` blocks that `pattern` names, in forward order.
    ///
    /// A pattern is a site in either spelling in which `*` stands for any characters and the layer may be a range
    /// (`resid_post.0-5`, `blocks.*.hook_resid_post`, `ln1_*.3`) or count from the end (`resid_post.-1`).
    ///
    /// # Errors
    /// [`Error::UnknownSite`] with the nearest names, or [`Error::Request`] for a layer that the model does not have.
    pub fn matching(pattern: &str, layers: usize) -> Result<Vec<Site>> {
        limits::patterns(&[pattern])?;
        let wanted = expand_layers(pattern, layers)?;
        let fits = |glob: &str, layer: usize, site: &Site| {
            site.form().spellings(layer).iter().any(|name| fits_pattern(glob, name))
        };
        let found: Vec<Site> = Site::all(layers)
            .filter(|site| match (&wanted, site.layer()) {
                (Wanted::Any(glob), layer) => fits(glob, layer.unwrap_or(0), site),
                (Wanted::Layers(globs), Some(layer)) => globs.get(&layer).is_some_and(|glob| fits(glob, layer, site)),
                (Wanted::Layers(_), None) => false,
            })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        if FORMS.iter().any(|form| form.is_layered() && (form.short == pattern || form.long == pattern)) {
            let last = layers.saturating_sub(1);
            return Err(Error::request(format!(
                "`{pattern}` needs a layer: {pattern}.0 … {pattern}.{last}, or {pattern}.* for all {layers}"
            )));
        }
        Err(unknown(pattern, layers))
    }

    /// Every site that some patterns name, each once, in the order of the patterns.
    ///
    /// # Errors
    /// As [`Site::matching`].
    pub fn matching_all(patterns: &[impl AsRef<str>], layers: usize) -> Result<Vec<Site>> {
        limits::patterns(patterns)?;
        let mut sites: Vec<Site> = Vec::new();
        for pattern in patterns {
            let found = Site::matching(pattern.as_ref(), layers)?;
            sites.extend(found.into_iter().filter(|site| !sites.contains(site)).collect::<Vec<_>>());
        }
        Ok(sites)
    }
}

/// Prints the short name: `resid_post.6`.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer() {
            Some(layer) => write!(f, "{}.{layer}", self.kind()),
            None => f.write_str(self.kind()),
        }
    }
}

/// Parses either spelling. Whether a model has the layer is checked where a model is at hand.
impl FromStr for Site {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
        let found = FORMS.iter().find(|form| {
            (layer.is_some() || !form.is_layered())
                && form.spellings(layer.unwrap_or(0)).iter().any(|spelling| spelling == name)
        });
        match found {
            Some(form) => Ok(form.site(layer.unwrap_or(0))),
            None => Err(unknown(name, layer.map_or(1, |l| l.saturating_add(1)))),
        }
    }
}

impl Axis {
    /// The name that columns, selectors and labels use.
    pub fn name(self) -> &'static str {
        match self {
            Prompt => "prompt",
            Pos => "pos",
            Head => "head",
            Query => "query",
            Key => "key",
            Dim => "dim",
            Neuron => "neuron",
            Vocab => "vocab",
            One => "one",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Resolves a layer that may count from the end, as Python's indices do.
///
/// # Errors
/// [`Error::Request`] with the range that exists.
pub fn resolve_layer(layer: i64, layers: usize) -> Result<usize> {
    resolve_index("layer", layer, layers)
}

/// Resolves an index along a named axis of length `len`; negative ones count from the end.
///
/// # Errors
/// [`Error::Request`] with the range that exists.
pub fn resolve_index(what: &str, index: i64, len: usize) -> Result<usize> {
    let len_signed = i64::try_from(len).unwrap_or(i64::MAX);
    let resolved = if index < 0 { index.checked_add(len_signed) } else { Some(index) };
    match resolved {
        Some(i) if (0..len_signed).contains(&i) => Ok(i as usize),
        _ if len == 0 => Err(Error::request(format!("{what} {index} is out of range: there is none"))),
        _ => Err(Error::request(format!("{what} {index} is out of range 0..={} (or -{len}..=-1)", len - 1))),
    }
}

/// A pattern of sites, with its layer written out.
enum Wanted {
    /// It names no layer by number.
    Any(String),
    /// What it is for each layer that it names.
    Layers(BTreeMap<usize, String>),
}

/// Writes out the layer part of a pattern: `q.0-2` becomes `q.0`, `q.1`, `q.2`; `q.-1` becomes the last layer.
fn expand_layers(pattern: &str, layers: usize) -> Result<Wanted> {
    let parts: Vec<&str> = pattern.split('.').collect();
    for (at, part) in parts.iter().enumerate() {
        let Some((first, last)) = parse_range(part) else { continue };
        let (first, last) = (resolve_layer(first, layers)?, resolve_layer(last, layers)?);
        if first > last {
            return Err(Error::request(format!("`{pattern}`: the range {part} is empty; write {last}-{first}")));
        }
        let written = (first..=last).map(|layer| {
            let number = layer.to_string();
            let mut parts = parts.clone();
            parts[at] = &number;
            (layer, parts.join("."))
        });
        return Ok(Wanted::Layers(written.collect()));
    }
    Ok(Wanted::Any(pattern.to_string()))
}

/// Reads `5`, `-1`, `0-5` or `0--1` as an inclusive range.
fn parse_range(text: &str) -> Option<(i64, i64)> {
    if let Ok(single) = text.parse::<i64>() {
        return Some((single, single));
    }
    let dash = text.char_indices().skip(1).find(|(_, c)| *c == '-')?.0;
    Some((text[..dash].parse().ok()?, text[dash + 1..].parse().ok()?))
}

fn unknown(name: &str, layers: usize) -> Error {
    let asked = name.split('.').find_map(|part| part.parse::<usize>().ok());
    let layer = asked.unwrap_or(0).min(layers.saturating_sub(1));
    let mut ranked: Vec<(usize, String)> = FORMS
        .iter()
        .map(|form| {
            let spellings = form.spellings(layer);
            let best = spellings.iter().map(|s| distance(name, s)).min().unwrap_or(usize::MAX);
            (best, spellings[if name.contains("hook") { 1 } else { 0 }].clone())
        })
        .collect();
    ranked.sort();
    let name = crate::error::shorten(name);
    Error::UnknownSite { name, nearest: ranked.into_iter().take(3).map(|(_, name)| name).collect() }
}

/// Levenshtein distance in characters, of the first 80 of both.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(80).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(80).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_prints_and_parses_in_both_spellings() {
        for site in Site::all(3) {
            assert_eq!(site.to_string().parse::<Site>().unwrap(), site);
            assert_eq!(site.long().parse::<Site>().unwrap(), site);
            assert_eq!(site.form().site(site.layer().unwrap_or(0)), site);
        }
        assert_eq!(Site::all(12).count(), 5 + 22 * 12);
    }

    #[test]
    fn patterns_expand_in_forward_order() {
        let names =
            |pattern| -> Vec<String> { Site::matching(pattern, 12).unwrap().iter().map(Site::to_string).collect() };
        assert_eq!(names("resid_post.0-2"), ["resid_post.0", "resid_post.1", "resid_post.2"]);
        assert_eq!(names("resid_post.-1"), ["resid_post.11"]);
        assert_eq!(names("resid_post.-2--1"), ["resid_post.10", "resid_post.11"]);
        assert_eq!(names("blocks.*.hook_resid_post").len(), 12);
        assert_eq!(names("blocks.3.ln1.*"), ["ln1_scale.3", "ln1_normalized.3"]);
        assert_eq!(names("blocks.2-3.hook_out"), ["resid_post.2", "resid_post.3"]);
        assert_eq!(names("*embed"), ["embed", "pos_embed"]);
        assert_eq!(names("*").len(), Site::all(12).count());
    }

    #[test]
    fn wrong_patterns_say_what_would_be_right() {
        let message = |pattern| Site::matching(pattern, 12).unwrap_err().to_string();
        assert_eq!(message("resid_post.12"), "layer 12 is out of range 0..=11 (or -12..=-1)");
        assert_eq!(message("blocks.-13.hook_z"), "layer -13 is out of range 0..=11 (or -12..=-1)");
        assert!(message("resid_pots.3").contains("the nearest are resid_post.3"), "{}", message("resid_pots.3"));
        assert!(message("blocks.1.attn.hook_zz").contains("blocks.1.attn.hook_z"));
        assert!(message("resid_post").contains("needs a layer"));
        assert!(message("resid_post.7-3").contains("3-7"));
        assert!(message("").contains("unknown site"));
    }
}
