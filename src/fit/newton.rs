//! Newton's method with preconditioned conjugate gradients, for a convex objective.
//!
//! Each step solves `curvature · step = −gradient` as far as it pays, with products of the curvature and a vector only. The
//! factored matrix that makes this quick is that of the curvature where the search began; when it no longer resembles the
//! curvature, it is made again.

use serde::{Deserialize, Serialize};

use super::block::{add_scaled, dot};
use super::objective::{Objective, Point};
use super::precondition::Preconditioner;

/// How a fit went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Steps of Newton's method.
    pub iterations: usize,
    /// Times that all rows were read, for the objective and its gradient or for a product with the curvature.
    pub passes: usize,
    /// Times that the matrix of products of columns was made and factored.
    pub factorisations: usize,
    /// Σ loss + α/2·|w|²
    pub objective: f64,
    /// The length of its gradient.
    pub gradient_norm: f64,
    /// How much the last step was expected to gain, as a share of the objective.
    pub last_gain: f64,
    /// Whether that was no more than the tolerance.
    pub converged: bool,
}

/// A residual of this share, in the norm of the preconditioner, ends a solution for a step.
const FORCING: f64 = 0.1;

/// Where to stop.
pub(super) struct Limits {
    pub tolerance: f64,
    pub iterations: usize,
}

/// Goes to the minimum from `theta`.
pub(super) fn minimise(objective: &Objective, theta: Vec<f64>, limits: &Limits) -> (Vec<f64>, Report) {
    let mut here = objective.at(theta);
    let mut report = Report {
        iterations: 0,
        passes: 1,
        factorisations: 0,
        objective: here.value,
        gradient_norm: 0.0,
        last_gain: f64::INFINITY,
        converged: false,
    };
    // A matrix costs about as much as this many products.
    let d = objective.width() - 1;
    let patience = (d / 32).max(8) / objective.scores.min(3);
    let mut matrix: Option<Preconditioner> = None;
    let mut slow = false;
    while report.iterations < limits.iterations && !report.converged {
        let stale = matrix.is_none() || slow;
        if stale {
            matrix = Some(Preconditioner::new(objective.x, objective.row_weights(&here), objective.alpha));
            report.factorisations += 1;
            report.passes += 1;
        }
        let Some(preconditioner) = &matrix else { break };
        let trusted = stale && preconditioner.exact && objective.scores == 1;
        let (step, products) = step(objective, &here, preconditioner, if trusted { 0 } else { 4 * patience });
        slow = products > patience / 2;
        report.passes += products;
        report.iterations += 1;
        let slope = dot(&here.gradient, &step);
        let gain = -0.5 * slope / here.value.max(f64::MIN_POSITIVE);
        let Some(next) = descend(objective, &here, &step, slope, &mut report.passes) else {
            // Rounding is larger than what is left to gain, or the step was no descent.
            report.last_gain = gain.abs();
            report.converged = gain.abs() <= limits.tolerance;
            break;
        };
        here = next;
        report.last_gain = gain;
        report.converged = gain <= limits.tolerance;
    }
    report.objective = here.value;
    report.gradient_norm = dot(&here.gradient, &here.gradient).sqrt();
    (here.theta, report)
}

/// An approximate Newton step by at most `limit` products with the curvature, and how many it took. Without any it is the
/// preconditioner's own opinion.
fn step(objective: &Objective, here: &Point, matrix: &Preconditioner, limit: usize) -> (Vec<f64>, usize) {
    let mut rest: Vec<f64> = here.gradient.iter().map(|g| -g).collect();
    let mut direction = matrix.solve(&rest);
    if limit == 0 {
        return (direction, 0);
    }
    let mut step = vec![0.0; rest.len()];
    let mut size = dot(&rest, &direction);
    let enough = FORCING * FORCING * size;
    for done in 0..limit {
        let product = objective.curvature(here, &direction);
        let curvature = dot(&direction, &product);
        if !(curvature > 0.0 && curvature.is_finite()) {
            return if done == 0 { (direction, 1) } else { (step, done + 1) };
        }
        let length = size / curvature;
        add_scaled(&mut step, length, &direction);
        add_scaled(&mut rest, -length, &product);
        let better = matrix.solve(&rest);
        let next = dot(&rest, &better);
        if next <= enough || next.is_nan() {
            return (step, done + 1);
        }
        let keep = next / size;
        size = next;
        direction.iter_mut().zip(&better).for_each(|(d, b)| *d = b + keep * *d);
    }
    (step, limit)
}

/// The end of the step, or the lowest point on the way there; none if nothing on the way is lower.
fn descend(objective: &Objective, here: &Point, step: &[f64], slope: f64, passes: &mut usize) -> Option<Point> {
    if slope >= 0.0 || slope.is_nan() {
        return None;
    }
    let along = |t: f64| {
        let mut theta = here.theta.clone();
        add_scaled(&mut theta, t, step);
        objective.at(theta)
    };
    let end = along(1.0);
    *passes += 1;
    if end.value <= here.value + 1e-4 * slope {
        return Some(end);
    }
    let t = objective.shorter(here, &end);
    let between = along(t);
    *passes += 1;
    if between.value < here.value { Some(between) } else { (end.value < here.value).then_some(end) }
}
