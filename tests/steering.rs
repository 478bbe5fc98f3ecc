//! Steering: directions are numpy's, they move what they are meant to move, and adding nothing changes nothing.
//!
//! `tests/fixtures/make_steering.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use candle_core::{DType, Device};
use common::{fixture, gate, noise, small_config, values};
use interp::direction::{self, Direction, Method, Pool, contrast, from_prompts};
use interp::generate::{self, generate};
use interp::sampling::Sampling;
use interp::steer::{Options, Units, steer};
use interp::target::Target;
use interp::text::Encoding;
use interp::{Gpt2, LogitsAt, Plan, Site, Tokenizer, Tokens, embedded};
use polars::prelude::*;
use process::Interp;

#[test]
fn directions_are_numpys() {
    let expected = candle_core::safetensors::load(fixture("steering.safetensors"), &Device::Cpu).unwrap();
    for name in ["short", "long"] {
        let set = |kind: &str| -> Vec<Vec<f32>> { expected[&format!("{name}.{kind}")].to_vec2().unwrap() };
        for method in [Method::Mean, Method::Pca, Method::PcaPooled] {
            let found = contrast(&set("positive"), &set("negative"), method).unwrap().unwrap();
            let wanted = values(&expected[&format!("{name}.{method}")]);
            for (x, y) in found.unit.iter().zip(&wanted) {
                // Of a direction of length 1.
                assert!(gate::agree(*x, *y, gate::F32, 1.0), "{name} {method}: {x} instead of {y}");
            }
            let numbers = values(&expected[&format!("{name}.{method}.numbers")]);
            let agree = gate::agree(found.length, numbers[0], gate::F32, numbers[0]);
            assert!(agree, "{name} {method}: {}", found.length);
            assert_eq!(found.explained.is_none(), method == Method::Mean);
            assert!(gate::agree(found.explained.unwrap_or(-1.0), numbers[1], gate::F32, 1.0), "{name} {method}");
        }
        // The other way round the direction is the opposite.
        let (there, back) = (
            contrast(&set("positive"), &set("negative"), Method::Pca).unwrap().unwrap(),
            contrast(&set("negative"), &set("positive"), Method::Pca).unwrap().unwrap(),
        );
        assert!(there.unit.iter().zip(&back.unit).all(|(a, b)| gate::agree(*a, -b, gate::F32, 1.0)));
    }
    let rows = |n: usize| vec![vec![1.0_f32, 2.0]; n];
    assert_eq!(contrast(&rows(3), &rows(2), Method::Mean).unwrap(), None);
    assert_eq!(contrast(&rows(3), &rows(2), Method::PcaPooled).unwrap(), None);
    assert_eq!(contrast(&rows(2), &rows(2), Method::Pca).unwrap(), None);
    let unpaired = contrast(&rows(3), &rows(2), Method::Pca).unwrap_err().to_string();
    assert!(unpaired.contains("3 positive and 2 negative prompts; use pca-pooled or mean"), "{unpaired}");
    assert!(contrast(&[], &rows(2), Method::Mean).unwrap_err().to_string().contains("not 0 positive"));
}

#[test]
fn a_direction_is_between_the_pooled_activations() {
    let model = common::model(&small_config(), DType::F32);
    let tokens = |rows: &[&[u32]]| Tokens::from_ids(rows.iter().map(|row| row.to_vec()).collect()).unwrap();
    let (up, down) = (tokens(&[&[1, 2, 3, 4], &[5, 6]]), tokens(&[&[7, 8, 9]]));
    for site in [Site::ResidPre(1), Site::MlpPost(2), Site::Z(0), Site::AttnOut(1), Site::Embed] {
        for pool in [Pool::Last, Pool::Mean] {
            let (found, equal) = from_prompts(&model, &up, &down, &[site], Method::Mean, pool).unwrap();
            assert!(equal.is_empty());
            let one = |ids: &[u32]| -> Vec<f64> {
                let alone = Plan::new().read(site).run(&model, &tokens(&[ids])).unwrap();
                let rows = values(alone.get(site).unwrap());
                let width = rows.len() / ids.len();
                let rows: Vec<&[f64]> = rows.chunks(width).collect();
                let rows = if pool == Pool::Last { &rows[ids.len() - 1..] } else { &rows[1..] };
                (0..width).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64).collect()
            };
            let (a, b, c) = (one(&[1, 2, 3, 4]), one(&[5, 6]), one(&[7, 8, 9]));
            for (i, unit) in found[0].unit.iter().enumerate() {
                let wanted = (a[i] + b[i]) / 2.0 - c[i];
                let of_it = f64::from(*unit) * found[0].length;
                assert!(gate::agree(of_it, wanted, gate::F32, found[0].length), "{site} {pool}");
            }
        }
    }
    for site in [Site::Logits, Site::Pattern(0), Site::Ln1Scale(0)] {
        let refused = from_prompts(&model, &up, &down, &[site], Method::Mean, Pool::Last).unwrap_err().to_string();
        assert!(refused.contains("cannot be added to"), "{refused}");
    }
    let (found, equal) = from_prompts(
        &model,
        &tokens(&[&[1, 2, 3]]),
        &tokens(&[&[4, 2, 3]]),
        &[Site::ResidPre(0), Site::ResidPre(1)],
        Method::Mean,
        Pool::Last,
    )
    .unwrap();
    assert_eq!((found.len(), equal), (1, vec![Site::ResidPre(0)]));
}

