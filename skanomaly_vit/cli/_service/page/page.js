"use strict";

const at = (id) => document.getElementById(id);
let latest = 0;

async function ask(address, file) {
  const answer = await fetch(address, {
    method: "POST",
    body: file,
    headers: { "content-type": file.type.startsWith("image/") ? file.type : "application/octet-stream" },
  });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({ error: `The service answered ${answer.status}.` }));
  throw new Error(said.error);
}

function show(picture, blob) {
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(blob);
}

function number(value) {
  return value === null ? "none" : value.toPrecision(4);
}

async function judge(file) {
  const turn = ++latest;
  at("result").hidden = true;
  at("status").textContent = `Scoring ${file.name} ...`;
  try {
    const found = await (await ask("score", file)).json();
    const health = await (await fetch("health")).json();
    const map = health.has_maps ? await (await ask("map", file)).blob() : null;
    if (turn !== latest) return; // another image was dropped meanwhile
    at("verdict").textContent = found.flag ? "Anomaly" : "Normal";
    at("verdict").className = found.flag ? "anomaly" : "normal";
    at("score").textContent = number(found.score);
    at("threshold").textContent = number(found.threshold);
    at("p-value").textContent = number(found.p_value);
    at("remarks").textContent = found.remarks.join(" ");
    show(at("image"), file);
    at("map-figure").hidden = map === null;
    if (map !== null) show(at("map"), map);
    at("status").textContent = file.name;
    at("result").hidden = false;
  } catch (error) {
    if (turn === latest) at("status").textContent = error.message;
  }
}

at("file").addEventListener("change", (event) => {
  if (event.target.files.length) judge(event.target.files[0]);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) judge(event.dataTransfer.files[0]);
  });
}
