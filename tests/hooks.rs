//! What a hook, an edit and a plan promise, at every site.

mod common;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use candle_core::{DType, IndexOp, Tensor};
use common::{gate, max_difference, noise, same_bits, small_config, small_model, tokens, values};
use interp::gpt2::Pass;
use interp::hooks::from_fn;
use interp::kv::KvCache;
use interp::{Config, Edit, Error, Gpt2, LogitsAt, Plan, Site, Tokens};

fn setup() -> (Config, Gpt2, Tokens) {
    let config = small_config();
    let tokens = tokens(&config, &[7, 7], 1);
    (config.clone(), small_model(DType::F32), tokens)
}

fn logits(plan: Plan, model: &Gpt2, tokens: &Tokens) -> Tensor {
    plan.run(model, tokens).unwrap().logits().unwrap().clone()
}

#[test]
fn every_site_is_reached_exactly_once_in_order_with_its_shape() {
    let (config, model, tokens) = setup();
    let mut reached = Vec::new();
    let mut hooks = from_fn(|site: Site, value: Tensor| {
        assert_eq!(value.dims(), site.shape(&config.extents(2, 7, 0)), "{site}");
        reached.push(site);
        Ok(value)
    });
    model.run(Pass::new(&tokens), &mut hooks).unwrap();
    assert_eq!(reached, Site::all(config.n_layer).collect::<Vec<_>>());
}

#[test]
fn looking_changes_no_bit() {
    let (config, model, tokens) = setup();
    let plain = model.forward(&tokens).unwrap();
    assert!(same_bits(&plain, &logits(Plan::new(), &model, &tokens)), "an empty plan");
    let all = Plan::new().reads(Site::all(config.n_layer));
    assert!(same_bits(&plain, &logits(all, &model, &tokens)), "reading everything");
    for site in Site::all(config.n_layer) {
        assert!(same_bits(&plain, &logits(Plan::new().read(site), &model, &tokens)), "reading {site}");
    }
    // The same for a model whose context makes several blocks of attention.
    let long = Config::new(2, 2, 8, 11, 150);
    let model = common::model(&long, DType::F32);
    let tokens = common::tokens(&long, &[150], 2);
    let all = Plan::new().reads(Site::all(2));
    assert!(same_bits(&model.forward(&tokens).unwrap(), &logits(all, &model, &tokens)), "long prompts");
}

#[test]
fn noise_at_any_site_changes_the_logits() {
    let (config, model, tokens) = setup();
    let plain = model.forward(&tokens).unwrap();
    for (i, site) in Site::all(config.n_layer).enumerate() {
        let noise = noise(&site.shape(&config.extents(2, 7, 0)), DType::F32, i as u64);
        let changed = logits(Plan::new().edit(Edit::add(site, &noise)), &model, &tokens);
        assert!(max_difference(&plain, &changed) > 1e-3, "noise at {site} had no effect");
    }
}

#[test]
fn an_identity_edit_changes_no_bit_and_says_so() {
    let (config, model, tokens) = setup();
    let all = Plan::new().reads(Site::all(config.n_layer)).run(&model, &tokens).unwrap();
    for site in Site::all(config.n_layer) {
        let edits = [
            Edit::patch(site, all.get(site).unwrap()),
            Edit::map(site, |part| Ok(part.clone())),
            Edit::scale(site, 1.0),
        ];
        for edit in edits {
            let name = edit.to_string();
            let trace = Plan::new().edit(edit).run(&model, &tokens).unwrap();
            assert!(same_bits(all.logits().unwrap(), trace.logits().unwrap()), "{name}");
            assert_eq!(trace.edits()[0].relative_change, Some(0.0), "{name}");
        }
    }
}

#[test]
fn edits_compose_in_order_and_reads_see_them() {
    let (config, model, tokens) = setup();
    for site in Site::all(config.n_layer).filter(|site| !site.is_attention_map()) {
        let plan = Plan::new().edit(Edit::fill(site, 2.0)).edit(Edit::scale(site, 3.0)).read(site);
        let trace = plan.run(&model, &tokens).unwrap();
        assert!(values(trace.get(site).unwrap()).iter().all(|&x| x == 6.0), "{site}: fill, then scale");
        let plan = Plan::new().edit(Edit::scale(site, 3.0)).edit(Edit::fill(site, 2.0)).read(site);
        let trace = plan.run(&model, &tokens).unwrap();
        assert!(values(trace.get(site).unwrap()).iter().all(|&x| x == 2.0), "{site}: scale, then fill");
        assert!(trace.edits().iter().all(|applied| applied.relative_change.unwrap() > 0.0), "{site}");
    }
}

