//! Pictures of probes that are there: how they do on new rows, what they say of a text, and what they see of a layer.

use polars::prelude::*;

use super::canvas::{Anchor, Figure};
use super::charts::{Line, Lines, Strip};
use super::heatmap::{HeatMaps, Panel};
use super::palette::{GREY, INK, LINES, PALE, PAPER, Rgb, Scale};
use super::probed::above;
use super::rows::shown;
use super::scatter::Scatter;
use crate::error::{Error, Result};
use crate::probe::{Evaluated, View};

/// Tokens that a picture shows at most.
const MAX_TOKENS: usize = 400;
/// Classes that have a colour of their own.
const MAX_CLASSES: usize = 12;

/// Saved probes on new rows ([`crate::probe::evaluated`]): the score by site, and for the site that did best what was predicted
/// for what, and how often it was right by how sure it was.
///
/// # Errors
/// A frame without its columns.
pub fn evaluated(frame: &DataFrame, classes: Option<&[String]>, all: &[Evaluated]) -> Result<Figure> {
    let (site, metric) = (frame.column("site")?.str()?, frame.column("metric")?.str()?);
    let name = frame.column("probe")?.str()?.get(0).unwrap_or_default().to_string();
    let score = if classes.is_some() { "accuracy" } else { "r2" };
    let value = frame.column("value")?.f64()?;
    let found: Vec<(String, f64)> = (0..frame.height())
        .filter(|&i| metric.get(i) == Some(score))
        .map(|i| (site.get(i).unwrap_or_default().to_string(), value.get(i).unwrap_or(f64::NAN)))
        .collect();
    let points = found.iter().enumerate().map(|(i, (_, value))| (i as f64, *value)).collect();
    let lines = Lines {
        title: format!("Probe: {name}, on new rows"),
        x_name: String::new(),
        y_name: if classes.is_some() { "accuracy".into() } else { "R²".into() },
        lines: vec![Line { name: score.into(), points, spread: Vec::new() }],
        x_labels: found.iter().map(|(site, _)| site.clone()).collect(),
    };
    let best = (0..found.len()).reduce(|best, i| if found[i].1 > found[best].1 { i } else { best });
    let (Some(classes), Some(best)) = (classes, best) else { return Ok(lines.draw()) };
    let Some(Evaluated { confusion: Some(confusion), calibration }) = all.get(best) else { return Ok(lines.draw()) };
    let share = |row: &Vec<u64>| {
        let all = row.iter().sum::<u64>();
        row.iter().map(|count| *count as f64 / all as f64).collect()
    };
    let cells = |row: &Vec<u64>| row.iter().map(u64::to_string).collect();
    let matrix = HeatMaps {
        title: format!("What {} says", found[best].0),
        note: "rows are what is true and add up to 1; numbers count".into(),
        x_name: "predicted".into(),
        y_name: "true".into(),
        x: classes.to_vec(),
        y: classes.to_vec(),
        panels: vec![Panel {
            rows: confusion.counts.iter().map(share).collect(),
            cells: confusion.counts.iter().map(cells).collect(),
            ..Panel::default()
        }],
        columns: 1,
        scale: Scale::Sequential { low: 0.0, high: 1.0 },
        value_name: "share".into(),
    };
    let bins = calibration.iter().filter_map(|bin| Some((bin.mean_probability?, bin.share_positive?)));
    let reliability = Lines {
        title: "Is it as often right as it is sure?".into(),
        x_name: "probability of what was predicted".into(),
        y_name: "share that was right".into(),
        lines: vec![
            Line { name: "as sure as right".into(), points: vec![(0.0, 0.0), (1.0, 1.0)], spread: Vec::new() },
            Line { name: found[best].0.clone(), points: bins.collect(), spread: Vec::new() },
        ],
        x_labels: Vec::new(),
    };
    let style = |i: usize| if i == 0 { (GREY, 1) } else { (LINES[0], 2) };
    Ok(lines.draw().beside(matrix.draw()).beside(reliability.draw_with(style)))
}

