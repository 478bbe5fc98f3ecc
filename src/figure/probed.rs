//! Pictures of probes.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::canvas::Figure;
use super::charts::{Line, Lines};
use super::palette::{GREY, LINES, NO_NUMBER, Rgb};
use crate::error::{Error, Result};
use crate::probe::Summary;

/// Probes by layer ([`crate::probe::layers()`]), a row per task: the score on rows that were not fitted beside everything that it
/// must be held against; the bits of the online code; and, where it was tried ([`crate::probe::used`]), what the model answers
/// without what the probes read. Bars are 95 % intervals, over splits, and of answers over prompts.
///
/// # Errors
/// A frame without those columns.
pub fn probes(frame: &DataFrame) -> Result<Figure> {
    let all = Summary::of(frame)?;
    let mut picture: Option<Figure> = None;
    for name in all.probes() {
        let others = [bits(&all, &name), answers(&all, &name)].into_iter().flatten();
        picture = Some(above(picture, others.fold(scores(&all, &name), Figure::beside)));
    }
    picture.ok_or_else(|| Error::request("the frame holds no probe"))
}

/// A picture with another below it.
pub(super) fn above(picture: Option<Figure>, below: Figure) -> Figure {
    let Some(picture) = picture else { return below };
    let ((w, h), (own_w, own_h)) = (picture.size(), below.size());
    let mut both = Figure::new(w.max(own_w), h + own_h);
    both.place((0, 0), picture);
    both.place((0, h as i32), below);
    both
}

/// What the lines of a chart are: the split, its name, its colour and width.
const SPLITS: [(&str, &str, Rgb, u32); 6] = [
    ("test", "probe", LINES[0], 3),
    ("control", "control task", LINES[1], 2),
    ("random", "model that learned nothing", LINES[2], 2),
    ("mass_mean", "difference of means", LINES[4], 1),
    ("shuffled", "labels of other rows", GREY, 1),
    ("majority", "commonest", NO_NUMBER, 1),
];

/// The same of what the model answers.
const MOVES: [(&str, &str, Rgb, u32); 8] = [
    ("clean", "nothing moved", GREY, 2),
    ("removed", "probe's direction removed", LINES[0], 3),
    ("random_removed", "random direction removed", LINES[4], 1),
    ("flipped", "moved to the other side", LINES[1], 3),
    ("random_flipped", "as far in a random direction", LINES[5], 1),
    ("mean_removed", "means' difference removed", LINES[2], 1),
    ("mean_flipped", "means' difference turned", LINES[3], 2),
    ("random_mean_flipped", "as far at random", NO_NUMBER, 1),
];

fn scores(all: &Summary, name: &str) -> Figure {
    let metric = all.score(name);
    let splits: Vec<_> = SPLITS.iter().filter(|(split, ..)| all.get(name, split, metric).is_some()).collect();
    let mut lines: Vec<Line> = splits.iter().map(|(split, title, ..)| line(all, name, split, metric, title)).collect();
    if all.get(name, "test", "selectivity").is_some() {
        lines.push(line(all, name, "test", "selectivity", "selectivity: probe − control"));
    }
    let y_name =
        if metric == "r2" { "R² on rows that were not fitted" } else { "accuracy on rows that were not fitted" };
    Lines {
        title: format!("Probe: {name}"),
        x_name: String::new(),
        y_name: y_name.into(),
        lines,
        x_labels: all.sites(name),
    }
    .draw_with(|i| splits.get(i).map_or((LINES[3], 2), |(_, _, color, width)| (*color, *width)))
}

/// The online code, if there is one.
fn bits(all: &Summary, name: &str) -> Option<Figure> {
    all.get(name, "all", "mdl")?;
    let chart = Lines {
        title: "Minimum description length".into(),
        x_name: String::new(),
        y_name: "bits of all labels".into(),
        lines: vec![line(all, name, "all", "mdl", "online code")],
        x_labels: all.sites(name),
    };
    Some(chart.draw())
}

/// What the model answers, if it was asked.
fn answers(all: &Summary, name: &str) -> Option<Figure> {
    all.get(name, "clean", "logit_diff")?;
    let moves: Vec<_> = MOVES.iter().filter(|(split, ..)| all.get(name, split, "logit_diff").is_some()).collect();
    let line = |(split, title, ..): &&(&str, &str, Rgb, u32)| {
        let of = |metric: &str| all.get(name, split, metric).unwrap_or_default();
        let (low, high) = (of("logit_diff_low"), of("logit_diff_high"));
        let bounds = |site: &usize| Some((*site as f64, low.get(site)?.mean, high.get(site)?.mean));
        Line {
            name: title.to_string(),
            points: of("logit_diff").iter().map(|(site, of)| (*site as f64, of.mean)).collect(),
            spread: of("logit_diff").keys().filter_map(bounds).collect(),
        }
    };
    let chart = Lines {
        title: "Does the model use it?".into(),
        x_name: String::new(),
        y_name: "logit of the answer over the wrong one".into(),
        lines: moves.iter().map(line).collect(),
        x_labels: all.sites(name),
    };
    Some(chart.draw_with(|i| (moves[i].2, moves[i].3)))
}

fn line(all: &Summary, name: &str, split: &str, metric: &str, title: &str) -> Line {
    let found: BTreeMap<usize, _> = all.get(name, split, metric).into_iter().flatten().collect();
    Line {
        name: title.into(),
        points: found.iter().map(|(site, interval)| (*site as f64, interval.mean)).collect(),
        spread: found
            .iter()
            .filter_map(|(site, interval)| interval.bounds.map(|(low, high)| (*site as f64, low, high)))
            .collect(),
    }
}
