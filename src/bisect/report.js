// Draws the summary of a `greta bisect` (docs/summary.md), which stands in #summary. Text of the summary
// reaches the page as text nodes and attribute values alone: a prompt or a token's piece may hold anything.
'use strict';

const summary = JSON.parse(document.getElementById('summary').textContent);
const state = {
  prompt: 0,
  heat: null,
  drift: null,
  step: 0
};

const MEANING = {
  NONE: 'No divergence: every replayed operator is inside its bound.',
  ROUNDING: 'The tokens part, yet every replayed operator is inside its bound.',
  INPUT: 'Tokens, hyperparameters or weights are not what they should be.',
  OPERATOR: 'On the inputs that it had, an operator gave values outside its bound.',
  WIRE: 'A call was handed something else than the plan says, the same each time.',
  RACE: 'A call was handed something else than the plan says, but not each time.',
  ERROR: 'No verdict: it could not be compared, or what was judged does not tell.',
};

// ---- Elements

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on'))
      node.addEventListener(name.slice(2), value);
    else
      node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(2).filter(child => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

function section(id, title, note, ...content) {
  return el(
      'section', {id},
      el('div', {class: 'head'}, el('h2', {}, title), note && el('p', {class: 'note'}, note)), content);
}
const facts = (pairs, kind = '') => el(
    'dl', {class: `facts ${kind}`},
    pairs.filter(Boolean).map(
        ([name, value, attributes]) => el('div', {}, el('dt', {}, name), el('dd', attributes || {}, value))));

// ---- Numbers

const NOT_FINITE = {
  nan: NaN,
  inf: Infinity,
  '-inf': -Infinity
};
const absent = value => value === null || value === undefined;
const toNumber = value => (typeof value === 'string' ? NOT_FINITE[value] : value);
const outside = ratio => !absent(ratio) && !(toNumber(ratio) <= 1);  // a NaN is outside
const exact = value => (absent(value) ? '–' : String(value));
const count = value => (absent(value) ? '–' : value.toLocaleString('en-US'));

/// A measured number; the exact one is in the title of its cell and in the verdict.
function short(value, digits) {
  const number = absent(value) ? NaN : toNumber(value);
  if (!Number.isFinite(number) || number === 0) return exact(value);
  const size = Math.abs(number);
  return size >= 1e-3 && size < 1e4 ? number.toPrecision(digits) : number.toExponential(digits - 1);
}
const measured = (value, digits = 4) => el('td', {class: 'n', title: exact(value)}, short(value, digits));
const whole = value => el('td', {class: 'n', title: exact(value)}, count(value));
const quoted = text => el('bdi', {class: 'piece'}, absent(text) ? '–' : JSON.stringify(text));
const placeText = place => `${place.sequence ? `sequence ${place.sequence}, ` : ''}token ${place.token}, ` +
    (absent(place.layer) ? '' : `layer ${place.layer}, `) + place.stage;

function table(id, headings, rows) {
  return el(
      'div', {class: 'scroll'},
      el('table', {id},
         el('thead', {},
            el('tr', {},
               headings.map(([text, attributes]) => el('th', {scope: 'col', ...attributes}, text)))),
         el('tbody', {}, rows)));
}
const N = {
  class: 'n'
};

// ---- A map of cells: rows x columns of tokens. One tab stop; arrows, Home, End and Page keys move.

const STEPS = 9;

/// ticks: [step, text] under a scale of STEPS colours.
function legend(ticks, extra) {
  const swatch = (kind, text) => el('span', {class: 'key'}, el('i', {class: `swatch ${kind}`}), text);
  const scale = el(
      'span', {class: 'scale'}, Array.from({length: STEPS}, (_, step) => el('i', {class: `swatch s${step}`})),
      ticks.map(([step, text]) => el('b', {style: `left:${100 * step / STEPS}%`}, text)));
  return el('div', {class: 'legend'}, scale, extra.map(([kind, text]) => swatch(kind, text)));
}

/// map: {id, label, rows, columns: text of each column, kind(row, column): class of the cell, title(row,
/// column), width: pixels there are, start: [row, column], mark: [row, column] or null, choose(row, column)}
function cellMap(map) {
  const left = 74, right = 24, top = 4, rows = map.rows.length, columns = map.columns.length;
  const height = rows <= 40 ? 14 : 10;
  const width = Math.max(4, Math.min(26, Math.floor((map.width - left - right) / columns)));
  const at = (row, column) => ({x: left + column * width, y: top + row * height, width, height});
  const root = shape('svg', {
    id: map.id,
    class: 'map',
    tabindex: 0,
    role: 'application',
    'aria-label': `${map.label}. Arrow keys move.`,
    width: left + columns * width + right,
    height: top + rows * height + 24,
  });
  root.append(
      shape(
          'defs', {},
          shape(
              'pattern', {
                id: `${map.id}-hatch`,
                width: 4,
                height: 4,
                patternUnits: 'userSpaceOnUse',
                patternTransform: 'rotate(45)'
              },
              shape('rect', {width: 1.2, height: 4, class: 'hatch'}))),
      shape(
          'rect',
          {x: left, y: top, width: columns * width, height: rows * height, fill: `url(#${map.id}-hatch)`}));
  const every = Math.ceil(12 / height);
  map.rows.forEach((text, row) => {
    if (row % every && row !== rows - 1) return;
    if (row !== rows - 1 && rows - 1 - row < every) return;
    root.append(shape('text', {x: left - 6, y: top + (row + 0.5) * height, class: 'row'}, text));
  });
  const stride = Math.ceil(52 / width);
  for (let column = 0; column < columns; column += stride)
    root.append(shape(
        'text', {x: left + column * width, y: top + rows * height + 15, class: 'column'},
        map.columns[column]));
  let crosses = '';
  for (let row = 0; row < rows; ++row) {
    for (let column = 0; column < columns; ++column) {
      const kind = map.kind(row, column), box = at(row, column);
      root.append(shape('rect', {...box, class: `cell ${kind}`, 'data-row': row, 'data-column': column}));
      if (kind !== 'over') continue;
      const r = Math.min(width, height) / 2 - 1.5, x = box.x + width / 2, y = box.y + height / 2;
      crosses += `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${- 2 * r}l${- 2 * r} ${2 * r}`;
    }
  }
  root.append(shape('path', {d: crosses, class: 'crosses'}));
  if (map.mark) root.append(shape('rect', {...at(...map.mark), class: 'mark'}));
  const cursor = root.appendChild(shape('rect', {...at(...map.start), class: 'cursor'}));

  let [row, column] = map.start;
  const choose = (r, c) => {
    [row, column] = [r, c];
    fill(cursor, at(r, c), []);
    map.choose(r, c);
  };
  const cellOf = event => event.target.closest('[data-row]');
  root.addEventListener('click', event => {
    const hit = cellOf(event);
    if (hit) choose(Number(hit.dataset.row), Number(hit.dataset.column));
  });
  root.addEventListener('mouseover', event => {
    const hit = cellOf(event);
    if (hit && !hit.firstChild)
      hit.append(shape('title', {}, map.title(Number(hit.dataset.row), Number(hit.dataset.column))));
  });
  root.addEventListener('keydown', event => {
    const to = {
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      Home: [row, 0],
      End: [row, columns - 1],
      PageUp: [0, column],
      PageDown: [rows - 1, column]
    }[event.key];
    if (!to) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(rows - 1, to[0])), Math.max(0, Math.min(columns - 1, to[1])));
  });
  map.choose(row, column);
  return el('div', {class: 'scroll'}, root);
}

