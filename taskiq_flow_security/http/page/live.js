// The WebSocket: the events of the one pipeline that is watched. Connects again whenever it has to.

const LOGIN_ENDED = 4401;
const LONGEST_PAUSE = 30_000;
const MAY_PASS = ["not_found", "policy_stale", "internal_error"];

export class Live {
  #credential;
  #on;
  #socket = null;
  #attempts = 0;
  #watched = null;
  #refused = new Map(); // why, by pipeline: asked for again, it would end the next connection, too
  #closed = false;

  // `on` has to have: connected(yes), event(event), problem(pipelineId, text), loginEnded().
  constructor(credential, on) {
    this.#credential = credential;
    this.#on = on;
  }

  connect() {
    const address = new URL("ws", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    this.#socket = socket;
    this.#on.connected(false);
    socket.addEventListener("open", () => socket.send(JSON.stringify({ type: "connect", auth: this.#credential })));
    socket.addEventListener("message", ({ data }) => this.#closed || this.#receive(JSON.parse(data)));
    socket.addEventListener("close", ({ code }) => this.#closed || this.#ended(code));
  }

  watch(pipelineId) {
    if (this.#watched !== null) this.#tell({ type: "unsubscribe", pipeline_id: this.#watched });
    this.#watched = pipelineId;
    this.#subscribe();
  }

  close() {
    this.#closed = true;
    this.#socket?.close();
  }

  #receive(message) {
    if (message.type === "connected") {
      this.#on.connected(true);
      this.#subscribe();
    } else if (message.type === "subscribed") {
      this.#attempts = 0;
    } else if (message.type === "event" && message.pipeline_id === this.#watched) {
      this.#on.event(message);
    } else if (message.type === "error" && message.pipeline_id) {
      if (!MAY_PASS.includes(message.reason)) this.#refused.set(message.pipeline_id, message.detail);
      this.#on.problem(message.pipeline_id, message.detail);
    }
  }

  #ended(code) {
    this.#on.connected(false);
    if (code === LOGIN_ENDED) return this.#on.loginEnded();
    this.#attempts += 1;
    setTimeout(() => this.#closed || this.connect(), Math.min(LONGEST_PAUSE, 500 * 2 ** this.#attempts));
  }

  #subscribe() {
    const [id, why] = [this.#watched, this.#refused.get(this.#watched)];
    if (why) this.#on.problem(id, why);
    else if (id !== null) this.#tell({ type: "subscribe", pipeline_id: id });
  }

  #tell(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }
}
