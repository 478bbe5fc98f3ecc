//! Generation against Hugging Face's (see tests/fixtures/make_generation.py), and its own promises.

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use interp::generate::{Options, generate};
use interp::sampling::{Sampler, Sampling};
use interp::weights::read_small;
use interp::{Edit, Gpt2, Plan, Site, Tokenizer, Tokens, embedded, text::Encoding};
use polars::prelude::DataFrame;
use serde_json::Value;

fn fixture() -> (Gpt2, Value) {
    let dir = common::fixture("generation");
    let expected = serde_json::from_slice(&read_small(&dir.join("expected.json"), 1 << 20).unwrap()).unwrap();
    (common::load(&dir, DType::F32), expected)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn run(model: &Gpt2, tokenizer: &Tokenizer, tokens: &Tokens, edits: &[Edit], options: &Options) -> DataFrame {
    generate(model, tokenizer, tokens, edits, options, &mut |_| Ok(())).unwrap().0
}

fn written(frame: &DataFrame, row: usize) -> Vec<u32> {
    let ids = frame.column("token_ids").unwrap().list().unwrap().get_as_series(row).unwrap();
    ids.u32().unwrap().into_no_null_iter().collect()
}

fn texts(frame: &DataFrame, column: &str) -> Vec<String> {
    frame.column(column).unwrap().str().unwrap().iter().map(|text| text.unwrap().to_string()).collect()
}

#[test]
fn greedy_text_is_hugging_faces_with_and_without_a_cache() {
    let (model, expected) = fixture();
    let tokenizer = embedded::tokenizer().unwrap();
    for case in expected["greedy"].as_array().unwrap() {
        let penalty = case["repetition_penalty"].as_f64().unwrap();
        let tokens = Tokens::from_ids(vec![ids(&case["prompt"])]).unwrap();
        for cache in [true, false] {
            let sampling = Sampling { repetition_penalty: penalty, ..Sampling::greedy() };
            let options = Options { sampling, max_new_tokens: 200, cache, ..Default::default() };
            let frame = run(&model, &tokenizer, &tokens, &[], &options);
            assert_eq!(written(&frame, 0), ids(&case["ids"]), "penalty {penalty}, cache {cache}");
        }
    }
}

#[test]
fn a_batch_of_different_lengths_writes_what_its_prompts_write_alone() {
    let (model, expected) = fixture();
    let tokenizer = embedded::tokenizer().unwrap();
    let cases: Vec<&Value> =
        expected["greedy"].as_array().unwrap().iter().filter(|case| case["repetition_penalty"] == 1.0).collect();
    let tokens = Tokens::from_ids(cases.iter().map(|case| ids(&case["prompt"])).collect()).unwrap();
    let options = Options { sampling: Sampling::greedy(), max_new_tokens: 200, ..Default::default() };
    let frame = run(&model, &tokenizer, &tokens, &[], &options);
    for (row, case) in cases.iter().enumerate() {
        assert_eq!(written(&frame, row), ids(&case["ids"]), "prompt {row}");
    }
}

#[test]
fn draws_follow_hugging_faces_filtered_softmax() {
    let (model, expected) = fixture();
    let text = ids(&expected["text"]);
    let tokens = Tokens::from_ids(vec![text.clone()]).unwrap();
    let trace = Plan::new().logits(interp::LogitsAt::Last).run(&model, &tokens).unwrap();
    let logits: Tensor = trace.logits().unwrap().flatten_all().unwrap();
    for case in expected["draws"].as_array().unwrap() {
        let settings = &case["settings"];
        let sampling = Sampling {
            temperature: settings["temperature"].as_f64().unwrap_or(1.0),
            top_k: settings["top_k"].as_u64().map(|k| k as usize),
            top_p: settings["top_p"].as_f64(),
            repetition_penalty: settings["repetition_penalty"].as_f64().unwrap_or(1.0),
        };
        const DRAWS: u64 = 8000;
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for seed in 0..DRAWS {
            let token = Sampler::new(sampling.clone(), seed, 0).next(&logits, &text).unwrap();
            *counts.entry(token).or_default() += 1;
        }
        let (mut chi_square, mut cells) = (0.0, -1.0);
        for (token, p) in case["probabilities"].as_array().unwrap().iter().enumerate() {
            let (p, seen) = (p.as_f64().unwrap(), f64::from(counts.get(&(token as u32)).copied().unwrap_or(0)));
            if p == 0.0 {
                assert_eq!(seen, 0.0, "{settings}: token {token} is filtered out");
                continue;
            }
            chi_square += (seen - p * DRAWS as f64).powi(2) / (p * DRAWS as f64);
            cells += 1.0;
        }
        // Mean and deviation of a chi-square variable; the seeds are fixed, so this is no gamble.
        assert!(
            cells >= 3.0 && chi_square < cells + 4.0 * f64::sqrt(2.0 * cells),
            "{settings}: {chi_square} of {cells}"
        );
    }
}

#[test]
fn a_seed_decides_the_text_and_samples_differ() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let tokens = tokenizer.tokens(&["The", "When Mary"], Encoding::default()).unwrap();
    let options = Options { num_samples: 3, max_new_tokens: 12, ignore_end: true, seed: 5, ..Default::default() };
    let first = texts(&run(&model, &tokenizer, &tokens, &[], &options), "text");
    assert_eq!(first, texts(&run(&model, &tokenizer, &tokens, &[], &options), "text"));
    assert_eq!(first.len(), 6);
    assert!(first[0] != first[1] && first[1] != first[2] && first[3] != first[4], "{first:?}");
    let other = Options { seed: 6, ..options.clone() };
    assert_ne!(first, texts(&run(&model, &tokenizer, &tokens, &[], &other), "text"));
    // Reading the prompt once for all its samples, or every text anew for every token, gives the same text.
    let slow = Options { cache: false, ..options };
    assert_eq!(first, texts(&run(&model, &tokenizer, &tokens, &[], &slow), "text"));
}

