// The current filter. It is stored only in the address of the page, so that a copied link shows the same records.

import type { Level } from "./record";

export interface Filter {
  text: string;
  level: Level | "";
  services: string[];
  /** Ids that records must have, by parameter name. */
  ids: Partial<Record<IdName, string>>;
}

export const ID_NAMES = ["trace_id", "request_id", "correlation_id"] as const;
export type IdName = (typeof ID_NAMES)[number];

export function fromAddress(): Filter {
  const parameters = new URLSearchParams(location.search);
  const filter: Filter = {
    text: parameters.get("text") ?? "",
    level: (parameters.get("level") ?? "") as Filter["level"],
    services: parameters.getAll("service"),
    ids: {},
  };
  for (const name of ID_NAMES) {
    const id = parameters.get(name);
    if (id) filter.ids[name] = id;
  }
  return filter;
}

export function toParameters(filter: Filter): URLSearchParams {
  const parameters = new URLSearchParams();
  if (filter.text.trim() !== "") parameters.set("text", filter.text.trim());
  if (filter.level !== "") parameters.set("level", filter.level);
  for (const service of filter.services) parameters.append("service", service);
  for (const name of ID_NAMES) {
    const id = filter.ids[name];
    if (id !== undefined) parameters.set(name, id);
  }
  return parameters;
}

export function toAddress(filter: Filter): void {
  const parameters = toParameters(filter).toString();
  history.replaceState(null, "", parameters === "" ? location.pathname : `?${parameters}`);
}

/** Returns the searched words, split as the server splits them. */
export function wordsOf(filter: Filter): string[] {
  const parts = filter.text.toLowerCase().split('"');
  return parts.flatMap((part, i) => (i % 2 === 1 ? [part] : part.split(/\s+/))).filter((word) => word !== "");
}
