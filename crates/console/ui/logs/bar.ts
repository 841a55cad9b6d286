// The filter controls above the list: level, services and selected ids.

import { button, make } from "../shell/dom";
import { type Filter, ID_NAMES } from "./filter";
import { type Level, colourOf } from "./record";

const CHOICES: [Level | "", string][] = [
  ["", "All"],
  ["debug", "Debug"],
  ["info", "Info"],
  ["warn", "Warn"],
  ["error", "Error"],
];
/** Number of services that have a button; the names of others can be typed. */
const MOST_CHIPS = 16;

export function showLevels(box: HTMLElement, filter: Filter, change: () => void): void {
  box.replaceChildren(
    ...CHOICES.map(([level, label]) => {
      const element = button("", label, () => {
        filter.level = level;
        change();
      });
      element.setAttribute("role", "radio");
      element.setAttribute("aria-checked", String(filter.level === level));
      element.dataset["level"] = level;
      element.title = level === "" ? "Every level" : `${label} and more severe`;
      return element;
    }),
  );
}

export function showServices(box: HTMLElement, known: Map<string, number>, filter: Filter, change: () => void): void {
  const all = button("chip", "All", () => {
    filter.services = [];
    change();
  });
  all.setAttribute("aria-pressed", String(filter.services.length === 0));
  const byCount = [...known].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([name]) => name);
  // Selected services are always shown; the order is alphabetical, so that it does not change with the counts.
  const shown = [...new Set([...filter.services, ...byCount.slice(0, MOST_CHIPS)])].sort();
  const chips = shown.map((service) => {
    const chosen = filter.services.includes(service);
    const chip = button("chip service", "", () => {
      filter.services = chosen ? filter.services.filter((other) => other !== service) : [...filter.services, service];
      change();
    });
    chip.append(make("i", "dot"), service);
    chip.style.setProperty("--service", colourOf(service));
    chip.setAttribute("aria-pressed", String(chosen));
    chip.title = `${(known.get(service) ?? 0).toLocaleString()} records`;
    return chip;
  });
  const more: HTMLElement[] = [];
  if (byCount.length > shown.length) {
    const input = make("input", "more");
    input.placeholder = `${byCount.length - shown.length} more services`;
    input.setAttribute("list", "all-services");
    input.setAttribute("aria-label", "Another service");
    input.addEventListener("change", () => {
      if (input.value === "") return;
      filter.services = [...filter.services, input.value];
      change();
    });
    const list = make("datalist");
    list.id = "all-services";
    for (const name of byCount.slice(0, 1000)) {
      const option = make("option");
      option.value = name;
      list.append(option);
    }
    more.push(input, list);
  }
  const ids = ID_NAMES.flatMap((name) => {
    const id = filter.ids[name];
    if (id === undefined) return [];
    const chip = button("chip id", `${name} ${id} ✕`, () => {
      delete filter.ids[name];
      change();
    });
    chip.title = "Remove this filter";
    return [chip];
  });
  // Do not replace the controls while the user types in the box of more services.
  if (box.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement) return;
  box.replaceChildren(all, ...chips, ...more, ...ids);
}
