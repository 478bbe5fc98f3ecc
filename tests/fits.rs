//! Linear models beside scikit-learn's (`fixtures/make_fits.py`), and what must hold whatever the numbers.

use interp::Error;
use interp::fit::logistic::{self, Logistic};
use interp::fit::means::Means;
use interp::fit::ridge::{Ridge, path};
use interp::fit::standardiser::Standardiser;
use linfa::DatasetBase;
use linfa::traits::{Fit, Predict};
use ndarray::{Array1, Array2, Axis, array};
use serde_json::Value;

fn made(kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string("tests/fixtures/fits.json").unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all[kind].as_array().unwrap().clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn labels(case: &Value) -> Vec<usize> {
    numbers(&case["labels"]).iter().map(|&y| y as usize).collect()
}

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// The rows of a case, as the fixture's script makes them.
fn features(case: &Value) -> Array2<f32> {
    let (n, d, seed) = (number(&case["n"]) as usize, number(&case["d"]) as usize, number(&case["seed"]) as u32);
    let shared = number(&case["shared"]) as f32;
    let mut x = Array2::from_shape_vec((n, d), noise(n * d, seed)).unwrap();
    if shared > 0.0 {
        for (mut row, own) in x.rows_mut().into_iter().zip(noise(n, seed + 1)) {
            row += shared * own;
        }
    } else if shared < 0.0 {
        for j in d / 2..d {
            let column = x.column(j - d / 2).to_owned();
            x.column_mut(j).assign(&column);
        }
    }
    if case["outlier"] == true {
        x.row_mut(7).mapv_inplace(|x| x * 3000.0);
    }
    x
}

/// Σ loss + α/2·|w|², written down once more.
fn objective(x: &Array2<f32>, y: &[usize], weights: &Array2<f64>, intercept: &Array1<f64>, alpha: f64) -> f64 {
    let mut z = x.mapv(f64::from).dot(&weights.t()) + intercept;
    if z.ncols() == 1 {
        z = ndarray::concatenate![Axis(1), Array2::zeros((z.nrows(), 1)), z];
    }
    let loss = z.rows().into_iter().zip(y).map(|(z, &y)| {
        let top = z.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        z.iter().map(|z| (z - top).exp()).sum::<f64>().ln() + top - z[y]
    });
    loss.sum::<f64>() + 0.5 * alpha * weights.iter().map(|w| w * w).sum::<f64>()
}

/// Relative to the largest of the numbers. Optima are found to a tolerance, not by rounding: 1e-3 where scikit-learn's own stopping rule
/// leaves as much, 1e-6 where a system of equations is solved.
fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * scale.max(1e-3), "{what} {i}: {f} instead of {e} (largest {scale})");
    }
}

/// The share of one row in 300: where a score is next to 0, one row may fall on the other side.
const ONE_ROW: f64 = 0.0034;

fn accuracy(fitted: &logistic::Fitted, x: &Array2<f32>, y: &[usize]) -> f64 {
    let right = fitted.predict(x).iter().zip(y).filter(|(a, b)| a == b).count();
    right as f64 / y.len() as f64
}

#[test]
fn logistic_regressions_end_where_those_of_scikit_learn_do() {
    for case in made("logistic") {
        let (x, y) = (features(&case), labels(&case));
        let mut start: Option<logistic::Fitted> = None;
        for fit in case["fits"].as_array().unwrap() {
            let alpha = 1.0 / number(&fit["c"]);
            let what = format!("{} C={}", case["name"], fit["c"]);
            let model = Logistic::new(alpha);
            let fitted = model.fit(&DatasetBase::new(x.clone(), Array1::from(y.clone()))).unwrap();
            let report = fitted.report();
            assert!(report.converged, "{what}: {report:?}");
            let found = objective(&x, &y, &fitted.weights(), &fitted.intercept(), alpha);
            let expected = number(&fit["objective"]);
            assert!((found - expected).abs() <= 1e-6 * expected, "{what}: {found} instead of {expected}, {report:?}");
            assert!((report.objective - found).abs() <= 1e-9 * found, "{what}: {report:?} and {found}");
            let weights = fitted.weights();
            close(&format!("{what} weight"), weights.as_slice().unwrap(), &numbers(&fit["coef"]), 1e-3);
            // Only differences of intercepts mean anything where every class has one.
            let centred = |values: &[f64]| {
                let mean = if values.len() > 1 { values.iter().sum::<f64>() / values.len() as f64 } else { 0.0 };
                values.iter().map(|v| v - mean).collect::<Vec<_>>()
            };
            let intercept = centred(&fitted.intercept().to_vec());
            close(&format!("{what} intercept"), &intercept, &centred(&numbers(&fit["intercept"])), 2e-3);
            let expected = numbers(&fit["probabilities"]);
            let found = fitted.probabilities(&x);
            close(&format!("{what} p"), &found.as_slice().unwrap()[..expected.len()], &expected, 1e-3);
            assert!((accuracy(&fitted, &x, &y) - number(&fit["accuracy"])).abs() <= ONE_ROW, "{what}");
            // From the optimum of another penalty to the same end.
            if let Some(start) = &start {
                let warm = model.fit_rows(x.view(), &y, Some(start)).unwrap();
                assert!(warm.report().converged, "{what}: {:?}", warm.report());
                assert!((warm.report().objective - report.objective).abs() <= 1e-6 * report.objective, "{what}");
            }
            start = Some(fitted);
        }
    }
}

