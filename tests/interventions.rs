//! An intervention does something, is refused before the run, or is an error after it: it never silently does nothing.

mod common;
#[path = "common/process.rs"]
mod process;

use candle_core::{DType, Tensor};
use common::{max_difference, noise, small_config, small_model, tokens, values};
use interp::generate::{Options, generate};
use interp::influence::{reaches, reaches_later_positions};
use interp::kv::KvCache;
use interp::plan::Applied;
use interp::sampling::Sampling;
use interp::text::Encoding;
use interp::{Axis, Edit, Error, Gpt2, LogitsAt, Plan, Site, Tokenizer, Tokens, embedded};
use polars::prelude::DataFrame;
use process::Interp;

/// What the model computes from what, as [`interp::influence`] says it, is what noise finds.
#[test]
fn a_change_reaches_the_sites_that_are_said_to_depend_on_it() {
    let (config, model) = (small_config(), small_model(DType::F32));
    let tokens = tokens(&config, &[7], 1);
    let all: Vec<Site> = Site::all(config.n_layer).collect();
    let before = Plan::new().reads(all.iter().copied()).run(&model, &tokens).unwrap();
    for (i, &from) in all.iter().enumerate() {
        // Layers do not differ in kind: the first two are enough to see what crosses from one to the next.
        if from.layer().is_some_and(|layer| layer == 1) {
            continue;
        }
        let noise = noise(&from.shape(&config.extents(1, 7, 0)), DType::F32, i as u64);
        let run = |edit: Edit| Plan::new().edit(edit).reads(all.iter().copied()).run(&model, &tokens).unwrap();
        let everywhere = run(Edit::add(from, &noise));
        for &to in &all {
            let moved = max_difference(before.get(to).unwrap(), everywhere.get(to).unwrap()) > 0.0;
            assert_eq!(moved, reaches(from, to, config.n_layer), "{from} to {to}");
        }
        // At one position: does anything move at later ones?
        let axis = if from.is_attention_map() { Axis::Query } else { Axis::Pos };
        let dim = if from.is_attention_map() { 2 } else { 1 };
        let part = noise.narrow(dim, 3, 1).unwrap();
        let here = run(Edit::add(from, &part).only(axis, 3));
        let later = |trace: &interp::Trace| trace.logits().unwrap().narrow(1, 4, 3).unwrap();
        let moved = max_difference(&later(&before), &later(&here)) > 0.0;
        assert_eq!(moved, reaches_later_positions(from, config.n_layer), "{from} to later positions");
    }
}

#[test]
fn what_could_not_do_anything_is_refused() {
    let config = small_config();
    let ragged = tokens(&config, &[3, 7, 7], 1);
    let even = tokens(&config, &[7, 7], 1);
    let edit = |site| Edit::zero(site);
    let cases: Vec<(Edit, &Tokens, &str)> = vec![
        // Padding is no position of a prompt.
        (edit(Site::Z(0)).pos(3), &ragged, "prompt 0 has 3 tokens, and so no pos 3; give each row its own edit"),
        (edit(Site::Z(0)).row(0).pos(3), &ragged, "pos 3 is out of range 0..=2 (or -3..=-1)"),
        (edit(Site::Z(0)).row(0..=1).pos(4..=6), &ragged, "prompt 0 has 3 tokens, and so no pos 4..=6"),
        (edit(Site::Pattern(0)).key(5), &ragged, "prompt 0 has 3 tokens, and so no key 5"),
        (edit(Site::Z(0)).pos(-1), &ragged, "differ in length"),
        // What the mask hides.
        (Edit::fill(Site::Pattern(1), 1.0).query(2).key(5), &even, "query 2 cannot see key 5"),
        (Edit::fill(Site::AttnScores(1), 1.0).query(0..=3).key(4..=6), &even, "query 3 cannot see key 4"),
        // Ranges and selectors that leave nothing.
        (edit(Site::Z(0)).pos(0..0), &even, "pos 0..0 is an empty range"),
        (edit(Site::Z(0)).pos(3..3), &even, "pos 3..3 is an empty range"),
        (edit(Site::Z(0)).row(0..0_usize), &even, "prompt 0..0 is an empty range"),
        (edit(Site::Z(0)).pos(usize::MAX), &even, "is out of range 0..=6"),
        (edit(Site::Z(0)).pos(1).pos(3), &even, "its selectors leave nothing of axis pos"),
        (edit(Site::Z(0)).head(0).head(1), &even, "its selectors leave nothing of axis head"),
        (edit(Site::Embed).head(0), &even, "`embed` has no axis head"),
        (edit(Site::Ln1Scale(0)).neuron(0), &even, "`ln1_scale.0` has no axis neuron"),
    ];
    for (edit, tokens, wanted) in cases {
        let message = Plan::new().edit(edit).check(&config, tokens).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}\n  should contain {wanted}");
    }
    // Nothing depends on what comes after everything that is read.
    let behind = Plan::new().logits(LogitsAt::None).read(Site::Z(1)).edit(edit(Site::LnFinalScale));
    let message = behind.check(&config, &even).unwrap_err().to_string();
    assert!(message.contains("edit `zero ln_final_scale` would change nothing"), "{message}");
    Plan::new()
        .logits(LogitsAt::None)
        .read(Site::LnFinalNormalized)
        .edit(Edit::scale(Site::LnFinalScale, 2.0))
        .check(&config, &even)
        .unwrap();
    let effects = |read, edited, until| {
        let plan = Plan::new().read(read).edit(edit(edited)).logits(LogitsAt::None);
        let plan = if let Some(until) = until { plan.until(until) } else { plan };
        plan.check(&config, &even).unwrap();
        plan.check_effects(&config).is_ok()
    };
    assert!(!effects(Site::ResidPost(0), Site::Z(2), None) && effects(Site::ResidPost(2), Site::Z(2), None));
    assert!(!effects(Site::Pattern(1), Site::V(1), Some(2)) && effects(Site::Pattern(1), Site::K(1), Some(2)));
    assert!(
        !effects(Site::MlpPost(1), Site::MlpOut(1), Some(2)) && effects(Site::MlpPost(1), Site::MlpOut(0), Some(2))
    );
}

