use interp::{Plan, Result, catalogue, figure, memory};
use serde_json::json;

use super::args::Global;
use super::bench::Bench;
use super::report::{How, Outcome, Report};

pub fn run(global: &Global) -> Result<()> {
    let bench = Bench::open(global)?;
    let report = Report::begin("sites", global, &global.model)?;
    let frame = catalogue::sites(bench.config())?;
    let texts = |name: &str| -> Result<Vec<String>> {
        Ok(frame.column(name)?.str()?.iter().map(|x| x.unwrap_or_default().to_string()).collect())
    };
    let (site, name, axes, shape) = (texts("site")?, texts("name")?, texts("axes")?, texts("shape")?);
    let bytes: Vec<u64> = frame.column("bytes_per_token")?.u64()?.into_no_null_iter().collect();
    let mut lines =
        vec![format!("{:<22}{:<32}{:<28}{:<30}{}", "site", "TransformerLens name", "axes", "shape", "bytes/token")];
    lines.extend(
        (0..frame.height())
            .map(|i| format!("{:<22}{:<32}{:<28}{:<30}{}", site[i], name[i], axes[i], shape[i], bytes[i])),
    );
    let all: u64 = (0..frame.height()).filter(|&i| !site[i].starts_with("result")).map(|i| bytes[i]).sum();
    lines.push(format!(
        "{} sites; all but result, of one token: {} and 4 bytes per head and key at each attention map",
        frame.height(),
        memory::human(all)
    ));
    let outcome = Outcome {
        page: Vec::new(),
        figure: figure::sites(&frame)?,
        summary: lines.join("\n"),
        frame,
        how: How { plan: &Plan::new(), applied: Vec::new(), tokens: None, extra: json!({}) },
    };
    report.finish(global, bench, outcome)
}
