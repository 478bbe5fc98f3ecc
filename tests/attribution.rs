//! Direct logit attribution: TransformerLens's numbers, and sums that are the model's own logits.
//!
//! `tests/fixtures/make_attribution.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use common::{fixture, gate, parity_model, three_pairs, values};
use interp::attribution::{Attributed, By, accumulated, attribute, frame};
use interp::convention::LayerNormConvention::{FinalScale, Recompute};
use interp::language::Language;
use interp::random::stream;
use interp::stack::{self, Stack};
use interp::target::Target;
use interp::text::Encoding;
use interp::{Plan, Tokens, embedded};
use polars::prelude::*;
use process::Interp;

const MODELS: [&str; 3] = ["wide", "thin", "untied"];

/// What TransformerLens computed for one model, by name.
struct Peer {
    name: &'static str,
    tensors: HashMap<String, Tensor>,
}

impl Peer {
    fn of(name: &'static str) -> Self {
        Self {
            name,
            tensors: candle_core::safetensors::load(fixture("attribution.safetensors"), &Device::Cpu).unwrap(),
        }
    }

    fn get(&self, key: &str) -> &Tensor {
        &self.tensors[&format!("{}.{key}", self.name)]
    }

    fn labels(&self, key: &str) -> Vec<String> {
        let bytes: Vec<u8> = self.get(&format!("{key}.labels")).to_vec1().unwrap();
        String::from_utf8(bytes).unwrap().lines().map(str::to_string).collect()
    }

    fn tokens(&self) -> Tokens {
        Tokens::from_ids(self.get("tokens").to_dtype(DType::U32).unwrap().to_vec2().unwrap()).unwrap()
    }

    /// Shares `[component, prompt]` by label, for one prompt.
    fn shares(&self, key: &str, prompt: usize) -> HashMap<String, f64> {
        let attrs: Vec<Vec<f32>> = self.get(&format!("{key}.attrs")).to_vec2().unwrap();
        self.labels(key).into_iter().zip(attrs).map(|(label, row)| (label, f64::from(row[prompt]))).collect()
    }
}

/// The answers of `make_attribution.py`.
fn target() -> Target {
    Target::new(vec![3, 11], vec![8]).unwrap()
}

/// The largest share: what the sum of all is rounded by.
fn size(one: &Attributed) -> f64 {
    gate::size(one.parts.iter().map(|(_, share)| *share)).max(one.value.abs())
}

#[test]
fn stacks_are_transformer_lenss() {
    for name in MODELS {
        let (model, peer) = (parity_model(name), Peer::of(name));
        let layers = model.config().n_layer;
        let trace = Plan::new().reads(stack::sites(layers)).run(&model, &peer.tokens()).unwrap();
        let stacks: [(&str, Stack); 6] = [
            ("decompose_resid", stack::decompose_resid(&model, &trace, layers).unwrap()),
            ("accumulated_resid", stack::accumulated_resid(&model, &trace, layers, true).unwrap()),
            ("stack_head_results", stack::stack_head_results(&model, &trace, layers).unwrap()),
            ("stack_neuron_results", stack::stack_neuron_results(&model, &trace, layers).unwrap()),
            ("full", stack::get_full_resid_decomposition(&model, &trace, layers, false).unwrap()),
            ("full_neurons", stack::get_full_resid_decomposition(&model, &trace, layers, true).unwrap()),
        ];
        for (key, stack) in stacks {
            assert_eq!(stack.labels, peer.labels(key), "{name} {key}");
            let (components, _, length, _) = stack.values.dims4().unwrap();
            let ours = match key.contains("neuron") {
                false => stack.values.i((.., .., length - 2..)).unwrap(),
                true => {
                    let kept: Vec<u32> = (0..components as u32).step_by(7).collect();
                    let kept = Tensor::from_vec(kept, components.div_ceil(7), &common::device()).unwrap();
                    stack.values.index_select(&kept, 0).unwrap().i((.., ..1, length - 1..)).unwrap()
                }
            };
            let difference = gate::apart(&ours, peer.get(key));
            assert!(difference <= gate::F32, "{name} {key}: {difference:e}");
        }
        // The part before a layer adds up to what that layer reads.
        for layer in 1..=layers {
            let all = stack::get_full_resid_decomposition(&model, &trace, layer, true).unwrap().values.sum(0).unwrap();
            let streams = stack::accumulated_resid(&model, &trace, layer, false).unwrap();
            let last = streams.values.get(streams.labels.len() - 1).unwrap();
            assert!(gate::apart(&all, &last) <= gate::F32, "{name} before layer {layer}");
        }
        assert!(stack::stack_head_results(&model, &trace, 0).is_err());
        assert!(stack::decompose_resid(&model, &trace, layers + 1).is_err());
    }
}

