use std::ops::Range;

use interp::figure;
use interp::site::{Site, resolve_index, resolve_layer};
use interp::{Result, attention, memory, page};
use polars::prelude::DataFrame;
use serde_json::json;

use super::args::{Edits, Global, Text};
use super::bench::Bench;
use super::report::{How, Outcome, Report};
use super::request;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Layer; -1 is the last, 3-5 are several, all is every one.
    #[arg(long, value_name = "L")]
    layer: Option<String>,
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
    let (layers, heads) = place(&args, bench.config().n_layer, bench.config().n_head)?;
    let tokens = bench.tokens(global, &args.text)?;
    let plan = bench.plan(&args.edits)?.reads(layers.clone().map(Site::Pattern)).until(layers.end);
    bench.check(&plan, &tokens)?;
    let shown = heads.as_ref().map_or(bench.config().n_head, Vec::len);
    memory::check("the frame of patterns", attention::frame_bytes(&tokens, layers.len(), shown), bench.room(global)?)?;
    let named = match layers.len() {
        1 => format!("layer {}", layers.start),
        _ => format!("layers {}-{}", layers.start, layers.end - 1),
    };
    let report = Report::begin("attention", global, &format!("{named} {}", bench.name(&tokens)))?;
    let (frame, applied) =
        bench.run(&plan, &tokens, |trace| attention::from_layers(trace, layers.clone(), heads.as_deref()))?;
    let layer = if layers.len() == 1 { json!(layers.start) } else { layers.collect() };
    let outcome = Outcome {
        page: vec![page::attention(&frame)?],
        figure: figure::attention(&frame, 0)?,
        summary: summary(&frame)?,
        frame,
        how: How { plan: &plan, applied, tokens: Some(&tokens), extra: json!({ "layer": layer }) },
    };
    report.finish(global, bench, outcome)
}

/// The layers and the heads that the options name.
fn place(args: &Args, layers: usize, heads: usize) -> Result<(Range<usize>, Option<Vec<usize>>)> {
    let mut wanted = args.layer.as_deref().map(|text| range(text, layers)).transpose()?;
    let mut chosen = Vec::new();
    for text in &args.head {
        let (in_layer, head) = match text.split_once('.') {
            Some((layer, head)) => (Some(layer), head),
            None => (None, text.as_str()),
        };
        let number = |text: &str| super::index(text).map_err(|e| request(format!("--head: {e}")));
        if let Some(in_layer) = in_layer {
            let named = resolve_layer(number(in_layer)?, layers)?;
            match &wanted {
                Some(wanted) if *wanted != (named..named + 1) => {
                    let fault = match wanted.len() {
                        1 => format!("--head {text} is not in layer {}", wanted.start),
                        _ => format!("--head {text} is of one layer, and --layer names several; give --head H"),
                    };
                    return Err(request(fault));
                }
                _ => wanted = Some(named..named + 1),
            }
        }
        let head = resolve_index("head", number(head)?, heads)?;
        if !chosen.contains(&head) {
            chosen.push(head);
        }
    }
    match wanted {
        Some(wanted) => Ok((wanted, (!chosen.is_empty()).then_some(chosen))),
        None => Err(request(format!("which layer? give --layer 0..={}, or --head L.H", layers - 1))),
    }
}

/// One layer, several as 3-5, or all.
fn range(text: &str, layers: usize) -> Result<Range<usize>> {
    if text == "all" {
        return Ok(0..layers);
    }
    if text.trim_start_matches('-').contains('-') {
        let (first, last) = super::layer_range(text, layers)?;
        return Ok(first..last + 1);
    }
    let layer = super::index(text).map_err(|e| request(format!("--layer: {e}")))?;
    let layer = resolve_layer(layer, layers)?;
    Ok(layer..layer + 1)
}

/// Where the last token of the first prompt looks, by head.
fn summary(frame: &DataFrame) -> Result<String> {
    let ints = |name: &str| -> Result<Vec<u32>> { Ok(frame.column(name)?.u32()?.into_no_null_iter().collect()) };
    let texts = |name: &str| -> Result<Vec<String>> {
        Ok(frame.column(name)?.str()?.iter().map(|x| x.unwrap_or_default().to_string()).collect())
    };
    let (prompt, layer, head) = (ints("prompt")?, ints("layer")?, ints("head")?);
    let (query, key) = (ints("query")?, ints("key")?);
    let (query_token, key_token) = (texts("query_token")?, texts("key_token")?);
    let weight: Vec<f32> = frame.column("weight")?.f32()?.into_no_null_iter().collect();
    let first: Vec<usize> = (0..frame.height()).filter(|&i| prompt[i] == 0).collect();
    let last = first.iter().map(|&i| query[i]).max().unwrap_or(0);
    let mut heads: Vec<(u32, u32)> = first.iter().map(|&i| (layer[i], head[i])).collect();
    heads.dedup();
    let mut lines = Vec::new();
    let ends: Vec<usize> = first.iter().copied().filter(|&i| query[i] == last).collect();
    for (l, h) in heads {
        let mut looks: Vec<usize> = ends.iter().copied().filter(|&i| (layer[i], head[i]) == (l, h)).collect();
        looks.sort_by(|&a, &b| weight[b].total_cmp(&weight[a]));
        let shown: Vec<String> = looks
            .iter()
            .take(4)
            .map(|&i| format!("{}@{} {:.2}", figure::shown(&key_token[i]), key[i], weight[i]))
            .collect();
        lines.push(format!("  {l}.{h:<3} {}", shown.join("   ")));
    }
    let token = first.iter().find(|&&i| query[i] == last).map(|&i| figure::shown(&query_token[i]));
    let title = format!("head   where the last token, {} at {last}, looks", token.unwrap_or_default());
    Ok(format!("{title}\n{}", lines.join("\n")))
}
