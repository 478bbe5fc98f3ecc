// A heat map on a canvas: cells by row and column, asked by pointer or by arrow keys.
//
// rows: values by row, null where there is none · texts: words in the cells, or null · describe(row, column): lines to
// show · pick(row, column): what a click or Enter does
const FONT = '12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';

class Grid {
  constructor({ label, x, y, xName, yName, scale, rows, texts = null, describe, pick = null, size = 560 }) {
    Object.assign(this, { label, x, y, xName, yName, scale, rows, texts, describe, pick, size });
    this.cursor = null;
    this.canvas = el('canvas', {
      tabindex: '0', role: 'application', 'aria-roledescription': 'heat map',
      onpointermove: (event) => this.point(event),
      onpointerleave: () => { this.move(null); hideTip(); },
      onclick: (event) => { const cell = this.under(event); if (cell && this.pick) this.pick(...cell); },
      onblur: () => { this.move(null); hideTip(); },
      onkeydown: (event) => this.key(event),
    });
    this.element = el('div', { class: 'grid' }, this.canvas);
    painted(this.element, () => this.paint());
  }

  // Other values in the same place.
  show(values) {
    Object.assign(this, values);
    this.paint();
  }

  layout(context) {
    const [nx, ny] = [Math.max(1, this.x.length), Math.max(1, this.y.length)];
    const side = (n) => Math.max(3, Math.min(26, Math.floor(this.size / n)));
    if (this.texts) [this.w, this.h] = [Math.max(54, Math.min(86, Math.floor(1090 / nx))), 24];
    else {
      const square = Math.min(side(nx), side(ny));
      // A few rows over many columns need not be thin.
      [this.w, this.h] = [Math.max(side(nx), square), Math.min(Math.max(side(ny), square), 4 * side(nx))];
    }
    context.font = FONT;
    const longest = (labels) => Math.min(130, Math.max(0, ...labels.map((label) => context.measureText(label).width)));
    this.left = Math.ceil(longest(this.y)) + 28;
    this.bottom = Math.ceil(longest(this.x)) + 30;
    this.width = Math.max(this.left + nx * this.w + 2, this.left + Math.ceil(context.measureText(this.xName).width));
    this.height = 2 + ny * this.h + this.bottom;
  }

  // Cells and labels once, onto a canvas of their own; the cursor goes on top of a copy.
  paint() {
    const context = this.canvas.getContext('2d');
    this.layout(context);
    // Browsers draw nothing at all on a canvas of more pixels a side.
    const density = Math.min(window.devicePixelRatio || 1, 32000 / this.width, 32000 / this.height);
    this.base = document.createElement('canvas');
    for (const canvas of [this.base, this.canvas]) {
      canvas.width = Math.round(this.width * density);
      canvas.height = Math.round(this.height * density);
    }
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    const shape = `${this.y.length} by ${this.x.length}, ${this.yName || 'rows'} by ${this.xName || 'columns'}`;
    this.canvas.setAttribute('aria-label', `${this.label}: ${shape}; arrow keys move from cell to cell${this.pick ? ', Enter chooses one' : ''}`);
    // Where the cells are, for whoever asks from outside.
    Object.assign(this.canvas.dataset, { left: this.left, w: this.w, h: this.h });
    const base = this.base.getContext('2d');
    base.setTransform(density, 0, 0, density, 0, 0);
    base.font = FONT;
    base.textBaseline = 'middle';
    this.paintCells(base);
    this.paintLabels(base);
    this.paintCursor();
  }

  paintCells(context) {
    this.rows.forEach((row, r) => row.forEach((value, c) => {
      if (value === undefined) return;
      const [left, top] = [this.left + c * this.w, 1 + r * this.h];
      const filled = colour(this.scale, value);
      context.fillStyle = filled ?? ground().none;
      context.fillRect(left, top, this.w, this.h);
      if (this.texts && filled) {
        context.fillStyle = inkOn(filled);
        context.textAlign = 'center';
        context.fillText(clipped(context, this.texts[r][c], this.w - 6), left + this.w / 2, top + this.h / 2);
      }
    }));
  }

