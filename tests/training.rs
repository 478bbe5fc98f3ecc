//! Training: the optimizer's arithmetic, resuming exactly, and a result that depends on the seed alone.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;

use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer;
use common::values;
use interp::language::Language;
use interp::optim::{AdamW, AdamWConfig};
use interp::recipe::Recipe;
use interp::train::{STATE, Trainer};
use interp::weights::sha256;
use process::{Interp, files, go_on, kill_when, lines, signal, stop_when};

const RECIPE: &str = r#"
[model]
n_layer = 2
n_head = 2
n_embd = 32
block_size = 64
vocab_size = 700

[data]
language = "language.toml"
tokenizer_documents = 500
repeat_share = 0.3

[train]
seed = 5
batch_size = 4
micro_batch_size = 1
max_iters = 12
short_iters = 4
short_block_size = 32
learning_rate = 3e-3
min_lr = 3e-4
warmup_iters = 3
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.1
grad_clip = 1.0
eval_interval = 5
eval_rows = 4
checkpoint_interval = 4
"#;

/// A directory with a recipe and the language of the built-in model.
fn recipe(changes: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let language = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/language.toml");
    std::fs::copy(language, dir.path().join("language.toml")).unwrap();
    let text = changes.iter().fold(RECIPE.to_string(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    std::fs::write(dir.path().join("recipe.toml"), text).unwrap();
    dir
}

fn trainer(dir: &Path) -> Trainer {
    let recipe = Recipe::load(&dir.join("recipe.toml")).unwrap();
    let path = dir.join("language.toml");
    let language = Language::parse(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
    Trainer::from_language(recipe, language, &common::device()).unwrap()
}

fn train(dir: &Path, out: &Path) -> Interp {
    Interp::new().words("train --config").arg(dir.join("recipe.toml")).arg("--out").arg(out)
}

fn digest(out: &Path) -> String {
    sha256(&out.join("model.safetensors")).unwrap()
}

#[test]
fn adamw_follows_its_formula() {
    // Loshchilov & Hutter, algorithm 2, written out for one number at a time.
    let config = AdamWConfig { lr: 0.1, beta1: 0.8, beta2: 0.9, eps: 1e-3, weight_decay: 0.2 };
    let start = [1.0, -2.0, 0.5, 3.0];
    let grads = [[0.3, -0.1, 0.0, 2.0], [-0.2, 0.4, 0.0, 1.0], [0.1, 0.1, 0.0, -5.0]];
    for (shape, decay) in [(vec![2, 2], 0.2), (vec![4], 0.0)] {
        let tensor = |x: &[f64]| Tensor::from_vec(x.to_vec(), shape.clone(), &common::device()).unwrap();
        let var = Var::from_tensor(&tensor(&start)).unwrap();
        let mut optimizer = AdamW::new(vec![var.clone()], config).unwrap();
        let (mut p, mut m, mut v) = (start, [0.0; 4], [0.0; 4]);
        for (t, grad) in grads.iter().enumerate() {
            optimizer.step_with(&[tensor(grad)], 1.0).unwrap();
            for i in 0..4 {
                m[i] = 0.8 * m[i] + 0.2 * grad[i];
                v[i] = 0.9 * v[i] + 0.1 * grad[i] * grad[i];
                let t = t as i32 + 1;
                let (mean, square) = (m[i] / (1.0 - 0.8_f64.powi(t)), v[i] / (1.0 - 0.9_f64.powi(t)));
                p[i] = p[i] - 0.1 * decay * p[i] - 0.1 * mean / (square.sqrt() + 1e-3);
            }
            for (found, wanted) in values(var.as_tensor()).iter().zip(p) {
                assert!((found - wanted).abs() < 1e-12, "{shape:?}, step {t}: {found} is not {wanted}");
            }
        }
    }
}

#[test]
fn the_schedule_warms_up_and_follows_a_cosine() {
    let dir = recipe(&[("max_iters = 12", "max_iters = 103")]);
    let recipe = Recipe::load(&dir.path().join("recipe.toml")).unwrap();
    let rate = |step| recipe.learning_rate(step);
    assert!((rate(0) - 3e-3 / 4.0).abs() < 1e-12 && (rate(2) - 3e-3 * 0.75).abs() < 1e-12);
    assert!((rate(3) - 3e-3).abs() < 1e-12);
    assert!((rate(53) - (3e-3 + 3e-4) / 2.0).abs() < 1e-9, "half-way is the mean");
    assert!((rate(103) - 3e-4).abs() < 1e-12 && (rate(500) - 3e-4).abs() < 1e-12);
    assert!((3..103).all(|step| rate(step + 1) <= rate(step)));

    let mut twice = recipe.clone();
    (twice.train.lr_decay_iters, twice.train.lr_restart_iters, twice.train.max_iters) = (103, 60, 163);
    assert!((0..60).all(|step| twice.learning_rate(step) == rate(step)));
    assert!(
        (0..=103).all(|step| twice.learning_rate(60 + step) == rate(step)),
        "the second cycle is the first one again"
    );
}

#[test]
fn training_lowers_the_loss_and_every_parameter_moves() {
    let dir = recipe(&[("max_iters = 12", "max_iters = 60")]);
    let mut trainer = trainer(dir.path());
    let (start, before) = (trainer.validation_loss().unwrap(), trainer.model().clone());
    let before = before.forward(&interp::Tokens::from_ids(vec![vec![1, 2, 3]]).unwrap()).unwrap();
    for _ in 0..60 {
        trainer.step().unwrap();
    }
    let end = trainer.validation_loss().unwrap();
    assert!(end < start - 1.0, "validation loss went from {start} to {end}");
    let after = trainer.model().forward(&interp::Tokens::from_ids(vec![vec![1, 2, 3]]).unwrap()).unwrap();
    assert!(common::max_difference(&before, &after) > 0.1);
}

#[test]
fn bf16_multiplies_rounded_copies_and_keeps_the_weights() {
    let run = |dtype: &str, rate: &str, steps: usize| {
        let changes = [
            ("seed = 5", format!("seed = 5\ndtype = \"{dtype}\"")),
            ("learning_rate = 3e-3", format!("learning_rate = {rate}")),
            ("min_lr = 3e-4", format!("min_lr = {rate}")),
            ("warmup_iters = 3", "warmup_iters = 0".into()),
        ];
        let changes: Vec<(&str, &str)> = changes.iter().map(|(from, to)| (*from, to.as_str())).collect();
        let dir = recipe(&changes);
        let mut trainer = trainer(dir.path());
        let start = values(trainer.model().weight("h.0.attn.c_attn.weight").unwrap());
        let before = trainer.validation_loss().unwrap();
        let found: Vec<f64> = (0..steps)
            .flat_map(|_| {
                let step = trainer.step().unwrap();
                [step.loss, step.grad_norm]
            })
            .collect();
        let end = values(trainer.model().weight("h.0.attn.c_attn.weight").unwrap());
        let moved = start.iter().zip(&end).filter(|(a, b)| a != b).count();
        (found, moved as f64 / start.len() as f64, trainer.validation_loss().unwrap() - before)
    };
    let (full, half) = (run("float32", "3e-3", 6), run("bfloat16", "3e-3", 6));
    for (full, half) in full.0.iter().zip(&half.0) {
        assert!((full - half).abs() < 0.02 * full && full != half, "{full} in f32, {half} in bf16");
    }
    assert!((full.2 - half.2).abs() < 0.02 * full.2.abs() && half.2 < 0.0, "{} and {}", full.2, half.2);
    // Steps of a millionth of the weights are lost in a type of eight bits.
    let (_, moved, _) = run("bfloat16", "1e-7", 1);
    assert!(moved > 0.5, "{moved} of the weights moved");
}

#[test]
fn a_resumed_run_ends_like_one_that_never_stopped() {
    let dir = recipe(&[]);
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut straight = trainer(dir.path());
    for _ in 0..12 {
        straight.step().unwrap();
    }
    straight.save_state(whole.path()).unwrap();
    for stop in [5, 6, 12] {
        let mut part = trainer(dir.path());
        if stop > 5 {
            part.load_state(parts.path()).unwrap();
        }
        while part.steps() < stop {
            part.step().unwrap();
        }
        part.save_state(parts.path()).unwrap();
    }
    assert_eq!(sha256(&whole.path().join(STATE)).unwrap(), sha256(&parts.path().join(STATE)).unwrap());
}

#[test]
fn the_result_depends_on_the_seed_and_not_on_the_threads() {
    let dir = recipe(&[]);
    let out = ["a", "b", "c"].map(|name| dir.path().join(name));
    train(dir.path(), &out[0]).env("RAYON_NUM_THREADS", "1").run().ok();
    train(dir.path(), &out[1]).env("RAYON_NUM_THREADS", "3").run().ok();
    assert_eq!(digest(&out[0]), digest(&out[1]));
    let other = recipe(&[("seed = 5", "seed = 6")]);
    train(other.path(), &out[2]).run().ok();
    assert_ne!(digest(&out[0]), digest(&out[2]));
}

#[test]
fn a_killed_run_continues_to_the_same_weights() {
    let dir = recipe(&[("max_iters = 12", "max_iters = 40")]);
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let outcome = train(dir.path(), &whole).run().ok();
    assert!(outcome.stdout.contains("step 40: loss"), "{}", outcome.stdout);
    // Soon after the start, and twice between checkpoints.
    for steps in [2, 11, 23] {
        let (mut child, _dir) = train(dir.path(), &killed).spawn();
        kill_when(&mut child, "some steps", || lines(&killed.join("metrics.jsonl")) >= steps);
        assert!(steps == 2 || killed.join(STATE).exists());
    }
    train(dir.path(), &killed).run().ok();
    assert_eq!(digest(&whole), digest(&killed));
    let metrics = |out: &Path| -> Vec<(u64, String, f64)> {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                (row["step"].as_u64().unwrap(), row["split"].to_string(), row["loss"].as_f64().unwrap())
            })
            .collect()
    };
    assert_eq!(metrics(&whole), metrics(&killed), "every step once, with the same loss");
    let mut names: Vec<String> =
        files(&killed).iter().map(|f| f.file_name().unwrap().to_str().unwrap().into()).collect();
    names.sort();
    let wanted = [
        ".interp-run.json",
        "config.json",
        "figure.png",
        "figure.svg",
        "frame.parquet",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
        "state.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, wanted, "and no temporary file of those that were killed");
    // What was written is a model like any other.
    Interp::new().words("predict --prompt hello --model").arg(&killed).run().ok();
}

#[test]
fn an_interrupted_run_says_how_far_it_came() {
    let dir = recipe(&[("max_iters = 12", "max_iters = 100000")]);
    let out = dir.path().join("out");
    let (mut child, _dir) = train(dir.path(), &out).spawn();
    let metrics = out.join("metrics.jsonl");
    assert!(stop_when(&mut child, || lines(&metrics) > 2), "it ended before it was interrupted");
    signal(&child, libc::SIGINT);
    go_on(&child);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("error: interrupted at step ") && stderr.contains("the same command continues"),
        "{stderr}"
    );
    assert!(out.join(STATE).exists());
    let (mut holder, _dir) = train(dir.path(), &out).spawn();
    let before = lines(&metrics);
    assert!(stop_when(&mut holder, || lines(&metrics) > before), "it ended while it was to hold the directory");
    let second = train(dir.path(), &out).run();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(second.code, Some(75), "{}", second.stderr);
    assert!(second.stderr.contains("another process is writing there"), "{}", second.stderr);
}

#[test]
fn a_state_of_another_recipe_or_a_damaged_one_is_refused() {
    let dir = recipe(&[]);
    let out = dir.path().join("out");
    train(dir.path(), &out).run().ok();
    let other = recipe(&[("learning_rate = 3e-3", "learning_rate = 2e-3")]);
    let refused = train(other.path(), &out).run();
    assert_eq!(refused.code, Some(65));
    assert!(refused.stderr.contains("differs in train.learning_rate (0.003)"), "{}", refused.stderr);
    let state = out.join(STATE);
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    let damaged = train(dir.path(), &out).run();
    assert_eq!(damaged.code, Some(65), "{}", damaged.stderr);
    train(dir.path(), &out).words("--restart").run().ok();
}

/// Whatever leads nowhere is noticed before it is kept: what is there is finite, and gives a finite loss.
#[test]
fn a_run_that_diverges_keeps_its_last_good_checkpoint() {
    let cases: [&[(&str, &str)]; 6] = [
        &[("learning_rate = 3e-3", "learning_rate = 1e30")],
        &[("learning_rate = 3e-3", "learning_rate = 1e38"), ("weight_decay = 0.1", "weight_decay = 0")],
        &[("learning_rate = 3e-3", "learning_rate = 1e38"), ("max_iters = 12", "max_iters = 1")],
        &[("learning_rate = 3e-3", "learning_rate = 1e300"), ("max_iters = 12", "max_iters = 1")],
        &[
            ("learning_rate = 3e-3", "learning_rate = 1e20"),
            ("eval_interval = 5", "eval_interval = 1\nkeep_best = true"),
        ],
        // The first four steps are good ones.
        &[("min_lr = 3e-4", "min_lr = 1e38")],
    ];
    for changes in cases {
        let dir = recipe(&[changes, &[("checkpoint_interval = 4", "checkpoint_interval = 1")]].concat());
        let out = dir.path().join("out");
        let outcome = train(dir.path(), &out).run();
        assert_eq!(outcome.code, Some(65), "{changes:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("the last checkpoint is intact: lower learning_rate"), "{}", outcome.stderr);
        for file in files(&out).into_iter().filter(|file| file.extension().is_some_and(|end| end == "safetensors")) {
            let tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
            for (name, tensor) in tensors {
                assert!(values(&tensor).iter().all(|x| x.is_finite()), "{changes:?}: {} holds {name}", file.display());
            }
        }
        assert!(!out.join("model.safetensors").exists() && !out.join("run.json").exists(), "{changes:?}");
        assert_eq!(out.join(STATE).exists(), changes[0].0.starts_with("min_lr"), "{changes:?}");
        if out.join(STATE).exists() {
            let mut again = trainer(dir.path());
            again.load_state(&out).unwrap();
            assert!(again.steps() >= 4 && again.validation_loss().unwrap().is_finite(), "{changes:?}");
        }
    }
}

#[test]
fn a_finished_run_goes_on_with_more_steps() {
    let dir = recipe(&[("learning_rate = 3e-3", "learning_rate = 3e-3\ndecay_lr = false")]);
    let (long, out) = (dir.path().join("long"), dir.path().join("out"));
    train(dir.path(), &long).words("--set max_iters=17").run().ok();
    train(dir.path(), &out).run().ok();
    let outcome = train(dir.path(), &out).words("--set max_iters=17").run().ok();
    assert!(outcome.stderr.contains("continuing at step 12"), "{}", outcome.stderr);
    assert_eq!(digest(&long), digest(&out), "without a schedule that knows the end it is the same run");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["recipe"]["train"]["max_iters"], 17);
    // Steps that were taken are not taken back, and nothing else may differ.
    let before = digest(&out);
    let less = train(dir.path(), &out).words("--set max_iters=16").run();
    assert!(less.code == Some(65) && less.stderr.contains("differs in train.max_iters (17)"), "{}", less.stderr);
    let other = train(dir.path(), &out).words("--set max_iters=20 --set eval_rows=5").run();
    assert!(other.code == Some(65) && other.stderr.contains("eval_rows (4)"), "{}", other.stderr);
    assert_eq!(before, digest(&out));
}

#[test]
fn weights_start_as_gpt2_does() {
    let dir = recipe(&[]);
    let trainer = trainer(dir.path());
    let dtype = trainer.model().dtype();
    assert_eq!(dtype, DType::F32);
    let logits = trainer.model().forward(&interp::Tokens::from_ids(vec![(0..32).collect()]).unwrap()).unwrap();
    let spread = values(&logits).iter().map(|x| x * x).sum::<f64>().sqrt() / (logits.elem_count() as f64).sqrt();
    assert!(spread > 0.1 && spread < 2.0, "logits of spread {spread} are no beginning");
}
