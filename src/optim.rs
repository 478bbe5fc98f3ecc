//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), in place.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::Optimizer;

use crate::ops;

/// The knobs of [`AdamW`], named as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Step size.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second mean.
    pub eps: f64,
    /// Decay of parameters with two or more dimensions per unit of step size, as in nanoGPT: matrices and embeddings,
    /// not gains and biases.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    config: AdamWConfig,
    steps: u64,
}

/// One parameter with its two running means.
#[derive(Debug)]
struct Slot {
    var: Var,
    mean: Tensor,
    square: Tensor,
}

impl Optimizer for AdamW {
    type Config = AdamWConfig;

    fn new(vars: Vec<Var>, config: AdamWConfig) -> candle_core::Result<Self> {
        for (name, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                candle_core::bail!("{name} is {beta}; it must be at least 0 and below 1")
            }
        }
        let slots = vars
            .into_iter()
            .map(|var| Ok(Slot { mean: var.zeros_like()?, square: var.zeros_like()?, var }))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { slots, config, steps: 0 })
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        let zero = |var: &Var| var.zeros_like();
        let grads = self
            .slots
            .iter()
            .map(|slot| grads.get(&slot.var).cloned().map_or_else(|| zero(&slot.var), Ok))
            .collect::<candle_core::Result<Vec<_>>>()?;
        self.step_with(&grads, 1.0)
    }

    fn learning_rate(&self) -> f64 {
        self.config.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.config.lr = lr;
    }
}

impl AdamW {
    /// One step with one gradient per parameter, in the order of the parameters, each times `scale`: below 1 to clip.
    ///
    /// # Errors
    /// Gradients that do not fit the parameters.
    pub fn step_with(&mut self, grads: &[Tensor], scale: f64) -> candle_core::Result<()> {
        if grads.len() != self.slots.len() {
            candle_core::bail!("{} gradients for {} parameters", grads.len(), self.slots.len())
        }
        self.steps += 1;
        let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = self.config;
        let steps = self.steps as f64;
        for (slot, grad) in self.slots.iter().zip(grads) {
            let adam = ops::AdamStep {
                scale,
                mean: beta1,
                square: beta2,
                step: lr / (1.0 - beta1.powf(steps)),
                correction: 1.0 / (1.0 - beta2.powf(steps)).sqrt(),
                eps,
                decay: if slot.var.rank() >= 2 { 1.0 - lr * weight_decay } else { 1.0 },
            };
            ops::adamw(slot.var.as_tensor(), &slot.mean, &slot.square, &grad.contiguous()?, adam)?;
        }
        Ok(())
    }

    /// How many steps were taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state of each parameter, `(mean, mean of squares)`, in the order of the parameters.
    pub fn state(&self) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        self.slots.iter().map(|slot| (&slot.mean, &slot.square))
    }

    /// Puts a state back, as [`AdamW::state`] gave it after `steps` steps.
    ///
    /// # Errors
    /// A state that does not fit the parameters.
    pub fn restore(&mut self, steps: u64, state: Vec<(Tensor, Tensor)>) -> candle_core::Result<()> {
        let fits = |(slot, (mean, square)): (&Slot, &(Tensor, Tensor))| {
            slot.var.dims() == mean.dims() && slot.var.dims() == square.dims()
        };
        if state.len() != self.slots.len() || !self.slots.iter().zip(&state).all(fits) {
            candle_core::bail!("the optimizer state does not fit the parameters")
        }
        self.steps = steps;
        for (slot, (mean, square)) in self.slots.iter_mut().zip(state) {
            (slot.mean, slot.square) = (mean.copy()?, square.copy()?);
        }
        Ok(())
    }
}
