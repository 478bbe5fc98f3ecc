// The logit lens: what each layer would say after each token.
function lensView(block) {
  const state = { prompt: 0, mode: 0 };
  const prompt = () => block.prompts[state.prompt];
  const cell = (r, c) => prompt().cells[(prompt().layers - 1 - r) * prompt().tokens.length + c];
  const layerName = (r) => (r === 0 ? 'output' : String(prompt().layers - 1 - r));
  const modes = [
    { name: 'probability', value: (own) => chance(own.logprob[0]), scale: () => ({ kind: 'sequential', low: 0, high: 1 }) },
    { name: 'rank of the final answer', value: (own) => Math.log10(1 + own.final_rank), scale: (all) => ({ kind: 'sequential', low: Math.max(1, ...all), high: 0 }) },
    { name: 'entropy', value: (own) => own.entropy, scale: (all) => ({ kind: 'sequential', low: 0, high: Math.max(1e-6, ...all) }) },
  ];
  const detail = el('div', { class: 'detail' });
  const bar = el('div', {});

  const describe = (r, c) => {
    const own = cell(r, c);
    return [
      `${prompt().tokens[c]} at ${c}, before layer ${layerName(r)}`,
      ...own.next.map((word, i) => `${block.words[word]} ${number(chance(own.logprob[i]))}`),
      `entropy ${number(own.entropy)} nats`,
      own.final_rank === 0 ? 'agrees with the output' : `ranks the output's answer ${own.final_rank + 1}`,
    ];
  };

  function look(r, c) {
    const own = cell(r, c);
    detail.replaceChildren(
      el('h3', {}, `After ${prompt().tokens[c]} at ${c}, before layer ${layerName(r)}`),
      bars(own.next.map((word, i) => ({ name: block.words[word], value: chance(own.logprob[i]) })), 'probability', false));
  }

  function draw() {
    const { tokens, layers } = prompt();
    const mode = modes[state.mode];
    const rows = Array.from({ length: layers }, (_, r) => tokens.map((_, c) => mode.value(cell(r, c))));
    const texts = Array.from({ length: layers }, (_, r) => tokens.map((_, c) => block.words[cell(r, c).next[0]]));
    const scale = mode.scale(rows.flat());
    grid.show({ scale, rows, texts, x: tokens.map((token, i) => `${token} ${i}`), y: rows.map((_, r) => layerName(r)) });
    bar.replaceChildren(state.mode === 1
      ? legend(scale, 'of what the model says in the end, log scale', [`rank ${Math.round(10 ** scale.low)}`, 'rank 1'])
      : legend(scale, mode.name));
  }

  const grid = new Grid({ label: 'Logit lens', x: [], y: [], xName: 'token read', yName: 'before layer', scale: modes[0].scale(), rows: [], texts: [], describe, pick: look });
  const prompts = chooser('Prompt', block.prompts.map((own) => promptName(own.prompt, own.tokens)), (i) => { state.prompt = i; draw(); look(0, prompt().tokens.length - 1); });
  const element = el('div', {}, el('div', { class: 'controls' }, prompts, choices('Colour', modes.map((mode) => mode.name), 0, (i) => { state.mode = i; draw(); })), grid.element, bar, detail, leftOut(block.left_out, 'prompts'));
  draw();
  look(0, prompt().tokens.length - 1);
  return { element };
}
