//! The card of the embedded model, measured again: what models/tiny/README.md says is what the model does.

mod common;

use std::collections::BTreeMap;

use interp::card::card;
use interp::embedded;
use polars::prelude::*;

/// Behaviour, metric, and the least that the model must reach.
const PROMISED: [(&str, &str, f64); 7] = [
    ("ioi", "accuracy", 0.95),
    ("capital", "accuracy", 0.95),
    ("language", "accuracy", 0.95),
    ("agreement", "accuracy", 0.97),
    ("pronoun", "accuracy", 0.97),
    ("induction_head", "score", 0.6),
    ("previous_token_head", "score", 0.6),
];

fn measured() -> DataFrame {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    card(&model, &tokenizer, &embedded::language().unwrap(), 500, 0).unwrap()
}

/// The table as the card prints it.
fn table(card: &DataFrame) -> String {
    let text = |name: &str| card.column(name).unwrap().str().unwrap().clone();
    let (behaviour, metric, place) = (text("behaviour"), text("metric"), text("where"));
    let (value, n) = (card.column("value").unwrap().f64().unwrap(), card.column("n").unwrap().u32().unwrap());
    let mut lines =
        vec!["| behaviour | metric | value | over | head |".to_string(), "|---|---|---|---|---|".to_string()];
    for i in 0..card.height() {
        let value = match metric.get(i).unwrap() {
            "accuracy" => format!("{:.1} %", 100.0 * value.get(i).unwrap()),
            _ => format!("{:.2}", value.get(i).unwrap()),
        };
        let cells = [behaviour.get(i).unwrap(), metric.get(i).unwrap(), &value, &n.get(i).unwrap().to_string()];
        lines.push(format!("| {} | {} |", cells.join(" | "), place.get(i).unwrap_or("")));
    }
    lines.join("\n")
}

#[test]
fn the_card_is_what_the_model_does() {
    let card = measured();
    let table = table(&card);
    let readme = include_str!("../models/tiny/README.md");
    assert!(readme.contains(&table), "models/tiny/README.md should have the table\n\n{table}\n");

    let keys = card.column("behaviour").unwrap().str().unwrap().iter();
    let metrics = card.column("metric").unwrap().str().unwrap().iter();
    let values = card.column("value").unwrap().f64().unwrap().iter();
    let found: BTreeMap<(&str, &str), f64> =
        keys.zip(metrics).zip(values).map(|((k, m), v)| ((k.unwrap(), m.unwrap()), v.unwrap())).collect();
    for (behaviour, metric, least) in PROMISED {
        let value = found[&(behaviour, metric)];
        assert!(value >= least, "{behaviour} {metric}: {value} < {least}");
    }
    let loss = |half: &str| found[&("repeats", half)];
    assert!(loss("loss_second_half") <= 0.5 * loss("loss_first_half"), "{found:?}");
    assert!(found[&("ioi", "logit_difference")] > 0.0);
}

#[test]
fn the_card_names_the_files_and_their_limit() {
    let readme = include_str!("../models/tiny/README.md");
    let hash = interp::weights::sha256_of(embedded::WEIGHTS);
    assert!(readme.contains(&hash), "the weights are {hash}");
    assert!(embedded::WEIGHTS.len() <= 6 << 20, "{} bytes", embedded::WEIGHTS.len());
}

#[test]
fn what_is_held_out_is_not_in_the_training_text() {
    use interp::language::Split;
    let language = embedded::language().unwrap();
    for family in language.families().iter().filter(|family| family.metric.is_some()) {
        let item = |split, i| language.item(family, split, &mut interp::random::stream(9, "overlap", i));
        let train: std::collections::BTreeSet<String> = (0..3000).map(|i| item(Split::Train, i).prompt).collect();
        let held = (0..200).map(|i| item(Split::Heldout, i).prompt);
        let seen: Vec<String> = held.filter(|prompt| train.contains(prompt)).collect();
        let templates = ["color", "group"].contains(&family.name.as_str());
        assert!(templates || seen.is_empty(), "{}: {seen:?}", family.name);
    }
}
