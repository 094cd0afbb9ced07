// What the network says of what is drawn, and of a test image.

const EMPTY = "Draw, and it answers.";

// Connect the pad, the picture that the network sees, and the bars.
// Returns a function that shows a test image instead of a drawing.
function makeAnswer(thumbnails) {
  const weights = decodedWeights(DATA.network);
  const layout = LAYOUTS[DATA.layout];
  const bars = makeBars(byId("bars"));
  const hasPad = DATA.dataset !== "fashion-mnist";
  let pad = null;

  function answer(pixels, about = null) {
    showPixels(byId("seen"), pixels);
    const probabilities = softmax(logitsOf(weights, pixels, DATA.normalization));
    bars.show(probabilities);
    sayVerdict(probabilities, about);
  }

  function rest() {
    showPixels(byId("seen"), new Float32Array(SIDE * SIDE));
    bars.show(null);
    byId("seen-caption").textContent = "28 × 28 pixels";
    byId("verdict").replaceChildren(hasPad ? EMPTY : "Open a picture, or choose one below.");
    byId("doubt").textContent = "";
  }

  if (hasPad) {
    let due = 0;
    pad = makePad(byId("pad"), (strokes) => {
      cancelAnimationFrame(due);
      due = requestAnimationFrame(() => {
        byId("seen-caption").textContent = "28 × 28 pixels";
        if (strokes.length) answer(pictureOfStrokes(strokes, PEN, layout));
        else rest();
      });
    });
    byId("clear").addEventListener("click", pad.clear);
    byId("undo").addEventListener("click", pad.undo);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", pad.show);
  } else {
    for (const name of ["pad", "clear", "undo"]) byId(name).remove();
    byId("try-draw").classList.add("drop");
    byId("try-draw").prepend(element("p", { class: "quiet" }, "Drop a picture here, or"));
  }
  openPictures(byId("file"), byId("try-draw"), (pixels, name) => {
    if (pad) pad.clear();
    requestAnimationFrame(() => {
      if (!pixels) {
        rest();
        byId("verdict").replaceChildren("This picture cannot be read, or it is all of one shade.");
        return;
      }
      byId("seen-caption").textContent = name;
      answer(pixels);
    });
  }, layout);
  rest();

  return (index) => {
    if (pad) pad.clear();
    requestAnimationFrame(() => {
      byId("seen-caption").textContent = `test ${DATA.noun} ${thumbnails.numbers[index].toLocaleString("en")}`;
      answer(thumbnails.pixels(index), DATA.classes[thumbnails.labels[index]]);
      byId("try-panel").scrollIntoView({ block: "nearest" });
    });
  };
}

function showPixels(canvas, pixels) {
  const image = new ImageData(SIDE, SIDE);
  pixels.forEach((grey, place) => {
    image.data.fill(Math.round(255 * grey), 4 * place, 4 * place + 3);
    image.data[4 * place + 3] = 255;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// A bar for each class. They move as one draws.
function makeBars(list) {
  const rows = DATA.classes.map((name) => {
    const fill = element("span", { class: "fill" });
    const value = element("span", { class: "value" });
    list.append(element("li", {},
      element("span", { class: "class-name" }, name),
      element("span", { class: "track", "aria-hidden": "true" }, fill), value));
    return { fill, value, item: list.lastChild };
  });
  return {
    show(probabilities) {
      const best = probabilities ? Math.max(...probabilities) : null;
      rows.forEach(({ fill, value, item }, number) => {
        const share = probabilities ? probabilities[number] : 0;
        fill.style.setProperty("transform", `scaleX(${share})`);
        value.textContent = probabilities ? percent(share, 1) : "";
        item.classList.toggle("best", probabilities !== null && share === best);
      });
    },
  };
}

// Say in words what the network takes it for, and whether that is to be believed.
//   label: the name of the right class, if it is known.
function sayVerdict(probabilities, label) {
  const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]);
  const [first, second] = order.map((number) => DATA.classes[number]);
  const confidence = probabilities[order[0]];
  const isSure = confidence >= DATA.sure;
  const verdict = byId("verdict");
  verdict.replaceChildren(element("b", {}, first), ` ${percent(confidence, 1)}`);
  if (!isSure) verdict.append(element("span", { class: "or" }, ` in doubt: or ${second}?`));
  if (label !== null) {
    const isRight = label === first;
    verdict.append(element("span", { class: isRight ? "right" : "wrong" }, isRight ? " ✓ right" : ` ✗ it is ${label}`));
  }
  byId("doubt").textContent = experience(confidence);
}

// How often the model was right in the test when it was about as sure.
function experience(confidence) {
  const bins = DATA.reliability;
  const index = nearestIndex(bins.map((bin) => bin.confidence), confidence);
  const bin = bins[index];
  return `Of the ${counted(bin.count, `test ${DATA.noun}`)} of which it was about as sure (${percent(bin.confidence, 0)}), ` +
    `${percent(bin.accuracy, bin.accuracy > 0.99 ? 2 : 0)} were right.`;
}

// A test image of each class, to begin with.
function fillSamples(thumbnails, ask) {
  byId("samples-lead").textContent = `Or take a test ${DATA.noun}, which it has not learned from:`;
  thumbnails.examples.forEach((index) => {
    const words = `Test ${DATA.noun} ${thumbnails.numbers[index]}, a ${DATA.classes[thumbnails.labels[index]]}`;
    byId("samples").append(element("button", {
      type: "button", class: "card", title: words, "aria-label": words, on: { click: () => ask(index) },
    }, thumbnails.canvasOf(index)));
  });
}

// Let picture files be opened, by the button or by dropping them.
//   done: called with the 784 grey values, or null, and the name of the file.
function openPictures(input, target, done, layout) {
  async function open(file) {
    if (!file) return;
    let pixels = null;
    try {
      const bitmap = await createImageBitmap(file);
      const scale = Math.min(1, 560 / Math.max(bitmap.width, bitmap.height));
      const canvas = element("canvas", {
        width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)),
      });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      pixels = pictureOfImage(context.getImageData(0, 0, canvas.width, canvas.height), layout);
    } catch {
      pixels = null; // it is no picture that this browser can read
    }
    done(pixels, file.name);
  }
  input.addEventListener("change", () => {
    open(input.files[0]);
    input.value = "";
  });
  target.addEventListener("dragover", (event) => event.preventDefault());
  target.addEventListener("drop", (event) => {
    event.preventDefault();
    open(event.dataTransfer.files[0]);
  });
}
