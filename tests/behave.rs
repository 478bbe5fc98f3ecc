//! Behavioural experiments: scores are Hugging Face's, suites suit their vocabularies, and the card of the embedded model comes out.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;

use candle_core::DType;
use common::{fixture, gate, model, write_model};
use interp::behave::{Answer, ask};
use interp::suite::{Asking, Continuation, Question, SHIPPED, Scoring, Suite};
use interp::text::{Bos, Encoding};
use interp::{Config, Error, Tokenizer, card, embedded};
use polars::prelude::*;
use process::Interp;
use serde_json::Value;

fn question(tokenizer: &Tokenizer, prompt: &str, right: &[&str], wrong: &[&str]) -> Question {
    let cut = |text: &str| tokenizer.encode(text, Encoding { bos: Bos::No, allow_special: false }).unwrap();
    let text = |text: &&str| Continuation { text: text.to_string(), ids: cut(text) };
    Question {
        template: 0,
        text: prompt.into(),
        prompt: tokenizer.tokens(&[prompt], Encoding::default()).unwrap().row(0).to_vec(),
        right: right.iter().map(text).collect(),
        wrong: wrong.iter().map(text).collect(),
    }
}

#[test]
fn scores_are_those_of_hugging_face() {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("behave.json")).unwrap()).unwrap();
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let expected = expected.as_array().unwrap();
    let texts = |case: &Value, key: &str| -> Vec<Value> { case[key].as_array().unwrap().clone() };
    let words = |all: &[Value]| all.iter().map(|one| one["text"].as_str().unwrap().to_string()).collect::<Vec<_>>();
    let questions: Vec<Question> = expected
        .iter()
        .map(|case| {
            let (right, wrong) = (words(&texts(case, "right")), words(&texts(case, "wrong")));
            let (right, wrong): (Vec<&str>, Vec<&str>) =
                (right.iter().map(String::as_str).collect(), wrong.iter().map(String::as_str).collect());
            question(&tokenizer, case["prompt"].as_str().unwrap(), &right, &wrong)
        })
        .collect();
    for score in [Scoring::Sum, Scoring::Mean] {
        let mut heard = 0;
        let answers = ask(&model, &questions, score, &mut |done, all| {
            assert!(done >= heard && all == questions.len());
            heard = done;
            Ok(())
        })
        .unwrap();
        assert_eq!(heard, questions.len());
        for (case, answer) in expected.iter().zip(&answers) {
            let (right, wrong) = (texts(case, "right"), texts(case, "wrong"));
            for (known, found) in right.iter().chain(&wrong).zip(answer.right.iter().chain(&answer.wrong)) {
                let length = if score == Scoring::Mean { known["tokens"].as_f64().unwrap() } else { 1.0 };
                let wanted = known["logprob"].as_f64().unwrap() / length;
                // Log-probabilities of logits of size 10, added up.
                assert!(gate::agree(*found, wanted, gate::F32, 10.0 + wanted.abs()), "{known}: {found}");
            }
            let best =
                right.iter().enumerate().max_by(|a, b| answer.right[a.0].total_cmp(&answer.right[b.0])).unwrap().1;
            assert_eq!(
                (best["rank"].as_u64(), best["greedy"].as_bool()),
                (Some(answer.rank.into()), Some(answer.greedy))
            );
        }
    }
}

