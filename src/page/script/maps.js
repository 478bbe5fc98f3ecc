// Heat maps of sweeps and atlases; a cell that stands for a head leads to its attention.
function mapsView(block, page) {
  // The head of a cell, if it stands for one.
  const headOf = (map, r, c) => {
    const named = map.title.match(/^head (\d+\.\d+)$/);
    if (named) return named[1];
    if (map.y_name === 'layer.head') return map.y[r];
    return map.y_name === 'layer' && map.x_name === 'head' ? `${map.y[r]}.${map.x[c]}` : null;
  };
  const described = (map, r, c) => {
    const lines = [`${map.value} ${number(map.rows[r][c])}`];
    if (map.low.length && map.low[r][c] !== null) lines.push(`95 % interval ${number(map.low[r][c])} to ${number(map.high[r][c])}`);
    lines.push(`${map.y_name || 'row'} ${map.y[r]}`, `${map.x_name || 'column'} ${map.x[c]}`);
    if (map.title) lines.push(map.title);
    const head = headOf(map, r, c);
    if (head && page.attention) lines.push('click: attention of this head');
    return lines;
  };
  const size = block.maps.length > 1 ? 320 : 620;
  const figures = block.maps.map((map) => {
    const grid = new Grid({
      label: map.title || block.title, x: map.x, y: map.y, xName: map.x_name, yName: map.y_name, scale: map.scale, rows: map.rows, size,
      describe: (r, c) => described(map, r, c),
      pick: page.attention && headOf(map, 0, 0) ? (r, c) => page.toHead(headOf(map, r, c)) : null,
    });
    return el('figure', {}, map.title ? el('figcaption', {}, map.title) : null, grid.element, legend(map.scale, map.value));
  });
  return { element: el('div', { class: 'maps' }, ...figures) };
}
