//! The notebooks' cells compile and run as they stand.
//!
//! Their code is kept beside this file, one function per notebook, so that a change of the library that breaks a cell breaks
//! this test; `INTERP_WRITE_CELLS=1 cargo test --release --test notebooks` takes it over from the notebooks.

use std::path::{Path, PathBuf};

macro_rules! notebooks {
    ($($name:ident $file:literal)*) => {
        $(
            #[allow(warnings, clippy::all)]
            mod $name {
                include!(concat!("notebooks/", $file, ".rs"));
            }

            #[test]
            fn $name() {
                // Relative paths in cells are those of the notebook's directory.
                std::env::set_current_dir(folder()).unwrap();
                self::$name::run().unwrap();
            }
        )*

        const FILES: &[&str] = &[$($file),*];
    };
}

notebooks! {
    first_look "01-first-look"
    hooks_and_edits "02-hooks-and-edits"
    finding_the_heads "03-finding-the-heads"
    probes "04-probes"
    activation_datasets "05-activation-datasets"
    steering_and_finetuning "06-steering-and-finetuning"
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks")
}

/// The code cells of a notebook.
fn cells(path: &Path) -> Vec<String> {
    let book: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cells = book["cells"].as_array().unwrap().iter().filter(|cell| cell["cell_type"] == "code");
    let text = |cell: &serde_json::Value| {
        cell["source"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect::<String>()
    };
    cells.map(text).collect()
}

/// Cells as one function. A cell's last expression is what a notebook shows; here it becomes a statement.
fn function(file: &str, cells: &[String]) -> String {
    let mut code = format!(
        "// The cells of notebooks/{file}.ipynb: see tests/notebooks.rs.\npub fn run() -> Result<(), Box<dyn std::error::Error>> {{\n"
    );
    for cell in cells {
        let lines: Vec<&str> = cell.lines().filter(|line| !line.starts_with(':')).collect();
        code += lines.join("\n").trim_end();
        code += if code.ends_with([';', '}']) || lines.is_empty() { "\n\n" } else { ";\n\n" };
    }
    code + "Ok(())\n}\n"
}

#[test]
fn the_code_here_is_that_of_the_notebooks() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/notebooks");
    for file in FILES {
        let wanted = function(file, &cells(&folder().join(format!("{file}.ipynb"))));
        let kept = tests.join(format!("{file}.rs"));
        if std::env::var_os("INTERP_WRITE_CELLS").is_some() {
            std::fs::write(&kept, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&kept).unwrap();
        assert!(found == wanted, "{file}: the notebook was changed; INTERP_WRITE_CELLS=1 takes its cells over");
    }
}

#[test]
fn every_notebook_is_here_tidy_and_shows_its_figures() {
    let mut found: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().into_string().unwrap().strip_suffix(".ipynb").map(str::to_string)
        })
        .collect();
    found.sort();
    let (python, rust): (Vec<String>, Vec<String>) = found.into_iter().partition(|name| name.contains("python"));
    assert_eq!((rust, python.len()), (FILES.iter().map(|file| file.to_string()).collect(), 1));
    for file in FILES.iter().copied().chain(python.iter().map(String::as_str)) {
        let path = folder().join(format!("{file}.ipynb"));
        let book: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let all = book["cells"].as_array().unwrap();
        assert!(all.len() <= 20, "{file} has {} cells", all.len());
        let opens = file.contains("python") || cells(&path)[1].contains("open(\"tiny\")");
        assert!(opens, "{file}: the second code cell opens the model");
        let outputs = || all.iter().filter_map(|cell| cell["outputs"].as_array()).flatten();
        assert!(outputs().all(|output| output["output_type"] != "error"), "{file} holds an error");
        let shown = |output: &serde_json::Value| {
            let html = output["data"]["text/html"].to_string();
            !output["data"]["image/svg+xml"].is_null() || html.contains("<svg")
        };
        let pictures = outputs().filter(|output| shown(output)).count();
        assert!(pictures > 0, "{file} was committed without its figures");
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["/home/", "/root/", "/tmp/", "/Users/"] {
            assert!(!text.contains(word), "{file} names a path of one machine: {word}");
        }
    }
}