#[test]
fn edits_change_their_part_and_nothing_else() {
    let (config, model, tokens) = setup();
    let before = Plan::new().reads(Site::all(config.n_layer)).run(&model, &tokens).unwrap();
    let read = |edit: Edit| {
        let site = edit.site();
        Plan::new().edit(edit).read(site).run(&model, &tokens).unwrap().get(site).unwrap().clone()
    };
    let z = before.get(Site::Z(1)).unwrap().to_vec1_nested();
    for (index, after) in read(Edit::fill(Site::Z(1), 9.0).row(1).pos(2..=4).head(-1)).to_vec1_nested() {
        let inside = index[0] == 1 && (2..=4).contains(&index[1]) && index[2] == 1;
        assert_eq!(after, if inside { 9.0 } else { z[&index] }, "{index:?}");
    }
    let post = before.get(Site::MlpPost(2)).unwrap().to_vec1_nested();
    for (index, after) in read(Edit::fill(Site::MlpPost(2), 9.0).neuron(3)).to_vec1_nested() {
        assert_eq!(after, if index[2] == 3 { 9.0 } else { post[&index] }, "{index:?}");
    }
    let pattern = before.get(Site::Pattern(0)).unwrap().to_vec1_nested();
    for (index, after) in read(Edit::zero(Site::Pattern(0)).head(0).query(5).key(1..3)).to_vec1_nested() {
        let inside = index[1] == 0 && index[2] == 5 && (1..3).contains(&index[3]);
        assert_eq!(after, if inside { 0.0 } else { pattern[&index] }, "{index:?}");
    }
}

#[test]
fn zero_ablating_a_head_removes_its_result() {
    let (config, model, tokens) = setup();
    for layer in 0..config.n_layer {
        for head in 0..config.n_head {
            let by_z = logits(Plan::new().edit(Edit::zero(Site::Z(layer)).head(head)), &model, &tokens);
            let by_result = logits(Plan::new().edit(Edit::zero(Site::Result(layer)).head(head)), &model, &tokens);
            let plain = model.forward(&tokens).unwrap();
            assert!(gate::apart(&by_result, &by_z) <= gate::F32, "head {layer}.{head}");
            assert!(max_difference(&by_z, &plain) > 1e-3, "head {layer}.{head} does nothing");
        }
    }
}

#[test]
fn resuming_equals_the_full_run() {
    let (config, model, tokens) = setup();
    let sites: Vec<Site> = Site::all(config.n_layer).collect();
    let full = Plan::new().reads(sites.iter().copied()).run(&model, &tokens).unwrap();
    for layer in 0..=config.n_layer {
        let start = match layer {
            l if l < config.n_layer => full.get(Site::ResidPre(l)).unwrap(),
            l => full.get(Site::ResidPost(l - 1)).unwrap(),
        };
        let later: Vec<Site> = sites
            .iter()
            .copied()
            .filter(|site| site.layer().map_or(!matches!(site, Site::Embed | Site::PosEmbed), |l| l >= layer))
            .collect();
        let resumed = Plan::new().from(layer, start).reads(later.iter().copied()).run(&model, &tokens).unwrap();
        for site in later {
            assert!(same_bits(full.get(site).unwrap(), resumed.get(site).unwrap()), "{site} after layer {layer}");
        }
    }
}

#[test]
fn stopping_early_equals_the_beginning_of_the_full_run() {
    let (config, model, tokens) = setup();
    let full = Plan::new().reads(Site::all(config.n_layer)).run(&model, &tokens).unwrap();
    for until in 1..config.n_layer {
        let last = Site::ResidPost(until - 1);
        let stopped = Plan::new().read(last).until(until).run(&model, &tokens).unwrap();
        assert!(same_bits(full.get(last).unwrap(), stopped.get(last).unwrap()));
        assert!(same_bits(stopped.resid(), stopped.get(last).unwrap()));
        assert!(matches!(stopped.logits(), Err(Error::NotReached { .. })));
    }
}

