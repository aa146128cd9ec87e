/**
 * Takes files out of a Debian package (deb(5)): an ar archive whose member `data.tar.*` is a
 * compressed tar.
 *
 * @module
 */

import { createTarDecoder } from "modern-tar";
import { listArMembers, streamArMember } from "./ar.ts";
import { collect, decompress } from "./decompress.ts";
import { ImageError } from "./errors.ts";

/** Largest single file that is taken out of a package. */
const FILE_BYTES_MAX = 256 * 1024 * 1024;

/** Options of `extractDeb`. */
export interface ExtractOptions {
  /** Which regular files are taken, by path without leading `./`. */
  wants: (path: string) => boolean;
  /** Called as the package is read: bytes of it, compressed. */
  onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** The wanted regular files of the package at `path`, by their path without leading `./`. */
export async function extractDeb(
  path: string,
  options: ExtractOptions,
): Promise<Map<string, Uint8Array<ArrayBuffer>>> {
  using file = await Deno.open(path);
  const members = await listArMembers(file);
  const data = members.find((member) => member.name.startsWith("data.tar"));
  if (data === undefined) throw new ImageError("not a Debian package: no data.tar in it");
  let done = 0;
  const counted = streamArMember(file, data).pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        options.onProgress?.(done += chunk.length, data.length);
        controller.enqueue(chunk);
      },
    }),
  );
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  try {
    for await (const entry of decompress(data.name, counted).pipeThrough(createTarDecoder())) {
      const name = entry.header.name.replace(/^(\.?\/)+/, "");
      if (entry.header.type === "file" && options.wants(name)) {
        files.set(
          name,
          await collect(entry.body as ReadableStream<Uint8Array<ArrayBuffer>>, FILE_BYTES_MAX),
        );
      } else {
        // Read to its end: cancelling a body that has not all arrived stalls the decoder.
        await entry.body.pipeTo(new WritableStream());
      }
    }
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError(`the package is damaged: ${(error as Error).message}`, { cause: error });
  }
  return files;
}
