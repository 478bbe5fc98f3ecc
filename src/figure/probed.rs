//! Pictures of probes.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::canvas::Figure;
use super::charts::{Line, Lines};
use super::palette::{GREY, LINES, Rgb};
use crate::error::{Error, Result};
use crate::probe::Summary;

/// Probes by layer ([`crate::probe::layers()`]), a row per task: the score on rows that were not fitted beside everything that it
/// must be held against, and the bits of the online code, with 95 % intervals over splits.
///
/// # Errors
/// A frame without those columns.
pub fn probes(frame: &DataFrame) -> Result<Figure> {
    let all = Summary::of(frame)?;
    let mut picture: Option<Figure> = None;
    for name in all.probes() {
        let row = scores(&all, &name);
        let row = match bits(&all, &name) {
            Some(bits) => row.beside(bits),
            None => row,
        };
        picture = Some(match picture {
            None => row,
            Some(above) => {
                let ((w, h), (own_w, own_h)) = (above.size(), row.size());
                let mut both = Figure::new(w.max(own_w), h + own_h);
                both.place((0, 0), above);
                both.place((0, h as i32), row);
                both
            }
        });
    }
    picture.ok_or_else(|| Error::request("the frame holds no probe"))
}

/// What the lines of a chart are: the split, its name, its colour and width.
const SPLITS: [(&str, &str, Rgb, u32); 5] = [
    ("test", "probe", LINES[0], 3),
    ("control", "control task", LINES[1], 2),
    ("random", "model that learned nothing", LINES[2], 2),
    ("shuffled", "labels of other rows", GREY, 1),
    ("majority", "commonest", GREY, 1),
];

fn scores(all: &Summary, name: &str) -> Figure {
    let metric = all.score(name);
    let splits: Vec<_> = SPLITS.iter().filter(|(split, ..)| all.get(name, split, metric).is_some()).collect();
    let line = |(split, title, ..): &&(&str, &str, Rgb, u32)| line(all, name, split, metric, title);
    let y_name =
        if metric == "r2" { "R² on rows that were not fitted" } else { "accuracy on rows that were not fitted" };
    Lines {
        title: format!("Probe: {name}"),
        x_name: String::new(),
        y_name: y_name.into(),
        lines: splits.iter().map(line).collect(),
        x_labels: all.sites(name),
    }
    .draw_with(|i| (splits[i].2, splits[i].3))
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

fn line(all: &Summary, name: &str, split: &str, metric: &str, title: &str) -> Line {
    let found: BTreeMap<usize, _> = all.get(name, split, metric).into_iter().flatten().collect();
    Line {
        name: title.into(),
        points: found.iter().map(|(site, interval)| (*site as f64, interval.mean)).collect(),
        spread: found.iter().map(|(site, interval)| (*site as f64, interval.low, interval.high)).collect(),
    }
}
