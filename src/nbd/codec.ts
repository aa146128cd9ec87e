/**
 * The words of the NBD protocol: its constants, spelled as the protocol's document spells them, and
 * the few conversions that server, client and tests share. Pure: also runs in browsers.
 *
 * All numbers on the wire are big-endian. 64-bit offsets and lengths become safe integers at this
 * edge: what does not fit is clamped to MAX_SAFE_INTEGER, which is past the end of every export.
 *
 * @module
 */

// Magic numbers. The 64-bit ones in two halves, since numbers are compared without bigint.
/** First in the greeting. */
export const NBDMAGIC: readonly [number, number] = [0x4e42444d, 0x41474943];
/** Second in the greeting, and first in each option. */
export const IHAVEOPT: readonly [number, number] = [0x49484156, 0x454f5054];
/** First in each reply to an option. */
export const NBD_REP_MAGIC: readonly [number, number] = [0x0003e889, 0x045565a9];
/** First in a compact request. */
export const NBD_REQUEST_MAGIC = 0x25609513;
/** First in a simple reply. */
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
/** First in a chunk of a structured reply. */
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;
/** First in an extended request. */
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71;
/** First in a chunk of an extended reply. */
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c;

// Handshake flags and client flags
/** The server answers options it does not know. */
export const NBD_FLAG_FIXED_NEWSTYLE = 1 << 0;
/** The server can leave the padding behind EXPORT_NAME's answer out. */
export const NBD_FLAG_NO_ZEROES = 1 << 1;
/** The client knows the fixed newstyle. */
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0;
/** The client wants no padding. */
export const NBD_FLAG_C_NO_ZEROES = 1 << 1;

// Transmission flags
/** Always set. */
export const NBD_FLAG_HAS_FLAGS = 1 << 0;
/** Everything that changes the export is refused. */
export const NBD_FLAG_READ_ONLY = 1 << 1;
/** NBD_CMD_FLUSH can be used. */
export const NBD_FLAG_SEND_FLUSH = 1 << 2;
/** NBD_CMD_FLAG_FUA can be used. */
export const NBD_FLAG_SEND_FUA = 1 << 3;
/** The medium turns: requests in order are faster. */
export const NBD_FLAG_ROTATIONAL = 1 << 4;
/** NBD_CMD_TRIM can be used. */
export const NBD_FLAG_SEND_TRIM = 1 << 5;
/** NBD_CMD_WRITE_ZEROES can be used. */
export const NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6;
/** NBD_CMD_FLAG_DF can be used. */
export const NBD_FLAG_SEND_DF = 1 << 7;
/** What one connection flushed, all see. */
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8;
/** NBD_CMD_CACHE can be used. */
export const NBD_FLAG_SEND_CACHE = 1 << 10;
/** NBD_CMD_FLAG_FAST_ZERO can be used. */
export const NBD_FLAG_SEND_FAST_ZERO = 1 << 11;
/** NBD_CMD_BLOCK_STATUS can choose among the contexts. */
export const NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12;

// Options
/** Enters transmission; can't fail but by closing. */
export const NBD_OPT_EXPORT_NAME = 1;
/** Ends the handshake. */
export const NBD_OPT_ABORT = 2;
/** Asks for the exports. */
export const NBD_OPT_LIST = 3;
/** Asks for TLS. */
export const NBD_OPT_STARTTLS = 5;
/** Asks about an export. */
export const NBD_OPT_INFO = 6;
/** Asks about an export and enters transmission. */
export const NBD_OPT_GO = 7;
/** Asks for structured replies. */
export const NBD_OPT_STRUCTURED_REPLY = 8;
/** Asks for an export's meta contexts. */
export const NBD_OPT_LIST_META_CONTEXT = 9;
/** Selects meta contexts. */
export const NBD_OPT_SET_META_CONTEXT = 10;
/** Asks for extended headers. */
export const NBD_OPT_EXTENDED_HEADERS = 11;

