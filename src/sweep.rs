//! Which activations a patching experiment tries one after the other, under the names of TransformerLens.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::site::Site;

/// One kind of cell over all layers.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// `resid_pre`, `attn_head_out_all_pos` … : TransformerLens's function without `get_act_patch_`.
    pub name: &'static str,
    make: fn(usize) -> Site,
    part: Part,
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
}

/// One activation that is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Where.
    pub site: Site,
    /// Its layer.
    pub layer: usize,
    /// Its head, for sites that have heads.
    pub head: Option<usize>,
    /// Its position, the destination in an attention map; none for all positions.
    pub pos: Option<usize>,
    /// The source position in an attention map; none for all.
    pub key: Option<usize>,
}

const SWEEPS: &[Sweep] = &[
    Sweep { name: "resid_pre", make: Site::ResidPre, part: Part::Pos },
    Sweep { name: "resid_mid", make: Site::ResidMid, part: Part::Pos },
    Sweep { name: "resid_post", make: Site::ResidPost, part: Part::Pos },
    Sweep { name: "attn_out", make: Site::AttnOut, part: Part::Pos },
    Sweep { name: "mlp_out", make: Site::MlpOut, part: Part::Pos },
    Sweep { name: "attn_head_out_by_pos", make: Site::Z, part: Part::PosHead },
    Sweep { name: "attn_head_q_by_pos", make: Site::Q, part: Part::PosHead },
    Sweep { name: "attn_head_k_by_pos", make: Site::K, part: Part::PosHead },
    Sweep { name: "attn_head_v_by_pos", make: Site::V, part: Part::PosHead },
    Sweep { name: "attn_head_pattern_by_pos", make: Site::Pattern, part: Part::HeadQuery },
    Sweep { name: "attn_head_pattern_dest_src_pos", make: Site::Pattern, part: Part::HeadQueryKey },
    Sweep { name: "attn_head_out_all_pos", make: Site::Z, part: Part::Head },
    Sweep { name: "attn_head_q_all_pos", make: Site::Q, part: Part::Head },
    Sweep { name: "attn_head_k_all_pos", make: Site::K, part: Part::Head },
    Sweep { name: "attn_head_v_all_pos", make: Site::V, part: Part::Head },
    Sweep { name: "attn_head_pattern_all_pos", make: Site::Pattern, part: Part::Head },
];

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
            let all = SWEEPS.iter().map(|sweep| sweep.name).chain(STACKS.iter().map(|(name, _)| *name));
            let name = crate::error::shorten(name);
            let all = all.collect::<Vec<_>>().join(", ");
            return Err(Error::request(format!("there is no sweep `{name}`; there are {all}")));
        }
        Ok(found)
    }

    /// The site of a layer.
    pub fn site(&self, layer: usize) -> Site {
        (self.make)(layer)
    }

    /// Whether its cells are single positions, which line up only between prompts of one length.
    pub fn is_by_position(&self) -> bool {
        self.part != Part::Head
    }

    /// Every cell of a model and a prompt of `length` tokens, layer by layer, in the order of TransformerLens's axes.
    pub fn cells(&self, config: &Config, length: usize) -> Vec<Cell> {
        let mut cells = Vec::new();
        for layer in 0..config.n_layer {
            let site = self.site(layer);
            let mut push = |head, pos, key| cells.push(Cell { site, layer, head, pos, key });
            let (heads, positions) = (0..config.n_head, 0..length);
            match self.part {
                Part::Pos => positions.for_each(|pos| push(None, Some(pos), None)),
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