#[test]
fn answers_are_judged_by_hand() {
    let answer =
        |right: &[f64], wrong: &[f64]| Answer { right: right.into(), wrong: wrong.into(), rank: 3, greedy: false };
    let ln = |x: f64| x.ln();
    // One right answer: every wrong one is a choice.
    let judged = answer(&[ln(0.4)], &[ln(0.3), ln(0.1)]).judge();
    assert!(judged.correct && (judged.margin.unwrap() - (0.4_f64 / 0.3).ln()).abs() < 1e-12);
    assert!((judged.confidence.unwrap() - 0.5).abs() < 1e-12 && (judged.chance.unwrap() - 1.0 / 3.0).abs() < 1e-12);
    let brier = 0.5_f64.powi(2) + (0.3_f64 / 0.8).powi(2) + (0.1_f64 / 0.8).powi(2);
    assert!((judged.brier.unwrap() - brier).abs() < 1e-12);
    // Several: their probabilities add up, and so do the wrong ones'.
    let judged = answer(&[ln(0.2), ln(0.2)], &[ln(0.3), ln(0.2)]).judge();
    assert!(!judged.correct && (judged.margin.unwrap() - (0.4_f64 / 0.5).ln()).abs() < 1e-12);
    assert_eq!(judged.chance, Some(0.5));
    // None to compare with: what the model says.
    let judged = answer(&[ln(0.2)], &[]).judge();
    assert!(!judged.correct && judged.margin.is_none() && judged.brier.is_none() && judged.chance.is_none());
}

/// Every shipped suite for a tokenizer, with all phrasings and examples.
fn all_suit(tokenizer: &Tokenizer, tiny: bool) {
    let mut asked = 0;
    for (name, _) in SHIPPED.iter().filter(|(name, _)| name.starts_with("tiny") == tiny) {
        let suite = Suite::shipped(name).unwrap().unwrap();
        suite.check_vocabulary(tokenizer).unwrap();
        for phrasing in suite.phrasings() {
            for shots in [0, 3] {
                let count = 2 * suite.templates().len() as u64;
                let asking = Asking { phrasing, shots, count, seed: 5 };
                let questions = suite.questions(asking, tokenizer, Encoding::default());
                let questions = questions.unwrap_or_else(|e| panic!("{name}, {phrasing}, {shots}: {e}"));
                for question in &questions {
                    assert!(question.right.iter().all(|right| !question.wrong.contains(right)), "{name}: {question:?}");
                    // Prompt and answer cut together are prompt and answer cut apart.
                    let whole = format!("{}{}", question.text, question.right[0].text);
                    let whole = tokenizer.tokens(&[whole], Encoding::default()).unwrap();
                    let apart = [question.prompt.as_slice(), &question.right[0].ids].concat();
                    assert_eq!(whole.row(0), apart, "{name}: {}", question.text);
                    asked += 1;
                }
                // The same seed asks the same, another one something else.
                assert_eq!(suite.questions(asking, tokenizer, Encoding::default()).unwrap(), questions);
                let other = Asking { seed: 6, ..asking };
                assert_ne!(suite.questions(other, tokenizer, Encoding::default()).unwrap(), questions, "{name}");
            }
        }
    }
    assert!(asked > 400);
}

#[test]
fn suites_suit_their_vocabularies() {
    all_suit(&embedded::tokenizer().unwrap(), true);
    // GPT-2's tokenizer files are not part of the project.
    if let Some(dir) = std::env::var_os("INTERP_GPT2_TOKENIZER") {
        all_suit(&Tokenizer::load(Path::new(&dir)).unwrap(), false);
    }
    for (name, _) in SHIPPED {
        let suite = Suite::shipped(name).unwrap().unwrap();
        assert!(!suite.about.is_empty() && Path::new(&format!("probes/behave/{name}.toml")).exists());
    }
    let files = std::fs::read_dir("probes/behave").unwrap().count();
    assert_eq!(files, SHIPPED.len());
}

#[test]
fn examples_show_no_rule_but_the_one_that_is_asked() {
    let tokenizer = embedded::tokenizer().unwrap();
    let suite = Suite::shipped("tiny-ioi").unwrap().unwrap();
    let asking = Asking { phrasing: "plain", shots: 4, count: 100, seed: 1 };
    let (mut always, mut of) = (0, 0);
    for question in suite.questions(asking, &tokenizer, Encoding::default()).unwrap() {
        // Whether the first of the names is the answer, in every example and in the question.
        let first_is = |before: &str, answer: &str| names(before).first().map(|first| *first == answer);
        let sentences: Vec<&str> = question.text.split(". ").collect();
        // The others are two sentences each.
        if sentences.len() != 5 {
            continue;
        }
        let own = first_is(sentences[4], question.right[0].text.trim()).unwrap();
        let of_example = |sentence: &str| {
            let (before, answer) = sentence.rsplit_once(' ').unwrap();
            first_is(before, answer)
        };
        of += 1;
        always += usize::from(sentences[..4].iter().all(|sentence| of_example(sentence).unwrap() == own));
    }
    // By chance one in sixteen, and all where examples are arranged as their question.
    assert!(of > 20 && always * 3 < of, "{always} of {of}");
}

