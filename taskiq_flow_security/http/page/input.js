// Reads the arguments of a run, as somebody has written them.

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// The body of a start, or what is wrong with which field.
export function read(args, kwargs) {
  const body = {};
  for (const [field, text, what, fits] of [
    ["args", args || "[]", "a JSON list, such as [1, 2]", Array.isArray],
    ["kwargs", kwargs || "{}", 'a JSON object, such as {"limit": 10}', isObject],
  ]) {
    try {
      body[field] = JSON.parse(text);
    } catch {
      body[field] = undefined;
    }
    const problem = fits(body[field]) ? inexact(body[field]) : `Write here ${what}.`;
    if (problem) return { problem, field };
  }
  return { body };
}

function inexact(value) {
  // JavaScript reads other integers as their neighbours.
  if (typeof value === "number") return Number.isInteger(value) && !Number.isSafeInteger(value) ? "A number is too large to be sent exactly." : "";
  return value !== null && typeof value === "object" ? Object.values(value).map(inexact).find(Boolean) ?? "" : "";
}
