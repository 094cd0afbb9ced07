// The test images in the page, and the confusion matrix with the images behind its cells.

// Read the picture that holds all images.
// Resolves to what is known of them, with functions that show one, and that give its pixels.
async function loadThumbnails() {
  const known = DATA.thumbnails;
  const image = new Image();
  image.src = `data:image/png;base64,${known.png}`;
  await image.decode();
  const corner = (index) => [SIDE * (index % known.columns), SIDE * Math.floor(index / known.columns)];
  const sheet = element("canvas", { width: image.width, height: image.height });
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);

  function canvasOf(index) {
    const canvas = element("canvas", { class: "digit", width: SIDE, height: SIDE, "aria-hidden": "true" });
    const [x, y] = corner(index);
    canvas.getContext("2d").drawImage(image, x, y, SIDE, SIDE, 0, 0, SIDE, SIDE);
    return canvas;
  }

  function pixels(index) {
    const { data } = context.getImageData(...corner(index), SIDE, SIDE);
    return Float32Array.from({ length: SIDE * SIDE }, (_, place) => data[4 * place] / 255);
  }

  return { ...known, canvasOf, pixels };
}

// A test image with what the model said of it. A click shows it to the network.
//   isBrief: whether what it is, and was taken for, is said elsewhere.
function card(thumbnails, index, ask, isBrief = false) {
  const label = DATA.classes[thumbnails.labels[index]];
  const predicted = DATA.classes[thumbnails.predictions[index]];
  const sure = percent(thumbnails.of_prediction[index], 1);
  const isRight = label === predicted;
  const words = isBrief ? [element("span", { class: "quiet" }, sure)]
    : [element("b", {}, `${predicted}?`), element("span", { class: "quiet" }, sure),
      element("span", { class: "truth" }, `is ${label}`)];
  const name = `Test ${DATA.noun} ${thumbnails.numbers[index]}: a ${label}, taken for ${predicted} with ${sure}` +
    (isRight ? "" : `; it gave ${label} ${percent(thumbnails.of_label[index], 1)}`);
  return element("button", {
    type: "button", class: "card", title: name, "aria-label": name,
    on: { click: () => ask && ask(index) }, ...(ask ? {} : { disabled: "" }),
  }, thumbnails.canvasOf(index), element("span", { class: "card-words" }, ...words));
}

function makeMatrix(table, cell, thumbnails, ask) {
  const counts = DATA.confusion;
  const totals = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
  const shares = counts.map((row, label) => row.map((count) => count / Math.max(totals[label], 1)));
  const mistakes = shares.flatMap((row, label) => row.filter((_, predicted) => predicted !== label));
  const largest = Math.max(...mistakes, 1e-9);
  const buttons = [];
  let chosen = null;

  function choose(label, predicted, focus = true) {
    if (chosen) {
      chosen.setAttribute("aria-pressed", "false");
      chosen.tabIndex = -1;
    }
    chosen = buttons[label][predicted];
    chosen.setAttribute("aria-pressed", "true");
    chosen.tabIndex = 0;
    if (focus) chosen.focus();
    showCell(cell, label, predicted, counts[label][predicted], totals[label], thumbnails, ask);
  }

  table.append(
    element("caption", {}, "Rows: what it is. Columns: what it was taken for."),
    element("thead", {}, element("tr", {}, element("td", {}),
      ...DATA.classes.map((name) => element("th", { scope: "col" }, element("span", {}, name))))),
  );
  const body = element("tbody");
  counts.forEach((row, label) => {
    buttons.push([]);
    const cells = row.map((count, predicted) => {
      const button = element("button", {
        type: "button", tabindex: -1, "aria-pressed": "false",
        "aria-label": `${DATA.classes[label]} taken for ${DATA.classes[predicted]}: ${count}`,
        on: {
          click: () => choose(label, predicted),
          keydown: (event) => move(event, label, predicted),
        },
      }, count ? String(count) : "·");
      const heat = label === predicted ? 0 : Math.sqrt(shares[label][predicted] / largest);
      button.style.setProperty("--heat", `${Math.round(100 * heat)}%`);
      button.className = [
        label === predicted ? "diagonal" : "", count ? "" : "none", heat > 0.8 ? "hot" : "",
      ].join(" ").trim();
      buttons[label].push(button);
      return element("td", {}, button);
    });
    body.append(element("tr", {}, element("th", { scope: "row" }, DATA.classes[label]), ...cells));
  });
  table.append(body);

  function move(event, label, predicted) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    const within = (number) => Math.min(Math.max(number, 0), counts.length - 1);
    choose(within(label + down), within(predicted + right));
  }

  choose(...mostFrequent(counts), false);
}

// The class and what it was most often mistaken for; the first cell if there are no mistakes.
function mostFrequent(counts) {
  let best = [0, 0];
  let most = 0;
  counts.forEach((row, label) => row.forEach((count, predicted) => {
    if (label === predicted || count <= most) return;
    most = count;
    best = [label, predicted];
  }));
  return best;
}

function showCell(cell, label, predicted, count, total, thumbnails, ask) {
  const shown = thumbnails.cells[`${label},${predicted}`] || [];
  const isRight = label === predicted;
  const [is, said] = [DATA.classes[label], DATA.classes[predicted]];
  const heading = isRight ? `${is}, and taken for it` : `${is}, taken for ${said}`;
  const share = total ? `${count.toLocaleString("en")} of ${total.toLocaleString("en")} (${percent(count / total, 1)})` : "no sample";
  const which = isRight ? "of which it was least sure" : "of which it was most sure";
  const some = shown.length < count ? ` Shown are the ${shown.length} ${which}.` : "";
  cell.replaceChildren(
    element("h3", {}, heading),
    element("p", { class: "quiet" }, `${share}.${count ? some : ""}`),
    element("div", { class: "gallery small" }, ...shown.map((index) => card(thumbnails, index, ask, true))),
  );
}
