use interp::language::Language;
use interp::texts::Texts;
use interp::textset::TextSet;
use interp::train::Trainer;
use interp::{Result, Tokenizer, weights};

use super::args::Global;
use super::{request, training};

pub fn run(args: training::Args, global: &Global) -> Result<()> {
    let (recipe, base) = args.recipe(global)?;
    let device = super::bench::device(global)?;
    let name = args.config.as_ref().map_or("scratch".into(), |path| path.display().to_string());
    let trainer = match &recipe.data.language {
        Some(path) => {
            let path = base.join(path);
            let language = Language::parse(&weights::read_text(&path, 4 << 20)?, &path)?;
            Trainer::from_language(recipe, language, &device)?
        }
        None => {
            let shape = recipe.shape()?;
            let texts = Texts::read(&recipe.data, &base)?;
            let tokenizer = match (&global.tokenizer, recipe.data.tokenizer) {
                (Some(_), Some(_)) => {
                    return Err(request("--tokenizer and the recipe's data.tokenizer exclude each other"));
                }
                (Some(path), None) => Tokenizer::load(path)?,
                (None, how) => texts.tokenizer(how, shape.vocab_size)?,
            };
            let block_size = recipe.block_size(&shape.config(tokenizer.vocab_size())?)?;
            let set = TextSet::new(texts.encode(&tokenizer)?, recipe.train.seed, block_size)?;
            Trainer::from_scratch(recipe, tokenizer, Box::new(set), &device)?
        }
    };
    training::run("train", trainer, &args, global, &name)
}