#[test]
fn prompts_of_different_length_can_be_edited_one_by_one() {
    let (config, model) = (small_config(), small_model(DType::F32));
    let ragged = tokens(&config, &[3, 7], 1);
    let run = |edit: Edit| {
        let trace = Plan::new().edit(edit).run(&model, &ragged).unwrap();
        (trace.logits().unwrap().clone(), trace.edits()[0].relative_change)
    };
    let (by_end, changed) = run(Edit::zero(Site::ResidPost(1)).row(0).pos(-1));
    let (by_start, _) = run(Edit::zero(Site::ResidPost(1)).row(0).pos(2));
    assert!(common::same_bits(&by_end, &by_start));
    assert_eq!(changed, Some(1.0));
    // What changes padding alone changes nothing.
    let padding = Edit::map(Site::Z(1), |z| {
        let (_, _, heads, dim) = z.dims4()?;
        let ones = Tensor::ones((1, 4, heads, dim), z.dtype(), z.device())?;
        Ok(z.contiguous()?.slice_assign(&[0..1, 3..7, 0..heads, 0..dim], &ones)?)
    });
    assert_eq!(run(padding.row(0)).1, Some(0.0));
}

#[test]
fn a_change_is_measured_where_it_is_seen() {
    let (config, model) = (small_config(), small_model(DType::F32));
    let tokens = tokens(&config, &[7], 1);
    let change = |edits: Vec<Edit>| {
        let trace = Plan::new().edits(edits).run(&model, &tokens).unwrap();
        trace.edits().iter().map(|applied| applied.relative_change.unwrap()).collect::<Vec<_>>()
    };
    let pattern = Plan::new().read(Site::Pattern(1)).run(&model, &tokens).unwrap();
    let seen = values(pattern.get(Site::Pattern(1)).unwrap());
    let seen: Vec<f64> = seen.iter().copied().filter(|x| *x > 0.0).collect(); // softmax hides with 0 alone
    let (moved, size): (f64, f64) = seen.iter().fold((0.0, 0.0), |(m, s), x| (m + (0.5 - x).powi(2), s + x * x));
    let found = change(vec![Edit::fill(Site::Pattern(1), 0.5)])[0];
    // The sum of some 50 squares in 64 bits, of values that are the same bits.
    assert!((found / (moved / size).sqrt() - 1.0).abs() < 1e-12, "{found}");
    assert_eq!(change(vec![Edit::zero(Site::Z(1)), Edit::fill(Site::Z(1), 1.0)])[1], f64::INFINITY);
}

