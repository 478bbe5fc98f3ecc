use std::path::Path;
use std::time::Instant;

use interp::behave::{self, Asked};
use interp::suite::{Asking, Question, SHIPPED, Suite};
use interp::{Error, Plan, Result, figure, limits, weights};
use polars::prelude::DataFrame;
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::bench::Bench;
use super::cost::{self, Estimate};
use super::honours::LISTS;
use super::number::{long, whole};
use super::output::{bar, counted, say};
use super::report::{How, Outcome, Report};
use super::{doubled, request};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Suites: names of those that come with the workbench, or TOML files. Without one, all names.
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Models to compare, separated by commas [default: --model].
    #[arg(long, value_name = "MODELS", value_delimiter = ',', conflicts_with = "model")]
    models: Vec<String>,
    /// Questions per suite, phrasing and number of examples, over all templates in turn [default: 200].
    #[arg(long, value_name = "N", value_parser = long(1, limits::EXAMPLES))]
    num_questions: Option<u64>,
    /// Examples with their answers before each question; several numbers are compared [default: 0].
    #[arg(long, value_name = "K", value_delimiter = ',', value_parser = whole(0, limits::SHOTS))]
    shots: Vec<usize>,
    /// How prompts are put, of what the suites offer; several are compared [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    phrasing: Vec<String>,
    /// Ask a model whose vocabulary is not the one that a suite is written for.
    #[arg(long)]
    any_vocabulary: bool,
    /// Only say how long it would take and how much memory, from some questions that are measured and forgotten.
    #[arg(long)]
    dry_run: bool,
}

const NUM_QUESTIONS: u64 = 200;
/// Questions that a dry run asks of each kind.
const SAMPLE: usize = 24;

pub fn run(args: Args, global: &Global) -> Result<()> {
    if args.suites.is_empty() {
        let bare = args.models.is_empty() && args.shots.is_empty() && args.phrasing.is_empty();
        return match bare && args.num_questions.is_none() && !args.dry_run && !args.any_vocabulary {
            true => {
                global.refuse(LISTS, "without a suite all of them are listed")?;
                list(global)
            }
            false => Err(request("name a suite; `interp behave` alone lists them")),
        };
    }
    let suites = args.suites.iter().map(|name| Ok((name_of(name), read(name)?))).collect::<Result<Vec<_>>>()?;
    let models = if args.models.is_empty() { vec![global.model.clone()] } else { args.models.clone() };
    let names: Vec<String> = suites.iter().map(|(name, _)| name.clone()).collect();
    let shots: Vec<String> = args.shots.iter().map(usize::to_string).collect();
    for (what, all) in [("suite", &names), ("model", &models), ("shots", &shots), ("phrasing", &args.phrasing)] {
        if let Some(twice) = doubled(all) {
            let twice = twice.escape_debug();
            return Err(request(format!(
                "{what} {twice} is there twice: rows of one could not be told from the other's"
            )));
        }
    }
    for name in &args.phrasing {
        if !suites.iter().any(|(_, suite)| suite.phrasings().any(|known| known == name)) {
            let known = suites.iter().flat_map(|(_, suite)| suite.phrasings());
            return Err(request(interp::error::no_such("phrasing", name, known)));
        }
    }
    let about = format!("{} {}", args.suites.join(" "), models.join(" "));
    let report = if args.dry_run { None } else { Some(Report::begin("behave", global, &about)?) };
    let (mut asked, mut made_with, mut estimate, mut last) = (Vec::new(), Vec::new(), Vec::new(), None);
    for name in &models {
        let mut bench = Bench::open(&Global { model: name.clone(), ..global.clone() })?;
        for (suite_name, suite) in &suites {
            for kind in kinds(&args, suite) {
                let questions = questions(&bench, suite_name, suite, kind, &args, global)?;
                if args.dry_run {
                    estimate.push(measure(&bench, suite, questions, global)?);
                    continue;
                }
                let one = ask(&bench, suite, &questions, global)?;
                asked.push(Asked {
                    model: name.clone(),
                    suite: suite_name.clone(),
                    phrasing: kind.0.to_string(),
                    shots: kind.1,
                    templates: suite.templates(),
                    questions,
                    answers: one.0,
                    seconds: one.1,
                });
            }
        }
        let digests = bench.source.digests()?;
        made_with.push(json!({
            "name": name, "weights_sha256": digests.weights, "tokenizer_sha256": digests.tokenizer,
        }));
        estimate.push((bench.load_seconds, 0));
        last = Some(bench);
    }
    let bench = last.ok_or_else(|| request("no model"))?;
    let Some(report) = report else { return show(&estimate, global) };
    let frame = behave::summary(&asked, global.seed, global.price)?;
    let mut each = behave::questions(&asked)?;
    interp::frame::save_parquet(&mut each, &report.dir().join("questions.parquet"))?;
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::behave(&frame)?,
        summary: summary(&frame, &asked)?,
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: None, extra: record(&suites, made_with) },
    };
    report.finish(global, bench, outcome)
}

