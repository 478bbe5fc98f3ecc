//! How much memory there is, and saying no before it runs out.

use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// Bytes that this process can still allocate without swapping, where the system tells: the least of what the machine has, what the
/// process's own cgroup may still take, and what its limit of address space (`ulimit -v`) leaves.
pub fn available() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024);
    [machine, left_of_cgroup(), left_of_address_space()].into_iter().flatten().min()
}

/// Bytes that the cgroup (version 2) of this process may still take.
fn left_of_cgroup() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A limit holds for all groups below it.
    Path::new("/sys/fs/cgroup")
        .join(own)
        .ancestors()
        .take_while(|dir| dir.starts_with("/sys/fs/cgroup"))
        .filter_map(left_of_group)
        .min()
}

fn left_of_group(dir: &Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, taken) = (number("memory.max")?, number("memory.current")?);
    // Files that were read stay in memory until it is needed for something else.
    let files = field(dir.join("memory.stat"), "inactive_file ").unwrap_or(0);
    Some(limit.saturating_sub(taken.saturating_sub(files)))
}

/// Bytes that the limit of address space leaves, if there is one.
#[allow(unsafe_code)]
fn left_of_address_space() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: getrlimit writes one struct, which lives here.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    if asked != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let taken = field("/proc/self/status", "VmSize:")? * 1024;
    Some(limit.rlim_cur.saturating_sub(taken))
}

/// The most bytes that this process has held, where the system tells.
pub fn peak() -> Option<u64> {
    field("/proc/self/status", "VmHWM:").map(|kib| kib * 1024)
}

/// Bytes that this process holds now, where the system tells.
pub fn held() -> Option<u64> {
    field("/proc/self/status", "VmRSS:").map(|kib| kib * 1024)
}

fn field(file: impl AsRef<Path>, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Refuses what would not fit into `limit`, or without a limit into the memory that is available.
///
/// # Errors
/// [`Error::TryAgain`] with both numbers.
pub fn check(what: &str, needed: u64, limit: Option<u64>) -> Result<()> {
    let (room, whose) = match limit {
        Some(limit) => (limit, "the limit of --memory is"),
        None => match available() {
            Some(bytes) => (bytes, "available are"),
            None => return Ok(()),
        },
    };
    if needed <= room {
        return Ok(());
    }
    Err(Error::TryAgain(format!("{what} needs {} of memory; {whose} {}", human(needed), human(room))))
}

/// Refuses what would not fit into the part of --memory that is left for it.
///
/// # Errors
/// [`Error::TryAgain`] with both numbers.
pub fn check_left(what: &str, needed: u64, left: Option<u64>) -> Result<()> {
    match left {
        Some(left) if needed > left => Err(Error::TryAgain(format!(
            "{what} needs {} of memory; --memory leaves {} for it",
            human(needed),
            human(left)
        ))),
        _ => Ok(()),
    }
}

/// Does some work on a batch; where there is no memory for it, on its halves, one after the other, down to single prompts.
/// `work` is given a range of the batch, and leaves nothing of it behind where it fails.
///
/// # Errors
/// What `work` returns for a single prompt, or of another kind than [`Error::TryAgain`].
pub fn halving(batch: Range<usize>, work: &mut dyn FnMut(Range<usize>) -> Result<()>) -> Result<()> {
    match work(batch.clone()) {
        Err(Error::TryAgain(_)) if batch.len() > 1 => {
            let middle = batch.start + batch.len() / 2;
            halving(batch.start..middle, work)?;
            halving(middle..batch.end, work)
        }
        done => done,
    }
}

/// Does some work on `n` things in parts of at most `most`, in order; where there is no memory for one, as [`halving`] does it, and from
/// then on in parts of the size that there is memory for.
///
/// # Errors
/// As [`halving`].
pub fn in_parts(n: usize, most: usize, work: &mut dyn FnMut(Range<usize>) -> Result<()>) -> Result<()> {
    let (mut start, mut most) = (0, most.max(1));
    while start < n {
        let end = n.min(start + most);
        halving(start..end, &mut |part| {
            let size = part.len();
            let done = work(part);
            if let Err(Error::TryAgain(_)) = done {
                most = most.min((size / 2).max(1));
            }
            done
        })?;
        start = end;
    }
    Ok(())
}

/// The product of sizes and counts as bytes, for a comparison with what there is: so many that no memory holds them where the product
/// passes 64 bits.
pub fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product: u64, factor| product.saturating_mul(*factor))
}

