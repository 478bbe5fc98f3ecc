//! The comparison that `doctor --gpu` makes between devices, made between two models on the CPU.

#[path = "common/process.rs"]
mod process;

mod common;

use interp::agreement::{GATE, agreement};
use interp::pair::Pair;
use interp::target::Target;
use interp::text::Encoding;
use interp::{Gpt2, embedded};
use polars::prelude::*;
use process::Interp;

fn pair() -> Pair {
    let tokenizer = embedded::tokenizer().unwrap();
    let tokens = |text: &str| tokenizer.tokens(&[text], Encoding::default()).unwrap();
    let target = Target::parse(&tokenizer, &[" Mary"], &[" John"]).unwrap();
    let clean = tokens("When Mary and John went to the shop, John gave a drink to");
    Pair::new(clean, tokens("When Mary and John went to the shop, Mary gave a drink to"), target).unwrap()
}

/// The embedded model with one weight of one matrix changed.
fn changed(name: &str, by: f64) -> Gpt2 {
    let model = common::tiny();
    Gpt2::new(model.config().clone(), |other| {
        let weight = model.weight(other)?;
        Ok(if other == name { weight.affine(1.0, by)? } else { weight.clone() })
    })
    .unwrap()
}

fn compared(other: &Gpt2) -> DataFrame {
    agreement(&common::tiny(), other, &embedded::tokenizer().unwrap(), &pair()).unwrap()
}

fn failed(frame: &DataFrame) -> Vec<String> {
    let (check, what) = (frame.column("check").unwrap().str().unwrap(), frame.column("what").unwrap().str().unwrap());
    let passed = frame.column("passed").unwrap().bool().unwrap();
    let failed = (0..frame.height()).filter(|i| passed.get(*i) == Some(false));
    failed.map(|i| format!("{} {}", check.get(i).unwrap(), what.get(i).unwrap())).collect()
}

#[test]
fn equal_models_agree_and_others_do_not() {
    let same = compared(&common::tiny());
    let difference = same.column("difference").unwrap().f64().unwrap();
    assert!(difference.into_no_null_iter().all(|difference| difference == 0.0), "to the bit");
    let checks = same.column("check").unwrap().str().unwrap();
    for check in ["site", "gradient", "edit", "sweep", "generation", "training"] {
        assert!(checks.iter().any(|own| own == Some(check)), "{check}");
    }
    let (layers, of_layer) = (6, 20);
    assert!(same.height() > layers * of_layer, "every site: {} rows", same.height());

    // A little noise passes, a wrong layer does not, and is told from those before it.
    assert_eq!(failed(&compared(&changed("h.3.mlp.c_fc.bias", 1e-6))), Vec::<String>::new());
    let found = failed(&compared(&changed("h.3.mlp.c_fc.bias", 0.05)));
    for wanted in ["site mlp_pre.3", "site mlp_post.3", "site resid_post.3", "site resid_post.5", "sweep resid_pre"] {
        assert!(found.iter().any(|own| own == wanted), "{wanted} in {found:?}");
    }
    assert!(found.iter().any(|own| own.starts_with("gradient")) && found.iter().any(|own| own.starts_with("training")));
    for spared in ["site resid_pre.3", "site resid_mid.3", "site pattern.3"] {
        assert!(!found.iter().any(|own| own == spared), "{spared}");
    }
    assert_eq!(GATE, 1e-3);
}

#[test]
fn a_gpu_that_is_not_there_is_said_to_be_missing() {
    for command in ["doctor", "doctor --gpu", "predict --prompt Mary", "train --set max_iters=1"] {
        Interp::new().words(command).words("--device cuda:99").run().refused(69, "use --device cpu");
    }
    for command in ["doctor", "predict --prompt Mary"] {
        let refused = Interp::new().words(command).words("--tf32 --device cpu").run();
        refused.refused(2, "TF32 is a mode of NVIDIA GPUs");
    }
    let doctor = Interp::new().words("doctor").run().ok().stdout;
    assert!(doctor.contains("devices       cpu"), "{doctor}");
    if let Ok(device) = interp::device::open("cuda") {
        let other = embedded::model_on(&device).unwrap();
        assert_eq!(failed(&compared(&other)), Vec::<String>::new(), "the GPU and the CPU");
    }
}
