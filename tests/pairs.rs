//! Prompt-pair sets: what is shipped, what is drawn, and what is refused.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::path::Path;

use common::gate;
use interp::answers::{Answered, answers};
use interp::metric::Metric;
use interp::pair::Pair;
use interp::pairset::{Drawn, PairSet, SHIPPED};
use interp::text::{Bos, Encoding};
use interp::{LogitsAt, Plan, Tokenizer, embedded};
use process::{Interp, Outcome};

const PLAIN: Encoding = Encoding { bos: Bos::No, allow_special: true };

fn shipped(name: &str) -> PairSet {
    PairSet::shipped(name).unwrap().unwrap()
}

fn draw(set: &PairSet, corruption: Option<&str>, template: Option<usize>, seed: u64, n: u64) -> Vec<Drawn> {
    (0..n).map(|i| set.draw(corruption, template, seed, i).unwrap()).collect()
}

/// 200 pairs of every corruption of the sets that are written for a model.
fn check(suits: &str, tokenizer: &Tokenizer) -> usize {
    let mut checked = 0;
    for (name, _) in SHIPPED {
        let set = shipped(name);
        if set.suits != suits {
            continue;
        }
        for corruption in set.corruptions() {
            let drawn = draw(&set, Some(corruption), None, 1, 200);
            // Every template comes up about as often.
            let used: BTreeSet<&str> = drawn.iter().map(|d| d.template.as_str()).collect();
            assert_eq!(used.len(), set.templates().len(), "{name} {corruption}");
            for d in &drawn {
                let encode = |text: &str| tokenizer.encode(text, PLAIN).unwrap();
                let (clean, corrupt) = (encode(&d.clean), encode(&d.corrupt));
                assert_ne!(clean, corrupt, "{name} {corruption}: {d:?}");
                assert_eq!(clean.len(), corrupt.len(), "{name} {corruption}: {d:?}");
                let single = |texts: &[String]| -> BTreeSet<u32> {
                    assert!(!texts.is_empty(), "{d:?}");
                    let one = |text: &String| match encode(text)[..] {
                        [id] => id,
                        ref ids => panic!("{name}: `{text}` is {} tokens", ids.len()),
                    };
                    texts.iter().map(one).collect()
                };
                let (right, wrong) = (single(&d.answer), single(&d.wrong));
                assert!(right.is_disjoint(&wrong), "{d:?}");
                // The answer follows the prompt as a token of its own.
                for answer in &d.answer {
                    assert_eq!(encode(&format!("{}{answer}", d.clean)), [clean.clone(), encode(answer)].concat());
                }
                assert!(!d.clean.contains(['{', '}']) && !d.clean.ends_with(' '), "{d:?}");
                checked += 1;
            }
        }
    }
    checked
}

#[test]
fn every_pair_for_tiny_is_aligned() {
    assert_eq!(check("tiny", &embedded::tokenizer().unwrap()), 200 * (4 + 1 + 2 + 1 + 1));
}

/// GPT-2's files are not part of the project: INTERP_GPT2_TOKENIZER names a folder with vocab.json and merges.txt.
#[test]
fn every_pair_for_gpt2_is_aligned() {
    match std::env::var_os("INTERP_GPT2_TOKENIZER") {
        Some(folder) => assert_eq!(check("gpt2", &Tokenizer::load(Path::new(&folder)).unwrap()), 200 * (4 + 1 + 2 + 1)),
        None => println!("INTERP_GPT2_TOKENIZER is not set: pairs for GPT-2 are not checked"),
    }
}

#[test]
fn prompts_of_one_template_are_equally_long() {
    let tokenizer = embedded::tokenizer().unwrap();
    for (name, _) in SHIPPED {
        let set = shipped(name);
        for template in 0..if set.suits == "tiny" { set.templates().len() } else { 0 } {
            let drawn = draw(&set, None, Some(template), 2, 20);
            assert!(drawn.iter().all(|d| d.template == set.templates()[template]));
            let lengths: BTreeSet<usize> =
                drawn.iter().map(|d| tokenizer.encode(&d.clean, PLAIN).unwrap().len()).collect();
            assert_eq!(lengths.len(), 1, "{name} {template}: {lengths:?}");
        }
    }
}

