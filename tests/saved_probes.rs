//! Probes that are kept: the same after reading, refused where they do not belong, judged on what is new, applied to texts.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};

use interp::labelled::{Kind, Labelled, positions};
use interp::probe::saved::{self, Saved, Stamp};
use interp::probe::{self, Options, Studied, Study};
use interp::task::Task;
use interp::text::{Bos, Encoding};
use interp::{Config, Site, embedded, gather};
use ndarray::Array2;
use polars::prelude::*;
use process::Interp;

const ENCODING: Encoding = Encoding { bos: Bos::Auto, allow_special: false };

struct Made {
    rows: Labelled,
    sites: Vec<Site>,
    features: Vec<Array2<f32>>,
    studied: Studied,
}

impl Made {
    fn new(task: &str, sites: &[Site]) -> Self {
        let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
        let task = Task::shipped(task).unwrap().unwrap();
        let examples = task.examples(300, 0, &tokenizer, ENCODING).unwrap();
        let mut all = vec![Vec::new(); sites.len()];
        let chosen = positions(&examples.rows, examples.tokens.len());
        gather::Gather::new(&model, sites).unwrap().read(&examples.tokens, &chosen, &mut all).unwrap();
        let table = |values: Vec<f32>| {
            Array2::from_shape_vec((examples.rows.len(), values.len() / examples.rows.len()), values)
        };
        let features: Vec<_> = all.into_iter().map(|values| table(values).unwrap()).collect();
        let rows = Labelled::new(task.kind, &examples.rows).unwrap();
        let study = Study { name: "made", sites, features: &features, random: None, rows: &rows };
        let options = Options { seeds: 1, alphas: vec![10.0], ..Options::default() };
        let studied = probe::layers(&study, &options, &mut |_, _| Ok(())).unwrap();
        Self { sites: sites.to_vec(), features, studied, rows }
    }

    fn saved(&self) -> Saved {
        let Self { rows, sites, features, .. } = self;
        Saved::of(&Study { name: "made", sites, features, random: None, rows }, &self.studied)
    }
}

fn stamp() -> Stamp {
    Stamp { weights_sha256: vec!["ab".into()], dtype: "f32".into(), bos: true }
}

fn config() -> Config {
    common::tiny().config().clone()
}

#[test]
fn what_is_read_back_predicts_the_same_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let sites = [Site::ResidPost(1), Site::Z(3), Site::MlpPost(0)];
    for task in ["tiny-number", "tiny-giver", "tiny-year"] {
        let made = Made::new(task, &sites);
        let own = made.saved();
        saved::save(dir.path(), &stamp(), std::slice::from_ref(&own)).unwrap();
        let found = saved::load(dir.path(), &config(), &stamp()).unwrap();
        assert_eq!(found, [own], "{task}");
        let rows: Vec<usize> = (0..made.rows.labels.len()).collect();
        for (i, kept) in found[0].kept.iter().enumerate() {
            let (x, before) = (made.features[i].view(), &made.studied.kept[i].probe);
            assert_eq!(kept.probe.probabilities(x, &rows).unwrap(), before.probabilities(x, &rows).unwrap());
            assert_eq!(kept.probe.values(x, &rows).unwrap(), before.values(x, &rows).unwrap());
            assert_eq!(kept.probe.scores(x, &rows).unwrap(), before.scores(x, &rows).unwrap());
        }
    }
}

