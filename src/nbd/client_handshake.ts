/**
 * The client's side of the handshake: asks for extended headers, else structured replies, selects
 * meta contexts, and enters transmission with NBD_OPT_GO, or NBD_OPT_EXPORT_NAME where a server
 * knows nothing better. Every length that a server claims is bounded before it is waited for.
 *
 * @module
 */

import {
  concatBytes,
  decodeString,
  DEFAULT_PAYLOAD_BYTES,
  encodeString,
  EXPORT_NAME_PADDING_BYTES,
  EXPORT_NAME_REPLY_BYTES,
  getUint64,
  GREETING_BYTES,
  IHAVEOPT,
  NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_C_NO_ZEROES,
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_LIST,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_UNSUP,
  NBD_REP_FLAG_ERROR,
  NBD_REP_INFO,
  NBD_REP_MAGIC,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
  NBDMAGIC,
  OPTION_REPLY_HEADER_BYTES,
  type ReplyStyle,
  viewOf,
} from "./codec.ts";

/** The two directions, as a handshake uses them. */
export interface HandshakeChannel {
  /** Exactly `byteCount` bytes of the server's. */
  take(byteCount: number): Promise<Uint8Array>;
  /** Sends bytes of the client's. */
  send(bytes: Uint8Array): void;
  /** Goes on in TLS. Rejects where the stream can't, or the server has said more already. */
  startTls(): Promise<void>;
}

/** What a client asks for. */
export interface HandshakeWishes {
  /** "" is the default export. */
  exportName: string;
  /** Names of meta contexts; those that the server lacks are left out. */
  contexts: readonly string[];
  /** The best headers to ask for. */
  style: ReplyStyle;
  /** Asks for TLS before anything else. */
  isTls: boolean;
}

/** What came of it. */
export interface NegotiatedExport {
  /** Bytes of the export. */
  sizeBytes: number;
  /** NBD_FLAG_*. */
  transmissionFlags: number;
  /** The headers that were agreed on. */
  style: ReplyStyle;
  /** Names of the selected contexts by their ids. */
  contexts: Map<number, string>;
  /** Offsets and lengths must be multiples. */
  minimumBlockBytes: number;
  /** Offsets and lengths should be multiples. */
  preferredBlockBytes: number;
  /** Longer reads and writes are refused. */
  payloadBytesMax: number;
}

/** A server's entry of its list. */
export interface ListedExport {
  /** As NBD_OPT_GO takes it. */
  name: string;
  /** For humans. */
  description: string;
}

/** The server refused, or is none. */
export class NbdHandshakeError extends Error {
  /** For whoever prints it. */
  override readonly name = "NbdHandshakeError";
  /** The type of the error reply (NBD_REP_ERR_*), 0 where the server broke the protocol. */
  constructor(readonly replyType: number, message: string) {
    super(message);
  }
}

const REPLY_BYTES_MAX = 64 * 1024;
const REPLIES_MAX = 4096;

/** A server's reply to an option. */
export interface OptionReply {
  /** NBD_REP_*. */
  type: number;
  /** What it means, the type says. */
  data: Uint8Array;
}

/** Negotiates one export, up to the border of the transmission phase. */
export async function negotiate(
  channel: HandshakeChannel,
  wishes: HandshakeWishes,
): Promise<NegotiatedExport> {
  const hasZeroes = await greet(channel);
  if (wishes.isTls) await secure(channel);
  const style = await negotiateStyle(channel, wishes.style);
  const contexts = style === "simple" ? new Map<number, string>() : await selectContexts(
    channel,
    wishes,
  );
  const request = infoRequest(wishes.exportName, [NBD_INFO_BLOCK_SIZE]);
  const replies = await option(channel, NBD_OPT_GO, request);
  const final = replies.at(-1);
  const negotiated = { ...unknownExport(), style, contexts };
  if (final?.type === NBD_REP_ERR_UNSUP && style !== "extended") {
    sendOption(channel, NBD_OPT_EXPORT_NAME, encodeString(wishes.exportName));
    const padding = hasZeroes ? EXPORT_NAME_PADDING_BYTES : 0;
    const view = viewOf(await channel.take(EXPORT_NAME_REPLY_BYTES + padding));
    return { ...negotiated, sizeBytes: checkSize(view, 0), transmissionFlags: view.getUint16(8) };
  }
  requireAck(replies);
  for (const { type, data } of replies) {
    if (type === NBD_REP_INFO) readInfo(viewOf(data), negotiated);
  }
  if (negotiated.sizeBytes < 0) throw violation("no NBD_INFO_EXPORT before the acknowledgement");
  return negotiated;
}

