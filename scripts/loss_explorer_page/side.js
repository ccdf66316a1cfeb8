// Second part of the page: one box side as a distribution over bins that can be edited.
"use strict";

const LEAST = 1e-6; // probability of a bin: a softmax never gives 0
const START_SLOPE = -0.3; // the head's bias of bin i at the start of training is -0.3 i
const BINS = Array.from({ length: NUM_BINS }, (_, i) => i);
const side = { probabilities: [], active: 2, pressed: null }; // with bars, and the scales x, y and binAt

function normalise(weights) {
  const sum = weights.reduce((a, b) => a + b, 0);
  const floored = weights.map((weight) => Math.max(weight / sum, LEAST)), total = floored.reduce((a, b) => a + b, 0);
  return floored.map((weight) => weight / total);
}

function twoBinCode(distance) {
  const [low, above] = twoBins(distance, NUM_BINS);
  return BINS.map((i) => (i === low ? 1 - above : i === low + 1 ? above : 0));
}

const PRESETS = { // weights of the bins at the true distance y
  "two-bin": (y) => twoBinCode(y),
  spread: (y) => BINS.map((i) => Math.exp(-0.5 * ((i - y) / 1.5) ** 2)),
  "two-peaks": (y) => {
    const apart = Math.min(2.5, y, NUM_BINS - 1 - y), low = twoBinCode(y - apart), high = twoBinCode(y + apart);
    return BINS.map((i) => low[i] + high[i]);
  },
  flat: () => BINS.map(() => 1),
  start: () => softmax(BINS.map((i) => START_SLOPE * i)),
};

// The bin takes the probability, the others make room in proportion.
function setBin(bin, probability) {
  const old = side.probabilities, wanted = clamp(probability, LEAST, 1 - LEAST * (NUM_BINS - 1));
  const rest = (1 - wanted) / (1 - old[bin]);
  side.probabilities = normalise(old.map((p, i) => (i === bin ? wanted : p * rest)));
}

// One step of gradient descent on DFL: its gradient is the distribution minus its two-bin target.
function gradientStep(distance) {
  const target = twoBinCode(distance);
  side.probabilities = normalise(softmax(side.probabilities.map((p, i) => Math.log(p) - (p - target[i]))));
}

function sideNumbers() {
  const logits = side.probabilities.map(Math.log), distance = Number(byId("distance").value);
  const dfl = distributionFocalLoss(logits, distance), minimum = twoBinEntropy(distance, NUM_BINS);
  return { logits, distance, dfl, minimum, integral: integral(logits), sigma: sideSigma(logits) };
}

function drawSide() {
  const numbers = sideNumbers();
  byId("distance-value").value = numbers.distance.toFixed(2);
  for (const name of ["integral", "sigma", "dfl", "minimum"]) byId(`${name}-value`).textContent = show(numbers[name]);
  byId("excess-value").textContent = show(Math.max(numbers.dfl - numbers.minimum, 0));
  byId("sigma-note").textContent = numbers.sigma < SIGMA_FLOOR + 1e-9 ? "at the limit of the bins" : "bins";
  const share = (100 * side.probabilities[side.active]).toFixed(1);
  byId("bin-value").textContent = `Bin ${side.active} holds ${share} % of the probability.`;

  const width = byId("side-drawing").clientWidth, height = byId("side-drawing").clientHeight;
  const frame = { left: 46, right: width - 12, top: 62, bottom: Math.round(height * 0.56) };
  const x = scale([-0.6, NUM_BINS - 0.4], [frame.left, frame.right]);
  side.y = scale([0, 1], [frame.bottom, frame.top]);
  side.x = x;
  side.binAt = scale([frame.left, frame.right], [-0.6, NUM_BINS - 0.4]);
  drawBars(frame, numbers);
  drawLossByDistance({ ...frame, top: frame.bottom + 56, bottom: height - 40 }, x, numbers);
}

function drawBars(frame, numbers) {
  const { x, y } = side, [axes, marks] = [byId("bar-axes"), byId("bar-marks")];
  axes.replaceChildren();
  marks.replaceChildren();
  const { left, right, top, bottom } = frame;
  place(byId("bar-room"), { x: left, y: top, width: right - left, height: bottom - top });
  drawAxes(axes, frame, x, y, BINS.map((i) => [i, String(i)]), ticks(0, 1, 5));
  draw(axes, "text", { x: 0, y: 14, class: "title" }, "probability of each bin");
  const half = (x(1) - x(0)) * 0.4;
  side.bars.forEach((bar, i) => {
    const p = side.probabilities[i];
    place(bar, { x: x(i) - half, y: y(p), width: 2 * half, height: bottom - y(p) });
    place(bar, { "aria-valuenow": p.toFixed(4), tabindex: i === side.active ? 0 : -1 });
  });
  twoBinCode(numbers.distance).forEach((p, i) => {
    const bounds = { x: x(i) - half, y: y(p), width: 2 * half, height: bottom - y(p) };
    if (p > 0) draw(marks, "rect", { ...bounds, class: "wanted" });
  });
  const truth = x(numbers.distance), mean = x(numbers.integral), level = top - 10;
  draw(marks, "line", { x1: truth, x2: truth, y1: top - 36, y2: bottom, class: "target" });
  labelLine(marks, frame, truth, top - 27, `true distance ${numbers.distance.toFixed(2)}`, "target");
  draw(marks, "line", { x1: mean, x2: mean, y1: level, y2: bottom, class: "mean" });
  const reach = numbers.sigma * (x(1) - x(0)), from = Math.max(mean - reach, left), to = Math.min(mean + reach, right);
  draw(marks, "line", { x1: from, x2: to, y1: level, y2: level, class: "reach" });
  const text = `integral ${numbers.integral.toFixed(2)} \u00b1 \u03c3`;
  labelLine(marks, frame, mean > (left + right) / 2 ? from : to, level + 4, text, "mean");
}

