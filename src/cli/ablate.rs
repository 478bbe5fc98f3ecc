use std::path::PathBuf;
use std::time::Instant;

use interp::ablate::{self, Ablated, Measure, Method, Options, random_sets};
use interp::error::no_such;
use interp::metric::Metric;
use interp::pair::Question;
use interp::sweep::{self, Cell, Sweep};
use interp::target::Target;
use interp::{Error, Plan, Result, Tokens, figure, heads, limits, memory, page, stats};
use serde_json::json;

use super::args::{Global, Text};
use super::bench::Bench;
use super::cost::{self, Estimate};
use super::honours::OF_TEXT;
use super::number::whole;
use super::output::{bar, counted};
use super::pairs::PairArgs;
use super::prompts::read_prompts;
use super::report::{How, Outcome, Report};
use super::{note, request};

/// Random sets that a set is compared with.
const CONTROLS: u64 = 20;
/// Bytes that an experiment takes with its summary, and each of its rows, of which every prompt has one: for the check of memory before the run.
const CELL_BYTES: u64 = 512;
const ROW_BYTES: u64 = 512;
/// Rows of --repeated.
const REPEATED_ROWS: usize = 4;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pairs: PairArgs,
    #[command(flatten)]
    text: Text,
    /// Instead of prompts: four rows of this many random tokens, written twice; the loss is of the second copy.
    #[arg(long, value_name = "LENGTH", value_parser = whole(2, limits::POSITIONS), conflicts_with_all = ["prompt", "file", "stdin"])]
    repeated: Option<usize>,
    /// What to put out of action, one after the other: heads, layers, neurons, positions (attention and MLP at each one),
    /// edges (attention from one position to another), or a sweep of `patch` by its name.
    #[arg(long, value_name = "PARTS", default_value = "heads")]
    what: String,
    /// Only these heads: 5.1, several with commas.
    #[arg(long, value_name = "L.H", value_delimiter = ',')]
    head: Vec<String>,
    /// Only these neurons: 3.17, several with commas.
    #[arg(long, value_name = "L.N", value_delimiter = ',', conflicts_with = "head")]
    neuron: Vec<String>,
    /// Only these layers: 5, -1 for the last, 3-7.
    #[arg(long, value_name = "LAYERS")]
    layer: Option<String>,
    /// All of them at once, beside random sets of as many.
    #[arg(long)]
    together: bool,
    /// What takes their place: zero, mean, pos-mean, resample, or for edges knockout.
    #[arg(long, value_name = "METHOD", default_value = "mean", value_parser = method)]
    method: Method,
    /// The prompts that means and samples are taken of: `prompts` themselves, `corrupt` ones of the pairs, or a text file.
    #[arg(long, value_name = "SET", default_value = "prompts")]
    reference: String,
    /// What to measure: loss, logit_diff, prob, prob_diff, logprob, rank, kl; several with commas, the first is drawn
    /// [default: logit_diff and loss, or loss and kl for prompts without an answer].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    metric: Vec<String>,
    /// Only say how long it would take and how much memory, from some prompts that are measured and forgotten.
    #[arg(long)]
    dry_run: bool,
}

/// Prompts that a dry run ablates.
const SAMPLE: usize = 5;

