//! Gradients agree with finite differences: of every operation, of every parameter, at every site.
//!
//! candle's fused operations drop gradients without an error; these tests would notice.

mod common;

use candle_core::{DType, Tensor, Var};
use common::{gate, max_difference, noise, small_config, tokens, values, weights};
use interp::gpt2::{Lesson, Masks, Pass};
use interp::ops::{self, Causal};
use interp::{Edit, Gpt2, Plan, Site};

/// Step of the central differences, in f64: truncation and rounding are both far below the tolerance.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;

/// A scalar that weighs every element differently, so that no gradient can hide in a sum.
fn scalar(y: &Tensor) -> Tensor {
    let weights = noise(y.dims(), DType::F64, 99);
    (y * weights).unwrap().sum_all().unwrap()
}

/// Compares the gradient of `f` with respect to each input with central differences.
fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = scalar(&f(&tracked)).backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let grad = values(grads.get(var).unwrap_or_else(|| panic!("{name}: input {i} has no gradient")));
        let base = values(&inputs[i]);
        assert!(grad.iter().any(|g| *g != 0.0), "{name}: the gradient of input {i} is zero");
        for (j, gradient) in grad.iter().enumerate() {
            let at = |delta: f64| {
                let mut moved = base.clone();
                moved[j] += delta;
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(moved, inputs[i].dims(), &common::device()).unwrap();
                scalar(&f(&inputs)).to_scalar::<f64>().unwrap()
            };
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(
                (difference - gradient).abs() <= TOLERANCE * (1.0 + difference.abs()),
                "{name}: input {i}, element {j}: gradient {gradient}, finite difference {difference}"
            );
        }
    }
}

fn input(shape: &[usize], seed: u64) -> Tensor {
    noise(shape, DType::F64, seed)
}

#[test]
fn sums_and_gelu_differentiate() {
    check("add", &[input(&[3, 7], 1), input(&[3, 7], 2)], |x| ops::add(&x[0], &x[1]).unwrap());
    for form in [ops::Gelu::Tanh, ops::Gelu::Erf] {
        check("gelu", &[input(&[3, 7], 1)], |x| ops::gelu(&x[0], form).unwrap());
    }
}

#[test]
fn layer_norm_differentiates_fused_and_in_steps() {
    let inputs = [input(&[2, 3, 5], 1), input(&[5], 2), input(&[5], 3)];
    check("layer_norm", &inputs, |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5).unwrap());
    check("norm_scale", &inputs[..1], |x| ops::norm_scale(&x[0], 1e-5).unwrap());
    let scale = ops::norm_scale(&input(&[2, 3, 5], 4), 1e-5).unwrap();
    check("normalize", &[inputs[0].clone(), scale], |x| ops::normalize(&x[0], &x[1]).unwrap());
    check("affine", &inputs, |x| ops::affine(&x[0], &x[1], &x[2]).unwrap());
}

#[test]
fn linear_maps_differentiate() {
    let inputs = [input(&[2, 3, 4], 1), input(&[4, 5], 2), input(&[5], 3)];
    check("linear", &inputs, |x| ops::linear(&x[0], &x[1], &x[2]).unwrap());
    check("linear_t", &[inputs[0].clone(), input(&[6, 4], 4)], |x| ops::linear_t(&x[0], &x[1]).unwrap());
}

