use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use interp::answers::{Answered, answers};
use interp::metric::Metric;
use interp::pair::{Pair, Question};
use interp::pairset::{Drawn, PairSet, SHIPPED};
use interp::texts::jsonl;
use interp::{Error, Plan, Result, Tokens, figure, stats, weights};
use polars::prelude::{DataFrame, df};
use serde::Deserialize;
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::bench::Bench;
use super::report::{How, Outcome, Report, bounded, say};
use super::request;

/// Prompt pairs: one from the command line, or several from a set or a file.
#[derive(clap::Args, Debug)]
pub struct PairArgs {
    /// The prompt whose answer is right.
    #[arg(long, value_name = "TEXT", requires_all = ["answer", "wrong"])]
    pub clean: Option<String>,
    /// The prompt that differs in one thing, as many tokens long.
    #[arg(long, value_name = "TEXT", requires = "clean")]
    pub corrupt: Option<String>,
    /// The answer to the clean prompt: one token, usually with a space before it.
    #[arg(long, value_name = "TOKEN")]
    pub answer: Option<String>,
    /// The answer it is compared with, usually the corrupted prompt's.
    #[arg(long, value_name = "TOKEN")]
    pub wrong: Option<String>,
    /// Several pairs: the name of a set (`interp pairs` lists them), a set as TOML, or JSONL with the fields clean, corrupt,
    /// answer and wrong.
    #[arg(long, value_name = "SET", conflicts_with = "clean")]
    pub pairs: Option<String>,
    #[command(flatten)]
    pub draw: Draw,
}

/// How pairs are drawn from a set.
#[derive(clap::Args, Clone, Debug)]
pub struct Draw {
    /// Pairs to draw from a set [default: 20].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub num_pairs: Option<u32>,
    /// What is corrupted, of what the set offers [default: the first].
    #[arg(long, value_name = "NAME")]
    pub corruption: Option<String>,
    /// Only this template of the set, counted from 0: prompts of one template are equally long.
    #[arg(long, value_name = "N")]
    pub template: Option<usize>,
    /// Leave out pairs whose clean prompt the model answers wrongly.
    #[arg(long)]
    pub right_only: bool,
}

const NUM_PAIRS: u32 = 20;

/// A line of JSONL.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    clean: String,
    corrupt: String,
    answer: Texts,
    wrong: Texts,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        match texts {
            Texts::One(text) => vec![text],
            Texts::Several(texts) => texts,
        }
    }
}

/// Pairs in words, as they were asked for, and where they are from.
pub struct Asked {
    words: Source,
    /// For the name of the output.
    pub name: String,
}

enum Source {
    Set(Box<PairSet>),
    Lines(Vec<Drawn>),
}

/// Pairs, in words and in tokens.
pub struct Pairs {
    pub drawn: Vec<Drawn>,
    pub pairs: Vec<Pair>,
    /// Pairs that were left out because the model answers them wrongly.
    pub left_out: usize,
}

impl PairArgs {
    /// Whether any of them was given.
    pub fn is_given(&self) -> bool {
        let one = [&self.clean, &self.corrupt, &self.answer, &self.wrong, &self.pairs];
        one.into_iter().any(Option::is_some) || self.draw.given().is_some()
    }

    /// Reads what was asked for, before a model is opened; `corrupt_needed` where a single prompt is not enough.
    pub fn read(&self, corrupt_needed: bool) -> Result<Asked> {
        if let Some(pairs) = &self.pairs {
            return asked(pairs, &self.draw);
        }
        if let Some(option) = self.draw.given() {
            return Err(request(format!("{option} goes with --pairs")));
        }
        let (Some(clean), Some(answer), Some(wrong)) = (&self.clean, &self.answer, &self.wrong) else {
            return Err(request("give --clean, --corrupt, --answer and --wrong, or --pairs"));
        };
        if self.corrupt.is_none() && corrupt_needed {
            return Err(request("--clean needs --corrupt, the prompt that it is compared with"));
        }
        let drawn = Drawn {
            template: String::new(),
            clean: clean.clone(),
            corrupt: self.corrupt.clone().unwrap_or_default(),
            answer: vec![answer.clone()],
            wrong: vec![wrong.clone()],
        };
        Ok(Asked { words: Source::Lines(vec![drawn]), name: clean.clone() })
    }
}

