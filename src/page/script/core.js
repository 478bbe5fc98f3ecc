// What every view uses: elements, colours, numbers, the tip beside the pointer, the line that a screen reader reads.
const data = JSON.parse(document.getElementById('data').textContent);
const darkScheme = matchMedia('(prefers-color-scheme: dark)');
const painters = new Map();
let printing = false;

// An element with attributes, listeners (names that begin with "on") and children; strings become text.
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'class') element.className = value;
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Calls `paint` now, and again when colours change, for as long as the element is on the page.
function painted(element, paint) {
  painters.set(element, paint);
  paint();
}
function repaint() {
  for (const [element, paint] of painters) {
    if (element.isConnected) paint();
    else painters.delete(element);
  }
}
darkScheme.addEventListener('change', repaint);
addEventListener('beforeprint', () => { printing = true; repaint(); });
addEventListener('afterprint', () => { printing = false; repaint(); });

const ground = () => data.palette[darkScheme.matches && !printing ? 'dark' : 'light'];

// The colour of a value; none of what is no number.
function colour(scale, value) {
  if (value === null) return null;
  const at = Math.min(1, Math.max(0, (value - scale.low) / (scale.high - scale.low)));
  const ramp = ground()[scale.kind];
  return ramp[Math.round(at * (ramp.length - 1))];
}

function channels(hex) {
  const bits = parseInt(hex.slice(1), 16);
  return [bits >> 16, (bits >> 8) & 255, bits & 255];
}

// Ink that is readable on a colour.
function inkOn(hex) {
  const [r, g, b] = channels(hex);
  return 0.299 * r + 0.587 * g + 0.114 * b < 140 ? '#ffffff' : '#26262c';
}

function number(x) {
  if (x === null || x === undefined) return 'no number';
  if (x === 0) return '0';
  if (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e5) return x.toExponential(3);
  return x.toFixed(4);
}
const chance = (logprob) => (logprob === null ? null : Math.exp(logprob));
const signed = (x) => (x > 0 ? '+' : '') + number(x);

const tip = el('div', { id: 'tip', role: 'tooltip', hidden: true });
const spoken = el('div', { id: 'spoken', class: 'unseen', 'aria-live': 'polite' });

// Shows lines beside a place on the screen, the first one in bold; says them, too, where that is asked for.
function showTip(lines, x, y, aloud = false) {
  tip.replaceChildren(...lines.map((line) => el('div', {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 16 + width > innerWidth ? x - width - 12 : x + 16;
  const top = y + 16 + height > innerHeight ? y - height - 12 : y + 16;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(top, innerHeight - height - 4))}px`;
  if (aloud) spoken.textContent = lines.join(', ');
}
const hideTip = () => { tip.hidden = true; };
// A wheel moves what the tip is about; keys show a new one where they go.
addEventListener('wheel', hideTip, { passive: true });

// A row of choices of which one holds.
function choices(label, names, chosen, onchoose) {
  const buttons = names.map((name, i) =>
    el('button', { type: 'button', 'aria-pressed': String(i === chosen), onclick: () => { choose(i); onchoose(i); } }, name));
  const choose = (at) => buttons.forEach((button, i) => button.setAttribute('aria-pressed', String(i === at)));
  const group = el('div', { class: 'choices', role: 'group', 'aria-label': label }, el('span', {}, label), ...buttons);
  group.choose = choose;
  return group;
}

// A list to choose from, for when there are many.
function chooser(label, names, onchoose) {
  const select = el('select', { onchange: () => onchoose(select.selectedIndex) }, ...names.map((name) => el('option', {}, name)));
  return el('label', { class: 'choices', hidden: names.length < 2 }, el('span', {}, label), select);
}

// The colours of a scale with its ends.
function legend(scale, name, ends = [number(scale.low), number(scale.high)]) {
  const canvas = el('canvas', { width: 120, height: 1, 'aria-hidden': 'true' });
  const element = el('div', { class: 'legend' }, el('span', {}, ends[0]), canvas, el('span', {}, ends[1]), el('span', { class: 'soft' }, name));
  const paint = () => {
    const context = canvas.getContext('2d');
    for (let x = 0; x < 120; x++) {
      context.fillStyle = colour(scale, scale.low + ((scale.high - scale.low) * x) / 119);
      context.fillRect(x, 0, 1, 1);
    }
  };
  painted(element, paint);
  return element;
}

// Tokens as a text of which one is chosen: by pointer, by click, by arrow keys.
function tokenText(label, tokens, { onenter, onleave, onchoose, colourOf, tipOf }) {
  const at = (i) => elements[Math.min(tokens.length - 1, Math.max(0, i))];
  const keys = { ArrowRight: (i) => i + 1, ArrowLeft: (i) => i - 1, Home: () => 0, End: () => tokens.length - 1 };
  const elements = tokens.map((token, i) => el('span', {
    class: 'token', role: 'button', tabindex: i === 0 ? '0' : '-1', 'data-pos': String(i),
    onpointerenter: (event) => { onenter?.(i); if (tipOf) showTip(tipOf(i), event.clientX, event.clientY); },
    onpointerleave: () => { onleave?.(i); hideTip(); },
    onclick: () => choose(i),
    onfocus: () => {
      onenter?.(i, true);
      const box = elements[i].getBoundingClientRect();
      if (tipOf) showTip(tipOf(i), box.left, box.bottom, true);
    },
    onblur: () => { onleave?.(i); hideTip(); },
    onkeydown: (event) => {
      if (event.key === 'Enter' || event.key === ' ') choose(i);
      else if (keys[event.key]) at(keys[event.key](i)).focus();
      else return;
      event.preventDefault();
    },
  }, token));
  function choose(i) {
    elements.forEach((element, j) => {
      element.setAttribute('aria-pressed', String(i === j));
      element.tabIndex = i === j ? 0 : -1;
    });
    onchoose?.(i);
  }
  const paint = () => elements.forEach((element, i) => {
    const background = colourOf?.(i) ?? null;
    element.style.backgroundColor = background ?? '';
    element.style.color = background === null ? '' : inkOn(background);
    element.classList.toggle('none', background === null && colourOf !== undefined);
  });
  const element = el('div', { class: 'text', role: 'group', 'aria-label': label }, ...elements);
  painters.set(element, paint);
  return { element, paint, choose };
}

const promptName = (number, tokens) => `${number}: ${tokens.slice(0, 8).join('')}`;
const leftOut = (count, what) => (count > 0 ? el('p', { class: 'soft' }, `${count} more ${what} are in frame.parquet.`) : null);
