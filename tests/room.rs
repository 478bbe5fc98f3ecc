//! Where there is no memory for a batch, it is divided, and the numbers are the same.

mod common;

use std::path::Path;

use common::gate;
use interp::ablate::{Measure, Method, Options as Ablation, ablate};
use interp::answers::answers;
use interp::direction::{self, Direction, Pool, from_prompts};
use interp::edges::{Steps, attribute, exact};
use interp::generate::{Options as Writing, generate};
use interp::graph::{Instead, Judge};
use interp::interchange::{Interchange, Part};
use interp::language::Language;
use interp::metric::Metric;
use interp::pair::Pair;
use interp::pairset::PairSet;
use interp::patch::{Options, patch};
use interp::paths::{Freeze, paths};
use interp::perplexity::{Document, Protocol, score};
use interp::prune::prune;
use interp::recipe::Recipe;
use interp::saliency::{Baseline, saliency};
use interp::steer::{self, Units, steer};
use interp::sweep::Sweep;
use interp::text::Encoding;
use interp::train::Trainer;
use interp::{Error, Gpt2, Result, Site, Tokens, embedded};

fn pairs() -> Vec<Pair> {
    let set = PairSet::shipped("tiny-agreement").unwrap().unwrap();
    set.pairs(6, 0, &embedded::tokenizer().unwrap(), Encoding::default()).unwrap()
}

/// The same numbers with memory for so many tokens at once, and none, with an error, without memory for one. They are relative to the
/// largest of them, or to 1 where they are differences of logits that are larger than themselves.
fn same(what: &str, rooms: [usize; 2], gate: f64, of: impl Fn(&Gpt2) -> Result<Vec<f64>>) {
    let model = common::tiny();
    let whole = of(&model).unwrap();
    assert!(!whole.is_empty(), "{what}");
    let size = gate::size(whole.iter().copied().filter(|x| x.is_finite())).max(1.0);
    for room in rooms {
        let parts = of(&model.clone().with_room_for(room)).unwrap_or_else(|e| panic!("{what}, {room} at once: {e}"));
        assert_eq!(whole.len(), parts.len(), "{what}");
        for (i, (a, b)) in whole.iter().zip(&parts).enumerate() {
            assert!(
                gate::agree(*b, *a, gate, size) || (a.is_nan() && b.is_nan()),
                "{what}, {room} at once, {i}: {a} and {b}"
            );
        }
    }
    let refused = of(&model.with_room_for(0)).unwrap_err();
    assert!(matches!(refused, Error::TryAgain(_)), "{what}: {refused}");
}

fn quiet(_: usize, _: usize) -> Result<()> {
    Ok(())
}

fn flat(rows: Vec<Vec<f64>>) -> Vec<f64> {
    rows.concat()
}

#[test]
fn experiments_on_pairs() {
    let pairs = pairs();
    let length = pairs[0].len();
    let (tokenizer, set) = (embedded::tokenizer().unwrap(), PairSet::shipped("tiny-agreement").unwrap().unwrap());
    let drawn = (0..6).map(|i| set.draw(None, Some(1), 0, i).unwrap().pair(&tokenizer, Encoding::default()).unwrap());
    let alike: Vec<Pair> = drawn.collect();
    same("answers", [60, 26], gate::F32, |model| {
        Ok(answers(model, &pairs)?.into_iter().flat_map(|one| [one.clean, one.corrupt].concat()).collect())
    });
    same("patch", [60, 26], gate::F32, |model| {
        let sweep = Sweep::named("attn_head_out_by_pos")?;
        let patched = patch(model, &pairs[0], &sweep, Options::default(), &mut quiet)?;
        Ok(flat(patched.cells.into_iter().map(|(_, _, values)| values).collect()))
    });
    same("ablate", [60, 26], gate::F32, |model| {
        let cells = Sweep::named("attn_head_out_all_pos")?[0].cells(model.config(), length);
        let questions: Vec<_> = pairs.iter().map(|pair| pair.question().clone()).collect();
        let reference: Vec<Tokens> = pairs.iter().map(|pair| pair.clean().clone()).collect();
        let options = Ablation { method: Method::Mean, measures: vec![Measure::Loss], ..Ablation::default() };
        let experiments: Vec<_> = cells.into_iter().map(|cell| vec![cell]).collect();
        let found = ablate(model, &questions, &reference, &experiments, &options, &mut quiet)?;
        Ok(found.into_iter().flat_map(|one| flat(one.values)).collect())
    });
    same("interchange", [60, 26], gate::TRAINED, |model| {
        let interchange = Interchange::new(model, &alike, Site::ResidPost(3), -1, None)?;
        let (subspace, losses) = interchange.train(2, 3, 0, &mut quiet)?;
        Ok([losses, interchange.patched(&subspace, Part::Along)?].concat())
    });
}

#[test]
fn edges_paths_and_circuits() {
    let pairs = pairs();
    for steps in [Steps::Clean, Steps::Integrated(5)] {
        same("edges", [60, 26], gate::F32_GRADIENT, |model| {
            Ok(flat(attribute(model, &pairs, Metric::LogitDiff, steps, None, &mut quiet)?))
        });
    }
    same("exact edges", [60, 26], gate::F32, |model| {
        exact(model, &pairs[0], Metric::LogitDiff, &[3, 300, 900], None, &mut quiet)
    });
    for receiver in ["3.1.q", "logits"] {
        same("paths", [60, 26], gate::F32, |model| {
            let found = paths(model, &pairs[0], &[receiver.parse()?], Freeze::default(), false, None)?;
            Ok(flat(found.senders.into_iter().map(|(_, values)| values).collect()))
        });
    }
    same("circuits", [60, 26], gate::F32, |model| {
        let judge = Judge::new(model, &pairs, Metric::LogitDiff, Instead::Corrupt, None)?;
        let circuit = prune(&judge, 0.5, &mut quiet)?;
        judge.values(&circuit)
    });
    same("saliency", [60, 26], gate::F32_GRADIENT, |model| {
        let pair = &pairs[0];
        let found = saliency(model, pair.clean(), pair.target(), Metric::LogitDiff, &Baseline::Mean, 20, None)?;
        Ok([found.integrated, found.gradient_norm].concat())
    });
}

