//! Numbers and sizes that are too large are refused before any work, with the number and its limit: with little address space and little
//! processor time, so that a huge allocation or an endless loop fails the test instead of the machine.

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::Path;

use interp::weights::write_model;
use interp::{Config, Gpt2, embedded, initial};
use process::Interp;

/// Enough for the binary and a small model, far too little for anything that a hostile number asks for.
const MEMORY: u64 = 3 << 30;
/// Seconds of processor time; a refusal takes a fraction of one.
const CPU: u64 = 60;

fn refuse(name: &str, interp: Interp, code: i32, wanted: &str) {
    let outcome = interp.limit_memory(MEMORY).limit_cpu(CPU).run();
    println!("{name}: {}", outcome.stderr.trim_end());
    outcome.refused(code, wanted);
}

fn pipe(path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a valid C string and a mode.
    #[allow(unsafe_code)]
    let made = unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
    assert_eq!(made, 0);
}

#[test]
fn numbers_on_the_command_line_have_a_range() {
    let causal = "patch --clean Mary --subject Mary --answer a --wrong b";
    let steer = "steer --positive good --negative bad --prompt hello";
    let cases = [
        (format!("{causal} --noise-samples 4294967295"), "4294967295 is not in 1..=10000"),
        (format!("{causal} --noise-samples 10001"), "10001 is not in 1..=10000"),
        (format!("{causal} --noise inf"), "inf is not in 0..=1000000"),
        ("patch --pairs tiny-ioi --window 4294967295".into(), "4294967295 is not in 1..=96"),
        ("patch --pairs tiny-ioi --attribution --calibrate 4294967296".into(), "4294967296 is not in 1..=100000000"),
        ("generate --prompt a --num-samples 4611686018427387904".into(), "4611686018427387904 is not in 1..=10000"),
        (
            "generate --prompt a --max-new-tokens 18446744073709551615".into(),
            "18446744073709551615 is not in 1..=1000000",
        ),
        (
            "generate --prompt a --max-new-tokens 99999999999999999999".into(),
            "99999999999999999999 is not in 1..=1000000",
        ),
        ("generate --prompt a --top-k 18446744073709551615".into(), "18446744073709551615 is not in 1..=1000000"),
        (format!("{steer} --controls 4294967296"), "4294967296 is not in 0..=1000"),
        (format!("{steer} --num-samples 4294967297"), "4294967297 is not in 1..=10000"),
        (format!("{steer} --strength 1e300"), "1e300 is not in"),
        (format!("{steer} --strength NaN"), "NaN is not in"),
        ("probe tiny-number --examples 18446744073709551615".into(), "18446744073709551615 is not in 2..=1000000"),
        ("probe tiny-number --folds 18446744073709551615".into(), "18446744073709551615 is not in 2..=100"),
        ("probe tiny-number --max-iterations 18446744073709551615".into(), "is not in 1..=1000000"),
        ("probe tiny-number --causal 18446744073709551615".into(), "is not in 0..=100000"),
        ("probe tiny-number --seeds 4294967296".into(), "4294967296 is not in 1..=100"),
        ("probe tiny-number --test-share NaN".into(), "NaN is not in 0..=1"),
        ("probe tiny-number --alpha 1,inf".into(), "inf is not in 0..=1000000000000"),
        ("pairs tiny-ioi --num-pairs 4294967295".into(), "4294967295 is not in 1..=100000"),
        ("pairs tiny-ioi --num-pairs 4294967296".into(), "4294967296 is not in 1..=100000"),
        ("pairs tiny-ioi --template 18446744073709551615".into(), "18446744073709551615 is not in 0..=10000"),
        ("predict --prompt a --top 4294967296".into(), "4294967296 is not in 1..=1000000"),
        ("lens --prompt a --top 4294967296".into(), "4294967296 is not in 1..=1000000"),
        ("neurons --layer 0 --prompt a --top 4294967296".into(), "4294967296 is not in 1..=65536"),
        ("bench --repeats 4294967296".into(), "4294967296 is not in 1..=100000"),
        ("bench --batch 18446744073709551615".into(), "18446744073709551615 is not in 1..=1048576"),
        ("bench --context 18446744073709551615".into(), "18446744073709551615 is not in 2..=65536"),
        ("circuit find --pairs tiny-ioi --edges 4294967296".into(), "4294967296 is not in 1..=100000000"),
        ("circuit find --pairs tiny-ioi --steps 4294967296".into(), "4294967296 is not in 1..=1000"),
        ("circuit find --pairs tiny-ioi --calibrate 4294967296".into(), "4294967296 is not in 1..=100000000"),
        ("circuit find --pairs tiny-ioi --method acdc --threshold NaN".into(), "NaN is not in 0"),
        ("subspace --pairs tiny-ioi --site resid_pre.1 --steps 4294967296".into(), "4294967296 is not in 1..=1000000"),
        ("subspace --pairs tiny-ioi --site resid_pre.1 --dim 4294967297".into(), "4294967297 is not in 1..=8192"),
        ("saliency --prompt a --answer b --steps 4294967297".into(), "4294967297 is not in 1..=10000"),
        ("heads --length 4294967295".into(), "4294967295 is not in 2..=65536"),
        ("heads --sequences 4294967297".into(), "4294967297 is not in 1..=1000"),
        ("ablate --repeated 18446744073709551615".into(), "18446744073709551615 is not in 2..=65536"),
        ("attribute --prompt a --answer b --neurons 18446744073709551615".into(), "is not in 0..=100000000"),
        ("behave tiny-facts --shots 4294967296".into(), "4294967296 is not in 0..=1000"),
        ("behave tiny-facts --num-questions 4294967297".into(), "4294967297 is not in 1..=1000000"),
        ("perplexity --prompt a --context 18446744073709551615".into(), "18446744073709551615 is not in 2..=65536"),
        ("perplexity --prompt a --stride 18446744073709551615".into(), "18446744073709551615 is not in 1..=65536"),
        ("export --prompt a --site z.0 --context 18446744073709551615".into(), "is not in 1..=65536"),
        ("export --prompt a --site z.0 --sample 18446744073709551615".into(), "is not in 1..=65536"),
        ("export --prompt a --site z.0 --part-rows 18446744073709551615".into(), "is not in 1..=1099511627776"),
        ("export --prompt a --site z.0 --max-tokens 18446744073709551615".into(), "is not in 1..=1099511627776"),
        ("sites --price NaN".into(), "a price is a number from 0 to 1000000000"),
        ("sites --price 1e300".into(), "a price is a number from 0 to 1000000000"),
        ("sites --memory 0".into(), "`0` is no amount of memory"),
        ("sites --memory NaN".into(), "`NaN` is no amount of memory"),
        ("sites --memory 1e30".into(), "no amount of memory"),
        ("sites --memory 999999999999GB".into(), "no amount of memory"),
    ];
    for (words, wanted) in &cases {
        refuse(words, Interp::new().words(words), 2, wanted);
    }
}

