//! A change at a site, narrowed by the names of its axes. Edits are data: they print, compare and come from files.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::limits;
use crate::ops::{self, Causal};
use crate::site::{Axis, Extents, Site};
use crate::span::Span;
use crate::tokens::Tokens;

/// What to change at a site, and in which part of it.
///
/// ```
/// use interp::{Edit, Site};
/// let knock_out = Edit::zero(Site::Z(9)).head(6);
/// let one_edge = Edit::zero(Site::Pattern(5)).head(1).query(-1).key(2..=4);
/// assert_eq!(knock_out.to_string(), "zero z.9 head 6");
/// assert_eq!(one_edge.to_string(), "zero pattern.5 head 1 query -1 key 2..=4");
/// ```
#[derive(Clone)]
pub struct Edit {
    site: Site,
    change: Change,
    selectors: Vec<(Axis, Span)>,
}

/// A function from the selected part to its replacement.
type Function = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

#[derive(Clone)]
enum Change {
    Fill(f64),
    Scale(f64),
    Set(Tensor),
    Add(Tensor),
    /// The same part of another run's value.
    Patch(Tensor),
    Map(Function),
}

/// Where in a longer text a pass stands: what turns positions of the text into places of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'a> {
    pub tokens: &'a Tokens,
    /// Tokens that came before this pass.
    pub past: usize,
    /// How many positions the text may come to have, where it can go on after this pass.
    pub horizon: Option<usize>,
    /// Which prompts anybody still looks at, where some are only carried along with others.
    pub live: Option<&'a [bool]>,
}

impl<'a> Window<'a> {
    /// A pass that holds whole texts.
    pub fn whole(tokens: &'a Tokens) -> Self {
        Self { tokens, past: 0, horizon: None, live: None }
    }

    /// The positions of the texts of `rows` that a span names. Every one of these texts has at least one of them.
    fn positions(self, axis: Axis, span: Span, rows: Range<usize>) -> Result<Range<usize>> {
        let name = axis.name();
        if let Some(horizon) = self.horizon {
            if span.counts_from_the_end() {
                return Err(Error::request(format!(
                    "{name} {span} counts from the end, and the text may go on; count from its start"
                )));
            }
            let never =
                |_| Error::request(format!("{name} {span} is never reached: positions 0..={} are read", horizon - 1));
            return match span.resolve(name, usize::MAX)? {
                range if range.end > horizon => Err(never(range)),
                range => Ok(range),
            };
        }
        let length = |row: usize| self.tokens.row(row).len();
        let (longest, shortest) = (rows.clone().map(length).max(), rows.clone().min_by_key(|&row| length(row)));
        let (Some(longest), Some(shortest)) = (longest, shortest) else {
            return Err(Error::Bug("an edit of no prompt".into()));
        };
        if span.counts_from_the_end() && longest != length(shortest) {
            return Err(Error::request(format!(
                "{name} {span} counts from the end, but the prompts differ in length; give each row its own edit"
            )));
        }
        let range = span.resolve(name, longest)?;
        if range.start >= length(shortest) {
            return Err(Error::request(format!(
                "prompt {shortest} has {} tokens, and so no {name} {span}; give each row its own edit",
                length(shortest)
            )));
        }
        Ok(range)
    }

    /// Whether the token at `place` of this pass is one of the text of `row`, and looked at.
    fn counts(self, row: usize, place: usize) -> bool {
        self.live.is_none_or(|live| live[row]) && place < self.tokens.row(row).len()
    }
}

impl Edit {
    fn new(site: Site, change: Change) -> Self {
        Self { site, change, selectors: Vec::new() }
    }

    /// Sets the part to 0.
    pub fn zero(site: Site) -> Self {
        Self::fill(site, 0.0)
    }

    /// Sets every element of the part to one number.
    pub fn fill(site: Site, value: f64) -> Self {
        Self::new(site, Change::Fill(value))
    }

