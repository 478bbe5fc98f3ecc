//! Causal tracing and what else sweeps can do: windows of layers, noise, neurons, a limit of memory.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};
use common::{gate, narrowed, small_config, values};
use interp::metric::Metric;
use interp::pair::{Noise, Pair};
use interp::patch::{Direction, Options, Patched, frame, patch};
use interp::random::{normal, stream};
use interp::sweep::{Cell, Sweep};
use interp::target::Target;
use interp::{Config, Edit, Error, Gpt2, LogitsAt, Plan, Result, Site, Tokens};
use process::Interp;

fn tokens(ids: &[u32]) -> Tokens {
    Tokens::from_ids(vec![ids.to_vec()]).unwrap()
}

fn target() -> Target {
    Target::new(vec![2], vec![5]).unwrap()
}

fn pair() -> Pair {
    Pair::new(tokens(&[1, 2, 3, 4, 5, 6]), tokens(&[1, 7, 3, 4, 9, 6]), target()).unwrap()
}

fn sweeps(name: &str, window: usize) -> Vec<Sweep> {
    Sweep::named(name).unwrap().into_iter().map(|sweep| sweep.windowed(window)).collect()
}

fn try_run(model: &Gpt2, pair: &Pair, sweeps: &[Sweep], options: Options) -> Result<Patched> {
    patch(model, pair, sweeps, options, &mut |_, _| Ok(()))
}

fn run(model: &Gpt2, pair: &Pair, sweeps: &[Sweep], options: Options) -> Patched {
    try_run(model, pair, sweeps, options).unwrap()
}

/// Logits after the last token of a whole run.
fn ends(model: &Gpt2, plan: Plan, tokens: &Tokens) -> Vec<f32> {
    let logits = values(plan.logits(LogitsAt::Last).run(model, tokens).unwrap().logits().unwrap());
    logits.into_iter().map(|x| x as f32).collect()
}

/// A run of `base`, as `plan` has it, with one edit for every layer of a cell's window.
fn naive(model: &Gpt2, (base, plan): (&Tokens, Plan), (source, other): (&Tokens, Plan), cell: &Cell) -> Vec<f32> {
    let sites: Vec<Site> = (cell.window.0..=cell.window.1).map(|layer| cell.site.in_layer(layer)).collect();
    let other = other.reads(sites.clone()).run(model, source).unwrap();
    let patches = sites.into_iter().map(|site| narrowed(Edit::patch(site, other.get(site).unwrap()), cell));
    ends(model, plan.edits(patches), base)
}

/// What metrics are rounded by: the largest logit, or 1 for a probability.
fn size(logits: &[f32]) -> f64 {
    gate::size(logits.iter().map(|x| f64::from(*x))).max(1.0)
}

fn agree(what: &str, found: &[f64], logits: &[f32], clean: &[f32]) {
    for (metric, found) in Metric::ALL.into_iter().zip(found) {
        let wanted = metric.of(logits, clean, &target());
        gate::assert_agree_at(&format!("{what} {metric:?}"), &[*found], &[wanted], gate::F32, size(logits));
    }
}

#[test]
fn windows_neurons_and_layers_are_runs_of_their_own() {
    let model = common::model(&Config { n_layer: 5, tie_word_embeddings: true, ..small_config() }, DType::F32);
    let pair = pair();
    let clean = ends(&model, Plan::new(), pair.clean());
    let names = ["attn_out", "mlp_out", "resid_pre", "attn_head_v_by_pos", "attn_head_pattern_by_pos"];
    let windowed = names.iter().flat_map(|name| [2, 3, 10].map(|window| (*name, window)));
    let whole = ["mlp_neuron_all_pos", "attn_out_all_pos", "mlp_out_all_pos"].map(|name| (name, 1));
    for (direction, base, source) in
        [(Direction::Denoise, pair.corrupt(), pair.clean()), (Direction::Noise, pair.clean(), pair.corrupt())]
    {
        for (name, window) in windowed.clone().chain(whole).chain([("mlp_neuron_all_pos", 3)]) {
            let patched = run(&model, &pair, &sweeps(name, window), Options { direction, ..Options::default() });
            for (_, cell, found) in &patched.cells {
                let logits = naive(&model, (base, Plan::new()), (source, Plan::new()), cell);
                agree(&format!("{name} {cell}"), found, &logits, &clean);
            }
            assert!(patched.identity < gate::F32 * size(&clean), "{name}: {}", patched.identity);
        }
    }
}

