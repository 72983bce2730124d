// Numbers and times as people read them, and elements made of text alone.
"use strict";

const NONE = "–";

function fixed(value, digits) {
  return value === null || value === undefined ? NONE : value.toFixed(digits);
}

function count(value) {
  return value === null || value === undefined ? NONE : Math.round(value).toLocaleString("en");
}

/** Four significant digits, for a loss or a metric of any size. */
function figure(value) {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(2);
  return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(4)));
}

function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value < 10 ? value.toFixed(1) : count(value);
}

function share(value) {
  return value === null || value === undefined ? NONE : `${Math.round(100 * value)} %`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toPrecision(3) : value} ${units[unit]}`;
}

/** 8.2 s, 3 min 12 s, 5 h 2 min, 3 d 4 h. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 60) return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds)} s`;
  const whole = Math.floor(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** 1:02:03 into the run. */
function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((n) => String(n).padStart(2, "0"));
  return `${Math.floor(whole / 3600)}:${parts.join(":")}`;
}

function timeOfDay(date) {
  return date.toLocaleTimeString("en-GB");
}

function byId(id) {
  return document.getElementById(id);
}

/** An element. Children are elements or text: text never becomes markup. */
function element(tag, classes, ...children) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}

function setText(id, text) {
  const found = byId(id);
  if (found.textContent !== text) found.textContent = text;
}

/** A word of the program's own as a class name; anything else has none. */
function kindClass(word) {
  return /^[a-z-]{1,20}$/.test(word) ? word : "";
}

function pill(word) {
  return element("span", `pill ${kindClass(word)}`, word);
}
