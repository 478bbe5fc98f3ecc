//! Circuits: edges, paths and inputs as an independent PyTorch implementation finds them, and controls that must hold.
//!
//! `tests/fixtures/make_circuits.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use common::{fixture, gate, parity_model, values};
use interp::edges::{Steps, attribute, exact};
use interp::faithful::{Choice, curve, of};
use interp::frame::load_parquet;
use interp::graph::{Circuit, CircuitFile, Edge, Graph, Instead, Judge, Outputs, Receiver, Rewired, Source};
use interp::interchange::{Interchange, Part};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::patch::{Options, attribute as attribute_cells};
use interp::paths::{End, Freeze, paths};
use interp::prune::prune;
use interp::random::stream;
use interp::saliency::{Baseline, saliency};
use interp::subspace::Subspace;
use interp::sweep::Sweep;
use interp::target::Target;
use interp::{Edit, Gpt2, LogitsAt, Plan, Site, Tokens};
use process::Interp;

const MODELS: [&str; 3] = ["wide", "thin", "untied"];

/// A model of the fixture with its two pairs, and what the peer computed.
struct Case {
    name: &'static str,
    model: Gpt2,
    pairs: Vec<Pair>,
    expected: HashMap<String, Tensor>,
    /// The largest logit: what metrics are differences of.
    size: f64,
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
        let model = parity_model(name);
        let size = (0..4).map(|row| gate::size_of(&model.forward(&prompt(row)).unwrap())).fold(0.0, f64::max);
        Self { name, model, pairs, expected, size }
    }

    fn all() -> Vec<Self> {
        MODELS.into_iter().map(Self::new).collect()
    }

    /// What the peer computed, by pair.
    fn peer(&self, key: &str) -> Vec<Vec<f64>> {
        let tensor = &self.expected[&format!("{}.{key}", self.name)];
        (0..2).map(|pair| values(&tensor.get(pair).unwrap())).collect()
    }

    fn assert_close(&self, what: &str, found: &[f64], wanted: &[f64], gate: f64) {
        let size = self.size.max(gate::size(wanted.iter().copied()));
        gate::assert_agree_at(&format!("{} {what}", self.name), found, wanted, gate, size);
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
            let found = attribute(&case.model, &case.pairs, Metric::LogitDiff, steps, None, &mut quiet).unwrap();
            for (found, wanted) in found.iter().zip(case.peer(key)) {
                case.assert_close(key, found, &wanted, gate::F32_GRADIENT);
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
            case.assert_close("exact", &found, &wanted, gate::F32);
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
            case.assert_close("masked", &logits.iter().map(measured).collect::<Vec<_>>(), &wanted, gate::F32);
            for (circuit, wanted) in circuits.iter().zip(&wanted) {
                let logits = Rewired::run(&case.model, pair.clean(), &[circuit], &other).unwrap().to_vec2().unwrap();
                case.assert_close("masked alone", &[measured(&logits[0])], &[*wanted], gate::F32);
            }
        }
    }
}

