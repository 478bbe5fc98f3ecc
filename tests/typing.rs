//! What a person types: values that begin with a dash, slips, names that are almost right, and what stdout is read by.

mod common;
#[path = "common/process.rs"]
mod process;

use polars::prelude::*;
use process::Interp;

const PROMPT: &str = "When Mary and John went to the shop, John gave a drink to";

/// A command line, whose words stand between bars.
fn typed(line: &str) -> Interp {
    line.split('|').fold(Interp::new(), Interp::arg)
}

#[test]
fn the_value_of_an_option_may_begin_with_a_dash() {
    for line in [
        "tokens|--prompt|- a list",
        "tokens|--prompt|-",
        "tokens|--prompt|--",
        "tokens|--prompt|---|--prompt|-x=1|--prompt|--no such option",
        "tokens|--prompt|-1|--prompt|-quiet",
        "tokens|--prompt=--quiet",
        "attention|--layer|-1|--head|-1|--prompt|- a",
        "attention|--layer|-3--1|--prompt|a b",
        "attention|--head|-1.-1|--prompt|a b",
        "neurons|--layer|-2|--prompt|-a b",
        "attribute|--answer|-|--wrong| John|--pos|-1|--prompt|- a",
        "saliency|--answer| Mary|--wrong|-|--baseline|- b|--steps|2|--prompt|- a",
        "generate|--start|- a|--stop|-|--max-new-tokens|2",
        "steer|--positive|- good|--negative|-bad|--strength|-4,4|--site|resid_pre.-1|--max-new-tokens|1|--prompt|- a",
        "patch|--clean|- a b|--corrupt|- a c|--answer|-|--wrong| John|--sweep|resid_pre|--layer|-1",
        "patch|--clean|- a b|--subject|- a|--answer| Mary|--wrong|-|--sweep|resid_pre|--layer|-1|--noise-samples|1",
        "ablate|--prompt|- a b|--head|-1.-1|--method|zero",
        "perplexity|--prompt|- a b c",
        "heads|--detect|induction_head|--measure|abs|--prompt|- a b",
    ] {
        typed(line).run().ok();
    }
    // Files and directories too.
    let command = |line: &str| {
        let command = typed(line);
        std::fs::write(command.dir().join("-text.txt"), "- a\n--b\n").unwrap();
        std::fs::write(command.dir().join("-edit.toml"), "[[edit]]\nsite = \"z.0\"\nop = \"zero\"\n").unwrap();
        command.run().ok()
    };
    let outcome = command("predict|--file|-text.txt|--edit|-edit.toml|--out|-out");
    assert!(outcome.dir.path().join("-out/run.json").exists());
    command("perplexity|--file|-text.txt");
}

#[test]
fn a_value_that_is_out_of_range_or_no_number_says_so() {
    for (line, wanted) in [
        ("tokens|--prompt|a|--seed|-1", "invalid value '-1' for '--seed <N>': it is below 0"),
        ("tokens|--prompt|a|--seed=-1", "invalid value '-1' for '--seed <N>': it is below 0"),
        ("tokens|--prompt|a|--seed|1.5", "it is not a whole number; write digits alone, such as 1000"),
        ("tokens|--prompt|a|--seed|1e3", "it is not a whole number"),
        ("tokens|--prompt|a|--seed|1_000", "it is not a whole number"),
        ("tokens|--prompt|a|--seed|", "it is not a whole number"),
        ("tokens|--prompt|a|--seed| 1", "it is not a whole number"),
        ("tokens|--prompt|a|--seed|99999999999999999999", "it is larger than 18446744073709551615"),
        ("generate|--prompt|a|--max-new-tokens|-1", "-1 is not in 1..="),
        ("generate|--prompt|a|--temperature|warm", "it is not a number; write digits, such as 0.5, -2 or 1e-3"),
        ("generate|--prompt|a|--temperature|0,5", "it is not a number"),
        ("predict|--prompt|a|--top|-1", "-1 is not in 1.."),
        ("predict|--prompt|a|--top|99999999999999999999", "99999999999999999999 is not in 1..="),
        ("neurons|--prompt|a|--layer|−1", "(`−` here is the character U+2212; a number takes the hyphen, -)"),
        ("attention|--prompt|a|--layer|–1", "(`–` here is the character U+2013; a number takes the hyphen, -)"),
        ("attention|--prompt|a|--layer|-9", "layer -9 is out of range 0..=5 (or -6..=-1)"),
        ("attention|--prompt|a|--layer|0|--head|-5", "head -5 is out of range 0..=3 (or -4..=-1)"),
    ] {
        typed(line).run().refused(2, wanted);
    }
}

