//! Ablation: TransformerLens's numbers, those of a naive loop of plans and edits, and what must hold by construction.
//!
//! `tests/fixtures/make_ablation.py` makes the fixture.

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use common::{fixture, gate, narrowed, parity_model, small_config, values};
use interp::ablate::{Ablated, Measure, Method, Options, ablate, frame, random_sets};
use interp::metric::Metric;
use interp::pair::Question;
use interp::pairset::PairSet;
use interp::sweep::{Cell, Sweep};
use interp::target::Target;
use interp::text::Encoding;
use interp::trunk::{Trunk, Wanted};
use interp::{Config, Edit, Gpt2, Plan, Result, Site, Tokens, embedded};
use process::Interp;

/// Loss and every metric.
fn measures() -> Vec<Measure> {
    std::iter::once(Measure::Loss).chain(Metric::ALL.map(Measure::Of)).collect()
}

fn options(method: Method) -> Options {
    Options { method, measures: measures(), seed: 3, loss_from: 0, memory: None }
}

fn tokens(ids: &[u32]) -> Tokens {
    Tokens::from_ids(vec![ids.to_vec()]).unwrap()
}

/// Prompts of the small model with two answers against one.
fn questions(prompts: &[&[u32]]) -> Vec<Question> {
    let target = Target::new(vec![2, 7], vec![5]).unwrap();
    prompts.iter().map(|ids| Question { tokens: tokens(ids), target: target.clone() }).collect()
}

fn prompts_of(questions: &[Question]) -> Vec<Tokens> {
    questions.iter().map(|question| question.tokens.clone()).collect()
}

fn run(model: &Gpt2, questions: &[Question], experiments: &[Vec<Cell>], options: &Options) -> Result<Vec<Ablated>> {
    let mut counted = 0;
    let all = questions.len() * experiments.len();
    let mut progress = |done: usize, of: usize| {
        counted += 1;
        assert_eq!((done, of), (counted, all));
        Ok(())
    };
    ablate(model, questions, &prompts_of(questions), experiments, options, &mut progress)
}

/// All measures of a whole run with some edits.
fn naive(model: &Gpt2, question: &Question, edits: Vec<Edit>) -> Vec<f64> {
    let ends = |edits: Vec<Edit>| -> (f64, Vec<f32>) {
        let trace = Plan::new().edits(edits).run(model, &question.tokens).unwrap();
        let vocab = model.config().vocab_size;
        let logits = values(trace.logits().unwrap());
        let rows: Vec<&[f64]> = logits.chunks(vocab).collect();
        let next = &question.tokens.row(0)[1..];
        let nats = |(row, id): (&&[f64], &u32)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*id as usize];
        let loss = rows.iter().zip(next).map(nats).sum::<f64>() / next.len() as f64;
        (loss, rows[rows.len() - 1].iter().map(|x| *x as f32).collect())
    };
    let ((loss, logits), (_, clean)) = (ends(edits), ends(Vec::new()));
    let of = |metric: Metric| metric.of(&logits, &clean, &question.target);
    std::iter::once(loss).chain(Metric::ALL.map(of)).collect()
}

/// The whole value at a site in one prompt's own run.
fn read(model: &Gpt2, site: Site, prompt: &Tokens) -> Tensor {
    Plan::new().read(site).run(model, prompt).unwrap().get(site).unwrap().clone()
}

/// Mean over all positions of all prompts, of what a cell covers at one position.
fn mean_of(model: &Gpt2, cell: &Cell, prompts: &[Tokens]) -> Tensor {
    let mut sum: Vec<f64> = Vec::new();
    let mut count = 0.0;
    for prompt in prompts {
        let mut value = read(model, cell.site, prompt);
        if let Some(head) = cell.head {
            value = value.narrow(2, head, 1).unwrap();
        }
        if let Some(neuron) = cell.neuron {
            value = value.narrow(2, neuron, 1).unwrap();
        }
        let value = values(&value);
        let width = value.len() / prompt.longest();
        sum.resize(width, 0.0);
        value.chunks(width).for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
        count += prompt.longest() as f64;
    }
    let mean: Vec<f32> = sum.into_iter().map(|x| (x / count) as f32).collect();
    Tensor::new(mean, &common::device()).unwrap()
}

