// What events have told of the steps of a pipeline's runs. They name the task, and not the step that runs it.

const WORST_FIRST = ["refused", "failed", "started", "completed"];
const REMEMBERED = 50;

export class SeenRuns {
  #runs = new Map(); // by id: when it started, and by task what its executions have come to, each and in number

  add({ run_id, task, task_id, kind, time }) {
    const run = this.#runs.get(run_id) ?? this.#remember(run_id);
    run.startedAt = Math.min(run.startedAt, 1000 * time);
    if (kind === "enqueued") return;
    if (!run.tasks.has(task)) run.tasks.set(task, { executions: new Map(), numbers: {} });
    const { executions, numbers } = run.tasks.get(task);
    const before = executions.get(task_id); // of the same execution: a retry keeps its id
    if (before && time < before.time) return; // those of several processes may overtake each other
    if (before) numbers[before.kind] -= 1;
    numbers[kind] = (numbers[kind] ?? 0) + 1;
    executions.set(task_id, { kind, time });
  }

  // Who has come in the middle of a run does not know by its events when it started.
  started(runId, moment) {
    const run = this.#runs.get(runId);
    if (run) run.startedAt = moment;
  }

  has(runId) {
    return this.#runs.has(runId);
  }

  // The run that has started last, of those of which anything was seen.
  get newest() {
    let [newest, last] = [null, -Infinity];
    for (const [runId, { startedAt }] of this.#runs) if (startedAt > last) [newest, last] = [runId, startedAt];
    return newest;
  }

  // What a task has come to in a run: one execution that fails is not made good by others.
  kindOf(runId, task) {
    const numbers = this.#runs.get(runId)?.tasks.get(task)?.numbers ?? {};
    return WORST_FIRST.find((kind) => numbers[kind] > 0);
  }

  #remember(runId) {
    const run = { startedAt: Infinity, tasks: new Map() };
    this.#runs.set(runId, run);
    if (this.#runs.size > REMEMBERED) this.#runs.delete(this.#runs.keys().next().value);
    return run;
  }
}
