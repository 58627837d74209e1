(function () {
  "use strict";

  // A drawing outside this page has no style sheet: write the colours in.
  function resolved(svg) {
    const style = getComputedStyle(document.documentElement);
    return svg.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  }

  function save(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function offerSaving(id, view) {
    const button = document.querySelector(`button[data-chart="${CSS.escape(id)}"]`);
    button.hidden = false;
    button.addEventListener("click", async () => save(`${id}.svg`, "image/svg+xml", resolved(await view.toSVG())));
  }

  // Names come from outside: quoted, and never the start of a spreadsheet's formula.
  function quoted(text) {
    const plain = /^[=+@\t\r-]/.test(text) ? `'${text}` : text;
    return `"${plain.replaceAll('"', '""')}"`;
  }

  function asCsv(table) {
    const headings = Array.from(table.tHead.rows[0].cells, (cell) => quoted(cell.innerText.trim()));
    const isFigure = (cell) => cell.classList.contains("number") && !cell.textContent.startsWith("["); // an interval is two
    const value = (cell) => (isFigure(cell) ? cell.dataset.sort : quoted(cell.textContent));
    const rows = Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
    return [headings, ...rows.map((row) => Array.from(row.cells, value))].map((row) => row.join(",") + "\r\n").join("");
  }

  function offerTools(tools) {
    const table = document.getElementById(tools.dataset.table);
    const rows = Array.from(table.tBodies[0].rows);
    tools.querySelector("input").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      const shown = rows.filter((row) => !row.hidden).length;
      tools.querySelector("[role=status]").textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
    tools.querySelector("button").addEventListener("click", () => save(`${table.id}.csv`, "text/csv", asCsv(table)));
  }

  function drawCharts() {
    const drawn = Array.from(document.querySelectorAll("script.spec"), (element) => {
      const id = element.dataset.chart;
      const options = { ast: true, renderer: "svg", actions: false, mode: "vega-lite" };
      return vegaEmbed(document.getElementById(id), JSON.parse(element.textContent), options).then((result) =>
        offerSaving(id, result.view),
      );
    });
    Promise.all(drawn).then(() => (document.body.dataset.charts = "drawn"));
  }

  function compare(a, b, numeric, sign) {
    // Cells without a value stay last in both directions.
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  }

  function sortBy(table, heading) {
    const index = heading.cellIndex;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const numeric = heading.classList.contains("number");
    const body = table.tBodies[0];
    const key = (row) => row.cells[index].dataset.sort;
    const rows = Array.from(body.rows).sort((a, b) => compare(key(a), key(b), numeric, sign));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table")) {
    for (const heading of table.tHead.rows[0].cells) {
      heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
    }
  }
  document.querySelectorAll(".tools").forEach(offerTools);
  drawCharts();
})();
