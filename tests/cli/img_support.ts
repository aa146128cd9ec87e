/**
 * `ovis img` in the test's own process, and qemu-img beside it: version 10 where the storage daemon
 * of that version is known, else the one that is installed.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { dirname, join } from "node:path";
import { runImg } from "../../src/cli/img/run.ts";
import { findProgram } from "../support/clients.ts";

export const KiB = 1024;
export const MiB = 1024 * KiB;

/** What a command line did. */
export interface Outcome {
  status: number;
  stdout: string;
  stderr: string;
}

/** Runs `ovis img WORDS` here. */
export async function img(...words: string[]): Promise<Outcome> {
  const outcome: Outcome = { status: 0, stdout: "", stderr: "" };
  outcome.status = await runImg(words, {
    print: (text) => outcome.stdout += text,
    printError: (text) => outcome.stderr += text,
    isTerminal: false,
  });
  return outcome;
}

/** `img`, which must end well; what it printed. */
export async function imgOk(...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await img(...words);
  assertEquals({ words, status, stderr }, { words, status: 0, stderr: "" });
  return stdout;
}

function qemuImgPath(): string {
  const daemon = Deno.env.get("OVIS_QEMU10_QSD");
  const beside = daemon === undefined ? undefined : join(dirname(daemon), "qemu-img");
  return findProgram(...(beside === undefined ? [] : [beside]), "qemu-img") ?? "qemu-img";
}

/** Whether the reference is version 10, which shows more. */
export const IS_QEMU_10: boolean = qemuImgPath().includes("/") &&
  Deno.env.get("OVIS_QEMU10_QSD") !== undefined &&
  dirname(qemuImgPath()) === dirname(Deno.env.get("OVIS_QEMU10_QSD") ?? "");

/** Runs qemu-img. */
export async function qemuImg(...words: string[]): Promise<Outcome> {
  return await run(qemuImgPath(), words);
}

/** `qemuImg`, which must end well; what it printed. */
export async function qemuImgOk(...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await qemuImg(...words);
  if (status !== 0) throw new Error(`qemu-img ${words.join(" ")}: ${stderr}`);
  return stdout;
}

/** Commands of qemu-io on an image. */
export async function qemuIo(image: string, ...commands: string[]): Promise<void> {
  const words = commands.flatMap((command) => ["-c", command]);
  const format = image.endsWith(".raw") ? "raw" : "qcow2";
  const { status, stdout, stderr } = await run("qemu-io", ["-f", format, ...words, image]);
  if (status !== 0 || /failed|error/i.test(stdout)) throw new Error(`qemu-io: ${stdout}${stderr}`);
}

async function run(program: string, args: string[]): Promise<Outcome> {
  const output = await new Deno.Command(program, { args, stdout: "piped", stderr: "piped" })
    .output();
  const decoder = new TextDecoder();
  return {
    status: output.code,
    stdout: decoder.decode(output.stdout),
    stderr: decoder.decode(output.stderr),
  };
}

/** A text of ours in qemu-img's words: only the name of the program differs. */
export function asQemu(text: string): string {
  return text.replaceAll("ovis img", "qemu-img");
}

/** qemu-img's messages without the path that it was started by. */
export function withoutPath(text: string): string {
  return text.replaceAll(/\/\S*\/qemu-img/g, "qemu-img");
}

/** An image that qemu-img finds faultless, with the content of another one. */
export async function assertSound(image: string, sameAs?: string): Promise<void> {
  if (image.endsWith(".qcow2")) {
    const { status, stdout, stderr } = await qemuImg("check", "-f", "qcow2", image);
    assertEquals({ status, stderr, stdout }, { status: 0, stderr: "", stdout });
  }
  if (sameAs === undefined) return;
  const [a, b] = [image, sameAs].map((name) => name.endsWith(".raw") ? "raw" : "qcow2");
  const compared = await qemuImg("compare", "-f", a ?? "", "-F", b ?? "", image, sameAs);
  assertEquals(compared.stdout, "Images are identical.\n");
}

/** A folder that goes with the test. */
export class Folder implements AsyncDisposable {
  private constructor(readonly path: string) {}

  static async make(): Promise<Folder> {
    return new Folder(await Deno.makeTempDir({ prefix: "ovis-img-" }));
  }

  file(name: string): string {
    return `${this.path}/${name}`;
  }

  /** A raw image: pieces of bytes at offsets, holes between. */
  raw(name: string, sizeBytes: number, pieces: [offset: number, bytes: Uint8Array][]): string {
    const path = this.file(name);
    using file = Deno.openSync(path, { create: true, write: true, truncate: true });
    file.truncateSync(sizeBytes);
    for (const [offset, bytes] of pieces) {
      file.seekSync(offset, Deno.SeekMode.Start);
      for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
    }
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
  }
}

/** Bytes that don't compress, the same for every run. */
export function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let index = 0; index < length; index++) {
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    bytes[index] = state >>> 24;
  }
  return bytes;
}

/** A disk with data, text, single sectors, zeroes that are written, and holes. */
export function mixedDisk(folder: Folder, name = "source.raw"): string {
  const text = new TextEncoder().encode("all work and no play ".repeat(20000));
  return folder.raw(name, 8 * MiB, [
    [0, noise(300 * KiB, 1)],
    [1 * MiB, text],
    [2 * MiB + 512, noise(512, 2)],
    [3 * MiB, new Uint8Array(1 * MiB)],
    [5 * MiB - 4096, noise(200 * KiB + 3 * 512, 3)],
    [8 * MiB - 512, noise(512, 4)],
  ]);
}
