/**
 * Decompression with a bound on the result: a small file can claim to hold any amount.
 *
 * @module
 */

/** What is known by its first bytes. */
export type Compression = "gzip" | "zstd" | "xz";

/** The result would be larger than allowed. */
export class OutputTooLargeError extends RangeError {
  /** For logs. */
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
 * Decompresses `bytes` to at most `maxBytes`. Throws an OutputTooLargeError for more, and whatever
 * the decompressor throws for damaged input.
 */
export async function decompress(
  bytes: Uint8Array<ArrayBuffer>,
  options: { compression: Compression; maxBytes: number },
): Promise<Uint8Array> {
  const { compression, maxBytes } = options;
  if (compression === "xz") return await decompressXz(bytes, maxBytes);
  if (compression === "zstd") requireWholeZstd(bytes);
  // Loaded for what is compressed alone, as the decoder of xz is.
  const { gunzipSync, zstdDecompressSync } = globalThis.process.getBuiltinModule("node:zlib");
  const expand = compression === "gzip" ? gunzipSync : zstdDecompressSync;
  try {
    return expand(bytes, { maxOutputLength: maxBytes });
  } catch (error) {
    if ((error as { code?: unknown }).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge(maxBytes);
    throw error;
  }
}

/**
 * The runtime's zstd takes the end of its input for the end of the data. So the frames are walked
 * first (RFC 8878, 3.1.1), by their blocks' sizes.
 */
function requireWholeZstd(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    let offset = 0;
    do offset = skipZstdFrame(view, offset); while (
      detectCompression(bytes.subarray(offset)) === "zstd"
    );
  } catch (cause) {
    if (cause instanceof RangeError) throw new RangeError("truncated zstd data", { cause });
    throw cause;
  }
}

/** The offset behind the frame at `offset`; reading beyond the end throws a RangeError. */
function skipZstdFrame(view: DataView, offset: number): number {
  const descriptor = view.getUint8(offset + 4);
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const contentSizeFlag = descriptor >> 6;
  const contentSizeBytes = contentSizeFlag === 0 ? Number(isSingleSegment) : 1 << contentSizeFlag;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  let at = offset + 5 + Number(!isSingleSegment) + dictionaryBytes + contentSizeBytes;
  for (let isLast = false; !isLast;) {
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    isLast = (header & 1) !== 0;
    // A run-length block holds one byte, whatever its size says.
    at += 3 + (((header >> 1) & 3) === 1 ? 1 : header >> 3);
  }
  const end = at + ((descriptor & 4) !== 0 ? 4 : 0);
  if (end > view.byteLength) throw new RangeError("the last block is incomplete");
  return end;
}

async function decompressXz(
  bytes: Uint8Array<ArrayBuffer>,
  maxBytes: number,
): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  const source = new Blob([bytes]).stream();
  // A CommonJS bundle whose names this runtime cannot see: taken from its default export.
  const { default: xz } = await import("xz-decompress");
  for await (const chunk of new xz.XzReadableStream(source)) {
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
