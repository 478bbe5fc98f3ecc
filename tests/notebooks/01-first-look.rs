// The cells of notebooks/01-first-look.ipynb: see tests/notebooks.rs.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
use interp::notebook::prelude::*;

let (model, tokenizer) = open("tiny")?; // "gpt2" for GPT-2 small: downloaded once, checked, kept in the Hugging Face cache;

let prompt = "When Mary and John went to the shop, John gave a drink to";
let tokens = tokenizer.tokens(&[prompt], Encoding::default())?;
show(&DataFrame::new_infer_height(interp::frame::token_columns(&tokens))?);

let predictions = interp::predict::top(&model, &tokenizer, &tokens, 8)?;
figure::predict(&predictions, 0)?;

use interp::lens::{self, LayerNormConvention};
let layers = lens::logit_lens(&model, &tokenizer, &tokens, 5, LayerNormConvention::Recompute)?;
figure::lens(&layers, 0)?;

Page::new("Logit lens", vec![page::lens(&layers)?]);

let patterns = interp::attention::of_layers(&model, &tokens, 0..model.config().n_layer)?;
show(&patterns);

let layer = patterns.filter(&patterns.column("layer")?.u32()?.equal(0))?;
figure::attention(&layer, 0)?;

Page::new("Attention", vec![page::attention(&patterns)?]);

Ok(())
}
