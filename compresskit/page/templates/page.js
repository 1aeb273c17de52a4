// Tables sort by a click on a heading: up, down, and as they were. What has no value stays last.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
};
const rankOf = (value) => (typeof value === "number" ? 0 : /^[-–—]?$|^nan$/.test(value) ? 2 : 1);
const compare = (a, b, sign) => {
  const rank = rankOf(a) - rankOf(b);
  if (rank !== 0 || rankOf(a) === 2) return rank;
  return sign * (typeof a === "number" ? (a < b ? -1 : a > b ? 1 : 0) : a.localeCompare(b, "en", { numeric: true }));
};
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], original = [...body.rows], headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort ?? "none"];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      const sign = next === "descending" ? -1 : 1;
      if (next !== "none") heading.setAttribute("aria-sort", next);
      const rows = next === "none" ? original : original.toSorted((one, other) => compare(valueOf(one, column), valueOf(other, column), sign));
      body.append(...rows);
    });
  });
}
