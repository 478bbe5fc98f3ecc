//! A plan says what to read, what to change and where gradients are wanted; a trace is what happened.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use crate::config::Config;
use crate::edit::{Edit, Window};
use crate::error::{Error, Result};
use crate::gpt2::{Gpt2, LogitsAt, Pass};
use crate::hooks::Hooks;
use crate::influence;
use crate::kv::KvCache;
use crate::ops::{self, Taps};
use crate::site::Site;
use crate::tokens::Tokens;

/// What to read, change and differentiate in one run of the model.
///
/// A plan is checked whole before anything runs, and every site in it is visited exactly once or the run fails: an
/// intervention cannot silently do nothing.
///
/// ```no_run
/// # use interp::{Edit, Gpt2, Plan, Result, Site, Tokens};
/// # fn example(model: &Gpt2, tokens: &Tokens, direction: &candle_core::Tensor) -> Result<()> {
/// let trace = Plan::new()
///     .read(Site::ResidPost(6))
///     .edit(Edit::zero(Site::Z(9)).head(6))
///     .edit(Edit::add(Site::ResidPost(4), direction).pos(5))
///     .grad(Site::ResidPre(0))
///     .run(model, tokens)?;
/// let resid = trace.get(Site::ResidPost(6))?; // [prompt, pos, dim]
/// let loss = trace.logits()?.sqr()?.mean_all()?;
/// let gradient = trace.backward(&loss)?.get(Site::ResidPre(0))?.clone();
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Plan {
    reads: BTreeSet<Site>,
    edits: Vec<Edit>,
    grads: BTreeSet<Site>,
    from: Option<(usize, Tensor)>,
    until: Option<usize>,
    logits: LogitsAt,
}

impl Plan {
    /// Nothing read, nothing changed, logits everywhere.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the value at a site, as it is after all edits.
    pub fn read(mut self, site: Site) -> Self {
        self.reads.insert(site);
        self
    }

    /// Keeps the values at several sites.
    pub fn reads(mut self, sites: impl IntoIterator<Item = Site>) -> Self {
        self.reads.extend(sites);
        self
    }

    /// Makes a change. Several at one site are made in the order in which they were added.
    pub fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// Makes several changes.
    pub fn edits(mut self, edits: impl IntoIterator<Item = Edit>) -> Self {
        self.edits.extend(edits);
        self
    }

    /// Wants the gradient with respect to the value at a site, as it is after all edits.
    pub fn grad(mut self, site: Site) -> Self {
        self.grads.insert(site);
        self
    }

    /// Resumes at `layer` with `resid_pre` of that layer, from an earlier run.
    pub fn from(mut self, layer: usize, resid_pre: &Tensor) -> Self {
        self.from = Some((layer, resid_pre.clone()));
        self
    }

    /// Stops before `layer`, without logits.
    pub fn until(mut self, layer: usize) -> Self {
        self.until = Some(layer);
        self
    }

    /// Where logits are wanted.
    pub fn logits(mut self, at: LogitsAt) -> Self {
        self.logits = at;
        self
    }

