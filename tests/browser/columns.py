"""A table of the page as a reader sees it."""


def column(page, table, heading):
    index = page.locator(f"#{table} th").evaluate_all(
        "(all, name) => all.findIndex(h => h.innerText.trim().startsWith(name))", heading
    )
    cells = page.locator(f"#{table} tbody tr").evaluate_all(
        "(rows, i) => rows.map(r => r.cells[i].dataset.sort)", index
    )
    return page.locator(f"#{table} th button").nth(index), cells