// Option replies. Errors have bit 31 set.
/** Success; the last reply to an option. */
export const NBD_REP_ACK = 1;
/** An export in a list. */
export const NBD_REP_SERVER = 2;
/** One item of NBD_OPT_INFO or NBD_OPT_GO: NBD_INFO_*. */
export const NBD_REP_INFO = 3;
/** A meta context, with its id. */
export const NBD_REP_META_CONTEXT = 4;
/** Set in the type of every reply that is an error. */
export const NBD_REP_FLAG_ERROR = 0x80000000;
/** The option is not known. */
export const NBD_REP_ERR_UNSUP = 0x80000001;
/** The option is known and not allowed. */
export const NBD_REP_ERR_POLICY = 0x80000002;
/** The option's data is malformed. */
export const NBD_REP_ERR_INVALID = 0x80000003;
/** The option can't be had on this platform. */
export const NBD_REP_ERR_PLATFORM = 0x80000004;
/** TLS first. */
export const NBD_REP_ERR_TLS_REQD = 0x80000005;
/** No such export. */
export const NBD_REP_ERR_UNKNOWN = 0x80000006;
/** The server is stopping. */
export const NBD_REP_ERR_SHUTDOWN = 0x80000007;
/** The client must ask for the block sizes. */
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x80000008;
/** The option or its answer is too long. */
export const NBD_REP_ERR_TOO_BIG = 0x80000009;
/** Extended headers only. */
export const NBD_REP_ERR_EXT_HEADER_REQD = 0x8000000a;

// Information items of NBD_OPT_INFO and NBD_OPT_GO
/** Size and transmission flags. */
export const NBD_INFO_EXPORT = 0;
/** The export's own name. */
export const NBD_INFO_NAME = 1;
/** A text for humans. */
export const NBD_INFO_DESCRIPTION = 2;
/** Smallest and preferred block, largest payload. */
export const NBD_INFO_BLOCK_SIZE = 3;

// Commands
/** Reads. */
export const NBD_CMD_READ = 0;
/** Writes the payload. */
export const NBD_CMD_WRITE = 1;
/** Says goodbye; has no reply. */
export const NBD_CMD_DISC = 2;
/** Makes answered writes durable. */
export const NBD_CMD_FLUSH = 3;
/** Gives an area up. */
export const NBD_CMD_TRIM = 4;
/** Announces reads. */
export const NBD_CMD_CACHE = 5;
/** Writes zeroes without a payload. */
export const NBD_CMD_WRITE_ZEROES = 6;
/** Asks for extents of the selected contexts. */
export const NBD_CMD_BLOCK_STATUS = 7;

// Command flags
/** Durable before the reply. */
export const NBD_CMD_FLAG_FUA = 1 << 0;
/** Zeroes must stay allocated. */
export const NBD_CMD_FLAG_NO_HOLE = 1 << 1;
/** One chunk of content at most. */
export const NBD_CMD_FLAG_DF = 1 << 2;
/** One extent for each context. */
export const NBD_CMD_FLAG_REQ_ONE = 1 << 3;
/** Zeroes only if that is faster than writing. */
export const NBD_CMD_FLAG_FAST_ZERO = 1 << 4;
/** The length is that of a payload (extended headers). */
export const NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5;

// Structured and extended replies
/** The reply's last chunk. */
export const NBD_REPLY_FLAG_DONE = 1 << 0;
/** Nothing but the end of a reply. */
export const NBD_REPLY_TYPE_NONE = 0;
/** Data of a read. */
export const NBD_REPLY_TYPE_OFFSET_DATA = 1;
/** Zeroes in a read. */
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2;
/** Extents with 32-bit lengths. */
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5;
/** Extents with 64-bit lengths (extended headers). */
export const NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6;
/** Set in the type of every chunk that is an error. */
export const NBD_REPLY_TYPE_FLAG_ERROR = 1 << 15;
/** The request failed; where is not said. */
export const NBD_REPLY_TYPE_ERROR: number = NBD_REPLY_TYPE_FLAG_ERROR + 1;
/** The request failed, at an offset that is said. */
export const NBD_REPLY_TYPE_ERROR_OFFSET: number = NBD_REPLY_TYPE_FLAG_ERROR + 2;

// Errors
/** No error. */
export const NBD_SUCCESS = 0;
/** Not permitted. */
export const NBD_EPERM = 1;
/** The medium failed. */
export const NBD_EIO = 5;
/** No memory. */
export const NBD_ENOMEM = 12;
/** A request that can't be. */
export const NBD_EINVAL = 22;
/** No room, or past the end of a write. */
export const NBD_ENOSPC = 28;
/** Too long. */
export const NBD_EOVERFLOW = 75;
/** Not faster than writing. */
export const NBD_ENOTSUP = 95;
/** The server is stopping. */
export const NBD_ESHUTDOWN = 108;

