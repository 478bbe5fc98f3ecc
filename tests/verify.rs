//! Published figures: those of a small model are found again, a wrong number is named, and nothing passes by not being read.
//!
//! `tests/fixtures/make_oracle.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use common::{fixture, gate, parity_model};
use interp::oracle::Oracle;
use interp::published::{self, Set};
use interp::sweep::Sweep;
use interp::verify::{Compared, Verification};
use interp::{Config, Gpt2, Tokenizer, patch};
use process::{Interp, files};
use serde_json::{Value, json};

const ORACLE: &str = "oracle.json";

fn compared(model: &Gpt2, tokenizer: Option<&Tokenizer>, path: &Path) -> Vec<Compared> {
    let oracles = Oracle::read_all(path).unwrap();
    let verification = Verification::new(model.config(), tokenizer, &oracles).unwrap();
    verification.run(model, None, &mut |_, _| Ok(())).unwrap()
}

/// The fixture, changed, in a file of its own.
fn changed(dir: &Path, change: impl FnOnce(&mut Value)) -> std::path::PathBuf {
    let mut oracle: Value = serde_json::from_slice(&std::fs::read(fixture(ORACLE)).unwrap()).unwrap();
    change(&mut oracle);
    let path = dir.join("changed.json");
    std::fs::write(&path, oracle.to_string()).unwrap();
    path
}

fn verify(oracle: &Path) -> Interp {
    Interp::new().words("verify --model").arg(fixture("parity/wide")).arg("--oracle").arg(oracle)
}

#[test]
fn every_figure_of_a_processed_model_is_found_again_from_its_raw_weights() {
    let all = compared(&parity_model("wide"), None, &fixture(ORACLE));
    let left_out: Vec<&Compared> = all.iter().filter(|one| one.difference.is_err()).collect();
    assert_eq!((all.len(), left_out.len()), (33, 1), "{left_out:?}");
    assert_eq!(left_out[0].title, "Loss by position on random repeated tokens");
    for one in &all {
        if let Ok(difference) = &one.difference {
            // Effects, shares and scores are of order 1; the processed weights of the fixture were rounded on their way.
            assert!(difference.largest < gate::F32 && difference.count > 0, "{}: {difference:?}", one.name());
        }
    }
}

#[test]
fn the_command_says_what_passes_and_what_is_not_compared() {
    let outcome = verify(&fixture(ORACLE)).run().ok();
    for wanted in [
        "32 of 32 matrices are within 1e-4 of what was published",
        "cell 30 `Activation Patching Per Head (All Pos)`, Pattern",
        "not compared: 1",
        "of random tokens that are not known",
    ] {
        assert!(outcome.stdout.contains(wanted), "{wanted}: {}", outcome.stdout);
    }
    let document: Value =
        serde_json::from_str(&verify(&fixture(ORACLE)).words("--format json").run().ok().stdout).unwrap();
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|row| row["passed"] == true).count(), 32);
    let last = rows.last().unwrap();
    assert!(last["passed"].is_null() && last["largest_difference"].is_null() && last["compared"] == 0, "{last}");
    // Of three digits less than half a unit of the last is known.
    let rounded = rows.iter().find(|row| row["title"] == "Current Word Head Matches (abs)").unwrap();
    assert_eq!(rounded["largest_difference"], 0.0);
}

#[test]
fn a_number_that_is_off_by_a_thousandth_is_named_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let count = wide_cells();
    // (cell in the file, trace, row, column or None for a line, what is said)
    let cases = [
        (0, 0, 2, Some(4), "cell 22 `resid_pre Activation Patching` differs by 1.0e-3 at layer 2, position 4"),
        (
            4,
            3,
            11,
            Some(5),
            "cell 31 `Activation Patching Per Head (By Pos)`, Value differs by 1.0e-3 at head 2.1, position 5",
        ),
        (6, 0, 3, None, "differs by 1.0e-3 at 1_mid"),
        (8, 0, 1, Some(3), "cell 47 `Logit Difference From Each Head` differs by 1.0e-3 at head 1.3"),
        (13, 0, 0, Some(4), "cell 112 `OV Copying Score for each head in GPT-2 Small` differs by 1.0e-3 at head 0.4"),
        (16, 0, 2, Some(2), "cell 28 `Previous Head Matches` differs by 1.0e-3 at head 2.2"),
    ];
    for (cell, trace, row, column, wanted) in cases {
        assert!(cell < count);
        let path = changed(dir.path(), |oracle| {
            let trace = &mut oracle["cells"][cell]["traces"][trace];
            let value = match column {
                Some(column) => &mut trace["z"][row][column],
                None => &mut trace["y"][row],
            };
            *value = json!(value.as_f64().unwrap() + 1e-3);
        });
        let outcome = verify(&path).run();
        assert_eq!(outcome.code, Some(65), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(wanted), "{wanted}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("over the gate of 1e-4; 1 of 32 matrices do"), "{}", outcome.stderr);
        // What was found is kept.
        assert!(outcome.stdout.contains("31 of 32 matrices") && outcome.stdout.contains("FAIL"), "{}", outcome.stdout);
        assert_eq!(files(&outcome.output()).len(), 4);
        let lenient = verify(&path).words("--gate 2e-3").run().ok();
        assert!(lenient.stdout.contains("32 of 32 matrices are within 2e-3"), "{}", lenient.stdout);
    }
}

