/**
 * The server's side of the handshake: fixed newstyle, a pure state machine of bytes in, bytes out,
 * and one outcome.
 *
 *   client flags --> option header --> option data --> option header ...
 *                          |     too long --> skip --> option header
 *                          +--> outcome: transmission | startTls | close
 *
 * After `startTls` the owner secures the stream and calls `secured`: everything that was agreed on
 * before is forgotten ("NBD_OPT_STARTTLS").
 *
 * An option's data is gathered only up to nbdOptionBytes, whatever length it claims. Every option
 * gets its answer, also the unknown one. The export is looked up when an option names it and handed
 * on at NBD_OPT_GO or NBD_OPT_EXPORT_NAME; nothing of it is held before.
 *
 * @module
 */

import type { BlockExport, ExportDirectory } from "../block/export.ts";
import { limits } from "../limits.ts";
import {
  CLIENT_FLAGS_BYTES,
  concatBytes,
  decodeString,
  encodeMessage,
  encodeString,
  EXPORT_NAME_PADDING_BYTES,
  EXPORT_NAME_REPLY_BYTES,
  GREETING_BYTES,
  IHAVEOPT,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_NO_ZEROES,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_MAGIC,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  NBDMAGIC,
  OPTION_HEADER_BYTES,
  OPTION_REPLY_HEADER_BYTES,
  type ReplyStyle,
  setUint64,
  viewOf,
} from "./codec.ts";
import { parseExportOption, parseMetaOption, selectContexts } from "./handshake_options.ts";
import type { SelectedContext } from "./block_status.ts";
import type { TransmissionOptions } from "./transmission.ts";

/** How a handshake ends. */
export type HandshakeOutcome =
  | ({ kind: "transmission" } & TransmissionOptions)
  | { kind: "startTls" }
  | { kind: "close"; reason: string };

/**
 * Whether clients may, or must, secure the connection before anything else (the document's NOTLS,
 * and FORCEDTLS; "allowed" forces nobody).
 */
export type TlsMode = "off" | "allowed" | "required";

type State = "clientFlags" | "header" | "data" | "skip" | "over";

/** Sizes that clients are told ("Size constraints"): any alignment is served. */
const MINIMUM_BLOCK_BYTES = 1;

/** See the module's description. */
export class Handshake {
  readonly #directory: ExportDirectory;
  readonly #tlsMode: TlsMode;
  readonly #output: Uint8Array[] = [];
  #isSecure = false;
  #state: State = "clientFlags";
  #buffer = new Uint8Array(CLIENT_FLAGS_BYTES);
  #filled = 0;
  #skipLeft = 0;
  #option = 0;
  #optionCount = 0;
  #noZeroes = false;
  #style: ReplyStyle = "simple";
  /** What NBD_OPT_SET_META_CONTEXT selected, and for which name. */
  #selection: { exportName: string; contexts: SelectedContext[] } | null = null;
  #outcome: HandshakeOutcome | null = null;