#[test]
fn a_value_that_is_missing_is_missed_and_the_tip_works() {
    for (line, wanted) in [
        ("tokens|--prompt", "a value is required for '--prompt <TEXT>' but none was supplied"),
        ("tokens|--prompt|--quiet", "'--quiet' after it is an option; if that is the value, write --prompt=--quiet"),
        ("tokens|--prompt|-q", "write --prompt=-q"),
        ("tokens|--prompt|--layer|5", "a value is required for '--prompt <TEXT>', but '--layer' after it is an option"),
        ("tokens|--out|--prompt|a", "a value is required for '--out <DIR>'"),
        ("--model|--seed=1|tokens", "write --model=--seed=1"),
        ("patch|--clean|--corrupt|a", "a value is required for '--clean <TEXT>'"),
    ] {
        typed(line).run().refused(2, wanted);
    }
    let outcome = typed("tokens|--format|csv|--bos|no|--prompt=--quiet").run().ok();
    let pieces: String = outcome.stdout.lines().skip(1).map(|line| line.splitn(4, ',').nth(3).unwrap()).collect();
    assert_eq!(pieces, "--quiet");
}

#[test]
fn slips_are_named_with_what_to_write() {
    for (line, wanted) in [
        ("–quiet|tokens|--prompt|a", "`–quiet` begins with the character U+2013, which is no hyphen; write --quiet"),
        ("tokens|—prompt|a", "`—prompt` begins with the character U+2014, which is no hyphen; write --prompt"),
        ("tokens|−−prompt=a", "write --prompt=a"),
        ("predict|--layer|5|--prompt|a", "unexpected argument '--layer' found: it is an option of `interp"),
        ("--layer|5|attention|--prompt|a", "not of `interp`; write it after the command"),
        ("--prompt|a|tokens", "not of `interp`; write it after the command"),
        ("tokens|--promt|a", "unexpected argument '--promt' found: the nearest is `--prompt`"),
        ("attention|-layer|5|--prompt|a", "unexpected argument '-layer' found; write --layer"),
        ("tokens|-z", "options begin with two hyphens; `interp tokens --help` lists them"),
        ("tokens|-a list", "text is given by --prompt TEXT"),
        ("tokens|hello", "`hello` is not an option; write --prompt TEXT"),
        ("tokns|--prompt|a", "unrecognized subcommand 'tokns': the nearest is `tokens`"),
        ("models|lst", "unrecognized subcommand 'lst': the nearest is `list`"),
        ("attention|--layer|1|--layer|2|--prompt|a", "cannot be used multiple times"),
        ("tokens|--quiet=yes|--prompt|a", "unexpected value 'yes' for '--quiet'"),
        ("doctor|--format|csv", "what doctor finds has no columns; use --format json"),
        ("tokens|--prompt|a|--escape-formulas", "--escape-formulas is for --format csv"),
        ("tokens|--prompt|a|--escape-formulas|--format|json", "--escape-formulas is for --format csv"),
    ] {
        typed(line).run().refused(2, wanted);
    }
    // A file whose name begins with a dash, where no option takes it.
    let command = typed("sweep|-study.toml");
    std::fs::write(command.dir().join("-study.toml"), "").unwrap();
    let outcome = command.run();
    assert!(outcome.stderr.contains("for the file of that name write ./-study.toml"), "{}", outcome.stderr);
}