#[test]
fn shares_are_transformer_lenss_and_add_up() {
    for name in MODELS {
        let (model, peer) = (parity_model(name), Peer::of(name));
        let tokens = peer.tokens();
        let wanted = values(peer.get("value"));
        let bias = values(peer.get("bias"))[0];
        for (by, key) in [(By::Component, "decompose_resid"), (By::Head, "full"), (By::Neuron, "full_neurons")] {
            let attributed = attribute(&model, &tokens, &[target(), target()], by, -1).unwrap();
            for (prompt, one) in attributed.iter().enumerate() {
                let size = size(one);
                let agree = |found, wanted| gate::agree(found, wanted, gate::F32, size);
                assert!(agree(one.value, wanted[prompt]), "{name} {by}");
                assert!(agree(one.remainder(), 0.0), "{name} {by}: {:e}", one.remainder());
                let shares = peer.shares(key, prompt);
                let (mut biases, mut compared) = (0.0, 0);
                for (part, share) in &one.parts {
                    let (layer, head) = (part.layer.unwrap_or(0), part.head.unwrap_or(0));
                    let label = match part.kind {
                        "embed" | "pos_embed" => part.kind.to_string(),
                        "attn_out" | "mlp_out" => format!("{layer}_{}", part.kind),
                        "head" => format!("L{layer}H{head}"),
                        "neuron" => format!("L{layer}N{}", part.neuron.unwrap()),
                        "ln_final_bias" => {
                            assert!(agree(*share, bias), "{name} {by}: {share} instead of {bias}");
                            continue;
                        }
                        _ => {
                            biases += share;
                            continue;
                        }
                    };
                    let wanted = shares[&label];
                    assert!(agree(*share, wanted), "{name} {part}: {share} instead of {wanted}");
                    compared += 1;
                }
                if by != By::Component {
                    assert!(agree(biases, shares["bias"]), "{name} {by}: {biases}");
                    compared += 1;
                }
                assert_eq!(compared, shares.len(), "{name} {by}");
            }
        }
    }
}

#[test]
fn the_accumulated_logit_difference_is_transformer_lenss_in_both_conventions() {
    for name in MODELS {
        let (model, peer) = (parity_model(name), Peer::of(name));
        let (tokens, targets) = (peer.tokens(), [target(), target()]);
        let bias = values(peer.get("bias"))[0];
        let at_final: Vec<Vec<f32>> = peer.get("accumulated_resid.attrs").to_vec2().unwrap();
        let own: Vec<Vec<f32>> = peer.get("recompute").to_vec2().unwrap();
        for (convention, wanted, bias) in [(FinalScale, at_final, bias), (Recompute, own, 0.0)] {
            let all = accumulated(&model, &tokens, &targets, convention, -1).unwrap();
            for (prompt, one) in all.iter().enumerate() {
                assert_eq!(one.parts.len(), wanted.len());
                for ((part, value), wanted) in one.parts.iter().zip(&wanted) {
                    let wanted = f64::from(wanted[prompt]) + bias;
                    let agree = gate::agree(*value, wanted, gate::F32, size(one));
                    assert!(agree, "{name} {part} {convention}: {value} instead of {wanted}");
                }
                assert!(
                    gate::agree(one.parts.last().unwrap().1, one.value, gate::F32, size(one)),
                    "{name} {convention}"
                );
            }
        }
    }
}

/// Prompts of the built-in model's language with their answers.
fn ioi(n: usize) -> (Vec<String>, Vec<Target>) {
    let tokenizer = embedded::tokenizer().unwrap();
    let names = ["Mary", "John", "Tom", "Anna", "Lucy", "Peter"];
    let pairs = (0..names.len()).flat_map(|i| (0..names.len()).map(move |j| (names[i], names[j])));
    let of = |(a, b): (&str, &str)| {
        let target = Target::parse(&tokenizer, &[format!(" {a}")], &[format!(" {b}")]).unwrap();
        (format!("When {a} and {b} went to the shop, {b} gave a drink to"), target)
    };
    pairs.filter(|(a, b)| a != b).map(of).take(n).unzip()
}