#[test]
fn log_probabilities_are_the_models() {
    let (model, expected) = fixture();
    let tokenizer = embedded::tokenizer().unwrap();
    let prompt = ids(&expected["text"]);
    let tokens = Tokens::from_ids(vec![prompt.clone()]).unwrap();
    let sampling = Sampling { temperature: 0.6, top_k: Some(9), ..Default::default() };
    let frame = run(&model, &tokenizer, &tokens, &[], &Options { sampling, max_new_tokens: 30, ..Default::default() });
    let new = written(&frame, 0);
    let whole = Tokens::from_ids(vec![[prompt.as_slice(), &new].concat()]).unwrap();
    let logits = model.forward(&whole).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
    let stored = frame.column("logprobs").unwrap().list().unwrap().get_as_series(0).unwrap();
    let mut sum = 0.0;
    for (i, (&token, stored)) in new.iter().zip(stored.f32().unwrap().into_no_null_iter()).enumerate() {
        let row = &logits[prompt.len() + i - 1];
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let logprob = f64::from(row[token as usize]) - total.ln();
        let size = common::gate::size(row.iter().map(|x| f64::from(*x)));
        let agree = common::gate::agree(f64::from(stored), logprob, common::gate::F32, size);
        assert!(agree, "token {i}: {logprob} {stored}");
        sum += logprob;
    }
    let stored = frame.column("logprob").unwrap().f64().unwrap().get(0).unwrap();
    assert!(common::gate::agree(stored, sum, common::gate::F32, sum.abs()), "{sum} {stored}");
}

#[test]
fn texts_end_where_they_should() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let tokens = tokenizer.tokens(&["The capital of France is"], Encoding::default()).unwrap();
    let greedy = Options { sampling: Sampling::greedy(), max_new_tokens: 60, ..Default::default() };
    let frame = run(&model, &tokenizer, &tokens, &[], &greedy);
    assert_eq!(texts(&frame, "finish"), ["end_of_text"]);
    let (whole, new) = (texts(&frame, "text").remove(0), texts(&frame, "continuation").remove(0));
    assert_eq!(whole, format!("The capital of France is{new}"));
    assert!(!whole.contains("<|endoftext|>"));
    assert_eq!(written(&frame, 0).last().copied(), tokenizer.end_of_text());

    let on = Options { ignore_end: true, max_new_tokens: 20, ..greedy.clone() };
    let frame = run(&model, &tokenizer, &tokens, &[], &on);
    assert_eq!((texts(&frame, "finish"), written(&frame, 0).len()), (vec!["length".to_string()], 20));

    let stopped = Options { stop: vec![".".into()], ..greedy };
    let frame = run(&model, &tokenizer, &tokens, &[], &stopped);
    assert_eq!(texts(&frame, "finish"), ["stop"]);
    assert!(texts(&frame, "continuation")[0].ends_with('.'));
}

#[test]
fn edits_work_while_writing() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let tokens = tokenizer.tokens(&["The capital of France is", "The"], Encoding::default()).unwrap();
    let options = Options { sampling: Sampling::greedy(), max_new_tokens: 15, ignore_end: true, ..Default::default() };
    let plain = run(&model, &tokenizer, &tokens, &[], &options);
    let edits = [Edit::zero(Site::AttnOut(2)), Edit::scale(Site::MlpOut(4), 0.5)];
    let (edited, applied) = generate(&model, &tokenizer, &tokens, &edits, &options, &mut |_| Ok(())).unwrap();
    assert_ne!(texts(&plain, "text"), texts(&edited, "text"));
    assert!(applied.len() == 2 && applied.iter().all(|edit| edit.relative_change.unwrap() > 0.0));
    let slow = Options { cache: false, ..options.clone() };
    assert_eq!(texts(&edited, "text"), texts(&run(&model, &tokenizer, &tokens, &edits, &slow), "text"));
    // One token's logit raised above all others is what is written.
    let always = Edit::fill(Site::Logits, 1e4).only(interp::Axis::Vocab, 77);
    assert!(written(&run(&model, &tokenizer, &tokens, &[always], &options), 1).iter().all(|&id| id == 77));
}

