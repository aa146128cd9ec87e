/**
 * Decompression by file name: xz, zstd and gzip, as Debian's packages and indexes use them.
 *
 * @module
 */

import { Readable } from "node:stream";
import { createZstdDecompress } from "node:zlib";
// A CommonJS bundle whose names this runtime cannot see: taken from its default export.
import xz from "xz-decompress";
import { ImageError } from "./errors.ts";

/** Bytes as they come, in chunks of any size. */
export type ByteStream = ReadableStream<Uint8Array<ArrayBuffer>>;

/** The plain content of `stream`, whose `name` ends in .xz, .zst, .gz or none of these. */
export function decompress(name: string, stream: ByteStream): ByteStream {
  if (name.endsWith(".xz")) return new xz.XzReadableStream(stream) as ByteStream;
  if (name.endsWith(".gz")) return stream.pipeThrough(new DecompressionStream("gzip"));
  if (name.endsWith(".zst")) {
    const input = Readable.fromWeb(stream as Parameters<typeof Readable.fromWeb>[0]);
    return Readable.toWeb(input.pipe(createZstdDecompress())) as unknown as ByteStream;
  }
  if (/\.(bz2|lzma)$/.test(name)) {
    throw new ImageError(`${name}: this compression is not supported`);
  }
  return stream;
}

/** All bytes of `stream`; ImageError beyond `maxBytes`. */
export async function collect(
  stream: ByteStream,
  maxBytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of stream) {
    length += chunk.length;
    if (length > maxBytes) throw new ImageError(`more than ${maxBytes} bytes when unpacked`);
    chunks.push(chunk);
  }
  const all = new Uint8Array(length);
  let offset = 0;
  for (const chunk of chunks) {
    all.set(chunk, offset);
    offset += chunk.length;
  }
  return all;
}