fn method(name: &str) -> std::result::Result<Method, String> {
    let found = Method::ALL.into_iter().find(|method| method.name() == name);
    found.ok_or_else(|| no_such("method", name, Method::ALL.into_iter().map(Method::name)))
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let sweeps = sweeps(&args)?;
    let of_text = args.text.is_given() || args.repeated.is_some();
    let measures = measures(&args.metric, !of_text)?;
    let asked = if of_text { None } else { Some(args.pairs.read(false)?) };
    if of_text && args.pairs.is_given() {
        return Err(request(
            "give prompts by --prompt, --file or --repeated, or questions by --clean or --pairs, not both",
        ));
    }
    if !args.text.is_given() {
        args.text.refuse(if args.repeated.is_some() {
            "the tokens are random ones"
        } else {
            "the prompts are of pairs"
        })?;
    }
    // Reference prompts from a file are text, beside random tokens too.
    let reads = args.repeated.is_none()
        || (args.method.has_reference() && !["prompts", "corrupt"].contains(&args.reference.as_str()));
    if !reads {
        global.refuse(OF_TEXT, "the tokens of --repeated are random ones")?;
    }
    if !args.method.has_reference() {
        global.refuse(&["reference"], &format!("{} takes nothing from other prompts", args.method.name()))?;
    }
    let bench = Bench::open(global)?;
    let (questions, mut extra) = match &asked {
        Some(asked) => asked.questions(&bench, global, &args.pairs.draw)?,
        None => {
            let tokens = match args.repeated {
                Some(length) => {
                    let tokenizer = bench.tokenizer.as_ref();
                    heads::repeated(bench.config(), tokenizer, REPEATED_ROWS, length, global.seed)?
                }
                None => bench.tokens(global, &args.text)?,
            };
            (
                (0..tokens.len()).map(|i| Question { tokens: tokens.only(i), target: Target::none() }).collect(),
                json!({}),
            )
        }
    };
    let chosen = cells(&args, &sweeps, &bench, &questions, global)?;
    let reference = reference(&args, asked.as_ref(), &bench, global, &questions)?;
    let (experiments, controls) = experiments(&args, &sweeps, chosen, &bench, &questions, global.seed)?;
    let options = Options {
        method: args.method,
        measures,
        seed: global.seed,
        // Of repeated tokens only the second copy can be known, from its second token on.
        loss_from: if args.repeated.is_some() { questions[0].tokens.longest() / 2 } else { 0 },
        memory: bench.room(global)?,
    };
    if args.dry_run {
        return estimate(&bench, &questions, &reference, &experiments, &options, global);
    }
    let first = bench.name(&questions[0].tokens);
    let name = format!("{} {} {}", args.what, args.method.name(), asked.as_ref().map_or(&first, |asked| &asked.name));
    let report = Report::begin("ablate", global, &name)?;

    let start = Instant::now();
    let bar = bar(global.quiet, 0, "{pos}/{len} ablations [{wide_bar}] {per_sec}, {eta} left");
    let mut progress = counted(&bar);
    let ablated = ablate::ablate(&bench.model, &questions, &reference, &experiments, &options, &mut progress);
    bar.finish_and_clear();
    let ablated = ablated?;
    let seconds = start.elapsed().as_secs_f64();
    let frame = ablate::frame(&questions, &experiments, controls, &ablated, &options)?;
    let untouched: usize = ablated.iter().map(|one| one.untouched).sum();
    if untouched > 0 {
        let all = experiments.len() * questions.len();
        note(
            global.quiet,
            &format!("note: {untouched} of {all} ablations changed nothing: the values were so already"),
        );
    }
    let tokens = Tokens::stack(questions.iter().map(|question| &question.tokens))?;
    if !reads {
        extra["bos"] = serde_json::Value::Null;
    }
    extra["what"] = json!(args.what);
    extra["method"] = json!(args.method.name());
    extra["reference"] = json!(args.method.has_reference().then_some(&args.reference));
    extra["reference_prompts"] = json!(args.method.has_reference().then_some(reference.len()));
    extra["loss_from"] = json!(options.loss_from);
    extra["untouched"] = json!(untouched);
    extra["ablation_seconds"] = json!(seconds);
    let outcome = Outcome {
        page: vec![page::ablate(&frame, options.measures[0].name())?],
        figure: figure::ablate(&frame, options.measures[0].name())?,
        summary: summary(&args, &experiments, controls, &ablated, &options, seconds),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

fn sweeps(args: &Args) -> Result<Vec<Sweep>> {
    let names: &[&str] = match args.what.as_str() {
        "heads" => &["attn_head_out_all_pos"],
        "layers" => &["attn_out_all_pos", "mlp_out_all_pos"],
        "neurons" => &["mlp_neuron_all_pos"],
        "positions" => &["attn_out", "mlp_out"],
        "edges" => &["attn_head_pattern_dest_src_pos"],
        sweep => &[sweep],
    };
    let mut sweeps = Vec::new();
    for name in names {
        let parts = ["heads", "layers", "neurons", "positions", "edges"].into_iter();
        sweeps.extend(
            Sweep::named(name).map_err(|_| request(no_such("part or sweep", name, parts.chain(sweep::names()))))?,
        );
    }
    Ok(sweeps)
}

fn measures(names: &[String], answers: bool) -> Result<Vec<Measure>> {
    if names.is_empty() {
        return Ok(match answers {
            true => vec![Measure::Of(Metric::LogitDiff), Measure::Loss],
            false => vec![Measure::Loss, Measure::Of(Metric::Kl)],
        });
    }
    let measures = names.iter().map(|name| Measure::named(name)).collect::<Result<Vec<_>>>()?;
    let needs_answer = |measure: &&Measure| !matches!(measure, Measure::Loss | Measure::Of(Metric::Kl));
    match measures.iter().find(needs_answer) {
        Some(measure) if !answers => Err(request(format!(
            "{} is about an answer; give --clean, --answer and --wrong, or --pairs; prompts alone have loss and kl",
            measure.name()
        ))),
        _ => Ok(measures),
    }
}

/// The cells that were asked for.
fn cells(args: &Args, sweeps: &[Sweep], bench: &Bench, questions: &[Question], global: &Global) -> Result<Vec<Cell>> {
    let config = bench.config();
    if let Some((name, lengths)) = sweep::misaligned(sweeps, questions.iter().map(|q| q.tokens.longest())) {
        return Err(request(format!(
            "{name} goes by position, but the prompts have {lengths:?} tokens: give prompts of one length (--template N draws such pairs)"
        )));
    }
    let length = questions.first().map_or(1, |question| question.tokens.longest());
    let layers = args.layer.as_deref().map(|layers| super::layer_range(layers, config.n_layer)).transpose()?;
    let heads = places(&args.head, "head", config.n_layer, config.n_head)?;
    let neurons = places(&args.neuron, "neuron", config.n_layer, config.n_inner)?;
    let count = sweeps.iter().fold(0, |sum: u64, sweep| sum.saturating_add(sweep.count(config, length)));
    let needed = count.saturating_mul(CELL_BYTES + ROW_BYTES * questions.len() as u64);
    memory::check(&format!("{count} ablations, with their frame,"), needed, bench.room(global)?)?;
    let mut cells: Vec<Cell> = sweeps.iter().flat_map(|sweep| sweep.cells(config, length)).collect();
    cells.retain(|cell| {
        does_something(cell)
            && layers.is_none_or(|(first, last)| (first..=last).contains(&cell.layer))
            && (heads.is_empty() || cell.head.is_some_and(|head| heads.contains(&(cell.layer, head))))
            && (neurons.is_empty() || cell.neuron.is_some_and(|neuron| neurons.contains(&(cell.layer, neuron))))
    });
    if cells.is_empty() {
        return Err(request(format!("none of {} is what --head, --neuron and --layer leave", args.what)));
    }
    let named = heads.iter().map(|&(layer, head)| ("head", layer, head, Some(head), None));
    let named = named.chain(neurons.iter().map(|&(layer, neuron)| ("neuron", layer, neuron, None, Some(neuron))));
    for (what, layer, index, head, neuron) in named {
        let is_it = |cell: &Cell| cell.layer == layer && (head.is_none() || cell.head == head);
        if !cells.iter().any(|cell| is_it(cell) && (neuron.is_none() || cell.neuron == neuron)) {
            return Err(request(format!(
                "{what} {layer}.{index} is none of the {} that --layer and --{what} leave",
                args.what
            )));
        }
    }
    Ok(cells)
}

/// Not so an edge to the future, which is hidden already, or of the first token, which sees nothing but itself.
fn does_something(cell: &Cell) -> bool {
    cell.key.is_none_or(|key| cell.pos.is_some_and(|pos| key <= pos && pos > 0))
}

/// `5.1` as layer and index, checked against the model.
fn places(names: &[String], what: &str, layers: usize, width: usize) -> Result<Vec<(usize, usize)>> {
    let parse = |name: &String| {
        let (layer, index) = name
            .split_once('.')
            .and_then(|(layer, index)| Some((layer.parse().ok()?, index.parse().ok()?)))
            .ok_or_else(|| {
                request(format!("`{}` is no {what}; write LAYER.{}", name.escape_debug(), what.to_uppercase()))
            })?;
        let layer = interp::site::resolve_index("layer", layer, layers)?;
        Ok((layer, interp::site::resolve_index(what, index, width)?))
    };
    names.iter().map(parse).collect()
}

/// Ablates the first prompts, to say how long all of them would take.
fn estimate(
    bench: &Bench,
    questions: &[Question],
    reference: &[Tokens],
    experiments: &[Vec<Cell>],
    options: &Options,
    global: &Global,
) -> Result<()> {
    let tokens = |some: &[Question]| some.iter().map(|question| question.tokens.longest()).sum::<usize>() as f64;
    let time = |sample: &[Question]| -> Result<f64> {
        let start = Instant::now();
        ablate::ablate(&bench.model, sample, reference, experiments, options, &mut |_, _| Ok(()))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let (few, more) = (&questions[..1], &questions[..SAMPLE.min(questions.len())]);
    if more.len() > 1 {
        time(few)?; // touches all memory for the first time
    }
    // What does not grow with the prompts, such as reading the references, counts once.
    let (short, long) = (time(few)?, if more.len() > 1 { time(more)? } else { 0.0 });
    let each = if more.len() > 1 { (long - short).max(0.0) / (tokens(more) - tokens(few)) } else { 0.0 };
    let all = experiments.len() * questions.len();
    Estimate {
        seconds: bench.load_seconds + short + each * (tokens(questions) - tokens(few)),
        peak: cost::peak(),
        facts: json!({ "prompts": questions.len(), "ablations": all }),
        lines: vec![("prompts", format!("{}, {all} ablations", questions.len()))],
    }
    .show(global)
}

/// Each cell by itself, or all at once followed by random sets.
fn experiments(
    args: &Args,
    sweeps: &[Sweep],
    chosen: Vec<Cell>,
    bench: &Bench,
    questions: &[Question],
    seed: u64,
) -> Result<(Vec<Vec<Cell>>, usize)> {
    if !args.together {
        return Ok((chosen.into_iter().map(|cell| vec![cell]).collect(), 0));
    }
    let length = questions.first().map_or(1, |question| question.tokens.longest());
    let all: Vec<Cell> =
        sweeps.iter().flat_map(|sweep| sweep.cells(bench.config(), length)).filter(does_something).collect();
    let random = random_sets(&chosen, &all, CONTROLS, seed);
    let controls = random.len();
    Ok((std::iter::once(chosen).chain(random).collect(), controls))
}

fn reference(
    args: &Args,
    asked: Option<&super::pairs::Asked>,
    bench: &Bench,
    global: &Global,
    questions: &[Question],
) -> Result<Vec<Tokens>> {
    if !args.method.has_reference() {
        return Ok(Vec::new());
    }
    match (args.reference.as_str(), asked) {
        ("prompts", _) => {
            let prompts: Vec<Tokens> = questions.iter().map(|question| question.tokens.clone()).collect();
            if prompts.len() == 1 && args.method != Method::Mean {
                return Err(request(format!(
                    "{} of the one prompt itself changes nothing; give several prompts, or others by --reference",
                    args.method.name()
                )));
            }
            Ok(prompts)
        }
        ("corrupt", Some(_)) if args.pairs.clean.is_some() && args.pairs.corrupt.is_none() => {
            Err(request("--reference corrupt needs --corrupt beside --clean"))
        }
        ("corrupt", Some(asked)) => {
            let pairs = asked.pairs(bench, global, &args.pairs.draw)?;
            Ok(pairs.pairs.iter().map(|pair| pair.corrupt().clone()).collect())
        }
        ("corrupt", None) => Err(request("--reference corrupt needs pairs; give --pairs, or --clean and --corrupt")),
        (path, _) => {
            let text = Text { file: Some(PathBuf::from(path)), ..Text::default() };
            let tokens = bench.tokenizer()?.tokens(&read_prompts(&text, global)?, global.encoding())?;
            tokens.check(bench.config(), 0)?;
            Ok((0..tokens.len()).map(|i| tokens.only(i)).collect())
        }
    }
    .and_then(|prompts: Vec<Tokens>| match prompts.is_empty() {
        true => Err(Error::Request("the reference holds no prompt".into())),
        false => Ok(prompts),
    })
}

/// What changed most, beside the spread of all or the random sets.
fn summary(
    args: &Args,
    experiments: &[Vec<Cell>],
    controls: usize,
    ablated: &[Ablated],
    options: &Options,
    seconds: f64,
) -> String {
    let n = ablated.len();
    let changes =
        |i: usize, m: usize| -> Vec<f64> { ablated.iter().map(|one| one.values[i][m] - one.base[m]).collect() };
    let mut lines = vec![format!(
        "{} ablations by {} on {n} prompt{} in {seconds:.2} s",
        experiments.len() * n,
        options.method.name(),
        if n == 1 { "" } else { "s" }
    )];
    for (m, measure) in options.measures.iter().enumerate() {
        let base = ablated.iter().map(|one| one.base[m]).sum::<f64>() / n as f64;
        lines.push(format!("{}: {base:.3} as it is", measure.name()));
        let mean = |i: usize| changes(i, m).iter().sum::<f64>() / n as f64;
        if args.together {
            let found = stats::bootstrap(&changes(0, m), options.seed);
            let interval = found.bounds.map_or(String::new(), |(low, high)| format!(" [{low:+.3}, {high:+.3}]"));
            let what = experiments[0].iter().map(Cell::to_string).collect::<Vec<_>>();
            let shown = if what.len() > 8 { format!("{} parts", what.len()) } else { what.join(", ") };
            lines.push(format!("  without {shown}: {:+.3}{interval}", found.mean));
            let random: Vec<f64> = (experiments.len() - controls..experiments.len()).map(mean).collect();
            let (low, high) = stats::spread(&random);
            lines.push(match controls {
                0 => "  no random set: there are not as many others".to_string(),
                _ => format!(
                    "  without as many random ones: {:+.3} on average, 95 % within {low:+.3} … {high:+.3} ({controls} sets)",
                    random.iter().sum::<f64>() / controls as f64
                ),
            });
            continue;
        }
        let mut order: Vec<(f64, usize)> = (0..experiments.len()).map(|i| (mean(i), i)).collect();
        let (low, high) = stats::spread(&order.iter().map(|(change, _)| *change).collect::<Vec<_>>());
        order.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
        for (change, i) in order.iter().take(8) {
            let found = stats::bootstrap(&changes(*i, m), options.seed);
            let interval = found.bounds.map_or(String::new(), |(low, high)| format!("  [{low:+.3}, {high:+.3}]"));
            lines.push(format!("  without {:<18} {change:+.3}{interval}", experiments[*i][0].to_string()));
        }
        if order.len() > 8 {
            lines.push(format!("  95 % of all lie within {low:+.3} … {high:+.3}"));
        }
    }
    lines.join("\n")
}