// DFL of this distribution for every true distance: straight from bin to bin; below it the least it could be.
function drawLossByDistance(frame, x, numbers) {
  const layer = byId("loss-by-distance"), { dfl, minimum, distance } = numbers;
  layer.replaceChildren();
  const top = niceTop(Math.max(3, 1.3 * dfl)), y = scale([0, top], [frame.bottom, frame.top]);
  drawClip(layer, frame, "side-clip", 1);
  drawAxes(layer, frame, x, y, BINS.map((i) => [i, String(i)]), ticks(0, top, 4));
  draw(layer, "text", { x: 0, y: frame.top - 14, class: "title" }, "DFL of this distribution, by true distance");
  const corner = { x: frame.right, y: frame.bottom + 35, "text-anchor": "end" };
  draw(layer, "text", { ...corner, class: "title" }, "distance in bins = strides");
  const fine = Array.from({ length: 20 * (NUM_BINS - 1) + 1 }, (_, i) => i / 20);
  const arches = fine.map((d) => [x(d), y(twoBinEntropy(d, NUM_BINS))]);
  draw(layer, "path", { d: path(arches), class: "arches" });
  const curve = BINS.map((d) => [x(d), y(distributionFocalLoss(numbers.logits, d))]);
  draw(layer, "path", { d: path(curve), class: "curve dfl", "clip-path": "url(#side-clip)" });
  const truth = x(distance);
  draw(layer, "line", { x1: truth, x2: truth, y1: frame.top, y2: frame.bottom, class: "target" });
  draw(layer, "line", { x1: truth, x2: truth, y1: y(dfl), y2: y(minimum), class: "excess" });
  draw(layer, "circle", { cx: truth, cy: y(minimum), r: 4.5, class: "least", id: "minimum-mark" });
  draw(layer, "circle", { cx: truth, cy: y(dfl), r: 4.5, class: "now", id: "dfl-mark" });
  const above = y(Math.LN2) - 6; // of the arches
  labelLine(layer, frame, truth, above, `minimum ${minimum.toFixed(2)}`, "least");
  labelLine(layer, frame, truth, Math.min(y(dfl) - 8, above - 16), `DFL ${dfl.toFixed(2)}`, "mean");
}

const STEPS = { ArrowUp: 0.01, ArrowDown: -0.01, PageUp: 0.1, PageDown: -0.1 };
const MOVES = { ArrowLeft: -1, ArrowRight: 1, Home: -NUM_BINS, End: NUM_BINS };

function editByKey(event) {
  const { active, probabilities } = side;
  if (event.key in STEPS) setBin(active, Math.round((probabilities[active] + STEPS[event.key]) * 100) / 100);
  else if (event.key in MOVES) side.active = clamp(active + MOVES[event.key], 0, NUM_BINS - 1);
  else return;
  event.preventDefault();
  drawSide();
  side.bars[side.active].focus();
}

function startSide() {
  const drawing = byId("side-drawing");
  side.bars = BINS.map((i) => {
    const bar = draw(byId("bars"), "rect", { class: "bar", role: "slider", "aria-label": `bin ${i}` });
    place(bar, { "aria-valuemin": 0, "aria-valuemax": 1 });
    bar.addEventListener("focus", () => {
      side.active = i;
      drawSide();
    });
    return bar;
  });
  side.probabilities = normalise(PRESETS.spread(Number(byId("distance").value)));
  byId("bars").addEventListener("keydown", editByKey);
  followPointer(drawing, (px, py, first) => {
    if (first) side.pressed = py < side.y(0) + 24 ? Math.round(side.binAt(px)) : null;
    if (side.pressed === null) return;
    side.active = clamp(side.pressed, 0, NUM_BINS - 1);
    setBin(side.active, (side.y(0) - py) / (side.y(0) - side.y(1)));
    drawSide();
  });
  const hold = (event) => side.pressed === null || event.preventDefault(); // touch-action does not hold inside an SVG
  drawing.addEventListener("touchmove", hold, { passive: false }); // so a finger on a bar would scroll the page
  for (const button of document.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", () => {
      side.probabilities = normalise(PRESETS[button.dataset.preset](Number(byId("distance").value)));
      drawSide();
    });
  }
  byId("step").addEventListener("click", () => {
    gradientStep(Number(byId("distance").value));
    drawSide();
  });
  byId("distance").addEventListener("input", drawSide);
  redrawOnResize(drawing, drawSide);
}
