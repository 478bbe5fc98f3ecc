//! Downloads: from a hub on 127.0.0.1 that lies, breaks off, redirects and is asked by two at once.
//!
//! Whatever it does, a file in the cache is whole and has the hash it is named by; and offline means no socket.

mod common;
#[path = "common/hub.rs"]
mod fake;
#[path = "common/process.rs"]
mod process;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::fixture;
use fake::{COMMIT, Hub, Repo, Request, Response, file};
use interp::Error;
use interp::weights::{self, Format, Patience, Places, Repository, Token, sha256_of};
use process::{Interp, can_mount, files, kill_when};

/// A model whose weights are large enough to break off in the middle, with the built-in tokenizer.
fn repo() -> Repo {
    let tiny = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name);
        (name.to_string(), std::fs::read(path).unwrap())
    };
    let mut files: std::collections::BTreeMap<_, _> =
        ["config.json", "tokenizer.json", "model.safetensors"].map(tiny).into();
    files.insert("README.md".into(), b"not asked for".to_vec());
    Repo { files }
}

fn interp(hub: &Hub, cache: &Path) -> Interp {
    Interp::new().without_env("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.address).env("HF_HUB_CACHE", cache)
}

fn download(hub: &Hub, cache: &Path) -> Interp {
    interp(hub, cache).words("models download owner/name")
}

fn is_weights(request: &Request) -> bool {
    request.path.ends_with("model.safetensors")
}

/// Every blob has the hash it is named by, and every pointer leads to one.
fn check_cache(cache: &Path) {
    for path in files(cache) {
        if path.parent().unwrap().ends_with("blobs") && path.extension().is_none() {
            let digest = interp::weights::sha256(&path).unwrap();
            assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest, "{}", path.display());
        }
        if path.is_symlink() {
            assert!(path.exists(), "{} leads nowhere", path.display());
        }
    }
}

fn has_weights(cache: &Path) -> bool {
    files(cache).iter().any(|path| path.ends_with(format!("snapshots/{COMMIT}/model.safetensors")))
}

#[test]
fn a_download_lands_in_the_layout_of_hugging_face_and_is_used_from_there() {
    let repo = repo();
    let weights = repo.files["model.safetensors"].clone();
    let hub = Hub::new(move |request| repo.answer(request));
    let cache = tempfile::tempdir().unwrap();
    let outcome = download(&hub, cache.path()).run().ok();
    let snapshot = cache.path().join("models--owner--name/snapshots").join(COMMIT);
    assert!(outcome.stdout.contains(snapshot.to_str().unwrap()), "{}", outcome.stdout);
    let pointer = snapshot.join("model.safetensors");
    let target = std::fs::read_link(&pointer).unwrap();
    assert_eq!(target, Path::new("../../blobs").join(sha256_of(&weights)));
    assert_eq!(std::fs::read(&pointer).unwrap(), weights);
    assert_eq!(std::fs::read_to_string(cache.path().join("models--owner--name/refs/main")).unwrap(), COMMIT);
    assert_eq!(hub.count("README"), 0);
    check_cache(cache.path());
    let asked = hub.log().len();
    for words in ["sites --model owner/name", "models download owner/name", "sites --model owner/name --offline"] {
        interp(&hub, cache.path()).words(words).run().ok();
    }
    let by_commit = format!("sites --model owner/name@{COMMIT}");
    interp(&hub, cache.path()).words(&by_commit).run().ok();
    assert_eq!(hub.log().len(), asked, "what is in the cache is not asked for again");
    let run = interp(&hub, cache.path()).words("predict --prompt hello --model owner/name --format json").run().ok();
    let run: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(run["run"]["model"]["weights_sha256"][0], sha256_of(&weights));
    assert_eq!(run["run"]["model"]["origin"], format!("owner/name@{COMMIT}"));
}

#[test]
fn a_model_is_downloaded_on_first_use() {
    let repo = repo();
    let hub = Hub::new(move |request| repo.answer(request));
    let cache = tempfile::tempdir().unwrap();
    interp(&hub, cache.path()).words("sites --model gpt2").run().ok();
    assert!(hub.log()[0].path.starts_with("/api/models/openai-community/gpt2/"), "{:?}", hub.log()[0]);
    assert!(cache.path().join("models--openai-community--gpt2/refs/main").exists());
}

