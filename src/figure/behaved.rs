//! How models answer suites of questions.

use polars::prelude::DataFrame;

use super::canvas::Figure;
use super::charts::{Line, Lines};
use super::dots::{Dot, Dots};
use super::rows::Rows;
use crate::error::Result;

/// Accuracy with its bounds ([`crate::behave::summary`]): against the number of examples where there are several, else a row per
/// suite and phrasing, or per template where there is only one of those.
///
/// # Errors
/// A frame without its columns.
pub fn behave(frame: &DataFrame) -> Result<Figure> {
    let rows = Rows::all(frame);
    let names = ["model", "suite", "phrasing", "template", "metric"];
    let [model, suite, phrasing, template, metric] = names.map(|name| rows.texts(name));
    let (model, suite, phrasing, template, metric) = (model?, suite?, phrasing?, template?, metric?);
    let (shots, value) = (rows.ints("shots")?, rows.floats("value")?);
    let (low, high) = (rows.floats("low")?, rows.floats("high")?);
    let of = |name: &str| (0..rows.len()).filter(|&i| metric[i] == name).collect::<Vec<_>>();
    let accuracy = of("accuracy");
    let distinct = |column: &[String]| {
        let mut found: Vec<String> = Vec::new();
        for &i in &accuracy {
            if !found.contains(&column[i]) {
                found.push(column[i].clone());
            }
        }
        found
    };
    let (models, suites, phrasings) = (distinct(&model), distinct(&suite), distinct(&phrasing));
    let whole = |i: &&usize| template[**i].is_empty();
    let name = |i: usize| {
        let parts = [(&models, &model), (&suites, &suite), (&phrasings, &phrasing)];
        let told: Vec<&str> = parts.iter().filter(|(all, _)| all.len() > 1).map(|(_, own)| own[i].as_str()).collect();
        if told.is_empty() { suite[i].clone() } else { told.join(", ") }
    };
    let title = match suites.as_slice() {
        [one] => format!("Answers to {one}"),
        _ => "Answers to suites of questions".into(),
    };
    if accuracy.iter().any(|&i| shots[i] != shots[accuracy[0]]) {
        let mut lines: Vec<Line> = Vec::new();
        for &i in accuracy.iter().filter(whole) {
            let name = name(i);
            let at = lines.iter().position(|line| line.name == name).unwrap_or(lines.len());
            if at == lines.len() {
                lines.push(Line { name, ..Line::default() });
            }
            lines[at].points.push((f64::from(shots[i]), value[i]));
            lines[at].spread.push((f64::from(shots[i]), low[i], high[i]));
        }
        let (x_name, y_name) = ("examples before the question".into(), "accuracy".into());
        return Ok(Lines { title, x_name, y_name, lines, x_labels: Vec::new() }.draw());
    }
    let single = suites.len() == 1 && phrasings.len() == 1 && accuracy.iter().any(|&i| !template[i].is_empty());
    let label = |i: usize| match (template[i].is_empty(), single) {
        (true, true) => "all templates".to_string(),
        (false, _) => template[i].clone(),
        _ if accuracy.iter().any(|&j| suite[j] == suite[i] && phrasing[j] != phrasing[i]) => {
            format!("{}, {}", suite[i], phrasing[i])
        }
        _ => suite[i].clone(),
    };
    let chance = of("chance");
    let mut dots: Vec<(String, Vec<Dot>)> = Vec::new();
    for &i in accuracy.iter().filter(|&&i| single || template[i].is_empty()) {
        let label = label(i);
        let at = dots.iter().position(|(own, _)| *own == label).unwrap_or(dots.len());
        if at == dots.len() {
            dots.push((label, Vec::new()));
        }
        let series = models.iter().position(|own| *own == model[i]).unwrap_or(0);
        let same = |j: &&usize| {
            (&model[**j], &suite[**j], &phrasing[**j], &template[**j])
                == (&model[i], &suite[i], &phrasing[i], &template[i])
        };
        let mark = chance.iter().find(same).map(|&j| value[j]);
        dots[at].1.push(Dot { series, value: value[i], low: low[i], high: high[i], mark });
    }
    Ok(Dots {
        title,
        note: "accuracy with bounds of 95 %; grey: what choosing blindly gets right".into(),
        value_name: "accuracy".into(),
        shares: true,
        series: models,
        rows: dots,
    }
    .draw())
}