#[test]
fn what_does_not_belong_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let made = Made::new("tiny-number", &[Site::ResidPost(4)]);
    let write = || saved::save(dir, &stamp(), &[made.saved()]).unwrap();
    let refused = |stamp: &Stamp, wanted: &str| {
        let error = saved::load(dir, &config(), stamp).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    };
    refused(&stamp(), "no probes.json; `probe train` writes one");
    write();
    refused(
        &Stamp { weights_sha256: vec!["cd".into()], ..stamp() },
        "are of a model with sha256 ab…, this one has cd…",
    );
    refused(&Stamp { dtype: "bf16".into(), ..stamp() }, "on f32 activations, not bf16: give --dtype f32");
    refused(&Stamp { bos: false, ..stamp() }, "with <|endoftext|> before them: give --bos yes");
    let shallow = Config { n_layer: 4, ..config() };
    let error = saved::load(dir, &shallow, &stamp()).unwrap_err().to_string();
    assert!(error.contains("`resid_post.4` is no site of this model"), "{error}");
    let narrow = Config { n_embd: 64, ..config() };
    let error = saved::load(dir, &narrow, &stamp()).unwrap_err().to_string();
    assert!(error.contains("made/resid_post.4.mean` is F64 [128], wanted F64 [64]"), "{error}");
    let index = || std::fs::read_to_string(dir.join("probes.json")).unwrap();
    let numbers = std::fs::read(dir.join("probes.safetensors")).unwrap();
    // In the file: 8 bytes, the header, then tensors in an order of its own; a bit of each is flipped in turn.
    let header = 8 + u64::from_le_bytes(numbers[..8].try_into().unwrap()) as usize;
    let mut seen = [0; 2];
    for at in (header..numbers.len()).step_by(8) {
        let mut flipped = numbers.clone();
        flipped[at] ^= 1;
        std::fs::write(dir.join("probes.safetensors"), flipped).unwrap();
        let error = saved::load(dir, &config(), &stamp()).unwrap_err().to_string();
        let own = ["standardiser is not the one", "weights are not those"].iter().position(|part| error.contains(part));
        seen[own.unwrap_or_else(|| panic!("{error}"))] += 1;
    }
    assert_eq!(seen, [2 * 128, 128 + 1]);
    std::fs::write(dir.join("probes.safetensors"), &numbers[..header + 8]).unwrap();
    refused(&stamp(), "probes.safetensors");
    write();
    for (from, to, wanted) in [
        ("\"interp probes 1\"", "\"interp probes 2\"", "this version reads `interp probes 1`"),
        ("resid_post.4\",", "pattern.4\",", "no tensor"),
        (
            "\"site\": \"resid_post.4\"",
            "\"site\": \"pattern.4\"",
            "`pattern.4` is no site of this model that a probe reads",
        ),
        ("\"site\": \"resid_post.4\"", "\"site\": \"mlp_post.4\"", "wanted F64 [512]"),
        (
            "            1\n          ],\n          \"alpha\"",
            "            7\n          ],\n          \"alpha\"",
            "has the classes [0, 7] of 2",
        ),
        ("\"format\"", "\"other\": 1, \"format\"", "probes.json"),
        ("{", "", "probes.json"),
    ] {
        let text = index();
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(dir.join("probes.json"), text.replacen(from, to, 1)).unwrap();
        refused(&stamp(), wanted);
        write();
    }
    saved::load(dir, &config(), &stamp()).unwrap();
}

/// What `probe train` leaves, in a directory that stays.
fn trained(words: &str, files: &[(&str, String)]) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let mut command = Interp::new().words("probe train --seeds 1 --no-random-model --causal 0 --alpha 10").words(words);
    for (name, text) in files {
        std::fs::write(place.path().join(name), text).unwrap();
        command = command.words("--file").arg(place.path().join(name));
    }
    let out = place.path().join("probes");
    command.words("--out").arg(&out).run().ok();
    (place, out)
}

fn frame(path: &Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(path.join("frame.parquet")).unwrap()).finish().unwrap()
}

fn score(frame: &DataFrame, site: &str, split: &str, metric: &str) -> Option<f64> {
    let is = |name: &str, value: &str, i: usize| frame.column(name).unwrap().str().unwrap().get(i) == Some(value);
    let row = (0..frame.height()).find(|&i| is("site", site, i) && is("split", split, i) && is("metric", metric, i));
    row.and_then(|row| frame.column("value").unwrap().f64().unwrap().get(row))
}

