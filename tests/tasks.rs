//! Probing tasks: what is asked, where it is read, and that nothing leaks.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use interp::embedded;
use interp::labelled::{Labelled, Labels};
use interp::task::{SHIPPED, Task};
use interp::text::{Bos, Encoding};
use interp::tokens::Tokens;
use interp::{LogitsAt, Plan};

const ENCODING: Encoding = Encoding { bos: Bos::Auto, allow_special: false };

fn rows(name: &str, count: u64, seed: u64) -> (Tokens, Labelled) {
    drawn(name, count, seed, &embedded::tokenizer().unwrap())
}

fn drawn(name: &str, count: u64, seed: u64, tokenizer: &interp::Tokenizer) -> (Tokens, Labelled) {
    let task = Task::shipped(name).unwrap().unwrap();
    let examples = task.examples(count, seed, tokenizer, ENCODING).unwrap();
    (examples.tokens, Labelled::new(task.kind, &examples.rows).unwrap())
}

/// Tasks for the embedded model.
fn ours() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name).filter(|name| name.starts_with("tiny-"))
}

fn shares(labels: &Labels) -> BTreeMap<String, f64> {
    let Labels::Classes { names, of } = labels else { panic!("values") };
    let share = |i: usize| of.iter().filter(|own| **own == i).count() as f64 / of.len() as f64;
    names.iter().enumerate().map(|(i, name)| (name.clone(), share(i))).collect()
}

/// Tasks for GPT-2 want its tokenizer, which is not part of the project: INTERP_GPT2_TOKENIZER names its folder.
#[test]
fn every_shipped_task_makes_rows() {
    ours().for_each(|name| check(name, &embedded::tokenizer().unwrap()));
    match std::env::var_os("INTERP_GPT2_TOKENIZER") {
        Some(dir) => {
            let tokenizer = interp::Tokenizer::load(Path::new(&dir)).unwrap();
            SHIPPED.iter().filter(|(name, _)| !name.starts_with("tiny-")).for_each(|(name, _)| check(name, &tokenizer));
        }
        None => println!("INTERP_GPT2_TOKENIZER is not set: tasks for GPT-2 are not checked"),
    }
}

fn check(name: &str, tokenizer: &interp::Tokenizer) {
    let (tokens, labelled) = drawn(name, 300, 1, tokenizer);
    assert!(labelled.labels.len() >= 300 && tokens.len() == 300, "{name}");
    assert_eq!((tokens.clone(), labelled.clone()), drawn(name, 300, 1, tokenizer), "{name}");
    assert_ne!(labelled, drawn(name, 300, 2, tokenizer).1, "{name}");
    assert!(labelled.group_names.len() >= 4, "{name} has {} groups only", labelled.group_names.len());
    for (prompt, pos) in labelled.prompt.iter().zip(&labelled.pos) {
        assert!((*pos as usize) < tokens.row(*prompt as usize).len() && *pos > 0, "{name}");
    }
    // The same text must not be learned and tested.
    let mut group_of = BTreeMap::new();
    for (prompt, group) in labelled.prompt.iter().zip(&labelled.groups) {
        let text = tokens.row(*prompt as usize).to_vec();
        assert_eq!(group_of.entry(text).or_insert(group), &group, "{name}: one text in two groups");
    }
    // Where answers are given, they say something else than the wrong ones.
    let examples = Task::shipped(name).unwrap().unwrap().examples(100, 1, tokenizer, ENCODING).unwrap();
    for target in examples.targets.iter().flatten() {
        assert!(
            target.answers().len() == 1 && target.wrong().len() == 1 && target.answers() != target.wrong(),
            "{name}"
        );
    }
}

/// What comes next follows from the label, and the embedded model says so.
#[test]
fn tasks_with_answers_are_answered() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    for (name, least) in
        [("tiny-number", 0.99), ("tiny-sentiment", 0.95), ("tiny-giver", 0.99), ("tiny-language", 0.99)]
    {
        let task = Task::shipped(name).unwrap().unwrap();
        let examples = task.examples(200, 3, &tokenizer, ENCODING).unwrap();
        let trace = Plan::new().logits(LogitsAt::Last).run(&model, &examples.tokens).unwrap();
        let logits = trace.logits().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let rows = logits.chunks(model.config().vocab_size).zip(examples.targets.as_ref().unwrap());
        let right = rows.filter(|(logits, target)| target.value(logits).unwrap() > 0.0).count();
        assert!(right as f64 >= least * 200.0, "{name}: {right} of 200");
    }
}