#[test]
fn a_seed_decides_the_pairs() {
    for (name, _) in SHIPPED {
        let set = shipped(name);
        let first = draw(&set, None, None, 0, 40);
        assert_eq!(first, draw(&set, None, None, 0, 40));
        assert_ne!(first, draw(&set, None, None, 1, 40));
        let clean: BTreeSet<&str> = first.iter().map(|d| d.clean.as_str()).collect();
        assert!(clean.len() > 30, "{name}: {} different ones of 40", clean.len());
        // The corruption changes nothing about the clean prompt and its answers.
        for corruption in set.corruptions() {
            for (a, b) in first.iter().zip(draw(&set, Some(corruption), None, 0, 40)) {
                assert_eq!((&a.template, &a.clean, &a.answer, &a.wrong), (&b.template, &b.clean, &b.answer, &b.wrong));
            }
        }
    }
}

#[test]
fn the_corruptions_of_indirect_objects_do_what_they_say() {
    let set = shipped("tiny-ioi");
    let names = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| word.starts_with(char::is_uppercase));
        let common = ["When", "After", "While", "Yesterday", "One", "Then", "Soon", "There"];
        words.filter(|word| !common.contains(word)).map(str::to_string).collect()
    };
    for index in 0..100 {
        let of = |corruption: &str| set.draw(Some(corruption), None, 5, index).unwrap();
        let d = of("swap");
        let clean = names(&d.clean);
        let (io, s) = (d.answer[0].trim().to_string(), d.wrong[0].trim().to_string());
        assert_eq!(clean.len(), 3, "{}", d.clean);
        assert!(clean[2] == s && clean[..2].contains(&io) && clean[..2].contains(&s) && io != s, "{d:?}");
        assert_eq!(names(&d.corrupt), [clean[0].clone(), clean[1].clone(), io]);
        let abc: BTreeSet<String> = names(&of("abc").corrupt).into_iter().collect();
        assert!(abc.len() == 3 && clean.iter().all(|name| !abc.contains(name)), "{abc:?} {clean:?}");
        let other = names(&of("names").corrupt);
        assert!(other.iter().all(|name| !clean.contains(name)));
        assert_eq!([other[0] == other[2], other[1] == other[2]], [clean[0] == clean[2], clean[1] == clean[2]]);
        assert_eq!(names(&of("order").corrupt), [clean[1].clone(), clean[0].clone(), clean[2].clone()]);
    }
}

#[test]
fn years_are_later_or_not() {
    for name in ["greater-than", "tiny-greater-than"] {
        for d in draw(&shipped(name), None, None, 3, 100) {
            let begin = d.clean.split(" to ").next().unwrap();
            let year = &begin[begin.len() - 2..];
            assert!(d.answer.iter().all(|a| a.as_str() > year) && d.wrong.iter().all(|w| w.as_str() <= year), "{d:?}");
            let corrupt = d.corrupt.split(" to ").next().unwrap();
            assert!(corrupt[corrupt.len() - 2..] < *year && corrupt[..corrupt.len() - 2] == begin[..begin.len() - 2]);
        }
    }
}

#[test]
fn tiny_answers_its_sets() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    for (name, _) in SHIPPED {
        let set = shipped(name);
        if set.suits != "tiny" {
            continue;
        }
        let pair = |d: Drawn| d.pair(&tokenizer, Encoding::default()).unwrap();
        let pairs: Vec<Pair> = draw(&set, None, None, 0, 200).into_iter().map(pair).collect();
        let answered = answers(&model, &pairs).unwrap();
        let right = answered.iter().filter(|a| a.is_right()).count();
        assert!(right >= 194, "{name}: {right} of 200");
        // Batches give what each prompt gives alone.
        for (pair, answered) in pairs.iter().zip(&answered).step_by(29) {
            let logits = |tokens| -> Vec<f32> {
                let trace = Plan::new().logits(LogitsAt::Last).run(&model, tokens).unwrap();
                trace.logits().unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let (clean, corrupt) = (logits(pair.clean()), logits(pair.corrupt()));
            let of = |end: &[f32]| Metric::ALL.map(|metric| metric.of(end, &clean, pair.target()));
            let both = |a: &Answered| [a.clean.clone(), a.corrupt.clone()].concat();
            // Metrics of logits: differences of them, probabilities and ranks.
            let size = gate::size(clean.iter().copied().map(f64::from)).max(1.0);
            for (found, wanted) in both(answered).iter().zip(of(&clean).into_iter().chain(of(&corrupt))) {
                assert!(gate::agree(*found, wanted, gate::F32, size), "{name}: {found} {wanted}");
            }
        }
    }
}

