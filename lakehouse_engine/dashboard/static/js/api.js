// Requests to the server that the page came from. A failure carries a code, and whether it is worth another try.
export class Failed extends Error {
  constructor(code, message, again) {
    super(message);
    this.code = code;
    this.again = again;
  }
}

export async function get(path, parameters = {}) {
  const asked = new URLSearchParams(
    Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined),
  );
  let response;
  try {
    response = await fetch(asked.size ? `${path}?${asked}` : path, {
      headers: { accept: "application/json" },
      signal: AbortSignal.timeout(15000),
    });
  } catch {
    throw new Failed("NO_CONNECTION", "Connection lost: is lakehouse dashboard still running?", true);
  }
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
    throw new Failed("TOKEN_REQUIRED", "Log in again", false);
  }
  const content = await response.json().catch(() => null);
  if (response.ok && content) return content;
  const error = content?.error ?? { code: "HTTP_ERROR", message: `The server answered ${response.status}` };
  throw new Failed(error.code, error.message, response.status >= 500);
}
