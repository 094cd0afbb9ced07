// Drawings and pictures made into what the network was trained on: 28x28 grey values in [0, 1].

// MNIST's digits were scaled so that their longer side is 20 pixels, and put into the 28x28 pixels by
// their centre of mass (LeCun et al. 1998). The other data sets fill their pictures.
const LAYOUTS = {
  digits: { box: 20, byMass: true },
  filling: { box: 28, byMass: false },
};
const PEN_IN_BOX = [2, 3.2]; // pixels that a pen may be wide where the longer side is 20
const LARGEST_SCALE = 4; // of a drawing as wide as the pad at scale 1: a dot stays small
const ROUNDING = 1e-6; // of a size in pixels, so that 20 is not 21
const SAMPLES = 4; // points a side at which a pixel is looked at
const PAPER = 0.2; // share of the strongest ink below which there is only paper

// The picture of strokes.
//   strokes: lists of points [x, y] with the pad's side as 1.
//   pen: width of the pen, in the same unit.
function pictureOfStrokes(strokes, pen, layout) {
  const points = strokes.flat();
  if (!points.length) return new Float32Array(SIDE * SIDE);
  const [left, right] = extentOf(points.map((point) => point[0]));
  const [top, bottom] = extentOf(points.map((point) => point[1]));
  const length = Math.max(right - left, bottom - top);
  // The ink reaches half a pen beyond the points on both sides.
  const scale = Math.min(layout.box / (length + pen), LARGEST_SCALE * layout.box);
  const [thinnest, widest] = PEN_IN_BOX.map((width) => (width * layout.box) / 20);
  const width = Math.min(Math.max(pen * scale, thinnest), widest);
  const inner = length > 0 ? Math.min((layout.box - width) / length, LARGEST_SCALE * layout.box) : 1;
  const placed = strokes.map((stroke) =>
    stroke.map(([x, y]) => [(x - left) * inner + width / 2, (y - top) * inner + width / 2]),
  );
  const rows = Math.ceil((bottom - top) * inner + width - ROUNDING);
  const columns = Math.ceil((right - left) * inner + width - ROUNDING);
  return centred(drawn(placed, width, rows, columns), layout);
}

function extentOf(values) {
  return [Math.min(...values), Math.max(...values)];
}

// Strokes of a round pen on a grid: of each pixel, the share that is covered.
function drawn(strokes, width, rows, columns) {
  const hits = new Uint8Array(rows * columns * SAMPLES * SAMPLES);
  for (const stroke of strokes) {
    for (let i = 0; i < stroke.length; i++) {
      cover(hits, rows, columns, stroke[Math.max(i - 1, 0)], stroke[i], width / 2);
    }
  }
  const values = new Float32Array(rows * columns);
  hits.forEach((hit, place) => {
    const row = Math.floor(place / (columns * SAMPLES) / SAMPLES);
    const column = Math.floor((place % (columns * SAMPLES)) / SAMPLES);
    values[row * columns + column] += hit / SAMPLES ** 2;
  });
  return { values, rows, columns };
}

// Mark the points of a fine grid that are no farther than a radius from a line.
function cover(hits, rows, columns, [x0, y0], [x1, y1], radius) {
  const fine = columns * SAMPLES;
  const from = (value) => Math.max(0, Math.floor((value - radius) * SAMPLES));
  const to = (value, size) => Math.min(size * SAMPLES - 1, Math.ceil((value + radius) * SAMPLES));
  const length = (x1 - x0) ** 2 + (y1 - y0) ** 2;
  for (let row = from(Math.min(y0, y1)); row <= to(Math.max(y0, y1), rows); row++) {
    for (let column = from(Math.min(x0, x1)); column <= to(Math.max(x0, x1), columns); column++) {
      const x = (column + 0.5) / SAMPLES - x0;
      const y = (row + 0.5) / SAMPLES - y0;
      const along = length ? (x * (x1 - x0) + y * (y1 - y0)) / length : 0;
      const nearest = Math.min(Math.max(along, 0), 1);
      const dx = x - nearest * (x1 - x0);
      const dy = y - nearest * (y1 - y0);
      if (dx * dx + dy * dy <= radius * radius) hits[row * fine + column] = 1;
    }
  }
}