/// What probes say of each token ([`crate::probe::applied`]), a strip per prompt and site: of two classes the probability of the
/// second by colour, of more the likeliest and its probability, of numbers what is predicted.
///
/// # Errors
/// A frame without its columns, or without rows.
pub fn applied(frame: &DataFrame) -> Result<Figure> {
    let text = |name: &str| -> Result<Vec<Option<String>>> {
        Ok(frame.column(name)?.str()?.iter().map(|x| x.map(str::to_string)).collect())
    };
    let (probe, site, token, class) = (text("probe")?, text("site")?, text("token")?, text("class")?);
    let prompt: Vec<u32> = frame.column("prompt")?.u32()?.into_no_null_iter().collect();
    let pos: Vec<u32> = frame.column("pos")?.u32()?.into_no_null_iter().collect();
    let (p, value) = (frame.column("probability")?.f64()?, frame.column("value")?.f64()?);
    let rows: Vec<usize> = (0..frame.height()).collect();
    let mut classes: Vec<&str> = class.iter().flatten().map(String::as_str).collect();
    classes.sort_unstable();
    classes.dedup();
    let values = Scale::around_zero(rows.iter().filter(|i| pos[**i] > 0).map(|i| value.get(*i).unwrap_or(f64::NAN)));
    let mut picture: Option<Figure> = None;
    let mut shown_tokens = 0;
    for strip in rows.chunk_by(|a, b| (prompt[*a], &site[*a], &probe[*a]) == (prompt[*b], &site[*b], &probe[*b])) {
        let mut tokens: Vec<(String, String, Rgb)> = Vec::new();
        for own in strip.chunk_by(|a, b| pos[*a] == pos[*b]).take(MAX_TOKENS - shown_tokens.min(MAX_TOKENS)) {
            let word = shown(token[own[0]].as_deref().unwrap_or_default());
            let of = |i: usize| p.get(i).unwrap_or(0.0);
            tokens.push(match own {
                [only] => {
                    let value = value.get(*only).unwrap_or(f64::NAN);
                    (word, format!("{value:.2}"), values.color(value))
                }
                [_, second] => {
                    let p = of(*second);
                    (word, format!("{p:.2}"), Scale::Diverging { reach: 1.0 }.color(2.0 * p - 1.0))
                }
                several => {
                    let best = several.iter().copied().reduce(|best, i| if of(i) > of(best) { i } else { best });
                    let best = best.unwrap_or(own[0]);
                    let below = format!("{} {:.2}", class[best].as_deref().unwrap_or_default(), of(best));
                    (word, below, Scale::Sequential { low: 0.0, high: 1.0 }.color(of(best)))
                }
            });
        }
        if tokens.is_empty() {
            break;
        }
        shown_tokens += tokens.len();
        let first = strip[0];
        let about = match classes[..] {
            [] => "what it predicts".to_string(),
            [red, blue] => format!("blue {blue}, red {red}"),
            _ => "the likeliest class".to_string(),
        };
        let name = |of: &Option<String>| of.clone().unwrap_or_default();
        let title = format!("{} at {}: {about}", name(&probe[first]), name(&site[first]));
        picture = Some(above(picture, Strip { title, tokens }.draw()));
    }
    let mut picture = picture.ok_or_else(|| Error::request("the frame holds no token"))?;
    let all = rows
        .chunk_by(|a, b| (prompt[*a], pos[*a], &site[*a], &probe[*a]) == (prompt[*b], pos[*b], &site[*b], &probe[*b]))
        .count();
    if shown_tokens < all {
        let (_, height) = picture.size();
        let mut note = Figure::new(400, 30);
        note.text((24, 12), &format!("the first {shown_tokens} of {all}; the frame has all"), 11, INK, Anchor::Start);
        picture.place((0, height as i32), note);
    }
    Ok(picture)
}

