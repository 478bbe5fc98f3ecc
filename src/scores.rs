//! How well predictions agree with the truth: scores of classes, rankings, probabilities and numbers.
//!
//! What is true and what is predicted belong together by their index. A score that is not defined is `None`, and so is
//! one of values that are not numbers, of probabilities outside 0 … 1, or of inputs whose lengths differ: no score is
//! made up. Formulas are those of scikit-learn 1.9 and SciPy 1.17; where they make up a number, the docstring says so.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// How often each class was predicted for each class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// Rows of a truth and a prediction, as `[truth][predicted]`, classes × classes.
    pub counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Of labels from 0 to `classes` - 1.
    ///
    /// # Errors
    /// [`Error::Bug`] where the lengths differ or a label is not below `classes`.
    pub fn of(truth: &[usize], predicted: &[usize], classes: usize) -> Result<Self> {
        if truth.len() != predicted.len() {
            return Err(Error::Bug(format!("{} true labels beside {} predicted", truth.len(), predicted.len())));
        }
        let mut counts = vec![vec![0; classes]; classes];
        for (&truth, &predicted) in truth.iter().zip(predicted) {
            match counts.get_mut(truth).and_then(|row| row.get_mut(predicted)) {
                Some(count) => *count += 1,
                None => return Err(Error::Bug(format!("a label is {} of {classes} classes", truth.max(predicted)))),
            }
        }
        Ok(Self { counts })
    }

    /// Share of rows that are right, 0 … 1. `None` without rows.
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.classes().map(|class| self.right(class)).sum(), self.rows())
    }

    /// Mean recall of the classes that occur, 0 … 1. `None` without rows.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        average(self.classes().filter_map(|class| self.recall(class)).map(Some))
    }

    /// Share of a class's predictions that are right, 0 … 1. `None` for a class that is never predicted.
    pub fn precision(&self, class: usize) -> Option<f64> {
        ratio(self.right(class), self.predicted(class))
    }

    /// Share of a class's rows that are found, 0 … 1. `None` for a class that never occurs.
    pub fn recall(&self, class: usize) -> Option<f64> {
        ratio(self.right(class), self.true_rows(class))
    }

    /// Harmonic mean of precision and recall, 0 … 1, and 0 where only one of them is defined. `None` for a class that
    /// neither occurs nor is predicted.
    pub fn f1(&self, class: usize) -> Option<f64> {
        ratio(2 * self.right(class), self.true_rows(class) + self.predicted(class))
    }

    /// Mean F1 of the classes that occur or are predicted, 0 … 1: scikit-learn's, as long as it is not given `labels`,
    /// of which those that are nowhere would count as 0. `None` without rows.
    pub fn macro_f1(&self) -> Option<f64> {
        average(self.classes().filter_map(|class| self.f1(class)).map(Some))
    }

    /// Matthews's correlation coefficient of any number of classes (Gorodkin 2004), -1 … 1. As in scikit-learn 0 where
    /// it is not defined: without rows, with one class only in truth or prediction.
    pub fn mcc(&self) -> f64 {
        let truth: Vec<i128> = self.classes().map(|class| i128::from(self.true_rows(class))).collect();
        let predicted: Vec<i128> = self.classes().map(|class| i128::from(self.predicted(class))).collect();
        let right: u64 = self.classes().map(|class| self.right(class)).sum();
        let rows = i128::from(self.rows());
        let product = |a: &[i128], b: &[i128]| a.iter().zip(b).map(|(a, b)| a * b).sum::<i128>();
        let together = rows * i128::from(right) - product(&truth, &predicted);
        let of_truth = rows * rows - product(&truth, &truth);
        let of_predicted = rows * rows - product(&predicted, &predicted);
        let scale = (of_truth as f64 * of_predicted as f64).sqrt();
        if scale == 0.0 { 0.0 } else { together as f64 / scale }
    }

    fn classes(&self) -> std::ops::Range<usize> {
        0..self.counts.len()
    }

    fn rows(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    fn right(&self, class: usize) -> u64 {
        self.counts.get(class).and_then(|row| row.get(class)).copied().unwrap_or(0)
    }

    fn true_rows(&self, class: usize) -> u64 {
        self.counts.get(class).map_or(0, |row| row.iter().sum())
    }

    fn predicted(&self, class: usize) -> u64 {
        self.counts.iter().filter_map(|row| row.get(class)).sum()
    }
}

