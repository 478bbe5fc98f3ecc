//! Results of a study.

use polars::prelude::*;
use toml::Value;

use super::canvas::Figure;
use super::charts::{Line, Lines};
use super::dots::{Dot, Dots};
use crate::error::{Error, Result, no_such};
use crate::study::{self, Drawing, Study, shown};

/// Values that reach over more than this are drawn at even distances, and so are two or three of them.
const WIDE: f64 = 20.0;

/// The results of a study's runs, `frame`: a line per combination of what else is varied where x is a number, else a row of dots.
///
/// None where several results would stand at one place, as the rows of most commands do, and the study does not say which count.
///
/// # Errors
/// [`Error::Request`] for columns that the results do not have, and for a `[figure]` that leaves several results at one place.
pub fn study(study: &Study, frame: &DataFrame) -> Result<Option<Figure>> {
    let (usual_y, usual_rows, own) = study::usual(&study.command);
    let columns: Vec<&str> = frame.columns().iter().map(|column| column.name().as_str()).collect();
    let known = |name: &str| match columns.contains(&name) {
        true => Ok(name.to_string()),
        false => Err(Error::request(no_such("column", name, columns.iter().copied()))),
    };
    let numeric = |name: &str| frame.column(name).is_ok_and(|column| column.dtype().is_primitive_numeric());
    let y = match &study.figure.y {
        Some(y) => known(y)?,
        None if columns.contains(&usual_y) => usual_y.to_string(),
        None => columns.iter().rev().find(|name| numeric(name)).map(|name| name.to_string()).unwrap_or_default(),
    };
    if !numeric(&y) {
        return Err(Error::request(format!("column `{y}` holds no numbers; [figure] y must name one that does")));
    }
    let mut wanted: Vec<(String, Value)> = Vec::new();
    for (name, value) in &study.figure.rows {
        wanted.push((known(name)?, value.clone()));
    }
    if wanted.is_empty() {
        wanted.extend(
            usual_rows
                .iter()
                .filter(|(name, _)| columns.contains(name))
                .map(|(name, value)| (name.to_string(), Value::String(value.to_string()))),
        );
    }
    let text = |name: &str, i: usize| -> Result<String> {
        Ok(match frame.column(name)?.get(i)? {
            AnyValue::Null => String::new(),
            AnyValue::String(text) => text.to_string(),
            AnyValue::Float64(x) => number_text(x),
            other => other.to_string(),
        })
    };
    let is = |name: &str, i: usize, value: &Value| -> Result<bool> {
        let cell = frame.column(name)?.get(i)?;
        let wanted = shown(value);
        // Numbers are compared as such, however they are written.
        Ok(match (cell.extract::<f64>().filter(|_| numeric(name)), wanted.parse::<f64>()) {
            (Some(own), Ok(wanted)) => own == wanted,
            _ => text(name, i)? == wanted,
        })
    };
    let mut rows = Vec::new();
    for i in 0..frame.height() {
        let fits = wanted.iter().map(|(name, value)| is(name, i, value)).collect::<Result<Vec<bool>>>()?;
        if fits.iter().all(|fits| *fits) {
            rows.push(i);
        }
    }
    if rows.is_empty() {
        return Err(Error::request("no row of the results is as [figure] where wants it"));
    }
    // What tells rows apart: what was varied, and the command's own columns.
    let mut keys: Vec<String> = study.varied().iter().map(|key| study::column_of(key, &columns)).collect();
    for name in own {
        if !keys.iter().any(|key| key == name) {
            keys.push(name.to_string());
        }
    }
    let distinct = |key: &str| -> Result<usize> {
        Ok(rows.iter().map(|&i| text(key, i)).collect::<Result<std::collections::BTreeSet<_>>>()?.len())
    };
    let mut varied = Vec::new();
    for key in keys.into_iter().filter(|key| columns.contains(&key.as_str())) {
        if distinct(&key)? > 1 {
            varied.push(key);
        }
    }
    let x = match &study.figure.x {
        Some(x) => Some(known(x)?),
        // Of numbers, the one with the most values.
        None => {
            let numbers = varied.iter().filter(|key| numeric(key)).map(|key| Ok((distinct(key)?, key)));
            let numbers = numbers.collect::<Result<Vec<_>>>()?;
            let most = numbers.iter().map(|(count, _)| *count).max();
            numbers.iter().find(|(count, _)| Some(*count) == most).map(|(_, key)| *key).or(varied.first()).cloned()
        }
    };
    // What follows from x, or from what is told already, is not told again.
    let follows = |key: &str, from: &str| -> Result<bool> {
        let pairs = rows.iter().map(|&i| Ok((text(from, i)?, text(key, i)?)));
        let pairs = pairs.collect::<Result<std::collections::BTreeSet<_>>>()?;
        Ok(pairs.len() == distinct(from)?)
    };
    let mut series: Vec<&String> = Vec::new();
    for key in varied.iter().filter(|key| Some(*key) != x.as_ref()) {
        let mut told = x.iter().chain(series.iter().copied());
        if !told.try_fold(false, |told, from| Ok::<bool, Error>(told || follows(key, from)?))? {
            series.push(key);
        }
    }
    let floats = |name: &str| -> Result<Vec<f64>> {
        let column = frame.column(name)?.cast(&DataType::Float64)?;
        Ok(column.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    };
    let value = floats(&y)?;
    let bounded = y == "value" && columns.contains(&"low") && columns.contains(&"high");
    let none = vec![f64::NAN; frame.height()];
    let (low, high) = if bounded { (floats("low")?, floats("high")?) } else { (none.clone(), none) };
    let name = |i: usize| -> Result<String> {
        // A number does not say what it is of.
        let part = |key: &&String| Ok(if numeric(key) { format!("{key} {}", text(key, i)?) } else { text(key, i)? });
        Ok(series.iter().map(part).collect::<Result<Vec<_>>>()?.join(", "))
    };
    let mut places = std::collections::BTreeSet::new();
    for &i in &rows {
        let at = x.as_ref().map_or(Ok(String::new()), |x| text(x, i))?;
        if !places.insert((at, name(i)?)) {
            let Drawing { x: None, y: None, rows } = &study.figure else { return Err(several()) };
            return if rows.is_empty() { Ok(None) } else { Err(several()) };
        }
    }
    let y_name = match wanted.iter().find(|(name, _)| name == "metric") {
        Some((_, metric)) if y == "value" => shown(metric),
        _ => y.clone(),
    };
    if let Some(x) = x.as_ref().filter(|x| numeric(x)) {
        return Ok(Some(lines(study, &rows, (x, &floats(x)?), (&y_name, &value), (&low, &high), &name)?));
    }
    let mut names: Vec<String> = Vec::new();
    let mut dots: Vec<(String, Vec<Dot>)> = Vec::new();
    for &i in &rows {
        let (label, name) = (x.as_ref().map_or(Ok(String::new()), |x| text(x, i))?, name(i)?);
        let at = place(&mut dots, &label);
        let series = names.iter().position(|own| *own == name).unwrap_or(names.len());
        if series == names.len() {
            names.push(name);
        }
        dots[at].1.push(Dot { series, value: value[i], low: low[i], high: high[i], mark: None });
    }
    let shares = bounded && rows.iter().all(|&i| low[i] >= 0.0 && high[i] <= 1.0);
    let dots =
        Dots { title: study.about.clone(), note: String::new(), value_name: y_name, shares, series: names, rows: dots };
    Ok(Some(dots.draw()))
}

fn lines(
    study: &Study,
    rows: &[usize],
    (x_name, x): (&str, &[f64]),
    (y_name, y): (&str, &[f64]),
    (low, high): (&[f64], &[f64]),
    name: &dyn Fn(usize) -> Result<String>,
) -> Result<Figure> {
    let mut steps: Vec<f64> = rows.iter().map(|&i| x[i]).filter(|x| x.is_finite()).collect();
    steps.sort_unstable_by(f64::total_cmp);
    steps.dedup();
    let wide =
        steps.len() < 4 || matches!((steps.first(), steps.last()), (Some(a), Some(b)) if *a > 0.0 && b / a > WIDE);
    let at = |x: f64| if wide { steps.iter().position(|step| *step == x).map_or(f64::NAN, |i| i as f64) } else { x };
    let mut lines: Vec<Line> = Vec::new();
    for &i in rows {
        let name = name(i)?;
        let line = lines.iter().position(|line| line.name == name).unwrap_or(lines.len());
        if line == lines.len() {
            lines.push(Line { name, ..Line::default() });
        }
        lines[line].points.push((at(x[i]), y[i]));
        if low[i].is_finite() && high[i].is_finite() {
            lines[line].spread.push((at(x[i]), low[i], high[i]));
        }
    }
    lines.iter_mut().for_each(|line| line.points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0)));
    let x_labels = if wide { steps.iter().map(|step| number_text(*step)).collect() } else { Vec::new() };
    let (title, x_name, y_name) = (study.about.clone(), x_name.to_string(), y_name.to_string());
    Ok(Lines { title, x_name, y_name, lines, x_labels }.draw())
}

fn several() -> Error {
    Error::request("several results stand at one place of the figure: say in [figure] where which of them count")
}

fn place(dots: &mut Vec<(String, Vec<Dot>)>, label: &str) -> usize {
    let found = dots.iter().position(|(own, _)| own == label);
    found.unwrap_or_else(|| {
        dots.push((label.to_string(), Vec::new()));
        dots.len() - 1
    })
}

/// A number as short as it is exact.
fn number_text(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-2 || x.abs() >= 1e6) { format!("{x:e}") } else { format!("{x}") }
}
