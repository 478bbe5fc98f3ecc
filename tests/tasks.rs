//! Probing tasks: what is asked, where it is read, and that nothing leaks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use interp::embedded;
use interp::labelled::{Labelled, Labels};
use interp::task::{SHIPPED, Task};
use interp::text::{Bos, Encoding};
use interp::tokens::Tokens;

const ENCODING: Encoding = Encoding { bos: Bos::Auto, allow_special: false };

fn rows(name: &str, count: u64, seed: u64) -> (Tokens, Labelled) {
    Task::shipped(name).unwrap().unwrap().rows(count, seed, &embedded::tokenizer().unwrap(), ENCODING).unwrap()
}

fn shares(labels: &Labels) -> BTreeMap<String, f64> {
    let Labels::Classes { names, of } = labels else { panic!("values") };
    let share = |i: usize| of.iter().filter(|own| **own == i).count() as f64 / of.len() as f64;
    names.iter().enumerate().map(|(i, name)| (name.clone(), share(i))).collect()
}

#[test]
fn every_shipped_task_makes_rows() {
    for (name, _) in SHIPPED {
        let (tokens, labelled) = rows(name, 300, 1);
        assert!(labelled.labels.len() >= 300 && tokens.len() == 300, "{name}");
        assert_eq!((tokens.clone(), labelled.clone()), rows(name, 300, 1), "{name}");
        assert_ne!(labelled, rows(name, 300, 2).1, "{name}");
        let groups = labelled.groups.iter().collect::<BTreeSet<_>>().len();
        assert!(groups >= 4, "{name} has {groups} groups only");
        for (prompt, pos) in labelled.prompt.iter().zip(&labelled.pos) {
            assert!((*pos as usize) < tokens.row(*prompt as usize).len() && *pos > 0, "{name}");
        }
        // The same text must not be learned and tested.
        let mut group_of = BTreeMap::new();
        for (prompt, group) in labelled.prompt.iter().zip(&labelled.groups) {
            let text = tokens.row(*prompt as usize).to_vec();
            assert_eq!(group_of.entry(text).or_insert(group), &group, "{name}: one text in two groups");
        }
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
    let (tokens, labelled) = task.rows(20, 0, &tokenizer, ENCODING).unwrap();
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