/** What is taken for granted of an export before the server says more. */
export function unknownExport(): NegotiatedExport {
  return {
    sizeBytes: -1,
    transmissionFlags: 0,
    style: "simple",
    contexts: new Map(),
    minimumBlockBytes: 1,
    preferredBlockBytes: 4096,
    payloadBytesMax: DEFAULT_PAYLOAD_BYTES,
  };
}

/** The data of NBD_OPT_INFO and NBD_OPT_GO: a name, and the information that is asked for. */
export function infoRequest(exportName: string, items: readonly number[]): Uint8Array {
  const counted = [items.length, ...items].flatMap((item) => [item >> 8, item & 0xff]);
  return concatBytes([withLength(exportName), Uint8Array.from(counted)]);
}

/** The server's list of exports. Says goodbye afterwards. */
export async function listExports(
  channel: HandshakeChannel,
  isTls = false,
): Promise<ListedExport[]> {
  await greet(channel);
  if (isTls) await secure(channel);
  const replies = await option(channel, NBD_OPT_LIST, new Uint8Array(0));
  requireAck(replies);
  sendOption(channel, NBD_OPT_ABORT, new Uint8Array(0));
  return listed(replies);
}

/** The entries among the replies to NBD_OPT_LIST. */
export function listed(replies: readonly OptionReply[]): ListedExport[] {
  return replies.filter(({ type }) => type === NBD_REP_SERVER).map(({ data }) => {
    const nameBytes = data.length < 4 ? -1 : viewOf(data).getUint32(0);
    if (nameBytes < 0 || nameBytes > data.length - 4) throw violation("a malformed list entry");
    const name = decodeString(data.subarray(4, 4 + nameBytes));
    if (name === undefined) throw violation("an export name that is no string");
    return { name, description: decodeString(data.subarray(4 + nameBytes)) ?? "" };
  });
}

/** Exchanges flags. Whether NBD_OPT_EXPORT_NAME will be answered with padding. */
export async function greet(channel: HandshakeChannel): Promise<boolean> {
  const view = viewOf(await channel.take(GREETING_BYTES));
  const words = [0, 4, 8, 12].map((position) => view.getUint32(position));
  if (words.join() !== [...NBDMAGIC, ...IHAVEOPT].join()) {
    throw violation("this is no server of the newstyle NBD protocol");
  }
  const flags = view.getUint16(16);
  if ((flags & NBD_FLAG_FIXED_NEWSTYLE) === 0) {
    throw violation("the server does not speak the fixed newstyle protocol");
  }
  const noZeroes = (flags & NBD_FLAG_NO_ZEROES) !== 0;
  const reply = new Uint8Array(4);
  viewOf(reply).setUint32(
    0,
    NBD_FLAG_C_FIXED_NEWSTYLE | (noZeroes ? NBD_FLAG_C_NO_ZEROES : 0),
  );
  channel.send(reply);
  return !noZeroes;
}

/** Asks for TLS. Nothing that was said before counts afterwards. */
export async function secure(channel: HandshakeChannel): Promise<void> {
  requireAck(await option(channel, NBD_OPT_STARTTLS, new Uint8Array(0)));
  await channel.startTls();
}

/** Asks for the best headers, then for the next best. */
export async function negotiateStyle(
  channel: HandshakeChannel,
  best: ReplyStyle,
): Promise<ReplyStyle> {
  const none = new Uint8Array(0);
  if (best === "extended") {
    const replies = await option(channel, NBD_OPT_EXTENDED_HEADERS, none);
    if (replies.at(-1)?.type === NBD_REP_ACK) return "extended";
  }
  if (best !== "simple") {
    const replies = await option(channel, NBD_OPT_STRUCTURED_REPLY, none);
    if (replies.at(-1)?.type === NBD_REP_ACK) return "structured";
  }
  return "simple";
}