    /// Multiplies the part by a number.
    pub fn scale(site: Site, factor: f64) -> Self {
        Self::new(site, Change::Scale(factor))
    }

    /// Sets the part to `value`, which broadcasts over it.
    pub fn set(site: Site, value: &Tensor) -> Self {
        Self::new(site, Change::Set(value.clone()))
    }

    /// Adds `value` to the part, over which it broadcasts.
    pub fn add(site: Site, value: &Tensor) -> Self {
        Self::new(site, Change::Add(value.clone()))
    }

    /// Replaces the part by the same part of `other`, the whole value at this site in another run.
    pub fn patch(site: Site, other: &Tensor) -> Self {
        Self::new(site, Change::Patch(other.clone()))
    }

    /// Replaces the part by a function of it. Such an edit cannot be written to a file.
    pub fn map(site: Site, f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Self::new(site, Change::Map(Arc::new(f)))
    }

    /// Only this prompt of the batch: gives each row its own experiment.
    pub fn row(self, row: impl Into<Span>) -> Self {
        self.only(Axis::Prompt, row)
    }

    /// Only this position of the text; a negative one counts from its end, in a generation from the end of the prompt.
    pub fn pos(self, pos: impl Into<Span>) -> Self {
        self.only(Axis::Pos, pos)
    }

    /// Only this head.
    pub fn head(self, head: impl Into<Span>) -> Self {
        self.only(Axis::Head, head)
    }

    /// Only what this position looks at.
    pub fn query(self, query: impl Into<Span>) -> Self {
        self.only(Axis::Query, query)
    }

    /// Only where this position is looked at.
    pub fn key(self, key: impl Into<Span>) -> Self {
        self.only(Axis::Key, key)
    }

    /// Only this neuron.
    pub fn neuron(self, neuron: impl Into<Span>) -> Self {
        self.only(Axis::Neuron, neuron)
    }

    /// Only this part of an axis.
    pub fn only(mut self, axis: Axis, span: impl Into<Span>) -> Self {
        self.selectors.push((axis, span.into()));
        self
    }

    /// Where the change is made.
    pub fn site(&self) -> Site {
        self.site
    }

    /// Whether it is narrowed to single prompts of the batch.
    pub fn is_narrowed_by_prompt(&self) -> bool {
        self.selectors.iter().any(|(axis, _)| *axis == Axis::Prompt)
    }

    /// The prompts of a batch of `n` that it changes.
    pub(crate) fn prompts(&self, n: usize) -> Result<Range<usize>> {
        let spans = self.selectors.iter().filter(|(axis, _)| *axis == Axis::Prompt);
        spans.map(|(axis, span)| span.resolve(axis.name(), n)).try_fold(0..n, |all, chosen| {
            let chosen = chosen?;
            Ok(all.start.max(chosen.start)..all.end.min(chosen.end))
        })
    }

    /// Whether it is narrowed to positions of the text.
    pub(crate) fn is_narrowed_by_position(&self) -> bool {
        self.selectors.iter().any(|(axis, _)| is_position(*axis))
    }

