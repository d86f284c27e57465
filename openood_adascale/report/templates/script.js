"use strict";
for (const table of document.querySelectorAll(".table table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, place) => row.cells[place].firstChild?.textContent.trim() ?? "";
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const rows = [...body.rows], was = head.getAttribute("aria-sort"), up = was ? was === "descending" : place === 0;
    const numbers = rows.some(row => !isNaN(parseFloat(value(row, place))));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((a, b) => {
      const one = value(a, place), other = value(b, place), order = parseFloat(one) - parseFloat(other);
      if (numbers && isNaN(order)) return isNaN(parseFloat(one)) - isNaN(parseFloat(other));
      if (!numbers) return up ? one.localeCompare(other) : other.localeCompare(one);
      return up ? order : -order;
    });
    body.append(...rows);
  }));
  const button = table.closest(".table").querySelector(".copy");
  button.hidden = false;
  button.addEventListener("click", () => {
    const lines = [heads.map(head => head.innerText.trim()).join("\t")];
    for (const row of body.rows) lines.push(heads.map((_, place) => value(row, place)).join("\t"));
    document.addEventListener("copy", event => {
      event.clipboardData.setData("text/plain", lines.join("\n") + "\n");
      event.preventDefault();
    }, { once: true });
    if (document.execCommand("copy")) button.textContent = "Copied";
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => part.open = true));
