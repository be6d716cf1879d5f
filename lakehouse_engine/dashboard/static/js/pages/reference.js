// The API, from its own OpenAPI description.
import { get } from "../api.js";
import { h, renew } from "../dom.js";

const EXAMPLES = {
  table: "realtime.events_per_minute",
  name: "realtime.events_per_minute",
  uid: "lakehouse-overview",
  number: "1",
};

function endpoint(path, { description, parameters = [] }) {
  const example = path.replace(/\{(\w+)\}/g, (_, name) => EXAMPLES[name] ?? name);
  return h(
    "section",
    { class: "card endpoint" },
    h("h2", {}, h("code", {}, `GET ${path}`)),
    description ? h("p", {}, description.replaceAll("`", "")) : "",
    parameters.length
      ? h(
          "ul",
          {},
          parameters.map((one) =>
            h(
              "li",
              {},
              h("code", {}, one.name),
              one.required ? " (required)" : "",
              one.description ? `: ${one.description.replaceAll("`", "")}` : "",
            ),
          ),
        )
      : "",
    h("p", { class: "muted" }, "Try ", h("a", { href: example, class: "mono" }, example)),
  );
}

export function create(main) {
  const place = h("div", {});
  main.append(
    h(
      "div",
      { class: "head" },
      h("h1", {}, "API"),
      h("p", {}, "Read-only, JSON; the whole description is ", h("a", { href: "/openapi.json" }, "/openapi.json")),
    ),
    place,
  );
  return {
    live: false,
    async refresh() {
      const { paths } = await get("/openapi.json");
      renew(place, paths, () => Object.entries(paths).map(([path, methods]) => endpoint(path, methods.get)));
    },
  };
}