/// Mean over the prompts of one length.
fn mean_by_position(model: &Gpt2, site: Site, prompts: &[Tokens], length: usize) -> Tensor {
    let same: Vec<Tensor> = prompts.iter().filter(|p| p.longest() == length).map(|p| read(model, site, p)).collect();
    let sum = same[1..].iter().fold(same[0].clone(), |sum, value| (sum + value).unwrap());
    (sum / same.len() as f64).unwrap()
}

fn cells(config: &Config, sweep: &str, length: usize) -> Vec<Cell> {
    Sweep::named(sweep).unwrap().iter().flat_map(|sweep| sweep.cells(config, length)).collect()
}

/// Every cell by itself, then all of a stride together.
fn with_sets(cells: &[Cell]) -> Vec<Vec<Cell>> {
    let sets = [2, 3, 5].map(|n| cells.iter().step_by(n).copied().collect());
    cells.iter().map(|cell| vec![*cell]).chain(sets).collect()
}

fn agree(what: &str, found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for ((measure, found), wanted) in measures().iter().zip(found).zip(wanted) {
        let name = measure.name();
        // Metrics of logits of size 1 to 10, or probabilities.
        let agree = gate::agree(*found, *wanted, gate::F32, 1.0 + wanted.abs());
        assert!(agree, "{what} {name}: {found} instead of {wanted}");
    }
}

/// Compares every experiment on every question with a run of its own; returns how many there were.
fn compare(
    model: &Gpt2,
    questions: &[Question],
    experiments: &[Vec<Cell>],
    options: &Options,
    edit: &dyn Fn(&Question, &Cell) -> Edit,
) -> usize {
    let ablated = run(model, questions, experiments, options).unwrap();
    for (question, one) in questions.iter().zip(&ablated) {
        agree("base", &one.base, &naive(model, question, Vec::new()));
        for (cells, found) in experiments.iter().zip(&one.values) {
            let edits = cells.iter().map(|cell| narrowed(edit(question, cell), cell)).collect();
            let what = format!("{} {cells:?} on {:?}", options.method.name(), question.tokens.row(0));
            agree(&what, found, &naive(model, question, edits));
        }
    }
    questions.len() * experiments.len()
}

/// Prompts of two lengths.
const RAGGED: [&[u32]; 4] = [&[1, 2, 3, 4, 5], &[6, 7, 8], &[1, 9, 3, 0, 5], &[10, 3, 4]];
const LEVEL: [&[u32]; 3] = [&[1, 2, 3, 4, 5], &[6, 7, 8, 9, 0], &[10, 3, 1, 2, 2]];

#[test]
fn zero_and_means_are_runs_of_their_own() {
    let model = common::model(&Config { tie_word_embeddings: true, ..small_config() }, DType::F32);
    let mut compared = 0;
    for (sweeps, prompts) in [
        (&["attn_head_out_all_pos", "attn_out_all_pos", "mlp_out_all_pos", "mlp_neuron_all_pos"][..], &RAGGED[..]),
        (&["attn_out", "mlp_out", "attn_head_out_by_pos", "attn_head_k_by_pos"][..], &LEVEL[..]),
    ] {
        let questions = questions(prompts);
        let reference = prompts_of(&questions);
        let all: Vec<Cell> = sweeps.iter().flat_map(|name| cells(model.config(), name, prompts[0].len())).collect();
        let experiments = with_sets(&all);
        let zero = |_: &Question, cell: &Cell| Edit::zero(cell.site);
        compared += compare(&model, &questions, &experiments, &options(Method::Zero), &zero);
        let mean = |_: &Question, cell: &Cell| Edit::set(cell.site, &mean_of(&model, cell, &reference));
        compared += compare(&model, &questions, &experiments, &options(Method::Mean), &mean);
        let by_position = |question: &Question, cell: &Cell| {
            Edit::patch(cell.site, &mean_by_position(&model, cell.site, &reference, question.tokens.longest()))
        };
        compared += compare(&model, &questions, &experiments, &options(Method::PosMean), &by_position);
    }
    assert!(compared > 1300, "{compared}");
}

