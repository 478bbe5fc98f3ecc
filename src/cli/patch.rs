use std::ops::Range;
use std::time::Instant;

use interp::effect::{Scale, chance_of_span, why_meaningless};
use interp::frame::save_parquet;
use interp::metric::Metric;
use interp::pair::{Noise, Pair, Question};
use interp::pairset::Drawn;
use interp::patch::{self, Direction, Options, Patched};
use interp::sweep::Sweep;
use interp::{Plan, Result, Tokens, figure, limits, memory, page, stats};
use serde_json::{Value, json};

use super::args::Global;
use super::bench::Bench;
use super::calibrate::Calibration;
use super::cost::{self, Estimate};
use super::number::{real, whole};
use super::output::{bar, counted};
use super::pairs::{PairArgs, Pairs};
use super::report::{How, Outcome, Report};
use super::{note, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pairs: PairArgs,
    /// Instead of --corrupt: the part of the clean prompt whose embeddings get noise, as in causal tracing.
    #[arg(long, value_name = "TEXT", requires = "clean", conflicts_with = "corrupt")]
    subject: Option<String>,
    /// Standard deviation of that noise, in those of the embedding matrix [default: 3].
    #[arg(long, value_name = "X", value_parser = real(0.0, 1e6))]
    noise: Option<f64>,
    /// Runs with noise of their own [default: 10].
    #[arg(long, value_name = "N", value_parser = whole(1, limits::NOISE_SAMPLES))]
    noise_samples: Option<usize>,
    /// What to patch, by TransformerLens's names: resid_pre, attn_head_out_all_pos, block_every …; several with commas.
    #[arg(long, value_name = "NAMES", default_value = "resid_pre", value_delimiter = ',')]
    sweep: Vec<String>,
    /// Only these layers: 5, -1 for the last, 3-7.
    #[arg(long, value_name = "LAYERS")]
    layer: Option<String>,
    /// Patch this many layers around each one at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1, limits::LAYERS))]
    window: usize,
    /// What to measure: logit_diff, prob, prob_diff, logprob, rank, kl; several with commas. The first is drawn.
    #[arg(long, value_name = "NAMES", default_value = "logit_diff", value_delimiter = ',')]
    metric: Vec<String>,
    /// denoise puts clean activations into the corrupted run, noise corrupted ones into the clean run.
    #[arg(long, value_enum, default_value = "denoise")]
    direction: Way,
    /// Estimate all cells at once from gradients instead of patching them (attribution patching).
    #[arg(long, conflicts_with = "dry_run")]
    attribution: bool,
    /// Patch the strongest K cells in truth as well, and all of resid_pre and mlp_out, where estimates are known to fail; of the
    /// first metric and the first ten pairs.
    #[arg(long, value_name = "K", requires = "attribution", value_parser = whole(1, limits::RANKED))]
    calibrate: Option<usize>,
    /// Only say how long it would take and how much memory, from one pair that is patched and forgotten.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    Denoise,
    Noise,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let mut sweeps: Vec<Sweep> = Vec::new();
    for name in &args.sweep {
        sweeps.extend(Sweep::named(name)?.into_iter().map(|sweep| sweep.windowed(args.window)));
    }
    if args.attribution && args.window > 1 {
        return Err(request(
            "--attribution estimates one layer at a time: of several that depend on each other, gradients count twice",
        ));
    }
    if args.attribution && args.direction == Way::Noise && args.metric.iter().any(|name| name == "kl") {
        return Err(request("kl has no slope in the clean run; estimate it with --direction denoise, or patch"));
    }
    let metrics = args.metric.iter().map(|name| Metric::named(name)).collect::<Result<Vec<_>>>()?;
    let direction = if args.direction == Way::Denoise { Direction::Denoise } else { Direction::Noise };
    if args.subject.is_none() && (args.noise.is_some() || args.noise_samples.is_some()) {
        return Err(request("--noise and --noise-samples go with --subject, the text whose embeddings get the noise"));
    }
    let asked = args.pairs.read(args.subject.is_none())?;
    let bench = Bench::open(global)?;
    let layers = args.layer.as_deref().map(|layers| super::layer_range(layers, bench.config().n_layer)).transpose()?;
    let options = Options { direction, layers, memory: bench.room(global)? };
    let found = match &args.subject {
        Some(subject) => noised(&args, subject, &bench, global)?,
        None => asked.pairs(&bench, global, &args.pairs.draw)?,
    };
    let pairs = &found.pairs;
    patch::check(pairs, sweeps.iter())?;
    let needed = patch::memory(bench.config(), pairs, &sweeps, options, metrics.len());
    memory::check("the cells of all sweeps, with their frame,", needed, options.memory)?;
    if args.dry_run {
        return estimate(&bench, pairs, &sweeps, options, global);
    }
    let how = if args.attribution { "attribution " } else { "" };
    let name = format!("{how}{} {} {}", args.sweep.join(" "), direction.name(), asked.name);
    let report = Report::begin("patch", global, &name)?;
    let start = Instant::now();
    let patched = match args.attribution {
        true => pairs
            .iter()
            .map(|pair| patch::attribute(&bench.model, pair, &sweeps, &metrics, options))
            .collect::<Result<_>>()?,
        false => run_all(&bench, pairs, &sweeps, options, global)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let calibration = args.calibrate.map(|k| {
        let bar = bar(global.quiet, 0, "{pos}/{len} pairs patched in truth [{wide_bar}] {per_sec}, {eta} left");
        let options = (k, options);
        Calibration::of(&bench.model, pairs, &sweeps, metrics[0], options, &mut counted(&bar))
    });
    let calibration = calibration.transpose()?;
    let frame = patch::frame(pairs, &patched, &metrics, global.seed)?;
    let tokens = found.tokens()?;
    let names: Vec<&str> = sweeps.iter().map(|sweep| sweep.name).collect();
    let mut extra = found.record();
    extra["sweeps"] = json!(names);
    extra["window"] = json!(args.window);
    extra["direction"] = json!(direction.name());
    extra["metrics"] = json!(metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>());
    extra["attribution"] = json!(args.attribution);
    if let Some(calibration) = &calibration {
        extra["calibration"] = calibration.record();
        save_parquet(&mut calibration.frame()?, &report.dir().join("calibration.parquet"))?;
    }
    extra["controls"] = patched
        .iter()
        .map(|p| json!({ "identity": p.identity, "restored": p.restored, "equal_cells": p.equal }))
        .collect();
    if let Some(noise) = pairs[0].noise() {
        extra["noise"] = json!({ "positions": [noise.positions.start, noise.positions.end], "scale": noise.scale });
    }
    extra["scales"] = metrics.iter().map(|metric| scale(&patched, *metric)).collect();
    extra["sweep_seconds"] = json!(seconds);
    // The cells of heads lead to what these heads look at.
    let clean = bench.linked(pairs[0].clean())?.map(|block| block.titled("Attention in the first clean prompt"));
    let (mut chart, mut maps) =
        (figure::patch_chart(&frame, &names, metrics[0].name())?, page::patch(&frame, &names, metrics[0].name())?);
    if args.attribution {
        let title = "Attribution patching: estimates from gradients";
        (chart, maps) = (chart.titled(title), maps.titled(title));
    }
    let outcome = Outcome {
        page: std::iter::once(maps).chain(clean).collect(),
        figure: match &calibration {
            None => chart.draw(),
            Some(calibration) => chart.draw().beside(calibration.figure()),
        },
        summary: summary(&sweeps, metrics[0], &patched, direction, seconds, global)
            + &calibration.map_or(String::new(), |calibration| format!("\n{}", calibration.words())),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// The clean prompt several times, each time with its own noise on the subject.
fn noised(args: &Args, subject: &str, bench: &Bench, global: &Global) -> Result<Pairs> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (clean, answer, wrong) = (text(&args.pairs.clean), text(&args.pairs.answer), text(&args.pairs.wrong));
    let drawn = Drawn {
        template: String::new(),
        clean: clean.clone(),
        corrupt: clean,
        answer: vec![answer],
        wrong: vec![wrong],
        ..Drawn::default()
    };
    let Question { tokens, target } = drawn.question(bench.tokenizer()?, global.encoding())?;
    let positions = positions_of(&tokens, subject)?;
    let pair = |sample: usize| {
        let noise = Noise {
            positions: positions.clone(),
            scale: args.noise.unwrap_or(3.0),
            seed: global.seed,
            sample: sample as u64,
        };
        Pair::noised(tokens.clone(), noise, target.clone())
    };
    let pairs = (0..args.noise_samples.unwrap_or(10)).map(pair).collect::<Result<_>>()?;
    Ok(Pairs { drawn: vec![drawn], pairs, left_out: 0 })
}

/// The tokens that hold the first appearance of a text.
fn positions_of(tokens: &Tokens, text: &str) -> Result<Range<usize>> {
    let whole = tokens.joined(0);
    let Some(at) = whole.find(text).filter(|_| !text.is_empty()) else {
        return Err(request(format!("the clean prompt does not hold `{}`", text.escape_debug())));
    };
    let mut ends = Vec::new();
    let mut end = 0;
    for pos in 0..tokens.longest() {
        end += tokens.text(0, pos).len();
        ends.push(end);
    }
    let first = ends.iter().take_while(|end| **end <= at).count();
    let last = ends.iter().take_while(|end| **end < at + text.len()).count();
    Ok(first..last + 1)
}

/// Patches one pair, to say how long all of them would take: pairs of one length take equally long.
fn estimate(bench: &Bench, pairs: &[Pair], sweeps: &[Sweep], options: Options, global: &Global) -> Result<()> {
    let longest = pairs.iter().max_by_key(|pair| pair.len()).ok_or_else(|| request("there is no pair"))?;
    let mut cells = 0;
    let mut count = |_, all| {
        cells = all;
        Ok(())
    };
    let start = Instant::now();
    patch::patch(&bench.model, longest, sweeps, options, &mut count)?;
    let mut each = start.elapsed().as_secs_f64();
    if pairs.len() > 1 {
        // The first time also touches all memory for the first time.
        let start = Instant::now();
        patch::patch(&bench.model, longest, sweeps, options, &mut count)?;
        each = each.min(start.elapsed().as_secs_f64());
    }
    let tokens: usize = pairs.iter().map(Pair::len).sum();
    let (cells, pairs) = (cells * pairs.len(), pairs.len());
    Estimate {
        seconds: bench.load_seconds + each * tokens as f64 / longest.len() as f64,
        peak: cost::peak(),
        facts: json!({ "pairs": pairs, "cells": cells, "pair_seconds": each }),
        lines: vec![("pairs", format!("{pairs}, {cells} cells")), ("a pair", format!("{each:.2} s"))],
    }
    .show(global)
}

fn run_all(bench: &Bench, pairs: &[Pair], sweeps: &[Sweep], options: Options, global: &Global) -> Result<Vec<Patched>> {
    let bar = bar(global.quiet, 0, "{pos}/{len} cells [{wide_bar}] {per_sec}, {eta} left");
    let mut progress = counted(&bar);
    let one = |(i, pair): (usize, &Pair)| {
        let mut progress = |done, all| progress(i * all + done, all * pairs.len());
        patch::patch(&bench.model, pair, sweeps, options, &mut progress)
    };
    let patched = pairs.iter().enumerate().map(one).collect();
    bar.finish_and_clear();
    patched
}

/// What effects on a metric are measured by, for run.json.
fn scale(patched: &[Patched], metric: Metric) -> Value {
    let scales: Vec<Scale> = patched.iter().map(|one| one.scale(metric)).collect();
    let Scale { base, source, rounding } = Scale::mean(&scales);
    json!({ "metric": metric.name(), "base": base, "source": source, "rounding": rounding,
        "meaningless": why_meaningless(&scales, effects(patched, metric)) })
}

/// The effect of every cell over all pairs.
fn effects(patched: &[Patched], metric: Metric) -> Vec<Option<f64>> {
    let scale = Scale::mean(&patched.iter().map(|one| one.scale(metric)).collect::<Vec<_>>());
    let value =
        |i: usize| patched.iter().map(|one| one.cells[i].2[metric as usize]).sum::<f64>() / patched.len() as f64;
    (0..patched[0].cells.len()).map(|i| scale.effect(value(i))).collect()
}

/// The strongest cells, and the controls.
fn summary(
    sweeps: &[Sweep],
    metric: Metric,
    patched: &[Patched],
    direction: Direction,
    seconds: f64,
    global: &Global,
) -> String {
    let m = metric as usize;
    let n = patched.len() as f64;
    let mean = |f: &dyn Fn(&Patched) -> f64| patched.iter().map(f).sum::<f64>() / n;
    let (base, source) = match direction {
        Direction::Denoise => ("corrupted", "clean"),
        Direction::Noise => ("clean", "corrupted"),
    };
    let cells: usize = patched.iter().map(|p| p.cells.len()).sum();
    let equal: usize = patched.iter().map(|p| p.equal).sum();
    let idle = match are_estimates(patched) {
        true => String::new(),
        false => format!(", {equal} of them cannot change anything"),
    };
    let mut lines = vec![format!(
        "{}: {:.3} in the {base} run, {:.3} in the {source} run; {cells} cells in {seconds:.2} s{idle}; peak memory {}",
        metric.name(),
        mean(&|p| p.base[m]),
        mean(&|p| p.source[m]),
        memory::peak().map_or("unknown".into(), memory::human),
    )];
    let scales: Vec<Scale> = patched.iter().map(|p| p.scale(metric)).collect();
    let scale = Scale::mean(&scales);
    let value = |i: usize| mean(&|p| p.cells[i].2[m]);
    let why = why_meaningless(&scales, effects(patched, metric));
    if let Some(why) = &why {
        note(global.quiet, &format!("note: the scale of effects is meaningless: {why}"));
        lines.push(format!("raw changes of {}, because the scale of effects is meaningless:", metric.name()));
    }
    let chance = chance_of_span(&scales, global.seed);
    if why.is_none() && patched.len() > 1 && chance > 0.05 {
        lines.push(format!(
            "these {} pairs hardly tell the two runs apart (p = {chance:.3}): the scale of effects is as unsure as that",
            patched.len()
        ));
    }
    for sweep in sweeps {
        let mut strongest: Vec<(f64, String)> = patched[0]
            .cells
            .iter()
            .enumerate()
            .filter(|(_, (of, ..))| of.name == sweep.name)
            .map(|(i, (_, cell, _))| {
                let change = value(i) - scale.base;
                (if why.is_some() { change } else { change / scale.span() }, placed(cell))
            })
            .collect();
        let (low, high) = stats::spread(&strongest.iter().map(|(effect, _)| *effect).collect::<Vec<_>>());
        strongest.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
        let number = |x: f64| if why.is_some() { format!("{x:+.2e}") } else { format!("{x:.3}") };
        let shown: Vec<String> =
            strongest.iter().take(6).map(|(effect, at)| format!("{at} {}", number(*effect))).collect();
        lines.push(format!("  {:<30} {}", sweep.name, shown.join("   ")));
        lines.push(format!("  {:<30} 95 % of all cells lie within {} … {}", "", number(low), number(high)));
    }
    if are_estimates(patched) {
        lines.push(
            "estimated from gradients: no cell was patched, and there are no controls; --calibrate K patches some"
                .into(),
        );
        return lines.join("\n");
    }
    let identity = patched.iter().map(|p| p.identity).fold(0.0, f64::max);
    let restored = patched.iter().map(|p| (p.restored - 1.0).abs()).filter(|x| !x.is_nan()).reduce(f64::max);
    let whole = match restored {
        Some(restored) => format!("the first stream replaced whole restores 1 within {restored:.1e}"),
        None => "no pair has an effect that the first stream could restore".into(),
    };
    lines.push(format!("controls: a cell replaced by itself changes at most {identity:.1e}; {whole}"));
    lines.join("\n")
}

/// Whether cells were estimated, so that there are no controls.
fn are_estimates(patched: &[Patched]) -> bool {
    patched.iter().all(|one| one.identity.is_nan())
}

/// The cell without the kind of its site.
fn placed(cell: &interp::sweep::Cell) -> String {
    let text = cell.to_string();
    text.split_once(' ').map_or(text.clone(), |(_, place)| place.to_string())
}