/// Words that begin with a capital, but for the first of a sentence.
fn names(text: &str) -> Vec<&str> {
    text.split([' ', ',']).skip(1).filter(|word| word.starts_with(char::is_uppercase)).collect()
}

#[test]
fn questions_of_different_templates_have_words_of_their_own() {
    let tokenizer = embedded::tokenizer().unwrap();
    let suite = Suite::shipped("tiny-facts").unwrap().unwrap();
    let asking = Asking { phrasing: "plain", shots: 0, count: 40, seed: 0 };
    let questions = suite.questions(asking, &tokenizer, Encoding::default()).unwrap();
    let mut answers: Vec<&str> = questions.iter().map(|question| question.right[0].text.as_str()).collect();
    answers.sort_unstable();
    answers.dedup();
    // 40 templates of three kinds, 26 countries and 16 opposites.
    assert!(answers.len() > 20, "{answers:?}");
}

#[test]
fn the_card_of_the_embedded_model_comes_out() {
    let per_family = 60;
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let card = card::card(&model, &tokenizer, &embedded::language().unwrap(), per_family, 0).unwrap();
    let run = Interp::new().words("behave tiny-card --num-questions").arg((10 * per_family).to_string()).run().ok();
    let frame = frame(&run.output().join("frame.parquet"));
    let text =
        |frame: &DataFrame, name: &str, i: usize| frame.column(name).unwrap().str().unwrap().get(i).map(str::to_string);
    let value = |frame: &DataFrame, i: usize| frame.column("value").unwrap().f64().unwrap().get(i).unwrap();
    let mut compared = 0;
    for i in 0..card.height() {
        let (family, metric) = (text(&card, "behaviour", i), text(&card, "metric", i).unwrap());
        if metric != "accuracy" {
            continue;
        }
        let same = |j: &usize| {
            text(&frame, "template", *j) == family && text(&frame, "metric", *j).as_deref() == Some("accuracy")
        };
        let own = (0..frame.height()).find(same).unwrap_or_else(|| panic!("{family:?} is not in the suite"));
        assert_eq!(value(&frame, own), value(&card, i), "{family:?}");
        compared += 1;
    }
    assert_eq!(compared, 10);
}

fn frame(path: &Path) -> DataFrame {
    interp::frame::load_parquet(path).unwrap()
}

