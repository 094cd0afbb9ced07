// The sections of a run's page that need no more than to be filled in.

function fillHeader() {
  byId("name").textContent = DATA.name;
  byId("accuracy").textContent = (100 * DATA.accuracy).toFixed(2);
  byId("correct").textContent = `${DATA.correct.toLocaleString("en")} of ${DATA.total.toLocaleString("en")} test ${DATA.noun}s right`;
  byId("error").textContent = `± ${(100 * DATA.error).toFixed(2)} percentage points, the standard error of a test of this size`;
  for (const [heading, text] of DATA.facts) {
    byId("facts").append(element("div", {}, element("dt", {}, heading), element("dd", {}, text)));
  }
  for (const note of DATA.notes) byId("notes").append(element("p", { class: "note" }, note));
  const links = [
    ["try", DATA.dataset === "fashion-mnist" ? "Try it" : "Draw"], ["curves", "Curves"], ["confusion", "Confusion"],
    ["mistakes", "Mistakes"], ["classes", "Classes"], ["calibration", "Calibration"], ["again", "Do it again"],
  ];
  byId("sections").append(...links.map(([id, words]) => element("a", { href: `#${id}` }, words)));
}

function fillCurves() {
  const curves = DATA.curves;
  const host = byId("charts");
  const named = (name, style, key, dots = true) => ({ name, style, points: curves[key], dots });
  const of = (...series) => series.filter((one) => one.points && one.points.length);
  const shared = { xLabel: "epoch", xName: epochName, wholeX: true };

  // With these flags what is minimised is not the cross-entropy that a test has.
  const isOther = DATA.settings.some(([flag, , isChanged]) => isChanged && ["--label-smoothing", "--teacher"].includes(flag));
  const name = isOther ? "training, as minimised" : "training";
  const training = curves.loss ? named(name, "train", "loss", false) : named(name, "train", "train_loss");
  const losses = of(training, named("held out", "val", "val_loss"), named("test", "test", "test_loss"));
  if (losses.length) {
    const log = isWide(losses);
    lineChart(host, {
      ...shared, title: `Loss (cross-entropy in nats${log ? ", logarithmic" : ""})`, series: losses, log,
      format: (value) => value.toPrecision(3), tick: shortNumber,
      height: (width) => (width > 420 ? 432 : 250), // beside the two others
    });
  }
  const accuracies = of(named("held out", "val", "val_accuracy"), named("test", "test", "test_accuracy"));
  if (accuracies.length) {
    lineChart(host, { ...shared, title: "Accuracy", series: accuracies, format: (value) => percent(value), tick: shortPercent, most: 1 });
  }
  const rates = of(curves.rate ? named("learning rate", "rate", "rate", false) : named("learning rate", "rate", "learning_rate"));
  if (rates.length) {
    lineChart(host, { ...shared, title: "Learning rate", series: rates, format: shortNumber, height: () => 150, fromZero: true });
  }
}


function fillMistakes(thumbnails, ask) {
  const wrong = DATA.total - DATA.correct;
  const shown = thumbnails.mistakes.length;
  const click = ask ? " Choose one to see what the network says of every class." : "";
  byId("mistakes-lead").textContent = wrong
    ? `${counted(wrong, "mistake")} in the test${shown < wrong ? `; these ${shown} are those of which the model was most sure` : ""}. ` +
      `Beside each is what it was taken for, and how sure the model was.${click}`
    : "There is none: every one was right.";
  byId("gallery").append(...thumbnails.mistakes.map((index) => card(thumbnails, index, ask)));
}

