use std::path::{Path, PathBuf};

use interp::error::no_such;
use interp::figure::{Dot, Dots};
use interp::interchange::{Interchange, Part, frame};
use interp::probe::saved;
use interp::random::stream;
use interp::stats::Interval;
use interp::subspace::Subspace;
use interp::{Error, Plan, Result, Site, direction, limits};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::Global;
use super::bench::Bench;
use super::circuit::Split;
use super::number::whole;
use super::output::{bar, bounded, counted};
use super::pairs::PairArgs;
use super::probe::{at_sites, chosen, stamp};
use super::report::{How, Outcome, Report};
use super::request;
use super::steer::fingerprint;

/// Random subspaces that one is compared with.
const CONTROLS: u64 = 10;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pairs: PairArgs,
    #[command(flatten)]
    split: Split,
    /// Where: resid_pre.3, resid_mid.3, resid_post.3, attn_out.3 or mlp_out.3.
    #[arg(long, value_name = "SITE")]
    site: String,
    /// The position; negative ones count from the end.
    #[arg(long, value_name = "POS", default_value = "-1", value_parser = super::index)]
    pos: i64,
    /// Along what: das (a rotation, trained), pca (of the differences), means (the difference of means), or a file or directory:
    /// of this command, of `steer`, or of `probe train`.
    #[arg(long, value_name = "WHAT", default_value = "das")]
    along: String,
    /// Dimensions of das and pca [default: 1].
    #[arg(long, value_name = "K", value_parser = whole(1, limits::WIDTH))]
    dim: Option<usize>,
    /// Steps of the training [default: 200].
    #[arg(long, value_name = "N", value_parser = whole(1, limits::ITERATIONS))]
    steps: Option<usize>,
    /// Which of the saved probes, by their task [default: the only one].
    #[arg(long, value_name = "NAME")]
    probe: Option<String>,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let trained = args.along == "das";
    let found = ["das", "pca", "means"].contains(&args.along.as_str());
    if args.dim.is_some() && !["das", "pca"].contains(&args.along.as_str()) {
        return Err(request(format!("--dim goes with das and pca; {} has its own", args.along)));
    }
    if args.steps.is_some() && !trained {
        return Err(request(format!("--steps goes with das; {} is not trained", args.along)));
    }
    if args.probe.is_some() && !Path::new(&args.along).is_dir() {
        return Err(request("--probe goes with --along DIR, where `probe train` wrote"));
    }
    if args.split.is_given() && !found {
        return Err(request(format!("--no-split goes with das, pca and means; {} was found before", args.along)));
    }
    let asked = args.pairs.read(true)?;
    let mut bench = Bench::open(global)?;
    let sites = Site::matching(&args.site, bench.config().n_layer)?;
    let [site] = sites.as_slice() else {
        return Err(request(format!("--site names {} sites; one is needed", sites.len())));
    };
    let pairs = asked.pairs(&bench, global, &args.pairs.draw)?;
    let (finding, judging) = match found {
        true => args.split.halves(&pairs.pairs, global.quiet),
        false => (Vec::new(), pairs.pairs.clone()),
    };
    let tokens = pairs.tokens()?;
    let read = if found { None } else { Some(read(args, *site, &mut bench, &tokens)?) };
    let room = bench.room(global)?;
    let judge = Interchange::new(&bench.model, &judging, *site, args.pos, room)?;
    let report = Report::begin("subspace", global, &format!("{} {site} {}", args.along, asked.name))?;
    let mut losses = Vec::new();
    let subspace = match read {
        Some(subspace) => subspace,
        None => {
            let finder = Interchange::new(&bench.model, &finding, *site, args.pos, bench.room(global)?)?;
            let dimensions = args.dim.unwrap_or(1);
            let differences = finder.differences()?;
            match args.along.as_str() {
                "pca" => Subspace::principal(&differences, dimensions),
                "means" => {
                    let sum = |d: usize| differences.iter().map(|row| row[d]).sum::<f64>();
                    Subspace::spanned(&[(0..differences[0].len()).map(sum).collect()])
                }
                _ => {
                    let bar = bar(global.quiet, 0, "{pos}/{len} steps [{wide_bar}] {per_sec}, {eta} left");
                    let steps = args.steps.unwrap_or(200);
                    let (subspace, found) = finder.train(dimensions, steps, global.seed, &mut counted(&bar))?;
                    bar.finish_and_clear();
                    losses = found;
                    subspace
                }
            }
        }
    };
    if subspace.dimensions() == 0 {
        return Err(request(format!("clean and corrupted runs do not differ at {site}, position {}", args.pos)));
    }
    let width = bench.config().n_embd;
    let mut parts = vec![
        ("along".to_string(), judge.patched(&subspace, Part::Along)?),
        ("across".to_string(), judge.patched(&subspace, Part::Across)?),
        ("whole".to_string(), judge.patched(&subspace, Part::Whole)?),
    ];
    for i in 0..CONTROLS {
        let mut rng = stream(global.seed, "random subspace", i);
        let random = Subspace::random(subspace.dimensions(), width, &mut rng);
        parts.push((format!("random {i}"), judge.patched(&random, Part::Along)?));
    }
    let frame = frame(&parts, &judge.scales(), global.seed)?;
    drop(judge);
    subspace.save(&report.dir().join("subspace.safetensors"), *site, &fingerprint(&mut bench)?)?;
    let mut extra = pairs.record();
    extra["subspace"] = json!({
        "site": site.to_string(), "pos": args.pos, "along": args.along, "dimensions": subspace.dimensions(), "of": width,
        "finding": finding.len(), "judging": judging.len(), "held_out": !found || args.split.held_out(&pairs.pairs),
        "losses": losses, "steps": trained.then(|| args.steps.unwrap_or(200)),
    });
    let summary = summary(&frame, args, *site, (subspace.dimensions(), width), &losses)?;
    let outcome = Outcome {
        page: Vec::new(),
        figure: draw(&frame, args, *site)?,
        summary,
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// A subspace from a file of this command or of `steer`, or from saved probes.
fn read(args: &Args, site: Site, bench: &mut Bench, tokens: &interp::Tokens) -> Result<Subspace> {
    let path = PathBuf::from(&args.along);
    if !path.exists() {
        return Err(Error::Missing(no_such(
            "subspace, file or directory",
            &args.along,
            ["das", "pca", "means"].into_iter(),
        )));
    }
    if path.is_dir() {
        let digests = bench.source.digests()?;
        let all = saved::load(&path, bench.config(), &stamp(digests.weights, bench, tokens))?;
        let saved = chosen(&all, args.probe.as_deref(), "")?;
        let kept = at_sites(saved, &[site.to_string()], bench.config().n_layer)?;
        return Ok(kept[0].probe.subspace());
    }
    let fingerprint = fingerprint(bench)?;
    if let Some((subspace, own)) = Subspace::load(&path, &fingerprint)? {
        return match own == site {
            true => Ok(subspace),
            false => Err(request(format!("{} is a subspace of {own}, not of {site}", path.display()))),
        };
    }
    let directions = direction::load(&path, &bench.model, &fingerprint)?;
    let own = directions.iter().find(|direction| direction.site == site);
    let own = own.ok_or_else(|| request(format!("{} holds no direction at {site}", path.display())))?;
    Ok(Subspace::spanned(&[own.unit.iter().map(|x| f64::from(*x)).collect()]))
}

/// A summed row: part, effect, low and high.
type Sum = (String, f64, Option<f64>, Option<f64>);

/// The summed rows.
fn sums(frame: &DataFrame) -> Result<Vec<Sum>> {
    let pair = frame.column("pair")?.u32()?;
    let (part, effect) = (frame.column("part")?.str()?, frame.column("effect")?.f64()?);
    let (low, high) = (frame.column("low")?.f64()?, frame.column("high")?.f64()?);
    let sum = |i: usize| {
        let part = part.get(i).unwrap_or_default().to_string();
        (part, effect.get(i).unwrap_or(f64::NAN), low.get(i), high.get(i))
    };
    Ok((0..frame.height()).filter(|&i| pair.get(i).is_none()).map(sum).collect())
}

fn summary(
    frame: &DataFrame,
    args: &Args,
    site: Site,
    (dimensions, width): (usize, usize),
    losses: &[f64],
) -> Result<String> {
    let mut lines = vec![format!(
        "{dimensions} of {width} dimensions at {site}, position {}, along {}: 0 is the corrupted answer, 1 the clean one",
        args.pos, args.along
    )];
    let sums = sums(frame)?;
    for (part, mean, low, high) in sums.iter().filter(|(part, ..)| !part.starts_with("random")) {
        lines.push(format!("  {part:<8} {}", bounded(Interval { mean: *mean, bounds: low.zip(*high) })));
    }
    let random: Vec<f64> = sums.iter().filter(|(part, ..)| part.starts_with("random")).map(|row| row.1).collect();
    let mean = random.iter().sum::<f64>() / random.len() as f64;
    let most = random.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    lines.push(format!("  random   {mean:.3}, at most {most:.3} of {CONTROLS}"));
    let of = |name: &str| sums.iter().find(|(part, ..)| part == name).map_or(f64::NAN, |row| row.1);
    if of("along") > of("whole") + 0.05 {
        // Makelov et al. 2023, "Is this the subspace you are looking for?"
        lines.push(
            "along carries more than the whole site: it may turn a direction that the model itself does not move along"
                .into(),
        );
    }
    if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
        lines.push(format!("loss {first:.3} at the first step, {last:.3} at the last"));
    }
    Ok(lines.join("\n"))
}

fn draw(frame: &DataFrame, args: &Args, site: Site) -> Result<interp::figure::Figure> {
    let row = |(part, value, low, high): Sum| {
        let (low, high) = (low.unwrap_or(f64::NAN), high.unwrap_or(f64::NAN));
        (part, vec![Dot { series: 0, value, low, high, mark: None }])
    };
    Ok(Dots {
        title: format!("{site} along {}", args.along),
        note: "0 is the corrupted answer, 1 the clean one".into(),
        value_name: "effect".into(),
        shares: false,
        series: vec![String::new()],
        rows: sums(frame)?.into_iter().map(row).collect(),
    }
    .draw())
}
