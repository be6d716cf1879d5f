// A time series, drawn by uPlot. Colours come from the style sheet, so that a change of theme draws anew.
import uPlot from "/static/vendor/uplot/uPlot.esm.js";
import { h, s, say } from "./dom.js";
import { moment, shown } from "./format.js";

// after the fourth series a line's pattern tells it apart as well
const DASHES = [[], [], [], [], [6, 3], [6, 3], [2, 3], [2, 3]];
// round numbers of time
const SECONDS = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200,
  21600, 43200, 86400, 172800, 432000, 864000, 8640000,
];
const TENTHS = [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].flatMap((power) =>
  [1, 2, 2.5, 5].map((first) => Number((first * 10 ** power).toPrecision(2))),
);
const WHOLE = TENTHS.filter(Number.isInteger);
const sync = uPlot.sync("dashboard");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const utc = (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC");

const clock = (tick, { min, max }) =>
  max - min > 172800
    ? moment(tick).slice(5, max - min > 604800 ? 10 : 16)
    : moment(tick).slice(11, max - min > 900 ? 16 : 19);

export class Chart {
  /** ``limit`` is drawn as a line. A line ends where a step has no value. */
  constructor({ unit, limit = null, label }) {
    Object.assign(this, { unit, limit, data: null, hiddenNames: new Set(), names: "" });
    this.plot = h("div", { class: "plot", role: "img", "aria-label": label });
    this.legend = h("ul", { class: "legend", "aria-label": `Series of ${label}` });
    this.at = h("span", { class: "at" });
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.plot);
    this.onTheme = () => this.draw(true);
    addEventListener("theme", this.onTheme);
  }

  /** ``time`` in seconds, ``series`` of name and values, ``from`` and ``to`` as ISO times. */
  update(data) {
    this.data = data;
    this.draw(this.names !== JSON.stringify(data.series.map((one) => one.name)));
  }

  draw(anew) {
    if (!this.data) return;
    const { time, series } = this.data;
    const values = [time, ...series.map((one) => one.values)];
    if (!anew && this.chart) {
      this.chart.setData(values, false);
      this.chart.setScale("x", this.ends());
    } else {
      this.names = JSON.stringify(series.map((one) => one.name));
      this.chart?.destroy();
      this.chart = new uPlot(this.options(series), values, this.plot);
      this.makeLegend(series);
    }
    this.told(this.chart.cursor.idx);
  }

  ends() {
    return { min: Date.parse(this.data.from) / 1000, max: Date.parse(this.data.to) / 1000 };
  }

  options(series) {
    const axis = {
      stroke: colour("--muted"),
      font: "12px system-ui, sans-serif",
      ticks: { show: false },
      grid: { stroke: colour("--grid"), width: 1 },
    };
    const single = series.length === 1;
    return {
      width: Math.max(this.plot.clientWidth, 50),
      height: Math.max(this.plot.clientHeight, 120),
      tzDate: utc,
      legend: { show: false },
      padding: [10, 10, 0, 0],
      cursor: { sync: { key: sync.key }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: {
        x: {
          time: true,
          range: () => {
            const { min, max } = this.ends();
            return [min, max];
          },
        },
        y: { range: (_, low, high) => this.height(low, high) },
      },
      axes: [
        { ...axis, size: 28, gap: 6, space: 74, values: (_, ticks) => ticks.map((tick) => clock(tick, this.ends())) },
        {
          ...axis,
          gap: 8,
          incrs: () => (this.unit === "s" ? SECONDS : this.whole() ? WHOLE : TENTHS),
          size: (_, found) => 20 + 7 * Math.max(3, ...(found ?? []).map((text) => text.length)),
          values: (_, ticks) => ticks.map((tick) => shown(tick, this.unit === "rowsps" ? "short" : this.unit)),
        },
      ],
      series: [
        {},
        ...series.map((one, i) => ({
          label: one.name,
          stroke: colour(`--c${(i % 8) + 1}`),
          width: 1.7,
          dash: DASHES[i % 8],
          spanGaps: false,
          show: !this.hiddenNames.has(one.name),
          fill: single ? `${colour("--c1")}18` : undefined,
          points: { show: (chart, index) => alone(chart.data[index]), size: 5, fill: colour(`--c${(i % 8) + 1}`) },
        })),
      ],
      hooks: {
        setCursor: [(chart) => this.told(chart.cursor.idx)],
        draw: [(chart) => this.limited(chart)],
      },
    };
  }

  /** Whether there are counts alone: half of one is no step for an axis. */
  whole() {
    return this.data.series.every((one) => one.values.every((value) => value === null || Number.isInteger(value)));
  }

  height(low, high) {
    if (low === null || high === null || low === undefined) return [0, 1];
    const limit = this.limit !== null && high > this.limit / 2 ? this.limit : high;
    const [from, to] = [Math.min(0, low), Math.max(high, limit)];
    return [from, to === from ? from + 1 : to + (to - from) * 0.08];
  }

  limited(chart) {
    if (this.limit === null || chart.scales.y.max < this.limit) return;
    const y = chart.valToPos(this.limit, "y", true);
    const { left, width } = chart.bbox;
    const pen = chart.ctx;
    pen.save();
    pen.strokeStyle = pen.fillStyle = colour("--bad");
    pen.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    pen.lineWidth = devicePixelRatio;
    pen.beginPath();
    pen.moveTo(left, y);
    pen.lineTo(left + width, y);
    pen.stroke();
    pen.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    pen.textAlign = "left";
    pen.fillText(`limit ${shown(this.limit, this.unit)}`, left + 4, y - 5 * devicePixelRatio);
    pen.restore();
  }

  makeLegend(series) {
    this.values = series.map(() => h("b", {}));
    this.legend.replaceChildren(
      ...series.map((one, i) => {
        const line = s("line", {
          x1: 0,
          y1: 4,
          x2: 20,
          y2: 4,
          stroke: `var(--c${(i % 8) + 1})`,
          "stroke-width": 3,
          "stroke-dasharray": DASHES[i % 8].join(" ") || null,
        });
        const button = h(
          "button",
          {
            type: "button",
            "aria-pressed": String(!this.hiddenNames.has(one.name)),
            title: "Show or hide",
            onclick: () => this.toggle(one.name, i, button),
          },
          s("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" }, line),
          one.name || "(none)",
          this.values[i],
        );
        return h("li", {}, button);
      }),
    );
  }

  toggle(name, index, button) {
    if (!this.hiddenNames.delete(name)) this.hiddenNames.add(name);
    const visible = !this.hiddenNames.has(name);
    button.setAttribute("aria-pressed", String(visible));
    this.chart.setSeries(index + 1, { show: visible });
  }

  /** Legend values at the cursor, else the newest. */
  told(index) {
    if (!this.values || !this.data) return;
    const { time, series } = this.data;
    const pointed = index !== null && index !== undefined && index < time.length;
    say(this.at, pointed ? `${moment(time[index], this.data.step < 60)} UTC` : "");
    series.forEach((one, i) => {
      const value = pointed ? one.values[index] : one.values.findLast((v) => v !== null);
      if (this.values[i]) say(this.values[i], shown(value, this.unit));
    });
  }

  fit() {
    if (this.chart && this.plot.clientWidth) {
      this.chart.setSize({ width: this.plot.clientWidth, height: Math.max(this.plot.clientHeight, 120) });
    }
  }

  destroy() {
    this.observer.disconnect();
    removeEventListener("theme", this.onTheme);
    this.chart?.destroy();
  }
}

/** Few points, or none beside another: a line would not show them. */
function alone(values) {
  let last = null;
  let between = 0;
  let points = 0;
  values.forEach((value, i) => {
    if (value === null) return;
    points += 1;
    if (last === i - 1) between += 1;
    last = i;
  });
  return points > 0 && (points < 3 || between < points / 2);
}
