//! Pictures of steering.

use polars::prelude::*;

use super::canvas::Figure;
use super::charts::{Line, Lines};
use super::palette::{GREY, LINES, Rgb, Scale};
use crate::error::{Error, Result};

/// Steering ([`crate::steer::steer`]): effect and fluency against strength, a line per site, random directions in grey.
///
/// # Errors
/// A frame without those columns.
pub fn steer(frame: &DataFrame) -> Result<Figure> {
    let text = |name: &str| -> Result<Vec<Option<&str>>> { Ok(frame.column(name)?.str()?.iter().collect()) };
    let real = |name: &str| -> Result<Vec<f64>> {
        Ok(frame.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    };
    let (site, direction, metric) = (text("site")?, text("direction")?, text("metric")?);
    let (strength, value, perplexity) = (real("strength")?, real("value")?, real("perplexity")?);
    let draw: Vec<Option<u32>> = frame.column("draw")?.u32()?.iter().collect();
    let prompt = frame.column("prompt")?.u32()?;
    let summed: Vec<usize> = (0..frame.height()).filter(|&i| prompt.get(i).is_none()).collect();
    // Random directions first, so that they lie under the others.
    let mut order: Vec<(Option<&str>, Option<u32>)> = Vec::new();
    for random in [true, false] {
        for &i in summed.iter().filter(|&&i| (direction[i] == Some("random")) == random) {
            if !order.contains(&(site[i], draw[i])) {
                order.push((site[i], draw[i]));
            }
        }
    }
    if order.is_empty() {
        return Err(Error::request("the frame holds no steering"));
    }
    let sites = order.iter().filter(|(_, draw)| draw.is_none()).count();
    let randoms = order.len() - sites;
    let style = |i: usize| -> (Rgb, u32) {
        match i.checked_sub(randoms) {
            None => (GREY, 1),
            Some(i) if sites <= LINES.len() => (LINES[i], 2),
            // Sites have an order: from pale to dark.
            Some(i) => {
                (Scale::Sequential { low: 0.0, high: 1.0 }.color(0.25 + 0.65 * i as f64 / (sites - 1) as f64), 2)
            }
        }
    };
    let chart = |title: &str, y_name: &str, of: &dyn Fn(usize) -> f64| {
        let line = |(i, key): (usize, &(Option<&str>, Option<u32>))| {
            let mut points: Vec<(f64, f64)> =
                summed.iter().filter(|&&i| (site[i], draw[i]) == *key).map(|&i| (strength[i], of(i))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            // One name for all random ones.
            let name = match key.1 {
                None => key.0.unwrap_or_default(),
                Some(_) if i == 0 => "random directions",
                Some(_) => "",
            };
            Line { name: name.into(), points, ..Line::default() }
        };
        Lines {
            title: title.into(),
            x_name: "strength".into(),
            y_name: y_name.into(),
            lines: order.iter().enumerate().map(line).collect(),
            x_labels: Vec::new(),
        }
        .draw_with(style)
    };
    let fluency = chart("Steering: fluency", "ln perplexity of the text, unsteered model", &|i| perplexity[i].ln());
    Ok(match summed.first().and_then(|&i| metric[i]) {
        None => fluency,
        Some(metric) => {
            let y_name = if metric == "logit" { "logit of the answer" } else { "logit difference" };
            chart("Steering: effect", y_name, &|i| value[i]).beside(fluency)
        }
    })
}
