// Attention: a small map of every head; of the chosen one a large map, and the text to ask token by token.
function attentionView(block) {
  const state = { prompt: 0, head: 0, pinned: 0, at: 0, to: false };
  const prompt = () => block.prompts[state.prompt];
  const current = () => prompt().heads[state.head];
  const name = (head) => `${head.layer}.${head.head}`;

  // Weights of a head, the lower triangle row by row.
  function weights(head) {
    if (!head.values) {
      const bytes = Uint8Array.from(atob(head.weights), (c) => c.charCodeAt(0));
      const { low, step } = prompt();
      head.values = Array.from(new Uint16Array(bytes.buffer), (x) => (x === 65535 ? null : low + x * step));
    }
    return head.values;
  }
  // A share: four digits say all that it keeps.
  const share = (x) => (x !== null && x > 0 && x < 5e-5 ? '<0.0001' : x === null ? number(x) : x.toFixed(4));
  const weight = (head, query, key) => (key > query ? null : weights(head)[(query * (query + 1)) / 2 + key]);
  const scale = () => ({ kind: 'sequential', low: 0, high: prompt().largest });

  const thumbs = el('div', { class: 'thumbs', role: 'group', 'aria-label': 'Heads: arrow keys move, j and k change the layer, h and l the head' });
  const title = el('h3', { class: 'head-name' });
  const asked = el('div', { class: 'asked' });
  const large = el('div', {});
  const text = el('div', {});
  let shownText = null;
  let map = null;

  const direction = choices('The token', ['looks at', 'is looked at by'], 0, (i) => { state.to = i === 1; ask(); });

  // The weight of every token seen from the one that is asked.
  const seen = (i) => (state.to ? weight(current(), i, state.at) : weight(current(), state.at, i));

  function ask(aloud = false) {
    shownText.paint();
    const { tokens } = prompt();
    const order = tokens.map((_, i) => i).filter((i) => seen(i) !== null).sort((a, b) => seen(b) - seen(a) || a - b).slice(0, 6);
    const words = `Head ${name(current())}: ${tokens[state.at]}`;
    asked.replaceChildren(
      el('div', {}, el('b', {}, tokens[state.at]), ` at ${state.at} ${state.to ? 'is looked at by' : 'looks at'}`),
      ...order.map((i) => el('div', { class: 'row' }, el('span', { class: 'word' }, tokens[i]), el('span', { class: 'soft' }, String(i)), el('span', { class: 'figure' }, share(seen(i))))));
    if (aloud) spoken.textContent = `${words} ${state.to ? 'is looked at by' : 'looks at'} ${order.slice(0, 3).map((i) => `${tokens[i]} ${share(seen(i))}`).join(', ')}`;
  }

  function drawThumb(canvas, head) {
    const n = prompt().tokens.length;
    const [context, image] = [canvas.getContext('2d'), new ImageData(n, n)];
    const values = weights(head);
    const ramp = ground().sequential.map(channels);
    const high = prompt().largest;
    for (let q = 0, i = 0; q < n; q++) {
      for (let k = 0; k < n; k++) {
        const value = k > q ? 0 : values[i++] ?? 0;
        const [r, g, b] = ramp[Math.round(Math.min(1, Math.max(0, value / high)) * (ramp.length - 1))];
        image.data.set([r, g, b, 255], 4 * (q * n + k));
      }
    }
    context.putImageData(image, 0, 0);
    // Fewer pixels than cells: every cell should count.
    canvas.style.imageRendering = n > 52 ? 'auto' : 'pixelated';
  }

  function drawThumbs() {
    const { heads, tokens } = prompt();
    const columns = Math.max(...heads.map((head) => heads.filter((other) => other.layer === head.layer).length));
    thumbs.style.gridTemplateColumns = `repeat(${columns}, max-content)`;
    let layer = null;
    let column = 0;
    thumbs.replaceChildren(...heads.map((head, i) => {
      column = head.layer === layer ? column + 1 : 1;
      layer = head.layer;
      const canvas = el('canvas', { width: tokens.length, height: tokens.length, 'aria-hidden': 'true' });
      const button = el('button', { type: 'button', class: 'thumb', 'aria-pressed': 'false', 'data-head': name(head), 'aria-label': `head ${name(head)}`, onclick: () => choose(i) }, canvas, el('span', {}, name(head)));
      button.style.gridColumn = String(column);
      drawThumb(canvas, head);
      return button;
    }));
  }

  function drawHead() {
    const head = current();
    const { tokens } = prompt();
    title.textContent = `Head ${name(head)}`;
    [...thumbs.children].forEach((thumb, i) => {
      thumb.setAttribute('aria-pressed', String(i === state.head));
      thumb.tabIndex = i === state.head ? 0 : -1;
    });
    const rows = tokens.map((_, q) => Array.from({ length: q + 1 }, (_, k) => weight(head, q, k)));
    const describe = (q, k) => [share(weight(head, q, k)), `${tokens[q]} at ${q}`, `looks at ${tokens[k]} at ${k}`];
    map.show({ rows, describe });
    ask();
  }

  function drawPrompt() {
    const { tokens } = prompt();
    state.pinned = state.at = tokens.length - 1;
    drawThumbs();
    shownText = tokenText('Tokens of the prompt', tokens, {
      onenter: (i, aloud) => { state.at = i; ask(aloud); },
      onleave: () => { state.at = state.pinned; ask(); },
      onchoose: (i) => { state.pinned = state.at = i; ask(); },
      colourOf: (i) => (seen(i) === null ? null : colour(scale(), seen(i))),
    });
    text.replaceChildren(shownText.element);
    const labels = tokens.map((token, i) => `${token} ${i}`);
    map = new Grid({ label: 'Attention of the head', x: labels, y: labels, xName: 'key: is looked at', yName: 'query: looks', scale: scale(), rows: [], describe: () => [], pick: (q) => shownText.choose(q) });
    large.replaceChildren(map.element, legend(scale(), 'attention weight; rows look at columns'));
    drawHead();
    shownText.choose(state.at);
  }

  function choose(i, link = true) {
    state.head = i;
    drawHead();
    // A page inside of another one has no address of its own to change.
    try { if (link) history.replaceState(null, '', `#${name(current())}`); } catch { /* no deep link there */ }
  }

  // Chooses a head by its name, goes there if it should, and says whether there is one.
  function select(wanted, goes = false) {
    const i = prompt().heads.findIndex((head) => name(head) === wanted);
    if (i >= 0) choose(i);
    if (i >= 0 && goes) thumbs.children[i].focus({ preventScroll: true });
    return i >= 0;
  }

  // The head in the nearest layer or place.
  function step(layers, heads) {
    const all = prompt().heads;
    const { layer, head } = current();
    const near = (other) => (layers ? other.head === head && Math.sign(other.layer - layer) === layers : other.layer === layer && Math.sign(other.head - head) === heads);
    const distance = (i) => Math.abs(all[i].layer - layer) + Math.abs(all[i].head - head);
    const found = all.map((_, i) => i).filter((i) => near(all[i])).sort((a, b) => distance(a) - distance(b));
    if (found.length) choose(found[0]);
  }
  const steps = { j: [1, 0], k: [-1, 0], h: [0, -1], l: [0, 1] };
  const arrows = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  thumbs.addEventListener('keydown', (event) => {
    if (!arrows[event.key]) return;
    event.preventDefault();
    step(...arrows[event.key]);
    thumbs.children[state.head].focus();
  });
  const element = el('div', {});
  element.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || ['INPUT', 'SELECT'].includes(event.target.tagName)) return;
    if (steps[event.key]) {
      step(...steps[event.key]);
      if (thumbs.contains(event.target)) thumbs.children[state.head].focus();
      ask(true);
    }
    if (event.key === 't') { state.to = !state.to; direction.choose(state.to ? 1 : 0); ask(true); }
  });
  addEventListener('hashchange', () => select(location.hash.slice(1)));

  const prompts = chooser('Prompt', block.prompts.map((own) => promptName(own.prompt, own.tokens)), (i) => { state.prompt = i; state.head = Math.min(state.head, prompt().heads.length - 1); drawPrompt(); });
  element.append(
    el('div', { class: 'controls' }, prompts, direction),
    el('div', { class: 'attention' },
      el('div', { class: 'side' }, thumbs, el('p', { class: 'soft' }, 'j k: layer · h l: head · t: turn around')),
      el('div', { class: 'head' }, title, text, asked, large)),
    ...[leftOut(block.left_out, 'prompts')].filter(Boolean));
  drawPrompt();
  painters.set(thumbs, () => [...thumbs.children].forEach((thumb, i) => drawThumb(thumb.firstChild, prompt().heads[i])));
  if (location.hash) select(location.hash.slice(1));
  return { element, select };
}