    /// The sites that are read.
    pub fn read_sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.reads.iter().copied()
    }

    /// The edits, in their order.
    pub fn edit_list(&self) -> &[Edit] {
        &self.edits
    }

    /// Checks the whole plan against a model and a batch without running anything.
    ///
    /// # Errors
    /// The first thing that could not be done, with the numbers.
    pub fn check(&self, config: &Config, tokens: &Tokens) -> Result<()> {
        self.check_window(config, Window::whole(tokens))
    }

    pub(crate) fn check_window(&self, config: &Config, window: Window<'_>) -> Result<()> {
        let Window { tokens, past, .. } = window;
        tokens.check(config, past)?;
        let layers = config.n_layer;
        let start = self.from.as_ref().map_or(0, |(layer, _)| *layer);
        let until = self.until.unwrap_or(layers);
        if start > until || until > layers {
            return Err(Error::request(format!("cannot run layers {start}..{until} of a model with {layers} layers")));
        }
        let wanted = self.reads.iter().chain(&self.grads).copied().chain(self.edits.iter().map(Edit::site));
        for site in wanted {
            self.check_reached(site, start, until, layers)?;
        }
        let extents = config.extents(tokens.len(), tokens.longest(), past);
        for edit in &self.edits {
            edit.check(&extents, window)?;
        }
        // Where there are no logits, the run ends with the residual stream.
        if self.logits == LogitsAt::None && until == layers {
            self.check_seen(layers, &[Site::ResidPost(layers - 1)])?;
        }
        Ok(())
    }

    /// Checks that every edit can change what the run reads: a value, a gradient, or logits.
    ///
    /// [`Plan::check`] counts the last residual stream of a run without logits as read, [`Trace::resid`]; this does not.
    ///
    /// # Errors
    /// [`Error::Request`] for an edit that comes after everything that is read.
    pub fn check_effects(&self, config: &Config) -> Result<()> {
        match self.until.is_none_or(|until| until == config.n_layer) && self.logits != LogitsAt::None {
            true => Ok(()), // every site reaches the logits
            false => self.check_seen(config.n_layer, &[]),
        }
    }

    fn check_seen(&self, layers: usize, also: &[Site]) -> Result<()> {
        let seen: Vec<Site> = self.reads.iter().chain(&self.grads).chain(also).copied().collect();
        let unseen = |edit: &&Edit| !seen.iter().any(|&to| influence::reaches(edit.site(), to, layers));
        let Some(edit) = self.edits.iter().find(unseen) else { return Ok(()) };
        let names: Vec<String> = seen.iter().take(4).map(Site::to_string).collect();
        let more = if seen.len() > names.len() { ", …" } else { "" };
        Err(Error::request(format!(
            "edit `{edit}` would change nothing: what is read ({}{more}) does not depend on {}",
            names.join(", "),
            edit.site()
        )))
    }

    fn check_reached(&self, site: Site, start: usize, until: usize, layers: usize) -> Result<()> {
        let not_reached = |why: String| Err(Error::NotReached { site, why });
        if let Some(layer) = site.layer() {
            return match layer {
                _ if layer >= layers => not_reached(format!("this model has layers 0..={}", layers - 1)),
                _ if layer < start => not_reached(format!("the run resumes at layer {start}")),
                _ if layer >= until => not_reached(format!("the run stops before layer {until}")),
                _ => Ok(()),
            };
        }
        let after = matches!(site, Site::LnFinalScale | Site::LnFinalNormalized | Site::Logits);
        match site {
            _ if after && until < layers => not_reached(format!("the run stops before layer {until}")),
            _ if !after && self.from.is_some() => not_reached(format!("the run resumes at layer {start}")),
            Site::Logits if self.logits == LogitsAt::None => not_reached("the run computes no logits".into()),
            Site::Logits if self.logits == LogitsAt::Last && self.edits.iter().any(|e| e.site() == site) => {
                not_reached("edits of logits need logits at every position".into())
            }
            _ => Ok(()),
        }
    }

    /// Runs the plan.
    ///
    /// # Errors
    /// Everything that [`Plan::check`] finds, and [`Error::NotFinite`] when a value stops being a number.
    pub fn run(&self, model: &Gpt2, tokens: &Tokens) -> Result<Trace> {
        self.run_window(model, Window::whole(tokens), None, None)
    }

    /// Runs the plan and hands each value that is read to `receive` instead of keeping it, in forward order.
    ///
    /// # Errors
    /// As [`Plan::run`], and whatever `receive` returns.
    pub fn run_each(
        &self,
        model: &Gpt2,
        tokens: &Tokens,
        receive: &mut dyn FnMut(Site, &Tensor) -> Result<()>,
    ) -> Result<Trace> {
        self.run_window(model, Window::whole(tokens), None, Some(receive))
    }

    /// Runs the plan on tokens that follow what `cache` holds, and adds them to it.
    ///
    /// Positions in edits are positions of the whole text, and may lie in a part that comes later or came before: an edit of which this
    /// pass holds nothing has no [`Applied::relative_change`], and [`Applied::check`] finds those that no pass applied. Positions cannot
    /// count from the end, which is not known here.
    ///
    /// # Errors
    /// As [`Plan::run`]; gradients, resuming and stopping early need a run without a cache.
    pub fn run_cached(&self, model: &Gpt2, tokens: &Tokens, cache: &mut KvCache) -> Result<Trace> {
        let horizon = Some(model.config().n_positions);
        self.run_part(model, Window { tokens, past: cache.len(), horizon, live: None }, Some(cache))
    }

    /// Runs the plan on a part of longer texts, with or without a cache of what came before.
    pub(crate) fn run_part<'a>(
        &'a self,
        model: &Gpt2,
        window: Window<'a>,
        cache: Option<&mut KvCache>,
    ) -> Result<Trace> {
        if let Some(cache) = &cache {
            let fault = if !self.grads.is_empty() {
                Some("gradients need")
            } else if self.from.is_some() || self.until.is_some() {
                Some("resuming or stopping early needs")
            } else {
                None
            };
            if let Some(what) = fault {
                return Err(Error::request(format!("{what} a run without a key-value cache")));
            }
            let narrowed = self.edits.iter().find(|edit| edit.is_narrowed_by_position());
            if let (true, Some(edit)) = (cache.is_ragged() || window.tokens.is_ragged(), narrowed) {
                return Err(Error::request(format!(
                    "edit `{edit}`: positions in a cached batch need prompts of one length"
                )));
            }
        }
        self.run_window(model, window, cache, None)
    }

    fn run_window<'a>(
        &'a self,
        model: &Gpt2,
        window: Window<'a>,
        mut cache: Option<&mut KvCache>,
        receive: Option<Receiver<'a>>,
    ) -> Result<Trace> {
        self.check_window(model.config(), window)?;
        let mask = match &mut cache {
            Some(cache) => cache.begin(window.tokens)?,
            None => ops::Causal::new(0),
        };
        let mut recorder = Recorder::new(self, window, mask, receive);
        let mut pass = self.pass(window.tokens);
        if let Some(cache) = cache {
            pass = pass.cache(cache);
        }
        let output = model.run(pass, &mut recorder)?;
        recorder.check_all_visited()?;
        if window.horizon.is_none() {
            recorder.check_all_applied()?;
        }
        let finite = match &output.logits {
            Some(logits) => ops::all_finite(logits)?,
            None => ops::all_finite(&output.resid)?,
        };
        let Recorder { values, taps, applied, .. } = recorder;
        let trace =
            Trace { tokens: window.tokens.clone(), values, taps, applied, logits: output.logits, resid: output.resid };
        if finite { Ok(trace) } else { Err(self.first_not_finite(model, window)) }
    }

    fn pass<'a>(&self, tokens: &'a Tokens) -> Pass<'a> {
        let mut pass = Pass::new(tokens).logits(self.logits);
        if let Some((layer, resid)) = &self.from {
            pass = pass.from(*layer, resid.clone());
        }
        match self.until {
            Some(layer) => pass.until(layer),
            None => pass,
        }
    }

    /// Runs once more, without a cache, to say where a value stopped being a number.
    fn first_not_finite(&self, model: &Gpt2, window: Window<'_>) -> Error {
        let mut search = Search { found: None };
        let searched = if window.past == 0 {
            let mut recorder = Recorder::new(self, window, ops::Causal::new(0), None);
            model.run(self.pass(window.tokens), &mut Both(&mut recorder, &mut search)).map(|_| ())
        } else {
            Ok(())
        };
        match (searched, search.found) {
            (Err(e), None) => e,
            (_, Some((site, what))) => Error::NotFinite { site, what },
            (Ok(()), None) => Error::NotFinite { site: Site::Logits, what: "NaN or infinity" },
        }
    }
}