/// A suite by its name or path.
fn read(name: &str) -> Result<Suite> {
    if let Some(suite) = Suite::shipped(name) {
        return suite;
    }
    let path = Path::new(name);
    if !path.exists() && path.extension().is_none() {
        return Err(request(interp::error::no_such("suite", name, SHIPPED.iter().map(|(name, _)| *name))));
    }
    Suite::parse(&weights::read_text(path, 16 << 20)?, path)
}

/// The name of a suite in frames: of a file, its stem.
fn name_of(name: &str) -> String {
    let stem = Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| name.to_string())
}

/// Phrasings and numbers of examples that are asked for, of what a suite has.
fn kinds<'a>(args: &Args, suite: &'a Suite) -> Vec<(&'a str, usize)> {
    let shots = if args.shots.is_empty() { vec![0] } else { args.shots.clone() };
    let wanted = |name: &&str| args.phrasing.is_empty() || args.phrasing.iter().any(|own| own == name);
    suite.phrasings().filter(wanted).flat_map(|name| shots.iter().map(move |shots| (name, *shots))).collect()
}

fn questions(
    bench: &Bench,
    name: &str,
    suite: &Suite,
    (phrasing, shots): (&str, usize),
    args: &Args,
    global: &Global,
) -> Result<Vec<Question>> {
    let tokenizer = bench.tokenizer()?;
    let of_suite = |e: Error| match e {
        Error::Request(what) => request(format!("suite {name}, model {}: {what}", bench.source.name)),
        other => other,
    };
    if !args.any_vocabulary {
        suite.check_vocabulary(tokenizer).map_err(of_suite)?;
    }
    let count = args.num_questions.unwrap_or(NUM_QUESTIONS);
    let asking = Asking { phrasing, shots, count, seed: global.seed };
    let questions = suite.questions(asking, tokenizer, global.encoding()).map_err(of_suite)?;
    let longest = questions.iter().max_by_key(|question| question.prompt.len());
    let limit = bench.config().n_positions;
    match longest {
        Some(question) if question.prompt.len() > limit => Err(request(format!(
            "suite {name}: with {shots} examples a prompt has {} tokens; this model reads at most {limit}: ask with fewer --shots",
            question.prompt.len()
        ))),
        _ => Ok(questions),
    }
}

/// Answers, and how long they took.
fn ask(bench: &Bench, suite: &Suite, questions: &[Question], global: &Global) -> Result<(Vec<behave::Answer>, f64)> {
    let bar = bar(global.quiet, questions.len() as u64, "{pos}/{len} questions [{wide_bar}] {per_sec}, {eta} left");
    let start = Instant::now();
    let answers = behave::ask(&bench.model, questions, suite.score, &mut counted(&bar))?;
    bar.finish_and_clear();
    Ok((answers, start.elapsed().as_secs_f64()))
}

/// Seconds of the bounds of so many questions: every metric resamples them, all together and by template.
fn bounds(count: usize) -> f64 {
    let values = vec![1.0; 500];
    let start = Instant::now();
    interp::stats::bootstrap(&values, 0);
    start.elapsed().as_secs_f64() * (METRICS * 2 * count) as f64 / values.len() as f64
}

/// Metrics with bootstrapped bounds.
const METRICS: usize = 6;

/// Seconds for all questions, from some of them; and how many there are.
fn measure(bench: &Bench, suite: &Suite, mut questions: Vec<Question>, global: &Global) -> Result<(f64, usize)> {
    let tokens = |some: &[Question]| some.iter().map(|question| question.prompt.len()).sum::<usize>();
    let (count, all) = (questions.len(), tokens(&questions));
    questions.truncate(SAMPLE);
    let first = ask(bench, suite, &questions, global)?.1;
    // The first batch also touches all memory for the first time.
    let seconds = ask(bench, suite, &questions, global)?.1.min(first);
    Ok((seconds * all as f64 / tokens(&questions).max(1) as f64 + bounds(count), count))
}

