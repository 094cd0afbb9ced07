// Curves that tell their values where the pointer is, and by the arrow keys.

const MARGIN = { left: 52, right: 22, top: 12, bottom: 34 };

// Draw curves into an element, anew whenever its width changes.
//   chart.title: what the vertical axis shows.
//   chart.series: each with a `name`, a `style` (a class), and `points` [x, y], or [x, mean, least,
//     greatest] to draw a band; `dots` to mark each point.
//   chart.format: writes a value of the vertical axis.
//   chart.xName: names a value of the horizontal axis; chart.xLabel: what the axis is called.
//   chart.height: in pixels, for a width. chart.log: whether the vertical axis is logarithmic.
//   chart.fromZero: whether the vertical axis begins at 0; chart.most: what it does not go beyond
//     without need.
//   chart.extra: draws more, given the chart's parts.
function lineChart(host, chart) {
  const frame = element("div", { class: "chart-frame" });
  const tip = element("div", { class: "tip", role: "status", hidden: "" });
  host.append(
    element("figure", { class: "chart" },
      element("figcaption", {}, element("span", { class: "chart-title" }, chart.title), legend(chart)),
      frame,
    ),
  );
  let width = 0;
  const redraw = () => {
    const now = Math.floor(frame.clientWidth);
    if (!now || now === width) return;
    width = now;
    frame.replaceChildren(drawChart(chart, width, tip), tip);
  };
  redraw();
  new ResizeObserver(redraw).observe(frame);
}

function legend(chart) {
  if (chart.series.length < 2 || chart.hasOwnLegend === false) return "";
  const keys = chart.series.map((series) => element("span", { class: "key" }, lineSample(series.style), series.name));
  return element("span", { class: "legend" }, ...keys);
}

// A piece of a curve, for a legend.
function lineSample(style) {
  return svg("svg", { class: "line-sample", width: 30, height: 10, "aria-hidden": "true" },
    svg("line", { x1: 2, x2: 28, y1: 5, y2: 5, class: `curve ${style}` }));
}

function drawChart(chart, width, tip) {
  const height = chart.height ? chart.height(width) : 240;
  const scales = scalesOf(chart, width, height);
  const root = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, class: "plot", tabindex: 0, role: "img",
    "aria-label": summary(chart),
  });
  root.append(axes(chart, scales, width, height));
  for (const series of chart.series) root.append(curve(series, scales));
  if (chart.extra) root.append(chart.extra(scales, width, height));
  root.append(pointer(root, chart, scales, tip, width, height));
  return root;
}

// The curve in words, for those who do not see it.
function summary(chart) {
  const parts = chart.series.map((series) => {
    const [first, last] = [series.points[0], series.points.at(-1)];
    const between = series.points.length > 1 ? `from ${chart.format(first[1])} to ` : "";
    return `${series.name} ${between}${chart.format(last[1])}`;
  });
  return `${chart.title}: ${parts.join("; ")}. Arrow keys tell single values.`;
}

