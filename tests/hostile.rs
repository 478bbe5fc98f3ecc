//! Bad input: one line that says what is wrong, the right exit code, no panic, nothing written, in no time to speak of.
//!
//! The files are in `tests/fixtures/hostile`, made by `tests/fixtures/make_hostile.py`.

mod common;
#[path = "common/process.rs"]
mod process;

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use candle_core::{DType, Device};
use common::fixture;
use interp::random::{Rng, stream};
use interp::text::{Bos, Encoding};
use interp::weights::Checkpoint;
use interp::{Config, Error, Tokenizer, embedded};
use process::{Interp, files};

/// Enough for the binary and the built-in model, far too little for anything that a hostile header promises.
const MEMORY: u64 = 3 << 30;
/// Seconds of processor time, of which each takes a tenth of one.
const QUICK: u64 = 10;

fn refuse(name: &str, interp: Interp, code: i32, wanted: &str) {
    let outcome = interp.limit_memory(MEMORY).limit_cpu(QUICK).run();
    println!("{name}: {}", outcome.stderr.trim_end());
    outcome.refused(code, wanted);
}

#[test]
fn weights_are_checked_before_they_are_loaded() {
    let cases = [
        ("empty", "header: 0 bytes is too short"),
        ("seven_bytes", "header: 7 bytes is too short"),
        ("header_length_0", "header: EOF while parsing"),
        ("header_longer_than_file", "header: claims 1048576 bytes"),
        ("header_length_2_63", "header: claims 9223372036854775808 bytes"),
        ("header_not_utf8", "header: not UTF-8"),
        ("header_not_json", "header: expected value"),
        ("header_is_array", "header: invalid type: sequence"),
        ("header_nested", "header: "),
        ("offsets_overlap", "tensor `h.0.ln_2.bias` is at bytes"),
        ("offsets_hole", "where one should start at"),
        ("offsets_negative", "tensor `wte.weight`: invalid value: integer `-4`"),
        ("offsets_reversed", "tensor `wte.weight` is at bytes"),
        ("offsets_past_end", "where one should start at"),
        ("shape_overflow", "tensor `wte.weight`: the shape [4294967296, 4294967296, 4] overflows"),
        ("shape_size_mismatch", "tensor `wte.weight` of F32 [13, 9] needs 468 bytes but has 416"),
        ("data_cut", "the file is cut short; download it again"),
        ("data_too_long", "16 bytes follow the last tensor"),
        ("duplicate_tensor", "`wte.weight` appears twice"),
        ("missing_tensor", "missing h.0.attn.c_attn.weight; unexpected h.0.attn.c_attn.wait"),
        ("transposed", "h.0.attn.c_attn.weight has shape [24, 8] instead of [8, 24] (transposed"),
        ("many_differences", "missing wte.weight; wpe.weight; h.0.ln_1.weight; h.0.ln_1.bias"),
        ("dtype_i32", "wte.weight is I32; weights must be F64, F32, F16 or BF16"),
        ("dtype_unknown", "tensor `wte.weight`: unknown variant `F7`"),
        ("dtype_missing", "tensor `wte.weight`: missing field `dtype`"),
        ("zero_dimension", "unexpected extra"),
        ("rank_0", "tensor `h.0.ln_1.bias` of F32 [] needs 4 bytes but has 32"),
        ("tied_copy_differs", "lm_head.weight differs from wte.weight"),
    ];
    for (case, wanted) in cases {
        let dir = fixture("hostile/weights").join(case);
        refuse(case, Interp::new().words("models verify").arg(&dir), 65, wanted);
    }
    let tested: Vec<&str> = cases.iter().map(|case| case.0).collect();
    for entry in std::fs::read_dir(fixture("hostile/weights")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = tested.contains(&name.as_str()) || ["not_a_number", "infinite"].contains(&name.as_str());
        assert!(known, "{name} is in the corpus but not in the table");
    }
}

