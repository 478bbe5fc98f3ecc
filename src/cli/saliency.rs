use interp::metric::Metric;
use interp::saliency::{self, Baseline, Saliency};
use interp::target::Target;
use interp::{Plan, Result, figure, page};
use serde_json::json;

use super::args::{Global, Text};
use super::bench::Bench;
use super::number::whole;
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The answer: one token, usually with a space before it.
    #[arg(long, value_name = "TOKEN")]
    answer: String,
    /// The answer it is compared with [needed for logit_diff and prob_diff].
    #[arg(long, value_name = "TOKEN")]
    wrong: Option<String>,
    /// What is attributed: logit_diff, prob, prob_diff, logprob [default: logit_diff, without --wrong logprob].
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// Where integrated gradients begin: zero embeddings, the mean embedding, or another prompt of the same length.
    #[arg(long, value_name = "zero|mean|TEXT", default_value = "zero")]
    baseline: String,
    /// Points on the way from there.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = whole(1, 10_000_usize))]
    steps: usize,
    /// Which of the three is drawn: integrated, gradient-input, gradient-norm.
    #[arg(long, value_enum, default_value = "integrated")]
    draw: Kind,
    #[command(flatten)]
    text: Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Integrated,
    GradientInput,
    GradientNorm,
}

impl Kind {
    fn column(self) -> &'static str {
        match self {
            Kind::Integrated => "integrated",
            Kind::GradientInput => "gradient_input",
            Kind::GradientNorm => "gradient_norm",
        }
    }
}

pub fn run(args: &Args, global: &Global) -> Result<()> {
    let usual = if args.wrong.is_some() { "logit_diff" } else { "logprob" };
    let metric = Metric::named(args.metric.as_deref().unwrap_or(usual))?;
    if [Metric::Kl, Metric::Rank].contains(&metric) {
        return Err(request("attribute logit_diff, prob, prob_diff or logprob: a rank has no gradient, and kl is 0"));
    }
    if [Metric::LogitDiff, Metric::ProbDiff].contains(&metric) && args.wrong.is_none() {
        return Err(request(format!("{} needs --wrong, the answer that it is compared with", metric.name())));
    }
    let bench = Bench::open(global)?;
    let tokenizer = bench.tokenizer()?;
    let tokens = bench.tokens(global, &args.text)?;
    let target = Target::parse(tokenizer, &[args.answer.as_str()], args.wrong.as_slice())?;
    let baseline = match args.baseline.as_str() {
        "zero" => Baseline::Zero,
        "mean" => Baseline::Mean,
        text => Baseline::Prompt(tokenizer.tokens(&[text], global.encoding())?),
    };
    let room = bench.room(global)?;
    let report = Report::begin("saliency", global, &bench.name(&tokens))?;
    let one =
        |row: usize| saliency::saliency(&bench.model, &tokens.only(row), &target, metric, &baseline, args.steps, room);
    let all = (0..tokens.len()).map(one).collect::<Result<Vec<Saliency>>>()?;
    let frame = saliency::frame(&tokens, &all)?;
    let extra = json!({
        "target": { "answers": target.answers(), "wrong": target.wrong() },
        "metric": metric.name(), "baseline": args.baseline, "steps": args.steps,
        "values": all.iter().map(|one| json!({ "value": one.value, "baseline": one.baseline, "gap": one.gap() })).collect::<Vec<_>>(),
    });
    let column = args.draw.column();
    let mut lines = Vec::new();
    for (row, one) in all.iter().enumerate() {
        lines.push(format!(
            "{} {:.4}, {:.4} at the baseline; integrated gradients miss the difference by {:+.4}",
            metric.name(),
            one.value,
            one.baseline,
            one.gap()
        ));
        for pos in 0..tokens.row(row).len() {
            lines.push(format!(
                "  {:>10.4} {:>10.4}  {}",
                one.integrated[pos],
                one.gradient_input[pos],
                interp::error::printable(&tokens.text(row, pos))
            ));
        }
    }
    lines.push("columns: integrated gradients, gradient × input".into());
    let outcome = Outcome {
        page: vec![page::saliency(&frame)?],
        figure: figure::saliency(&frame, column)?,
        summary: lines.join("\n"),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: Some(&tokens), extra },
    };
    report.finish(global, bench, outcome)
}
