use interp::textset::TextSet;
use interp::train::Trainer;
use interp::{Error, Result};

use super::args::{Dtype, Global};
use super::bench::Bench;
use super::{request, training};

pub fn run(args: training::Args, global: &Global) -> Result<()> {
    let (recipe, base) = args.recipe(global)?;
    if recipe.data.language.is_some() {
        return Err(request("finetune reads text; train reads a language"));
    }
    let name = format!("{} {}", global.model, args.file.first().map_or("".into(), |path| path.display().to_string()));
    let kept = training::claim("finetune", &args, &recipe, &base, global, &name)?;
    // Weights are kept in f32, whatever they are multiplied in.
    let mut bench = Bench::open(&Global { dtype: Some(Dtype::F32), ..global.clone() })?;
    training::can_start(bench.config(), global)?;
    let block_size = recipe.block_size(bench.config())?;
    let tokenizer = bench.tokenizer()?.clone();
    if recipe.data.tokenizer.is_some() {
        return Err(request("finetune keeps the model's tokenizer; leave out data.tokenizer"));
    }
    let texts = training::texts(&recipe, &base, global)?;
    let tokens = texts.encode(&tokenizer, global.allow_special)?;
    let text = TextSet::new(tokens, recipe.train.seed, block_size)?;
    let vocab_size = bench.config().vocab_size;
    if text.largest() as usize >= vocab_size {
        return Err(Error::Request(format!(
            "the text holds token {}, which is not below the model's vocabulary size {vocab_size}: it was made with another \
             tokenizer",
            text.largest()
        )));
    }
    let origin = bench.source.digests()?.weights.join(" ");
    let trainer = Trainer::from_model(recipe, &bench.model, &origin, tokenizer, Box::new(text))?;
    drop(bench);
    training::run("finetune", trainer, kept, &args, global)
}
