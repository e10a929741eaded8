// One page over the API. While an answer is awaited, somebody may go on to another pipeline, or sign out: what comes
// then is nobody's any more. So each function that awaits something compares before and after.

import { call, kindly, mayPass, pathOf } from "./api.js";
import { graphOf, paint } from "./graph.js";
import { read } from "./input.js";
import { Live } from "./live.js";
import { $, element, say, timeOf } from "./parts.js";
import { list, mark } from "./runs.js";
import { SeenRuns } from "./steps.js";

const SHOWN_EVENTS = 200;
const SOON = 400; // milliseconds after an event, by when its result is stored
const LATER = 5000; // milliseconds after which runs that go on are asked for again; the API allows 30 questions a minute

let session = null; // { credential, live }: in memory only, so that nothing else gets to read it
let shown = null; // the pipeline that is looked at: see `show`

// --- signing in and out

$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const credential = $("credential").value.trim();
  const owner = (session = { credential, live: new Live(credential, LISTENER) });
  say("sign-in-problem", "", true);
  try {
    const caller = await call(credential, "whoami");
    if (session !== owner) return;
    $("credential").value = "";
    $("subject").textContent = caller.roles.length ? `${caller.subject} (${caller.roles.join(", ")})` : caller.subject;
    setSignedIn(true);
    await listPipelines(owner);
    if (session === owner) owner.live.connect();
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
  session?.live.close();
  session = shown = null;
  setSignedIn(false);
  clear();
  $("pipeline").hidden = true;
  $("start").reset();
  for (const id of ["pipelines", "subject"]) $(id).replaceChildren();
  say("sign-in-problem", why, true);
  $("credential").focus();
}

function failed(problem, looking, place, consequence = "") {
  if (shown !== looking) return;
  if (problem.status === 401) signOut("The login has ended. Sign in again.");
  else say(place, `${kindly(problem)}${consequence}`, true);
}

// --- the pipelines

async function listPipelines(owner) {
  const { pipelines } = await call(owner.credential, "pipelines");
  if (session !== owner) return;
  $("no-pipelines").hidden = pipelines.length > 0;
  $("pipelines").replaceChildren(
    ...pipelines.map((pipeline) => {
      const item = element("li");
      const button = element("button", pipeline.id, { type: "button" });
      button.addEventListener("click", () => show(pipeline, button));
      item.append(button);
      return item;
    }),
  );
  $("pipelines").querySelector("button")?.click();
}

async function show(pipeline, button) {
  for (const other of $("pipelines").querySelectorAll("button")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  const looking = (shown = {
    id: pipeline.id,
    seen: new SeenRuns(),
    followed: null, // the run that the graph is to show, instead of the newest
    detailed: null, // the run whose details are open
    asked: 0, // how often for the list of runs
    notBefore: 0, // when it may be asked for again
  });
  clear();
  $("name").textContent = pipeline.id;
  $("pipeline").hidden = false;
  $("pipeline").setAttribute("aria-busy", "true");
  session.live.watch(pipeline.id);
  await Promise.all([loadGraph(looking, pipeline), listRuns(looking)]);
  if (shown === looking) $("pipeline").removeAttribute("aria-busy");
}

function clear() {
  clearTimeout(refresh);
  for (const id of ["name", "summary", "graph", "followed", "runs", "details", "events"]) $(id).replaceChildren();
  for (const id of ["graph-problem", "start-answer", "runs-problem", "live-problem"]) say(id, "");
  $("start-button").disabled = true; // until it is known what would be started
  for (const id of ["details", "same-task"]) $(id).hidden = true;
  $("no-events").hidden = false;
}

async function loadGraph(looking, pipeline) {
  try {
    const [dag, groups, path] = await Promise.all(
      ["dag", "parallel-groups", "critical-path"].map((what) => call(session.credential, pathOf(pipeline.id, what))),
    );
    if (shown !== looking) return;
    const steps = dag.nodes.length === 1 ? "1 step" : `${dag.nodes.length} steps`;
    $("summary").textContent = pipeline.may_execute ? steps : `${steps}. You may look at it, and not start it.`;
    $("graph").replaceChildren(graphOf(dag, groups.parallel_groups, path.critical_path));
    $("same-task").hidden = new Set(dag.nodes.map((node) => node.task)).size === dag.nodes.length;
    $("start-button").disabled = false;
    colour();
  } catch (problem) {
    failed(problem, looking, "graph-problem", " Without its graph it cannot be started. Choose it again to load it.");
  }
}

function colour() {
  const runId = shown.followed ?? shown.seen.newest;
  paint($("graph"), (task) => shown.seen.kindOf(runId, task));
  const which = shown.followed === null ? "the newest one" : "which you have chosen";
  $("followed").textContent = runId === null ? "" : shown.seen.has(runId)
    ? `The colours are those of the run ${runId}, ${which}.`
    : `Nothing was seen here of the steps of the run ${runId}, ${which}.`;
}

// --- starting, and looking at, runs

$("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  const looking = shown;
  if ($("start-button").disabled) return;
  const { body, problem, field } = read($("args").value, $("kwargs").value);
  if (problem) {
    say("start-answer", problem, true);
    $(field).focus();
    return;
  }
  say("start-answer", "");
  $("start-button").disabled = true;
  try {
    const started = await call(session.credential, pathOf(looking.id, "execute"), body);
    if (shown !== looking) return;
    say("start-answer", `Started as ${started.run_id}.`);
    looking.followed = null;
    colour();
    listRuns(looking);
  } catch (problem) {
    failed(problem, looking, "start-answer");
  } finally {
    if (shown === looking) $("start-button").disabled = false;
  }
});