/// The probability that a positive row scores higher than a negative one, ties counting half (Mann & Whitney 1947):
/// the area under the ROC curve, 0 … 1. Infinite scores are fine. `None` unless both classes occur.
pub fn roc_auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    // Twice the pairs that are in order, as whole numbers: without rounding.
    let (mut twice, mut positives, mut negatives) = (0_u128, 0_u128, 0_u128);
    for (yes, no) in ties(scores, positive)? {
        twice += u128::from(yes) * (2 * negatives + u128::from(no));
        positives += u128::from(yes);
        negatives += u128::from(no);
    }
    let pairs = positives * negatives;
    (pairs > 0).then(|| twice as f64 / (2 * pairs) as f64)
}

/// Precision at every threshold, weighted by the recall that it adds, 0 … 1: the area under steps, not under a line
/// between them. Infinite scores are fine. `None` without a positive row, where scikit-learn says 0.
pub fn average_precision(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let (mut sum, mut found, mut seen) = (0.0, 0, 0);
    for (yes, no) in ties(scores, positive)?.into_iter().rev() {
        found += yes;
        seen += yes + no;
        sum += yes as f64 * (found as f64 / seen as f64);
    }
    (found > 0).then(|| sum / found as f64)
}

/// Mean over the classes of the [`roc_auc`] of one against the rest, 0 … 1. `probabilities` are rows of `classes`; they
/// need not add up to one. `None` unless every class occurs, and for one class.
pub fn roc_auc_ovr<R: AsRef<[f64]>>(probabilities: &[R], truth: &[usize], classes: usize) -> Option<f64> {
    let fits = probabilities.iter().all(|row| row.as_ref().len() == classes);
    if !fits || truth.iter().any(|&class| class >= classes) {
        return None;
    }
    average((0..classes).map(|class| {
        let scores: Vec<f64> = probabilities.iter().filter_map(|row| row.as_ref().get(class)).copied().collect();
        let positive: Vec<bool> = truth.iter().map(|&of| of == class).collect();
        roc_auc(&scores, &positive)
    }))
}

/// Mean of -ln p of the truth, in nats, 0 or more. `probabilities` are rows of as many as there are classes; they are
/// used as they are, except that p is kept ε = 2⁻⁵² away from 0 and 1, as in scikit-learn: at most 36.04. `None` without
/// rows.
pub fn log_loss<R: AsRef<[f64]>>(probabilities: &[R], truth: &[usize]) -> Option<f64> {
    by_row(probabilities, truth, |row, class| row.get(class).map(|p| -p.clamp(f64::EPSILON, 1.0 - f64::EPSILON).ln()))
}

/// Mean squared distance of a probability from what happened, as 0 or 1 (Brier 1950, halved), 0 … 1. `None` without rows.
pub fn brier(probability: &[f64], positive: &[bool]) -> Option<f64> {
    average(pairs(probability, positive)?.map(|(&p, &yes)| is_probability(p).then(|| (p - f64::from(yes)).powi(2))))
}

/// Mean over rows of the squared distances of all probabilities from 0 or 1, summed (Brier 1950), 0 … 2: scikit-learn's
/// with `scale_by_half=False`; with two classes twice [`brier`]. `probabilities` are rows of as many as there are
/// classes. `None` without rows.
pub fn brier_multiclass<R: AsRef<[f64]>>(probabilities: &[R], truth: &[usize]) -> Option<f64> {
    by_row(probabilities, truth, |row, class| {
        row.get(class)?;
        Some(row.iter().enumerate().map(|(i, p)| (p - f64::from(i == class)).powi(2)).sum())
    })
}

/// Predictions of about the same probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Probabilities here are above this; in the first bin also 0.
    pub low: f64,
    /// They are at most this.
    pub high: f64,
    /// How many there are.
    pub count: u64,
    /// Their mean; `None` for an empty bin.
    pub mean_probability: Option<f64>,
    /// How many of them were positive, as a share; `None` for an empty bin.
    pub share_positive: Option<f64>,
}