  /** Greets: see `takeOutput`. */
  constructor(directory: ExportDirectory, tlsMode: TlsMode = "off") {
    this.#directory = directory;
    this.#tlsMode = tlsMode;
    const greeting = new Uint8Array(GREETING_BYTES);
    const view = viewOf(greeting);
    view.setUint32(0, NBDMAGIC[0]);
    view.setUint32(4, NBDMAGIC[1]);
    view.setUint32(8, IHAVEOPT[0]);
    view.setUint32(12, IHAVEOPT[1]);
    view.setUint16(16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    this.#output.push(greeting);
  }

  /** Set once the handshake is over; bytes behind it belong to the transmission phase. */
  get outcome(): HandshakeOutcome | null {
    return this.#outcome;
  }

  /** The stream is secured now. */
  secured(): void {
    this.#isSecure = true;
    this.#style = "simple";
    this.#selection = null;
    this.#outcome = null;
    this.#expect("header", OPTION_HEADER_BYTES);
  }

  /** What is to be sent since the last call. */
  takeOutput(): Uint8Array<ArrayBuffer> {
    return concatBytes(this.#output.splice(0));
  }

  /** Takes bytes and returns how many it consumed: all of them, unless there is an outcome. */
  receive(bytes: Uint8Array): number {
    let position = 0;
    while (this.#state !== "over") {
      if (this.#state === "skip") {
        const take = Math.min(this.#skipLeft, bytes.length - position);
        position += take;
        this.#skipLeft -= take;
        if (this.#skipLeft > 0) break;
        this.#expect("header", OPTION_HEADER_BYTES);
        continue;
      }
      const take = Math.min(this.#buffer.length - this.#filled, bytes.length - position);
      this.#buffer.set(bytes.subarray(position, position + take), this.#filled);
      position += take;
      this.#filled += take;
      if (this.#filled < this.#buffer.length) break;
      this.#step(this.#buffer);
    }
    return position;
  }

  #expect(state: State, byteCount: number): void {
    this.#state = state;
    this.#buffer = new Uint8Array(byteCount);
    this.#filled = 0;
  }

  #step(bytes: Uint8Array): void {
    switch (this.#state) {
      case "clientFlags":
        this.#takeClientFlags(viewOf(bytes).getUint32(0));
        break;
      case "header":
        this.#takeOptionHeader(viewOf(bytes));
        break;
      case "data":
        this.#expect("header", OPTION_HEADER_BYTES);
        this.#takeOption(bytes);
        break;
    }
  }

  #takeClientFlags(flags: number): void {
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) {
      this.#close(`unknown client flags 0x${flags.toString(16)}`);
      return;
    }
    this.#noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0;
    this.#expect("header", OPTION_HEADER_BYTES);
  }

  #takeOptionHeader(view: DataView): void {
    if (view.getUint32(0) !== IHAVEOPT[0] || view.getUint32(4) !== IHAVEOPT[1]) {
      this.#close("an option without its magic number");
      return;
    }
    this.#option = view.getUint32(8);
    const length = view.getUint32(12);
    this.#optionCount++;
    if (this.#optionCount > limits.nbdOptionCount) {
      this.#close("too many options");
    } else if (length <= limits.nbdOptionBytes) {
      this.#expect("data", length);
      if (length === 0) this.#step(this.#buffer);
    } else if (length <= limits.nbdOptionSkipBytes && this.#option !== NBD_OPT_EXPORT_NAME) {
      if (this.#option === NBD_OPT_SET_META_CONTEXT) this.#selection = null;
      this.#error(NBD_REP_ERR_TOO_BIG, `options may have ${limits.nbdOptionBytes} bytes of data`);
      this.#state = "skip";
      this.#skipLeft = length;
    } else {
      this.#close("an option that is too long");
    }
  }

  #takeOption(data: Uint8Array): void {
    if (this.#tlsMode === "required" && !this.#isSecure && this.#needsTls()) return;
    switch (this.#option) {
      case NBD_OPT_EXPORT_NAME:
        this.#exportName(data);
        return;
      case NBD_OPT_ABORT:
        this.#reply(NBD_REP_ACK);
        this.#close("the client aborted the handshake");
        return;
      case NBD_OPT_LIST:
        if (this.#refusesData(data)) return;
        for (const { name, description } of this.#directory.list()) {
          this.#reply(NBD_REP_SERVER, ...withLength(name), encodeString(description));
        }
        this.#reply(NBD_REP_ACK);
        return;
      case NBD_OPT_STARTTLS:
        this.#startTls(data);
        return;
      case NBD_OPT_INFO:
      case NBD_OPT_GO:
        this.#infoOrGo(data);
        return;
      case NBD_OPT_STRUCTURED_REPLY:
        if (this.#refusesData(data)) return;
        if (this.#style === "extended") {
          this.#error(NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are already in use");
          return;
        }
        this.#style = "structured";
        this.#reply(NBD_REP_ACK);
        return;
      case NBD_OPT_EXTENDED_HEADERS:
        if (this.#refusesData(data)) return;
        this.#style = "extended";
        this.#reply(NBD_REP_ACK);
        return;
      case NBD_OPT_LIST_META_CONTEXT:
      case NBD_OPT_SET_META_CONTEXT:
        this.#metaContext(data);
        return;
      default:
        this.#error(NBD_REP_ERR_UNSUP, `option ${this.#option} is not known here`);
    }
  }

  /** Answers what must not be said in plain text: whether the option is one. */
  #needsTls(): boolean {
    if (this.#option === NBD_OPT_STARTTLS || this.#option === NBD_OPT_ABORT) return false;
    if (this.#option === NBD_OPT_EXPORT_NAME) this.#close("NBD_OPT_EXPORT_NAME without TLS");
    else this.#error(NBD_REP_ERR_TLS_REQD, "this server wants NBD_OPT_STARTTLS first");
    return true;
  }

  #startTls(data: Uint8Array): void {
    if (this.#refusesData(data)) return;
    if (this.#isSecure) {
      this.#error(NBD_REP_ERR_INVALID, "TLS is already in use");
    } else if (this.#tlsMode === "off") {
      this.#error(NBD_REP_ERR_POLICY, "this server has no certificate");
    } else {
      this.#reply(NBD_REP_ACK);
      this.#state = "over";
      this.#outcome = { kind: "startTls" };
    }
  }

  #refusesData(data: Uint8Array): boolean {
    if (data.length === 0) return false;
    this.#error(NBD_REP_ERR_INVALID, "this option takes no data");
    return true;
  }

  /** The one option that can't answer an error: what can't be served ends the connection. */
  #exportName(data: Uint8Array): void {
    const name = decodeString(data);
    const found = name === undefined ? undefined : this.#directory.find(name);
    if (found === undefined || name === undefined) {
      this.#close("NBD_OPT_EXPORT_NAME of an unknown export");
      return;
    }
    if (this.#style === "extended") {
      this.#close("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS");
      return;
    }
    const padding = this.#noZeroes ? 0 : EXPORT_NAME_PADDING_BYTES;
    const reply = new Uint8Array(EXPORT_NAME_REPLY_BYTES + padding);
    setUint64(viewOf(reply), 0, found.sizeBytes);
    viewOf(reply).setUint16(8, this.#transmissionFlags(found, name));
    this.#output.push(reply);
    this.#enterTransmission(found, name);
  }

  #infoOrGo(data: Uint8Array): void {
    const request = parseExportOption(data);
    if (request === undefined) {
      this.#error(NBD_REP_ERR_INVALID, "the lengths in this option's data contradict each other");
      return;
    }
    const { name, items } = request;
    const found = this.#directory.find(name);
    if (found === undefined) {
      this.#error(NBD_REP_ERR_UNKNOWN, unknownExport(name));
      return;
    }
    const about = new Uint8Array(12);
    viewOf(about).setUint16(0, NBD_INFO_EXPORT);
    setUint64(viewOf(about), 2, found.sizeBytes);
    viewOf(about).setUint16(10, this.#transmissionFlags(found, name));
    this.#reply(NBD_REP_INFO, about);
    if (items.has(NBD_INFO_NAME)) {
      this.#reply(NBD_REP_INFO, uint16(NBD_INFO_NAME), encodeString(found.name));
    }
    if (items.has(NBD_INFO_DESCRIPTION)) {
      this.#reply(NBD_REP_INFO, uint16(NBD_INFO_DESCRIPTION), encodeString(found.description));
    }
    if (items.has(NBD_INFO_BLOCK_SIZE)) {
      const sizes = new Uint8Array(14);
      const view = viewOf(sizes);
      view.setUint16(0, NBD_INFO_BLOCK_SIZE);
      view.setUint32(2, MINIMUM_BLOCK_BYTES);
      view.setUint32(6, found.preferredBlockBytes);
      view.setUint32(10, limits.nbdPayloadBytes);
      this.#reply(NBD_REP_INFO, sizes);
    }
    this.#reply(NBD_REP_ACK);
    if (this.#option === NBD_OPT_GO) this.#enterTransmission(found, name);
  }

  #metaContext(data: Uint8Array): void {
    const isSet = this.#option === NBD_OPT_SET_META_CONTEXT;
    // What was selected is replaced "including when this command fails".
    if (isSet) this.#selection = null;
    if (isSet && this.#style === "simple") {
      this.#error(NBD_REP_ERR_INVALID, "negotiate structured replies or extended headers first");
      return;
    }
    const request = parseMetaOption(data);
    if (request === undefined) {
      this.#error(NBD_REP_ERR_INVALID, "malformed names, queries or lengths in this option's data");
      return;
    }
    const { name, queries } = request;
    const found = this.#directory.find(name);
    if (found === undefined) {
      this.#error(NBD_REP_ERR_UNKNOWN, unknownExport(name));
      return;
    }
    const contexts = selectContexts(found.contexts, queries, isSet);
    if (contexts.length > limits.nbdContextCount) {
      this.#error(NBD_REP_ERR_TOO_BIG, `at most ${limits.nbdContextCount} contexts`);
      return;
    }
    const selected = contexts.map((context, index) => ({ id: index + 1, context }));
    for (const { id, context } of selected) {
      this.#reply(NBD_REP_META_CONTEXT, uint32(isSet ? id : 0), encodeString(context.name));
    }
    if (isSet) this.#selection = { exportName: name, contexts: selected };
    this.#reply(NBD_REP_ACK);
  }

  /** The contexts hold only for the export that they were selected for, under the same name. */
  #contextsFor(name: string): readonly SelectedContext[] {
    return this.#selection?.exportName === name ? this.#selection.contexts : [];
  }

  #transmissionFlags(found: BlockExport, name: string): number {
    let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;
    if (!found.isReadOnly) flags |= NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    // A server must refuse NBD_CMD_TRIM where it set READ_ONLY, and clients do not send it then: a
    // view that can be discarded is not called read-only, though it refuses writes.
    if (found.canDiscard) flags |= NBD_FLAG_SEND_TRIM;
    else if (found.isReadOnly) flags |= NBD_FLAG_READ_ONLY;
    if (found.canMultiConn) flags |= NBD_FLAG_CAN_MULTI_CONN;
    if (this.#style !== "simple") flags |= NBD_FLAG_SEND_DF;
    if (this.#style === "extended" && this.#contextsFor(name).length > 0) {
      flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    }
    return flags;
  }

  #enterTransmission(found: BlockExport, name: string): void {
    this.#state = "over";
    this.#outcome = {
      kind: "transmission",
      export: found,
      style: this.#style,
      transmissionFlags: this.#transmissionFlags(found, name),
      contexts: this.#contextsFor(name),
    };
  }

  #close(reason: string): void {
    this.#state = "over";
    this.#outcome = { kind: "close", reason };
  }

  #error(type: number, message: string): void {
    this.#reply(type, encodeMessage(message));
  }

  #reply(type: number, ...data: Uint8Array[]): void {
    const header = new Uint8Array(OPTION_REPLY_HEADER_BYTES);
    const view = viewOf(header);
    view.setUint32(0, NBD_REP_MAGIC[0]);
    view.setUint32(4, NBD_REP_MAGIC[1]);
    view.setUint32(8, this.#option);
    view.setUint32(12, type);
    view.setUint32(16, data.reduce((sum, part) => sum + part.length, 0));
    this.#output.push(header, ...data);
  }
}

function unknownExport(name: string): string {
  return name === "" ? "there is no default export" : `no export is named ${JSON.stringify(name)}`;
}

function uint16(value: number): Uint8Array {
  return Uint8Array.of(value >> 8, value & 0xff);
}

function uint32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value);
  return bytes;
}

function withLength(text: string): [Uint8Array, Uint8Array] {
  const bytes = encodeString(text);
  return [uint32(bytes.length), bytes];
}
