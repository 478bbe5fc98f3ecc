// The cells of notebooks/03-finding-the-heads.ipynb: see tests/notebooks.rs.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
use interp::notebook::prelude::*;

let (model, tokenizer) = open("tiny")?; // "gpt2" for GPT-2 small: downloaded once, checked, kept in the Hugging Face cache;

use interp::{ablate, metric::Metric, pair::Pair, pairset::PairSet, patch, sweep::{Cell, Sweep}};
let set = PairSet::shipped("tiny-ioi").unwrap()?; // "ioi" for GPT-2
let pairs: Vec<Pair> = set.pairs(40, 0, &tokenizer, Encoding::default())?;
println!("{}\nclean   {}\ncorrupt {}", set.about, pairs[0].clean().joined(0), pairs[0].corrupt().joined(0));

let name = "attn_head_out_all_pos";
let sweeps = Sweep::named(name)?;
let mut patched = Vec::new();
for pair in &pairs {
    patched.push(patch::patch(&model, pair, &sweeps, patch::Options::default(), &mut |_, _| Ok(()))?);
}
let effects = patch::frame(&pairs, &patched, &[Metric::LogitDiff], 0)?;
figure::patch(&effects, &[name], "logit_diff")?;

let looks = interp::attention::of_layers(&model, pairs[0].clean(), 0..model.config().n_layer)?;
Page::new("Patching heads", vec![page::patch(&effects, &[name], "logit_diff")?, page::attention(&looks)?]);

use interp::circuits::{Basis, Circuits};
let random = interp::heads::repeated(model.config(), Some(&tokenizer), 2, 50, 0)?;
let atlas = interp::heads::atlas(&model, &random, None, &Circuits::of(&model, Basis::default()), &mut |_, _| Ok(()))?;
figure::heads(&atlas.frame)?;

let questions: Vec<_> = pairs.iter().map(|pair| pair.question().clone()).collect();
let reference: Vec<Tokens> = questions.iter().map(|question| question.tokens.clone()).collect();
let heads: Vec<Vec<Cell>> = (0..model.config().n_layer)
    .flat_map(|layer| (0..model.config().n_head).map(move |head| vec![Cell { head: Some(head), ..Cell::whole(Site::Z(layer)) }]))
    .collect();
let options = ablate::Options::default(); // means, and the logit difference
let ablated = ablate::ablate(&model, &questions, &reference, &heads, &options, &mut |_, _| Ok(()))?;
let changes = ablate::frame(&questions, &heads, 0, &ablated, &options)?;
figure::ablate(&changes, "logit_diff")?;

let means = changes.filter(&changes.column("prompt")?.is_null())?;
let change: Vec<f64> = means.column("change")?.f64()?.iter().flatten().collect();
let mut order: Vec<usize> = (0..change.len()).collect();
order.sort_by(|a, b| change[*a].total_cmp(&change[*b]));
for i in order.into_iter().take(4) {
    println!("{:<8} {:+.2}", means.column("what")?.str()?.get(i).unwrap_or(""), change[i]);
};

Ok(())
}
