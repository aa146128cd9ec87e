/**
 * The compressions of squashfs, each bounded by the size that the result may have. What the
 * platform does not have comes from a library that is loaded when it is needed.
 *
 * @module
 */

import { corrupt, unsupported } from "./source.ts";

/** Takes one compressed block; fails where its content is longer than `sizeMax`. */
export type Decompress = (
  bytes: Uint8Array<ArrayBuffer>,
  sizeMax: number,
) => Promise<Uint8Array<ArrayBuffer>>;

/** The decompressor behind a number in the superblock of squashfs. */
export async function decompressorOf(id: number): Promise<Decompress> {
  switch (id) {
    case 1:
      return (bytes, sizeMax) =>
        collect(streamOf(bytes).pipeThrough(new DecompressionStream("deflate")), sizeMax);
    case 4: {
      const { default: xz } = await import("xz-decompress");
      return (bytes, sizeMax) => collect(new xz.XzReadableStream(streamOf(bytes)), sizeMax);
    }
    case 5:
      return (bytes, sizeMax) => Promise.resolve(decompressLz4(bytes, sizeMax));
    case 6: {
      const { decompress } = await import("fzstd");
      return (bytes, sizeMax) => Promise.resolve(bounded(decompress(bytes), sizeMax));
    }
    default: {
      const name = ["", "gzip", "lzma", "lzo"][id] ?? `number ${id}`;
      throw unsupported(`squashfs with the compression ${name} is not supported`);
    }
  }
}

function streamOf(bytes: Uint8Array<ArrayBuffer>): ReadableStream<Uint8Array<ArrayBuffer>> {
  return new ReadableStream({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
}

async function collect(
  stream: ReadableStream<Uint8Array>,
  sizeMax: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const result = new Uint8Array(sizeMax);
  let size = 0;
  try {
    for await (const chunk of stream) {
      if (size + chunk.length > sizeMax) throw corrupt("a block is longer than it may be");
      result.set(chunk, size);
      size += chunk.length;
    }
  } catch (error) {
    throw corrupt(`a compressed block is damaged: ${messageOf(error)}`);
  }
  return result.slice(0, size);
}

function bounded(bytes: Uint8Array, sizeMax: number): Uint8Array<ArrayBuffer> {
  if (bytes.length > sizeMax) throw corrupt("a block is longer than it may be");
  return bytes.slice();
}

/** The LZ4 block format (lz4_Block_format.md): literals and matches in turn. */
function decompressLz4(bytes: Uint8Array, sizeMax: number): Uint8Array<ArrayBuffer> {
  const result = new Uint8Array(sizeMax);
  let at = 0;
  let size = 0;
  const lengthFrom = (start: number): number => {
    let length = start;
    for (let byte = 255; start === 15 && byte === 255;) {
      byte = bytes[at++] ?? 0;
      length += byte;
    }
    return length;
  };
  while (at < bytes.length) {
    const token = bytes[at++] ?? 0;
    const literals = lengthFrom(token >>> 4);
    if (at + literals > bytes.length || size + literals > sizeMax) throw corrupt("a damaged block");
    result.set(bytes.subarray(at, at + literals), size);
    at += literals;
    size += literals;
    if (at >= bytes.length) break;
    const distance = (bytes[at] ?? 0) | (bytes[at + 1] ?? 0) << 8;
    at += 2;
    const length = lengthFrom(token & 15) + 4;
    if (distance === 0 || distance > size || size + length > sizeMax) {
      throw corrupt("a damaged block");
    }
    // Byte by byte: a match may run into what it writes.
    const end = size + length;
    for (; size < end; size++) result[size] = result[size - distance] ?? 0;
  }
  return result.slice(0, size);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
