use interp::textset::TextSet;
use interp::train::Trainer;
use interp::{Error, Result, Tokenizer, language};

use super::args::Global;
use super::{request, training};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    training: training::Args,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    let args = &args.training;
    let (recipe, base) = args.recipe(global)?;
    let name = args.config.as_ref().map_or("scratch".into(), |path| path.display().to_string());
    let trainer = match &recipe.data.language {
        Some(path) => {
            let path = base.join(path);
            let bytes = interp::weights::read_small(&path, 4 << 20)?;
            let text = String::from_utf8(bytes).map_err(|e| Error::Data { path: path.clone(), what: e.to_string() })?;
            Trainer::from_language(recipe, language::Language::parse(&text, &path)?)?
        }
        None => {
            let shape = recipe.model.as_ref().ok_or_else(|| {
                request("the recipe has no [model] section; it needs one to start from scratch (finetune starts from a model)")
            })?;
            let block_size = if recipe.train.block_size == 0 { shape.block_size } else { recipe.train.block_size };
            let tokenizer = match &global.tokenizer {
                Some(path) => Tokenizer::load(path)?,
                None => return Err(request("a model from scratch on text needs --tokenizer")),
            };
            let text = TextSet::load(&recipe.data, &base, &tokenizer, recipe.train.seed, block_size)?;
            Trainer::from_scratch(recipe, tokenizer, Box::new(text))?
        }
    };
    training::run("train", trainer, args, global, &name)
}
