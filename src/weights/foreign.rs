//! Files and folders of other programs: named for what they are, with the next step.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::header::read_small;
use crate::error::shorten;

/// Bytes at the start of a file that say what it is.
const HEAD: u64 = 512;

/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// Files beside weights that PyTorch writes and that hold no weights.
const NO_WEIGHTS: [&str; 5] = ["training_args", "optimizer", "scheduler", "rng_state", "scaler"];

/// What stands in place of a large file in a repository that was cloned without Git LFS (or Xet).
///
/// A pointer is a short text that says where the file is.
pub(super) fn pointer(head: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&head[..head.len().min(HEAD as usize)]).into_owned();
    let is_lfs = ["version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/"]
        .iter()
        .any(|start| text.starts_with(start));
    let is_xet = text.starts_with("# xet version");
    if !is_lfs && !is_xet {
        return None;
    }
    let size = text.lines().find_map(|line| {
        let size = line.strip_prefix("size ").or_else(|| line.strip_prefix("filesize = "))?.trim();
        size.parse::<u64>().ok()
    });
    let of = size.map_or(String::new(), |size| format!(" of {size} bytes"));
    let (kind, tool) = if is_lfs { ("Git LFS", "git lfs pull") } else { ("Git Xet", "git xet checkout") };
    Some(format!(
        "is a {kind} pointer, not the file itself: fetch the file{of} with `{tool}` in its repository, or download it again"
    ))
}

/// Whether PyTorch wrote a file, going by its first bytes: a zip archive with a pickle in it, or a pickle.
pub(super) fn is_torch(path: &Path, head: &[u8]) -> bool {
    let zip = head.starts_with(b"PK\x03\x04") && !matches!(extension(path), "npz" | "keras" | "zip" | "mar");
    // The length of a safetensors header may begin with the same two bytes, but it ends with zeros.
    let framed = matches!(head, [0x80, 4 | 5, 0x95, ..]);
    zip || framed || (matches!(head, [0x80, 2..=5, ..]) && head.get(4..8) != Some(&[0; 4]))
}

/// What a file is that was taken for weights in safetensors, as far as its first bytes or its name say it.
pub(super) fn name(path: &Path, head: &[u8]) -> Option<String> {
    if let Some(what) = pointer(head) {
        return Some(what);
    }
    let shown = path.display();
    let text = String::from_utf8_lossy(head).trim_start().to_lowercase();
    let tar = head.get(257..262) == Some(b"ustar");
    let tensorflow = "TensorFlow's weights, which are not read: load them with transformers 4 \
                      (GPT2LMHeadModel.from_pretrained(DIR, from_tf=True)) and save them with save_pretrained";
    let what = match extension(path) {
        _ if head.starts_with(b"GGUF") || [&b"lmgg"[..], b"tjgg", b"fmgg"].iter().any(|m| head.starts_with(m)) => {
            "a GGUF file of llama.cpp, which is not read: take the model's safetensors or PyTorch files, or let \
             transformers unpack it (from_pretrained(DIR, gguf_file=FILE)) and save it with save_pretrained"
        }
        _ if head.starts_with(b"\x89HDF\r\n\x1a\n") => tensorflow,
        _ if head.starts_with(b"\x93NUMPY") => "an array of NumPy, not a model",
        _ if head.get(4..8) == Some(b"TFL3") => "a TensorFlow Lite program, from which no weights are read",
        _ if text.starts_with("<!doctype") || text.starts_with("<html") => {
            "a web page, perhaps a log-in or an error in place of the file: download it again"
        }
        "ot" => "weights for rust-bert, which are not read: take the model's safetensors or PyTorch files",
        "npz" | "keras" | "zip" | "mar" if head.starts_with(b"PK") => "a zip archive, not weights: unpack it first",
        _ if is_torch(path, head) => {
            return Some(format!(
                "is a pickle, which is not loaded: make a model of it with `interp models convert {shown}`"
            ));
        }
        _ if head.starts_with(b"\x1f\x8b") || head.starts_with(b"\x28\xb5\x2f\xfd") || tar => {
            "an archive, not weights: unpack it first"
        }
        "h5" | "pb" | "index" | "meta" => tensorflow,
        "msgpack" => FLAX,
        "onnx" => "an ONNX program, from which no weights are read: take the model that it was exported from",
        "mlmodel" => "a Core ML program, from which no weights are read",
        _ if shown.to_string().contains(".ckpt.data-") => tensorflow,
        _ => return None,
    };
    Some(format!("is {what}"))
}

const FLAX: &str = "Flax's weights, which are not read: load them with transformers 4 \
                    (GPT2LMHeadModel.from_pretrained(DIR, from_flax=True)) and save them with save_pretrained";

