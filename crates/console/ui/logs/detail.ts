// The details of an opened row: a table of all fields of the record.

import { copier, button, make } from "../shell/dom";
import { ID_NAMES, type IdName } from "./filter";
import { members, pretty, shown } from "./exact";
import { type LogRecord, isAhead } from "./record";

/** Makes the table; `only` filters the list by an id of the record. */
export function detail(record: LogRecord, only: (name: IdName, id: string) => void): HTMLElement {
  const table = make("table");
  const body = table.createTBody();
  const add = (name: string, value: string, ...more: Node[]) => {
    const row = body.insertRow();
    const head = make("th", "", name);
    head.scope = "row";
    row.append(head, make("td", "", make("span", "value", value), ...more));
  };
  add("message", record.message);
  add("time", record.time, ...(isAhead(record) ? [make("span", "note", "The sender's clock is ahead: the row is ordered by its arrival time.")] : []));
  if (record.arrived !== undefined) add("arrived", record.arrived);
  add("level", `${record.level} (severity ${record.severity})`);
  add("service", record.service);
  for (const name of ["trace_id", "span_id", "request_id", "correlation_id"] as const) {
    const id = record[name];
    if (id === undefined) continue;
    const shared = ID_NAMES.find((other) => other === name);
    add(name, id, ...(shared === undefined ? [] : [button("quiet", "Only these", () => only(shared, id))]));
  }
  const attributes = members(record.json).find(({ name }) => name === "attributes");
  for (const { name, json } of attributes === undefined ? [] : members(attributes.json)) {
    add(name ?? "", shown(json));
  }
  add("id", record.id);
  if (record.raw !== undefined) {
    add("raw body", record.raw);
    body.rows[body.rows.length - 1]?.classList.add("raw");
  }
  const tools = make("div", "tools", copier("Copy as JSON", () => pretty(record.json, 2)));
  if (record.repaired) {
    tools.prepend(make("span", "note", "This record was received as broken JSON and repaired. The raw body is kept."));
  }
  const box = make("div", "detail", table, tools);
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "All fields of the record");
  return box;
}
