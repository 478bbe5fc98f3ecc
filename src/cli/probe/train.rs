use interp::labelled::Labelled;
use interp::probe::saved::{self, Saved};
use interp::probe::{self, Options, Study, Summary, Trial};
use interp::{Error, Gpt2, Plan, Result, figure, initial, limits};
use polars::prelude::DataFrame;
use serde_json::json;

use super::super::args::Global;
use super::super::bench::Bench;
use super::super::number::{long, real, whole};
use super::super::output::{bar, bounded, counted};
use super::super::report::{How, Outcome, Report};
use super::super::{doubled, note, request};
use super::source;

#[derive(clap::Args, Debug)]
#[group(id = "training")]
pub struct Args {
    #[command(flatten)]
    source: source::Args,
    /// Sites by name or pattern, several with commas [default: what the task says, or resid_pre.0, resid_post.*; of a
    /// dataset, all].
    #[arg(long, value_name = "SITES", value_delimiter = ',')]
    site: Vec<String>,
    /// Splits, each with its own control task.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = long(1, 100))]
    seeds: u64,
    /// Share of the rows that probes are judged on.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, value_parser = real(0.0, 1.0))]
    test_share: f64,
    /// Strengths of the penalty (1/C in scikit-learn), several with commas; one of them is chosen by cross-validation.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "0.1,1,10,100,1000", value_parser = real(0.0, 1e12))]
    alpha: Vec<f64>,
    /// Folds of that cross-validation.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole(2, 100_usize))]
    folds: usize,
    /// Steps of a fit at most.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole(1, limits::ITERATIONS))]
    max_iterations: usize,
    /// Leave out the model of the same shape that has learned nothing.
    #[arg(long)]
    no_random_model: bool,
    /// Prompts at most in which probes' directions are taken out, where the task has answers; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole(0, limits::PAIRS))]
    causal: usize,
}

/// Random directions that each move is compared with.
const DRAWS: u64 = 2;

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let sources = args.source.sources()?;
    let names: Vec<String> = args.source.tasks.iter().map(|name| source::short(name)).collect();
    if let Some(twice) = doubled(&names) {
        return Err(request(format!("there are two tasks `{twice}`: probes are kept by these names")));
    }
    let mut bench = Bench::open(global)?;
    let mut options = Options {
        alphas: args.alpha.clone(),
        folds: args.folds,
        test_share: args.test_share,
        seeds: args.seeds,
        seed: global.seed,
        ..Options::default()
    };
    options.fitting.max_iterations = args.max_iterations;
    let untrained = if args.no_random_model || args.source.data.is_some() {
        None
    } else {
        let draw = initial::draw(bench.config(), global.seed);
        let like = |name: &str| Ok(draw(name)?.to_device(bench.model.device())?.to_dtype(bench.dtype)?);
        Some(Gpt2::new(bench.config().clone(), like)?)
    };
    if args.source.data.is_some() && !args.no_random_model {
        note(
            global.quiet,
            "note: no model that has learned nothing: a dataset has the activations of its own model only",
        );
    }
    let report = Report::begin("probe", global, &args.source.name())?;
    let (mut frame, mut told, mut saved, mut stamp): (Option<DataFrame>, _, _, _) =
        (None, Vec::new(), Vec::new(), None);
    for source in sources {
        let opened = args.source.open(source, &mut bench, global)?;
        let (name, kind) = (opened.name.clone(), opened.kind);
        let sites = opened.sites(&args.site, bench.config().n_layer)?;
        stamp = Some(opened.stamp.clone());
        let given = args.source.read(opened, &sites, &bench, untrained.as_ref(), global)?;
        let rows = Labelled::new(kind, &given.rows)?;
        let random = given.random.as_deref();
        let study = Study { name: &name, sites: &sites, features: &given.features, random, rows: &rows };
        let bar = bar(global.quiet, 0, "{msg}: {pos}/{len} [{wide_bar}] {eta} left");
        bar.set_message(format!("{name}, probes"));
        let studied = probe::layers(&study, &options, &mut counted(&bar))?;
        let used = match (&given.tokens, &given.targets, args.causal) {
            (Some(tokens), Some(targets), prompts) if prompts > 0 => {
                bar.set_message(format!("{name}, answers without it"));
                let trial = Trial { prompts, draws: DRAWS, seed: global.seed };
                Some(probe::used(&bench.model, (tokens, targets), &study, &studied, &trial, &mut counted(&bar))?)
            }
            _ => None,
        };
        bar.finish_and_clear();
        told.push(json!({
            "probe": name, "prompts": distinct(&rows.prompt), "rows": rows.labels.len(), "groups": rows.group_names.len(),
            "control_types": distinct(&rows.controls), "causal": used.is_some(),
        }));
        saved.push(Saved::of(&study, &studied));
        interp::frame::append(&mut frame, studied.frame)?;
        used.map(|used| interp::frame::append(&mut frame, used)).transpose()?;
    }
    let (Some(frame), Some(stamp)) = (frame, stamp) else { return Err(Error::Bug("no task".into())) };
    bench.source.digests()?; // weights that are not what they should be leave no probes
    saved::save(report.dir(), &stamp, &saved)?;
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::probes(&frame)?,
        summary: summary(&Summary::of(&frame)?),
        frame,
        how: How {
            plan: &Plan::new(),
            applied: Vec::new(),
            tokens: None,
            extra: json!({
                "probes": told, "seeds": options.seeds, "test_share": options.test_share,
                "alphas": options.alphas, "folds": options.folds, "max_iterations": options.fitting.max_iterations,
                "tolerance": options.fitting.tolerance, "random_model": untrained.is_some(), "causal": args.causal,
            }),
        },
    };
    report.finish(global, bench, outcome)
}

