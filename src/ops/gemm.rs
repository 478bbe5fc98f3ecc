//! The matrix product, behind bounds checks: the one place of the arithmetic with `unsafe` code.

use super::real::Real;

/// A matrix inside a slice: element (i, j) is `data[i·row + j·col]`.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl<'a, T> View<'a, T> {
    /// # Panics
    /// If an element would lie outside `data`.
    pub fn new(data: &'a [T], (rows, cols): (usize, usize), (row, col): (usize, usize)) -> Self {
        assert!(fits(data.len(), (rows, cols), (row, col)), "matrix view out of bounds");
        Self { data, rows, cols, row, col }
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row: self.col, col: self.row, ..self }
    }
}

fn fits(len: usize, (rows, cols): (usize, usize), (row, col): (usize, usize)) -> bool {
    if rows == 0 || cols == 0 {
        return true;
    }
    let last = (rows - 1).checked_mul(row).zip((cols - 1).checked_mul(col));
    last.and_then(|(i, j)| i.checked_add(j)).is_some_and(|last| last < len)
}

/// Whether a product may use other threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// This one alone: the caller shares out the work.
    One,
    /// All of the current rayon pool.
    All,
}

/// `out[i·stride + j] = scale · Σₖ a[i,k]·b[k,j]`, added to what is there when `add` is set.
///
/// # Panics
/// If the shapes do not fit together or `out` is too short.
pub fn gemm<T: Real>(
    out: &mut [T],
    stride: usize,
    a: View<'_, T>,
    b: View<'_, T>,
    scale: T,
    add: bool,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner dimensions differ");
    assert!(n <= stride || m <= 1, "rows of the product would overlap");
    assert!(fits(out.len(), (m, n), (stride, 1)), "product out of bounds");
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: `View::new` and the assertions above keep every element that gemm reads or writes inside its slice;
    // `out` is borrowed mutably, so it overlaps neither operand; T is f32 or f64, for which gemm has kernels.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            T::one(),
            scale,
            false,
            false,
            false,
            parallelism,
        )
    }
}
