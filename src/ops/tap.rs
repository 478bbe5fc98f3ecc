//! Values whose gradients are kept: candle keeps gradients of variables only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var};

use super::on_gpu;

/// Values that were tapped, by name.
#[derive(Debug)]
pub struct Taps<K> {
    // Locked for a whole backward pass, so that two of them do not mix.
    all: Mutex<BTreeMap<K, Tap>>,
}

impl<K> Default for Taps<K> {
    fn default() -> Self {
        Self { all: Mutex::default() }
    }
}

impl<K: Copy + Ord> Taps<K> {
    /// The value as it is; its gradient will be kept under `name`.
    pub fn tap(&mut self, name: K, x: &Tensor) -> Result<Tensor> {
        let tap = Tap::default();
        // Nothing comes back through what depends on no variable.
        let x = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
        let x = x.apply_op1(tap.clone())?;
        self.all.get_mut().unwrap_or_else(PoisonError::into_inner).insert(name, tap);
        Ok(x)
    }

    /// The gradients of a number that was computed from tapped values; none for those that it does not depend on. One pass at a time:
    /// not for several tasks of one thread pool at once.
    pub fn backward(&self, number: &Tensor) -> Result<BTreeMap<K, Option<Tensor>>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        // What an earlier pass left that failed half-way.
        all.values().for_each(|tap| *tap.slot() = None);
        if number.track_op() {
            number.backward()?;
        }
        Ok(all.iter().map(|(name, tap)| (*name, tap.slot().take())).collect())
    }
}

/// Keeps the gradient that comes by.
#[derive(Clone, Debug, Default)]
struct Tap(Arc<Mutex<Option<Tensor>>>);

impl Tap {
    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Tensor>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CustomOp1 for Tap {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        copied(x, layout)
    }

    on_gpu!(self, x => copied(x.0, x.1));

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        *self.slot() = Some(grad.clone());
        Ok(Some(grad.clone()))
    }
}

/// An operation returns a storage of its own, row by row.
fn copied<S>(x: &S, layout: &Layout) -> Result<(S, Shape)>
where
    S: BackendStorage,
    S::Device: BackendDevice<Storage = S>,
{
    let mut out = x.device().zeros_impl(layout.shape(), x.dtype())?;
    x.copy_strided_src(&mut out, 0, layout)?;
    Ok((out, layout.shape().clone()))
}
