"use strict";
/* Everything works without this script; with it, tables sort, rows are filtered, and one format is shown at a time. */
(() => {
  const said = document.getElementById("said");
  const say = (text) => { said.textContent = text; };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("v" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
    return a - b;
  };
  const sortBy = (table, header, column) => {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    keyed.sort((a, b) => {
      const missing = Number.isNaN(a[0]) || Number.isNaN(b[0]);
      return down && !missing ? compare(b[0], a[0]) : compare(a[0], b[0]);
    });
    table.tBodies[0].append(...keyed.map((pair) => pair[1]));
    say(`sorted by ${header.textContent.trim()}, ${down ? "descending" : "ascending"}`);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sortBy(table, header, column));
    });
  }

  for (const box of document.querySelectorAll("input.filter")) {
    box.parentElement.hidden = false;
    const rows = [...document.getElementById(box.dataset.table).tBodies[0].rows];
    box.addEventListener("input", () => {
      const wanted = box.value.toLowerCase();
      let shown = 0;
      for (const row of rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
        shown += row.hidden ? 0 : 1;
      }
      say(`${shown} of ${rows.length} tensors`);
    });
  }

  for (const choice of document.querySelectorAll("select.one-of")) {
    choice.parentElement.hidden = false;
    const parts = [...document.querySelectorAll(`[data-group="${choice.id}"]`)];
    const show = () => {
      for (const part of parts) part.hidden = part.dataset.format !== choice.value;
    };
    choice.addEventListener("change", () => { show(); say(`showing ${choice.value}`); });
    show();
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-row]");
    if (!link) return;
    const row = document.getElementById(link.dataset.row);
    row.closest("details").open = true;
    row.hidden = false;
  });
})();