#[test]
fn a_cached_run_says_what_it_did_not_apply() {
    let (config, model) = (small_config(), small_model(DType::F32));
    let tokens = tokens(&config, &[5], 1);
    let run = |edit: Edit| {
        let mut cache = KvCache::new(&config);
        let plan = Plan::new().edit(edit);
        let mut applied = Vec::new();
        for part in [0..3, 3..5] {
            let part = Tokens::from_ids(vec![tokens.row(0)[part].to_vec()]).unwrap();
            applied = Applied::larger(applied, plan.run_cached(&model, &part, &mut cache)?.edits());
        }
        Applied::check(&applied)
    };
    run(Edit::zero(Site::Z(0)).pos(4)).unwrap();
    let fault = |edit: Edit| run(edit).unwrap_err().to_string();
    assert!(fault(Edit::zero(Site::Z(0)).pos(9)).contains("edit `zero z.0 pos 9` was never applied"));
    assert!(fault(Edit::zero(Site::Z(0)).pos(-1)).contains("pos -1 counts from the end, and the text may go on"));
    assert!(fault(Edit::zero(Site::Z(0)).pos(12)).contains("pos 12 is never reached: positions 0..=11 are read"));
}

struct Writer {
    model: Gpt2,
    tokenizer: Tokenizer,
    tokens: Tokens,
}

const SHOP: &str = "When Mary and John went to the shop, John gave a drink to";

impl Writer {
    fn new(prompts: &[&str]) -> Self {
        let tokenizer = embedded::tokenizer().unwrap();
        let tokens = tokenizer.tokens(prompts, Encoding::default()).unwrap();
        Self { model: common::tiny(), tokenizer, tokens }
    }

    fn write(&self, edits: &[Edit], options: &Options) -> interp::Result<(DataFrame, Vec<Applied>)> {
        generate(&self.model, &self.tokenizer, &self.tokens, edits, options, &mut |_| Ok(()))
    }

    fn ids(&self, edits: &[Edit], options: &Options) -> Vec<Vec<u32>> {
        ids(&self.write(edits, options).unwrap().0)
    }
}

fn ids(frame: &DataFrame) -> Vec<Vec<u32>> {
    let all = frame.column("token_ids").unwrap().list().unwrap();
    (0..frame.height())
        .map(|row| all.get_as_series(row).unwrap().u32().unwrap().into_no_null_iter().collect())
        .collect()
}

fn greedy(max_new_tokens: usize) -> Options {
    Options { sampling: Sampling::greedy(), max_new_tokens, ignore_end: true, ..Default::default() }
}

#[test]
fn positions_in_a_generation_are_those_of_the_text() {
    let writer = Writer::new(&[SHOP]);
    let given = writer.tokens.longest();
    let options = greedy(8);
    let plain = writer.ids(&[], &options);
    for site in [Site::ResidPost(3), Site::Z(2), Site::MlpOut(5), Site::Logits] {
        let edit = |pos: i64| Edit::fill(site, -3.0).pos(pos);
        let (frame, applied) = writer.write(&[edit(-1)], &options).unwrap();
        assert!(applied[0].relative_change.unwrap() > 0.0 && applied[0].edit == edit(-1).to_string());
        assert_eq!(ids(&frame), writer.ids(&[edit(given as i64 - 1)], &options), "{site}: -1 is the end of the prompt");
        // The tokens that are written have positions too; what comes before is as it was.
        for later in [0, 3, 6] {
            let edits = [edit((given + later) as i64)];
            let (frame, applied) = writer.write(&edits, &options).unwrap();
            assert!(applied[0].relative_change.unwrap() > 0.0 && applied[0].missed == 0, "{site} {later}");
            assert_eq!(ids(&frame)[0][..=later], plain[0][..=later], "{site} {later}");
            let slow = Options { cache: false, ..options.clone() };
            assert_eq!(ids(&frame), writer.ids(&edits, &slow), "{site} {later}: without a cache");
        }
    }
    let end = [Edit::zero(Site::ResidPost(3)).pos(-1)];
    assert_ne!(writer.ids(&end, &options), plain, "the issue's example");
    assert_eq!(writer.ids(&[Edit::zero(Site::ResidPost(3)).pos(-3..=-1)], &options), {
        let first = given as i64 - 3;
        writer.ids(&[Edit::zero(Site::ResidPost(3)).pos(first..=first + 2)], &options)
    });
    // A prompt that is read anew after the memory was short is edited as the first time.
    let short = Writer { model: common::tiny().with_room_for(given + 4), ..Writer::new(&[SHOP]) };
    let sampled = Options { sampling: Sampling::default(), num_samples: 3, max_new_tokens: 4, ..options.clone() };
    let edits = [Edit::zero(Site::ResidPost(3)).pos(-1), Edit::zero(Site::Z(1)).pos(given as i64 + 1)];
    assert_eq!(short.ids(&edits, &sampled), writer.ids(&edits, &sampled));
}

