//! Interactive pages in a real browser: pointer, keys, numbers as in the frame, hostile text, no network.
//!
//! This is a program of its own instead of libtest's, because it says on the terminal whether a browser was there: one is
//! taken from INTERP_BROWSER or found as chromium on the path, and without one nothing here is tested. INTERP_SCREENSHOTS=DIR
//! keeps a picture of the last page of each test, to be looked at.

#[path = "common/browser.rs"]
mod browser;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use browser::Browser;
use polars::prelude::*;
use process::Interp;

const PROMPT: &str = "When Mary and John went to the shop, John gave a drink to";
type Test = (&'static str, fn(&mut Browser));

const TESTS: [Test; 10] = [
    ("attention_is_asked_by_pointer_keys_and_links", attention),
    ("the_lens_shows_its_frame", lens),
    ("cells_of_sweeps_have_intervals_and_lead_to_heads", sweeps),
    ("tokens_are_coloured_by_neurons_and_probes", strips),
    ("bars_of_an_attribution_add_up_and_open", attribution),
    ("a_report_tells_the_story_of_a_prompt", report),
    ("hostile_tokens_are_text", hostile),
    ("pages_work_on_dark_ground_and_on_paper", media),
    ("a_screen_reader_finds_names", names),
    ("a_notebook_shows_pages_in_a_frame_of_their_own", framed),
];

fn main() {
    let asked = Asked::parse(std::env::args().skip(1));
    if asked.list {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let Some(program) = browser::find() else {
        println!(
            "pages: no browser here (INTERP_BROWSER is not set, no chromium on the path): {} tests not run",
            TESTS.len()
        );
        return;
    };
    println!("pages: in {}", program.display());
    let pictures = std::env::var_os("INTERP_SCREENSHOTS");
    let mut failed = 0;
    let chosen: Vec<&Test> = TESTS.iter().filter(|(name, _)| asked.wants(name)).collect();
    for (name, test) in &chosen {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut browser = Browser::start(&program);
            test(&mut browser);
            let complaints = browser.complaints();
            assert!(complaints.is_empty(), "{complaints:?}");
            if let Some(dir) = &pictures {
                std::fs::write(Path::new(dir).join(format!("{name}.png")), browser.screenshot()).unwrap();
            }
        }));
        println!("page test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(outcome.is_err());
    }
    println!("pages: {} of {} run, {failed} failed", chosen.len(), TESTS.len());
    if failed > 0 {
        std::process::exit(1);
    }
}

/// What libtest's options ask for, as far as it concerns these tests.
#[derive(Default)]
struct Asked {
    list: bool,
    only: Vec<String>,
    skip: Vec<String>,
}

impl Asked {
    fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut asked = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => asked.list = true,
                "--skip" => asked.skip.extend(words.next()),
                "--test-threads" | "--color" | "--format" | "--logfile" | "-Z" => drop(words.next()),
                _ if word.starts_with('-') => {}
                _ => asked.only.push(word),
            }
        }
        asked
    }

    fn wants(&self, name: &str) -> bool {
        let holds = |words: &[String]| words.iter().any(|word| name.contains(word.as_str()));
        (self.only.is_empty() || holds(&self.only)) && !holds(&self.skip)
    }
}

/// A run's directory, kept for as long as the test.
struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    fn new(words: &str, prompts: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let command = Interp::new().words(words).words("-q --out").arg(dir.path());
        prompts.iter().fold(command, |command, prompt| command.words("--prompt").arg(prompt)).run().ok();
        Self { dir }
    }

    fn page(&self) -> PathBuf {
        self.dir.path().join("figure.html")
    }

    fn frame(&self, name: &str) -> DataFrame {
        read(&self.dir.path().join(name))
    }
}

fn read(path: &Path) -> DataFrame {
    ParquetReader::new(std::fs::File::open(path).unwrap()).finish().unwrap()
}

fn ints(frame: &DataFrame, name: &str) -> Vec<u32> {
    frame.column(name).unwrap().u32().unwrap().iter().map(|x| x.unwrap_or(u32::MAX)).collect()
}