#[test]
fn weights_that_are_not_finite_warn_or_are_refused() {
    for (case, tensor) in [("not_a_number", "wte.weight"), ("infinite", "h.0.mlp.c_fc.weight")] {
        let dir = fixture("hostile/weights").join(case);
        let strict = Interp::new().words("sites --strict --model").arg(&dir);
        refuse(case, strict, 65, &format!("1 tensors hold values that are not finite, the first is {tensor}"));
        let lenient = Interp::new().words("sites --model").arg(&dir).run().ok();
        assert!(lenient.stderr.contains("warning: 1 tensors hold values that are not finite"), "{}", lenient.stderr);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = std::fs::read(fixture("parity/one/model.safetensors")).unwrap();
    let path = fixture("parity/one/config.json");
    let config = Config::parse(&std::fs::read(&path).unwrap(), &path).unwrap();
    Checkpoint::parse("whole", whole.clone(), &config).unwrap();
    for part in 0..50 {
        let cut = whole[..whole.len() * part / 50].to_vec();
        let error = Checkpoint::parse("cut", cut, &config).unwrap_err();
        assert!(matches!(error, Error::Data { .. }), "cut at {part}/50: {error}");
    }
}

#[test]
fn damaged_headers_never_panic() {
    let whole = std::fs::read(fixture("parity/one/model.safetensors")).unwrap();
    let path = fixture("parity/one/config.json");
    let config = Config::parse(&std::fs::read(&path).unwrap(), &path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut rng = stream(1, "damage", 0);
    let mut accepted = 0;
    for _ in 0..60_000 {
        let mut damaged = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..header);
            damaged[at] = match rng.random_range(0..3) {
                0 => rng.random(),
                1 => damaged[at] ^ (1 << rng.random_range(0..8)),
                _ => *b"{}[]\",:0123456789-e.".get(rng.random_range(0..20_usize)).unwrap(),
            };
        }
        // What is accepted must also load: the check promised that every tensor is where it says.
        if let Ok(checkpoint) = Checkpoint::parse("damaged", damaged, &config) {
            checkpoint.load(DType::F32, &Device::Cpu).unwrap();
            accepted += 1;
        }
    }
    println!("{accepted} of 60000 damaged headers still describe the model");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error_and_not_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    std::fs::copy(fixture("parity/one/model.safetensors"), &file).unwrap();
    let path = fixture("parity/one/config.json");
    let config = Config::parse(&std::fs::read(&path).unwrap(), &path).unwrap();
    let checkpoint = Checkpoint::open(std::slice::from_ref(&file), &config).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(2000).unwrap();
    let error = checkpoint.load(DType::F32, &Device::Cpu).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn configs_are_checked_field_by_field() {
    let cases = [
        ("not_json", "not JSON"),
        ("array", "not a JSON object"),
        ("not_gpt2", "model_type is \"llama\"; only gpt2 is supported"),
        ("no_type", "model_type is missing"),
        ("n_head_0", "n_head is 0; it must be an integer in 1..=64"),
        ("n_head_indivisible", "n_embd 8 is not divisible by n_head 3"),
        ("n_layer_huge", "n_layer is 1000000000; it must be an integer in 1..=96"),
        ("n_layer_negative", "n_layer is -1"),
        ("n_layer_float", "n_layer is 1.5"),
        ("n_layer_missing", "n_layer is missing"),
        ("n_layer_string", "n_layer is \"1\""),
        ("vocab_huge", "vocab_size is 1099511627776; it must be an integer in 1..=1000000"),
        ("activation", "activation_function is \"relu\"; gelu_new and gelu are supported"),
        ("epsilon_0", "layer_norm_epsilon is 0"),
        ("epsilon_string", "layer_norm_epsilon is \"nan\""),
        ("inverse_layer", "scale_attn_by_inverse_layer_idx is true; only false is supported"),
        ("unscaled", "scale_attn_weights is false; only true is supported"),
        ("tie_string", "tie_word_embeddings is \"yes\"; it must be true or false"),
        ("other_width", "differs from config.json: "),
        ("nested", "not JSON"),
    ];
    for (case, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let config = fixture("hostile/config").join(case).join("config.json");
        std::fs::copy(config, dir.path().join("config.json")).unwrap();
        std::fs::copy(fixture("parity/one/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        refuse(case, Interp::new().words("sites --model").arg(dir.path()), 65, wanted);
    }
    let huge = tempfile::tempdir().unwrap();
    std::fs::write(huge.path().join("config.json"), vec![b' '; 100 << 20]).unwrap();
    std::fs::copy(fixture("parity/one/model.safetensors"), huge.path().join("model.safetensors")).unwrap();
    refuse("100 MB", Interp::new().words("sites --model").arg(huge.path()), 65, "larger than the 1048576 bytes");
}

#[test]
fn indices_lead_nowhere_else() {
    let cases = [
        ("not_json", 65, "not an index"),
        ("no_map", 65, "missing field `weight_map`"),
        ("empty", 65, "names 0 shards"),
        ("parent", 65, "shard `../parity/one/model.safetensors` is not the name of a file beside it"),
        ("absolute", 65, "shard `/etc/passwd` is not the name of a file beside it"),
        ("hidden", 65, "shard `.hidden` is not the name of a file beside it"),
        ("missing_shard", 66, "model-00001-of-00002.safetensors: no such file"),
    ];
    for (case, code, wanted) in cases {
        let dir = fixture("hostile/index").join(case);
        refuse(case, Interp::new().words("sites --model").arg(dir), code, wanted);
    }
}

#[test]
fn paths_that_are_no_model_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let sites = |path: &Path| Interp::new().words("sites --model").arg(path);
    std::fs::create_dir(at("empty")).unwrap();
    refuse("empty directory", sites(&at("empty")), 66, "no config.json");
    refuse("nothing", sites(&at("nothing.safetensors")), 66, "no such file or directory");
    std::os::unix::fs::symlink(at("gone"), at("dangling.safetensors")).unwrap();
    refuse("dangling link", sites(&at("dangling.safetensors")), 66, "no such file or directory");
    std::os::unix::fs::symlink(at("b.safetensors"), at("a.safetensors")).unwrap();
    std::os::unix::fs::symlink(at("a.safetensors"), at("b.safetensors")).unwrap();
    let looping = sites(&at("a.safetensors")).run();
    assert!([Some(66), Some(74)].contains(&looping.code), "{looping:?}");
    std::fs::write(at("model.pt"), b"\x80\x02}q\x00.").unwrap();
    refuse("pickle", sites(&at("model.pt")), 65, "model.pt: is a pickle, which is not loaded");
    std::fs::create_dir(at("torch")).unwrap();
    std::fs::copy(fixture("parity/one/config.json"), at("torch/config.json")).unwrap();
    std::fs::write(at("torch/pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
    refuse("pickle in a directory", sites(&at("torch")), 66, "pytorch_model.bin is a pickle");
    std::fs::copy(fixture("parity/one/model.safetensors"), at("lonely.safetensors")).unwrap();
    refuse("no config", sites(&at("lonely.safetensors")), 66, "no config.json beside it");
    refuse("a device", sites(Path::new("/dev/zero")), 66, "neither a file nor a directory");
    let fifo = std::ffi::CString::new(at("torch/model.safetensors").to_str().unwrap()).unwrap();
    // SAFETY: a valid C string and a mode.
    #[allow(unsafe_code)]
    let made = unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) };
    assert_eq!(made, 0);
    refuse("a pipe, which would hang", sites(&at("torch")), 66, "not a regular file, where a file is wanted");
    for name in ["no-such-model", "../x", "owner/../x", "a/b/c", "x\u{1b}[2Jy", "owner/name@../../x"] {
        let outcome = Interp::new().words("sites --model").arg(name).limit_memory(MEMORY).run();
        assert!([Some(2), Some(66)].contains(&outcome.code), "{name}: {outcome:?}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        assert!(!outcome.stderr.contains('\u{1b}'), "{outcome:?}");
    }
}

#[test]
fn one_flipped_bit_is_found_where_a_hash_is_known() {
    use interp::weights::sha256_of;
    let whole = std::fs::read(fixture("parity/one/model.safetensors")).unwrap();
    let digest = sha256_of(&whole);
    let mut flipped = whole.clone();
    let last = flipped.len() - 2;
    flipped[last] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("parity/one/config.json"), dir.path().join("config.json")).unwrap();
    let file = dir.path().join("model.safetensors");
    let verify = || Interp::new().words("models verify --sha256").arg(&digest).arg(&file);
    std::fs::write(&file, &whole).unwrap();
    verify().run().ok();
    std::fs::write(&file, &flipped).unwrap();
    let outcome = verify().run();
    assert_eq!(outcome.code, Some(65), "{outcome:?}");
    assert!(outcome.stdout.contains("FAIL") && outcome.stderr.contains(&format!("expected {digest}")), "{outcome:?}");
    // In the Hugging Face cache the name of a blob is its hash: there even loading refuses.
    let hub = tempfile::tempdir().unwrap();
    let repo = hub.path().join("models--a--b");
    let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("blobs")).unwrap();
    std::fs::copy(fixture("parity/one/config.json"), snapshot.join("config.json")).unwrap();
    std::fs::write(snapshot.join("tokenizer.json"), byte_tokenizer()).unwrap();
    let blob = repo.join("blobs").join(&digest);
    std::os::unix::fs::symlink(&blob, snapshot.join("model.safetensors")).unwrap();
    let info = || Interp::new().words("models info a/b").env("HF_HUB_CACHE", hub.path());
    std::fs::write(&blob, &whole).unwrap();
    let intact = info().run();
    assert!(intact.stderr.contains("belongs to another model") || intact.code == Some(0), "{intact:?}");
    std::fs::write(&blob, &flipped).unwrap();
    refuse("flipped bit in the cache", info(), 65, "but the cache promises");
}

/// A tokenizer of 13 bytes, to go with the model of 13 tokens.
fn byte_tokenizer() -> String {
    let vocab: Vec<String> = ('a'..='m').enumerate().map(|(i, c)| format!("\"{c}\": {i}")).collect();
    format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
        "post_processor": null, "decoder": null, "model": {{"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "ignore_merges": false, "vocab": {{{}}}, "merges": []}}}}"#,
        vocab.join(", ")
    )
}

#[test]
fn tokenizers_of_another_kind_are_refused() {
    let cases = [
        ("not_json", "not a tokenizer"),
        ("empty_object", "not a tokenizer"),
        ("word_level", "not a BPE tokenizer"),
        ("no_pre_tokenizer", "its pre-tokenizer is not ByteLevel"),
        ("own_regex", "its pre-tokenizer is not ByteLevel"),
        ("normalizer", "it has a normalizer"),
        ("larger_than_model", "belongs to another model"),
    ];
    for (case, wanted) in cases {
        let path = fixture("hostile/tokenizer").join(case).join("tokenizer.json");
        refuse(case, Interp::new().words("tokens --prompt a --tokenizer").arg(path), 65, wanted);
    }
    let none = Interp::new().words("tokens --prompt a --model").arg(fixture("parity/one"));
    refuse("no tokenizer", none, 66, "no tokenizer beside the model; name one with --tokenizer");
}

#[test]
fn prompts_that_cannot_be_read_are_refused() {
    let tokens = || Interp::new().words("tokens");
    let not_utf8 = std::ffi::OsString::from_vec(b"caf\xe9".to_vec());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let long = "word ".repeat(400);
    refuse("empty", tokens().arg("--prompt").arg(""), 2, "prompt 0 is empty; give text, or --bos yes");
    refuse("no text", tokens(), 2, "no text: give --prompt TEXT, --file PATH, or - for standard input");
    refuse(
        "too long",
        tokens().arg("--prompt").arg(&long),
        2,
        "tokens; this model reads at most 256: shorten it or pass --truncate",
    );
    refuse(
        "argument not UTF-8",
        tokens().arg("--prompt").arg(&not_utf8),
        65,
        "prompt 0: not UTF-8 at byte 3; pass --lossy",
    );
    let bad = file("bad.txt", b"fine\n\xff\xfe\n");
    refuse("file not UTF-8", tokens().arg("--file").arg(&bad), 65, "not UTF-8 at byte 5");
    refuse("stdin not UTF-8", tokens().arg("-").stdin(b"ab\xff".to_vec()), 65, "standard input: not UTF-8 at byte 2");
    refuse("empty stdin", tokens().arg("-").stdin(Vec::new()), 2, "standard input holds no text");
    refuse("no file", tokens().words("--file nothing.txt"), 66, "nothing.txt: no such file");
    refuse("a directory", tokens().arg("--file").arg(dir.path()), 66, "a directory, where a file is wanted");
    let jsonl = file("x.jsonl", b"{\"text\": \"a\"}\n{\"txet\": \"b\"}\n");
    refuse("no text field", tokens().arg("--file").arg(&jsonl), 65, "line 2: no text field");
    let broken = file("y.jsonl", b"{\"text\": \n");
    refuse("broken JSONL", tokens().arg("--file").arg(&broken), 65, "line 1: not JSON");
    refuse("two sources", tokens().words("--prompt a -").stdin(b"b".to_vec()), 2, "not by several");
    refuse("a stray word", tokens().arg("hello"), 2, "`hello` is not an option; write --prompt TEXT");
    refuse("spaces", tokens().arg("-").stdin(" ".repeat(1_100_000).into_bytes()), 2, "holds no text");
    let spaces = format!("a{}b", " ".repeat(1_040_000));
    refuse("spaces inside", tokens().arg("-").stdin(spaces.into_bytes()), 2, "more than 65536 spaces in a row");
    refuse(
        "10 MB",
        tokens().arg("-").stdin(vec![b'a'; 10 << 20]),
        2,
        "prompt has 10485760 bytes; at most 1048576 are read",
    );
    refuse("digits", tokens().arg("-").stdin(vec![b'7'; 1_000_000]), 2, "tokens; this model reads at most 256");
    // The ways out that the messages name work.
    tokens().words("--bos yes --prompt").arg("").run().ok();
    let cut = tokens().words("--truncate left --format json --prompt").arg(&long).run().ok();
    assert_eq!(cut.stdout.matches("\"token_id\"").count(), 256);
    let lossy = tokens().words("--lossy --prompt").arg(&not_utf8).run().ok();
    assert!(lossy.stdout.contains("caf"), "{}", lossy.stdout);
    let right = tokens().words("--truncate right --format json --prompt").arg(&long).run().ok();
    assert_eq!(right.stdout.matches("\"token_id\"").count(), 256);
}

#[test]
fn any_text_survives_the_tokenizer() {
    let mut tokenizers = vec![embedded::tokenizer().unwrap()];
    if let Some(dir) = std::env::var_os("INTERP_GPT2_TOKENIZER") {
        tokenizers.push(Tokenizer::load(Path::new(&dir)).unwrap());
    }
    let odd = [
        "\0",
        "\r\n",
        "\t",
        "\u{feff}",
        "\u{202e}",
        "e\u{301}\u{301}",
        "👩‍👩‍👧‍👦",
        "\u{fffe}",
        "\u{a0}",
        "ﬁ",
        "  ",
        "<|endoftext|>",
        "<|end",
        "'s",
        "\u{85}",
    ];
    for tokenizer in &tokenizers {
        let plain = Encoding { bos: Bos::No, allow_special: false };
        let mut rng = stream(2, "text", 0);
        for i in 0..10_000 {
            let text: String = (0..rng.random_range(1..20))
                .map(|_| match rng.random_range(0..4) {
                    0 => odd[rng.random_range(0..odd.len())].to_string(),
                    1 => rng.random::<char>().to_string(),
                    2 => char::from(rng.random_range(b' '..=b'~')).to_string(),
                    _ => ["the", " Mary", " gave", "12", " ...", "ing"][rng.random_range(0..6)].to_string(),
                })
                .collect();
            let ids = tokenizer.encode(&text, plain).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id).unwrap()).collect();
            assert_eq!(bytes, text.as_bytes(), "text {i}: {text:?}");
            assert_eq!(tokenizer.decode(&ids), text, "text {i}");
            assert!(!ids.contains(&tokenizer.end_of_text().unwrap()), "text {i}: {text:?} made a special token");
        }
        // The special token is text unless it is allowed, and never comes twice at the start.
        let eot = tokenizer.end_of_text().unwrap();
        let encode = |text: &str, bos, allow_special| tokenizer.encode(text, Encoding { bos, allow_special }).unwrap();
        assert_eq!(encode("<|endoftext|>a", Bos::No, true)[0], eot);
        assert_eq!(encode("a<|endoftext|>b", Bos::No, true).iter().filter(|id| **id == eot).count(), 1);
        assert_eq!(encode("<|endoftext|>a", Bos::Auto, true).iter().filter(|id| **id == eot).count(), 1);
        assert_eq!(encode("<|endoftext|>a", Bos::Yes, true).iter().filter(|id| **id == eot).count(), 2);
        assert_eq!(encode("a", Bos::Auto, false), [vec![eot], encode("a", Bos::No, false)].concat());
    }
}