function scalesOf(chart, width, height) {
  const points = chart.series.flatMap((series) => series.points);
  const xs = points.map((point) => point[0]);
  const ys = points.flatMap((point) => point.slice(1));
  const [x0, x1] = chart.xRange || [Math.min(0, ...xs), Math.max(1, ...xs)];
  const range = chart.yRange || padded(Math.min(...ys), Math.max(...ys), chart);
  const toLevel = chart.log ? Math.log10 : (value) => value;
  const [low, high] = range.map(toLevel);
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  return {
    x: (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * inner.width,
    y: (value) => MARGIN.top + (1 - (toLevel(value) - low) / (high - low)) * inner.height,
    xAt: (pixel) => x0 + ((pixel - MARGIN.left) / inner.width) * (x1 - x0),
    xRange: [x0, x1],
    yRange: range,
  };
}

// A little more than the range of the values, never less than a visible piece.
function padded(low, high, chart) {
  if (chart.log) return [low / 1.15, high * 1.15];
  if (chart.fromZero) return [0, high * 1.15 || 1];
  const room = Math.max((high - low) * 0.08, Math.abs(high) * 0.002, 1e-9);
  return [low - room, Math.min(high + room, Math.max(chart.most ?? Infinity, high))];
}

function axes(chart, scales, width, height) {
  const group = svg("g", { class: "axes" });
  const [low, high] = scales.yRange;
  const ticks = chart.log ? logTicks(low, high) : niceTicks(low, high, 5);
  for (const tick of ticks) {
    const y = scales.y(tick);
    group.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
      svg("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, (chart.tick || chart.format)(tick)),
    );
  }
  const [x0, x1] = scales.xRange;
  const most = Math.max(2, Math.floor(width / 70));
  const steps = niceTicks(x0, x1, most).filter((tick) => !chart.wholeX || Number.isInteger(tick));
  for (const tick of steps) {
    group.append(svg("text", { x: scales.x(tick), y: height - MARGIN.bottom + 17, "text-anchor": "middle" },
      (chart.xTick || String)(tick)));
  }
  group.append(
    svg("line", { class: "base", x1: MARGIN.left, x2: width - MARGIN.right, y1: height - MARGIN.bottom, y2: height - MARGIN.bottom }),
    svg("text", { class: "axis-name", x: width - MARGIN.right, y: height - 3, "text-anchor": "end" }, chart.xLabel),
  );
  return group;
}

function niceTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let number = Math.ceil(low / step); number * step <= high + step * 1e-9; number++) {
    ticks.push(Number((number * step).toPrecision(12)));
  }
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of [1, 2, 5]) {
      const tick = Number((factor * 10 ** power).toPrecision(6));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

function curve(series, scales) {
  const group = svg("g", { class: series.style });
  const line = (points, column) =>
    points.map((point) => `${scales.x(point[0]).toFixed(1)},${scales.y(point[column]).toFixed(1)}`);
  if (series.points[0].length > 2) {
    const band = [...line(series.points, 2), ...line(series.points, 3).reverse()];
    group.append(svg("polygon", { class: `band ${series.style}`, points: band.join(" ") }));
  }
  group.append(svg("polyline", { class: `curve ${series.style}`, points: line(series.points, 1).join(" ") }));
  // Many dots would hide the line; a single point has no line.
  if ((series.dots && series.points.length <= 40) || series.points.length === 1) {
    for (const [x, y] of series.points) {
      group.append(svg("circle", { class: `dot ${series.style}`, cx: scales.x(x), cy: scales.y(y), r: 3.5 }));
    }
  }
  return group;
}

// The line that follows the pointer, the marks on the curves, and what the tip says.
function pointer(root, chart, scales, tip, width, height) {
  const line = svg("line", { class: "crosshair", y1: MARGIN.top, y2: height - MARGIN.bottom });
  const marks = chart.series.map((series) => svg("circle", { class: `mark ${series.style}`, r: 5 }));
  const group = svg("g", { visibility: "hidden" }, line, ...marks);
  const xs = [...new Set(chart.series.flatMap((series) => series.points.map((point) => point[0])))]
    .sort((one, other) => one - other);
  let at = xs.length - 1;

  function show(index) {
    at = index;
    const x = xs[at];
    const place = scales.x(x);
    line.setAttribute("x1", place);
    line.setAttribute("x2", place);
    const rows = chart.series.map((series, number) => {
      const point = nearest(series.points, x);
      marks[number].setAttribute("cx", scales.x(point[0]));
      marks[number].setAttribute("cy", scales.y(point[1]));
      return tipRow(chart, series, point, x);
    });
    tip.replaceChildren(element("strong", {}, chart.xName(x)), ...rows);
    tip.hidden = false;
    const room = tip.offsetWidth + 16;
    const left = place + room > width ? place - room : place + 16;
    tip.style.setProperty("left", `${Math.max(left, 0)}px`);
    group.setAttribute("visibility", "visible");
  }

  function hide() {
    tip.hidden = true;
    group.setAttribute("visibility", "hidden");
  }

  const follow = (event) => {
    const x = scales.xAt(event.clientX - root.getBoundingClientRect().left);
    show(nearestIndex(xs, x));
  };
  root.addEventListener("pointermove", follow);
  root.addEventListener("pointerdown", follow);
  root.addEventListener("pointerleave", hide);
  root.addEventListener("focus", () => root.matches(":focus-visible") && show(at));
  root.addEventListener("blur", hide);
  root.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -xs.length, End: xs.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(Math.min(Math.max(at + steps[event.key], 0), xs.length - 1));
  });
  return group;
}

function tipRow(chart, series, point, x) {
  const range = point.length > 2 && point[2] !== point[3]
    ? ` (${chart.format(point[2])} to ${chart.format(point[3])})` : "";
  const elsewhere = point[0] === x ? "" : ` at ${chart.xName(point[0])}`;
  return element("span", { class: "tip-row" },
    element("i", { class: `swatch ${series.style}` }),
    `${series.name} `, element("b", {}, chart.format(point[1])), `${range}${elsewhere}`);
}

function nearest(points, x) {
  return points[nearestIndex(points.map((point) => point[0]), x)];
}

function nearestIndex(values, wanted) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
  });
  return best;
}

// A logarithmic axis for what spans more than a factor of six.
function isWide(series) {
  const values = series.flatMap((one) => one.points.flatMap((point) => point.slice(1)));
  return Math.min(...values) > 0 && Math.max(...values) > 6 * Math.min(...values);
}

function epochName(x) {
  return `epoch ${Number.isInteger(x) ? x : x.toFixed(2)}`;
}