#[test]
fn two_classes_with_a_score_each_are_softmax() {
    let case = &made("logistic")[0];
    let (x, y) = (features(case), labels(case));
    // The two vectors share the penalty: w/2 and −w/2 cost half of what w costs.
    let one = Logistic::new(0.5).fit_rows(x.view(), &y, None).unwrap();
    let two = Logistic { softmax: true, ..Logistic::new(1.0) }.fit_rows(x.view(), &y, None).unwrap();
    assert_eq!(two.weights().dim(), (2, 20));
    let difference = &two.weights().row(1) - &two.weights().row(0);
    close("weight", &difference.to_vec(), one.weights().as_slice().unwrap(), 1e-3);
}

#[test]
fn one_huge_row_does_not_spoil_a_probe() {
    for case in made("logistic").iter().filter(|case| case["outlier"] == true) {
        let (x, y) = (features(case), labels(case));
        let mut usual = x.clone();
        usual.row_mut(7).mapv_inplace(|x| x / 3000.0);
        let fit = |x: &Array2<f32>| Logistic::new(1.0).fit_rows(x.view(), &y, None).unwrap();
        let (with, without) = (accuracy(&fit(&x), &x, &y), accuracy(&fit(&usual), &usual, &y));
        assert!((with - without).abs() <= 0.02, "{with} instead of {without}");
        assert!((with - number(&case["fits"][0]["accuracy"])).abs() <= ONE_ROW);
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let (n, d) = (1500, 150);
    let x = Array2::from_shape_vec((n, d), noise(n * d, 3)).unwrap();
    let score = |i: usize| f64::from(x.row(i).sum()) + 9.0 * f64::from(x[[i, 0]] * x[[i, 1]]);
    let two: Vec<usize> = (0..n).map(|i| usize::from(score(i) > 0.0)).collect();
    let four: Vec<usize> = (0..n).map(|i| ((score(i) / 8.0 + 2.0) as usize).min(3)).collect();
    let targets: Vec<f64> = (0..n).map(score).collect();
    let few = x.slice(ndarray::s![..100, ..]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let logistic = |y: &[usize], alpha| Logistic::new(alpha).fit_rows(x.view(), y, None).unwrap();
            let fits = vec![logistic(&two, 1.0), logistic(&two, 1e-4), logistic(&four, 0.1)];
            let few = Logistic::new(0.1).fit_rows(few, &two[..100], None).unwrap();
            let ridge = path(x.view(), &targets, &[0.0, 3.0]).unwrap();
            let means = Means::Discriminant.fit_rows(x.view(), &four).unwrap();
            (fits, few, ridge, means, Standardiser::new(x.view()).unwrap())
        })
    };
    let one = run(1);
    assert!(
        one.0.iter().all(|fit| fit.report().converged),
        "{:?}",
        one.0.iter().map(|f| *f.report()).collect::<Vec<_>>()
    );
    for threads in [2, 3] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
}

