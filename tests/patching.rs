//! Patching: TransformerLens's numbers, the naive loop's, and controls that must hold.
//!
//! `tests/fixtures/make_patching.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use candle_core::{DType, Device};
use common::{fixture, gate, narrowed, parity_model, small_config, three_pairs, values};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::patch::{Direction, Options, Patched, frame, patch};
use interp::sweep::{Cell, Sweep};
use interp::target::Target;
use interp::text::Encoding;
use interp::{Config, Edit, Gpt2, LogitsAt, Plan, Tokens, embedded};
use process::Interp;

/// Two prompts after which `tiny` answers alike: clean, corrupted, answer, wrong.
const ALIKE: (&str, &str, &str, &str) = (
    "When Mary and John went to the shop, John gave a drink to",
    "When Mary and John went to the park, John gave a drink to",
    " Mary",
    " park",
);

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
            // Logit differences, so relative to the logits.
            let size = gate::size_of(&model.forward(pair.clean()).unwrap());
            gate::assert_agree_at("ends", &[patched.base[0], patched.source[0]], &ends[..2], gate::F32, size);
            let wanted = values(get(key));
            assert_eq!(wanted.len(), patched.cells.len(), "{name} {key}");
            for ((_, cell, found), wanted) in patched.cells.iter().zip(wanted) {
                gate::assert_agree_at(&format!("{name} {key} {cell:?}"), &found[..1], &[wanted], gate::F32, size);
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 45, "fifteen sweeps on three models");
}

