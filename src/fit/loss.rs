//! What a wrong score costs: log-loss of one score (two classes) or of a score per class, with its derivatives.

use ndarray::Array2;

/// The loss of one row. `scores` becomes the derivatives by the scores; `weights` what the curvature is made of:
/// p(1 − p) for one score, the probabilities for several.
pub(super) fn row(scores: &mut [f64], class: usize, weights: &mut [f32]) -> f64 {
    if let [z] = scores {
        let (e, positive) = ((-z.abs()).exp(), class == 1);
        let against = if positive { -*z } else { *z };
        let loss = e.ln_1p() + against.max(0.0);
        // The probability of the other class, without cancellation.
        let wrong = if against > 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
        *z = if positive { -wrong } else { wrong };
        weights[0] = (e / ((1.0 + e) * (1.0 + e))) as f32;
        return loss;
    }
    let own = scores[class];
    let loss = probabilities(scores) - own;
    for (weight, p) in weights.iter_mut().zip(&*scores) {
        *weight = *p as f32;
    }
    // p − 1 of the right class, without cancellation.
    scores[class] = -scores.iter().enumerate().filter(|(k, _)| *k != class).map(|(_, p)| p).sum::<f64>();
    loss
}

/// Loss, slope and curvature of one row on the line `z + t·dz`, by t.
pub(super) fn on_line(z: &[f64], dz: &[f64], t: f64, class: usize, scratch: &mut Vec<f64>) -> [f64; 3] {
    if let ([z], [dz]) = (z, dz) {
        let mut scores = [z + t * dz];
        let mut weight = [0.0];
        let loss = row(&mut scores, class, &mut weight);
        return [loss, scores[0] * dz, f64::from(weight[0]) * dz * dz];
    }
    scratch.clear();
    scratch.extend(z.iter().zip(dz).map(|(z, dz)| z + t * dz));
    let own = scratch[class];
    let loss = probabilities(scratch) - own;
    let mean: f64 = scratch.iter().zip(dz).map(|(p, dz)| p * dz).sum();
    let spread: f64 = scratch.iter().zip(dz).map(|(p, dz)| p * (dz - mean) * (dz - mean)).sum();
    [loss, mean - dz[class], spread]
}

/// Turns scores into probabilities and returns the logarithm of Σ eᶻ. The largest score of the row is subtracted first, so
/// nothing overflows and nothing that matters is rounded away.
pub(super) fn probabilities(scores: &mut [f64]) -> f64 {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut total = 0.0;
    for z in scores.iter_mut() {
        *z = (*z - largest).exp();
        total += *z;
    }
    scores.iter_mut().for_each(|p| *p /= total);
    total.ln() + largest
}

/// The probability of every class, from scores: a column per class.
pub(super) fn all_probabilities(mut scores: Array2<f64>) -> Array2<f64> {
    if scores.ncols() == 1 {
        return Array2::from_shape_fn((scores.nrows(), 2), |(i, class)| {
            sigmoid(if class == 1 { scores[[i, 0]] } else { -scores[[i, 0]] })
        });
    }
    let classes = scores.ncols();
    if let Some(scores) = scores.as_slice_mut() {
        scores.chunks_exact_mut(classes).for_each(|row| {
            probabilities(row);
        });
    }
    scores
}

fn sigmoid(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    if z >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_the_loss() {
        for scores in [vec![0.3], vec![-40.0], vec![0.1, 2.0, -1.0], vec![700.0, -700.0, 3.0]] {
            for class in 0..scores.len().max(2) {
                let loss = |z: &[f64]| row(&mut z.to_vec(), class, &mut vec![0.0; z.len()]);
                let mut slopes = scores.clone();
                row(&mut slopes, class, &mut vec![0.0; scores.len()]);
                for (i, slope) in slopes.into_iter().enumerate() {
                    let moved = |by: f64| {
                        let mut scores = scores.clone();
                        scores[i] += by;
                        loss(&scores)
                    };
                    let difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                    assert!((difference - slope).abs() < 1e-7, "{scores:?} {class} {i}: {difference} {slope}");
                }
                let dz: Vec<f64> = (0..scores.len()).map(|i| 1.0 - i as f64).collect();
                let line = |t: f64| on_line(&scores, &dz, t, class, &mut Vec::new());
                let slope = (line(1e-4)[0] - line(-1e-4)[0]) / 2e-4;
                let curvature = (line(1e-4)[1] - line(-1e-4)[1]) / 2e-4;
                assert!((slope - line(0.0)[1]).abs() < 1e-7 && (curvature - line(0.0)[2]).abs() < 1e-6, "{scores:?}");
            }
        }
    }
}
