// The table of runs. Rows stay where they are, so that nobody's click or focus is lost when it is brought up to date.

import { element, timeOf } from "./parts.js";

// Returns the ids of the runs whose state is another one than before.
export function list(table, runs, choose) {
  const rows = new Map([...table.children].map((row) => [row.dataset.run, row]));
  const changed = [];
  runs.forEach((run, index) => {
    const row = rows.get(run.run_id) ?? rowOf(run, choose);
    const state = row.querySelector(".state");
    row.firstChild.textContent = timeOf(run.started_at); // which tells the date from tomorrow on
    if (state.textContent !== run.state) changed.push(run.run_id);
    state.textContent = run.state;
    state.className = `state state-${run.state}`;
    if (table.children[index] !== row) table.insertBefore(row, table.children[index] ?? null);
  });
  while (table.children.length > runs.length) table.lastChild.remove();
  return changed;
}

export function mark(table, runId) {
  for (const row of table.children) row.querySelector("button").setAttribute("aria-pressed", row.dataset.run === runId);
}

function rowOf(run, choose) {
  const row = element("tr");
  row.dataset.run = run.run_id;
  const button = element("button", "Details", { type: "button", class: "quiet", "aria-pressed": false });
  button.setAttribute("aria-label", `Details of ${run.run_id}`);
  button.addEventListener("click", () => choose(run.run_id));
  row.append(
    element("td"),
    element("td", run.subject),
    element("td", "", { class: "state" }),
    element("td"),
  );
  row.lastChild.append(button);
  return row;
}
