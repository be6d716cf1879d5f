// Every pipeline in one table, and the operators' dashboard under it.
import { get } from "../api.js";
import { h, renew } from "../dom.js";
import { count, duration } from "../format.js";
import { badge, due } from "../state.js";
import { Board } from "./board.js";

// as data flows
const LAYERS = ["bronze", "realtime", "silver", "gold"];
const place = (one) => (LAYERS.indexOf(one.layer) + LAYERS.length + 1) % (LAYERS.length + 1);
const ago = (seconds) => (seconds === null ? null : `${duration(seconds < 10 ? seconds : Math.round(seconds))} ago`);

function line(one) {
  const kept = one.hour ?? one.counters;
  return [
    one.name,
    one.state,
    due(one),
    ago(one.age_seconds),
    one.rows_per_second === null ? null : `${count(Math.round(one.rows_per_second * 10) / 10)} /s`,
    one.lag_seconds === null ? null : duration(Math.round(one.lag_seconds)),
    one.behind === null ? null : count(one.behind),
    kept?.late === undefined ? null : count(kept.late),
    kept?.quarantined === undefined ? null : count(kept.quarantined),
  ];
}

function table(lines) {
  const heads = ["Pipeline", "State", "Runs", "Last commit", "Read", "Lag", "Behind", "Late", "Quarantined"];
  const numbers = 4;
  return h(
    "table",
    { class: "data" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((head, i) => h("th", { scope: "col", class: i >= numbers ? "number" : null }, head)),
      ),
    ),
    h(
      "tbody",
      {},
      lines.map((cells) =>
        h(
          "tr",
          { "data-pipeline": cells[0] },
          cells.map((value, i) =>
            h(
              "td",
              { class: i >= numbers ? "number" : i ? "nowrap" : null },
              i === 0
                ? h("a", { href: `/pipelines/${value}` }, value)
                : i === 1
                  ? badge(value)
                  : (value ?? h("span", { class: "null" }, "–")),
            ),
          ),
        ),
      ),
    ),
  );
}

export function create(main) {
  const [list, told, grid] = [
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Pipelines" }),
    h("p", {}),
    h("div", { class: "grid" }),
  ];
  const board = new Board(grid, "lakehouse-pipelines");
  main.append(
    h("div", { class: "head" }, h("h1", {}, "Pipelines"), told),
    h("div", { class: "card" }, list),
    h("h2", { class: "section" }, "Operators"),
    grid,
  );
  return {
    live: true,
    async refresh(context) {
      const [{ pipelines, problems }] = await Promise.all([get("/api/pipelines"), board.refresh(context)]);
      context.problems = problems;
      const wrong = pipelines.filter((one) => ["failed", "stale", "overdue"].includes(one.state)).length;
      renew(
        told,
        [pipelines.length, wrong],
        () =>
          `${pipelines.length} pipelines, ${wrong ? `${wrong} need a look` : "none needs a look"}; late and quarantined: streams' last hour, jobs' last run`,
      );
      renew(list, pipelines.toSorted((a, b) => place(a) - place(b)).map(line), table);
    },
    destroy: () => board.clear(),
  };
}
