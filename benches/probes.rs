//! Fits logistic regressions, here or with linfa-logistic; see `probes.py`.
//!
//! ```text
//! cargo bench --bench probes -- ROWS COLUMNS CLASSES ALPHA
//! ```
//!
//! Then every line of stdin is a task, `interp FEATURES LABELS` or `linfa FEATURES LABELS` (files of f32 and of u32,
//! little-endian), and every line of stdout its answer: seconds, weights and intercepts, as JSON.

use std::io::BufRead;
use std::time::Instant;

use interp::fit::logistic::Logistic;
use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_logistic::{LogisticRegression, MultiLogisticRegression};
use ndarray::{Array1, Array2};
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [rows, columns, classes, alpha] = arguments.as_slice() else {
        return; // `cargo test --benches` runs it without arguments
    };
    let count = |text: &str| text.parse::<usize>().expect("a number");
    let (shape, classes) = ((count(rows), count(columns)), count(classes));
    let alpha: f64 = alpha.parse().expect("a number");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let task: Vec<&str> = line.split_whitespace().collect();
        let [solver, features, labels] = task.as_slice() else { panic!("`{line}` is no task") };
        let read = |path: &str| std::fs::read(path).expect("a file");
        let x = read(features).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let y = read(labels).chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
        let data = DatasetBase::new(Array2::from_shape_vec(shape, x).expect("rows"), Array1::from_vec(y));
        let answer = match *solver {
            "interp" => ours(&data, alpha),
            "linfa" if classes == 2 => linfa_binary(&data, alpha),
            "linfa" => linfa_softmax(&data, alpha),
            other => panic!("`{other}` is not interp or linfa"),
        };
        println!("{answer}");
    }
}

/// linfa-logistic computes in f32, as the data are; a gradient this short is that of an objective within some 1e-8 of the lowest.
const LINFA_GRADIENT: f32 = 0.3;
const LINFA_ITERATIONS: u64 = 2000;

type Data = DatasetBase<Array2<f32>, Array1<usize>>;

fn answer(start: Instant, weights: Vec<f64>, intercept: Vec<f64>, report: Value) -> Value {
    json!({ "seconds": start.elapsed().as_secs_f64(), "weights": weights, "intercept": intercept, "report": report })
}

fn ours(data: &Data, alpha: f64) -> Value {
    let start = Instant::now();
    let fitted = Logistic::new(alpha).fit(data).expect("a fit");
    let report = serde_json::to_value(fitted.report()).expect("a report");
    answer(start, fitted.weights().into_raw_vec_and_offset().0, fitted.intercept().to_vec(), report)
}

fn linfa_binary(data: &Data, alpha: f64) -> Value {
    let start = Instant::now();
    let model = LogisticRegression::default()
        .alpha(alpha as f32)
        .max_iterations(LINFA_ITERATIONS)
        .gradient_tolerance(LINFA_GRADIENT);
    match model.fit(data) {
        Ok(fitted) => {
            // The class of the first row may be the positive one.
            let sign = if fitted.labels().pos.class == 1 { 1.0 } else { -1.0 };
            let weights = fitted.params().iter().map(|&w| sign * f64::from(w)).collect();
            answer(start, weights, vec![sign * f64::from(fitted.intercept())], Value::Null)
        }
        Err(error) => json!({ "seconds": start.elapsed().as_secs_f64(), "error": error.to_string() }),
    }
}

fn linfa_softmax(data: &Data, alpha: f64) -> Value {
    let start = Instant::now();
    let model = MultiLogisticRegression::default()
        .alpha(alpha as f32)
        .max_iterations(LINFA_ITERATIONS)
        .gradient_tolerance(LINFA_GRADIENT);
    match model.fit(data) {
        Ok(fitted) => {
            // Its columns are classes in the order of `classes`.
            let order: Vec<usize> =
                (0..).map_while(|class| fitted.classes().iter().position(|&c| c == class)).collect();
            let weights = order.iter().flat_map(|&c| fitted.params().column(c).to_vec()).map(f64::from).collect();
            let intercept = order.iter().map(|&c| f64::from(fitted.intercept()[c])).collect();
            answer(start, weights, intercept, Value::Null)
        }
        Err(error) => json!({ "seconds": start.elapsed().as_secs_f64(), "error": error.to_string() }),
    }
}
