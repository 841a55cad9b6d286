// Makes page content of elements and text only. No code of the viewer writes HTML.

type Child = Node | string;

/** Makes an element with a class and children; strings become text. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className !== "") element.className = className;
  element.append(...children);
  return element;
}

/** Makes a button that calls `act`. */
export function button(className: string, label: string, act: () => void): HTMLButtonElement {
  const element = make("button", className, label);
  element.type = "button";
  element.addEventListener("click", (event) => {
    event.stopPropagation();
    act();
  });
  return element;
}

/** Returns an element that the page must contain. */
export function find<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no #${id}`);
  return element as T;
}

/** Returns the text with every occurrence of the words marked, case-insensitively. */
export function marked(text: string, words: string[]): Node[] {
  if (words.length === 0) return [document.createTextNode(text)];
  const lower = text.toLowerCase();
  const nodes: Node[] = [];
  let at = 0;
  // Folding case changes the length of a few letters; then marks would be misplaced, so none are made.
  while (at < text.length && lower.length === text.length) {
    let next = -1;
    let length = 0;
    for (const word of words) {
      const found = lower.indexOf(word, at);
      if (found >= 0 && (next < 0 || found < next)) {
        next = found;
        length = word.length;
      }
    }
    if (next < 0) break;
    nodes.push(document.createTextNode(text.slice(at, next)), make("mark", "", text.slice(next, next + length)));
    at = next + length;
  }
  nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}

/** Makes a button that copies text and shows the result in its label. */
export function copier(label: string, text: () => string): HTMLButtonElement {
  const element = button("quiet", label, () => {
    const show = (outcome: string) => {
      element.textContent = outcome;
      setTimeout(() => (element.textContent = label), 1500);
    };
    // Browsers provide the clipboard only to pages from HTTPS or from this machine.
    const copied = navigator.clipboard?.writeText(text()) ?? Promise.reject(new Error("no clipboard"));
    copied.then(
      () => show("Copied"),
      () => show("Cannot copy here"),
    );
  });
  return element;
}