#[test]
fn logits_only_where_asked_have_the_same_values() {
    let (config, model, _) = setup();
    let tokens = tokens(&config, &[3, 7, 5], 4);
    let all = model.forward(&tokens).unwrap();
    let last = logits(Plan::new().logits(LogitsAt::Last), &model, &tokens);
    let looked_at = Plan::new().logits(LogitsAt::Last).read(Site::LnFinalNormalized);
    assert!(gate::apart(&logits(looked_at, &model, &tokens), &last) <= gate::F32);
    for (prompt, length) in [3, 7, 5].into_iter().enumerate() {
        let wanted = all.i((prompt, length - 1)).unwrap();
        assert!(gate::apart(&last.i((prompt, 0)).unwrap(), &wanted) <= gate::F32);
    }
    let none = Plan::new().logits(LogitsAt::None).run(&model, &tokens).unwrap();
    assert!(matches!(none.logits(), Err(Error::NotReached { .. })));
}

/// Edits that reach across positions, layers and kinds of sites.
fn some_edits(config: &Config) -> Vec<Edit> {
    let direction = noise(&[config.n_embd], DType::F32, 5);
    vec![
        Edit::add(Site::ResidPre(1), &direction).pos(4),
        Edit::zero(Site::Z(0)).head(1),
        Edit::zero(Site::Pattern(1)).head(0).query(6).key(2),
        Edit::scale(Site::MlpPost(2), 0.5).pos(5..=6),
        Edit::fill(Site::K(1), 0.3).pos(2),
        Edit::fill(Site::AttnScores(2), 1.0).query(3..=5).key(1),
    ]
}

#[test]
fn cached_runs_equal_recomputation_with_and_without_edits() {
    let (config, model, tokens) = setup();
    for edits in [Vec::new(), some_edits(&config)] {
        let plan = Plan::new().edits(edits.clone()).reads(Site::all(config.n_layer));
        let full = plan.run(&model, &tokens).unwrap();
        for cuts in [vec![0, 7], vec![0, 1, 2, 3, 4, 5, 6, 7], vec![0, 3, 5, 7]] {
            let mut cache = KvCache::new(&config);
            for cut in cuts.windows(2) {
                let rows = (0..2).map(|p| tokens.row(p)[cut[0]..cut[1]].to_vec()).collect();
                let part = plan.run_cached(&model, &Tokens::from_ids(rows).unwrap(), &mut cache).unwrap();
                for site in Site::all(config.n_layer) {
                    let mut wanted = full.get(site).unwrap().clone();
                    if site.is_attention_map() {
                        wanted = wanted.narrow(2, cut[0], cut[1] - cut[0]).unwrap().narrow(3, 0, cut[1]).unwrap();
                    } else {
                        wanted = wanted.narrow(1, cut[0], cut[1] - cut[0]).unwrap();
                    }
                    let away = gate::apart(part.get(site).unwrap(), &wanted);
                    assert!(away <= gate::F32, "{site}, tokens {cut:?}, {} edits: {away:e}", edits.len());
                }
            }
            assert_eq!(cache.len(), 7);
        }
    }
}

#[test]
fn a_ragged_cache_continues_each_prompt_at_its_own_position() {
    let (config, model, _) = setup();
    let prompts = tokens(&config, &[2, 5, 3], 8);
    let next = tokens(&config, &[2, 2, 2], 9);
    let mut cache = KvCache::new(&config);
    Plan::new().run_cached(&model, &prompts, &mut cache).unwrap();
    for step in 0..2 {
        let rows = (0..3).map(|p| vec![next.row(p)[step]]).collect();
        let together = Plan::new().run_cached(&model, &Tokens::from_ids(rows).unwrap(), &mut cache).unwrap();
        for prompt in 0..3 {
            let whole = [prompts.row(prompt), &next.row(prompt)[..=step]].concat();
            let length = whole.len();
            let alone = model.forward(&Tokens::from_ids(vec![whole]).unwrap()).unwrap();
            let together = together.logits().unwrap().i((prompt, 0)).unwrap();
            let away = gate::apart(&together, &alone.i((0, length - 1)).unwrap());
            assert!(away <= gate::F32, "prompt {prompt}, step {step}: {away:e}");
        }
    }
}

