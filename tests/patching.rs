//! Patching: TransformerLens's numbers, the naive loop's, and controls that must hold.
//!
//! `tests/fixtures/make_patching.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use candle_core::{DType, Device};
use common::{fixture, narrowed, parity_model, small_config, three_pairs, values};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::patch::{Direction, Options, Patched, frame, patch};
use interp::sweep::{Cell, Sweep};
use interp::target::Target;
use interp::text::Encoding;
use interp::{Config, Edit, Gpt2, LogitsAt, Plan, Tokens, embedded};
use process::Interp;

fn run(model: &Gpt2, pair: &Pair, sweep: &str, direction: Direction) -> Patched {
    patch(model, pair, &Sweep::named(sweep).unwrap(), Options { direction, ..Options::default() }, &mut |_, _| Ok(()))
        .unwrap()
}

fn target(answer: u32, wrong: u32) -> Target {
    Target::new(vec![answer], vec![wrong]).unwrap()
}

fn tokens(ids: &[u32]) -> Tokens {
    Tokens::from_ids(vec![ids.to_vec()]).unwrap()
}

#[test]
fn every_sweep_is_transformer_lenss() {
    let expected = candle_core::safetensors::load(fixture("patching.safetensors"), &Device::Cpu).unwrap();
    let mut compared = 0;
    for name in ["wide", "thin", "untied"] {
        let model = parity_model(name);
        let get = |key: &str| &expected[&format!("{name}.{key}")];
        let rows: Vec<Vec<u32>> = get("tokens").to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        let answers: Vec<u32> = get("answers").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let pair = Pair::new(tokens(&rows[0]), tokens(&rows[1]), target(answers[0], answers[1])).unwrap();
        let ends = values(get("ends"));
        for key in expected.keys().filter_map(|key| key.strip_prefix(&format!("{name}."))) {
            if ["tokens", "answers", "ends"].contains(&key) {
                continue;
            }
            let patched = run(&model, &pair, key, Direction::Denoise);
            assert!((patched.base[0] - ends[0]).abs() < 1e-4 && (patched.source[0] - ends[1]).abs() < 1e-4);
            let wanted = values(get(key));
            assert_eq!(wanted.len(), patched.cells.len(), "{name} {key}");
            for ((_, cell, found), wanted) in patched.cells.iter().zip(wanted) {
                assert!((found[0] - wanted).abs() < 1e-4, "{name} {key} {cell:?}: {} instead of {wanted}", found[0]);
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 45, "fifteen sweeps on three models");
}

/// The logits of one plain run with the edit that a cell stands for.
fn naive(model: &Gpt2, base: &Tokens, source: &Tokens, cell: &Cell) -> Vec<f64> {
    let other = Plan::new().read(cell.site).run(model, source).unwrap();
    let edit = narrowed(Edit::patch(cell.site, other.get(cell.site).unwrap()), cell);
    values(Plan::new().edit(edit).logits(LogitsAt::Last).run(model, base).unwrap().logits().unwrap())
}

#[test]
fn every_cell_is_a_run_of_its_own() {
    let config = Config { tie_word_embeddings: true, ..small_config() };
    let model = common::model(&config, DType::F32);
    let (clean, corrupt) = (tokens(&[1, 2, 3, 4, 5, 6]), tokens(&[1, 7, 3, 4, 9, 6]));
    let pair = Pair::new(clean.clone(), corrupt.clone(), target(2, 5)).unwrap();
    let names = ["block_every", "attn_head_all_pos_every", "attn_head_by_pos_every", "resid_mid", "resid_post"];
    for (direction, base, source) in [(Direction::Denoise, &corrupt, &clean), (Direction::Noise, &clean, &corrupt)] {
        let clean_logits = values(Plan::new().logits(LogitsAt::Last).run(&model, &clean).unwrap().logits().unwrap());
        let clean_logits: Vec<f32> = clean_logits.into_iter().map(|x| x as f32).collect();
        for name in names.into_iter().chain(["attn_head_pattern_dest_src_pos"]) {
            let patched = run(&model, &pair, name, direction);
            for (_, cell, found) in &patched.cells {
                let logits: Vec<f32> = naive(&model, base, source, cell).into_iter().map(|x| x as f32).collect();
                for (metric, found) in Metric::ALL.into_iter().zip(found) {
                    let wanted = metric.of(&logits, &clean_logits, &target(2, 5));
                    assert!(
                        (found - wanted).abs() < 1e-6 * (1.0 + wanted.abs()),
                        "{name} {cell:?} {metric:?}: {found} {wanted}"
                    );
                }
            }
            assert!(patched.identity < 1e-5, "{name}: {}", patched.identity);
            assert!((patched.restored - 1.0).abs() < 1e-5, "{name}: {}", patched.restored);
        }
    }
}

#[test]
fn cells_that_are_equal_are_not_run() {
    let model = common::model(&small_config(), DType::F32);
    let pair = Pair::new(tokens(&[1, 2, 3, 4]), tokens(&[1, 2, 8, 4]), target(2, 5)).unwrap();
    let patched = run(&model, &pair, "resid_pre", Direction::Denoise);
    // Before position 2 nothing differs in any layer; in layer 0 only position 2 does.
    assert_eq!(patched.equal, 3 * 2 + 1);
    for (_, cell, values) in &patched.cells {
        assert_eq!(values[0] == patched.base[0], cell.pos < Some(2) || (cell.layer, cell.pos) == (0, Some(3)));
    }
    let effect = |layer, pos| {
        let (.., values) = patched.cells.iter().find(|(_, c, _)| (c.layer, c.pos) == (layer, Some(pos))).unwrap();
        patched.effect(0, values[0]).unwrap()
    };
    assert!((effect(0, 2) - 1.0).abs() < 1e-5, "the only token that differs restores everything");
}

#[test]
fn several_pairs_are_summed_up() {
    let model = common::model(&small_config(), DType::F32);
    let pairs: Vec<Pair> =
        (3..8).map(|x| Pair::new(tokens(&[1, x, 3, 4]), tokens(&[1, x + 1, 3, 4]), target(2, 5)).unwrap()).collect();
    let patched: Vec<Patched> = pairs.iter().map(|pair| run(&model, pair, "resid_pre", Direction::Denoise)).collect();
    let frame_of = frame(&pairs, &patched, &[Metric::LogitDiff, Metric::Kl], 1).unwrap();
    assert_eq!(frame_of.height(), 6 * 3 * 4 * 2);
    let nulls = frame_of.column("pair").unwrap().null_count();
    assert_eq!(nulls, 3 * 4 * 2);
    let f64s = |name: &str| frame_of.column(name).unwrap().f64().unwrap().iter().collect::<Vec<_>>();
    let (effect, low, high) = (f64s("effect"), f64s("low"), f64s("high"));
    for i in frame_of.height() - nulls..frame_of.height() {
        assert!(low[i] <= effect[i] && effect[i] <= high[i]);
    }
    let longer = Pair::new(tokens(&[1, 2, 3, 4, 5]), tokens(&[1, 2, 3, 5, 5]), target(2, 5)).unwrap();
    let more = run(&model, &longer, "resid_pre", Direction::Denoise);
    let error = frame(&[pairs[0].clone(), longer], &[patched[0].clone(), more], &[Metric::Prob], 1).unwrap_err();
    assert!(error.to_string().contains("the pairs have {4, 5} tokens"), "{error}");
}

#[test]
fn the_embedded_model_moves_names_as_it_should() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let prompts = (
        "When Mary and John went to the shop, John gave a drink to",
        "When Mary and John went to the shop, Mary gave a drink to",
    );
    let pair = Pair::parse(&tokenizer, Encoding::default(), prompts, (" Mary", " John")).unwrap();
    let patched = run(&model, &pair, "resid_pre", Direction::Denoise);
    assert!(patched.source[0] > 1.0 && patched.base[0] < -1.0, "{:?} {:?}", patched.source, patched.base);
    let last = pair.len() - 1;
    let at = |layer: usize, pos: usize| {
        let (.., v) = patched.cells.iter().find(|(_, c, _)| (c.layer, c.pos) == (layer, Some(pos))).unwrap();
        patched.effect(0, v[0]).unwrap()
    };
    // The answer starts where the second name stands and ends at the last token.
    let second = (0..pair.len()).find(|&pos| pair.clean().row(0)[pos] != pair.corrupt().row(0)[pos]).unwrap();
    assert!((at(0, second) - 1.0).abs() < 1e-4 && at(0, last) == 0.0);
    assert!(at(5, last) > 0.5 && at(5, second) < 0.5);
}

#[test]
fn wrong_requests_say_what_to_do() {
    let ioi = |clean: &str, corrupt: &str, answer: &str, wrong: &str| {
        let command = Interp::new().words("patch --clean").arg(clean).arg("--corrupt").arg(corrupt);
        command.arg("--answer").arg(answer).arg("--wrong").arg(wrong)
    };
    let good = || ioi("Mary and John", "Mary and Tom", " a", " b");
    for (command, wanted) in [
        (
            ioi("Mary and John", "Mary and", " a", " b"),
            "the clean prompt has 4 tokens and the corrupted one 3; they part at position 3",
        ),
        (ioi("Mary", "Mary", " a", " b"), "are the same"),
        (ioi("Mary", "John", " a", " a"), "the same token"),
        (ioi("Mary", "John", " zyzzyva", " a"), "the answer ` zyzzyva` is"),
        (ioi("Mary", "John", "Fr", " a"), "tokens"),
        (good().words("--sweep resid"), "there is no sweep `resid`; there are resid_pre, resid_mid"),
        (good().words("--metric loss"), "there is no metric `loss`; there are logit_diff"),
        (Interp::new().words("patch --clean a --answer b --wrong c"), "--corrupt"),
        (Interp::new().words("patch"), "--clean"),
        (good().words("--noise 2"), "--noise and --noise-samples go with --subject"),
    ] {
        command.run().refused(2, wanted);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pairs.jsonl"), "{\"clean\": \"a\"}").unwrap();
    let command = Interp::new().words("patch --pairs").arg(dir.path().join("pairs.jsonl"));
    command.run().refused(65, "line 1: missing field `corrupt`");
}

#[test]
fn the_command_leaves_a_frame_figures_and_its_controls() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = dir.path().join("pairs.jsonl");
    three_pairs(&pairs);
    for sweep in ["block_every", "attn_head_out_all_pos", "attn_head_v_by_pos", "attn_head_pattern_dest_src_pos"] {
        let command = Interp::new().words("patch --metric logit_diff,kl --sweep").arg(sweep).arg("--pairs").arg(&pairs);
        let outcome = command.run().ok();
        assert!(outcome.stdout.contains("controls: a cell replaced by itself"), "{}", outcome.stdout);
        let out = outcome.output();
        for file in ["frame.parquet", "figure.svg", "figure.png", "run.json"] {
            assert!(out.join(file).exists(), "{file}");
        }
        let run = outcome.record().to_string();
        assert!(run.contains("\"restored\""), "{run}");
    }
}

/// Rows join a sweep at the layer where they are changed, in the type that the model computes in.
#[test]
fn sweeps_run_in_sixteen_bits() {
    for dtype in ["bf16", "f16"] {
        let command = Interp::new().words("patch --sweep resid_pre,attn_head_out_all_pos --dtype").arg(dtype);
        let command = command.words("--answer").arg(" Mary").words("--wrong").arg(" John");
        let command = command.words("--clean").arg("When Mary and John went to the shop, John gave a drink to");
        let command = command.words("--corrupt").arg("When Mary and John went to the shop, Mary gave a drink to");
        command.run().ok();
    }
}