    /// The name of the change: `zero`, `set`, `add` …
    pub fn op(&self) -> &'static str {
        match &self.change {
            Change::Fill(value) if *value == 0.0 => "zero",
            Change::Fill(_) => "fill",
            Change::Scale(_) => "scale",
            Change::Set(_) => "set",
            Change::Add(_) => "add",
            Change::Patch(_) => "patch",
            Change::Map(_) => "map",
        }
    }

    /// What this edit is, for provenance; tensors appear as shape and hash.
    pub fn to_json(&self) -> serde_json::Value {
        let tensor = |value: &Tensor| {
            let values: Vec<f64> =
                value.to_dtype(candle_core::DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).unwrap_or_default();
            let sha256 = crate::weights::sha256_of(bytemuck::cast_slice(&values));
            serde_json::json!({ "shape": value.dims(), "sha256": sha256 })
        };
        let value = match &self.change {
            Change::Fill(x) | Change::Scale(x) => (*x).into(),
            Change::Set(t) | Change::Add(t) | Change::Patch(t) => tensor(t),
            Change::Map(_) => "closure".into(),
        };
        let select: serde_json::Map<_, _> =
            self.selectors.iter().map(|(axis, span)| (axis.name().to_string(), span.to_string().into())).collect();
        serde_json::json!({ "site": self.site.to_string(), "op": self.op(), "value": value, "select": select })
    }

    /// Checks everything that can be known before the run.
    pub(crate) fn check(&self, extents: &Extents, window: Window<'_>) -> Result<()> {
        let in_edit = |e: Error| Error::request(format!("edit `{self}`: {e}"));
        let region = self.region(&self.site.shape(extents), window).map_err(in_edit)?;
        let finite = match &self.change {
            Change::Fill(x) | Change::Scale(x) => x.is_finite(),
            Change::Set(t) | Change::Add(t) | Change::Patch(t) => is_finite(t, self.site)?,
            Change::Map(_) => true,
        };
        if !finite {
            return Err(Error::request(format!("edit `{self}`: its value is not finite")));
        }
        let shape = self.site.shape(extents);
        match (&self.change, region) {
            (Change::Patch(other), _) if other.dims() != shape => Err(Error::request(format!(
                "edit `{self}`: the other run's value has shape {:?}, here it is {shape:?}",
                other.dims()
            ))),
            (Change::Set(value) | Change::Add(value), Some(region)) => {
                let part: Vec<usize> = region.iter().map(Range::len).collect();
                if broadcasts(value.dims(), &part) {
                    return Ok(());
                }
                Err(Error::request(format!(
                    "edit `{self}`: a value of shape {:?} does not broadcast to the part of shape {part:?}",
                    value.dims()
                )))
            }
            _ => Ok(()),
        }
    }

    /// What the edit selects of every axis, by positions of the text; nothing of it is empty.
    fn selected(&self, shape: &[usize], window: Window<'_>) -> Result<Vec<Range<usize>>> {
        let axes = self.site.axes();
        if let Some((axis, _)) = self.selectors.iter().find(|(axis, _)| !axes.contains(axis)) {
            let have: Vec<&str> = axes.iter().filter(|a| **a != Axis::One).map(|a| a.name()).collect();
            return Err(Error::request(format!("`{}` has no axis {axis} (it has {})", self.site, have.join(", "))));
        }
        let mut selected: Vec<Range<usize>> = Vec::with_capacity(axes.len());
        for (&axis, &len) in axes.iter().zip(shape) {
            let mut range = match is_position(axis) {
                true => 0..window.horizon.unwrap_or_else(|| window.tokens.longest()),
                false => 0..len,
            };
            for span in self.selectors.iter().filter(|(a, _)| *a == axis).map(|(_, span)| *span) {
                let chosen = match is_position(axis) {
                    true => window.positions(axis, span, selected[0].clone())?,
                    false => span.resolve(axis.name(), len)?,
                };
                range = range.start.max(chosen.start)..range.end.min(chosen.end);
            }
            if range.is_empty() {
                return Err(Error::request(format!("its selectors leave nothing of axis {axis}")));
            }
            selected.push(range);
        }
        if self.site.is_attention_map() {
            let (query, key) = (&selected[2], &selected[3]);
            if key.start >= query.end {
                return Err(Error::request(format!(
                    "query {} cannot see key {}: the causal mask hides what comes later",
                    query.end - 1,
                    key.start
                )));
            }
        }
        Ok(selected)
    }

    /// The part of a value of this shape that the edit changes; none if this pass does not hold it.
    fn region(&self, shape: &[usize], window: Window<'_>) -> Result<Option<Vec<Range<usize>>>> {
        let selected = self.selected(shape, window)?;
        let region: Vec<Range<usize>> = selected
            .into_iter()
            .zip(self.site.axes().iter().zip(shape))
            .map(|(range, (&axis, &len))| match axis {
                Axis::Pos | Axis::Query => shifted(range, window.past, len),
                _ => shifted(range, 0, len),
            })
            .collect();
        Ok(if region.iter().any(Range::is_empty) { None } else { Some(region) })
    }

    /// The positions that it is narrowed to, where it is, in a text whose length it does not count from.
    pub(crate) fn places(&self) -> Result<Option<Range<usize>>> {
        let spans = self.selectors.iter().filter(|(axis, _)| is_position(*axis));
        let ranges = spans.map(|(axis, span)| span.resolve(axis.name(), usize::MAX)).collect::<Result<Vec<_>>>()?;
        let first = ranges.iter().map(|range| range.start).max();
        Ok(first.map(|first| first..ranges.iter().map(|range| range.end).min().unwrap_or(first)))
    }

    /// The last position whose value it changes, where it is narrowed by that: what looks, in an attention map.
    pub(crate) fn last_changed(&self) -> Option<usize> {
        let spans = self.selectors.iter().filter(|(axis, _)| matches!(axis, Axis::Pos | Axis::Query));
        spans.filter_map(|(axis, span)| span.resolve(axis.name(), usize::MAX).ok()).map(|range| range.end - 1).min()
    }

    /// The same edit with positions that count from the end of a text of `length` tokens counted from its start.
    pub(crate) fn anchored(&self, length: usize) -> Result<Self> {
        let mut anchored = self.clone();
        for (axis, span) in &mut anchored.selectors {
            if is_position(*axis) && span.counts_from_the_end() {
                *span = span.resolve(axis.name(), length)?.into();
            }
        }
        Ok(anchored)
    }

    /// The changed value, and how much changed: ‖after − before‖ / ‖before‖ over the tokens of the part that anybody looks at. None if
    /// the part is not in this pass.
    pub(crate) fn apply(
        &self,
        value: &Tensor,
        window: Window<'_>,
        mask: &Causal,
    ) -> Result<Option<(Tensor, Option<f64>)>> {
        let Some(region) = self.region(value.dims(), window)? else { return Ok(None) };
        let before = ops::read_region(value, &region)?;
        let like = |t: &Tensor| -> Result<Tensor> { Ok(t.to_device(value.device())?.to_dtype(value.dtype())?) };
        let mut after = match &self.change {
            Change::Fill(x) => Tensor::full(*x, before.dims(), value.device())?.to_dtype(value.dtype())?,
            Change::Scale(factor) => before.affine(*factor, 0.0)?,
            Change::Set(new) => like(new)?.broadcast_as(before.dims())?.contiguous()?,
            Change::Add(new) => before.broadcast_add(&like(new)?)?,
            Change::Patch(other) => ops::read_region(&like(other)?, &region)?,
            Change::Map(f) => {
                let after = f(&before)?;
                if after.dims() != before.dims() || after.dtype() != before.dtype() {
                    return Err(Error::request(format!(
                        "edit `{self}`: its function turned {:?} {:?} into {:?} {:?}",
                        before.dtype(),
                        before.dims(),
                        after.dtype(),
                        after.dims()
                    )));
                }
                after
            }
        };
        let mut changed = ops::write_region(value, &after, &region)?;
        // No edit opens the future: what the mask hides is hidden again, so that reads show what is used, and counts as unchanged.
        if self.site.is_attention_map() {
            let hidden = if matches!(self.site, Site::AttnScores(_)) { f64::NEG_INFINITY } else { 0.0 };
            changed = ops::masked(&changed, hidden, mask)?;
            after = ops::read_region(&changed, &region)?;
        }
        let place = self.site.axes().iter().position(|axis| matches!(axis, Axis::Pos | Axis::Query)).unwrap_or(1);
        let counts = |row: usize, at: usize| window.counts(region[0].start + row, region[place].start + at);
        let change = relative_change(&before, &after, place, counts)?;
        Ok(Some((changed, change)))
    }
}