function fillClasses() {
  const rows = DATA.confusion.map((row, label) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    const accuracy = total ? row[label] / total : null;
    const error = total ? Math.sqrt((accuracy * (1 - accuracy)) / total) : 0;
    return { name: DATA.classes[label], right: row[label], total, accuracy, error };
  });
  const known = rows.filter((row) => row.total);
  const lowest = Math.min(...known.map((row) => row.accuracy - row.error));
  const steps = [0.99, 0.98, 0.95, 0.9, 0.8, 0.5, 0];
  const floor = steps.find((step) => step < lowest - (1 - lowest) * 0.05) ?? 0;
  const place = (share) => `${(100 * (Math.max(share, floor) - floor)) / (1 - floor)}%`;
  byId("classes-lead").textContent = `Dots with their standard error, on a scale from ${shortPercent(floor)} to 100%. The line is the accuracy over all.`;
  const list = element("ol", { class: "dots" });
  for (const row of rows) {
    const track = element("span", { class: "track", "aria-hidden": "true" });
    if (row.total) {
      const overall = element("i", { class: "overall" });
      overall.style.setProperty("left", place(DATA.accuracy));
      const span = element("i", { class: "span" });
      span.style.setProperty("left", place(row.accuracy - row.error));
      span.style.setProperty("right", `calc(100% - ${place(Math.min(row.accuracy + row.error, 1))})`);
      const dot = element("i", { class: "point" });
      dot.style.setProperty("left", place(row.accuracy));
      track.append(overall, span, dot);
    }
    list.append(element("li", {}, element("span", { class: "class-name" }, row.name), track,
      element("b", {}, row.total ? percent(row.accuracy, 1) : "no sample"),
      element("span", { class: "quiet" }, row.total ? `${row.right.toLocaleString("en")} of ${row.total.toLocaleString("en")}` : "")));
  }
  byId("class-rows").append(list);
}

function fillCalibration() {
  const bins = DATA.reliability;
  const sure = bins.reduce((sum, bin) => sum + bin.count * bin.confidence, 0) / DATA.total;
  const gap = sure - DATA.accuracy;
  const way = Math.abs(gap) < DATA.error ? "as often as it says, as far as a test of this size can tell"
    : gap > 0 ? "less often than it says" : "more often than it says";
  byId("calibration-lead").textContent =
    `On average it is ${percent(sure)} sure, and it is right in ${percent(DATA.accuracy)}: ${way}. ` +
    `The expected calibration error is ${percent(DATA.calibration_error)}. ` +
    `Grey bars: how many ${DATA.noun}s, on a logarithmic scale.`;
  const points = bins.map((bin) => [bin.confidence, bin.accuracy]);
  const most = Math.max(...bins.map((bin) => bin.count));
  lineChart(byId("reliability"), {
    title: "Fraction that is right, by confidence", series: [{ name: "right", style: "test", points, dots: true }],
    xLabel: "how sure", xRange: [0, 1], yRange: [0, 1], height: () => 300,
    xTick: shortPercent, format: (value) => percent(value, 1), tick: shortPercent,
    xName: (x) => {
      const bin = bins[nearestIndex(points.map((point) => point[0]), x)];
      return `${percent(bin.confidence, 1)} sure, ${counted(bin.count, DATA.noun)}`;
    },
    extra: (scales) => svg("g", {},
      svg("line", { class: "diagonal", x1: scales.x(0), y1: scales.y(0), x2: scales.x(1), y2: scales.y(1) }),
      // How many there are, on a logarithmic scale, along the axis.
      ...bins.map((bin) => {
        const height = 44 * (Math.log1p(bin.count) / Math.log1p(most));
        return svg("rect", { class: "count", x: scales.x(bin.confidence) - 4, width: 8, y: scales.y(0) - height, height });
      })),
  });
}

function fillAgain() {
  byId("command").textContent = DATA.again;
  const called = DATA.called && DATA.called !== DATA.again ? `The run was called as: ${DATA.called}` : "";
  byId("called").textContent = called;
  byId("copy").addEventListener("click", copyCommand);
  byId("settings").append(...DATA.settings.map(([name, value, isChanged]) =>
    element("tr", isChanged ? { class: "changed" } : {}, element("th", { scope: "row" }, name), element("td", {}, value))));
  byId("versions").append(...DATA.versions.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
  byId("footer").textContent = `Written by mnist-dist ${DATA.version}. This page loads nothing: all it shows is in the file.`;
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText(DATA.again);
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("command")); // a page from a file may not be allowed to
    byId("copy").textContent = "Selected";
  }
}