/// Where values that are read go, if they are not kept.
type Receiver<'a> = &'a mut dyn FnMut(Site, &Tensor) -> Result<()>;

/// Carries out a plan while the model runs.
struct Recorder<'a> {
    plan: &'a Plan,
    window: Window<'a>,
    mask: ops::Causal,
    receive: Option<Receiver<'a>>,
    visited: BTreeSet<Site>,
    values: BTreeMap<Site, Tensor>,
    taps: Taps<Site>,
    applied: Vec<Applied>,
}

impl Hooks for Recorder<'_> {
    fn at(&mut self, site: Site, mut value: Tensor) -> Result<Tensor> {
        if !self.wants(site) {
            return Ok(value);
        }
        if !self.visited.insert(site) {
            return Err(Error::Bug(format!("{site} was visited twice")));
        }
        for (edit, applied) in self.plan.edits.iter().zip(&mut self.applied) {
            if edit.site() != site {
                continue;
            }
            if let Some((edited, change)) = edit.apply(&value, self.window, &self.mask)? {
                value = edited;
                applied.relative_change = change;
            }
        }
        if self.plan.grads.contains(&site) {
            value = self.taps.tap(site, &value)?;
        }
        if self.plan.reads.contains(&site) {
            match &mut self.receive {
                Some(receive) => receive(site, &value)?,
                None => {
                    self.values.insert(site, value.clone());
                }
            }
        }
        Ok(value)
    }

    fn wants(&self, site: Site) -> bool {
        self.plan.reads.contains(&site)
            || self.plan.grads.contains(&site)
            || self.plan.edits.iter().any(|edit| edit.site() == site)
    }
}