#[test]
fn a_name_that_is_almost_right_has_its_nearest_told() {
    let (pair, texts) = ("--pairs|tiny-ioi|--num-pairs|2", "--positive|a|--negative|b|--prompt|c");
    for (line, nearest) in [
        ("tokens|--prompt|a|--format|jsno".to_string(), "json"),
        ("tokens|--prompt|a|--format|JSON".into(), "json"),
        ("tokens|--prompt|a|--bos|ye".into(), "yes"),
        ("tokens|--prompt|a|--dtype|bf61".into(), "bf16"),
        ("tokens|--prompt|a|--dtype|float32".into(), "f32"),
        ("predict|--prompt|a|--truncate|lft".into(), "left"),
        ("predict|--prompt|a|--device|cpuu".into(), "cpu"),
        ("capture|--prompt|a|--site|resid_pots.1".into(), "resid_post.1"),
        ("lens|--prompt|a|--ln|recompte".into(), "recompute"),
        ("attribute|--prompt|a|--answer|b|--by|haed".into(), "head"),
        ("saliency|--prompt|a|--answer|b|--metric|logprb".into(), "logprob"),
        ("saliency|--prompt|a|--answer|b|--draw|integrted".into(), "integrated"),
        ("heads|--detect|inducton_head|--prompt|a".into(), "induction_head"),
        ("heads|--detect|induction_head|--measure|mull|--prompt|a".into(), "mul"),
        ("heads|--basis|foldd".into(), "folded"),
        (format!("patch|{pair}|--sweep|resid_pro"), "resid_pre"),
        (format!("patch|{pair}|--metric|logit_dif"), "logit_diff"),
        (format!("patch|{pair}|--direction|nosie"), "noise"),
        ("patch|--pairs|tiny-oii".into(), "tiny-ioi"),
        ("patch|--pairs|tiny-ioi|--corruption|swp".into(), "swap"),
        (format!("paths|{pair}|--freeze|mlp"), "mlps"),
        (format!("ablate|{pair}|--what|haeds"), "heads"),
        (format!("ablate|{pair}|--method|maen"), "mean"),
        (format!("ablate|{pair}|--metric|los"), "loss"),
        (format!("circuit|find|{pair}|--method|eap-gi"), "eap-ig"),
        (format!("circuit|find|{pair}|--instead|corupt"), "corrupt"),
        (format!("circuit|find|{pair}|--metric|logt_diff"), "logit_diff"),
        ("circuit|test|io".into(), "ioi"),
        ("subspace|--pairs|tiny-ioi|--num-pairs|8|--site|resid_pre.1|--along|dsa".into(), "das"),
        (format!("steer|{texts}|--method|pac"), "pca"),
        (format!("steer|{texts}|--pool|lats"), "last"),
        (format!("steer|{texts}|--units|nrom"), "norm"),
        ("export|--site|resid_pre.0|--prompt|a|--layout|parqet".into(), "parquet"),
        ("export|--site|resid_pre.0|--prompt|a|--store|f166".into(), "f16"),
        ("perplexity|--prompt|a|--join|blnk".into(), "blank"),
        ("probe|tiny-numbr".into(), "tiny-number"),
        ("behave|tiny-oii".into(), "tiny-ioi"),
        ("bench|--task|generat".into(), "generate"),
        ("finetune|--set|lerning_rate=1".into(), "learning_rate"),
        ("finetune|--set|dtype=bf16".into(), "bfloat16"),
        ("completions|bsh".into(), "bash"),
    ] {
        let outcome = typed(&line).run();
        let told = outcome.stderr.contains(&format!("the nearest is `{nearest}`"))
            || outcome.stderr.contains(&format!("the nearest are {nearest},"));
        assert!(told && outcome.stderr.lines().count() == 1, "{line}: {}", outcome.stderr);
        assert!(matches!(outcome.code, Some(2 | 66)), "{line}: {:?}", outcome.code);
    }
}

#[test]
fn keys_of_a_recipe_are_listed_and_settings_of_nanogpt_find_their_place() {
    for command in ["train", "finetune"] {
        let help = typed(&format!("{command}|--help")).run().ok().stdout;
        for line in ["[train]", "[data]", "[model]", "  learning_rate = 3e-5", "  eval_iters = 0", "  n_layer = 12"] {
            assert!(help.lines().any(|shown| shown == line), "{command}: {line}: {help}");
        }
    }
    for (setting, wanted) in [
        ("eval_only=true", "nanoGPT's eval_only is no key here; leave it out: `interp perplexity"),
        ("compile=False", "nanoGPT's compile is no key here; leave it out"),
        ("init_from=gpt2", "`interp finetune --model NAME` from a model"),
        ("eval_iters=2.5", "expected a whole number not below 0, found floating point `2.5`"),
        ("dtype=float16", "training is in float32 or bfloat16"),
    ] {
        let outcome = Interp::new().words("finetune --set").arg(setting).run().refused(2, wanted);
        assert!(outcome.stderr.contains(&format!("--set {setting}: ")), "{}", outcome.stderr);
    }
    let command = Interp::new().words("finetune --file text.txt --seed 1");
    std::fs::write(command.dir().join("text.txt"), PROMPT.repeat(40)).unwrap();
    let set = ["max_iters=1", "block_size=16", "batch_size=2", "eval_iters=3"];
    let outcome = set.iter().fold(command, |command, set| command.arg("--set").arg(set)).run().ok();
    assert_eq!(outcome.record()["recipe"]["train"]["eval_iters"], 3);
}

