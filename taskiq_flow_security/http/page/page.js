// One page over the API. All that comes from the server is put in as text or as attributes of SVG, never as HTML.

const NODE = { width: 176, height: 48, gapX: 56, gapY: 20, margin: 8 };
const SHOWN_EVENTS = 200;
const SOON = 400; // milliseconds after an event, by when its result is stored
const LATER = 5000; // milliseconds after which runs that go on are asked for again; the API allows 30 questions a minute
const LOGIN_ENDED = 4401;
const FORBIDDEN = 4403;
const TOKEN = /^eyJ[\w-]*\.[\w-]*\.[\w-]*$/;

const $ = (id) => document.getElementById(id);

let session = null; // { credential, socket, attempts, forbidden }: in memory only, so that nothing else gets to read it
let shown = null; // { id, graph, runId }: the pipeline that is looked at

// --- what everything below is made of

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

class Problem extends Error {
  constructor(answer, content) {
    super(content.detail || `The server answers ${answer.status}.`);
    this.status = answer.status;
    this.reason = content.reason;
  }
}

async function call(path, body) {
  const headers = TOKEN.test(session.credential)
    ? { Authorization: `Bearer ${session.credential}` }
    : { "X-API-Key": session.credential };
  const request = { headers };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, request);
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer, content);
  return content;
}

const pathOf = (id, rest) => `pipelines/${encodeURIComponent(id)}/${rest}`;
const timeOf = (moment) => new Date(moment).toLocaleTimeString();

// --- signing in and out

$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const owner = { credential: $("credential").value.trim(), socket: null, attempts: 0, forbidden: new Set() };
  session = owner;
  $("sign-in-problem").textContent = "";
  try {
    const caller = await call("whoami");
    if (session !== owner) return;
    $("credential").value = "";
    $("subject").textContent = caller.roles.length ? `${caller.subject} (${caller.roles.join(", ")})` : caller.subject;
    setSignedIn(true);
    await listPipelines();
    if (session === owner) connect();
  } catch (problem) {
    if (session === owner) signOut(kindly(problem));
  }
});

$("sign-out").addEventListener("click", () => signOut());

function setSignedIn(yes) {
  $("sign-in").hidden = yes;
  for (const id of ["work", "caller", "connection"]) $(id).hidden = !yes;
}

function signOut(why = "") {
  const socket = session?.socket;
  session = shown = null;
  socket?.close();
  setSignedIn(false);
  $("pipeline").hidden = true;
  $("start").reset();
  for (const id of ["pipelines", "graph", "runs", "events", "details", "start-answer", "subject"]) $(id).replaceChildren();
  $("sign-in-problem").textContent = why;
  $("credential").focus();
}

function kindly(problem) {
  if (!(problem instanceof Problem)) return "The server cannot be reached. Try again in a moment.";
  if (problem.status === 401) return "This token is not accepted, or no longer.";
  if (problem.status === 403 && problem.reason?.includes("api_key")) return "This key is not accepted.";
  return problem.message;
}

// --- the pipelines

async function listPipelines() {
  const owner = session;
  const { pipelines } = await call("pipelines");
  if (session !== owner) return;
  $("no-pipelines").hidden = pipelines.length > 0;
  $("pipelines").replaceChildren(
    ...pipelines.map((pipeline) => {
      const item = element("li");
      const button = element("button", pipeline.id, { type: "button" });
      button.addEventListener("click", () => show(pipeline, button).catch(failed));
      item.append(button);
      return item;
    }),
  );
  $("pipelines").querySelector("button")?.click();
}

