// The pad on which digits are drawn, by mouse, pen, finger or keys.

const PEN = 0.085; // width of the pen, with the pad's side as 1
const STEP = 1 / 40; // that an arrow key moves the pen

// Let a canvas be drawn on.
//   changed: called with the strokes after each change.
// Returns functions to clear the pad, to take the last stroke back, and to draw it anew.
function makePad(canvas, changed) {
  let strokes = [];
  let current = null; // the stroke that is being drawn
  let cursor = null; // [x, y] where the keys have moved the pen
  let keysDraw = false;

  function show() {
    const { width } = canvas;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.clearRect(0, 0, width, width);
    guide(context, width, style.getPropertyValue("--line"));
    context.strokeStyle = style.color;
    context.lineWidth = PEN * width;
    context.lineCap = "round";
    context.lineJoin = "round";
    for (const stroke of strokes) {
      context.beginPath();
      // A line to where it begins makes a dot.
      for (const [x, y] of [stroke[0], ...stroke]) context.lineTo(x * width, y * width);
      context.stroke();
    }
    if (cursor && document.activeElement === canvas) {
      context.beginPath();
      context.arc(cursor[0] * width, cursor[1] * width, (PEN / 2) * width, 0, 2 * Math.PI);
      context.lineWidth = 4;
      context.strokeStyle = style.getPropertyValue(keysDraw ? "--accent" : "--quiet");
      context.stroke();
    }
  }

  function update() {
    show();
    changed(strokes);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  function finish() {
    current = null;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    cursor = null;
    keysDraw = false;
    current = [place(event)];
    strokes.push(current);
    update();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current) return;
    const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const each of passed.length ? passed : [event]) current.push(place(each));
    update();
  });
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      if (event.key === "z") undo();
      return;
    }
    if (event.key === "Escape") return clear();
    const direction = arrows[event.key];
    if (!direction && event.key !== " ") return;
    event.preventDefault();
    cursor ||= [0.5, 0.2];
    if (event.key === " ") {
      keysDraw = !keysDraw;
      current = keysDraw ? [cursor] : null;
      if (keysDraw) strokes.push(current);
    } else {
      cursor = cursor.map((value, axis) => Math.min(Math.max(value + STEP * direction[axis], 0), 1));
      if (keysDraw) current.push(cursor);
    }
    update();
  });
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) cursor ||= [0.5, 0.2];
    show();
  });
  canvas.addEventListener("blur", show);

  function clear() {
    strokes = [];
    current = null;
    cursor = null;
    keysDraw = false;
    update();
  }

  function undo() {
    strokes.pop();
    current = null;
    keysDraw = false;
    update();
  }

  show();
  return { clear, undo, show };
}

// A thin frame where a digit has its place.
function guide(context, width, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.setLineDash([6, 10]);
  context.strokeRect(width * 0.17, width * 0.12, width * 0.66, width * 0.76);
  context.setLineDash([]);
}