#[test]
fn the_optimum_is_flat_and_its_neighbourhood_is_higher() {
    let case = &made("logistic")[5];
    let (x, y) = (features(case), labels(case));
    let fitted = Logistic { tolerance: 1e-12, ..Logistic::new(1.0) }.fit_rows(x.view(), &y, None).unwrap();
    let (weights, intercept) = (fitted.weights(), fitted.intercept());
    let lowest = objective(&x, &y, &weights, &intercept, 1.0);
    // Slopes of a sum over hundreds of rows, each of which has a slope of order 1 there: 1e-4 is less than 1e-6 of their sizes.
    assert!(fitted.report().gradient_norm < 1e-4, "{:?}", fitted.report());
    for (k, j) in [(0, 0), (1, 5), (3, 11)] {
        let moved = |by: f64| {
            let mut weights = weights.clone();
            weights[[k, j]] += by;
            objective(&x, &y, &weights, &intercept, 1.0)
        };
        let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        assert!(slope.abs() < 1e-4 && moved(0.01) > lowest && moved(-0.01) > lowest, "{k} {j}: {slope}");
    }
}

#[test]
fn scales_of_features_do_not_break_a_fit() {
    let case = &made("logistic")[0];
    let (x, y) = (features(case), labels(case));
    let plain = Logistic::new(1.0).fit_rows(x.view(), &y, None).unwrap();
    for scale in [1e-12_f64, 1e-3, 1e6, 1e15] {
        let scaled = x.mapv(|x| (f64::from(x) * scale) as f32);
        let fitted = Logistic::new(scale * scale).fit_rows(scaled.view(), &y, None).unwrap();
        let (found, expected) = (fitted.report().objective, plain.report().objective);
        assert!(fitted.report().converged, "{scale:e}: {:?}", fitted.report());
        assert!((found - expected).abs() < 1e-6 * expected, "{scale:e}: {found} instead of {expected}");
    }
    // Far from 0, as some dimensions of a residual stream are.
    let far = x.mapv(|x| x + 500.0);
    let fitted = Logistic::new(1.0).fit_rows(far.view(), &y, None).unwrap();
    assert!(fitted.report().converged, "{:?}", fitted.report());
    assert!((fitted.report().objective - plain.report().objective).abs() < 1e-3 * plain.report().objective);
}

#[test]
fn hard_fits_end_too() {
    let (n, d) = (700, 90);
    let mut x = Array2::from_shape_vec((n, d), noise(n * d, 5)).unwrap();
    for j in 60..d {
        // Columns that depend on others, or nearly.
        let column = &x.column(j - 50) + &(x.column(j - 60).to_owned() * 1e-5);
        x.column_mut(j).assign(&column);
    }
    x.row_mut(11).mapv_inplace(|x| x * 3000.0);
    let score = |i: usize| x[[i, 0]] + x[[i, 1]] - x[[i, 2]];
    let separable: Vec<usize> = (0..n).map(|i| usize::from(score(i) > 0.0)).collect();
    let blurred: Vec<usize> = (0..n).map(|i| usize::from(score(i) + 0.5 * x[[i, 3]] * x[[i, 4]] > 0.0)).collect();
    let three: Vec<usize> = (0..n).map(|i| (score(i) + 1.5).clamp(0.0, 2.0) as usize).collect();
    for (what, y) in [("separable", separable), ("blurred", blurred), ("three", three)] {
        let mut last = f64::INFINITY;
        for alpha in [1e3, 1.0, 1e-4, 1e-8] {
            let fitted = Logistic::new(alpha).fit_rows(x.view(), &y, None).unwrap();
            let report = fitted.report();
            assert!(report.converged && report.objective < last, "{what} {alpha:e}: {report:?}, before {last}");
            let found = objective(&x, &y, &fitted.weights(), &fitted.intercept(), alpha);
            assert!((found - report.objective).abs() <= 1e-6 * found, "{what} {alpha:e}: {found} {report:?}");
            last = report.objective;
        }
    }
}

