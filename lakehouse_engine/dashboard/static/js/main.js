// The frame: pages by address, the time that they show, and one refresh a second for the one that is seen.
import { Failed } from "./api.js";
import { h, renew, say } from "./dom.js";

const RANGES = ["5m", "1h", "6h", "24h", "7d", "30d"];
const PAGES = [
  { name: "Overview", path: "/", load: () => import("./pages/board.js"), options: { uid: "lakehouse-overview" } },
  { name: "Pipelines", path: "/pipelines", load: () => import("./pages/pipelines.js") },
  { name: null, path: /^\/pipelines\/(.+)$/, load: () => import("./pages/pipeline.js"), under: "/pipelines" },
  { name: "Graph", path: "/graph", load: () => import("./pages/graph.js") },
  { name: "Tables", path: "/tables", load: () => import("./pages/tables.js") },
  { name: null, path: /^\/tables\/(.+)$/, load: () => import("./pages/rows.js"), under: "/tables" },
  { name: "API", path: "/reference", load: () => import("./pages/reference.js") },
];
const EVERY = 1000;
const SLOWEST = 10000;

const [main, banner] = [document.getElementById("page"), document.getElementById("banner")];
const context = { range: RANGES.includes(stored("range")) ? stored("range") : "1h", live: true };
let page = null;
let timer = null;
let failures = 0;
let turn = 0;

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}
function store(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    /* for this page alone, then */
  }
}

// --- refreshing ---------------------------------------------------------------------------------------------------

async function refresh() {
  clearTimeout(timer);
  if (!page || document.hidden) return;
  const [mine, began] = [turn, performance.now()];
  main.dataset.asking = "";
  try {
    await page.refresh(context).finally(() => {
      if (mine === turn) delete main.dataset.asking;
    });
    if (mine !== turn) return;
    failures = 0;
    main.classList.remove("lost");
    warn(
      context.problems?.length
        ? `A pipeline's file is wrong; the last good ones are shown. ${context.problems[0]}`
        : null,
      false,
    );
  } catch (error) {
    if (mine !== turn) return;
    failures += 1;
    if (!(error instanceof Failed)) console.error(error);
    if (error instanceof Failed && !error.again) return warn(error.message, true);
    const seconds = Math.min(EVERY * 2 ** (failures - 1), SLOWEST) / 1000;
    warn(`${error.message} Trying again in ${seconds} s.`, true);
    timer = setTimeout(refresh, seconds * 1000);
    return;
  }
  if (context.live && page.live) timer = setTimeout(refresh, Math.max(EVERY - (performance.now() - began), 200));
}

function warn(text, bad) {
  banner.hidden = !text;
  banner.classList.toggle("bad", bad);
  say(banner, text ?? "");
  document.querySelectorAll(".panel").forEach((panel) => panel.classList.toggle("old", Boolean(text) && bad));
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && (context.live || failures)) refresh();
});
addEventListener("online", refresh);

// --- pages --------------------------------------------------------------------------------------------------------

function found(path) {
  for (const one of PAGES) {
    if (one.path === path) return [one, null];
    const match = one.path instanceof RegExp && one.path.exec(path);
    if (match) return [one, decodeURIComponent(match[1])];
  }
  return [null, null];
}

async function open() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  page?.destroy?.();
  page = null;
  failures = 0;
  warn(null, false);
  const [one, name] = found(location.pathname);
  const current = one?.under ?? one?.path;
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.getAttribute("href") === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!one)
    return main.replaceChildren(
      h("p", { class: "note" }, h("strong", {}, "There is no such page"), h("a", { href: "/" }, "Overview")),
    );
  const { create } = await one.load();
  if (mine !== turn) return;
  main.replaceChildren();
  page = create(main, { name, ...one.options });
  document.title = `${name ?? one.name} · Lakehouse`;
  tools.hidden = page.live === false;
  scrollTo(0, 0);
  await refresh();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const to = new URL(link.getAttribute("href"), location.href);
  if (to.origin !== location.origin || !found(to.pathname)[0] || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  if (to.href !== location.href) history.pushState(null, "", to);
  open();
  main.focus({ preventScroll: true });
});
addEventListener("popstate", open);

// --- the bar ------------------------------------------------------------------------------------------------------

const tools = h("span", { class: "tools" });

function bar() {
  document
    .getElementById("nav")
    .append(...PAGES.filter((one) => one.name).map((one) => h("a", { href: one.path }, one.name)));
  const buttons = RANGES.map((range) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(range === context.range),
        onclick: () => {
          context.range = range;
          store("range", range);
          buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(RANGES[i] === range)));
          refresh();
        },
      },
      range,
    ),
  );
  const live = h(
    "button",
    {
      type: "button",
      class: "live",
      "aria-pressed": "true",
      title: "Refresh every second",
      onclick: () => {
        context.live = !context.live;
        live.setAttribute("aria-pressed", String(context.live));
        renew(live, context.live, (on) => h("span", {}, on ? "Live" : "Paused"));
        live.setAttribute("aria-label", context.live ? "Live" : "Paused");
        if (context.live) refresh();
        else clearTimeout(timer);
      },
    },
    h("span", {}, "Live"),
  );
  live.setAttribute("aria-label", "Live");
  const theme = h(
    "button",
    {
      type: "button",
      class: "icon",
      "aria-label": "Light or dark",
      title: "Light or dark",
      onclick: () => window.toggleTheme(),
    },
    "◐",
  );
  tools.append(h("div", { class: "ranges", role: "group", "aria-label": "Time shown, up to now" }, buttons), live);
  document.getElementById("tools").append(tools, theme);
}

bar();
open();