#[test]
fn every_place_where_a_cache_can_be_is_found() {
    let repo = repo();
    let home = tempfile::tempdir().unwrap();
    let make = |hub: &Path, name: &str, with_ref: Option<&str>| {
        let dir = home.path().join(hub).join(name);
        let snapshot = dir.join("snapshots").join(COMMIT);
        std::fs::create_dir_all(&snapshot).unwrap();
        for (file, content) in &repo.files {
            std::fs::write(snapshot.join(file), content).unwrap();
        }
        if let Some(content) = with_ref {
            std::fs::create_dir_all(dir.join("refs")).unwrap();
            std::fs::write(dir.join("refs/main"), content).unwrap();
        }
    };
    make(Path::new("a"), "models--owner--name", Some(COMMIT));
    make(Path::new("b/hub"), "models--gpt2", Some(&format!("{COMMIT}\n")));
    make(Path::new("c/huggingface/hub"), "models--owner--name", None);
    make(Path::new(".cache/huggingface/hub"), "models--openai-community--gpt2", None);
    let cases: [(&str, &str, &str); 5] = [
        ("HF_HUB_CACHE", "a", "owner/name"),
        ("HUGGINGFACE_HUB_CACHE", "a", "owner/name"),
        ("HF_HOME", "b", "openai-community/gpt2"),
        ("XDG_CACHE_HOME", "c", "owner/name"),
        ("HOME", "", "gpt2"),
    ];
    for (variable, dir, model) in cases {
        let interp = Interp::new().words("sites --model").arg(model).env(variable, home.path().join(dir));
        let outcome = interp.run();
        assert_eq!(outcome.code, Some(0), "{variable}: {}", outcome.stderr);
    }
}