#[test]
fn the_largest_seed_is_a_seed() {
    let seed = "--seed 18446744073709551615";
    let probe = "probe tiny-number --examples 200 --seeds 2 --no-random-model --causal 0 --site resid_pre.1";
    Interp::new().words(probe).words(seed).run().ok();
    // A recipe is TOML, which has no number so large.
    let train = Interp::new().words("finetune").words(seed);
    refuse("finetune", train, 2, "seed");
}

#[test]
fn numbers_of_a_recipe_have_a_range() {
    let cases = [
        ("eval_rows=1000000000000", "eval_rows is 1000000000000; it must be in 1..=1048576"),
        ("batch_size=1000000000000", "batch_size is 1000000000000; it must be in 1..=1048576"),
        ("batch_size=0", "batch_size is 0; it must be in 1..=1048576"),
        (
            "gradient_accumulation_steps=1000000000000",
            "gradient_accumulation_steps is 1000000000000; it must be in 1..=",
        ),
        ("micro_batch_size=4611686018427387904", "micro_batch_size is 4611686018427387904; it must be in 1..="),
        ("train.block_size=4611686018427387904", "block_size is 4611686018427387904; it must be in 0..=65536"),
        ("short_block_size=4611686018427387904", "short_block_size is 4611686018427387904; it must be in 0..=65536"),
        ("max_iters=9223372036854775807", "max_iters is 9223372036854775807; it must be in 1..=1000000000"),
        ("max_iters=0", "max_iters is 0; it must be in 1..=1000000000"),
        ("warmup_iters=9223372036854775807", "warmup_iters is 9223372036854775807"),
        ("lr_decay_iters=9223372036854775807", "lr_decay_iters is 9223372036854775807"),
        ("lr_restart_iters=9223372036854775807", "lr_restart_iters is 9223372036854775807"),
        ("short_iters=9223372036854775807", "short_iters is 9223372036854775807"),
        ("eval_interval=9223372036854775807", "eval_interval is 9223372036854775807"),
        ("checkpoint_interval=9223372036854775807", "checkpoint_interval is 9223372036854775807"),
        ("patience=9223372036854775807", "patience is 9223372036854775807"),
        (
            "tokenizer_documents=9223372036854775807",
            "tokenizer_documents is 9223372036854775807; it must be in 1..=10000000",
        ),
        ("n_layer=1000000000", "n_layer is 1000000000; it must be in 1..=96"),
        ("n_layer=0", "n_layer is 0; it must be in 1..=96"),
        ("n_head=1000000000", "n_head is 1000000000; it must be in 1..=64"),
        ("n_embd=4611686018427387904", "n_embd is 4611686018427387904; it must be in 1..=8192"),
        ("model.block_size=4611686018427387904", "block_size is 4611686018427387904; it must be in 16..=65536"),
        ("vocab_size=4611686018427387904", "vocab_size is 4611686018427387904; it must be in 0..=1000000"),
        ("n_embd=2048 --set n_head=1", "n_embd / n_head is 2048; it must be in 1..=1024"),
    ];
    for (set, wanted) in cases {
        refuse(set, Interp::new().words("train --set").words(set), 2, wanted);
    }
    let both = "train --set batch_size=1048576 --set gradient_accumulation_steps=2";
    refuse(
        "both",
        Interp::new().words(both),
        2,
        "batch_size × gradient_accumulation_steps is 2097152; it must be in 1..=1048576",
    );
}

