// Everything but the charts: the view's parts as tables and lists.
"use strict";

const shownBefore = new Map();

/** Whether `value` differs from what was drawn under `key`: a table that is the same stays, and
 *  with it the reader's selection and place. */
function hasChanged(key, value) {
  const text = JSON.stringify(value) ?? "";
  if (shownBefore.get(key) === text) return false;
  shownBefore.set(key, text);
  return true;
}

/** columns: {title, cell(row), number, wide, words, long, head}. `of`: the rows' class. */
function drawTable(id, columns, rows, empty, of = () => "") {
  if (!hasChanged(id, rows)) return;
  const table = byId(id);
  const classes = (c) => [c.number && "number", c.wide && "wide", c.words && "words", c.long && "long"].filter(Boolean).join(" ");
  if (!rows.length) {
    table.replaceChildren(element("caption", "empty", empty));
    return;
  }
  const titles = columns.map((c) => {
    const head = element("th", classes(c), c.title);
    head.scope = "col";
    return head;
  });
  const lines = rows.map((row) => element("tr", of(row), ...columns.map((c) => {
    const cell = element(c.head ? "th" : "td", classes(c), c.cell(row));
    if (c.head) cell.scope = "row";
    return cell;
  })));
  table.replaceChildren(element("thead", "", element("tr", "", ...titles)), element("tbody", "", ...lines));
}

function drawFigures(view) {
  const live = view.live;
  const eta = view.eta ? duration(view.eta.seconds) : NONE;
  const figures = [
    ["Step", count(view.steps), `epoch ${view.epoch}`],
    ["Loss", figure(view.loss), ""],
    ["Examples a second", rate(view.rate), view.is_over ? "on average" : ""],
    ["Staleness", fixed(view.staleness_mean, 2), `most ${view.staleness_max}`],
    ["Workers", count(live.worker), `and ${live.server} servers`],
    ["Elapsed", duration(view.seconds), ""],
    ["Time left", eta, view.eta ? `until ${view.eta.goal}` : ""],
  ];
  if (!view.eta) figures.pop();
  if (!hasChanged("figures", figures)) return;
  byId("figures").replaceChildren(...figures.map(([name, value, more]) => element("div", "",
    element("dt", "", name), element("dd", "", value, ...(more ? [element("small", "", more)] : [])))));
}

function drawGoals(goals) {
  byId("goals").hidden = !goals.length;
  if (!hasChanged("goals", goals)) return;
  byId("goals").replaceChildren(...goals.map((goal) => {
    const reached = goal.share === null ? `now ${figure(goal.reached)}` : `${figure(goal.reached)} of ${figure(goal.wanted)}`;
    const line = element("li", "", element("b", "", goal.name), ` ${reached}`);
    if (goal.share !== null) line.append(track([["done", goal.share]]));
    return line;
  }));
}

function track(parts) {
  const bar = element("div", "track");
  bar.setAttribute("aria-hidden", "true");
  for (const [kind, part] of parts) {
    const piece = element("i", kind);
    piece.style.width = `${100 * part}%`;
    bar.append(piece);
  }
  return bar;
}

function drawMembers(view) {
  const reason = (m) => [m.why, m.waiting_for].filter(Boolean).join("; ");
  drawTable("members", [
    { title: "Member", cell: (m) => m.name, head: true, words: true },
    { title: "State", cell: (m) => pill(m.state) },
    { title: "Steps", cell: (m) => count(m.steps), number: true },
    { title: "Rate", cell: (m) => (isGone(m) ? NONE : rate(m.rate)), number: true },
    { title: "Loss", cell: (m) => figure(m.loss), number: true, wide: true },
    { title: "Waits", cell: (m) => share(m.wait_share), number: true, wide: true },
    { title: "Stale", cell: (m) => fixed(m.staleness_mean, 2), number: true, wide: true },
    { title: "Heard", cell: (m) => (isGone(m) ? NONE : `${fixed(m.last_heard, 1)} s ago`), number: true },
    { title: "Where", cell: (m) => (m.host ? `${m.host}, pid ${m.pid}` : NONE), wide: true, words: true },
    { title: "Why", cell: (m) => reason(m), long: true },
  ], view.members, "No member has come yet.", (m) => (isGone(m) ? "gone" : ""));
  byId("members-more").hidden = !view.members_left_out;
  setText("members-more", `and ${view.members_left_out} more that are gone`);
}

function isGone(member) {
  return member.state === "dead" || member.state === "finished";
}

function drawShards(view) {
  drawTable("shards", [
    { title: "Shard", cell: (s) => String(s.shard), head: true },
    { title: "Server", cell: (s) => s.server || "none", words: true },
    { title: "Weights", cell: (s) => bytes(s.nbytes), number: true },
    { title: "Version", cell: (s) => count(s.version), number: true, wide: true },
    { title: "Apply", cell: (s) => (s.apply_ms === null ? NONE : `${fixed(s.apply_ms, 2)} ms`), number: true },
    { title: "Queue", cell: (s) => count(s.queue), number: true },
    { title: "Again", cell: (s) => count(s.duplicates), number: true, wide: true },
    { title: "Refused", cell: (s) => count(s.refused), number: true, wide: true },
  ], view.shards, "No shard is placed yet.");
}

