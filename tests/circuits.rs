//! Circuits: edges, paths and inputs as an independent PyTorch implementation finds them, and controls that must hold.
//!
//! `tests/fixtures/make_circuits.py` makes the fixture.

mod common;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use common::{fixture, parity_model, values};
use interp::edges::{Steps, attribute, exact};
use interp::graph::{Circuit, Graph, Outputs, Rewired};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::patch::{Options, attribute as attribute_cells};
use interp::paths::{End, Freeze, paths};
use interp::saliency::{Baseline, saliency};
use interp::sweep::Sweep;
use interp::target::Target;
use interp::{Gpt2, Tokens};

const MODELS: [&str; 3] = ["wide", "thin", "untied"];

/// A model of the fixture with its two pairs, and what the peer computed.
struct Case {
    name: &'static str,
    model: Gpt2,
    pairs: Vec<Pair>,
    expected: HashMap<String, Tensor>,
}

impl Case {
    fn new(name: &'static str) -> Self {
        let expected = candle_core::safetensors::load(fixture("circuits.safetensors"), &Device::Cpu).unwrap();
        let get = |key: &str| expected[&format!("{name}.{key}")].to_dtype(DType::U32).unwrap();
        let rows: Vec<Vec<u32>> = get("tokens").to_vec2().unwrap();
        let answers: Vec<u32> = get("answers").to_vec1().unwrap();
        let prompt = |row: usize| Tokens::from_ids(vec![rows[row].clone()]).unwrap();
        let target = || Target::new(vec![answers[0]], vec![answers[1]]).unwrap();
        let pairs = (0..2).map(|p| Pair::new(prompt(2 * p), prompt(2 * p + 1), target()).unwrap()).collect();
        Self { name, model: parity_model(name), pairs, expected }
    }

    fn all() -> Vec<Self> {
        MODELS.into_iter().map(Self::new).collect()
    }

    /// What the peer computed, by pair.
    fn peer(&self, key: &str) -> Vec<Vec<f64>> {
        let tensor = &self.expected[&format!("{}.{key}", self.name)];
        (0..2).map(|pair| values(&tensor.get(pair).unwrap())).collect()
    }

    fn assert_close(&self, what: &str, found: &[f64], wanted: &[f64], tolerance: f64) {
        assert_eq!(found.len(), wanted.len(), "{} {what}", self.name);
        for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            assert!((found - wanted).abs() <= tolerance, "{} {what} {i}: {found} instead of {wanted}", self.name);
        }
    }
}

fn quiet(_: usize, _: usize) -> interp::Result<()> {
    Ok(())
}

#[test]
fn edges_are_attributed_as_by_autograd() {
    for case in Case::all() {
        for (key, steps) in
            [("eap", Steps::Clean), ("eap_ig_1", Steps::Integrated(1)), ("eap_ig_5", Steps::Integrated(5))]
        {
            let found = attribute(&case.model, &case.pairs, Metric::LogitDiff, steps, &mut quiet).unwrap();
            for (found, wanted) in found.iter().zip(case.peer(key)) {
                case.assert_close(key, found, &wanted, 1e-4);
            }
        }
    }
}

#[test]
fn edges_that_are_tried_equal_a_naive_loop() {
    for case in Case::all() {
        let edges: Vec<usize> = (0..Graph::of(case.model.config()).edges()).collect();
        for (pair, wanted) in case.pairs.iter().zip(case.peer("exact")) {
            let found = exact(&case.model, pair, Metric::LogitDiff, &edges, None, &mut quiet).unwrap();
            // 1e-6 of the largest logit, since the metric is a difference of two.
            let logits = values(&case.model.forward(pair.clean()).unwrap());
            let largest = logits.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
            case.assert_close("exact", &found, &wanted, 1e-6 * largest);
        }
    }
}

#[test]
fn circuits_run_as_a_naive_loop_runs_them() {
    for case in Case::all() {
        let graph = Graph::of(case.model.config());
        let masks: Vec<Vec<u8>> = case.expected[&format!("{}.masks", case.name)].to_vec2().unwrap();
        let circuits: Vec<Circuit> = masks
            .iter()
            .map(|mask| {
                let kept = mask.iter().enumerate().filter(|(_, kept)| **kept == 1).map(|(edge, _)| graph.edge(edge));
                Circuit::of(graph, kept).unwrap()
            })
            .collect();
        for (pair, wanted) in case.pairs.iter().zip(case.peer("masked")) {
            let (other, _) = Outputs::run(&case.model, pair.corrupt()).unwrap();
            // All circuits at once, and each by itself.
            let rows = vec![pair.clean().row(0).to_vec(); circuits.len()];
            let tokens = Tokens::from_ids(rows).unwrap();
            let others = other.rows(&vec![0; circuits.len()]).unwrap();
            let all: Vec<&Circuit> = circuits.iter().collect();
            let logits = Rewired::run(&case.model, &tokens, &all, &others).unwrap().to_vec2::<f32>().unwrap();
            let measured = |logits: &Vec<f32>| Metric::LogitDiff.of(logits, &[], pair.target());
            case.assert_close("masked", &logits.iter().map(measured).collect::<Vec<_>>(), &wanted, 1e-4);
            for (circuit, wanted) in circuits.iter().zip(&wanted) {
                let logits = Rewired::run(&case.model, pair.clean(), &[circuit], &other).unwrap().to_vec2().unwrap();
                case.assert_close("masked alone", &[measured(&logits[0])], &[*wanted], 1e-4);
            }
        }
    }
}

