/**
 * The same guest under Ovis and under qemu-system-riscv64, behind one interface, so that both run
 * the same commands in the same way.
 *
 * @module
 */

import { type Service, ServiceConsole } from "../tests/support/service.ts";

/** What boots. */
export interface GuestFiles {
  kernel: string;
  initrd?: string;
  cmdline?: string;
}

/** A running guest. */
export interface Guest extends AsyncDisposable {
  readonly name: string;
  waitFor(pattern: RegExp): Promise<RegExpExecArray>;
  /** A command of the demo guest; its output. */
  demo(command: string): Promise<string>;
}

const DEMO = new URL("../tests/guests/demo/demo.elf", import.meta.url).pathname;

/** The demo guest's files. */
export const demoGuest: GuestFiles = { kernel: DEMO };

let serial = 0;

/** Starts a guest as a machine of the service, with one disk where `diskBytes` is given. */
export async function startOurs(
  service: Service,
  files: GuestFiles,
  options: { memoryBytes: number; diskBytes?: number; accel?: "interpreter" | "translator" },
): Promise<Guest & { vm: string }> {
  const name = `bench${++serial}`;
  await service.call("POST", "/v1/images", { name, cmdline: files.cmdline ?? "" });
  await service.putImageFile(name, "kernel", files.kernel);
  if (files.initrd !== undefined) await service.putImageFile(name, "initrd", files.initrd);
  await service.call("POST", "/v1/vms", {
    name,
    image: name,
    memoryBytes: options.memoryBytes,
    ...(options.accel !== undefined && { accel: options.accel }),
    disks: options.diskBytes === undefined ? [] : [{ name: "disk0", sizeBytes: options.diskBytes }],
  });
  const console = new ServiceConsole(service, name);
  return {
    name: "ovis",
    vm: name,
    waitFor: (pattern) => console.waitFor(pattern),
    demo: (command) => console.demo(command),
    async [Symbol.asyncDispose]() {
      await console[Symbol.asyncDispose]();
      await service.call("DELETE", `/v1/vms/${name}`);
      await service.call("DELETE", `/v1/images/${name}`);
    },
  };
}

/**
 * Starts the same guest under QEMU; its disk is a raw file with the cache mode QEMU takes by
 * itself.
 */
export function startQemu(
  files: GuestFiles,
  options: { memoryBytes: number; diskPath?: string; args?: string[] },
): Guest {
  const args = [
    "-M",
    "virt",
    "-m",
    `${options.memoryBytes >> 20}M`,
    "-nographic",
    "-monitor",
    "none",
  ];
  args.push(
    "-serial",
    "stdio",
    "-global",
    "virtio-mmio.force-legacy=false",
    "-kernel",
    files.kernel,
  );
  if (files.initrd !== undefined) args.push("-initrd", files.initrd);
  if (files.cmdline !== undefined) args.push("-append", files.cmdline);
  if (options.diskPath !== undefined) {
    args.push("-blockdev", `driver=file,filename=${options.diskPath},node-name=f,discard=unmap`);
    args.push("-blockdev", "driver=raw,file=f,node-name=disk,discard=unmap");
    args.push("-device", "virtio-blk-device,drive=disk,id=vblk");
  }
  args.push(...options.args ?? []);
  const child = new Deno.Command("qemu-system-riscv64", {
    args,
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter();
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  const waitFor = async (pattern: RegExp): Promise<RegExpExecArray> => {
    for (;;) {
      const match = pattern.exec(text);
      if (match) {
        text = text.slice(match.index + match[0].length);
        return match;
      }
      const { done, value } = await reader.read();
      if (done) throw new Error(`qemu ended without ${pattern}: ${text}`);
      text += value;
    }
  };
  return {
    name: "qemu",
    waitFor,
    async demo(command) {
      await writer.write(new TextEncoder().encode(`${command}\r`));
      const [all, output, result] = await waitFor(/^[^]*?\r?\n([^]*?)(ok|failed)\r\ndemo> /);
      if (result === "failed") throw new Error(all);
      return output ?? "";
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await writer.abort().catch(() => {});
      await reader.cancel().catch(() => {});
      await child.status;
    },
  };
}

/** The figure before `unit` in a line of the demo guest's: `... 123 MB/s, ...`. */
export function figure(output: string, unit: string): number {
  const match = new RegExp(`(\\d+) ${unit}`).exec(output);
  if (match === null) throw new Error(`no figure in ${unit}: ${output}`);
  return Number(match[1]);
}
