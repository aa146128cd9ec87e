/**
 * An export in memory for tests of whatever serves exports: it can answer at once or later, refuse
 * areas, and fail on demand.
 */
import { BlockError } from "../../src/block/errors.ts";
import type { BlockExport, Extent, MetaContext } from "../../src/block/export.ts";
import type { ExportDirectory } from "../../src/block/export.ts";
import { type ByteRange, type MaybePromise, REQ_NO_FALLBACK } from "../../src/block/types.ts";

const BLOCK = 512;

/** What a test may set; everything else has a plain default. */
export interface MemoryExportOptions {
  name?: string;
  isReadOnly?: boolean;
  canDiscard?: boolean;
  canMultiConn?: boolean;
  /** Called before every request; a promise delays it, a throw fails it. */
  before?: (operation: string, offset: number, length: number) => MaybePromise<void>;
  /** Reads of these areas fail with EACCES. */
  forbidden?: ByteRange[];
}

/** See the module's description. */
export class MemoryExport implements BlockExport {
  readonly name: string;
  readonly description = "bytes in memory";
  readonly isReadOnly: boolean;
  readonly canDiscard: boolean;
  readonly canMultiConn: boolean;
  readonly preferredBlockBytes = 4096;
  readonly contexts: readonly MetaContext[];
  /** What was asked of it, for tests to look at: `write 0+512 fua`. */
  readonly calls: string[] = [];
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #options: MemoryExportOptions;

  constructor(bytes: Uint8Array<ArrayBuffer>, options: MemoryExportOptions = {}) {
    this.bytes = bytes;
    this.#options = options;
    this.name = options.name ?? "mem";
    this.isReadOnly = options.isReadOnly ?? false;
    this.canDiscard = options.canDiscard ?? !this.isReadOnly;
    this.canMultiConn = options.canMultiConn ?? true;
    this.contexts = [
      { name: "base:allocation", extents: (...a) => this.#extents(a, this.#allocation) },
      { name: "x-ovis:access", extents: (...a) => this.#extents(a, this.#access) },
    ];
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  read(offset: number, buffer: Uint8Array): MaybePromise<void> {
    return this.#request("read", offset, buffer.length, () => {
      for (const range of this.#options.forbidden ?? []) {
        if (offset < range.offset + range.length && range.offset < offset + buffer.length) {
          throw new BlockError("EACCES", `bytes at ${range.offset} may not be read`);
        }
      }
      buffer.set(this.bytes.subarray(offset, offset + buffer.length));
    });
  }

  write(offset: number, data: Uint8Array, flags: number): MaybePromise<void> {
    return this.#request("write", offset, data.length, () => this.bytes.set(data, offset), flags);
  }

  writeZeroes(offset: number, length: number, flags: number): MaybePromise<void> {
    return this.#request("writeZeroes", offset, length, () => {
      if ((flags & REQ_NO_FALLBACK) !== 0 && length % BLOCK !== 0) {
        throw new BlockError("ENOTSUP", "not fast where it is not aligned");
      }
      this.bytes.fill(0, offset, offset + length);
    }, flags);
  }

  discard(offset: number, length: number): MaybePromise<void> {
    return this.#request("discard", offset, length, () => {
      this.bytes.fill(0, offset, offset + length);
    });
  }

  flush(): MaybePromise<void> {
    return this.#request("flush", 0, 0, () => {});
  }

  #request(
    operation: string,
    offset: number,
    length: number,
    action: () => void,
    flags = 0,
  ): MaybePromise<void> {
    this.calls.push(`${operation} ${offset}+${length}${flags === 0 ? "" : ` flags ${flags}`}`);
    const wait = this.#options.before?.(operation, offset, length);
    if (wait instanceof Promise) return wait.then(action);
    action();
  }

  #allocation = (offset: number): number => {
    if (this.#access(offset) !== 0) return 1;
    return this.bytes.subarray(offset, offset + BLOCK).every((byte) => byte === 0) ? 3 : 0;
  };

  #access = (offset: number): number => {
    const isForbidden = (this.#options.forbidden ?? []).some((range) =>
      offset < range.offset + range.length && range.offset < offset + 1
    );
    return isForbidden ? 1 : 0;
  };

  #extents(
    [offset, length, { maxExtents }]: [number, number, { maxExtents: number }],
    flagsAt: (offset: number) => number,
  ): Extent[] {
    this.#options.before?.("extents", offset, length);
    const extents: Extent[] = [];
    let at = offset;
    while (at < offset + length) {
      const end = Math.min(offset + length, Math.floor(at / BLOCK + 1) * BLOCK);
      const flags = flagsAt(at);
      const last = extents.at(-1);
      if (last?.flags === flags) last.length += end - at;
      else if (extents.length === maxExtents) break;
      else extents.push({ length: end - at, flags });
      at = end;
    }
    return extents;
  }
}

/** A directory of some exports; the first is the default one too. */
export function directoryOf(...exports: BlockExport[]): ExportDirectory {
  return {
    find: (name) => name === "" ? exports[0] : exports.find((one) => one.name === name),
    list: () => exports,
  };
}