impl Draw {
    fn given(&self) -> Option<&'static str> {
        match self {
            Draw { num_pairs: Some(_), .. } => Some("--num-pairs"),
            Draw { corruption: Some(_), .. } => Some("--corruption"),
            Draw { template: Some(_), .. } => Some("--template"),
            Draw { right_only: true, .. } => Some("--right-only"),
            _ => None,
        }
    }
}

/// The pairs of a set or a file.
pub fn asked(name: &str, draw: &Draw) -> Result<Asked> {
    let words = read(name)?;
    match (&words, draw.given()) {
        (Source::Lines(_), Some(option)) => {
            Err(request(format!("{option} goes with a set; {name} is a list of pairs")))
        }
        _ => Ok(Asked { words, name: name.to_string() }),
    }
}

/// A set by name or path, or a list of pairs.
fn read(name: &str) -> Result<Source> {
    if let Some(set) = PairSet::shipped(name) {
        return Ok(Source::Set(Box::new(set?)));
    }
    let path = Path::new(name);
    if !path.exists() && path.extension().is_none() {
        let all = SHIPPED.map(|(name, _)| name).join(", ");
        return Err(request(format!("there is no set of pairs `{}`; there are {all}", name.escape_debug())));
    }
    let text = weights::read_text(path, 16 << 20)?;
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Ok(Source::Set(Box::new(PairSet::parse(&text, path)?)));
    }
    let data = |what: String| Error::Data { path: PathBuf::from(path), what };
    let parse = |(i, line): (usize, Value)| -> Result<Drawn> {
        let line: Line = serde_json::from_value(line).map_err(|e| data(format!("line {i}: {e}")))?;
        let (answer, wrong) = (line.answer.into(), line.wrong.into());
        Ok(Drawn { template: String::new(), clean: line.clean, corrupt: line.corrupt, answer, wrong })
    };
    let lines: Vec<Drawn> = jsonl(&text, path)?.into_iter().map(parse).collect::<Result<_>>()?;
    if lines.is_empty() { Err(data("holds no pair".into())) } else { Ok(Source::Lines(lines)) }
}

impl Asked {
    /// The clean prompts with their answers; the corrupted ones may be missing.
    pub fn questions(&self, bench: &Bench, global: &Global, draw: &Draw) -> Result<(Vec<Question>, Value)> {
        if let Source::Lines(lines) = &self.words
            && let [line] = lines.as_slice()
        {
            let question = line.question(bench.tokenizer()?, global.encoding())?;
            return Ok((vec![question], record(lines, 0)));
        }
        let pairs = self.pairs(bench, global, draw)?;
        Ok((pairs.pairs.iter().map(|pair| pair.question().clone()).collect(), pairs.record()))
    }

