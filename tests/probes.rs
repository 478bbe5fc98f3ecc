//! Probes: what they find, what they do not, and what is refused.

#[path = "common/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::path::Path;

use interp::Site;
use interp::labelled::{Kind, Labelled, Row};
use interp::probe::{self, Fitting, Options, Study};
use interp::random::{Rng, normal, stream};
use ndarray::Array2;
use polars::prelude::*;
use process::Interp;

/// Rows in groups of five, whose label is in the first feature, and `width` features of noise.
fn made(rows: usize, width: usize, strength: f64, seed: u64) -> (Array2<f32>, Labelled) {
    let mut rng = stream(seed, "features", 0);
    let class: Vec<bool> = (0..rows).map(|_| rng.random_bool(0.5)).collect();
    let x = Array2::from_shape_fn((rows, width), |(row, dim)| {
        let signal = if dim == 0 && class[row] { strength } else { 0.0 };
        (normal(&mut rng) + signal) as f32
    });
    let row = |(i, class): (usize, &bool)| Row {
        prompt: i as u32,
        pos: 0,
        label: class.to_string(),
        group: (i / 5).to_string(),
        control: (i % 7).to_string(),
        text: None,
    };
    let rows: Vec<Row> = class.iter().enumerate().map(row).collect();
    (x, Labelled::new(Kind::Classes, &rows).unwrap())
}

fn layers(x: &[Array2<f32>], rows: &Labelled, options: &Options) -> interp::Result<DataFrame> {
    let sites: Vec<Site> = (0..x.len()).map(Site::ResidPost).collect();
    let study = Study { name: "made", sites: &sites, features: x, random: None, rows };
    Ok(probe::layers(&study, options, &mut |_, _| Ok(()))?.frame)
}

