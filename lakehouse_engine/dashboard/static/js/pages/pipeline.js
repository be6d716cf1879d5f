// One pipeline: how it stands, what it did, and what it kept aside.
import { get } from "../api.js";
import { Chart } from "../chart.js";
import { h, renew } from "../dom.js";
import { count, duration, moment } from "../format.js";
import { badge, due } from "../state.js";
import { recordTable } from "../table.js";

const CHARTS = [
  { title: "Records read", unit: "rowsps", names: ["read"] },
  { title: "Rows written", unit: "rowsps", names: ["written"] },
  { title: "Batch time", unit: "s", names: ["batch_seconds"], limit: "trigger_seconds" },
  { title: "Run time", unit: "s", names: ["run_seconds"] },
  { title: "Watermark delay", unit: "s", names: ["watermark_delay_seconds"] },
  { title: "Records behind", unit: "short", names: ["behind"] },
  { title: "Live files", unit: "short", names: ["files"] },
  { title: "Late and quarantined", unit: "short", names: ["late", "quarantined"] },
];
const known = (value, tell) => (value === null || value === undefined ? "–" : tell(value));
const clock = (seconds) => duration(seconds < 10 ? seconds : Math.round(seconds));

function tiles(one, range) {
  const totals = one.totals ?? one.counters;
  const of = one.totals ? `, last ${range}` : one.kind === "job" ? ", last run" : "";
  const found = [["Since last commit", known(one.age_seconds, clock), one.age_seconds]];
  if (one.rows_per_second !== null)
    found.push(["Records a second", count(Math.round(one.rows_per_second * 10) / 10), one.rows_per_second]);
  if (one.lag_seconds !== null) found.push(["Lag", clock(one.lag_seconds), one.lag_seconds]);
  if (one.behind !== null) found.push(["Records behind", count(one.behind), one.behind]);
  if (totals)
    for (const name of ["counted", "late", "quarantined"]) {
      if (totals[name] !== undefined)
        found.push([`${name.charAt(0).toUpperCase()}${name.slice(1)}${of}`, count(totals[name]), totals[name]]);
    }
  return found;
}

function facts(one) {
  const copy = one.copy
    ? `version ${one.copy.version}, ${count(one.copy.rows)} rows, ${clock(one.copy.age_seconds)} ago`
    : null;
  return [
    [
      one.source_kind === "topic" ? "Topic" : "Reads",
      one.source,
      one.source_kind === "table" ? `/pipelines/${one.source}` : null,
    ],
    ["Runs", due(one), null],
    ["Table in PostgreSQL", one.table, one.table ? `/tables/${one.table}` : null],
    ["Copy in PostgreSQL", copy, null],
    ["Delta version", one.version === null ? null : String(one.version), null],
    ["Watermark", one.watermark ? `${moment(one.watermark)} UTC` : null, null],
    ["File", one.file, null],
  ].filter(([, value]) => value);
}

/** The versions that were read, as the command line writes them: table@version. */
const readable = (version) => ({
  ...version,
  read:
    Object.entries(version.read ?? {})
      .map(([table, number]) => `${table}@${number}`)
      .join(", ") || null,
});

function section(title, records, empty, options) {
  return [
    h(
      "h2",
      { class: "section" },
      title,
      " ",
      h("span", { class: "muted" }, records?.length ? `newest ${records.length}` : ""),
    ),
    h("div", { class: "card" }, records?.length ? recordTable(records, options) : h("p", { class: "note" }, empty)),
  ];
}

export function create(main, { name }) {
  const place = Object.fromEntries(
    ["head", "failure", "tiles", "facts", "charts", "errors", "quarantined", "late", "batches"].map((one) => [
      one,
      h("div", {}),
    ]),
  );
  place.charts.className = "grid";
  const charts = new Map();
  main.append(...Object.values(place));

  function draw(one) {
    const data = one.activity ?? { time: [], series: [] };
    for (const wanted of CHARTS) {
      const series = data.series.filter(
        (found) => wanted.names.includes(found.name) && found.values.some((value) => value !== null),
      );
      if (!series.length) continue;
      if (!charts.has(wanted.title)) {
        const chart = new Chart({
          unit: wanted.unit,
          label: `${wanted.title} of ${name}`,
          limit: wanted.limit ? one[wanted.limit] : null,
        });
        const body = h("div", { class: "body" }, chart.plot, wanted.names.length > 1 ? chart.legend : "");
        place.charts.append(
          h(
            "section",
            { class: "panel span-12 tall", "aria-label": wanted.title },
            h("header", {}, h("h2", {}, wanted.title), chart.at),
            body,
          ),
        );
        charts.set(wanted.title, chart);
      }
      charts.get(wanted.title).update({ ...data, series, from: data.from, to: one.to, step: one.step });
    }
  }

  return {
    live: true,
    async refresh({ range }) {
      const one = await get(`/api/pipelines/${encodeURIComponent(name)}`, { range });
      renew(place.head, [one.state, one.description, one.kind, one.hint], () => [
        h(
          "div",
          { class: "head" },
          h("h1", {}, name),
          badge(one.state),
          h("p", {}, one.kind === "stream" ? "Stream" : "Job"),
          h("p", {}, one.description),
        ),
        one.hint ? h("div", { class: "card failure" }, one.hint) : "",
      ]);
      renew(place.failure, one.failure, (failure) =>
        failure
          ? h(
              "div",
              { class: "card failure", role: "alert" },
              h("code", {}, failure.code ?? "FAILED"),
              ` ${failure.message ?? ""} (${moment(failure.at)} UTC)`,
            )
          : [],
      );
      Object.assign(place.tiles.dataset, { from: one.from, to: one.to });
      renew(place.tiles, tiles(one, range), (made) =>
        h(
          "dl",
          { class: "tiles" },
          made.map(([head, text, value]) =>
            h(
              "div",
              { class: "card tile" },
              h("dt", {}, head),
              h("dd", { "data-tile": head, "data-value": String(value) }, text),
            ),
          ),
        ),
      );
      renew(place.facts, facts(one), (made) =>
        h(
          "dl",
          { class: "facts card" },
          made.map(([head, text, to]) =>
            h("div", {}, h("dt", {}, head), h("dd", {}, to ? h("a", { href: to }, text) : text)),
          ),
        ),
      );
      draw(one);
      renew(place.errors, one.errors, (errors) =>
        errors === null
          ? []
          : section("Recent errors", errors, "No failure in the last 30 days.", { wide: ["message"] }),
      );
      renew(place.quarantined, [one.quarantined, one.kept_by], ([rows, keeper]) => {
        const elsewhere = [
          "What breaks the contract is kept by ",
          h("a", { href: `/pipelines/${keeper}` }, keeper),
          ".",
        ];
        const empty = keeper ? ["Nothing was quarantined here. ", elsewhere] : "Nothing was quarantined.";
        return section("Quarantined", rows, empty, { wide: ["reasons", "value", "row"], skip: ["unit"] });
      });
      renew(place.late, one.sink === "postgres" ? one.late : null, (rows) =>
        rows === null
          ? []
          : section("Late", rows, "Nothing came late.", { wide: ["row", "missed"], skip: ["applied_at"] }),
      );
      renew(place.batches, [one.batches, one.versions], ([batches, versions]) =>
        one.sink === "postgres"
          ? section("Batches", batches, "No batch yet.")
          : section("Versions", versions.map(readable), "No version yet.", {
              wide: ["slices", "read", "reason"],
              skip: ["pipeline"],
            }),
      );
    },
    destroy: () => charts.forEach((chart) => chart.destroy()),
  };
}
