/**
 * A disk that is not there: writes are thrown away, reads leave the buffer as it is, or zero it
 * with
 * `readZeroes`. For measurements, and as a target whose content nobody wants.
 *
 * @module
 */

import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import { type BlockStatus, STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../types.ts";

/** What a null-co node is made of. */
export interface NullCoNodeOptions {
  nodeName: string;
  sizeBytes: number;
  isReadOnly?: boolean;
  /** Reads return zeroes. */
  readZeroes?: boolean;
}

/** Driver "null-co". */
export class NullCoNode extends BlockNode {
  readonly #readZeroes: boolean;

  constructor(options: NullCoNodeOptions) {
    super({
      nodeName: options.nodeName,
      driver: "null-co",
      sizeBytes: options.sizeBytes,
      isReadOnly: options.isReadOnly ?? false,
      handlesFua: true,
    });
    this.#readZeroes = options.readZeroes ?? false;
  }

  protected override doRead(_offset: number, target: IoVector): void {
    if (this.#readZeroes) target.fill(0);
  }

  protected override doWrite(_offset: number, _source: IoVector, _flags: number): void {}

  protected override doWriteZeroes(_offset: number, _length: number, _flags: number): void {}

  protected override doBlockStatus(_offset: number, length: number): BlockStatus {
    return { length, flags: STATUS_ALLOCATED | (this.#readZeroes ? STATUS_ZERO : STATUS_DATA) };
  }

  protected override doResize(sizeBytes: number): void {
    this.setSize(sizeBytes);
  }

  override details(): Record<string, boolean> {
    return { readZeroes: this.#readZeroes };
  }
}
