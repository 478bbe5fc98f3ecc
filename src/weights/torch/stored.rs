//! Tensors as a pickle of PyTorch describes them: a part of a storage, in steps.

use candle_core::DType;

use super::super::pickle::{Id, Pickle, Value};

/// Most elements of a tensor or a storage.
const MAX: usize = 1 << 40;

/// A tensor in a storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub storage: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Elements from one entry to the next, along each axis.
    stride: Vec<usize>,
    /// Elements before its first.
    offset: usize,
}

impl Stored {
    /// The arguments of `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)`, also where a parameter is
    /// wrapped around it.
    ///
    /// # Errors
    /// Why it can hold no weights.
    pub fn of(pickle: &Pickle, id: Id) -> Result<Self, String> {
        let no_tensor = || "is no tensor of weights".to_string();
        let arguments = rebuilt(pickle, id, 0).ok_or_else(no_tensor)?;
        let size = |id: &Id| match pickle.get(*id) {
            Value::Int(n) => usize::try_from(*n).ok().filter(|&n| n < MAX),
            _ => None,
        };
        let sizes = |id: Id| pickle.items(id)?.iter().map(size).collect::<Option<Vec<_>>>();
        let [storage, offset, shape, stride, ..] = arguments else { return Err(no_tensor()) };
        let Value::Persistent(storage) = pickle.get(*storage) else { return Err(no_tensor()) };
        let Some([_, class, key, ..]) = pickle.items(*storage) else { return Err(no_tensor()) };
        let (Value::Global(class), Value::Text(key)) = (pickle.get(*class), pickle.get(*key)) else {
            return Err(no_tensor());
        };
        let dtype = match class.as_str() {
            "torch.FloatStorage" => DType::F32,
            "torch.DoubleStorage" => DType::F64,
            "torch.HalfStorage" => DType::F16,
            "torch.BFloat16Storage" => DType::BF16,
            other => {
                let kind = other.strip_prefix("torch.").and_then(|kind| kind.strip_suffix("Storage")).unwrap_or(other);
                return Err(format!("is of type {kind}; weights must be Double, Float, Half or BFloat16"));
            }
        };
        let (Some(shape), Some(stride), Some(offset)) = (sizes(*shape), sizes(*stride), size(offset)) else {
            return Err(no_tensor());
        };
        let count = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).filter(|&n| n < MAX);
        if count.is_none() || shape.len() != stride.len() {
            return Err(no_tensor());
        }
        Ok(Self { storage: key.clone(), dtype, shape, stride, offset })
    }

    /// Bytes of an element of a storage by its class, weights or not.
    pub fn width(class: &str) -> Option<usize> {
        Some(match class.strip_prefix("torch.")?.strip_suffix("Storage")? {
            "Double" | "Long" => 8,
            "Float" | "Int" => 4,
            "Half" | "BFloat16" | "Short" => 2,
            "Byte" | "Char" | "Bool" => 1,
            _ => return None,
        })
    }

    /// Its values, row by row, from the bytes of its storage.
    ///
    /// # Errors
    /// Where it ends, and where the storage does.
    pub fn gather(&self, storage: &[u8]) -> Result<Vec<u8>, String> {
        let width = self.dtype.size_in_bytes();
        let count: usize = self.shape.iter().product();
        if count == 0 {
            return Ok(Vec::new());
        }
        let last = self
            .shape
            .iter()
            .zip(&self.stride)
            .try_fold(self.offset, |sum, (&d, &step)| sum.checked_add((d - 1).checked_mul(step)?));
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(width)).filter(|&end| end <= storage.len());
        let Some(end) = end else {
            let wanted =
                last.map_or("beyond all bounds".into(), |last| format!("at element {}", last.saturating_add(1)));
            let held = storage.len() / width;
            return Err(format!("storage {} has {held} elements; its tensor ends {wanted}", self.storage));
        };
        if self.stride == rows(&self.shape) {
            return Ok(storage[self.offset * width..end].to_vec());
        }
        let mut values = Vec::with_capacity(count * width);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let at = self.offset + index.iter().zip(&self.stride).map(|(i, step)| i * step).sum::<usize>();
            values.extend_from_slice(&storage[at * width..(at + 1) * width]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(values)
    }
}

/// The steps of a tensor that lies row by row.
fn rows(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        steps[axis - 1] = steps[axis] * shape[axis];
    }
    steps
}

/// The arguments with which a tensor would be made, found inside what wraps it.
fn rebuilt(pickle: &Pickle, id: Id, depth: usize) -> Option<&[Id]> {
    let Value::Call { function, arguments } = pickle.get(id) else { return None };
    rebuilt_by(pickle, *function, *arguments, depth)
}

fn rebuilt_by(pickle: &Pickle, function: Id, arguments: Id, depth: usize) -> Option<&[Id]> {
    let Value::Global(function) = pickle.get(function) else { return None };
    let items = pickle.items(arguments)?;
    match (function.as_str(), items) {
        ("torch._utils._rebuild_tensor_v2", _) => Some(items),
        _ if depth > 4 => None,
        ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [data, ..]) => {
            rebuilt(pickle, *data, depth + 1)
        }
        // (function, class, arguments, state)
        ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) => {
            rebuilt_by(pickle, *function, *arguments, depth + 1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_followed_and_never_past_the_end() {
        let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let view = |shape: &[usize], stride: &[usize], offset| Stored {
            storage: "0".into(),
            dtype: DType::F32,
            shape: shape.to_vec(),
            stride: stride.to_vec(),
            offset,
        };
        let read = |stored: Stored| {
            let bytes = stored.gather(&storage)?;
            Ok::<_, String>(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>(),
            )
        };
        assert_eq!(read(view(&[2, 3], &[3, 1], 0)).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read(view(&[3, 2], &[1, 3], 0)).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(read(view(&[2, 2], &[0, 1], 4)).unwrap(), [4.0, 5.0, 4.0, 5.0]);
        assert_eq!(read(view(&[], &[], 5)).unwrap(), [5.0]);
        for past in [view(&[2, 3], &[3, 1], 1), view(&[2], &[usize::MAX, 1][..1], 0), view(&[2, 2], &[5, 1], 0)] {
            assert!(read(past).unwrap_err().contains("has 6 elements"));
        }
    }
}