#[test]
fn arguments_out_of_range_are_refused() {
    let attention = |more: &str| Interp::new().words("attention --prompt hello").words(more);
    refuse("layer 6", attention("--layer 6"), 2, "layer 6 is out of range 0..=5 (or -6..=-1)");
    refuse("layer -7", attention("--layer -7"), 2, "layer -7 is out of range 0..=5 (or -6..=-1)");
    refuse("layer 5.5", attention("--layer 5.5"), 2, "`5.5` is not a whole number");
    refuse("layer huge", attention("--layer 99999999999999999999"), 2, "is not a whole number");
    refuse("no layer", attention(""), 2, "which layer? give --layer 0..=5, or --head L.H");
    refuse("head 99", attention("--layer 1 --head 99"), 2, "head 99 is out of range 0..=3 (or -4..=-1)");
    refuse("head of another layer", attention("--layer 1 --head 2.1"), 2, "--head 2.1 is not in layer 1");
    refuse("head word", attention("--layer 1 --head x"), 2, "`x` is not a whole number");
    let capture = |site: &str| Interp::new().words("capture --prompt hello --site").arg(site);
    refuse("empty range", capture("resid_post.4-2"), 2, "the range 4-2 is empty; write 2-4");
    refuse("no such site", capture("resid_pots.1"), 2, "unknown site `resid_pots.1`; the nearest are resid_post.1");
    refuse("long name", capture("blocks.1.attn.hook_zz"), 2, "the nearest are blocks.1.attn.hook_z");
    refuse("glob without match", capture("blocks.*.hook_nothing*"), 2, "unknown site");
    refuse("needs a layer", capture("resid_post"), 2, "`resid_post` needs a layer: resid_post.0 … resid_post.5");
    refuse("site layer", capture("z.17"), 2, "layer 17 is out of range 0..=5");
    let wide = Interp::new().words("capture --wide --prompt hello --site pattern.1");
    let outcome = wide.run();
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("has no value per position"), "{outcome:?}");
    let sites = |more: &str| Interp::new().words("sites").words(more);
    let missing = if cfg!(feature = "cuda") { "there is no GPU cuda:9" } else { "this build has no CUDA" };
    refuse("cuda:9", sites("--device cuda:9"), 69, missing);
    refuse("no device", sites("--device tpu"), 2, "there is no device `tpu`, the nearest is `cpu`");
    refuse("dtype", sites("--dtype int8"), 2, "invalid value 'int8'");
    refuse("memory", sites("--memory lots"), 2, "`lots` is no amount of memory");
    refuse(
        "little memory",
        sites("--memory 1MB"),
        75,
        "loading the weights needs 5.68 MB of memory; the limit of --memory is 1.00 MB",
    );
    refuse("unknown option", sites("--modle x"), 2, "unexpected argument '--modle'");
    refuse("unknown command", Interp::new().words("atention"), 2, "unrecognized subcommand 'atention'");
    refuse("top 0", Interp::new().words("predict --top 0 --prompt a"), 2, "0 is not in 1..");
    refuse("lens", Interp::new().words("lens --ln other --prompt a"), 2, "there is no LayerNorm convention `other`");
    refuse(
        "sha",
        Interp::new().words("models verify --sha256 abc").arg(fixture("parity/one")),
        2,
        "64 hexadecimal digits",
    );
    refuse("download what", Interp::new().words("models download"), 2, "name one model, or --all");
}