function drawStaleness(view) {
  const total = view.staleness.pushes.reduce((sum, n) => sum + n, 0);
  const rows = view.staleness.buckets.map((bucket, i) => ({ bucket, pushes: view.staleness.pushes[i] }));
  drawTable("staleness", [
    { title: "Staleness", cell: (r) => r.bucket, head: true },
    { title: "Pushes", cell: (r) => count(r.pushes), number: true },
    { title: "Of all", cell: (r) => share(total ? r.pushes / total : 0), number: true },
  ], rows, view.pushes ? `${fixed(view.staleness_mean, 2)} on average, ${view.staleness_max} at most.` : "No push yet.");
}

function drawData(view) {
  const data = view.data;
  const done = data.epochs.filter((e) => e.done >= e.batches).length;
  const more = data.epochs_done > done ? `, the last ${done} of them shown` : "";
  const ledger = view.ledger ? ` ${view.ledger}.` : "";
  setText("data-words", `${count(data.epochs_done)} epochs done${more}.${ledger}`);
  drawTable("data", [
    { title: "Epoch", cell: (e) => String(e.epoch), head: true },
    { title: "Batches", cell: (e) => track([["done", e.done / e.batches], ["leased", e.leased / e.batches]]) },
    { title: "Done", cell: (e) => count(e.done), number: true },
    { title: "Leased", cell: (e) => count(e.leased), number: true },
    { title: "Left", cell: (e) => count(e.left), number: true },
  ], data.epochs, "No epoch has begun.");
  byId("aside").hidden = !data.set_aside_count;
  if (!hasChanged("aside", data.set_aside)) return;
  byId("aside-list").replaceChildren(...data.set_aside.map((b) => element("li", "",
    `batch ${b.batch} of epoch ${b.epoch}: with ${b.workers.join(", ")} when they died`)));
}

function drawEvaluations(view) {
  const words = (metrics) => Object.entries(metrics).map(([name, value]) => `${name} ${figure(value)}`).join(", ");
  drawTable("evaluations", [
    { title: "Evaluation", cell: (e) => String(e.number), head: true },
    { title: "Step", cell: (e) => (e.seconds ? count(e.steps) : NONE), number: true },
    { title: "At", cell: (e) => (e.seconds ? clock(e.seconds) : NONE), number: true },
    { title: "Metrics", cell: (e) => (e.seconds ? words(e.metrics) : `${e.done} of ${e.batches} batches`), long: true },
  ], view.evaluations.slice().reverse(), "No evaluation yet.");
  if (!hasChanged("metrics", view.metrics)) return;
  byId("metrics").replaceChildren(...Object.entries(view.metrics).flatMap(([name, value]) => [
    element("dt", "", name), element("dd", "", figure(value))]));
}

function drawEvents(view) {
  drawTable("events", [
    { title: "At", cell: (e) => clock(e.seconds), number: true },
    { title: "Step", cell: (e) => count(e.steps), number: true, wide: true },
    { title: "Event", cell: (e) => e.kind },
    { title: "Who", cell: (e) => e.who || NONE, words: true, wide: true },
    { title: "What", cell: (e) => e.text, long: true },
  ], view.events.slice().reverse(), "Nothing has happened yet.", (e) => (e.is_error ? "error" : ""));
}

function drawFailure(view) {
  const first = view.first_error;
  byId("failure").hidden = !first && !view.traceback;
  setText("failure-words", first ? `${clock(first.seconds)}, step ${count(first.steps)}: ${first.text}` : view.why);
  setText("trace-title", view.who ? `Traceback of ${view.who}` : "Traceback");
  byId("trace").hidden = !view.traceback;
  if (view.traceback && !byId("trace-text").textContent) byId("trace").open = true;
  setText("trace-text", view.traceback);
}

/** At most 20 lines of the history: the first, the last, and some between. */
function drawHistory(rows, columns) {
  const step = Math.max(1, Math.ceil(rows.length / 20));
  const at = Object.fromEntries(columns.map((name, i) => [name, i]));
  const chosen = rows.filter((_, i) => i % step === 0 || i === rows.length - 1).reverse();
  drawTable("history", [
    { title: "At", cell: (r) => clock(r[at.seconds]), number: true },
    { title: "Step", cell: (r) => count(r[at.steps]), number: true },
    { title: "Loss", cell: (r) => figure(r[at.loss]), number: true },
    { title: "Examples/s", cell: (r) => rate(r[at.rate]), number: true },
    { title: "Workers", cell: (r) => count(r[at.workers]), number: true },
    { title: "Servers", cell: (r) => count(r[at.servers]), number: true },
  ], chosen, "Nothing is trained yet.");
}
