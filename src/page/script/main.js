// The page: its blocks from top to bottom, and how their numbers were made.
const page = {
  attention: null,
  // Shows the attention of a head, if the page has it.
  toHead(head) {
    if (this.attention && this.attention.view.select(head, true)) this.attention.section.scrollIntoView({ block: 'start' });
  },
};
const views = { attention: attentionView, lens: lensView, maps: mapsView, strips: stripsView, bars: barsView, predictions: predictionsView };

document.body.append(tip, spoken);
const main = el('main', {}, el('h1', {}, data.title));
const sections = data.blocks.map((block) => {
  const section = el('section', { 'aria-label': block.title }, el('h2', {}, block.title), el('p', { class: 'soft' }, block.note));
  main.append(section);
  return [block, section];
});
document.body.append(main);
// Others lead to the attention: it must be there before them.
sections.sort(([a], [b]) => (b.kind === 'attention') - (a.kind === 'attention'));
for (const [block, section] of sections) {
  const view = views[block.kind](block, page);
  section.append(view.element);
  if (block.kind === 'attention') page.attention ??= { view, section };
}
if (location.hash && page.attention && data.blocks.length > 1) page.toHead(location.hash.slice(1));

if (data.run) {
  const { model, arguments: words = [], device, dtype } = data.run;
  const weights = (model?.weights_sha256 ?? [])[0] ?? '';
  const about = [model?.name, dtype, device, weights && `weights ${weights.slice(0, 12)}`].filter(Boolean).join(' · ');
  document.body.append(el('footer', {},
    el('p', { class: 'soft' }, about),
    el('details', {}, el('summary', {}, 'How this was made'), el('p', {}, el('code', {}, ['interp', ...words].join(' '))), el('pre', {}, JSON.stringify(data.run, null, 2)))));
}
document.documentElement.dataset.ready = 'yes';