#[test]
fn what_does_not_fit_into_memory_is_refused_before_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "Mary and John went to the shop . ".repeat(2000)).unwrap();
    let large = "train --set n_layer=96 --set n_head=64 --set n_embd=8192 --set vocab_size=300 --file";
    refuse("a large model", Interp::new().words(large).arg(&text), 75, "training 7");
    let limited = "train --set n_layer=8 --set n_embd=768 --set vocab_size=300 --memory 300MB --file";
    refuse("a limit", Interp::new().words(limited).arg(&text), 75, "the limit of --memory is 300 MB");
    for set in ["batch_size=1048576", "eval_rows=1048576", "gradient_accumulation_steps=131072"] {
        let tune = Interp::new().words("finetune --set").arg(set).arg("--file").arg(&text);
        refuse(set, tune, 75, "lower batch_size, gradient_accumulation_steps or eval_rows");
    }
    let many = "generate --prompt a --num-samples 10000 --max-new-tokens 200";
    refuse("many samples", Interp::new().words(many), 75, "keys and values of 10000 texts");
    let sweep = "patch --pairs tiny-ioi --template 0 --sweep attn_head_pattern_dest_src_pos --num-pairs 5000";
    refuse("many pairs", Interp::new().words(sweep), 75, "of memory");
}

