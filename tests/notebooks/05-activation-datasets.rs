// The cells of notebooks/05-activation-datasets.ipynb: see tests/notebooks.rs.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
use interp::notebook::prelude::*;

let (model, tokenizer) = open("tiny")?; // "gpt2" for GPT-2 small: downloaded once, checked, kept in the Hugging Face cache;

use interp::{dataset::documents::given, export::{self, Export, Piece}, pairset::PairSet};
let mut texts = Vec::new();
for name in ["tiny-ioi", "tiny-agreement", "tiny-facts", "tiny-pronoun"] {
    let set = PairSet::shipped(name).unwrap()?;
    for index in 0..100 {
        texts.push(set.draw(None, None, 0, index)?.clean);
    }
}
println!("{} texts, such as: {}", texts.len(), texts[250]);

let sites = [Site::ResidPost(0), Site::ResidPost(2), Site::ResidPost(5)];
let dir = std::path::PathBuf::from("../target/notebooks/streams");
let _ = std::fs::remove_dir_all(&dir);
let manifest = {
    let request = export::request(&model, &tokenizer, &sites);
    let mut work = Export::open(&model, &tokenizer, &dir, &request, || Ok(given(texts.clone())))?;
    work.run(Piece { index: 0, of: 1 }, &mut |_| Ok(()), &|| true)?;
    work.seal()?
};
println!("{} rows, {} bytes, sha256 of part 0 {}…", manifest.rows, manifest.bytes, &manifest.parts[0].sha256[..12]);

let rows = load_parquet(&dir.join(&manifest.parts[0].file))?;
show(&rows);

let pos: Vec<u32> = rows.column("pos")?.u32()?.into_no_null_iter().collect();
let mut lines = Vec::new();
for site in sites {
    let column = rows.column(&site.to_string())?.array()?.get_inner();
    let flat: Vec<f32> = column.f32()?.into_no_null_iter().collect();
    let width = flat.len() / pos.len();
    let mut sums = vec![(0.0_f64, 0.0_f64); 16];
    for (vector, pos) in flat.chunks(width).zip(&pos).filter(|(_, pos)| **pos < 16) {
        let norm = vector.iter().map(|x| (*x as f64) * (*x as f64)).sum::<f64>().sqrt();
        sums[*pos as usize].0 += norm;
        sums[*pos as usize].1 += 1.0;
    }
    let points = sums.iter().enumerate().filter(|(_, (_, n))| *n > 0.0).map(|(pos, (sum, n))| (pos as f64, sum / n)).collect();
    lines.push(figure::Line { name: site.to_string(), points, spread: Vec::new() });
}
figure::Lines { title: "Length of the residual stream".into(), x_name: "position".into(), y_name: "mean norm".into(), lines: lines.clone(), x_labels: Vec::new() }.draw();

for (site, statistics) in &manifest.statistics {
    println!("{site:<14} {} vectors, mean norm {:.2}, largest {:.2}", statistics.count, statistics.mean_norm, statistics.max_norm);
};

Ok(())
}