// A small picture put into the 28x28 pixels.
function centred({ values, rows, columns }, layout) {
  const top = begin(values, rows, columns, layout, (row) => row);
  const left = begin(values, columns, columns, layout, (_, column) => column);
  const field = new Float32Array(SIDE * SIDE);
  for (let row = 0; row < Math.min(rows, SIDE); row++) {
    for (let column = 0; column < Math.min(columns, SIDE); column++) {
      field[(top + row) * SIDE + left + column] = Math.min(values[row * columns + column], 1);
    }
  }
  return field;
}

// Where a picture begins in the field, in one direction.
function begin(values, size, columns, layout, coordinate) {
  let centre = (size - 1) / 2;
  if (layout.byMass) {
    let mass = 0;
    let moment = 0;
    values.forEach((value, place) => {
      mass += value;
      moment += value * coordinate(Math.floor(place / columns), place % columns);
    });
    if (mass > 0) centre = moment / mass;
  }
  // The centre of mass goes to pixel (14, 14), where MNIST's digits have theirs.
  const middle = layout.byMass ? SIDE / 2 : (SIDE - 1) / 2;
  return Math.min(Math.max(Math.round(middle - centre), 0), Math.max(SIDE - size, 0));
}

// The picture of a file: what is drawn on it, light or dark, cut out, scaled and centred. Null if it
// is all of one shade.
//   picture: ImageData.
function pictureOfImage(picture, layout) {
  const { width, height, data } = picture;
  const grey = new Float32Array(width * height);
  for (let i = 0; i < grey.length; i++) {
    const [red, green, blue, alpha] = data.subarray(4 * i, 4 * i + 4);
    const value = (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
    grey[i] = (value * alpha) / 255 + 1 - alpha / 255; // what is transparent is white
  }
  const paper = medianOfEdge(grey, width, height);
  const ink = grey.map((value) => Math.abs(value - paper));
  const strongest = ink.reduce((largest, value) => Math.max(largest, value), 0);
  if (strongest < 0.1) return null;
  // A photograph of a thing keeps its shades; what is drawn is black on white.
  const rise = layout.byMass ? 1 / strongest : 1 / Math.max(paper, 1 - paper);
  const values = ink.map((value) => Math.min(value * rise, 1));
  return centred(scaled(values, width, bounds(values, width, height), layout.box), layout);
}

function medianOfEdge(grey, width, height) {
  const edge = [];
  for (let x = 0; x < width; x++) edge.push(grey[x], grey[(height - 1) * width + x]);
  for (let y = 0; y < height; y++) edge.push(grey[y * width], grey[y * width + width - 1]);
  return edge.sort((one, other) => one - other)[edge.length >> 1];
}

// The rectangle that holds all that is not paper.
function bounds(values, width, height) {
  const limit = PAPER * values.reduce((largest, value) => Math.max(largest, value), 0);
  const found = { left: width, right: 0, top: height, bottom: 0 };
  values.forEach((value, place) => {
    if (value <= limit) return;
    const x = place % width;
    const y = Math.floor(place / width);
    found.left = Math.min(found.left, x);
    found.right = Math.max(found.right, x + 1);
    found.top = Math.min(found.top, y);
    found.bottom = Math.max(found.bottom, y + 1);
  });
  return found;
}

// A part of a picture, its longer side so many pixels: the mean of what falls on each pixel.
function scaled(values, width, { left, right, top, bottom }, box) {
  const step = Math.max(right - left, bottom - top) / box;
  const columns = Math.max(1, Math.round((right - left) / step));
  const rows = Math.max(1, Math.round((bottom - top) / step));
  const result = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (let i = 0; i < 64; i++) {
        const x = left + (column + ((i % 8) + 0.5) / 8) * step;
        const y = top + (row + ((i >> 3) + 0.5) / 8) * step;
        const inX = Math.min(Math.floor(x), right - 1);
        const inY = Math.min(Math.floor(y), bottom - 1);
        sum += values[inY * width + inX];
      }
      result[row * columns + column] = sum / 64;
    }
  }
  return { values: result, rows, columns };
}
