use std::collections::BTreeMap;
use std::path::PathBuf;

use interp::oracle::Oracle;
use interp::verify::{self, Compared, Verification};
use interp::{Error, Plan, Result, figure};
use serde_json::json;

use super::args::Global;
use super::bench::Bench;
use super::output::{bar, counted};
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Figures of TransformerLens's notebooks as JSON: a file, or a directory of them.
    #[arg(long, value_name = "PATH")]
    oracle: PathBuf,
    /// The largest difference that passes.
    #[arg(long, value_name = "X", default_value_t = 1e-4)]
    gate: f64,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    if !(args.gate > 0.0 && args.gate.is_finite()) {
        return Err(request(format!("a gate of {} lets nothing pass or everything; give a small number", args.gate)));
    }
    let oracles = Oracle::read_all(&args.oracle)?;
    let bench = Bench::open(global)?;
    let config = bench.config().clone();
    let verification = Verification::new(&config, bench.tokenizer.as_ref(), &oracles)?;
    if verification.count() == 0 {
        return Err(request(verification.why_nothing()));
    }
    let memory = bench.room(global)?;
    let name = format!("{} {}", bench.source.name, args.oracle.display());
    let report = Report::begin("verify", global, &name)?;
    let bar = bar(global.quiet, 0, "{pos}/{len} cells [{wide_bar}] {per_sec}, {eta} left");
    let compared = verification.run(&bench.model, memory, &mut counted(&bar))?;
    bar.finish_and_clear();
    let frame = verify::frame(&compared, args.gate)?;
    let failed: Vec<&Compared> = compared.iter().filter(|one| one.passed(args.gate) == Some(false)).collect();
    let fault = failed.first().and_then(|one| {
        let difference = one.difference.as_ref().ok()?;
        let what = format!(
            "{} differs by {:.1e} at {}, over the gate of {:e}; {} of {} matrices do",
            one.name(),
            difference.largest,
            difference.at,
            args.gate,
            failed.len(),
            verification.count()
        );
        Some(Error::Data { path: oracles[one.oracle].path.clone(), what })
    });
    let extra = json!({
        "oracles": oracles.iter().map(|oracle| oracle.path.display().to_string()).collect::<Vec<_>>(),
        "gate": args.gate, "compared": verification.count(), "failed": failed.len(),
    });
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::verified(&frame)?,
        summary: summary(&compared, args.gate),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: None, extra },
    };
    report.finish(global, bench, outcome)?;
    fault.map_or(Ok(()), Err)
}

/// A line per matrix that was compared, then why others were not.
fn summary(compared: &[Compared], gate: f64) -> String {
    let mut lines = Vec::new();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    let mut passed = 0;
    for one in compared {
        match &one.difference {
            Ok(difference) => {
                let ok = difference.largest <= gate;
                passed += usize::from(ok);
                let word = if ok { "pass" } else { "FAIL" };
                let (largest, count, at) = (difference.largest, difference.count, &difference.at);
                lines.push(format!("  {word}  {largest:.1e}  of {count:>5} values  {}  (at {at})", one.name()));
            }
            Err(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    lines.insert(0, format!("{passed} of {} matrices are within {gate:e} of what was published", lines.len()));
    if !reasons.is_empty() {
        lines.push(format!("not compared: {}", reasons.values().sum::<usize>()));
        lines.extend(reasons.iter().map(|(reason, count)| format!("  {count:>3}  {reason}")));
    }
    lines.join("\n")
}
