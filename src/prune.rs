//! Circuit discovery by pruning: edges are taken away as long as nothing is lost (ACDC, Conmy et al. 2023).

use crate::error::{Error, Result};
use crate::graph::{Circuit, Judge};

/// Takes away every edge that costs less than `threshold`, receiver by receiver from the logits back.
///
/// All edges into one receiver are tried at once, each against the circuit so far, and those that cost less than the threshold
/// go together; ACDC tries them one after the other. What no longer leads to the logits goes without a trial. The cost is
/// [`Judge::harm`]: the rise of the divergence, or the fall of any other metric. `progress(done, all)` counts edges.
///
/// # Errors
/// [`Error::Request`] for a threshold that is negative or no number, faults of the runs, and what `progress` returns.
pub fn prune(
    judge: &Judge<'_>,
    threshold: f64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Circuit> {
    if !(threshold >= 0.0 && threshold.is_finite()) {
        return Err(Error::request(format!("a threshold of {threshold} prunes nothing; it is 0 or more")));
    }
    let graph = judge.graph();
    let mut circuit = Circuit::full(graph);
    let mut now = judge.values(&circuit)?;
    let mut done = 0;
    for receiver in (0..graph.receivers()).rev() {
        let edges = graph.edges_into(receiver);
        done += edges.len();
        // Receivers come after what they feed, so what is left of the circuit says whether anything reads this one.
        let connected = circuit.connected();
        let tried: Vec<usize> = edges.clone().filter(|edge| connected.has(*edge)).collect();
        edges.for_each(|edge| circuit.set(edge, connected.has(edge)));
        if !tried.is_empty() {
            let without: Vec<Circuit> = tried
                .iter()
                .map(|edge| {
                    let mut one = circuit.clone();
                    one.set(*edge, false);
                    one
                })
                .collect();
            let values = judge.values_of(&without.iter().collect::<Vec<_>>())?;
            let cheap: Vec<usize> = tried
                .into_iter()
                .zip(&values)
                .filter(|(_, values)| judge.harm(&now, values) < threshold)
                .map(|(edge, _)| edge)
                .collect();
            cheap.iter().for_each(|edge| circuit.set(*edge, false));
            if !cheap.is_empty() {
                now = judge.values(&circuit)?;
            }
        }
        progress(done, graph.edges())?;
    }
    Ok(circuit.connected())
}
