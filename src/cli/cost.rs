//! What a run would take, before it is taken: time, memory and money.

use interp::{Error, Result, memory};
use serde_json::{Value, json};

use super::args::{Format, Global};
use super::output::{print, say};

/// What frame and picture of a usual result take, which a dry run does not make: measured, 5 to 20 MB.
const RESULT_BYTES: u64 = 12_000_000;

/// What `--dry-run` says.
pub struct Estimate {
    /// Wall time of the whole run.
    pub seconds: f64,
    /// The most memory that it holds.
    pub peak: u64,
    /// What else is known, for JSON.
    pub facts: Value,
    /// What else is known, for people.
    pub lines: Vec<(&'static str, String)>,
}

impl Estimate {
    /// Prints it: lines for people, or one JSON object.
    pub fn show(self, global: &Global) -> Result<()> {
        let cost = global.cost(self.seconds);
        if global.format == Format::Csv {
            return Err(Error::Request("a dry run is no table; --format json has all of it".into()));
        }
        if global.format == Format::Json {
            let mut facts = self.facts;
            let all = facts.as_object_mut().ok_or_else(|| Error::Bug("facts that are no object".into()))?;
            all.insert("total_seconds".into(), json!(self.seconds));
            all.insert("peak_bytes".into(), json!(self.peak));
            all.insert("cost".into(), json!(cost));
            return print(&(facts.to_string() + "\n"));
        }
        let mut lines = self.lines;
        lines.push(("memory", format!("{} at most", memory::human(self.peak))));
        lines.push(("the run", duration(self.seconds)));
        if let (Some(cost), Some(price)) = (cost, global.price) {
            lines.push(("cost", format!("{cost:.4} at {price} per hour")));
        }
        let text: Vec<String> = lines.iter().map(|(name, value)| format!("  {name:<14}{value}")).collect();
        say(global, &text.join("\n"))
    }
}

/// The most memory that a run holds of which a piece was measured in this process.
pub fn peak() -> u64 {
    memory::peak().unwrap_or(0) + RESULT_BYTES
}

/// Time for people.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} seconds"),
        s if s < 120.0 => format!("{s:.0} seconds"),
        s if s < 7200.0 => format!("{:.0} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}