#[test]
fn a_window_lies_around_its_layer() {
    let config = Config { n_layer: 5, ..small_config() };
    let of = |window: usize| -> Vec<(usize, usize)> {
        sweeps("attn_out_all_pos", window)[0].cells(&config, 4).iter().map(|cell| cell.window).collect()
    };
    // Meng et al.'s trace_with_patch: range(max(0, layer − n // 2), min(layers, layer − (−n // 2))).
    assert_eq!(of(1), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]);
    assert_eq!(of(2), [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4)]);
    assert_eq!(of(3), [(0, 1), (0, 2), (1, 3), (2, 4), (3, 4)]);
    assert_eq!(of(10), [(0, 4); 5]);
    let cells = sweeps("attn_out", 3)[0].cells(&config, 2);
    assert_eq!((cells.len(), cells[5].to_string().as_str()), (10, "attn_out 1-3@1"));
}

fn noised(scale: f64, seed: u64, sample: u64) -> Pair {
    let noise = Noise { positions: 1..3, scale, seed, sample };
    Pair::noised(tokens(&[1, 2, 3, 4, 5]), noise, target()).unwrap()
}

/// The edit that a noised pair stands for.
fn noise_of(model: &Gpt2, pair: &Pair) -> Edit {
    let Noise { positions, scale, seed, sample } = pair.noise().unwrap();
    let (_, embedding) = model.tensors().into_iter().find(|(name, _)| name == "wte.weight").unwrap();
    let entries = values(embedding);
    let mean = entries.iter().sum::<f64>() / entries.len() as f64;
    let deviation = (entries.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / entries.len() as f64).sqrt();
    let width = model.config().n_embd;
    let mut rng = stream(*seed, "noise on embeddings", *sample);
    let count = positions.len() * width;
    let noise: Vec<f32> = (0..count).map(|_| (scale * deviation * normal(&mut rng)) as f32).collect();
    let noise = Tensor::from_vec(noise, (1, positions.len(), width), &common::device()).unwrap();
    Edit::add(Site::Embed, &noise).pos(positions.start as i64..=positions.end as i64 - 1)
}

#[test]
fn a_noised_run_is_a_run_with_noise_on_its_embeddings() {
    let model = common::small_model(DType::F32);
    let pair = noised(3.0, 8, 1);
    let plan = || Plan::new().edit(noise_of(&model, &pair));
    let (clean, corrupt) = (ends(&model, Plan::new(), pair.clean()), ends(&model, plan(), pair.clean()));
    for direction in [Direction::Denoise, Direction::Noise] {
        let patched = run(&model, &pair, &sweeps("block_every", 1), Options { direction, ..Options::default() });
        let (base, source) = match direction {
            Direction::Denoise => ((pair.clean(), plan()), (pair.clean(), Plan::new())),
            Direction::Noise => ((pair.clean(), Plan::new()), (pair.clean(), plan())),
        };
        let (of_base, of_source) =
            if direction == Direction::Denoise { (&corrupt, &clean) } else { (&clean, &corrupt) };
        agree("base", &patched.base, of_base, &clean);
        agree("source", &patched.source, of_source, &clean);
        assert!((patched.source[0] - patched.base[0]).abs() > 0.01, "the noise changes something");
        for (_, cell, found) in &patched.cells {
            agree(&cell.to_string(), found, &naive(&model, base.clone(), source.clone(), cell), &clean);
        }
        // A share of the difference that the noise makes.
        let share = gate::F32 * size(&clean) / (patched.source[0] - patched.base[0]).abs();
        assert!((patched.restored - 1.0).abs() < share, "{} within {share}", patched.restored);
        // Before the noise nothing differs.
        assert!(patched.cells.iter().all(|(_, cell, v)| cell.pos > Some(0) || *v == patched.base));
    }
    // Both noised positions of the first stream together are all that was changed.
    let cells = sweeps("resid_pre", 1)[0].cells(model.config(), 5);
    let clean_run = Plan::new().read(Site::ResidPre(0)).run(&model, pair.clean()).unwrap();
    let resid = clean_run.get(Site::ResidPre(0)).unwrap();
    let restored = cells[1..3].iter().map(|cell| narrowed(Edit::patch(Site::ResidPre(0), resid), cell));
    for (x, y) in ends(&model, plan().edits(restored), pair.clean()).iter().zip(&clean) {
        assert!(gate::agree(f64::from(*x), f64::from(*y), gate::F32, size(&clean)), "{x} instead of {y}");
    }
}

