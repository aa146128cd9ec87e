/**
 * Downloads a file whose size and SHA-256 are known, in a way that can be broken off and repeated:
 * the part that came is kept and continued, and only a whole, right file gets its name.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { ImageError } from "./errors.ts";

/** What to fetch, and what it must be. */
export interface Download {
  /** http or https. */
  url: string;
  /** Where the file goes; the unfinished one stands beside it as `PATH.part`. */
  path: string;
  /** What its size must be: not one byte beyond is written. */
  sizeBytes: number;
  /** What its SHA-256 must be: 64 hexadecimal digits, in lower case. */
  sha256: string;
  /** Called after each piece; counts what was there from an earlier try. */
  onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Breaks the transfer off; the part stays for the next time. */
  signal?: AbortSignal;
}

/** Fetches the file unless it is already there and right. */
export async function download(want: Download): Promise<void> {
  if (await isRight(want.path, want)) return;
  const part = `${want.path}.part`;
  let done = (await sizeOf(part)) ?? 0;
  if (done > want.sizeBytes) done = 0;
  if (done < want.sizeBytes) {
    const headers: HeadersInit = done > 0 ? { range: `bytes=${done}-` } : {};
    const response = await get(want.url, { headers, signal: want.signal ?? null });
    if (response.status !== 206) done = 0;
    await append(response, part, { ...want, done });
  }
  if (!await isRight(part, want)) {
    await Deno.remove(part).catch(() => {});
    throw new ImageError(
      `${want.url} is not what its signed index says (size or SHA-256 differ); ` +
        "a mirror that is just being updated does this: try again later, or another --mirror",
    );
  }
  await Deno.rename(part, want.path);
}

/** A GET that must succeed; ImageError otherwise. */
export async function get(url: string, init?: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, init);
  } catch (error) {
    if (init?.signal?.aborted) throw error;
    throw new ImageError(`${url}: ${(error as Error).message}`, { cause: error });
  }
  if (!response.ok) {
    await response.body?.cancel();
    throw new ImageError(`${url}: ${response.status} ${response.statusText}`);
  }
  return response;
}

async function append(
  response: Response,
  path: string,
  want: Download & { done: number },
): Promise<void> {
  if (response.body === null) throw new ImageError(`${want.url}: no content`);
  using file = await Deno.open(path, { write: true, create: true });
  await file.truncate(want.done);
  await file.seek(0, Deno.SeekMode.End);
  let done = want.done;
  for await (const chunk of response.body) {
    if (done + chunk.length > want.sizeBytes) {
      throw new ImageError(`${want.url} is larger than its signed index says`);
    }
    for (let at = 0; at < chunk.length;) at += await file.write(chunk.subarray(at));
    done += chunk.length;
    want.onProgress?.(done, want.sizeBytes);
  }
}

async function isRight(
  path: string,
  want: { sizeBytes: number; sha256: string },
): Promise<boolean> {
  if (await sizeOf(path) !== want.sizeBytes) return false;
  const hash = createHash("sha256");
  using file = await Deno.open(path);
  for await (const chunk of file.readable) hash.update(chunk);
  return hash.digest("hex") === want.sha256;
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await Deno.stat(path)).size;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
