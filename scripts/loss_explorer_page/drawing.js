// What both drawings share: SVG elements, scales, axes, numbers as text. Lengths are CSS px.
"use strict";

const byId = (id) => document.getElementById(id);

function draw(parent, name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  place(node, attributes);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function place(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
}

const scale = ([from, to], [start, end]) => (value) => start + ((value - from) / (to - from)) * (end - start);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

// Four decimals; what they would round to nothing, in powers of ten.
function show(value) {
  const small = Math.abs(value) < 1e-3 && Math.abs(value) > 1e-12;
  const text = small ? value.toExponential(2) : value.toFixed(4);
  return text.replace(/^-(0\.0+)$/, "$1").replaceAll("-", "\u2212");
}

const TOPS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15];
const niceTop = (value) => TOPS.find((top) => top >= value) ?? TOPS.at(-1);

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const count = Math.floor((high - low) / step + 1e-6), first = Math.ceil(low / step - 1e-6) * step;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: count + 1 }, (_, i) => first + i * step)
    .filter((value) => value <= high + step * 1e-6)
    .map((value) => [value, value.toFixed(digits).replace(/^-0(\.0*)?$/, "0").replace("-", "\u2212")]);
}

// Grid lines and numbers. frame: {left, right, top, bottom}; x, y: scales.
function drawAxes(layer, frame, x, y, xTicks, yTicks) {
  for (const [value, text] of yTicks) {
    const level = y(value);
    const style = value === 0 ? "zero" : "grid";
    draw(layer, "line", { x1: frame.left, x2: frame.right, y1: level, y2: level, class: style });
    draw(layer, "text", { x: frame.left - 8, y: level + 4, class: "tick", "text-anchor": "end" }, text);
  }
  for (const [value, text] of xTicks) {
    draw(layer, "text", { x: x(value), y: frame.bottom + 17, class: "tick", "text-anchor": "middle" }, text);
  }
}

// Cuts what uses it off at the frame, give or take a few px.
function drawClip(layer, frame, id, spare) {
  const clip = draw(draw(layer, "defs", {}), "clipPath", { id });
  const [width, height] = [frame.right - frame.left, frame.bottom - frame.top];
  draw(clip, "rect", { x: frame.left, y: frame.top - spare, width, height: height + 2 * spare });
}

// A label beside a vertical line, on the side where there is room.
function labelLine(layer, frame, at, level, text, style) {
  const left = at > (frame.left + frame.right) / 2;
  const anchor = { x: at + (left ? -6 : 6), y: level, "text-anchor": left ? "end" : "start" };
  draw(layer, "text", { ...anchor, class: `mark ${style}` }, text);
}

// Calls follow(x, y) in px of the drawing while a pointer is held down on it.
function followPointer(drawing, follow) {
  const tell = (event, first) => {
    const box = drawing.getBoundingClientRect();
    follow(event.clientX - box.left, event.clientY - box.top, first);
  };
  drawing.addEventListener("pointerdown", (event) => {
    drawing.setPointerCapture(event.pointerId);
    tell(event, true);
  });
  drawing.addEventListener("pointermove", (event) => {
    if (drawing.hasPointerCapture(event.pointerId)) tell(event, false);
  });
}

// The width has to be known before anything is drawn, and again when it changes.
function redrawOnResize(drawing, redraw) {
  let width = 0;
  new ResizeObserver(() => {
    if (drawing.clientWidth !== width) redraw((width = drawing.clientWidth));
  }).observe(drawing);
}
