/**
 * What a server tells about its exports without opening one: NBD_OPT_INFO with everything, and
 * NBD_OPT_LIST_META_CONTEXT.
 *
 * @module
 */

import type { ByteStream } from "./byte_stream.ts";
import {
  greet,
  type HandshakeChannel,
  infoRequest,
  listed,
  type ListedExport,
  type NegotiatedExport,
  negotiateStyle,
  option,
  readInfo,
  requireAck,
  secure,
  sendOption,
  unknownExport,
  violation,
  withLength,
} from "./client_handshake.ts";
import { ClientLink } from "./client_link.ts";
import {
  concatBytes,
  decodeString,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_REP_ACK,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
  type ReplyStyle,
  viewOf,
} from "./codec.ts";

/** An export as its server describes it. */
export interface ExportDescription extends Omit<NegotiatedExport, "style" | "contexts"> {
  /** The name that it was asked for by. */
  name: string;
  /** The export's own name, null where the server does not tell. */
  canonicalName: string | null;
  /** For people, null where there is none. */
  description: string | null;
  /** Its meta contexts; empty where the server has none. */
  contexts: string[];
  /** It named the sizes of blocks. */
  hasBlockSizes: boolean;
}

/** What a server says. */
export interface ServerDescription {
  /** The best headers that it has. */
  style: ReplyStyle;
  /** Said in secret. */
  isTls: boolean;
  /** The export that was asked for, or all. */
  exports: ExportDescription[];
}

/** Asks for one export, or with null for all that the server lists. Uses the stream up. */
export async function describeExports(
  stream: ByteStream,
  exportName: string | null,
  { signal, isTls = false }: { signal?: AbortSignal; isTls?: boolean } = {},
): Promise<ServerDescription> {
  const link = new ClientLink(stream, signal);
  try {
    await greet(link);
    if (isTls) await secure(link);
    const style = await negotiateStyle(link, "extended");
    const names: Pick<ListedExport, "name">[] = exportName === null
      ? await list(link)
      : [{ name: exportName }];
    const exports: ExportDescription[] = [];
    for (const { name } of names) exports.push(await describe(link, name, style));
    sendOption(link, NBD_OPT_ABORT, new Uint8Array(0));
    return { style, isTls, exports };
  } finally {
    link.release();
    await link.drained();
    stream.close("done");
  }
}

async function list(channel: HandshakeChannel): Promise<ListedExport[]> {
  const replies = await option(channel, NBD_OPT_LIST, new Uint8Array(0));
  requireAck(replies);
  return listed(replies);
}

async function describe(
  channel: HandshakeChannel,
  name: string,
  style: ReplyStyle,
): Promise<ExportDescription> {
  const contexts = style === "simple" ? [] : await listContexts(channel, name);
  const items = [NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE];
  const replies = await option(channel, NBD_OPT_INFO, infoRequest(name, items));
  requireAck(replies);
  const negotiated = unknownExport();
  const texts = new Map<number, string>();
  let hasBlockSizes = false;
  for (const { type, data } of replies) {
    if (type !== NBD_REP_INFO) continue;
    readInfo(viewOf(data), negotiated);
    const item = viewOf(data).getUint16(0);
    if (item === NBD_INFO_BLOCK_SIZE) hasBlockSizes = true;
    const text = decodeString(data.subarray(2));
    if (text !== undefined) texts.set(item, text);
  }
  if (negotiated.sizeBytes < 0) throw violation("no NBD_INFO_EXPORT before the acknowledgement");
  const { sizeBytes, transmissionFlags } = negotiated;
  const { minimumBlockBytes, preferredBlockBytes, payloadBytesMax } = negotiated;
  return {
    ...{ name, sizeBytes, transmissionFlags, contexts, hasBlockSizes },
    ...{ minimumBlockBytes, preferredBlockBytes, payloadBytesMax },
    canonicalName: texts.get(NBD_INFO_NAME) ?? null,
    description: texts.get(NBD_INFO_DESCRIPTION) ?? null,
  };
}

async function listContexts(channel: HandshakeChannel, name: string): Promise<string[]> {
  const request = concatBytes([withLength(name), new Uint8Array(4)]);
  const replies = await option(channel, NBD_OPT_LIST_META_CONTEXT, request);
  // A server without contexts may not know the option at all.
  if (replies.at(-1)?.type !== NBD_REP_ACK) return [];
  return replies.filter(({ type }) => type === NBD_REP_META_CONTEXT)
    .map(({ data }) => decodeString(data.subarray(4)) ?? "");
}
