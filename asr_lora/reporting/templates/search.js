// Search over all clips. Text enters the page only as textContent, so that markup in a corpus stays text.
const lines = JSON.parse(document.getElementById("lines").textContent);
const words = document.getElementById("words"), kind = document.getElementById("kind");
const rows = document.getElementById("rows"), count = document.getElementById("count");
const MOST = 200; // rows shown at once
const columns = [line => line.id, line => line.from, line => line.to, line => line.reference];
const byText = new Intl.Collator(undefined, {numeric: true});

const kinds = {
  all: () => true,
  better: line => line.to < line.from,
  worse: line => line.to > line.from,
  wrong: line => line.to > 0,
  runaway: line => line.runaway.length > 0,
};

function cell(row, text, name, label) {
  const made = row.insertCell();
  made.className = name;
  if (label) made.dataset.name = label;
  made.textContent = text;
  return made;
}

function show() {
  const query = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = lines.filter(line => kinds[kind.value](line) && query.every(word =>
    `${line.id} ${line.reference} ${line.before} ${line.after}`.toLowerCase().includes(word)));
  rows.replaceChildren();
  for (const line of found.slice(0, MOST)) {
    const row = rows.insertRow();
    cell(row, line.id, "title small");
    cell(row, line.from, "n", "base errors");
    cell(row, line.to, "n", "fine-tuned errors");
    const texts = cell(row, "", "texts");
    for (const [name, text] of [["reference", line.reference], ["base", line.before], ["fine-tuned", line.after]]) {
      const paragraph = document.createElement("p"), label = document.createElement("em");
      paragraph.className = "words";
      paragraph.dir = "auto";
      label.textContent = name;
      label.dir = "ltr"; // dir="auto" of the paragraph ignores elements with a direction of their own
      paragraph.append(label, " ", text || "(nothing)");
      texts.append(paragraph);
    }
  }
  const shown = found.length > MOST ? `, the first ${MOST} shown` : "";
  count.textContent = `${found.length} of ${lines.length} clips${shown}`;
}

document.getElementById("clips").addEventListener("sort", event => {
  const {column, ascending} = event.detail, value = columns[column];
  lines.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    return (ascending ? 1 : -1) * (typeof a === "number" ? a - b : byText.compare(a, b));
  });
  show();
});
words.addEventListener("input", show);
kind.addEventListener("change", show);
show();