#[test]
fn a_batch_equals_its_prompts_alone() {
    let (config, model, _) = setup();
    let batch = tokens(&config, &[1, 7, 4, 12], 3);
    let sites: Vec<Site> = Site::all(config.n_layer).collect();
    let together = Plan::new().reads(sites.iter().copied()).run(&model, &batch).unwrap();
    for prompt in 0..batch.len() {
        let alone = Plan::new().reads(sites.iter().copied()).run(&model, &batch.only(prompt)).unwrap();
        let length = batch.row(prompt).len();
        for site in &sites {
            let mut row = together.get(*site).unwrap().narrow(0, prompt, 1).unwrap();
            row = if site.is_attention_map() {
                row.narrow(2, 0, length).unwrap().narrow(3, 0, length).unwrap()
            } else {
                row.narrow(1, 0, length).unwrap()
            };
            let away = gate::apart(&row, alone.get(*site).unwrap());
            assert!(away <= gate::F32, "{site}, prompt {prompt}: {away:e}");
        }
    }
}

#[test]
fn rows_of_a_batch_are_experiments_of_their_own() {
    let (config, model, tokens) = setup();
    let three = tokens.only(0).repeat(3);
    let direction = noise(&[config.n_embd], DType::F32, 6);
    let edits = [
        Edit::add(Site::ResidPre(1), &direction).pos(3),
        Edit::zero(Site::Z(1)).head(0),
        Edit::zero(Site::MlpPost(0)).neuron(2..=5),
    ];
    let rows = edits.iter().cloned().enumerate().map(|(i, edit)| edit.row(i));
    let together = logits(Plan::new().edits(rows), &model, &three);
    for (i, edit) in edits.into_iter().enumerate() {
        let alone = logits(Plan::new().edit(edit), &model, &tokens.only(0));
        assert!(gate::apart(&together.i(i).unwrap(), &alone.i(0).unwrap()) <= gate::F32, "row {i}");
    }
}

#[test]
fn what_comes_later_never_changes_what_came_before() {
    let (config, model, tokens) = setup();
    let all = Plan::new().reads(Site::all(config.n_layer));
    let before = all.run(&model, &tokens).unwrap();
    for changed in 1..7 {
        let rows = (0..2).map(|p| {
            let mut row = tokens.row(p).to_vec();
            row[changed] = (row[changed] + 1) % config.vocab_size as u32;
            row
        });
        let after = all.run(&model, &Tokens::from_ids(rows.collect()).unwrap()).unwrap();
        for site in Site::all(config.n_layer) {
            let dim = if site.is_attention_map() { 2 } else { 1 };
            let early = |t: &Tensor| t.narrow(dim, 0, changed).unwrap().contiguous().unwrap();
            assert!(
                same_bits(&early(before.get(site).unwrap()), &early(after.get(site).unwrap())),
                "{site} before position {changed} changed"
            );
        }
    }
}

#[test]
fn no_edit_opens_the_future() {
    let (config, model, tokens) = setup();
    let changed = 4;
    let rows = (0..2).map(|p| {
        let mut row = tokens.row(p).to_vec();
        row[changed] = (row[changed] + 1) % config.vocab_size as u32;
        row
    });
    let other = Tokens::from_ids(rows.collect()).unwrap();
    for site in Site::all(config.n_layer).filter(|site| *site != Site::Logits) {
        for edit in [Edit::fill(site, 1.0), Edit::scale(site, -2.0), Edit::zero(site)] {
            let name = edit.to_string();
            if matches!(site, Site::Ln1Scale(_) | Site::Ln2Scale(_) | Site::LnFinalScale) && edit.op() == "zero" {
                // Dividing by 0 cannot be made to mean anything: it is refused, not passed on.
                let error = Plan::new().edit(edit).run(&model, &tokens).unwrap_err();
                assert!(matches!(error, Error::NotFinite { .. }), "{name}: {error}");
                continue;
            }
            let plan = Plan::new().edit(edit).read(site);
            let (a, b) = (plan.run(&model, &tokens).unwrap(), plan.run(&model, &other).unwrap());
            let early = |t: &Tensor| t.narrow(1, 0, changed).unwrap().contiguous().unwrap();
            assert!(same_bits(&early(a.logits().unwrap()), &early(b.logits().unwrap())), "{name} opened the future");
            assert!(values(a.logits().unwrap()).iter().all(|x| x.is_finite()), "{name} made NaN");
            if site.is_attention_map() {
                let hidden = if matches!(site, Site::Pattern(_)) { 0.0 } else { f64::NEG_INFINITY };
                for (index, value) in a.get(site).unwrap().to_vec1_nested() {
                    assert!(index[3] <= index[2] || value == hidden, "{name} shows {value} at {index:?}");
                }
            }
        }
    }
    // Raw hooks cannot open it either: the model masks what they return.
    let open = |tokens: &Tokens| {
        let mut hooks = from_fn(|site: Site, value: Tensor| match site {
            Site::Pattern(1) | Site::AttnScores(2) => Ok(value.ones_like()?),
            _ => Ok(value),
        });
        model.run(Pass::new(tokens), &mut hooks).unwrap().logits.unwrap().narrow(1, 0, changed).unwrap()
    };
    assert!(same_bits(&open(&tokens).contiguous().unwrap(), &open(&other).contiguous().unwrap()));
}

