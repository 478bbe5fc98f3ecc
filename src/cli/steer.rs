use std::path::{Path, PathBuf};

use interp::direction::{self, Direction, Method, Pool};
use interp::sampling::Sampling;
use interp::steer::{self, Options, Units};
use interp::target::Target;
use interp::texts::jsonl;
use interp::{Error, Plan, Result, Site, figure, generate, limits, weights};
use polars::prelude::DataFrame;
use serde::Deserialize;
use serde_json::json;

use super::args::{Global, Text};
use super::bench::Bench;
use super::number::{real, whole};
use super::output::{bar, counted};
use super::report::{How, Outcome, Report};
use super::{note, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// A text that has what is wanted; may be given several times.
    #[arg(long, value_name = "TEXT", requires = "negative")]
    positive: Vec<String>,
    /// A text that lacks it; may be given several times.
    #[arg(long, value_name = "TEXT", requires = "positive")]
    negative: Vec<String>,
    /// Pairs of such texts: JSONL with the fields positive and negative.
    #[arg(long, value_name = "FILE", conflicts_with = "positive")]
    contrast: Option<PathBuf>,
    /// Directions that an earlier run wrote, instead of finding them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["positive", "contrast", "site", "method", "pool"])]
    load: Option<PathBuf>,
    /// Where: sites by name or pattern, several with commas, such as resid_pre.3, resid_post.2-4, mlp_post.1 or z.4 [default:
    /// resid_pre.*].
    #[arg(long, value_name = "SITES", value_delimiter = ',')]
    site: Vec<String>,
    /// How directions are found: mean (difference of means), pca (of pairs) or pca-pooled (of all activations) [default: mean].
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// What stands for a text: its last token, or the mean over its tokens [default: last].
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// How much is added, several with commas.
    #[arg(
        long,
        value_name = "NUMBERS",
        default_value = "-2,-1,0,1,2",
        value_delimiter = ',',
        value_parser = real(-1e30, 1e30)
    )]
    strength: Vec<f64>,
    /// What strength 1 is: natural (the distance between the positive and the negative texts), norm (the mean length of the
    /// activations there) or unit (length 1).
    #[arg(long, value_name = "UNITS", default_value = "natural")]
    units: String,
    /// Random directions of the same length to compare with.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(0, limits::CONTROLS))]
    controls: usize,
    /// The token whose logit after the prompt is the effect; usually with a space before it.
    #[arg(long, value_name = "TOKEN")]
    answer: Option<String>,
    /// The token that it is compared with.
    #[arg(long, value_name = "TOKEN", requires = "answer")]
    wrong: Option<String>,
    /// Tokens to write at most.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = whole(1, limits::NEW_TOKENS))]
    max_new_tokens: usize,
    /// Texts per prompt and strength; several need a temperature.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1, limits::SAMPLES))]
    num_samples: usize,
    /// Divides the logits before drawing; 0 takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the K likeliest tokens.
    #[arg(long, value_name = "K", value_parser = whole(1, limits::VOCABULARY))]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that hold this share of the probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    #[command(flatten)]
    text: Text,
}

/// A line of `--contrast`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    positive: String,
    negative: String,
}

