// The lakehouse as a graph: a tidy tree, because a pipeline has one source. Columns from topics to panels.
import { get } from "../api.js";
import { h, renew, s } from "../dom.js";
import { count, duration } from "../format.js";
import { badge, STATES } from "../state.js";

const [WIDTH, HEIGHT, ACROSS, DOWN, TOP] = [204, 46, 26, 13, 30];
const KINDS = { topic: "Topic", files: "Files", delta: "Delta table", postgres: "PostgreSQL", panel: "Panel", console: "Console" };

/** Gives every node a column and a row; answers how many of each there are. */
function lay({ nodes, edges }) {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const children = new Map(nodes.map((node) => [node.id, []]));
  const below = new Set(edges.map((edge) => edge.to));
  edges.forEach((edge) => children.get(edge.from).push(byId.get(edge.to)));
  const deltas = Math.max(0, ...nodes.filter((node) => node.kind === "delta").map((node) => node.rank));
  const column = {
    topic: () => 0,
    files: () => 0,
    delta: (node) => Math.max(node.rank, 1),
    postgres: () => deltas + 1,
    console: () => deltas + 1,
    panel: () => deltas + 2,
  };
  let row = 0;
  const done = new Set();
  function place(node) {
    if (done.has(node.id)) return;
    done.add(node.id);
    node.column = column[node.kind](node);
    const own = children.get(node.id).filter((child) => !done.has(child.id));
    own.sort((a, b) => a.kind.localeCompare(b.kind) * -1 || a.title.localeCompare(b.title));
    own.forEach(place);
    const rows = own.map((child) => child.row);
    node.row = rows.length ? (Math.min(...rows) + Math.max(...rows)) / 2 : row++;
  }
  nodes.filter((node) => !below.has(node.id)).forEach(place);
  const used = [...new Set(nodes.map((node) => node.column))].sort((a, b) => a - b);
  nodes.forEach((node) => {
    node.x = 1 + used.indexOf(node.column) * (WIDTH + ACROSS);
    node.y = TOP + node.row * (HEIGHT + DOWN);
  });
  const HEADS = { topic: "Topics", files: "Files", postgres: "PostgreSQL", panel: "Panels", console: "Console" };
  const headOf = (one) => {
    const there = nodes.filter((node) => node.column === one);
    return there[0].kind === "delta"
      ? [...new Set(there.map((node) => node.title.split(".")[0]))].join(", ")
      : HEADS[there[0].kind];
  };
  return {
    byId,
    heads: used.map(headOf),
    width: used.length * (WIDTH + ACROSS) - ACROSS + 2,
    height: 2 + TOP + row * (HEIGHT + DOWN),
  };
}

function told(node, state) {
  if (node.kind === "topic" || node.kind === "panel" || !state) return [KINDS[node.kind], ""];
  if (node.kind === "postgres" && state.sink === "delta") {
    return state.copy
      ? [`copy, ${duration(Math.round(state.copy.age_seconds))} old`, state.state === "overdue" ? "warn" : ""]
      : ["not loaded yet", ""];
  }
  const [sign, kind, word] = STATES[state.state];
  const more =
    state.rows_per_second !== null && state.state === "running"
      ? ` · ${count(Math.round(state.rows_per_second * 10) / 10)}/s`
      : state.age_seconds !== null && state.state !== "failed"
        ? ` · ${duration(Math.round(state.age_seconds))}`
        : "";
  return [`${sign} ${word}${more}`, kind, node.kind === "postgres" ? state.layer : ""];
}

const LONGEST = 24;
/** A table's name without its layer, which stands above it or on the second line. */
function named({ kind, title }) {
  const text = kind === "delta" || kind === "postgres" ? title.slice(title.indexOf(".") + 1) : title;
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
}

function drawn({ nodes, edges }, states) {
  const { byId, heads, width, height } = lay({ nodes, edges });
  const lines = edges.map((edge) => {
    const [a, b] = [byId.get(edge.from), byId.get(edge.to)];
    const [x1, y1, x2, y2] = [a.x + WIDTH, a.y + HEIGHT / 2, b.x, b.y + HEIGHT / 2];
    const bend = x1 + ACROSS; // bends in the first gap: from there its row is free
    return s("path", {
      class: `edge ${edge.kind}`,
      d: `M${x1},${y1}C${x1 + ACROSS / 2},${y1} ${x1 + ACROSS / 2},${y2} ${bend},${y2}L${x2},${y2}`,
    });
  });
  const boxes = nodes.map((node) => {
    const [text, kind] = told(node, states.get(node.pipeline));
    const box = s(
      "g",
      { class: `node k-${node.kind}`, transform: `translate(${node.x},${node.y})` },
      s("title", {}, `${KINDS[node.kind]} ${node.title}: ${text}`),
      s("rect", { width: WIDTH, height: HEIGHT, rx: 8 }),
      s("path", { class: "side", d: `M0,8a8,8 0 0 1 6,-7.700V${HEIGHT - 0.3}a8,8 0 0 1 -6,-7.700Z` }),
      s("text", { class: "name", x: 15, y: 20 }, named(node)),
      s("text", { class: `told ${kind}`, x: 15, y: 36 }, text),
    );
    return node.pipeline
      ? s("a", { href: `/pipelines/${node.pipeline}`, "aria-label": `${KINDS[node.kind]} ${node.title}: ${text}` }, box)
      : box;
  });
  return s(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Graph of the lakehouse" },
    heads.map((head, i) =>
      s("text", { class: "column", x: i * (WIDTH + ACROSS), y: 14 }, head.charAt(0).toUpperCase() + head.slice(1)),
    ),
    lines,
    boxes,
  );
}

function key(kind, text) {
  return h(
    "li",
    {},
    s("svg", { viewBox: "0 0 34 8", "aria-hidden": "true" }, s("path", { class: `edge ${kind}`, d: "M0,4L34,4" })),
    text,
  );
}

export function create(main) {
  const [place, list] = [
    h("div", { class: "graph card", tabindex: 0, role: "region", "aria-label": "Graph" }),
    h("ul", {}),
  ];
  main.append(
    h("div", { class: "head" }, h("h1", {}, "Graph"), h("p", {}, "From topics to panels, as the pipelines say")),
    place,
    h("ul", { class: "keys" }, key("stream", "stream, or copy"), key("job", "job"), key("panel", "shown in a panel")),
    h("details", { class: "section" }, h("summary", {}, "As a list"), list),
  );
  return {
    live: true,
    async refresh() {
      const [graph, { pipelines }] = await Promise.all([get("/api/graph"), get("/api/pipelines")]);
      const states = new Map(pipelines.map((one) => [one.name, one]));
      renew(place, [graph, graph.nodes.map((node) => told(node, states.get(node.pipeline)))], () =>
        drawn(structuredClone(graph), states),
      );
      renew(
        list,
        pipelines.map((one) => [one.name, one.source, one.state]),
        (lines) =>
          lines.map(([name, source, state]) =>
            h("li", {}, `${source} → `, h("a", { href: `/pipelines/${name}` }, name), " ", badge(state)),
          ),
      );
    },
  };
}