/// The logits of one plain run with the edit that a cell stands for.
fn naive(model: &Gpt2, base: &Tokens, source: &Tokens, cell: &Cell) -> Vec<f64> {
    let other = Plan::new().read(cell.site).run(model, source).unwrap();
    // What the mask hides cannot be edited, and changes nothing.
    let hidden = cell.key.is_some() && cell.key > cell.pos;
    let edit = narrowed(Edit::patch(cell.site, other.get(cell.site).unwrap()), cell);
    let plan = if hidden { Plan::new() } else { Plan::new().edit(edit) };
    values(plan.logits(LogitsAt::Last).run(model, base).unwrap().logits().unwrap())
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
        let size = gate::size(clean_logits.iter().copied());
        let clean_logits: Vec<f32> = clean_logits.into_iter().map(|x| x as f32).collect();
        for name in names.into_iter().chain(["attn_head_pattern_dest_src_pos"]) {
            let patched = run(&model, &pair, name, direction);
            for (_, cell, found) in &patched.cells {
                let logits: Vec<f32> = naive(&model, base, source, cell).into_iter().map(|x| x as f32).collect();
                for (metric, found) in Metric::ALL.into_iter().zip(found) {
                    let wanted = metric.of(&logits, &clean_logits, &target(2, 5));
                    let what = format!("{name} {cell:?} {metric:?}");
                    gate::assert_agree_at(&what, &[*found], &[wanted], gate::F32, size.max(1.0));
                }
            }
            assert!(patched.identity < gate::F32 * size, "{name}: {}", patched.identity);
            // A share of the difference that the patch makes.
            let share = gate::F32 * size / (patched.source[0] - patched.base[0]).abs();
            assert!((patched.restored - 1.0).abs() < share, "{name}: {}", patched.restored);
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
        patched.scale(Metric::LogitDiff).effect(values[0]).unwrap()
    };
    let size = gate::size_of(&model.forward(pair.clean()).unwrap());
    let share = gate::F32 * size / (patched.source[0] - patched.base[0]).abs();
    assert!((effect(0, 2) - 1.0).abs() < share, "the only token that differs restores everything");
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

/// Pairs of which one cell is patched, with the logit differences of the patched run, of the other, and after patching.
fn patched(ends: &[(f64, f64, f64)]) -> (Vec<Pair>, Vec<Patched>) {
    let sweep = Sweep::named("attn_out_all_pos").unwrap()[0];
    let cell = sweep.cells(&small_config(), 4)[0];
    let of = |x: f64| vec![x; Metric::ALL.len()];
    let one = |&(base, source, value): &(f64, f64, f64)| Patched {
        cells: vec![(sweep, cell, of(value))],
        base: of(base),
        source: of(source),
        rounding: of(1e-3),
        equal: 0,
        identity: 0.0,
        restored: 1.0,
    };
    let pair =
        |i: usize| Pair::new(tokens(&[1, i as u32 + 2, 3, 4]), tokens(&[1, i as u32 + 3, 3, 4]), target(2, 5)).unwrap();
    ((0..ends.len()).map(pair).collect(), ends.iter().map(one).collect())
}

#[test]
fn an_effect_over_pairs_is_the_ratio_of_means() {
    // The second pair's runs answer nearly alike, the third's alike but for rounding.
    let ends = [(-1.0, 2.0, -0.4), (0.5, 0.52, 1.1), (0.3, 0.3005, 0.1), (-2.0, 1.0, -2.3), (0.0, 4.0, 1.0)];
    let (pairs, all) = patched(&ends);
    let table = frame(&pairs, &all, &[Metric::LogitDiff], 7).unwrap();
    let f64s = |name: &str| table.column(name).unwrap().f64().unwrap().iter().collect::<Vec<_>>();
    let (effect, change, low, high, p) = (f64s("effect"), f64s("change"), f64s("low"), f64s("high"), f64s("p"));
    let (mut sum, mut span) = (0.0, 0.0);
    for (i, (base, source, value)) in ends.iter().enumerate() {
        (sum, span) = (sum + value - base, span + source - base);
        assert_eq!(change[i], Some(value - base));
        assert_eq!(effect[i], (i != 2).then(|| (value - base) / (source - base)), "pair {i}");
        assert_eq!((low[i], high[i], p[i]), (None, None, None));
    }
    assert!((effect[1].unwrap() - 30.0).abs() < 1e-9, "that would decide a mean of ratios");
    let (found, by_hand) = (effect[5].unwrap(), sum / span);
    assert!((found - by_hand).abs() < 1e-12, "{found} {by_hand}");
    assert!((change[5].unwrap() - sum / 5.0).abs() < 1e-12);
    assert!(low[5].unwrap() < found && found < high[5].unwrap() && high[5].unwrap() < 1.0, "{low:?} {high:?}");
    // Every pattern of signs, with the denominators as they are.
    let changes: Vec<f64> = ends.iter().map(|(base, _, value)| value - base).collect();
    let ratio = |signs: u32| {
        let signed = |(i, x): (usize, &f64)| if signs >> i & 1 == 1 { -x } else { *x };
        (changes.iter().enumerate().map(signed).sum::<f64>() / span).abs()
    };
    let as_far = (0..32).filter(|&signs| ratio(signs) >= by_hand.abs() - 1e-12).count();
    assert_eq!(p[5], Some(as_far as f64 / 32.0));
}

#[test]
fn runs_that_answer_alike_have_no_scale() {
    let (pairs, all) = patched(&[(3.0, 3.0002, 3.03), (1.0, 1.0003, 1.1)]);
    let table = frame(&pairs, &all, &[Metric::LogitDiff], 7).unwrap();
    for name in ["effect", "low", "high", "p"] {
        assert_eq!(table.column(name).unwrap().null_count(), 3, "{name}");
    }
    let change: Vec<f64> = table.column("change").unwrap().f64().unwrap().iter().flatten().collect();
    assert!((change[2] - 0.065).abs() < 1e-12);
    let svg = interp::figure::patch(&table, &["attn_out_all_pos"], "logit_diff").unwrap().svg().unwrap();
    assert!(svg.contains("raw changes") && svg.contains("change of logit_diff"), "raw changes are drawn");
}

#[test]
fn a_prompt_that_changes_nothing_has_raw_changes() {
    let dir = tempfile::tempdir().unwrap();
    // The two answers move together: their difference is the same in both runs, to 6e-4 of logits that spread over 3.
    for (command, raw) in
        [("patch --sweep attn_head_out_all_pos", "raw changes of logit_diff"), ("paths", "these are raw changes")]
    {
        let out = dir.path().join(command.split(' ').next().unwrap());
        let outcome = Interp::new()
            .words(command)
            .arg("--clean")
            .arg(ALIKE.0)
            .arg("--corrupt")
            .arg(ALIKE.1)
            .arg("--answer")
            .arg(ALIKE.2)
            .arg("--wrong")
            .arg(ALIKE.3)
            .words("--out")
            .arg(&out)
            .run()
            .ok();
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(said.contains("the scale of effects is meaningless: both runs answer alike"), "{said}");
        assert!(outcome.stdout.contains(raw), "{said}");
    }
    let run: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("patch/run.json")).unwrap()).unwrap();
    assert!(run["scales"][0]["meaningless"].is_string(), "{}", run["scales"]);
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
        patched.scale(Metric::LogitDiff).effect(v[0]).unwrap()
    };
    // The answer starts where the second name stands and ends at the last token.
    let second = (0..pair.len()).find(|&pos| pair.clean().row(0)[pos] != pair.corrupt().row(0)[pos]).unwrap();
    let size = gate::size_of(&model.forward(pair.clean()).unwrap());
    let share = gate::F32 * size / (patched.source[0] - patched.base[0]).abs();
    assert!((at(0, second) - 1.0).abs() < share && at(0, last) == 0.0, "{} of {share}", at(0, second));
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
        (good().words("--sweep resid"), "there is no sweep `resid`; near to it are resid_pre, resid_mid, resid_post"),
        (good().words("--metric loss"), "there is no metric `loss`, the nearest is `"),
        (Interp::new().words("patch --clean a --answer b --wrong c"), "--corrupt"),
        (Interp::new().words("patch"), "--clean"),
        (good().words("--noise 2"), "--noise and --noise-samples go with --subject"),
    ] {
        command.run().refused(2, wanted);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pairs.jsonl"), "{\"clean\": \"a\"}").unwrap();
    let command = Interp::new().words("patch --pairs").arg(dir.path().join("pairs.jsonl"));
    command.run().refused(65, "line 1: there is no field `corrupt`");
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