#[test]
fn labels_are_balanced_where_they_should_be() {
    for (name, wanted, most) in [("tiny-number", 2, 0.52), ("tiny-sentiment", 2, 0.52), ("tiny-giver", 10, 0.2)] {
        let shares = shares(&rows(name, 520, 3).1.labels);
        assert_eq!(shares.len(), wanted, "{name}");
        assert!(shares.values().all(|share| *share < most), "{name}: {shares:?}");
    }
}

/// What is read is where the task says, and says what the label is.
#[test]
fn rows_are_where_the_task_says() {
    let (tokens, labelled) = rows("tiny-part-of-speech", 40, 5);
    let Labels::Classes { names, of } = &labelled.labels else { panic!("values") };
    let (_, next) = rows("tiny-next", 40, 5);
    let Labels::Classes { names: next_names, of: next_of } = &next.labels else { panic!("values") };
    let own: BTreeMap<_, _> =
        labelled.prompt.iter().zip(&labelled.pos).zip(of).map(|(at, label)| (at, &names[*label])).collect();
    for (i, (prompt, pos)) in next.prompt.iter().zip(&next.pos).enumerate() {
        assert_eq!(own[&(prompt, &(pos + 1))], &next_names[next_of[i]], "the class of the next token");
    }
    let word = |prompt: u32, pos: u32| tokens.text(prompt as usize, pos as usize).trim().to_string();
    let found: BTreeSet<_> = labelled
        .prompt
        .iter()
        .zip(&labelled.pos)
        .zip(of)
        .map(|((p, t), l)| (word(*p, *t), names[*l].clone()))
        .collect();
    for (token, class) in [("gave", "verb"), ("the", "article"), ("near", "preposition")] {
        assert!(found.contains(&(token.to_string(), class.to_string())), "{token}");
    }
    let (_, positions) = rows("tiny-position", 40, 5);
    let Labels::Values(values) = &positions.labels else { panic!("classes") };
    assert!(values.iter().zip(&positions.pos).all(|(value, pos)| *value == f64::from(*pos)));
}

#[test]
fn a_name_says_where_to_read() {
    let text = r#"
about = "x"
suits = "tiny"
label = "{n.b}"
at = "{n.a}"
templates = ["The {n.a} near the {m.a} is", "{n.a} {m.a}"]
[class.noun]
fields = ["a", "b"]
rows = [["key", "one"], ["boats", "many"]]
[slot]
n = "noun"
m = "noun"
"#;
    let task = Task::parse(text, Path::new("x.toml")).unwrap();
    let tokenizer = embedded::tokenizer().unwrap();
    let examples = task.examples(20, 0, &tokenizer, ENCODING).unwrap();
    let (tokens, labelled) = (examples.tokens, Labelled::new(task.kind, &examples.rows).unwrap());
    assert_eq!(examples.targets, None);
    let Labels::Classes { names, of } = &labelled.labels else { panic!("values") };
    for (i, (prompt, pos)) in labelled.prompt.iter().zip(&labelled.pos).enumerate() {
        // "boats" at the start of a text is several tokens, of which the last one is read.
        let upto = tokenizer.decode(&tokens.row(*prompt as usize)[1..=*pos as usize]);
        let wanted = if names[of[i]] == "one" { "key" } else { "boats" };
        assert!(upto.ends_with(wanted), "{upto}");
    }
    for (from, to, wanted) in [
        (r#"at = "{n.a}""#, r#"at = "{k}""#, "there is no {k}, where the task reads"),
        (r#"at = "{n.a}""#, r#"at = "middle""#, "there are first, last, all and {name}"),
        (r#"label = "{n.b}""#, r#"label = "token""#, "labels `token` and `next` go by [rule]"),
        (r#"label = "{n.b}""#, r#"label = "position""#, "label `position` is for at = \"all\""),
        (r#"label = "{n.b}""#, r#"label = "{n}""#, "`n` needs a field: a, b"),
        ("templates = [", "templates = [] #", "a task needs templates"),
        ("templates = [", "answer = \" is\"\ntemplates = [", "`answer` and `wrong` belong together"),
        ("m = \"noun\"", "m = \"noun\"\nk = \"noun\"", "its class has too few rows"),
        (
            "[slot]",
            "[rule]\nx = [\"a\"]\ny = [\"a\"]\n[slot]",
            "labels `token` and `next` go by [rule], and others do not",
        ),
    ] {
        let refused = Task::parse(&text.replacen(from, to, 1), Path::new("x.toml")).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}
