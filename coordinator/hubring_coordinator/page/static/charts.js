// The charts, by Plotly, where its script is there. Text that goes into them is escaped: Plotly
// reads a few tags in it.
"use strict";

const MARKS = 60;
const KINDS = {
  joined: "--second", died: "--bad", failed: "--bad", draining: "--warn", stopped: "--warn", evaluated: "--violet",
};

function canDraw() {
  return typeof Plotly !== "undefined";
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function escaped(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  return text.slice(0, 300).replace(/[&<>]/g, (sign) => entities[sign]);
}

function marksOf(view) {
  const evaluated = view.evaluations.filter((e) => e.seconds).map((e) => ({
    kind: "evaluated", seconds: e.seconds, steps: e.steps, text: `evaluation ${e.number}: ` +
      Object.entries(e.metrics).map(([name, value]) => `${name} ${figure(value)}`).join(", "),
  }));
  return [...view.events, ...evaluated].filter((e) => Object.hasOwn(KINDS, e.kind)).slice(-MARKS);
}

function axis(more) {
  return {
    gridcolor: colour("--edge"), linecolor: colour("--edge"), zeroline: false, automargin: true,
    tickfont: { color: colour("--soft"), size: 11 }, ...more,
  };
}

function layoutOf(view, byTime, marks, more) {
  const at = (mark) => (byTime ? mark.seconds / timeUnit(view)[0] : mark.steps);
  return {
    margin: { l: 48, r: 12, t: 8, b: 34 }, showlegend: false, hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: byTime ? "time" : "steps",
    font: { family: "system-ui, sans-serif", color: colour("--ink") },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--edge"), font: { color: colour("--ink") }, align: "left" },
    xaxis: axis({ title: { text: byTime ? timeUnit(view)[1] : "steps", font: { color: colour("--soft"), size: 11 }, standoff: 6 }, rangemode: "tozero" }),
    yaxis: axis({ rangemode: "tozero" }),
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    shapes: marks.map((mark) => ({
      type: "line", xref: "x", yref: "paper", x0: at(mark), x1: at(mark), y0: 0, y1: 1, layer: "below",
      line: { color: colour(KINDS[mark.kind]), width: 1, dash: "dot" },
    })),
    ...more,
  };
}

/** [seconds in a unit, its name]: a run of hours is not read in seconds. */
function timeUnit(view) {
  if (view.seconds < 300) return [1, "seconds"];
  return view.seconds < 7200 ? [60, "minutes"] : [3600, "hours"];
}

function markTrace(view, byTime, marks) {
  return {
    type: "scatter", mode: "markers", yaxis: "y2", y: marks.map(() => 0.96),
    x: marks.map((mark) => (byTime ? mark.seconds / timeUnit(view)[0] : mark.steps)),
    marker: { size: 8, color: marks.map((mark) => colour(KINDS[mark.kind])) },
    text: marks.map((mark) => escaped(mark.text)), hovertemplate: "%{text}<extra></extra>",
  };
}

/** The mean of each point's neighbours, for the eye; few points stay as they are. */
function smoothed(values) {
  const reach = Math.floor(values.length / 60);
  if (reach < 1) return values;
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - reach), i + reach + 1).filter((v) => v !== null);
    return near.length ? near.reduce((sum, v) => sum + v, 0) / near.length : null;
  });
}

function line(x, y, more) {
  return { type: "scatter", mode: "lines", x, y, ...more };
}

function drawProgress(view, rows, columns, byTime) {
  const at = Object.fromEntries(columns.map((name, i) => [name, i]));
  const column = (name) => rows.map((row) => row[at[name]]);
  const x = byTime ? column("seconds").map((s) => s / timeUnit(view)[0]) : column("steps");
  const marks = marksOf(view);
  const options = { displayModeBar: false, responsive: true };
  const dots = markTrace(view, byTime, marks);
  const loss = column("loss");
  Plotly.react("loss-chart", [
    line(x, loss, { line: { color: colour("--raw"), width: 1.2 }, hoverinfo: "skip" }),
    line(x, smoothed(loss), { line: { color: colour("--accent"), width: 2 }, customdata: loss.map(figure), hovertemplate: "loss %{customdata}<extra></extra>" }),
    dots,
  ], layoutOf(view, byTime, marks), options);
  Plotly.react("rate-chart", [
    line(x, column("rate"), { line: { color: colour("--second"), width: 1.8 }, fill: "tozeroy", fillcolor: colour("--second") + "22", hovertemplate: "%{y:.0f} examples/s<extra></extra>" }),
    dots,
  ], layoutOf(view, byTime, marks), options);
  byId("loss-chart").setAttribute("aria-label", `Loss, ${figure(view.loss)} at step ${count(view.steps)}`);
  byId("rate-chart").setAttribute("aria-label", `Speed, ${rate(view.rate)} examples a second`);
}

function drawStalenessChart(view) {
  const known = view.staleness.pushes.length > 0;
  if (known && byId("staleness-chart").hidden) byId("staleness-numbers").open = false;
  byId("staleness-chart").hidden = !known;
  if (!known) return;
  Plotly.react("staleness-chart", [{
    type: "bar", x: view.staleness.buckets, y: view.staleness.pushes, marker: { color: colour("--accent") },
    hovertemplate: "%{x} stale: %{y} pushes<extra></extra>",
  }], layoutOf(view, true, [], { xaxis: axis({ type: "category" }), bargap: 0.25, uirevision: "bars" }), { displayModeBar: false, responsive: true });
  byId("staleness-chart").setAttribute("aria-label", "Pushes by staleness; the table below has the numbers");
}