/// The built-in model and the sentiment of its language.
struct Sentiment {
    model: Gpt2,
    tokenizer: Tokenizer,
    prompts: Tokens,
    target: Target,
}

const POSITIVE: [&str; 4] =
    ["The film was wonderful", "The book was great", "The song was lovely", "The play was beautiful"];
const NEGATIVE: [&str; 4] = ["The film was terrible", "The book was awful", "The song was ugly", "The play was boring"];

impl Sentiment {
    fn new() -> Self {
        let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
        let prompts = ["Tom saw the film. It was", "Anna saw the play. It was", "What a"];
        let prompts = tokenizer.tokens(&prompts.map(|p| format!("{p} long. Everyone")), Encoding::default()).unwrap();
        let target = Target::parse(&tokenizer, &[" loved"], &[" hated"]).unwrap();
        Self { model, tokenizer, prompts, target }
    }

    fn directions(&self, sites: &[Site], method: Method) -> Vec<Direction> {
        let tokens = |texts: [&str; 4]| self.tokenizer.tokens(&texts, Encoding::default()).unwrap();
        let (up, down) = (tokens(POSITIVE), tokens(NEGATIVE));
        from_prompts(&self.model, &up, &down, sites, method, Pool::Last).unwrap().0
    }

    fn steer(&self, directions: &[Direction], options: &Options) -> DataFrame {
        let target = Some(&self.target);
        steer(&self.model, &self.tokenizer, &self.prompts, directions, target, options, &mut |_, _| Ok(())).unwrap()
    }
}

fn options(strengths: &[f64], controls: usize) -> Options {
    let sampling = Sampling::greedy();
    Options {
        strengths: strengths.to_vec(),
        units: Units::Natural,
        controls,
        generate: generate::Options { sampling, max_new_tokens: 6, ..Default::default() },
    }
}

/// Value and strength of the rows that sum up one kind of direction at a site, in the order of the frame.
fn course(frame: &DataFrame, site: &str, draw: Option<u32>) -> Vec<f64> {
    let text = |name: &str| frame.column(name).unwrap().str().unwrap().clone();
    let int = |name: &str| frame.column(name).unwrap().u32().unwrap().clone();
    let (sites, draws, prompt) = (text("site"), int("draw"), int("prompt"));
    let value = frame.column("value").unwrap().f64().unwrap().clone();
    (0..frame.height())
        .filter(|&i| prompt.get(i).is_none() && sites.get(i) == Some(site) && draws.get(i) == draw)
        .map(|i| value.get(i).unwrap())
        .collect()
}

#[test]
fn sentiment_is_steered_and_random_directions_do_less() {
    let sentiment = Sentiment::new();
    for method in [Method::Mean, Method::Pca] {
        let sites = [Site::ResidPre(2), Site::ResidPre(3)];
        let frame = sentiment.steer(&sentiment.directions(&sites, method), &options(&[-2.0, -1.0, 0.0, 1.0, 2.0], 8));
        for site in ["resid_pre.2", "resid_pre.3"] {
            let steered = course(&frame, site, None);
            assert!(steered.windows(2).all(|pair| pair[0] < pair[1]), "{method} {site}: {steered:?}");
            let effect = steered[4] - steered[0];
            for draw in 0..8 {
                let random = course(&frame, site, Some(draw));
                let random = (random[4] - random[0]).abs();
                assert!(effect > 2.0 * random, "{method} {site}: {effect} and at random {random}");
            }
        }
    }
}

