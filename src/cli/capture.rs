use interp::capture::{self, Layout};
use interp::plan::Applied;
use interp::site::Site;
use interp::{Error, LogitsAt, Result, figure, frame, memory};
use polars::prelude::{ChunkCompareEq, DataFrame};
use serde_json::json;

use super::args::{Edits, Format, Global, Text};
use super::bench::{Bench, batches};
use super::note;
use super::output::{object, print, say};
use super::report::{How, Outcome, Report};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Sites, such as resid_post.3, blocks.*.hook_resid_post, z.0-5 or '*'; separated by commas.
    #[arg(long, value_name = "SITE", value_delimiter = ',', required = true)]
    site: Vec<String>,
    /// One row per token with an array column per site, instead of one row per element.
    #[arg(long)]
    wide: bool,
    /// Only say what it would amount to.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let mut bench = Bench::open(global)?;
    let config = bench.config().clone();
    let sites = Site::matching_all(&args.site, config.n_layer)?;
    let sites: Vec<Site> = Site::all(config.n_layer).filter(|site| sites.contains(site)).collect();
    let tokens = bench.tokens(global, &args.text)?;
    let mut plan = bench.plan(&args.edits)?.reads(sites.iter().copied());
    if !sites.contains(&Site::Logits) {
        plan = plan.logits(LogitsAt::None);
    }
    bench.check(&plan, &tokens)?;
    let layout = if args.wide { Layout::Wide } else { Layout::Tidy };
    let estimate = capture::estimate(&config, &tokens, &sites, layout);
    note(
        global.quiet,
        &format!(
            "{} sites, {} tokens: {} of activations, {} {}; at most {} of memory at once",
            estimate.sites,
            tokens.count(),
            memory::human(estimate.bytes),
            if args.wide { tokens.count() as u64 } else { estimate.rows },
            if args.wide { "wide rows" } else { "rows" },
            memory::human(estimate.memory),
        ),
    );
    // The weights are already here; a limit of the user's counts them too.
    let (limit, weights) = match global.memory {
        Some(limit) => (Some(limit), config.parameters() * bench.dtype.size_in_bytes() as u64),
        None => (None, 0),
    };
    let what = format!("capturing {} sites of {} tokens", sites.len(), tokens.count());
    memory::check(&what, estimate.memory + weights, limit).map_err(|e| match e {
        Error::TryAgain(what) => Error::TryAgain(format!("{what}; name fewer sites or shorten the text")),
        other => other,
    })?;
    if args.dry_run {
        return Ok(());
    }
    let report = Report::begin("capture", global, &format!("{} {}", args.site.join(" "), bench.name(&tokens)))?;
    let extra = json!({
        "sites": sites.iter().map(|site| site.long()).collect::<Vec<_>>(),
        "layout": if args.wide { "wide" } else { "tidy" },
        "bytes": estimate.bytes,
    });
    if args.wide {
        let (frame, applied) = bench.run(&plan, &tokens, |trace| {
            let values = sites.iter().map(|site| Ok((*site, trace.get(*site)?))).collect::<Result<Vec<_>>>()?;
            frame::wide(&values, trace.tokens())
        })?;
        let figure = wide_figure(&frame, &sites)?;
        let summary = format!("{} rows, one array column for each of {} sites", frame.height(), sites.len());
        let how = How { plan: &plan, applied, tokens: Some(&tokens), extra };
        let outcome = Outcome { frame, figure, page: Vec::new(), summary, how };
        return report.finish(global, bench, outcome);
    }
    bench.source.digests()?; // weights that are not what they should be leave no result
    let all = batches(&tokens);
    let mut summary: Option<DataFrame> = None;
    let mut applied = Vec::new();
    let mut kept = Vec::new();
    let mut rows_written = 0_u64;
    frame::save_parquet_stream(&report.dir().join("frame.parquet"), &capture::tidy_schema(&sites), |write| {
        for (first, batch) in all {
            let trace = capture::tidy(&bench.model, &batch, &plan, &sites, &mut |_, part| {
                if first == 0 {
                    frame::append(&mut summary, capture::summary(&part, &batch)?)?;
                }
                let part = frame::shift_prompts(part, first as u32)?;
                rows_written += part.height() as u64;
                if global.format != Format::Text {
                    kept.push(part.clone());
                }
                write(part)
            })?;
            applied = Applied::larger(std::mem::take(&mut applied), trace.edits());
        }
        Ok(())
    })?;
    bench.report_edits(&applied)?;
    let summary = summary.ok_or_else(|| Error::Bug("a capture without sites".into()))?;
    let figure = figure::capture(&summary, 0)?;
    let dir = report.out().display().to_string();
    let how = How { plan: &plan, applied, tokens: Some(&tokens), extra };
    let run = report.finish_files(global, bench, &figure, Vec::new(), how)?;
    match global.format {
        Format::Text => say(global, &format!("{rows_written} rows of {} sites\nwrote {dir}", sites.len())),
        Format::Json => print(&object(&[("run", run.to_string()), ("rows", frame::json_of(&kept)?)])),
        Format::Csv => {
            print(&kept.first().map_or(String::new(), |part| global.csv().names(part)))?;
            kept.iter().try_for_each(|part| print(&global.csv().rows(part)?))
        }
    }
}

/// The root mean square of the wide columns of the first prompt.
fn wide_figure(wide: &DataFrame, sites: &[Site]) -> Result<figure::Figure> {
    let first = wide.filter(&wide.column("prompt")?.u32()?.equal(0))?;
    let mut stacked: Option<DataFrame> = None;
    for site in sites {
        let arrays = first.column(&site.to_string())?.array()?.clone();
        let flat: Vec<f32> = arrays.get_inner().f32()?.into_no_null_iter().collect();
        let rms: Vec<f64> = flat
            .chunks(arrays.width())
            .map(|row| (row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / row.len() as f64).sqrt())
            .collect();
        let part = polars::df!(
            "site" => vec![site.to_string(); rms.len()],
            "prompt" => first.column("prompt")?.u32()?.clone(),
            "pos" => first.column("pos")?.u32()?.clone(),
            "token" => first.column("token")?.str()?.clone(),
            "rms" => rms,
        )?;
        frame::append(&mut stacked, part)?;
    }
    figure::capture(&stacked.ok_or_else(|| Error::Bug("a capture without sites".into()))?, 0)
}