/// A reliability diagram: `bins` bins of equal width from 0 to 1, the empty ones, too. Edges are scikit-learn's
/// `calibration_curve`'s, i·(1/bins), and a probability on one is in the bin below. `None` for no bins.
pub fn calibration(probability: &[f64], positive: &[bool], bins: usize) -> Option<Vec<Bin>> {
    let width = 1.0 / bins as f64;
    let edge = |i: usize| if i == bins { 1.0 } else { i as f64 * width };
    let inner: Vec<f64> = (1..bins).map(edge).collect();
    let mut sums = vec![(0_u64, 0.0, 0_u64); bins];
    for (&p, &yes) in pairs(probability, positive)? {
        let (count, sum, yeses) = sums.get_mut(inner.partition_point(|&edge| edge < p))?;
        if !is_probability(p) {
            return None;
        }
        *count += 1;
        *sum += p;
        *yeses += u64::from(yes);
    }
    let bin = |(i, &(count, sum, yeses)): (usize, &(u64, f64, u64))| Bin {
        low: edge(i),
        high: edge(i + 1),
        count,
        mean_probability: (count > 0).then(|| sum / count as f64),
        share_positive: ratio(yeses, count),
    };
    (bins > 0).then(|| sums.iter().enumerate().map(bin).collect())
}

/// Expected calibration error (Naeini et al. 2015): how far mean probability and share of positives are apart, averaged
/// over the bins by their counts, 0 … 1. For several classes bin the largest probability and whether that class was right
/// (Guo et al. 2017). `None` if all bins are empty.
pub fn calibration_error(bins: &[Bin]) -> Option<f64> {
    let apart = |bin: &Bin| Some(bin.count as f64 * (bin.mean_probability? - bin.share_positive?).abs());
    let filled = || bins.iter().filter(|bin| bin.count > 0);
    let count: u64 = filled().map(|bin| bin.count).sum();
    (count > 0).then(|| filled().map(apart).sum::<Option<f64>>())?.map(|sum| sum / count as f64)
}

/// Share of the truth's variance that is explained, at most 1. `None` below two rows, and for a truth that is constant,
/// where scikit-learn says 1 or 0, or some -10³¹ if the mean of the constant is rounded.
pub fn r2(truth: &[f64], predicted: &[f64]) -> Option<f64> {
    let (centred, largest) = deviations(truth)?;
    let left = average(pairs(truth, predicted)?.map(|(y, p)| Some(((y - p) / largest).powi(2))))?;
    finite(1.0 - left / average(centred.iter().map(|x| Some(x * x)))?)
}

/// Mean of squared differences, 0 or more. `None` without rows.
pub fn mean_squared_error(truth: &[f64], predicted: &[f64]) -> Option<f64> {
    average(pairs(truth, predicted)?.map(|(y, p)| Some((y - p).powi(2))))
}

/// Mean of differences without their sign, 0 or more. `None` without rows.
pub fn mean_absolute_error(truth: &[f64], predicted: &[f64]) -> Option<f64> {
    average(pairs(truth, predicted)?.map(|(y, p)| Some((y - p).abs())))
}

/// Pearson's correlation coefficient, -1 … 1. `None` below two rows and where one side is constant.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let ((x, _), (y, _)) = (deviations(x)?, deviations(y)?);
    let product = |a: &[f64], b: &[f64]| pairs(a, b).map(|both| both.map(|(a, b)| a * b).sum::<f64>());
    finite((product(&x, &y)? / (product(&x, &x)? * product(&y, &y)?).sqrt()).clamp(-1.0, 1.0))
}

/// [`pearson`] of the ranks, ties having the mean of theirs (Spearman 1904), -1 … 1. Infinite values are fine. `None`
/// below two rows and where one side is constant.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&ranks(x)?, &ranks(y)?)
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn is_probability(p: f64) -> bool {
    (0.0..=1.0).contains(&p)
}

