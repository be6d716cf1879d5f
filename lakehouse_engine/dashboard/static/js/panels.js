// A panel of a dashboard's JSON: drawn once, then given its data again and again.
import { Chart } from "./chart.js";
import { h, renew, s, say } from "./dom.js";
import { moment, parts, shown, title } from "./format.js";
import { cell, dataTable } from "./table.js";

const ROWS = 300;

export class PanelView {
  constructor(panel) {
    this.panel = panel;
    this.unit = panel.fieldConfig.defaults.unit;
    this.body = h("div", { class: "body" });
    this.actions = h("span", {});
    this.note = h("div", { class: "note", hidden: true });
    this.content = h("div", { class: "body" });
    this.body.append(this.content, this.note);
    const name = panel.pipeline
      ? h("a", { href: `/pipelines/${panel.pipeline}`, title: `Pipeline ${panel.pipeline}` }, panel.title)
      : panel.title;
    this.element = h(
      "section",
      {
        class: `panel span-${panel.gridPos.w}${panel.gridPos.h > 5 ? " tall" : ""}`,
        "aria-label": panel.title,
        "data-panel": panel.id,
      },
      h("header", {}, h("h2", { title: panel.description || null }, name), this.actions),
      this.body,
    );
    (kinds[panel.type] ?? kinds.table)(this);
  }

  /** ``data`` as the API answers it. */
  update(data) {
    this.element.dataset.state = data.state;
    const usable = data.state === "ok";
    this.note.hidden = usable;
    this.content.hidden = !usable;
    this.actions.hidden = !usable;
    if (!usable) return this.tell(data);
    this.show(data);
    Object.assign(this.element.dataset, { from: data.from, to: data.to });
  }

  tell(data) {
    this.note.classList.toggle("bad", data.state === "error");
    const [head, todo] = data.state === "error" ? ["This panel could not be read", data.message] : split(data.message);
    renew(this.note, [head, todo], () => [h("strong", {}, head), todo ? commands(todo) : ""]);
  }

  destroy() {
    this.chart?.destroy();
  }
}

const split = (text) => {
  const [head, ...rest] = text.split(": ");
  return [head.charAt(0).toUpperCase() + head.slice(1), rest.join(": ")];
};
const commands = (text) => text.split(/, then /).flatMap((one, i) => [i ? ", then " : "", h("code", {}, one)]);

/** The unit of a column: the panel's own, or what an override by its name says. */
function unitOf(panel, name) {
  const found = panel.fieldConfig.overrides.find((one) => one.matcher.id === "byName" && one.matcher.options === name);
  return found?.properties.find((one) => one.id === "unit")?.value ?? panel.fieldConfig.defaults.unit;
}

/** The greatest threshold that a value has reached, beside the first, which is everybody's. */
const reached = (panel, value) =>
  panel.fieldConfig.defaults.thresholds.steps.slice(1).findLast((step) => value >= step.value);

