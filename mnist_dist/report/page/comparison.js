// The page that compares runs.

const STYLES = 8; // that the style sheet has for curves

function styleOf(number) {
  return `s${number % STYLES}`;
}

function main() {
  byId("name").textContent = `${DATA.heading} compared`;
  byId("common").textContent = DATA.common;
  const hasBand = DATA.groups.some((group) => group.runs > 1);
  byId("curves-lead").textContent = hasBand
    ? "Runs that differ in nothing but the seed are one curve: their mean, in a band from the least to the greatest." : "";
  fillCharts();
  fillAccuracies(hasBand);
  fillTable();
  byId("footer").textContent = `Written by mnist-dist ${DATA.version}. This page loads nothing: all it shows is in the file.`;
  document.documentElement.dataset.ready = "yes";
}

function labelOf(group) {
  return group.runs > 1 ? `${group.label} (${group.runs} seeds)` : group.label;
}

function fillCharts() {
  const shared = { xLabel: "epoch", xName: epochName, wholeX: true };
  const charts = [
    ["test_loss", "Test loss (cross-entropy in nats)", { format: (value) => value.toPrecision(3), tick: shortNumber }],
    ["test_accuracy", "Test accuracy", { format: (value) => percent(value), tick: shortPercent, most: 1 }],
    ["train_loss", "Training loss (cross-entropy in nats)", { format: (value) => value.toPrecision(3), tick: shortNumber }],
    ["learning_rate", "Learning rate", { format: shortNumber, fromZero: true }],
  ];
  for (const [figure, title, more] of charts) {
    const series = DATA.groups
      .map((group, number) => ({ name: labelOf(group), style: styleOf(number), points: group.curves[figure], dots: true, named: true }))
      .filter((one) => one.points);
    if (!series.length) continue;
    const log = figure.endsWith("loss") && isWide(series);
    lineChart(byId("charts"), { ...shared, ...more, series, log, title: log ? `${title}, logarithmic` : title });
  }
  if (!DATA.groups.length) byId("charts").append(element("p", { class: "quiet" }, "None of the runs has finished an epoch."));
}


function fillAccuracies(hasBand) {
  const done = DATA.groups.filter((group) => group.accuracy !== null);
  byId("results-lead").textContent = hasBand
    ? "Mean test accuracy of the finished runs, ± the standard deviation of their seeds." : "Test accuracy of the finished runs.";
  const list = element("ol", { class: "scores" });
  for (const group of done.toSorted((one, other) => other.accuracy - one.accuracy)) {
    const spread = group.deviation === null ? "" : ` ± ${(100 * group.deviation).toFixed(2)}`;
    list.append(element("li", {},
      element("i", { class: `swatch ${styleOf(DATA.groups.indexOf(group))}`, "aria-hidden": "true" }),
      element("span", {}, labelOf(group)), element("b", {}, `${(100 * group.accuracy).toFixed(2)}${spread} %`)));
  }
  byId("accuracies").append(list);
}

function fillTable() {
  const hasVal = DATA.runs.some((run) => run.val_accuracy !== undefined && run.val_accuracy !== null);
  const headings = ["run", ...DATA.columns.map((name) => name.replace(/_/g, " ")), ...(hasVal ? ["held out"] : []), "test accuracy", "epochs", "seconds", "state"];
  byId("table").append(element("thead", {}, element("tr", {}, ...headings.map((name) => element("th", { scope: "col" }, name)))));
  const body = element("tbody");
  for (const run of DATA.runs) {
    const name = run.link ? element("a", { href: run.link }, run.name) : run.name;
    body.append(element("tr", {}, element("th", { scope: "row" }, name),
      ...run.cells.map((cell) => element("td", {}, cell)),
      ...(hasVal ? [element("td", {}, withError(run.val_accuracy, run.val_error))] : []),
      element("td", {}, withError(run.test_accuracy, run.test_error)),
      element("td", {}, String(run.epoch)),
      element("td", {}, run.seconds === null ? "" : run.seconds.toFixed(1)),
      element("td", {}, run.state)));
  }
  byId("table").append(body);
}

function withError(accuracy, error) {
  if (accuracy === null || accuracy === undefined) return "";
  return `${(100 * accuracy).toFixed(2)} ± ${(100 * error).toFixed(2)} %`;
}

main();