fn show(estimate: &[(f64, usize)], global: &Global) -> Result<()> {
    let questions: usize = estimate.iter().map(|(_, count)| count).sum();
    let estimate = Estimate {
        seconds: estimate.iter().map(|(seconds, _)| seconds).sum(),
        peak: cost::peak(),
        facts: json!({ "questions": questions }),
        lines: vec![("questions", questions.to_string())],
    };
    estimate.show(global)
}

fn record(suites: &[(String, Suite)], models: Vec<Value>) -> Value {
    let suite = |(name, suite): &(String, Suite)| json!({ "name": name, "about": suite.about, "suits": suite.suits, "score": suite.score.name(), "templates": suite.templates() });
    json!({ "suites": suites.iter().map(suite).collect::<Vec<_>>(), "models": models })
}

/// A line per model, suite, phrasing and number of examples; how choices of different length were scored.
fn summary(frame: &DataFrame, asked: &[Asked]) -> Result<String> {
    let text = |name: &str| -> Result<Vec<Option<String>>> {
        Ok(frame.column(name)?.str()?.iter().map(|x| x.map(str::to_string)).collect())
    };
    let (template, metric) = (text("template")?, text("metric")?);
    let (model, suite, phrasing) = (text("model")?, text("suite")?, text("phrasing")?);
    let shots: Vec<u32> = frame.column("shots")?.u32()?.into_no_null_iter().collect();
    let numbers = |name: &str| -> Result<Vec<f64>> {
        Ok(frame.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    };
    let (value, low, high) = (numbers("value")?, numbers("low")?, numbers("high")?);
    let mut lines =
        vec![" accuracy           chance   margin  rank    ece  model, suite, phrasing, examples".to_string()];
    for first in (0..frame.height()).filter(|&i| template[i].is_none() && metric[i].as_deref() == Some("accuracy")) {
        let of = |name: &str| {
            let same = |i: &usize| metric[*i].as_deref() == Some(name) && template[*i].is_none();
            let until = (first + 1..frame.height()).find(|&i| metric[i].as_deref() == Some("accuracy"));
            (first..until.unwrap_or(frame.height())).find(same).map(|i| value[i])
        };
        let shown = |x: Option<f64>, digits: usize| x.map_or("–".into(), |x| format!("{x:.digits$}"));
        let name = |column: &[Option<String>]| column[first].clone().unwrap_or_default();
        lines.push(format!(
            "   {:>6.3} [{:.3}, {:.3}] {:>5} {:>8} {:>5} {:>6}  {}, {}, {}, {}",
            value[first],
            low[first],
            high[first],
            shown(of("chance"), 3),
            shown(of("margin"), 3),
            shown(of("rank"), 0),
            shown(of("ece"), 3),
            name(&model),
            name(&suite),
            name(&phrasing),
            shots[first]
        ));
    }
    let lengths = |question: &Question| {
        let lengths = question.right.iter().chain(&question.wrong).map(|text| text.ids.len());
        lengths.clone().min() != lengths.max()
    };
    if asked.iter().any(|one| one.questions.iter().any(lengths)) {
        lines.push(
            "choices differ in length: they are scored as their suite says (score in run.json; sum without a word)"
                .into(),
        );
    }
    Ok(lines.join("\n"))
}

/// The suites that come with the workbench.
fn list(global: &Global) -> Result<()> {
    let (mut lines, mut values) = (Vec::new(), Vec::new());
    for (name, _) in SHIPPED {
        let suite = Suite::shipped(name).ok_or_else(|| Error::Bug(format!("{name} is gone")))??;
        let phrasings: Vec<&str> = suite.phrasings().collect();
        lines.push(format!(
            "{name:<20} {}\n{:21}for {}; {} templates; phrasings: {}",
            suite.about,
            "",
            suite.suits,
            suite.templates().len(),
            phrasings.join(", ")
        ));
        values.push(json!({ "suite": name, "suits": suite.suits, "about": suite.about, "templates": suite.templates(),
            "phrasings": phrasings }));
    }
    match global.format {
        Format::Text => say(global, &lines.join("\n")),
        Format::Csv => Err(request("the list of suites is text or json")),
        Format::Json => super::output::print(&(json!({ "rows": values }).to_string() + "\n")),
    }
}