fn is_position(axis: Axis) -> bool {
    matches!(axis, Axis::Pos | Axis::Query | Axis::Key)
}

/// The part of a range of the text that a pass of `len` tokens after `past` holds.
fn shifted(range: Range<usize>, past: usize, len: usize) -> Range<usize> {
    range.start.saturating_sub(past)..range.end.saturating_sub(past).min(len)
}

/// Whether a value may be written at a site: −∞ may, where it means that a key is hidden.
fn is_finite(tensor: &Tensor, site: Site) -> Result<bool> {
    if ops::all_finite(tensor)? {
        return Ok(true);
    }
    let values = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(matches!(site, Site::AttnScores(_)) && values.iter().all(|&x| x < f32::INFINITY))
}

/// ‖after − before‖ / ‖before‖ over the tokens that count, where `place` is the axis of tokens: infinite where all was 0 before, none
/// where no token counts. Masked scores are −∞ and are left out.
fn relative_change(
    before: &Tensor,
    after: &Tensor,
    place: usize,
    counts: impl Fn(usize, usize) -> bool,
) -> Result<Option<f64>> {
    let values = |t: &Tensor| -> Result<Vec<f64>> {
        Ok(t.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1()?)
    };
    let dims = before.dims();
    let width: usize = dims[place + 1..].iter().product();
    let in_row: usize = dims[1..=place].iter().product();
    let (mut moved, mut size, mut any) = (0.0, 0.0, false);
    let (before, after) = (values(before)?, values(after)?);
    for (i, (before, after)) in before.chunks(width).zip(after.chunks(width)).enumerate() {
        if !counts(i / in_row, i % dims[place]) {
            continue;
        }
        any = true;
        for (a, b) in before.iter().zip(after).filter(|(a, b)| a.is_finite() && b.is_finite()) {
            moved += (b - a) * (b - a);
            size += a * a;
        }
    }
    Ok(any.then(|| if moved == 0.0 { 0.0 } else { (moved / size).sqrt() }))
}

