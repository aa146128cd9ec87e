/**
 * One client of a monitor: commands come as JSON on a byte stream, one after the other; answers and
 * events go back, a line each.
 *
 *   greeting sent --> negotiating --qmp_capabilities--> commands --> closed
 *
 * Nothing is read while a command is carried out, so that a client that floods the monitor fills
 * its own socket. A client that does not take its answers and events is cut off at a bound.
 *
 * @module
 */

import { formatJson, isJsonObject, type JsonObject, type JsonValue } from "../block/open/json.ts";
import { type JsonMessage, JsonStream } from "../block/open/json_parser.ts";
import { limits } from "../limits.ts";
import type { ByteStream } from "../nbd/byte_stream.ts";
import { VERSION } from "../version.ts";
import { describeError, QmpError } from "./errors.ts";
import { type Monitor, parseRequest } from "./monitor.ts";
import { list, oneOf, optional, rootPlace, struct } from "../block/open/qapi.ts";

/** How a session talks. */
export interface QmpSessionOptions {
  /** Answers are indented, for people. */
  isPretty?: boolean;
}

const capabilitiesType = struct("q_obj_qmp_capabilities-arg", {
  enable: optional(list(oneOf("QMPCapability", ["oob"]))),
});

/** What this program says it is. */
export function versionInfo(): JsonObject {
  const [major = 0, minor = 0, micro = 0] = VERSION.split(".").map(Number);
  // Clients decide by these numbers what they may ask for: they are QEMU's whose commands these are.
  return {
    qemu: { micro: 0, minor: 0, major: 10 },
    package: `Ovis ${major}.${minor}.${micro}`,
  };
}

/** See the module's head. */
export class QmpSession {
  /** Resolves when the connection is closed. */
  readonly closed: Promise<void>;
  readonly #stream: ByteStream;
  readonly #monitor: Monitor;
  readonly #isPretty: boolean;
  readonly #parser = new JsonStream();
  readonly #stopEvents: () => void;
  readonly #whenClosed = Promise.withResolvers<void>();
  #isNegotiated = false;
  #mayOutOfBand = false;
  #isClosed = false;
  /** The peer sends no more: the session ends when its last command is answered. */
  #hasEnded = false;
  #isWorking = false;
  #output: Uint8Array[] = [];
  #outputBytes = 0;
  #isWriting = false;

  /** Sends the greeting and listens. */
  constructor(stream: ByteStream, monitor: Monitor, options: QmpSessionOptions = {}) {
    this.#stream = stream;
    this.#monitor = monitor;
    this.#isPretty = options.isPretty ?? false;
    this.closed = this.#whenClosed.promise;
    this.#stopEvents = monitor.onEvent((event) => {
      if (this.#isNegotiated) this.#send(event);
    });
    this.#send({ QMP: { version: versionInfo(), capabilities: ["oob"] } });
    stream.start({
      onData: (bytes) => {
        this.#receive(this.#parser.feed(bytes));
        return false;
      },
      onEnd: () => {
        this.#hasEnded = true;
        if (!this.#isWorking) this.close("the client has gone");
      },
    });
  }

  /** Ends the session once what was sent is under way. */
  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#stopEvents();
    if (!this.#isWriting) this.#closeStream(reason);
  }

  #closeStream(reason: string): void {
    this.#stream.close(reason);
    this.#whenClosed.resolve();
  }

  #receive(messages: JsonMessage[]): void {
    if (messages.length === 0) return;
    this.#stream.pause();
    this.#isWorking = true;
    this.#work(messages);
  }

  async #work(messages: JsonMessage[]): Promise<void> {
    for (const message of messages) {
      if (this.#isClosed) break;
      this.#send(await this.#answer(message));
    }
    this.#isWorking = false;
    if (this.#hasEnded) this.close("the client has gone");
    else this.#stream.resume();
  }

  async #answer(message: JsonMessage): Promise<JsonObject> {
    if ("error" in message) {
      return { error: { class: "GenericError", desc: message.error } };
    }
    if (this.#isNegotiated) return await this.#dispatch(message.value);
    return this.#negotiate(message.value);
  }

  async #dispatch(request: JsonValue): Promise<JsonObject> {
    if (isJsonObject(request) && request.execute === "qmp_capabilities") {
      return failed(
        request,
        new QmpError(
          "CommandNotFound",
          "Capabilities negotiation is already complete, command ignored",
        ),
      );
    }
    return await this.#monitor.dispatch(request, { mayOutOfBand: this.#mayOutOfBand });
  }

  #negotiate(request: JsonValue): JsonObject {
    try {
      const { name, args } = parseRequest(request);
      if (name !== "qmp_capabilities") {
        throw new QmpError(
          "CommandNotFound",
          "Expecting capabilities negotiation with 'qmp_capabilities'",
        );
      }
      const { enable = [] } = capabilitiesType.parse(args, rootPlace());
      this.#mayOutOfBand = enable.includes("oob");
      this.#isNegotiated = true;
      return { return: {}, ...idOf(request) };
    } catch (error) {
      return failed(request, error);
    }
  }

  #send(message: JsonObject): void {
    if (this.#isClosed) return;
    const text = formatJson(message, { isPretty: this.#isPretty });
    const bytes = new TextEncoder().encode(`${text}\r\n`);
    if (this.#outputBytes > limits.qmpOutputBytes) {
      this.close("the client does not take its answers");
      return;
    }
    this.#output.push(bytes);
    this.#outputBytes += bytes.length;
    if (!this.#isWriting) this.#write();
  }

  async #write(): Promise<void> {
    this.#isWriting = true;
    try {
      for (;;) {
        const bytes = this.#output.shift();
        if (bytes === undefined) break;
        await this.#stream.write(bytes);
        this.#outputBytes -= bytes.length;
      }
    } catch {
      this.close("the client has gone");
    }
    this.#isWriting = false;
    if (this.#isClosed) this.#closeStream("closed");
  }
}

function idOf(request: JsonValue): JsonObject {
  return isJsonObject(request) && Object.hasOwn(request, "id") ? { id: request.id ?? null } : {};
}

function failed(request: JsonValue, error: unknown): JsonObject {
  const description = describeError(error);
  if (description === null) throw error;
  return { error: { ...description }, ...idOf(request) };
}
