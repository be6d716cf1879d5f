// The tables that the API gives, and how large they are.
import { get } from "../api.js";
import { h, renew } from "../dom.js";
import { bytes, count } from "../format.js";

export function create(main) {
  const place = h("div", {});
  main.append(
    h("div", { class: "head" }, h("h1", {}, "Tables"), h("p", {}, "realtime and gold, in PostgreSQL")),
    place,
  );
  return {
    live: false,
    async refresh() {
      const { tables } = await get("/api/tables");
      renew(place, tables, () =>
        tables.length
          ? h(
              "div",
              { class: "card scroll" },
              h(
                "table",
                { class: "data" },
                h(
                  "thead",
                  {},
                  h(
                    "tr",
                    {},
                    ["Table", "Kind", "Rows (estimate)", "Size", "Columns"].map((head, i) =>
                      h("th", { scope: "col", class: i === 2 || i === 3 ? "number" : null }, head),
                    ),
                  ),
                ),
                h(
                  "tbody",
                  {},
                  tables.map((one) =>
                    h(
                      "tr",
                      {},
                      h("td", {}, h("a", { href: `/tables/${one.name}` }, one.name)),
                      h("td", {}, one.kind),
                      h("td", { class: "number" }, one.rows === null ? "–" : count(one.rows)),
                      h("td", { class: "number" }, bytes(one.bytes)),
                      h("td", { class: "muted" }, one.columns.map((column) => column.name).join(", ")),
                    ),
                  ),
                ),
              ),
            )
          : h(
              "p",
              { class: "note" },
              h("strong", {}, "No table yet"),
              h("code", {}, "lakehouse run --available-now pipelines"),
              ", then ",
              h("code", {}, "lakehouse serve"),
            ),
      );
    },
  };
}
