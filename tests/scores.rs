//! Scores against scikit-learn's and SciPy's, on 97 random and degenerate cases (see tests/fixtures/make_scores.py).

use std::collections::{BTreeMap, BTreeSet};

use interp::Error;
use interp::scores::{self, Bin, Confusion};
use serde_json::Value;

/// Kind, name and score of a case, what scikit-learn answers, and what is right here.
type Difference = (&'static str, &'static str, &'static str, Option<f64>, Option<f64>);

/// What scikit-learn refuses, makes up or gets wrong. Everywhere else the numbers are the same, and there
/// is none here where it raises an error or answers NaN.
const DIFFERENT: [Difference; 11] = [
    // It refuses to answer without rows; the coefficient is 0 wherever it is not defined.
    ("labels", "no rows", "mcc", None, Some(0.0)),
    // Nothing agrees with nothing, for it.
    ("labels", "no rows", "adjusted_rand", Some(1.0), None),
    // No row is positive: it warns and says that recall is 1 everywhere.
    ("ranking", "nothing positive", "average_precision", Some(0.0), None),
    // One column of probabilities is that of the positive class, for it; it refuses to have one class.
    ("rows", "one class of one", "log_loss", None, Some(f64::EPSILON)),
    ("rows", "one class of one", "brier", Some(2.0), Some(0.0)),
    // It refuses scores that do not add up to one, though only their order counts.
    ("rows", "not adding up to one", "roc_auc_ovr", None, Some(2.0 / 3.0)),
    // There is no variance to explain: 1 where the constant is met, 0 where it is not, unless its mean is rounded.
    ("numbers", "constant truth, met", "r2", Some(1.0), None),
    ("numbers", "constant truth, missed", "r2", Some(0.0), None),
    ("numbers", "constant truth", "r2", Some(-8.653828097558046e31), None),
    // Squares overflow, or vanish with the variance.
    ("numbers", "huge", "r2", None, Some(1.0 - 4.0 / 13.0)),
    ("numbers", "tiny", "r2", Some(1.0), Some(1.0 - 4.0 / 13.0)),
];

/// Cases for which scikit-learn or SciPy raises an error, at one score at least; the fixture has the messages.
const REFUSED: [(&str, &str); 10] = [
    ("labels", "no rows"),
    ("numbers", "no rows"),
    ("numbers", "one row"),
    ("probability", "less than 0"),
    ("probability", "more than 1"),
    ("probability", "no rows"),
    ("ranking", "no rows"),
    ("rows", "more than 1"),
    ("rows", "not adding up to one"),
    ("rows", "one class of one"),
];

/// Cases at which they warn. Correlations of a constant are then NaN, and so is the area under a curve of one class.
const WARNED: [(&str, &str); 23] = [
    ("labels", "never right"),
    ("labels", "one class"),
    ("labels", "one class never occurs"),
    ("labels", "one class of one"),
    ("labels", "one class, but others predicted"),
    ("labels", "one row"),
    ("labels", "one wrong row"),
    ("labels", "random 7"),
    ("numbers", "constant prediction"),
    ("numbers", "constant truth"),
    ("numbers", "constant truth, met"),
    ("numbers", "constant truth, missed"),
    ("numbers", "huge"),
    ("numbers", "one row"),
    ("numbers", "prediction of the mean"),
    ("ranking", "all positive"),
    ("ranking", "nothing positive"),
    ("ranking", "one positive row"),
    ("rows", "not adding up to one"),
    ("rows", "one class never occurs"),
    ("rows", "one class of one"),
    ("rows", "one class only"),
    ("rows", "one row"),
];

struct Case(Value);

impl Case {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap()
    }

    fn floats(&self, key: &str) -> Vec<f64> {
        self.0[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    fn rows(&self, key: &str) -> Vec<Vec<f64>> {
        let row = |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        self.0[key].as_array().unwrap().iter().map(row).collect()
    }

    fn labels(&self, key: &str) -> Vec<usize> {
        self.0[key].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
    }

    fn flags(&self, key: &str) -> Vec<bool> {
        self.labels(key).into_iter().map(|x| x == 1).collect()
    }

    fn size(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap() as usize
    }

    /// Holds a score against the fixture's.
    fn check(&self, question: &str, found: Option<f64>) {
        let (kind, name, theirs) = (self.text("kind"), self.text("name"), self.0["want"][question].as_f64());
        let known = DIFFERENT.iter().find(|(k, n, q, ..)| (*k, *n, *q) == (kind, name, question));
        let wanted = known.map_or(theirs, |(.., there, here)| {
            assert_eq!(*there, theirs, "{kind}, {name}: {question}");
            *here
        });
        assert!(close(found, wanted), "{kind}, {name}: {question} is {found:?} instead of {wanted:?}");
    }

    /// Holds scores of each class or bin against the fixture's, unless there are none.
    fn check_each(&self, question: &str, found: &[Option<f64>]) {
        let Some(wanted) = self.0["want"][question].as_array() else {
            assert!(self.0["said"][question].as_str().unwrap().starts_with("raises"));
            assert!(found.iter().all(|x| x.is_none_or(|x| x == 0.0)));
            return;
        };
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(wanted) {
            let place = format!("{}, {}: {question}", self.text("kind"), self.text("name"));
            assert!(close(*found, wanted.as_f64()), "{place} is {found:?} instead of {wanted:?}");
        }
    }
}

fn close(found: Option<f64>, wanted: Option<f64>) -> bool {
    match (found, wanted) {
        (Some(found), Some(wanted)) => (found - wanted).abs() <= 1e-12 * wanted.abs() + 1e-16,
        (found, wanted) => found == wanted,
    }
}

fn cases(kind: &str) -> Vec<Case> {
    let all: Vec<Value> = serde_json::from_str(include_str!("fixtures/scores.json")).unwrap();
    assert_eq!(all.len(), 97);
    all.into_iter().map(Case).filter(|case| case.text("kind") == kind).collect()
}

#[test]
fn scikit_learn_says_which_cases_are_degenerate() {
    let mut said: BTreeMap<&str, BTreeSet<(String, String)>> = BTreeMap::new();
    for case in ["labels", "numbers", "probability", "ranking", "rows"].into_iter().flat_map(cases) {
        for what in case.0["said"].as_object().unwrap().values().map(|what| what.as_str().unwrap()) {
            let how = if what.starts_with("raises") { "raises" } else { "warns" };
            said.entry(how).or_default().insert((case.text("kind").to_string(), case.text("name").to_string()));
        }
    }
    let set = |list: &[(&str, &str)]| list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    assert_eq!(said, BTreeMap::from([("raises", set(&REFUSED)), ("warns", set(&WARNED))]));
}

#[test]
fn classes_are_scored_as_in_scikit_learn() {
    for case in cases("labels") {
        let classes = case.size("classes");
        let confusion = Confusion::of(&case.labels("truth"), &case.labels("predicted"), classes).unwrap();
        let each = |score: &dyn Fn(usize) -> Option<f64>| (0..classes).map(score).collect::<Vec<_>>();
        let counts: Vec<Option<f64>> = confusion.counts.iter().flatten().map(|&n| Some(n as f64)).collect();
        case.check_each("counts", &counts);
        case.check_each("precision", &each(&|class| confusion.precision(class)));
        case.check_each("recall", &each(&|class| confusion.recall(class)));
        case.check_each("f1", &each(&|class| confusion.f1(class)));
        case.check("accuracy", confusion.accuracy());
        case.check("balanced_accuracy", confusion.balanced_accuracy());
        case.check("macro_f1", confusion.macro_f1());
        case.check("mcc", Some(confusion.mcc()));
        case.check("adjusted_rand", scores::adjusted_rand(&case.labels("truth"), &case.labels("predicted")));
        assert_eq!(confusion.recall(classes), None);
    }
}

#[test]
fn precision_is_of_predictions_and_recall_of_truths() {
    let confusion = Confusion::of(&[0, 0, 0, 1], &[0, 1, 1, 1], 2).unwrap();
    assert_eq!(confusion.counts, [[1, 2], [0, 1]]);
    assert_eq!((confusion.precision(0), confusion.recall(0)), (Some(1.0), Some(1.0 / 3.0)));
    assert_eq!((confusion.precision(1), confusion.recall(1)), (Some(1.0 / 3.0), Some(1.0)));
}

#[test]
fn rankings_are_scored_as_in_scikit_learn() {
    for case in cases("ranking") {
        let (scores, positive) = (case.floats("scores"), case.flags("positive"));
        case.check("roc_auc", scores::roc_auc(&scores, &positive));
        case.check("average_precision", scores::average_precision(&scores, &positive));
        // The area is the share of pairs that are in order.
        let pairs = || {
            positive
                .iter()
                .enumerate()
                .filter(|p| *p.1)
                .flat_map(|p| positive.iter().enumerate().filter(|n| !*n.1).map(move |n| (p.0, n.0)))
        };
        let half = |(p, n): (usize, usize)| match scores[p].partial_cmp(&scores[n]).unwrap() {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Greater => 1.0,
        };
        let counted = (pairs().count() > 0).then(|| pairs().map(half).sum::<f64>() / pairs().count() as f64);
        assert_eq!(scores::roc_auc(&scores, &positive), counted);
    }
    // scikit-learn refuses infinite scores, such as the logarithm of 0.
    let scores = [f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY, f64::INFINITY];
    assert_eq!(scores::roc_auc(&scores, &[false, true, true, true]), Some(2.5 / 3.0));
    assert_eq!(scores::average_precision(&scores, &[false, true, true, true]), Some((1.0 + 1.0 + 0.75) / 3.0));
}

#[test]
fn probabilities_are_scored_as_in_scikit_learn() {
    for case in cases("probability") {
        let (probability, positive) = (case.floats("probability"), case.flags("positive"));
        let bins = case.size("bins");
        case.check("brier", scores::brier(&probability, &positive));
        let two: Vec<[f64; 2]> = probability.iter().map(|p| [1.0 - p, *p]).collect();
        let truth = case.labels("positive");
        case.check("log_loss", scores::log_loss(&two, &truth));
        let twice = scores::brier_multiclass(&two, &truth).map(|twice| twice / 2.0);
        assert!(close(twice, scores::brier(&probability, &positive)));

        let Some(found) = scores::calibration(&probability, &positive, bins) else {
            assert!(probability.iter().any(|p| !(0.0..=1.0).contains(p)));
            assert!(case.0["said"]["share_positive"].as_str().unwrap().contains("values outside [0, 1]"));
            continue;
        };
        case.check("calibration_error", scores::calibration_error(&found));
        case.check_each("counts", &found.iter().map(|bin| Some(bin.count as f64)).collect::<Vec<_>>());
        // scikit-learn leaves empty bins out, and refuses to have no rows.
        let filled: Vec<&Bin> = found.iter().filter(|bin| bin.count > 0).collect();
        case.check_each("share_positive", &filled.iter().map(|bin| bin.share_positive).collect::<Vec<_>>());
        case.check_each("mean_probability", &filled.iter().map(|bin| bin.mean_probability).collect::<Vec<_>>());
        let empty = |bin: &Bin| bin.mean_probability.is_none() && bin.share_positive.is_none();
        assert!(found.iter().all(|bin| empty(bin) == (bin.count == 0)));
        assert!(found.len() == bins && found[0].low == 0.0 && found[bins - 1].high == 1.0);
        assert!(found.windows(2).all(|two| two[0].high == two[1].low));
    }
}

#[test]
fn bins_have_the_edges_of_numpy() {
    // 3·0.1 is above 0.3, and is what numpy's linspace has for an edge.
    let bins = scores::calibration(&[0.1 + 0.2, 0.3000000000000001], &[true, false], 10).unwrap();
    assert_eq!((bins[2].count, bins[3].count), (1, 1));
    assert_eq!((bins[2].high, bins[2].share_positive), (0.1 + 0.2, Some(1.0)));
}

#[test]
fn rows_of_probabilities_are_scored_as_in_scikit_learn() {
    for case in cases("rows") {
        let (rows, truth) = (case.rows("probabilities"), case.labels("truth"));
        case.check("log_loss", scores::log_loss(&rows, &truth));
        case.check("brier", scores::brier_multiclass(&rows, &truth));
        case.check("roc_auc_ovr", scores::roc_auc_ovr(&rows, &truth, case.size("classes")));
    }
}

#[test]
fn numbers_are_scored_as_in_scikit_learn_and_scipy() {
    for case in cases("numbers") {
        let (truth, predicted) = (case.floats("truth"), case.floats("predicted"));
        case.check("r2", scores::r2(&truth, &predicted));
        case.check("mean_squared_error", scores::mean_squared_error(&truth, &predicted));
        case.check("mean_absolute_error", scores::mean_absolute_error(&truth, &predicted));
        case.check("pearson", scores::pearson(&truth, &predicted));
        case.check("spearman", scores::spearman(&truth, &predicted));
    }
    let infinite = [0.0, f64::INFINITY, 2.0];
    assert_eq!(scores::spearman(&infinite, &[1.0, 3.0, 2.0]), Some(1.0));
    assert_eq!(scores::pearson(&infinite, &[1.0, 3.0, 2.0]), None);
}

#[test]
fn rounding_leaves_correlations_as_they_are() {
    // Unclamped it would be 1 + 2⁻⁵².
    assert_eq!(scores::pearson(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[0.0, 0.9, 1.8, 2.7, 3.6, 4.5]), Some(1.0));
    // Whole numbers stay exact far from 0, but their sum does not.
    let noise = |step: usize, far: f64| (0..100_000).map(|i| far + (i * step % 11 % 7) as f64).collect::<Vec<_>>();
    let near = scores::pearson(&noise(1, 0.0), &noise(3, 0.0));
    assert!(near.is_some_and(|r| r.abs() > 0.01));
    assert!(close(scores::pearson(&noise(1, 1e14), &noise(3, 1e14)), near));
    assert!(close(scores::r2(&noise(1, 1e14), &noise(3, 1e14)), scores::r2(&noise(1, 0.0), &noise(3, 0.0))));
}

#[test]
fn what_is_not_a_number_has_no_score() {
    let (values, yes) = ([0.25, f64::NAN, 0.5], [true, false, true]);
    let rows = [[0.5, 0.5], [f64::NAN, 0.5], [0.25, 0.75]];
    assert_eq!(scores::roc_auc(&values, &yes), None);
    assert_eq!(scores::average_precision(&values, &yes), None);
    assert_eq!(scores::roc_auc_ovr(&rows, &[0, 1, 1], 2), None);
    assert_eq!(scores::log_loss(&rows, &[0, 1, 1]), None);
    assert_eq!(scores::brier_multiclass(&rows, &[0, 1, 1]), None);
    assert_eq!(scores::brier(&values, &yes), None);
    assert_eq!(scores::calibration(&values, &yes, 4), None);
    for score in
        [scores::r2, scores::mean_squared_error, scores::mean_absolute_error, scores::pearson, scores::spearman]
    {
        assert_eq!(score(&values, &[1.0, 2.0, 3.0]), None);
        assert_eq!(score(&[1.0, 2.0, 3.0], &values), None);
    }
}

#[test]
fn what_does_not_belong_together_has_no_score() {
    let bug = |truth: &[usize], predicted: &[usize], classes| match Confusion::of(truth, predicted, classes) {
        Err(Error::Bug(what)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(bug(&[0, 1], &[0], 2), "2 true labels beside 1 predicted");
    assert_eq!(bug(&[0, 1], &[0, 2], 2), "a label is 2 of 2 classes");
    assert_eq!(bug(&[3, 1], &[0, 2], 2), "a label is 3 of 2 classes");
    assert_eq!(bug(&[0], &[0], 0), "a label is 0 of 0 classes");

    let (values, yes) = ([0.25, 0.5, 0.75], [true, false]);
    assert_eq!(scores::roc_auc(&values, &yes), None);
    assert_eq!(scores::average_precision(&values, &yes), None);
    assert_eq!(scores::brier(&values, &yes), None);
    assert_eq!(scores::calibration(&values, &yes, 4), None);
    assert_eq!(scores::calibration(&values, &[true; 3], 0), None);
    assert_eq!(scores::calibration(&[], &[], 0), None);
    for score in
        [scores::r2, scores::mean_squared_error, scores::mean_absolute_error, scores::pearson, scores::spearman]
    {
        assert_eq!(score(&values, &values[..2]), None);
        assert_eq!(score(&values[..2], &values), None);
    }
    // Rows too few, too short, of several widths, and of a class that they do not have.
    let (even, uneven) = (vec![vec![0.5, 0.5]; 2], vec![vec![0.5, 0.5], vec![1.0]]);
    for (rows, truth, classes) in
        [(&even, vec![0], 2), (&even, vec![0, 1], 3), (&uneven, vec![1, 0], 2), (&even, vec![0, 2], 2)]
    {
        assert_eq!(scores::roc_auc_ovr(rows, &truth, classes), None);
        if classes == 2 {
            assert_eq!(scores::log_loss(rows, &truth), None);
            assert_eq!(scores::brier_multiclass(rows, &truth), None);
        }
    }
    let ragged = Confusion { counts: vec![vec![1], vec![], vec![0, 2, 5]] };
    assert_eq!((ragged.recall(1), ragged.precision(2), ragged.recall(2)), (None, Some(1.0), Some(5.0 / 7.0)));
}