/// The first bytes of a regular file; none where there is no such file.
pub(super) fn head(path: &Path) -> Option<Vec<u8>> {
    let file: File = super::header::open_regular(path).ok()?;
    let mut head = Vec::new();
    file.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Names of the entries of a folder, sorted.
fn entries(dir: &Path) -> Vec<String> {
    let Ok(all) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = all.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Files of a folder that may hold PyTorch's weights, other than `pytorch_model.bin` and its shards.
pub(super) fn torch_candidates(dir: &Path) -> Vec<String> {
    let is_weights = |name: &String| {
        let stem = name.split('.').next().unwrap_or("");
        let known = ["pt", "pth", "bin", "ckpt"].contains(&extension(Path::new(name)));
        known
            && !NO_WEIGHTS.iter().any(|none| stem.starts_with(none))
            && !stem.starts_with("adapter_model")
            && head(&dir.join(name)).is_some_and(|head| is_torch(Path::new(name), &head) || pointer(&head).is_some())
    };
    entries(dir).into_iter().filter(is_weights).collect()
}

/// What a folder holds in place of safetensors, and the next step.
pub(super) fn in_folder(dir: &Path) -> Option<String> {
    let names = entries(dir);
    let find = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name)).map(|name| shorten(name));
    let shown = dir.display();
    if let Some(adapter) = find(&|name| name == "adapter_config.json" || name.starts_with("adapter_model.")) {
        let base = read_small(&dir.join("adapter_config.json"), 1 << 20)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
            .and_then(|config| Some(shorten(config.get("base_model_name_or_path")?.as_str()?)))
            .map_or(String::new(), |base| format!(" for `{base}`"));
        return Some(format!(
            "{adapter} is of an adapter (PEFT){base}, not of a whole model: merge it into its base model with peft's \
             merge_and_unload() and save that with save_pretrained"
        ));
    }
    if let Some(torch) = find(&|name| name == "pytorch_model.bin" || name == "pytorch_model.bin.index.json") {
        return Some(format!(
            "{torch} is a pickle, which is not loaded: make a model of it with `interp models convert {shown}`"
        ));
    }
    if let Some(other) = find(&|name| name.ends_with(".safetensors")) {
        return Some(format!("{other} has another name: if it is the model, name that file"));
    }
    if let Some(torch) = torch_candidates(dir).first() {
        let torch = shorten(torch);
        return Some(format!(
            "{torch} is a pickle, which is not loaded: make a model of it with `interp models convert {shown}/{torch}`"
        ));
    }
    let tensorflow = |name: &str| name == "saved_model.pb" || name.ends_with(".ckpt.index") || name.ends_with(".h5");
    let known = |name: &str| {
        tensorflow(name)
            || ["msgpack", "gguf", "onnx", "tflite", "ot", "npz", "keras"].contains(&extension(Path::new(name)))
    };
    if let Some(file) = names.iter().find(|name| known(name)) {
        let path = dir.join(file);
        let mut head = head(&path).unwrap_or_default();
        if pointer(&head).is_some() {
            head.clear(); // what it is pointed to matters more than that it is a pointer
        }
        let what = match extension(&path) {
            "gguf" => self::name(&path, b"GGUF"),
            "tflite" => self::name(&path, b"....TFL3"),
            "npz" | "keras" => self::name(&path, b"PK"),
            _ => self::name(&path, &head),
        };
        return what.map(|what| format!("{} {what}", shorten(file)));
    }
    if names.iter().any(|name| name == "snapshots") && names.iter().any(|name| name == "blobs" || name == "refs") {
        return Some(
            "it is a repository of the Hugging Face cache: name it as owner/name, or a folder in snapshots".into(),
        );
    }
    let steps = names.iter().filter(|name| name.starts_with("checkpoint-") && dir.join(name).is_dir());
    if let Some(last) = steps.max_by_key(|name| name["checkpoint-".len()..].parse::<u64>().unwrap_or(0)) {
        return Some(format!(
            "it holds the checkpoints of a training: name one of them, such as {shown}/{}",
            shorten(last)
        ));
    }
    None
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_recognised_by_their_first_line() {
        let text = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n";
        let what = pointer(text).unwrap();
        assert!(what.contains("Git LFS pointer") && what.contains("548105171 bytes") && what.contains("git lfs pull"));
        assert!(pointer(b"# xet version 0\nfilesize = 12\nhash = 'x'\n").unwrap().contains("12 bytes"));
        for other in [&b""[..], b"version 1", b"version https://example.org/spec", b"{\"a\": 1}"] {
            assert!(pointer(other).is_none());
        }
    }

    #[test]
    fn files_are_named_by_their_first_bytes() {
        for (file, head, wanted) in [
            ("x.gguf", &b"GGUF\x03\0\0\0"[..], "GGUF"),
            ("model.safetensors", b"GGUF\x03\0\0\0", "GGUF"),
            ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "from_tf=True"),
            ("model.ckpt.index", b"\0\0", "from_tf=True"),
            ("model.ckpt.data-00000-of-00001", b"\0\0", "from_tf=True"),
            ("flax_model.msgpack", b"\x81", "from_flax=True"),
            ("model.onnx", b"\x08\x07", "ONNX"),
            ("64.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
            ("model.safetensors", b"PK\x03\x04", "interp models convert model.safetensors"),
            ("model.safetensors", b"\x80\x02}q", "interp models convert"),
            ("model.safetensors", b"\n<!DOCTYPE html><html>", "a web page"),
            ("weights.npz", b"PK\x03\x04", "a zip archive"),
            ("model.tgz", b"\x1f\x8b", "unpack it first"),
            ("rust_model.ot", b"PK\x03\x04", "rust-bert"),
        ] {
            let what = name(Path::new(file), head).unwrap_or_default();
            assert!(what.contains(wanted), "{file}: {what}");
        }
        assert!(name(Path::new("model.safetensors"), &[40, 0, 0, 0, 0, 0, 0, 0, b'{']).is_none());
    }
}
