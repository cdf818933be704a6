// Sorts tables, shows the details of a cell of the heat map, switches the theme.
// Text enters the page as text nodes only, never as markup.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const data = JSON.parse($("#data").textContent);

  // --- Theme ---
  const theme = $("#theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // --- Sorting: numbers by value, text by alphabet, empty cells last ---
  const compare = (a, b, sign) => {
    if (a === b) return 0;
    if (a === "" || a === null) return 1;
    if (b === "" || b === null) return -1;
    const numeric = typeof a === "number" && typeof b === "number";
    return sign * (numeric ? a - b : String(a).localeCompare(String(b)));
  };
  const valueOf = (cell) => {
    const raw = cell.dataset.v;
    return raw === undefined ? cell.textContent.trim() : raw === "" ? "" : Number(raw);
  };
  const announce = (text) => { $("#said").textContent = text; };

  for (const table of $$("table.data")) {
    const heads = $$("thead th", table);
    heads.forEach((head, column) => {
      $("button", head).addEventListener("click", () => {
        const numeric = !head.classList.contains("text");
        const now = head.getAttribute("aria-sort");
        const down = now === "none" ? numeric : now === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
        rows.sort((a, b) => compare(a[0], b[0], down ? -1 : 1));
        body.append(...rows.map((pair) => pair[1]));
        announce(`Sorted by ${head.textContent}, ${down ? "descending" : "ascending"}.`);
      });
    });
  }

  // --- A link to what is folded unfolds it ---
  const unfold = () => {
    const found = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let node = found || null; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") node.open = true;
    }
  };
  addEventListener("hashchange", unfold);
  unfold();

  // --- The heat map ---
  const heat = $("#heat");
  if (!heat) return;
  const card = $("#card");
  const cellOf = (td) => data.cells[td.dataset.o][td.dataset.b];
  let measure = data.measures[0];

  const paint = () => {
    for (const td of $$("td", heat)) {
      const { o, b } = td.dataset;
      td.textContent = measure.texts[o][b];
      const colour = measure.colours[o][b];
      td.className = colour + (measure.strong && measure.strong[o][b] ? " strong" : "");
    }
    $$(".legend[data-measure]").forEach((legend) => {
      legend.hidden = legend.dataset.measure !== measure.key;
    });
  };
  const select = $("#measure");
  select.closest(".controls").hidden = false;
  select.addEventListener("change", () => {
    measure = data.measures.find((m) => m.key === select.value);
    paint();
  });

  const columns = () => $$("thead th", heat).slice(1);
  const clear = () => $$("[aria-sort]", heat).forEach((th) => th.setAttribute("aria-sort", "none"));
  const better = (a, b) => compare(a, b, measure.low_first ? 1 : -1);
  const number = (o, b) => measure.values[o][b];

  const sortRows = (th) => {
    const again = th.getAttribute("aria-sort") === "descending";
    clear();
    th.setAttribute("aria-sort", again ? "ascending" : "descending");
    const body = heat.tBodies[0];
    const rows = [...body.rows];
    rows.sort((x, y) => {
      const pair = [number(x.dataset.o, th.dataset.b), number(y.dataset.o, th.dataset.b)];
      if (pair.includes(null)) return compare(...pair, 1);
      return (again ? -1 : 1) * better(...pair);
    });
    body.append(...rows);
    announce(`Optimizers sorted by ${data.backbones[th.dataset.b]}.`);
  };
  const sortColumns = (th, order) => {
    const head = heat.tHead.rows[0];
    const known = order ?? (() => {
      const again = th.getAttribute("aria-sort") === "descending";
      clear();
      th.setAttribute("aria-sort", again ? "ascending" : "descending");
      const o = th.parentNode.dataset.o;
      const found = data.backbones.map((_, b) => b);
      found.sort((x, y) => {
        const pair = [number(o, x), number(o, y)];
        if (pair.includes(null)) return compare(...pair, 1);
        return (again ? -1 : 1) * better(...pair);
      });
      announce(`Backbones sorted by ${data.optimizers[o]}.`);
      return found;
    })();
    const place = (row) => {
      const cells = new Map([...row.cells].slice(1).map((cell) => [Number(cell.dataset.b), cell]));
      row.append(...known.map((b) => cells.get(b)));
    };
    [head, ...heat.tBodies[0].rows].forEach(place);
  };
  for (const th of columns()) $("button", th).addEventListener("click", () => sortRows(th));
  for (const th of $$("tbody th", heat)) {
    $("button", th).addEventListener("click", () => sortColumns(th));
  }
  const firstRows = [...heat.tBodies[0].rows];
  const firstColumns = columns().map((th) => Number(th.dataset.b));
  $("#unsort").addEventListener("click", () => {
    clear();
    heat.tBodies[0].append(...firstRows);
    sortColumns(null, firstColumns);
    announce("Original order.");
  });

  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const curve = (mine, best) => {
    const lines = [[best, "best"], [mine, "mine"]].filter((pair) => pair[0]);
    const points = lines.flatMap(([c]) => c.x.map((x, i) => [x, c.y[i]])).filter((p) => p[1] !== null);
    if (points.length < 2) return null;
    const span = (k) => [Math.min(...points.map((p) => p[k])), Math.max(...points.map((p) => p[k]))];
    const [x0, x1] = span(0), [y0, y1] = span(1);
    const sx = (x) => 34 + (252 * (x - x0)) / (x1 - x0 || 1);
    const sy = (y) => 66 - (58 * (y - y0)) / (y1 - y0 || 1);
    const what = data.curve_measure;
    const svg = draw("svg", { viewBox: "0 0 292 84", role: "img", "aria-label": `${what} by epoch` });
    for (const [c, name] of lines) {
      const path = c.x.map((x, i) => [x, c.y[i]]).filter((p) => p[1] !== null);
      svg.append(draw("polyline", {
        class: name, points: path.map((p) => `${sx(p[0]).toFixed(1)},${sy(p[1]).toFixed(1)}`).join(" "),
      }));
    }
    const said = (v) => (Math.abs(v) < 10 ? v.toFixed(2) : v.toFixed(0));
    svg.append(draw("text", { x: 0, y: 12 }, said(y1)), draw("text", { x: 0, y: 68 }, said(y0)));
    svg.append(draw("text", { x: 34, y: 80 }, `${what}, epochs ${said(x0)} to ${said(x1)}`));
    return svg;
  };
  const show = (td) => {
    const cell = cellOf(td);
    const o = data.optimizers[td.dataset.o], b = data.backbones[td.dataset.b];
    const list = make("dl");
    for (const [name, value] of cell.facts) list.append(make("dt", name), make("dd", value));
    card.replaceChildren(make("h4", `${b} with ${o}`), list);
    const best = data.best[td.dataset.b];
    const svg = cell.curve ? curve(cell.curve, best === null ? null : data.cells[best][td.dataset.b].curve) : null;
    if (svg) {
      card.append(svg);
      if (Number(td.dataset.o) !== best) card.append(make("div", "dashed: the best of the column", "caption"));
    }
    card.hidden = false;
    const box = td.getBoundingClientRect(), width = card.offsetWidth, height = card.offsetHeight;
    const right = box.right + 10 + width < innerWidth;
    card.style.left = `${Math.max(8, right ? box.right + 10 : box.left - width - 10)}px`;
    card.style.top = `${Math.max(8, Math.min(box.top - 20, innerHeight - height - 8))}px`;
  };
  const hide = () => { card.hidden = true; };
  heat.addEventListener("pointerover", (event) => {
    const td = event.target.closest("td");
    if (td) show(td); else hide();
  });
  heat.addEventListener("pointerleave", hide);
  heat.addEventListener("focusin", (event) => {
    if (event.target.matches("td")) show(event.target); else hide();
  });
  heat.addEventListener("focusout", hide);
  heat.addEventListener("click", (event) => {
    const td = event.target.closest("td");
    if (td) td.focus();
  });
  addEventListener("scroll", hide, { passive: true });

  // Only one cell is in the tab order; the arrow keys move to its neighbours.
  const firstCell = $("td", heat);
  if (firstCell) firstCell.tabIndex = 0;
  heat.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const td = event.target.closest("td");
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!td || !step) return;
    event.preventDefault();
    const row = heat.rows[td.parentNode.rowIndex + step[0]];
    const next = row && row.cells[td.cellIndex + step[1]];
    if (!next || !next.matches("td")) return;
    td.tabIndex = -1;
    next.tabIndex = 0;
    next.focus({ preventScroll: false });
  });
})();
