"use strict";
// What the report's page and the service's page share: SVG elements, the shapes in a cell, and which cell is meant.
const STAR = "M0 -.4L.095 -.13L.38 -.124L.153 .05L.235 .324L0 .16L-.235 .324L-.153 .05L-.38 -.124L-.095 -.13Z";

function make(name, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  set(node, attributes);
  if (parent) parent.append(node);
  return node;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

function arrowOf([down, right]) {  // the path of a move, a dot where it leads nowhere
  const arrow = "M-.36 -.07H.04V-.22L.38 0L.04 .22V.07H-.36Z";
  const dot = "M-.17 0a.17 .17 0 1 0 .34 0a.17 .17 0 1 0 -.34 0Z";
  const turn = Math.atan2(down, right) * 180 / Math.PI;
  return { d: down || right ? arrow : dot, transform: `translate(.5 .5) rotate(${turn})` };
}

function cellAt(row, column, { rows, columns }) {
  return row >= 0 && row < rows && column >= 0 && column < columns ? row * columns + column : null;
}

function cellUnder(event, svg, board) {  // the map keeps its proportions, in the middle of its element
  const box = svg.getBoundingClientRect(), size = Math.min(box.width / board.columns, box.height / board.rows);
  return cellAt(Math.floor((event.clientY - box.top - (box.height - size * board.rows) / 2) / size),
                Math.floor((event.clientX - box.left - (box.width - size * board.columns) / 2) / size), board);
}

function cellBeside(event, cell, board) {  // the one that an arrow key leads to
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return null;
  event.preventDefault();
  return cellAt(Math.floor(cell / board.columns) + move[0], cell % board.columns + move[1], board);
}