    /// The pairs, as tokens of a model.
    pub fn pairs(&self, bench: &Bench, global: &Global, draw: &Draw) -> Result<Pairs> {
        let (tokenizer, encoding) = (bench.tokenizer()?, global.encoding());
        let set = match &self.words {
            Source::Lines(lines) => {
                let pair = |(i, line): (usize, &Drawn)| {
                    line.pair(tokenizer, encoding)
                        .map_err(|e| if lines.len() > 1 { request(format!("pair {i}: {e}")) } else { e })
                };
                let pairs = lines.iter().enumerate().map(pair).collect::<Result<_>>()?;
                return Ok(Pairs { drawn: lines.clone(), pairs, left_out: 0 });
            }
            Source::Set(set) => set,
        };
        let wanted = draw.num_pairs.unwrap_or(NUM_PAIRS) as usize;
        let mut found = Pairs { drawn: Vec::new(), pairs: Vec::new(), left_out: 0 };
        let mut index = 0;
        while found.pairs.len() < wanted {
            let mut drawn = Vec::new();
            while drawn.len() < wanted - found.pairs.len() {
                drawn.push(set.draw(draw.corruption.as_deref(), draw.template, global.seed, index)?);
                index += 1;
            }
            let in_set = |(drawn, e): (&Drawn, Error)| {
                request(format!(
                    "a pair of {} does not suit this model (the set is written for {}): `{}`: {e}",
                    self.name, set.suits, drawn.clean
                ))
            };
            let pairs = drawn
                .iter()
                .map(|drawn| drawn.pair(tokenizer, encoding).map_err(|e| in_set((drawn, e))))
                .collect::<Result<Vec<_>>>()?;
            let right = match draw.right_only {
                true => answers(&bench.model, &pairs)?.iter().map(Answered::is_right).collect(),
                false => vec![true; pairs.len()],
            };
            for ((drawn, pair), right) in drawn.into_iter().zip(pairs).zip(right) {
                if right {
                    found.drawn.push(drawn);
                    found.pairs.push(pair);
                } else {
                    found.left_out += 1;
                }
            }
            if found.left_out > 20 * wanted {
                return Err(request(format!(
                    "the model answers {} of {index} pairs of {} wrongly; leave out --right-only to use them anyway",
                    found.left_out, self.name
                )));
            }
        }
        if found.left_out > 0 {
            let (left, kept) = (found.left_out, found.pairs.len());
            super::note(
                global.quiet,
                &format!("note: left out {left} pairs that the model answers wrongly, kept {kept}"),
            );
        }
        Ok(found)
    }
}

impl Pairs {
    /// All prompts, for the record.
    pub fn tokens(&self) -> Result<Tokens> {
        Tokens::stack(self.pairs.iter().flat_map(|pair| [pair.clean(), pair.corrupt()]))
    }

    /// The pairs, for run.json.
    pub fn record(&self) -> Value {
        record(&self.drawn, self.left_out)
    }
}

fn record(drawn: &[Drawn], left_out: usize) -> Value {
    let pair = |d: &Drawn| json!({"clean": d.clean, "corrupt": d.corrupt, "answer": d.answer, "wrong": d.wrong});
    json!({ "pairs": drawn.iter().map(pair).collect::<Vec<_>>(), "left_out": left_out })
}

#[derive(clap::Args, Debug)]
pub struct Args {
    /// A set: one of those that come with the workbench, a TOML file or JSONL. Without one, all names.
    #[arg(value_name = "SET")]
    set: Option<String>,
    #[command(flatten)]
    draw: Draw,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let Some(name) = &args.set else {
        return match args.draw.given() {
            Some(option) => Err(request(format!("{option} goes with a set; `interp pairs` alone lists them"))),
            None => list(global),
        };
    };
    let asked = asked(name, &args.draw)?;
    let bench = Bench::open(global)?;
    let pairs = asked.pairs(&bench, global, &args.draw)?;
    let report = Report::begin("pairs", global, name)?;
    let answered = answers(&bench.model, &pairs.pairs)?;
    let frame = frame(&pairs, &answered)?;
    let tokens = pairs.tokens()?;
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::pairs(&frame)?,
        summary: summary(&pairs, &answered, global.seed),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra: pairs.record() },
    };
    report.finish(global, bench, outcome)
}

