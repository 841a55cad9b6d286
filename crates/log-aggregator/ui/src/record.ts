// A log record as the server sends it, and what can be said about it at a glance.

export interface LogRecord {
  seq: number;
  id: string;
  time: string;
  arrived?: string;
  severity: number;
  level: string;
  service: string;
  message: string;
  trace_id?: string;
  span_id?: string;
  request_id?: string;
  correlation_id?: string;
  repaired?: boolean;
  raw?: string;
  /** The record as it came, with its attributes. */
  json: string;
}

/** Reads a record. */
export function read(json: string): LogRecord {
  return { ...(JSON.parse(json) as LogRecord), json };
}

/** The six names of severity; WARN and WARNING are both `warn`. */
export const LEVELS = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
export type Level = (typeof LEVELS)[number];

export function levelOf(record: LogRecord): Level {
  const step = Math.floor((Math.min(Math.max(record.severity, 1), 24) - 1) / 4);
  return LEVELS[step] ?? "info";
}

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hour12: false,
});
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "2-digit" });

/** Whether the sender's clock is ahead of the server's. */
export function isAhead(record: LogRecord): boolean {
  return record.arrived !== undefined && new Date(record.time) > new Date(record.arrived);
}

/** The time that a row stands at, as the server orders them: nothing happens after it arrived. */
function timeOf(record: LogRecord): Date {
  return new Date(isAhead(record) ? (record.arrived ?? record.time) : record.time);
}

/** How much of a date a row has to tell. */
export type Dating = "today" | "year" | "other";

/** Whether a record is of this day, of this year, or of another, here. */
export function datingOf(record: LogRecord): Dating {
  const time = timeOf(record);
  const now = new Date();
  if (time.toDateString() === now.toDateString()) return "today";
  return time.getFullYear() === now.getFullYear() ? "year" : "other";
}

/** The time for a row: the clock, and the day when it is not today, and the year when it is not this one. */
export function shortTime(record: LogRecord): string {
  const time = timeOf(record);
  if (Number.isNaN(time.getTime())) return record.time;
  const two = (part: number) => String(part).padStart(2, "0");
  switch (datingOf(record)) {
    case "today":
      return clock.format(time);
    case "year":
      return `${day.format(time)} ${clock.format(time)}`;
    case "other":
      return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${clock.format(time)}`;
  }
}

/** The level for a row: the sender's word; for a bare number what it means. */
export function levelWord(record: LogRecord): string {
  // Terminals' colours are no part of a word.
  const word = record.level.replaceAll(/\u001b\[[0-9;]*m/g, "");
  return (/^-?\d+$/.test(word) ? levelOf(record) : word).toUpperCase();
}

/** The first line of a message that says something, and how many lines are not shown with it. */
export function firstLine(message: string): { line: string; more: number } {
  const lines = message.trim().split(/\r\n|[\n\r\u2028\u2029]/);
  return { line: lines.length === 1 ? message : (lines[0] ?? ""), more: lines.length - 1 };
}

/** Logthon's colours for the services it knew; a steady one of their own for the others. */
export function colourOf(service: string): string {
  switch (service) {
    case "custom-client":
      return "#00ff00";
    case "service-sink":
      return "#0080ff";
    case "logthon":
      return "#ff8000";
  }
  let hash = 0x811c9dc5;
  for (const unit of service) hash = Math.imul(hash ^ (unit.codePointAt(0) ?? 0), 0x01000193) >>> 0;
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 0;
  // Twenty-four hues in two lights: names that differ a little differ in colour, too.
  const hue = (hash % 24) * 15;
  return `hsl(${hue} ${(hash >>> 8) % 2 === 0 ? "75% 52%" : "55% 66%"})`;
}
