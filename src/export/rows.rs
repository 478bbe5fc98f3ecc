//! Rows that were computed and not written yet.

use crate::random::{SliceRandom, stream};

/// Some rows of a part.
#[derive(Default)]
pub(super) struct Rows {
    /// The sequence of each.
    pub(super) prompt: Vec<u32>,
    /// The document of each.
    pub(super) document: Vec<u32>,
    /// The position of each.
    pub(super) pos: Vec<u32>,
    /// The token of each.
    pub(super) token_id: Vec<u32>,
    /// Per site, `[row, width]`.
    pub(super) values: Vec<Vec<f32>>,
}

impl Rows {
    /// No rows of so many sites.
    pub(super) fn new(sites: usize) -> Self {
        Self { values: vec![Vec::new(); sites], ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.prompt.len()
    }

    /// Forgets the rows and keeps their memory.
    pub(super) fn clear(&mut self) {
        [&mut self.prompt, &mut self.document, &mut self.pos, &mut self.token_id].into_iter().for_each(Vec::clear);
        self.values.iter_mut().for_each(Vec::clear);
    }

    /// The rows of a part in an order that is drawn from `seed`, `most` at a time.
    pub(super) fn shuffled(&self, widths: &[usize], most: usize, seed: u64, part: u64) -> impl Iterator<Item = Self> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(&mut stream(seed, "order of rows", part));
        let starts = (0..order.len()).step_by(most);
        starts.map(move |start| self.picked(&order[start..order.len().min(start + most)], widths))
    }

    fn picked(&self, rows: &[usize], widths: &[usize]) -> Self {
        let of = |column: &[u32]| rows.iter().map(|i| column[*i]).collect();
        let wide = |(values, width): (&Vec<f32>, &usize)| {
            rows.iter().flat_map(|i| values[i * width..(i + 1) * width].iter().copied()).collect()
        };
        Self {
            prompt: of(&self.prompt),
            document: of(&self.document),
            pos: of(&self.pos),
            token_id: of(&self.token_id),
            values: self.values.iter().zip(widths).map(wide).collect(),
        }
    }
}
