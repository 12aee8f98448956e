"use strict";

// Texts: numbers as the page writes them, and tables as CSV files.

const byId = (id) => document.getElementById(id);

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

const withCommas = (count) => count.toLocaleString("en-US");

const briefly = (value, digits) => String(Number(value.toPrecision(digits)));

// First characters by which a spreadsheet takes a text for a formula; behind a "'" it does not.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;

const guard = (text) => (FORMULA.test(text) ? `'${text}` : text);

const unguard = (text) => (text.startsWith("'") && FORMULA.test(text) ? text.slice(1) : text);

// The same file, under a name that is no formula.
const guardPath = (path) => (FORMULA.test(path) ? `./${path}` : path);

const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

const writeCsv = (rows) => rows.map((row) => `${row.map(quote).join(",")}\r\n`).join("");

// Rows of cells; an Error if a quote is not closed, or text follows it.
const readCsv = (text) => {
  const cells = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\n|\r|$)/gy;
  const rows = [[]];
  while (cells.lastIndex < text.length) {
    const found = cells.exec(text);
    if (!found) throw new Error(`row ${rows.length} is not CSV`);
    const [, quoted, bare, end] = found;
    rows.at(-1).push(quoted === undefined ? bare : quoted.replaceAll('""', '"'));
    if (end !== "," && cells.lastIndex < text.length) rows.push([]);
  }
  return rows.filter((row) => row.length > 1 || row[0]);
};

// UTF-8. A byte of a file name that is not UTF-8 stands as U+DC80 to U+DCFF, as in Python.
const encodeText = (text) => {
  const parts = text.split(/([\udc80-\udcff]+)/u).map((part, index) =>
    index % 2
      ? Uint8Array.from(part, (character) => character.charCodeAt(0) - 0xdc00)
      : new TextEncoder().encode(part),
  );
  return new Blob(parts);
};

// A character a byte: a CSV file can be read so, whatever its paths hold.
const asBinary = (buffer) =>
  Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join("");

const fromBinary = (binary) =>
  new TextDecoder().decode(Uint8Array.from(binary, (character) => character.charCodeAt(0)));

const download = (name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(encodeText(text));
  link.download = name;
  link.click();
  // The browser reads it after this function.
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
