/**
 * The exports of one machine, by name: what its NBD server offers and what is read over HTTP.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import type { BlockExport, ExportDirectory } from "../block/export.ts";

/** All exports of a machine. */
export class MachineExports implements ExportDirectory {
  readonly #exports = new Map<string, BlockExport>();

  /** Adds all, or none: throws a BlockError where a name is taken. */
  add(exports: readonly BlockExport[]): void {
    const taken = exports.find(({ name }) => this.#exports.has(name));
    if (taken !== undefined) {
      throw new BlockError("EBUSY", `there is an export named ${taken.name} already`);
    }
    for (const blockExport of exports) this.#exports.set(blockExport.name, blockExport);
  }

  /** It can't be opened any more; who has it open keeps it. */
  remove(name: string): void {
    this.#exports.delete(name);
  }

  /** The default export is the only one, if there is only one. */
  find(name: string): BlockExport | undefined {
    if (name === "" && this.#exports.size === 1) return [...this.#exports.values()][0];
    return this.#exports.get(name);
  }

  /** In the order of their coming. */
  list(): Iterable<BlockExport> {
    return this.#exports.values();
  }

  /** The export of that name. Throws a BlockError (ENOENT). */
  get(name: string): BlockExport {
    const blockExport = this.#exports.get(name);
    if (blockExport === undefined) {
      throw new BlockError("ENOENT", `there is no export named ${name}`);
    }
    return blockExport;
  }

  /** A directory of this one export, also as the default one; empty once it is gone. */
  only(name: string): ExportDirectory {
    const find = (wanted: string) =>
      wanted === name || wanted === "" ? this.#exports.get(name) : undefined;
    return {
      find,
      list: () => {
        const blockExport = find(name);
        return blockExport === undefined ? [] : [blockExport];
      },
    };
  }
}