#[test]
fn a_resampled_value_is_another_prompts() {
    let model = common::small_model(DType::F32);
    let questions = questions(&RAGGED);
    let experiments: Vec<Vec<Cell>> = ["attn_head_out_all_pos", "mlp_neuron_all_pos"]
        .iter()
        .flat_map(|sweep| with_sets(&cells(model.config(), sweep, 3)))
        .collect();
    // Each prompt has one other of its length.
    let other =
        |question: &Question| tokens(RAGGED[RAGGED.iter().position(|p| *p == question.tokens.row(0)).unwrap() ^ 2]);
    let edit = |question: &Question, cell: &Cell| Edit::patch(cell.site, &read(&model, cell.site, &other(question)));
    compare(&model, &questions, &experiments, &options(Method::Resample), &edit);
}

#[test]
fn the_seed_chooses_whom_to_resample_from() {
    let model = common::small_model(DType::F32);
    let questions = questions(&LEVEL);
    let cell = Cell { head: Some(1), ..Cell::whole(Site::Z(1)) };
    let mut chosen: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); questions.len()];
    for seed in 0..12 {
        let options = Options { seed, ..options(Method::Resample) };
        let found = run(&model, &questions, &[vec![cell]], &options).unwrap();
        let again = run(&model, &questions, &[vec![cell]], &options).unwrap();
        for (i, question) in questions.iter().enumerate() {
            assert_eq!(found[i].values, again[i].values);
            let candidate = |other: &usize| {
                let edit = Edit::patch(cell.site, &read(&model, cell.site, &tokens(LEVEL[*other]))).head(1);
                let (of_it, found) = (naive(&model, question, vec![edit])[1], found[i].values[0][1]);
                gate::agree(of_it, found, gate::F32, 1.0 + found.abs())
            };
            let of: Vec<usize> = (0..questions.len()).filter(candidate).collect();
            assert!(of.len() == 1 && of[0] != i, "{of:?} for {i}");
            chosen[i].insert(of[0]);
        }
    }
    assert!(chosen.iter().all(|chosen| chosen.len() == 2), "{chosen:?}");
}

/// Edges that can be ablated.
fn edges(config: &Config, length: usize) -> Vec<Cell> {
    let mut edges = cells(config, "attn_head_pattern_dest_src_pos", length);
    edges.retain(|cell| cell.pos > Some(0) && cell.key <= cell.pos);
    edges
}

#[test]
fn edges_are_runs_of_their_own() {
    let model = common::small_model(DType::F32);
    let questions = questions(&LEVEL);
    let reference = prompts_of(&questions);
    let all = edges(model.config(), 5);
    let mut experiments = with_sets(&all);
    let nothing = Tensor::new(f32::NEG_INFINITY, &common::device()).unwrap();
    let knockout =
        |_: &Question, cell: &Cell| Edit::set(Site::AttnScores(cell.layer), &nothing.reshape((1, 1, 1, 1)).unwrap());
    compare(&model, &questions, &experiments, &options(Method::Knockout), &knockout);
    experiments.push(all.clone());
    compare(&model, &questions, &experiments, &options(Method::Zero), &|_, cell| Edit::zero(cell.site));
    let by_position =
        |_: &Question, cell: &Cell| Edit::patch(cell.site, &mean_by_position(&model, cell.site, &reference, 5));
    compare(&model, &questions, &experiments, &options(Method::PosMean), &by_position);
    // A query that sees nothing at all gets nothing.
    compare(&model, &questions, &[all], &options(Method::Knockout), &|_, cell| Edit::zero(cell.site));
}