#[test]
fn ridge_and_least_squares_are_those_of_scikit_learn() {
    for case in made("regression") {
        let (x, y) = (features(&case), numbers(&case["targets"]));
        let fits = case["fits"].as_array().unwrap();
        let alphas: Vec<f64> = fits.iter().map(|fit| number(&fit["alpha"])).collect();
        for (found, fit) in path(x.view(), &y, &alphas).unwrap().iter().zip(fits) {
            let what = format!("{} alpha={}", case["name"], fit["alpha"]);
            close(&what, found.weights(), &numbers(&fit["coef"]), 1e-6);
            close(&what, &[found.intercept()], &[number(&fit["intercept"])], 1e-6);
            let alone = Ridge::new(found.alpha).fit(&DatasetBase::new(x.clone(), Array1::from(y.clone()))).unwrap();
            assert_eq!(&alone, found, "{what}");
            let predicted = alone.predict(&x);
            let by_hand = x.mapv(f64::from).dot(&Array1::from(numbers(&fit["coef"]))) + number(&fit["intercept"]);
            close(&what, predicted.as_slice().unwrap(), by_hand.as_slice().unwrap(), 1e-6);
        }
    }
    let repeated = &made("regression")[2];
    let ordinary = Ridge::ordinary().fit_rows(features(repeated).view(), &numbers(&repeated["targets"])).unwrap();
    assert_eq!(ordinary.rank, 8);
}

#[test]
fn discriminants_are_those_of_scikit_learn() {
    for case in made("discriminant") {
        let (x, y) = (features(&case), labels(&case));
        let fitted = Means::Discriminant.fit(&DatasetBase::new(x.clone(), Array1::from(y.clone()))).unwrap();
        let what = case["name"].to_string();
        assert!(!fitted.lifted);
        close(&what, fitted.weights().as_slice().unwrap(), &numbers(&case["coef"]), 1e-6);
        close(&what, fitted.intercept().as_slice().unwrap(), &numbers(&case["intercept"]), 1e-6);
        let expected = numbers(&case["probabilities"]);
        close(&what, &fitted.probabilities(&x).as_slice().unwrap()[..expected.len()], &expected, 1e-6);
        if case["classes"] == 2 {
            // Without priors the threshold is halfway between the means; the direction stays.
            let whitened = Means::Whitened.fit_rows(x.view(), &y).unwrap();
            assert_eq!(whitened.weights(), fitted.weights());
            let rows = |class| (0..y.len()).filter(|&i| y[i] == class).collect::<Vec<_>>();
            let mean = |class| x.select(Axis(0), &rows(class)).mapv(f64::from).mean_axis(Axis(0)).unwrap();
            let (negative, positive) = (mean(0), mean(1));
            let plain = Means::Difference.fit_rows(x.view(), &y).unwrap();
            close(&what, &plain.weights().row(0).to_vec(), &(&positive - &negative).to_vec(), 1e-9);
            let half = (&positive + &negative) / 2.0;
            for probe in [plain, whitened] {
                let score = probe.weights().row(0).dot(&half) + probe.intercept()[0];
                assert!(score.abs() < 1e-9, "{what}: {score}");
            }
        }
    }
    let wide = made("logistic").into_iter().find(|case| case["name"] == "wide").unwrap();
    let fitted = Means::Discriminant.fit_rows(features(&wide).view(), &labels(&wide)).unwrap();
    assert!(fitted.lifted && fitted.weights().iter().all(|w| w.is_finite()));
}

#[test]
fn columns_are_standardised_and_constant_ones_counted() {
    let x = array![[1.0_f32, 7.0, 1000.1], [2.0, 7.0, 1000.1], [3.0, 7.0, 1000.1], [6.0, 7.0, 1000.1]];
    let standardiser = Standardiser::new(x.view()).unwrap();
    assert_eq!(standardiser.constant, 2);
    assert_eq!(standardiser.mean[..2], [3.0, 7.0]);
    assert_eq!(standardiser.deviation, [3.5_f64.sqrt(), 1.0, 1.0]);
    let out = standardiser.apply(x.view()).unwrap();
    assert_eq!(out.column(1).to_vec(), [0.0; 4]);
    assert!((out.column(0).mapv(|x| x * x).sum() - 4.0).abs() < 1e-6 && out.column(0).sum().abs() < 1e-6);
    let text = serde_json::to_string(&standardiser).unwrap();
    let read: Standardiser = serde_json::from_str(&text).unwrap();
    close("mean", &read.mean, &standardiser.mean, 1e-15);
    close("deviation", &read.deviation, &standardiser.deviation, 1e-15);
    assert_eq!(read.constant, 2);
    assert!(standardiser.apply(array![[1.0_f32]].view()).is_err());
}