#[test]
fn paths_are_those_of_a_naive_loop() {
    for case in Case::all() {
        let (layer, head) = (case.model.config().n_layer - 1, case.model.config().n_head - 1);
        let named = |names: &[String]| names.iter().map(|name| name.parse::<End>().unwrap()).collect::<Vec<_>>();
        let sets = [
            ("A", named(&[format!("{layer}.0.q")])),
            ("B", named(&[format!("{layer}.{head}.k"), format!("a{layer}.h{head}<v>")])),
            ("C", named(&["logits".to_string()])),
        ];
        for (set, receivers) in &sets {
            for (mlps, layer_norm) in [(false, false), (false, true), (true, false), (true, true)] {
                let word = |frozen| if frozen { "freeze" } else { "recompute" };
                let key = format!("path_{set}_{}_{}", word(mlps), word(layer_norm));
                for (pair, wanted) in case.pairs.iter().zip(case.peer(&key)) {
                    let freeze = Freeze { mlps, layer_norm };
                    let found = paths(&case.model, pair, receivers, freeze, false, None).unwrap();
                    let values: Vec<f64> = found.senders.iter().map(|(_, values)| values[0]).collect();
                    case.assert_close(&key, &values, &wanted, 1e-5);
                }
            }
        }
    }
}

#[test]
fn cells_are_attributed_as_by_transformer_lenss_formula() {
    for case in Case::all() {
        for (key, sweep) in [
            ("atp_resid_pre", "resid_pre"),
            ("atp_resid_mid", "resid_mid"),
            ("atp_attn_out", "attn_out"),
            ("atp_mlp_out", "mlp_out"),
            ("atp_z", "attn_head_out_by_pos"),
            ("atp_q", "attn_head_q_by_pos"),
            ("atp_k", "attn_head_k_by_pos"),
            ("atp_v", "attn_head_v_by_pos"),
            ("atp_pattern", "attn_head_pattern_by_pos"),
        ] {
            for (pair, wanted) in case.pairs.iter().zip(case.peer(key)) {
                let sweeps = Sweep::named(sweep).unwrap();
                let found =
                    attribute_cells(&case.model, pair, &sweeps, &[Metric::LogitDiff], Options::default()).unwrap();
                let changes: Vec<f64> = found.cells.iter().map(|(_, _, values)| values[0] - found.base[0]).collect();
                case.assert_close(key, &changes, &wanted, 1e-4);
            }
        }
    }
}

#[test]
fn inputs_are_attributed_as_by_autograd() {
    for case in Case::all() {
        for (p, pair) in case.pairs.iter().enumerate() {
            let of = |baseline| {
                saliency(&case.model, pair.clean(), pair.target(), Metric::LogitDiff, &baseline, 50).unwrap()
            };
            let (zero, other) = (of(Baseline::Zero), of(Baseline::Prompt(pair.corrupt().clone())));
            let ends = &case.peer("ends")[p];
            case.assert_close("ends", &[zero.value, other.baseline], ends, 1e-4);
            case.assert_close("grad_input", &zero.gradient_input, &case.peer("grad_input")[p], 1e-4);
            case.assert_close("grad_norm", &zero.gradient_norm, &case.peer("grad_norm")[p], 1e-4);
            case.assert_close("ig_zero_50", &zero.integrated, &case.peer("ig_zero_50")[p], 1e-4);
            case.assert_close("ig_corrupt_50", &other.integrated, &case.peer("ig_corrupt_50")[p], 1e-4);
            assert!(zero.gap().abs() < 1e-3 && other.gap().abs() < 2e-3, "{} {}", zero.gap(), other.gap());
            let coarse = saliency(&case.model, pair.clean(), pair.target(), Metric::LogitDiff, &Baseline::Mean, 1);
            let fine = saliency(&case.model, pair.clean(), pair.target(), Metric::LogitDiff, &Baseline::Mean, 64);
            assert!(fine.unwrap().gap().abs() < coarse.unwrap().gap().abs() / 4.0, "more steps come closer");
        }
    }
}