impl<'a> Recorder<'a> {
    fn new(plan: &'a Plan, window: Window<'a>, mask: ops::Causal, receive: Option<Receiver<'a>>) -> Self {
        Self {
            plan,
            window,
            mask,
            receive,
            visited: BTreeSet::new(),
            values: BTreeMap::new(),
            taps: Taps::default(),
            applied: plan.edits.iter().map(Applied::pending).collect(),
        }
    }

    fn check_all_visited(&self) -> Result<()> {
        let wanted = self.plan.reads.iter().chain(&self.plan.grads).copied();
        match wanted.chain(self.plan.edits.iter().map(Edit::site)).find(|site| !self.visited.contains(site)) {
            Some(site) => Err(Error::Bug(format!("{site} was checked to be reached, but was not"))),
            None => Ok(()),
        }
    }

    /// A pass over whole texts holds every part that an edit selects, or the plan's check would have refused it.
    fn check_all_applied(&self) -> Result<()> {
        match self.applied.iter().find(|applied| applied.relative_change.is_none()) {
            Some(applied) => Err(Error::Bug(format!("edit `{}` was checked, but was not applied", applied.edit))),
            None => Ok(()),
        }
    }
}

/// Looks for the first value that is not finite.
struct Search {
    found: Option<(Site, &'static str)>,
}

impl Search {
    fn look(&mut self, site: Site, value: &Tensor) -> Result<()> {
        // Masked scores are −∞ by design; what is wrong in them shows in the pattern.
        if self.found.is_some() || matches!(site, Site::AttnScores(_)) || ops::all_finite(value)? {
            return Ok(());
        }
        let values = value.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        let first = values.into_iter().find(|x| !x.is_finite()).unwrap_or(f64::NAN);
        self.found = Some((site, if first.is_nan() { "NaN" } else { "infinity" }));
        Ok(())
    }
}

/// One set of hooks after another.
struct Both<'a, A>(&'a mut A, &'a mut Search);

impl<A: Hooks> Hooks for Both<'_, A> {
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        let value = self.0.at(site, value)?;
        self.1.look(site, &value)?;
        Ok(value)
    }

    fn wants(&self, site: Site) -> bool {
        // What is wrong in values that are formed only on request shows in what is made of them.
        !site.is_on_request() || self.0.wants(site)
    }
}

/// What an edit did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The edit, as a sentence.
    pub edit: String,
    /// ‖after − before‖ / ‖before‖ over the tokens it selects: 0 for an edit that changed nothing, infinite where all values were 0.
    /// None if the run did not hold that part (a later position, in a cached run).
    pub relative_change: Option<f64>,
    /// Texts of a generation that ended before the positions it selects.
    pub missed: usize,
}

impl Applied {
    fn pending(edit: &Edit) -> Self {
        Self { edit: edit.to_string(), relative_change: None, missed: 0 }
    }

    /// Checks that every edit was applied, after the last of several cached runs.
    ///
    /// # Errors
    /// [`Error::Request`] for an edit that no run held any part of.
    pub fn check(all: &[Self]) -> Result<()> {
        match all.iter().find(|applied| applied.relative_change.is_none()) {
            None => Ok(()),
            Some(never) => Err(Error::request(format!(
                "edit `{}` was never applied: no token was read at the positions it selects",
                never.edit
            ))),
        }
    }