#[test]
fn a_small_file_does_not_become_a_large_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = dir.path().join("file.toml");
        std::fs::write(&path, text).unwrap();
        path
    };
    let pairs = |more: &str| {
        format!(
            "about = 'x'\nsuits = 'tiny'\n{more}\n[class.word]\nrows = [['door'], ['key'], ['book']]\n[slot]\na = 'word'\nb = 'word'\n\
             [[corrupt]]\nname = 'x'\n[corrupt.set]\na = 'b'\n[answer]\nright = ' {{a}}'\nwrong = ' {{b}}'\n"
        )
    };
    let suite = |more: &str| {
        format!(
            "about = 'x'\nsuits = 'tiny'\nanswer = ' {{a}}'\n{more}\n[class.word]\nrows = [['door'], ['key'], ['book']]\n[slot]\na = 'word'\n"
        )
    };
    let task = |more: &str| {
        format!(
            "about = 'x'\nsuits = 'tiny'\nlabel = '{{a}}'\nat = 'last'\n{more}\n[class.word]\nrows = [['door'], ['key']]\n[slot]\na = 'word'\n"
        )
    };
    let list = |n: usize, of: &dyn Fn(usize) -> String| (0..n).map(of).collect::<Vec<_>>().join(", ");
    let templates = |n: usize| format!("templates = [{}]", list(n, &|i| format!("'The {{a}} {i}'")));
    let arranged = |n: usize| (0..n).map(|i| format!("[[arrange]]\nname = '{i}'\n")).collect::<String>();
    let cases_of = |n: usize| "[[case]]\nlabel = 'x'\n".repeat(n);
    let long = "x".repeat(30_000);
    let grid = |text: &str| format!("about = 'x'\ncommand = 'lens'\n{text}");
    let numbers = |n: usize| list(n, &|i| i.to_string());
    let cases: Vec<(&str, &str, String, &str)> = vec![
        (
            "pairs",
            "templates",
            pairs(&templates(10_001)),
            "10001 templates in all arrangements or cases; there may be at most 10000",
        ),
        ("pairs", "arrangements", pairs(&templates(200)) + &arranged(200), "40000 templates in all arrangements"),
        (
            "pairs",
            "text",
            pairs(&format!("templates = ['{}']", "{a} ".repeat(200_000)))
                .replace("door", &long)
                .replace("key", &long)
                .replace("book", &long),
            "the text comes to more than 1048576 bytes",
        ),
        (
            "pairs",
            "texts",
            pairs(&templates(4000)).replace("door", &long).replace("key", &long).replace("book", &long),
            "bytes when each is filled once",
        ),
        (
            "pairs",
            "range",
            pairs(&templates(1)).replace("rows = [['door'], ['key'], ['book']]", "range = [0, 9223372036854775807]"),
            "holds no numbers, or more than 100000",
        ),
        (
            "pairs",
            "answers",
            pairs(&templates(1))
                .replace("rows = [['door'], ['key'], ['book']]", "range = [0, 99999]")
                .replace("right = ' {a}'", "right = { class = 'word', up_to = 'a' }"),
            "100000 answers to one prompt; there may be at most 1000",
        ),
        ("behave", "templates", suite(&templates(10_001)), "10001 templates"),
        (
            "behave",
            "choices",
            suite(&format!("{}\nchoices = [{}]", templates(1), list(1001, &|i| format!("' {i}'")))),
            "1001 choices; there may be at most 1000",
        ),
        (
            "behave",
            "count",
            suite(&format!("{}\nchoices = {{ slot = 'a', count = 4611686018427387904 }}", templates(1))),
            "4611686018427387904 choices",
        ),
        (
            "behave",
            "phrasings",
            suite(&templates(1))
                + &(0..1001).map(|i| format!("[[phrasing]]\nname = '{i}'\ntext = '{{prompt}}'\n")).collect::<String>(),
            "1001 phrasings; there may be at most 1000",
        ),
        (
            "probe",
            "examples",
            task(&format!("examples = 4611686018427387904\n{}", templates(1))),
            "examples is 4611686018427387904; it must be in 2..=1000000",
        ),
        ("probe", "cases", task(&templates(200)) + &cases_of(200), "40000 templates in all arrangements or cases"),
        (
            "probe",
            "sites",
            task(&format!("sites = [{}]\n{}", list(6000, &|_| "'*'".into()), templates(1))),
            "12000 characters of patterns; there may be at most 10000",
        ),
        (
            "sweep",
            "grid",
            grid(&format!("[grid]\ntop = [{}]", numbers(120_000))),
            "120000 combinations in the grid; there may be at most 10000",
        ),
        (
            "sweep",
            "product",
            grid(&format!("[grid]\n{}", list(6, &|i| format!("k{i} = [{}]\n", numbers(1000))).replace(", k", "\nk"))),
            "1000000000000000000 combinations",
        ),
        (
            "sweep",
            "keys",
            grid(&("[grid]\n".to_string() + &(0..50_000).map(|i| format!("k{i} = [1]\n")).collect::<String>())),
            "50000 options in [grid]; there may be at most 100",
        ),
        (
            "sweep",
            "bytes",
            grid(&format!("[grid]\ntop = [{}]\nprompt = ['{long}']", numbers(9999))),
            "bytes in all runs of the grid; there may be at most 67108864",
        ),
        ("sweep", "runs", grid(&"[[run]]\ntop = 1\n".repeat(40_000)), "40000 runs; there may be at most 10000"),
        (
            "circuit test",
            "layers",
            "about = 'x'\nlayers = 4611686018427387904\nheads = 4\nedges = ['input->logits']\n".into(),
            "layers is 4611686018427387904; it must be in 1..=96",
        ),
        (
            "circuit test",
            "heads",
            "about = 'x'\nlayers = 6\nheads = 4611686018427387904\nedges = ['input->logits']\n".into(),
            "heads is 4611686018427387904; it must be in 1..=64",
        ),
        (
            "circuit test",
            "EAP-IG",
            "{\"cfg\": {\"n_layers\": 4611686018427387904, \"n_heads\": 1}, \"edges\": {}}".into(),
            "layers is 4611686018427387904; it must be in 1..=96",
        ),
    ];
    for (command, what, text, wanted) in &cases {
        let path = file(text);
        refuse(&format!("{command}: {what}"), Interp::new().words(command).arg(&path), 65, wanted);
    }
    let edits = file(&"[[edit]]\nsite = 'z.0'\nop = 'zero'\n".repeat(10_001));
    let predict = || Interp::new().words("predict --prompt hello --edit");
    refuse("edits", predict().arg(&edits), 2, "10001 edits; there may be at most 10000");
    let everywhere = file(&"[[edit]]\nsite = '*'\nop = 'zero'\n".repeat(9_000));
    refuse(
        "edits everywhere",
        predict().arg(&everywhere),
        2,
        "edits at all sites that they name; there may be at most 10000",
    );
}