async function show(pipeline, button) {
  for (const other of $("pipelines").querySelectorAll("button")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  if (shown) tell({ type: "unsubscribe", pipeline_id: shown.id });
  shown = { id: pipeline.id, runId: null };
  const looking = shown;
  $("name").textContent = pipeline.id;
  $("start-button").disabled = false;
  $("start-answer").textContent = "";
  $("events").replaceChildren();
  $("no-events").hidden = false;
  $("details").hidden = true;
  for (const id of ["summary", "graph", "runs"]) $(id).replaceChildren(); // they are another pipeline's
  $("pipeline").setAttribute("aria-busy", "true");
  subscribe();
  try {
    await load(looking, pipeline);
  } finally {
    if (shown === looking) $("pipeline").removeAttribute("aria-busy");
  }
}

async function load(looking, pipeline) {
  const [dag, groups, path] = await Promise.all(
    ["dag", "parallel-groups", "critical-path"].map((what) => call(pathOf(pipeline.id, what))),
  );
  if (shown !== looking) return; // somebody has clicked on another one meanwhile
  const steps = dag.nodes.length === 1 ? "1 step" : `${dag.nodes.length} steps`;
  $("summary").textContent = pipeline.may_execute ? steps : `${steps}. You may look at it, and not start it.`;
  $("graph").replaceChildren(graphOf(dag, groups.parallel_groups, path.critical_path));
  $("pipeline").hidden = false;
  await listRuns();
}

function failed(problem) {
  if (!session) return;
  if (problem instanceof Problem && problem.status === 401) signOut("The login has ended. Sign in again.");
  else say(kindly(problem), true);
}

// --- the graph: a column for each group of steps that can run at the same time

function graphOf(dag, groups, criticalPath) {
  const { width, height, gapX, gapY, margin } = NODE;
  const rows = Math.max(1, ...groups.map((group) => group.length));
  const critical = new Set(criticalPath);
  const followed = new Set(criticalPath.slice(1).map((target, index) => `${criticalPath[index]}\n${target}`));
  const places = new Map();
  groups.forEach((group, column) =>
    group.forEach((id, row) =>
      places.set(id, {
        x: margin + column * (width + gapX),
        y: margin + (row + (rows - group.length) / 2) * (height + gapY),
      }),
    ),
  );
  const size = {
    width: 2 * margin + groups.length * (width + gapX) - gapX,
    height: 2 * margin + rows * (height + gapY) - gapY,
  };
  const svg = drawn("svg", { ...size, role: "img", "aria-label": `${dag.nodes.length} steps` });
  svg.append(
    drawn("defs", {}, drawn(
      "marker",
      { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      drawn("path", { d: "M0 0 8 4 0 8z", class: "arrow" }),
    )),
  );
  for (const { source, target } of dag.edges) {
    const from = places.get(source);
    const to = places.get(target);
    const [x1, y1, x2, y2] = [from.x + width, from.y + height / 2, to.x - 2, to.y + height / 2];
    const bend = Math.max(24, (x2 - x1) / 2);
    svg.append(drawn("path", {
      class: followed.has(`${source}\n${target}`) ? "edge critical" : "edge",
      d: `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`,
      "marker-end": "url(#arrow)",
    }));
  }
  for (const node of dag.nodes) {
    const { x, y } = places.get(node.id);
    const plain = node.kind === "task";
    const box = drawn(
      "g",
      { class: critical.has(node.id) ? "node critical" : "node", transform: `translate(${x} ${y})` },
      drawn("title", {}, node.task),
      drawn("rect", { width, height, rx: 8 }),
      drawn("text", { x: 12, y: plain ? 29 : 22 }, shortened(node.task, 21)),
    );
    if (!plain) box.append(drawn("text", { x: 12, y: 38, class: "kind" }, node.kind));
    box.dataset.task = node.task;
    svg.append(box);
  }
  return svg;
}

const shortened = (text, length) => (text.length > length ? `…${text.slice(1 - length)}` : text);

function light(event) {
  if (event.run_id !== shown.runId) {
    shown.runId = event.run_id;
    for (const node of $("graph").querySelectorAll(".node")) node.classList.remove("started", "completed", "failed", "refused");
  }
  for (const node of $("graph").querySelectorAll(".node")) {
    if (node.dataset.task !== event.task || event.kind === "enqueued") continue;
    if (event.time < Number(node.dataset.time ?? 0)) continue; // those of several processes may overtake each other
    node.dataset.time = event.time;
    node.classList.remove("started", "completed", "failed", "refused");
    node.classList.add(event.kind);
  }
}

// --- starting, and looking at, runs

$("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = {};
  for (const [name, what, fits] of [
    ["args", "a JSON list, such as [1, 2]", Array.isArray],
    ["kwargs", 'a JSON object, such as {"limit": 10}', (value) => value !== null && typeof value === "object" && !Array.isArray(value)],
  ]) {
    try {
      body[name] = JSON.parse($(name).value || (name === "args" ? "[]" : "{}"));
    } catch {
      body[name] = undefined;
    }
    const problem = fits(body[name]) ? exactly(body[name]) : `Write here ${what}.`;
    if (problem) {
      say(problem, true);
      $(name).focus();
      return;
    }
  }
  $("start-button").disabled = true;
  try {
    const started = await call(pathOf(shown.id, "execute"), body);
    say(`Started as ${started.run_id}.`);
    await listRuns();
  } catch (problem) {
    failed(problem);
  } finally {
    $("start-button").disabled = false;
  }
});

function exactly(value) {
  // JavaScript reads other integers as their neighbours.
  if (typeof value === "number") return Number.isInteger(value) && !Number.isSafeInteger(value) ? "A number is too large to be sent exactly." : "";
  return value !== null && typeof value === "object" ? Object.values(value).map(exactly).find(Boolean) ?? "" : "";
}

function say(text, isProblem = false) {
  $("start-answer").textContent = text;
  $("start-answer").classList.toggle("problem", isProblem);
}

let refresh = null;

function refreshRuns(milliseconds) {
  clearTimeout(refresh);
  refresh = setTimeout(() => shown && listRuns().catch(quietly), milliseconds);
}

function quietly(problem) {
  if (problem instanceof Problem && problem.status === 429) refreshRuns(2 * LATER);
  else failed(problem);
}

async function listRuns() {
  const looking = shown;
  const { runs } = await call(pathOf(looking.id, "status"));
  if (shown !== looking) return;
  // Rows stay where they are, so that nobody's click or focus is lost to a refresh.
  const list = $("runs");
  const rows = new Map([...list.children].map((row) => [row.dataset.run, row]));
  runs.forEach((run, index) => {
    const row = rows.get(run.run_id) ?? rowOf(run);
    const state = row.querySelector(".state");
    state.textContent = run.state;
    state.className = `state state-${run.state}`;
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
  });
  while (list.children.length > runs.length) list.lastChild.remove();
  if (runs.some((run) => run.state === "running")) refreshRuns(LATER);
}

function rowOf(run) {
  const row = element("tr");
  row.dataset.run = run.run_id;
  const button = element("button", "Details", { type: "button", class: "quiet", "aria-label": `Details of ${run.run_id}` });
  button.addEventListener("click", () => showRun(run.run_id).catch(failed));
  row.append(
    element("td", timeOf(run.started_at)),
    element("td", run.subject),
    element("td", "", { class: "state" }),
    element("td"),
  );
  row.lastChild.append(button);
  return row;
}

async function showRun(runId) {
  const run = await call(pathOf(shown.id, `runs/${encodeURIComponent(runId)}`));
  const outcome = JSON.stringify(run.error ?? run.result_problem ?? run.result, null, 2);
  $("details").textContent = run.state === "running" ? "It is still running." : outcome;
  $("details").hidden = false;
}

// --- live events

function connect() {
  const owner = session;
  const address = new URL("ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  owner.socket = socket;
  setConnection(false);
  socket.addEventListener("open", () => socket.send(JSON.stringify({ type: "connect", auth: owner.credential })));
  socket.addEventListener("message", (message) => {
    if (session === owner) receive(JSON.parse(message.data));
  });
  socket.addEventListener("close", ({ code }) => {
    if (session !== owner) return;
    setConnection(false);
    if (code === LOGIN_ENDED) return signOut("The login has ended. Sign in again.");
    if (code === FORBIDDEN && shown) {
      owner.forbidden.add(shown.id); // or it would be asked for again, and end the next connection
      say("You may not watch this pipeline.", true);
    }
    owner.attempts += 1;
    setTimeout(() => session === owner && connect(), Math.min(30_000, 500 * 2 ** owner.attempts));
  });
}

function subscribe() {
  if (shown && !session.forbidden.has(shown.id)) tell({ type: "subscribe", pipeline_id: shown.id });
}

function tell(message) {
  if (session?.socket?.readyState === WebSocket.OPEN) session.socket.send(JSON.stringify(message));
}

function receive(message) {
  if (message.type === "connected") {
    setConnection(true);
    subscribe();
  } else if (message.type === "subscribed") {
    session.attempts = 0;
  } else if (message.type === "event" && shown && message.pipeline_id === shown.id) {
    light(message);
    const item = element("li");
    item.append(
      element("time", timeOf(message.time * 1000)),
      element("strong", message.kind, { class: `kind-${message.kind}` }),
      element("span", message.task),
      element("span", [message.subject, message.reason].filter(Boolean).join(", "), { class: "hint" }),
    );
    $("no-events").hidden = true;
    $("events").prepend(item);
    while ($("events").children.length > SHOWN_EVENTS) $("events").lastChild.remove();
    if (message.kind !== "enqueued" && message.kind !== "started") refreshRuns(SOON);
  }
}

function setConnection(live) {
  $("connection").classList.toggle("live", live);
  $("connection").textContent = live ? "live" : "connecting";
}