fn floats(frame: &DataFrame, name: &str) -> Vec<f64> {
    let column = frame.column(name).unwrap().cast(&DataType::Float64).unwrap();
    column.f64().unwrap().iter().map(|x| x.unwrap_or(f64::NAN)).collect()
}

fn texts(frame: &DataFrame, name: &str) -> Vec<String> {
    frame.column(name).unwrap().str().unwrap().iter().map(|x| x.unwrap_or_default().to_string()).collect()
}

/// The first number in a text.
fn number(text: &str) -> f64 {
    text.split_whitespace()
        .find_map(|word| word.trim_matches([',', '[', ']']).parse().ok())
        .unwrap_or_else(|| panic!("no number in `{text}`"))
}

/// Whether a page's number is a frame's, to the digits that the page shows.
fn same(shown: f64, value: f64, digits: f64) -> bool {
    (shown - value).abs() <= digits + 1e-3 * value.abs()
}

fn tip(browser: &mut Browser) -> Vec<String> {
    assert_eq!(browser.eval("document.getElementById('tip').hidden"), false, "there is no tip");
    browser.texts("#tip div")
}

/// The middle of a cell of the first heat map on a page with cells of this size, rows and columns counted from 0.
fn cell(
    browser: &mut Browser,
    canvas: &str,
    (row, rows): (usize, usize),
    (column, columns): (usize, usize),
) -> (f64, f64) {
    // A map says its size; its cells fill what labels leave.
    let place = browser.eval(&format!(
        "(() => {{ const c = {canvas}; const context = c.getContext('2d'); return [c.clientWidth, c.clientHeight, c.dataset.left, c.dataset.w, c.dataset.h].map(Number); }})()"
    ));
    let at = |i: usize| place[i].as_f64().unwrap();
    assert!(at(2) + columns as f64 * at(3) <= at(0) + 1.0 && rows as f64 * at(4) <= at(1), "{place}");
    (at(2) + (column as f64 + 0.5) * at(3), 1.0 + (row as f64 + 0.5) * at(4))
}

fn weights(frame: &DataFrame) -> BTreeMap<(u32, u32, u32, u32), f64> {
    let (layer, head, query, key) =
        (ints(frame, "layer"), ints(frame, "head"), ints(frame, "query"), ints(frame, "key"));
    let weight = floats(frame, "weight");
    (0..frame.height()).map(|i| ((layer[i], head[i], query[i], key[i]), weight[i])).collect()
}