#[test]
fn a_comparison_has_a_row_for_everything_that_differs() {
    let dir = tempfile::tempdir().unwrap();
    let random = dir.path().join("random");
    write_model(&random);
    let run = Interp::new()
        .words("behave tiny-phrasing tiny-few-shot --num-questions 16 --shots 0,2 --phrasing plain,journey --price 36 --models")
        .arg(format!("tiny,{}", random.display()))
        .run()
        .ok();
    let frame = frame(&run.output().join("frame.parquet"));
    let names: Vec<&str> = frame.columns().iter().map(|column| column.name().as_str()).collect();
    assert_eq!(
        names,
        [
            "model",
            "suite",
            "phrasing",
            "shots",
            "template",
            "metric",
            "value",
            "low",
            "high",
            "questions",
            "seconds",
            "cost"
        ]
    );
    let metric = frame.column("metric").unwrap().str().unwrap();
    let whole = frame.column("template").unwrap().is_null();
    let accuracy: Vec<usize> =
        (0..frame.height()).filter(|&i| metric.get(i) == Some("accuracy") && whole.get(i) == Some(true)).collect();
    // two models × two numbers of examples × (one phrasing of tiny-phrasing + the only one of tiny-few-shot)
    assert_eq!(accuracy.len(), 8);
    let (seconds, cost) =
        (frame.column("seconds").unwrap().f64().unwrap(), frame.column("cost").unwrap().f64().unwrap());
    assert!((0..frame.height()).all(|i| (cost.get(i).unwrap() - seconds.get(i).unwrap() / 100.0).abs() < 1e-12));
    let (low, high) = (frame.column("low").unwrap().f64().unwrap(), frame.column("high").unwrap().f64().unwrap());
    let value = frame.column("value").unwrap().f64().unwrap();
    for i in 0..frame.height() {
        if ["chance", "ece"].contains(&metric.get(i).unwrap()) {
            assert!(low.get(i).is_none() && high.get(i).is_none());
            continue;
        }
        assert!(low.get(i) <= value.get(i) && value.get(i) <= high.get(i), "row {i}");
    }
    // The metrics are what the questions say.
    let each = interp::frame::load_parquet(&run.output().join("questions.parquet")).unwrap();
    assert_eq!(each.height(), 8 * 16);
    let correct = each.column("correct").unwrap().bool().unwrap();
    for (block, &i) in accuracy.iter().enumerate() {
        let hits = (16 * block..16 * (block + 1)).filter(|&j| correct.get(j) == Some(true)).count();
        assert_eq!(value.get(i), Some(hits as f64 / 16.0));
    }
    let prompts = each.column("prompt").unwrap().str().unwrap();
    let shots = each.column("shots").unwrap().u32().unwrap();
    for j in 0..each.height() {
        let stops = prompts.get(j).unwrap().matches(". ").count();
        assert_eq!(stops >= 2, shots.get(j) == Some(2), "{:?}", prompts.get(j));
    }
    let record = run.record();
    assert_eq!(record["models"].as_array().unwrap().len(), 2);
    assert!(record["cost"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_dry_run_writes_nothing() {
    let run = Interp::new().words("behave tiny-ioi --shots 0,1 --dry-run --price 2 --format json").run().ok();
    let facts: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(facts["questions"], 400);
    assert!(facts["total_seconds"].as_f64().unwrap() > 0.0 && facts["peak_bytes"].as_u64().unwrap() > 1_000_000);
    assert!((facts["cost"].as_f64().unwrap() - facts["total_seconds"].as_f64().unwrap() / 1800.0).abs() < 1e-9);
    assert!(!run.dir.path().join("outputs").exists());
}

const OWN: &str = r#"
about = "opposites"
suits = "tiny"
templates = ["The opposite of {pair.word} is"]
answer = " {pair.opposite}"
choices = { slot = "pair", count = 2 }
[class.pair]
fields = ["word", "opposite"]
rows = [["hot", "cold"], ["big", "small"], ["old", "young"], ["good", "bad"]]
[slot]
pair = "pair"
"#;

fn own(dir: &Path, text: &str, words: &str) -> process::Outcome {
    std::fs::write(dir.join("own.toml"), text).unwrap();
    Interp::new().words("behave --num-questions 4").words(words).arg(dir.join("own.toml")).run()
}

#[test]
fn a_suite_of_ones_own_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let run = own(dir.path(), OWN, "").ok();
    assert!(run.stdout.contains("own, plain, 0"), "{}", run.stdout);
    let longer = OWN.replace(
        "answer = \" {pair.opposite}\"",
        "any_length = true\nscore = \"mean\"\nanswer = \" {pair.opposite} xyzzy\"",
    );
    let longer = longer.replace("[\"big\", \"small\"]", "[\"big\", \"quintessential\"]");
    let run = own(dir.path(), &longer, "").ok();
    assert!(run.stdout.contains("choices differ in length"), "{}", run.stdout);
    assert_eq!(run.record()["suites"][0]["score"], "mean");
}

#[test]
fn wrong_suites_and_requests_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = |from: &str, to: &str| {
        let text = OWN.replace(from, to);
        assert_ne!(text, OWN, "{from}");
        own(dir.path(), &text, "")
    };
    for (from, to, why) in [
        (
            "suits = \"tiny\"",
            "suits = \"tiny\"\nfamilies = [\"ioi\"]",
            "either templates with an answer, or pairs, or families",
        ),
        ("answer =", "anwser =", "there is no key `anwser`; the nearest is `answer`"),
        ("{pair.word}", "{pear.word}", "there is no slot or role `pear`"),
        ("{pair.word}", "{pair.wrod}", "there is no field `wrod`"),
        ("{pair.word} is", "{pair.word is", "a brace is not closed"),
        ("count = 2", "count = 4", "has 3 other rows; choices ask for 4"),
        ("choices = { slot = \"pair\", count = 2 }", "choices = []", "choices are empty"),
        ("choices = { slot = \"pair\", count = 2 }", "choices = [\" {pair.opposite}\"]", "all choices are the answer"),
        ("about =", "pairs = \"tiny-ioi\"\nabout =", "either templates with an answer, or pairs, or families"),
        ("[slot]", "[[phrasing]]\nname = \"q\"\ntext = \"Q: {promt}\"\n[slot]", "phrasing `q` must hold {prompt} once"),
        (
            "[slot]",
            "[[phrasing]]\nname = \"q\"\ntext = \"{prompt}\"\n[[phrasing]]\nname = \"q\"\ntext = \"{prompt}\"\n[slot]",
            "two phrasings `q`",
        ),
    ] {
        file(from, to).refused(65, why);
    }
    file("is\"]", "is \"]").refused(2, "the prompt ends with a space");
    file("\"cold\"", "\"quintessential\"").refused(2, "any_length = true in it scores longer answers");
    file("suits = \"tiny\"", "suits = \"GPT-2\"\nvocabulary = 50257")
        .refused(2, "a vocabulary of 50257 tokens; this model's has 1536");
    own(dir.path(), OWN, "--shots 9").refused(2, "fewer than 9 different questions");
    let cases = [
        ("behave fcts", "there is no suite `fcts`; the nearest is `facts`"),
        ("behave facts", "(--any-vocabulary asks anyway)"),
        ("behave facts --any-vocabulary", "tokens,"),
        ("behave tiny-ioi --phrasing plan", "there is no phrasing `plan`, there is only `plain`"),
        ("behave tiny-ioi --shots 25", "this model reads at most 256"),
        ("behave --shots 2", "name a suite"),
        ("behave --num-questions 5", "name a suite"),
        ("behave tiny-ioi tiny-ioi", "suite tiny-ioi is there twice"),
        ("behave tiny-ioi --shots 0,0", "shots 0 is there twice"),
        ("behave tiny-ioi --models tiny,tiny", "model tiny is there twice"),
        ("behave tiny-ioi --model nowhere/at-all --models tiny", "cannot be used with"),
        ("behave tiny-ioi --dry-run --format csv", "a dry run is no table"),
        ("behave tiny-ioi --num-questions 0", "1..=1000000"),
    ];
    for (words, why) in cases {
        Interp::new().words(words).run().refused(2, why);
    }
    let listed = Interp::new().words("behave").run().ok();
    assert!(SHIPPED.iter().all(|(name, _)| listed.stdout.contains(name)));
}

#[test]
fn questions_that_do_not_fit_are_refused() {
    let (config, tokenizer) = (Config::new(1, 1, 8, 1536, 16), embedded::tokenizer().unwrap());
    let small = model(&config, DType::F32);
    let long = question(&tokenizer, &"When Mary and John went to the shop, ".repeat(3), &["x"], &[]);
    assert!(matches!(ask(&small, &[long], Scoring::Sum, &mut |_, _| Ok(())), Err(Error::TooLong { .. })));
}