#[test]
fn strength_0_is_plain_generation_and_numbers_are_the_models_own() {
    let sentiment = Sentiment::new();
    let sampled = |controls| {
        let mut options = options(&[0.0, 1.5], controls);
        options.generate.sampling = Sampling::default();
        options.generate.num_samples = 2;
        options
    };
    let directions = sentiment.directions(&[Site::ResidPre(3)], Method::Mean);
    let frame = sentiment.steer(&directions, &sampled(0));
    assert_eq!(frame.height(), 2 * (3 * 2 + 1));
    let text = |frame: &DataFrame, name: &str| -> Vec<Option<String>> {
        frame.column(name).unwrap().str().unwrap().iter().map(|x| x.map(str::to_string)).collect()
    };
    for (amount, first) in [(0.0, 0), (1.5 * directions[0].length, 7)] {
        let edits: Vec<_> = directions[0].edit(amount).unwrap().into_iter().collect();
        let (model, options) = (&sentiment.model, sampled(0).generate);
        let (plain, _) =
            generate(model, &sentiment.tokenizer, &sentiment.prompts, &edits, &options, &mut |_| Ok(())).unwrap();
        assert_eq!(text(&frame, "text")[first..first + 6], text(&plain, "continuation"));
        let plan = Plan::new().edits(edits.clone()).logits(LogitsAt::Last);
        let logits = plan.run(model, &sentiment.prompts).unwrap().logits().unwrap().squeeze(1).unwrap();
        let logprobs = frame.column("logprob").unwrap().f64().unwrap();
        let value = frame.column("value").unwrap().f64().unwrap();
        for i in 0..6 {
            let row: Vec<f32> = logits.get(i / 2).unwrap().to_vec1().unwrap();
            assert_eq!(value.get(first + i).unwrap(), sentiment.target.value(&row).unwrap());
            let wanted = plain.column("logprob").unwrap().f64().unwrap().get(i).unwrap();
            let found = logprobs.get(first + i).unwrap();
            // Without an edit the writer's own log-probabilities are those of the unsteered model; with one they are not.
            assert_eq!(gate::agree(found, wanted, gate::F32, wanted.abs()), edits.is_empty(), "{found} {wanted}");
        }
    }
    let again = sentiment.steer(&directions, &sampled(0));
    assert!(frame.equals_missing(&again), "the same seed gives the same frame");
}

#[test]
fn a_saved_direction_is_the_same_and_belongs_to_its_model() {
    let sentiment = Sentiment::new();
    let sites = [Site::ResidPre(3), Site::Z(2), Site::MlpPost(4)];
    let directions = sentiment.directions(&sites, Method::Pca);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("directions.safetensors");
    direction::save(&path, &directions, "abc").unwrap();
    let loaded = direction::load(&path, &sentiment.model, "abc").unwrap();
    assert_eq!(loaded, directions);
    let strengths = options(&[-1.0, 2.0], 1);
    assert!(sentiment.steer(&loaded, &strengths).equals_missing(&sentiment.steer(&directions, &strengths)));
    let refused = direction::load(&path, &sentiment.model, "xyz").unwrap_err().to_string();
    assert!(refused.contains("are of a model with sha256 abc…, this one has xyz…"), "{refused}");
    let other = common::model(&small_config(), DType::F32);
    let refused = direction::load(&path, &other, "abc").unwrap_err().to_string();
    assert!(refused.contains("is no site of this model") || refused.contains("has shape"), "{refused}");
    std::fs::write(&path, b"nonsense").unwrap();
    assert!(direction::load(&path, &other, "abc").is_err());
    interp::weights::write_tensors(&path, &[("a".into(), noise(&[2], DType::F32, 1))], Default::default()).unwrap();
    let refused = direction::load(&path, &other, "abc").unwrap_err().to_string();
    assert!(refused.contains("holds no directions"), "{refused}");
}

#[test]
fn units_say_what_a_strength_is() {
    let sentiment = Sentiment::new();
    let direction = &sentiment.directions(&[Site::ResidPre(3)], Method::Mean)[0];
    let size = |unit: &[f32]| unit.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    assert!(gate::agree(size(&direction.unit), 1.0, gate::F32, 1.0));
    let random = direction.random(1, 0);
    assert!(gate::agree(size(&random.unit), 1.0, gate::F32, 1.0) && random.length == direction.length);
    assert!(random != direction.random(1, 1) && random == direction.random(1, 0));
    assert_eq!(Units::Natural.amount(2.0, direction), 2.0 * direction.length);
    assert_eq!(Units::Norm.amount(2.0, direction), 2.0 * direction.norm);
    assert_eq!(Units::Unit.amount(2.0, direction), 2.0);
    assert!(direction.edit(0.0).unwrap().is_none() && direction.edit(f64::NAN).is_err());
}

fn command() -> Interp {
    let mut command = Interp::new().words("steer");
    for (option, texts) in [("--positive", POSITIVE), ("--negative", NEGATIVE)] {
        command = texts.iter().fold(command, |command, text| command.arg(option).arg(text));
    }
    command
}

fn prompted(words: &str) -> Interp {
    command().words(words).arg("--prompt").arg("The film was long. Everyone")
}

