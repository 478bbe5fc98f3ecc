//! Addresses of the hub, and where a redirect may lead. They are parsed by the library that also sends the requests, so
//! that both mean the same host.

use std::net::{Ipv4Addr, Ipv6Addr};

use ureq::http::Uri;

use crate::error::shorten;

/// Reads an address. It must be https, or http to this machine itself; it names no user.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<Uri, String> {
    // First of all, since no message may show a password.
    let authority = address.split_once("://").map_or(address, |(_, rest)| rest).split(['/', '?', '#', '\\']).next();
    if authority.is_some_and(|authority| authority.contains('@')) {
        return Err("the address names a user or a password: put the token into HF_TOKEN instead".into());
    }
    let shown = shorten(address);
    let uri: Uri = match address.parse() {
        Ok(uri) if !address.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') => uri,
        _ => return Err(format!("`{shown}` is no address")),
    };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(format!("`{shown}` is not https, with a host"));
    };
    if authority.as_str().contains('@') {
        return Err("the address names a user".into());
    }
    let host = authority.host();
    let port = authority.as_str().strip_prefix(host).unwrap_or_default();
    let has_port = port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if host.is_empty() || !(port.is_empty() || has_port) {
        return Err(format!("`{shown}` has no host, or a port that is none"));
    }
    match scheme {
        "https" => Ok(uri),
        "http" if is_this_machine(host) => Ok(uri),
        _ => Err(format!("`{shown}` is not https; plain http is for this machine alone (localhost, 127.0.0.1, [::1])")),
    }
}

/// Whether a host is the loopback interface.
fn is_this_machine(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || v6.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback()))
}

/// Whether two addresses have the same scheme, host and port.
pub(super) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let scheme = uri.scheme_str()?.to_string();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    origin(a).is_some() && origin(a) == origin(b)
}

/// A redirect's target: absolute, or on the host that redirected.
///
/// # Errors
/// What is wrong with it.
pub(super) fn redirect(from: &Uri, location: &str) -> Result<Uri, String> {
    let address = match location.strip_prefix('/') {
        Some(path) if path.starts_with('/') => return Err("a redirect to nowhere".into()),
        Some(path) => match (from.scheme_str(), from.authority()) {
            (Some(scheme), Some(authority)) => format!("{scheme}://{authority}/{path}"),
            _ => return Err("a redirect to nowhere".into()),
        },
        None if location.contains("://") => location.to_string(),
        None => return Err("a redirect to nowhere".into()),
    };
    let to = check_address(&address).map_err(|what| format!("redirected to {what}"))?;
    match (from.scheme_str(), to.scheme_str()) {
        (Some("https"), Some("http")) => Err(format!("redirected from https to {}", shorten(&address))),
        _ => Ok(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_this_machine_and_no_user() {
        for good in [
            "https://huggingface.co",
            "https://hub.example.org:8443/mirror",
            "http://127.0.0.1:8080",
            "http://127.0.0.2:8080",
            "http://localhost",
            "http://LOCALHOST:1",
            "http://[::1]:80/x",
        ] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in [
            "http://localhost:x@127.0.0.2",
            "http://localhost:x@example.org",
            "http://127.0.0.1@evil.org/",
            "https://user:secret@huggingface.co",
            "https://@huggingface.co",
            "http://huggingface.co",
            "http://127.0.0.1.evil.org",
            "http://localhost.evil.org",
            "http://localhost.",
            "http://127.1",
            "http://2130706433",
            "http://0x7f.0.0.1",
            "http://0.0.0.0",
            "http://[::]",
            "http://[::ffff:10.0.0.1]",
            "http://10.0.0.1",
            "http://127.0.0.1\\@evil.org",
            "http://localhost:x",
            "http://localhost:",
            "http://localhost:0",
            "http://localhost:99999",
            "ftp://127.0.0.1",
            "https://",
            "https:///x",
            "//127.0.0.1",
            "127.0.0.1",
            "x",
            "",
            "https://a b",
            "https://a\n",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        let error = check_address("https://user:secret@huggingface.co").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&check_address(a).unwrap(), &check_address(b).unwrap());
        assert!(same("https://Huggingface.co/a", "https://huggingface.co:443/b?c"));
        for other in ["https://huggingface.co:8443", "https://cdn.huggingface.co", "http://localhost"] {
            assert!(!same("https://huggingface.co", other), "{other}");
        }
        assert!(!same("http://127.0.0.1:1", "http://127.0.0.1:2") && !same("http://127.0.0.1", "http://localhost"));
    }

    #[test]
    fn redirects_lead_to_addresses_and_never_out_of_https() {
        let hub = check_address("https://huggingface.co/a/b").unwrap();
        assert_eq!(redirect(&hub, "/c?u=http://x").unwrap().to_string(), "https://huggingface.co/c?u=http://x");
        assert_eq!(redirect(&hub, "https://cdn.example.org/c").unwrap().host(), Some("cdn.example.org"));
        for bad in ["", "c", "//evil.org/c", "http://127.0.0.1/c", "http://evil.org", "https://u@evil.org", "ftp://x/"]
        {
            assert!(redirect(&hub, bad).is_err(), "{bad}");
        }
    }
}
