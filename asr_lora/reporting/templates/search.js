// Search over all clips. Text enters the page only as textContent, so that markup in a corpus stays text.
// Errors and texts of a line are in the order of `names`, those of the models.
const {names, lines} = JSON.parse(document.getElementById("lines").textContent);
const words = document.getElementById("words"), kind = document.getElementById("kind");
const rows = document.getElementById("rows"), count = document.getElementById("count");
const MOST = 200; // rows shown at once
const columns = [line => line.id, ...names.map((_, at) => line => line.errors[at]), line => line.reference];
const byText = new Intl.Collator(undefined, {numeric: true});

const kinds = {
  all: () => true,
  better: line => line.errors[1] < line.errors[0],
  worse: line => line.errors[1] > line.errors[0],
  differ: line => new Set(line.errors).size > 1,
  wrong: line => line.errors.at(-1) > 0,
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
    [line.id, line.reference, ...line.texts].join(" ").toLowerCase().includes(word)));
  rows.replaceChildren();
  for (const line of found.slice(0, MOST)) {
    const row = rows.insertRow();
    cell(row, line.id, "title small");
    names.forEach((name, at) => cell(row, line.errors[at], "n", `${name} errors`));
    const texts = cell(row, "", "texts");
    for (const [name, text] of [["reference", line.reference], ...names.map((name, at) => [name, line.texts[at]])]) {
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