#[test]
fn a_class_of_numbers_takes_no_room_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("set.toml");
    let classes: String = (0..1000).map(|i| format!("[class.c{i}]\nrange = [0, 99999]\n")).collect();
    let text = format!(
        "about = 'x'\nsuits = 'tiny'\ntemplates = ['The {{a}}']\n{classes}[class.word]\nrows = [['door'], ['key'], ['book']]\n[slot]\n\
         a = 'word'\nb = 'word'\nn = 'c7'\n[[corrupt]]\nname = 'x'\n[corrupt.set]\na = 'b'\n[answer]\nright = ' {{a}}'\nwrong = ' {{b}}'\n"
    );
    std::fs::write(&path, text).unwrap();
    let pairs = Interp::new().words("pairs --num-pairs 3 --format json").arg(&path).limit_memory(MEMORY).limit_cpu(CPU);
    assert!(pairs.run().ok().stdout.contains("\"clean\""));
}

#[test]
fn patterns_end() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "Mary and John went to the shop . ".repeat(2000)).unwrap();
    let stars = "*a".repeat(30) + "!";
    let freeze = |pattern: &str| Interp::new().words("finetune --file").arg(&text).arg("--freeze").arg(pattern);
    refuse("stars", freeze(&stars), 2, "matches no parameter");
    refuse("only stars", freeze(&"*".repeat(30)), 2, "nothing is left to learn");
    refuse("long", freeze(&"*a".repeat(6000)), 2, "12001 characters of patterns; there may be at most 10000");
    let capture = |pattern: &str| Interp::new().words("capture --prompt hello --site").arg(pattern);
    refuse("sites", capture(&("*o".repeat(30) + "!")), 2, "unknown site");
    refuse("a long site", capture(&"x".repeat(20_000)), 2, "20001 characters of patterns; there may be at most 10000");
}

