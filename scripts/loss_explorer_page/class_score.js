// First part of the page: the class losses over the score.
"use strict";

const SCORES = [0.001, ...Array.from({ length: 399 }, (_, i) => (i + 1) / 400), 0.999];

function classSettings() {
  const number = (id) => Number(byId(id).value);
  return {
    target: number("target"), exponent: number("exponent"), score: number("score"),
    alpha: byId("use-alpha").checked ? number("alpha") : null,
    gradient: byId("show-gradient").checked,
    shown: Object.keys(CLASS_LOSSES).filter((name) => byId(`show-${name}`).checked),
  };
}

function drawClassScore() {
  const settings = classSettings(), { target, exponent, alpha, score } = settings;
  byId("target-value").value = target.toFixed(2);
  byId("exponent-value").value = exponent.toFixed(1);
  byId("alpha-value").value = alpha === null ? "off" : alpha.toFixed(2);
  byId("alpha").disabled = alpha === null;
  byId("score-value").value = score.toFixed(2);
  const rests = {};
  for (const [name, loss] of Object.entries(CLASS_LOSSES)) {
    const [value, gradient] = loss(Math.log(score / (1 - score)), target, exponent, alpha);
    rests[name] = restingScore(loss, target, exponent, alpha);
    byId(`${name}-loss`).textContent = show(value);
    byId(`${name}-gradient`).textContent = show(gradient);
    byId(`${name}-rest`).textContent = rests[name].toFixed(3);
  }
  drawCurves(settings, rests);
}

// The range of the axis: what the shown curves do between scores of 0.05 and 0.95.
function classRange(curves, gradient) {
  const inner = (_, i) => SCORES[i] >= 0.05 && SCORES[i] <= 0.95;
  const seen = Object.values(curves).flatMap((values) => values.filter(inner));
  const high = niceTop(Math.max(0.005, ...seen));
  const low = gradient ? Math.min(0, ...seen) : 0;
  return [low < -1e-9 ? -niceTop(-low) : 0, gradient && Math.max(0, ...seen) === 0 ? 0 : high];
}

const coincide = (a, b) => a.every((value, i) => Math.abs(value - b[i]) < 1e-9);

function drawCurves(settings, rests) {
  const { target, exponent, alpha, score, shown } = settings;
  const drawing = byId("class-drawing"), width = drawing.clientWidth, height = drawing.clientHeight;
  const which = settings.gradient ? 1 : 0;
  const at = (name, s) => CLASS_LOSSES[name](Math.log(s / (1 - s)), target, exponent, alpha)[which];
  const curves = Object.fromEntries(shown.map((name) => [name, SCORES.map((s) => at(name, s))]));
  const frame = { left: 46, right: width - 12, top: 34, bottom: height - 40 };
  const range = classRange(curves, settings.gradient);
  const x = scale([0, 1], [frame.left, frame.right]), y = scale(range, [frame.bottom, frame.top]);

  drawing.replaceChildren();
  drawClip(drawing, frame, "class-clip", 2);
  drawAxes(drawing, frame, x, y, ticks(0, 1, width < 500 ? 5 : 10), ticks(...range, 5));
  const title = settings.gradient ? "gradient of the loss by the logit z" : "loss";
  draw(drawing, "text", { x: 0, y: 16, class: "title" }, title);
  const corner = { x: frame.right, y: height - 4, "text-anchor": "end" };
  draw(drawing, "text", { ...corner, class: "title" }, "score s = sigmoid(z)");

  draw(drawing, "line", { x1: x(target), x2: x(target), y1: frame.top - 6, y2: frame.bottom, class: "target" });
  labelLine(drawing, frame, x(target), frame.top - 1, `target ${target.toFixed(2)}`, "target");
  draw(drawing, "line", { x1: x(score), x2: x(score), y1: frame.top, y2: frame.bottom, class: "probe" });
  shown.forEach((name, i) => { // curves behind equal ones are wider, so that all of them show
    const points = curves[name].map((value, k) => [x(SCORES[k]), clamp(y(value), -4000, 4000)]);
    const hiding = shown.slice(i + 1).filter((other) => coincide(curves[name], curves[other])).length;
    const style = `stroke-width:${2.4 + 3 * hiding}`;
    draw(drawing, "path", { d: path(points), class: `curve ${name}`, "clip-path": "url(#class-clip)", style });
  });
  for (const name of shown) {
    const rest = clamp(rests[name], 1e-6, 1 - 1e-6);
    const level = y(at(name, score)), inside = level >= frame.top - 2 && level <= frame.bottom + 2;
    if (inside) draw(drawing, "circle", { cx: x(score), cy: level, r: 3.8, class: `dot ${name}` });
    const low = y(settings.gradient ? 0 : at(name, rest));
    if (low >= frame.top - 2) draw(drawing, "circle", { cx: x(rest), cy: low, r: 5.5, class: `rest ${name}` });
  }
}

function startClassScore() {
  for (const input of document.querySelectorAll("#class-score input")) input.addEventListener("input", drawClassScore);
  const drawing = byId("class-drawing");
  followPointer(drawing, (x) => {
    byId("score").value = (x - 46) / (drawing.clientWidth - 58); // the slider keeps to its own range and steps
    drawClassScore();
  });
  redrawOnResize(drawing, drawClassScore);
}
