// Asks the admin API, with the key that the user gave. The key is in this tab's storage only, and no cookie is sent or kept.

const KEY = "octavo-admin-key";
const PATIENCE_MS = 20000;

export class ApiError extends Error {
  // status 0: there was no answer
  constructor(status, message, code = null, param = null) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

export const session = {
  key: sessionStorage.getItem(KEY),
  onLocked: () => {},
  keep(key) {
    this.key = key;
    sessionStorage.setItem(KEY, key);
  },
  forget() {
    this.key = null;
    sessionStorage.removeItem(KEY);
  },
};

export async function send(path, options = {}) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const why = error.name === "TimeoutError" ? "It took too long." : "It may be restarting, or the network is down.";
    throw new ApiError(0, `The gateway does not answer. ${why}`);
  }
}

export async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const { message, code, param } = body.error ?? {};
  return new ApiError(response.status, message ?? `The gateway answers ${response.status}`, code, param);
}

export async function ask(method, path, { body, query } = {}) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value != null);
  const end = given.length ? `?${new URLSearchParams(given)}` : "";
  const headers = { Authorization: `Bearer ${session.key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await send(`admin/v1${path}${end}`, {
    method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (response.ok) return response.json();
  const error = await failure(response);
  if (response.status === 401) session.onLocked();
  throw error;
}

export const get = (path, query) => ask("GET", path, { query });