#[test]
fn pipes_devices_and_directories_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("text.txt"), "Mary and John went to the shop . ".repeat(200)).unwrap();
    let text = at("text.txt").display().to_string();
    let commands = [
        ("predict --prompt hello --edit", "toml"),
        ("train --config", "toml"),
        ("sweep", "toml"),
        ("behave", "toml"),
        ("pairs", "toml"),
        ("pairs", "jsonl"),
        ("probe", "toml"),
        ("circuit test", "toml"),
        ("predict --file", "txt"),
        ("predict --file", "jsonl"),
        ("perplexity --file", "txt"),
        ("generate --max-new-tokens 2 --prompt a --tokenizer", "json"),
        ("steer --prompt a --contrast", "jsonl"),
        ("steer --prompt a --load", "safetensors"),
        ("subspace --pairs tiny-agreement --template 0 --site resid_pre.1 --along", "safetensors"),
        ("heads --prompt hello --pattern", "json"),
        ("export --site z.0 --file", "txt"),
        ("export --site z.0 --file", "jsonl"),
        ("export --site z.0 --file", "bin"),
        ("export --site z.0 --file", "parquet"),
        ("probe --label x --file", "jsonl"),
        ("ablate --prompt hello --reference", "txt"),
        ("verify --oracle", "json"),
    ];
    for (i, (command, extension)) in commands.iter().enumerate() {
        let fifo = at(&format!("{i}.{extension}"));
        pipe(&fifo);
        refuse(command, Interp::new().words(command).arg(&fifo), 66, "not a regular file, where a file is wanted");
        let device = at(&format!("zero{i}.{extension}"));
        std::os::unix::fs::symlink("/dev/zero", &device).unwrap();
        refuse(command, Interp::new().words(command).arg(&device), 66, "not a regular file, where a file is wanted");
        if !["--tokenizer", "--along", "--oracle"].iter().any(|option| command.ends_with(option)) {
            let folder = at(&format!("folder{i}.{extension}"));
            std::fs::create_dir(&folder).unwrap();
            refuse(command, Interp::new().words(command).arg(&folder), 66, "a directory, where a file is wanted");
        }
    }
    // What a recipe names, and what a run finds where it is to write.
    pipe(&at("language.toml"));
    std::fs::write(at("recipe.toml"), "[model]\n[data]\nlanguage = 'language.toml'\n").unwrap();
    let train = Interp::new().words("train --config").arg(at("recipe.toml"));
    refuse("language", train, 66, "not a regular file, where a file is wanted");
    let tune = |out: &str| {
        let set = "finetune -q --set max_iters=1 --set eval_rows=1 --set batch_size=1 --set block_size=32 --file";
        Interp::new().words(set).arg(&text).arg("--out").arg(at(out)).limit_memory(MEMORY).limit_cpu(10 * CPU)
    };
    tune("run").run().ok();
    std::fs::remove_file(at("run/state.safetensors")).unwrap();
    pipe(&at("run/state.safetensors"));
    tune("run").run().refused(73, "state.safetensors is a link, or no file; remove it, or name another --out");
}