  paintLabels(context) {
    const style = getComputedStyle(document.documentElement);
    context.strokeStyle = style.getPropertyValue('--soft').trim();
    context.strokeRect(this.left - 0.5, 0.5, this.x.length * this.w + 1, this.y.length * this.h + 1);
    context.fillStyle = printing ? '#26262c' : style.getPropertyValue('--ink').trim();
    const every = (cell) => Math.max(1, Math.ceil(13 / cell));
    context.textAlign = 'right';
    for (let r = 0; r < this.y.length; r += every(this.h)) {
      context.fillText(clipped(context, this.y[r], 130), this.left - 6, 1 + (r + 0.5) * this.h);
    }
    for (let c = 0; c < this.x.length; c += every(this.w)) {
      context.save();
      context.translate(this.left + (c + 0.5) * this.w, this.y.length * this.h + 8);
      context.rotate(-Math.PI / 2);
      context.fillText(clipped(context, this.x[c], 130), 0, 0);
      context.restore();
    }
    context.fillStyle = style.getPropertyValue('--soft').trim();
    context.textAlign = 'left';
    context.fillText(this.xName, this.left, this.height - 8);
    context.save();
    context.translate(9, 1);
    context.rotate(-Math.PI / 2);
    context.textAlign = 'right';
    context.fillText(clipped(context, this.yName, this.y.length * this.h), 0, 0);
    context.restore();
  }

  paintCursor() {
    const context = this.canvas.getContext('2d');
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.base, 0, 0);
    if (!this.cursor) return;
    const [r, c] = this.cursor;
    const density = this.canvas.width / this.width;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue('--accent').trim();
    context.lineWidth = 2;
    context.strokeRect(this.left + c * this.w, 1 + r * this.h, this.w, this.h);
  }

  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - this.left) / this.w);
    const r = Math.floor((event.clientY - box.top - 1) / this.h);
    return this.has(r, c) ? [r, c] : null;
  }

  has(r, c) {
    return this.rows[r] !== undefined && this.rows[r][c] !== undefined && c < this.x.length;
  }

  move(cell) {
    if (String(cell) === String(this.cursor)) return;
    this.cursor = cell;
    this.paintCursor();
  }

  point(event) {
    const cell = this.under(event);
    this.move(cell);
    if (cell) showTip(this.describe(...cell), event.clientX, event.clientY);
    else hideTip();
  }

  // Scrolls so that the cell under the cursor can be seen.
  reveal() {
    const [r, c] = this.cursor;
    const box = this.element;
    const left = this.left + c * this.w;
    if (left < box.scrollLeft + this.left) box.scrollLeft = left - this.left;
    if (left + this.w > box.scrollLeft + box.clientWidth) box.scrollLeft = left + this.w - box.clientWidth;
    const top = this.canvas.getBoundingClientRect().top + 1 + r * this.h;
    if (top < 0) scrollBy(0, top - 60);
    if (top + this.h > innerHeight) scrollBy(0, top + this.h - innerHeight + 60);
  }

  key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if ((event.key === 'Enter' || event.key === ' ') && this.cursor && this.pick) {
      event.preventDefault();
      this.pick(...this.cursor);
      return;
    }
    if (!steps[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    const [r, c] = this.cursor ?? [0, 0];
    const [down, right] = this.cursor ? steps[event.key] : [0, 0];
    if (!this.has(r + down, c + right)) return;
    this.move([r + down, c + right]);
    this.reveal();
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [box.left + this.left + (c + right + 1) * this.w, box.top + (r + down + 1) * this.h];
    showTip(this.describe(...this.cursor), x, y, true);
  }
}

function clipped(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = Array.from(text);
  while (kept.length > 1 && context.measureText(kept.join('') + '…').width > width) kept = kept.slice(0, -1);
  return kept.join('') + '…';
}
