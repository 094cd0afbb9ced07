// The page that compares runs.

const STYLES = 8; // that the style sheet has for curves
const SHORT = 28; // letters of a name that has room beside a curve's value
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

function main() {
  byId("name").textContent = `${DATA.heading} compared`;
  byId("common").textContent = DATA.common;
  const groups = DATA.groups.map((group, number) => ({
    ...group, style: `s${number % STYLES}`, name: shortName(group, number), label: labelOf(group),
  }));
  fillAccuracies(groups);
  fillCharts(groups);
  fillTable();
  byId("footer").textContent = `Written by mnist-dist ${DATA.version}. This page loads nothing: all it shows is in the file.`;
  document.documentElement.dataset.ready = "yes";
}

function labelOf(group) {
  return group.runs > 1 ? `${group.label} (${group.runs} seeds)` : group.label;
}

// What a curve is called where there is little room: a letter if the names are long.
function shortName(group, number) {
  const isShort = DATA.groups.every((each) => labelOf(each).length <= SHORT);
  return isShort ? labelOf(group) : LETTERS[number] || String(number + 1);
}

// What each curve is, and how well its runs did. The charts have this list as their legend.
function fillAccuracies(groups) {
  const hasBand = groups.some((group) => group.runs > 1);
  const spread = hasBand ? ", ± the standard deviation of the seeds" : "";
  byId("curves-lead").textContent = groups.length
    ? `Test accuracy when a run was finished${spread}.` +
      (hasBand ? " Runs that differ in nothing but the seed are one curve: their mean, in a band from the least to the greatest." : "")
    : "None of the runs has finished an epoch.";
  const list = element("ol", { class: "scores" });
  for (const group of groups) {
    const deviation = group.deviation === null ? "" : ` ± ${(100 * group.deviation).toFixed(2)}`;
    const accuracy = group.accuracy === null ? "not finished" : `${(100 * group.accuracy).toFixed(2)}${deviation} %`;
    const letter = group.name === group.label ? "" : element("b", { class: "letter" }, group.name);
    list.append(element("li", {}, lineSample(group.style), letter, element("span", {}, group.label), element("b", {}, accuracy)));
  }
  byId("accuracies").append(list);
}

function fillCharts(groups) {
  const shared = { xLabel: "epoch", xName: epochName, wholeX: true };
  const loss = { format: (value) => value.toPrecision(3), tick: shortNumber };
  const charts = [
    ["test_accuracy", "Test accuracy", { format: (value) => percent(value), tick: shortPercent, most: 1 }],
    ["test_loss", "Test loss (cross-entropy in nats)", loss],
    ["train_loss", "Training loss (cross-entropy in nats)", loss],
    ["learning_rate", "Learning rate at the end of an epoch", { format: shortNumber, fromZero: true }],
  ];
  for (const [figure, title, more] of charts) {
    const series = groups
      .map(({ name, style, curves }) => ({ name, style, points: curves[figure], dots: true }))
      .filter((one) => one.points);
    if (!series.length) continue;
    const log = figure.endsWith("loss") && isWide(series);
    const heading = log ? `${title.slice(0, -1)}, logarithmic)` : title;
    lineChart(byId("charts"), { ...shared, ...more, series, log, title: heading, hasOwnLegend: false });
  }
}

function fillTable() {
  const hasVal = DATA.runs.some((run) => run.val_accuracy !== null);
  const headings = [
    "run", "test accuracy", ...(hasVal ? ["held out"] : []), ...DATA.columns.map((name) => name.replace(/_/g, " ")), "seconds", "state",
  ];
  byId("table").append(element("thead", {}, element("tr", {}, ...headings.map((name) => element("th", { scope: "col" }, name)))));
  const body = element("tbody");
  for (const run of DATA.runs) {
    const name = run.link ? element("a", { href: run.link }, run.name) : run.name;
    const state = run.state === "done" ? run.state : `${run.state} after ${counted(run.epoch, "epoch")}`;
    const seconds = run.seconds === null ? "" : run.seconds.toFixed(1);
    const cells = [
      withError(run.test_accuracy, run.test_error), ...(hasVal ? [withError(run.val_accuracy, run.val_error)] : []),
      ...run.cells, seconds, state,
    ];
    body.append(element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))));
  }
  byId("table").append(body);
}

function withError(accuracy, error) {
  return accuracy === null ? "" : `${(100 * accuracy).toFixed(2)} ± ${(100 * error).toFixed(2)} %`;
}

main();
