//! Subspaces of activations, and activations without them.

use crate::random::{Stream, normal};

/// Directions of length 1, at right angles to each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Subspace {
    basis: Vec<Vec<f64>>,
}

impl Subspace {
    /// What some directions span (Gram–Schmidt, twice over); those that are others over again add nothing.
    pub fn spanned(directions: &[Vec<f64>]) -> Self {
        let mut basis: Vec<Vec<f64>> = Vec::new();
        for direction in directions {
            let mut rest = direction.clone();
            for _ in 0..2 {
                for own in &basis {
                    let along = dot(&rest, own);
                    rest.iter_mut().zip(own).for_each(|(x, own)| *x -= along * own);
                }
            }
            let length = dot(&rest, &rest).sqrt();
            if length > 1e-9 * dot(direction, direction).sqrt() {
                rest.iter_mut().for_each(|x| *x /= length);
                basis.push(rest);
            }
        }
        Self { basis }
    }

    /// One of so many dimensions that lies anywhere.
    pub fn random(dimensions: usize, width: usize, rng: &mut Stream) -> Self {
        let all: Vec<Vec<f64>> = (0..dimensions).map(|_| (0..width).map(|_| normal(rng)).collect()).collect();
        Self::spanned(&all)
    }

    /// Its dimensions.
    pub fn dimensions(&self) -> usize {
        self.basis.len()
    }

    /// Its basis.
    pub fn basis(&self) -> &[Vec<f64>] {
        &self.basis
    }

    /// What has to be added to an activation so that it is where `center` is, as far as this space tells.
    pub fn removal(&self, x: &[f32], center: &[f64]) -> Vec<f64> {
        let away: Vec<f64> = x.iter().zip(center).map(|(x, center)| f64::from(*x) - center).collect();
        let mut out = vec![0.0; x.len()];
        for own in &self.basis {
            let along = dot(&away, own);
            out.iter_mut().zip(own).for_each(|(out, own)| *out -= along * own);
        }
        out
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    #[test]
    fn what_is_removed_is_gone() {
        let (mut rng, width) = (stream(0, "test", 0), 7);
        let mut draw = || (0..width).map(|_| normal(&mut rng)).collect::<Vec<f64>>();
        let (a, b, center) = (draw(), draw(), draw());
        let both: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 2.0 * a - b).collect();
        let space = Subspace::spanned(&[a.clone(), vec![0.0; width], b.clone(), both]);
        assert_eq!(space.dimensions(), 2);
        let x: Vec<f32> = draw().into_iter().map(|x| x as f32).collect();
        let moved: Vec<f64> = x.iter().zip(space.removal(&x, &center)).map(|(x, by)| f64::from(*x) + by).collect();
        for direction in [&a, &b] {
            assert!((dot(&moved, direction) - dot(&center, direction)).abs() < 1e-12);
        }
        // At right angles to the space nothing moves.
        let rest = space.removal(&x, &center);
        let inside = Subspace::spanned(&[a, b, rest]);
        assert_eq!(inside.dimensions(), 2);
        assert_eq!(Subspace::random(3, width, &mut stream(1, "test", 0)).dimensions(), 3);
    }
}