#[test]
fn linear_maps_differentiate_where_few_rows_have_a_gradient() {
    let (x, turned) = (input(&[9, 4], 1), input(&[5, 4], 4));
    let affine = [x.clone(), input(&[4, 5], 2), input(&[5], 3)];
    for (first, rows) in [(0, 1), (0, 6), (2, 3), (8, 1)] {
        check("some rows of linear", &affine, |x| {
            ops::linear(&x[0], &x[1], &x[2]).unwrap().narrow(0, first, rows).unwrap()
        });
        check("some rows of linear_t", &[x.clone(), turned.clone()], |x| {
            ops::linear_t(&x[0], &x[1]).unwrap().narrow(0, first, rows).unwrap()
        });
    }
    // A hole between rows that have one, and none at all.
    let of = |weights: &[f64]| {
        let var = Var::from_tensor(&x).unwrap();
        let weights = Tensor::new(weights, &common::device()).unwrap().reshape((9, 1)).unwrap();
        let y = ops::linear_t(var.as_tensor(), &turned).unwrap().broadcast_mul(&weights).unwrap();
        values(y.sum_all().unwrap().backward().unwrap().get(&var).unwrap())
    };
    let whole = of(&[1.0; 9]);
    let some = of(&[0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    for (i, (some, whole)) in some.iter().zip(&whole).enumerate() {
        let wanted = if [1, 4].contains(&(i / 4)) { *whole } else { 0.0 };
        assert!(gate::agree(*some, wanted, gate::F64, whole.abs()));
    }
    assert!(of(&[0.0; 9]).iter().all(|slope| *slope == 0.0));
}

#[test]
fn attention_differentiates_with_cache_and_holes() {
    let masks = [(Causal::new(0), 5, 5), (Causal::new(2), 3, 5), (Causal::with_holes(3, vec![1..3, 0..0]), 2, 5)];
    for (mask, queries, keys) in masks {
        let qk = [input(&[2, queries, 3, 4], 1), input(&[2, keys, 3, 4], 2)];
        // −∞ cannot be weighed: look at the scores behind a softmax, and at what is finite.
        for looked_at in [true, false] {
            check("attention_scores", &qk, |x| {
                let scores = ops::attention_scores(&x[0], &x[1], 0.5, &mask, looked_at).unwrap();
                ops::causal_softmax(&scores, &mask).unwrap()
            });
        }
        let scores = ops::attention_scores(&qk[0], &qk[1], 0.5, &mask, true).unwrap();
        let pattern = ops::causal_softmax(&scores, &mask).unwrap();
        let finite = ops::masked(&scores, 0.0, &mask).unwrap();
        check("causal_softmax", std::slice::from_ref(&finite), |x| ops::causal_softmax(&x[0], &mask).unwrap());
        check("masked", &[finite], |x| ops::masked(&x[0], 0.0, &mask).unwrap());
        let v = input(&[2, keys, 3, 4], 3);
        check("attend", &[pattern, v], |x| {
            ops::attend(&ops::masked(&x[0], 0.0, &mask).unwrap(), &x[1], &mask).unwrap()
        });
    }
}

/// Attention of `[prompt, pos, head, dim]` as one would write it with candle's own operations, on the CPU.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Causal) -> Tensor {
    let turn = |x: &Tensor| x.transpose(1, 2).unwrap().contiguous().unwrap();
    let (prompts, queries, heads, _) = q.dims4().unwrap();
    let keys = k.dim(1).unwrap();
    let hidden: Vec<f64> = (0..prompts * heads * queries * keys)
        .map(|i| (i % keys, i / keys % queries, i / (keys * queries * heads)))
        .map(|(key, query, prompt)| if mask.sees(prompt, query, key) { 0.0 } else { -1e300 })
        .collect();
    let hidden = Tensor::from_vec(hidden, (prompts, heads, queries, keys), &candle_core::Device::Cpu).unwrap();
    let scores = ((turn(q).matmul(&turn(k).t().unwrap()).unwrap() * 0.5).unwrap() + hidden).unwrap();
    let largest = scores.max_keepdim(3).unwrap().detach();
    let powers = scores.broadcast_sub(&largest).unwrap().exp().unwrap();
    let pattern = powers.broadcast_div(&powers.sum_keepdim(3).unwrap()).unwrap();
    pattern.matmul(&turn(v)).unwrap().transpose(1, 2).unwrap()
}

#[test]
fn attention_over_long_texts_is_plain_attention() {
    // Longer than what is computed together, with prompts enough for heads to be packed, after a cache and with a hole.
    let cases = [
        (1, 600, 600, Causal::new(0)),
        (5, 270, 270, Causal::new(0)),
        (2, 300, 570, Causal::with_holes(270, vec![3..260, 0..0])),
    ];
    for (prompts, queries, keys, mask) in cases {
        let shapes = [[prompts, queries, 2, 3], [prompts, keys, 2, 3], [prompts, keys, 2, 3]];
        let inputs: Vec<Tensor> = (0..3).map(|i| input(&shapes[i], i as u64)).collect();
        let run = |device: &candle_core::Device, f: &dyn Fn(&[Tensor]) -> Tensor| {
            let vars: Vec<Var> =
                inputs.iter().map(|x| Var::from_tensor(&x.to_device(device).unwrap()).unwrap()).collect();
            let z = f(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>());
            let weights = noise(z.dims(), DType::F64, 99).to_device(device).unwrap();
            let grads = (&z * weights).unwrap().sum_all().unwrap().backward().unwrap();
            let mut all = vec![values(&z)];
            all.extend(vars.iter().map(|var| values(grads.get(var).unwrap())));
            all
        };
        let wanted = run(&candle_core::Device::Cpu, &|x| plain_attention(&x[0], &x[1], &x[2], &mask));
        let found = run(&common::device(), &|x| ops::attention(&x[0], &x[1], &x[2], 0.5, &mask).unwrap());
        for (what, (wanted, found)) in ["z", "q", "k", "v"].iter().zip(wanted.iter().zip(&found)) {
            gate::assert_agree(&format!("{queries} queries, {what}"), found, wanted, gate::F64);
        }
    }
}

#[test]
fn cross_entropy_differentiates_and_ignores() {
    let targets = vec![1, ops::IGNORE, 6, 0];
    check("cross_entropy", &[input(&[4, 7], 1)], |x| ops::cross_entropy(&x[0], targets.clone()).unwrap());
}

#[test]
fn writing_a_region_differentiates() {
    let region = [0..2, 1..3, 2..3];
    check("write_region", &[input(&[2, 4, 3], 1), input(&[2, 2, 1], 2)], |x| {
        ops::write_region(&x[0], &x[1], &region).unwrap()
    });
}

/// The loss of a small model with every parameter a variable.
fn loss(model: &Gpt2) -> Tensor {
    let config = small_config();
    let tokens = tokens(&config, &[5, 5], 3);
    let targets: Vec<u32> = (0..2).flat_map(|p| [&tokens.row(p)[1..], &[ops::IGNORE]].concat()).collect();
    let logits = model.forward(&tokens).unwrap().flatten_to(1).unwrap();
    ops::cross_entropy(&logits, targets).unwrap().mean_all().unwrap()
}

#[test]
fn every_parameter_has_the_gradient_of_finite_differences() {
    let config = small_config();
    let weights = weights(&config, DType::F64);
    let mut vars = std::collections::BTreeMap::new();
    let model = Gpt2::new(config.clone(), |name| {
        let var = Var::from_tensor(&weights[name])?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_string(), var);
        Ok(tensor)
    })
    .unwrap();
    let grads = loss(&model).backward().unwrap();
    for (name, var) in &vars {
        let grad = values(grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")));
        assert!(grad.iter().any(|g| *g != 0.0), "{name}: the gradient is zero");
        // A spread of elements of each tensor: all of them would be thousands of forward passes.
        for j in (0..grad.len()).step_by((grad.len() / 6).max(1)) {
            let at = |delta: f64| {
                let mut moved = values(&weights[name]);
                moved[j] += delta;
                let moved = Tensor::from_vec(moved, weights[name].dims(), &common::device()).unwrap();
                let get = |n: &str| Ok(if n == name { moved.clone() } else { weights[n].clone() });
                loss(&Gpt2::new(config.clone(), get).unwrap()).to_scalar::<f64>().unwrap()
            };
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(
                (difference - grad[j]).abs() <= TOLERANCE * (1.0 + difference.abs()),
                "{name}[{j}]: gradient {}, finite difference {difference}",
                grad[j]
            );
        }
    }
}

/// Dropout that is the same for candle's graph and for ours.
struct Dropped;

impl Dropped {
    fn drops(site: Site) -> bool {
        matches!(site, Site::ResidPre(0) | Site::Pattern(_) | Site::AttnOut(_) | Site::MlpOut(_))
    }
}

impl Masks for Dropped {
    fn multiply(&self, site: Site) -> bool {
        Self::drops(site)
    }

    fn mask(&mut self, value: &Tensor) -> interp::Result<Tensor> {
        Ok(noise(value.dims(), DType::F64, value.elem_count() as u64))
    }
}

/// What a model loses, and the gradient of every weight that learns, by name.
#[derive(Debug, PartialEq)]
struct Learned {
    loss: f64,
    gradients: Vec<(String, Vec<f64>)>,
}

/// What is learned from a ragged batch of which every row starts elsewhere, as candle finds it and as [`Gpt2::learn`] does.
fn learned(config: &interp::Config, drop: bool, learns: impl Fn(&str) -> bool) -> [Learned; 2] {
    const FACTOR: f64 = 0.3;
    let (weights, starts) = (weights(config, DType::F64), [2, 0]);
    let tokens = tokens(config, &[5, 4], 3);
    let target = |i: usize| if i % 4 == 3 { ops::IGNORE } else { (i * 7 % config.vocab_size) as u32 };
    let targets: Vec<u32> = (0..10).map(target).collect();
    let mut vars = Vec::new();
    let model = Gpt2::new(config.clone(), |name| {
        let var = Var::from_tensor(&weights[name])?;
        let tensor = var.as_tensor().clone();
        vars.push((name.to_string(), var));
        Ok(tensor)
    });
    vars.sort_by_key(|(name, _)| name.clone());
    let mut hooks = interp::hooks::from_fn(|site, value| match drop && Dropped::drops(site) {
        true => Ok((&value * Dropped.mask(&value)?)?),
        false => Ok(value),
    });
    let output = model.unwrap().run(Pass::new(&tokens).starts(&starts), &mut hooks).unwrap();
    let losses = ops::cross_entropy(&output.logits.unwrap().flatten_to(1).unwrap(), targets.clone()).unwrap();
    let loss = losses.sum_all().unwrap();
    let found = (loss.clone() * FACTOR).unwrap().backward().unwrap();
    let candle = vars.iter().filter(|(name, _)| learns(name)).map(|(name, var)| {
        let grad = found.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        (name.clone(), values(grad))
    });
    let candle = Learned { loss: loss.to_scalar().unwrap(), gradients: candle.collect() };

    let zeros = |name: &str| match learns(name) {
        true => Ok(weights[name].zeros_like()?),
        false => Ok(Tensor::zeros(0, DType::F64, &candle_core::Device::Cpu)?),
    };
    let (model, sums) = (
        Gpt2::new(config.clone(), |name| Ok(weights[name].clone())).unwrap(),
        Gpt2::new(config.clone(), zeros).unwrap(),
    );
    let lesson = Lesson { tokens: &tokens, starts: &starts, targets: &targets, factor: FACTOR };
    let losses = match drop {
        true => model.learn(&lesson, &mut Dropped, &sums),
        false => model.learn(&lesson, &mut (), &sums),
    };
    let ours = sums.tensors().into_iter().filter(|(name, _)| learns(name)).map(|(name, sum)| (name, values(sum)));
    let mut gradients: Vec<_> = ours.collect();
    gradients.sort_by_key(|(name, _)| name.clone());
    [candle, Learned { loss: losses.unwrap().sum_all().unwrap().to_scalar().unwrap(), gradients }]
}

#[test]
fn what_is_learned_is_what_candle_finds() {
    let tied = interp::Config { tie_word_embeddings: true, n_embd: 8, ..small_config() };
    for (config, drop) in [(small_config(), false), (small_config(), true), (tied, true)] {
        let [candle, ours] = learned(&config, drop, |_| true);
        assert!(gate::agree(ours.loss, candle.loss, gate::F64_GRADIENT, candle.loss));
        assert_eq!(ours.gradients.len(), config.tensors().len());
        for ((name, candle), (other, ours)) in candle.gradients.iter().zip(&ours.gradients) {
            assert_eq!(name, other);
            assert!(gate::size(candle.iter().copied()) > 0.0, "{name}");
            gate::assert_agree(name, ours, candle, gate::F64_GRADIENT);
        }
    }
}

/// Drops the same values wherever it is asked, whatever computes.
struct Seeded(DType);

impl Masks for Seeded {
    fn multiply(&self, site: Site) -> bool {
        Dropped::drops(site)
    }

    fn mask(&mut self, value: &Tensor) -> interp::Result<Tensor> {
        let noise = noise(value.dims(), DType::F64, value.elem_count() as u64);
        Ok((noise.gt(-1.0)?.to_dtype(DType::F32)? * 1.2)?.to_dtype(self.0)?)
    }
}

#[test]
fn sixteen_bits_learn_what_thirty_two_do() {
    let model = common::tiny();
    let tokens = tokens(model.config(), &[33, 33], 3);
    let targets: Vec<u32> = (0..66).map(|i| (i * 37 % model.config().vocab_size) as u32).collect();
    let lesson = Lesson { tokens: &tokens, starts: &[0, 0], targets: &targets, factor: 1.0 / 66.0 };
    let learned = |dtype: DType, drop: bool| {
        let all: std::collections::BTreeMap<String, Tensor> =
            model.tensors().into_iter().map(|(name, x)| (name, x.clone())).collect();
        let rounded = |name: &str| match all[name].rank() {
            2 => Ok(all[name].to_dtype(dtype)?),
            _ => Ok(all[name].clone()),
        };
        let model = Gpt2::new(model.config().clone(), rounded).unwrap();
        let sums = Gpt2::new(model.config().clone(), |name| Ok(all[name].zeros_like()?)).unwrap();
        let losses =
            if drop { model.learn(&lesson, &mut Seeded(dtype), &sums) } else { model.learn(&lesson, &mut (), &sums) };
        let loss = values(&losses.unwrap()).iter().sum::<f64>();
        (loss, sums.tensors().into_iter().map(|(name, sum)| (name, values(sum))).collect::<Vec<_>>())
    };
    for drop in [false, true] {
        let ((loss, full), (other, half)) = (learned(DType::F32, drop), learned(DType::BF16, drop));
        // bf16 keeps 8 bits: a share of 0.004 for each rounding, of which a loss averages many and a gradient few.
        assert!((loss - other).abs() < 0.01 * loss && loss != other, "{loss} and {other}");
        for ((name, full), (_, half)) in full.iter().zip(&half) {
            let size = full.iter().map(|x| x * x).sum::<f64>().sqrt();
            let away = full.iter().zip(half).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            assert!(away < 0.15 * size, "dropout {drop}, {name}: {:.3} of the gradient", away / size);
        }
    }
}

#[test]
fn losses_in_blocks_are_those_of_all_logits() {
    let (x, weight) = (input(&[10, 6], 1), input(&[11, 6], 2));
    let targets: Vec<u32> = (0..10).map(|i| if i == 4 { ops::IGNORE } else { i * 3 % 11 }).collect();
    let vars = [Var::from_tensor(&x).unwrap(), Var::from_tensor(&weight).unwrap()];
    let logits = ops::linear_t(vars[0].as_tensor(), vars[1].as_tensor()).unwrap();
    let wanted = ops::cross_entropy(&logits, targets.clone()).unwrap();
    let grads = (wanted.sum_all().unwrap() * 0.7).unwrap().backward().unwrap();
    assert!(gate::apart(&ops::next_token_losses(&x, &weight, &targets).unwrap(), &wanted) <= gate::F64);
    for rows in [3, 5, 10, 100] {
        let sum = input(&[11, 6], 3);
        let (losses, to_x) = ops::next_token_gradient_by(rows, &x, &weight, &targets, 0.7, Some(&sum)).unwrap();
        let to_weight = (sum - input(&[11, 6], 3)).unwrap();
        for (found, wanted) in
            [(&losses, &wanted), (&to_x, grads.get(&vars[0]).unwrap()), (&to_weight, grads.get(&vars[1]).unwrap())]
        {
            assert!(gate::apart(found, wanted) <= gate::F64, "{rows} rows at once");
        }
    }
    assert!(ops::next_token_losses(&x, &weight, &targets[1..]).is_err());
}

#[test]
fn what_is_frozen_is_left_alone_and_the_rest_learns_the_same() {
    let config = small_config();
    let [_, whole] = learned(&config, true, |_| true);
    let parts: [fn(&str) -> bool; 6] = [
        |name| name.starts_with("h.1."),
        |name| name == "h.2.mlp.c_fc.bias",
        |name| name.starts_with("ln_f") || name.starts_with("lm_head"),
        |name| name == "wpe.weight",
        |name| name.ends_with("ln_1.weight"),
        |_| false,
    ];
    for learns in parts {
        let [_, part] = learned(&config, true, learns);
        let wanted = whole.gradients.iter().filter(|(name, _)| learns(name)).cloned().collect();
        assert_eq!(part, Learned { loss: whole.loss, gradients: wanted });
    }
}

#[test]
fn every_site_has_the_gradient_of_finite_differences() {
    let config = small_config();
    let model = common::small_model(DType::F64);
    let tokens = tokens(&config, &[4, 4], 5);
    let metric = |logits: &Tensor| scalar(logits);
    for site in Site::all(config.n_layer) {
        let trace = Plan::new().grad(site).run(&model, &tokens).unwrap();
        let value = metric(trace.logits().unwrap());
        let gradients = trace.backward(&value).unwrap();
        let gradient = gradients.get(site).unwrap();
        let shape = site.shape(&config.extents(2, 4, 0));
        assert_eq!(gradient.dims(), shape, "{site}");
        // Along a random direction: one difference weighs every element.
        let direction = noise(&shape, DType::F64, 11);
        let at = |step: f64| {
            let moved = (&direction * step).unwrap();
            // −∞ + x stays −∞: the mask is applied again after the edit.
            let edit = Edit::add(site, &moved);
            let trace = Plan::new().edit(edit).run(&model, &tokens).unwrap();
            metric(trace.logits().unwrap()).to_scalar::<f64>().unwrap()
        };
        let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let along = values(&(gradient * &direction).unwrap().sum_all().unwrap())[0];
        assert!(
            (difference - along).abs() <= 1e-6 * (1.0 + difference.abs()),
            "{site}: gradient {along}, finite difference {difference}"
        );
        assert!(difference != 0.0, "{site} has no effect");
    }
}

#[test]
fn gradients_at_several_sites_come_from_one_run() {
    let config = small_config();
    let model = common::small_model(DType::F64);
    let tokens = tokens(&config, &[5], 6);
    let sites = [Site::ResidPre(0), Site::Pattern(1), Site::MlpPost(2), Site::Logits];
    let all = sites.iter().fold(Plan::new(), |plan, site| plan.grad(*site)).run(&model, &tokens).unwrap();
    let value = scalar(all.logits().unwrap());
    let together = all.backward(&value).unwrap();
    for site in sites {
        let alone = Plan::new().grad(site).run(&model, &tokens).unwrap();
        let value = scalar(alone.logits().unwrap());
        let gradients = alone.backward(&value).unwrap();
        assert!(gate::apart(together.get(site).unwrap(), gradients.get(site).unwrap()) <= gate::F64, "{site}");
    }
}

#[test]
fn one_run_gives_the_gradients_of_several_numbers() {
    let config = small_config();
    let model = common::small_model(DType::F64);
    let tokens = tokens(&config, &[5], 6);
    let trace = Plan::new().grad(Site::ResidPre(1)).grad(Site::Z(2)).run(&model, &tokens).unwrap();
    let logits = trace.logits().unwrap();
    let (first, second) = (scalar(logits), logits.sqr().unwrap().sum_all().unwrap());
    let (a, b) = (trace.backward(&first).unwrap(), trace.backward(&second).unwrap());
    let sum = trace.backward(&(first + second).unwrap()).unwrap();
    for site in [Site::ResidPre(1), Site::Z(2)] {
        let added = (a.get(site).unwrap() + b.get(site).unwrap()).unwrap();
        assert!(gate::apart(&added, sum.get(site).unwrap()) <= gate::F64_GRADIENT, "{site}");
        assert!(max_difference(a.get(site).unwrap(), b.get(site).unwrap()) > 1e-3, "{site}");
    }
}

#[test]
fn a_missing_gradient_is_an_error() {
    let config = small_config();
    let model = common::small_model(DType::F64);
    let tokens = tokens(&config, &[4], 7);
    let trace = Plan::new().grad(Site::ResidPost(2)).read(Site::ResidPre(0)).run(&model, &tokens).unwrap();
    let early = trace.get(Site::ResidPre(0)).unwrap().sum_all().unwrap();
    let not_named = trace.backward(&early).unwrap().get(Site::Z(0)).unwrap_err().to_string();
    assert!(not_named.contains("add .grad"), "{not_named}");
    let independent = trace.backward(&early).unwrap().get(Site::ResidPost(2)).unwrap_err().to_string();
    assert!(independent.contains("does not depend"), "{independent}");
    let vector = trace.backward(trace.logits().unwrap()).err().unwrap().to_string();
    assert!(vector.contains("of one number"), "{vector}");
}
