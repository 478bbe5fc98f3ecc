use std::collections::BTreeMap;
use std::path::Path;

use interp::answers::{Answered, answers};
use interp::error::no_such;
use interp::metric::Metric;
use interp::pair::{Pair, Question};
use interp::pairset::{Drawn, PairSet, SHIPPED};
use interp::{Error, Plan, Result, Tokenizer, Tokens, figure, limits, memory, pairfile, stats, weights};
use polars::prelude::{Column, DataFrame, df};
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::bench::Bench;
use super::honours::LISTS;
use super::number::whole;
use super::output::{bounded, say};
use super::report::{How, Outcome, Report};
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
    /// Several pairs: the name of a set (`interp pairs` lists them), a set as TOML, or a list as JSON lines, a JSON array or CSV with
    /// the fields clean, corrupt, answer and wrong, or those of EAP-IG and MIB; other fields are labels.
    #[arg(long, value_name = "SET", conflicts_with = "clean")]
    pub pairs: Option<String>,
    #[command(flatten)]
    pub draw: Draw,
}

/// How pairs are drawn from a set.
#[derive(clap::Args, Clone, Debug)]
pub struct Draw {
    /// Pairs to draw from a set [default: 20], or to take from a list, the first so many [default: all].
    #[arg(long, value_name = "N", value_parser = whole(1, limits::PAIRS))]
    pub num_pairs: Option<usize>,
    /// What is corrupted, of what the set offers [default: the first]; of a list NAME of corrupted_NAME or NAME_counterfactual.
    #[arg(long, value_name = "NAME")]
    pub corruption: Option<String>,
    /// Only this template of the set, counted from 0: prompts of one template are equally long.
    #[arg(long, value_name = "N", value_parser = whole(0, limits::TEMPLATES))]
    pub template: Option<usize>,
    /// Leave out pairs whose clean prompt the model answers wrongly.
    #[arg(long)]
    pub right_only: bool,
}

const NUM_PAIRS: usize = 20;

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
            ..Drawn::default()
        };
        Ok(Asked { words: Source::Lines(vec![drawn]), name: clean.clone() })
    }
}

impl Draw {
    /// The first of these options that was given.
    pub fn given(&self) -> Option<&'static str> {
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
    let mut words = read(name, draw.corruption.as_deref())?;
    if let Source::Lines(lines) = &mut words {
        if draw.template.is_some() {
            return Err(request(format!("--template goes with a set; {name} is a list of pairs")));
        }
        let wanted = draw.num_pairs.unwrap_or(lines.len());
        if wanted > lines.len() {
            return Err(request(format!("--num-pairs {wanted}: {name} holds {} pairs", lines.len())));
        }
        // With --right-only the first are taken of those that the model answers rightly.
        lines.truncate(if draw.right_only { lines.len() } else { wanted });
    }
    Ok(Asked { words, name: name.to_string() })
}

/// A set by name or path, or a list of pairs.
fn read(name: &str, corruption: Option<&str>) -> Result<Source> {
    if let Some(set) = PairSet::shipped(name) {
        return Ok(Source::Set(Box::new(set?)));
    }
    let path = Path::new(name);
    if !path.exists() && path.extension().is_none() {
        return Err(request(no_such("set of pairs", name, SHIPPED.iter().map(|(name, _)| *name))));
    }
    let text = weights::read_text(path, 64 << 20)?;
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Ok(Source::Set(Box::new(PairSet::parse(&text, path)?)));
    }
    Ok(Source::Lines(pairfile::parse(&text, path, corruption)?))
}

impl Asked {
    /// The clean prompts with their answers; the corrupted ones may be missing.
    pub fn questions(&self, bench: &Bench, global: &Global, draw: &Draw) -> Result<(Vec<Question>, Value)> {
        if let Source::Lines(lines) = &self.words
            && let ([line], false) = (lines.as_slice(), draw.right_only)
        {
            let question = line.question(bench.tokenizer()?, global.encoding())?;
            return Ok((vec![question], record(&worded(lines, bench.tokenizer()?), 0)));
        }
        let pairs = self.pairs(bench, global, draw)?;
        Ok((pairs.pairs.iter().map(|pair| pair.question().clone()).collect(), pairs.record()))
    }

    /// The pairs, as tokens of a model.
    pub fn pairs(&self, bench: &Bench, global: &Global, draw: &Draw) -> Result<Pairs> {
        let (tokenizer, encoding) = (bench.tokenizer()?, global.encoding());
        let set = match &self.words {
            Source::Lines(lines) => return listed(lines, bench, global, draw, &self.name),
            Source::Set(set) => set,
        };
        let wanted = draw.num_pairs.unwrap_or(NUM_PAIRS);
        let mut found = Pairs { drawn: Vec::new(), pairs: Vec::new(), left_out: 0 };
        // As words, and as tokens with their text.
        let bytes = 4 * set.draw(draw.corruption.as_deref(), draw.template, global.seed, 0)?.bytes() as u64;
        memory::check(&format!("{wanted} pairs"), memory::product(&[wanted as u64, bytes]), global.memory)?;
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
        found.note_left_out(global);
        Ok(found)
    }
}

