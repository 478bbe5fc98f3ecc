//! Splits that keep together what belongs together: rows of one group are never on both sides.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::random::{SliceRandom, stream};

/// Rows to learn from, and rows to be judged on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows of the one kind.
    pub train: Vec<usize>,
    /// Rows of the other; no group of theirs is among the first.
    pub test: Vec<usize>,
}

/// The rows of each group, groups in an order that `seed` draws.
fn shuffled(groups: &[u32], seed: u64, purpose: &str) -> Vec<Vec<usize>> {
    let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    groups.iter().enumerate().for_each(|(row, group)| rows.entry(*group).or_default().push(row));
    let mut all: Vec<Vec<usize>> = rows.into_values().collect();
    all.shuffle(&mut stream(seed, purpose, 0));
    all
}

/// Sets whole groups aside until about a share of the rows is there; at least one group stays on either side.
///
/// # Errors
/// [`Error::Request`] for fewer than two groups, or a share that is not between 0 and 1.
pub fn hold_out(groups: &[u32], share: f64, seed: u64) -> Result<Split> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::request(format!("a test share of {share} is not between 0 and 1")));
    }
    let all = shuffled(groups, seed, "groups held out");
    if all.len() < 2 {
        return Err(Error::request(format!(
            "{} groups cannot be divided: nothing would be tested that was not learned",
            all.len()
        )));
    }
    let wanted = share * groups.len() as f64;
    let (mut train, mut test) = (Vec::new(), Vec::new());
    let last = all.len() - 1;
    for (i, rows) in all.into_iter().enumerate() {
        // A group goes where it brings the share nearer to what is wanted; the last one cannot leave a side empty.
        let with = test.len() + rows.len();
        let nearer = (with as f64 - wanted).abs() < (test.len() as f64 - wanted).abs();
        let held = if i == last && train.is_empty() { false } else { nearer || (i == last && test.is_empty()) };
        if held { test.extend(rows) } else { train.extend(rows) }
    }
    train.sort_unstable();
    test.sort_unstable();
    Ok(Split { train, test })
}

/// `k` splits, such that every row is tested once: groups are dealt out, the largest first, to the fold that has the fewest
/// rows (as scikit-learn's `GroupKFold`), equal ones in an order that `seed` draws.
///
/// # Errors
/// [`Error::Request`] for fewer than two folds, or fewer groups than folds.
pub fn k_fold(groups: &[u32], k: usize, seed: u64) -> Result<Vec<Split>> {
    let mut all = shuffled(groups, seed, "groups of folds");
    if k < 2 || all.len() < k {
        return Err(Error::request(format!("{} groups do not make {k} folds", all.len())));
    }
    all.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
    let mut folds: Vec<Vec<usize>> = vec![Vec::new(); k];
    for rows in all {
        if let Some(smallest) = folds.iter_mut().min_by_key(|fold| fold.len()) {
            smallest.extend(rows);
        }
    }
    let split = |i: usize| {
        let mut test = folds[i].clone();
        let mut train: Vec<usize> =
            folds.iter().enumerate().filter(|(j, _)| *j != i).flat_map(|(_, f)| f.clone()).collect();
        test.sort_unstable();
        train.sort_unstable();
        Split { train, test }
    };
    Ok((0..k).map(split).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::random::Rng;

    fn groups(rows: usize, count: u32, seed: u64) -> Vec<u32> {
        let mut rng = stream(seed, "test", 0);
        (0..rows).map(|i| if i < count as usize { i as u32 } else { rng.random_range(0..count) }).collect()
    }

    fn apart(split: &Split, groups: &[u32]) {
        let of = |rows: &[usize]| rows.iter().map(|row| groups[*row]).collect::<BTreeSet<_>>();
        assert!(of(&split.train).is_disjoint(&of(&split.test)), "a group is on both sides");
        let mut all = [&split.train[..], &split.test].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..groups.len()) && !split.train.is_empty() && !split.test.is_empty());
    }

    #[test]
    fn no_group_is_on_both_sides() {
        for seed in 0..200 {
            let groups = groups(2 + seed as usize, 2 + seed as u32 % 40, seed);
            let split = hold_out(&groups, 0.3, seed).unwrap();
            apart(&split, &groups);
            let count = groups.iter().collect::<BTreeSet<_>>().len();
            let k = 2 + seed as usize % 5;
            match k_fold(&groups, k, seed) {
                Ok(folds) => {
                    folds.iter().for_each(|split| apart(split, &groups));
                    assert_eq!(folds.iter().map(|split| split.test.len()).sum::<usize>(), groups.len());
                }
                Err(e) => assert!(count < k, "{e}"),
            }
        }
    }

    #[test]
    fn the_share_is_about_right_and_the_seed_decides() {
        let groups = groups(1000, 100, 1);
        let test = |seed| hold_out(&groups, 0.25, seed).unwrap().test;
        assert!(test(1).len().abs_diff(250) < 15 && test(1) == test(1) && test(1) != test(2));
        let one = hold_out(&[7, 7, 7], 0.3, 0).unwrap_err().to_string();
        assert!(one.contains("1 groups cannot be divided"), "{one}");
        assert!(hold_out(&groups, 1.0, 0).is_err() && k_fold(&groups, 1, 0).is_err());
    }
}
