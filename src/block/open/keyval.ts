/**
 * Options as `key=value,...`: the syntax of QEMU's command line (util/keyval.c).
 *
 *   driver=qcow2,file.driver=file,file.filename=a,,b.img,list.0=x,list.1=y
 *
 * Dots make objects, numbers behind dots make lists, a doubled comma stands for one. All values are
 * strings. The first key may be left out where one is implied: `qcow2,file.driver=...`.
 *
 * @module
 */

import { inputError } from "./qapi.ts";
import { isJsonObject, type JsonObject, type JsonValue } from "./json.ts";
import { parseJson } from "./json_parser.ts";

const FRAGMENT_LENGTH_MAX = 127;
const LIST_INDEX_MAX = 65536;

/** Options as they were written, and how their values are to be taken. */
export interface KeyvalOptions {
  /** The options. */
  readonly object: JsonObject;
  /** All scalars are strings: they came as `key=value`. False for JSON. */
  readonly isKeyval: boolean;
}

/** Options in either form: an object of JSON, or `key=value,...`. */
export function parseOptionText(text: string, impliedKey: string | null): KeyvalOptions {
  if (!text.startsWith("{")) return { object: parseKeyval(text, impliedKey), isKeyval: true };
  const object = parseJson(text);
  if (!isJsonObject(object)) throw inputError("JSON object expected");
  return { object, isKeyval: false };
}

/** Parses `key=value,...`. Throws a BlockError (EINVAL). */
export function parseKeyval(text: string, impliedKey: string | null): JsonObject {
  const root: JsonObject = Object.create(null);
  let at = 0;
  let implied = impliedKey;
  while (at < text.length) {
    at = parseOne(root, { text, at, implied });
    implied = null;
  }
  return listify(root, "") as JsonObject;
}

/** Takes one `key=value` in; returns where the next one starts. */
function parseOne(
  root: JsonObject,
  input: { text: string; at: number; implied: string | null },
): number {
  const { text, at, implied } = input;
  const keyEnd = at + (/[=,]/.exec(text.slice(at))?.index ?? text.length - at);
  const isImplied = implied !== null && keyEnd > at && text[keyEnd] !== "=";
  const key = isImplied ? implied : text.slice(at, keyEnd);
  const fragments = splitKey(key);
  if (!isImplied && text[keyEnd] !== "=") {
    throw inputError(
      key === "help" || key === "?"
        ? "Help is not available for this option"
        : `No implicit parameter name for value '${key}'`,
    );
  }
  let value = "";
  let next = isImplied ? at : keyEnd + 1;
  while (next < text.length) {
    if (text[next] === ",") {
      next++;
      if (text[next] !== ",") break;
    }
    value += text[next++];
  }
  put(root, { fragments, key, value });
  return next;
}

function splitKey(key: string): string[] {
  const fragments = key.split(".");
  for (const [index, fragment] of fragments.entries()) {
    const isIndex = index > 0 && /^[0-9]+$/.test(fragment);
    if (!isIndex && !/^(__[A-Za-z0-9.-]*_)?[A-Za-z][A-Za-z0-9_-]*$/.test(fragment)) {
      throw inputError(`Invalid parameter '${key}'`);
    }
    if (fragment.length > FRAGMENT_LENGTH_MAX) {
      throw inputError(
        `Parameter${fragments.length > 1 ? " fragment" : ""} '${fragment}' is too long`,
      );
    }
  }
  return fragments;
}

function put(
  root: JsonObject,
  { fragments, key, value }: { fragments: string[]; key: string; value: string },
): void {
  let object = root;
  for (const [index, fragment] of fragments.entries()) {
    const isLeaf = index === fragments.length - 1;
    const existing = object[fragment];
    if (existing !== undefined && (typeof existing === "string") !== isLeaf) {
      const path = isLeaf ? key : fragments.slice(0, index + 1).join(".");
      throw inputError(`Parameters '${path}.*' used inconsistently`);
    }
    if (isLeaf) object[fragment] = value;
    else {
      const child: JsonObject = isJsonObject(existing) ? existing : Object.create(null);
      object[fragment] = child;
      object = child;
    }
  }
}

/** Makes lists of the objects whose keys are numbers. `prefix`: the object's key and a dot. */
function listify(object: JsonObject, prefix: string): JsonValue {
  const items = new Map<number, JsonValue>();
  let hasMembers = false;
  for (const [key, value] of Object.entries(object)) {
    const listed = isJsonObject(value) ? listify(value, `${prefix}${key}.`) : value;
    object[key] = listed ?? null;
    if (/^[0-9]+$/.test(key)) items.set(Number(key), listed ?? null);
    else hasMembers = true;
  }
  if (items.size === 0) return object;
  if (hasMembers) throw inputError(`Parameters '${prefix}*' used inconsistently`);
  const list: JsonValue[] = [];
  for (let index = 0; index < Math.min(items.size, LIST_INDEX_MAX); index++) {
    const item = items.get(index);
    if (item === undefined) throw inputError(`Parameter '${prefix}${index}' missing`);
    list.push(item);
  }
  return list;
}
