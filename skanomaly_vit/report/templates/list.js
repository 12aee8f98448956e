// List: the images that match the filters, in order, a page at a time.

const MOST_PRINTED = 500;

const FILTERS = ["name", "verdict", "folder", "label", "mark"];

const list = { shown: images, page: 0, rows: new Map() };

const filterValue = (name) => byId(`filter-${name}`)?.value ?? "";

const pageSize = () => Number(byId("page-size").value);

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

// Orders of images; equal ones stay in the order of their scores.
const ORDERS = {
  score: (a, b) => a.rank - b.rank,
  name: (a, b) => collator.compare(a.name, b.name),
  label: (a, b) => collator.compare(a.label, b.label),
  mark: (a, b) => collator.compare(markOf(b).mark, markOf(a).mark),
  distance: (a, b) =>
    Math.abs(a.score - decision.threshold) - Math.abs(b.score - decision.threshold),
};

const MARK_FILTERS = {
  none: (entry) => !entry.mark,
  fine: (entry) => entry.mark === "fine",
  defect: (entry) => entry.mark === "defect",
  note: (entry) => entry.note !== "",
};

const matcher = () => {
  const [name, verdict, folder, label, mark] = FILTERS.map(filterValue);
  const folded = fold(name.trim());
  return (image) =>
    image.folded.includes(folded) &&
    (verdict === "" || flagWord(image) === verdict) &&
    (folder === "" || `=${image.folder}` === folder) &&
    (label === "" || `=${image.label}` === label) &&
    (mark === "" || MARK_FILTERS[mark](markOf(image)));
};

const sortState = () => {
  const [key, direction] = byId("sort").value.split(" ");
  return { key, sign: direction === "down" ? -1 : 1 };
};

const findShown = () => {
  const { key, sign } = sortState();
  const order = ORDERS[key];
  return images.filter(matcher()).sort((a, b) => sign * order(a, b) || a.rank - b.rank);
};

const fillRow = (row, image) => {
  const part = (name) => row.querySelector(`.${name}`);
  const [uri, width, height] = image.thumbnail;
  Object.assign(part("thumb").querySelector("img"), { src: uri, width, height });
  part("open").setAttribute("aria-label", `Enlarge ${image.name}`);
  part("open").addEventListener("click", () => openViewer(image, list.shown));
  part("name").querySelector("bdi").textContent = image.name;
  part("facts").textContent = factsOf(image);
  part("score").textContent = scoreText(image);
  part("p").textContent = pText(image);
  part("labelled").querySelector("bdi").textContent = image.label;
  part("marking").setAttribute("aria-label", `Mark ${image.name}`);
  connectMarking(part("marking"), () => image);
};

// What a narrow screen shows below the name.
const factsOf = (image) =>
  [image.label, scoreText(image), image.p !== undefined && `p ${pText(image)}`]
    .filter(Boolean)
    .join(" · ");

const makeRow = (image) => {
  const row = byId("row").content.firstElementChild.cloneNode(true);
  fillRow(row, image);
  list.rows.set(image, row);
  drawVerdict(row.querySelector(".flagged span"), image);
  drawRowMark(row, image);
  return row;
};

const drawVerdict = (element, image) => {
  element.textContent = flagWord(image);
  element.className = isFlagged(image) ? "flag" : "pass";
};

const drawPage = (first, last) => {
  list.rows.clear();
  const rows = list.shown.slice(first, last).map(makeRow);
  document.querySelector("#images tbody").replaceChildren(...rows);
};

const pageCount = () => Math.max(1, Math.ceil(list.shown.length / pageSize()));

const drawList = () => {
  list.page = Math.min(list.page, pageCount() - 1);
  drawPage(list.page * pageSize(), (list.page + 1) * pageSize());
  byId("count").value = `${withCommas(list.shown.length)} of ${withCommas(images.length)} images`;
  byId("none").hidden = list.shown.length > 0;
  byId("pages").hidden = images.length <= 50;
  byId("page").value = `Page ${list.page + 1} of ${pageCount()}`;
  byId("page-before").setAttribute("aria-disabled", list.page === 0);
  byId("page-after").setAttribute("aria-disabled", list.page === pageCount() - 1);
};