/// Views of sites ([`crate::probe::view`]), one above the other: points by label beside the same points by cluster.
///
/// # Errors
/// Frames without their columns, or no view.
pub fn plane(views: &[View]) -> Result<Figure> {
    let mut picture: Option<Figure> = None;
    for view in views {
        let frame = &view.frame;
        let numbers = |name: &str| -> Result<Vec<f64>> { Ok(frame.column(name)?.f64()?.into_no_null_iter().collect()) };
        let (x, y) = (numbers("pc1")?, numbers("pc2")?);
        let label: Vec<&str> = frame.column("label")?.str()?.iter().map(Option::unwrap_or_default).collect();
        let cluster: Vec<u32> = frame.column("cluster")?.u32()?.into_no_null_iter().collect();
        let first =
            |name: &str| -> Result<String> { Ok(frame.column(name)?.str()?.get(0).unwrap_or_default().to_string()) };
        let (colors, legend) = match view.agreement {
            Some(_) => by_name(&label),
            None => by_number(&label),
        };
        let [one, two] = view.explained.map(|share| format!("{:.0} % of the variance", 100.0 * share));
        let points = |colors: &[Rgb]| x.iter().zip(&y).zip(colors).map(|((x, y), color)| (*x, *y, *color)).collect();
        let by_label = Scatter {
            title: format!("{} at {}", first("probe")?, first("site")?),
            note: "by label".into(),
            x_name: format!("first component, {one}"),
            y_name: format!("second component, {two}"),
            points: points(&colors),
            legend,
        };
        let clusters: Vec<String> = cluster.iter().map(|cluster| format!("cluster {cluster}")).collect();
        let (colors, legend) = by_name(&clusters.iter().map(String::as_str).collect::<Vec<_>>());
        let by_cluster = Scatter {
            title: "the same, by k-means".into(),
            note: view
                .agreement
                .map_or(String::new(), |index| format!("agreement with labels {index:.2} (adjusted Rand index)")),
            points: points(&colors),
            legend,
            ..by_label.clone()
        };
        picture = Some(above(picture, by_label.draw().beside(by_cluster.draw())));
    }
    picture.ok_or_else(|| Error::request("there is no view to draw"))
}

/// A colour per name; names after the first dozen are grey.
fn by_name(of: &[&str]) -> (Vec<Rgb>, Vec<(String, Rgb)>) {
    let mut names: Vec<&str> = of.to_vec();
    names.sort_unstable();
    names.dedup();
    // The second half of the colours is the first, paler.
    let pale = |color: Rgb| color.map(|c| ((u16::from(c) + 2 * 255) / 3) as u8);
    let color = |i: usize| match i {
        _ if i < LINES.len() => LINES[i],
        _ if i < MAX_CLASSES => pale(LINES[i - LINES.len()]),
        _ => PALE,
    };
    let mut legend: Vec<(String, Rgb)> =
        names.iter().enumerate().take(MAX_CLASSES).map(|(i, name)| (name.to_string(), color(i))).collect();
    if names.len() > MAX_CLASSES {
        legend.push((format!("{} others", names.len() - MAX_CLASSES), PALE));
    }
    let place = |name: &&str| names.binary_search(name).unwrap_or(MAX_CLASSES);
    (of.iter().map(|name| color(place(name))).collect(), legend)
}

/// Colours from pale to dark by number.
fn by_number(of: &[&str]) -> (Vec<Rgb>, Vec<(String, Rgb)>) {
    let values: Vec<f64> = of.iter().map(|text| text.parse().unwrap_or(f64::NAN)).collect();
    let (low, high) = Scale::over(values.iter().copied()).ends();
    // The lowest must be seen on the page.
    let scale = Scale::Sequential { low: low - 0.25 * (high - low), high };
    let middle = 0.5 * (low + high);
    let legend = [low, middle, high].map(|value| (format!("{value:.3}"), scale.color(value)));
    (
        values.into_iter().map(|value| if value.is_finite() { scale.color(value) } else { PAPER }).collect(),
        legend.to_vec(),
    )
}
