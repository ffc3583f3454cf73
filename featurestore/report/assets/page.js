"use strict";
// Draws the figures of the page from the data in it. All text reaches plotly.js through literal():
// it reads tags and entities in its strings, and names of a corpus may contain anything.
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const { ink, quiet, colours, symbols, diverging, undefined: undefinedColour } = report.style;
  const config = { displayModeBar: false, responsive: true, typesetMath: false, doubleClick: false };
  const font = { family: getComputedStyle(document.querySelector("nav")).fontFamily, size: 13, color: ink };

  const VIEWS = {
    r: { name: "pooled r", low: "low", high: "high", mark: "q", says: "q < 0.05" },
    r_within: {
      name: "r within speakers", low: "within_low", high: "within_high",
      mark: "p_max", says: "p_max < 0.05",
    },
    partial_r: {
      name: "partial r", low: "partial_low", high: "partial_high",
      mark: "partial_q", says: "partial q < 0.05",
    },
    r_between: { name: "r between speakers' means", says: "not known for this correlation" },
    r_all: { name: "r over all utterances", says: "not known for this correlation" },
  };

  // -- text and numbers

  function literal(value) {
    if (typeof value === "string") {
      const escaped = value.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
      return escaped.replace(/\n/g, "<br>");
    }
    if (Array.isArray(value)) return value.map(literal);
    if (value !== null && typeof value === "object" && !ArrayBuffer.isView(value)) {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, literal(item)]));
    }
    return value;
  }

  // What rounds to zero has no minus sign.
  function fixed(value, digits = 2) {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
  }
  function signed(value, digits = 2) {
    const text = fixed(value, digits);
    return text.startsWith("\u2212") ? text : `+${text}`;
  }
  // Of an interval, with as many digits as show on which side of zero it is.
  function end(value) {
    let digits = 2;
    while (digits < 6 && Number(value.toFixed(digits)) === 0) digits += 1;
    return signed(value, Number(value.toFixed(digits)) === 0 ? 2 : digits);
  }
  const plain = (value) => (Number.isFinite(value) ? fixed(value) : "undefined");
  function probability(value) {
    if (!Number.isFinite(value)) return "undefined";
    return value < 0.001 ? "< 0.001" : value.toFixed(3);
  }
  const short = (text, length) => (text.length > length ? text.slice(0, length - 1) + "\u2026" : text);

  const TYPES = { f4: Float32Array, f8: Float64Array, u2: Uint16Array };
  function decode({ dtype, bdata }) {
    return new TYPES[dtype](Uint8Array.from(atob(bdata), (character) => character.charCodeAt(0)).buffer);
  }

  // -- figures

  function axis(given = {}) {
    return {
      fixedrange: true, automargin: true, gridcolor: "#e6e9ec", linecolor: quiet, zeroline: false,
      zerolinecolor: quiet, tickcolor: quiet, ticklen: 4, ticks: "outside", ...given,
      title: { standoff: 10, ...given.title },
    };
  }

  function draw(plot, { data, layout }) {
    const all = {
      font, paper_bgcolor: "#fff", plot_bgcolor: "#fff", dragmode: false, hovermode: "closest",
      margin: { l: 58, r: 14, t: 12, b: 50 }, autosize: true, showlegend: false, ...layout,
      hoverlabel: { bgcolor: "#fff", bordercolor: ink, align: "left", font: { ...font, color: ink } },
      legend: {
        orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom",
        // What only a mouse can do is left out.
        itemclick: false, itemdoubleclick: false, ...layout.legend,
      },
    };
    for (const name of ["xaxis", "yaxis", ...Object.keys(layout)]) {
      if (/^[xy]axis\d*$/.test(name)) all[name] = axis(layout[name]);
    }
    return Plotly.react(plot, literal(data), literal(all), config);
  }

  for (const plot of document.querySelectorAll("main > section .figures > figure > [data-figure]")) {
    draw(plot, report.figures[plot.dataset.figure]);
  }

  // -- maps

  const choices = { view: "r", marks: "marked" };

  // The columns of a target's map, each with one value per cell.
  function readMap(target) {
    const { layers, units, columns } = report.maps[target];
    const map = { layers, units };
    for (const [name, column] of Object.entries(columns)) map[name] = decode(column);
    return map;
  }

  const layerName = (layer) => report.layers[layer] ?? `layer ${layer}`;

  // What is known of a cell in the view that is shown, as pairs of name and value.
  function known(map, cell) {
    const view = VIEWS[choices.view];
    const r = map[choices.view][cell];
    const low = view.low ? map[view.low][cell] : NaN;
    const interval = Number.isFinite(low) ? ` (${end(low)} to ${end(map[view.high][cell])})` : "";
    const q = choices.view === "partial_r" ? "partial_q" : "q";
    return [
      [view.name, Number.isFinite(r) ? signed(r) + interval : "undefined"],
      [q === "q" ? "q (pooled r)" : "q (partial r)", probability(map[q][cell])],
      ["p_max", probability(map.p_max[cell])],
      ["I\u00b2", plain(map.i2[cell])],
    ];
  }

  function described(map, cell) {
    const name = `${layerName(Math.floor(cell / map.units))}, unit ${cell % map.units}`;
    return [name, ...known(map, cell).map(([what, value]) => `${what}: ${value}`)];
  }

  function standsOut(map, cell) {
    const { mark } = VIEWS[choices.view];
    return mark !== undefined && map[mark][cell] < 0.05;
  }

  // One scale for all maps of a view: the largest |r|, rounded up to a tenth.
  function limit(maps) {
    let largest = 0;
    for (const map of maps) {
      for (const r of map[choices.view]) if (Math.abs(r) > largest) largest = Math.abs(r);
    }
    return Math.min(1, Math.ceil(largest * 10) / 10) || 1;
  }

  function rows(map, value) {
    return Array.from({ length: map.layers }, (_, layer) =>
      Array.from({ length: map.units }, (_, unit) => value(layer * map.units + unit)));
  }

  function cellTrace(map, most) {
    const alone = choices.marks === "alone" && VIEWS[choices.view].mark !== undefined;
    const colour = (cell) => {
      const r = map[choices.view][cell];
      if (!Number.isFinite(r)) return null;
      return alone && !standsOut(map, cell) ? 0 : r;
    };
    const ticks = [-most, -most / 2, 0, most / 2, most];
    return {
      type: "heatmap", z: rows(map, colour), hovertext: rows(map, (cell) => described(map, cell).join("\n")),
      hoverinfo: "text", zmin: -most, zmax: most, hoverongaps: true,
      colorscale: diverging.map((colour, index) => [index / (diverging.length - 1), colour]),
      colorbar: {
        thickness: 12, outlinewidth: 0, len: 1, tickvals: ticks, x: 1.01,
        ticktext: ticks.map((tick) => (tick ? signed(tick) : "0")),
        title: { text: "r", side: "top" },
      },
    };
  }

  function markTrace(map, width) {
    const found = [];
    for (let cell = 0; cell < map.layers * map.units; cell += 1) {
      if (standsOut(map, cell)) found.push(cell);
    }
    return {
      type: "scatter", mode: "markers", hoverinfo: "skip",
      x: found.map((cell) => cell % map.units), y: found.map((cell) => Math.floor(cell / map.units)),
      marker: {
        symbol: found.map((cell) => (map[choices.view][cell] > 0 ? "triangle-up" : "triangle-down")),
        size: Math.max(2.5, Math.min(6, (0.85 * width) / map.units)), color: ink, opacity: 1,
        line: { width: 0.5, color: "#fff" },
      },
    };
  }

  function outline(map, cell, dash) {
    const [x, y] = [cell % map.units, Math.floor(cell / map.units)];
    const box = { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5 };
    // Dark on light on any colour.
    return [{ ...box, line: { color: "#fff", width: 5 } }, { ...box, line: { color: ink, width: 2, dash } }];
  }

  function makeMap(element) {
    const { target } = element.dataset;
    const map = readMap(target);
    const plot = element.querySelector(".cells");
    const readout = element.querySelector(".readout");
    const last = map.layers * map.units - 1;
    const at = { chosen: strongest(map), cursor: null };
    at.cursor = at.chosen;

    function shapes() {
      const cursor = document.activeElement === plot ? outline(map, at.cursor, "dot") : [];
      return [...outline(map, at.chosen, "solid"), ...cursor];
    }
    const outlined = () => Plotly.relayout(plot, { shapes: shapes() });

    function show(most) {
      // Rows are as high as the screen allows, and all of them as high as the title beside them.
      const height = Math.max(190, Math.max(8, Math.min(22, 480 / map.layers)) * map.layers) + 56;
      plot.style.height = `${height}px`;
      const traces = [cellTrace(map, most)];
      if (choices.marks === "marked") traces.push(markTrace(map, plot.clientWidth - 190));
      const step = Math.max(1, Math.ceil(map.layers / 26));
      const shown = Array.from({ length: map.layers }, (_, layer) => layer).filter((layer) => layer % step === 0);
      return draw(plot, {
        data: traces,
        layout: {
          height, margin: { l: 90, r: 10, t: 8, b: 48 }, plot_bgcolor: undefinedColour, shapes: shapes(),
          xaxis: { title: { text: "unit" }, range: [-0.5, map.units - 0.5], showgrid: false },
          yaxis: {
            title: { text: "layer, from audio to text" }, range: [-0.5, map.layers - 0.5], showgrid: false,
            tickvals: shown, ticktext: shown.map((layer) => short(layerName(layer), 16)),
          },
        },
      });
    }

    function choose(cell) {
      at.chosen = at.cursor = cell;
      outlined();
      showUnit(element, map, target, cell);
      readout.textContent = `${described(map, cell).join("; ")}. Its values are shown below.`;
    }

    function move(event) {
      const layer = Math.floor(at.cursor / map.units);
      const unit = at.cursor % map.units;
      const to = {
        ArrowLeft: [layer, unit - 1], ArrowRight: [layer, unit + 1],
        ArrowUp: [layer + 1, unit], ArrowDown: [layer - 1, unit],
        Home: [layer, 0], End: [layer, map.units - 1],
        PageUp: [map.layers - 1, unit], PageDown: [0, unit],
      }[event.key];
      if (event.key === "Enter" || event.key === " ") choose(at.cursor);
      else if (to === undefined) return;
      else {
        const clamped = [Math.max(0, Math.min(map.layers - 1, to[0])), Math.max(0, Math.min(map.units - 1, to[1]))];
        at.cursor = Math.min(last, clamped[0] * map.units + clamped[1]);
        outlined();
        readout.textContent = described(map, at.cursor).join("; ");
      }
      event.preventDefault(); // the page would scroll
    }

    plot.addEventListener("keydown", move);
    plot.addEventListener("focus", outlined);
    plot.addEventListener("blur", outlined);
    return {
      map,
      async refresh(most) {
        const first = !plot.on; // which plotly.js gives to what it draws on
        await show(most);
        if (first) plot.on("plotly_click", ({ points }) => choose(points[0].y * map.units + points[0].x));
        showUnit(element, map, target, at.chosen);
        if (readout.textContent) readout.textContent = described(map, at.chosen).join("; ");
      },
    };
  }

  function strongest(map) {
    let best = 0;
    for (let cell = 1; cell < map.layers * map.units; cell += 1) {
      if (!(Math.abs(map.r[cell]) <= Math.abs(map.r[best]))) best = Number.isFinite(map.r[cell]) ? cell : best;
    }
    return best;
  }

  // -- one unit

  // Values of a unit by utterance, from levels between its smallest and largest one.
  const levels = report.scatter && decode(report.scatter.levels);
  const lows = report.scatter && decode(report.scatter.low);
  const highs = report.scatter && decode(report.scatter.high);
  function unitValues(layer, unit) {
    const count = report.scatter.ids.length;
    const place = layer * report.scatter.units + unit;
    const span = highs[place] - lows[place];
    return Array.from(levels.subarray(place * count, (place + 1) * count), (level) =>
      level === 65535 ? null : lows[place] + (span * level) / 65534);
  }

  function scatterFigure(target, layer, unit) {
    const { ids, speakers, labels } = report.scatter;
    const values = unitValues(layer, unit);
    const names = [...new Set(speakers)];
    const data = names.map((name, index) => {
      const chosen = ids.map((_, i) => i).filter((i) =>
        speakers[i] === name && values[i] !== null && labels[target][i] !== null);
      return {
        type: "scatter", mode: "markers", name: short(name, 16), hoverinfo: "text",
        x: chosen.map((i) => labels[target][i]), y: chosen.map((i) => values[i]),
        hovertext: chosen.map((i) =>
          `${ids[i]}\nspeaker ${name}\n${target} ${plain(labels[target][i])}\nvalue ${values[i].toPrecision(4)}`),
        marker: {
          // Seven colours and eight shapes: 56 speakers until the first pair comes again.
          color: colours[index % colours.length], symbol: symbols[index % symbols.length],
          size: 8, opacity: 0.75,
        },
      };
    });
    const rows = Math.ceil(names.length / 3); // of the legend, at least
    return {
      data,
      layout: {
        height: names.length <= 30 ? 380 + 18 * Math.max(0, rows - 2) : 380, showlegend: names.length <= 30,
        xaxis: { title: { text: target } }, yaxis: { title: { text: "pooled value of the unit" } },
      },
    };
  }

  function showUnit(element, map, target, cell) {
    const [layer, unit] = [Math.floor(cell / map.units), cell % map.units];
    const name = `${layerName(layer)}, unit ${unit}`;
    element.querySelector("h4").textContent = name;
    const list = element.querySelector(".unit dl");
    list.replaceChildren(...known(map, cell).map(([what, value]) => {
      const pair = document.createElement("div");
      for (const [tag, text] of [["dt", what], ["dd", value]]) {
        pair.appendChild(document.createElement(tag)).textContent = text;
      }
      return pair;
    }));
    const values = element.querySelector(".values");
    if (values && unit < report.scatter.units && target in report.scatter.labels) {
      values.setAttribute("aria-label", `Value of ${name} against ${target}, by speaker`);
      const figure = scatterFigure(target, layer, unit);
      values.style.height = `${figure.layout.height}px`;
      draw(values, figure);
    }
    const curve = element.querySelector(".layer-curve");
    if (curve && target in report.curves) {
      const { data, layout } = report.curves[target];
      const line = { type: "line", x0: layer, x1: layer, y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 2 } };
      curve.setAttribute("aria-label", `CCC of ${target} by layer; ${layerName(layer)} is marked`);
      draw(curve, { data, layout: { ...layout, shapes: [line] } });
    }
  }

  const maps = [...document.querySelectorAll(".map")].map(makeMap);
  const MOST_CELLS = 6000; // beyond, marks would be smaller than can be seen
  if (maps.some(({ map }) => map.layers * map.units > MOST_CELLS)) {
    document.querySelector("input[value=marked]").disabled = true;
    document.querySelector("input[value=none]").checked = true;
    choices.marks = "none";
  }
  const main = document.querySelector("main");
  const refreshMaps = async () => {
    main.setAttribute("aria-busy", "true");
    const most = limit(maps.map(({ map }) => map));
    for (const map of maps) await map.refresh(most);
    main.setAttribute("aria-busy", "false");
  };
  for (const input of document.querySelectorAll(".controls input")) {
    input.addEventListener("change", () => {
      choices[input.name] = input.value;
      document.getElementById("criterion").textContent = `(${VIEWS[choices.view].says})`;
      refreshMaps();
    });
  }
  refreshMaps();

  // -- utterances over time

  document.documentElement.classList.add("scripted");
  const utterances = [...document.querySelectorAll(".utterance")];
  const choice = document.getElementById("utterance");
  function showUtterance() {
    utterances.forEach((figure, index) => {
      figure.hidden = index !== Number(choice.value);
      const plot = figure.querySelector(".plot");
      if (!figure.hidden) draw(plot, report.figures[plot.dataset.figure]);
    });
  }
  if (choice) {
    choice.addEventListener("change", showUtterance);
    showUtterance();
  }

  // -- print: figures have the width of the window until they are told that of the paper

  const plots = () => document.querySelectorAll(".js-plotly-plot");
  const PAPER = 640; // pixels between the margins of A4, and of Letter
  function resize(width) {
    for (const plot of plots()) {
      if (plot.offsetParent !== null || width) Plotly.relayout(plot, { width, autosize: !width });
    }
  }
  window.addEventListener("beforeprint", () => resize(PAPER));
  window.addEventListener("afterprint", () => resize(null));
})();
