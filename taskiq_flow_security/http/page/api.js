// Calls the API with what somebody has signed in with.

const TOKEN = /^eyJ[\w-]*\.[\w-]*\.[\w-]*$/;

export class Problem extends Error {
  constructor(answer, content) {
    super(content.detail || `The server answers ${answer.status}.`);
    this.status = answer.status;
    this.reason = content.reason;
  }
}

export async function call(credential, path, body) {
  const headers = TOKEN.test(credential) ? { Authorization: `Bearer ${credential}` } : { "X-API-Key": credential };
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

export const pathOf = (id, rest) => `pipelines/${encodeURIComponent(id)}/${rest}`;

export function kindly(problem) {
  if (!(problem instanceof Problem)) return "The server cannot be reached. Try again in a moment.";
  if (problem.status === 401) return "This token is not accepted, or no longer.";
  if (problem.status === 403 && problem.reason?.includes("api_key")) return "This key is not accepted.";
  return problem.message;
}

export const mayPass = (problem) => !(problem instanceof Problem) || problem.status === 429 || problem.status >= 500;
