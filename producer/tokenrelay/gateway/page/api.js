/**
 * Calls to the gateway. All paths are relative to the page, which may be served under a prefix.
 */

const KEY = "tokenrelay.api-key";

/** An error response of the gateway, or a failure to reach it (`status` 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {{code?: string | null, field?: string | null, retryAfterS?: number | null}} [more]
   */
  constructor(status, message, { code = null, field = null, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.field = field;
    this.retryAfterS = retryAfterS;
  }

  /** Whether a retry may succeed. */
  get isTransient() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** The API key of this tab, kept in its session storage. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** @param {string} value */
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/**
 * Send a request, and return the response with its body unread.
 *
 * @param {string} path
 * @param {{method?: string, body?: object, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = apiKey.get();
  const sent = {
    ...(body ? { "Content-Type": "application/json" } : {}),
    ...(key ? { Authorization: `Bearer ${key}` } : {}),
    ...headers,
  };
  /** @type {Response} */
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "The gateway can't be reached.");
  }
  if (response.ok) return response;
  throw await errorOf(response);
}

/**
 * Send a request, and return the response's JSON.
 *
 * @param {string} path
 * @param {Parameters<typeof ask>[1]} [options]
 * @returns {Promise<any>}
 * @throws {ApiError}
 */
export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

/** @param {string} requestId */
export const pathOf = (requestId) => `requests/${encodeURIComponent(requestId)}`;

/** @param {Response} response */
async function errorOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After") ?? Number.NaN);
  const retryAfterS = Number.isFinite(retryAfter) ? retryAfter : null;
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.message, { code: error.code, field: error.param, retryAfterS });
  } catch {
    // Not the gateway's JSON: a proxy's error page, for example.
    return new ApiError(response.status, `The gateway returned ${response.status} ${response.statusText}`.trim(), { retryAfterS });
  }
}
