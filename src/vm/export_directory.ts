/**
 * All exports of all machines by name. Names are unique in the service, whatever machine they are
 * of.
 *
 * @module
 */

import { ServiceError } from "./errors.ts";

/** One disk's view, offered to readers. */
export interface ExportInfo {
  /** MACHINE-DISK-FLEECING: see EXPORT_NAME_PATTERN. */
  name: string;
  /** The machine whose disk it shows. */
  vm: string;
  /** The fleecing that it belongs to, unique in its machine. */
  fleecing: string;
  /** The disk's name in its machine. */
  disk: string;
  /** Size of the disk, which can't change under a fleecing. */
  sizeBytes: number;
  /** The moment of the view: ISO 8601, UTC. */
  createdAt: string;
  /** Differs between any two views, ever: the content under one tag never changes. */
  tag: string;
}

/** Exports by name. */
export class ExportDirectory {
  readonly #exports = new Map<string, ExportInfo>();

  /** Adds all or none; throws nameTaken. */
  add(exports: readonly ExportInfo[]): void {
    for (const { name } of exports) {
      const other = this.#exports.get(name);
      if (other !== undefined) {
        throw new ServiceError(
          "nameTaken",
          `there is an export named ${name} already, of machine ${other.vm}; ` +
            "give the fleecing another name",
        );
      }
    }
    for (const info of exports) this.#exports.set(info.name, info);
  }

  /** Removes those that are there. */
  remove(exports: readonly ExportInfo[]): void {
    for (const { name } of exports) this.#exports.delete(name);
  }

  /** An export; throws exportNotFound. */
  get(name: string): ExportInfo {
    const info = this.find(name);
    if (info === undefined) {
      throw new ServiceError("exportNotFound", `there is no export named ${name}`);
    }
    return info;
  }

  /** An export, or undefined. */
  find(name: string): ExportInfo | undefined {
    return this.#exports.get(name);
  }

  /** Up to `limit` exports whose names come after `after`, by name. */
  list(options: { after: string; limit: number }): ExportInfo[] {
    return [...this.#exports.values()].filter(({ name }) => name > options.after)
      .sort((a, b) => a.name < b.name ? -1 : 1).slice(0, options.limit);
  }

  /** How many there are. */
  get size(): number {
    return this.#exports.size;
  }
}
