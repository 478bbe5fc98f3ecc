use interp::labelled::Labelled;
use interp::probe::{self, View};
use interp::tokens::Tokens;
use interp::{Error, Plan, Result, Site, figure, gather};
use polars::prelude::DataFrame;
use serde_json::json;

use super::super::args::Global;
use super::super::bench::Bench;
use super::super::report::{How, Outcome, Report};
use super::super::request;
use super::source;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: source::Args,
    /// Sites by name or pattern, several with commas.
    #[arg(long, value_name = "SITES", value_delimiter = ',', required = true)]
    site: Vec<String>,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let sources = args.source.sources()?;
    let [source] = sources[..] else { return Err(request("probe view shows one task at a time")) };
    let mut bench = Bench::open(global)?;
    let sites = Site::matching_all(&args.site, bench.config().n_layer)?;
    gather::check_sites(&sites)?;
    let report = Report::begin("probe-view", global, &format!("{} {}", args.source.name(), args.site.join(" ")))?;
    let opened = args.source.open(source, &mut bench, global)?;
    let (name, kind) = (opened.name.clone(), opened.kind);
    let given = args.source.read(opened, &sites, &bench, None, global)?;
    let rows = Labelled::new(kind, &given.rows)?;
    let views = sites
        .iter()
        .zip(&given.features)
        .map(|(site, x)| probe::view(&name, *site, x, &rows, given.tokens.as_ref()))
        .collect::<Result<Vec<_>>>()?;
    let mut frame: Option<DataFrame> = None;
    for view in &views {
        interp::frame::append(&mut frame, view.frame.clone())?;
    }
    let told = |(site, view): (&Site, &View)| json!({ "site": site.to_string(), "explained": view.explained, "adjusted_rand_index": view.agreement });
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::plane(&views)?,
        summary: summary(&name, &sites, &views),
        frame: frame.ok_or_else(|| Error::Bug("no site".into()))?,
        how: How {
            plan: &Plan::new(),
            applied: Vec::new(),
            tokens: given.tokens.as_ref().filter(|tokens: &&Tokens| tokens.count() <= 10_000),
            extra: json!({ "probe": name, "rows": rows.labels.len(), "views": sites.iter().zip(&views).map(told).collect::<Vec<_>>() }),
        },
    };
    report.finish(global, bench, outcome)
}

fn summary(name: &str, sites: &[Site], views: &[View]) -> String {
    let mut lines =
        vec![format!("{name}: variance along two components, and whether k-means finds the labels (0 chance, 1 all)")];
    for (site, view) in sites.iter().zip(views) {
        let [one, two] = view.explained.map(|share| 100.0 * share);
        let agreement = view.agreement.map_or("–".to_string(), |index| format!("{index:.3}"));
        lines.push(format!("  {:<14}{one:>6.1} % {two:>6.1} %   adjusted Rand index {agreement}", site.to_string()));
    }
    lines.join("\n")
}
