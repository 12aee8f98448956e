"use strict";
{
  const find = (id) => document.getElementById(id);
  const body = document.querySelector("#images tbody");
  const headings = [...document.querySelectorAll("#images th button")];
  const filters = ["name", "low", "high", "flag", "label"];
  const fields = Object.fromEntries(filters.map((name) => [name, find(`filter-${name}`)]));
  const value = (name) => (fields[name] ? fields[name].value : "");
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const fold = (text) => text.normalize("NFC").toLocaleLowerCase();

  const images = [...body.rows].map((row) => ({
    row,
    rank: Number(row.dataset.rank),
    score: Number(row.dataset.score),
    decision: Number(row.dataset.decision),
    flag: Number(row.dataset.flag),
    name: row.dataset.name,
    label: row.dataset.label,
    folded: fold(row.dataset.name),
  }));

  const sort = (heading) => {
    const key = heading.dataset.key;
    const cell = heading.closest("th");
    const turned = cell.getAttribute("aria-sort") === "ascending";
    const sign = turned ? -1 : 1;
    const isText = key === "name" || key === "label";
    const order = isText ? (a, b) => collator.compare(a[key], b[key]) : (a, b) => a[key] - b[key];
    images.sort((a, b) => sign * order(a, b) || a.rank - b.rank);
    for (const other of headings) other.closest("th").removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", turned ? "descending" : "ascending");
    body.append(...images.map((image) => image.row));
  };

  const filter = () => {
    const name = fold(value("name").trim());
    const low = value("low") === "" ? -Infinity : Number(value("low"));
    const high = value("high") === "" ? Infinity : Number(value("high"));
    const flag = value("flag");
    const label = value("label");
    let shown = 0;
    for (const image of images) {
      const matches =
        image.score >= low &&
        image.score <= high &&
        image.folded.includes(name) &&
        (flag === "" || image.flag === Number(flag)) &&
        (label === "" || `=${image.label}` === label);
      image.row.hidden = !matches;
      shown += matches;
    }
    find("count").value = `${shown} of ${images.length} images`;
    find("none").hidden = shown > 0;
  };

  const reset = () => {
    for (const field of Object.values(fields)) if (field) field.value = "";
    filter();
  };

  for (const heading of headings) heading.addEventListener("click", () => sort(heading));
  find("filters").addEventListener("input", filter);
  find("reset").addEventListener("click", reset);
  find("filters").hidden = false;
  // A browser restores typed filters when it returns to this page.
  addEventListener("pageshow", filter);
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
}
