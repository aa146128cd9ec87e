/**
 * What a check of an image finds, while it runs: counts, messages, statistics, progress.
 *
 * @module
 */

import type { Steps } from "../steps.ts";
import { Turns } from "./turns.ts";

/** The result of a check, as `qemu-img check` counts. */
export interface Qcow2CheckResult {
  /** What kept the check from seeing everything. */
  checkErrors: number;
  /** References that are wrong, after repairs. */
  corruptions: number;
  /** Clusters that count as used and are not, after repairs. */
  leaks: number;
  /** Corruptions that are no more. */
  corruptionsFixed: number;
  /** Leaks that are no more. */
  leaksFixed: number;
  /** Where the last used cluster ends. */
  imageEndOffset: number;
  /** Of the guest. */
  totalClusters: number;
  /** Guest clusters that have a place in the image. */
  allocatedClusters: number;
  /** Those that don't follow the one before. */
  fragmentedClusters: number;
  /** Those that are compressed. */
  compressedClusters: number;
}

/** Who is told of a running check. */
export interface CheckListeners {
  /** Each thing that was found, in words. */
  onIssue?: (message: string) => void;
  /** How many of the file's tables were looked at. */
  onProgress?: (tables: number) => void;
}

/** See the module's head. */
export class CheckReport {
  /** Numbers so far. */
  readonly statistics: Qcow2CheckResult = {
    checkErrors: 0,
    corruptions: 0,
    leaks: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: 0,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
  /** A table can't be followed: what only it refers to looks unused. */
  isIncomplete = false;
  readonly #listeners: CheckListeners;
  readonly #turns = new Turns();
  #tables = 0;

  /** Nothing was found yet. */
  constructor(listeners: CheckListeners) {
    this.#listeners = listeners;
  }

  /** Something is wrong. */
  corruption(message: string, times = 1): void {
    this.statistics.corruptions += times;
    this.#listeners.onIssue?.(message);
  }

  /** A table can't be followed. */
  unreadable(message: string): void {
    this.isIncomplete = true;
    this.corruption(message);
  }

  /** The last corruption was repaired. */
  corruptionFixed(): void {
    this.statistics.corruptions--;
    this.statistics.corruptionsFixed++;
  }

  /** Says something that counts elsewhere. */
  note(message: string): void {
    this.#listeners.onIssue?.(message);
  }

  /** A table was looked at; others get a turn now and then. */
  *pause(): Steps<void> {
    this.#tables++;
    if (yield* this.#turns.next()) this.#listeners.onProgress?.(this.#tables);
  }
}