async function selectContexts(
  channel: HandshakeChannel,
  { exportName, contexts }: HandshakeWishes,
): Promise<Map<number, string>> {
  const selected = new Map<number, string>();
  if (contexts.length === 0) return selected;
  const parts = [withLength(exportName), uint32(contexts.length), ...contexts.map(withLength)];
  const replies = await option(channel, NBD_OPT_SET_META_CONTEXT, concatBytes(parts));
  if (replies.at(-1)?.type !== NBD_REP_ACK) return selected;
  for (const { type, data } of replies) {
    if (type !== NBD_REP_META_CONTEXT) continue;
    const name = data.length < 4 ? undefined : decodeString(data.subarray(4));
    if (name === undefined) throw violation("a meta context without a name");
    selected.set(viewOf(data).getUint32(0), name);
  }
  return selected;
}

/** Takes over what an information item says. */
export function readInfo(view: DataView, target: NegotiatedExport): void {
  if (view.byteLength < 2) throw violation("an information item without a type");
  const type = view.getUint16(0);
  if (type === NBD_INFO_EXPORT) {
    if (view.byteLength !== 12) throw violation("NBD_INFO_EXPORT of a wrong length");
    target.sizeBytes = checkSize(view, 2);
    target.transmissionFlags = view.getUint16(10);
  } else if (type === NBD_INFO_BLOCK_SIZE) {
    if (view.byteLength !== 14) throw violation("NBD_INFO_BLOCK_SIZE of a wrong length");
    target.minimumBlockBytes = view.getUint32(2);
    target.preferredBlockBytes = view.getUint32(6);
    target.payloadBytesMax = Math.min(view.getUint32(10), DEFAULT_PAYLOAD_BYTES);
    if (target.minimumBlockBytes === 0 || target.payloadBytesMax === 0) {
      throw violation("block sizes of 0");
    }
  }
}

function checkSize(view: DataView, position: number): number {
  const size = getUint64(view, position);
  if (size === Number.MAX_SAFE_INTEGER) throw violation("an export beyond 2^53 bytes");
  return size;
}

/** Sends an option and gathers its replies, the final one last. */
export async function option(
  channel: HandshakeChannel,
  type: number,
  data: Uint8Array,
): Promise<OptionReply[]> {
  sendOption(channel, type, data);
  const replies: OptionReply[] = [];
  while (replies.length < REPLIES_MAX) {
    const header = viewOf(await channel.take(OPTION_REPLY_HEADER_BYTES));
    const isReply = header.getUint32(0) === NBD_REP_MAGIC[0] &&
      header.getUint32(4) === NBD_REP_MAGIC[1] && header.getUint32(8) === type;
    if (!isReply) throw violation(`something else than a reply to option ${type}`);
    const reply = { type: header.getUint32(12), data: new Uint8Array(0) };
    const length = header.getUint32(16);
    if (length > REPLY_BYTES_MAX) throw violation(`a reply of ${length} bytes`);
    if (length > 0) reply.data = (await channel.take(length)).slice();
    replies.push(reply);
    if (reply.type === NBD_REP_ACK || reply.type >= NBD_REP_FLAG_ERROR) return replies;
  }
  throw violation("replies without end");
}

/** Sends an option. */
export function sendOption(channel: HandshakeChannel, type: number, data: Uint8Array): void {
  const parts = [uint32(IHAVEOPT[0]), uint32(IHAVEOPT[1]), uint32(type), uint32(data.length), data];
  channel.send(concatBytes(parts));
}

/** Throws an NbdHandshakeError where the final reply is an error. */
export function requireAck(replies: readonly OptionReply[]): void {
  const final = replies.at(-1);
  if (final === undefined || final.type === NBD_REP_ACK) return;
  const text = decodeString(final.data) ?? "";
  const code = `0x${final.type.toString(16)}`;
  throw new NbdHandshakeError(final.type, text === "" ? `the server answered ${code}` : text);
}

/** The error for a server that breaks the protocol. */
export function violation(reason: string): NbdHandshakeError {
  return new NbdHandshakeError(0, `the server broke the protocol: ${reason}`);
}

function uint32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value);
  return bytes;
}

/** A string behind its length. */
export function withLength(text: string): Uint8Array {
  const bytes = encodeString(text);
  return concatBytes([uint32(bytes.length), bytes]);
}
