// Where records come from: the live tail, and pages of older ones. Only relative addresses, so that the viewer
// works under any path.

import { type Filter, toParameters } from "./filter";
import { members } from "./exact";
import { type LogRecord, read } from "./record";

export type State = "connecting" | "connected" | "disconnected";

export interface Listener {
  record(record: LogRecord): void;
  /** Records passed by unseen; how many, if that is known. */
  dropped(count: number | null): void;
  state(state: State): void;
}

const meta = document.querySelector<HTMLMetaElement>('meta[name="reconnect-delay"]');
const RECONNECT_DELAY = Number(meta?.content) || 3000;

/** The live tail of a filter. Comes back by itself, with what was missed meanwhile. */
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
      // The browser's own retry gives up on any answer but 200, so there is one way: ours.
      source.close();
      if (this.#over) return;
      this.listener.state("disconnected");
      this.#retry = window.setTimeout(() => this.#open(), RECONNECT_DELAY);
    };
  }

  /** Tells the tail what has been read otherwise: after a break it goes on from there. */
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

/** A page of records, the latest first. */
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

/** Why the server refused, if it says so. */
function reasonIn(text: string): string | undefined {
  try {
    return (JSON.parse(text) as { detail?: string }).detail;
  } catch {
    return undefined; // A proxy's page, say.
  }
}

/** How many records each service has. */
export async function services(): Promise<Map<string, number>> {
  const response = await fetch("storage/info");
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  const info = (await response.json()) as Record<string, { count: number }>;
  return new Map(Object.entries(info).map(([name, { count }]) => [name, count]));
}
