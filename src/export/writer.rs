//! Writing parts while the next rows are computed.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender};

use half::f16;
use polars::prelude::*;
use rayon::ThreadPool;
use rayon::prelude::*;

use super::rows::Rows;
use crate::dataset::lock::Lock;
use crate::dataset::manifest::Record;
use crate::dataset::plan::{Dtype, Plan};
use crate::dataset::statistics::Statistics;
use crate::disk;
use crate::error::{Error, Result};
use crate::shard::{Layout, PLAN, Real, Shard, ShardOptions, Values, Wide};
use crate::site::Site;
use crate::text::Tokenizer;
use crate::weights::Sha256Writer;

/// What it takes to write the parts of a plan.
pub(super) struct Writer<'a> {
    pub(super) dir: &'a Path,
    pub(super) plan: &'a Plan,
    pub(super) id: &'a str,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) labels: Option<&'a DataFrame>,
    pub(super) sites: &'a [Site],
    pub(super) widths: &'a [usize],
    pub(super) pool: &'a ThreadPool,
    /// What keeps others from writing the same parts.
    pub(super) locks: &'a [Lock],
}

/// Some rows of the part with this number.
pub(super) type Share = (usize, Rows);

impl Writer<'_> {
    /// Writes parts, whose rows come one after the other, until no more come. Rows that are written go back, to be filled
    /// again.
    ///
    /// A part whose rows stop coming before it is whole is not written: whoever computes them knows why.
    pub(super) fn write_all(&self, shares: &Receiver<Share>, used: &Sender<Rows>) -> Result<()> {
        let mut next = shares.recv().ok();
        while let Some((index, rows)) = next {
            match self.write_part(index, rows, shares, used) {
                Err(Error::Interrupted(_)) => return Ok(()),
                written => written?,
            }
            next = shares.recv().ok();
        }
        Ok(())
    }

    fn write_part(&self, index: usize, first: Rows, shares: &Receiver<Share>, used: &Sender<Rows>) -> Result<()> {
        let (file, planned) = (self.plan.part_file(index), self.plan.parts[index].rows);
        let path = self.dir.join(&file);
        self.locks.iter().try_for_each(Lock::check)?;
        let (statistics, (sha256, bytes)) = disk::write_with(&path, |to| {
            let mut hashed = Sha256Writer::new(to);
            let statistics = self.fill(&path, &mut hashed, planned, first, shares, used)?;
            Ok((statistics, hashed.finish()))
        })?;
        Record { plan: self.id.to_string(), part: index, file, sha256, bytes, rows: planned, statistics }
            .save(self.dir, index)
    }

    fn fill(
        &self,
        path: &Path,
        to: &mut dyn Write,
        planned: u64,
        first: Rows,
        shares: &Receiver<Share>,
        used: &Sender<Rows>,
    ) -> Result<BTreeMap<String, Statistics>> {
        let request = &self.plan.request;
        let real = if request.dtype == Dtype::F16 { Real::F16 } else { Real::F32 };
        let name = |site: &Site| if request.layout == Layout::Saelens { site.long() } else { site.to_string() };
        let wide: Vec<Wide> =
            self.sites.iter().zip(self.widths).map(|(site, width)| Wide::new(name(site), real, *width)).collect();
        let schema = self.identity(&Rows::new(0))?.schema().clone();
        let metadata = [(PLAN, self.id)];
        let options = ShardOptions { path, identity: &schema, wide: &wide, metadata: &metadata };
        let mut shard = request.layout.writer(to, &options, request.cut.context)?;
        let mut statistics: Vec<Statistics> =
            self.widths.iter().map(|width| Statistics::new(*width, request.covariance)).collect();
        let (mut rows, mut left) = (first, planned);
        loop {
            left = left
                .checked_sub(rows.len() as u64)
                .ok_or_else(|| Error::Bug(format!("{}: more rows than planned", path.display())))?;
            self.write_rows(&rows, &mut statistics, shard.as_mut())?;
            rows.clear();
            let _ = used.send(rows); // nobody may want them any more
            if left == 0 {
                break;
            }
            rows = shares.recv().map_err(|_| Error::Interrupted(String::new()))?.1;
        }
        shard.finish()?;
        Ok(self.sites.iter().map(Site::to_string).zip(statistics).collect())
    }

    /// Writes rows as a row group, and counts them.
    fn write_rows(&self, rows: &Rows, statistics: &mut [Statistics], shard: &mut dyn Shard) -> Result<()> {
        let request = &self.plan.request;
        let identity = self.identity(rows)?;
        self.pool.install(|| {
            rows.values.par_iter().zip(self.widths).zip(statistics).for_each(|((values, width), statistics)| {
                statistics.add(&Statistics::of(values, *width, request.covariance));
            });
        });
        if request.dtype == Dtype::F32 {
            let values: Vec<Values<'_>> = rows.values.iter().map(|values| Values::F32(values)).collect();
            return shard.write(&identity, &values);
        }
        let round = |values: &Vec<f32>| values.iter().map(|x| f16::from_f32(*x)).collect();
        let halves: Vec<Vec<f16>> = self.pool.install(|| rows.values.par_iter().map(round).collect());
        shard.write(&identity, &halves.iter().map(|values| Values::F16(values)).collect::<Vec<_>>())
    }

    /// What tells rows apart: `prompt`, `document`, `pos`, `token_id`, `token` and the labels.
    fn identity(&self, rows: &Rows) -> Result<DataFrame> {
        let token: Vec<String> = rows.token_id.iter().map(|id| self.tokenizer.text(*id)).collect();
        let mut frame = df!(
            "prompt" => &rows.prompt,
            "document" => &rows.document,
            "pos" => &rows.pos,
            "token_id" => &rows.token_id,
            "token" => token,
        )?;
        if let Some(labels) = self.labels {
            let index = IdxCa::from_vec("document".into(), rows.document.clone());
            frame.hstack_mut(labels.take(&index)?.columns())?;
        }
        Ok(frame)
    }
}