const kinds = {
  stat(view) {
    const value = h("span", { class: "value" });
    const curve = h("span", { class: "spark", "aria-hidden": "true" });
    view.content.append(h("div", { class: "stat" }, value, curve));
    view.show = (data) => {
      const number = data.rows[0]?.[0] ?? null;
      const [text, unit] = parts(number, view.unit);
      renew(value, [text, unit], () => [text, unit ? h("small", {}, unit) : ""]);
      value.dataset.value = number;
      value.title = number === null ? "" : String(number);
      value.classList.toggle("above", Boolean(reached(view.panel, number)));
      renew(curve, data.spark ?? null, spark);
    };
  },

  timeseries(view) {
    const custom = view.panel.fieldConfig.defaults.custom ?? {};
    const limit =
      custom.thresholdsStyle?.mode === "line"
        ? (view.panel.fieldConfig.defaults.thresholds.steps[1]?.value ?? null)
        : null;
    view.chart = new Chart({ unit: view.unit, limit, label: view.panel.title });
    const table = h("div", {
      class: "scroll low",
      tabindex: 0,
      role: "region",
      "aria-label": `${view.panel.title}: numbers`,
      hidden: true,
    });
    const button = h("button", { type: "button", "aria-pressed": "false", onclick: () => turn(table.hidden) }, "Table");
    const legend = view.panel.options.legend?.showLegend === false ? null : view.chart.legend;
    let last = null;
    function turn(on) {
      table.hidden = !on;
      view.chart.plot.hidden = on;
      if (legend) legend.hidden = on;
      button.setAttribute("aria-pressed", String(on));
      say(button, on ? "Chart" : "Table");
      if (last) view.show(last);
    }
    view.actions.append(view.chart.at, " ", button);
    view.content.append(view.chart.plot, ...(legend ? [legend] : []), table);
    view.show = (data) => {
      last = data;
      if (table.hidden) return view.chart.update(data);
      const heads = [
        { name: "Time (UTC)" },
        ...data.series.map((one) => ({ name: one.name || "(none)", unit: view.unit, number: true })),
      ];
      const lines = data.time
        .map((at, i) => [moment(at, data.step < 60), ...data.series.map((one) => one.values[i])])
        .reverse();
      renew(table, [heads, lines.slice(0, ROWS)], () => dataTable(heads, lines.slice(0, ROWS), lines.length - ROWS));
    };
  },

  barchart(view) {
    const table = h("table", { class: "bars" });
    view.content.append(table);
    view.show = (data) => {
      const number = data.columns.length - 1;
      const most = Math.max(...data.rows.map((row) => row[number] ?? 0), 0) || 1;
      const named = data.rows.map((row) => row[0]);
      renew(table, [data.columns, named], () => [
        h("caption", { class: "hidden" }, `${title(data.columns[0])} by ${title(data.columns[number])}`),
        h(
          "tbody",
          {},
          data.rows.map((row) =>
            h(
              "tr",
              {},
              h("th", { scope: "row", title: row[0] }, row[0] ?? "(none)"),
              h("td", { "aria-hidden": "true" }, h("div", { class: "track" }, h("div", { class: "fill" }))),
              h("td", { class: "number" }),
            ),
          ),
        ),
      ]);
      [...table.querySelectorAll("tr")].forEach((line, i) => {
        const value = data.rows[i][number];
        line.querySelector(".fill").style.width = `${Math.max(0, (value ?? 0) / most) * 100}%`;
        line.lastChild.dataset.value = value;
        if (view.panel.options.showValue !== "never") say(line.lastChild, shown(value, view.unit));
      });
    };
  },

  table(view) {
    const place = h("div", { class: "scroll low", tabindex: 0, role: "region", "aria-label": view.panel.title });
    view.content.append(place);
    view.show = (data) => {
      const heads = data.columns.map((name, i) => ({
        name: title(name),
        unit: unitOf(view.panel, name),
        link: name === "pipeline",
        number: data.rows.some((row) => typeof row[i] === "number"),
      }));
      // durations are rounded before they are compared: a table is made anew when somebody would see it
      renew(
        place,
        [heads, data.rows.map((row) => row.map((value, i) => (heads[i].number ? shown(value, heads[i].unit) : value)))],
        () => dataTable(heads, data.rows),
      );
      data.rows.forEach((row, i) => row.forEach((value, j) => cell(place, i, j, value)));
    };
  },
};

/** A small curve without axes. */
export function spark(data) {
  if (!data) return [];
  const values = data.values.map((value) => value ?? 0);
  const [low, high] = [Math.min(...values, 0), Math.max(...values)];
  if (values.length < 2 || high === low) return [];
  const points = values.map(
    (value, i) =>
      `${((i / (values.length - 1)) * 100).toFixed(2)},${(28 - ((value - low) / (high - low)) * 26).toFixed(2)}`,
  );
  const line = `M${points.join("L")}`;
  return s(
    "svg",
    { viewBox: "0 0 100 30", preserveAspectRatio: "none", width: "100%", height: "100%" },
    s("path", { class: "area", d: `${line}L100,30L0,30Z` }),
    s("path", { d: line }),
  );
}
