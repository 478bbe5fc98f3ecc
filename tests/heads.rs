//! Heads: TransformerLens's scores of the same weights, and what must hold by construction.
//!
//! `tests/fixtures/make_heads.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use common::{fixture, gate, parity_model, small_config, values};
use interp::circuits::{Basis, Circuits};
use interp::detector::{self, Detector, Measure, Options};
use interp::{Config, Gpt2, Tokens, composition, embedded, heads};
use polars::prelude::DataFrame;
use process::Interp;

/// A model of tests/fixtures/parity with what TransformerLens says of it.
struct Case {
    name: &'static str,
    model: Gpt2,
    expected: HashMap<String, Tensor>,
}

impl Case {
    fn all() -> Vec<Self> {
        let load = |name: &'static str| {
            let expected = candle_core::safetensors::load(fixture("heads.safetensors"), &Device::Cpu).unwrap();
            Self { name, model: parity_model(name), expected }
        };
        ["wide", "thin", "untied"].map(load).into_iter().collect()
    }

    fn get(&self, key: &str) -> &Tensor {
        &self.expected[&format!("{}.{key}", self.name)]
    }

    fn tokens(&self, key: &str) -> Tokens {
        let ids = self.get(key).to_dtype(DType::U32).unwrap();
        let ids = if ids.rank() == 1 { ids.unsqueeze(0).unwrap() } else { ids };
        Tokens::from_ids(ids.to_vec2().unwrap()).unwrap()
    }

    /// Scores are shares of 1, but for distances and losses, which are larger.
    fn agree(&self, key: &str, found: &[f64], gate: f64) {
        let wanted = values(self.get(key));
        let size = gate::size(wanted.iter().copied()).max(1.0);
        gate::assert_agree_at(&format!("{} {key}", self.name), found, &wanted, gate, size);
    }
}

fn column(frame: &DataFrame, name: &str) -> Vec<f64> {
    frame.column(name).unwrap().f64().unwrap().iter().map(|x| x.unwrap_or(f64::NAN)).collect()
}

fn ints(frame: &DataFrame, name: &str) -> Vec<usize> {
    frame.column(name).unwrap().u32().unwrap().into_no_null_iter().map(|x| x as usize).collect()
}

fn atlas(model: &Gpt2, repeated: &Tokens, text: Option<&Tokens>, basis: Basis) -> heads::Atlas {
    heads::atlas(model, repeated, text, &Circuits::of(model, basis), &mut |_, _| Ok(())).unwrap()
}

/// The score of one head.
fn at(frame: &DataFrame, name: &str, layer: usize, head: usize) -> f64 {
    let (layers, heads) = (ints(frame, "layer"), ints(frame, "head"));
    let row = (0..frame.height()).find(|&i| (layers[i], heads[i]) == (layer, head)).unwrap();
    column(frame, name)[row]
}

#[test]
fn every_score_of_the_atlas_is_transformer_lenss() {
    for case in Case::all() {
        let repeated = case.tokens("repeated");
        for basis in [Basis::Published, Basis::Folded] {
            let heads::Atlas { frame, loss } = atlas(&case.model, &repeated, None, basis);
            for score in ["previous", "duplicate", "induction", "current", "bos_share", "entropy", "distance"] {
                case.agree(score, &column(&frame, score), gate::F32);
            }
            case.agree("loss", &loss, gate::F32);
            for score in ["copying", "copying_full"] {
                // Eigenvalues of products of three matrices.
                case.agree(&format!("{basis}.{score}"), &column(&frame, score), gate::F32_GRADIENT);
            }
        }
    }
}

