use std::path::PathBuf;

use interp::labelled::Row;
use interp::probe;
use interp::probe::saved;
use interp::{Error, Plan, Result, figure, page};
use polars::prelude::DataFrame;
use serde_json::json;

use super::super::args::{Global, Text};
use super::super::bench::Bench;
use super::super::report::{How, Outcome, Report};
use super::eval::{at_sites, chosen};
use super::source::stamp;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory that `probe train` wrote.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Which of the saved probes, by their task [default: the only ones].
    #[arg(long, value_name = "NAME")]
    probe: Option<String>,
    /// Sites by name or pattern, several with commas [default: the one that did best].
    #[arg(long, value_name = "SITES", value_delimiter = ',')]
    site: Vec<String>,
    #[command(flatten)]
    text: Text,
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let mut bench = Bench::open(global)?;
    let tokens = bench.tokens(global, &args.text)?;
    let digests = bench.source.digests()?;
    let all = saved::load(&args.dir, bench.config(), &stamp(digests.weights, &bench, &tokens))?;
    let saved = chosen(&all, args.probe.as_deref(), "")?;
    let kept = match args.site.is_empty() {
        true => saved.best().into_iter().collect(),
        false => at_sites(saved, &args.site, bench.config().n_layer)?,
    };
    let sites: Vec<_> = kept.iter().map(|kept| kept.site).collect();
    let report = Report::begin("probe-apply", global, &format!("{} {}", saved.name, bench.name(&tokens)))?;
    let place = |prompt: usize, pos: usize| Row { prompt: prompt as u32, pos: pos as u32, ..Row::default() };
    let rows: Vec<Row> =
        (0..tokens.len()).flat_map(|prompt| (0..tokens.row(prompt).len()).map(move |pos| place(prompt, pos))).collect();
    let features = probe::features(&bench.model, &sites, &tokens, &rows)?;
    let mut frame = None;
    for (kept, x) in kept.iter().zip(&features) {
        let own = probe::applied(&saved.name, kept, saved.classes.as_deref(), &tokens, x)?;
        interp::frame::append(&mut frame, own)?;
    }
    let frame: DataFrame = frame.ok_or_else(|| Error::Bug("no probe".into()))?;
    let outcome = Outcome {
        page: vec![page::applied(&frame)?],
        figure: figure::applied(&frame)?,
        summary: summary(&frame)?,
        frame,
        how: How {
            plan: &Plan::new(),
            applied: Vec::new(),
            tokens: Some(&tokens),
            extra: json!({
                "probes": args.dir, "probe": saved.name, "classes": saved.classes,
                "sites": sites.iter().map(|site| site.to_string()).collect::<Vec<_>>(),
            }),
        },
    };
    report.finish(global, bench, outcome)
}

/// The tokens of the first prompt with what the first probe says of each.
fn summary(frame: &DataFrame) -> Result<String> {
    const MOST: usize = 40;
    let text = |name: &str| -> Result<Vec<Option<&str>>> { Ok(frame.column(name)?.str()?.iter().collect()) };
    let (site, token, class) = (text("site")?, text("token")?, text("class")?);
    let prompt = frame.column("prompt")?.u32()?;
    let pos: Vec<Option<u32>> = frame.column("pos")?.u32()?.iter().collect();
    let (p, value) = (frame.column("probability")?.f64()?, frame.column("value")?.f64()?);
    let first = (site[0], prompt.get(0));
    let rows: Vec<usize> = (0..frame.height()).filter(|&i| (site[i], prompt.get(i)) == first).collect();
    let tokens = || rows.chunk_by(|a, b| pos[*a] == pos[*b]);
    let mut lines = vec![format!("{:>5}  {:<20}{}", "pos", "token", "at ".to_string() + site[0].unwrap_or_default())];
    for own in tokens().take(MOST) {
        let sure = |i: &usize| p.get(*i).unwrap_or(f64::NEG_INFINITY);
        let best =
            own.iter().copied().reduce(|best, i| if sure(&i) > sure(&best) { i } else { best }).unwrap_or(own[0]);
        let says = match (class[best], p.get(best)) {
            (Some(class), Some(p)) => format!("{class} {p:.3}"),
            _ => value.get(best).map_or("–".to_string(), |value| format!("{value:.3}")),
        };
        let word = figure::shown(token[best].unwrap_or_default());
        lines.push(format!("{:>5}  {word:<20}{says}", pos[best].unwrap_or(0)));
    }
    let all = tokens().count();
    if all > MOST {
        lines.push(format!("       and {} more", all - MOST));
    }
    Ok(lines.join("\n"))
}