/// All numbers of some columns.
fn numbers(frame: &polars::prelude::DataFrame, columns: &[&str]) -> Vec<f64> {
    let of = |name: &&str| frame.column(name).unwrap().f64().unwrap().iter().flatten().collect::<Vec<_>>();
    columns.iter().flat_map(of).collect()
}

#[test]
fn texts() {
    let tokenizer = embedded::tokenizer().unwrap();
    let prompts = ["The keys to the", "Mary and John went to the park . Mary", "The girl", "Once"];
    let tokens = tokenizer.tokens(&prompts, Encoding::default()).unwrap();
    let writing = Writing { num_samples: 2, max_new_tokens: 12, seed: 4, ..Writing::default() };
    for cache in [true, false] {
        let writing = Writing { cache, ..writing.clone() };
        same("generate", [100, 45], gate::F32_GRADIENT, |model| {
            let (frame, _) = generate(model, &tokenizer, &tokens, &[], &writing, &mut |_| Ok(()))?;
            Ok(numbers(&frame, &["logprob"]))
        });
    }
    let directions = |model: &Gpt2| -> Result<Vec<Direction>> {
        let (up, down) = (tokens.slice(0..2), tokens.slice(2..4));
        Ok(from_prompts(model, &up, &down, &[Site::ResidPost(2)], direction::Method::Mean, Pool::Last)?.0)
    };
    same("directions", [20, 14], gate::F32, |model| Ok(vec![directions(model)?[0].length, directions(model)?[0].norm]));
    let found = directions(&common::tiny()).unwrap();
    same("steer", [100, 45], gate::F32_GRADIENT, |model| {
        let options =
            steer::Options { strengths: vec![0.0, 1.0], units: Units::Natural, controls: 1, generate: writing.clone() };
        let frame = steer(model, &tokenizer, &tokens, &found, None, &options, &mut quiet)?;
        Ok(numbers(&frame, &["perplexity"]))
    });
    same("perplexity", [60, 20], gate::F32, |model| {
        let protocol = Protocol { context: 16, stride: 8, bos: true };
        let text = prompts.join(" . ").repeat(4);
        let documents = [
            Document::new(&text, &tokenizer, &protocol, false)?,
            Document::new(prompts[1], &tokenizer, &protocol, false)?,
        ];
        let mut heard = 0;
        let scored = score(model, &documents, &protocol, &mut |count| {
            heard = count;
            Ok(())
        })?;
        assert_eq!(heard, scored.tokens());
        Ok(scored.losses.concat().into_iter().flatten().map(f64::from).collect())
    });
}

#[test]
fn training() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let dir = tempfile::tempdir().unwrap();
    let recipe = std::fs::read_to_string(tiny.join("recipe.toml")).unwrap();
    let changes = [
        ("n_layer", "2"),
        ("block_size", "64"),
        ("tokenizer_documents", "500"),
        ("vocab_size", "700"),
        ("batch_size", "8"),
        ("micro_batch_size", "8"),
        ("short_iters", "0"),
        ("eval_rows", "8"),
    ];
    let recipe = with(&recipe, &changes);
    std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    for dtype in ["float32", "bfloat16"] {
        train_in(dtype, dir.path());
    }
}

fn train_in(dtype: &str, dir: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let trainer = |room: usize| {
        let path = tiny.join("language.toml");
        let language = Language::parse(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
        let set = [format!("dtype={dtype}")];
        let recipe = Recipe::load_with(Some(&dir.join("recipe.toml")), &set).unwrap();
        Trainer::from_language(recipe, language, &common::device()).unwrap().with_room_for(room)
    };
    let run = |mut trainer: Trainer| -> Result<(Vec<f64>, usize)> {
        let mut losses = vec![trainer.evaluate()?.0];
        for _ in 0..3 {
            let step = trainer.step()?;
            losses.extend([step.loss, step.grad_norm]);
        }
        losses.push(trainer.evaluate()?.0);
        Ok((losses, trainer.micro_batch_size()))
    };
    let (whole, rows) = run(trainer(usize::MAX)).unwrap();
    assert_eq!(rows, 8);
    for (room, most) in [(5 * 64, 4), (64, 1)] {
        let (parts, rows) = run(trainer(room)).unwrap();
        assert_eq!(rows, most);
        for (a, b) in whole.iter().zip(&parts) {
            assert!(gate::agree(*b, *a, gate::TRAINED, a.abs()), "{most} rows at once: {whole:?} and {parts:?}");
        }
    }
    assert!(matches!(run(trainer(0)), Err(Error::TryAgain(_))));
}

/// A recipe with other numbers.
fn with(recipe: &str, changes: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let name = line.split('=').next().unwrap_or("").trim();
        match changes.iter().find(|(key, _)| *key == name) {
            Some((key, value)) => format!("{key} = {value}\n"),
            None => format!("{line}\n"),
        }
    };
    recipe.lines().map(line).collect()
}