#[test]
fn edits_that_could_not_happen_are_refused() {
    let cases = [
        ("not_toml", 2, "edit.toml: edits:"),
        ("no_edit", 65, "holds no edit"),
        ("unknown_key", 2, "haed"),
        ("unknown_site", 2, "unknown site `zz.1`; the nearest are z.1"),
        ("unknown_op", 2, "there is no op `ablate`, the nearest is `scale`; there are zero, fill"),
        ("layer_out_of_range", 2, "layer 17 is out of range 0..=5"),
        ("head_out_of_range", 2, "head 99 is out of range 0..=3"),
        ("wrong_axis", 2, "`z.1` has no axis neuron (it has prompt, pos, head, dim)"),
        ("wrong_width", 2, "a value of shape [2] does not broadcast"),
        ("not_finite", 2, "its value is not finite"),
        ("not_utf8", 65, "not UTF-8"),
    ];
    for (case, code, wanted) in cases {
        let path = fixture("hostile/edit").join(case).join("edit.toml");
        refuse(case, Interp::new().words("predict --prompt hello --edit").arg(path), code, wanted);
    }
    let late = Interp::new().words("attention --layer 1 --prompt hello --edit");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("late.toml");
    std::fs::write(&path, "[[edit]]\nsite = \"z.4\"\nop = \"zero\"\n").unwrap();
    refuse(
        "an edit after the last layer that runs",
        late.arg(&path),
        2,
        "`z.4` is never reached: the run stops before layer 2",
    );
}

