// The messages in place of an empty list: the reason, and the next step.

import { button, copier, make } from "../shell/dom";

/** For a store without records of a service: shows a command line that sends one. */
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

/** For a filter without matching records. */
export function nothing(box: HTMLElement, clear: () => void): void {
  box.replaceChildren(
    make("h2", "", "Nothing matches"),
    make("p", "", "No record matches these filters. New matching records will appear here."),
    button("", "Clear filters", clear),
  );
}

/** For a query that failed. */
export function failed(box: HTMLElement, why: string, again: () => void): void {
  box.replaceChildren(make("h2", "", "The records cannot be read"), make("p", "", why), button("", "Try again", again));
}
