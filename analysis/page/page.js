(function () {
  "use strict";

  const AT_ONCE = 200; // rows in the document; the others wait in memory
  const views = new Map(); // id of a drawn chart -> its Vega view
  const tables = new Map(); // id of a table -> its rows
  const form = document.getElementById("choose");
  const chosen = () => (form ? Object.fromEntries(new FormData(form)) : {});

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

  // Charts ---------------------------------------------------------------------------------------------------------------

  // Columns to rows: { a: [1, 2], b: [3, 4] } -> [{ a: 1, b: 3 }, { a: 2, b: 4 }].
  function unpacked(columns) {
    const names = Object.keys(columns);
    return Array.from(columns[names[0]], (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  }

  function pointsOf(name) {
    const element = document.querySelector(`script.points[data-points="${CSS.escape(name)}"]`);
    return unpacked(JSON.parse(element.textContent));
  }

  async function draw(element) {
    const id = element.dataset.chart;
    const spec = JSON.parse(element.textContent);
    spec.datasets = { [element.dataset.points]: pointsOf(element.dataset.points) };
    const options = { ast: true, renderer: "svg", actions: false, mode: "vega-lite" };
    const view = (await vegaEmbed(document.getElementById(id), spec, options)).view;
    views.set(id, view);
    const button = document.querySelector(`button[data-chart="${CSS.escape(id)}"]`);
    button.hidden = false;
    button.addEventListener("click", async () => save(`${id}.svg`, "image/svg+xml", resolved(await view.toSVG())));
    view.addEventListener("click", (_, item) => choosePolicy(item));
  }

  // A click on a mark, or on a policy in a legend, chooses its policy on the whole page; a second click lets it go.
  function choosePolicy(item) {
    const select = form?.elements.policy;
    const datum = item?.datum;
    const policy = datum?.policy ?? datum?.value;
    if (!select || !Array.from(select.options).some((option) => option.value && option.value === policy)) return;
    select.value = select.value === policy ? "" : policy;
    select.dispatchEvent(new Event("change", { bubbles: true }));
  }

  const matches = (data, choice) =>
    ["model", "dataset", "policy"].every((name) => !choice[name] || !data[name] || data[name] === choice[name]);

  async function showCharts() {
    document.body.dataset.charts = "drawing";
    const choice = chosen();
    for (const element of document.querySelectorAll("script.spec")) {
      const figure = element.closest("figure");
      figure.hidden = !matches(figure.dataset, choice);
      if (figure.hidden) continue;
      if (!views.has(element.dataset.chart)) await draw(element);
      const view = views.get(element.dataset.chart);
      if (view.signal("chosen") !== (choice.policy ?? "")) await view.signal("chosen", choice.policy ?? "").runAsync();
    }
    document.body.dataset.charts = "drawn";
  }

  // Tables ---------------------------------------------------------------------------------------------------------------

  // Names come from outside: quoted, and never the start of a spreadsheet's formula.
  function quoted(text) {
    const plain = /^[=+@\t\r-]/.test(text) ? `'${text}` : text;
    return `"${plain.replaceAll('"', '""')}"`;
  }

  function rowOf(headings, cells) {
    const row = document.createElement("tr");
    cells.forEach((cell, i) => {
      const [text, sort] = Array.isArray(cell) ? cell : [cell, cell];
      const place = row.insertCell();
      place.className = headings[i].className + (text.length > 40 ? " long" : "");
      place.dataset.sort = sort;
      place.textContent = text;
    });
    return row;
  }

  class Table {
    constructor(element) {
      this.element = element;
      this.headings = Array.from(element.tHead.rows[0].cells);
      this.rows = Array.from(element.tBodies[0].rows);
      const rest = document.querySelector(`script.rest[data-table="${element.id}"]`);
      if (rest) this.rows.push(...JSON.parse(rest.textContent).map((cells) => rowOf(this.headings, cells)));
      this.everything = this.rows.length;
      this.limit = AT_ONCE;
      this.words = [];
      this.tools = document.querySelector(`.tools[data-table="${element.id}"]`);
      this.headings.forEach((heading) => heading.querySelector("button").addEventListener("click", () => this.sortBy(heading)));
      this.tools?.querySelector("input").addEventListener("input", (event) => {
        this.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
        this.show();
      });
      this.tools?.querySelector(".save").addEventListener("click", () => save(`${element.id}.csv`, "text/csv", this.csv()));
      this.tools?.querySelector(".more").addEventListener("click", () => {
        this.limit += 5 * AT_ONCE;
        this.show();
      });
    }

    settings(row) {
      const found = { ...this.element.dataset };
      this.headings.forEach((heading, i) => {
        if (["model", "dataset", "policy"].includes(heading.dataset.key)) found[heading.dataset.key] = row.cells[i].textContent;
      });
      if (found.policy === "dense") delete found.policy; // the twin of every policy
      return found;
    }

    matching() {
      const choice = chosen();
      return this.rows.filter((row) => {
        if (!matches(this.settings(row), choice)) return false;
        const text = this.words.length ? Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase() : "";
        return this.words.every((word) => text.includes(word));
      });
    }

    show() {
      const found = this.matching();
      this.element.tBodies[0].replaceChildren(...found.slice(0, this.limit));
      if (!this.tools) return;
      this.tools.querySelector(".more").hidden = found.length <= this.limit;
      const shown = Math.min(found.length, this.limit);
      const all = shown === this.everything;
      this.tools.querySelector("[role=status]").textContent = all ? "" : `${shown} of ${this.everything} rows`;
    }

    sortBy(heading) {
      const index = heading.cellIndex;
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const numeric = heading.classList.contains("number");
      const key = (row) => row.cells[index].dataset.sort;
      this.rows.sort((a, b) => compare(key(a), key(b), numeric, sign));
      for (const other of this.headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      this.show();
    }

    csv() {
      const headings = this.headings.map((cell) => quoted(cell.innerText.trim()));
      const isFigure = (cell) => cell.classList.contains("number") && !cell.textContent.startsWith("["); // an interval is two
      const value = (cell) => (isFigure(cell) ? cell.dataset.sort : quoted(cell.textContent));
      const rows = this.matching().map((row) => Array.from(row.cells, value));
      return [headings, ...rows].map((row) => row.join(",") + "\r\n").join("");
    }
  }

  function compare(a, b, numeric, sign) {
    // Cells without a value stay last in both directions.
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  }

  function showEverything() {
    for (const table of tables.values()) table.show();
    return showCharts();
  }

  for (const element of document.querySelectorAll("table")) tables.set(element.id, new Table(element));
  form?.addEventListener("change", showEverything);
  form?.addEventListener("submit", (event) => event.preventDefault());
  showEverything();
})();