const refilter = () => {
  list.shown = findShown();
  list.page = 0;
  drawSorting();
  drawList();
};

const turnPage = (step) => {
  const wanted = list.page + step;
  if (wanted < 0 || wanted >= pageCount()) return;
  list.page = wanted;
  drawList();
  byId("images").scrollIntoView();
};

const drawSorting = () => {
  const { key, sign } = sortState();
  for (const button of document.querySelectorAll("#images th button")) {
    const cell = button.closest("th");
    if (button.dataset.key !== key) cell.removeAttribute("aria-sort");
    else cell.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  }
};

const sortBy = (key) => {
  const now = sortState();
  byId("sort").value = now.key === key && now.sign > 0 ? `${key} down` : `${key} up`;
  refilter();
};

const followThreshold = () => {
  if (filterValue("verdict") || sortState().key === "distance") return refilter();
  for (const [image, row] of list.rows) drawVerdict(row.querySelector(".flagged span"), image);
};

// Rows stay where they are, whatever the filter: a row that vanished could not be corrected.
const followMarks = () => {
  for (const [image, row] of list.rows) drawRowMark(row, image);
};

const drawRowMark = (row, image) => {
  drawMarking(row.querySelector(".marking"), image);
  row.querySelector(".said").textContent = markOf(image).note;
};

const connectMarking = (group, current) => {
  for (const button of group.querySelectorAll("button")) {
    button.addEventListener("click", () => toggleMark(current(), button.dataset.mark));
  }
};

const drawMarking = (group, image) => {
  for (const button of group.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", markOf(image).mark === button.dataset.mark);
  }
};

const saveTable = () => {
  const header = ["path", "score", "decision", "flag", "p_value", "label", "mark", "note"];
  const rows = list.shown.map((image) => {
    const { mark, note } = markOf(image);
    const numbers = [image.score, image.score - decision.threshold].map(String);
    const flag = isFlagged(image) ? "True" : "False";
    const p = image.p === undefined ? "" : String(image.p);
    return [guard(image.path), ...numbers, flag, p, guard(image.label), mark, guard(note)];
  });
  download("scores.csv", writeCsv([header, ...rows]));
};

const fillFolders = () => {
  const folders = [...new Set(images.map((image) => image.folder))].sort(collator.compare);
  if (folders.length < 2) return;
  const options = folders.map((folder) => new Option(folder || "(top)", `=${folder}`));
  byId("filter-folder").append(...options);
  byId("filter-folder").closest("label").hidden = false;
};

const reset = () => {
  for (const name of FILTERS) if (byId(`filter-${name}`)) byId(`filter-${name}`).value = "";
  refilter();
};

const printAll = () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  drawPage(0, MOST_PRINTED);
  const left = list.shown.length - MOST_PRINTED;
  byId("not-printed").hidden = left <= 0;
  byId("not-printed").textContent =
    `${left} more images are not printed; filter the list to print others.`;
};

const startList = () => {
  fillFolders();
  byId("filters").addEventListener("input", refilter);
  byId("reset").addEventListener("click", reset);
  byId("page-size").addEventListener("input", refilter);
  byId("page-before").addEventListener("click", () => turnPage(-1));
  byId("page-after").addEventListener("click", () => turnPage(1));
  byId("save-table").addEventListener("click", saveTable);
  for (const button of document.querySelectorAll("#images th button")) {
    button.addEventListener("click", () => sortBy(button.dataset.key));
  }
  document.addEventListener("threshold", followThreshold);
  document.addEventListener("marks", followMarks);
  addEventListener("beforeprint", printAll);
  addEventListener("afterprint", drawList);
  refilter();
};
