/**
 * Images on disk for tests of formats: a folder that goes when the test ends, and QEMU's tools,
 * which make them and judge them.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { FileNode } from "../../src/block/drivers/file.ts";

/** The end of a program. */
export interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

/** What `qemu-img check --output=json` counts; what is 0 it may leave out. */
export interface ImageCheck {
  "check-errors": number;
  corruptions?: number;
  leaks?: number;
  "corruptions-fixed"?: number;
  "leaks-fixed"?: number;
  "image-end-offset"?: number;
  "total-clusters"?: number;
  "allocated-clusters"?: number;
  "fragmented-clusters"?: number;
  "compressed-clusters"?: number;
}

/** See the module's head. */
export class ImageFolder implements Disposable {
  readonly path = Deno.makeTempDirSync({ prefix: "ovis-images-" });

  [Symbol.dispose](): void {
    Deno.removeSync(this.path, { recursive: true });
  }

  /** The path of a file in the folder. */
  file(name: string): string {
    return `${this.path}/${name}`;
  }

  /** Runs a program in the folder. */
  async run(program: string, ...args: string[]): Promise<Outcome> {
    const command = new Deno.Command(program, { args, cwd: this.path, stdin: "null" });
    const { code, stdout, stderr } = await command.output();
    const decoder = new TextDecoder();
    return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
  }

  /** The same for a program that must succeed: what it prints. */
  async do(program: string, ...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(program, ...args);
    assertEquals(code, 0, `${program} ${args.join(" ")}: ${stderr}${stdout}`);
    return stdout;
  }

  /** `qemu-img create`; `options` of -o. */
  create(name: string, size: string | number, options = ""): Promise<string> {
    const more = options === "" ? [] : ["-o", options];
    return this.do("qemu-img", "create", "-q", "-f", "qcow2", ...more, name, String(size));
  }

  /** Commands of qemu-io ("write -P 1 0 64k"), none of which may fail. */
  async io(name: string, ...commands: string[]): Promise<void> {
    const args = commands.flatMap((command) => ["-c", command]);
    const { code, stdout, stderr } = await this.run("qemu-io", "-f", "qcow2", ...args, name);
    if (code !== 0 || /failed|error|invalid/i.test(stdout + stderr)) {
      throw new Error(`qemu-io ${args.join(" ")}: ${stdout}${stderr}`);
    }
  }

  /** What `qemu-img check` says, whatever it finds. */
  async check(name: string, repair: "none" | "leaks" | "all" = "none"): Promise<ImageCheck> {
    const more = repair === "none" ? [] : ["-r", repair];
    const args = ["check", "-f", "qcow2", "--output=json", ...more, name];
    const { stdout, stderr } = await this.run("qemu-img", ...args);
    if (!stdout.startsWith("{")) throw new Error(`qemu-img check ${name}: ${stdout}${stderr}`);
    return JSON.parse(stdout);
  }

  /** Asserts that `qemu-img check` finds nothing. */
  async assertClean(name: string): Promise<void> {
    const { code, stdout, stderr } = await this.run("qemu-img", "check", "-f", "qcow2", name);
    assertEquals(code, 0, `${name}: ${stdout}${stderr}`);
  }

  /** A node over a file of the folder. The caller closes it. */
  open(name: string, isReadOnly = false): FileNode {
    return FileNode.open({ nodeName: "file", path: this.file(name), isReadOnly });
  }

  /** Changes bytes of a file. */
  patch(name: string, at: number, bytes: Uint8Array): void {
    using file = Deno.openSync(this.file(name), { read: true, write: true });
    file.seekSync(at, Deno.SeekMode.Start);
    let written = 0;
    while (written < bytes.length) written += file.writeSync(bytes.subarray(written));
  }

  /** A file's bytes. */
  bytes(name: string): Uint8Array<ArrayBuffer> {
    return Deno.readFileSync(this.file(name));
  }
}
