//! Σ loss + α/2·|w|², its gradient and its curvature, in one pass over the rows each.
//!
//! Parameters are one vector: for every score its weights, then its intercept. Two classes have one score.

use std::ops::Range;

use rayon::prelude::*;

use super::block::{Sum, add_scaled, blocks, dot, sum, there_and_back};
use super::features::Features;
use super::loss;
use crate::ops::gemm::{Threads, View, gemm};
use crate::ops::real::{Real, vectorised};

/// Rows whose copies are multiplied at a time, for several scores.
const SLICE: usize = 64;

pub(super) struct Objective<'a> {
    pub x: &'a Features<'a>,
    pub y: &'a [usize],
    /// Scores per row: 1 for two classes.
    pub scores: usize,
    pub alpha: f64,
}

/// A place in the space of parameters, and what is known there.
pub(super) struct Point {
    pub theta: Vec<f64>,
    pub value: f64,
    pub gradient: Vec<f64>,
    /// The scores of every row.
    z: Vec<f64>,
    /// See [`loss::row`].
    weights: Vec<f32>,
}

/// What one block of rows adds.
struct Part {
    loss: f64,
    z: Vec<f64>,
    weights: Vec<f32>,
    gradient: Vec<f64>,
}

impl Objective<'_> {
    /// Numbers per score: the weights and the intercept.
    pub fn width(&self) -> usize {
        self.x.shape().1 + 1
    }

    /// The objective and its gradient, both in f64.
    pub fn at(&self, theta: Vec<f64>) -> Point {
        let parts: Vec<Part> = blocks(self.y.len())
            .into_par_iter()
            .map(|rows| if self.scores == 1 { self.one_score(&theta, rows) } else { self.several_scores(&theta, rows) })
            .collect();
        let (mut value, mut z, mut weights, mut gradients) = (0.0, Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            value += part.loss;
            z.extend(part.z);
            weights.extend(part.weights);
            gradients.push(part.gradient);
        }
        let mut gradient = sum(gradients);
        for (gradient, theta) in gradient.chunks_exact_mut(self.width()).zip(theta.chunks_exact(self.width())) {
            let (w, gradient) = (&theta[..theta.len() - 1], &mut gradient[..theta.len() - 1]);
            value += 0.5 * self.alpha * dot(w, w);
            add_scaled(gradient, self.alpha, w);
        }
        Point { theta, value, gradient, z, weights }
    }

    fn one_score(&self, theta: &[f64], rows: Range<usize>) -> Part {
        let (w, intercept) = (&theta[..theta.len() - 1], theta[theta.len() - 1]);
        let (mut loss, mut total) = (0.0, 0.0);
        let (mut z, mut weights) = (Vec::with_capacity(rows.len()), vec![0.0; rows.len()]);
        let mut gradient = vec![0.0; theta.len()];
        there_and_back(self.x.part(rows.clone()), w, &mut gradient[..w.len()], |first, mut products, count| {
            for (i, product) in products.iter_mut().take(count).enumerate() {
                *product += intercept;
                z.push(*product);
                let at = first + i;
                let class = self.y[rows.start + at];
                loss += loss::row(std::slice::from_mut(product), class, &mut weights[at..=at]);
                total += *product;
            }
            products
        });
        gradient[w.len()] = total;
        Part { loss, z, weights, gradient }
    }

    fn several_scores(&self, theta: &[f64], rows: Range<usize>) -> Part {
        let (width, k) = (self.width(), self.scores);
        let d = width - 1;
        let mut loss = 0.0;
        let (mut z, mut weights) = (Vec::with_capacity(rows.len() * k), vec![0.0; rows.len() * k]);
        let mut gradient = vec![0.0; theta.len()];
        let mut back = vec![0.0; SLICE * k];
        let mut wide = vec![0.0; SLICE * d];
        for first in rows.clone().step_by(SLICE) {
            let slice = first..(first + SLICE).min(rows.end);
            let n = slice.len();
            let (wide, back) = (&mut wide[..n * d], &mut back[..n * k]);
            self.widen(slice.clone(), wide);
            let x = View::new(wide, (n, d), (d, 1));
            gemm(back, k, x, View::new(theta, (d, k), (1, width)), 1.0, false, Threads::One);
            for (i, back) in back.chunks_exact_mut(k).enumerate() {
                back.iter_mut().zip(theta.chunks_exact(width)).for_each(|(z, theta)| *z += theta[d]);
                z.extend_from_slice(back);
                let at = slice.start - rows.start + i;
                loss += loss::row(back, self.y[slice.start + i], &mut weights[at * k..(at + 1) * k]);
                gradient.chunks_exact_mut(width).zip(&*back).for_each(|(gradient, slope)| gradient[d] += slope);
            }
            let slopes = View::new(back, (n, k), (k, 1));
            gemm(&mut gradient, width, slopes.transposed(), x, 1.0, true, Threads::One);
        }
        Part { loss, z, weights, gradient }
    }

    /// The curvature at a point times a vector. In f32 as a rule: it is the gradient that says where the optimum is, and
    /// this only how to get there.
    pub fn curvature<T: Sum + Real>(&self, at: &Point, v: &[f64]) -> Vec<f64> {
        let width = self.width();
        let v_t: Vec<T> = v.iter().map(|&v| <T as Real>::of(v)).collect();
        let parts: Vec<Vec<f64>> = blocks(self.y.len())
            .into_par_iter()
            .map(|rows| {
                let weights = &at.weights[rows.start * self.scores..rows.end * self.scores];
                let mut out = vec![T::default(); v.len()];
                if self.scores == 1 {
                    self.curve_one(rows, weights, &v_t, &mut out);
                } else {
                    self.curve_several(rows, weights, &v_t, &mut out);
                }
                out.into_iter().map(Into::into).collect()
            })
            .collect();
        let mut out = sum(parts);
        for (out, v) in out.chunks_exact_mut(width).zip(v.chunks_exact(width)) {
            add_scaled(&mut out[..width - 1], self.alpha, &v[..width - 1]);
        }
        out
    }

    fn curve_one<T: Sum + Real>(&self, rows: Range<usize>, weights: &[f32], v: &[T], out: &mut [T]) {
        let (d, mut total) = (v.len() - 1, T::default());
        there_and_back(self.x.part(rows), &v[..d], &mut out[..d], |first, mut products, count| {
            for (i, product) in products.iter_mut().take(count).enumerate() {
                *product = (*product + v[d]) * <T as From<f32>>::from(weights[first + i]);
                total += *product;
            }
            products
        });
        out[d] = total;
    }

    fn curve_several<T: Sum + Real>(&self, rows: Range<usize>, weights: &[f32], v: &[T], out: &mut [T]) {
        let (width, k) = (self.width(), self.scores);
        let d = width - 1;
        let (mut wide, mut back) = (vec![T::default(); SLICE * d], vec![T::default(); SLICE * k]);
        for first in rows.clone().step_by(SLICE) {
            let slice = first..(first + SLICE).min(rows.end);
            let weights = &weights[(first - rows.start) * k..(slice.end - rows.start) * k];
            let (wide, back) = (&mut wide[..slice.len() * d], &mut back[..slice.len() * k]);
            self.widen(slice.clone(), wide);
            let x = View::new(wide, (slice.len(), d), (d, 1));
            gemm(back, k, x, View::new(v, (d, k), (1, width)), T::one(), false, Threads::One);
            for (u, p) in back.chunks_exact_mut(k).zip(weights.chunks_exact(k)) {
                // Beside the likeliest class, whose 1 − p would be rounded away.
                let likeliest = (0..k).fold(0, |best, class| if p[class] > p[best] { class } else { best });
                let own = u[likeliest] + v[likeliest * width + d];
                let mut mean = T::default();
                for ((u, v), &p) in u.iter_mut().zip(v.chunks_exact(width)).zip(p) {
                    *u = *u + v[d] - own;
                    mean += *u * <T as From<f32>>::from(p);
                }
                for ((u, out), &p) in u.iter_mut().zip(out.chunks_exact_mut(width)).zip(p) {
                    *u = <T as From<f32>>::from(p) * (*u - mean);
                    out[d] += *u;
                }
            }
            let sent = View::new(back, (slice.len(), k), (k, 1));
            gemm(out, width, sent.transposed(), x, T::one(), true, Threads::One);
        }
    }

    /// Copies rows into the type that they are multiplied in.
    fn widen<T: Sum>(&self, rows: Range<usize>, out: &mut [T]) {
        let values = self.x.part(rows);
        vectorised!(for (out, &x) in out.iter_mut().zip(values) {
            *out = <T as From<f32>>::from(x);
        });
    }

    /// How much each row curves the objective, on average over directions in the space of scores: its weight in the matrix
    /// that stands for the curvature.
    pub fn row_weights(&self, at: &Point) -> Vec<f64> {
        let k = self.scores;
        if k == 1 {
            return at.weights.iter().map(|&w| f64::from(w)).collect();
        }
        // Σ p(1 − p), where 1 − p is what the other classes have.
        let mean = |p: &[f32]| {
            let mut sums = [0.0; 2];
            for &p in p {
                let p = f64::from(p);
                sums = [sums[0] + p, sums[1] + p * sums[0]];
            }
            2.0 * sums[1] / (k - 1) as f64
        };
        at.weights.chunks_exact(k).map(mean).collect()
    }

    /// The step t in 0…1 along `end − start` at which the objective is smallest, without another pass: scores are linear
    /// in t. Newton's method on the slope, kept between bounds by bisection.
    pub fn shorter(&self, start: &Point, end: &Point) -> f64 {
        let width = self.width();
        let mut penalty = [0.0; 2];
        for (a, b) in start.theta.chunks_exact(width).zip(end.theta.chunks_exact(width)) {
            for (a, b) in a[..width - 1].iter().zip(&b[..width - 1]) {
                penalty[0] += self.alpha * a * (b - a);
                penalty[1] += self.alpha * (b - a) * (b - a);
            }
        }
        let (k, dz) = (self.scores, end.z.iter().zip(&start.z).map(|(b, a)| b - a).collect::<Vec<_>>());
        let slope_and_curvature = |t: f64| {
            let parts: Vec<[f64; 2]> = blocks(self.y.len())
                .into_par_iter()
                .map(|rows| {
                    let (mut sums, mut scratch) = ([0.0; 2], Vec::new());
                    for i in rows {
                        let row = i * k..(i + 1) * k;
                        let [_, slope, curvature] =
                            loss::on_line(&start.z[row.clone()], &dz[row], t, self.y[i], &mut scratch);
                        sums[0] += slope;
                        sums[1] += curvature;
                    }
                    sums
                })
                .collect();
            parts.iter().fold([penalty[0] + t * penalty[1], penalty[1]], |[s, c], [ds, dc]| [s + ds, c + dc])
        };
        let (mut low, mut high, mut t) = (0.0, 1.0, 0.5);
        for _ in 0..40 {
            let [slope, curvature] = slope_and_curvature(t);
            if slope > 0.0 {
                high = t
            } else {
                low = t
            }
            let newton = t - slope / curvature;
            let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
            if (next - t).abs() <= 1e-3 * t {
                return next;
            }
            t = next;
        }
        t
    }
}
