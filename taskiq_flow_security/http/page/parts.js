// What the page is made of. All that comes from the server is put in as text or as attributes of SVG, never as HTML.

export const $ = (id) => document.getElementById(id);

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function say(place, text, isProblem = false) {
  $(place).textContent = text;
  $(place).classList.toggle("problem", isProblem);
}

// The time, with the date if that is not today's.
export function timeOf(moment) {
  const time = new Date(moment);
  return time.toDateString() === new Date().toDateString() ? time.toLocaleTimeString() : time.toLocaleString();
}