#[test]
fn noise_is_seeded_and_as_large_as_it_says() {
    let model = common::small_model(DType::F32);
    let base = |pair: &Pair| run(&model, pair, &sweeps("resid_pre", 1), Options::default()).base[0];
    assert_eq!(base(&noised(3.0, 1, 0)), base(&noised(3.0, 1, 0)));
    // Every sample of every seed has noise of its own.
    let all: BTreeSet<u64> =
        (0..5).flat_map(|seed| (0..5).map(move |sample| base(&noised(3.0, seed, sample)).to_bits())).collect();
    assert_eq!(all.len(), 25);
    let clean = run(&model, &noised(3.0, 1, 0), &sweeps("resid_pre", 1), Options::default()).source[0];
    // Noise of 1e-5 of an embedding moves logits of size 1 by about as much, and noise of 3 by 0.01 at least.
    assert!((base(&noised(1e-5, 1, 0)) - clean).abs() < 1e-3);
    for (noise, wanted) in [
        (Noise { positions: 2..6, scale: 3.0, seed: 0, sample: 0 }, "positions 2..6 of a prompt of 5 tokens"),
        (Noise { positions: 2..2, scale: 3.0, seed: 0, sample: 0 }, "corrupts nothing"),
        (Noise { positions: 1..2, scale: 0.0, seed: 0, sample: 0 }, "corrupts nothing"),
        (Noise { positions: 1..2, scale: f64::NAN, seed: 0, sample: 0 }, "corrupts nothing"),
    ] {
        let error = Pair::noised(tokens(&[1, 2, 3, 4, 5]), noise, target()).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

#[test]
fn only_some_layers() {
    let model = common::small_model(DType::F32);
    let all = run(&model, &pair(), &sweeps("block_every", 1), Options::default());
    let some = run(&model, &pair(), &sweeps("block_every", 1), Options { layers: Some((1, 2)), ..Options::default() });
    let inside: Vec<_> = all.cells.iter().filter(|(_, cell, _)| cell.layer >= 1).collect();
    assert_eq!((some.cells.len(), all.cells.len()), (3 * 2 * 6, 3 * 3 * 6));
    for ((_, cell, found), (_, of_all, wanted)) in some.cells.iter().zip(inside) {
        assert_eq!(cell, of_all);
        gate::assert_agree(&cell.to_string(), found, wanted, gate::F32);
    }
}

#[test]
fn less_memory_gives_the_same_numbers() {
    let model = common::small_model(DType::F32);
    let names = ["resid_pre", "attn_head_v_by_pos", "attn_head_pattern_dest_src_pos", "mlp_neuron_all_pos"];
    let all: Vec<Sweep> = names.iter().flat_map(|name| sweeps(name, 1)).collect();
    let usual = run(&model, &pair(), &all, Options::default());
    let limited = |bytes: u64| try_run(&model, &pair(), &all, Options { memory: Some(bytes), ..Options::default() });
    let (mut refused, mut done) = (BTreeSet::new(), 0);
    for bytes in (12..40).map(|i| 2.0_f64.powf(f64::from(i) / 2.0) as u64) {
        match limited(bytes) {
            Err(Error::TryAgain(what)) => {
                assert_eq!(done, 0, "{bytes} bytes are too few, but fewer were enough");
                assert!(what.contains(" of memory; --memory leaves "), "{what}");
                refused.insert(what.split(" needs ").next().unwrap().to_string());
            }
            Err(other) => panic!("{other}"),
            Ok(found) => {
                done += 1;
                for ((_, cell, found), (_, _, wanted)) in found.cells.iter().zip(&usual.cells) {
                    gate::assert_agree(&cell.to_string(), found, wanted, gate::F32);
                }
                assert_eq!(found.equal, usual.equal);
            }
        }
    }
    assert!(done > 5 && refused.len() == 2, "{done} {refused:?}");
}

#[test]
fn sets_of_answers_count_together() {
    let model = common::small_model(DType::F32);
    let (right, wrong) = (vec![2, 7, 0], vec![5, 9]);
    let target = Target::new(right.clone(), wrong.clone()).unwrap();
    let pair = Pair::new(tokens(&[1, 2, 3, 4]), tokens(&[1, 6, 3, 4]), target).unwrap();
    let patched = run(&model, &pair, &sweeps("attn_out", 1), Options::default());
    for (_, cell, found) in &patched.cells {
        let logits = naive(&model, (pair.corrupt(), Plan::new()), (pair.clean(), Plan::new()), cell);
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let of = |ids: &[u32]| ids.iter().map(|id| f64::from(logits[*id as usize])).collect::<Vec<_>>();
        let mean = |x: Vec<f64>| x.iter().sum::<f64>() / x.len() as f64;
        let prob = |x: Vec<f64>| x.iter().map(|x| x.exp() / total).sum::<f64>();
        let best = of(&right).into_iter().fold(f64::NEG_INFINITY, f64::max);
        let rank = logits.iter().filter(|x| f64::from(**x) > best).count() as f64;
        let wanted = [
            mean(of(&right)) - mean(of(&wrong)),
            prob(of(&right)),
            prob(of(&right)) - prob(of(&wrong)),
            prob(of(&right)).ln(),
            rank,
        ];
        let size = gate::size(logits.iter().copied().map(f64::from)).max(1.0);
        gate::assert_agree_at(&cell.to_string(), &found[..wanted.len()], &wanted, gate::F32, size);
    }
}

#[test]
fn several_sweeps_share_a_frame() {
    let model = common::small_model(DType::F32);
    let both = [sweeps("mlp_neuron_all_pos", 1), sweeps("resid_mid", 1)].concat();
    let patched = run(&model, &pair(), &both, Options::default());
    let table = frame(&[pair()], &[patched], &[Metric::LogitDiff], 0).unwrap();
    let nulls = |name: &str| table.column(name).unwrap().null_count();
    assert_eq!((table.height(), nulls("neuron"), nulls("pos")), (3 * 10 + 3 * 6, 3 * 6, 3 * 10));
    let names: Vec<&str> = table.column("sweep").unwrap().str().unwrap().iter().flatten().collect();
    assert_eq!(names.iter().filter(|name| **name == "resid_mid").count(), 3 * 6);
}

const CLEAN: &str = "When Mary and John went to the shop, John gave a drink to";

fn trace(words: &str) -> Interp {
    let command = Interp::new().words("patch --clean").arg(CLEAN).arg("--answer").arg(" Mary");
    command.arg("--wrong").arg(" John").words(words)
}

#[test]
fn the_command_traces_a_subject() {
    let words = "--sweep resid_pre,attn_out,mlp_out --window 3 --noise-samples 3 --format csv";
    let subject = |text: &str, words: &str| trace(words).arg("--subject").arg(text).run().ok();
    let first = subject("Mary", words);
    let run = first.record();
    // <|endoftext|>, When, Mary
    assert_eq!(run["noise"]["positions"], serde_json::json!([2, 3]));
    assert_eq!(run["controls"].as_array().unwrap().len(), 3);
    assert_eq!(first.stdout, subject("Mary", words).stdout);
    assert_ne!(first.stdout, subject("Mary", &format!("{words} --seed 1")).stdout);
    let wide = subject("Mary and John", "--layer 5 --noise-samples 1 --format csv");
    assert_eq!(wide.record()["noise"]["positions"], serde_json::json!([2, 5]));
    let header: Vec<&str> = wide.stdout.lines().next().unwrap().split(',').collect();
    let layer = header.iter().position(|name| *name == "layer").unwrap();
    assert!(wide.stdout.lines().skip(1).all(|line| line.split(',').nth(layer) == Some("5")), "{}", wide.stdout);
    // The embeddings' noise is gone where the first stream is clean again.
    let bounds = |control: &serde_json::Value| (control["restored"].as_f64().unwrap() - 1.0).abs() < 1e-3;
    assert!(run["controls"].as_array().unwrap().iter().all(bounds), "{run}");
    for (command, wanted) in [
        (trace("--subject Anna"), "the clean prompt does not hold `Anna`"),
        (trace("--subject").arg(""), "the clean prompt does not hold ``"),
        (trace("--subject Mary --corrupt x"), "cannot be used with"),
        (trace("--subject Mary --noise 0"), "corrupts nothing"),
        (trace("--subject Mary --noise-samples 0"), "--noise-samples"),
        (trace("--subject Mary --window 0"), "--window"),
        (trace("--subject Mary --layer 6"), "6"),
        (trace("--noise 2"), "--subject"),
        (Interp::new().words("patch --pairs tiny-ioi --subject Mary"), "--clean"),
    ] {
        command.run().refused(2, wanted);
    }
}

#[test]
fn the_command_stays_within_its_memory() {
    let sweep = "--sweep mlp_neuron_all_pos,attn_head_pattern_dest_src_pos --layer 0-1 --format csv --corrupt";
    let command = |words: &str| trace(sweep).arg(CLEAN.replace(", John", ", Mary")).words(words).run();
    let usual = command("").ok().stdout;
    // As little as there may be: what is too little is said.
    let (mut refused, mut stayed) = (0, 0);
    for megabytes in [60, 70, 80, 90, 110] {
        let outcome = command(&format!("--memory {megabytes}MB"));
        if outcome.code == Some(75) {
            outcome.refused(75, " of memory; ");
            refused += 1;
            assert_eq!(stayed, 0);
            continue;
        }
        let outcome = outcome.ok();
        stayed += 1;
        let peak = outcome.record()["memory"]["peak"].as_u64().unwrap();
        assert!(peak < megabytes * 1_000_000, "{peak} bytes at a limit of {megabytes} MB");
        assert_eq!(outcome.stdout.lines().count(), usual.lines().count());
        for (line, wanted) in outcome.stdout.lines().zip(usual.lines()).skip(1) {
            for (found, wanted) in line.split(',').zip(wanted.split(',')) {
                match (found.parse::<f64>(), wanted.parse::<f64>()) {
                    // Effects, shares of a few logits of size 10.
                    (Ok(x), Ok(y)) => assert!(gate::agree(x, y, gate::F32, 10.0 + y.abs()), "{line}: {y}"),
                    _ => assert_eq!(found, wanted),
                }
            }
        }
    }
    assert!(refused > 0 && stayed > 0);
    command("--memory 1MB").refused(75, "loading the weights needs");
    command("--memory much").refused(2, "`much` is no amount of memory");
}