// The base:allocation context
/** By which it is asked for: which areas are holes, which read as zeroes. */
export const NBD_CONTEXT_BASE_ALLOCATION = "base:allocation";
/** Not allocated. */
export const NBD_STATE_HOLE = 1 << 0;
/** Reads as zeroes. */
export const NBD_STATE_ZERO = 1 << 1;

// Sizes of what has a fixed size
/** The server's greeting. */
export const GREETING_BYTES = 18;
/** The client's answer to it. */
export const CLIENT_FLAGS_BYTES = 4;
/** An option without its data. */
export const OPTION_HEADER_BYTES = 16;
/** A reply to an option without its data. */
export const OPTION_REPLY_HEADER_BYTES = 20;
/** The answer to NBD_OPT_EXPORT_NAME. */
export const EXPORT_NAME_REPLY_BYTES = 10;
/** Zeroes behind it. */
export const EXPORT_NAME_PADDING_BYTES = 124;
/** A compact request without its payload. */
export const REQUEST_BYTES = 28;
/** An extended request without its payload. */
export const EXTENDED_REQUEST_BYTES = 32;
/** A simple reply without data. */
export const SIMPLE_REPLY_BYTES = 16;
/** A structured chunk without its payload. */
export const STRUCTURED_REPLY_BYTES = 20;
/** An extended chunk without its payload. */
export const EXTENDED_REPLY_BYTES = 32;

/** The longest string of the protocol. */
export const STRING_BYTES_MAX = 4096;
/** The longest message that the protocol recommends. */
const MESSAGE_BYTES_MAX = 256;

/** What a client must ask of a server that named no largest payload ("Size constraints"). */
export const DEFAULT_PAYLOAD_BYTES = 32 * 1024 * 1024;

/** Which headers requests and replies have, by what was negotiated. */
export type ReplyStyle = "simple" | "structured" | "extended";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The UTF-8 bytes of a string. */
export function encodeString(text: string): Uint8Array<ArrayBuffer> {
  return encoder.encode(text);
}

/**
 * A string of the protocol, or undefined where the bytes are none: not UTF-8, a NUL inside, or
 * longer than STRING_BYTES_MAX ("Conventions").
 */
export function decodeString(bytes: Uint8Array): string | undefined {
  if (bytes.length > STRING_BYTES_MAX || bytes.includes(0)) return undefined;
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

/**
 * A message for a human: at most MESSAGE_BYTES_MAX bytes of whole UTF-8 characters, without NUL.
 */
export function encodeMessage(text: string): Uint8Array {
  const target = new Uint8Array(MESSAGE_BYTES_MAX);
  const { written } = encoder.encodeInto(text.replaceAll("\0", " "), target);
  return target.subarray(0, written);
}

/** The 64-bit number at `position`, clamped to MAX_SAFE_INTEGER. */
export function getUint64(view: DataView, position: number): number {
  return joinUint64(view.getUint32(position), view.getUint32(position + 4));
}

/** The number of two halves, clamped to MAX_SAFE_INTEGER. */
export function joinUint64(high: number, low: number): number {
  return high > 0x1fffff ? Number.MAX_SAFE_INTEGER : high * 0x100000000 + low;
}

/** Writes a safe integer as 64 bits. */
export function setUint64(view: DataView, position: number, value: number): void {
  view.setUint32(position, Math.floor(value / 0x100000000));
  view.setUint32(position + 4, value >>> 0);
}

/** A view of the bytes, for numbers. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** One byte sequence out of several. */
export function concatBytes(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  let length = 0;
  for (const part of parts) length += part.length;
  const joined = new Uint8Array(length);
  let position = 0;
  for (const part of parts) {
    joined.set(part, position);
    position += part.length;
  }
  return joined;
}

/** The name of an error number, for messages. */
export function errnoName(errno: number): string {
  switch (errno) {
    case NBD_EPERM:
      return "EPERM";
    case NBD_EIO:
      return "EIO";
    case NBD_ENOMEM:
      return "ENOMEM";
    case NBD_EINVAL:
      return "EINVAL";
    case NBD_ENOSPC:
      return "ENOSPC";
    case NBD_EOVERFLOW:
      return "EOVERFLOW";
    case NBD_ENOTSUP:
      return "ENOTSUP";
    case NBD_ESHUTDOWN:
      return "ESHUTDOWN";
    default:
      return `error ${errno}`;
  }
}
