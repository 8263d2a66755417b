// The page: sends a pair, follows it through the queue, and shows the result.

import { makeViewer } from "/viewer.js";

const FIRST_POLL = 50, LAST_POLL = 400; // ms between two questions for the state
const $ = (id) => document.getElementById(id);

// A token comes after # in the address, which is never sent, and stays in this tab alone.
const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.has("token")) {
  sessionStorage.setItem("ldp-token", fragment.get("token"));
  history.replaceState(null, "", location.pathname);
}

const viewer = makeViewer({
  stage: $("stage"), pan: $("pan"), pictures: $("pictures"), slider: $("slider"), opacity: $("opacity"),
  zooms: { fit: $("fit"), 1: $("full"), 2: $("double") },
});
let urls = []; // of the pictures that are shown
let limits = null;
let work = null; // cancels the restoration in flight

class ServiceError extends Error {}

function headers() {
  const token = sessionStorage.getItem("ldp-token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function problem(status, text) {
  if (status === 401) $("sign-in").hidden = false;
  try {
    return new ServiceError(JSON.parse(text).detail);
  } catch {
    return new ServiceError(`the service answered with status ${status}`);
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers() });
  } catch {
    throw new ServiceError("the service does not answer; is it still running?");
  }
  if (!answer.ok) throw problem(answer.status, await answer.text());
  return answer;
}

function send(form, signal) {
  const request = new XMLHttpRequest(); // fetch does not report upload progress
  return new Promise((resolve, reject) => {
    request.open("POST", "/v1/restorations");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    const stop = () => request.abort();
    signal.addEventListener("abort", stop);
    request.upload.onprogress = (event) => { if (!signal.aborted) $("progress").value = event.loaded / event.total; };
    // What is wholly sent is in the queue or soon will be: its answer says what to delete.
    request.upload.onload = () => signal.removeEventListener("abort", stop);
    request.onload = () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText));
      else reject(problem(request.status, request.responseText));
    };
    request.onerror = () => reject(new ServiceError("the upload failed; is the service still running?"));
    request.onabort = () => reject(signal.reason);
    request.send(form);
  });
}

// --- the pair ---

const SIDES = {
  left: /(^|[^a-z])(left|top|l)([^a-z]|$)/i,
  right: /(^|[^a-z])(right|bottom|r)([^a-z]|$)/i,
};

const HOLDS_BOTH = /\.(cr2|cr3|dng|tiff?)$/i; // a raw photo, or a TIFF of two pages
const RAW = /\.(cr2|cr3|dng)$/i;

function arrange(files) {
  const [first, second] = files;
  if (!second) return SIDES.right.test(first.name) && !SIDES.left.test(first.name) ? [null, first] : [first, null];
  const swapped = SIDES.right.test(first.name) && !SIDES.left.test(first.name)
    || (SIDES.left.test(second.name) && !SIDES.right.test(second.name));
  if (swapped) return [second, first];
  const named = SIDES.left.test(first.name) || SIDES.right.test(second.name);
  return named || first.name <= second.name ? [first, second] : [second, first];
}

function put(input, file) {
  const transfer = new DataTransfer();
  if (file) transfer.items.add(file);
  input.files = transfer.files;
}

function choose(files) {
  const chosen = [...files].slice(0, 2);
  if (chosen.length === 0) return;
  const [left, right] = arrange(chosen);
  if (chosen.length === 1 && RAW.test(chosen[0].name)) put($(left ? "right" : "left"), null);
  if (left) put($("left"), left);
  if (right) put($("right"), right);
  say(files.length > 2 ? "Only the first two files are used." : "");
}

for (const id of ["left", "right"]) $(id).addEventListener("change", () => say(""));
$("exchange").addEventListener("click", () => {
  const [left, right] = [$("left").files[0], $("right").files[0]];
  put($("left"), right);
  put($("right"), left);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(event.dataTransfer.files);
});

// --- the work ---