const tokensOf = prompt => prompt.tokens + ((prompt.generated || {}).b || []).length;

/// A column's tokens as text: "token 12" or "tokens 12–24".
function tokenRange(first, bin, column, end) {
  const last = Math.min(first[column] + bin, end) - 1;
  return last > first[column] ? `tokens ${first[column]}–${last}` : `token ${first[column]}`;
}

/// [row, column] of the largest entry; a NaN is larger than anything. Null where all are null.
function largest(matrix) {
  let best = null, most = -Infinity;
  matrix.forEach((line, row) => line.forEach((value, column) => {
    if (absent(value)) return;
    const number = Number.isNaN(toNumber(value)) ? Infinity : toNumber(value);
    if (best === null || number > most) [best, most] = [[row, column], number];
  }));
  return best;
}

// ---- Sections of one prompt

const WIDE = () => document.getElementById('prompt').clientWidth;

/// Error over bound: three colours a decade from 0.001 to 1.
function heatKind(ratio) {
  if (absent(ratio)) return 'none';
  if (outside(ratio)) return 'over';
  return `s${Math.max(0, Math.min(STEPS - 1, Math.floor((Math.log10(toNumber(ratio)) + 3) * 3)))}`;
}

/// The heat map's cell of a place.
function cellOfPlace(heat, place) {
  const name = !absent(place.layer) ? `layer ${place.layer}` :
      place.stage === 'embed_out' ? 'embed_out' :
                                    'head';
  const row = heat.rows.indexOf(name);
  const column = heat.tokens.findLastIndex(first => first <= place.token);
  return row < 0 || column < 0 ? null : [row, column];
}

