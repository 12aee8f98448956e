// Threshold: the line in the histogram, the slider below it, and the numbers that follow.

const decision = { threshold: data.threshold };

const isFlagged = (image) => image.score < decision.threshold;

const flagWord = (image) => (isFlagged(image) ? "flagged" : "passed");

// How many of ascending values are below a limit.
const countBelow = (ascending, limit) => {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
};

const expectedRate = (threshold) =>
  calibration.rates[countBelow(calibration.scores, threshold)];

const rateBound = (threshold) => calibration.bounds[countBelow(calibration.limits, threshold)] ?? 1;

// The highest threshold with an expected share of false alarms of at most `rate`.
const thresholdAt = (rate) => {
  const above = calibration.rates.findIndex((value, index) => index && value > rate + 1e-6);
  return calibration.scores.at(above < 0 ? -1 : above - 1);
};

const placeOf = (score) => {
  const { center, width, low, high } = data.axis;
  return (Math.asinh((score - center) / width) - low) / (high - low);
};

// Thresholds that differ in what they flag, ascending, and their places on the axis.
const candidates = [
  ...new Set([...images.map((i) => i.score), ...(calibration?.scores ?? []), data.threshold]),
].sort((a, b) => a - b);

const places = candidates.map(placeOf);

const nearestCandidate = (place) => {
  const after = Math.min(countBelow(places, place), places.length - 1);
  const before = Math.max(after - 1, 0);
  return place - places[before] < places[after] - place ? before : after;
};

const setThreshold = (value) => {
  decision.threshold = value;
  drawThreshold();
  announce("threshold");
};

const setLive = (key, value, note) => {
  const statistic = document.querySelector(`[data-live="${key}"]`);
  if (!statistic) return;
  statistic.querySelector("strong").textContent = value;
  statistic.querySelector("small").textContent = note;
};

const drawCounts = () => {
  const flagged = images.filter(isFlagged);
  const share = percent(flagged.length / images.length);
  setLive("flagged", withCommas(flagged.length), `${share} of all`);
  setLive("threshold", briefly(decision.threshold, 4), thresholdNote());
  drawFound("found", (image) => anomalyLabels.has(image.label), flagged);
  drawFound("false", (image) => !anomalyLabels.has(image.label), flagged);
};

const thresholdNote = () =>
  decision.threshold === data.threshold
    ? "flagged below it"
    : `moved; the detector's is ${briefly(data.threshold, 4)}`;

const drawFound = (key, belongs, flagged) => {
  const all = images.filter(belongs).length;
  const found = flagged.filter(belongs).length;
  setLive(key, withCommas(found), `of ${withCommas(all)} by label, ${percent(found / all)}`);
};

const drawExpected = () => {
  if (!calibration) return;
  setLive("expected", percent(expectedRate(decision.threshold)), describeBound());
};

const describeBound = () => {
  if (!calibration.bounds) return "of normal images, on average";
  const whose = calibration.byGroup ? "new groups" : "normal images";
  const bound = percent(rateBound(decision.threshold));
  const confidence = `${briefly(100 * calibration.confidence, 3)} %`;
  return `at most ${bound} of ${whose}, in ${confidence} of deployments`;
};

const drawKinds = () => {
  for (const row of document.querySelectorAll("#kinds tbody tr")) {
    const ofKind = images.filter((image) => image.label === data.labels[row.dataset.kind].name);
    const share = ofKind.filter(isFlagged).length / ofKind.length;
    row.querySelector(".flagged-count").textContent = withCommas(ofKind.filter(isFlagged).length);
    row.querySelector(".share-text").textContent = percent(share);
    row.querySelector(".share-bar").setAttribute("width", `${100 * share}%`);
  }
};

const drawLine = () => {
  const place = placeOf(decision.threshold);
  const line = byId("threshold-line");
  for (const end of ["x1", "x2"]) line.setAttribute(end, `${100 * place}%`);
  byId("flagged-zone").setAttribute("width", `${100 * place}%`);
  const text = byId("threshold-text");
  text.setAttribute("x", `${100 * place}%`);
  text.setAttribute("dx", place > 0.5 ? "-6" : "6");
  text.setAttribute("text-anchor", place > 0.5 ? "end" : "start");
  text.textContent = `threshold ${briefly(decision.threshold, 4)}`;
};

const describeThreshold = () => {
  const flagged = images.filter(isFlagged).length;
  const threshold = briefly(decision.threshold, 4);
  const counts = `Threshold ${threshold}: ${flagged} of ${images.length} flagged`;
  if (!calibration) return counts;
  return `${counts}, ${percent(expectedRate(decision.threshold))} false alarms expected`;
};

const drawThreshold = () => {
  const text = describeThreshold();
  byId("threshold").value = placeOf(decision.threshold);
  byId("threshold").setAttribute("aria-valuetext", text);
  byId("threshold-score").value = briefly(decision.threshold, 6);
  byId("threshold-back").disabled = decision.threshold === data.threshold;
  drawLine();
  drawCounts();
  drawExpected();
  drawKinds();
};

// An arrow key moves to the next threshold that flags one image more or less.
const STEPS = {
  ArrowLeft: -1,
  ArrowDown: -1,
  ArrowRight: 1,
  ArrowUp: 1,
  PageDown: -20,
  PageUp: 20,
};

const stepThreshold = (event) => {
  const ends = { Home: 0, End: candidates.length - 1 };
  if (!(event.key in STEPS) && !(event.key in ends)) return;
  event.preventDefault();
  const here = countBelow(candidates, decision.threshold);
  const wanted = ends[event.key] ?? here + STEPS[event.key];
  setThreshold(candidates[Math.max(0, Math.min(candidates.length - 1, wanted))]);
};

const typeThreshold = (event) => {
  if (event.target.value !== "") setThreshold(event.target.valueAsNumber);
};

const chooseRate = (event) => {
  if (event.target.value) setThreshold(thresholdAt(Number(event.target.value)));
  event.target.value = "";
};

const startThreshold = () => {
  const slider = byId("threshold");
  slider.addEventListener("input", () =>
    setThreshold(candidates[nearestCandidate(slider.valueAsNumber)]),
  );
  slider.addEventListener("keydown", stepThreshold);
  byId("threshold-score").addEventListener("change", typeThreshold);
  byId("threshold-rate")?.addEventListener("change", chooseRate);
  byId("threshold-back").addEventListener("click", () => setThreshold(data.threshold));
  drawThreshold();
};