fn wide_cells() -> usize {
    let oracle: Value = serde_json::from_slice(&std::fs::read(fixture(ORACLE)).unwrap()).unwrap();
    oracle["cells"].as_array().unwrap().len()
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.json");
    let trace = |trace: &str| format!("[{{\"cell\": 22, \"title\": \"x\", \"traces\": [{trace}]}}]");
    for (text, wanted) in [
        ("".to_string(), "not a file of figures"),
        ("{".into(), "not a file of figures"),
        ("{\"tokens\": [[1]]}".into(), "missing field `cells`"),
        ("[]".into(), "holds no figure"),
        ("[{\"cell\": 1}]".into(), "missing field `traces`"),
        (trace("{\"type\": \"heatmap\"}"), "cell 22, trace 0 of `x`: a heat map without z"),
        (trace("{\"type\": \"heatmap\", \"z\": [[1, 2], [3]]}"), "rows of 2 and of 1 values"),
        (trace("{\"type\": \"heatmap\", \"z\": [[1, null]]}"), "not a file of figures"),
        (trace("{\"type\": \"scatter\", \"y\": [\"a\"]}"), "something that is no number"),
        ("[".repeat(100_000), "not a file of figures"),
    ] {
        std::fs::write(&path, text).unwrap();
        verify(&path).run().refused(65, wanted);
    }
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (|o| o["prompts"]["answers"] = json!([[1, 2]]), "4 clean prompts, 4 corrupted ones and 1 answers"),
        (|o| o["prompts"]["answers"][1] = json!([97, 2]), "the answer 97 is not below the vocabulary size 97"),
        (|o| o["prompts"]["clean"][0][3] = json!(97), "token 97 is not below the vocabulary size 97"),
        (|o| o["prompts"]["clean"][0] = o["prompts"]["corrupt"][0].clone(), "are the same"),
        (|o| o["detect"] = json!([]), "one of its prompts has no token"),
        (|o| o["tokens"][0] = json!(vec![1; 13]), "26 tokens; this model reads at most 24"),
    ];
    for (change, wanted) in changes {
        verify(&changed(dir.path(), change)).run().refused(65, wanted);
    }
    verify(&dir.path().join("absent.json")).run().refused(66, "no such file");
    verify(&fixture("parity")).run().refused(65, "versions.json");
    verify(&fixture(ORACLE)).words("--gate 0").run().refused(2, "a gate of 0");
}

#[test]
fn nothing_to_compare_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.json");
    let map = |cell: u32, title: &str, rows: usize| json!({ "cell": cell, "title": title, "traces": [{ "type": "heatmap", "z": vec![vec![0.0; 12]; rows] }] });
    let cells = json!([
        map(24, "attn_head_out Activation Patching (All Pos)", 12),
        map(61, "Factual Recall Patching (Residual)", 48),
        map(1, "A Figure of Tomorrow", 12),
    ]);
    std::fs::write(&path, cells.to_string()).unwrap();
    let wanted = "of the 3 matrices none fits this model of 6 layers and 4 heads; they are of gpt2 (12 layers, 12 heads: \
                  --model gpt2) and gpt2-xl (48 layers";
    Interp::new().words("verify --oracle").arg(&path).run().refused(2, wanted);
    // Figures of another shape than the model's own prompts give.
    let path = changed(dir.path(), |oracle| {
        let first = oracle["cells"][5].clone();
        oracle["cells"] = json!([first]);
        oracle["cells"][0]["traces"][0]["z"].as_array_mut().unwrap().pop();
    });
    verify(&path).run().refused(2, "2 × 7 values, but a model of 3 layers and 5 heads on 7 tokens has 3 × 7");
}

/// A tokenizer that keeps the words of the notebooks' prompts whole, as GPT-2's does.
fn word_tokenizer(dir: &Path) -> Tokenizer {
    let words = "When John and Mary went to the shops gave bag Tom James park ball Dan Sid an apple After Martin Amy a drink \
                 store bottle of milk";
    let end = interp::text::END_OF_TEXT;
    let tiny: Value =
        serde_json::from_slice(&std::fs::read(fixture("../../models/tiny/tokenizer.json")).unwrap()).unwrap();
    let bytes = tiny["model"]["vocab"].as_object().unwrap().keys().filter(|token| token.chars().count() == 1);
    let mut vocab: BTreeMap<String, usize> = bytes.cloned().enumerate().map(|(i, token)| (token, i)).collect();
    assert_eq!(vocab.len(), 256);
    let mut merges = vec!["#version: 0.2".to_string()];
    for word in words.split_whitespace().map(|word| format!("Ġ{word}")).chain(["When".into(), "After".into()]) {
        let ends: Vec<usize> = word.char_indices().map(|(i, c)| i + c.len_utf8()).collect();
        for pair in ends.windows(2) {
            if !vocab.contains_key(&word[..pair[1]]) {
                vocab.insert(word[..pair[1]].into(), vocab.len());
                merges.push(format!("{} {}", &word[..pair[0]], &word[pair[0]..pair[1]]));
            }
        }
    }
    vocab.insert(end.into(), vocab.len());
    std::fs::write(dir.join("vocab.json"), json!(vocab).to_string()).unwrap();
    std::fs::write(dir.join("merges.txt"), merges.join("\n") + "\n").unwrap();
    Tokenizer::load(dir).unwrap()
}

