//! Which activations a patching experiment tries one after the other, under the names of TransformerLens.

use std::collections::BTreeSet;
use std::fmt;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory;
use crate::site::Site;

/// One kind of cell over all layers.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// `resid_pre`, `attn_head_out_all_pos` … : TransformerLens's function without `get_act_patch_`.
    pub name: &'static str,
    make: fn(usize) -> Site,
    part: Part,
    window: usize,
}

/// What of a site one cell covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// One position.
    Pos,
    /// One head at one position.
    PosHead,
    /// One head at every position.
    Head,
    /// One head's row of the attention map.
    HeadQuery,
    /// One entry of one head's attention map.
    HeadQueryKey,
    /// One neuron at every position.
    Neuron,
    /// All of it, at every position.
    Layer,
}

/// One activation that is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Where; in the middle, for a window of layers.
    pub site: Site,
    /// Its layer.
    pub layer: usize,
    /// The first and the last layer that it covers: its own, but for windows.
    pub window: (usize, usize),
    /// Its head, for sites that have heads.
    pub head: Option<usize>,
    /// Its position, the destination in an attention map; none for all positions.
    pub pos: Option<usize>,
    /// The source position in an attention map; none for all.
    pub key: Option<usize>,
    /// Its neuron, for sites that have neurons.
    pub neuron: Option<usize>,
}

impl Cell {
    /// All of a site, at every position.
    pub fn whole(site: Site) -> Self {
        let layer = site.layer().unwrap_or(0);
        Self { site, layer, window: (layer, layer), head: None, pos: None, key: None, neuron: None }
    }

    /// Every site that it covers.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        let site = self.site;
        (self.window.0..=self.window.1).map(move |layer| site.in_layer(layer))
    }

    /// Its places in the whole value of one of its sites for a prompt of `length` tokens, as (first, count).
    pub fn places(&self, site: Site, config: &Config, length: usize) -> Vec<(usize, usize)> {
        if site.is_attention_map() {
            let head = self.head.unwrap_or(0);
            return match (self.pos, self.key) {
                (Some(query), Some(key)) => vec![((head * length + query) * length + key, 1)],
                (Some(query), None) => vec![((head * length + query) * length, length)],
                _ => vec![(head * length * length, length * length)],
            };
        }
        let width: usize = site.shape(&config.extents(1, 1, 0)).iter().product();
        let (first, n) = match (self.head, self.neuron) {
            (Some(head), _) => (head * config.head_dim, config.head_dim),
            (_, Some(neuron)) => (neuron, 1),
            _ => (0, width),
        };
        match self.pos {
            Some(pos) => vec![(pos * width + first, n)],
            None => (0..length).map(|pos| (pos * width + first, n)).collect(),
        }
    }
}

/// `z 5.1@14`, `pattern 5.1@14←3`, `mlp_out 4-6@3`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.site.kind())?;
        match self.window {
            (first, last) if first == last => write!(f, "{first}")?,
            (first, last) => write!(f, "{first}-{last}")?,
        }
        if let Some(i) = self.head.or(self.neuron) {
            write!(f, ".{i}")?;
        }
        if let Some(pos) = self.pos {
            write!(f, "@{pos}")?;
        }
        match self.key {
            Some(key) => write!(f, "←{key}"),
            None => Ok(()),
        }
    }
}

/// Every site that cells cover, once each.
pub fn sites<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Vec<Site> {
    let sites: BTreeSet<Site> = cells.into_iter().flat_map(Cell::sites).collect();
    sites.into_iter().collect()
}

/// Where prompts differ in length and a sweep goes by position, so that its cells do not line up: its name, and the
/// lengths in tokens.
pub fn misaligned<'a>(
    sweeps: impl IntoIterator<Item = &'a Sweep>,
    lengths: impl Iterator<Item = usize>,
) -> Option<(&'static str, BTreeSet<usize>)> {
    let lengths: BTreeSet<usize> = lengths.collect();
    let sweep = sweeps.into_iter().find(|sweep| sweep.is_by_position())?;
    (lengths.len() > 1).then_some((sweep.name, lengths))
}

const SWEEPS: &[Sweep] = &[
    sweep("resid_pre", Site::ResidPre, Part::Pos),
    sweep("resid_mid", Site::ResidMid, Part::Pos),
    sweep("resid_post", Site::ResidPost, Part::Pos),
    sweep("attn_out", Site::AttnOut, Part::Pos),
    sweep("mlp_out", Site::MlpOut, Part::Pos),
    sweep("attn_head_out_by_pos", Site::Z, Part::PosHead),
    sweep("attn_head_q_by_pos", Site::Q, Part::PosHead),
    sweep("attn_head_k_by_pos", Site::K, Part::PosHead),
    sweep("attn_head_v_by_pos", Site::V, Part::PosHead),
    sweep("attn_head_pattern_by_pos", Site::Pattern, Part::HeadQuery),
    sweep("attn_head_pattern_dest_src_pos", Site::Pattern, Part::HeadQueryKey),
    sweep("attn_head_out_all_pos", Site::Z, Part::Head),
    sweep("attn_head_q_all_pos", Site::Q, Part::Head),
    sweep("attn_head_k_all_pos", Site::K, Part::Head),
    sweep("attn_head_v_all_pos", Site::V, Part::Head),
    sweep("attn_head_pattern_all_pos", Site::Pattern, Part::Head),
    sweep("attn_out_all_pos", Site::AttnOut, Part::Layer),
    sweep("mlp_out_all_pos", Site::MlpOut, Part::Layer),
    sweep("mlp_neuron_all_pos", Site::MlpPost, Part::Neuron),
];