#[test]
fn tensors_of_absurd_shape_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let header = |shape: &str, metadata: &str| {
        let header = format!(
            "{{\"__metadata__\":{metadata},\"basis\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,0]}}}}"
        );
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    };
    let path = dir.path().join("a.safetensors");
    let subspace =
        || Interp::new().words("subspace --pairs tiny-agreement --template 0 --site resid_pre.1 --along").arg(&path);
    let steer = || Interp::new().words("steer --prompt hello --load").arg(&path);
    for (shape, wanted) in [
        ("[0,1152921504606846976]", "tensor `basis` is empty"),
        ("[0,1152921504606846976,1152921504606846976]", "tensor `basis` is empty"),
        ("[4611686018427387904,4611686018427387904]", "overflows"),
        ("[4611686018427387904]", "overflows"),
    ] {
        std::fs::write(&path, header(shape, "{\"site\":\"resid_pre.1\"}")).unwrap();
        refuse(shape, subspace(), 65, wanted);
        std::fs::write(&path, header(shape, "{\"interp.directions\":\"[]\",\"interp.model\":\"x\"}")).unwrap();
        refuse(shape, steer(), 65, wanted);
    }
    // More directions than coordinates, of which each would be compared with all others.
    let own = interp::weights::sha256_of(embedded::WEIGHTS);
    let text = format!(
        "{{\"__metadata__\":{{\"site\":\"resid_pre.1\",\"model_sha256\":\"{own}\"}},\
         \"basis\":{{\"dtype\":\"F32\",\"shape\":[1000000,1],\"data_offsets\":[0,4000000]}}}}"
    );
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; 4_000_000]].concat();
    std::fs::write(&path, bytes).unwrap();
    refuse("many directions", subspace(), 65, "at most as many directions as coordinates");
}

#[test]
fn no_more_threads_start_than_there_are_cpus() {
    let cpus = interp::process::cpus() as u64;
    for name in ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS", "POLARS_MAX_THREADS", "CANDLE_NUM_THREADS"] {
        let run = |words: &str| Interp::new().words(words).env(name, "100000").limit_memory(4 * MEMORY).run().ok();
        let outcome = run("predict --prompt hello");
        let wanted =
            format!("note: {name}=100000 is more than the CPUs that this process may use; {cpus} threads are used");
        assert_eq!(outcome.stderr.trim_end(), wanted);
        assert!(outcome.record()["threads"].as_u64().unwrap() <= cpus);
        assert_eq!(run("predict --prompt hello --quiet").stderr, "");
    }
    let one = Interp::new().words("predict --prompt hello").env("RAYON_NUM_THREADS", "1").run().ok();
    assert_eq!((one.stderr.as_str(), one.record()["threads"].as_u64()), ("", Some(1)));
}

#[test]
fn figures_count_as_memory() {
    let dir = tempfile::tempdir().unwrap();
    // As many heads as GPT-2 small, each with a map of its own.
    let tokenizer = embedded::tokenizer().unwrap();
    let config = Config::new(12, 12, 48, tokenizer.vocab_size(), 128);
    let model = Gpt2::new(config.clone(), |name| initial::draw(&config, 0)(name)).unwrap();
    write_model(dir.path(), &model, Some(&tokenizer)).unwrap();
    let prompt = "Mary and John went to the shop and John gave a drink to Mary ".repeat(4);
    let limit = 300_000_000;
    let attention =
        Interp::new().words("attention --layer all --memory 300MB --model").arg(dir.path()).arg("--prompt").arg(prompt);
    let outcome = attention.run().ok();
    let peak = outcome.record()["memory"]["peak"].as_u64().unwrap();
    assert!(peak < limit, "{peak} bytes of {limit}");
    // What did not fit is said, with its size, and leaves the picture without pixels.
    assert!(outcome.stderr.contains("note: ") && outcome.stderr.contains("figure.png"), "{}", outcome.stderr);
    assert!(outcome.record()["figure"].as_str().unwrap().contains("--memory leaves"));
    assert!(outcome.output().join("figure.svg").exists());
}
