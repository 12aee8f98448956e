// Marks: "fine" or "defect" and a note for an image, kept by the browser and in marks.csv.

const MARKS = ["fine", "defect"];

const MARKS_HEADER = ["path", "mark", "note"];

const marksKey = `skanomaly-marks-${data.id}`;

const marks = new Map();

const marksState = { isKept: true, isSaved: true, message: "" };

const markOf = (image) => marks.get(image) ?? { mark: "", note: "" };

const setMark = (image, change) => {
  const entry = { ...markOf(image), ...change };
  if (entry.mark || entry.note) marks.set(image, entry);
  else marks.delete(image);
  Object.assign(marksState, { isSaved: false, message: "" });
  keepMarks();
  announce("marks");
};

const toggleMark = (image, mark) =>
  setMark(image, { mark: markOf(image).mark === mark ? "" : mark });

const removeMarks = () => {
  marks.clear();
  Object.assign(marksState, { isSaved: true, message: "" });
  keepMarks();
  announce("marks");
};

// A browser may forbid a page from the disk to keep anything, or have no room.
const keepMarks = () => {
  const kept = [...marks].map(([image, entry]) => [image.path, entry]);
  try {
    if (kept.length) localStorage.setItem(marksKey, JSON.stringify(kept));
    else localStorage.removeItem(marksKey);
    marksState.isKept = true;
  } catch {
    marksState.isKept = false;
  }
};

const recallMarks = () => {
  const byPath = new Map(images.map((image) => [image.path, image]));
  try {
    for (const [path, entry] of JSON.parse(localStorage.getItem(marksKey) ?? "[]")) {
      if (byPath.has(path)) marks.set(byPath.get(path), entry);
    }
    marksState.isSaved = marks.size === 0;
  } catch {
    marksState.isKept = false;
  }
};

const marked = () => images.filter((image) => markOf(image).mark);

const saveMarks = () => {
  const rows = marked().map((image) => {
    const { mark, note } = markOf(image);
    return [guardPath(image.path), mark, guard(note)];
  });
  download("marks.csv", writeCsv([MARKS_HEADER, ...rows]));
  Object.assign(marksState, { isSaved: true, message: "" });
  announce("marks");
};

// The path of a row without "./" and without the folder of all images.
const plainPath = (path) => {
  const root = data.root ? `${data.root.replaceAll("\\", "/")}/` : "";
  const plain = path.replace(/^(\.\/)+/, "");
  return root && plain.startsWith(root) ? plain.slice(root.length) : plain;
};

const checkMarks = (rows) => {
  const [header, ...others] = rows;
  if (!header || MARKS_HEADER.some((name) => !header.includes(name))) {
    throw new Error(`its header is not ${MARKS_HEADER.join(",")}`);
  }
  const [path, mark, note] = MARKS_HEADER.map((name) => header.indexOf(name));
  return others.map((row, index) => {
    if (!MARKS.includes(row[mark])) {
      throw new Error(`row ${index + 2} has the mark "${row[mark] ?? ""}", not fine or defect`);
    }
    return { path: plainPath(row[path]), mark: row[mark], note: unguard(row[note] ?? "") };
  });
};

// Images under the bytes of their paths.
const indexPaths = async () => {
  const buffers = images.map((image) => encodeText(image.path).arrayBuffer());
  const paths = (await Promise.all(buffers)).map(asBinary);
  return new Map(paths.map((path, index) => [path, images[index]]));
};

const loadMarks = async (file) => {
  try {
    const binary = asBinary(await file.arrayBuffer()).replace(/^\u00ef\u00bb\u00bf/, "");
    const rows = checkMarks(readCsv(binary));
    const byPath = await indexPaths();
    const known = rows.filter((row) => byPath.has(row.path));
    for (const { path, mark, note } of known) {
      marks.set(byPath.get(path), { mark, note: fromBinary(note) });
    }
    marksState.message = describeLoading(file.name, known.length, rows, byPath);
    keepMarks();
  } catch (error) {
    marksState.message = `${file.name} was not loaded: ${error.message}.`;
  }
  announce("marks");
};

const describeLoading = (name, loaded, rows, byPath) => {
  const strange = rows.filter((row) => !byPath.has(row.path));
  const done = `${loaded} marks loaded from ${name}.`;
  if (!strange.length) return done;
  const first = fromBinary(strange[0].path);
  return `${done} ${strange.length} more are of images that this page lacks, first ${first}.`;
};

const describeMarks = () => {
  const { isKept, isSaved, message } = marksState;
  const count = (mark) => marked().filter((image) => markOf(image).mark === mark).length;
  const counts = MARKS.map((mark) => `${count(mark)} ${mark}`).join(", ");
  const where = isKept
    ? "This browser keeps them on this computer."
    : "This browser does not keep them: save them before you close the page.";
  const saved = isSaved ? "" : " Not saved as a file yet.";
  const state = marks.size ? `${counts}. ${where}${saved}` : "No marks.";
  return message ? `${message} ${state}` : state;
};

const drawMarks = () => {
  byId("marks-state").textContent = describeMarks();
  byId("save-marks").disabled = marked().length === 0;
  byId("remove-marks").hidden = marks.size === 0;
  byId("remove-marks").textContent = "Remove all marks";
};

// Two clicks, as nothing brings them back.
const askToRemoveMarks = () => {
  const button = byId("remove-marks");
  const question = `Really remove ${marks.size}?`;
  if (button.textContent === question) removeMarks();
  else button.textContent = question;
};

const startMarks = () => {
  recallMarks();
  byId("save-marks").addEventListener("click", saveMarks);
  byId("remove-marks").addEventListener("click", askToRemoveMarks);
  byId("load-marks").addEventListener("change", (event) => {
    if (event.target.files.length) loadMarks(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("marks", drawMarks);
  addEventListener("beforeunload", (event) => {
    if (!marksState.isKept && !marksState.isSaved) event.preventDefault();
  });
  drawMarks();
};
