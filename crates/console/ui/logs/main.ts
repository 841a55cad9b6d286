// The viewer: follows newly stored records, lists them, and shows their details.

import { showLevels, showServices } from "./bar";
import { find } from "../shell/dom";
import { failed, nothing, teach } from "./empty";
import { fromAddress, toAddress, toParameters, wordsOf } from "./filter";
import { type LogRecord } from "./record";
import { MOST_ROWS, Rows } from "./rows";
import { Tail, page, services } from "./source";
import { startTheme } from "../shell/theme";

const FIRST_PAGE = 300;
const STATES = { connecting: "Connecting", connected: "Live", disconnected: "Disconnected" } as const;

const filter = fromAddress();
const view = find("view");
const status = find("status");
const search = find<HTMLInputElement>("text");
const pauseButton = find<HTMLButtonElement>("pause");
const waitingButton = find<HTMLButtonElement>("waiting");
const olderButton = find<HTMLButtonElement>("older");
const empty = find("empty");
const rows = new Rows(find("rows"), (name, id) => {
  filter.ids[name] = id;
  filter.services = [];
  change();
}, pause);

let known = new Map<string, number>();
let tail: Tail | undefined;
let cursor: string | null = null;
/** Increases with each change of the filter; answers to older queries are ignored. */
let generation = 0;
/** Received records that are not shown yet. Their number is bounded; `unseen` counts all of them. */
let pending: LogRecord[] = [];
let unseen = 0;
let paused = false;
/** True until the first page is loaded; live records are shown after it. */
let loading = true;
let frame = 0;

function change(): void {
  toAddress(filter);
  void load();
}

async function load(): Promise<void> {
  const mine = ++generation;
  tail?.close();
  loading = true;
  pending = [];
  unseen = 0;
  view.classList.add("loading");
  showControls();
  rows.words = wordsOf(filter);
  // Follow the tail before the query, so that no record is missed between the two; `rows` ignores duplicates.
  tail = new Tail(structuredClone(filter), {
    record: (record) => receive(record),
    dropped: (count) => {
      flush();
      rows.gap(count === null ? "Some records are not shown here." : `${count.toLocaleString()} records arrived too fast and are not shown here.`);
    },
    state: (state) => {
      status.dataset["state"] = state;
      status.textContent = STATES[state];
    },
  });
  try {
    const first = await page(filter, FIRST_PAGE, null);
    if (mine !== generation) return;
    tail.since(first.records.reduce((last, record) => Math.max(last, record.seq), 0));
    rows.clear();
    rows.append(first.records.reverse());
    cursor = first.next;
    loading = false;
    resume();
    showEmpty();
  } catch (error) {
    if (mine !== generation) return;
    rows.clear();
    loading = false;
    cursor = null;
    failed(empty, error instanceof Error ? error.message : String(error), () => void load());
    empty.hidden = false;
  }
  view.classList.remove("loading");
  olderButton.hidden = cursor === null;
  schedule();
}

function receive(record: LogRecord): void {
  pending.push(record);
  unseen += 1;
  if (pending.length > MOST_ROWS) pending = pending.slice(-MOST_ROWS / 2);
  if (!known.has(record.service)) {
    known.set(record.service, 1);
    showControls();
  }
  schedule();
}

/** Updates the page once for each animation frame. A hidden tab has no frames and only collects records. */
function schedule(): void {
  if (frame !== 0) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    if (loading) return;
    if (paused) showPaused();
    else flush();
  });
}

function flush(): void {
  if (loading || pending.length === 0) return;
  if (unseen > pending.length) rows.gap(`${(unseen - pending.length).toLocaleString()} records are not shown here.`);
  rows.append(pending);
  pending = [];
  unseen = 0;
  showEmpty();
  view.scrollTop = view.scrollHeight;
}

function pause(): void {
  if (paused) return;
  paused = true;
  showPaused();
}

function resume(): void {
  paused = false;
  showPaused();
  flush();
  view.scrollTop = view.scrollHeight;
}

function showPaused(): void {
  pauseButton.textContent = paused ? "▶ Resume" : "❚❚ Pause";
  pauseButton.title = "Space";
  pauseButton.setAttribute("aria-pressed", String(paused));
  waitingButton.hidden = !paused;
  waitingButton.textContent = unseen === 0 ? "Paused · follow ↓" : `${unseen.toLocaleString()} new ↓`;
}

function showControls(): void {
  showLevels(find("levels"), filter, change);
  showServices(find("services"), known, filter, change);
}

function showEmpty(): void {
  if (loading) return;
  empty.hidden = rows.count > 0 && !onlyOurOwn();
  if (empty.hidden) return;
  const filtered = toParameters(filter).size > 0;
  if (filtered) nothing(empty, clearFilters);
  else teach(empty);
}

/** Returns whether only the aggregator itself has stored records. */
function onlyOurOwn(): boolean {
  const filtered = toParameters(filter).size > 0;
  return !filtered && [...known.keys()].every((service) => service === "logthon") && rows.count < 20;
}

function clearFilters(): void {
  Object.assign(filter, { text: "", level: "", services: [], ids: {} });
  search.value = "";
  change();
}

async function loadOlder(): Promise<void> {
  if (cursor === null) return;
  const mine = generation;
  olderButton.disabled = true;
  pause();
  try {
    const older = await page(filter, FIRST_PAGE, cursor);
    if (mine !== generation) return;
    const height = view.scrollHeight;
    const room = rows.prepend(older.records);
    cursor = room ? older.next : null;
    olderButton.hidden = cursor === null;
    view.scrollTop += view.scrollHeight - height;
  } catch {
    status.textContent = "Older records cannot be read now";
  } finally {
    olderButton.disabled = false;
  }
}

async function refreshServices(): Promise<void> {
  try {
    known = await services();
    showControls();
    showEmpty();
  } catch {
    // The status of the tail already shows a lost connection.
  }
}

let typing: number | undefined;
search.value = filter.text;
search.addEventListener("input", () => {
  window.clearTimeout(typing);
  typing = window.setTimeout(() => {
    filter.text = search.value;
    change();
  }, 200);
});
pauseButton.addEventListener("click", () => (paused ? resume() : pause()));
waitingButton.addEventListener("click", resume);
olderButton.addEventListener("click", () => void loadOlder());

// Scrolling up pauses the list, because the user reads. Scrolling back to the end resumes it.
let lastTop = 0;
view.addEventListener("scroll", () => {
  const up = view.scrollTop < lastTop;
  lastTop = view.scrollTop;
  const atEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 4;
  if (up && !atEnd) pause();
});
view.addEventListener("wheel", (event) => {
  const atEnd = view.scrollHeight - view.scrollTop - view.clientHeight < 4;
  if (paused && event.deltaY > 0 && atEnd) resume();
});
document.addEventListener("keydown", (event) => {
  const target = event.target as HTMLElement;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target instanceof HTMLInputElement) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const act: Record<string, () => void> = {
    "/": () => search.focus(),
    " ": () => (paused ? resume() : pause()),
    j: () => rows.step(1),
    k: () => rows.step(-1),
  };
  const chosen = act[event.key];
  if (chosen === undefined || (event.key === " " && target instanceof HTMLButtonElement)) return;
  event.preventDefault();
  chosen();
});

startTheme(find<HTMLButtonElement>("theme"));
showPaused();
void refreshServices().then(load);
window.setInterval(() => void refreshServices(), 10_000);
let day = new Date().toDateString();
window.setInterval(() => {
  const today = new Date().toDateString();
  if (today !== day) rows.date();
  day = today;
}, 1_000);
