/**
 * Bodies of requests, read within a limit.
 *
 * JSON is taken whatever Content-Type says: `curl -d` sends the type of a form. What guards against
 * forms of foreign pages is the Origin check (access.ts).
 *
 * @module
 */

import { limits } from "../limits.ts";
import { ServiceError } from "../vm/errors.ts";
import { HttpError } from "./problem.ts";

/** The whole body, at most `limitBytes` of it; throws tooLarge. */
export async function readBody(
  request: Request,
  limitBytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  checkAnnouncedLength(request, limitBytes);
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of request.body ?? []) {
    length += chunk.length;
    if (length > limitBytes) throw tooLarge(limitBytes);
    chunks.push(chunk);
  }
  const bytes = new Uint8Array(length);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.length;
  }
  return bytes;
}

/** Throws tooLarge if the request announces more than `limitBytes`. */
export function checkAnnouncedLength(request: Request, limitBytes: number): void {
  if (Number(request.headers.get("content-length") ?? 0) > limitBytes) throw tooLarge(limitBytes);
}

/** A JSON body; none at all counts as `{}`. Throws invalidJson or tooLarge. */
export function parseJson(bytes: Uint8Array): unknown {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return text.trim() === "" ? {} : JSON.parse(text);
  } catch (error) {
    throw new HttpError("invalidJson", error instanceof Error ? error.message : String(error));
  }
}

/** The bytes of a JSON body. */
export function readJsonBytes(request: Request): Promise<Uint8Array<ArrayBuffer>> {
  return readBody(request, limits.requestBodyBytes);
}

function tooLarge(limitBytes: number): ServiceError {
  return new ServiceError("tooLarge", `the body is larger than ${limitBytes} bytes`);
}