fn parquet(path: &std::path::Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap()
}

#[test]
fn the_command_leaves_a_frame_figures_and_directions_that_load_again() {
    let with_answers = |words: &str| prompted(words).arg("--answer").arg(" loved").arg("--wrong").arg(" hated");
    let first = with_answers("--site resid_pre.2-4 --strength -2,0,2 --max-new-tokens 5 --controls 2").run().ok();
    for wanted in ["logit_diff / perplexity at strength, in units of natural", "resid_pre.3", "random"] {
        assert!(first.stdout.contains(wanted), "{}", first.stdout);
    }
    let out = first.output();
    for file in ["frame.parquet", "figure.svg", "figure.png", "run.json", "directions.safetensors"] {
        assert!(out.join(file).exists(), "{file}");
    }
    let frame = parquet(&out.join("frame.parquet"));
    let names: Vec<String> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
    let wanted = "direction draw site layer strength amount relative_change prompt sample text metric value perplexity logprob tokens";
    assert_eq!(names.join(" "), wanted);
    assert_eq!(frame.height(), 3 * 3 * 3 * 2);
    let loaded = Interp::new().words("steer --strength -2,0,2 --max-new-tokens 5 --controls 2");
    let loaded = loaded.arg("--prompt").arg("The film was long. Everyone").arg("--load");
    let loaded = loaded.arg(out.join("directions.safetensors")).arg("--answer").arg(" loved");
    let loaded = loaded.arg("--wrong").arg(" hated").run().ok();
    assert!(parquet(&loaded.output().join("frame.parquet")).equals_missing(&frame));

    // Without an answer there are texts and fluency.
    let texts =
        prompted("--site z.3,mlp_post.2 --method pca-pooled --pool mean --units norm --strength 0.5").run().ok();
    let frame = parquet(&texts.output().join("frame.parquet"));
    assert_eq!(frame.column("metric").unwrap().null_count(), frame.height());
}

#[test]
fn directions_of_another_model_are_refused() {
    let first = prompted("--site resid_pre.2 --strength 1 --max-new-tokens 2").run().ok();
    let file = first.output().join("directions.safetensors");
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(name), dir.path().join(name)).unwrap();
    }
    let mut model = common::tiny().tensors().into_iter().map(|(n, t)| (n, t.clone())).collect::<Vec<_>>();
    model[0].1 = (&model[0].1 * 0.999).unwrap();
    interp::weights::write_tensors(&dir.path().join("model.safetensors"), &model, Default::default()).unwrap();
    let command = Interp::new().words("steer --prompt Tom --load").arg(&file).arg("--model").arg(dir.path());
    let refused = command.run();
    assert_eq!(refused.code, Some(65), "{refused:?}");
    assert!(refused.stderr.contains("are of a model with sha256 02aac0413f6b…"), "{refused:?}");
}

#[test]
fn wrong_requests_say_what_to_do() {
    let bare = || Interp::new().words("steer --prompt Tom");
    for (command, wanted) in [
        (bare(), "no direction: give --positive TEXT and --negative TEXT, --contrast FILE or --load FILE"),
        (bare().words("--positive a"), "--negative"),
        (bare().words("--positive a --negative a"), "the same at resid_pre.0"),
        (bare().words("--positive a --positive b --negative c --method pca"), "2 positive and 1 negative"),
        (prompted("--site resid_pre.9"), "layer 9 is out of range"),
        (prompted("--site resid_pre"), "needs a layer"),
        (prompted("--site pattern.1"), "a direction cannot be added to `pattern.1`"),
        (prompted("--method svd"), "there is no method `svd`, the nearest is `"),
        (prompted("--pool max"), "there is no pooling `max`"),
        (prompted("--units feet"), "there is no unit of strength `feet`"),
        (prompted("--strength 1,1"), "strength 1 is given twice"),
        (prompted("--strength nan"), "nan is not in -1e30..=1e30"),
        (prompted("--num-samples 2"), "temperature 0 would write the same text 2 times"),
        (prompted("--max-new-tokens 300"), "passes the model's 256 positions"),
        (prompted("--wrong a"), "--answer"),
        (command(), "no text"),
    ] {
        command.run().refused(2, wanted);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    std::fs::write(&path, "{\"positive\": \"a\"}").unwrap();
    bare().arg("--contrast").arg(&path).run().refused(65, "line 1: missing field `negative`");
    std::fs::write(&path, "{\"positive\": \"Tom is\", \"negative\": \"Anna was\"}\n").unwrap();
    bare().words("--max-new-tokens 2 --site resid_post.1 --contrast").arg(&path).run().ok();
    bare().arg("--load").arg(&path).run().refused(65, "pairs.jsonl");
}