fn broadcasts(value: &[usize], part: &[usize]) -> bool {
    value.len() <= part.len() && value.iter().rev().zip(part.iter().rev()).all(|(v, p)| v == p || *v == 1)
}

/// Prints as a sentence: `add resid_post.4 pos 5`.
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op(), self.site)?;
        match &self.change {
            Change::Fill(x) if *x != 0.0 => write!(f, " with {x}")?,
            Change::Scale(x) => write!(f, " by {x}")?,
            _ => {}
        }
        self.selectors.iter().try_for_each(|(axis, span)| write!(f, " {axis} {span}"))
    }
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edit({self})")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    #[serde(default)]
    edit: Vec<EditFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EditFile {
    site: String,
    op: String,
    value: Option<ValueFile>,
    prompt: Option<SpanFile>,
    pos: Option<SpanFile>,
    head: Option<SpanFile>,
    query: Option<SpanFile>,
    key: Option<SpanFile>,
    neuron: Option<SpanFile>,
    dim: Option<SpanFile>,
    vocab: Option<SpanFile>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ValueFile {
    Number(f64),
    Vector(Vec<f64>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpanFile {
    One(i64),
    Range([i64; 2]),
}

/// Reads edits from TOML or JSON: a list `edit` of tables with `site`, `op` (zero, fill, scale, set, add), `value` (a
/// number, or a vector over the last axis) and selectors by axis name (an index, or `[first, last]`).
///
/// A pattern as `site` (`z.*`) makes one edit per site that it names.
///
/// # Errors
/// The fault in words: an unknown key, a site that `layers` blocks do not have, a value that `op` does not take.
pub fn parse_edits(text: &str, layers: usize) -> Result<Vec<Edit>> {
    let file: PlanFile = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|e| Error::request(format!("edits: {e}")))?,
        false => toml::from_str(text)
            .map_err(|e| Error::request(format!("edits: {}", crate::error::toml_fault(text, &e))))?,
    };
    let mut edits = Vec::new();
    limits::at_most("edits", file.edit.len(), limits::EDITS)?;
    for (i, entry) in file.edit.into_iter().enumerate() {
        let sites = Site::matching(&entry.site, layers)?;
        limits::at_most("edits at all sites that they name", edits.len() + sites.len(), limits::EDITS)?;
        for site in sites {
            edits.push(entry.edit(site).map_err(|e| Error::request(format!("edit {i}: {e}")))?);
        }
    }
    Ok(edits)
}

impl EditFile {
    fn edit(&self, site: Site) -> Result<Edit> {
        let number = |what: &str| match &self.value {
            Some(ValueFile::Number(x)) => Ok(*x),
            _ => Err(Error::request(format!("op {what} needs a number as value"))),
        };
        let tensor = |what: &str| match &self.value {
            Some(ValueFile::Number(x)) => Ok(Tensor::new(&[*x], &Device::Cpu)?),
            Some(ValueFile::Vector(v)) if !v.is_empty() => Ok(Tensor::new(v.as_slice(), &Device::Cpu)?),
            _ => Err(Error::request(format!("op {what} needs a number or a vector as value"))),
        };
        let mut edit = match self.op.as_str() {
            "zero" if self.value.is_none() => Edit::zero(site),
            "zero" => return Err(Error::request("op zero takes no value; use fill or set")),
            "fill" => Edit::fill(site, number("fill")?),
            "scale" => Edit::scale(site, number("scale")?),
            "set" => Edit::set(site, &tensor("set")?),
            "add" => Edit::add(site, &tensor("add")?),
            other => return Err(Error::no_such("op", other, ["zero", "fill", "scale", "set", "add"])),
        };
        for (axis, span) in [
            (Axis::Prompt, &self.prompt),
            (Axis::Pos, &self.pos),
            (Axis::Head, &self.head),
            (Axis::Query, &self.query),
            (Axis::Key, &self.key),
            (Axis::Neuron, &self.neuron),
            (Axis::Dim, &self.dim),
            (Axis::Vocab, &self.vocab),
        ] {
            edit = match span {
                None => edit,
                Some(SpanFile::One(index)) => edit.only(axis, *index),
                Some(SpanFile::Range([first, last])) => edit.only(axis, *first..=*last),
            };
        }
        Ok(edit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_read_from_toml_and_json() {
        let toml = r#"
            [[edit]]
            site = "blocks.1-2.attn.hook_z"
            op = "zero"
            head = 3
            pos = [0, -1]
            [[edit]]
            site = "resid_post.0"
            op = "add"
            value = [1, 2.5]
        "#;
        let edits: Vec<String> = parse_edits(toml, 4).unwrap().iter().map(Edit::to_string).collect();
        assert_eq!(edits, ["zero z.1 pos 0..=-1 head 3", "zero z.2 pos 0..=-1 head 3", "add resid_post.0"]);
        let json = r#"{"edit": [{"site": "mlp_post.1", "op": "scale", "value": 2, "neuron": 7}]}"#;
        assert_eq!(parse_edits(json, 4).unwrap()[0].to_string(), "scale mlp_post.1 by 2 neuron 7");
    }

    #[test]
    fn faulty_edits_are_refused() {
        let fault = |body: &str| parse_edits(&format!("[[edit]]\n{body}"), 4).unwrap_err().to_string();
        assert!(fault("site = \"z.9\"\nop = \"zero\"").contains("layer 9 is out of range"));
        assert!(fault("site = \"z.1\"\nop = \"ablate\"").contains("there is no op `ablate`"));
        assert!(fault("site = \"z.1\"\nop = \"zero\"\nvalue = 1").contains("takes no value"));
        assert!(fault("site = \"z.1\"\nop = \"add\"").contains("needs a number or a vector"));
        assert!(fault("site = \"z.1\"\nop = \"zero\"\nhaed = 1").contains("haed"));
    }
}