#[test]
fn recipes_are_checked_before_training() {
    let cases = [
        ("not_toml", "line 1: unclosed table"),
        ("unknown_key", "line 20: there is no key `max_itres`; the nearest is `max_iters`"),
        ("no_steps", "max_iters is 0; it must be in 1..=1000000000"),
        ("not_divisible", "is not a multiple of micro_batch_size 3"),
    ];
    for (case, wanted) in cases {
        let path = fixture("hostile/recipe").join(case).join("recipe.toml");
        refuse(case, Interp::new().words("train --config").arg(path), 65, wanted);
    }
    refuse("no recipe", Interp::new().words("train --config nothing.toml"), 66, "nothing.toml: no such file");
}

#[test]
fn outputs_go_nowhere_else_and_nothing_foreign_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let predict = |out: &Path| Interp::new().words("predict --prompt hello --out").arg(out).run();
    std::fs::write(dir.path().join("file"), b"mine").unwrap();
    predict(&dir.path().join("file")).refused(73, "it is a file; --out names a directory");
    predict(&dir.path().join("file/below")).refused(73, "cannot write");
    std::fs::create_dir(dir.path().join("full")).unwrap();
    std::fs::write(dir.path().join("full/thesis.tex"), b"mine").unwrap();
    predict(&dir.path().join("full")).refused(73, "it holds other files (thesis.tex)");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("link")).unwrap();
    predict(&dir.path().join("link")).refused(73, "it is a link");
    assert_eq!(std::fs::read(dir.path().join("full/thesis.tex")).unwrap(), b"mine");
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"mine");
    // An output of our own may be made again, and holds nothing but itself.
    let out = dir.path().join("ours");
    predict(&out).ok();
    predict(&out).ok();
    let mut names: Vec<_> = files(&out).iter().map(|f| f.file_name().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["figure.html", "figure.png", "figure.svg", "frame.parquet", "run.json"]);
    // A full disk leaves nothing half-written and says so.
    let full = Interp::new().words("tokens --prompt hello --format csv");
    let outcome = full.run().ok();
    assert!(outcome.stdout.starts_with("prompt,pos,token_id,token\n"));
}
