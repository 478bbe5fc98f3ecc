//! Writing a part of a tensor: what an edit does.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, for_real, slice};
use super::{in_real, on_gpu};

/// `value` with the box `region` (one range per dimension) replaced by `part`, everything else to the bit.
pub fn write_region(value: &Tensor, part: &Tensor, region: &[Range<usize>]) -> Result<Tensor> {
    let part = part.to_dtype(super::real_dtype(value))?.contiguous()?;
    in_real(value, |value| value.contiguous()?.apply_op2(&part, Write { region: region.to_vec() }))
}

/// The box `region` of a tensor, as a view.
pub fn read_region(value: &Tensor, region: &[Range<usize>]) -> Result<Tensor> {
    region.iter().enumerate().try_fold(value.clone(), |part, (dim, range)| {
        if range.len() == part.dim(dim)? { Ok(part) } else { part.narrow(dim, range.start, range.len()) }
    })
}

struct Write {
    region: Vec<Range<usize>>,
}

impl Write {
    fn check(&self, value: &Layout, part: &Layout) -> Result<()> {
        let dims = value.shape().dims();
        let fits = self.region.len() == dims.len()
            && !dims.is_empty()
            && self.region.iter().zip(dims).all(|(range, &dim)| range.end <= dim)
            && self.region.iter().map(Range::len).eq(part.shape().dims().iter().copied());
        match fits {
            true => Ok(()),
            false => {
                candle_core::bail!("write-region: {:?} into {:?} at {:?}", part.shape(), value.shape(), self.region)
            }
        }
    }

    fn copy<T: Real>(&self, out: &mut [T], dims: &[usize], part: &[T]) {
        let inner: usize = dims[1..].iter().product();
        let part_inner: usize = self.region[1..].iter().map(Range::len).product();
        for (i, row) in self.region[0].clone().enumerate() {
            let (out, part) = (&mut out[row * inner..][..inner], &part[i * part_inner..][..part_inner]);
            match self.region.len() {
                1 => out.copy_from_slice(part),
                _ => Write { region: self.region[1..].to_vec() }.copy(out, &dims[1..], part),
            }
        }
    }
}

impl CustomOp2 for Write {
    fn name(&self) -> &'static str {
        "write-region"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.check(l1, l2)?;
        let dims = l1.shape().dims();
        for_real!(s1, "write-region", T => {
            let mut out = slice::<T>(s1, l1, "write-region")?.to_vec();
            self.copy(&mut out, dims, slice::<T>(s2, l2, "write-region")?);
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    on_gpu!(self, value, part => {
        self.check(value.1, part.1)?;
        cuda::write_region(value, part, &self.region)
    });

    fn bwd(
        &self,
        _value: &Tensor,
        part: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let to_value = write_region(grad, &part.zeros_like()?, &self.region)?;
        let to_part = read_region(grad, &self.region)?.contiguous()?;
        Ok((Some(to_value), Some(to_part)))
    }
}