function heatSection(prompt) {
  const heat = prompt.heat;
  if (!heat) return null;
  const range = column => tokenRange(heat.tokens, heat.bin, column, tokensOf(prompt));
  const mark = prompt.first && cellOfPlace(heat, prompt.first);
  const readout = el('div', {id: 'cell', 'aria-live': 'polite'});
  const choose = (row, column) => {
    state.heat = [row, column];
    const ratio = heat.ratio[row][column];
    const field = name => ({'data-field': name});
    readout.replaceChildren(facts([
      [
        'error / bound', absent(ratio) ? 'not judged' : exact(ratio),
        {...field('ratio'), class: outside(ratio) ? 'bad' : ''}
      ],
      ['stage', exact(heat.stage[row][column]), field('stage')],
      ['token', exact(heat.token[row][column]), field('token')],
      ['layer', heat.rows[row], field('layer')],
      ['cell', range(column)],
    ]));
  };
  const title = (row, column) => {
    const where = `${heat.rows[row]}, ${range(column)}`;
    const ratio = heat.ratio[row][column];
    return absent(ratio) ? `${where}: not judged` :
                           `${where}: ${exact(ratio)} of the bound (${heat.stage[row][column]}, token ${
                               heat.token[row][column]})`;
  };
  const map = cellMap({
    id: 'heat',
    label: 'Error over bound, layers by position',
    rows: heat.rows,
    columns: heat.tokens,
    kind: (row, column) => heatKind(heat.ratio[row][column]),
    title,
    width: WIDE(),
    mark,
    choose,
    start: state.heat || mark || largest(heat.ratio) || [0, 0],
  });
  const bin = heat.bin > 1 ? `, ${heat.bin} tokens a column` : '';
  return section(
      'heat-section', 'Error over bound',
      `Side ${heat.side}; the largest of each layer and position${bin}. Up to 1 is rounding.`,
      el('div', {class: 'bar'},
         legend(
             [[0, '0.001'], [3, '0.01'], [6, '0.1'], [9, '1']],
             [
               ['over', 'over 1: outside the bound'], ['none', 'not judged'],
               ...(mark ? [['first', 'first wrong value']] : [])
             ])),
      map, readout);
}

