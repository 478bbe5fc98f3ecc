//! The one trait between the model and everything that looks into it.

use candle_core::Tensor;

use crate::error::Result;
use crate::site::Site;

/// What the forward pass calls at every [`Site`].
///
/// The model is generic over this trait and knows nothing of plans, frames or figures. Most users write a
/// [`Plan`](crate::plan::Plan) instead of an implementation; a closure becomes one through [`from_fn`].
pub trait Hooks {
    /// Takes the value at `site` and returns the value that the rest of the model will use.
    ///
    /// The result must have the shape, dtype and device of `value`.
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor>;

    /// Whether [`Hooks::at`] has to see `site` at all.
    ///
    /// A value that nobody wants need not exist: per-head results are formed, and LayerNorm's scale, attention's
    /// maps and the MLP's input to its activation are kept, only where this says so. The answer changes no bit of the values that are formed, but for 16 bits
    /// on a GPU, where attention without maps adds up in another order.
    fn wants(&self, _site: Site) -> bool {
        true
    }
}

/// No hooks: every value passes through and the calls compile away.
impl Hooks for () {
    #[inline(always)]
    fn at(&mut self, _site: Site, value: Tensor) -> Result<Tensor> {
        Ok(value)
    }

    #[inline(always)]
    fn wants(&self, _site: Site) -> bool {
        false
    }
}

/// Hooks from a closure that sees every site.
pub fn from_fn<F: FnMut(Site, Tensor) -> Result<Tensor>>(f: F) -> FromFn<F> {
    FromFn(f)
}

/// See [`from_fn`].
pub struct FromFn<F>(F);

impl<F: FnMut(Site, Tensor) -> Result<Tensor>> Hooks for FromFn<F> {
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        (self.0)(site, value)
    }
}
