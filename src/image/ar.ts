/**
 * Reads the members of an ar archive (deb(5), ar(5)): a magic line, then for each member a header
 * of 60 bytes and its content, padded to an even length.
 *
 * @module
 */

import { ImageError } from "./errors.ts";

const MAGIC = "!<arch>\n";
const HEADER_BYTES = 60;
/** A .deb has three members; more than this is no package. */
const MEMBER_COUNT_MAX = 64;

/** Where a member's content stands in the archive. */
export interface ArMember {
  /** Without padding and without the `/` that some archivers put behind it. */
  name: string;
  /** Of its first byte in the archive. */
  offset: number;
  /** Of the content in bytes, without padding. */
  length: number;
}

/** Lists the members of the archive in `file`, in order. Throws ImageError where it is none. */
export async function listArMembers(file: Deno.FsFile): Promise<ArMember[]> {
  const size = (await file.stat()).size;
  if (await readText(file, 0, MAGIC.length) !== MAGIC) throw new ImageError("not an ar archive");
  const members: ArMember[] = [];
  let offset = MAGIC.length;
  while (offset < size) {
    if (members.length === MEMBER_COUNT_MAX) {
      throw new ImageError("too many members in the archive");
    }
    const header = await readText(file, offset, HEADER_BYTES);
    const name = header.slice(0, 16).trimEnd().replace(/\/$/, "");
    const length = Number(header.slice(48, 58).trimEnd());
    offset += HEADER_BYTES;
    const isGood = header.length === HEADER_BYTES && header.endsWith("`\n") &&
      Number.isSafeInteger(length) && length >= 0 && offset + length <= size;
    if (!isGood) throw new ImageError(`the archive is damaged at byte ${offset - HEADER_BYTES}`);
    members.push({ name, offset, length });
    offset += length + length % 2;
  }
  return members;
}

/** The content of a member as a stream. Reads of several members must not interleave. */
export function streamArMember(
  file: Deno.FsFile,
  member: ArMember,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  let done = 0;
  return new ReadableStream({
    async pull(controller) {
      const chunk = new Uint8Array(Math.min(256 * 1024, member.length - done));
      if (chunk.length === 0) return controller.close();
      await file.seek(member.offset + done, Deno.SeekMode.Start);
      const count = await file.read(chunk);
      if (count === null) throw new ImageError(`the archive ends within ${member.name}`);
      done += count;
      controller.enqueue(chunk.subarray(0, count));
    },
  });
}

async function readText(file: Deno.FsFile, offset: number, length: number): Promise<string> {
  const bytes = new Uint8Array(length);
  await file.seek(offset, Deno.SeekMode.Start);
  let done = 0;
  while (done < length) {
    const count = await file.read(bytes.subarray(done));
    if (count === null) break;
    done += count;
  }
  return String.fromCharCode(...bytes.subarray(0, done));
}
