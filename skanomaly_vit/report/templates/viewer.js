// Viewer: one image, enlarged, under its map, with arrow keys to the next.

const viewer = { sequence: [], position: 0 };

const shownImage = () => viewer.sequence[viewer.position];

const viewerPart = (name) => byId("viewer").querySelector(`.${name}`);

const openViewer = (image, sequence) => {
  viewer.sequence = sequence;
  viewer.position = sequence.indexOf(image);
  drawViewer();
  byId("viewer").showModal();
};

// A small copy grows to four times its size at most.
const drawPicture = (image) => {
  const [uri, width, height] = image.large ?? image.thumbnail;
  const factor = image.large ? 2 : 4;
  const picture = viewerPart("picture");
  Object.assign(picture, { src: uri, width, height, alt: `Image ${image.name}` });
  viewerPart("stack").style.setProperty("--widest", `${factor * width}px`);
  viewerPart("stack").style.setProperty("--ratio", width / height);
  viewerPart("small-copy").hidden = Boolean(image.large);
};

const drawLayer = (image) => {
  const layer = viewerPart("map");
  for (const element of [layer, viewerPart("opacity")]) element.hidden = !image.layer;
  viewerPart("no-map").hidden = Boolean(image.layer) || !image.large;
  if (!image.layer) return layer.removeAttribute("src");
  layer.src = image.layer;
  layer.alt = `Anomaly map, highest value ${image.highest.toFixed(1)}`;
};

const drawFacts = (image) => {
  const fact = (name, value) => {
    const element = viewerPart(`fact-${name}`);
    element.textContent = value;
    element.closest("div").hidden = value === "";
  };
  drawVerdict(byId("viewer-verdict"), image);
  fact("score", scoreText(image));
  fact("decision", (image.score - decision.threshold).toFixed(data.digits));
  fact("p", pText(image));
  fact("label", image.label);
  fact("rank", `${withCommas(image.rank)} of ${withCommas(images.length)}`);
  fact("map", image.layer ? image.highest.toFixed(1) : "");
};

const drawViewer = () => {
  const image = shownImage();
  const last = viewer.sequence.length - 1;
  byId("viewer-title").textContent = image.name;
  viewerPart("position").textContent = `${viewer.position + 1} of ${last + 1}`;
  viewerPart("before").setAttribute("aria-disabled", viewer.position === 0);
  viewerPart("after").setAttribute("aria-disabled", viewer.position === last);
  drawPicture(image);
  drawLayer(image);
  drawFacts(image);
  drawViewerMark();
};

const drawViewerMark = () => {
  if (!viewer.sequence.length) return;
  const { mark, note } = markOf(shownImage());
  drawMarking(viewerPart("marking"), shownImage());
  const field = byId("note");
  field.disabled = mark === "";
  field.placeholder = mark ? "" : "Mark the image first";
  if (field.value !== note) field.value = note;
};

const step = (by) => {
  const wanted = viewer.position + by;
  if (wanted < 0 || wanted >= viewer.sequence.length) return;
  viewer.position = wanted;
  drawViewer();
};

const VIEWER_KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  f: () => toggleMark(shownImage(), "fine"),
  d: () => toggleMark(shownImage(), "defect"),
};

const pressKey = (event) => {
  const isTyping = event.target.matches("textarea, input");
  const action = VIEWER_KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (isTyping || !action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
};

const setOpacity = () => {
  viewerPart("map").style.opacity = byId("opacity").valueAsNumber / 100;
  byId("opacity-text").value = `${byId("opacity").value} %`;
};

// The focus goes back to the image that was looked at last.
const closeViewer = () => list.rows.get(shownImage())?.querySelector(".open").focus();

const openCard = (card) => {
  const cards = [...card.closest(".cards").querySelectorAll(".card")];
  const sequence = cards.map((each) => images[each.dataset.rank - 1]);
  openViewer(images[card.dataset.rank - 1], sequence);
};

const startViewer = () => {
  const dialog = byId("viewer");
  for (const card of document.querySelectorAll(".card")) {
    card.querySelector("button").addEventListener("click", () => openCard(card));
  }
  viewerPart("before").addEventListener("click", () => step(-1));
  viewerPart("after").addEventListener("click", () => step(1));
  viewerPart("close").addEventListener("click", () => dialog.close());
  connectMarking(viewerPart("marking"), shownImage);
  byId("note").addEventListener("input", () => setMark(shownImage(), { note: byId("note").value }));
  byId("opacity").addEventListener("input", setOpacity);
  dialog.addEventListener("keydown", pressKey);
  dialog.addEventListener("close", closeViewer);
  // A click beside the dialog's content lands on the dialog itself.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.addEventListener("marks", drawViewerMark);
  setOpacity();
};