#[test]
fn positions_that_no_text_can_have_are_refused_before_a_generation() {
    let writer = Writer::new(&[SHOP]);
    let given = writer.tokens.longest();
    let ragged = Writer::new(&[SHOP, "The"]);
    let edit = |site| Edit::zero(site);
    let cases = [
        (
            &writer,
            edit(Site::ResidPost(3)).pos(40),
            format!("position 40 is never read: the prompt has {given} tokens"),
        ),
        // The last token that is written is not read.
        (&writer, edit(Site::Z(0)).pos(given + 2), format!("positions end at {}", given + 1)),
        (&writer, edit(Site::Pattern(0)).query(given + 2), format!("position {} is never read", given + 2)),
        (&writer, edit(Site::Pattern(0)).key(given + 7), format!("position {} is never read", given + 7)),
        (&writer, edit(Site::Z(0)).pos(5..=30), "position 30 is never read".into()),
        (&writer, edit(Site::Z(0)).pos(-40), "pos -40 is out of range".into()),
        (&writer, edit(Site::Z(0)).pos(0..0), "empty range".into()),
        (&writer, edit(Site::Pattern(1)).query(3).key(-1), "cannot see key".into()),
        // Only the end of the prompt decides what follows it, where nothing crosses to later positions.
        (&writer, edit(Site::Logits).pos(2), "it would change nothing that is written".into()),
        (&writer, edit(Site::ResidPost(5)).pos(0..=3), "does not depend on resid_post.5 before its last token".into()),
        (&writer, edit(Site::Pattern(5)).query(-2), "it would change nothing that is written".into()),
        (&ragged, edit(Site::Z(0)).pos(-1), "need prompts of one length".into()),
        (&writer, edit(Site::Z(0)).row(1), "prompt 1 is out of range".into()),
        (&writer, edit(Site::Z(17)), "`z.17` is never reached".into()),
        (&writer, edit(Site::Z(0)).head(9), "head 9 is out of range".into()),
    ];
    for (writer, edit, wanted) in cases {
        let mut never = |_| panic!("a token was written");
        let (model, tokens) = (&writer.model, &writer.tokens);
        let error = generate(model, &writer.tokenizer, tokens, &[edit], &greedy(3), &mut never).unwrap_err();
        assert!(matches!(error, Error::Request(_) | Error::NotReached { .. }), "{error}");
        assert!(error.to_string().contains(&wanted), "{error}\n  should contain {wanted}");
    }
}

#[test]
fn an_edit_that_no_text_came_to_is_an_error_after_the_run() {
    let writer = Writer::new(&["The capital of France is"]);
    let given = writer.tokens.longest();
    let options = Options { ignore_end: false, ..greedy(60) };
    let written = writer.ids(&[], &options)[0].len();
    assert!(written < 40, "it was to end early: {written}");
    let late = Edit::zero(Site::ResidPost(2)).pos(given + written);
    let error = writer.write(std::slice::from_ref(&late), &options).unwrap_err();
    assert!(matches!(error, Error::Request(_)), "{error}");
    let wanted = format!("edit `{late}` was never applied: it begins at position {}", given + written);
    assert!(error.to_string().contains(&wanted), "{error}");
    assert!(error.to_string().contains(&format!("positions 0..={} were read", given + written - 2)), "{error}");
    writer.write(&[late], &Options { ignore_end: true, ..options }).unwrap();
}

#[test]
fn texts_that_ended_before_an_edit_are_counted() {
    let writer = Writer::new(&["The"]);
    let given = writer.tokens.longest();
    let options = Options { num_samples: 6, max_new_tokens: 40, seed: 3, ..Default::default() };
    let lengths: Vec<usize> = writer.ids(&[], &options).iter().map(Vec::len).collect();
    let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
    assert!(least + 2 < *most, "{lengths:?}");
    // Up to there all texts are what they are without it.
    let pos = given + least;
    let (frame, applied) = writer.write(&[Edit::zero(Site::ResidPost(2)).pos(pos)], &options).unwrap();
    let ended = lengths.iter().filter(|length| given + **length - 1 <= pos).count();
    assert_eq!((applied[0].missed, applied[0].relative_change.unwrap() > 0.0), (ended, true));
    assert_eq!(frame.height(), 6);
}