#[test]
fn a_query_that_may_look_nowhere_looks_nowhere() {
    let (_, model, tokens) = setup();
    let blind = Edit::map(Site::AttnScores(1), |part| Ok((part.ones_like()? * f64::NEG_INFINITY)?));
    let plan = Plan::new().edit(blind.query(3).head(0)).read(Site::Pattern(1));
    let trace = plan.run(&model, &tokens).unwrap();
    let row = trace.get(Site::Pattern(1)).unwrap().i((0, 0, 3)).unwrap();
    assert!(values(&row).iter().all(|&x| x == 0.0));
}

#[test]
fn requests_that_cannot_be_met_are_errors_before_anything_runs() {
    let (config, model, tokens) = setup();
    let fails = |plan: Plan| plan.check(&config, &tokens).unwrap_err().to_string();
    let z = Tensor::zeros((2, 7, 2, 4), DType::F32, &common::device()).unwrap();
    let cases = [
        (Plan::new().read(Site::ResidPost(3)), "`resid_post.3` is never reached: this model has layers 0..=2"),
        (Plan::new().edit(Edit::zero(Site::Z(9))), "`z.9` is never reached: this model has layers 0..=2"),
        (Plan::new().grad(Site::Pattern(2)).until(2), "`pattern.2` is never reached: the run stops before layer 2"),
        (Plan::new().read(Site::Logits).until(1), "`logits` is never reached: the run stops before layer 1"),
        (Plan::new().read(Site::Logits).logits(LogitsAt::None), "the run computes no logits"),
        (Plan::new().edit(Edit::zero(Site::Logits)).logits(LogitsAt::Last), "logits at every position"),
        (Plan::new().edit(Edit::zero(Site::Z(0)).head(2)), "head 2 is out of range 0..=1 (or -2..=-1)"),
        (Plan::new().edit(Edit::zero(Site::Z(0)).pos(7)), "pos 7 is out of range 0..=6 (or -7..=-1)"),
        (Plan::new().edit(Edit::zero(Site::Z(0)).row(2)), "prompt 2 is out of range 0..=1"),
        (Plan::new().edit(Edit::zero(Site::MlpPost(0)).neuron(10)), "neuron 10 is out of range 0..=9"),
        (Plan::new().edit(Edit::zero(Site::Pattern(0)).pos(1)), "has no axis pos (it has prompt, head, query, key)"),
        (Plan::new().edit(Edit::zero(Site::Z(0)).head(RangeInclusive::new(1, 0))), "head 1..=0 is an empty range"),
        (Plan::new().edit(Edit::fill(Site::Z(0), f64::NAN)), "is not finite"),
        (Plan::new().edit(Edit::set(Site::Z(0), &z).head(1)), "does not broadcast"),
        (Plan::new().edit(Edit::patch(Site::Q(0), &z.narrow(1, 0, 3).unwrap())), "the other run's value has shape"),
        (Plan::new().until(4), "cannot run layers 0..4 of a model with 3 layers"),
        (Plan::new().from(2, &z).until(1), "cannot run layers 2..1"),
        (Plan::new().from(1, &z).read(Site::Embed), "`embed` is never reached: the run resumes at layer 1"),
    ];
    for (plan, wanted) in cases {
        let message = fails(plan);
        assert!(message.contains(wanted), "{message}\n  should contain {wanted}");
    }
    let ragged = common::tokens(&config, &[3, 7], 1);
    let from_end = Plan::new().edit(Edit::zero(Site::Z(0)).pos(-1));
    assert!(from_end.check(&config, &ragged).unwrap_err().to_string().contains("differ in length"));
    let wrong_shape = Plan::new().from(1, &z).run(&model, &tokens).unwrap_err().to_string();
    assert!(wrong_shape.contains("needs resid_pre of shape [2, 7, 6]"), "{wrong_shape}");
    let trace = Plan::new().run(&model, &tokens).unwrap();
    assert!(matches!(trace.get(Site::Z(0)), Err(Error::NotRead(Site::Z(0)))));
    let mut cache = KvCache::new(&config);
    let cached = Plan::new().grad(Site::Z(0)).run_cached(&model, &tokens, &mut cache).unwrap_err().to_string();
    assert!(cached.contains("without a key-value cache"), "{cached}");
}