/// The sets that come with the workbench.
fn list(global: &Global) -> Result<()> {
    let mut lines = Vec::new();
    for (name, _) in SHIPPED {
        let set = PairSet::shipped(name).ok_or_else(|| Error::Bug(format!("{name} is gone")))??;
        let corruptions: Vec<&str> = set.corruptions().collect();
        let shown = format!("{} templates; corruptions: {}", set.templates().len(), corruptions.join(", "));
        match global.format {
            Format::Text => lines.push(format!("{name:<18} {:<5} {}\n{:25}{shown}", set.suits, set.about, "")),
            _ => lines.push(
                json!({ "set": name, "suits": set.suits, "about": set.about, "templates": set.templates(),
                    "corruptions": corruptions })
                .to_string(),
            ),
        }
    }
    match global.format {
        Format::Text => say(global, &lines.join("\n")),
        Format::Json => super::report::print(&(format!("[{}]\n", lines.join(",\n")))),
        Format::Csv => Err(request("the list of sets has no columns; use --format json")),
    }
}

fn frame(pairs: &Pairs, answered: &[Answered]) -> Result<DataFrame> {
    let text = |f: fn(&Drawn) -> String| pairs.drawn.iter().map(f).collect::<Vec<_>>();
    let value = |metric: Metric| answered.iter().map(|a| a.clean[metric as usize]).collect::<Vec<_>>();
    let corrupt = |metric: Metric| answered.iter().map(|a| a.corrupt[metric as usize]).collect::<Vec<_>>();
    Ok(df!(
        "pair" => (0..answered.len() as u32).collect::<Vec<_>>(),
        "template" => text(|d| d.template.clone()),
        "clean" => text(|d| d.clean.clone()),
        "corrupt" => text(|d| d.corrupt.clone()),
        "answer" => text(|d| d.answer.join("|")),
        "wrong" => text(|d| d.wrong.join("|")),
        "correct" => answered.iter().map(Answered::is_right).collect::<Vec<_>>(),
        "logit_diff" => value(Metric::LogitDiff),
        "corrupt_logit_diff" => corrupt(Metric::LogitDiff),
        "prob" => value(Metric::Prob),
        "prob_diff" => value(Metric::ProbDiff),
        "rank" => value(Metric::Rank),
    )?)
}

/// Accuracy, and the templates that fail most.
fn summary(pairs: &Pairs, answered: &[Answered], seed: u64) -> String {
    let mean = |metric: Metric, of: fn(&Answered) -> &Vec<f64>| {
        let values: Vec<f64> = answered.iter().map(|a| of(a)[metric as usize]).collect();
        bounded(stats::bootstrap(&values, seed))
    };
    let right = answered.iter().filter(|a| a.is_right()).count();
    let mut lines = vec![format!(
        "{right} of {} answered rightly ({:.1} %); logit difference {}, after the corrupted prompts {}; probability {}",
        answered.len(),
        100.0 * right as f64 / answered.len() as f64,
        mean(Metric::LogitDiff, |a| &a.clean),
        mean(Metric::LogitDiff, |a| &a.corrupt),
        mean(Metric::Prob, |a| &a.clean),
    )];
    let mut templates: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (drawn, answered) in pairs.drawn.iter().zip(answered) {
        let of = templates.entry(&drawn.template).or_default();
        *of = (of.0 + usize::from(answered.is_right()), of.1 + 1);
    }
    let mut failing: Vec<(&str, (usize, usize))> = templates.into_iter().filter(|(_, (ok, all))| ok < all).collect();
    failing.sort_by_key(|(_, (ok, all))| *ok * 1000 / *all);
    let name =
        |template: &str| if template.is_empty() { "pairs of the file".to_string() } else { template.to_string() };
    lines.extend(failing.iter().take(5).map(|(t, (ok, all))| format!("  {ok} of {all}: {}", name(t))));
    if let Some(drawn) = pairs.drawn.first() {
        let sides = |texts: &[String]| match texts.len() {
            1 => format!("`{}`", texts[0]),
            n => format!("`{}` and {} more", texts[0], n - 1),
        };
        lines.push(format!(
            "the first: {} → {}, not {}\ncorrupted: {}",
            drawn.clean,
            sides(&drawn.answer),
            sides(&drawn.wrong),
            drawn.corrupt
        ));
    }
    lines.join("\n")
}
