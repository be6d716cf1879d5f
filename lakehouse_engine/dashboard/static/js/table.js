// Tables of values: numbers to the right, nothing as a dash, what is long breaks.
import { h } from "./dom.js";
import { moment, shown } from "./format.js";

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/;

function text(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return TIME.test(value) ? moment(value) : value;
  if (Array.isArray(value)) return value.map(text).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** ``heads``: name, and perhaps unit, number, link, sort. ``hiddenRows``: how many more there are. */
export function dataTable(heads, rows, hiddenRows = 0) {
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      row.map((value, i) => {
        const head = heads[i];
        const number = head.number && (typeof value === "number" || value === null);
        const told = typeof value === "number" && head.unit !== undefined ? shown(value, head.unit) : text(value);
        const kind = number
          ? "number"
          : typeof value === "string" && TIME.test(value)
            ? "nowrap"
            : head.wide
              ? "wide"
              : told.length < 40
                ? "short"
                : null;
        const inner =
          value === null || value === undefined
            ? h("span", { class: "null" }, "–")
            : head.link
              ? h("a", { href: `/pipelines/${value}` }, value)
              : head.code
                ? h("code", {}, told)
                : told;
        return h("td", { class: kind, "data-value": value === null ? "" : String(value) }, inner);
      }),
    ),
  );
  return [
    h(
      "table",
      { class: "data" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) =>
            h(
              "th",
              { scope: "col", class: head.number ? "number" : null, "aria-sort": head.sorted ?? null },
              head.label ?? head.name,
            ),
          ),
        ),
      ),
      h("tbody", {}, body),
    ),
    hiddenRows > 0 ? h("p", { class: "muted" }, `and ${hiddenRows.toLocaleString("en-US")} more`) : "",
  ];
}

/** Records with equal keys as a table; columns that are empty everywhere are left out. */
export function recordTable(records, { skip = [], wide = [], link = [] } = {}) {
  const names = Object.keys(records[0] ?? {}).filter(
    (name) => !skip.includes(name) && records.some((record) => record[name] !== null && record[name] !== undefined),
  );
  const heads = names.map((name) => ({
    name: name.replaceAll("_", " "),
    wide: wide.includes(name),
    code: wide.includes(name),
    link: link.includes(name),
    unit: "short",
    number: records.some((record) => typeof record[name] === "number"),
  }));
  return h(
    "div",
    { class: "scroll low", tabindex: 0, role: "region", "aria-label": "rows" },
    dataTable(
      heads,
      records.map((record) => names.map((name) => record[name])),
    ),
  );
}

/** Gives a cell its exact value, whatever is written in it. */
export function cell(place, row, column, value) {
  const found = place.querySelector("tbody")?.rows[row]?.cells[column];
  if (found) found.dataset.value = value === null ? "" : String(value);
}