#[test]
fn a_refusal_has_no_backtrace() {
    for level in ["1", "full"] {
        for (line, code) in [
            ("predict|--prompt|a|--device|cuda:99", 69),
            ("predict|--prompt|a|--model|missing.safetensors", 66),
            ("predict|--prompt|a|--top|0", 2),
            ("predict|--prompt|a|--edit|missing.toml", 66),
            ("steer|--load|broken.safetensors|--prompt|a", 65),
            ("subspace|--pairs|tiny-ioi|--site|resid_pre.0|--along|broken.safetensors", 65),
            ("predict|--prompt|a|--tokenizer|broken.safetensors", 65),
        ] {
            let command = typed(line).env("RUST_BACKTRACE", level);
            let broken = command.dir().join("broken.safetensors");
            std::fs::write(&broken, b"\x10\0\0\0\0\0\0\0{\"x\": }         ").unwrap();
            let outcome = command.run();
            if line.contains("cuda") && outcome.code == Some(0) {
                continue;
            }
            assert_eq!(outcome.code, Some(code), "{line}: {}", outcome.stderr);
            assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{line}: {}", outcome.stderr);
            assert!(!outcome.stderr.contains("   0: "), "{line}: {}", outcome.stderr);
        }
    }
}

/// The cells of a CSV text, by RFC 4180, with whether each had quotation marks.
fn cells(text: &str) -> Vec<Vec<(String, bool)>> {
    let (mut rows, mut row, mut cell, mut marked) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if cell.is_empty() && !marked => {
                marked = true;
                while let Some(c) = chars.next() {
                    match c {
                        '"' if chars.peek() == Some(&'"') => cell.extend(chars.next()),
                        '"' => break,
                        c => cell.push(c),
                    }
                }
            }
            ',' | '\n' => {
                assert!(marked || !cell.contains(['"', '\r']), "{cell:?}");
                row.push((std::mem::take(&mut cell), std::mem::take(&mut marked)));
                if c == '\n' {
                    rows.push(std::mem::take(&mut row));
                }
            }
            c => cell.push(c),
        }
    }
    assert!(row.is_empty() && cell.is_empty());
    rows
}

#[test]
fn csv_has_the_tokens_as_they_are_and_escapes_formulas_on_request() {
    let texts =
        ["=1+1", "+2", "-3", "@SUM(A1)", "a,b\"c", "|x", "tab\there", "\r", "a\r\nb\n", "ünï", "\"", "null NaN"];
    for text in texts {
        let command = || Interp::new().words("tokens --format csv --prompt").arg(text);
        let outcome = command().run().ok();
        let frame = std::fs::File::open(outcome.output().join("frame.parquet")).unwrap();
        let frame = ParquetReader::new(frame).finish().unwrap();
        let tokens: Vec<&str> = frame.column("token").unwrap().str().unwrap().iter().flatten().collect();
        let rows = cells(&outcome.stdout);
        assert_eq!(
            rows[0].iter().map(|cell| cell.0.as_str()).collect::<Vec<_>>(),
            ["prompt", "pos", "token_id", "token"]
        );
        assert_eq!(rows[1..].iter().map(|row| row[3].0.as_str()).collect::<Vec<_>>(), tokens, "{text:?}");
        // Escaped, a text that a spreadsheet would compute has an apostrophe before it, and others are as before.
        let escaped = cells(&command().arg("--escape-formulas").run().ok().stdout);
        for (row, token) in escaped[1..].iter().zip(tokens) {
            let formula = token.starts_with(['\t', '\r', '\n']) || token.trim_start().starts_with(['=', '+', '-', '@']);
            assert_eq!(row[3].0, if formula { format!("'{token}") } else { token.to_string() });
        }
    }
}

#[test]
fn json_rows_keep_the_order_of_the_columns() {
    for (words, start) in [
        ("tokens --prompt a", "\"rows\":[{\"prompt\":0,\"pos\":0,\"token_id\":"),
        ("predict --top 1 --prompt a", "\"rows\":[{\"prompt\":0,\"pos\":0,\"token\":\"<|endoftext|>\",\"rank\":"),
        ("models list", "{\"rows\":[{\"name\":\""),
        ("capture --site resid_post.0 --prompt a", "\"rows\":[{\"site\":\"resid_post.0\",\"prompt\":0,\"layer\":0,"),
    ] {
        let outcome = Interp::new().words(words).words("--format json").run().ok();
        assert!(outcome.stdout.contains(start), "{words}: {}", &outcome.stdout[outcome.stdout.len().min(3000) / 2..]);
    }
}

/// Most paths may have any bytes; where a name may stand for a path the message says which word is meant.
#[cfg(unix)]
#[test]
fn a_name_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"gpt\xff");
    for words in ["predict --prompt x --model", "patch --pairs", "behave"] {
        let wanted = "`gpt\u{fffd}` is not UTF-8, and an option that takes a name or a path wants that; rename it";
        Interp::new().words(words).arg(name).run().refused(2, wanted);
    }
}