#[test]
fn zeroed_edges_are_those_of_eap_ig() {
    for case in Case::all() {
        let graph = Graph::of(case.model.config());
        let masks: Vec<Vec<u8>> = case.expected[&format!("{}.masks", case.name)].to_vec2().unwrap();
        let judge = Judge::new(&case.model, &case.pairs, Metric::LogitDiff, Instead::Zero, None).unwrap();
        let wanted = case.peer("zeroed");
        for (i, mask) in masks.iter().enumerate() {
            let kept = mask.iter().enumerate().filter(|(_, kept)| **kept == 1).map(|(edge, _)| graph.edge(edge));
            let found = judge.values(&Circuit::of(graph, kept).unwrap()).unwrap();
            case.assert_close("zeroed", &found, &[wanted[0][i], wanted[1][i]], gate::PROMISED);
        }
        // The empty circuit still knows where tokens stand.
        let other = Outputs::zero(&case.model, case.pairs[0].clean()).unwrap();
        let input = values(&other.tensor().narrow(1, 0, 1).unwrap());
        assert!(input.iter().any(|x| *x != 0.0));
        assert!(values(&other.tensor().narrow(1, 1, graph.sources() - 1).unwrap()).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn areas_are_those_of_mib() {
    for case in Case::all() {
        let scores = values(&case.expected[&format!("{}.scores", case.name)]);
        let expected = values(&case.expected[&format!("{}.mib", case.name)]);
        let mut expected = expected.chunks_exact(2);
        for instead in [Instead::Corrupt, Instead::Zero] {
            let judge = Judge::new(&case.model, &case.pairs, Metric::LogitDiff, instead, None).unwrap();
            let ends = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let span = (ends(judge.full()) - ends(judge.empty())).abs();
            for choice in [Choice::Top, Choice::Greedy] {
                let curve = curve(&judge, &scores, choice, 0, &mut quiet).unwrap();
                let (found, wanted) = (curve.mib().unwrap(), expected.next().unwrap());
                // Areas are differences of logits in shares of the span.
                case.assert_close("MIB", &[found.under, found.from_one], wanted, 2.0 * gate::PROMISED / span);
                assert_eq!(curve.points.len(), 10);
            }
        }
    }
}

#[test]
fn areas_by_size_are_another_thing() {
    let case = Case::new("wide");
    let scores = values(&case.expected["wide.scores"]);
    let judge = Judge::new(&case.model, &case.pairs, Metric::LogitDiff, Instead::Corrupt, None).unwrap();
    let found = curve(&judge, &scores, Choice::Greedy, 0, &mut quiet).unwrap();
    let edges = judge.graph().edges() as f64;
    let mut at = vec![(0.0, 0.0)];
    at.extend(found.points.iter().map(|point| (point.circuit.len() as f64 / edges, point.faithfulness.mean)));
    at.push((1.0, 1.0));
    let by_hand: f64 = at.windows(2).map(|w| (w[1].0 - w[0].0) * (w[0].1 + w[1].1) / 2.0).sum();
    assert!((found.by_size().under - by_hand).abs() < 1e-12);
    assert!((found.by_size().under - found.mib().unwrap().under).abs() > 1e-3);
    let circuits = found.points.iter().map(|point| point.circuit.clone()).collect();
    assert_eq!(
        of(&judge, circuits, 0, &mut quiet).unwrap().mib(),
        None,
        "circuits of other sizes are no curve of MIB's"
    );
}

#[test]
fn pairs_are_held_back_unless_that_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, line: &str| {
        let out = dir.path().join(name);
        let outcome =
            Interp::new().words(&format!("{line} --pairs tiny-ioi --template 0 --out {}", out.display())).run().ok();
        let run = std::fs::read_to_string(out.join("run.json")).unwrap();
        (serde_json::from_str::<serde_json::Value>(&run).unwrap(), outcome.stderr)
    };
    for (key, line) in [
        ("circuit", "circuit find --method eap --least 0.5 --num-pairs 6"),
        ("subspace", "subspace --site resid_post.1 --along means --num-pairs 6"),
    ] {
        let (held, quiet) = run(&format!("{key}-held"), line);
        assert_eq!((&held[key]["finding"], &held[key]["judging"]), (&3.into(), &3.into()));
        assert_eq!(held[key]["held_out"], true);
        assert!(!quiet.contains("the numbers are of the pairs"), "{quiet}");
        let (all, said) = run(&format!("{key}-all"), &format!("{line} --no-split"));
        assert_eq!((&all[key]["finding"], &all[key]["judging"]), (&6.into(), &6.into()));
        assert_eq!(all[key]["held_out"], false);
        assert!(said.contains("the numbers are of the pairs that it was found with (--no-split)"), "{said}");
    }
    let zero = run("zero", "circuit find --method eap --edges 100 --num-pairs 4 --instead zero").0;
    assert!(zero["circuit"]["instead_means"].as_str().unwrap().contains("position embeddings"), "{}", zero["circuit"]);
    assert!(zero["circuit"]["cpr"].is_f64() && zero["circuit"]["cmd_greedy"].is_f64(), "{}", zero["circuit"]);
}

#[test]
fn one_pair_has_no_interval() {
    let dir = tempfile::tempdir().unwrap();
    for (i, line) in [
        "patch --sweep attn_head_out_all_pos",
        "paths",
        "ablate --what layers",
        "attribute",
        "circuit find --method eap --least 0.5",
        "subspace --site resid_post.1 --along means",
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.path().join(i.to_string());
        let outcome =
            Interp::new().words(&format!("{line} --pairs tiny-ioi --num-pairs 1 --out {}", out.display())).run().ok();
        assert!(!outcome.stdout.contains('['), "{line}: {}", outcome.stdout);
        for name in ["frame.parquet", "curve.parquet"] {
            let Ok(frame) = load_parquet(&out.join(name)) else { continue };
            for bound in ["low", "high", "p"] {
                let Ok(column) = frame.column(bound) else { continue };
                assert_eq!(column.null_count(), frame.height(), "{line}: {name} has a {bound}");
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
                    case.assert_close(&key, &values, &wanted, gate::F32);
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
                case.assert_close(key, &changes, &wanted, gate::F32_GRADIENT);
            }
        }
    }
}

#[test]
fn inputs_are_attributed_as_by_autograd() {
    for case in Case::all() {
        for (p, pair) in case.pairs.iter().enumerate() {
            let of = |baseline| {
                saliency(&case.model, pair.clean(), pair.target(), Metric::LogitDiff, &baseline, 50, None).unwrap()
            };
            let (zero, other) = (of(Baseline::Zero), of(Baseline::Prompt(pair.corrupt().clone())));
            let ends = &case.peer("ends")[p];
            case.assert_close("ends", &[zero.value, other.baseline], ends, gate::F32);
            case.assert_close("grad_input", &zero.gradient_input, &case.peer("grad_input")[p], gate::F32_GRADIENT);
            case.assert_close("grad_norm", &zero.gradient_norm, &case.peer("grad_norm")[p], gate::F32_GRADIENT);
            case.assert_close("ig_zero_50", &zero.integrated, &case.peer("ig_zero_50")[p], gate::F32_GRADIENT);
            case.assert_close("ig_corrupt_50", &other.integrated, &case.peer("ig_corrupt_50")[p], gate::F32_GRADIENT);
            // What 50 steps leave of an integral over logits: no rounding, but the error of the method.
            let largest = zero.gap().abs().max(other.gap().abs());
            assert!(largest < 2e-3 * case.size, "{} {} of {}", zero.gap(), other.gap(), case.size);
            let coarse =
                saliency(&case.model, pair.clean(), pair.target(), Metric::LogitDiff, &Baseline::Mean, 1, None);
            let fine = saliency(&case.model, pair.clean(), pair.target(), Metric::LogitDiff, &Baseline::Mean, 64, None);
            assert!(fine.unwrap().gap().abs() < coarse.unwrap().gap().abs() / 4.0, "more steps come closer");
        }
    }
}

#[test]
fn integrated_gradients_add_up_as_steps_grow() {
    let case = Case::new("untied");
    let graph = Graph::of(case.model.config());
    let gap = |m: usize| {
        let scores =
            attribute(&case.model, &case.pairs[..1], Metric::LogitDiff, Steps::Integrated(m), None, &mut quiet)
                .unwrap();
        let leaving = (0..graph.edges()).filter(|edge| graph.edge(*edge).from == Source::Input);
        let ends = &case.peer("ends")[0];
        (leaving.map(|edge| scores[0][edge]).sum::<f64>() - (ends[0] - ends[1])).abs() / (ends[0] - ends[1]).abs()
    };
    let gaps = [4, 16, 64].map(gap);
    assert!(gaps[0] > 2.0 * gaps[1] && gaps[1] > 2.0 * gaps[2] && gaps[2] < 0.02, "{gaps:?}");
}

#[test]
fn the_full_circuit_is_the_model_and_the_empty_one_the_corrupted_run() {
    let case = Case::new("wide");
    let graph = Graph::of(case.model.config());
    for pair in &case.pairs {
        let (other, corrupt) = Outputs::run(&case.model, pair.corrupt()).unwrap();
        let run = |circuit: &Circuit| Rewired::run(&case.model, pair.clean(), &[circuit], &other).unwrap();
        let clean = case.model.forward(pair.clean()).unwrap();
        let last = clean.narrow(1, pair.len() - 1, 1).unwrap().squeeze(1).unwrap();
        // A circuit sums what its parts wrote, and the model adds to a stream: the same terms in another order.
        let away = gate::apart(&run(&Circuit::full(graph)), &last);
        assert!(away <= gate::F32, "{away:e} of the largest logit");
        let corrupt = corrupt.squeeze(1).unwrap();
        let away = gate::apart(&run(&Circuit::empty(graph)), &corrupt);
        assert!(away <= gate::F32, "{away:e} of the largest logit");
    }
    // A circuit for each prompt, or for all: nothing in between, and no circuit of another model.
    let (other, _) = Outputs::run(&case.model, case.pairs[0].corrupt()).unwrap();
    let full = Circuit::full(graph);
    assert!(Rewired::run(&case.model, case.pairs[0].clean(), &[&full, &full], &other).is_err());
    let foreign = Circuit::full(Graph { layers: 2, heads: 5 });
    let error = Rewired::run(&case.model, case.pairs[0].clean(), &[&foreign], &other).unwrap_err().to_string();
    assert!(error.contains("of 2 layers with 5 heads each, this one has 3 with 5"), "{error}");
}

#[test]
fn an_edge_is_an_edit_of_what_a_head_reads() {
    // The same edge by hand: what TransformerLens's users do with hook_q_input.
    let case = Case::new("untied");
    let pair = &case.pairs[1];
    let graph = Graph::of(case.model.config());
    for name in ["a0.h1->a2.h0<q>", "m1->a3.h1<v>", "input->a1.h0<k>", "a1.h1->m2"] {
        let edge: Edge = name.parse().unwrap();
        let number = graph.edge_index(edge).unwrap();
        let (clean, _) = Outputs::run(&case.model, pair.clean()).unwrap();
        let (corrupt, _) = Outputs::run(&case.model, pair.corrupt()).unwrap();
        let source = graph.source_index(edge.from);
        let change = (corrupt.tensor() - clean.tensor()).unwrap().narrow(1, source, 1).unwrap();
        let width = case.model.config().n_embd;
        let edit = match edge.to {
            Receiver::Head { layer, head, reads } => {
                Edit::add(reads.input(layer), &change.reshape((pair.len(), 1, width)).unwrap()).head(head)
            }
            Receiver::Mlp(layer) => Edit::add(Site::MlpIn(layer), &change.reshape((pair.len(), width)).unwrap()),
            Receiver::Logits => unreachable!(),
        };
        let logits =
            |plan: Plan| values(plan.logits(LogitsAt::Last).run(&case.model, pair.clean()).unwrap().logits().unwrap());
        let value = |logits: Vec<f64>| logits[3] - logits[8];
        let by_hand = value(logits(Plan::new())) - value(logits(Plan::new().edit(edit)));
        let found = exact(&case.model, pair, Metric::LogitDiff, &[number], None, &mut quiet).unwrap();
        case.assert_close(name, &found, &[by_hand], gate::F32);
        assert!(by_hand != 0.0, "{name} does nothing");
    }
}

#[test]
fn pruning_keeps_what_is_needed() {
    let case = Case::new("untied");
    let judge = Judge::new(&case.model, &case.pairs, Metric::Kl, Instead::Corrupt, None).unwrap();
    let mut last = usize::MAX;
    for threshold in [0.0, 1e-4, 1e-2, 10.0] {
        let circuit = prune(&judge, threshold, &mut quiet).unwrap();
        assert!(circuit.len() <= last, "{} edges after {last}", circuit.len());
        last = circuit.len();
        // No receiver's edges cost more together than each was allowed to.
        let share = judge.faithfulness(&judge.values(&circuit).unwrap(), 0).mean;
        assert!(threshold > 1e-4 || share > 0.9, "{threshold}: {share}");
    }
    assert_eq!(last, 0, "what costs anything may go");
    assert!(prune(&judge, -1.0, &mut quiet).is_err() && prune(&judge, f64::NAN, &mut quiet).is_err());
}

#[test]
fn a_subspace_is_patched_as_its_formula_says() {
    let case = Case::new("untied");
    let pair = &case.pairs[0];
    let (site, pos, width) = (Site::ResidPost(1), 2, case.model.config().n_embd);
    let interchange = Interchange::new(&case.model, std::slice::from_ref(pair), site, pos, None).unwrap();
    let mut rng = stream(3, "test", 0);
    let subspace = Subspace::random(3, width, &mut rng);
    let read = |tokens: &Tokens| values(Plan::new().read(site).run(&case.model, tokens).unwrap().get(site).unwrap());
    let at = |all: Vec<f64>| all[pos as usize * width..][..width].to_vec();
    let (clean, corrupt) = (at(read(pair.clean())), at(read(pair.corrupt())));
    let mut moved = corrupt.clone();
    for direction in subspace.basis() {
        let along: f64 = direction.iter().zip(clean.iter().zip(&corrupt)).map(|(d, (a, b))| d * (a - b)).sum();
        moved.iter_mut().zip(direction).for_each(|(x, d)| *x += along * d);
    }
    let value = Tensor::from_vec(moved, width, &common::device()).unwrap();
    let plan = Plan::new().edit(Edit::set(site, &value).pos(pos)).logits(LogitsAt::Last);
    let logits = values(plan.run(&case.model, pair.corrupt()).unwrap().logits().unwrap());
    let found = interchange.patched(&subspace, Part::Along).unwrap()[0];
    case.assert_close("along", &[found], &[logits[3] - logits[8]], gate::F32);
    // Along and across make up the whole, and the whole space is the whole.
    let all = Subspace::random(width, width, &mut rng);
    let whole = interchange.patched(&subspace, Part::Whole).unwrap()[0];
    case.assert_close("all along", &interchange.patched(&all, Part::Along).unwrap(), &[whole], gate::F32);
    case.assert_close(
        "nothing across",
        &interchange.patched(&all, Part::Across).unwrap(),
        interchange.ends().0,
        gate::F32,
    );
    // Training finds a direction that does more than the principal one, and one that is written is read back.
    let (trained, losses) = interchange.train(1, 60, 0, &mut quiet).unwrap();
    assert!(losses[59] < losses[0], "{losses:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("subspace.safetensors");
    trained.save(&path, site, "this model").unwrap();
    let (again, own) = Subspace::load(&path, "this model").unwrap().unwrap();
    assert_eq!(own, site);
    let same = |(a, b): (&f64, &f64)| gate::agree(*a, *b, gate::F32, 1.0); // a direction of length 1, written in f32
    assert!(trained.basis()[0].iter().zip(&again.basis()[0]).all(same));
    let other = Subspace::load(&path, "another model").unwrap_err().to_string();
    assert!(other.contains("is of a model with sha256 this model"), "{other}");
    let nobody = [("site".to_string(), site.to_string())].into();
    interp::weights::write_tensors(
        &path,
        &[("basis".into(), candle_core::Tensor::ones((1, width), DType::F32, &common::device()).unwrap())],
        nobody,
    )
    .unwrap();
    assert!(Subspace::load(&path, "this model").unwrap_err().to_string().contains("says nothing of the model"));
    assert!(Subspace::load(&fixture("circuits.safetensors"), "this model").unwrap().is_none());
    assert!(interchange.train(0, 5, 0, &mut quiet).is_err() && interchange.train(width + 1, 5, 0, &mut quiet).is_err());
}

#[test]
fn circuits_that_are_shipped_can_be_read() {
    for (name, _) in interp::graph::SHIPPED {
        let file = CircuitFile::shipped(name).unwrap().unwrap();
        let circuit = file.circuit().unwrap();
        assert_eq!(circuit, circuit.connected(), "{name}");
        let again = CircuitFile::parse(&file.to_toml().unwrap(), std::path::Path::new("again")).unwrap();
        assert_eq!(again, file);
    }
    let ioi = CircuitFile::shipped("ioi").unwrap().unwrap();
    assert_eq!(ioi.circuit().unwrap().nodes().len(), 26 + 12);
    assert_eq!(ioi.roles().get(&"9.9".parse().unwrap()), Some(&"name mover"));
    assert_eq!(ioi.roles().get(&"m3".parse().unwrap()), None);
    // A file of EAP-IG.
    let json = r#"{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {
        "input->a0.h0<v>": {"score": 1.0, "in_graph": true}, "a0.h0->logits": {"score": 1.0, "in_graph": true},
        "input->logits": {"score": 0.0, "in_graph": false}}}"#;
    let file = CircuitFile::parse(json, std::path::Path::new("graph.json")).unwrap();
    assert_eq!(file.circuit().unwrap().len(), 2);
}

#[test]
fn prompts_become_a_circuit_by_one_command() {
    let dir = tempfile::tempdir().unwrap();
    for (pairs, method) in [("tiny-ioi", "eap-ig"), ("tiny-pronoun", "exact")] {
        let out = dir.path().join(pairs);
        let line = format!("circuit find --pairs {pairs} --num-pairs 40 --method {method} --out {}", out.display());
        Interp::new().words(&line).run().ok();
        let run: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
        let number = |key: &str| run["circuit"][key].as_f64().unwrap();
        // Found on some pairs, and nearly as faithful on others; random circuits of its size carry nothing.
        assert!(number("faithfulness") > 0.75 && number("edges") < 60.0, "{}", run["circuit"]);
        assert!(run["circuit"]["random"]["high"].as_f64().unwrap() < 0.2, "{}", run["circuit"]);
        let edges = load_parquet(&out.join("frame.parquet")).unwrap();
        assert_eq!(edges.height(), 1108);
        let kept = edges.column("kept").unwrap().bool().unwrap().sum().unwrap();
        assert_eq!(f64::from(kept), number("edges"));
        // The file that was written is what other commands read.
        let file = out.join("circuit.toml");
        let tested = Interp::new()
            .words(&format!("circuit test {} --num-pairs 20 --format json", file.display()))
            .words(&format!("--out {}", dir.path().join(format!("{pairs}-test")).display()))
            .run()
            .ok();
        let tested: serde_json::Value = serde_json::from_str(&tested.stdout).unwrap();
        assert!(tested["run"]["circuit"]["faithfulness"].as_f64().unwrap() > 0.7);
        assert!(tested["run"]["circuit"]["rest"].as_f64().unwrap().abs() < 0.2);
    }
}

#[test]
fn a_circuit_is_tested_on_pairs_like_those_that_found_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, line: &str| -> serde_json::Value {
        let out = dir.path().join(name);
        Interp::new().words(&format!("{line} --num-pairs 6 --out {}", out.display())).run().ok();
        serde_json::from_str(&std::fs::read_to_string(out.join("run.json")).unwrap()).unwrap()
    };
    let drawn = "--corruption abc --template 3";
    run("found", &format!("circuit find --pairs tiny-ioi --method eap {drawn}"));
    let file = dir.path().join("found/circuit.toml").display().to_string();
    let pairs = |run: &serde_json::Value| run["pairs"].as_array().unwrap().clone();
    let alike = run("alike", &format!("circuit test {file} --seed 1"));
    let other = run("other", &format!("circuit test {file} --seed 1 --corruption names"));
    let plain = |drawn: &str| pairs(&run("plain", &format!("circuit test {file} --pairs tiny-ioi {drawn} --seed 1")));
    assert_eq!(pairs(&alike), plain(drawn));
    assert_eq!(pairs(&other), plain("--corruption names --template 3"));
    assert_ne!(pairs(&alike), pairs(&other));
}