function say(text) {
  $("status").textContent = text;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function setBusy(on) {
  $("restore").disabled = on;
  $("cancel").hidden = !on;
  if (!on) $("progress").hidden = true;
}

function check(left, right) {
  const alone = !left !== !right ? left ?? right : null;
  if (alone ? !HOLDS_BOTH.test(alone.name) : !left) return "Choose both views first.";
  if (limits && (left?.size ?? 0) + (right?.size ?? 0) > limits.max_upload - 4096) {
    return `The two files have more than ${Math.floor(limits.max_upload / 2 ** 20)} MiB, more than the service accepts.`;
  }
  return "";
}

async function follow(path, signal) {
  for (let pause = FIRST_POLL; ; pause = Math.min(2 * pause, LAST_POLL)) {
    const status = await (await ask(path, { signal })).json();
    if (status.state === "done") return status;
    if (status.state === "failed") throw new ServiceError(status.problem.detail);
    if (status.state === "waiting") say(`Waiting: number ${status.position} in the queue`);
    else if (status.progress > 0) {
      $("progress").value = status.progress;
      say(`Restoring: ${Math.round(100 * status.progress)} %`);
    } else say("Restoring…");
    await new Promise((resolve) => setTimeout(resolve, pause));
    signal.throwIfAborted();
  }
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (work) return;
  const [left, right] = [$("left").files[0], $("right").files[0]];
  const wrong = check(left, right);
  showError(wrong);
  if (wrong) return;
  const form = new FormData();
  form.append("left", left ?? right);
  if (left && right) form.append("right", right);
  if (!left) form.append("swap", "true"); // a file with both views, exchanged
  form.append("axis", $("axis").value);
  if ($("check").value) form.append("check", $("check").value);
  form.append("format", $("format").value);
  setBusy(true);
  $("progress").hidden = false;
  $("progress").value = 0;
  $("progress").setAttribute("aria-label", "Upload");
  say("Sending…");
  work = new AbortController();
  const { signal } = work;
  try {
    const path = `/v1/restorations/${(await send(form, signal)).id}`;
    const forget = () => fetch(path, { method: "DELETE", headers: headers(), keepalive: true }).catch(() => {});
    if (signal.aborted) forget();
    signal.throwIfAborted();
    signal.addEventListener("abort", forget);
    $("progress").removeAttribute("value"); // until the first windows are done
    $("progress").setAttribute("aria-label", "Restoration");
    await show(await follow(path, signal), (left ?? right).name, form.get("format"), signal);
    forget(); // this tab has every picture now
    say("Done.");
  } catch (error) {
    if (!signal.aborted) {
      say("");
      showError(sentence(error instanceof ServiceError ? error.message : String(error)));
    }
  }
  if (signal.aborted) return; // the page may be busy with another pair by now
  work = null;
  setBusy(false);
});

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function cancel() {
  if (!work) return;
  work.abort();
  work = null;
  setBusy(false);
  say("Cancelled.");
}
$("cancel").addEventListener("click", () => { cancel(); $("restore").focus(); });
addEventListener("pagehide", cancel);

// --- the result ---

async function show(status, name, format, signal) {
  const { report, links } = status;
  say("Loading the pictures…");
  const blobs = await Promise.all(
    Object.entries(links).map(async ([file, path]) => [file, await (await ask(path, { signal })).blob()]),
  );
  $("cancel").hidden = true; // from here on the result takes the place of the one before
  const files = Object.fromEntries(blobs.map(([file, blob]) => [file, URL.createObjectURL(blob)]));
  for (const each of document.querySelectorAll(".map-only")) each.hidden = !report.blur_map;
  await Promise.all(["after", "before", ...(report.blur_map ? ["blur-map"] : [])].map((file) => {
    $(file).src = files[file];
    return $(file).decode();
  }));
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = Object.values(files);
  const stem = name.replace(/\.[^.]*$/, "");
  const suffix = { png: ".png", tiff: ".tif", jpeg: ".jpg" }[format];
  $("save-image").href = files.image;
  $("save-image").download = `${stem}-restored${suffix}`;
  if (report.blur_map) $("save-map").href = files["blur-map"];
  $("save-map").download = `${stem}-blur-map.png`;
  describe(report);
  $("result").hidden = false;
  viewer.show(report.width, report.height);
}

function describe(report) {
  const total = Object.values(report.seconds).reduce((sum, value) => sum + value, 0);
  $("summary").textContent = `${report.width} × ${report.height} px, ${report.bits} bits, restored ${report.scale < 1 ? `at 1/${1 / report.scale} of its size ` : ""}in `
    + `${total.toFixed(1)} s by ${report.bundle} on ${report.backend} (${report.precision})`;
  $("seconds").replaceChildren(...Object.entries(report.seconds).map(([stage, value]) => {
    const row = document.createElement("tr");
    for (const text of [stage.replace("_", " "), value.toFixed(3)]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
  $("warnings").hidden = report.warnings.length === 0;
  $("warnings").replaceChildren(...report.warnings.map((text) => {
    const item = document.createElement("li");
    item.textContent = sentence(text);
    return item;
  }));
}

// --- the service ---

async function connect() {
  try {
    const health = await (await ask("/v1/health")).json();
    limits = await (await ask("/v1/limits")).json();
    $("service").textContent = health.status === "ready" ? "Service ready" : "Service is stopping";
    $("sign-in").hidden = true;
  } catch (error) {
    if (!(error instanceof ServiceError)) throw error;
    $("service").textContent = $("sign-in").hidden ? "No service" : "Needs a token";
    $("service").classList.add("off");
    if ($("sign-in").hidden) showError(sentence(error.message));
    return;
  }
  $("service").classList.remove("off");
}
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("ldp-token", $("token").value.trim());
  showError(""); // of the token before; what was said of the pair meanwhile stays
  connect();
});
connect();