#[test]
fn a_trunk_ends_as_the_whole_run_does() {
    let model = common::small_model(DType::F32);
    let question = &questions(&[&[1, 2, 3, 4, 5, 6, 7]])[0];
    let other = tokens(&[9, 8, 3, 4, 0, 6, 1]);
    let all: Vec<Cell> =
        ["resid_pre", "attn_head_v_by_pos", "mlp_out"].iter().flat_map(|name| cells(model.config(), name, 7)).collect();
    let sites: BTreeSet<Site> = all.iter().map(|cell| cell.site).collect();
    let grow = |tokens: &Tokens| {
        let wanted = Wanted { loss_from: Some(0), memory: None };
        Trunk::grow(&model, Plan::new(), tokens, sites.iter().copied(), wanted).unwrap()
    };
    let (trunk, source) = (grow(&question.tokens), grow(&other));
    let loss = |edits: Vec<Edit>| naive(&model, question, edits)[0];
    let base = trunk.end().loss.unwrap();
    assert!(gate::agree(base, loss(Vec::new()), gate::F32, base));
    let experiments = with_sets(&all);
    let mut seen = 0;
    trunk
        .run(&experiments, source.values(), &mut |i, end| {
            let patched = |cell: &Cell| narrowed(Edit::patch(cell.site, &read(&model, cell.site, &other)), cell);
            let wanted = loss(experiments[i].iter().map(patched).collect());
            // What was not run has kept the loss.
            let found = end.map_or(base, |end| end.loss.unwrap());
            assert!(gate::agree(found, wanted, gate::F32, wanted), "{:?}: {found} not {wanted}", experiments[i]);
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, experiments.len());
    let mut seen = 0;
    trunk
        .run_unchanged(&all, &mut |_, end| {
            assert!(gate::agree(end.loss.unwrap(), base, gate::F32, base));
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, all.len());
}

#[test]
fn what_cannot_change_anything_is_left_alone() {
    let model = common::small_model(DType::F32);
    let questions = questions(&LEVEL);
    // Behind the keys of the last layer only the last position is read, unless the loss is wanted.
    let sweep = cells(model.config(), "mlp_out", 5);
    let experiments: Vec<Vec<Cell>> = sweep.iter().map(|cell| vec![*cell]).collect();
    let without_loss = Options { measures: vec![Measure::Of(Metric::LogitDiff)], ..options(Method::Zero) };
    for (options, untouched) in [(without_loss, 4), (options(Method::Zero), 0)] {
        for one in run(&model, &questions, &experiments, &options).unwrap() {
            assert_eq!(one.untouched, untouched);
            for (cell, values) in sweep.iter().zip(&one.values) {
                let unread = untouched > 0 && cell.layer == 2 && cell.pos < Some(4);
                assert_eq!(*values == one.base, unread, "{cell}");
            }
        }
    }
    // The future has no attention to lose.
    let future: Vec<Vec<Cell>> = cells(model.config(), "attn_head_pattern_dest_src_pos", 5)
        .into_iter()
        .filter(|cell| cell.key > cell.pos)
        .map(|cell| vec![cell])
        .collect();
    for method in [Method::Zero, Method::PosMean, Method::Resample, Method::Knockout] {
        let future: Vec<Vec<Cell>> = match method {
            Method::Knockout => future.iter().filter(|cells| cells[0].pos > Some(0)).cloned().collect(),
            _ => future.clone(),
        };
        for one in run(&model, &questions, &future, &options(method)).unwrap() {
            assert_eq!(one.untouched, future.len());
            assert!(one.values.iter().all(|values| *values == one.base));
        }
    }
}

#[test]
fn random_sets_leave_out_what_was_chosen() {
    let all = cells(&small_config(), "mlp_neuron_all_pos", 1);
    let chosen: Vec<Cell> = all.iter().skip(4).step_by(5).copied().collect();
    let sets = random_sets(&chosen, &all, 20, 1);
    assert_eq!(sets.len(), 20);
    for set in &sets {
        assert_eq!(set.len(), chosen.len());
        assert!(set.iter().all(|cell| all.contains(cell) && !chosen.contains(cell)));
        let different: BTreeSet<(usize, Option<usize>)> = set.iter().map(|cell| (cell.layer, cell.neuron)).collect();
        assert_eq!(different.len(), set.len(), "a cell stands twice");
    }
    assert_eq!(sets, random_sets(&chosen, &all, 20, 1));
    assert_ne!(sets, random_sets(&chosen, &all, 20, 2));
    assert!(sets.iter().skip(1).all(|set| *set != sets[0]));
    let drawn: BTreeSet<(usize, Option<usize>)> = sets.iter().flatten().map(|cell| (cell.layer, cell.neuron)).collect();
    assert_eq!(drawn.len(), all.len() - chosen.len(), "every other cell is drawn sometimes");
    assert!(random_sets(&all[..16], &all, 20, 1).is_empty(), "there are not 16 others");
}

#[test]
fn the_frame_says_what_was_done_and_how_sure_it_is() {
    let model = common::small_model(DType::F32);
    let questions = questions(&RAGGED);
    let heads = cells(model.config(), "attn_head_out_all_pos", 3);
    let neuron = Cell { neuron: Some(4), ..Cell::whole(Site::MlpPost(1)) };
    let place = Cell { pos: Some(2), ..Cell::whole(Site::MlpOut(2)) };
    let experiments = vec![vec![heads[3]], vec![neuron], vec![place], heads[..2].to_vec(), heads[4..].to_vec()];
    let options = options(Method::Mean);
    let ablated = run(&model, &questions, &experiments, &options).unwrap();
    let table = frame(&questions, &experiments, 1, &ablated, &options).unwrap();
    let (n, m) = (experiments.len(), options.measures.len());
    assert_eq!(table.height(), (RAGGED.len() + 1) * n * m);
    let text = |name: &str| -> Vec<Option<String>> {
        table.column(name).unwrap().str().unwrap().iter().map(|x| x.map(str::to_string)).collect()
    };
    let number = |name: &str| -> Vec<Option<f64>> { table.column(name).unwrap().f64().unwrap().iter().collect() };
    let index = |name: &str| -> Vec<Option<u32>> { table.column(name).unwrap().u32().unwrap().iter().collect() };
    let (prompt, what, metric) = (index("prompt"), text("what"), text("metric"));
    let (base, value, change) = (number("base"), number("value"), number("change"));
    let (low, high, p) = (number("low"), number("high"), number("p"));
    let control: Vec<Option<bool>> = table.column("control").unwrap().bool().unwrap().iter().collect();
    let places = ["layer", "head", "neuron", "pos", "src"].map(index);
    let single = [
        ("z 1.1", [Some(1), Some(1), None, None, None], Some("z")),
        ("mlp_post 1.4", [Some(1), None, Some(4), None, None], Some("mlp_post")),
        ("mlp_out 2@2", [Some(2), None, None, Some(2), None], Some("mlp_out")),
        ("z 0.0, z 0.1", [None; 5], None),
        ("z 2.0, z 2.1", [None; 5], None),
    ];
    let mut sums: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for row in 0..table.height() {
        let (experiment, measure) = (row / m % n, row % m);
        let (name, at, site) = &single[experiment];
        assert_eq!(what[row].as_deref(), Some(*name));
        assert_eq!([0, 1, 2, 3, 4].map(|i: usize| places[i][row]), *at, "{name}");
        assert_eq!(text("site")[row].as_deref(), *site);
        assert_eq!(metric[row].as_deref(), Some(options.measures[measure].name()));
        assert_eq!(control[row], Some(experiment == 4));
        assert_eq!(change[row].unwrap(), value[row].unwrap() - base[row].unwrap());
        let of = row / (n * m);
        if of < RAGGED.len() {
            assert_eq!(prompt[row], Some(of as u32));
            assert_eq!(value[row], Some(ablated[of].values[experiment][measure]));
            assert_eq!(base[row], Some(ablated[of].base[measure]));
            assert_eq!((low[row], high[row], p[row]), (None, None, None));
            let token = (experiment == 2).then(|| format!("<{}>", RAGGED[of][2]));
            assert_eq!(text("token")[row], token);
            sums.entry((experiment, measure)).or_default().push(change[row].unwrap());
        } else {
            assert_eq!(prompt[row], None);
            let changes = &sums[&(experiment, measure)];
            let mean = changes.iter().sum::<f64>() / changes.len() as f64;
            assert!((change[row].unwrap() - mean).abs() < 1e-12);
            assert!(low[row].unwrap() <= mean && mean <= high[row].unwrap());
            let least = changes.iter().copied().fold(f64::INFINITY, f64::min);
            let most = changes.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!(least <= low[row].unwrap() && high[row].unwrap() <= most);
            let p = p[row].unwrap();
            assert!((1.0 / 8.0..=1.0).contains(&p), "of 16 patterns of signs, at least two: {p}");
        }
    }
    // One prompt has nothing to sum up.
    let table = frame(&questions[..1], &experiments, 1, &ablated[..1], &options).unwrap();
    assert_eq!((table.height(), table.column("prompt").unwrap().null_count()), (n * m, 0));
}

#[test]
fn every_ablation_is_transformer_lenss() {
    let expected = candle_core::safetensors::load(fixture("ablation.safetensors"), &Device::Cpu).unwrap();
    let mut compared = 0;
    for name in ["wide", "thin", "untied"] {
        let model = parity_model(name);
        let config = model.config();
        let get = |key: &str| &expected[&format!("{name}.{key}")];
        let rows: Vec<Vec<u32>> = get("tokens").to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        let answers: Vec<u32> = get("answers").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let target = Target::new(vec![answers[0]], vec![answers[1]]).unwrap();
        let questions: Vec<Question> =
            rows.iter().map(|ids| Question { tokens: tokens(ids), target: target.clone() }).collect();
        let length = rows[0].len();
        // Losses and differences of logits are rounded as the logits are.
        let size = rows.iter().map(|ids| gate::size_of(&model.forward(&tokens(ids)).unwrap())).fold(1.0, f64::max);
        let check = |method: Method, cells: Vec<Cell>, wanted: &[f64], what: &str| -> usize {
            let experiments: Vec<Vec<Cell>> = cells.into_iter().map(|cell| vec![cell]).collect();
            let measures = vec![Measure::Loss, Measure::Of(Metric::LogitDiff)];
            let ablated = run(&model, &questions, &experiments, &Options { measures, ..options(method) }).unwrap();
            assert_eq!(wanted.len(), experiments.len() * 6, "{name} {what}");
            for (i, wanted) in wanted.iter().enumerate() {
                let found = ablated[i / 2 % 3].values[i / 6][i % 2];
                let cell = experiments[i / 6][0];
                let agree = gate::agree(found, *wanted, gate::F32, size);
                assert!(agree, "{name} {what} {cell} {i}: {found} instead of {wanted}");
            }
            wanted.len()
        };
        let base = run(&model, &questions, &[], &options(Method::Zero)).unwrap();
        for (i, wanted) in values(get("base")).into_iter().enumerate() {
            assert!(gate::agree(base[i / 2].base[i % 2], wanted, gate::F32, size));
        }
        for method in [Method::Zero, Method::Mean, Method::PosMean] {
            let sites = [("z", "attn_head_out"), ("attn_out", "attn_out"), ("mlp_out", "mlp_out")];
            for (site, sweep) in sites {
                let key = format!("{}.{site}", method.name());
                let all = cells(config, &format!("{sweep}_all_pos"), length);
                compared += check(method, all, &values(get(&key)), &key);
            }
        }
        let wanted: Vec<f64> = values(get("knockout")).into_iter().filter(|x| !x.is_nan()).collect();
        compared += check(Method::Knockout, edges(config, length), &wanted, "knockout");
    }
    let edges = |heads: usize, length: usize| heads * (length * (length + 1) / 2 - 1);
    let parts = |layers: usize, heads: usize| 3 * (layers * heads + 2 * layers);
    let wanted = parts(3, 5) + parts(2, 3) + parts(4, 2) + edges(15, 7) + edges(6, 6) + edges(8, 5);
    assert_eq!(compared, 6 * wanted);
}

#[test]
fn one_head_of_tiny_finds_who_receives() {
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let set = PairSet::shipped("tiny-ioi").unwrap().unwrap();
    let question =
        |index: u64| set.draw(None, None, 0, index).unwrap().question(&tokenizer, Encoding::default()).unwrap();
    let questions: Vec<Question> = (0..20).map(question).collect();
    let heads = cells(model.config(), "attn_head_out_all_pos", 1);
    assert_eq!(heads[1].to_string(), "z 0.1");
    let experiments: Vec<Vec<Cell>> =
        std::iter::once(vec![heads[1]]).chain(random_sets(&heads[1..2], &heads, 20, 0)).collect();
    let options = Options { measures: vec![Measure::Of(Metric::LogitDiff)], ..options(Method::Mean) };
    let ablated = run(&model, &questions, &experiments, &options).unwrap();
    let mean = |i: usize| ablated.iter().map(|one| one.values[i][0] - one.base[0]).sum::<f64>() / ablated.len() as f64;
    let (found, random) = (mean(0), (1..=20).map(mean).collect::<Vec<_>>());
    assert!(found < -5.0, "{found}");
    assert!(random.iter().all(|change| 3.0 * change.abs() < found.abs()), "{found} {random:?}");
}

#[test]
fn wrong_requests_say_what_to_do() {
    let set = || Interp::new().words("ablate --pairs tiny-ioi --num-pairs 3 --template 0");
    let texts = |prompts: &[&str]| prompts.iter().fold(Interp::new().words("ablate"), |c, p| c.arg("--prompt").arg(p));
    let one = || Interp::new().words("ablate --clean Mary --answer").arg(" a").arg("--wrong").arg(" b");
    let nothing_left = "is what --head, --neuron and --layer leave";
    for (command, wanted) in [
        (set().words("--method knockout"), "z 0.0 is no attention edge; knockout is for edges"),
        (set().words("--method mean --what edges"), "has no mean over positions; use zero, pos-mean, resample"),
        (
            set().words("--method median"),
            "there is no method `median`, the nearest is `mean`; there are zero, mean, pos-mean, resample, knockout",
        ),
        (set().words("--what toes"), "there is no part or sweep `toes`; the nearest is `"),
        (set().words("--what toes"), "there is no part or sweep `toes`; the nearest is `edges`"),
        (set().words("--head 6.0"), "layer 6 is out of range"),
        (set().words("--head 0.4"), "head 4 is out of range"),
        (set().words("--head nine"), "`nine` is no head; write LAYER.HEAD"),
        (set().words("--what neurons --neuron 0.512"), "neuron 512 is out of range"),
        (set().words("--head 0.1 --neuron 0.1"), "cannot be used with"),
        (set().words("--layer 6"), "6"),
        (set().words("--what layers --head 0.1"), nothing_left),
        (set().words("--what layers --head 0.1 --together"), nothing_left),
        (set().words("--what neurons --head 0.1"), nothing_left),
        (set().words("--head 0.1 --layer 1"), nothing_left),
        (set().words("--head 0.1,1.1 --layer 1"), "head 0.1 is none of the heads that --layer and --head leave"),
        (set().words("--metric loss,certainty"), "there is no metric `certainty`, the nearest is `"),
        (set().words("--metric certainty"), "kl, loss"),
        (set().words("--reference /nowhere.txt --method mean").words("--prompt a"), "not both"),
        (texts(&["a"]).words("--num-pairs 3"), "not both"),
        (texts(&["a", "b c"]).words("--what positions"), "goes by position, but the prompts have {2, 3} tokens"),
        (texts(&["Mary and John"]).words("--method resample"), "resample of the one prompt itself changes nothing"),
        (texts(&["Mary and John"]).words("--method pos-mean"), "pos-mean of the one prompt itself changes nothing"),
        (
            texts(&["Mary and John", "Mary and Tom", "Mary"]).words("--method pos-mean"),
            "prompt 2 has 2 tokens, and the reference holds no other prompt of that length",
        ),
        (
            texts(&["Mary and John", "Mary and Tom", "Mary"]).words("--method resample"),
            "prompt 2 has 2 tokens, and the reference holds no other prompt of that length",
        ),
        (texts(&["Mary and John"]).words("--metric logit_diff"), "logit_diff is about an answer; give --clean"),
        (texts(&["Mary and John"]).words("--metric loss,rank"), "rank is about an answer; give --clean"),
        (texts(&["Mary"]).words("--bos no"), "prompt 0 has 1 token, and no loss of a token after position 0"),
        (one().words("--bos no"), "prompt 0 has 1 token, and no loss of a token after position 0"),
        (one().words("--reference corrupt"), "--reference corrupt needs --corrupt"),
        (texts(&["Mary and John"]).words("--reference corrupt"), "--reference corrupt needs pairs"),
        (Interp::new().words("ablate"), "give --clean, --corrupt, --answer and --wrong, or --pairs"),
    ] {
        command.run().refused(2, wanted);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("reference.txt");
    std::fs::write(&file, "Mary and John and Tom\n").unwrap();
    let command = |method: &str| {
        let command = Interp::new().words("ablate --prompt Mary --method").arg(method);
        command.arg("--reference").arg(&file).run()
    };
    command("pos-mean").refused(2, "prompt 0 has 2 tokens, the reference prompts [6]");
    command("resample").refused(2, "prompt 0 has 2 tokens, and the reference holds no other prompt of that length");
    command("mean").ok();
    std::fs::write(&file, "").unwrap();
    command("mean").refused(2, "holds no text");
}

#[test]
fn the_command_compares_a_set_with_random_ones() {
    let set = |words: &str| Interp::new().words("ablate --pairs tiny-ioi --num-pairs 4 --template 0").words(words);
    let outcome = set("--head 0.1,2.3 --together --method resample --reference corrupt").run().ok();
    assert!(outcome.stdout.contains("without z 0.1, z 2.3: -"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("(20 sets)"), "{}", outcome.stdout);
    let out = outcome.output();
    for file in ["frame.parquet", "figure.svg", "figure.png"] {
        assert!(out.join(file).exists(), "{file}");
    }
    let run = outcome.record();
    assert_eq!((&run["method"], &run["reference"]), (&"resample".into(), &"corrupt".into()));
    assert_eq!((&run["reference_prompts"], &run["untouched"]), (&4.into(), &0.into()));
    // Random edges are edges that there are, so that none of them is untouched.
    for method in ["knockout", "zero"] {
        let edges = set("--what edges --head 0.1 --layer 0 --together --method").arg(method).run().ok();
        let run = edges.record();
        assert_eq!((&run["method"], &run["untouched"]), (&method.into(), &0.into()));
    }
    for words in ["--what positions --method zero", "--what layers", "--what neurons --layer 0"] {
        set(words).run().ok();
    }
}