/// On the rows that were drawn for fitting, only those are judged that were held out: with the scores that they had.
#[test]
fn rows_that_were_fitted_are_not_judged() {
    let (_place, probes) = trained("tiny-number tiny-giver --site resid_post.1,resid_post.3 --examples 260", &[]);
    let outcome = Interp::new().words("probe eval").arg(&probes).words("tiny-number --examples 260").run().ok();
    let (before, again) = (frame(&probes), frame(&outcome.output()));
    for metric in ["accuracy", "macro_f1", "mcc", "auc", "log_loss", "calibration_error"] {
        for site in ["resid_post.1", "resid_post.3"] {
            assert_eq!(score(&again, site, "eval", metric), score(&before, site, "test", metric), "{metric} at {site}");
        }
    }
    let run: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(outcome.output().join("run.json")).unwrap()).unwrap();
    assert_eq!(run["rows"].as_u64().unwrap() + run["left_out"].as_u64().unwrap(), 260);
    assert!(
        outcome.stderr.contains("rows are left out: the probes were fitted on their groups or texts"),
        "{}",
        outcome.stderr
    );
    let counts = run["confusion"][1]["counts"].as_array().unwrap();
    let all: u64 = counts.iter().flat_map(|row| row.as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum();
    let right = counts[0][0].as_u64().unwrap() + counts[1][1].as_u64().unwrap();
    assert_eq!(Some(right as f64 / all as f64), score(&again, "resid_post.3", "eval", "accuracy"));

    let eval = |words: &str| Interp::new().words("probe eval").arg(&probes).words(words).run();
    eval("tiny-sentiment")
        .refused(2, "there are probes of several tasks, tiny-number, tiny-giver; name one with --probe");
    eval("tiny-sentiment --probe tiny-number").refused(2, "knows no class `blame`; it has plural, singular");
    eval("tiny-number --probe next").refused(2, "there is no task with saved probes `next`");
    eval("tiny-number --site resid_post.2").refused(2, "no probe at resid_post.2; it has resid_post.1, resid_post.3");
    eval("tiny-number --dtype bf16").refused(65, "give --dtype f32");
    eval("tiny-number --bos no").refused(65, "give --bos yes");
    eval("").refused(2, "no rows: name a task");
    eval("tiny-number tiny-giver").refused(2, "one task at a time");
    Interp::new().words("probe eval nowhere tiny-number").run().refused(66, "nowhere: no probes.json");
    // Another model of the same shape.
    let other = interp::Gpt2::new(config(), interp::initial::draw(&config(), 1)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    interp::weights::write_model(dir.path(), &other, Some(&embedded::tokenizer().unwrap())).unwrap();
    let with = Interp::new().words("probe eval").arg(&probes).words("tiny-number --model").arg(dir.path());
    let refused = with.run();
    assert_eq!(refused.code, Some(65));
    assert!(refused.stderr.contains("its probes are of a model with sha256"), "{}", refused.stderr);
}

/// Two names, and all pairs of them in turn.
fn pair(i: usize) -> (&'static str, &'static str) {
    let names = ["Mary", "Anna", "John", "Tom"];
    (names[i % 4], names[(i / 4 + i + 1) % 4])
}

#[test]
fn texts_and_datasets_are_judged_alike() {
    let line = |i: usize| {
        let (a, b) = pair(i);
        format!(
            r#"{{"text": "When {a} and {b} went to the shop {i}, {b} gave a drink to", "giver": "{b}", "part": {}}}"#,
            i % 9
        )
    };
    let lines = |range: std::ops::Range<usize>| range.map(line).collect::<Vec<_>>().join("\n");
    let (place, probes) = trained("--label giver --site resid_post.1,z.3", &[("text.jsonl", lines(0..160))]);
    let file = |name: &str, text: String| {
        std::fs::write(place.path().join(name), text).unwrap();
        place.path().join(name)
    };
    let new = file("new.jsonl", lines(160..240));
    let data = place.path().join("data");
    let export = Interp::new().words("export --label giver --site z.3,resid_post.1 -q --file").arg(&new);
    export.words("--out").arg(&data).run().ok();
    let judge = |words: &str, path: &Path| {
        let command = Interp::new().words("probe eval --label giver").arg(&probes).words(words).arg(path);
        frame(&command.run().ok().output())
    };
    let (text, data) = (judge("--file", &new), judge("--data", &data));
    assert!(text.height() > 10 && text.equals_missing(&data));
    // All of one class is no reason to refuse, and what was learned by heart is.
    let ours = file(
        "one.jsonl",
        lines(160..240).lines().filter(|line| line.contains("\"Mary\"")).collect::<Vec<_>>().join("\n"),
    );
    judge("--file", &ours);
    let learned = (0..160).map(line).filter(|line| {
        let known = file("known.jsonl", line.clone());
        let judged = Interp::new().words("probe eval --label giver --file").arg(known).arg(&probes).run();
        judged.code == Some(2)
            && judged.stderr.contains("all 1 rows are of groups that the probes of `giver` were fitted on")
    });
    // Seven of ten groups, which are texts here, were learned.
    assert_eq!(learned.count(), 112);
}

#[test]
fn every_token_is_told_what_it_is() {
    let (_place, probes) = trained("tiny-giver tiny-year --site resid_post.1,resid_post.4 --examples 400", &[]);
    let text = "When Mary and John went to the shop, John gave a drink to";
    let apply = |words: &str| {
        Interp::new()
            .words("probe apply")
            .arg(&probes)
            .words(words)
            .words("--prompt")
            .arg(text)
            .words("--prompt Mary")
            .run()
    };
    let outcome = apply("--probe tiny-giver --site resid_post.*").refused(2, "no probe at resid_post.0");
    drop(outcome);
    let found = frame(&apply("--probe tiny-giver --site resid_post.4,resid_post.1").ok().output());
    let names: Vec<_> = found.get_column_names().iter().map(|name| name.to_string()).collect();
    assert_eq!(names.join(" "), "probe site layer prompt pos token_id token class probability value");
    // The same as the library's probe on the same activations.
    let (model, tokenizer) = (common::tiny(), embedded::tokenizer().unwrap());
    let tokens = tokenizer.tokens(&[text, "Mary"], ENCODING).unwrap();
    let weights = interp::weights::sha256_of(embedded::WEIGHTS);
    let of = Stamp { weights_sha256: vec![weights], dtype: "f32".into(), bos: true };
    let all = saved::load(&probes, &config(), &of).unwrap();
    let (kept, classes) = (&all[0].kept[1], all[0].classes.as_ref().unwrap());
    assert_eq!(kept.site, Site::ResidPost(4));
    let every: Vec<Vec<u32>> = (0..2).map(|prompt| (0..tokens.row(prompt).len() as u32).collect()).collect();
    let mut values = vec![Vec::new()];
    gather::Gather::new(&model, &[kept.site]).unwrap().read(&tokens, &every, &mut values).unwrap();
    let rows: Vec<usize> = (0..tokens.count()).collect();
    let x = Array2::from_shape_vec((rows.len(), 128), values.remove(0)).unwrap();
    let p = kept.probe.probabilities(x.view(), &rows).unwrap();
    let column = found.column("probability").unwrap().f64().unwrap();
    let class = found.column("class").unwrap().str().unwrap();
    assert_eq!(found.height(), 2 * rows.len() * classes.len());
    for (i, p) in p.iter().enumerate() {
        assert_eq!((column.get(i), class.get(i)), (Some(*p), Some(classes[i % classes.len()].as_str())));
    }
    // Numbers have no class.
    let found = frame(&apply("--probe tiny-year").ok().output());
    assert_eq!((found.height(), found.column("class").unwrap().null_count()), (rows.len(), rows.len()));
    assert_eq!(found.column("value").unwrap().null_count(), 0);
    apply("").refused(2, "there are probes of several tasks");
}

#[test]
fn planes_are_those_of_scikit_learn() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/views.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let rows: Vec<Vec<f64>> = case["rows"].as_array().unwrap().iter().map(numbers).collect();
        let x = Array2::from_shape_fn((rows.len(), rows[0].len()), |(row, dim)| rows[row][dim] as f32);
        let row = |i: usize| interp::labelled::Row {
            prompt: i as u32,
            label: case["cluster"][i].to_string(),
            ..interp::labelled::Row::default()
        };
        let labelled = Labelled::new(Kind::Classes, &(0..rows.len()).map(row).collect::<Vec<_>>()).unwrap();
        let view = probe::view(name, Site::Embed, &x, &labelled, None).unwrap();
        let wanted = numbers(&case["explained"]);
        assert!(view.explained.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-10), "{name}: {:?}", view.explained);
        for (axis, column) in ["pc1", "pc2"].iter().enumerate() {
            let found = view.frame.column(column).unwrap().f64().unwrap();
            for (i, point) in case["points"].as_array().unwrap().iter().enumerate() {
                let (found, wanted) = (found.get(i).unwrap(), numbers(point)[axis]);
                assert!(
                    (found - wanted).abs() < 1e-6 * (1.0 + wanted.abs()),
                    "{name}: {column} of {i} is {found}, not {wanted}"
                );
            }
        }
        if name != "flat" {
            assert_eq!(view.agreement, Some(1.0), "{name}: the same clusters");
        }
    }
    let outcome =
        Interp::new().words("probe view tiny-giver --examples 300 --site resid_pre.0,resid_post.2").run().ok();
    let frame = frame(&outcome.output());
    assert_eq!(frame.height(), 600);
    assert!(outcome.stdout.contains("adjusted Rand index"), "{}", outcome.stdout);
}

