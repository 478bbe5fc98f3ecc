use interp::language::Language;
use interp::textset::TextSet;
use interp::train::Trainer;
use interp::{Result, Tokenizer, weights};

use super::args::Global;
use super::{apart, note, request, training};

pub fn run(args: training::Args, global: &Global) -> Result<()> {
    let (recipe, base) = args.recipe(global)?;
    let device = super::bench::device(global)?;
    let name = args.config.as_ref().map_or("scratch".into(), |path| path.display().to_string());
    let kept = training::claim("train", &args, &recipe, &base, global, &name)?;
    let trainer = match &recipe.data.language {
        Some(_) if global.allow_special => {
            return Err(request("--allow-special reads text; a language writes its own"));
        }
        Some(path) => {
            let path = base.join(path);
            let shape = recipe.shape()?;
            training::can_start(&shape.config(shape.vocab_size)?, global)?;
            let language = Language::parse(&weights::read_text(&path, 4 << 20)?, &path)?;
            Trainer::from_language(recipe, language, &device)?
        }
        None => {
            let shape = recipe.shape()?;
            let texts = training::texts(&recipe, &base, global)?;
            let tokenizer = match (&global.tokenizer, recipe.data.tokenizer, texts.vocabulary()) {
                (Some(_), Some(_), _) => {
                    return Err(request("--tokenizer and the recipe's data.tokenizer exclude each other"));
                }
                (Some(path), None, _) => Tokenizer::load(path)?,
                (None, None, Some(meta)) => apart::characters(meta)?,
                (None, how, _) => texts.tokenizer(how, shape.vocab_size)?,
            };
            super::bench::remarks(&tokenizer, global);
            let config = shape.config(tokenizer.vocab_size())?;
            training::can_start(&config, global)?;
            let block_size = recipe.block_size(&config)?;
            if block_size < shape.block_size {
                let positions = shape.block_size;
                note(
                    global.quiet,
                    &format!(
                        "note: rows have {block_size} tokens, so that positions {block_size} to {} of the model learn nothing; \
                         model.block_size={block_size} makes a model without them",
                        positions - 1
                    ),
                );
            }
            let set = TextSet::new(texts.encode(&tokenizer, global.allow_special)?, recipe.train.seed, block_size)?;
            Trainer::from_scratch(recipe, tokenizer, Box::new(set), &device)?
        }
    };
    training::run("train", trainer, kept, &args, global)
}
