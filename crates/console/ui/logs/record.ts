// A log record as the server sends it, and the texts and colours of its row.

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
  /** The JSON of the record as received, with its attributes. */
  json: string;
}

/** Parses a record. */
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

/** Returns whether the sender's clock is ahead of the server's. */
export function isAhead(record: LogRecord): boolean {
  return record.arrived !== undefined && new Date(record.time) > new Date(record.arrived);
}

/** Returns the time by which the server orders the record: the event time, but no later than the arrival. */
function timeOf(record: LogRecord): Date {
  return new Date(isAhead(record) ? (record.arrived ?? record.time) : record.time);
}

/** How much of a date a row shows. */
export type Dating = "today" | "year" | "other";

/** Returns whether a record is of today, of this year, or of another year, in local time. */
export function datingOf(record: LogRecord): Dating {
  const time = timeOf(record);
  const now = new Date();
  if (time.toDateString() === now.toDateString()) return "today";
  return time.getFullYear() === now.getFullYear() ? "year" : "other";
}

/** Returns the time of a row: the clock time, with the day if it is not today, and the year if it is another one. */
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

/** Returns the level of a row: the sender's text, or for a bare number the name of its severity. */
export function levelWord(record: LogRecord): string {
  // Remove the colour codes of terminals.
  const word = record.level.replaceAll(/\u001b\[[0-9;]*m/g, "");
  return (/^-?\d+$/.test(word) ? levelOf(record) : word).toUpperCase();
}

/** Returns the first line of a message that is not blank, and the number of lines after it. */
export function firstLine(message: string): { line: string; more: number } {
  const lines = message.trim().split(/\r\n|[\n\r\u2028\u2029]/);
  return { line: lines.length === 1 ? message : (lines[0] ?? ""), more: lines.length - 1 };
}

/** Returns Logthon's colours for the services it has; for other services a constant colour from a hash of the name. */
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
  // Twenty-four hues in two lightnesses, so that similar names have different colours.
  const hue = (hash % 24) * 15;
  return `hsl(${hue} ${(hash >>> 8) % 2 === 0 ? "75% 52%" : "55% 66%"})`;
}
