//! Subspaces of activations, and activations without them.

use std::path::Path;

use candle_core::{Device, Tensor};
use nalgebra::{DMatrix, DVector};

use crate::error::{Error, Result};
use crate::frame::to_f32;
use crate::random::{Stream, normal};
use crate::site::Site;
use crate::weights;

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

    /// The principal directions of some differences: those along which the sum of their squares is
    /// largest; fewer where the differences do not span so many.
    pub fn principal(differences: &[Vec<f64>], dimensions: usize) -> Self {
        let (n, d) = (differences.len(), differences.first().map_or(0, Vec::len));
        let (axes, _) = components(&DMatrix::from_fn(n, d, |row, dim| differences[row][dim]), dimensions);
        // What is left after the rank of the differences is rounding.
        let largest = axes.first().map_or(0.0, |(value, _)| *value);
        let real = axes.into_iter().filter(|(value, _)| *value > 1e-10 * largest);
        Self::spanned(&real.map(|(_, axis)| axis.iter().copied().collect()).collect::<Vec<_>>())
    }

    /// Writes it as safetensors: `basis`, a row per direction; the site it belongs to is in the metadata.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] or [`Error::Io`].
    pub fn save(&self, path: &Path, site: Site) -> Result<()> {
        let width = self.basis.first().map_or(0, Vec::len);
        let values: Vec<f32> = self.basis.iter().flatten().map(|x| *x as f32).collect();
        let basis = Tensor::from_vec(values, (self.basis.len(), width), &Device::Cpu)?;
        let metadata = [("site".to_string(), site.to_string())].into();
        weights::write_tensors(path, &[("basis".to_string(), basis)], metadata)
    }

    /// Reads what [`Subspace::save`] wrote, with its site.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is none, or whose directions are not at right angles to each other.
    pub fn load(path: &Path) -> Result<(Self, Site)> {
        let fault = |what: String| Error::data(path, what);
        let bytes = weights::read_small(path, 1 << 30)?;
        let none = || fault("holds no subspace; `interp subspace` writes such files".into());
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|_| none())?;
        let site = header.metadata().as_ref().and_then(|all| all.get("site")).ok_or_else(none)?;
        let site = site.parse().map_err(|e| fault(format!("{e}")))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|_| none())?;
        let basis = tensors.get("basis").filter(|basis| basis.rank() == 2).ok_or_else(none)?;
        let width = basis.dim(1)?;
        let rows: Vec<Vec<f64>> =
            to_f32(basis)?.chunks_exact(width.max(1)).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
        let read = Self::spanned(&rows);
        let straight = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        if rows.is_empty() || read.basis.len() != rows.len() || !read.basis.iter().zip(&rows).all(straight) {
            return Err(fault("its directions are not of length 1, or not at right angles to each other".into()));
        }
        Ok((read, site))
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

/// The first right singular vectors of rows, the largest first: each with the squared length of all rows along it, and as long as
/// the rows are along it. With them the squared length of all rows.
pub fn components(rows: &DMatrix<f64>, count: usize) -> (Vec<(f64, DVector<f64>)>, f64) {
    // Rows and columns have the same singular values: the smaller of the two products is decomposed.
    let wide = rows.nrows() <= rows.ncols();
    let product = if wide { rows * rows.transpose() } else { rows.tr_mul(rows) };
    let total = product.trace();
    let eigen = product.symmetric_eigen();
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let component = |&at: &usize| {
        let (value, vector) = (eigen.eigenvalues[at].max(0.0), eigen.eigenvectors.column(at));
        (value, if wide { rows.tr_mul(&vector) } else { vector * value.sqrt() })
    };
    (order.iter().take(count).map(component).collect(), total)
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
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
