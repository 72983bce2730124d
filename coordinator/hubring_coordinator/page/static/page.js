// What is known, where it comes from, and when it is drawn.
"use strict";

const SILENCE_MS = 4000;
const AGAIN_MS = 2000;
const page = { view: null, columns: [], rows: [], byTime: true, heard: 0, awaySince: null, isFull: false, source: null };

/** A message: the view, and the history's points from number `from` on. */
function take(message) {
  const history = message.history;
  page.view = message;
  page.columns = history.columns;
  page.rows.length = Math.min(page.rows.length, history.from);
  page.rows.push(...history.rows);
  draw();
}

function draw() {
  const view = page.view;
  if (!view) return;
  document.title = `${view.state} ${view.steps ? `step ${count(view.steps)} ` : ""}· ${view.run} · hubring`;
  setText("run", view.run);
  setText("mode", `${view.mode}${view.boot > 1 ? ` · coordinator's start number ${view.boot}` : ""}`);
  setText("state", view.state);
  byId("state").className = `pill ${kindClass(view.state)}`;
  drawDiagnosis(view.diagnosis);
  drawFigures(view);
  drawGoals(view.goals);
  drawFailure(view);
  drawMembers(view);
  drawShards(view);
  drawStaleness(view);
  drawData(view);
  drawEvaluations(view);
  drawEvents(view);
  drawCharts(view);
  setText("footer", view.model ? `The model lies in ${view.model}.` : "");
}

/** Read out only where the kind changes: the words change every second. */
function drawDiagnosis(found) {
  byId("diagnosis").className = `diagnosis ${kindClass(found.level)}`;
  setText("diagnosis-words", found.words);
  if (hasChanged("spoken", found.kind)) setText("spoken", found.words);
}

function drawCharts(view) {
  const trained = page.rows.filter((row) => row[page.columns.indexOf("steps")] > 0);
  const isKnown = trained.length > 0;
  byId("no-history").hidden = isKnown;
  byId("charts").hidden = !isKnown || !canDraw();
  byId("marks").hidden = byId("charts").hidden;
  byId("numbers").hidden = !isKnown;
  if (!canDraw()) byId("numbers").open = true;
  drawHistory(trained, page.columns);
  if (!isKnown || !canDraw()) return;
  drawProgress(view, trained, page.columns, page.byTime);
  drawStalenessChart(view);
}

// --- the connection --------------------------------------------------------------------------

function connect() {
  page.source?.close();
  page.source = new EventSource("/events");
  page.source.onmessage = (message) => {
    page.heard = Date.now();
    page.awaySince = null;
    page.isFull = false;
    take(JSON.parse(message.data));
    showConnection();
  };
  page.source.onerror = () => {
    page.awaySince ??= new Date();
    if (page.source.readyState === EventSource.CLOSED) tryAgain();
    showConnection();
  };
}

/** It answered, but not with a stream: it has no place for one more page, or it is starting. */
async function tryAgain() {
  setTimeout(connect, AGAIN_MS);
  page.isFull = await fetch("/healthz").then((answer) => answer.ok, () => false);
  showConnection();
}

/** A coordinator that hangs closes no connection: silence tells. */
function watch() {
  if (page.heard && Date.now() - page.heard > SILENCE_MS) page.awaySince ??= new Date(page.heard);
  showConnection();
}

function showConnection() {
  const shown = byId("connection");
  if (page.isFull) {
    shown.className = "connection away";
    setText("connection", "too many pages are open; trying again");
  } else if (!page.awaySince) {
    shown.className = page.view ? "connection live" : "connection";
    setText("connection", page.view ? "live" : "connecting");
  } else if (page.view?.is_over) {
    shown.className = "connection";
    setText("connection", "the run is over and its coordinator has left");
  } else {
    shown.className = "connection away";
    setText("connection", `coordinator away since ${timeOfDay(page.awaySince)}`);
  }
}

// --- the start -------------------------------------------------------------------------------

function choose(byTime) {
  page.byTime = byTime;
  byId("over-time").setAttribute("aria-pressed", String(byTime));
  byId("over-steps").setAttribute("aria-pressed", String(!byTime));
  draw();
}

function begin() {
  byId("over-time").addEventListener("click", () => choose(true));
  byId("over-steps").addEventListener("click", () => choose(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const saved = byId("saved");
  if (saved) {
    take(JSON.parse(saved.textContent));
    setText("connection", "saved at the run's end");
    return;
  }
  connect();
  setInterval(watch, 1000);
}

begin();
