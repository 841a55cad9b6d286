// Splits JSON without parsing its values. JavaScript rounds integers above 2^53 and moves keys that look like numbers
// to the front, so the shown values are cut from the JSON text itself.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/gs;

export interface Member {
  /** Its name in an object; undefined in a list. */
  name?: string;
  /** Its value as JSON. */
  json: string;
}

/** Returns the members of an object or a list, in their order. */
export function members(json: string): Member[] {
  const found: Member[] = [];
  let depth = 0;
  let start = -1;
  let name: string | undefined;
  for (const { 0: token, index } of json.matchAll(TOKEN)) {
    const closes = token === "}" || token === "]";
    if (depth === 1 && (closes || token === ",")) {
      if (start >= 0) found.push({ ...(name === undefined ? {} : { name }), json: json.slice(start, index).trimEnd() });
      start = -1;
      name = undefined;
    } else if (depth === 1 && token === ":") {
      name = JSON.parse(json.slice(start, index)) as string;
      start = -1;
    } else if (depth > 0 && start < 0) start = index;
    if (token === "{" || token === "[") depth += 1;
    else if (closes) depth -= 1;
  }
  return found;
}

/** Formats JSON on several lines. */
export function pretty(json: string, indent: number): string {
  let text = "";
  let depth = 0;
  let before = "";
  const line = () => (text += `\n${" ".repeat(indent * depth)}`);
  for (const { 0: token } of json.matchAll(TOKEN)) {
    const empty = before === "{" || before === "[";
    if (token === "}" || token === "]") {
      depth -= 1;
      if (!empty) line();
    } else if (empty || before === ",") line();
    text += token === ":" ? ": " : token;
    if (token === "{" || token === "[") depth += 1;
    before = token;
  }
  return text;
}

/** Formats a value for display: strings without quotes, all other values as they were sent. */
export function shown(json: string): string {
  return json.startsWith('"') ? (JSON.parse(json) as string) : pretty(json, 1);
}
