//! Pictures of direct logit attribution.

use polars::prelude::*;

use super::canvas::Figure;
use super::charts::{Bars, Line, Lines};
use super::heatmap::{HeatMaps, Panel};
use super::palette::Scale;
use super::rows::shown;
use crate::error::{Error, Result};

/// Bars of single components; the others are one bar together.
const MAX_BARS: usize = 30;

/// Attribution ([`crate::attribution::frame`]) of the first prompt, or the mean where there are several: bars that add up,
/// and for heads a map by layer and head.
///
/// # Errors
/// A frame without those columns.
pub fn attribution(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::of(frame)?;
    let total: f64 = rows.contribution.iter().sum();
    let mut order: Vec<usize> = (0..rows.component.len()).filter(|&i| rows.component[i] != "remainder").collect();
    order.sort_by(|&a, &b| rows.contribution[b].abs().total_cmp(&rows.contribution[a].abs()).then(a.cmp(&b)));
    let bar = |name: String, value: f64| (name, value, format!("{value:+.3}"));
    let strongest = order.iter().take(MAX_BARS);
    let mut bars: Vec<_> = strongest.map(|&i| bar(rows.component[i].clone(), rows.contribution[i])).collect();
    let rest = order.len() - bars.len();
    if rest > 0 {
        let others = order[MAX_BARS..].iter().map(|&i| rows.contribution[i]).sum();
        bars.push(bar(format!("{rest} others"), others));
    }
    bars.push(bar("total".into(), total));
    let bars = Bars {
        title: format!("What adds to the {}", rows.kind()),
        note: rows.note(),
        value_name: format!("share of the {}", rows.kind()),
        bars,
    };
    Ok(match rows.heads() {
        Some(map) => bars.draw().beside(map.draw()),
        None => bars.draw(),
    })
}

/// The accumulated logit (difference) by layer ([`crate::attribution::accumulated`]): a line per prompt, or the mean.
///
/// # Errors
/// As [`attribution`].
pub fn accumulated(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::of(frame)?;
    let convention = frame.column("convention")?.str()?.get(0).unwrap_or_default().to_string();
    let points = rows.contribution.iter().enumerate().map(|(i, value)| (i as f64, *value)).collect();
    Ok(Lines {
        title: format!("The {} if the model stopped there", rows.kind()),
        x_name: "residual stream".into(),
        y_name: rows.kind().into(),
        lines: vec![Line { name: convention, points, ..Line::default() }],
        x_labels: rows.component,
    }
    .draw())
}

/// The rows that are drawn.
struct Rows {
    component: Vec<String>,
    place: Vec<(Option<u32>, Option<u32>)>,
    contribution: Vec<f64>,
    /// How many prompts they are the mean of.
    prompts: usize,
    token: Option<String>,
    answer: Option<String>,
    wrong: Option<String>,
}

impl Rows {
    fn of(frame: &DataFrame) -> Result<Self> {
        let int = |name: &str| -> Result<Vec<Option<u32>>> { Ok(frame.column(name)?.u32()?.iter().collect()) };
        let text = |name: &str, i: usize| -> Result<Option<String>> {
            Ok(frame.column(name)?.str()?.get(i).map(str::to_string))
        };
        let (prompt, layer, head) = (int("prompt")?, int("layer")?, int("head")?);
        let wanted = if prompt.contains(&None) { None } else { Some(0) };
        let kept: Vec<usize> = (0..frame.height()).filter(|&i| prompt[i] == wanted).collect();
        if kept.is_empty() {
            return Err(Error::request("the frame holds no attribution"));
        }
        let contribution = frame.column("contribution")?.f64()?;
        Ok(Self {
            component: kept.iter().map(|&i| Ok(text("component", i)?.unwrap_or_default())).collect::<Result<_>>()?,
            place: kept.iter().map(|&i| (layer[i], head[i])).collect(),
            contribution: kept.iter().map(|&i| contribution.get(i).unwrap_or(f64::NAN)).collect(),
            prompts: if wanted.is_none() {
                prompt.iter().flatten().max().map_or(0, |&max| max as usize + 1)
            } else {
                1
            },
            token: text("token", 0)?,
            answer: text("answer", 0)?,
            wrong: text("wrong", 0)?,
        })
    }

    fn kind(&self) -> &'static str {
        if self.wrong.is_some() { "logit difference" } else { "logit" }
    }

    fn note(&self) -> String {
        let of = |text: &Option<String>| shown(text.as_deref().unwrap_or_default());
        match (self.prompts, &self.wrong) {
            (1, Some(_)) => {
                format!("`{}` over `{}` after `{}`", of(&self.answer), of(&self.wrong), of(&self.token))
            }
            (1, None) => format!("`{}` after `{}`", of(&self.answer), of(&self.token)),
            (n, _) => format!("mean over {n} prompts"),
        }
    }

    /// Layers × heads, where the stream was taken apart by head.
    fn heads(&self) -> Option<HeatMaps> {
        let places = || self.place.iter().zip(&self.contribution);
        let heads: Vec<(usize, usize, f64)> =
            places().filter_map(|((layer, head), x)| Some(((*layer)? as usize, (*head)? as usize, *x))).collect();
        let layers = heads.iter().map(|(layer, ..)| layer + 1).max()?;
        let width = heads.iter().map(|(_, head, _)| head + 1).max()?;
        let mut map = vec![vec![f64::NAN; width]; layers];
        heads.iter().for_each(|(layer, head, x)| map[*layer][*head] = *x);
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        Some(HeatMaps {
            title: "Heads".into(),
            note: "the same shares, by layer and head".into(),
            x_name: "head".into(),
            y_name: "layer".into(),
            x: names(width),
            y: names(layers),
            columns: 1,
            scale: Scale::around_zero(heads.iter().map(|(.., x)| *x)),
            value_name: format!("share of the {}", self.kind()),
            panels: vec![Panel { rows: map, ..Panel::default() }],
        })
    }
}