#[test]
fn tokens_that_do_not_fit_are_errors() {
    let (config, model, _) = setup();
    let long = tokens(&config, &[4, 13], 1);
    let error = model.forward(&long).unwrap_err();
    assert!(matches!(error, Error::TooLong { prompt: 1, tokens: 13, limit: 12 }), "{error}");
    let foreign = Tokens::from_ids(vec![vec![1, 2], vec![3, u32::MAX]]).unwrap();
    let message = model.forward(&foreign).unwrap_err().to_string();
    assert!(
        message.contains("prompt 1, position 1: token 4294967295 is not below the vocabulary size 11"),
        "{message}"
    );
    assert!(Tokens::from_ids(vec![]).is_err());
    assert!(Tokens::from_ids(vec![vec![1], vec![]]).is_err());
    let mut cache = KvCache::new(&config);
    Plan::new().run_cached(&model, &tokens(&config, &[9], 1), &mut cache).unwrap();
    let error = Plan::new().run_cached(&model, &tokens(&config, &[4], 1), &mut cache).unwrap_err();
    assert!(matches!(error, Error::TooLong { tokens: 13, limit: 12, .. }), "{error}");
}

#[test]
fn the_first_value_that_is_no_number_is_named() {
    let (_, model, tokens) = setup();
    let poison = Edit::map(Site::MlpPost(1), |part| Ok((part.ones_like()? * f64::NAN)?));
    let error = Plan::new().edit(poison.pos(2)).run(&model, &tokens).unwrap_err();
    assert!(matches!(error, Error::NotFinite { site: Site::MlpPost(1), what: "NaN" }), "{error}");
    let overflow = Edit::scale(Site::ResidPre(2), 1e38);
    let error = Plan::new().edit(overflow).run(&model, &tokens).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
}

/// Elements with their indices.
trait Nested {
    fn to_vec1_nested(&self) -> BTreeMap<Vec<usize>, f64>;
}

impl Nested for Tensor {
    fn to_vec1_nested(&self) -> BTreeMap<Vec<usize>, f64> {
        let dims = self.dims().to_vec();
        values(self)
            .into_iter()
            .enumerate()
            .map(|(mut flat, value)| {
                let mut index = vec![0; dims.len()];
                for (i, len) in dims.iter().enumerate().rev() {
                    index[i] = flat % len;
                    flat /= len;
                }
                (index, value)
            })
            .collect()
    }
}

#[test]
fn prompts_may_start_at_later_positions() {
    let (_, model, tokens) = setup();
    let mut seen = None;
    let mut hooks = from_fn(|site, value| {
        if site == Site::PosEmbed {
            seen = Some(value.clone());
        }
        Ok(value)
    });
    model.run(Pass::new(&tokens).starts(&[4, 0]), &mut hooks).unwrap();
    let tensors: BTreeMap<String, &Tensor> = model.tensors().into_iter().collect();
    let wpe = |from: usize| tensors["wpe.weight"].narrow(0, from, 7).unwrap();
    let seen = seen.unwrap();
    assert!(same_bits(&seen.i(0).unwrap(), &wpe(4)) && same_bits(&seen.i(1).unwrap(), &wpe(0)));

    let fault = |starts: &[usize]| model.run(Pass::new(&tokens).starts(starts), &mut ()).unwrap_err().to_string();
    assert!(fault(&[6, 0]).contains("13 tokens; this model reads at most 12"), "{}", fault(&[6, 0]));
    assert!(fault(&[1]).contains("every prompt needs its start"));
}
