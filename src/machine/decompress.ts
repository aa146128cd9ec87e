/**
 * Decompression with a bound on the result: a small file can claim to hold any amount.
 *
 * @module
 */

import { gunzipSync, zstdDecompressSync } from "node:zlib";
import * as xzModule from "xz-decompress";

// A CommonJS package: its declarations name the export, which is a property of the default one.
const { XzReadableStream } = (xzModule as unknown as { default: typeof xzModule }).default;

/** What is known by its first bytes. */
export type Compression = "gzip" | "zstd" | "xz";

/** The result would be larger than allowed. */
export class OutputTooLargeError extends RangeError {
  override readonly name = "OutputTooLargeError";
}

const MAGIC: [Compression, number[]][] = [
  ["gzip", [0x1f, 0x8b]],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
  ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
];

/** How `bytes` are compressed, null if not in a way known here. */
export function detectCompression(bytes: Uint8Array): Compression | null {
  const found = MAGIC.find(([, magic]) => magic.every((byte, index) => bytes[index] === byte));
  return found?.[0] ?? null;
}

/**
 * Decompresses `bytes` to at most `maxBytes`. Throws an OutputTooLargeError for more, and whatever the
 * decompressor throws for damaged input.
 */
export async function decompress(
  bytes: Uint8Array<ArrayBuffer>,
  options: { compression: Compression; maxBytes: number },
): Promise<Uint8Array> {
  const { compression, maxBytes } = options;
  if (compression === "xz") return await decompressXz(bytes, maxBytes);
  const expand = compression === "gzip" ? gunzipSync : zstdDecompressSync;
  try {
    return expand(bytes, { maxOutputLength: maxBytes });
  } catch (error) {
    if ((error as { code?: unknown }).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge(maxBytes);
    throw error;
  }
}

async function decompressXz(
  bytes: Uint8Array<ArrayBuffer>,
  maxBytes: number,
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  const source = new Blob([bytes]).stream();
  for await (const chunk of new XzReadableStream(source)) {
    length += chunk.length;
    if (length > maxBytes) throw tooLarge(maxBytes);
    // The decompressor reuses its buffer.
    chunks.push(chunk.slice());
  }
  const result = new Uint8Array(length);
  let offset = 0;
  for (const chunk of chunks) {
    result.set(chunk, offset);
    offset += chunk.length;
  }
  return result;
}

function tooLarge(maxBytes: number): OutputTooLargeError {
  return new OutputTooLargeError(`more than ${maxBytes} bytes when decompressed`);
}
