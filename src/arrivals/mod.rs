//! Values of a device on their way to the host, while the device goes on computing.
//!
//! A plain copy from a GPU waits until all that was asked for before is computed, and then the GPU waits until it is asked for more.
//! Here a value is copied on a stream of its own into memory that the GPU writes by itself, and taken in by a thread of its own.

#[cfg(feature = "cuda")]
mod pinned;

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::frame;

/// What values of one device pass through; it keeps its memory from one run to the next.
pub struct Arrivals {
    #[cfg(feature = "cuda")]
    lane: Option<pinned::Lane>,
}

impl Arrivals {
    /// For values of a device.
    ///
    /// # Errors
    /// As candle, where a GPU does not answer.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self { lane: pinned::Lane::new(device)? });
        #[cfg(not(feature = "cuda"))]
        {
            let _ = device;
            Ok(Self {})
        }
    }

    /// Runs `compute`, which sends values, and calls `arrived` with the elements of each as f32, in the order in which they were sent:
    /// at once, or for values of a GPU in a thread of its own, after the copy. All have arrived when this returns.
    ///
    /// # Errors
    /// What `compute` returns, and [`crate::Error::TryAgain`] where there is no memory for the copies; `arrived` may then have had
    /// some of the values.
    pub fn each<K: Send, T>(
        &mut self,
        compute: impl FnOnce(&mut dyn FnMut(K, &Tensor) -> Result<()>) -> Result<T>,
        mut arrived: impl FnMut(K, &[f32]) + Send,
    ) -> Result<T> {
        #[cfg(feature = "cuda")]
        if let Some(lane) = &mut self.lane {
            return lane.each(compute, arrived);
        }
        compute(&mut |key, value| frame::with_f32(value, |all| arrived(key, all)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn values_arrive_in_their_order_and_faults_come_back() {
        let device = crate::device::find().0;
        let mut arrivals = Arrivals::new(&device).unwrap();
        let mut all = Vec::new();
        let sent = arrivals.each(
            |send| {
                for i in 0..20_u32 {
                    // Views too, of which only their own part arrives.
                    let x = Tensor::arange(0_f32, 12.0, &device)?.affine(1.0, f64::from(i))?.reshape((3, 4))?;
                    send(i, &x.narrow(1, 1, 2)?.t()?)?;
                }
                Ok(20)
            },
            |i, values| all.push((i, values.to_vec())),
        );
        assert_eq!(sent.unwrap(), 20);
        let wanted = |i: u32| (i, [1.0, 5.0, 9.0, 2.0, 6.0, 10.0].map(|x: f32| x + i as f32).to_vec());
        assert_eq!(all, (0..20).map(wanted).collect::<Vec<_>>());
        let failed =
            arrivals.each(|_: &mut dyn FnMut((), &Tensor) -> Result<()>| Err::<(), _>(Error::request("no")), |_, _| {});
        assert!(matches!(failed, Err(Error::Request(_))));
    }
}
