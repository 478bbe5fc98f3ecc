//! Options that every command takes: each command honours one, or refuses it.

#[path = "common/process.rs"]
mod process;

use process::Interp;

/// Command lines that would run, and the options that would do nothing there.
const REFUSED: [(&str, &[&str]); 33] = [
    ("attention --layer 0 --prompt x", &["--seed 1"]),
    ("export --site resid_pre.0 --file README.md", &["--price 2"]),
    ("bench --task forward", &["--bos no", "--allow-special"]),
    ("capture --site resid_pre.0 --prompt x", &["--seed 1"]),
    ("circuit list", &["--model gpt2", "--bos yes", "--seed 1", "--out x", "--price 2", "--memory 1GB"]),
    ("completions bash", &["--quiet", "--format json", "--strict"]),
    ("doctor", &["--model gpt2", "--bos yes", "--out x", "--dtype bf16"]),
    ("export verify x", &["--format json", "--model gpt2", "--seed 1", "--allow-special"]),
    ("export merge x", &["--device cpu", "--bos no"]),
    ("finetune --file x", &["--bos yes"]),
    ("generate", &["--bos no", "--allow-special", "--truncate left", "--lossy"]),
    ("generate --start x", &["--truncate left", "--lossy"]),
    ("generate --window --prompt x", &["--truncate left"]),
    ("heads", &["--bos yes", "--bos auto", "--allow-special", "--truncate left", "--exclude-bos", "--measure abs"]),
    ("heads --composition", &["--bos yes", "--sequences 3", "--length 9"]),
    ("heads --detect induction_head --prompt x", &["--seed 1", "--sequences 3", "--basis folded"]),
    ("ablate --repeated 10", &["--bos yes", "--bos no", "--allow-special", "--truncate right", "--lossy"]),
    ("ablate --repeated 10 --method zero", &["--bos yes", "--reference prompts"]),
    ("ablate --pairs tiny-ioi", &["--truncate right", "--lossy"]),
    ("attribute --pairs tiny-ioi", &["--truncate right", "--lossy"]),
    ("behave", &["--bos yes", "--seed 1", "--out x"]),
    ("lens --prompt x", &["--seed 1"]),
    ("models list", &["--model gpt2", "--device cpu", "--tokenizer x", "--dtype f16", "--tf32", "--strict"]),
    ("models info tiny", &["--model gpt2", "--seed 1", "--device cpu"]),
    ("models verify tiny", &["--model gpt2", "--bos yes", "--name x"]),
    ("pairs", &["--bos yes", "--seed 1", "--model gpt2"]),
    ("predict --prompt x", &["--seed 1"]),
    ("perplexity --file x", &["--seed 1"]),
    ("probe tasks", &["--format json", "--out x", "--bos no"]),
    ("saliency --prompt x --answer y", &["--seed 1"]),
    ("sweep x.toml", &["--seed 1", "--bos auto", "--dtype f32", "--model tiny"]),
    ("train --config x.toml", &["--model gpt2", "--bos yes", "--strict"]),
    ("verify --oracle x", &["--bos yes", "--seed 1"]),
];

#[test]
fn an_option_that_would_do_nothing_is_refused() {
    for (line, options) in REFUSED {
        for option in options {
            let name = option.split(' ').next().unwrap_or_default();
            // Before the command and after it.
            Interp::new().words(line).words(option).run().refused(2, &format!("{name} would do nothing"));
        }
        if let Some(option) = options
            .iter()
            .find(|option| ["--bos", "--seed", "--model"].contains(&&option[..option.find(' ').unwrap_or(0)]))
        {
            Interp::new().words(option).words(line).run().refused(2, "would do nothing");
        }
    }
}

#[test]
fn an_option_that_is_honoured_changes_what_it_says() {
    let record = |line: &str| Interp::new().words(line).run().ok().record();
    // The tokens of heads and of repeated ablations are random; of prompts they are text again.
    assert!(record("heads --sequences 1 --length 8")["bos"].is_null());
    assert!(record("ablate --repeated 8 --what layers")["bos"].is_null());
    let ids = |line: &str| record(line)["token_ids"][0].as_array().unwrap().len();
    assert_eq!(
        ids("heads --sequences 1 --length 8 --prompt Mary --bos yes"),
        1 + ids("predict --prompt Mary --bos no")
    );
    assert_eq!(record("heads --sequences 1 --length 8 --prompt Mary --bos yes")["bos"], "yes");
    assert_ne!(
        record("heads --sequences 1 --length 8")["random_tokens"],
        record("heads --sequences 1 --length 8 --seed 5")["random_tokens"]
    );
}

#[test]
fn options_of_pairs_go_with_pairs() {
    for option in ["--num-pairs 3", "--corruption abc", "--template 0", "--right-only"] {
        let name = option.split(' ').next().unwrap_or_default();
        for line in
            ["attribute --prompt x --answer y", "ablate --prompt x", "patch --clean a --corrupt b --answer c --wrong d"]
        {
            let outcome = Interp::new().words(line).words(option).run();
            assert_eq!(outcome.code, Some(2), "{line} {option}: {}", outcome.stderr);
            assert!(
                outcome.stderr.contains(name) || outcome.stderr.contains("not both"),
                "{line} {option}: {}",
                outcome.stderr
            );
        }
    }
    Interp::new().words("doctor --format csv").run().refused(2, "use --format json");
}