impl Args {
    fn options(&self, global: &Global) -> Result<Options> {
        let sampling =
            Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, repetition_penalty: 1.0 };
        let generate = generate::Options {
            sampling,
            seed: global.seed,
            num_samples: self.num_samples,
            max_new_tokens: self.max_new_tokens,
            ..Default::default()
        };
        Ok(Options { strengths: self.strength.clone(), units: self.units.parse()?, controls: self.controls, generate })
    }

    /// The contrasting texts.
    fn contrast(&self, global: &Global) -> Result<(Vec<String>, Vec<String>)> {
        let Some(path) = &self.contrast else { return Ok((self.positive.clone(), self.negative.clone())) };
        let data = |what: String| Error::Data { path: path.clone(), what };
        let text = weights::read_text(path, 16 << 20)?;
        let mut lines: Vec<Line> = Vec::new();
        for (i, line) in jsonl(&text, path)? {
            let line: Line = serde_json::from_value(line).map_err(|e| data(format!("line {i}: {e}")))?;
            match line.positive.is_empty() || line.negative.is_empty() {
                true => {
                    note(global.quiet, &format!("note: {}: line {i} has an empty text and is left out", path.display()))
                }
                false => lines.push(line),
            }
        }
        if lines.is_empty() {
            return Err(data("holds no pair".into()));
        }
        Ok(lines.into_iter().map(|line| (line.positive, line.negative)).unzip())
    }
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let options = args.options(global)?;
    let method: Method = args.method.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    let pool: Pool = args.pool.as_deref().map(str::parse).transpose()?.unwrap_or_default();
    let (positive, negative) = args.contrast(global)?;
    if positive.is_empty() && args.load.is_none() {
        return Err(request("no direction: give --positive TEXT and --negative TEXT, --contrast FILE or --load FILE"));
    }
    let mut bench = Bench::open(global)?;
    let tokens = bench.tokens(global, &args.text)?;
    let tokenizer = bench.tokenizer()?;
    let target = args.answer.as_deref().map(|a| Target::parse(tokenizer, &[a], args.wrong.as_slice())).transpose()?;
    options.check(&bench.model, &tokens)?;
    let directions = match &args.load {
        Some(path) => load(path, &mut bench)?,
        None => find(&args, (&positive, &negative), (method, pool), &bench, global)?,
    };
    let name = format!("{} {} {}", args.site.join(" "), positive.join(" "), bench.name(&tokens));
    let report = Report::begin("steer", global, &name)?;
    let bar = bar(global.quiet, 0, "{pos}/{len} directions and strengths [{wide_bar}] {eta} left");
    let frame = steer::steer(
        &bench.model,
        bench.tokenizer()?,
        &tokens,
        &directions,
        target.as_ref(),
        &options,
        &mut counted(&bar),
    )?;
    bar.finish_and_clear();
    let swallowed = swallowed(&frame)?;
    if !swallowed.is_empty() {
        note(
            global.quiet,
            &format!("note: too small to change any activation: {}; take larger strengths", swallowed.join(", ")),
        );
    }
    let fingerprint = fingerprint(&mut bench)?;
    direction::save(&report.dir().join("directions.safetensors"), &directions, &fingerprint)?;
    let extra = json!({
        "positive": positive, "negative": negative, "loaded": args.load.as_ref().map(|path| path.to_string_lossy()),
        "directions": directions.iter().map(described).collect::<Vec<_>>(),
        "strengths": options.strengths, "units": options.units.to_string(), "controls": options.controls,
        "target": target.as_ref().map(|t| json!({ "answers": t.answers(), "wrong": t.wrong() })),
        "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p,
        "num_samples": args.num_samples, "max_new_tokens": args.max_new_tokens,
    });
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::steer(&frame)?,
        summary: summary(&frame, &directions, options.units)?,
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// Strengths other than 0 that rounding swallowed.
fn swallowed(frame: &DataFrame) -> Result<Vec<String>> {
    let real = |name: &str| -> Result<Vec<f64>> { Ok(frame.column(name)?.f64()?.into_no_null_iter().collect()) };
    let (strength, change) = (real("strength")?, real("relative_change")?);
    let mut found: Vec<String> = Vec::new();
    for (i, site) in frame.column("site")?.str()?.iter().enumerate() {
        let name = format!("strength {} at {}", strength[i], site.unwrap_or_default());
        if strength[i] != 0.0 && change[i] == 0.0 && !found.contains(&name) {
            found.push(name);
        }
    }
    Ok(found)
}

/// The directions of the contrasting texts; sites where these do not differ are left out, and named.
fn find(
    args: &Args,
    (positive, negative): (&[String], &[String]),
    (method, pool): (Method, Pool),
    bench: &Bench,
    global: &Global,
) -> Result<Vec<Direction>> {
    let layers = bench.config().n_layer;
    let default = ["resid_pre.*".to_string()];
    let patterns = if args.site.is_empty() { default.as_slice() } else { args.site.as_slice() };
    let sites = Site::matching_all(patterns, layers)?;
    let tokens = |texts: &[String]| -> Result<_> {
        let tokens = bench.tokenizer()?.tokens(texts, global.encoding())?;
        tokens.check(bench.config(), 0)?;
        Ok(tokens)
    };
    let (up, down) = (tokens(positive)?, tokens(negative)?);
    let (found, equal) = direction::from_prompts(&bench.model, &up, &down, &sites, method, pool)?;
    let names = || equal.iter().map(Site::to_string).collect::<Vec<_>>().join(", ");
    if found.is_empty() {
        return Err(request(format!(
            "the positive and the negative texts are the same at {}; take later layers, or --pool mean",
            names()
        )));
    }
    if !equal.is_empty() {
        note(global.quiet, &format!("note: no direction at {}: both sets of texts are the same there", names()));
    }
    Ok(found)
}

