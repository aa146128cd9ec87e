/**
 * What an I/O worker asks of the control isolate, each question answered once.
 *
 * @module
 */

import { BlockError } from "../block/errors.ts";
import type { HostQuestion, IoEvent, IoNotice } from "./messages.ts";

interface Waiting {
  resolve: () => void;
  reject: (error: BlockError) => void;
}

/** Questions on their way. */
export class HostQuestions {
  readonly #emit: (event: IoEvent) => void;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;

  /** `emit` carries questions to the control isolate. */
  constructor(emit: (event: IoEvent) => void) {
    this.#emit = emit;
  }

  /** Resolves when it is done; rejects with the control isolate's BlockError. */
  ask(question: HostQuestion): Promise<void> {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#emit({ type: "question", id, question });
    });
  }

  /** An answer came. */
  settle(notice: Extract<IoNotice, { type: "answer" }>): void {
    const waiting = this.#waiting.get(notice.id);
    if (waiting === undefined) return;
    this.#waiting.delete(notice.id);
    if (notice.error === null) waiting.resolve();
    else waiting.reject(new BlockError(notice.error.code, notice.error.message));
  }
}
