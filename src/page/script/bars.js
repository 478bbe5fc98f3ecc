// Bars from a common zero; those that are made of parts open.
function bars(rows, value, opens = true, page = null) {
  const flat = (all) => all.flatMap((row) => [row, ...flat(row.rows ?? [])]);
  const reach = Math.max(1e-12, ...flat(rows).map((row) => Math.abs(row.value ?? 0)));
  const negative = flat(rows).some((row) => row.value < 0);
  const line = (row) => {
    const bar = el('span', { class: row.value < 0 ? 'bar minus' : 'bar' });
    const share = (100 * Math.abs(row.value ?? 0)) / reach;
    bar.style.width = `${negative ? share / 2 : share}%`;
    bar.style.left = negative ? `${row.value < 0 ? 50 - share / 2 : 50}%` : '0';
    const span = row.low === null || row.low === undefined ? '' : ` [${signed(row.low)}, ${signed(row.high)}]`;
    const link = row.head && page?.attention
      ? el('button', { type: 'button', class: 'link', onclick: (event) => { event.preventDefault(); page.toHead(row.head); } }, 'attention')
      : null;
    return [el('span', { class: 'word' }, row.name), el('span', { class: 'track', 'aria-hidden': 'true' }, bar),
      el('span', { class: 'figure' }, row.said ?? (opens ? signed(row.value) + span : number(row.value))), link];
  };
  const item = (row) => (row.rows
    ? el('details', {}, el('summary', { class: 'bars-row' }, ...line(row)), el('div', { class: 'parts' }, ...row.rows.map(item)))
    : el('div', { class: 'bars-row leaf' }, ...line(row)));
  return el('div', { class: 'bars', 'aria-label': value }, ...rows.map(item));
}

function barsView(block, page) {
  const total = block.total === undefined || block.total === null ? null : el('p', { class: 'total' }, `Sum: ${signed(block.total)}`);
  const list = bars(block.rows, block.value, true, page);
  const all = (open) => list.querySelectorAll('details').forEach((own) => { own.open = open; });
  const opens = block.rows.some((row) => row.rows);
  const controls = opens
    ? el('div', { class: 'controls' }, el('button', { type: 'button', onclick: () => all(true) }, 'open all'), el('button', { type: 'button', onclick: () => all(false) }, 'close all'))
    : null;
  return { element: el('div', {}, controls, list, total) };
}

function predictionsView(block) {
  const place = el('div', {});
  const draw = ({ tokens }) => {
    const after = el('div', {});
    const show = (i, aloud) => {
      const words = tokens[i].next.map((word, j) => `${word} ${number(chance(tokens[i].logprob[j]))}`);
      if (aloud) spoken.textContent = `after ${tokens[i].token}: ${words.slice(0, 3).join(', ')}`;
      after.replaceChildren(el('h3', {}, `After ${tokens[i].token} at ${tokens[i].pos}`), bars(tokens[i].next.map((word, j) => ({ name: word, value: chance(tokens[i].logprob[j]) })), 'probability', false));
    };
    let chosen = tokens.length - 1;
    const text = tokenText('Tokens of the prompt', tokens.map((at) => at.token), {
      onenter: show, onleave: () => show(chosen), onchoose: (i) => { chosen = i; show(i); },
    });
    place.replaceChildren(text.element, after);
    text.choose(chosen);
  };
  const names = block.prompts.map((own) => promptName(own.prompt, own.tokens.map((at) => at.token)));
  draw(block.prompts[0]);
  return { element: el('div', {}, chooser('Prompt', names, (i) => draw(block.prompts[i])), place, leftOut(block.left_out, 'prompts')) };
}