fn distinct(codes: &[u32]) -> usize {
    codes.iter().collect::<std::collections::BTreeSet<_>>().len()
}

/// A table per task: what each site says, and what it must be held against.
fn summary(all: &Summary) -> String {
    let mut lines = Vec::new();
    for name in all.probes() {
        let metric = all.score(&name);
        lines.push(format!("{name}: {metric} on rows that were not fitted (95 % over splits)"));
        lines.push(format!(
            "  {:<14}{:>22}{:>10}{:>12}{:>10}{:>10}{:>10}{:>12}",
            "site", "probe", "control", "selectivity", "random", "shuffled", "majority", "compression"
        ));
        let get = |split: &str, metric: &str, site: usize| all.get(&name, split, metric)?.get(&site).copied();
        for (i, site) in all.sites(&name).iter().enumerate() {
            let probe = get("test", metric, i).map_or(String::new(), bounded);
            let cell = |split: &str, metric: &str| match get(split, metric, i) {
                Some(interval) => format!("{:.3}", interval.mean),
                None => "–".into(),
            };
            lines.push(format!(
                "  {site:<14}{probe:>22}{:>10}{:>12}{:>10}{:>10}{:>10}{:>12}",
                cell("control", metric),
                cell("test", "selectivity"),
                cell("random", metric),
                cell("shuffled", metric),
                cell("majority", metric),
                cell("all", "compression"),
            ));
        }
        lines.extend(causal(all, &name));
    }
    lines.join("\n")
}

/// What the model answers without what the probes read, if it was asked.
fn causal(all: &Summary, name: &str) -> Vec<String> {
    const MOVES: [(&str, &str); 7] = [
        ("clean", "clean"),
        ("removed", "removed"),
        ("random_removed", "random"),
        ("flipped", "flipped"),
        ("random_flipped", "random"),
        ("mean_flipped", "means swapped"),
        ("random_mean_flipped", "random"),
    ];
    let there: Vec<_> = MOVES.iter().filter(|(split, _)| all.get(name, split, "logit_diff").is_some()).collect();
    if there.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("{name}: logit of the answer over the wrong one, with the activation there moved")];
    let head: String = there.iter().map(|(_, title)| format!("{title:>15}")).collect();
    lines.push(format!("  {:<14}{head}", "site"));
    for (i, site) in all.sites(name).iter().enumerate() {
        let cell = |split: &str| all.get(name, split, "logit_diff").and_then(|of| of.get(&i).map(|of| of.mean));
        if cell("clean").is_some() {
            let cells = there.iter().map(|(split, _)| match cell(split) {
                Some(value) => format!("{value:>+15.2}"),
                None => format!("{:>15}", "–"),
            });
            lines.push(format!("  {site:<14}{}", cells.collect::<String>()));
        }
    }
    lines
}
