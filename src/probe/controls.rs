//! What a probe can learn that is not in the model: control tasks and shuffled labels.

use std::collections::{BTreeMap, BTreeSet};

use crate::labelled::{Labelled, Labels};
use crate::random::{SliceRandom, stream};

/// The control task of Hewitt & Liang (2019, arXiv:1909.03368): each control type, usually a word, has one label of its own, dealt
/// out at random so that types have each label as often as rows do. A probe that does well here remembers types; selectivity is
/// what it does better on the real labels.
///
/// None where there is one type only.
pub fn control_task(rows: &Labelled, seed: u64) -> Option<Labels> {
    let mut types: Vec<u32> = rows.controls.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    if types.len() < 2 {
        return None;
    }
    types.shuffle(&mut stream(seed, "control task", 0));
    // Rows in the order of their labels: every so many of them lends its label to a type.
    let mut order: Vec<usize> = (0..rows.labels.len()).collect();
    match &rows.labels {
        Labels::Classes { of, .. } => order.sort_by_key(|row| of[*row]),
        Labels::Values(values) => order.sort_by(|a, b| values[*a].total_cmp(&values[*b])),
    }
    let lender = |i: usize| order[(2 * i + 1) * order.len() / (2 * types.len())];
    let of_type: BTreeMap<u32, usize> = types.iter().enumerate().map(|(i, kind)| (*kind, lender(i))).collect();
    let drawn: Vec<usize> = rows.controls.iter().map(|kind| of_type[kind]).collect();
    Some(rows.labels.picked(&drawn))
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
            text: None,
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
        // As often as among the rows: a quarter of all types is rare, each type in its turn.
        let mut rare = [0; 40];
        for seed in 0..50 {
            let Some(Labels::Classes { of, .. }) = control_task(&all, seed) else { panic!("no control task") };
            assert_eq!(of[..40].iter().filter(|label| **label == 0).count(), 10);
            rare.iter_mut().zip(&of).for_each(|(rare, label)| *rare += u32::from(*label == 0));
        }
        assert!(rare.iter().all(|times| (3..30).contains(times)), "{rare:?}");
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
