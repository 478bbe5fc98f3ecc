//! The architecture, as a test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules by floor: a module may use its own floor and those below.
const FLOORS: [&[&str]; 5] = [
    &[
        "error",
        "device",
        "driver",
        "site",
        "span",
        "influence",
        "reads",
        "hooks",
        "disk",
        "limits",
        "memory",
        "process",
        "random",
    ],
    &["config", "tokens", "ops", "kv", "gpt2", "weights", "text"],
    &[
        "edit",
        "effect",
        "plan",
        "frame",
        "shard",
        "dataset",
        "gather",
        "arrivals",
        "folds",
        "labelled",
        "task",
        "slots",
        "ranking",
        "sampling",
        "optim",
        "dropout",
        "freeze",
        "initial",
        "recipe",
        "language",
        "corpus",
        "texts",
        "textset",
        "metric",
        "pair",
        "pairfile",
        "pairset",
        "stats",
        "scores",
        "fit",
        "sweep",
        "trunk",
        "circuits",
        "graph",
        "convention",
        "target",
        "stack",
        "direction",
        "generate",
        "oracle",
        "published",
        "embedded",
        "subspace",
        "suite",
        "study",
        "run_dir",
    ],
    &[
        "ablate",
        "answers",
        "attention",
        "attribution",
        "behave",
        "capture",
        "card",
        "catalogue",
        "composition",
        "detector",
        "edges",
        "export",
        "faithful",
        "heads",
        "interchange",
        "lens",
        "neurons",
        "patch",
        "paths",
        "perplexity",
        "predict",
        "probe",
        "prune",
        "residual",
        "saliency",
        "steer",
        "train",
    ],
    &["figure", "page", "notebook", "verify", "known", "speed", "agreement"],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// Every source file below src/, as a path from there.
fn sources() -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let (src, mut found) = (root().join("src"), Vec::new());
    walk(&src, &mut found);
    let mut names: Vec<String> =
        found.iter().map(|path| path.strip_prefix(&src).unwrap().to_str().unwrap().to_string()).collect();
    names.sort();
    names
}

/// The code of a file without its tests and comments.
fn code(file: &str) -> String {
    let text = std::fs::read_to_string(root().join("src").join(file)).unwrap();
    if text.contains("#![cfg(test)]") {
        return String::new();
    }
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_string();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn module(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Names after `crate::` in a text.
fn used(code: &str) -> BTreeSet<String> {
    code.split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|name: &String| name.chars().next().is_some_and(char::is_lowercase))
        .collect()
}

#[test]
fn modules_use_only_their_own_floor_and_those_below() {
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(i, names)| names.iter().map(move |name| (*name, i))).collect();
    for file in sources().iter().filter(|file| file.ends_with(".rs")) {
        let name = module(file);
        if ["lib", "main", "cli"].contains(&name) {
            continue;
        }
        let own = *floor.get(name).unwrap_or_else(|| panic!("{file} stands on no floor"));
        for other in used(&code(file)) {
            let below =
                *floor.get(other.as_str()).unwrap_or_else(|| panic!("{file} uses {other}, which is on no floor"));
            assert!(below <= own, "{file} (floor {}) uses {other} (floor {})", own + 1, below + 1);
            // Analyses do not lean on each other: what they share goes a floor down.
            assert!(own != 3 || below != 3 || other == name, "{file} uses its neighbour {other}");
        }
    }
}

#[test]
fn the_readme_maps_exactly_the_files_of_src() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let map = readme.split("```text\nsrc/").nth(1).expect("README has a map").split("```").next().unwrap();
    let mut mapped = Vec::new();
    let mut folders: Vec<(usize, &str)> = Vec::new();
    for line in map.lines().skip(1) {
        let depth = line.len() - line.trim_start().len();
        let name = line.split_whitespace().next().unwrap_or("");
        folders.retain(|(own, _)| *own < depth);
        if name.ends_with('/') {
            folders.push((depth, name));
        } else if !name.is_empty() && !name.starts_with('#') && name.contains('.') {
            let folder: String = folders.iter().map(|(_, name)| *name).collect();
            mapped.push(folder + name);
        }
    }
    mapped.sort();
    let sources: Vec<String> = sources().into_iter().filter(|file| file.ends_with(".rs")).collect();
    assert_eq!(mapped, sources);
}

#[test]
fn the_library_never_prints_and_keeps_no_state() {
    for file in sources().iter().filter(|file| file.ends_with(".rs") && !file.starts_with("cli/") && *file != "main.rs")
    {
        let code = code(file);
        for word in ["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!("] {
            // What a notebook shows is printed: that is evcxr's protocol.
            let allowed = file == "notebook.rs" && word == "println!(" && code.contains("EVCXR_BEGIN_CONTENT");
            let found = code.matches(word).count() - code.matches(&format!("e{word}")).count();
            assert!(found == usize::from(allowed), "{file} has {found} of {word}");
        }
        for word in ["static mut", "lazy_static", "OnceLock", "OnceCell", "thread_local!", "Mutex<"] {
            // Gradients come back through an operation that is shared; what it keeps is its trace's own.
            let allowed = file == "ops/tap.rs" && word == "Mutex<";
            assert!(allowed || !code.contains(word), "{file} keeps state in {word}");
        }
        for word in ["rand::rng()", "thread_rng", "from_os_rng", "SystemTime::now", "Tensor::rand"] {
            assert!(!code.contains(word), "{file} draws randomness or time from {word}");
        }
    }
}

#[test]
fn the_library_touches_the_disk_only_where_a_name_says_so() {
    let verbs = [
        "load", "save", "open", "read", "write", "remove", "find", "download", "cached", "sha256", "of_file",
        "from_env",
    ];
    for file in sources().iter().filter(|file| file.ends_with(".rs") && !file.starts_with("cli/") && *file != "main.rs")
    {
        // Private helpers of the weights module are reached through such a name only.
        if file.starts_with("weights/") || file == "memory.rs" {
            continue;
        }
        let code = code(file);
        let mut function = String::new();
        for line in code.lines() {
            if let Some(rest) = line.split("fn ").nth(1) {
                function = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            }
            let touches = ["std::fs::", "File::open", "File::create"].iter().any(|word| line.contains(word));
            let named = verbs.iter().any(|verb| function.contains(verb)) || function == "sync_dir";
            assert!(!touches || line.starts_with("use ") || named, "{file}: `{function}` touches the disk: {line}");
        }
    }
}

#[test]
fn unsafe_code_is_where_it_is_explained() {
    for file in sources().iter().filter(|file| file.ends_with(".rs")) {
        let text = std::fs::read_to_string(root().join("src").join(file)).unwrap();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
            let before: Vec<&str> = text.lines().take(i).collect();
            let explained = before.iter().rev().take(5).any(|line| line.contains("// SAFETY:"));
            assert!(explained, "{file}:{}: {line}", i + 1);
        }
    }
}
