// Numbers, times and durations, by Grafana's names of units. Times are UTC.
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const some = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 });
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

export function count(value) {
  if (Math.abs(value) >= 1e7) return compact.format(value);
  return Number.isInteger(value) || Math.abs(value) >= 1e4 ? whole.format(value) : some.format(value);
}

export function duration(seconds) {
  const sign = seconds < 0 ? "-" : "";
  const total = Math.abs(seconds);
  if (total === 0) return "0 s";
  if (total < 1) return `${sign}${some.format(Math.round(total * 1000))} ms`;
  if (total < 60) return `${sign}${total < 10 ? Math.round(total * 10) / 10 : Math.round(total)} s`;
  const units = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  let left = Math.round(total);
  const first = units.findIndex(([, size]) => left >= size);
  const parts = [];
  for (const [unit, size] of units.slice(first, first + 2)) {
    const number = Math.floor(left / size);
    left -= number * size;
    if (number || !parts.length) parts.push(`${number} ${unit}`);
  }
  return sign + parts.join(" ");
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let place = 0;
  let number = value;
  while (Math.abs(number) >= 1024 && place < units.length - 1) {
    number /= 1024;
    place += 1;
  }
  return `${place ? number.toFixed(number < 10 ? 1 : 0) : whole.format(number)} ${units[place]}`;
}

/** [number, unit]: the unit stands smaller beside it. */
export function parts(value, unit) {
  if (value === null || value === undefined || Number.isNaN(value)) return ["–", ""];
  if (typeof value !== "number") return [String(value), ""];
  if (unit === "percentunit") return [some.format(Math.round(value * 1000) / 10), "%"];
  if (unit === "s") return [duration(value), ""];
  if (unit === "bytes") return bytes(value).split(" ");
  if (unit === "rowsps") return [count(value), "rows/s"];
  return [count(value), ""];
}

export const shown = (value, unit) => parts(value, unit).filter(Boolean).join(" ");

export function moment(value, withSeconds = true) {
  if (value === null || value === undefined) return "–";
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
  return date
    .toISOString()
    .slice(0, withSeconds ? 19 : 16)
    .replace("T", " ");
}

/** ``last_commit_seconds`` as people write it. */
export function title(name) {
  const words = name
    .replace(/_seconds$/, "")
    .replaceAll("_", " ")
    .trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}
