//! Whether the model uses what probes read: moves are what they say, and tell a story that is true of the embedded model.

mod common;
#[path = "common/process.rs"]
mod process;

use std::sync::Arc;

use common::gate;
use interp::labelled::{Labelled, positions};
use interp::metric::Metric;
use interp::probe::{self, Options, Study, Trial};
use interp::task::Task;
use interp::text::{Bos, Encoding};
use interp::{Edit, LogitsAt, Plan, Site, embedded, gather};
use ndarray::Array2;
use polars::prelude::*;
use process::Interp;

const ENCODING: Encoding = Encoding { bos: Bos::Auto, allow_special: false };

fn score(frame: &DataFrame, probe: &str, site: &str, split: &str, metric: &str) -> f64 {
    let is = |name: &str, value: &str, i: usize| frame.column(name).unwrap().str().unwrap().get(i) == Some(value);
    let row = (0..frame.height())
        .find(|&i| is("probe", probe, i) && is("site", site, i) && is("split", split, i) && is("metric", metric, i));
    let row = row.unwrap_or_else(|| panic!("no {metric} of {split} of {probe} at {site}"));
    frame.column("value").unwrap().f64().unwrap().get(row).unwrap()
}

/// Every move again, one prompt at a time, by an edit that computes on the value that it finds.
#[test]
fn moves_are_what_they_say() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    for (name, sites) in
        [("tiny-number", [Site::ResidPost(4), Site::MlpOut(3)]), ("tiny-giver", [Site::ResidPost(1), Site::Z(2)])]
    {
        let task = Task::shipped(name).unwrap().unwrap();
        let examples = task.examples(160, 0, &tokenizer, ENCODING).unwrap();
        let targets = examples.targets.unwrap();
        let rows = Labelled::new(task.kind, &examples.rows).unwrap();
        let mut all = vec![Vec::new(); 2];
        let chosen = positions(&examples.rows, examples.tokens.len());
        gather::Gather::new(&model, &sites).unwrap().read(&examples.tokens, &chosen, &mut all).unwrap();
        let table = |values: Vec<f32>| Array2::from_shape_vec((160, values.len() / 160), values).unwrap();
        let features: Vec<_> = all.into_iter().map(table).collect();
        let study = Study { name, sites: &sites, features: &features, random: None, rows: &rows };
        let options = Options { seeds: 1, alphas: vec![10.0], ..Options::default() };
        let studied = probe::layers(&study, &options, &mut |_, _| Ok(())).unwrap();
        let trial = Trial { prompts: 1000, draws: 1, seed: 0 };
        let asked = (&examples.tokens, &targets[..]);
        let frame = probe::used(&model, asked, &study, &studied, &trial, &mut |_, _| Ok(())).unwrap();
        for (i, site) in sites.iter().enumerate() {
            let probe = Arc::new(studied.kept[i].probe.clone());
            let two = probe.directions().len() == 1;
            for (split, there) in [("clean", true), ("removed", true), ("flipped", two)] {
                if !there {
                    let splits = frame.column("split").unwrap().str().unwrap();
                    assert!(splits.iter().all(|own| own != Some(split)), "{name} has more than two classes");
                    continue;
                }
                let (mut ahead, mut kl) = (0.0, 0.0);
                for &row in &studied.split.test {
                    let prompt = rows.prompt[row] as usize;
                    let own = examples.tokens.slice(prompt..prompt + 1);
                    let logits = |plan: Plan| {
                        let trace = plan.logits(LogitsAt::Last).run(&model, &own).unwrap();
                        trace.logits().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                    };
                    let clean = logits(Plan::new());
                    let moved = match split {
                        "clean" => clean.clone(),
                        _ => {
                            let probe = Arc::clone(&probe);
                            let edit = Edit::map(*site, move |part| {
                                let x: Vec<f32> = part.flatten_all()?.to_vec1()?;
                                let by = by(&probe, split, &x);
                                let moved: Vec<f32> =
                                    x.iter().zip(by).map(|(x, by)| (f64::from(*x) + by) as f32).collect();
                                Ok(candle_core::Tensor::from_vec(moved, part.shape(), part.device())?)
                            });
                            logits(Plan::new().edit(edit.pos(i64::from(rows.pos[row]))))
                        }
                    };
                    ahead += targets[prompt].value(&moved).unwrap();
                    kl += Metric::Kl.of(&moved, &clean, &targets[prompt]);
                }
                let n = studied.split.test.len() as f64;
                for (metric, wanted) in [("logit_diff", ahead / n), ("kl", kl / n)] {
                    let found = score(&frame, name, &site.to_string(), split, metric);
                    // Means of differences of logits of size 10, and of what these make of probabilities.
                    let agree = gate::agree(found, wanted, gate::F32, 10.0);
                    assert!(agree, "{metric} of {split} at {site}: {found}, not {wanted}");
                }
            }
            // Removing leaves the probe nothing to read, and flipping leaves it as sure of the other class.
            let x = &features[i];
            let rows: Vec<usize> = (0..160).collect();
            let moved = |split: &str| {
                let moved = x.outer_iter().flat_map(|row| {
                    let row = row.to_vec();
                    let by = by(&probe, split, &row);
                    row.into_iter().zip(by).map(|(x, by)| (f64::from(x) + by) as f32).collect::<Vec<_>>()
                });
                Array2::from_shape_vec(x.dim(), moved.collect()).unwrap()
            };
            let p = probe.probabilities(moved("removed").view(), &rows).unwrap();
            for row in p.outer_iter() {
                assert!(
                    row.iter().zip(p.row(0)).all(|(a, b)| gate::agree(*a, *b, gate::F32_GRADIENT, 1.0)),
                    "{name} at {site}: {row} {}",
                    p.row(0)
                );
            }
            if two {
                let (before, after) =
                    (probe.scores(x.view(), &rows).unwrap(), probe.scores(moved("flipped").view(), &rows).unwrap());
                assert!(before.iter().zip(&after).all(|(a, b)| (a + b).abs() < 1e-3 * (1.0 + a.abs())));
            }
        }
    }
}