fn load(path: &Path, bench: &mut Bench) -> Result<Vec<Direction>> {
    let fingerprint = fingerprint(bench)?;
    direction::load(path, &bench.model, &fingerprint)
}

/// What tells models apart: the hashes of their weights.
pub fn fingerprint(bench: &mut Bench) -> Result<String> {
    Ok(bench.source.digests()?.weights.join("+"))
}

fn described(direction: &Direction) -> serde_json::Value {
    json!({
        "site": direction.site.to_string(), "method": direction.method.to_string(), "pool": direction.pool.to_string(),
        "length": direction.length, "norm": direction.norm, "explained": direction.explained,
    })
}

/// Effect and fluency by site and strength, and the first prompt's texts at the site that moves most.
fn summary(frame: &DataFrame, directions: &[Direction], units: Units) -> Result<String> {
    let text = |name: &str| -> Result<Vec<Option<&str>>> { Ok(frame.column(name)?.str()?.iter().collect()) };
    let real = |name: &str| -> Result<Vec<Option<f64>>> { Ok(frame.column(name)?.f64()?.iter().collect()) };
    let (site, kind, texts, metric) = (text("site")?, text("direction")?, text("text")?, text("metric")?);
    let (strength, value, perplexity) = (real("strength")?, real("value")?, real("perplexity")?);
    let prompt: Vec<Option<u32>> = frame.column("prompt")?.u32()?.iter().collect();
    let mut strengths: Vec<f64> = Vec::new();
    strength.iter().flatten().for_each(|s| {
        if !strengths.contains(s) {
            strengths.push(*s);
        }
    });
    // The rows that sum up a direction or all random ones at a site and a strength.
    let summed = |name: &str, kind_wanted: &str, at: f64| -> Vec<usize> {
        let wanted = |&i: &usize| prompt[i].is_none() && site[i] == Some(name) && kind[i] == Some(kind_wanted);
        (0..frame.height()).filter(wanted).filter(|&i| strength[i] == Some(at)).collect()
    };
    let cell = |rows: &[usize]| -> String {
        let over = |column: &[Option<f64>], f: fn(f64, f64) -> f64| rows.iter().filter_map(|&i| column[i]).reduce(f);
        let perplexity = over(&perplexity, f64::max).unwrap_or(f64::NAN);
        match (over(&value, f64::min), over(&value, f64::max)) {
            (Some(low), Some(high)) if rows.len() > 1 => format!("{low:+.2} … {high:+.2}"),
            (Some(value), _) => format!("{value:+.2} / {perplexity:.1}"),
            _ if rows.len() > 1 => format!("up to {perplexity:.1}"),
            _ => format!("{perplexity:.1}"),
        }
    };
    let effect = metric.first().copied().flatten();
    let what = effect.map_or("perplexity".to_string(), |metric| format!("{metric} / perplexity"));
    let head: String = strengths.iter().map(|s| format!("{s:>18}")).collect();
    let mut lines = vec![format!("{what} at strength, in units of {units}"), format!("  {:<20}{head}", "site")];
    let mut best = (f64::NEG_INFINITY, directions[0].site.to_string());
    for direction in directions {
        let name = direction.site.to_string();
        for of in ["steering", "random"] {
            let rows: Vec<Vec<usize>> = strengths.iter().map(|&strength| summed(&name, of, strength)).collect();
            let draws = rows[0].len();
            if draws == 0 {
                continue;
            }
            let label = match of {
                "steering" => name.clone(),
                _ if draws == 1 => "  random".to_string(),
                _ => format!("  {draws} random"),
            };
            let cells: String = rows.iter().map(|rows| format!("{:>18}", cell(rows))).collect();
            lines.push(format!("  {label:<20}{cells}"));
            let values = || rows.iter().flatten().filter_map(|&i| value[i]);
            let spread = values().fold(f64::NEG_INFINITY, f64::max) - values().fold(f64::INFINITY, f64::min);
            if of == "steering" && spread > best.0 {
                best = (spread, name.clone());
            }
        }
    }
    lines.push(format!("texts of the first prompt, steered at {}:", best.1));
    for i in 0..frame.height() {
        let wanted = prompt[i] == Some(0) && kind[i] == Some("steering") && site[i] == Some(best.1.as_str());
        if let (true, Some(strength), Some(text)) = (wanted, strength[i], texts[i]) {
            lines.push(format!("  {strength:>+6} {}", text.replace('\n', "↵")));
        }
    }
    Ok(lines.join("\n"))
}