#[test]
fn tiny_adds_up_at_every_level_position_and_without_a_wrong_answer() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let (mut prompts, mut targets) = ioi(7);
    // Prompts that differ in length, and the logit of one token alone.
    prompts.push("The capital of France is".into());
    targets.push(Target::new(vec![targets[0].answers()[0]], vec![]).unwrap());
    let tokens = tokenizer.tokens(&prompts, Encoding::default()).unwrap();
    for pos in [-1, 0, 3] {
        for by in [By::Component, By::Head, By::Neuron] {
            for one in attribute(&model, &tokens, &targets, by, pos).unwrap() {
                assert!(one.remainder().abs() <= gate::F32 * size(&one), "{by} {pos}: {:e}", one.remainder());
            }
        }
        for (prompt, one) in accumulated(&model, &tokens, &targets, Recompute, pos).unwrap().iter().enumerate() {
            let alone = tokens.only(prompt);
            let logits = model.forward(&alone).unwrap().i((0, one.pos)).unwrap().to_vec1::<f32>().unwrap();
            let agree = |found| gate::agree(found, one.value, gate::F32, size(one));
            assert!(agree(targets[prompt].value(&logits).unwrap()) && agree(one.parts.last().unwrap().1));
        }
    }
    let far = attribute(&model, &tokens, &targets, By::Head, 7).unwrap_err().to_string();
    assert!(far.contains("pos 7 is out of range"), "{far}");
    let few = attribute(&model, &tokens, &targets[..2], By::Head, -1).unwrap_err().to_string();
    assert!(few.contains("8 prompts need as many targets, not 2"), "{few}");
}

fn sums(frame: &DataFrame) -> HashMap<Option<u32>, f64> {
    let prompt = frame.column("prompt").unwrap().u32().unwrap().clone();
    let mut sums = HashMap::new();
    for (prompt, x) in prompt.iter().zip(frame.column("contribution").unwrap().f64().unwrap().iter()) {
        *sums.entry(prompt).or_insert(0.0) += x.unwrap();
    }
    sums
}

#[test]
fn a_frame_adds_up_however_many_neurons_it_shows_and_its_means_have_intervals() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let (prompts, targets) = ioi(5);
    let tokens = tokenizer.tokens(&prompts, Encoding::default()).unwrap();
    let attributed = attribute(&model, &tokens, &targets, By::Neuron, -1).unwrap();
    let mean = attributed.iter().map(|one| one.value).sum::<f64>() / 5.0;
    for neurons in [0, 3, 10_000] {
        let frame = frame(&attributed, FinalScale, neurons, &tokenizer, 1).unwrap();
        let sums = sums(&frame);
        for (prompt, one) in attributed.iter().enumerate() {
            assert!(gate::agree(sums[&Some(prompt as u32)], one.value, gate::F64, size(one)), "{neurons}");
        }
        assert!(gate::agree(sums[&None], mean, gate::F64, size(&attributed[0])));
        let shown = frame.column("neuron").unwrap();
        assert_eq!(frame.height() - shown.null_count(), neurons.min(6 * 512) * 6, "{neurons}");
    }
    let frame = frame(&attributed, FinalScale, 3, &tokenizer, 1).unwrap();
    let of = |name: &str| frame.column(name).unwrap().f64().unwrap().iter().collect::<Vec<_>>();
    let (low, x, high) = (of("low"), of("contribution"), of("high"));
    for i in 0..frame.height() {
        let of_prompt = frame.column("prompt").unwrap().u32().unwrap().get(i).is_some();
        assert_eq!(low[i].is_none(), of_prompt);
        assert!(of_prompt || (low[i] <= x[i] && x[i] <= high[i]));
    }
}

#[test]
fn in_tiny_late_heads_move_the_name() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let (prompts, targets) = ioi(12);
    let tokens = tokenizer.tokens(&prompts, Encoding::default()).unwrap();
    let attributed = attribute(&model, &tokens, &targets, By::Head, -1).unwrap();
    let share = |one: &Attributed, wanted: fn(Option<usize>) -> bool| -> f64 {
        one.parts.iter().filter(|(part, _)| wanted(part.layer)).map(|(_, x)| x).sum()
    };
    for one in &attributed {
        assert!(one.value > 1.0, "{one:?}");
        let late = share(one, |layer| layer >= Some(3));
        assert!(late > 0.8 * one.value, "the last three layers add {late} of {}", one.value);
    }
}

