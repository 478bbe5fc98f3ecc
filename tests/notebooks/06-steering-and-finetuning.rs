// The cells of notebooks/06-steering-and-finetuning.ipynb: see tests/notebooks.rs.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
use interp::notebook::prelude::*;

let (model, tokenizer) = open("tiny")?; // "gpt2" for GPT-2 small: downloaded once, checked, kept in the Hugging Face cache;

use interp::{direction::{self, Method, Pool}, generate, steer, target::Target};
let up = tokenizer.tokens(&["The film was wonderful", "The book was great"], Encoding::default())?;
let down = tokenizer.tokens(&["The film was terrible", "The book was awful"], Encoding::default())?;
let (found, _) = direction::from_prompts(&model, &up, &down, &[Site::ResidPre(3)], Method::default(), Pool::default())?;
println!("{}: length {:.2}, of streams of length {:.2}", found[0].site, found[0].length, found[0].norm);

let prompt = tokenizer.tokens(&["The film was long. Everyone"], Encoding::default())?;
let target = Target::parse(&tokenizer, &[" loved"], &[" hated"])?;
let options = steer::Options {
    strengths: vec![-1.0, -0.5, 0.0, 0.5, 1.0],
    units: steer::Units::Natural,
    controls: 5,
    generate: generate::Options { max_new_tokens: 8, sampling: interp::sampling::Sampling { temperature: 0.0, ..Default::default() }, ..Default::default() },
};
let steered = steer::steer(&model, &tokenizer, &prompt, &found, Some(&target), &options, &mut |_, _| Ok(()))?;
figure::steer(&steered)?;

let own = steered.filter(&(steered.column("direction")?.str()?.equal("steering") & steered.column("text")?.is_not_null()))?;
show(&own.select(["strength", "value", "perplexity", "text"])?);

use interp::{recipe::Recipe, textset::TextSet, train::Trainer};
let lines: Vec<String> = interp::pairset::PairSet::shipped("tiny-ioi").unwrap()?
    .pairs(200, 0, &tokenizer, Encoding::default())?
    .iter()
    .map(|pair| format!("{} Linda.\n", pair.clean().joined(0).replace("<|endoftext|>", "")))
    .collect();
let learn = tokenizer.encode_long(&lines[..180].concat(), false)?;
let held_out = tokenizer.encode_long(&lines[180..].concat(), false)?;
let rows = TextSet::new((learn, held_out), 0, 64)?;
let recipe = Recipe::load_with(None, &["max_iters=30", "block_size=64", "batch_size=8", "learning_rate=1e-3", "warmup_iters=5"].map(String::from))?;
let mut trainer = Trainer::from_model(recipe, &model, "tiny", tokenizer.clone(), Box::new(rows))?;
let mut losses = vec![(0.0, trainer.validation_loss()?)];
while !trainer.is_done() {
    let step = trainer.step()?;
    if step.step % 5 == 0 {
        losses.push((step.step as f64, trainer.validation_loss()?));
    }
}
figure::Lines { title: "Fine-tuning".into(), x_name: "step".into(), y_name: "validation loss, nats".into(), lines: vec![figure::Line { name: "held-out lines".into(), points: losses.clone(), spread: Vec::new() }], x_labels: Vec::new() }.draw();

let tokens = tokenizer.tokens(&["When Mary and John went to the shop, John gave a drink to"], Encoding::default())?;
for (name, model) in [("before", &model), ("after", trainer.model())] {
    let top = interp::predict::top(model, &tokenizer, &tokens, 3)?.tail(Some(3));
    let words: Vec<String> = top.column("next")?.str()?.iter().flatten().map(figure::shown).collect();
    let chances: Vec<f32> = top.column("logprob")?.f32()?.iter().flatten().map(f32::exp).collect();
    println!("{name:<7} {words:?} {chances:.3?}");
};

Ok(())
}