#[test]
fn wrong_requests_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let head = "about = 'x'\nlayers = 6\nheads = 4\n";
    let other = path("other.toml", "about = 'x'\nlayers = 2\nheads = 4\nedges = ['input->logits']");
    let loose = path("loose.toml", &format!("{head}edges = ['m0->m1']"));
    let back = path("back.toml", &format!("{head}edges = ['m1->m0']"));
    let key = path("key.toml", &format!("{head}egdes = ['m0->m1']"));
    let huge = path("huge.toml", "about = 'x'\nlayers = 1000\nheads = 1000\nedges = ['input->logits']");
    let pairs = "--pairs tiny-ioi --num-pairs 4";
    for (line, code, why) in [
        (format!("circuit find {pairs} --method eap --steps 3"), 2, "--steps goes with --method eap-ig"),
        (format!("circuit find {pairs} --method acdc --edges 3"), 2, "acdc has --threshold"),
        (format!("circuit find {pairs} --threshold 0.1"), 2, "--threshold goes with --method acdc"),
        (format!("circuit find {pairs} --metric rank"), 2, "no gradient"),
        (format!("circuit find {pairs} --method eap --metric kl"), 2, "kl has no slope"),
        (format!("patch {pairs} --attribution --window 3 --sweep attn_head_out_all_pos"), 2, "one layer at a time"),
        (format!("patch {pairs} --attribution --metric kl --direction noise"), 2, "kl has no slope"),
        (format!("subspace {pairs} --template 0 --site resid_pre.0"), 2, "there is nothing to take over"),
        (format!("circuit test {huge} {pairs}"), 65, "layers is 1000; it must be in 1..=96"),
        (format!("circuit find {pairs} --least 1.5"), 2, "a share above 0"),
        (format!("circuit find {pairs} --edges 1"), 2, "do not lead from the input to the logits"),
        (format!("circuit find {pairs} --instead nothing"), 2, "there is no ablation `nothing`"),
        ("circuit find --prompt x".into(), 2, "--prompt"),
        (format!("circuit test ooi {pairs}"), 2, "there is no circuit `ooi`, the nearest is `ioi`"),
        (format!("circuit test nowhere.toml {pairs}"), 66, "nowhere.toml"),
        (format!("circuit test {other} {pairs}"), 2, "2 layers with 4 heads each, this one has 6 with 4"),
        (format!("circuit test {loose} {pairs}"), 65, "1 edges lie on no way from the input to the logits"),
        (format!("circuit test {back} {pairs}"), 65, "m1 does not come before m0"),
        (format!("circuit test {key} {pairs}"), 65, "egdes"),
        (format!("paths {pairs} --receiver 9.9.q"), 2, "layers 0..=5 and heads 0..=3"),
        (format!("paths {pairs} --receiver 5.1"), 2, "`5.1` reads nothing"),
        (format!("paths {pairs} --receiver logits,m3"), 2, "not at both"),
        (format!("paths {pairs} --receiver m3,m3"), 2, "m3 is there twice"),
        (format!("patch {pairs} --calibrate 3"), 2, "--attribution"),
        (format!("patch {pairs} --attribution --metric rank --sweep attn_head_out_all_pos"), 2, "no gradient"),
        ("saliency --prompt x --answer y --metric logit_diff".into(), 2, "needs --wrong"),
        ("saliency --prompt x --answer y --metric kl".into(), 2, "kl is 0"),
        (format!("subspace {pairs} --site resid_post.1"), 2, "--template N"),
        (format!("subspace {pairs} --template 0 --site z.1"), 2, "`z.1` is no stream"),
        (format!("subspace {pairs} --template 0 --site resid_post.1 --pos 99"), 2, "99 is out of range"),
        (
            format!("subspace {pairs} --template 0 --site resid_post.1 --along nowhere"),
            66,
            "there is no subspace, file or directory `nowhere`",
        ),
        (format!("subspace {pairs} --template 0 --site resid_post.1 --along means --dim 2"), 2, "--dim goes with das"),
        (format!("subspace {pairs} --template 0 --site resid_post.* "), 2, "--site names 6 sites"),
    ] {
        Interp::new().words(&line).words(&format!("--out {}", out.display())).run().refused(code, why);
        assert!(!out.join("run.json").exists(), "{line}");
    }
}
