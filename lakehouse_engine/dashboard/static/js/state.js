// A state is a sign and a word; its colour says nothing more.
import { h } from "./dom.js";

export const STATES = {
  running: ["●", "good", "Running"],
  ok: ["✓", "good", "Up to date"],
  stale: ["▲", "warn", "Stale"],
  overdue: ["▲", "warn", "Overdue"],
  never: ["○", "", "Never ran"],
  failed: ["✕", "bad", "Failed"],
};

export function badge(state) {
  const [sign, kind, word] = STATES[state] ?? ["?", "", state];
  return h("span", { class: `state ${kind}`, "data-state": state }, h("span", { "aria-hidden": "true" }, sign), word);
}

/** When a pipeline runs, in words. */
export const due = (one) => (one.schedule === "upstream" ? `after ${one.source}` : (one.schedule ?? "by hand"));