#[test]
fn a_language_of_random_sentences_adds_up_too() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let language: Language = embedded::language().unwrap();
    let mut rng = stream(3, "sentences", 0);
    let sentences: Vec<String> = (0..20).map(|_| language.document(&mut rng)).collect();
    let tokens = tokenizer.tokens(&sentences, Encoding::default()).unwrap();
    let target = Target::new(vec![300, 301], vec![302, 303, 304]).unwrap();
    for one in attribute(&model, &tokens, &vec![target; 20], By::Neuron, -2).unwrap() {
        assert!(one.remainder().abs() <= gate::F32 * size(&one), "{:e}", one.remainder());
    }
}

const IOI: &str = "When Mary and John went to the shop, John gave a drink to";

fn command(words: &str) -> Interp {
    Interp::new().words("attribute").words(words).arg("--prompt").arg(IOI)
}

fn answers(command: Interp, answer: &str, wrong: &str) -> Interp {
    command.arg("--answer").arg(answer).arg("--wrong").arg(wrong)
}

fn parquet(path: &std::path::Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap()
}

#[test]
fn wrong_requests_say_what_to_do() {
    let good = |words: &str| answers(command(words), " Mary", " John");
    for (command, wanted) in [
        (good("--by layer"), "there is no level of attribution `layer`, the nearest is `"),
        (good("--by head --neurons 3"), "--neurons needs --by neuron, not head"),
        (good("--accumulated --by head"), "cannot be used with"),
        (good("--accumulated --ln own"), "there is no LayerNorm convention `own`"),
        (good("--ln recompute"), "--accumulated"),
        (good("--pos 15"), "pos 15 is out of range 0..=14"),
        (good("--pairs x.jsonl"), "cannot be used with"),
        (answers(command(""), " Mary", " Mary"), "the same token"),
        (answers(command(""), " zyzzyva", " Mary"), "the answer ` zyzzyva` is"),
        (command(""), "--answer"),
        (Interp::new().words("attribute --answer a"), "no text"),
    ] {
        command.run().refused(2, wanted);
    }
}

#[test]
fn the_command_leaves_a_frame_that_adds_up() {
    for words in ["--by component", "", "--neurons 5", "--by neuron --pos 4"] {
        let outcome = answers(command(words), " Mary", " John").run().ok();
        assert!(outcome.stdout.contains("remainder"), "{}", outcome.stdout);
        let out = outcome.output();
        let frame = parquet(&out.join("frame.parquet"));
        let names: Vec<String> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
        let wanted = "prompt component layer head neuron contribution low high pos token answer wrong convention";
        assert_eq!(names.join(" "), wanted);
        let run = outcome.record();
        let value = run["values"][0].as_f64().unwrap();
        let size = gate::size(frame.column("contribution").unwrap().f64().unwrap().iter().flatten()).max(value.abs());
        assert!(gate::agree(sums(&frame)[&Some(0)], value, gate::F64, size));
        assert!(run["largest_remainder"].as_f64().unwrap() <= gate::F32 * size);
        for file in ["figure.svg", "figure.png"] {
            assert!(out.join(file).exists(), "{file}");
        }
    }
    for words in ["--accumulated", "--accumulated --ln recompute"] {
        let outcome = answers(command(words), " Mary", " John").run().ok();
        assert_eq!(parquet(&outcome.output().join("frame.parquet")).height(), 13);
    }
    command("").arg("--answer").arg(" Mary").run().ok();
}

#[test]
fn pairs_are_summed_up_with_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = dir.path().join("pairs.jsonl");
    three_pairs(&pairs);
    let outcome = Interp::new().words("attribute --pairs").arg(&pairs).run().ok();
    assert!(outcome.stdout.contains("mean of 3 prompts"), "{}", outcome.stdout);
    let frame = parquet(&outcome.output().join("frame.parquet"));
    assert_eq!(frame.column("prompt").unwrap().null_count() * 4, frame.height());
    std::fs::write(&pairs, "{\"clean\": \"a\"}").unwrap();
    Interp::new().words("attribute --pairs").arg(&pairs).run().refused(65, "line 1: there is no field `corrupt`");
}