#[test]
fn content_with_another_hash_is_not_kept() {
    let repo = repo();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() {
            let last = response.body.len() - 1;
            response.body[last] ^= 1;
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().refused(65, "model.safetensors: the hub announced");
    assert!(!has_weights(cache.path()));
    assert!(!files(cache.path()).iter().any(|f| f.extension().is_some_and(|e| e == "incomplete")));
    check_cache(cache.path());
}

#[test]
fn a_body_that_ends_early_is_taken_up_where_it_ended() {
    let repo = repo();
    let size = repo.files["model.safetensors"].len();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() && response.body.len() > size / 3 {
            response.cut = Some(size / 3);
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().ok();
    assert!(has_weights(cache.path()));
    check_cache(cache.path());
    let starts: Vec<_> =
        hub.log().iter().filter(|r| is_weights(r) && !r.is_probe()).map(|r| r.from().unwrap_or(0)).collect();
    assert!(starts.len() >= 3 && starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
}

#[test]
fn a_body_that_never_comes_is_given_up() {
    let repo = repo();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() {
            response.cut = Some(0);
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().refused(75, "run again to resume");
    assert!(!has_weights(cache.path()));
}

#[test]
fn a_hub_that_cannot_resume_sends_everything_again() {
    let repo = repo();
    let first = AtomicUsize::new(0);
    let hub = Hub::new(move |request| {
        let mut request = request.clone();
        if is_weights(&request) && !request.is_probe() {
            request.headers.remove("range");
            let mut response = repo.answer(&request);
            if first.fetch_add(1, Ordering::SeqCst) == 0 {
                response.cut = Some(100_000);
            }
            return response;
        }
        repo.answer(&request)
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().ok();
    assert!(has_weights(cache.path()));
    check_cache(cache.path());
}

#[test]
fn a_body_longer_than_announced_is_not_kept() {
    let repo = repo();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() {
            response.body.extend([0; 5000]);
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().refused(65, "sent more than the");
    assert!(!has_weights(cache.path()));
}

#[test]
fn answers_of_the_hub_become_exit_codes() {
    let cases = [
        (404, 66, "owner/name@main: the hub has no such repository or revision (HTTP 404)"),
        (401, 69, "set HF_TOKEN if you have access"),
        (403, 69, "set HF_TOKEN if you have access"),
        (429, 75, "the hub asks to slow down"),
        (500, 75, "the hub has a fault (HTTP 500)"),
        (418, 69, "the hub answered HTTP 418"),
    ];
    for (status, code, wanted) in cases {
        let hub = Hub::new(move |_| Response::status(status));
        let cache = tempfile::tempdir().unwrap();
        download(&hub, cache.path()).run().refused(code, wanted);
        // The same answers in the middle of it, to a single file.
        let repo = repo();
        let hub = Hub::new(move |request| match is_weights(request) {
            true => Response::status(status),
            false => repo.answer(request),
        });
        let outcome = download(&hub, cache.path()).run();
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(!has_weights(cache.path()));
        check_cache(cache.path());
    }
    let hub = Hub::new(|_| Response::status(403));
    let cache = tempfile::tempdir().unwrap();
    let with_token = download(&hub, cache.path()).env("HF_TOKEN", "hf_secret").run();
    assert!(!with_token.stderr.contains("hf_secret"));
    with_token.refused(69, "refuses this repository or revision to this token (HTTP 403)");
}

#[test]
fn a_hub_that_is_not_there_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let gone = Hub::new(|_| Response::status(500)).address.clone();
    let interp = Interp::new().without_env("HF_HUB_OFFLINE").env("HF_ENDPOINT", gone).env("HF_HUB_CACHE", cache.path());
    interp.words("models download owner/name").run().refused(69, "cannot reach http://127.0.0.1");
}

#[test]
fn redirects_are_followed_but_the_token_stays_at_home() {
    let repo = repo();
    let elsewhere = {
        let repo = repo.clone();
        Hub::new(move |request| repo.answer(request))
    };
    let (target, there) = (elsewhere.address.clone(), repo.clone());
    let hub = Hub::new(move |request| {
        if !is_weights(request) {
            return there.answer(request);
        }
        let content = &there.files["model.safetensors"];
        // As the real hub does it: hash and size in the redirect, and first a relative one.
        match request.path.starts_with("/moved") {
            false => Response::status(307).header("location", "/moved/model.safetensors"),
            true => Response::status(302).header("location", format!("{target}/cdn/model.safetensors")),
        }
        .header("x-linked-etag", format!("\"{}\"", sha256_of(content)))
        .header("x-linked-size", content.len().to_string())
        .header("x-repo-commit", COMMIT)
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).env("HF_TOKEN", "hf_secret").run().ok();
    assert!(has_weights(cache.path()));
    check_cache(cache.path());
    let authorised = |hub: &Hub| hub.log().iter().filter(|r| r.headers.contains_key("authorization")).count();
    assert_eq!(authorised(&hub), hub.log().len(), "the hub gets the token with every request");
    assert!(!elsewhere.log().is_empty());
    assert_eq!(authorised(&elsewhere), 0, "nobody else gets it");
}

#[test]
fn redirects_to_nowhere_or_in_circles_end() {
    let cases = [
        ("/owner/name/model.safetensors", "more than 5 redirects"),
        ("http://example.org/model.safetensors", "is not https"),
        ("ftp://127.0.0.1/model.safetensors", "is not https"),
        ("//127.0.0.1/x", "a redirect to nowhere"),
        ("", "a redirect to nowhere"),
    ];
    for (location, wanted) in cases {
        let repo = repo();
        let hub = Hub::new(move |request| match is_weights(request) {
            true => Response::status(302).header("location", location),
            false => repo.answer(request),
        });
        let cache = tempfile::tempdir().unwrap();
        download(&hub, cache.path()).run().refused(65, wanted);
        assert!(!has_weights(cache.path()));
    }
}

#[test]
fn names_from_the_hub_cannot_leave_the_cache() {
    let repo = repo();
    let cache = tempfile::tempdir().unwrap();
    for etag in ["../../../../escaped", "/tmp/escaped", "x", "", "%2e%2e"] {
        let repo = repo.clone();
        let etag = etag.to_string();
        let hub = Hub::new(move |request| {
            let mut response = repo.answer(request);
            response.headers.retain(|(name, _)| name != "etag");
            response.header("etag", etag.clone())
        });
        let outcome = download(&hub, cache.path()).run();
        assert_eq!(outcome.code, Some(65), "{outcome:?}");
    }
    for commit in ["../../escaped", "/tmp/escaped", "", ".hidden", "a b"] {
        let commit = commit.to_string();
        let hub = Hub::new(move |_| {
            let body = serde_json::json!({ "sha": commit, "siblings": [] }).to_string().into_bytes();
            Response { status: 200, body, ..Response::default() }
        });
        download(&hub, cache.path()).run().refused(65, "is no commit");
    }
    let mut sharded = repo.clone();
    sharded.files.remove("model.safetensors");
    for shard in ["../escaped.safetensors", "/tmp/escaped", "a/b", ".x"] {
        let mut sharded = sharded.clone();
        let index = serde_json::json!({ "weight_map": { "wte.weight": shard } }).to_string().into_bytes();
        sharded.files.insert("model.safetensors.index.json".into(), index);
        let hub = Hub::new(move |request| sharded.answer(request));
        download(&hub, cache.path()).run().refused(65, "is not the name of a file beside it");
    }
    let escaped: Vec<_> = files(cache.path()).into_iter().filter(|f| f.to_string_lossy().contains("escaped")).collect();
    assert!(escaped.is_empty(), "{escaped:?}");
}

#[test]
fn hostile_names_never_reach_the_network() {
    let hub = Hub::new(|_| Response::status(500));
    let cache = tempfile::tempdir().unwrap();
    for name in [
        "owner/name@../../x",
        "owner/name@/etc/passwd",
        "owner/name@x/../../y",
        "owner/name@%2e%2e%2f",
        "owner/name@a\\b",
        "owner/..",
        "../owner",
        "owner/name/more",
        "owner/na me",
        "owner/name@",
    ] {
        interp(&hub, cache.path()).words("models download").arg(name).run().refused(2, "error");
    }
    let outcome =
        interp(&hub, cache.path()).words("models download owner/name").env("HF_ENDPOINT", "http://example.org");
    outcome.run().refused(2, "HF_ENDPOINT: `http://example.org` is not https");
    assert!(hub.log().is_empty(), "{:?}", hub.log());
}

#[test]
fn a_repository_that_is_no_gpt2_is_named() {
    let cases = [("config.json", "no config.json"), ("model.safetensors", "no safetensors weights")];
    for (missing, wanted) in cases {
        let mut repo = repo();
        repo.files.remove(missing);
        let hub = Hub::new(move |request| repo.answer(request));
        let cache = tempfile::tempdir().unwrap();
        download(&hub, cache.path()).run().refused(66, wanted);
    }
}

#[test]
fn two_processes_transfer_once() {
    let (repo, go) = (repo(), Arc::new(AtomicBool::new(false)));
    let held = go.clone();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() {
            response.hold = Some((200_000, held.clone()));
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    let (first, _dir) = download(&hub, cache.path()).spawn();
    hub.wait_until(|log| log.iter().any(|r| is_weights(r) && !r.is_probe()));
    // While the first is in the middle of the weights, the second asks what there is.
    let (second, _dir) = download(&hub, cache.path()).spawn();
    hub.wait_until(|log| log.iter().filter(|r| r.path.starts_with("/api/models/")).count() == 2);
    go.store(true, Ordering::SeqCst);
    for process in [first, second] {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(hub.count("model.safetensors"), 1);
    check_cache(cache.path());
}

#[test]
fn a_killed_download_is_resumed_and_whole() {
    let (repo, never) = (repo(), Arc::new(AtomicBool::new(false)));
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() && request.from().is_none_or(|from| from == 0) {
            response.hold = Some((1_000_000, never.clone()));
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    let partial = || files(cache.path()).into_iter().find(|f| f.extension().is_some_and(|e| e == "incomplete"));
    let (mut child, _dir) = download(&hub, cache.path()).spawn();
    let some = || partial().is_some_and(|f| f.metadata().is_ok_and(|m| m.len() > 100_000));
    kill_when(&mut child, "some of the weights were here", some);
    assert!(!has_weights(cache.path()), "a broken download became a cached file");
    let left = partial().expect("what had arrived is kept").metadata().unwrap().len();
    interp(&hub, cache.path())
        .words("sites --model owner/name --offline")
        .run()
        .refused(66, "not whole in the Hugging Face cache");
    download(&hub, cache.path()).run().ok();
    assert!(has_weights(cache.path()));
    check_cache(cache.path());
    let resumed = hub.log().iter().rev().find(|r| is_weights(r) && !r.is_probe()).unwrap().from();
    assert!(resumed.is_some_and(|from| from as u64 >= left.min(100_000)), "resumed from {resumed:?}, left {left}");
}

#[test]
fn a_sharded_model_is_downloaded_whole() {
    let mut repo = repo();
    let weights = repo.files.remove("model.safetensors").unwrap();
    let index = serde_json::json!({ "weight_map": { "wte.weight": "model-00001-of-00001.safetensors" } });
    repo.files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    repo.files.insert("model-00001-of-00001.safetensors".into(), weights);
    let hub = Hub::new(move |request| repo.answer(request));
    let cache = tempfile::tempdir().unwrap();
    interp(&hub, cache.path()).words("sites --model owner/name").run().ok();
    interp(&hub, cache.path()).words("sites --model owner/name --offline").run().ok();
}

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn offline_means_no_socket() {
    let cache = tempfile::tempdir().unwrap();
    let interp = || Interp::new().without_env("HF_HUB_OFFLINE").env("HF_HUB_CACHE", cache.path()).forbid_sockets();
    // The guard itself works: a download does ask for a socket, and is killed.
    let download = interp().env("HF_ENDPOINT", "http://127.0.0.1:9").words("models download gpt2").run();
    assert_ne!(download.code, Some(69), "the filter let a socket through");
    // Without a model to fetch nothing asks for one, with or without --offline.
    for words in [
        "attention --layer 5 --prompt hello",
        "predict --prompt hello",
        "tokens --prompt hello",
        "lens --prompt hello",
        "models list",
        "models verify",
        "doctor",
        "sites",
    ] {
        interp().words(words).run().ok();
    }
    for (variable, words) in [
        ("X", "sites --model gpt2 --offline"),
        ("HF_HUB_OFFLINE", "sites --model gpt2"),
        ("TRANSFORMERS_OFFLINE", "sites --model gpt2"),
    ] {
        interp().env(variable, "1").words(words).run().refused(66, "the network is off");
        let download = interp().env(variable, "1").words(&words.replace("sites --model", "models download"));
        download.run().refused(69, "the network is off");
    }
}

#[test]
fn fixtures_are_served_by_their_hash() {
    // The fake hub itself: what it announces is what it sends.
    let content = std::fs::read(fixture("parity/one/config.json")).unwrap();
    let request = Request { path: "/x".into(), headers: [("range".to_string(), "bytes=10-".to_string())].into() };
    let response = file(&content, &request);
    assert_eq!((response.status, response.body.as_slice()), (206, &content[10..]));
}

#[test]
fn all_models_are_held_against_the_disk_before_the_first_is_asked_for() {
    if !can_mount() {
        eprintln!("this machine lets users mount nothing: no disk is too small here");
        return;
    }
    let hub = Hub::new(|_| Response::status(404));
    let small = tempfile::tempdir().unwrap();
    let run = Interp::new().words("models download --all").mounted(small.path(), "size=50m");
    let run = run.env("HF_ENDPOINT", &hub.address).env("HF_HUB_CACHE", small.path()).run();
    assert!(run.stderr.contains("5 models, 11.6 GB to download"), "{}", run.stderr);
    assert_eq!(run.code, Some(73), "{}", run.stderr);
    assert!(run.stderr.contains("the models need 11.6 GB"), "{}", run.stderr);
    assert!(hub.log().is_empty() && files(small.path()).is_empty());
}

#[test]
fn one_byte_per_connection_ends() {
    let repo = repo();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        if is_weights(request) && !request.is_probe() {
            response.cut = Some(1);
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().refused(75, "run again to resume");
    assert_eq!(hub.count("model.safetensors"), Patience::default().retries);
    assert!(!has_weights(cache.path()));
}

#[test]
fn a_hub_that_is_too_slow_is_given_up() {
    let repo = repo();
    let hub = Hub::new(move |request| {
        let mut response = repo.answer(request);
        response.slow = is_weights(request).then_some(Duration::from_millis(1));
        response
    });
    let cache = tempfile::tempdir().unwrap();
    // Whatever arrives in a window is too little: that the window is looked at does not depend on how fast this machine is.
    let places = Places {
        hub: Some(cache.path().into()),
        endpoint: hub.address.clone(),
        token: Token::None,
        offline: false,
        digests: None,
        patience: Patience { window: Duration::from_millis(50), least: u64::MAX, retries: 1, ..Patience::default() },
    };
    let repository = Repository::parse("owner/name").unwrap();
    let error = weights::download(&repository, Format::Safetensors, &places, &mut ()).unwrap_err();
    assert!(matches!(error, Error::TryAgain(_)), "{error}");
    assert!(error.to_string().contains("model.safetensors: too slow"), "{error}");
    assert!(!has_weights(cache.path()));
}

#[test]
fn a_file_larger_than_its_kind_is_refused_before_it_is_here() {
    let large = || vec![b' '; (1 << 20) + 5000];
    // Announced: not a byte of it is asked for.
    let answers = repo();
    let hub = Hub::new(move |request| {
        let mut response = answers.answer(request);
        if request.path.ends_with("config.json") {
            response.headers.retain(|(name, _)| name != "content-range");
            response = response.header("content-range", "bytes 0-0/629145600");
        }
        response
    });
    let cache = tempfile::tempdir().unwrap();
    let run = download(&hub, cache.path()).run();
    run.refused(65, "config.json: the hub announces 629145600 bytes; such a file has at most 1048576");
    assert_eq!(hub.count("config.json"), 0);
    // Not announced: it is broken off, and nothing is kept.
    let (mut answers, content) = (repo(), large());
    answers.files.insert("config.json".into(), content);
    let hub = Hub::new(move |request| {
        let mut response = answers.answer(request);
        response.headers.retain(|(name, _)| name != "content-range");
        response
    });
    let cache = tempfile::tempdir().unwrap();
    download(&hub, cache.path()).run().refused(65, "config.json: the hub sent more than the 1048576 bytes");
    let left: Vec<_> = files(cache.path()).into_iter().filter(|f| f.extension().is_none_or(|e| e != "lock")).collect();
    assert!(left.is_empty(), "{left:?}");
    // Weights of unknown size are not asked for: their kind has no limit.
    let answers = repo();
    let hub = Hub::new(move |request| {
        let mut response = answers.answer(request);
        if is_weights(request) {
            response.headers.retain(|(name, _)| name != "content-range");
        }
        response
    });
    download(&hub, cache.path()).run().refused(65, "model.safetensors: the hub does not say how large it is");
    assert_eq!(hub.count("model.safetensors"), 0);
    // The description of the repository is a file as well.
    let hub = Hub::new(|_| Response { status: 200, body: vec![b' '; 9 << 20], ..Response::default() });
    download(&hub, cache.path()).run().refused(65, "the hub sent more than the 8388608 bytes");
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let cache = tempfile::tempdir().unwrap();
    for endpoint in
        ["http://localhost:x@127.0.0.2", "https://user:hf_secret@huggingface.co", "http://127.0.0.1@evil.org"]
    {
        let run = Interp::new().without_env("HF_HUB_OFFLINE").words("models download owner/name");
        let run = run.env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", cache.path()).env("HF_TOKEN", "hf_secret").run();
        assert!(!run.stderr.contains("hf_secret"), "{}", run.stderr);
        run.refused(2, "HF_ENDPOINT: the address names a user or a password");
    }
    let authorised = |hub: &Hub| hub.log().iter().filter(|r| r.headers.contains_key("authorization")).count();
    // Led away and back again, a request has lost the token for good; so has the description of a repository.
    let home = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let back = home.clone();
    let elsewhere =
        Hub::new(move |r| Response::status(302).header("location", format!("{}/back{}", back.lock().unwrap(), r.path)));
    let (there, answers) = (elsewhere.address.clone(), repo());
    let hub = Hub::new(move |request| match request.path.starts_with("/back") {
        true => answers.answer(&Request { path: request.path["/back".len()..].into(), ..request.clone() }),
        false => {
            let content = answers.files.get(request.path.rsplit('/').next().unwrap_or("")).cloned().unwrap_or_default();
            let away = Response::status(302).header("location", format!("{there}{}", request.path));
            away.header("x-linked-etag", sha256_of(&content)).header("x-linked-size", content.len().to_string())
        }
    });
    *home.lock().unwrap() = hub.address.clone();
    download(&hub, cache.path()).env("HF_TOKEN", "hf_secret").run().ok();
    assert_eq!(authorised(&elsewhere), 0);
    for request in hub.log() {
        assert_eq!(request.headers.contains_key("authorization"), !request.path.starts_with("/back"), "{request:?}");
    }
    // Plain http is for this machine: no proxy of the environment gets to see the token.
    let (proxy, answers) = (Hub::new(|_| Response::status(500)), repo());
    let hub = Hub::new(move |request| answers.answer(request));
    let cache = tempfile::tempdir().unwrap();
    let run = download(&hub, cache.path()).env("HF_TOKEN", "hf_secret");
    run.env("http_proxy", &proxy.address).env("HTTP_PROXY", &proxy.address).env("ALL_PROXY", &proxy.address).run().ok();
    assert!(proxy.log().is_empty() && authorised(&hub) > 0);
}

#[test]
fn a_token_is_one_short_line_of_a_regular_file() {
    let hub = Hub::new(|_| Response::status(500));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fifo = std::ffi::CString::new(at("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a valid C string and a mode.
    #[allow(unsafe_code)]
    let made = unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) };
    assert_eq!(made, 0);
    std::fs::write(at("large"), vec![b'a'; 5000]).unwrap();
    std::fs::write(at("lines"), "hf_one\nhf_two\n").unwrap();
    std::fs::write(at("bytes"), [0xFF, 0xFE, 0x00]).unwrap();
    let cases = [
        ("HF_TOKEN_PATH", at("fifo").into_os_string(), 66, "not a regular file"),
        ("HF_TOKEN_PATH", "/dev/zero".into(), 66, "not a regular file"),
        ("HF_TOKEN_PATH", dir.path().into(), 66, "a directory, where a file is wanted"),
        ("HF_TOKEN_PATH", at("large").into_os_string(), 65, "larger than the 4096 bytes"),
        ("HF_TOKEN_PATH", at("lines").into_os_string(), 2, "has characters that no token has"),
        ("HF_TOKEN_PATH", at("bytes").into_os_string(), 2, "has characters that no token has"),
        ("HF_TOKEN", "hf_secret\r\nX-Evil: 1".into(), 2, "HF_TOKEN has characters that no token has"),
        ("HF_TOKEN", "hf_secret hf_other".into(), 2, "HF_TOKEN has characters that no token has"),
        ("HUGGING_FACE_HUB_TOKEN", "\u{1b}[2J".into(), 2, "has characters that no token has"),
    ];
    for (variable, value, code, wanted) in cases {
        let run = download(&hub, dir.path()).env(variable, &value).run();
        assert!(!run.stderr.contains("hf_"), "{}", run.stderr);
        run.refused(code, wanted);
        // What asks no hub needs no token.
        interp(&hub, dir.path()).env(variable, &value).words("models list").run().ok();
    }
    assert!(hub.log().is_empty());
    // A token is read where Hugging Face keeps it, with the newline at its end.
    std::fs::write(at("token"), "hf_good\n").unwrap();
    let run = download(&hub, dir.path()).env("HF_TOKEN_PATH", at("token")).run();
    assert_eq!(run.code, Some(75), "{}", run.stderr);
    assert_eq!(hub.log()[0].headers["authorization"], "Bearer hf_good");
}

/// A cache with one repository as Hugging Face lays it out, without links.
fn snapshot(cache: &Path, repo: &Repo) -> std::path::PathBuf {
    let dir = cache.join("models--owner--name/snapshots").join(COMMIT);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, content) in &repo.files {
        std::fs::write(dir.join(name), content).unwrap();
    }
    dir
}

#[test]
fn links_lead_from_snapshots_to_blobs_and_nowhere_else() {
    let (repo, outside) = (repo(), tempfile::tempdir().unwrap());
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let cache = tempfile::tempdir().unwrap();
        let file = snapshot(cache.path(), &repo).join(name);
        let victim = outside.path().join(name);
        std::fs::rename(&file, &victim).unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        for offline in ["0", "1"] {
            let run = Interp::new().words("models info owner/name").env("HF_HUB_CACHE", cache.path());
            run.env("HF_HUB_OFFLINE", offline).run().refused(65, "out of its repository in the cache");
        }
        // As a blob of its own repository the same link is what Hugging Face makes.
        let blobs = cache.path().join("models--owner--name/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::rename(&victim, blobs.join(name)).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), &file).unwrap();
        Interp::new().words("models info owner/name").env("HF_HUB_CACHE", cache.path()).run().ok();
    }
    // Nor is anything written through one.
    for link in ["models--owner--name", "models--owner--name/blobs", "models--owner--name/snapshots", ".locks"] {
        let cache = tempfile::tempdir().unwrap();
        let victim = tempfile::tempdir().unwrap();
        let path = cache.path().join(link);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(victim.path(), &path).unwrap();
        let answers = repo.clone();
        let hub = Hub::new(move |request| answers.answer(request));
        download(&hub, cache.path()).run().refused(65, "out of its repository in the cache");
        assert!(files(victim.path()).is_empty() && std::fs::read_dir(victim.path()).unwrap().count() == 0, "{link}");
    }
    let cache = tempfile::tempdir().unwrap();
    let locks = cache.path().join(".locks/models--owner--name");
    std::fs::create_dir_all(&locks).unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let lock = locks.join(format!("{}.lock", sha256_of(&repo.files["config.json"])));
    std::os::unix::fs::symlink(&victim, lock).unwrap();
    let hub = Hub::new(move |request| repo.answer(request));
    let run = download(&hub, cache.path()).run();
    assert_eq!(run.code, Some(73), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_repository_without_a_tokenizer_works_with_another() {
    let mut repo = repo();
    let tokenizer = tempfile::tempdir().unwrap();
    std::fs::write(tokenizer.path().join("tokenizer.json"), repo.files.remove("tokenizer.json").unwrap()).unwrap();
    let hub = Hub::new(move |request| repo.answer(request));
    let cache = tempfile::tempdir().unwrap();
    let predict = || interp(&hub, cache.path()).words("predict --prompt hello --format json --model owner/name");
    predict().arg("--tokenizer").arg(tokenizer.path()).run().ok();
    let asked = hub.log().len();
    predict().arg("--tokenizer").arg(tokenizer.path()).run().ok();
    predict().words("--offline").arg("--tokenizer").arg(tokenizer.path()).run().ok();
    interp(&hub, cache.path()).words("sites --model owner/name --offline").run().ok();
    predict()
        .words("--offline")
        .run()
        .refused(66, "owner/name: no tokenizer beside the model; name one with --tokenizer");
    assert_eq!(hub.log().len(), asked, "what is in the cache is not asked for again");
    // What is in the cache in part is not said to be absent from it.
    std::fs::remove_file(cache.path().join("models--owner--name/snapshots").join(COMMIT).join("model.safetensors"))
        .unwrap();
    predict().words("--offline").run().refused(66, "not whole in the Hugging Face cache");
    let other = interp(&hub, cache.path()).words("sites --offline --model owner/name@v2").run();
    other.refused(66, &format!("no revision v2, only {COMMIT}"));
}

#[test]
fn a_repository_with_pytorchs_weights_alone_is_converted() {
    let mut repo = repo();
    repo.files.remove("model.safetensors");
    let torch = fixture("foreign/bin_sharded");
    for entry in std::fs::read_dir(torch).unwrap() {
        let entry = entry.unwrap();
        repo.files.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    }
    repo.files.remove("tokenizer.json"); // of another vocabulary
    let hub = Hub::new(move |request| repo.answer(request));
    let cache = tempfile::tempdir().unwrap();
    interp(&hub, cache.path())
        .words("sites --model owner/name")
        .run()
        .refused(66, "`interp models convert owner/name`");
    let outcome = interp(&hub, cache.path()).words("models convert owner/name --out model").run().ok();
    assert!(outcome.dir.path().join("model/model.safetensors").exists());
    let asked = hub.log().len();
    interp(&hub, cache.path()).words("models convert owner/name --out model --offline").run().ok();
    assert_eq!(hub.log().len(), asked);
}