/// The pairs of a list, as tokens of a model.
fn listed(lines: &[Drawn], bench: &Bench, global: &Global, draw: &Draw, name: &str) -> Result<Pairs> {
    let (tokenizer, encoding) = (bench.tokenizer()?, global.encoding());
    let pair = |(i, line): (usize, &Drawn)| {
        line.pair(tokenizer, encoding).map_err(|e| if lines.len() > 1 { request(format!("pair {i}: {e}")) } else { e })
    };
    let pairs = lines.iter().enumerate().map(pair).collect::<Result<Vec<_>>>()?;
    let drawn = worded(lines, tokenizer);
    if !draw.right_only {
        return Ok(Pairs { drawn, pairs, left_out: 0 });
    }
    let right: Vec<bool> = answers(&bench.model, &pairs)?.iter().map(Answered::is_right).collect();
    let kept = |i: &usize| right[*i];
    let wanted = draw.num_pairs.unwrap_or(usize::MAX);
    let chosen: Vec<usize> = (0..pairs.len()).filter(kept).take(wanted).collect();
    if chosen.is_empty() || (draw.num_pairs.is_some() && chosen.len() < wanted) {
        return Err(request(format!(
            "the model answers {} of the {} pairs of {name} rightly, too few for --right-only",
            chosen.len(),
            pairs.len()
        )));
    }
    let left_out = chosen.last().map_or(0, |last| last + 1) - chosen.len();
    let found = Pairs {
        drawn: chosen.iter().map(|&i| drawn[i].clone()).collect(),
        pairs: chosen.iter().map(|&i| pairs[i].clone()).collect(),
        left_out: if draw.num_pairs.is_some() { left_out } else { pairs.len() - chosen.len() },
    };
    found.note_left_out(global);
    Ok(found)
}

fn worded(lines: &[Drawn], tokenizer: &Tokenizer) -> Vec<Drawn> {
    lines.iter().map(|line| line.clone().worded(tokenizer)).collect()
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

    fn note_left_out(&self, global: &Global) {
        let (left, kept) = (self.left_out, self.pairs.len());
        if left > 0 {
            let text = format!("note: left out {left} pairs that the model answers wrongly, kept {kept}");
            super::note(global.quiet, &text);
        }
    }
}

fn record(drawn: &[Drawn], left_out: usize) -> Value {
    let pair = |d: &Drawn| {
        let mut pair = json!({"clean": d.clean, "corrupt": d.corrupt, "answer": d.answer, "wrong": d.wrong});
        if !d.labels.is_empty() {
            pair["labels"] = d.labels.iter().cloned().collect::<serde_json::Map<_, _>>().into();
        }
        pair
    };
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
            None => {
                global.refuse(LISTS, "without a set all of them are listed")?;
                list(global)
            }
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
        Format::Json => super::output::print(&(format!("[{}]\n", lines.join(",\n")))),
        Format::Csv => Err(request("the list of sets has no columns; use --format json")),
    }
}

fn frame(pairs: &Pairs, answered: &[Answered]) -> Result<DataFrame> {
    let text = |f: fn(&Drawn) -> String| pairs.drawn.iter().map(f).collect::<Vec<_>>();
    let value = |metric: Metric| answered.iter().map(|a| a.clean[metric as usize]).collect::<Vec<_>>();
    let corrupt = |metric: Metric| answered.iter().map(|a| a.corrupt[metric as usize]).collect::<Vec<_>>();
    let mut frame = df!(
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
    )?;
    for column in labels(&pairs.drawn) {
        frame.with_column(column)?;
    }
    Ok(frame)
}

/// A column per label that any pair has: whole numbers, numbers, truth values or texts where all are of that kind, else the JSON
/// that it was.
fn labels(drawn: &[Drawn]) -> Vec<Column> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in drawn.iter().flat_map(|pair| &pair.labels) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let column = |name: &str| {
        let of = |pair: &Drawn| {
            let found = pair.labels.iter().find(|(own, _)| own == name);
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_null())
        };
        let values: Vec<Option<Value>> = drawn.iter().map(of).collect();
        let all = |is: fn(&Value) -> bool| values.iter().flatten().all(is);
        fn each<T>(values: &[Option<Value>], as_one: impl Fn(&Value) -> Option<T>) -> Vec<Option<T>> {
            values.iter().map(|value| value.as_ref().and_then(&as_one)).collect()
        }
        if all(Value::is_i64) {
            Column::new(name.into(), each(&values, Value::as_i64))
        } else if all(|value| value.as_f64().is_some_and(|x| x.abs() < 9e15)) {
            Column::new(name.into(), each(&values, Value::as_f64))
        } else if all(Value::is_boolean) {
            Column::new(name.into(), each(&values, Value::as_bool))
        } else if all(Value::is_string) {
            Column::new(name.into(), each(&values, |value| value.as_str().map(str::to_string)))
        } else {
            Column::new(name.into(), each(&values, |value| Some(value.to_string())))
        }
    };
    names.into_iter().map(column).collect()
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
