//! Subspaces of activations, and activations without them.

use std::path::Path;

use candle_core::{Device, Tensor};
use nalgebra::{DMatrix, DVector};

use crate::error::{Error, Result, shorten};
use crate::frame::to_f32;
use crate::limits;
use crate::random::{Stream, normal};
use crate::site::Site;
use crate::weights;

/// Keys of the metadata of a file.
const SITE: &str = "site";
const MODEL: &str = "model_sha256";

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

    /// Writes it as safetensors: `basis`, a row per direction; the site it belongs to and the fingerprint of its model are in the
    /// metadata.
    ///
    /// # Errors
    /// [`Error::CannotWrite`] or [`Error::Io`].
    pub fn save(&self, path: &Path, site: Site, fingerprint: &str) -> Result<()> {
        let width = self.basis.first().map_or(0, Vec::len);
        let values: Vec<f32> = self.basis.iter().flatten().map(|x| *x as f32).collect();
        let basis = Tensor::from_vec(values, (self.basis.len(), width), &Device::Cpu)?;
        let metadata = [(SITE.to_string(), site.to_string()), (MODEL.to_string(), fingerprint.to_string())].into();
        weights::write_tensors(path, &[("basis".to_string(), basis)], metadata)
    }

    /// Reads what [`Subspace::save`] wrote for a model of this fingerprint, with its site; none from a file of something else.
    ///
    /// # Errors
    /// [`Error::Data`] for a subspace of another model, or whose directions are not at right angles to each other, and as
    /// [`weights::read_tensors`].
    pub fn load(path: &Path, fingerprint: &str) -> Result<Option<(Self, Site)>> {
        let fault = |what: String| Error::data(path, what);
        let bytes = weights::read_tensors(path, 1 << 30)?;
        let Ok((_, header)) = safetensors::SafeTensors::read_metadata(&bytes) else { return Ok(None) };
        let metadata = header.metadata().clone().unwrap_or_default();
        let Some(site) = metadata.get(SITE) else { return Ok(None) };
        let site = site.parse().map_err(|e| fault(format!("{e}")))?;
        let Some(of) = metadata.get(MODEL) else {
            return Err(fault("its subspace says nothing of the model that it belongs to: find it anew".into()));
        };
        if of != fingerprint {
            let [of, own] = [of, fingerprint].map(|sha256| sha256.chars().take(12).collect::<String>());
            return Err(fault(format!(
                "its subspace is of a model with sha256 {}…, this one has {own}…: name that model, or find it anew",
                shorten(&of)
            )));
        }
        let tensors =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| fault(shorten(&e.to_string())))?;
        let basis = tensors.get("basis").filter(|basis| basis.rank() == 2);
        let basis = basis.ok_or_else(|| fault("its subspace has no basis".into()))?;
        let width = basis.dim(1)?;
        if width > limits::WIDTH || basis.dim(0)? > width {
            return Err(fault(format!(
                "its basis is {:?}: at most as many directions as coordinates, and at most {} of those",
                basis.dims(),
                limits::WIDTH
            )));
        }
        let rows: Vec<Vec<f64>> =
            to_f32(basis)?.chunks_exact(width.max(1)).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
        let read = Self::spanned(&rows);
        let straight = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        if rows.is_empty() || read.basis.len() != rows.len() || !read.basis.iter().zip(&rows).all(straight) {
            return Err(fault("its directions are not of length 1, or not at right angles to each other".into()));
        }
        Ok(Some((read, site)))
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
