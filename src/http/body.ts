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

/**
 * Gives the body to `take` in pieces of limits.exportReadBytes, one after the other, with their
 * places in it. Throws tooLarge where more than `limitBytes` come, bodyBroken where it breaks off.
 */
export async function forEachPiece(
  request: Request,
  limitBytes: number,
  take: (piece: Uint8Array<ArrayBuffer>, offset: number) => Promise<unknown>,
): Promise<void> {
  checkAnnouncedLength(request, limitBytes);
  const piece = new Uint8Array(limits.exportReadBytes);
  let filled = 0;
  let offset = 0;
  const hand = async () => {
    await take(piece.slice(0, filled), offset);
    offset += filled;
    filled = 0;
  };
  for await (const chunk of chunksOf(request)) {
    if (offset + filled + chunk.length > limitBytes) throw tooLarge(limitBytes);
    for (let at = 0; at < chunk.length;) {
      const part = chunk.subarray(at, at + piece.length - filled);
      piece.set(part, filled);
      filled += part.length;
      at += part.length;
      if (filled === piece.length) await hand();
    }
  }
  if (filled > 0) await hand();
}

async function* chunksOf(request: Request): AsyncGenerator<Uint8Array> {
  if (request.body === null) return;
  const iterator = request.body[Symbol.asyncIterator]();
  try {
    for (;;) {
      let next: IteratorResult<Uint8Array>;
      try {
        next = await iterator.next();
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        throw new ServiceError("bodyBroken", `the body broke off: ${reason}`, { cause: error });
      }
      if (next.done) return;
      yield next.value;
    }
  } finally {
    // Where it is not read to its end, nobody wants the rest.
    await iterator.return?.();
  }
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
