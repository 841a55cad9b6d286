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
  attributes?: Record<string, unknown>;
  trace_id?: string;
  span_id?: string;
  request_id?: string;
  correlation_id?: string;
  repaired?: boolean;
  raw?: string;
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

/** Whether a record is of this day, here. */
export function isToday(record: LogRecord): boolean {
  return new Date(record.time).toDateString() === new Date().toDateString();
}

/** The event time for a row: the clock, and the day when it is not today. */
export function shortTime(record: LogRecord): string {
  const time = new Date(record.time);
  if (Number.isNaN(time.getTime())) return record.time;
  return isToday(record) ? clock.format(time) : `${day.format(time)} ${clock.format(time)}`;
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
