// A dashboard: the panels of its JSON in their places. Those out of sight are not asked for.
import { get } from "../api.js";
import { h } from "../dom.js";
import { PanelView } from "../panels.js";

export class Board {
  constructor(place, uid) {
    Object.assign(this, { place, uid, views: new Map(), seen: new Set(), fresh: new Set(), shape: "" });
    this.watch = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const id = Number(entry.target.dataset.panel);
          if (entry.isIntersecting) this.seen.add(id);
          else this.seen.delete(id);
        }
      },
      { rootMargin: "200px" },
    );
  }

  async refresh({ range }) {
    if (!this.views.size || (this.turns = (this.turns ?? 0) + 1) % 10 === 0) await this.lay();
    // the first time all of them, so that nothing is blank while it is scrolled into sight
    const wanted = [...this.views.keys()].filter(
      (id) => this.seen.has(id) || this.fresh.has(id) || this.range !== range,
    );
    this.range = range;
    if (!wanted.length) return;
    const { panels } = await get(`/api/dashboards/${this.uid}/panels`, { range, ids: wanted.join(",") });
    for (const data of panels) {
      this.views.get(data.id)?.update(data);
      this.fresh.delete(data.id);
    }
  }

  /** Draws the panels anew when a pipeline's file has changed them. */
  async lay() {
    const board = await get(`/api/dashboards/${this.uid}`);
    const shape = JSON.stringify(board);
    if (shape === this.shape) return;
    this.shape = shape;
    this.clear();
    for (const panel of board.panels) {
      const view = new PanelView(panel);
      this.views.set(panel.id, view);
      this.fresh.add(panel.id);
      this.watch.observe(view.element);
    }
    const none = h(
      "p",
      { class: "note" },
      h("strong", {}, "No pipeline has a panel"),
      "Add ",
      h("code", {}, "panel: {title: …}"),
      " to a file of pipelines/.",
    );
    this.place.replaceChildren(...(this.views.size ? [...this.views.values()].map((view) => view.element) : [none]));
  }

  clear() {
    this.watch.disconnect();
    this.views.forEach((view) => view.destroy());
    this.views.clear();
    this.seen.clear();
    this.fresh.clear();
  }
}

export function create(main, { uid }) {
  const grid = h("div", { class: "grid" });
  const board = new Board(grid, uid);
  main.append(h("div", { class: "head" }, h("h1", {}, "Overview"), h("p", {}, "Times are UTC")), grid);
  return { live: true, refresh: (context) => board.refresh(context), destroy: () => board.clear() };
}
