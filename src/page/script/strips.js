// A text coloured by one series of values at a time.
function stripsView(block) {
  const place = el('div', {});
  const bar = el('div', {});
  const texts = [...new Set(block.series.map((series) => series.text))];
  let own = [];

  function draw(series) {
    const strip = tokenText(`${series.text}, ${series.name}`, series.tokens, {
      colourOf: (i) => colour(series.scale, series.values[i]),
      tipOf: (i) => [`${series.name} ${number(series.values[i])}`, `${series.tokens[i]} at ${series.pos[i]}`, ...(series.logits[i] === null ? [] : [`logit ${number(series.logits[i])}`])],
    });
    place.replaceChildren(strip.element);
    bar.replaceChildren(legend(series.scale, block.value));
    strip.paint();
  }

  const names = el('div', {});
  function choose(text) {
    own = block.series.filter((series) => series.text === texts[text]);
    const list = own.map((series) => series.name);
    names.replaceChildren(list.length > 12 ? chooser('Show', list, (i) => draw(own[i])) : choices('Show', list, 0, (i) => draw(own[i])));
    draw(own[0]);
  }
  choose(0);
  return { element: el('div', {}, el('div', { class: 'controls' }, chooser('Text', texts, choose), names), place, bar, leftOut(block.left_out, 'series')) };
}
