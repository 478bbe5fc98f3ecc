use interp::figure;
use interp::site::{Site, resolve_index, resolve_layer};
use interp::{Result, attention};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Global, Text};
use super::bench::Bench;
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Layer; -1 is the last.
    #[arg(long, value_name = "L", value_parser = super::index, allow_negative_numbers = true)]
    layer: Option<i64>,
    /// Heads, as H or L.H, separated by commas [default: all].
    #[arg(long, value_name = "H", value_delimiter = ',')]
    head: Vec<String>,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    edits: Edits,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let (layer, heads) = place(&args, bench.config().n_layer, bench.config().n_head)?;
    let tokens = bench.tokens(global, &args.text)?;
    let plan = bench.plan(&args.edits)?.read(Site::Pattern(layer)).until(layer + 1);
    plan.check(bench.config(), &tokens)?;
    let name = format!("layer {layer} {}", bench.name(&tokens));
    let report = Report::begin("attention", global, &name)?;
    let (frame, applied) = bench.run(&plan, &tokens, |trace| attention::from_trace(trace, layer, heads.as_deref()))?;
    let outcome = Outcome {
        figure: figure::attention(&frame, 0)?,
        summary: summary(&frame, layer)?,
        frame,
        how: How { plan: &plan, applied, tokens: Some(&tokens), extra: json!({ "layer": layer }) },
    };
    report.finish(global, bench, outcome)
}

/// The layer and the heads that the options name.
fn place(args: &Args, layers: usize, heads: usize) -> Result<(usize, Option<Vec<usize>>)> {
    let mut layer = args.layer.map(|layer| resolve_layer(layer, layers)).transpose()?;
    let mut chosen = Vec::new();
    for text in &args.head {
        let (in_layer, head) = match text.split_once('.') {
            Some((layer, head)) => (Some(layer), head),
            None => (None, text.as_str()),
        };
        let number = |text: &str| super::index(text).map_err(|e| request(format!("--head: {e}")));
        if let Some(in_layer) = in_layer {
            let named = resolve_layer(number(in_layer)?, layers)?;
            match layer {
                Some(layer) if layer != named => {
                    return Err(request(format!("--head {text} is not in layer {layer}")));
                }
                _ => layer = Some(named),
            }
        }
        let head = resolve_index("head", number(head)?, heads)?;
        if !chosen.contains(&head) {
            chosen.push(head);
        }
    }
    match layer {
        Some(layer) => Ok((layer, (!chosen.is_empty()).then_some(chosen))),
        None => Err(request(format!("which layer? give --layer 0..={}, or --head L.H", layers - 1))),
    }
}

/// Where the last token of the first prompt looks, by head.
fn summary(frame: &DataFrame, layer: usize) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let texts = |name: &str| -> Result<Vec<String>> {
        Ok(frame.column(name)?.str()?.iter().map(|x| x.unwrap_or_default().to_string()).collect())
    };
    let (prompt, head, query, key) = (ints("prompt")?, ints("head")?, ints("query")?, ints("key")?);
    let (query_token, key_token) = (texts("query_token")?, texts("key_token")?);
    let weight: Vec<f32> = frame.column("weight")?.f32()?.into_no_null_iter().collect();
    let first: Vec<usize> = (0..frame.height()).filter(|&i| prompt[i] == 0).collect();
    let last = first.iter().map(|&i| query[i]).max().unwrap_or(0);
    let mut heads: Vec<u32> = first.iter().map(|&i| head[i]).collect();
    heads.dedup();
    let mut lines = Vec::new();
    for h in heads {
        let mut looks: Vec<usize> = first.iter().copied().filter(|&i| head[i] == h && query[i] == last).collect();
        looks.sort_by(|&a, &b| weight[b].total_cmp(&weight[a]));
        let shown: Vec<String> = looks
            .iter()
            .take(4)
            .map(|&i| format!("{}@{} {:.2}", figure::shown(&key_token[i]), key[i], weight[i]))
            .collect();
        lines.push(format!("  {layer}.{h:<3} {}", shown.join("   ")));
    }
    let token = first.iter().find(|&&i| query[i] == last).map(|&i| figure::shown(&query_token[i]));
    let title = format!("head   where the last token, {} at {last}, looks", token.unwrap_or_default());
    Ok(format!("{title}\n{}", lines.join("\n")))
}