/// A set that is well-formed.
const GOOD: &str = r#"about = "who runs"
suits = "tiny"
templates = ["The {animal} runs to the {place}", "{animal.name}"]

[class.animal]
fields = ["name", "sound"]
rows = [["dog", "woof"], ["cat", "meow"], ["cow", "moo"]]

[class.place]
rows = [["shop"], ["park"]]

[slot]
a = "animal"
b = "animal"
place = { class = "place", from = 1, to = 1 }

[[arrange]]
name = "one"
roles = { animal = "a.name" }

[[corrupt]]
name = "other"
[corrupt.set]
animal = "b.name"

[answer]
right = " {a.sound}"
wrong = " {b.sound}"
"#;

#[test]
fn a_set_is_written_as_it_says() {
    let set = PairSet::parse(GOOD, Path::new("good.toml")).unwrap();
    assert_eq!(set.templates(), ["one: The {animal} runs to the {place}", "one: {animal.name}"]);
    let rows = [("dog", "woof"), ("cat", "meow"), ("cow", "moo")];
    let mut seen = BTreeSet::new();
    for d in draw(&set, Some("other"), Some(0), 0, 60) {
        let row = |text: &str| *rows.iter().find(|(name, _)| text == format!("The {name} runs to the park")).unwrap();
        let (a, b) = (row(&d.clean), row(&d.corrupt));
        assert_ne!(a, b);
        assert_eq!((&d.answer[0][1..], &d.wrong[0][1..]), (a.1, b.1));
        seen.insert((a, b));
    }
    assert_eq!(seen.len(), 6, "every animal beside every other");
}

fn of_file(name: &str, text: &str, words: &str) -> Outcome {
    command_of_file("pairs", name, text, words)
}

fn command_of_file(command: &str, name: &str, text: &str, words: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), text).unwrap();
    Interp::new().words(command).arg(dir.path().join(name)).words(words).run()
}

