// The cells of notebooks/04-probes.ipynb: see tests/notebooks.rs.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
use interp::notebook::prelude::*;

let (model, tokenizer) = open("tiny")?; // "gpt2" for GPT-2 small: downloaded once, checked, kept in the Hugging Face cache;

use interp::{labelled::Labelled, probe, task::Task};
let task = Task::shipped("tiny-number").unwrap()?; // "number" for GPT-2
let examples = task.examples(600, 0, &tokenizer, Encoding::default())?;
for row in examples.rows.iter().take(4) {
    println!("{:<9} {}", row.label, examples.tokens.joined(row.prompt as usize));
};

let sites: Vec<Site> = (0..model.config().n_layer).map(Site::ResidPre).chain([Site::ResidPost(model.config().n_layer - 1)]).collect();
let studied = {
    let features = probe::features(&model, &sites, &examples.tokens, &examples.rows)?;
    let untrained = Gpt2::new(model.config().clone(), interp::initial::draw(model.config(), 0))?;
    let nothing = probe::features(&untrained, &sites, &examples.tokens, &examples.rows)?;
    println!("{:?} at each of {} sites", features[0].dim(), sites.len());
    let rows = Labelled::new(task.kind, &examples.rows)?;
    let study = probe::Study { name: "tiny-number", sites: &sites, features: &features, random: Some(&nothing), rows: &rows };
    probe::layers(&study, &probe::Options { seeds: 3, ..Default::default() }, &mut |_, _| Ok(()))?
};
let scores = studied.frame.clone();
figure::probes(&scores)?;

let accuracy = scores.filter(&scores.column("metric")?.str()?.equal("accuracy"))?;
for split in ["test", "control", "shuffled", "random"] {
    let own = accuracy.filter(&accuracy.column("split")?.str()?.equal(split))?;
    let mut line = format!("{split:<9}");
    for site in &sites {
        let at = own.filter(&own.column("site")?.str()?.equal(site.to_string().as_str()))?;
        line += &format!("  {:.2}", at.column("value")?.f64()?.mean().unwrap_or(f64::NAN));
    }
    println!("{line}");
};

let kept = studied.kept.iter().find(|kept| kept.site == Site::ResidPre(2)).unwrap().clone();
let text = tokenizer.tokens(&["The keys near the door"], Encoding::default())?;
let places: Vec<_> = (0..text.longest()).map(|pos| interp::labelled::Row { pos: pos as u32, ..Default::default() }).collect();
let classes = ["plural".to_string(), "singular".to_string()];
let applied = {
    let table = probe::features(&model, &[Site::ResidPre(2)], &text, &places)?.remove(0);
    probe::applied("tiny-number", &kept, Some(&classes), &text, &table)?
};
figure::applied(&applied)?;

Page::new("A probe on every token", vec![page::applied(&applied)?]);

Ok(())
}
