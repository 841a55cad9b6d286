// The list of records, the newest at the bottom. The number of rows is bounded: new rows remove the oldest rows at
// the top.

import { detail } from "./detail";
import { make, marked } from "../shell/dom";
import type { IdName } from "./filter";
import { type LogRecord, colourOf, datingOf, firstLine, levelOf, levelWord, shortTime } from "./record";

/** Maximum number of rows in the page. */
export const MOST_ROWS = 2000;

export class Rows {
  words: string[] = [];
  #seen = new Set<number>();

  constructor(
    private readonly box: HTMLElement,
    private readonly only: (name: IdName, id: string) => void,
    /** Called whenever a row is opened, by click or by key. */
    private readonly opened: () => void,
  ) {
    box.addEventListener("click", (event) => {
      const row = (event.target as Element).closest<HTMLElement>(".row");
      // A click that ends a text selection does not open a row.
      if (row && getSelection()?.isCollapsed !== false) this.#toggle(row);
    });
    box.addEventListener("keydown", (event) => {
      const row = (event.target as Element).closest<HTMLElement>(".row");
      if (row && event.key === "Enter") this.#toggle(row);
    });
  }

  get count(): number {
    return this.#seen.size;
  }

  clear(): void {
    this.#seen.clear();
    this.box.classList.remove("dated", "with-year");
    this.box.replaceChildren();
  }

  /** Appends newer records at the bottom; they are given oldest first. */
  append(records: LogRecord[]): void {
    const fragment = document.createDocumentFragment();
    for (const record of records.slice(-MOST_ROWS)) this.#put(record, fragment);
    this.box.append(fragment);
    while (this.#seen.size > MOST_ROWS) this.#dropFirst();
  }

  /** Inserts older records at the top; they are given latest first. Returns whether there is room for more. */
  prepend(records: LogRecord[]): boolean {
    const fragment = document.createDocumentFragment();
    const room = MOST_ROWS - this.#seen.size;
    for (const record of records.slice(0, room).reverse()) this.#put(record, fragment);
    this.box.prepend(fragment);
    return records.length < room;
  }

  /** Adds a line between rows that reports missing records. */
  gap(text: string): void {
    this.box.append(make("div", "gap", text));
  }

  /** Moves the focus to the next or previous row. */
  step(by: 1 | -1): void {
    const rows = [...this.box.querySelectorAll<HTMLElement>(".row")];
    const at = rows.indexOf(document.activeElement as HTMLElement);
    const next = at < 0 ? rows.length - 1 : Math.min(Math.max(at + by, 0), rows.length - 1);
    rows[next]?.focus();
  }

  /** Updates the time of every row after the end of a day: rows of yesterday then show their date. */
  date(): void {
    for (const row of this.box.querySelectorAll<HTMLElement>(".row")) {
      const record = records.get(row);
      const time = row.querySelector("time");
      if (record !== undefined && time !== null) this.#date(time, record);
    }
  }

  #date(time: HTMLTimeElement, record: LogRecord): void {
    const dating = datingOf(record);
    if (dating !== "today") this.box.classList.add(dating === "year" ? "dated" : "with-year");
    time.textContent = shortTime(record);
  }

  #put(record: LogRecord, into: DocumentFragment): void {
    if (this.#seen.has(record.seq)) return;
    this.#seen.add(record.seq);
    const time = make("time");
    this.#date(time, record);
    time.dateTime = record.time;
    time.title = record.time;
    const service = make("span", "service", make("i", "dot"), record.service);
    service.style.setProperty("--service", colourOf(record.service));
    service.title = record.service;
    const { line, more } = firstLine(record.message);
    const message = make("span", "message", ...marked(line, this.words));
    const level = make("span", "level", levelWord(record));
    level.title = `${record.level} (severity ${record.severity})`;
    const row = make("div", "row", time, level, service, message);
    const badges: HTMLElement[] = [];
    if (more > 0) badges.push(make("span", "badge lines", more === 1 ? "+1 line" : `+${more.toLocaleString()} lines`));
    if (record.repaired) badges.push(make("span", "badge", "repaired"));
    if (badges.length > 0) row.append(make("span", "badges", ...badges));
    row.dataset["level"] = levelOf(record);
    row.dataset["seq"] = String(record.seq);
    row.tabIndex = 0;
    row.setAttribute("role", "button");
    row.setAttribute("aria-expanded", "false");
    records.set(row, record);
    into.append(row);
  }

  #toggle(row: HTMLElement): void {
    const record = records.get(row);
    if (record === undefined) return;
    const open = row.getAttribute("aria-expanded") === "true";
    row.setAttribute("aria-expanded", String(!open));
    if (open) row.nextElementSibling?.remove();
    else {
      const fields = detail(record, this.only);
      row.after(fields);
      fields.scrollIntoView({ block: "nearest" });
      row.scrollIntoView({ block: "nearest" });
      this.opened();
    }
  }

  #dropFirst(): void {
    const first = this.box.firstElementChild;
    if (first === null) return;
    const seq = (first as HTMLElement).dataset["seq"];
    if (seq !== undefined) this.#seen.delete(Number(seq));
    first.remove();
  }
}

/** The record of each row; dropped together with the row. */
const records = new WeakMap<HTMLElement, LogRecord>();
