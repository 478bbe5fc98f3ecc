//! Which sites a change at a site can change.

use std::collections::BTreeSet;

use crate::site::Site;

/// Whether a change of the value at `from` can change the value at `to`, in a model with `layers` blocks. A site reaches itself.
///
/// ```
/// use interp::{Site, influence::reaches};
/// assert!(reaches(Site::V(0), Site::Z(0), 2));
/// assert!(!reaches(Site::V(0), Site::Pattern(0), 2), "values are weighted by the pattern, and do not make it");
/// assert!(!reaches(Site::MlpOut(1), Site::Z(1), 2));
/// ```
pub fn reaches(from: Site, to: Site, layers: usize) -> bool {
    from == to || after(from, layers).contains(&to)
}

/// Whether a change of the value at one position of `from` can change anything at a later position. Only keys and values are read from
/// there.
pub fn reaches_later_positions(from: Site, layers: usize) -> bool {
    let read = |site: &Site| matches!(site, Site::K(_) | Site::V(_));
    read(&from) || after(from, layers).iter().any(read)
}

/// Every site that is computed from the value at `from`.
fn after(from: Site, layers: usize) -> BTreeSet<Site> {
    let (mut found, mut waiting) = (BTreeSet::new(), next(from, layers));
    while let Some(site) = waiting.pop() {
        if found.insert(site) {
            waiting.extend(next(site, layers));
        }
    }
    found
}

/// The sites that are computed from this one directly: the arrows of the forward pass.
fn next(site: Site, layers: usize) -> Vec<Site> {
    use Site::*;
    match site {
        Embed | PosEmbed => vec![ResidPre(0)],
        ResidPre(l) => vec![QInput(l), KInput(l), VInput(l), Ln1Scale(l), Ln1Normalized(l), ResidMid(l)],
        QInput(l) => vec![Q(l)],
        KInput(l) => vec![K(l)],
        VInput(l) => vec![V(l)],
        Ln1Scale(l) => vec![Ln1Normalized(l)],
        Ln1Normalized(l) => vec![Q(l), K(l), V(l)],
        Q(l) | K(l) => vec![AttnScores(l)],
        AttnScores(l) => vec![Pattern(l)],
        Pattern(l) | V(l) => vec![Z(l)],
        Z(l) => vec![Result(l), AttnOut(l)],
        Result(l) => vec![AttnOut(l)],
        AttnOut(l) => vec![ResidMid(l)],
        ResidMid(l) => vec![MlpIn(l), ResidPost(l)],
        MlpIn(l) => vec![Ln2Scale(l), Ln2Normalized(l)],
        Ln2Scale(l) => vec![Ln2Normalized(l)],
        Ln2Normalized(l) => vec![MlpPre(l)],
        MlpPre(l) => vec![MlpPost(l)],
        MlpPost(l) => vec![MlpOut(l)],
        MlpOut(l) => vec![ResidPost(l)],
        ResidPost(l) if l + 1 < layers => vec![ResidPre(l + 1)],
        ResidPost(_) => vec![LnFinalScale, LnFinalNormalized],
        LnFinalScale => vec![LnFinalNormalized],
        LnFinalNormalized => vec![Logits],
        Logits => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_reaches_the_logits_and_none_what_comes_before_it() {
        let all: Vec<Site> = Site::all(3).collect();
        for (i, &site) in all.iter().enumerate() {
            assert!(reaches(site, Site::Logits, 3), "{site}");
            assert!(all[..i].iter().all(|&before| !reaches(site, before, 3)), "{site} reaches what is before it");
        }
        assert!(reaches_later_positions(Site::MlpOut(1), 3) && reaches_later_positions(Site::V(2), 3));
        assert!(!reaches_later_positions(Site::Q(2), 3) && !reaches_later_positions(Site::ResidPost(2), 3));
    }
}