fn attention(browser: &mut Browser) {
    let run = Run::new("attention --layer all", &[PROMPT]);
    let weight = weights(&run.frame("frame.parquet"));
    browser.open(&run.page(), "");
    assert_eq!(browser.text(".head-name"), "Head 0.0");
    assert_eq!(browser.eval("document.querySelectorAll('.thumb').length"), 24);

    // Every token of a head, looked at by pointer: the six strongest, in their order, with their weights.
    browser.click("document.querySelector('[data-head=\"3.2\"]')", None);
    assert_eq!(
        (browser.text(".head-name").as_str(), browser.eval("location.hash").as_str().unwrap()),
        ("Head 3.2", "#3.2")
    );
    for query in [2_u32, 9, 14] {
        browser.hover(&format!("document.querySelector('.token[data-pos=\"{query}\"]')"), None);
        let mut wanted: Vec<f64> = (0..=query).map(|key| weight[&(3, 2, query, key)]).collect();
        wanted.sort_by(|a, b| b.total_cmp(a));
        let shown: Vec<f64> = browser.texts(".asked .row .figure").iter().map(|text| number(text)).collect();
        assert_eq!(shown.len(), wanted.len().min(6), "{query}");
        assert!(shown.iter().zip(&wanted).all(|(a, b)| same(*a, *b, 6e-5)), "{shown:?} {wanted:?}");
        // The colours are those of the weights: the strongest token is the darkest.
        let darkest = browser.eval(
            "(() => { const light = (e) => getComputedStyle(e).backgroundColor.match(/\\d+/g).map(Number).slice(0, 3).reduce((a, b) => a + b); \
             const all = [...document.querySelectorAll('.attention .token')].filter((e) => e.style.backgroundColor); \
             return Number(all.reduce((a, b) => (light(b) < light(a) ? b : a)).dataset.pos); })()",
        );
        let strongest = (0..=query).max_by(|a, b| weight[&(3, 2, query, *a)].total_cmp(&weight[&(3, 2, query, *b)]));
        assert_eq!(darkest, strongest.unwrap(), "{query}");
    }

    // The other way round, by key.
    browser.hover("document.querySelector('.token[data-pos=\"4\"]')", None);
    browser.key("t");
    let mut wanted: Vec<f64> = (4..=14).map(|query| weight[&(3, 2, query, 4)]).collect();
    wanted.sort_by(|a, b| b.total_cmp(a));
    let shown: Vec<f64> = browser.texts(".asked .row .figure").iter().map(|text| number(text)).collect();
    assert!(shown.iter().zip(&wanted).all(|(a, b)| same(*a, *b, 6e-5)), "{shown:?} {wanted:?}");
    assert!(browser.text(".asked").contains("is looked at by"));
    browser.key("t");

    // Layers and heads by key; at the edge nothing happens.
    for (key, wanted) in [("j", "4.2"), ("l", "4.3"), ("l", "4.3"), ("h", "4.2"), ("k", "3.2"), ("k", "2.2")] {
        browser.key(key);
        assert_eq!(browser.text(".head-name"), format!("Head {wanted}"), "{key}");
    }
    // Letters are for those who are there.
    browser.eval("document.activeElement.blur()");
    browser.key("j");
    assert_eq!(browser.text(".head-name"), "Head 2.2");
    browser.eval("document.querySelector('.thumb[aria-pressed=\"true\"]').focus()");
    browser.key("ArrowRight");
    assert_eq!(browser.text(".head-name"), "Head 2.3");
    assert_eq!(browser.eval("document.activeElement.dataset.head"), "2.3");

    // A deep link, and the large map by pointer and by arrow keys.
    browser.open(&run.page(), "#5.1");
    assert_eq!(browser.text(".head-name"), "Head 5.1");
    let canvas = "document.querySelector('.attention .grid canvas')";
    for (query, key) in [(0, 0), (7, 3), (14, 14)] {
        let place = cell(browser, canvas, (query, 15), (key, 15));
        browser.hover(canvas, Some(place));
        let lines = tip(browser);
        assert!(same(number(&lines[0]), weight[&(5, 1, query as u32, key as u32)], 6e-5), "{lines:?}");
        assert!(lines[1].ends_with(&format!("at {query}")) && lines[2].ends_with(&format!("at {key}")), "{lines:?}");
    }
    let place = cell(browser, canvas, (3, 15), (9, 15));
    browser.hover(canvas, Some(place));
    assert_eq!(browser.eval("document.getElementById('tip').hidden"), true, "nobody looks ahead");
    browser.eval(&format!("{canvas}.focus()"));
    for key in ["ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp"] {
        browser.key(key);
    }
    let lines = tip(browser);
    assert!(same(number(&lines[0]), weight[&(5, 1, 1, 1)], 6e-5) && lines[1].ends_with("at 1"), "{lines:?}");
    assert_eq!(browser.text("#spoken"), lines.join(", "));
    browser.key("Enter");
    assert!(browser.text(".asked").contains("at 1 looks at"));

    // What an edit makes of a pattern is shown as it is, beyond 1 too.
    let edits = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(edits.path(), r#"{"edit": [{"site": "pattern.0", "op": "scale", "value": 2}]}"#).unwrap();
    let edited = Run::new(&format!("attention --layer 0 --edit {}", edits.path().display()), &[PROMPT]);
    let weight = weights(&edited.frame("frame.parquet"));
    browser.open(&edited.page(), "#0.1");
    let place = cell(browser, canvas, (14, 15), (10, 15));
    browser.hover(canvas, Some(place));
    let shown = number(&tip(browser)[0]);
    assert!(shown > 1.5 && same(shown, weight[&(0, 1, 14, 10)], 6e-5), "{shown} {}", weight[&(0, 1, 14, 10)]);

    // Several prompts.
    let two = Run::new("attention --layer 1 --head 0,2", &[PROMPT, "The key near the doors is"]);
    browser.open(&two.page(), "");
    assert_eq!(browser.eval("document.querySelectorAll('.thumb').length"), 2);
    browser.eval("(() => { const s = document.querySelector('select'); s.selectedIndex = 1; s.dispatchEvent(new Event('change')); })()");
    assert_eq!(browser.texts(".attention .token").concat(), "<|endoftext|>The·key·near·the·doors·is");
}

fn lens(browser: &mut Browser) {
    let run = Run::new("lens --top 3", &[PROMPT]);
    let frame = run.frame("frame.parquet");
    let (layer, pos, rank) = (ints(&frame, "layer"), ints(&frame, "pos"), ints(&frame, "rank"));
    let (next, logprob) = (texts(&frame, "next"), floats(&frame, "logprob"));
    let (entropy, final_rank) = (floats(&frame, "entropy"), ints(&frame, "final_rank"));
    browser.open(&run.page(), "");
    let canvas = "document.querySelector('.grid canvas')";
    for (l, p) in [(6_u32, 14_u32), (0, 0), (3, 7)] {
        let at = cell(browser, canvas, (6 - l as usize, 7), (p as usize, 15));
        browser.hover(canvas, Some(at));
        let lines = tip(browser);
        let rows: Vec<usize> = (0..frame.height()).filter(|i| (layer[*i], pos[*i]) == (l, p)).collect();
        assert_eq!(rows.len(), 3);
        for i in rows {
            let line = &lines[1 + rank[i] as usize];
            assert!(line.starts_with(&interp::figure::shown(&next[i])), "{line} {}", next[i]);
            assert!(
                same(number(line.rsplit(' ').next().unwrap()), logprob[i].exp(), 6e-5),
                "{line} {}",
                logprob[i].exp()
            );
            assert!(same(number(&lines[4]), entropy[i], 6e-5), "{lines:?} {}", entropy[i]);
            match final_rank[i] {
                0 => assert_eq!(lines[5], "agrees with the output"),
                more => assert_eq!(lines[5], format!("ranks the output's answer {}", more + 1)),
            }
        }
    }
    // A click keeps a cell; the switch changes the colours and not the words.
    let place = cell(browser, canvas, (1, 7), (14, 15));
    browser.click(canvas, Some(place));
    assert_eq!(browser.text(".detail h3"), "After ·to at 14, before layer 5");
    let picture = format!("{canvas}.toDataURL()");
    let before = browser.eval(&picture);
    browser.click("[...document.querySelectorAll('button')].find((b) => b.textContent === 'entropy')", None);
    let after = browser.eval(&picture);
    assert!(before != after && browser.text(".legend .soft") == "entropy");
    browser.click("[...document.querySelectorAll('button')].find((b) => b.textContent.startsWith('rank'))", None);
    assert!(browser.eval(&picture) != after);

    // A map that is wider than the page follows the keys.
    let long = Run::new("lens --top 2", &[&format!("{PROMPT} {PROMPT} {PROMPT}")]);
    browser.open(&long.page(), "");
    browser.eval(&format!("{canvas}.focus()"));
    for _ in 0..35 {
        browser.key("ArrowRight");
    }
    assert!(tip(browser)[0].contains("at 34,"), "{:?}", tip(browser));
    let sides = browser.eval("(() => { const t = document.getElementById('tip').getBoundingClientRect(); return [document.querySelector('.grid').scrollLeft, t.left, innerWidth - t.right, t.top, innerHeight - t.bottom]; })()");
    assert!(sides.as_array().unwrap().iter().all(|side| side.as_f64().unwrap() > 0.0), "{sides}");
}

fn sweeps(browser: &mut Browser) {
    let run = Run::new("patch --pairs tiny-ioi --num-pairs 6 --sweep attn_head_out_all_pos", &[]);
    let frame = run.frame("frame.parquet");
    let (pair, layer, head) = (ints(&frame, "pair"), ints(&frame, "layer"), ints(&frame, "head"));
    let (effect, low, high) = (floats(&frame, "effect"), floats(&frame, "low"), floats(&frame, "high"));
    browser.open(&run.page(), "");
    let canvas = "document.querySelector('.maps .grid canvas')";
    for (l, h) in [(0, 1), (3, 2), (5, 3)] {
        let place = cell(browser, canvas, (l, 6), (h, 4));
        browser.hover(canvas, Some(place));
        let lines = tip(browser);
        let is = |i: &usize| pair[*i] == u32::MAX && (layer[*i], head[*i]) == (l as u32, h as u32);
        let i = (0..frame.height()).find(is).unwrap();
        let interval = lines[1].strip_prefix("95 % interval ").unwrap().split(" to ").map(number).collect::<Vec<_>>();
        assert!(same(number(&lines[0]), effect[i], 6e-5), "{lines:?} {}", effect[i]);
        assert!(
            same(interval[0], low[i], 6e-5) && same(interval[1], high[i], 6e-5),
            "{lines:?} {} {}",
            low[i],
            high[i]
        );
        assert_eq!(lines[2..4], [format!("layer {l}"), format!("head {h}")]);
    }
    let place = cell(browser, canvas, (3, 6), (2, 4));
    browser.click(canvas, Some(place));
    assert_eq!(browser.text(".head-name"), "Head 3.2");
    assert_eq!(browser.eval("document.activeElement.dataset.head"), "3.2", "whoever goes there by keys is there");

    // What was not run is grey and says so, instead of looking like no effect.
    let some = Run::new("patch --pairs tiny-ioi --num-pairs 2 --layer 3-5 --sweep attn_head_out_all_pos", &[]);
    browser.open(&some.page(), "");
    let place = cell(browser, canvas, (0, 6), (1, 4));
    browser.hover(canvas, Some(place));
    assert!(tip(browser)[0].ends_with("no number"));

    // Edges: a map per head, whose title is the head.
    let command = "patch --pairs tiny-ioi --template 0 --num-pairs 1 --layer 0 --sweep attn_head_pattern_dest_src_pos";
    browser.open(&Run::new(command, &[]).page(), "");
    let canvas = "document.querySelectorAll('.maps .grid canvas')[0]";
    let title = browser.text(".maps figcaption");
    let place = cell(browser, canvas, (5, 15), (2, 15));
    browser.click(canvas, Some(place));
    assert_eq!(browser.text(".head-name").to_lowercase(), title);

    // The atlas, and ablation.
    let atlas = Run::new("heads", &[]);
    let frame = atlas.frame("frame.parquet");
    browser.open(&atlas.page(), "");
    let canvas = "document.querySelectorAll('.maps .grid canvas')[2]";
    let place = cell(browser, canvas, (3, 6), (1, 4));
    browser.hover(canvas, Some(place));
    let lines = tip(browser);
    assert!(same(number(&lines[0]), floats(&frame, "induction")[3 * 4 + 1], 6e-5), "{lines:?}");
    let ablation = Run::new("ablate --pairs tiny-ioi --num-pairs 4 --head 0.1 --together", &[]);
    let frame = ablation.frame("frame.parquet");
    browser.open(&ablation.page(), "");
    let shown = browser.text(".bars-row .figure");
    let of_all: Vec<u32> = ints(&frame, "prompt");
    let i = of_all.iter().position(|prompt| *prompt == u32::MAX).unwrap();
    assert!(same(number(&shown), floats(&frame, "change")[i], 6e-4), "{shown}");
    // A set without random ones beside it is a bar, too.
    browser.open(&Run::new("ablate --pairs tiny-ioi --num-pairs 2 --together", &[]).page(), "");
    assert_eq!(browser.eval("document.querySelectorAll('.bars-row').length"), 1);
}

fn strips(browser: &mut Browser) {
    let run = Run::new("neurons --layer 3 --top 5", &[PROMPT]);
    let frame = run.frame("frame.parquet");
    let (neuron, pos, activation) = (ints(&frame, "neuron"), ints(&frame, "pos"), floats(&frame, "activation"));
    browser.open(&run.page(), "");
    for (button, own) in neuron.chunks(15).map(|own| own[0]).enumerate().skip(1) {
        browser.click(&format!("document.querySelectorAll('.choices button')[{button}]"), None);
        for p in [0, 14] {
            browser.hover(&format!("document.querySelector('.token[data-pos=\"{p}\"]')"), None);
            let lines = tip(browser);
            let i = (0..frame.height()).find(|i| (neuron[*i], pos[*i]) == (own, p)).unwrap();
            let value = lines[0].strip_prefix(&format!("3.{own} ")).unwrap();
            assert!(same(number(value), activation[i], 6e-5), "{lines:?} {}", activation[i]);
        }
    }
    let probes = Run::new("probe train tiny-number --site resid_post.1", &[]);
    let applied =
        Run::new(&format!("probe apply {}", probes.dir.path().display()), &["The keys near the door are old"]);
    let frame = applied.frame("frame.parquet");
    let (class, pos, p) = (texts(&frame, "class"), ints(&frame, "pos"), floats(&frame, "probability"));
    browser.open(&applied.page(), "");
    let name = browser.text(".choices button[aria-pressed=\"true\"]");
    browser.hover("document.querySelector('.token[data-pos=\"2\"]')", None);
    let lines = tip(browser);
    let i = (0..frame.height()).find(|i| (&class[*i], pos[*i]) == (&name, 2)).unwrap();
    assert!(same(number(lines[0].rsplit(' ').next().unwrap()), p[i], 6e-5), "{lines:?} {}", p[i]);
}

fn attribution(browser: &mut Browser) {
    let run = Run::new("attribute --by neuron --neurons 40 --answer Mary --wrong John", &[PROMPT]);
    let frame = run.frame("frame.parquet");
    let total: f64 = floats(&frame, "contribution").iter().sum();
    browser.open(&run.page(), "");
    assert!(same(number(browser.text(".total").trim_start_matches("Sum: ")), total, 6e-5));
    let numbers = |texts: Vec<String>| texts.iter().map(|text| number(text)).collect::<Vec<f64>>();
    let bars = numbers(browser.texts(".bars > .bars-row .figure, .bars > details > summary .figure"));
    assert!(same(bars.iter().sum(), total, 1e-4 * bars.len() as f64), "{bars:?} {total}");
    // Every component is the sum of what it opens into, and these are the rows of the frame.
    let component = texts(&frame, "component");
    let value: BTreeMap<&str, f64> = component.iter().map(String::as_str).zip(floats(&frame, "contribution")).collect();
    let groups = browser.eval("document.querySelectorAll('.bars > details').length").as_u64().unwrap();
    assert_eq!(groups, 12, "attention and MLP of six layers");
    let mut parts = 0;
    for i in 1..=groups {
        let of = |what: &str| format!(".bars > details:nth-of-type({i}) {what}");
        browser.click(&format!("document.querySelectorAll('.bars > details > summary')[{}]", i - 1), None);
        let names = browser.texts(&of(".leaf .word"));
        let own = numbers(browser.texts(&of(".leaf .figure")));
        let sum = number(&browser.text(&of("> summary .figure")));
        assert!(same(own.iter().sum(), sum, 1e-4 * own.len() as f64), "{names:?}");
        for (name, shown) in names.iter().zip(&own) {
            assert!(same(*shown, value[name.as_str()], 6e-5), "{name} {shown}");
        }
        parts += names.len();
        assert_eq!(browser.eval(&format!("document.querySelectorAll('.bars > details')[{}].open", i - 1)), true);
    }
    assert_eq!(parts + bars.len() - groups as usize, frame.height(), "every row has a bar");
}

fn report(browser: &mut Browser) {
    let run = Run::new("report", &[PROMPT]);
    browser.open(&run.page(), "#3.3");
    assert_eq!(browser.texts("h2"), ["Predictions", "Logit lens", "Attention", "Direct logit attribution", "Neurons"]);
    assert_eq!(browser.text("h1"), format!("report: {PROMPT}"));
    assert_eq!(browser.text(".head-name"), "Head 3.3", "a deep link");
    let frame = run.frame("frame.parquet");
    let last: Vec<usize> = (0..frame.height()).filter(|i| ints(&frame, "pos")[*i] == 14).collect();
    let shown: Vec<f64> =
        browser.texts("section:nth-of-type(1) .bars .figure").iter().map(|text| number(text)).collect();
    let wanted: Vec<f64> = last.iter().map(|i| floats(&frame, "logprob")[*i].exp()).collect();
    assert!(shown.len() == wanted.len() && shown.iter().zip(&wanted).all(|(a, b)| same(*a, *b, 6e-5)), "{shown:?}");
    // From a head's bar to its attention.
    browser.click("[...document.querySelectorAll('button')].find((b) => b.textContent === 'open all')", None);
    browser.click("[...document.querySelectorAll('button.link')][0]", None);
    let name = browser.eval("document.querySelector('button.link').parentElement.querySelector('.word').textContent");
    let head = name.as_str().unwrap().trim_start_matches("head.").to_string();
    assert_eq!(browser.text(".head-name"), format!("Head {head}"));
    // How it was made.
    let run_json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.dir.path().join("run.json")).unwrap()).unwrap();
    let sha = run_json["model"]["weights_sha256"][0].as_str().unwrap();
    assert!(browser.text("footer pre").contains(sha) && browser.text("footer code").starts_with("interp report"));
}

