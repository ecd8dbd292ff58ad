// Sorts a table by the button that its script puts into each header; without JavaScript headers are text. Numbers sort
// as numbers, by the first of a cell. A record is a row, or where a table has several bodies a body.
const NUMBER = /^[-+−]?[\d,]*\.?\d+(e[-+]?\d+)?/i;
const collator = new Intl.Collator(undefined, {numeric: true});

const missing = text => text === "" || text === "-";
const number = text => Number(text.match(NUMBER)[0].replaceAll(",", "").replace("−", "-"));
const records = table => table.tBodies.length > 1 ? [...table.tBodies] : [...table.tBodies[0]?.rows ?? []];

function cellText(record, column) {
  const row = record.rows ? record.rows[record.rows.length - 1] : record;
  return row.cells[column]?.textContent.trim() ?? "";
}

function sortTable(table, column, ascending) {
  const own = records(table), texts = new Map(own.map(record => [record, cellText(record, column)]));
  const numeric = [...texts.values()].every(text => missing(text) || NUMBER.test(text));
  own.sort((one, other) => {
    const [a, b] = [texts.get(one), texts.get(other)];
    if (missing(a) || missing(b)) return missing(a) - missing(b); // last in both directions
    return (ascending ? 1 : -1) * (numeric ? number(a) - number(b) : collator.compare(a, b));
  });
  own[0].parentNode.append(...own);
}

for (const table of document.querySelectorAll("table:has(> thead)")) {
  const scripted = "scripted" in table.dataset; // the script that fills it sorts it, at the event "sort"
  const own = records(table), headers = [...table.tHead.rows[0].cells];
  if (!scripted && (own.length < 2 || "fixed" in table.dataset)) continue;
  for (const [column, header] of headers.entries()) {
    if (!scripted && own.every(record => cellText(record, column) === "")) continue; // a column of drawings
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach(each => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      if (scripted) table.dispatchEvent(new CustomEvent("sort", {detail: {column, ascending}}));
      else sortTable(table, column, ascending);
    });
  }
}
