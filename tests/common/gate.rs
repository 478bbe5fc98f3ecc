//! How closely numbers have to agree, and why that closely.
//!
//! Two ways of computing the same numbers differ in the order of their sums: by the width of vectors (4, 8 or 16 numbers), by fused or
//! separate multiplication, by threads, batches and libraries. Each rounding is a share of what is rounded, so every gate is a share of a
//! size: of the largest value that is compared, or of what the compared numbers are differences of. A metric that is a difference of
//! logits is rounded as the logits are.
//!
//! A bare 1e-9 or 1e-12 elsewhere in the tests is of a few operations in f64, one after the other, on numbers of order 1.
//!
//! The shares leave room for any machine, and are far below what a wrong term, a wrong position or a wrong formula does.
#![allow(dead_code)]

use candle_core::Tensor;

/// f32 against f32. A rounding is 2⁻²⁴, 6e-8; a value of the small models here stands at the end of a few dozen sums of 6 to 3,000
/// products, whose roundings add up as a walk at random does: some 1e-6. An attention map, a mask or a head that is wrong: 1e-2.
pub const F32: f64 = 2e-5;

/// f32 against f32 where gradients pass through the whole model, or where small numbers divide (LayerNorm of a short vector, steps of
/// Adam): a few times more roundings, each of the size of what is summed rather than of the sum.
pub const F32_GRADIENT: f64 = 1e-4;

/// f32 against f32 after some steps of an optimiser. Adam divides by the size of the gradient, so that roundings of small gradients
/// become shares of a step.
pub const TRAINED: f64 = 1e-3;

/// What README promises of every site, relative to its largest value, against Hugging Face and TransformerLens.
pub const PROMISED: f64 = 1e-4;

/// f16 and bf16 against f32: a rounding is 2⁻¹¹ = 5e-4 or 2⁻⁸ = 4e-3; sums are in f32, so that a few roundings remain.
pub const F16: f64 = 4e-3;
pub const BF16: f64 = 3e-2;

/// f64 against f64: a rounding is 2⁻⁵³, 1e-16, and 1e4 of them do not come to this.
pub const F64: f64 = 1e-11;

/// f64 against f64 where gradients pass through the whole model.
pub const F64_GRADIENT: f64 = 1e-9;

/// The size of some numbers: that of the largest.
pub fn size(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))
}

/// The size of a tensor without its infinities, which stand for what a mask hides.
pub fn size_of(tensor: &Tensor) -> f64 {
    size(super::values(tensor).into_iter().filter(|x| x.is_finite()))
}

/// Whether two numbers of this size agree; NaN agrees with nothing.
pub fn agree(found: f64, wanted: f64, gate: f64, size: f64) -> bool {
    found == wanted || (found - wanted).abs() <= gate * size
}

/// Asserts that some numbers agree, relative to the largest of those that are wanted.
pub fn assert_agree(what: &str, found: &[f64], wanted: &[f64], gate: f64) {
    assert_agree_at(what, found, wanted, gate, size(wanted.iter().copied()));
}

/// Asserts that some numbers agree, relative to the size of what they are differences of.
pub fn assert_agree_at(what: &str, found: &[f64], wanted: &[f64], gate: f64, size: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let away = (found - wanted).abs() / size;
        assert!(
            agree(*found, *wanted, gate, size),
            "{what} {i}: {found} instead of {wanted}, {away:e} of {size}, over {gate:e}"
        );
    }
}

/// The largest difference of two tensors, as a share of the size of the second.
pub fn apart(found: &Tensor, wanted: &Tensor) -> f64 {
    match super::max_difference(found, wanted) {
        0.0 => 0.0,
        difference => difference / size_of(wanted),
    }
}
