(function () {
  "use strict";

  // A drawing outside this page has no style sheet: write the colours in.
  function resolved(svg) {
    const style = getComputedStyle(document.documentElement);
    return svg.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  }

  function offerSaving(id, view) {
    const button = document.querySelector(`button[data-chart="${CSS.escape(id)}"]`);
    button.hidden = false;
    button.addEventListener("click", async () => {
      const drawing = new Blob([resolved(await view.toSVG())], { type: "image/svg+xml" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(drawing);
      link.download = `${id}.svg`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
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
  drawCharts();
})();