#[test]
fn malformed_sets_say_what_is_wrong() {
    let pairs = [
        ("{animal} runs", "{beast} runs", "there is no slot or role `beast`"),
        ("{animal} runs", "{} runs", "there is no slot or role ``"),
        ("{animal} runs", "{animal runs", "a brace is not closed"),
        ("{animal} runs", "{animal.colour} runs", "there is no field `colour`"),
        ("{animal} runs", "{b} runs", "`b` needs a field: name, sound"),
        ("animal = \"b.name\"", "beast = \"b.name\"", "there is no slot or role `beast`"),
        ("animal = \"b.name\"", "animal = \"c.name\"", "there is no slot or role `c`"),
        (" {b.sound}", " {b.noise}", "there is no field `noise`"),
        ("suits = \"tiny\"", "suits = \"tiny\"\ncolour = \"red\"", "no key `colour`"),
        ("[answer]", "[answer]\nthird = \"x\"", "no key `third`"),
        ("wrong = \" {b.sound}\"\n", "", "missing field `wrong`"),
        ("about = \"who runs\"\n", "", "missing field `about`"),
        ("[[\"shop\"], [\"park\"]]", "[]", "class place is empty"),
        ("[\"dog\", \"woof\"]", "[\"dog\"]", "has not 2 words"),
        ("from = 1, to = 1", "from = 1, to = 2", "slot place: rows 1..=2 of 2"),
        ("from = 1, to = 1", "from = 1, to = 0", "slot place: rows 1..=0 of 2"),
        ("from = 1, to = 1", "from = -1, to = 1", "data did not match"),
        ("b = \"animal\"", "b = \"beast\"", "there is no class `beast`"),
        ("b = \"animal\"", "b = \"animal\"\nc = \"animal\"\nd = \"animal\"", "slot d: its class has too few rows"),
        ("b = \"animal\"", "b = { class = \"animal\", from = 0, to = 0 }", "slot b: its class has too few rows"),
        ("[[corrupt]]", "[corrupt]", "line 21: expected a list, found map"),
        ("\" {b.sound}\"", "{ class = \"animal\", up_to = \"c\" }", "there is no slot or role `c`"),
        ("\" {b.sound}\"", "{ class = \"place\", up_to = \"b\" }", "slot `b` does not draw from class `place`"),
        ("\" {b.sound}\"", "{ class = \"place\", after = \"place\" }", "no row comes after the last"),
        ("\" {b.sound}\"", "7", "data did not match"),
        ("templates = [", "templates = [[", "line 5: missing comma"),
    ];
    for (from, to, wanted) in pairs {
        assert_eq!(GOOD.matches(from).count(), 1, "{from}");
        of_file("bad.toml", &GOOD.replace(from, to), "").refused(65, wanted);
    }
    of_file("bad.toml", "", "").refused(65, "missing field");
    let empty = GOOD.replace("[\"The {animal} runs to the {place}\", \"{animal.name}\"]", "[]");
    of_file("bad.toml", &empty, "").refused(65, "a set needs templates and a corruption");
}

#[test]
fn wrong_requests_say_what_to_do() {
    let line = r#"{"clean": "Mary", "corrupt": "John", "answer": " a", "wrong": " b"}"#;
    let command = |words: &str| Interp::new().words(words).run();
    command("pairs tiny-io").refused(2, "there is no set of pairs `tiny-io`");
    command("pairs tiny-ioi --template 52").refused(2, "template 52 is out of range 0..=51");
    command("pairs tiny-ioi --corruption none").refused(2, "there is no corruption `none`, the nearest is `");
    command("pairs tiny-ioi --num-pairs 0").refused(2, "--num-pairs");
    command("pairs --num-pairs 3").refused(2, "--num-pairs goes with a set");
    command("pairs nowhere.toml").refused(66, "nowhere.toml");
    command("pairs --format csv").refused(2, "use --format json");
    command("patch --pairs tiny-ioi --clean a --answer b --wrong c").refused(2, "cannot be used with");
    command("pairs ioi").refused(2, "a pair of ioi does not suit this model (the set is written for gpt2)");
    of_file("pairs.jsonl", line, "--template 0").refused(2, "--template goes with a set");
    of_file("pairs.jsonl", line, "--num-pairs 3").refused(2, "pairs.jsonl holds 1 pairs");
    of_file("pairs.jsonl", line, "--corruption swap").refused(2, "no corruption `swap`; there are the plain one");
    let patch = Interp::new().words("patch --num-pairs 3 --clean a --corrupt b --answer c --wrong d").run();
    patch.refused(2, "--num-pairs goes with --pairs");
    of_file("pairs.jsonl", "", "").refused(65, "holds no pair");
    of_file("pairs.jsonl", &line.replace("\"wrong\"", "\"worse\""), "")
        .refused(65, "line 1: there is a field `answer`, but no `wrong`");
    of_file("pairs.jsonl", &line.replace("\" b\"", "[]"), "")
        .refused(65, "line 1: `wrong` is no text and no list of texts");
    of_file("pairs.jsonl", &format!("{line}\n{}", line.replace("John", "Mary")), "").refused(2, "pair 1: ");
    of_file("pairs.jsonl", &line.replace("\" b\"", "[\" b\", \" a\"]"), "").refused(2, "the same token");
}