#[test]
fn what_is_changed_in_a_text_that_ended_counts_for_nothing() {
    let two = Writer::new(&["The capital of France is", "The capital of Spain is"]);
    let given = two.tokens.longest();
    let options = greedy(12);
    let plain = two.ids(&[], &options);
    // The first text ends with its second token, the name of a city, and is carried along with the other.
    let word = two.tokenizer.text(plain[0][1]);
    assert!(!two.tokenizer.decode(&plain[1]).contains(&word), "{word}");
    let options = Options { stop: vec![word], ..options };
    let edit = Edit::zero(Site::ResidPost(2)).pos(given + 3);
    let never = two.write(&[edit.clone().row(0)], &options).unwrap_err().to_string();
    assert!(never.contains("was never applied"), "{never}");
    for (edit, missed) in [(edit.clone().row(1), 0), (edit, 1)] {
        let (frame, applied) = two.write(&[edit], &options).unwrap();
        assert_eq!((applied[0].missed, applied[0].relative_change), (missed, Some(1.0)));
        assert_eq!(ids(&frame).iter().map(Vec::len).collect::<Vec<_>>(), [2, 12]);
    }
}

/// A file with edits.
fn edits(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn with_edit(words: &str, text: &str) -> (tempfile::TempDir, Interp) {
    let (dir, path) = edits(text);
    (dir, Interp::new().words(words).arg("--prompt").arg(SHOP).arg("--edit").arg(path))
}

#[test]
fn generate_applies_what_predict_applies() {
    let edit = "[[edit]]\nsite = \"resid_post.3\"\nop = \"zero\"\npos = -1\n";
    let words = "generate --greedy --max-new-tokens 3 --format json";
    let text = |outcome: &process::Outcome| -> String {
        let document: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        document["rows"][0]["text"].as_str().unwrap().to_string()
    };
    let plain = Interp::new().words(words).arg("--prompt").arg(SHOP).run().ok();
    let (_dir, command) = with_edit(words, edit);
    let edited = command.run().ok();
    assert_ne!(text(&edited), text(&plain));
    let change = |outcome: &process::Outcome| outcome.record()["plan"]["edits"][0]["relative_change"].clone();
    assert_eq!(change(&edited), 1.0);
    assert_eq!(edited.stderr, "");
    let (_dir, command) = with_edit("predict", edit);
    assert_eq!(change(&command.run().ok()), 1.0);
    // A part of which all was 0 is infinitely more than it was, for which JSON has no number.
    let (_dir, command) = with_edit(
        "predict",
        "[[edit]]\nsite = \"z.1\"\nop = \"zero\"\n[[edit]]\nsite = \"z.1\"\nop = \"fill\"\nvalue = 1\n",
    );
    assert_eq!(command.run().ok().record()["plan"]["edits"][1]["relative_change"], "Infinity");
}

#[test]
fn edits_that_could_do_nothing_are_refused_by_every_command() {
    let at = |site: &str, more: &str| format!("[[edit]]\nsite = \"{site}\"\nop = \"zero\"\n{more}\n");
    let generate = "generate --greedy --max-new-tokens 3";
    let cases = [
        (generate, at("resid_post.3", "pos = 40"), "position 40 is never read"),
        (generate, at("logits", "pos = 2"), "it would change nothing that is written"),
        ("predict", at("resid_post.3", "pos = 40"), "pos 40 is out of range"),
        ("predict", at("pattern.2", "query = 3\nkey = 5"), "query 3 cannot see key 5"),
        ("predict", at("resid_post.2", "head = 1"), "`resid_post.2` has no axis head"),
        ("predict", at("z.2", "head = 9"), "head 9 is out of range"),
        ("predict", at("mlp_post.2", "neuron = 512"), "neuron 512 is out of range"),
        ("predict", at("z.2", "pos = [5, 4]"), "pos 5..=4 is an empty range"),
        (
            "capture --site resid_post.0",
            at("z.5", ""),
            "edit `zero z.5` would change nothing: what is read (resid_post.0)",
        ),
        ("capture --wide --site resid_post.0", at("z.5", ""), "would change nothing"),
        ("capture --site pattern.1", at("v.1", ""), "would change nothing"),
        ("attention --layer 2", at("z.2", ""), "edit `zero z.2` would change nothing: what is read (pattern.2)"),
        ("attention --layer 2", at("mlp_out.2", ""), "would change nothing"),
        ("neurons --layer 1", at("mlp_out.1", ""), "would change nothing: what is read (mlp_post.1)"),
        ("neurons --layer 1 --pre", at("mlp_post.1", ""), "would change nothing: what is read (mlp_pre.1)"),
        ("residual", at("ln_final_normalized", ""), "would change nothing"),
        ("residual", at("logits", ""), "never reached"),
        ("lens", at("z.2", "pos = -16"), "pos -16 is out of range"),
    ];
    for (words, edit, wanted) in cases {
        let (_dir, command) = with_edit(words, &edit);
        println!("{words}: {edit}");
        command.run().refused(2, wanted);
    }
    // And the same commands do what can be done.
    for (words, edit) in [
        ("capture --site resid_post.0", at("z.0", "")),
        ("attention --layer 2", at("k.2", "")),
        ("neurons --layer 1", at("mlp_pre.1", "")),
        ("residual", at("resid_pre.3", "pos = -1")),
        ("lens", at("z.2", "pos = -15")),
    ] {
        let (_dir, command) = with_edit(words, &edit);
        let record = command.words("--quiet").run().ok().record();
        assert!(record["plan"]["edits"][0]["relative_change"].as_f64().unwrap() > 0.0, "{words}");
    }
}

#[test]
fn what_an_edit_did_not_do_is_said() {
    // All texts end before it: no result, and the exit code of a wrong request.
    let (dir, path) = edits("[[edit]]\nsite = \"resid_post.2\"\nop = \"zero\"\npos = 60\n");
    let base = |more: &str| {
        let command = Interp::new().words("generate --greedy --max-new-tokens 100 --prompt");
        command.arg("The capital of France is").arg("--edit").arg(&path).words(more)
    };
    let never = base("--format json").run();
    assert_eq!(never.code, Some(2), "{never:?}");
    assert!(
        never.stderr.contains("was never applied: it begins at position 60") && never.stdout.is_empty(),
        "{never:?}"
    );
    assert!(!process::files(never.dir.path()).iter().any(|file| file.ends_with("run.json")));
    base("--ignore-end").run().ok();
    // A dry run that writes less than that says what it costs all the same.
    base("--dry-run").run().ok();
    // Values that were so already.
    std::fs::write(&path, "[[edit]]\nsite = \"z.2\"\nop = \"scale\"\nvalue = 1\n").unwrap();
    let same = base("").run().ok();
    assert!(same.stderr.contains("note: edit `scale z.2 by 1` changed nothing"), "{}", same.stderr);
    // A direction that rounding swallows.
    let steer = Interp::new().words("steer --site resid_pre.2 --strength 0,1e-30,1 --controls 0 --max-new-tokens 2");
    let steer = steer.arg("--positive").arg("good film").arg("--negative").arg("bad film");
    let steered = steer.arg("--prompt").arg("The film").run().ok();
    let note = "note: too small to change any activation: strength 0.000000000000000000000000000001 at resid_pre.2";
    assert!(steered.stderr.contains(note), "{}", steered.stderr);
    drop(dir);
}

#[test]
fn a_full_context_and_a_tiny_temperature_are_what_they_are() {
    let long = "word ".repeat(400);
    let full = Interp::new().words("generate --truncate left --max-new-tokens 5 --prompt").arg(&long);
    full.run().refused(2, "prompt 0 has 256 tokens, which fill the model's context of 256 positions");
    let text = |options: &str| {
        let command =
            Interp::new().words("generate --max-new-tokens 6 --format json --prompt").arg(SHOP).words(options);
        let document: serde_json::Value = serde_json::from_str(&command.run().ok().stdout).unwrap();
        document["rows"][0]["text"].as_str().unwrap().to_string()
    };
    let greedy = text("--greedy");
    for temperature in ["1e-30", "1e-45", "1e-300"] {
        assert_eq!(text(&format!("--temperature {temperature}")), greedy, "{temperature}");
        assert_eq!(text(&format!("--temperature {temperature} --top-k 5 --top-p 0.9")), greedy, "{temperature}");
    }
}
