"use strict";
// Draws the figures, lets a reader choose what is in them, and filters the answers. Nothing is fetched.

const root = document.documentElement;
const specs = new Map();

function styleValue(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

// The page's colours, as changes to a figure's layout; axes and arrows have theirs one by one.
function themed(layout) {
  const [ink, quiet, line, paper] = ["--ink", "--quiet", "--line", "--paper"].map(styleValue);
  const change = {
    "font.color": ink,
    "font.family": getComputedStyle(document.body).fontFamily,
    "hoverlabel.bgcolor": paper,
    "hoverlabel.bordercolor": quiet,
    "hoverlabel.font.color": ink,
  };
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(name)) {
      Object.assign(change, {
        [`${name}.gridcolor`]: line,
        [`${name}.zerolinecolor`]: line,
        [`${name}.linecolor`]: quiet,
        [`${name}.tickcolor`]: quiet,
      });
    }
  }
  (layout.annotations || []).forEach((one, index) => {
    change[`annotations[${index}].${one.name === "box" ? "bgcolor" : "arrowcolor"}`] = one.name === "box" ? paper : quiet;
  });
  return change;
}

async function unpackPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function draw(element) {
  const spec = JSON.parse(document.getElementById(`data-${element.dataset.plot}`).textContent);
  spec.chosen = {};
  specs.set(element.dataset.plot, { ...spec, element });
  element.closest("figure").querySelectorAll("select").forEach((select) => {
    spec.chosen[select.dataset.choice] = select.value;
  });
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  await Plotly.newPlot(element, spec.data, spec.layout, config);
  await Plotly.relayout(element, themed(spec.layout));
}

function choose(select) {
  const { element, axes, chosen } = specs.get(select.dataset.figure);
  chosen[select.dataset.choice] = select.value;
  const visible = element.data.map((trace) =>
    Object.entries(trace.meta || {}).every(([name, value]) => (chosen[name] ?? value) === value)
  );
  const change = {};
  for (const [name, axis] of Object.entries(axes)) {
    const option = name === select.dataset.choice ? select.selectedOptions[0] : null;
    if (option) {
      change[`${axis}axis.title.text`] = option.textContent;
      change[`${axis}axis.autorange`] = true;
    }
  }
  return Plotly.update(element, { visible }, change);
}

const PAPER_WIDTH = 680; // pixels of an A4 page between its margins
let before = null; // while printing: what to put back

function restyle() {
  const width = before ? PAPER_WIDTH : null; // a printing browser may change the colour scheme, which restyles once more
  for (const { element, layout } of specs.values()) {
    if (element.data) {
      Plotly.relayout(element, { ...themed(layout), width, autosize: !width });
    }
  }
}

function isDark() {
  return (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function filter() {
  const form = document.getElementById("filters");
  const kind = new FormData(form).get("kind");
  const wanted = document.getElementById("search").value.trim().toLowerCase();
  const columns = [...form.querySelectorAll("[name=column]")];
  const hidden = new Set(columns.filter((box) => !box.checked).map((box) => box.value));
  let count = 0;
  for (const problem of document.querySelectorAll(".problem")) {
    problem.hidden =
      (kind && problem.dataset.kind !== kind) || (wanted && !problem.textContent.toLowerCase().includes(wanted));
    count += !problem.hidden;
    for (const answer of problem.querySelectorAll(".answer")) {
      answer.hidden = hidden.has(answer.dataset.column);
    }
  }
  document.getElementById("count").textContent = count === 1 ? "1 problem" : `${count} problems`;
}

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  restyle();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => restyle());
document.querySelectorAll("select[data-figure]").forEach((select) => {
  select.addEventListener("change", () => choose(select));
});
const form = document.getElementById("filters");
if (form) {
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}

// On paper: light, all of it open, figures as wide as the page.
addEventListener("beforeprint", () => {
  if (before) return;
  before = { theme: root.dataset.theme, closed: [...document.querySelectorAll("details:not([open])")] };
  before.closed.forEach((details) => { details.open = true; });
  root.dataset.theme = "light";
  restyle();
});
addEventListener("afterprint", () => {
  if (!before) return;
  before.closed.forEach((details) => { details.open = false; });
  if (before.theme) root.dataset.theme = before.theme; else delete root.dataset.theme;
  before = null;
  restyle();
});

const plots = [...document.querySelectorAll("[data-plot]")];
root.dataset.drawn = "no";
unpackPlotly()
  .then(() => Promise.all(plots.map(draw)))
  .then(() => { root.dataset.drawn = "yes"; })
  .catch((error) => {
    plots.forEach((plot) => { plot.textContent = "This browser cannot draw the figure; one from 2023 or later can."; });
    throw error;
  });