let refresh = null;

function refreshRuns(looking, milliseconds) {
  clearTimeout(refresh);
  const wait = Math.max(milliseconds, looking.notBefore - Date.now());
  refresh = setTimeout(() => shown === looking && listRuns(looking), wait);
}

async function listRuns(looking) {
  const asked = (looking.asked += 1);
  const wanted = () => shown === looking && looking.asked === asked;
  try {
    const { runs } = await call(session.credential, pathOf(looking.id, "status"));
    if (!wanted()) return;
    say("runs-problem", "");
    showRuns(looking, runs);
    if (runs.some((run) => run.state === "running")) refreshRuns(looking, LATER);
  } catch (problem) {
    if (!wanted()) return;
    if (problem.status === 429) say("runs-problem", "This list was asked for too often, and will be asked for again soon.");
    else failed(problem, looking, "runs-problem");
    if (shown !== looking || !mayPass(problem)) return;
    looking.notBefore = Date.now() + 2 * LATER;
    refreshRuns(looking, 0);
  }
}

function showRuns(looking, runs) {
  const changed = list($("runs"), runs, (runId) => choose(looking, looking.detailed === runId ? null : runId));
  for (const run of runs) looking.seen.started(run.run_id, Date.parse(run.started_at));
  colour();
  if (changed.includes(looking.detailed)) showDetails(looking);
}

function choose(looking, runId) {
  looking.followed = looking.detailed = runId;
  mark($("runs"), runId);
  $("details").hidden = true;
  $("details").replaceChildren();
  colour();
  if (runId !== null) showDetails(looking);
}

async function showDetails(looking) {
  const runId = looking.detailed;
  const wanted = () => shown === looking && looking.detailed === runId;
  try {
    const run = await call(session.credential, pathOf(looking.id, `runs/${encodeURIComponent(runId)}`));
    if (!wanted()) return;
    const outcome = JSON.stringify(run.error ?? run.result_problem ?? run.result, null, 2);
    $("details").textContent = run.state === "running" ? "It is still running." : outcome;
    $("details").hidden = false;
    say("runs-problem", "");
  } catch (problem) {
    if (wanted()) failed(problem, looking, "runs-problem");
  }
}

// --- live events, of the pipeline that is shown

const LISTENER = {
  connected(yes) {
    $("connection").classList.toggle("live", yes);
    $("connection").textContent = yes ? "live" : "connecting";
  },
  event(event) {
    shown.seen.add(event);
    colour();
    const item = element("li");
    item.append(
      element("time", timeOf(event.time * 1000)),
      element("strong", event.kind, { class: `kind-${event.kind}` }),
      element("span", event.task),
      element("span", [event.subject, event.reason].filter(Boolean).join(", "), { class: "hint" }),
    );
    $("no-events").hidden = true;
    $("events").prepend(item);
    while ($("events").children.length > SHOWN_EVENTS) $("events").lastChild.remove();
    if (event.kind !== "enqueued" && event.kind !== "started") refreshRuns(shown, SOON);
  },
  problem(pipelineId, text) {
    if (pipelineId === shown?.id) say("live-problem", text, true);
  },
  loginEnded() {
    signOut("The login has ended. Sign in again.");
  },
};