function driftSection(prompt) {
  const drift = prompt.drift;
  if (!drift || !drift.layers.length) return null;
  const logs = drift.relative.flat()
                   .map(value => Math.log10(absent(value) ? NaN : toNumber(value)))
                   .filter(Number.isFinite);
  const low = Math.floor(Math.min(...logs.concat(0))),
        high = Math.max(low + 1, Math.ceil(Math.max(...logs.concat(low))));
  const kind = value => {
    if (absent(value)) return 'none';
    const number = toNumber(value);
    if (!Number.isFinite(number)) return 'over';
    const step = Math.floor((Math.log10(number) - low) / (high - low) * STEPS);
    return `s${Math.max(0, Math.min(STEPS - 1, step))}`;
  };
  const range = column => tokenRange(drift.tokens, drift.bin, column, tokensOf(prompt));
  const text = (row, column) =>
      `layer ${drift.layers[row]}, ${range(column)}: ${exact(drift.relative[row][column])}`;
  const readout = el('p', {id: 'drift-cell', class: 'readout', 'aria-live': 'polite'});
  const map = cellMap({
    id: 'drift',
    label: 'Drift of the residual stream, layers by position',
    rows: drift.layers.map(layer => `layer ${layer}`),
    columns: drift.tokens,
    kind: (row, column) => kind(drift.relative[row][column]),
    title: text,
    width: WIDE(),
    mark: null,
    start: state.drift || largest(drift.relative) || [0, 0],
    choose: (row, column) => {
      state.drift = [row, column];
      readout.textContent = text(row, column);
    },
  });
  return section(
      'drift-section', 'Drift',
      '|b − a| over |a| of residual_post_mlp. It accumulates and has no bound: a picture, not a verdict.',
      el('div', {class: 'bar'},
         legend([[0, `1e${low}`], [STEPS, `1e${high}`]], [['over', 'not finite'], ['none', 'not compared']]),
         readout),
      map);
}

function verdictSection(prompt) {
  const first = prompt.first, counts = prompt.counts || {}, bad = prompt.nonfinite, judging = prompt.judging;
  const title = first && absent(first.index) ? 'First place' :
      first && first.check === 'bound'       ? 'First wrong value: the worst of its row' :
                                               'First wrong value';
  const line = (id, text) => text ? el('p', {id, class: 'line'}, text) : null;
  return el(
      'section', {id: 'verdict', class: kindOf(prompt)},
      el('div', {class: 'head'}, el('h2', {}, prompt.name), chip(kindOf(prompt)),
         prompt.class && el('code', {}, prompt.class), el('p', {class: 'note'}, MEANING[kindOf(prompt)])),
      prompt.error && el('p', {id: 'error', class: 'line'}, prompt.error),
      line('coverage', judging && (judging.matmuls === 'sampled' || judging.not_judged) && judging.coverage),
      line('first-fail', prompt.first_fail), line('cause', prompt.cause),
      bad &&
          el('p', {id: 'nonfinite', class: 'line'},
             `First ${bad.value} of side ${bad.side}: ${placeText(bad)} [${bad.index}]`),
      el('div', {class: 'pair'},
         first ? el('div', {}, el('h3', {}, title),
                    facts(
                        [
                          ['place', placeText(first)],
                          ['operator', `${first.operator} of side ${first.side}`],
                          ['index', count(first.index)],
                          ['got', exact(first.got)],
                          ['expected', exact(first.expected)],
                          ['error', exact(first.error)],
                          ['bound', exact(first.bound)],
                          ['error / bound', exact(first.ratio), {class: outside(first.ratio) ? 'bad' : ''}],
                        ],
                        'columns place')) :
                 null,
         prompt.counts ?
             el('div', {}, el('h3', {}, 'Compared and replayed'),
                facts(
                    Object.entries(counts).map(
                        ([name, value]) => [name.replaceAll('_', ' '), count(value), {'data-count': name}]),
                    'columns')) :
             null));
}