#[test]
fn files_without_prompts_of_their_own_are_read_with_those_of_the_notebooks() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = word_tokenizer(dir.path());
    let model = common::model(&Config::new(12, 12, 24, tokenizer.vocab_size(), 128), DType::F32);
    let pairs = published::pairs(Set::Indirect, &tokenizer).unwrap();
    assert_eq!(pairs.len(), 8);
    for pair in &pairs {
        let differ: Vec<usize> = (0..15).filter(|&i| pair.clean().row(0)[i] != pair.corrupt().row(0)[i]).collect();
        assert_eq!((pair.len(), differ), (15, vec![10]), "{}", pair.clean().joined(0));
        assert_eq!(pair.clean().text(0, 10), tokenizer.text(pair.target().wrong()[0]), "the giver is the wrong answer");
    }
    let single = published::pairs(Set::Single, &tokenizer).unwrap();
    assert_eq!((single.len(), single[0].len()), (1, 17));
    let values = |title: &str, sweep: &str, pairs: &[interp::pair::Pair], cell: u32| {
        let sweeps = Sweep::named(sweep).unwrap();
        let one = |pair| patch::patch(&model, pair, &sweeps, Default::default(), &mut |_, _| Ok(())).unwrap();
        let patched: Vec<patch::Patched> = pairs.iter().map(one).collect();
        let sum = |f: &dyn Fn(&patch::Patched) -> f64| patched.iter().map(f).sum::<f64>();
        let (low, high) = (sum(&|p| p.base[0]), sum(&|p| p.source[0]));
        let cells = 0..patched[0].cells.len();
        let all: Vec<f64> = cells.map(|i| (sum(&|p| p.cells[i].2[0]) - low) / (high - low)).collect();
        let rows: Vec<&[f64]> = all.chunks(all.len() / 12).collect();
        json!({ "cell": cell, "title": title, "traces": [{ "type": "heatmap", "z": rows }] })
    };
    let folder = dir.path().join("oracle");
    std::fs::create_dir(&folder).unwrap();
    let main = "Normalized Logit Difference After Patching Residual Stream on the IOI Task";
    let zeros = json!([{ "type": "heatmap", "z": vec![vec![0.0; 12]; 12] }]);
    let first = json!([
        values("resid_pre Activation Patching", "resid_pre", &pairs, 22),
        values("Logit Difference From Patched Head Output", "attn_head_out_all_pos", &pairs, 75),
        values(main, "resid_pre", &single, 39),
    ]);
    let second = json!([
        { "cell": 100, "title": "Induction Head Scores", "traces": zeros },
        { "cell": 112, "title": "OV Copying Score for each head in GPT-2 Small", "traces": zeros },
        { "cell": 39, "title": "Activation Patching Per Head (All Pos)", "facets": ["Output"], "traces": zeros },
        { "cell": 52, "title": "Previous token head; average across 3 prompts", "traces": zeros },
    ]);
    std::fs::write(folder.join("a.json"), first.to_string()).unwrap();
    std::fs::write(folder.join("b.json"), second.to_string()).unwrap();
    let of = |all: &[Compared]| -> Vec<Option<bool>> { all.iter().map(|one| one.passed(1e-4)).collect() };
    let all = compared(&model, Some(&tokenizer), &folder);
    assert_eq!(of(&all), [Some(true), Some(true), Some(true), None, Some(false), None, None], "{all:?}");
    assert!(all[3].difference.as_ref().unwrap_err().contains("exploratory_random_tokens.json holds them"));
    assert!(all[5].difference.as_ref().unwrap_err().contains("attn-only-2l"));
    assert!(all[6].difference.as_ref().unwrap_err().contains("wrong in the notebook"));
    // The tokens of head scores lie beside the file.
    let random = json!({ "tokens": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]] });
    std::fs::write(folder.join("exploratory_random_tokens.json"), random.to_string()).unwrap();
    assert_eq!(of(&compared(&model, Some(&tokenizer), &folder))[3], Some(false));
    // Another tokenizer cuts the sentences differently: said, not computed.
    let tiny = interp::embedded::tokenizer().unwrap();
    let all = compared(&model, Some(&tiny), &folder);
    let reason = all[0].difference.as_ref().unwrap_err();
    assert!(reason.contains("do not fit this model's tokenizer"), "{reason}");
    let reason = compared(&model, None, &folder)[0].difference.clone().unwrap_err();
    assert!(reason.contains("needs a tokenizer"), "{reason}");
}