    /// Of the same edits in two runs, the larger change each. `before` may be empty: no run yet.
    pub fn larger(before: Vec<Self>, now: &[Self]) -> Vec<Self> {
        if before.is_empty() {
            return now.to_vec();
        }
        let larger = |(mut a, b): (Self, &Self)| {
            a.relative_change = [a.relative_change, b.relative_change].into_iter().flatten().reduce(f64::max);
            a.missed += b.missed;
            a
        };
        before.into_iter().zip(now).map(larger).collect()
    }
}

/// What happened in a run.
#[derive(Debug)]
pub struct Trace {
    tokens: Tokens,
    values: BTreeMap<Site, Tensor>,
    taps: Taps<Site>,
    applied: Vec<Applied>,
    logits: Option<Tensor>,
    resid: Tensor,
}

impl Trace {
    /// The tokens that were run.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The value at a site that the plan read.
    ///
    /// # Errors
    /// [`Error::NotRead`].
    pub fn get(&self, site: Site) -> Result<&Tensor> {
        self.values.get(&site).ok_or(Error::NotRead(site))
    }

    /// Every site that was read, in forward order of kinds.
    pub fn sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.values.keys().copied()
    }

    /// Next-token logits: `[prompt, pos, vocab]`, or `[prompt, 1, vocab]` for [`LogitsAt::Last`].
    ///
    /// # Errors
    /// [`Error::NotReached`] for a run that was told to compute none.
    pub fn logits(&self) -> Result<&Tensor> {
        let why = || "the run computed no logits".to_string();
        self.logits.as_ref().ok_or_else(|| Error::NotReached { site: Site::Logits, why: why() })
    }

    /// The residual stream where the run ended, `[prompt, pos, dim]`.
    pub fn resid(&self) -> &Tensor {
        &self.resid
    }

    /// What each edit did, in the order of the plan.
    pub fn edits(&self) -> &[Applied] {
        &self.applied
    }

    /// What has given slopes by the logits, one per logit in the order of [`Trace::logits`]: Σ slope · logit, divided by the
    /// returned power of two. Its gradients, times that power, are those of any number with these slopes.
    ///
    /// In 16 bits small slopes would vanish on the way back; a power of two takes no bit from larger types.
    ///
    /// # Errors
    /// As [`Trace::logits`], and for another number of slopes.
    pub fn with_slopes(&self, slopes: &[f64]) -> Result<(Tensor, f64)> {
        let logits = self.logits()?;
        let largest = slopes.iter().fold(0.0, |largest: f64, slope| largest.max(slope.abs()));
        let scale = if largest > 0.0 { largest.log2().ceil().exp2() } else { 1.0 };
        let slopes: Vec<f32> = slopes.iter().map(|slope| (slope / scale) as f32).collect();
        let slopes = Tensor::from_vec(slopes, logits.dims(), logits.device())?.to_dtype(logits.dtype())?;
        Ok(((logits * slopes)?.sum_all()?, scale))
    }

    /// Gradients of a scalar that was computed from this trace; one at a time, not from several tasks of one thread pool.
    ///
    /// # Errors
    /// [`Error::Request`] for a metric that is not one number.
    pub fn backward(&self, metric: &Tensor) -> Result<Gradients> {
        if metric.elem_count() != 1 {
            let shape = metric.dims();
            return Err(Error::request(format!("gradients are of one number, not of shape {shape:?}; take a mean")));
        }
        Ok(Gradients(self.taps.backward(metric)?))
    }
}

/// Gradients at the sites that a plan named.
pub struct Gradients(BTreeMap<Site, Option<Tensor>>);

impl Gradients {
    /// The gradient with respect to the value at `site`, of the same shape.
    ///
    /// # Errors
    /// [`Error::NoGradient`].
    pub fn get(&self, site: Site) -> Result<&Tensor> {
        let none = |why| Error::NoGradient { site, why };
        let found = self.0.get(&site).ok_or(none("the plan did not ask for it; add .grad(..)"))?;
        found.as_ref().ok_or(none("the metric does not depend on it"))
    }
}