/// What is added to an activation.
fn by(probe: &probe::Probe, split: &str, x: &[f32]) -> Vec<f64> {
    if split == "removed" {
        return probe.subspace().removal(x, probe.center());
    }
    let direction = &probe.directions()[0];
    let row = Array2::from_shape_vec((1, x.len()), x.to_vec()).unwrap();
    let score = probe.scores(row.view(), &[0]).unwrap()[[0, 0]];
    let square: f64 = direction.iter().map(|x| x * x).sum();
    direction.iter().map(|x| -2.0 * score / square * x).collect()
}

/// The story that README tells.
#[test]
fn who_gives_is_used_until_layer_two_and_readable_to_the_end() {
    let words = "probe tiny-number tiny-giver --seeds 1 --alpha 10 --no-random-model";
    let outcome = Interp::new().words(words).run().ok();
    let frame =
        ParquetReader::new(std::fs::File::open(outcome.output().join("frame.parquet")).unwrap()).finish().unwrap();
    let giver = |site: &str, split: &str| score(&frame, "tiny-giver", site, split, "logit_diff");
    let clean = giver("resid_post.1", "clean");
    assert!(clean > 9.0, "{clean}");
    for (site, used) in
        [("resid_pre.0", false), ("resid_post.1", true), ("resid_post.2", true), ("resid_post.5", false)]
    {
        let removed = giver(site, "removed");
        assert!(if used { removed < 0.3 * clean } else { removed > 0.8 * clean }, "{site}: {removed} of {clean}");
        assert!(giver(site, "random_removed") > 0.8 * clean, "{site}");
        if site != "resid_pre.0" {
            assert!(score(&frame, "tiny-giver", site, "test", "accuracy") > 0.98, "{site} is readable all the same");
        }
    }
    let number = |site: &str, split: &str| score(&frame, "tiny-number", site, split, "logit_diff");
    assert!((number("resid_post.0", "mean_flipped") - number("resid_post.0", "clean")).abs() < 0.5);
    assert!(number("resid_post.4", "mean_flipped") < -1.0, "{}", number("resid_post.4", "mean_flipped"));
    assert!(number("resid_post.4", "random_flipped") > 5.0, "{}", number("resid_post.4", "random_flipped"));
    assert!(outcome.stdout.contains("tiny-giver: logit of the answer over the wrong one"), "{}", outcome.stdout);
    let none = Interp::new().words("probe tiny-number --seeds 1 --alpha 10 --no-random-model --causal 0").run().ok();
    assert!(!none.stdout.contains("logit of the answer"), "{}", none.stdout);
}
