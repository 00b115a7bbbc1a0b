// Requests to the server. Errors are {kind, title, detail}.

// The API key, kept for this tab; "" without one.
let key = sessionStorage.getItem("dff-key") ?? "";
export function useKey(text) {
  key = text.trim();
  sessionStorage.setItem("dff-key", key);
}

// Web sockets take no headers: the key is one of their protocols.
export function socketProtocols() { return key ? ["dff", `dff-key.${key}`] : []; }

export async function send(path, fields, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, "photo");
    else if (value != null) form.append(name, JSON.stringify(value));
  }
  return ask(path, { method: "POST", body: form, signal, headers: { Deadline: "60" } });
}

// What the server refuses, since a socket that does not open tells no reason.
export async function checkAccess() { await ask("v1/models", { headers: {} }); }

async function ask(path, request) {
  let response;
  try {
    response = await fetch(path, { ...request, headers: { ...request.headers, ...(key ? { "X-API-Key": key } : {}) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { title: "The server can't be reached", detail: "Check the connection and try again." };
  }
  if (response.ok) return response;
  let problem = {};
  try { problem = await response.json(); } catch { /* a proxy's own error page */ }
  const wait = response.headers.get("Retry-After");
  throw {
    kind: (problem.type || "").split("/").pop(),
    title: problem.title || `The server answered ${response.status}`,
    detail: wait ? `Try again in ${wait} seconds.` : problem.detail || "",
  };
}

export async function readImage(file) {
  const image = new Image(), url = URL.createObjectURL(file);
  image.src = url;
  try { await image.decode(); } finally { URL.revokeObjectURL(url); }
  return image;
}

export function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
