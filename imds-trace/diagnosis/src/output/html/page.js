"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.textContent = "";
    head.append(button);
    let turn = 1;
    button.addEventListener("click", () => {
      const value = (row) => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => turn * value(a).localeCompare(value(b), undefined, { numeric: true }));
      turn = -turn;
      body.append(...rows);
    });
  });
}
for (const input of document.querySelectorAll("input[data-table]")) {
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
for (const pre of document.querySelectorAll(".command pre")) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(pre);
    if (navigator.clipboard) navigator.clipboard.writeText(pre.textContent).then(() => { button.textContent = "Copied"; }, () => {});
  });
  pre.after(button);
}
document.body.dataset.ready = "yes";