/// Three pairs that `tiny` answers, as lines with labels.
fn labelled() -> String {
    let topics = ["sea", "hill", "sea"];
    let line = |(i, (a, b)): (usize, (&str, &str))| {
        let prompt = |giver| format!("When {a} and {b} went to the shop, {giver} gave a drink to");
        serde_json::json!({
            "clean": prompt(b), "corrupt": prompt(a), "answer": format!(" {a}"), "wrong": format!(" {b}"),
            "topic": topics[i], "id": i, "share": 0.5 * i as f64, "prob": "mine", "tags": ["x", i],
            "known": i == 1,
        })
        .to_string()
    };
    [("Mary", "John"), ("Tom", "Anna"), ("Lucy", "Peter")]
        .into_iter()
        .enumerate()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_list_of_pairs_keeps_its_labels_and_gives_as_many_as_are_asked_for() {
    let rows = |name: &str, text: &str, options: &str| -> Vec<serde_json::Value> {
        let outcome = of_file(name, text, &format!("{options} --format json")).ok();
        let out: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        out["rows"].as_array().unwrap().clone()
    };
    let all = rows("pairs.jsonl", &labelled(), "");
    assert_eq!(all.len(), 3);
    assert_eq!((&all[1]["topic"], &all[1]["id"], &all[1]["share"]), (&"hill".into(), &1.into(), &0.5.into()));
    assert_eq!(
        (&all[1]["known"], &all[1]["tags"], &all[1]["label_prob"]),
        (&true.into(), &"[\"x\",1]".into(), &"mine".into())
    );
    assert!(all[1]["prob"].is_f64(), "a label does not take the place of a column");
    let two = rows("pairs.jsonl", &labelled(), "--num-pairs 2");
    let of = |rows: &[serde_json::Value]| -> Vec<[serde_json::Value; 4]> {
        rows.iter().map(|row| ["pair", "clean", "id", "topic"].map(|key| row[key].clone())).collect()
    };
    assert_eq!(of(&two), of(&all[..2]), "the first ones");
    // An array is as good as lines, whatever the name of the file.
    let array = format!("[{}]", labelled().replace('\n', ","));
    assert_eq!(of(&rows("pairs.json", &array, "")), of(&all));
    let run = of_file("pairs.jsonl", &labelled(), "--num-pairs 2").ok().record();
    assert_eq!(run["pairs"][1]["labels"]["topic"], "hill");
}

#[test]
fn the_files_of_eap_ig_and_mib_are_pairs() {
    let tokenizer = embedded::tokenizer().unwrap();
    let id = |text: &str| tokenizer.encode(text, PLAIN).unwrap()[0];
    let prompt = |giver: &str| format!("When Mary and John went to the shop, {giver} gave a drink to");
    let (clean, swapped, other) = (prompt("John"), prompt("Mary"), prompt("Anna"));
    let csv = format!(
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n826,\"{clean}\",\"{other}\",\"{swapped}\",{},{}\n",
        id(" Mary"),
        id(" John")
    );
    let mib = serde_json::json!([{
        "prompt": clean, "metadata": { "indirect_object": "Mary", "subject": "John" }, "choices": ["Mary", "John"],
        "answerKey": 0, "s2_io_flip_counterfactual": { "prompt": swapped }, "abc_counterfactual": { "prompt": other },
    }]);
    let plain = |corrupt: &str| {
        serde_json::json!({ "clean": clean, "corrupt": corrupt, "answer": " Mary", "wrong": " John" }).to_string()
    };
    let numbers = |name: &str, text: &str, options: &str| {
        let outcome = of_file(name, text, &format!("{options} --format json")).ok();
        let out: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let row = &out["rows"][0];
        ["answer", "wrong", "corrupt", "logit_diff", "corrupt_logit_diff", "prob"].map(|key| row[key].clone())
    };
    let (of_swapped, of_other) = (numbers("a.jsonl", &plain(&swapped), ""), numbers("a.jsonl", &plain(&other), ""));
    assert_eq!(numbers("ioi.csv", &csv, ""), of_other);
    assert_eq!(numbers("ioi.csv", &csv, "--corruption hard"), of_swapped);
    assert_eq!(numbers("ioi.json", &mib.to_string(), ""), of_swapped);
    assert_eq!(numbers("ioi.json", &mib.to_string(), "--corruption abc"), of_other);
    of_file("ioi.csv", &csv.replace(&format!(",{}", id(" Mary")), ",50000"), "")
        .refused(2, "50000 is no token of this model");
    // One pair has numbers, and no interval around them.
    let text = of_file("a.jsonl", &plain(&swapped), "").ok().stdout;
    assert!(text.contains("logit difference") && !text.contains('['), "{text}");
}

#[test]
fn the_list_names_every_set() {
    let text = Interp::new().words("pairs").run().ok().stdout;
    let listed: Vec<&str> =
        text.lines().filter(|l| !l.starts_with(' ')).map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(listed, SHIPPED.map(|(name, _)| name));
    let json = Interp::new().words("pairs --format json").run().ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (entry, (name, _)) in json.as_array().unwrap().iter().zip(SHIPPED) {
        assert_eq!(entry["set"], name);
        assert_eq!(entry["templates"].as_array().unwrap().len(), shipped(name).templates().len());
    }
}

#[test]
fn the_command_says_how_the_model_answers() {
    let outcome = Interp::new().words("pairs tiny-agreement --num-pairs 30 --seed 4").run().ok();
    assert!(outcome.stdout.contains("of 30 answered rightly"), "{}", outcome.stdout);
    let drawn = draw(&shipped("tiny-agreement"), None, None, 4, 30);
    let pairs = outcome.record()["pairs"].clone();
    for (d, pair) in drawn.iter().zip(pairs.as_array().unwrap()) {
        assert_eq!((&pair["clean"], &pair["corrupt"]), (&d.clean.as_str().into(), &d.corrupt.as_str().into()));
    }
    // Answers may be lists.
    let line = |answer: &str| {
        let prompt = |giver: &str| format!("When Mary and John went to the shop, {giver} gave a drink to");
        let (clean, corrupt) = (prompt("John"), prompt("Mary"));
        format!(r#"{{"clean": "{clean}", "corrupt": "{corrupt}", "answer": {answer}, "wrong": [" John"]}}"#)
    };
    let text = [line("\" Mary\""), line("[\" Mary\"]"), line("[\" Mary\", \" Anna\"]")].join("\n");
    let outcome = of_file("pairs.jsonl", &text, "--format json").ok();
    let frame: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let rows = frame["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["prob"], rows[1]["prob"]);
    let of = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    assert!(of(2, "prob") > of(0, "prob"), "two answers are likelier than one of them");
    assert!(of(2, "logit_diff") < of(0, "logit_diff"), "the mean of two logits is below the larger");
    assert_eq!(rows[2]["answer"], " Mary| Anna");
}

#[test]
fn only_pairs_that_are_answered_rightly() {
    // Names that are the wrong way round: the model gets about none of them right.
    let set = interp::pairset::SHIPPED.iter().find(|(name, _)| *name == "tiny-ioi").unwrap().1;
    let turned = set.replace("right = \" {IO}\"", "right = \" {S}\"").replace("wrong = \" {S}\"", "wrong = \" {IO}\"");
    of_file("turned.toml", &turned, "--num-pairs 5 --right-only").refused(2, "leave out --right-only");
    let noun = set.replace("right = \" {IO}\"", "right = \" {C}\"").replace("wrong = \" {S}\"", "wrong = \" {D}\"");
    let outcome = of_file("noun.toml", &noun, "--num-pairs 12 --right-only").ok();
    assert!(outcome.stdout.starts_with("12 of 12 answered rightly"), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("left out") && outcome.stderr.contains("kept 12"), "{}", outcome.stderr);
    // Whatever uses them says how many were left out.
    let left_out = outcome.record()["left_out"].as_u64().unwrap();
    assert!(left_out > 0);
    for command in ["patch --sweep attn_out_all_pos --layer 5 --pairs", "ablate --what layers --layer 5 --pairs"] {
        let run = command_of_file(command, "noun.toml", &noun, "--num-pairs 12 --right-only").ok().record();
        assert_eq!((&run["left_out"], run["pairs"].as_array().unwrap().len()), (&left_out.into(), 12), "{command}");
    }
}
