use std::path::PathBuf;

use interp::error::no_such;
use interp::labelled::{Kind, Labelled, Row};
use interp::probe::saved::{self, Saved};
use interp::probe::{self, Evaluated, Kept};
use interp::{Error, Plan, Result, Site, figure};
use ndarray::Axis;
use polars::prelude::DataFrame;
use serde_json::json;

use super::super::args::Global;
use super::super::bench::Bench;
use super::super::report::{How, Outcome, Report};
use super::super::{note, request};
use super::source;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory that `probe train` wrote.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    source: source::Args,
    /// Which of the saved probes, by their task [default: those of the task that is named, or the only ones].
    #[arg(long, value_name = "NAME")]
    probe: Option<String>,
    /// Sites by name or pattern, several with commas [default: all that were saved].
    #[arg(long, value_name = "SITES", value_delimiter = ',')]
    site: Vec<String>,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let sources = args.source.sources()?;
    let [source] = sources[..] else { return Err(request("probe eval judges on one task at a time")) };
    let mut bench = Bench::open(global)?;
    let opened = args.source.open(source, &mut bench, global)?;
    let all = saved::load(&args.dir, bench.config(), &opened.stamp)?;
    let saved = chosen(&all, args.probe.as_deref(), &opened.name)?;
    if (opened.kind == Kind::Value) != saved.classes.is_none()
        && (opened.kind == Kind::Value || args.source.tasks.len() == 1)
    {
        let (probes, labels) = if saved.classes.is_some() { ("classes", "numbers") } else { ("numbers", "classes") };
        return Err(request(format!("the probes of `{}` predict {probes}, and the labels are {labels}", saved.name)));
    }
    let kept = at_sites(saved, &args.site, bench.config().n_layer)?;
    let sites: Vec<Site> = kept.iter().map(|kept| kept.site).collect();
    let report = Report::begin("probe-eval", global, &format!("{} {}", saved.name, args.source.name()))?;
    let name = opened.name.clone();
    let given = args.source.read(opened, &sites, &bench, None, global)?;
    let fresh: Vec<usize> = (0..given.rows.len()).filter(|row| !saved.learned_from(&given.rows[*row])).collect();
    let learned = given.rows.len() - fresh.len();
    if fresh.is_empty() {
        return Err(request(format!(
            "all {learned} rows are of groups that the probes of `{}` were fitted on: give others",
            saved.name
        )));
    }
    if learned > 0 {
        note(
            global.quiet,
            &format!(
                "note: {learned} of {} rows are left out: the probes were fitted on their groups or texts",
                given.rows.len()
            ),
        );
    }
    let rows: Vec<Row> = fresh.iter().map(|row| given.rows[*row].clone()).collect();
    let labels = Labelled::known(saved.classes.as_deref(), &rows)?.labels;
    let features: Vec<_> = given.features.iter().map(|x| x.select(Axis(0), &fresh)).collect();
    let (frame, found) = probe::evaluated(&saved.name, &kept, &features, &labels, global.seed)?;
    let confusion = |(site, own): (&Site, &Evaluated)| json!({ "site": site.to_string(), "counts": own.confusion.as_ref().map(|confusion| &confusion.counts) });
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::evaluated(&frame, saved.classes.as_deref(), &found)?,
        summary: summary(&frame, saved, &kept)?,
        frame,
        how: How {
            plan: &Plan::new(),
            applied: Vec::new(),
            tokens: None,
            extra: json!({
                "probes": args.dir, "probe": saved.name, "judged_on": name, "rows": rows.len(), "left_out": learned,
                "classes": saved.classes, "confusion": sites.iter().zip(&found).map(confusion).collect::<Vec<_>>(),
            }),
        },
    };
    report.finish(global, bench, outcome)
}

/// The probes of one task.
pub fn chosen<'a>(all: &'a [Saved], asked: Option<&str>, like: &str) -> Result<&'a Saved> {
    let named = |name: &str| all.iter().find(|saved| saved.name == name);
    let names = || all.iter().map(|saved| saved.name.as_str()).collect::<Vec<_>>().join(", ");
    match (asked, all) {
        (Some(name), _) => named(name).ok_or_else(|| {
            request(no_such("task with saved probes", name, all.iter().map(|saved| saved.name.as_str())))
        }),
        (None, [only]) => Ok(only),
        (None, _) => named(like)
            .ok_or_else(|| request(format!("there are probes of several tasks, {}; name one with --probe", names()))),
    }
}

/// The probes at some sites; all of them where none is named.
pub fn at_sites<'a>(saved: &'a Saved, patterns: &[String], layers: usize) -> Result<Vec<&'a Kept>> {
    if patterns.is_empty() {
        return Ok(saved.kept.iter().collect());
    }
    let sites = Site::matching_all(patterns, layers)?;
    let find = |site: &Site| {
        saved.kept.iter().find(|kept| kept.site == *site).ok_or_else(|| {
            let have: Vec<String> = saved.kept.iter().map(|kept| kept.site.to_string()).collect();
            Error::Request(format!("`{}` has no probe at {site}; it has {}", saved.name, have.join(", ")))
        })
    };
    sites.iter().map(find).collect()
}

/// The score at each site, beside the one that was kept with the probe.
fn summary(frame: &DataFrame, saved: &Saved, kept: &[&Kept]) -> Result<String> {
    let (site, metric) = (frame.column("site")?.str()?, frame.column("metric")?.str()?);
    let value = frame.column("value")?.f64()?;
    let names = match saved.classes {
        Some(_) => ["accuracy", "macro_f1", "auc", "calibration_error"],
        None => ["r2", "rmse", "mae", "pearson"],
    };
    let head: String = names.iter().map(|name| format!("{name:>19}")).collect();
    let mut lines =
        vec![format!("{}: {} when it was kept", saved.name, names[0]), format!("  {:<14}{:>10}{head}", "site", "kept")];
    for own in kept {
        let name = own.site.to_string();
        let of = |wanted: &str| {
            let row = (0..frame.height()).find(|&i| site.get(i) == Some(&name) && metric.get(i) == Some(wanted));
            row.and_then(|row| value.get(row)).map_or("–".to_string(), |x| format!("{x:.3}"))
        };
        let cells: String = names.iter().map(|name| format!("{:>19}", of(name))).collect();
        let before = own.scores.get(names[0]).map_or("–".to_string(), |x| format!("{x:.3}"));
        lines.push(format!("  {name:<14}{before:>10}{cells}"));
    }
    Ok(lines.join("\n"))
}