/// The results of such work.
///
/// # Errors
/// As [`halving`].
pub fn in_batches<R>(n: usize, most: usize, work: &mut dyn FnMut(Range<usize>) -> Result<Vec<R>>) -> Result<Vec<R>> {
    let mut all = Vec::new();
    in_parts(n, most, &mut |part| {
        all.extend(work(part)?);
        Ok(())
    })?;
    Ok(all)
}

/// How many things of so many bytes may be held at once: as many as are usual, or fewer where --memory leaves less room.
///
/// # Errors
/// [`Error::TryAgain`] where there is no room for one.
pub fn at_once(what: &str, bytes: u64, usual: usize, left: Option<u64>) -> Result<usize> {
    check_left(what, bytes, left)?;
    Ok(left.map_or(usual, |left| usual.min((left / bytes.max(1)) as usize)).max(1))
}

/// Bytes for people: `1.94 GB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Reads `800MB`, `2G`, `1.5 GiB` or a plain number of bytes.
///
/// # Errors
/// [`Error::Request`].
pub fn parse(text: &str) -> Result<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    match number.parse::<f64>() {
        Ok(number) if factor.is_finite() && number > 0.0 && number * factor < 1e18 => Ok((number * factor) as u64),
        _ => {
            Err(Error::request(format!("`{}` is no amount of memory; write 800MB or 2GB", crate::error::shorten(text))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_that_fits_is_remembered() {
        let mut parts = Vec::new();
        let found = in_batches(20, 8, &mut |part| {
            parts.push(part.len());
            if part.len() > 3 { Err(Error::TryAgain("no room".into())) } else { Ok(part.collect()) }
        });
        assert_eq!(found.unwrap(), (0..20).collect::<Vec<_>>());
        // 8 and twice 4 fail once, and are not tried again.
        assert_eq!(parts, [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn what_does_not_fit_is_halved_until_it_does() {
        let run = |room: usize| {
            let (mut done, mut tries) = (Vec::new(), 0);
            let outcome = halving(0..7, &mut |part| {
                tries += 1;
                if part.len() > room {
                    return Err(Error::TryAgain(format!("{} prompts", part.len())));
                }
                done.extend(part);
                Ok(())
            });
            (outcome, done, tries)
        };
        for (room, tries) in [(7, 1), (4, 3), (3, 5), (1, 13)] {
            let (outcome, done, tried) = run(room);
            assert!(
                outcome.is_ok() && done == (0..7).collect::<Vec<_>>() && tried == tries,
                "room for {room}: {tried}"
            );
        }
        assert!(matches!(run(0).0, Err(Error::TryAgain(what)) if what == "1 prompts"));
        let mut tries = 0;
        let refused = halving(0..7, &mut |_| {
            tries += 1;
            Err(Error::request("wrong"))
        });
        assert!(matches!(refused, Err(Error::Request(_))) && tries == 1);
    }

    #[test]
    fn amounts_read_and_print() {
        assert_eq!(parse("800MB").unwrap(), 800_000_000);
        assert_eq!(parse("1.5 GiB").unwrap(), 1_610_612_736);
        assert_eq!(parse("42").unwrap(), 42);
        for bad in ["", "GB", "-1GB", "1 parsec", "0", "1e9999GB"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(human(999), "999 B");
        assert_eq!(human(1_940_000_000), "1.94 GB");
        assert_eq!(human(548_100_000), "548 MB");
    }
}
