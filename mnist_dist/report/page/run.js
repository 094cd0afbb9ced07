// The page of one run.

async function main() {
  const longest = Math.max(...DATA.classes.map((name) => name.length));
  document.documentElement.style.setProperty("--name-width", `${0.3 + 0.62 * Math.max(longest, 1.5)}em`);
  document.body.classList.toggle("long-names", longest > 2);
  const isGarment = DATA.dataset === "fashion-mnist";
  fillHeader();
  fillCurves();
  fillClasses();
  fillCalibration();
  fillAgain();
  const thumbnails = await loadThumbnails();
  byId("try-heading").textContent = isGarment ? "Try a picture" : `Draw a ${DATA.noun}`;
  let ask = null;
  if (DATA.network) {
    byId("try-lead").textContent = isGarment
      ? "Open a picture of one garment on a plain background. The model itself runs in this page, with the run's own weights; the picture stays here."
      : "With a mouse, a pen or a finger. The model itself runs in this page, with the run's own weights.";
    byId("pad").setAttribute("aria-label", "Drawing pad");
    byId("pad-hint").textContent = isGarment ? ""
      : "By keys: arrows move the pen, space lowers or lifts it, Escape clears.";
    ask = makeAnswer(thumbnails);
    fillSamples(thumbnails, ask);
  } else {
    byId("try-panel").remove();
  }
  if (DATA.remark) {
    byId("try-note").textContent = DATA.remark;
    byId("try-note").hidden = false;
  }
  const misses = DATA.total - DATA.correct;
  byId("confusion-lead").textContent =
    `${counted(misses, "mistake")}, stronger in colour where they are a larger share of their class. Choose a cell to see the ${DATA.noun}s behind it.`;
  makeMatrix(byId("matrix"), byId("cell"), thumbnails, ask);
  fillMistakes(thumbnails, ask);
  document.documentElement.dataset.ready = "yes";
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
main();
