// The cells of notebooks/02-hooks-and-edits.ipynb: see tests/notebooks.rs.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
use interp::notebook::prelude::*;

let (model, tokenizer) = open("tiny")?; // "gpt2" for GPT-2 small: downloaded once, checked, kept in the Hugging Face cache;

let prompt = "When Mary and John went to the shop, John gave a drink to";
let tokens = tokenizer.tokens(&[prompt], Encoding::default())?;
let plain = Plan::new().read(Site::Z(0)).read(Site::ResidPost(2)).run(&model, &tokens)?;
println!("z.0          {:?}  prompt, pos, head, dim", plain.get(Site::Z(0))?.dims());
println!("resid_post.2 {:?}     prompt, pos, dim", plain.get(Site::ResidPost(2))?.dims());

let without = Plan::new().edit(Edit::zero(Site::Z(0)).head(1)).run(&model, &tokens)?;
for edit in without.edits() {
    println!("{}: changed by {:?}", edit.edit, edit.relative_change);
}
figure::predict(&interp::predict::from_trace(&without, &tokenizer, 8)?, 0)?;

use interp::target::Target;
let target = Target::parse(&tokenizer, &[" Mary"], &[" John"])?;
let last = tokens.longest() - 1;
let mut rows = Vec::new();
for pos in 0..=last {
    let trace = Plan::new().edit(Edit::zero(Site::Z(0)).head(1).pos(pos)).run(&model, &tokens)?;
    let logits: Vec<f32> = trace.logits()?.narrow(1, last, 1)?.flatten_all()?.to_vec1()?;
    rows.push((format!("{} at {pos}", figure::shown(&tokens.text(0, pos))), target.value(&logits)?, String::new()));
}
figure::Bars { title: "Head 0.1 silenced at one position".into(), note: "what is left of the logit difference".into(), value_name: "Mary over John".into(), bars: rows.clone() }.draw();

let other = tokenizer.tokens(&["When Mary and John went to the shop, Mary gave a drink to"], Encoding::default())?;
let donor = Plan::new().read(Site::Z(0)).run(&model, &other)?;
let swapped = Plan::new().edit(Edit::patch(Site::Z(0), donor.get(Site::Z(0))?).head(1)).run(&model, &tokens)?;
show(&interp::predict::from_trace(&swapped, &tokenizer, 1)?.tail(Some(1)));

let flat = Edit::map(Site::Pattern(3), |pattern| Ok((pattern * 0.0)?)); // layer 3 looks at nothing
let trace = Plan::new().edit(flat).run(&model, &tokens)?;
show(&interp::predict::from_trace(&trace, &tokenizer, 3)?.tail(Some(3)));

let trace = Plan::new().read(Site::ResidPre(0)).grad(Site::ResidPre(0)).run(&model, &tokens)?;
let logits = trace.logits()?.narrow(1, last, 1)?.flatten_all()?;
let (mary, john) = (target.answers()[0] as usize, target.wrong()[0] as usize);
let difference = (logits.get(mary)? - logits.get(john)?)?;
let saliency: Vec<f32> = {
    let gradients = trace.backward(&difference)?;
    (gradients.get(Site::ResidPre(0))? * trace.get(Site::ResidPre(0))?)?.sum(2)?.flatten_all()?.to_vec1()?
};
figure::Bars {
    title: "Gradient × activation".into(),
    note: "of Mary over John, by token".into(),
    value_name: "first-order effect".into(),
    bars: saliency.iter().enumerate().map(|(pos, x)| (figure::shown(&tokens.text(0, pos)), *x as f64, format!("{x:+.2}"))).collect(),
}.draw();

use std::collections::BTreeMap;
let count = {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    model.run(interp::gpt2::Pass::new(&tokens), &mut interp::hooks::from_fn(|site, value| {
        *count.entry(site.kind().to_string()).or_default() += value.elem_count();
        Ok(value)
    }))?;
    count
};
println!("{count:?}");

Ok(())
}
