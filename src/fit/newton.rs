//! Newton's method with preconditioned conjugate gradients, for a convex objective.
//!
//! Each step solves `curvature · step = −gradient` as far as it pays, with products of the curvature and a vector only. The
//! factored matrix that makes this quick is that of the curvature where the search began; when it no longer resembles the
//! curvature, it is made again.

use serde::{Deserialize, Serialize};

use super::block::{add_scaled, dot};
use super::objective::{Objective, Point};
use super::precondition::{Preconditioner, Rows};

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
    /// How far the objective is above its minimum, estimated, as a share of it.
    pub gap: f64,
    /// Whether that is no more than the tolerance.
    pub converged: bool,
}

/// A residual of this share, in the norm of the preconditioner, ends a solution for a step.
const FORCING: f64 = 0.1;

/// Rows per column, of all there are, that the first matrix is made of.
const ENOUGH: usize = 6;

/// Where to stop.
pub(super) struct Limits {
    pub tolerance: f64,
    pub iterations: usize,
}

/// Goes to the minimum from `theta`.
pub(super) fn minimise(objective: &Objective, theta: Vec<f64>, limits: &Limits) -> (Vec<f64>, Report) {
    let mut here = objective.at(theta);
    let (n, d) = objective.x.shape();
    // Where the search begins all rows weigh about the same, and some of them stand for all.
    let mut matrix = Preconditioner::new(
        objective.x,
        objective.row_weights(&here),
        Rows::Every((n / (ENOUGH * d)).max(1)),
        objective.alpha,
    );
    let mut report = Report {
        iterations: 0,
        passes: 1,
        factorisations: 1,
        objective: here.value,
        gradient_norm: 0.0,
        gap: f64::INFINITY,
        converged: false,
    };
    // A step of more products than this pays for a new matrix: that costs about twice as many.
    let patience = (d / 64).max(8);
    let (mut fresh, mut scale, mut rows) = (false, 1.0, Rows::Every(1));
    loop {
        let rest: Vec<f64> = here.gradient.iter().map(|g| -g).collect();
        let direction = matrix.solve(&rest);
        report.gap = 0.5 * scale * dot(&rest, &direction) / here.value.max(f64::MIN_POSITIVE);
        report.converged = report.gap <= limits.tolerance;
        if report.converged || report.iterations == limits.iterations {
            break;
        }
        // Of the first matrix it is known that it resembles the curvature: its opinion is as good as a product.
        let limit = if report.iterations == 0 { 0 } else { 4 * patience };
        let step = step(objective, &here, &matrix, rest, direction, limit, rows == Rows::Precisely);
        report.iterations += 1;
        report.passes += step.products;
        scale = step.scale;
        let next = descend(objective, &here, &step.by, &mut report.passes);
        if next.is_none() && fresh {
            // Rounding is larger than what is left to gain.
            break;
        }
        if fresh && step.products > patience {
            // A new matrix that is no good: f32 does not tell the columns apart.
            rows = Rows::Precisely;
        }
        fresh = next.is_none() || step.products > patience;
        here = next.unwrap_or(here);
        if fresh {
            matrix = Preconditioner::new(objective.x, objective.row_weights(&here), rows, objective.alpha);
            report.factorisations += 1;
        }
    }
    report.objective = here.value;
    report.gradient_norm = dot(&here.gradient, &here.gradient).sqrt();
    (here.theta, report)
}

/// An approximate Newton step.
struct Step {
    by: Vec<f64>,
    /// Products with the curvature that it took.
    products: usize,
    /// By how much the curvature is smaller than the matrix that stands for it, where it is smallest.
    scale: f64,
}

/// A step by at most `limit` products with the curvature, in f64 if it is to be precise, from the preconditioner's own opinion.
fn step(
    objective: &Objective,
    here: &Point,
    matrix: &Preconditioner,
    mut rest: Vec<f64>,
    mut direction: Vec<f64>,
    limit: usize,
    precisely: bool,
) -> Step {
    if limit == 0 {
        return Step { by: direction, products: 0, scale: 1.0 };
    }
    let mut step = Step { by: vec![0.0; rest.len()], products: 0, scale: 1.0 };
    let mut size = dot(&rest, &direction);
    let enough = FORCING * FORCING * size;
    while step.products < limit {
        let product = match precisely {
            true => objective.curvature::<f64>(here, &direction),
            false => objective.curvature::<f32>(here, &direction),
        };
        let curvature = dot(&direction, &product);
        step.products += 1;
        if !curvature.is_finite() || curvature <= 0.0 {
            if step.products == 1 {
                step.by = direction;
            }
            break;
        }
        let length = size / curvature;
        step.scale = step.scale.max(length);
        add_scaled(&mut step.by, length, &direction);
        add_scaled(&mut rest, -length, &product);
        let better = matrix.solve(&rest);
        let next = dot(&rest, &better);
        if next <= enough || next.is_nan() {
            break;
        }
        let keep = next / size;
        size = next;
        direction.iter_mut().zip(&better).for_each(|(d, b)| *d = b + keep * *d);
    }
    step
}

/// The end of the step, or the lowest point on the way there; none if nothing on the way is lower.
fn descend(objective: &Objective, here: &Point, step: &[f64], passes: &mut usize) -> Option<Point> {
    let slope = dot(&here.gradient, step);
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