/// The mean; `None` if there is nothing, if a term is `None`, or if the sum is not finite.
fn average(terms: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u64);
    for term in terms {
        sum += term?;
        count += 1;
    }
    finite(sum / count as f64)
}

/// Both side by side; `None` if they differ in length.
fn pairs<'a, A, B>(a: &'a [A], b: &'a [B]) -> Option<impl Iterator<Item = (&'a A, &'a B)>> {
    (a.len() == b.len()).then(|| a.iter().zip(b))
}

/// The mean of a score over rows of probabilities, all of one width.
fn by_row<R, S>(probabilities: &[R], truth: &[usize], score: S) -> Option<f64>
where
    R: AsRef<[f64]>,
    S: Fn(&[f64], usize) -> Option<f64>,
{
    let width = probabilities.first()?.as_ref().len();
    average(pairs(probabilities, truth)?.map(|(row, &class)| {
        let row = row.as_ref();
        if row.len() == width && row.iter().all(|&p| is_probability(p)) { score(row, class) } else { None }
    }))
}

/// Indices in rising order of the values; `None` if one is NaN.
fn order(values: &[f64]) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    (!values.iter().any(|x| x.is_nan())).then_some(order)
}

/// Positive and negative rows of each score, scores rising.
fn ties(scores: &[f64], positive: &[bool]) -> Option<Vec<(u64, u64)>> {
    if scores.len() != positive.len() {
        return None;
    }
    let tie = |tied: &[usize]| {
        let yes = tied.iter().filter(|&&i| positive[i]).count();
        (yes as u64, (tied.len() - yes) as u64)
    };
    // 0 and -0 have an order, but are equal.
    Some(order(scores)?.chunk_by(|&a, &b| scores[a] == scores[b]).map(tie).collect())
}

/// Ranks from 1, ties having the mean of theirs.
fn ranks(values: &[f64]) -> Option<Vec<f64>> {
    let (mut ranks, mut below) = (vec![0.0; values.len()], 0);
    for tied in order(values)?.chunk_by(|&a, &b| values[a] == values[b]) {
        for &i in tied {
            ranks[i] = below as f64 + (tied.len() + 1) as f64 / 2.0;
        }
        below += tied.len();
    }
    Some(ranks)
}

/// Distances from the mean in units of the largest, and that; so that no square overflows or vanishes. `None` if all
/// values are equal, or if one is not finite.
fn deviations(values: &[f64]) -> Option<(Vec<f64>, f64)> {
    let first = *values.first()?;
    if values.iter().all(|&x| x == first) {
        return None;
    }
    let middle = average(values.iter().map(|x| Some(*x)))?;
    // The mean of large values is rounded, and off by what is left.
    let left = average(values.iter().map(|x| Some(x - middle)))?;
    let centred: Vec<f64> = values.iter().map(|x| x - middle - left).collect();
    let largest = centred.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    Some((centred.into_iter().map(|x| x / largest).collect(), largest))
}

/// How far two ways to sort rows into kinds agree, by pairs of rows, where 0 is what chance gives and 1 the same (adjusted Rand
/// index, Hubert & Arabie 1985). `None` without rows.
pub fn adjusted_rand(truth: &[usize], found: &[usize]) -> Option<f64> {
    let mut cells: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for (&a, &b) in pairs(truth, found)? {
        *cells.entry((a, b)).or_default() += 1;
    }
    let (mut rows, mut columns) = (BTreeMap::<usize, u64>::new(), BTreeMap::<usize, u64>::new());
    for (&(a, b), &count) in &cells {
        *rows.entry(a).or_default() += count;
        *columns.entry(b).or_default() += count;
    }
    // Ordered pairs of different rows.
    let together = |counts: &mut dyn Iterator<Item = u64>| counts.map(|n| n as f64 * (n as f64 - 1.0)).sum::<f64>();
    let both = together(&mut cells.values().copied());
    let (one, other) = (together(&mut rows.into_values()), together(&mut columns.into_values()));
    let all = together(&mut std::iter::once(truth.len() as u64));
    if truth.is_empty() {
        return None;
    }
    if both == one && both == other {
        return Some(1.0);
    }
    let chance = one * other / all;
    finite((both - chance) / (0.5 * (one + other) - chance))
}
