/**
 * The page that shows the files of a snapshot. The browser itself reads the disk, over NBD in a
 * WebSocket; the service hands out tickets and bytes, and knows no file system.
 *
 * The address keeps what is shown (`#export=...&partition=...&path=...`), so that Back, Forward and
 * bookmarks work.
 */

import { connect, openVolume, readPartitions, slice, tarOf } from "../../client/mod.ts";

const PREVIEW_BYTES = 64 * 1024;
/** Beyond it a download goes straight to a file, where the browser can. */
const BLOB_BYTES_MAX = 256 * 1024 * 1024;
const WHOLE_DISK = "whole";

/** Elements of the page by their ids. */
const $ = (id) => document.getElementById(id);

const state = {
  token: sessionStorage.getItem("ovis-token") ?? "",
  /** Of the export that is open. */
  exportName: "",
  disk: null,
  partitions: [],
  partition: "",
  volume: null,
  /** Of the download that runs. */
  abort: null,
};

function say(text) {
  $("message").textContent = text;
}

/** Runs an action of the user's; what goes wrong is shown. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
  }
}

async function call(method, path) {
  const response = await fetch(path, {
    method,
    headers: { authorization: `Bearer ${state.token}` },
  });
  const body = await response.json();
  if (!response.ok) {
    throw new Error(body.detail ?? body.title ?? `the service says ${response.status}`);
  }
  return body;
}

function place() {
  const given = new URLSearchParams(location.hash.slice(1));
  return {
    exportName: given.get("export") ?? "",
    partition: given.get("partition") ?? "",
    path: given.get("path") ?? "/",
  };
}

function hashOf({ exportName, partition, path }) {
  return `#${new URLSearchParams({ export: exportName, partition, path })}`;
}

async function showExports() {
  const { items } = await call("GET", "/v1/exports?limit=100");
  sessionStorage.setItem("ovis-token", state.token);
  const select = $("export");
  select.replaceChildren(new Option("choose", ""));
  for (const { name } of items) select.append(new Option(name, name));
  $("choice").hidden = false;
  say(items.length === 0 ? "There is no snapshot: take a fleecing of a machine first." : "");
  await show();
}

/** Shows what the address says. */
async function show() {
  if (state.token === "") return;
  const wanted = place();
  $("export").value = wanted.exportName;
  if (wanted.exportName === "") return;
  if (wanted.exportName !== state.exportName) await openExport(wanted.exportName);
  const partition = wanted.partition === "" ? firstPartition() : wanted.partition;
  if (partition !== state.partition) await openPartition(partition);
  await showFolder(wanted.path);
}

async function openExport(name) {
  await state.disk?.close();
  Object.assign(state, { exportName: "", disk: null, partition: "", volume: null });
  const path = `/v1/exports/${encodeURIComponent(name)}`;
  state.disk = await connect(`${path}/nbd`, {
    ticket: async () => (await call("POST", `${path}/tickets`)).ticket,
    onReconnect: (number) => say(`The connection broke: attempt ${number} to connect again.`),
  });
  state.exportName = name;
  state.partitions = (await readPartitions(state.disk)).partitions;
  const select = $("partition");
  select.replaceChildren(new Option("whole disk", WHOLE_DISK));
  for (const { number, sizeBytes, name, type } of state.partitions) {
    select.append(new Option(`${number}: ${name || type}, ${sizeBytes} bytes`, `${number}`));
  }
}

function firstPartition() {
  const largest = [...state.partitions].sort((a, b) => b.sizeBytes - a.sizeBytes)[0];
  return largest === undefined ? WHOLE_DISK : `${largest.number}`;
}

async function openPartition(name) {
  const found = state.partitions.find(({ number }) => `${number}` === name);
  $("partition").value = name;
  $("browser").hidden = true;
  const source = found === undefined
    ? state.disk
    : slice(state.disk, found.offset, found.sizeBytes);
  state.partition = name;
  state.volume = null;
  $("volume").textContent = "";
  state.volume = await openVolume(source);
  $("volume").textContent = `${state.volume.type} ${state.volume.label}`;
}

async function showFolder(path) {
  if (state.volume === null) throw new Error("There is no file system that this page knows here.");
  const rows = [];
  for await (const entry of state.volume.list(path)) rows.push(entry);
  rows.sort((a, b) => a.name.localeCompare(b.name));
  $("entries").replaceChildren(...rows.map(rowOf));
  showPath(path);
  $("browser").hidden = false;
  $("preview").hidden = true;
  say(`${rows.length} names in ${path}`);
}