/// By the group, or by the text where groups are given otherwise.
#[test]
fn what_was_learned_is_known_by_group_and_by_text() {
    let line = |i: usize| {
        let (a, b) = pair(i);
        format!(
            r#"{{"text": "When {a} and {b} went to the shop {i}, {b} gave a drink to", "giver": "{b}", "author": {}, "half": {}.5}}"#,
            i % 12,
            i % 2
        )
    };
    let lines = (0..120).map(line).collect::<Vec<_>>().join("\n");
    let (place, probes) = trained("--label giver --group author --site resid_post.1", &[("text.jsonl", lines)]);
    let text = place.path().join("text.jsonl");
    let rows = |command: Interp| {
        let outcome = command.run().ok();
        let run = std::fs::read_to_string(outcome.output().join("run.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&run).unwrap()["rows"].as_u64().unwrap()
    };
    let eval = |words: &str| Interp::new().words("probe eval --label giver").arg(&probes).words(words);
    let held_out = rows(eval("--group author --file").arg(&text));
    assert!((20..=60).contains(&held_out), "{held_out}");
    assert_eq!(rows(eval("--file").arg(&text)), held_out, "known by their texts");
    // The same from datasets, as long as they have the texts whole.
    let export = |name: &str, words: &str| {
        let data = place.path().join(name);
        let command = Interp::new().words("export --label giver,author --site resid_post.1 -q").words(words);
        command.words("--file").arg(&text).words("--out").arg(&data).run().ok();
        data
    };
    assert_eq!(rows(eval("--data").arg(export("whole", ""))), held_out);
    assert_eq!(rows(eval("--data").arg(export("windows", "--context 8"))), held_out, "one last token per text");
    let some = export("some", "--sample 3 --seed 1");
    eval("--data").arg(&some).run().refused(2, "has some tokens of its texts only");
    eval("--group author --data").arg(&some).run().refused(2, "give --group, and --at all");
    // Three of each text, but for tokens that start a sequence.
    let sampled = rows(eval("--group author --at all --data").arg(&some));
    assert!((2 * held_out..=3 * held_out).contains(&sampled), "{sampled}");
    eval("--regression --file").arg(&text).run().refused(2, "predict classes, and the labels are numbers");
    Interp::new().words("probe tiny-number tiny-number").run().refused(2, "there are two tasks `tiny-number`");
}
