/**
 * `Idempotency-Key` on POST: a repeated request with the key of an earlier one gets the earlier
 * one's answer, also while that one is still under way. Keys are kept in memory, the newest so many
 * of them: enough for a client that lost an answer and tries again.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { HttpError } from "./problem.ts";

const KEY_COUNT = 1024;
const KEY_BYTES = 255;
/** A fault of ours may be gone when the client tries again. */
const FIRST_SERVER_ERROR = 500;

interface Entry {
  fingerprint: string;
  answer: Promise<{ status: number; headers: [string, string][]; body: ArrayBuffer }>;
}

/** Keys and the answers that they got. */
export class IdempotencyBook {
  readonly #entries = new Map<string, Entry>();

  /** The earlier answer to this request, or what `answer` gives. */
  async run(
    request: Request,
    options: { body: Uint8Array; answer: () => Promise<Response> },
  ): Promise<Response> {
    const key = request.headers.get("idempotency-key");
    if (key === null) return await options.answer();
    if (key === "" || key.length > KEY_BYTES) {
      throw new HttpError("invalidRequest", `Idempotency-Key has 1 to ${KEY_BYTES} characters`);
    }
    const fingerprint = createHash("sha256")
      .update(`${request.method} ${new URL(request.url).pathname}\n`)
      .update(options.body).digest("hex");
    let entry = this.#entries.get(key);
    if (entry === undefined) {
      entry = { fingerprint, answer: capture(options.answer) };
      this.#remember(key, entry);
    } else if (entry.fingerprint !== fingerprint) {
      throw new HttpError("idempotencyKeyReused", "the key came with another request before");
    }
    const { status, headers, body } = await entry.answer;
    return new Response(status === 204 ? null : body.slice(0), { status, headers });
  }

  #remember(key: string, entry: Entry): void {
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size < KEY_COUNT) break;
      this.#entries.delete(oldest);
    }
    this.#entries.set(key, entry);
    const forget = () => {
      if (this.#entries.get(key) === entry) this.#entries.delete(key);
    };
    entry.answer.then(({ status }) => {
      if (status >= FIRST_SERVER_ERROR) forget();
    }, forget);
  }
}

async function capture(answer: () => Promise<Response>): Promise<Awaited<Entry["answer"]>> {
  const response = await answer();
  const body = await response.arrayBuffer();
  return { status: response.status, headers: [...response.headers], body };
}
