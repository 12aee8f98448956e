// Data: the images of this page, the most abnormal first, and what the detector knows.

const data = JSON.parse(byId("data").textContent);

const calibration = data.calibration;

const anomalyLabels = new Set(data.labels.filter((label) => label.isAnomaly).map((l) => l.name));

const fold = (text) => text.normalize("NFC").toLocaleLowerCase();

const images = data.images.map((image, index) => {
  const name = image.name ?? image.path;
  return { label: "", ...image, name, rank: index + 1, folded: fold(name) };
});

const scoreText = (image) => image.score.toFixed(data.digits);

const pText = (image) => (image.p === undefined ? "" : briefly(image.p, 2));

// Large copies and maps that stand in the page already.
const findEnlarged = () => {
  for (const card of document.querySelectorAll(".card")) {
    const image = images[card.dataset.rank - 1];
    const [picture, layer] = card.querySelectorAll("img");
    image.large = [picture.src, picture.width, picture.height];
    if (layer) Object.assign(image, { layer: layer.src, highest: Number(card.dataset.highest) });
  }
};

const announce = (what) => document.dispatchEvent(new Event(what));
