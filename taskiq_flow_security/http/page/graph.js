// Draws a graph: a column for each group of steps that can run at the same time

import { drawn } from "./parts.js";

const NODE = { width: 176, height: 48, gapX: 56, gapY: 20, margin: 8 };

export function graphOf(dag, groups, criticalPath) {
  const { width, height, gapX, gapY, margin } = NODE;
  const rows = Math.max(1, ...groups.map((group) => group.length));
  const critical = new Set(criticalPath);
  const followed = new Set(criticalPath.slice(1).map((target, index) => `${criticalPath[index]}\n${target}`));
  const places = new Map();
  groups.forEach((group, column) =>
    group.forEach((id, row) =>
      places.set(id, {
        x: margin + column * (width + gapX),
        y: margin + (row + (rows - group.length) / 2) * (height + gapY),
      }),
    ),
  );
  const size = {
    width: 2 * margin + groups.length * (width + gapX) - gapX,
    height: 2 * margin + rows * (height + gapY) - gapY,
  };
  const svg = drawn("svg", { ...size, role: "img", "aria-label": `${dag.nodes.length} steps` });
  svg.append(
    drawn("defs", {}, drawn(
      "marker",
      { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      drawn("path", { d: "M0 0 8 4 0 8z", class: "arrow" }),
    )),
  );
  for (const { source, target } of dag.edges) {
    const from = places.get(source);
    const to = places.get(target);
    const [x1, y1, x2, y2] = [from.x + width, from.y + height / 2, to.x - 2, to.y + height / 2];
    const bend = Math.max(24, (x2 - x1) / 2);
    svg.append(drawn("path", {
      class: followed.has(`${source}\n${target}`) ? "edge critical" : "edge",
      d: `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`,
      "marker-end": "url(#arrow)",
    }));
  }
  for (const node of dag.nodes) {
    const { x, y } = places.get(node.id);
    const plain = node.kind === "task";
    const box = drawn(
      "g",
      { class: critical.has(node.id) ? "node critical" : "node", transform: `translate(${x} ${y})` },
      drawn("title", {}, node.task),
      drawn("rect", { width, height, rx: 8 }),
      drawn("text", { x: 12, y: plain ? 29 : 22 }, shortened(node.task, 21)),
    );
    if (!plain) box.append(drawn("text", { x: 12, y: 38, class: "kind" }, node.kind));
    box.dataset.task = node.task;
    svg.append(box);
  }
  return svg;
}

const shortened = (text, length) => (text.length > length ? `…${text.slice(1 - length)}` : text);

export function paint(graph, kindOf) {
  for (const node of graph.querySelectorAll(".node")) {
    node.classList.remove("started", "completed", "failed", "refused");
    const kind = kindOf(node.dataset.task);
    if (kind) node.classList.add(kind);
  }
}