const HOSTILE: &str = "</script><script>window.X=1</script><img src=x onerror=window.X=1> \"'`${window.X=1} <!-- ]]> javascript:window.X=1 \
    \u{2028}\\u003cb\\u003e &lt; &amp; \u{202e}flow EVCXR_BEGIN_CONTENT text/html";

fn hostile(browser: &mut Browser) {
    for command in
        ["report", "attention --layer all", "lens", "neurons --layer 2", "predict", "attribute --answer Mary"]
    {
        let run = Run::new(command, &[HOSTILE]);
        let html = std::fs::read_to_string(run.page()).unwrap();
        assert_eq!(html.matches("<script").count(), 2, "{command}: data and program");
        browser.open(&run.page(), "");
        assert_eq!(browser.eval("typeof window.X"), "undefined", "{command}");
        assert_eq!(browser.eval("document.querySelectorAll('img, iframe, script:not([id])').length"), 1, "{command}");
        let shown = browser.text("h1");
        assert!(shown.contains("</script><script>window.X=1</script><img src=x onerror=window.X=1>"), "{shown}");
        assert!(!shown.contains(['\u{202e}', '\u{2028}']), "{command}: nothing turns the line around");
        if command != "attribute --answer Mary" && command != "lens" {
            let tokens = browser.texts("section .text")[0].clone();
            assert!(tokens.contains("<img·src=x·onerror=window.X=1>"), "{command}: {tokens}");
        }
        let complaints = browser.complaints();
        assert!(complaints.is_empty(), "{command}: {complaints:?}");
        let policy = browser.eval("document.querySelector('meta[http-equiv]').content");
        assert!(policy.as_str().unwrap().starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    }
    // The policy is enforced: what is not in the file does not run.
    browser.eval("(() => { const s = document.createElement('script'); s.textContent = 'window.X = 1'; document.body.append(s); })()");
    assert_eq!(browser.eval("typeof window.X"), "undefined");
    assert_eq!(browser.complaints().len(), 1, "and the browser says so");
    browser.open(&Run::new("predict", &[PROMPT]).page(), "");
}

fn media(browser: &mut Browser) {
    let run = Run::new("report", &[PROMPT]);
    browser.media("", "light");
    browser.open(&run.page(), "");
    let picture = "[...document.querySelectorAll('canvas')].map((c) => c.toDataURL()).join()";
    let ground = "getComputedStyle(document.body).backgroundColor";
    let white = browser.eval(ground);
    browser.eval(&format!("window.light = {picture}"));
    browser.media("", "dark");
    browser.wait_for(&format!("{picture} !== window.light")); // maps are drawn in other colours
    assert_eq!((white.as_str(), browser.eval(ground).as_str()), (Some("rgb(255, 255, 255)"), Some("rgb(23, 23, 27)")));
    // On paper it is light whatever the screen is.
    browser.media("print", "dark");
    assert_eq!(browser.eval(ground), white);
    let paper = browser.print();
    assert!(paper.starts_with(b"%PDF") && paper.len() > 20_000, "{}", paper.len());
    browser.media("", "light");
    browser.wait_for(&format!("{picture} === window.light"));
    // Nothing is wider than the page, on a small screen too; wide maps scroll in a box of their own.
    for width in [1280, 420] {
        browser.resize(width);
        let wide = browser.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert!(wide.as_f64().unwrap() <= 0.0, "{width}: {wide} too wide");
    }
}

fn names(browser: &mut Browser) {
    let run = Run::new("report", &[PROMPT]);
    browser.open(&run.page(), "");
    let all = browser.accessible();
    let has = |role: &str, name: &str| all.iter().any(|(r, n)| r == role && n.contains(name));
    for (role, name) in [
        ("heading", "Logit lens"),
        ("button", "head 5.3"),
        ("button", "is looked at by"),
        ("button", "·Mary"),
        ("application", "Logit lens: 7 by 15"),
        ("application", "Attention of the head: 15 by 15"),
        ("region", "Attention"),
    ] {
        assert!(has(role, name), "{role} {name}: {all:?}");
    }
    let nameless: Vec<_> = all
        .iter()
        .filter(|(role, name)| ["button", "application", "combobox"].contains(&role.as_str()) && name.is_empty())
        .collect();
    assert!(nameless.is_empty(), "{nameless:?}");
    // All that can be pointed at can be reached by keys.
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..80 {
        browser.key("Tab");
        let at = browser.eval("document.activeElement.className || document.activeElement.tagName");
        reached.insert(at.as_str().unwrap_or_default().to_string());
    }
    for wanted in ["token", "CANVAS", "thumb", "BUTTON", "bars-row"] {
        assert!(reached.contains(wanted), "{wanted}: {reached:?}");
    }
}

/// What a notebook was committed with: a frame that is sandboxed draws itself, though it can reach nothing of the notebook.
fn framed(browser: &mut Browser) {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks/01-first-look.ipynb");
    let book: serde_json::Value = serde_json::from_slice(&std::fs::read(book).unwrap()).unwrap();
    let outputs = book["cells"].as_array().unwrap().iter().filter_map(|cell| cell["outputs"].as_array()).flatten();
    let html = outputs.map(|output| match &output["data"]["text/html"] {
        serde_json::Value::Array(lines) => lines.iter().filter_map(|line| line.as_str()).collect::<String>(),
        other => other.as_str().unwrap_or_default().to_string(),
    });
    let frames: Vec<String> = html.filter(|html| html.starts_with("<iframe sandbox=\"allow-scripts\"")).collect();
    assert_eq!(frames.len(), 2);
    let dir = tempfile::tempdir().unwrap();
    for frame in frames {
        let file = dir.path().join("cell.html");
        std::fs::write(&file, format!("<!DOCTYPE html><meta charset=utf-8><body>{frame}</body>")).unwrap();
        browser.visit(&file, "");
        // A map has thousands of blue pixels, and a page whose script did not run has none.
        let start = std::time::Instant::now();
        loop {
            let picture = image::load_from_memory(&browser.screenshot()).unwrap().to_rgb8();
            let blue = picture.pixels().filter(|pixel| pixel[2] > 150 && pixel[0] < 120).count();
            if blue > 3000 {
                break;
            }
            assert!(start.elapsed().as_secs() < 200, "{blue} blue pixels: the frame is empty");
        }
        assert_eq!(browser.eval("window.X ?? document.querySelectorAll('canvas').length"), 0, "it stays in its frame");
    }
}
