// What is shown when there is nothing to show: why, and what to do.

import { button, copier, make } from "./dom";

/** For a store that no service has written to yet: a line to paste. */
export function teach(box: HTMLElement): void {
  const address = new URL("logs", document.baseURI).href;
  const line = `curl ${address} -H 'Content-Type: application/json' \\\n  -d '{"service":"hello","level":"INFO","message":"my first log"}'`;
  box.replaceChildren(
    make("h2", "", "No service has logged yet"),
    make("p", "", "Send the first record from a terminal. It appears here at once."),
    make("pre", "", make("code", "", line)),
    copier("Copy", () => line),
  );
}

/** For a filter that nothing meets. */
export function nothing(box: HTMLElement, clear: () => void): void {
  box.replaceChildren(
    make("h2", "", "Nothing matches"),
    make("p", "", "No record meets these filters. New ones that do will appear here."),
    button("", "Clear filters", clear),
  );
}

/** For a question that failed. */
export function failed(box: HTMLElement, why: string, again: () => void): void {
  box.replaceChildren(make("h2", "", "The records cannot be read"), make("p", "", why), button("", "Try again", again));
}