/// The stages of one layer: bars of error over bound on a log scale, the zone from likely to certain behind
/// them.
function stagesSection(prompt) {
  const stages = prompt.stages;
  if (!stages) return null;
  const ratios = stages.rows.map(row => (absent(row.ratio) ? NaN : toNumber(row.ratio)))
                     .filter(r => Number.isFinite(r) && r > 0);
  const low = Math.max(-9, Math.min(-2, ...ratios.map(r => Math.floor(Math.log10(r)))));
  const high = Math.min(12, Math.max(1, ...ratios.map(r => Math.ceil(Math.log10(r)))));
  const x = ratio => {
    const number = toNumber(ratio);
    if (!Number.isFinite(number)) return 100;
    return 100 * Math.max(0, Math.min(1, (Math.log10(number) - low) / (high - low)));
  };
  const one = el('i', {class: 'one', style: `left:${x(1)}%`});
  const axis = el('div', {class: 'axis'});
  const stride = Math.ceil((high - low) / 6);
  for (let power = low; power <= high; ++power)
    if (power % stride === 0)
      axis.append(el('b', {style: `left:${x(10 ** power)}%`}, power === 0 ? '1' : `1e${power}`));
  const bar = row => {
    const zone = absent(row.likely) || !(toNumber(row.bound) > 0) ?
        null :
        x(toNumber(row.likely) / toNumber(row.bound));
    return el(
        'div', {class: 'track'},
        zone === null ? null :
                        el('i', {class: 'zone', style: `left:${zone}%;width:${Math.max(0, x(1) - zone)}%`}),
        absent(row.ratio) ? null : el('i', {
          class: outside(row.ratio) ? 'fill over' :
              row.suspect           ? 'fill suspect' :
                                      'fill',
          style: `width:${x(row.ratio)}%`
        }),
        one.cloneNode());
  };
  const same = {true: 'same', false: 'differ'};
  const verdict = row => absent(row.ratio) ? '' :
      outside(row.ratio)                   ? 'outside' :
      row.suspect                          ? 'suspect' :
                                             '';
  const rows = stages.rows.map(
      row =>
          el('tr', {class: outside(row.ratio) ? 'bad-row' : ''}, el('th', {scope: 'row'}, row.stage),
             el('td', {}, row.operator), el('td', {class: 'wide'}, bar(row)), measured(row.ratio),
             el('td', {class: outside(row.ratio) ? 'bad' : ''}, verdict(row)), measured(row.error),
             measured(row.likely), measured(row.bound),
             el('td', {class: row.same_bits === false ? 'differ' : ''}, same[row.same_bits] || '–'),
             el('td', {class: 'hash'}, exact(row.hash_a)), el('td', {class: 'hash'}, exact(row.hash_b))));
  const layer = absent(stages.layer) ? 'Stages outside the layers' : `Stages of layer ${stages.layer}`;
  return section(
      'stages', layer,
      `Token ${stages.token}, side ${stages.side}. Shaded: from the likely to the certain bound.`,
      table(
          'stages-table',
          [
            ['stage'], ['operator'], [axis, {class: 'wide'}], ['ratio', N], [''], ['error', N], ['likely', N],
            ['bound', N], ['bits'], ['hash a'], ['hash b']
          ],
          rows));
}

function logitsSection(prompt) {
  const all = prompt.logits || [];
  if (!all.length) return null;
  const body = el('div', {id: 'logits-step'});
  const show = index => {
    state.step = index;
    const row = all[index], length = Math.max(row.a.length, row.b.length);
    const side = entry => entry ?
        [
          el('td', {class: 'n'}, exact(entry.id)), el('td', {}, quoted(entry.piece)), measured(entry.logit, 6)
        ] :
        [el('td'), el('td'), el('td')];
    body.replaceChildren(
        facts([
          ['token', count(row.token)], ['relative difference', exact(row.relative)],
          ['KL', exact(row.kl), {id: 'kl'}]
        ]),
        table(
            'logits-table',
            [['rank', N], ['a: id', N], ['piece'], ['logit', N], ['b: id', N], ['piece'], ['logit', N], ['']],
            Array.from({length}, (_, i) => {
              const parts = !row.a[i] || !row.b[i] || row.a[i].id !== row.b[i].id;
              return el(
                  'tr', {class: parts ? 'bad-row' : ''}, el('td', {class: 'n'}, i + 1), side(row.a[i]),
                  side(row.b[i]), el('td', {class: 'bad'}, parts ? '≠' : ''));
            })));
  };
  const parts = row => row.a[0] && row.b[0] && row.a[0].id !== row.b[0].id ? ' (the tokens part)' : '';
  const select =
      el('select', {id: 'step', onchange: event => show(Number(event.target.value))},
         all.map((row, i) => el('option', {value: i}, `step ${row.step}${parts(row)}`)));
  select.value = String(Math.min(state.step, all.length - 1));
  show(Number(select.value));
  return section(
      'logits', 'Logits', 'The largest of the row that chose each generated token.',
      el('label', {class: 'bar'}, 'Step', select), body);
}