#[test]
fn every_composition_score_is_transformer_lenss() {
    for case in Case::all() {
        let (layers, count) = (case.model.config().n_layer, case.model.config().n_head);
        for basis in [Basis::Published, Basis::Folded] {
            let frame = composition::scores(&Circuits::of(&case.model, basis), 0, &mut |_, _| Ok(())).unwrap();
            assert_eq!(frame.height(), layers * (layers - 1) / 2 * count * count);
            let places = ["layer", "head", "to_layer", "to_head"].map(|name| ints(&frame, name));
            for kind in ["q", "k", "v"] {
                // TransformerLens has zeros where the later head is not later.
                let mut found = vec![0.0; (layers * count).pow(2)];
                for (i, score) in column(&frame, kind).into_iter().enumerate() {
                    let [layer, head, to_layer, to_head] = [0, 1, 2, 3].map(|place: usize| places[place][i]);
                    found[((layer * count + head) * layers + to_layer) * count + to_head] = score;
                }
                case.agree(&format!("{basis}.composition.{kind}"), &found, gate::F32_GRADIENT);
            }
        }
    }
}

#[test]
fn every_detector_is_transformer_lenss() {
    for case in Case::all() {
        let tokens = case.tokens("detect.tokens");
        let custom: Vec<Vec<f32>> = case.get("detect.custom").to_vec2().unwrap();
        let detectors = [Detector::Previous, Detector::Duplicate, Detector::Induction, Detector::Custom(custom)];
        for measure in [Measure::Mul, Measure::Abs] {
            for flags in 0..4 {
                let (exclude_bos, exclude_current_token) = (flags / 2 == 1, flags % 2 == 1);
                let options = Options { measure, exclude_bos, exclude_current_token };
                let frame = detector::detect(&case.model, &tokens, &detectors, options).unwrap();
                let scores = column(&frame, "score");
                for (detector, found) in detectors.iter().zip(scores.chunks(scores.len() / detectors.len())) {
                    let key = format!("detect.{}.{measure}.{}{}", detector.name(), flags / 2, flags % 2);
                    match measure {
                        Measure::Mul => case.agree(&key, found, gate::F32),
                        Measure::Abs => {
                            case.agree(&format!("{key}.exact"), found, gate::F32);
                            case.agree(&key, found, 5.1e-4); // rounded to three digits
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn several_prompts_are_the_mean_of_each() {
    let model = common::small_model(DType::F32);
    let tokens = common::tokens(&small_config(), &[3, 9, 5], 1);
    let score = |tokens: &Tokens| {
        column(&detector::detect(&model, tokens, &[Detector::Previous], Options::default()).unwrap(), "score")
    };
    let alone: Vec<Vec<f64>> = (0..3).map(|prompt| score(&tokens.only(prompt))).collect();
    for (i, found) in score(&tokens).into_iter().enumerate() {
        let mean = alone.iter().map(|scores| scores[i]).sum::<f64>() / 3.0;
        assert!(gate::agree(found, mean, gate::F32, 1.0), "{found} {mean}");
    }
}

#[test]
fn nothing_left_to_compare_is_null() {
    let model = common::small_model(DType::F32);
    let options = Options { exclude_bos: true, exclude_current_token: true, ..Options::default() };
    let tokens = Tokens::from_ids(vec![vec![1, 2]]).unwrap();
    let frame = detector::detect(&model, &tokens, &[Detector::Previous], options).unwrap();
    assert_eq!(frame.column("score").unwrap().null_count(), frame.height());
}

/// A model whose weights are small_model's but for one tensor.
fn with(name: &str, change: impl Fn(&Tensor) -> Tensor) -> Gpt2 {
    let weights = common::weights(&small_config(), DType::F32);
    let get = |wanted: &str| Ok(if wanted == name { change(&weights[wanted]) } else { weights[wanted].clone() });
    Gpt2::new(small_config(), get).unwrap()
}

#[test]
fn heads_that_write_where_nobody_reads_do_not_compose() {
    // Layer 0 writes to the first three dimensions only; layer 1 reads from the other three.
    let config = small_config();
    let mut weights = common::weights(&config, DType::F32);
    let masked = |x: &Tensor, keep: [f32; 6], dim: usize| {
        let mask = Tensor::new(&keep, &common::device()).unwrap();
        x.broadcast_mul(&if dim == 0 { mask.unsqueeze(1).unwrap() } else { mask.unsqueeze(0).unwrap() }).unwrap()
    };
    for (name, keep, dim) in [
        ("h.0.attn.c_proj.weight", [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 1),
        ("h.1.attn.c_attn.weight", [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 0),
    ] {
        let changed = masked(&weights[name], keep, dim);
        weights.insert(name.to_string(), changed);
    }
    let model = Gpt2::new(config, |name| Ok(weights[name].clone())).unwrap();
    let frame = composition::scores(&Circuits::of(&model, Basis::Published), 0, &mut |_, _| Ok(())).unwrap();
    let (layer, to_layer) = (ints(&frame, "layer"), ints(&frame, "to_layer"));
    for kind in ["q", "k", "v"] {
        for (i, score) in column(&frame, kind).into_iter().enumerate() {
            assert!(if (layer[i], to_layer[i]) == (0, 1) { score == 0.0 } else { score > 0.01 && score <= 1.0 });
        }
    }
}

#[test]
fn a_head_without_weights_has_no_score() {
    let model = with("h.1.attn.c_proj.weight", |x| x.zeros_like().unwrap());
    let repeated = heads::repeated(model.config(), None, 1, 5, 0).unwrap();
    let frame = atlas(&model, &repeated, None, Basis::Published).frame;
    assert_eq!(frame.column("copying").unwrap().null_count(), 2);
    let frame = composition::scores(&Circuits::of(&model, Basis::Published), 0, &mut |_, _| Ok(())).unwrap();
    assert_eq!(frame.column("v").unwrap().null_count(), 2 * 4);
    assert_eq!(frame.column("q").unwrap().null_count(), 4, "only where it writes");
    let model = with("h.1.attn.c_attn.weight", |x| (x.zeros_like().unwrap() / 0.0).unwrap());
    let frame = composition::scores(&Circuits::of(&model, Basis::Published), 0, &mut |_, _| Ok(())).unwrap();
    assert_eq!(frame.column("k").unwrap().null_count(), 2 * 4, "only where the layer without numbers takes part");
}

#[test]
fn the_round_trip_is_the_product_of_its_factors() {
    for tied in [true, false] {
        let config = Config { tie_word_embeddings: tied, ..small_config() };
        let model = common::model(&config, DType::F64);
        for basis in [Basis::Published, Basis::Folded] {
            let circuits = Circuits::of(&model, basis);
            let product = circuits.unembedding().unwrap().matmul(&circuits.embedding().unwrap()).unwrap();
            let away = gate::apart(&circuits.round_trip().unwrap(), &product);
            assert!(away <= gate::F32, "{basis}, tied {tied}: {away:e}");
        }
    }
}

#[test]
fn random_tokens_are_seeded_and_leave_out_the_end_of_text() {
    let (config, tokenizer) = (embedded::config().unwrap(), embedded::tokenizer().unwrap());
    let draw = |seed| heads::repeated(&config, Some(&tokenizer), 50, 100, seed).unwrap();
    let tokens = draw(0);
    assert_eq!((tokens.len(), tokens.longest()), (50, 200));
    assert_eq!(tokens, draw(0));
    assert_ne!(tokens, draw(1));
    let end = tokenizer.end_of_text().unwrap();
    let rows: Vec<&[u32]> = (0..50).map(|row| tokens.row(row)).collect();
    assert!(rows.iter().all(|row| row[..100] == row[100..] && !row.contains(&end)));
    let different: std::collections::BTreeSet<u32> = rows.concat().into_iter().collect();
    assert!(different.len() > config.vocab_size * 9 / 10, "{} of {}", different.len(), config.vocab_size);
    // A context of 12 holds two times six.
    assert_eq!(heads::repeated(&small_config(), None, 1, 100, 0).unwrap().longest(), 12);
    let shortest = Config { n_positions: 3, ..small_config() };
    assert!(heads::repeated(&shortest, None, 1, 100, 0).unwrap_err().to_string().contains("too few to repeat"));
}

#[test]
fn the_built_in_model_has_an_induction_head_and_a_head_that_looks_back() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let repeated = heads::repeated(model.config(), Some(&tokenizer), 2, 100, 0).unwrap();
    let heads::Atlas { frame, loss } = atlas(&model, &repeated, None, Basis::Published);
    assert!(at(&frame, "induction", 3, 2) > 0.9, "{}", at(&frame, "induction", 3, 2));
    assert!(at(&frame, "previous", 2, 1) > 0.85, "{}", at(&frame, "previous", 2, 1));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&loss[100..]) < 0.5 * mean(&loss[..99]), "{} {}", mean(&loss[100..]), mean(&loss[..99]));
    // Attention does not depend on the basis; a prompt changes only what is read from it.
    let text = tokenizer.tokens(&["When Mary and John went to the shop", "The key"], Default::default()).unwrap();
    let other = atlas(&model, &repeated, Some(&text), Basis::Folded).frame;
    assert_eq!(column(&frame, "induction"), column(&other, "induction"));
    for score in ["bos_share", "entropy", "distance", "copying", "copying_full"] {
        assert_ne!(column(&frame, score), column(&other, score), "{score}");
    }
    let (composed, basis) = (Circuits::of(&model, Basis::Folded), "the head that looks back feeds the induction head");
    let frame = composition::scores(&composed, 0, &mut |_, _| Ok(())).unwrap();
    let places = ["layer", "head", "to_layer", "to_head"].map(|name| ints(&frame, name));
    let pair = (0..frame.height()).find(|&i| [0, 1, 2, 3].map(|place: usize| places[place][i]) == [2, 1, 3, 2]);
    let (k, baseline) = (column(&frame, "k")[pair.unwrap()], column(&frame, "baseline")[0]);
    assert!(k > baseline, "{basis}: {k}, random matrices {baseline}");
}

#[test]
fn wrong_requests_say_what_to_do() {
    let command = |words: &str| Interp::new().words(words);
    for (command, wanted) in [
        (command("heads --detect first_head --prompt a"), "there is no detector `first_head`, the nearest is `"),
        (
            command("heads --detect induction_head --measure sum --prompt a"),
            "there is no measure `sum`, the nearest is `mul`; there are mul, abs",
        ),
        (command("heads --basis centred"), "there is no basis `centred`, the nearest is `"),
        (command("heads --detect induction_head --bos no --prompt a"), "prompt 0 has 1 token"),
        (command("heads --bos no --prompt a"), "prompt 0 has 1 token"),
        (command("heads --detect induction_head"), "no text: give --prompt"),
        (command("heads --composition --prompt a"), "takes no text"),
        (command("heads --composition --detect induction_head --prompt a"), "cannot be used with"),
        (command("heads --length 1"), "--length"),
        (command("heads --sequences 0"), "--sequences"),
    ] {
        command.run().refused(2, wanted);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pattern.json");
    let pattern = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Interp::new().words("heads --bos no --prompt a --pattern").arg(&file).run()
    };
    pattern("[[1, 0], [0, 1]]").refused(2, "prompt 0 has 1 token");
    pattern("{").refused(65, "not a list of rows");
    let command = Interp::new().words("heads --prompt a --pattern").arg(&file);
    std::fs::write(&file, "[[1]]").unwrap();
    command.run().refused(2, "the pattern is 1 × 1 and the prompt has 2 tokens");
}

#[test]
fn the_command_says_who_does_what() {
    let outcome = Interp::new().words("heads").run().ok();
    assert!(outcome.stdout.contains("induction    3.2 0.9"), "{}", outcome.stdout);
    let run = outcome.record();
    assert_eq!(run["random_tokens"]["length"], 100);
    assert_eq!(run["basis"], "raw");
    let long = Interp::new().words("heads --basis folded --sequences 1 --length 500").run().ok();
    assert!(long.stdout.contains("500 tokens twice do not fit the 256 positions"), "{}", long.stdout);
    let run = long.record();
    assert_eq!((&run["random_tokens"]["length"], &run["random_tokens"]["length_asked"]), (&128.into(), &500.into()));
    assert_eq!(run["basis"], "folded");
    let pairs = Interp::new().words("heads --composition").run().ok();
    assert!(pairs.stdout.contains("random matrices score"), "{}", pairs.stdout);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pattern.json");
    std::fs::write(&file, "[[1, 0], [1, 0]]").unwrap();
    let custom = Interp::new().words("heads --measure abs --prompt a --pattern").arg(&file).run().ok();
    assert!(custom.stdout.contains("custom"), "{}", custom.stdout);
}
