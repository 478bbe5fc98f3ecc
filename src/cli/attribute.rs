use interp::attribution::{self, Attributed, By};
use interp::convention::LayerNormConvention;
use interp::target::Target;
use interp::{Plan, Result, Tokens, figure, limits, memory, page};
use serde_json::json;

use super::args::{Global, Text};
use super::bench::{Bench, batches};
use super::number::whole;
use super::pairs::{Asked, Draw, asked};
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The answer: one token, usually with a space before it.
    #[arg(long, value_name = "TOKEN", required_unless_present = "pairs")]
    answer: Option<String>,
    /// The answer it is compared with; without it the logit of the answer alone is attributed.
    #[arg(long, value_name = "TOKEN", requires = "answer")]
    wrong: Option<String>,
    /// Several prompts with their answers, the clean ones of pairs: the name of a set (`interp pairs` lists them), a set as
    /// TOML, or a list as JSON lines, a JSON array or CSV.
    #[arg(long, value_name = "SET", conflicts_with_all = ["answer", "prompt", "file", "stdin"])]
    pairs: Option<String>,
    #[command(flatten)]
    draw: Draw,
    /// How finely the model is taken apart: component, head or neuron [default: head, with --neurons neuron].
    #[arg(long, value_name = "LEVEL", conflicts_with = "accumulated")]
    by: Option<String>,
    /// How many neurons have a row of their own, the strongest; the others are one row per layer [default: 50].
    #[arg(long, value_name = "K", value_parser = whole(0, limits::RANKED), conflicts_with = "accumulated")]
    neurons: Option<usize>,
    /// The logit (difference) that the model would have if it stopped at each layer.
    #[arg(long)]
    accumulated: bool,
    /// How an intermediate stream passes the last LayerNorm: final-scale or recompute (the logit lens).
    #[arg(long, value_name = "CONVENTION", default_value = "final-scale", requires = "accumulated")]
    ln: String,
    /// The position whose logits are attributed; negative ones count from the end.
    #[arg(long, value_name = "POS", default_value = "-1", value_parser = super::index)]
    pos: i64,
    #[command(flatten)]
    text: Text,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let by: By = match (&args.by, args.neurons) {
        (Some(by), Some(_)) if by != "neuron" => return Err(request(format!("--neurons needs --by neuron, not {by}"))),
        (Some(by), _) => by.parse()?,
        (None, Some(_)) => By::Neuron,
        (None, None) => By::default(),
    };
    let convention: LayerNormConvention = args.ln.parse()?;
    if let (None, Some(option)) = (&args.pairs, args.draw.given()) {
        return Err(request(format!("{option} goes with --pairs")));
    }
    let asked = args.pairs.as_deref().map(|name| asked(name, &args.draw)).transpose()?;
    let bench = Bench::open(global)?;
    let tokenizer = bench.tokenizer()?;
    let (tokens, targets) = requested(&args, asked.as_ref(), &bench, global)?;
    let level = if args.accumulated { format!("accumulated {convention}") } else { by.to_string() };
    let report = Report::begin("attribute", global, &format!("{level} {}", bench.name(&tokens)))?;
    let mut attributed: Vec<Attributed> = Vec::new();
    for (first, batch) in batches(&tokens) {
        attributed.extend(memory::in_batches(batch.len(), batch.len(), &mut |part| {
            let targets = &targets[first + part.start..first + part.end];
            match (args.accumulated, &batch.slice(part)) {
                (true, batch) => attribution::accumulated(&bench.model, batch, targets, convention, args.pos),
                (false, batch) => attribution::attribute(&bench.model, batch, targets, by, args.pos),
            }
        })?);
    }
    let neurons = args.neurons.unwrap_or(50);
    let frame = attribution::frame(&attributed, convention, neurons, tokenizer, global.seed)?;
    let remainder = attributed.iter().map(|one| one.remainder().abs()).fold(0.0, f64::max);
    let mut extra = json!({
        "targets": targets.iter().map(|t| json!({ "answers": t.answers(), "wrong": t.wrong() })).collect::<Vec<_>>(),
        "level": level, "pos": args.pos, "values": attributed.iter().map(|one| one.value).collect::<Vec<_>>(),
    });
    if !args.accumulated {
        extra["largest_remainder"] = json!(remainder);
    }
    let outcome = Outcome {
        page: if args.accumulated { Vec::new() } else { vec![page::attribution(&frame)?] },
        figure: if args.accumulated { figure::accumulated(&frame)? } else { figure::attribution(&frame)? },
        summary: if args.accumulated { course(&attributed) } else { summary(&attributed, remainder) },
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}

/// The prompts, and what is measured after each.
fn requested(args: &Args, asked: Option<&Asked>, bench: &Bench, global: &Global) -> Result<(Tokens, Vec<Target>)> {
    let tokenizer = bench.tokenizer()?;
    let Some(asked) = asked else {
        let tokens = bench.tokens(global, &args.text)?;
        let target = Target::parse(tokenizer, args.answer.as_slice(), args.wrong.as_slice())?;
        let targets = vec![target; tokens.len()];
        return Ok((tokens, targets));
    };
    args.text.refuse("the prompts are of pairs")?;
    let (questions, _) = asked.questions(bench, global, &args.draw)?;
    let tokens = Tokens::stack(questions.iter().map(|question| &question.tokens))?;
    tokens.check(bench.config(), 0)?;
    let targets = questions.into_iter().map(|question| question.target).collect();
    Ok((tokens, targets))
}

/// Mean shares over prompts, by component.
fn means(attributed: &[Attributed]) -> Vec<(String, f64)> {
    let n = attributed.len() as f64;
    let mean = |i: usize| attributed.iter().map(|one| one.parts[i].1).sum::<f64>() / n;
    attributed[0].parts.iter().enumerate().map(|(i, (component, _))| (component.to_string(), mean(i))).collect()
}

fn head(attributed: &[Attributed]) -> String {
    let n = attributed.len();
    let value = attributed.iter().map(|one| one.value).sum::<f64>() / n as f64;
    let over = if n > 1 { format!(", mean of {n} prompts") } else { String::new() };
    format!("{} {value:.4}{over}", attributed[0].target.kind())
}

fn summary(attributed: &[Attributed], remainder: f64) -> String {
    let mut rows = means(attributed);
    let bias = rows.pop().map_or(0.0, |(_, bias)| bias);
    rows.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let mut lines = vec![format!("{} is the sum of", head(attributed))];
    lines.extend(rows.iter().take(12).map(|(name, share)| format!("  {name:<16} {share:>+9.4}")));
    if rows.len() > 12 {
        let rest: f64 = rows[12..].iter().map(|(_, share)| share).sum();
        lines.push(format!("  {:<16} {rest:>+9.4}", format!("{} others", rows.len() - 12)));
    }
    lines.push(format!("  {:<16} {bias:>+9.4}", "ln_final_bias"));
    lines.push(format!("  remainder {remainder:.1e}: what rounding leaves, at most"));
    lines.join("\n")
}

fn course(attributed: &[Attributed]) -> String {
    let mut lines = vec![format!("{}; if the model stopped there it would be", head(attributed))];
    lines.extend(means(attributed).iter().map(|(name, value)| format!("  {name:<16} {value:>+9.4}")));
    lines.join("\n")
}