const fn sweep(name: &'static str, make: fn(usize) -> Site, part: Part) -> Sweep {
    Sweep { name, make, part, window: 1 }
}

/// Sweeps that are several others.
const STACKS: &[(&str, &[&str])] = &[
    ("block_every", &["resid_pre", "attn_out", "mlp_out"]),
    (
        "attn_head_all_pos_every",
        &[
            "attn_head_out_all_pos",
            "attn_head_q_all_pos",
            "attn_head_k_all_pos",
            "attn_head_v_all_pos",
            "attn_head_pattern_all_pos",
        ],
    ),
    (
        "attn_head_by_pos_every",
        &[
            "attn_head_out_by_pos",
            "attn_head_q_by_pos",
            "attn_head_k_by_pos",
            "attn_head_v_by_pos",
            "attn_head_pattern_by_pos",
        ],
    ),
];

/// The names of all sweeps, and those that stand for several.
pub fn names() -> impl Iterator<Item = &'static str> {
    SWEEPS.iter().map(|sweep| sweep.name).chain(STACKS.iter().map(|(name, _)| *name))
}

impl Sweep {
    /// The sweeps of a name: one, or the several that a stack stands for.
    ///
    /// # Errors
    /// [`Error::Request`] with all names.
    pub fn named(name: &str) -> Result<Vec<Self>> {
        let short = name.strip_prefix("get_act_patch_").unwrap_or(name);
        let names: &[&str] = match STACKS.iter().find(|(stack, _)| *stack == short) {
            Some((_, names)) => names,
            None => &[short],
        };
        let found: Vec<Self> = SWEEPS.iter().filter(|sweep| names.contains(&sweep.name)).copied().collect();
        if found.is_empty() {
            return Err(Error::no_such("sweep", short, self::names()));
        }
        Ok(found)
    }

    /// The same cells, each over this many layers around its own at once, as causal tracing does (Meng et al. 2022): those
    /// from `layer − n/2` up to but without `layer + (n+1)/2`, as far as they exist.
    pub fn windowed(mut self, layers: usize) -> Self {
        self.window = layers.max(1);
        self
    }

    /// The site of a layer.
    pub fn site(&self, layer: usize) -> Site {
        (self.make)(layer)
    }

    /// Whether its cells are single positions, which line up only between prompts of one length.
    pub fn is_by_position(&self) -> bool {
        !matches!(self.part, Part::Head | Part::Neuron | Part::Layer)
    }

    /// How many [`Sweep::cells`] there are, counted without making them.
    pub fn count(&self, config: &Config, length: usize) -> u64 {
        let (heads, positions) = (config.n_head as u64, length as u64);
        let of_layer: &[u64] = match self.part {
            Part::Pos => &[positions],
            Part::Neuron => &[config.n_inner as u64],
            Part::Layer => &[],
            Part::Head => &[heads],
            Part::PosHead | Part::HeadQuery => &[heads, positions],
            Part::HeadQueryKey => &[heads, positions, positions],
        };
        memory::product(of_layer).saturating_mul(config.n_layer as u64)
    }

    /// Every cell of a model and a prompt of `length` tokens, layer by layer, in the order of TransformerLens's axes.
    pub fn cells(&self, config: &Config, length: usize) -> Vec<Cell> {
        let mut cells = Vec::new();
        for layer in 0..config.n_layer {
            let site = self.site(layer);
            let first = layer.saturating_sub(self.window / 2);
            let window = (first, (layer + self.window.div_ceil(2)).min(config.n_layer) - 1);
            if self.part == Part::Neuron {
                cells.extend((0..config.n_inner).map(|n| Cell { window, neuron: Some(n), ..Cell::whole(site) }));
            }
            let mut push = |head, pos, key| cells.push(Cell { window, head, pos, key, ..Cell::whole(site) });
            let (heads, positions) = (0..config.n_head, 0..length);
            match self.part {
                Part::Pos => positions.for_each(|pos| push(None, Some(pos), None)),
                Part::Neuron => {}
                Part::Layer => push(None, None, None),
                Part::Head => heads.for_each(|head| push(Some(head), None, None)),
                Part::PosHead => positions.for_each(|pos| heads.clone().for_each(|h| push(Some(h), Some(pos), None))),
                Part::HeadQuery => heads.for_each(|h| positions.clone().for_each(|pos| push(Some(h), Some(pos), None))),
                Part::HeadQueryKey => heads.for_each(|h| {
                    positions.clone().for_each(|q| positions.clone().for_each(|k| push(Some(h), Some(q), Some(k))))
                }),
            }
        }
        cells
    }
}
