// Reads records from the server: the live tail, and pages of older records. All addresses are relative, so that the
// viewer works under any path.

import { type Filter, toParameters } from "./filter";
import { members } from "./exact";
import { type LogRecord, read } from "./record";

export type State = "connecting" | "connected" | "disconnected";

export interface Listener {
  record(record: LogRecord): void;
  /** Records were missed; `count` is their number, if it is known. */
  dropped(count: number | null): void;
  state(state: State): void;
}

const meta = document.querySelector<HTMLMetaElement>('meta[name="reconnect-delay"]');
const RECONNECT_DELAY = Number(meta?.content) || 3000;

/** The live tail of a filter. Reconnects automatically and then receives the records that it missed. */
export class Tail {
  #source: EventSource | undefined;
  #last: number | undefined;
  #retry: number | undefined;
  #over = false;

  constructor(
    private readonly filter: Filter,
    private readonly listener: Listener,
  ) {
    this.#open();
  }

  #open(): void {
    const parameters = toParameters(this.filter);
    if (this.#last !== undefined) parameters.set("after", String(this.#last));
    const source = new EventSource(`api/v1/tail?${parameters}`);
    this.#source = source;
    source.onopen = () => this.listener.state("connected");
    source.onmessage = (event: MessageEvent<string>) => {
      const record = read(event.data);
      this.#last = record.seq;
      this.listener.record(record);
    };
    source.addEventListener("dropped", (event) => {
      const { count } = JSON.parse((event as MessageEvent<string>).data) as { count: number | null };
      this.listener.dropped(count);
    });
    source.onerror = () => {
      // The browser does not retry after a status other than 200, so this class always reconnects itself.
      source.close();
      if (this.#over) return;
      this.listener.state("disconnected");
      this.#retry = window.setTimeout(() => this.#open(), RECONNECT_DELAY);
    };
  }

  /** Sets the last record that was read by a query: after a reconnection the tail continues after it. */
  since(seq: number): void {
    this.#last = Math.max(this.#last ?? 0, seq);
  }

  close(): void {
    this.#over = true;
    window.clearTimeout(this.#retry);
    this.#source?.close();
  }
}

export interface Page {
  records: LogRecord[];
  next: string | null;
}

/** Reads a page of records, the latest first. */
export async function page(filter: Filter, limit: number, cursor: string | null): Promise<Page> {
  const parameters = toParameters(filter);
  parameters.set("limit", String(limit));
  if (cursor !== null) parameters.set("cursor", cursor);
  const response = await fetch(`api/v1/query?${parameters}`);
  const text = await response.text();
  if (!response.ok) throw new Error(reasonIn(text) ?? `the server answered ${response.status}`);
  const parts = new Map(members(text).map(({ name, json }) => [name, json]));
  const records = members(parts.get("records") ?? "[]").map(({ json }) => read(json));
  return { records, next: JSON.parse(parts.get("next") ?? "null") as string | null };
}

/** Returns the reason in the server's error response, if there is one. */
function reasonIn(text: string): string | undefined {
  try {
    return (JSON.parse(text) as { detail?: string }).detail;
  } catch {
    return undefined; // For example, the error page of a proxy.
  }
}

/** Returns the number of records of each service. */
export async function services(): Promise<Map<string, number>> {
  const response = await fetch("storage/info");
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const info = (await response.json()) as Record<string, { count: number }>;
  return new Map(Object.entries(info).map(([name, { count }]) => [name, count]));
}