/// The values of a score over seeds.
fn values(frame: &DataFrame, site: &str, split: &str, metric: &str) -> Vec<f64> {
    let text = |name: &str| frame.column(name).unwrap().str().unwrap().clone();
    let (sites, splits, metrics) = (text("site"), text("split"), text("metric"));
    let value = frame.column("value").unwrap().f64().unwrap().clone();
    (0..frame.height())
        .filter(|&i| sites.get(i) == Some(site) && splits.get(i) == Some(split) && metrics.get(i) == Some(metric))
        .map(|i| value.get(i).unwrap())
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    assert!(!values.is_empty());
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn labels_of_other_rows_teach_nothing() {
    let (x, rows) = made(2000, 40, 4.0, 1);
    let frame = layers(&[x], &rows, &Options { seeds: 24, alphas: vec![10.0], ..Options::default() }).unwrap();
    let auc = |split: &str| mean(&values(&frame, "resid_post.0", split, "auc"));
    assert!((auc("shuffled") - 0.5).abs() < 0.05, "{}", auc("shuffled"));
    assert!(auc("test") > 0.98, "{}", auc("test"));
    // Where there is a label for each of seven types that features do not tell, nothing is remembered either.
    assert!((mean(&values(&frame, "resid_post.0", "control", "accuracy")) - 0.5).abs() < 0.2);
    let task = values(&frame, "resid_post.0", "test", "accuracy");
    let control = values(&frame, "resid_post.0", "control", "accuracy");
    let selectivity = values(&frame, "resid_post.0", "test", "selectivity");
    for i in 0..24 {
        assert_eq!(selectivity[i], task[i] - control[i]);
    }
}

#[test]
fn codes_are_as_long_as_what_is_unknown() {
    let bits = |strength: f64| {
        let (x, rows) = made(4000, 8, strength, 2);
        probe::online(x.view(), &rows, &Fitting::default(), 0).unwrap().unwrap()
    };
    let (nothing, much) = (bits(0.0), bits(8.0));
    assert!((nothing.compression - 1.0).abs() < 0.03, "{nothing:?}");
    assert!(much.compression > 15.0, "{much:?}");
    // A label that never changes costs next to nothing, even where two are possible.
    let (x, mut rows) = made(4000, 8, 0.0, 3);
    if let interp::labelled::Labels::Classes { of, .. } = &mut rows.labels {
        of.fill(1);
    }
    let constant = probe::online(x.view(), &rows, &Fitting::default(), 0).unwrap().unwrap();
    assert!(constant.bits < 25.0, "{constant:?} for 4,000 labels");
}

#[test]
fn a_penalty_is_chosen_among_the_rows_to_learn_from() {
    let (x, rows) = made(300, 200, 0.7, 4);
    let all: Vec<usize> = (0..300).collect();
    let choose = |rows_of: &[usize]| {
        let fitting = Fitting::default();
        fitting.choose(x.view(), &rows.labels, rows_of, &rows.groups, (&[1e-3, 1.0, 1e3], 3), 0).unwrap().alpha
    };
    assert!(choose(&all) > 1e-3, "200 features of noise want a penalty");
    // Rows that are judged on decide nothing: whatever they hold, the same is chosen.
    let mut other = x.clone();
    other.slice_mut(ndarray::s![200.., ..]).fill(7.0);
    let fitting = Fitting::default();
    let learned: Vec<usize> = (0..200).collect();
    let again = fitting.choose(other.view(), &rows.labels, &learned, &rows.groups, (&[1e-3, 1.0, 1e3], 3), 0).unwrap();
    assert_eq!(again.alpha, choose(&learned));
}

#[test]
fn what_cannot_be_probed_is_refused() {
    let (x, rows) = made(60, 4, 1.0, 5);
    let refused = |x: &Array2<f32>, rows: &Labelled, options: Options, wanted: &str| {
        let error = layers(std::slice::from_ref(x), rows, &options).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let mut broken = x.clone();
    broken[[7, 2]] = f32::NAN;
    refused(&broken, &rows, Options::default(), "row 7 of resid_post.0 has NaN at 2");
    refused(&x, &rows, Options { alphas: vec![0.0], ..Options::default() }, "a penalty of 0 is no positive number");
    refused(&x, &rows, Options { seeds: 0, ..Options::default() }, "needs a seed");
    refused(&x, &rows, Options { folds: 40, ..Options::default() }, "groups do not make 40 folds");
    let one = Labelled { groups: vec![0; 60], ..rows.clone() };
    refused(&x, &one, Options::default(), "1 groups cannot be divided");
    let mut hasty = Options::default();
    hasty.fitting.max_iterations = 1;
    refused(&x, &rows, hasty, "did not converge in 1 iterations");
    // A column that never changes says nothing, and harms nothing.
    let mut constant = x.clone();
    constant.column_mut(3).fill(5.0);
    layers(&[constant], &rows, &Options { seeds: 1, ..Options::default() }).unwrap();
}

fn frame(outcome: &process::Outcome) -> DataFrame {
    let path = outcome.output().join("frame.parquet");
    ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap()
}

/// The story that README tells.
#[test]
fn the_number_of_the_subject_arrives_at_layer_two() {
    let outcome = Interp::new().words("probe tiny-number --seeds 3 --examples 1000").run().ok();
    let frame = frame(&outcome);
    let names: Vec<_> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
    assert_eq!(names.join(" "), "probe site layer split seed metric value");
    let accuracy = |site: &str, split: &str| mean(&values(&frame, site, split, "accuracy"));
    assert!(accuracy("resid_pre.0", "test") < 0.6, "{}", accuracy("resid_pre.0", "test"));
    for layer in 2..6 {
        let site = format!("resid_post.{layer}");
        assert!(accuracy(&site, "test") > 0.93, "{site}: {}", accuracy(&site, "test"));
        assert!(accuracy(&site, "control") < 0.8 && accuracy(&site, "random") < 0.85, "{site}");
        assert!((accuracy(&site, "majority") - 0.5).abs() < 0.01);
    }
    let again = Interp::new().words("probe tiny-number --seeds 3 --examples 1000").run().ok();
    assert!(self::frame(&again).equals_missing(&frame), "the same request gives the same numbers");
}

#[test]
fn text_and_dataset_give_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let names = ["Mary", "Anna", "John", "Tom"];
    let lines: Vec<String> = (0..240)
        .map(|i| {
            let (a, b) = (names[i % 4], names[(i / 4 + i + 1) % 4]);
            format!(
                r#"{{"text": "When {a} and {b} went to the shop {i}, {b} gave a drink to", "giver": "{b}", "other": {}}}"#,
                i % 6
            )
        })
        .collect();
    std::fs::write(path("text.jsonl"), lines.join("\n")).unwrap();
    let sites = "resid_pre.0,resid_post.1,z.3";
    let export = Interp::new().words("export --label giver,other --part-rows 500 -q --site").arg(sites).words("--file");
    export.arg(path("text.jsonl")).words("--out").arg(path("data")).run().ok();
    for options in ["--label giver", "--label giver --group other", "--label other --regression --at all --alpha 1"] {
        let text =
            Interp::new().words("probe --seeds 2 --no-random-model --site").arg(sites).words(options).words("--file");
        let text = frame(&text.arg(path("text.jsonl")).run().ok());
        let data = Interp::new().words("probe --seeds 2").words(options).words("--data");
        let data = frame(&data.arg(path("data")).run().ok());
        assert!(text.height() > 50 && text.equals_missing(&data), "{options}");
    }
    let probe = |words: &str| Interp::new().words("probe -q").words(words).words("--data").arg(path("data"));
    probe("--label topic").run().refused(2, "there is no column `topic`");
    probe("--label giver --site z.0").run().refused(2, "has no site `z.0`; it has resid_pre.0, resid_post.1, z.3");
    let plan = std::fs::read_to_string(path("data").join("plan.json")).unwrap();
    std::fs::write(path("data").join("plan.json"), plan.replacen("\"weights\": [", "\"weights\": [\"a\",", 1)).unwrap();
    probe("--label giver").run().refused(65, "do not belong together");
}

#[test]
fn wrong_requests_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let one = file("one.jsonl", "{\"text\": \"Mary\", \"a\": \"x\"}\n{\"text\": \"John\", \"a\": \"x\"}\n");
    let mixed = file("mixed.jsonl", "{\"text\": \"Mary\", \"a\": 1}\n{\"text\": \"John\", \"a\": \"x\"}\n");
    let gap = file("gap.jsonl", "{\"text\": \"Mary\", \"a\": 1}\n{\"text\": \"John\", \"a\": null}\n");
    let task = file("task.toml", "about = 3");
    let leak = file(
        "leak.jsonl",
        "{\"text\": \"Mary\", \"a\": 1, \"b\": \"x\"}\n{\"text\": \"John\", \"a\": 2, \"b\": \"x\"}\n{\"text\": \"Mary\", \"a\": 2, \"b\": \"y\"}\n",
    );
    let with = |path: &Path, words: &str| Interp::new().words("probe --file").arg(path).words(words);
    for (command, code, wanted) in [
        (Interp::new().words("probe"), 2, "no rows: name a task"),
        (Interp::new().words("probe nothing"), 66, "there is no task or file `nothing`"),
        (Interp::new().words("probe").arg(&task), 65, "task.toml: line 1"),
        (Interp::new().words("probe tiny-number --site resid_post.9"), 2, "layer 9 is out of range"),
        (Interp::new().words("probe tiny-number --site pattern.0"), 2, "has no vector per position"),
        (Interp::new().words("probe tiny-number --test-share 1"), 2, "a test share of 1 is not between 0 and 1"),
        (Interp::new().words("probe tiny-number --examples 13 --folds 20"), 2, "groups do not make 20 folds"),
        (with(&one, "--label a"), 2, "all 2 labels are `x`: there is nothing to tell apart"),
        (with(&mixed, "--label a --regression"), 2, "the label `x` is no number"),
        (with(&gap, "--label a"), 2, "document 1 has no label"),
        (with(&one, "--label b"), 65, "there is no field `b`"),
        (with(&leak, "--label a --group b"), 2, "documents 0 and 2 are the same text in the groups `x` and `y`"),
        (
            Interp::new().words("probe tiny-number --examples 20000 --memory 200MB"),
            75,
            "probing 20000 rows at 7 sites needs",
        ),
        (with(&one, "--label a --at middle"), 2, "there are first, last, all"),
        (with(&one, ""), 2, "--label"),
    ] {
        command.run().refused(code, wanted);
    }
    let listed = Interp::new().words("probe tasks").run().ok().stdout;
    let names: BTreeSet<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains("tiny-giver") && names.len() == interp::task::SHIPPED.len());
}
