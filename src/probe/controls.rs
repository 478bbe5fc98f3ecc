//! What a probe can learn that is not in the model: control tasks and shuffled labels.

use std::collections::BTreeMap;

use crate::labelled::{Labelled, Labels};
use crate::random::{Rng, SliceRandom, stream};

/// The control task of Hewitt & Liang (2019, arXiv:1909.03368): each control type, usually a word, has one label of its own, drawn
/// from those of the rows. A probe that does well here remembers types; selectivity is what it does better on the real labels.
///
/// None where there is one type only.
pub fn control_task(rows: &Labelled, seed: u64) -> Option<Labels> {
    let mut rng = stream(seed, "control task", 0);
    let mut of_type: BTreeMap<u32, usize> = BTreeMap::new();
    let draw: Vec<usize> = rows
        .controls
        .iter()
        .map(|kind| *of_type.entry(*kind).or_insert_with(|| rng.random_range(0..rows.labels.len())))
        .collect();
    (of_type.len() > 1).then(|| rows.labels.picked(&draw))
}

/// The same labels on other rows: what is learned from them holds nowhere else.
pub fn shuffled(labels: &Labels, seed: u64) -> Labels {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.shuffle(&mut stream(seed, "shuffled labels", 0));
    labels.picked(&order)
}

/// How much better a probe does on the real labels than on those of a control task.
pub fn selectivity(task: f64, control: f64) -> f64 {
    task - control
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labelled::{Kind, Row};

    fn rows(words: &[&str], labels: &[&str]) -> Labelled {
        let row = |(i, (word, label)): (usize, (&&str, &&str))| Row {
            prompt: i as u32,
            pos: 0,
            label: label.to_string(),
            group: i.to_string(),
            control: word.to_string(),
        };
        Labelled::new(Kind::Classes, &words.iter().zip(labels).enumerate().map(row).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_type_has_one_label_in_the_control_task() {
        let words: Vec<String> = (0..4000).map(|i| (i % 40).to_string()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let labels: Vec<&str> = (0..4000).map(|i| if i % 4 == 0 { "rare" } else { "usual" }).collect();
        let all = rows(&words, &labels);
        let Some(Labels::Classes { of, .. }) = control_task(&all, 3) else { panic!("no control task") };
        assert!((0..4000).all(|i| of[i] == of[i % 40]), "one label per word");
        assert!(of[..40].contains(&0) && of[..40].contains(&1));
        // Drawn from the labels as they are: a quarter of all types is rare.
        let rare: usize = (0..50)
            .map(|seed| match control_task(&all, seed) {
                Some(Labels::Classes { of, .. }) => of[..40].iter().filter(|label| **label == 0).count(),
                _ => 0,
            })
            .sum();
        assert!((rare as f64 / 2000.0 - 0.25).abs() < 0.04, "{rare}");
        assert_eq!(control_task(&rows(&["a", "a"], &["x", "y"]), 0), None);
        assert_eq!(selectivity(0.9, 0.6), 0.9 - 0.6);
    }

    #[test]
    fn shuffling_keeps_how_often_each_label_is() {
        let all = rows(&["a"; 9], &["x", "x", "x", "y", "y", "z", "x", "x", "x"]);
        let (Labels::Classes { of, .. }, Labels::Classes { of: mixed, .. }) = (&all.labels, shuffled(&all.labels, 1))
        else {
            panic!("values")
        };
        let (mut a, mut b) = (of.clone(), mixed.clone());
        a.sort_unstable();
        b.sort_unstable();
        assert!(a == b && *of != mixed);
    }
}
