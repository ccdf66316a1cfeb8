"use strict";
// Draws the charts and keeps them in step with the drop-downs and the ticked losses.
// charts: {chart: {choice: {data, layout}}}; a trace's meta is the number of its loss.
const PAPER_WIDTH = 680; // px
const charts = JSON.parse(document.getElementById("charts").textContent);
const figures = [...document.querySelectorAll("figure[data-chart]")];
const ticks = [...document.querySelectorAll(".legend input")];
const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage"]],
  toImageButtonOptions: {format: "svg"},
};

function draw(figure, width) {
  const choices = charts[figure.dataset.chart];
  const {data, layout} = choices[figure.querySelector("select")?.value ?? Object.keys(choices)[0]];
  const shown = new Set(ticks.filter((tick) => tick.checked).map((tick) => Number(tick.value)));
  const isShown = (trace) => trace.meta === undefined || shown.has(trace.meta);
  const traces = data.map((trace) => ({...trace, visible: isShown(trace)}));
  const size = width ? {width, autosize: false} : {autosize: true};
  return Plotly.react(figure.querySelector(".plot"), traces, {...layout, ...size}, config);
}

function tickEverywhere(changed) {
  for (const tick of ticks) if (tick.value === changed.value) tick.checked = changed.checked;
  figures.filter((figure) => figure.dataset.losses !== undefined).forEach((figure) => draw(figure));
}

for (const figure of figures) {
  figure.querySelector("select")?.addEventListener("change", () => draw(figure));
  draw(figure);
}
for (const tick of ticks) tick.addEventListener("change", () => tickEverywhere(tick));

addEventListener("beforeprint", () => figures.forEach((figure) => draw(figure, PAPER_WIDTH)));
addEventListener("afterprint", () => figures.forEach((figure) => draw(figure)));