function roundingSection(prompt) {
  const rounding = prompt.rounding;
  if (!rounding) return null;
  const most = Math.max(...rounding.contributors.map(item => Math.abs(toNumber(item.share))), 1e-300);
  const token = entry => [quoted(entry.piece), ` (${entry.id}, ${exact(entry.logit)})`];
  return section(
      'rounding', 'Rounding', 'Where the tokens part, and the operators that brought most of the difference.',
      facts([
        ['step', count(rounding.step)], ['token', count(rounding.token)], ['a', token(rounding.a)],
        ['b', token(rounding.b)], ['true gap, a − b', exact(rounding.true_gap)],
        ['difference there', exact(rounding.difference)]
      ]),
      table(
          'contributors', [['operator'], ['share', {class: 'wide'}], ['', N], ['shift', N]],
          rounding.contributors.map(
              item => el(
                  'tr', {}, el('th', {scope: 'row'}, item.what),
                  el('td', {class: 'wide'},
                     el('div', {class: 'track'},
                        el('i',
                           {class: 'fill', style: `width:${100 * Math.abs(toNumber(item.share)) / most}%`}))),
                  measured(item.share), measured(item.shift)))));
}

function failuresSection(prompt) {
  const failures = prompt.failures || [];
  if (!failures.length) return null;
  const note = `${count(failures.length)} of ${
      count(prompt.failures_total)}, in the order sequence, token, layer, stage.`;
  return section(
      'failures', 'Values outside their bound', note,
      table(
          'failures-table',
          [
            ['sequence', N], ['token', N], ['layer', N], ['stage'], ['operator'], ['side'], ['index', N],
            ['got', N], ['expected', N], ['error', N], ['bound', N], ['ratio', N]
          ],
          failures.map(
              f =>
                  el('tr', {}, whole(f.sequence), whole(f.token), whole(f.layer), el('td', {}, f.stage),
                     el('td', {}, f.operator), el('td', {}, f.side), whole(f.index), measured(f.got),
                     measured(f.expected), measured(f.error), measured(f.bound), measured(f.ratio)))));
}

function textSection(prompt) {
  const generated = prompt.generated || {}, hashes = prompt.hashes || {};
  const hash = side => side ?
      [['traced', side.traced], ['untraced', side.untraced]].map(
          ([name, value]) => el('span', {class: 'hash'}, `${name} ${exact(value)} `)) :
      '–';
  return section(
      'text', 'Prompt and answer', null, facts([
        ['tokens', count(prompt.tokens)], ['a', quoted(generated.a_text)], ['b', quoted(generated.b_text)],
        ['a: ids', (generated.a || []).join(' ')], ['b: ids', (generated.b || []).join(' ')],
        ['a: logits hash', hash(hashes.a)], ['b: logits hash', hash(hashes.b)]
      ]),
      el('details', {}, el('summary', {}, 'Prompt text'),
         el('pre', {id: 'prompt-text'}, exact(prompt.prompt_text))),
      el('details', {}, el('summary', {}, `${count((prompt.ids || []).length)} prompt ids`),
         el('pre', {}, (prompt.ids || []).join(' '))));
}

// ---- The page

/// Of a prompt or of the summary: no kind where something could not be compared.
const kindOf = x => (x.error || absent(x.kind) ? 'ERROR' : x.kind);
const chip = kind => el('span', {class: `chip ${kind}`}, kind);

