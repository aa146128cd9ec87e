/**
 * A folder of files as file systems have them, made from a seed, and what a reader must find in it.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { ByteSource } from "../../src/client/fs/source.ts";
import type { Volume } from "../../src/client/fs/volume.ts";

/** What a tree is made of, for file systems that don't know all of it. */
export interface TreeOptions {
  /** Symbolic links and hard links. */
  hasLinks?: boolean;
  /** A file with holes of this many bytes, 0: none. */
  holeBytes?: number;
  /** The longest file. */
  largestBytes?: number;
  /** Names in the largest directory. */
  manyCount?: number;
}

/** A path's content: the SHA-256 of a file, the target of a symbolic link, "" of a directory. */
export type Manifest = Map<string, string>;

/** Random bytes of a seed: xorshift32. */
export function randomBytes(seed: number, length: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = seed | 1;
  for (let index = 0; index < words.length; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = state;
  }
  return new Uint8Array(words.buffer, 0, length);
}

/** SHA-256 in hexadecimal. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Makes the tree in an empty folder. */
export async function makeTree(
  folder: string,
  seed: number,
  options: TreeOptions = {},
): Promise<Manifest> {
  const { hasLinks = true, holeBytes = 0, largestBytes = 3 << 20, manyCount = 700 } = options;
  const manifest: Manifest = new Map([["/", ""]]);
  const directory = (path: string): void => {
    Deno.mkdirSync(folder + path);
    manifest.set(path, "");
  };
  const file = async (path: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> => {
    Deno.writeFileSync(folder + path, bytes);
    manifest.set(path, await sha256(bytes));
  };
  const sizes = [0, 1, 59, 60, 61, 511, 512, 1023, 1024, 4095, 4096, 4097, 65535, 131073];
  directory("/sizes");
  for (const [index, size] of [...sizes, largestBytes].entries()) {
    await file(`/sizes/f${size}.bin`, randomBytes(seed + index, size));
  }
  directory("/many");
  for (let index = 0; index < manyCount; index++) {
    await file(`/many/name-${index}.txt`, new TextEncoder().encode(`content ${index}\n`));
  }
  directory("/deep");
  let path = "/deep";
  for (let depth = 0; depth < 6; depth++) directory(path += `/d${depth}`);
  await file(`${path}/leaf`, randomBytes(seed + 99, 10_000));
  directory("/names");
  await file("/names/Ümläut und Leerzeichen €.txt", randomBytes(seed + 100, 100));
  await file(`/names/${"long-".repeat(20)}name.txt`, randomBytes(seed + 101, 100));
  if (hasLinks) {
    Deno.symlinkSync("sizes/f1024.bin", `${folder}/fast`);
    manifest.set("/fast", "sizes/f1024.bin");
    const far = `deep/${"./".repeat(60)}d0/../../sizes/f4097.bin`;
    Deno.symlinkSync(far, `${folder}/slow`);
    manifest.set("/slow", far);
    Deno.symlinkSync("/loop", `${folder}/loop`);
    manifest.set("/loop", "/loop");
    Deno.linkSync(`${folder}/sizes/f4096.bin`, `${folder}/hard`);
    manifest.set("/hard", manifest.get("/sizes/f4096.bin") ?? "");
  }
  if (holeBytes > 0) {
    const ends = { begin: randomBytes(seed + 102, 5000), end: randomBytes(seed + 103, 5000) };
    using sparse = Deno.openSync(`${folder}/holes`, { write: true, createNew: true });
    sparse.writeSync(ends.begin);
    sparse.seekSync(holeBytes, Deno.SeekMode.Start);
    sparse.writeSync(ends.end);
    const whole = new Uint8Array(holeBytes + 5000);
    whole.set(ends.begin);
    whole.set(ends.end, holeBytes);
    manifest.set("/holes", await sha256(whole));
  }
  return manifest;
}

/** Everything that a volume has must be what the manifest says, and nothing may be missing. */
export async function assertTree(volume: Volume, manifest: Manifest): Promise<void> {
  const found: Manifest = new Map();
  for await (const { path, node } of volume.walk()) {
    if (path === "/lost+found") continue;
    if (node.kind === "symlink") found.set(path, await node.target({}));
    else if (node.kind === "file") {
      const bytes = await new Response((await volume.open(path)).stream()).bytes();
      assertEquals(bytes.length, node.sizeBytes, path);
      found.set(path, await sha256(bytes));
    } else found.set(path, "");
  }
  assertEquals([...found].sort(byPath), [...manifest].sort(byPath));
}

function byPath([a]: [string, string], [b]: [string, string]): number {
  return a < b ? -1 : 1;
}

/** An image file as a source; counts what is read. */
export class ImageSource implements ByteSource, Disposable {
  readonly sizeBytes: number;
  /** Requests and bytes that were read. */
  readonly counts = { requests: 0, bytes: 0 };
  readonly #file: Deno.FsFile;

  /** Opens it. */
  constructor(path: string) {
    this.#file = Deno.openSync(path);
    this.sizeBytes = this.#file.statSync().size;
  }

  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    this.counts.requests++;
    this.counts.bytes += length;
    const bytes = new Uint8Array(length);
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    for (let done = 0; done < length;) {
      const count = this.#file.readSync(bytes.subarray(done));
      if (count === null) return Promise.reject(new Error("read past the end"));
      done += count;
    }
    return Promise.resolve(bytes);
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

/** Runs a program; throws with what it says where it fails. */
export function run(program: string, ...args: string[]): string {
  const { success, stdout, stderr } = new Deno.Command(program, { args }).outputSync();
  const text = new TextDecoder().decode(stdout);
  if (success) return text;
  throw new Error(`${program} ${args.join(" ")}: ${new TextDecoder().decode(stderr)}${text}`);
}