#[test]
fn past_the_context_is_refused_or_slides() {
    let (model, expected) = fixture();
    let tokenizer = embedded::tokenizer().unwrap();
    let tokens = Tokens::from_ids(vec![ids(&expected["text"])]).unwrap();
    let options = Options { sampling: Sampling::greedy(), max_new_tokens: 300, ..Default::default() };
    let error = generate(&model, &tokenizer, &tokens, &[], &options, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("256 positions") && error.contains("249"), "{error}");
    let frame = run(&model, &tokenizer, &tokens, &[], &Options { window: true, ..options });
    let all = [ids(&expected["text"]), written(&frame, 0)].concat();
    assert_eq!(all.len(), 307);
    // nanoGPT: every token past the context comes from the last 256 before it.
    for end in [257, 280, 306] {
        let last = Tokens::from_ids(vec![all[end - 256..end].to_vec()]).unwrap();
        let logits = model.forward(&last).unwrap().get(0).unwrap().get(255).unwrap();
        assert_eq!(logits.argmax(0).unwrap().to_scalar::<u32>().unwrap(), all[end], "token {end}");
    }
}

#[test]
fn contradictions_are_refused_before_anything_runs() {
    let (model, expected) = fixture();
    let tokenizer = embedded::tokenizer().unwrap();
    let tokens = Tokens::from_ids(vec![ids(&expected["text"])]).unwrap();
    let fault = |options: Options, edits: &[Edit]| {
        let mut never = |_| panic!("a token was written");
        generate(&model, &tokenizer, &tokens, edits, &options, &mut never).unwrap_err().to_string()
    };
    let base = Options { max_new_tokens: 20, ..Default::default() };
    assert!(
        fault(Options { num_samples: 0, ..base.clone() }, &[]).contains("num_samples is 0; it must be in 1..=10000")
    );
    assert!(fault(Options { stop: vec![String::new()], ..base.clone() }, &[]).contains("empty stop"));
    let same = Options { num_samples: 2, sampling: Sampling::greedy(), ..base.clone() };
    assert!(fault(same, &[]).contains("same text"));
    let one = Edit::zero(Site::Z(0)).row(0);
    assert!(fault(Options { num_samples: 2, ..base.clone() }, &[one]).contains("single prompts"));
    let place = Edit::zero(Site::Z(0)).pos(3);
    assert!(fault(Options { window: true, max_new_tokens: 300, ..base }, &[place]).contains("slides"));
}

#[test]
fn perplexity_is_that_of_hugging_faces_stride_loop() {
    use interp::perplexity::{Document, Protocol, comparison, per_token, score};
    let (model, expected) = fixture();
    let document = Document::from_ids(ids(&expected["document"]), 1000, 200).unwrap();
    for case in expected["stride_loops"].as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let protocol = Protocol { context: number("context"), stride: number("stride"), bos: false };
        let mut heard = 0;
        let scored = score(&model, std::slice::from_ref(&document), &protocol, &mut |done| {
            heard = done;
            Ok(())
        });
        let scored = scored.unwrap();
        assert_eq!((scored.tokens(), heard), (number("tokens"), number("tokens")), "{protocol}");
        let mean = case["nats"].as_f64().unwrap() / scored.tokens() as f64;
        let found = scored.nats() / scored.tokens() as f64;
        assert!(common::gate::agree(found, mean, common::gate::F32, mean), "{protocol}: {found} {mean}");

        let frame = comparison(&[("m".into(), "t".into(), scored.clone())], &[protocol], Some(3600.0)).unwrap();
        let value = |name: &str| frame.column(name).unwrap().f64().unwrap().get(0).unwrap();
        assert!(common::gate::agree(value("perplexity").ln(), mean, common::gate::F32, mean));
        assert!((value("bits_per_byte") - scored.nats() / 2f64.ln() / 1000.0).abs() < 1e-9);
        assert!((value("word_perplexity").ln() - scored.nats() / 200.0).abs() < 1e-9);
        let tokens = per_token(std::slice::from_ref(&document), &scored, &embedded::tokenizer().unwrap()).unwrap();
        assert_eq!(tokens.height(), 641);
        assert_eq!(tokens.column("loss").unwrap().null_count(), 641 - scored.tokens());
    }
}

#[test]
fn long_text_is_cut_without_a_trace() {
    let tokenizer = embedded::tokenizer().unwrap();
    let line = "When Mary's friends  went to\n\n the shop — in 1789, John gave a drink\tto them. ";
    let text = line.repeat(9000);
    let plain = Encoding { bos: interp::text::Bos::No, allow_special: false };
    assert!(text.len() > 2 << 18);
    // What one piece gives, since the text is short enough for a prompt.
    assert_eq!(tokenizer.encode_long(&text, false).unwrap(), tokenizer.encode(&text, plain).unwrap());
}
