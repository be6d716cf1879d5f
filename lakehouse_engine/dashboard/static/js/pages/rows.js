// The rows of one table, filtered and ordered by the server. The address of the data is the API's own.
import { Failed, get } from "../api.js";
import { h, renew } from "../dom.js";
import { dataTable } from "../table.js";

const SIZE = 100;
const SIGNS = { eq: "=", ne: "≠", gt: ">", gte: "≥", lt: "<", lte: "≤", in: "one of", null: "is null" };
const NUMBERS = ["bigint", "integer", "smallint", "double precision", "real"];

export function create(main, { name }) {
  const state = { filters: [], order: null, offset: 0 };
  const [form, chips, wrong, place, pages, link] = [
    h("form", { class: "filters" }),
    h("ul", { class: "chips", "aria-label": "Filters" }),
    h("p", { class: "wrong", role: "alert" }),
    h("div", { class: "card scroll", tabindex: 0, role: "region", "aria-label": "Rows" }),
    h("div", { class: "pages" }),
    h("p", { class: "muted" }),
  ];
  main.append(
    h("div", { class: "head" }, h("h1", {}, name), h("p", {}, h("a", { href: "/tables" }, "All tables"))),
    form,
    chips,
    wrong,
    place,
    pages,
    link,
  );

  const asked = () => [
    ...state.filters,
    ...(state.order ? [["order", state.order]] : []),
    ["limit", SIZE],
    ["offset", state.offset],
  ];

  function change(changes) {
    Object.assign(state, { offset: 0 }, changes);
    refresh().catch((error) => {
      wrong.textContent = error.message;
    });
  }

  function drawForm(columns) {
    const column = h(
      "select",
      { "aria-label": "Column" },
      columns.map((one) => h("option", {}, one.name)),
    );
    const sign = h(
      "select",
      { "aria-label": "Comparison" },
      Object.entries(SIGNS).map(([key, text]) => h("option", { value: key }, text)),
    );
    const value = h("input", { "aria-label": "Value", placeholder: "value" });
    form.replaceChildren(column, sign, value, h("button", { type: "submit" }, "Filter"));
    form.onsubmit = (event) => {
      event.preventDefault();
      const given = sign.value === "null" ? value.value || "true" : value.value;
      change({ filters: [...state.filters, [`${column.value}.${sign.value}`, given]] });
      value.value = "";
    };
  }

  function head({ name: column, type }) {
    const back = state.order === `-${column}`;
    const sorted = state.order === column || back;
    const button = h(
      "button",
      {
        type: "button",
        title: `Order by ${column}`,
        onclick: () => change({ order: sorted && !back ? `-${column}` : column }),
      },
      column,
      sorted ? (back ? " ↓" : " ↑") : "",
    );
    return {
      name: column,
      label: button,
      number: NUMBERS.includes(type),
      wide: ["jsonb", "text", "text[]", "bytea"].includes(type) && column !== "source",
      sorted: sorted ? (back ? "descending" : "ascending") : null,
    };
  }

  async function refresh() {
    renew(chips, state.filters, (filters) =>
      filters.map(([key, value], i) => {
        const [column, operator] = [key.slice(0, key.lastIndexOf(".")), key.slice(key.lastIndexOf(".") + 1)];
        return h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              title: "Take the filter away",
              onclick: () => change({ filters: filters.filter((_, j) => j !== i) }),
            },
            `${column} ${SIGNS[operator]} ${operator === "null" ? `(${value})` : value} ×`,
          ),
        );
      }),
    );
    const path = `/api/tables/${encodeURIComponent(name)}`;
    if (state.order === null) {
      const first = (await get("/api/tables")).tables.find((one) => one.name === name)?.columns[0];
      state.order = first && /^(date|timestamp)/.test(first.type) ? `-${first.name}` : ""; // the newest first
    }
    let page;
    try {
      page = await get(`${path}?${new URLSearchParams(asked())}`);
    } catch (error) {
      if (!(error instanceof Failed) || error.again) throw error;
      wrong.textContent = error.message;
      return;
    }
    wrong.textContent = "";
    if (!form.childElementCount) drawForm(page.columns);
    place.replaceChildren(...dataTable(page.columns.map(head), page.rows));
    if (!page.rows.length) place.append(h("p", { class: "note" }, "No row is like that."));
    pages.replaceChildren(
      h(
        "button",
        {
          type: "button",
          disabled: state.offset === 0,
          onclick: () => change({ offset: Math.max(0, state.offset - SIZE) }),
        },
        "← Before",
      ),
      h(
        "span",
        { class: "muted" },
        page.rows.length
          ? `rows ${(state.offset + 1).toLocaleString("en-US")} to ${(state.offset + page.rows.length).toLocaleString("en-US")}`
          : "",
      ),
      h(
        "button",
        { type: "button", disabled: !page.next, onclick: () => change({ offset: state.offset + SIZE }) },
        "Next →",
      ),
    );
    link.replaceChildren(
      "As JSON: ",
      h(
        "a",
        { class: "mono", href: `${path}?${new URLSearchParams(asked())}` },
        decodeURIComponent(`${path}?${new URLSearchParams(asked())}`),
      ),
    );
  }

  return { live: false, refresh };
}