#[test]
fn rows_may_lie_in_any_order_in_memory() {
    let case = &made("logistic")[0];
    let (x, y) = (features(case), labels(case));
    let turned = x.t().as_standard_layout().to_owned();
    let model = Logistic::default();
    assert_eq!(model.fit_rows(turned.t(), &y, None).unwrap(), model.fit_rows(x.view(), &y, None).unwrap());
}

#[test]
fn what_cannot_be_fitted_is_refused_with_the_reason() {
    let refused = |alpha: f64, x: Array2<f32>, y: &[usize], words: &str| {
        let error = Logistic::new(alpha).fit_rows(x.view(), y, None).unwrap_err();
        assert!(matches!(error, Error::Request(_)) && error.to_string().contains(words), "{error}");
    };
    let x = array![[0.0_f32, 1.0], [1.0, 0.0], [2.0, 2.0]];
    let with = |value: f32| {
        let mut x = x.clone();
        x[[2, 1]] = value;
        x
    };
    refused(1.0, with(f32::NAN), &[0, 1, 1], "feature 1 of row 2 is NaN");
    refused(1.0, with(f32::NEG_INFINITY), &[0, 1, 1], "feature 1 of row 2 is -inf");
    refused(1.0, x.clone(), &[1, 1, 1], "one class");
    refused(1.0, x.clone(), &[0, 2, 2], "no row is of class 1");
    refused(1.0, x.clone(), &[0, 1, usize::MAX - 1], "numbered from 0");
    refused(1.0, x.clone(), &[0, 1], "3 rows of features, and 2 labels");
    refused(0.0, x.clone(), &[0, 1, 1], "alpha is 0");
    refused(f64::NAN, x.clone(), &[0, 1, 1], "alpha is NaN");
    refused(1.0, Array2::zeros((0, 2)), &[], "0 rows of 2 features");
    refused(1.0, Array2::zeros((2, 0)), &[0, 1], "2 rows of 0 features");
    let narrow = Logistic::new(1.0).fit_rows(array![[0.0_f32], [1.0]].view(), &[0, 1], None).unwrap();
    assert!(Logistic::new(1.0).fit_rows(x.view(), &[0, 1, 1], Some(&narrow)).is_err());
    assert!(Ridge::new(-1.0).fit_rows(x.view(), &[0.0; 3]).is_err());
    assert!(Ridge::new(1.0).fit_rows(x.view(), &[0.0, f64::NAN, 1.0]).is_err());
    assert!(Means::Difference.fit_rows(x.view(), &[0, 1, 2]).is_err());
    // A limit that is too low is a fact, not an error.
    let short = Logistic { max_iterations: 0, ..Logistic::default() }.fit_rows(x.view(), &[0, 1, 1], None).unwrap();
    assert!(!short.report().converged && short.report().iterations == 0);
}

#[test]
fn constant_features_and_tiny_data_do_no_harm() {
    let x = array![[0.0_f32, 5.0], [0.0, 5.0], [0.0, 5.0]];
    let fitted = Logistic::new(1.0).fit_rows(x.view(), &[0, 1, 1], None).unwrap();
    let p = fitted.probabilities(&x);
    assert!(fitted.report().converged && (p[[0, 1]] - 2.0 / 3.0).abs() < 1e-4, "{p}");
    let ordinary = Ridge::ordinary().fit_rows(x.view(), &[1.0, 2.0, 3.0]).unwrap();
    assert_eq!((ordinary.weights(), ordinary.rank), ([0.0, 0.0].as_slice(), 0));
    assert!((ordinary.intercept() - 2.0).abs() < 1e-12);
}

#[test]
fn features_that_never_change_leave_the_shares_of_the_classes() {
    for (classes, alpha) in [(2, 0.1), (2, 1000.0), (4, 1.0)] {
        let x = Array2::zeros((168, 8));
        let y = Array1::from_shape_fn(168, |i| if i % 3 == 0 { 0 } else { i % classes });
        let fitted = Logistic::new(alpha).fit(&DatasetBase::new(x.clone(), y.clone())).unwrap();
        assert!(fitted.report().converged, "{:?}", fitted.report());
        let found = fitted.probabilities(&x);
        for class in 0..classes {
            let share = y.iter().filter(|own| **own == class).count() as f64 / 168.0;
            assert!((found[[0, class]] - share).abs() < 1e-6, "{class}: {} of {share}", found[[0, class]]);
        }
    }
}