function drawHeader() {
  const {a, b} = summary.subjects, {build, machine, input} = summary, differences = input.differences;
  const file = b.file || a.file || '';
  document.title = `${kindOf(summary)}: greta bisect ${file}`;
  const subject = (side, s) => el(
      'div', {class: 'subject'}, el('h3', {}, `${side}: `, el('code', {}, s.text)),
      el('p', {}, s.description), facts([
        ['file', exact(s.file)], ['SHA-256', exact(s.sha256), {class: 'hash'}], ['seconds', exact(s.seconds)]
      ]),
      el('details', {class: 'routes'},
         el('summary', {}, `Route: ${Object.keys(s.route || {}).length} kernels`),
         table(
             null, [['kernel'], ['calls', N]],
             Object.entries(s.route || {})
                 .map(([kernel,
                        calls]) => el('tr', {}, el('td', {}, el('code', {}, kernel)), whole(calls))))));
  const model = b.model || a.model;
  document.getElementById('header').append(
      el('div', {class: 'head top'}, el('h1', {}, 'greta bisect'),
         el('span', {id: 'kind', class: `chip ${kindOf(summary)}`}, kindOf(summary)),
         el('p', {id: 'meaning'}, MEANING[kindOf(summary)] || '')),
      facts([
        model &&
            [
              'model',
              `${model.name} (${model.architecture}, ${model.layers} layers, dim ${model.dim}, ${
                  model.heads}/${model.kv_heads} heads, vocab ${count(model.vocab)})`
            ],
        ['build', `${build.version} ${build.commit}${build.dirty ? ' (dirty)' : ''}, ${build.compiler}`],
        ['machine', `${machine.cpu}, ${machine.threads} threads`],
        ['started', `${summary.started}, ${exact(summary.seconds)} s`],
        ['exit status', exact(summary.status), {id: 'status'}],
        [
          'inputs',
          `${count(input.tensors)} tensors, ${count(input.values)} values, ${
              count(input.rows_read_back)} resident rows read back: ` +
              (differences.length ? `${count(differences.length)} differences` : 'no difference'),
          {class: differences.length ? 'bad' : ''}
        ],
      ]),
      el('div', {class: 'pair', id: 'subjects'}, subject('a', a), subject('b', b)));
  if (!differences.length) return;
  document.getElementById('header').append(section(
      'input', 'Input differences', null,
      table(
          'differences', [['side'], ['what'], ['name'], ['row', N], ['detail']],
          differences.map(
              d =>
                  el('tr', {}, el('td', {}, d.side), el('td', {}, d.what),
                     el('td', {}, el('code', {}, exact(d.name))), whole(d.row),
                     el('td', {}, exact(d.detail)))))));
}

function drawPrompt() {
  document.querySelectorAll('#prompts button')
      .forEach((button, i) => button.setAttribute('aria-pressed', i === state.prompt));
  const prompt = summary.prompts[state.prompt];
  document.getElementById('prompt').replaceChildren(
      ...[verdictSection, heatSection, stagesSection, driftSection, roundingSection, logitsSection,
          failuresSection, textSection]
          .map(draw => draw(prompt))
          .filter(Boolean));
}

function choosePrompt(index) {
  Object.assign(state, {prompt: index, heat: null, drift: null, step: 0});
  const parts = (summary.prompts[index].rounding || {}).step;
  if (!absent(parts))
    state.step = Math.max(0, summary.prompts[index].logits.findIndex(row => row.step === parts));
  drawPrompt();
}

function draw() {
  drawHeader();
  document.getElementById('prompts').append(...summary.prompts.map(
      (prompt, index) =>
          el('button', {type: 'button', 'data-prompt': prompt.name, onclick: () => choosePrompt(index)},
             el('span', {}, prompt.name),
             el('small', {}, `${count(prompt.tokens)} ${prompt.tokens === 1 ? 'token' : 'tokens'}`),
             chip(kindOf(prompt)))));
  document.getElementById('footer').append(
      el('details', {}, el('summary', {}, `${summary.schema}: options as given`),
         el('pre', {}, JSON.stringify(summary.options, null, 2))));
  if (!summary.prompts.length) return;
  choosePrompt(Math.max(0, summary.prompts.findIndex(prompt => prompt.kind === summary.kind)));
  let width = WIDE(), timer = 0;
  window.addEventListener('resize', () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (width !== WIDE()) drawPrompt();
      width = WIDE();
    }, 150);
  });
}

draw();