function showPath(path) {
  const names = path.split("/").filter((name) => name !== "");
  const links = [linkTo("/", "/")];
  names.forEach((name, index) =>
    links.push(linkTo(`/${names.slice(0, index + 1).join("/")}`, name))
  );
  $("path").replaceChildren(...links);
}

function linkTo(path, text) {
  const link = document.createElement("a");
  link.href = hashOf({ exportName: state.exportName, partition: state.partition, path });
  link.textContent = text;
  return link;
}

function rowOf(entry) {
  const row = document.createElement("tr");
  const name = entry.kind === "directory" ? linkTo(entry.path, `${entry.name}/`) : nameOf(entry);
  const facts = [
    `${entry.sizeBytes}`,
    entry.modifiedAt.toISOString().slice(0, 19).replace("T", " "),
    entry.mode.toString(8).padStart(4, "0"),
    `${entry.uid}:${entry.gid}`,
  ];
  const save = document.createElement("button");
  save.textContent = entry.kind === "directory" ? "tar" : "download";
  save.setAttribute("aria-label", `download ${entry.name}`);
  save.onclick = () => attempt(() => download(entry));
  const canSave = entry.kind === "directory" || entry.kind === "file";
  for (const content of [name, ...facts, canSave ? save : ""]) {
    const cell = document.createElement("td");
    cell.append(content);
    row.append(cell);
  }
  return row;
}

function nameOf(entry) {
  if (entry.kind !== "file" && entry.kind !== "symlink") return `${entry.name} (${entry.kind})`;
  const button = document.createElement("button");
  button.textContent = entry.name;
  button.onclick = () => attempt(() => preview(entry));
  return button;
}

async function preview(entry) {
  $("previewName").textContent = entry.path;
  if (entry.kind === "symlink") {
    $("previewText").textContent = `leads to ${await state.volume.readLink(entry.path)}`;
  } else {
    const file = await state.volume.open(entry.path);
    const bytes = await file.read(0, PREVIEW_BYTES);
    $("previewText").textContent = isText(bytes)
      ? new TextDecoder().decode(bytes)
      : hexOf(bytes.subarray(0, 4096));
  }
  $("preview").hidden = false;
  $("preview").scrollIntoView({ block: "nearest" });
}

function isText(bytes) {
  return !bytes.includes(0);
}

function hexOf(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((byte) => byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex.padEnd(48)}  ${text.join("")}`);
  }
  return lines.join("\n");
}

/** A file as it is, a folder as an archive. */
async function download({ path, name, kind, sizeBytes }) {
  const abort = new AbortController();
  const { signal } = abort;
  const isFolder = kind === "directory";
  const fileName = isFolder ? `${name || "files"}.tar` : name;
  const onProgress = isFolder
    ? ({ entryCount, fileBytes }) => showProgress(`${entryCount} files, ${fileBytes} bytes`)
    : ({ doneBytes, totalBytes }) =>
      showProgress(`${fileName}`, doneBytes / Math.max(1, totalBytes));
  state.abort?.abort(new Error("another download was started"));
  state.abort = abort;
  $("cancel").hidden = false;
  try {
    const stream = isFolder
      ? tarOf(state.volume, path, { onProgress, signal })
      : (await state.volume.open(path)).stream({ onProgress, signal });
    if (sizeBytes > BLOB_BYTES_MAX && "showSaveFilePicker" in globalThis) {
      const handle = await globalThis.showSaveFilePicker({ suggestedName: fileName });
      await stream.pipeTo(await handle.createWritable(), { signal });
    } else saveBlob(await new Response(stream).blob(), fileName);
    say(`${fileName} is downloaded.`);
  } finally {
    if (state.abort === abort) {
      $("progress").hidden = true;
      $("cancel").hidden = true;
    }
  }
}

function showProgress(text, fraction) {
  const bar = $("progress");
  bar.hidden = false;
  if (fraction === undefined) bar.removeAttribute("value");
  else bar.value = fraction;
  say(text);
}

function saveBlob(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

$("access").onsubmit = (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  attempt(showExports);
};
$("export").onchange = () => {
  location.hash = hashOf({ exportName: $("export").value, partition: "", path: "/" });
};
$("partition").onchange = () => {
  const partition = $("partition").value;
  location.hash = hashOf({ exportName: state.exportName, partition, path: "/" });
};
$("archive").onclick = () => {
  const { path } = place();
  const name = path.slice(path.lastIndexOf("/") + 1) || state.exportName;
  attempt(() => download({ path, name, kind: "directory", sizeBytes: Infinity }));
};
$("cancel").onclick = () => state.abort?.abort(new Error("The download was cancelled."));
addEventListener("hashchange", () => attempt(show));
if (state.token !== "") attempt(showExports);
