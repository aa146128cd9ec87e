/**
 * The same guest under Ovis and under qemu-system-riscv64, spoken to in the same way, so that both
 * run the same commands.
 *
 * @module
 */

import { ConsoleDialogue } from "../../src/cli/console_dialogue.ts";
import { type Service, ServiceConsole } from "./service.ts";

/** What boots. */
export interface GuestFiles {
  kernel: string;
  initrd?: string;
  cmdline?: string;
}

/** A machine of a service: its console. Disposing of it deletes what was made for it. */
export class OvisGuest extends ServiceConsole {
  readonly #service: Service;
  readonly #resources: readonly string[];
  /** When its machine was asked for, by performance.now(). */
  readonly startedAt: number;

  /** `resources`: paths of the API, in the order in which they go. */
  constructor(
    service: Service,
    readonly vm: string,
    { resources, startedAt }: { resources: readonly string[]; startedAt: number },
  ) {
    super(service, vm);
    this.startedAt = startedAt;
    this.#service = service;
    this.#resources = resources;
  }

  /** Deletes machine, disk and image. */
  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    for (const path of this.#resources) await this.#service.call("DELETE", path);
  }
}

const DEMO = new URL("../guests/demo/demo.elf", import.meta.url).pathname;

/** The demo guest's files. */
export const demoGuest: GuestFiles = { kernel: DEMO };

let serial = 0;

/** What a machine of the service has beside its files. */
export interface OvisOptions {
  memoryBytes: number;
  accel?: "interpreter" | "translator";
  /** Of a new, empty disk. */
  diskBytes?: number;
  /** A raw image that the disk begins with; it must be in a folder that the service may open. */
  rootPath?: string;
}

/** Starts a guest as a machine of the service, with a disk where one is asked for. */
export async function startOurs(
  service: Service,
  files: GuestFiles,
  { memoryBytes, accel, diskBytes, rootPath }: OvisOptions,
): Promise<OvisGuest> {
  const name = `guest${++serial}`;
  await service.call("POST", "/v1/images", { name, cmdline: files.cmdline ?? "" });
  await service.putImageFile(name, "kernel", files.kernel);
  if (files.initrd !== undefined) await service.putImageFile(name, "initrd", files.initrd);
  const resources = [`/v1/vms/${name}`, `/v1/images/${name}`];
  if (rootPath !== undefined) {
    await service.call("POST", "/v1/disks", { name, path: rootPath, format: "raw" });
    resources.push(`/v1/disks/${name}`);
  }
  const startedAt = performance.now();
  await service.call("POST", "/v1/vms", {
    name,
    image: name,
    memoryBytes,
    ...(accel !== undefined && { accel }),
    disks: [
      ...(diskBytes === undefined ? [] : [{ name: "disk0", sizeBytes: diskBytes }]),
      ...(rootPath === undefined ? [] : [{ name: "root", backing: name }]),
    ],
  });
  return new OvisGuest(service, name, { resources, startedAt });
}

/** What a guest under QEMU has beside its files. */
export interface QemuOptions {
  memoryBytes: number;
  /** A raw disk, with the cache mode QEMU takes by itself. */
  diskPath?: string;
  /** A raw image that the disk begins with, and which stays as it is. */
  rootPath?: string;
  args?: string[];
}

/** Starts the same guest under QEMU. Disposing of it ends it. */
export function startQemu(files: GuestFiles, options: QemuOptions): ConsoleDialogue {
  const child = new Deno.Command("qemu-system-riscv64", {
    args: qemuArguments(files, options),
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter();
  return new class extends ConsoleDialogue {
    override async [Symbol.asyncDispose]() {
      try {
        child.kill("SIGKILL");
      } catch {
        // it has ended already
      }
      await writer.abort().catch(() => {});
      await super[Symbol.asyncDispose]();
      await child.status;
    }
  }({
    output: () => Promise.resolve(child.stdout),
    input: (bytes) => writer.write(bytes),
  });
}

function qemuArguments(files: GuestFiles, options: QemuOptions): string[] {
  const { memoryBytes, diskPath, rootPath } = options;
  return [
    ...["-M", "virt", "-m", `${memoryBytes >> 20}M`, "-nographic", "-monitor", "none"],
    ...["-serial", "stdio", "-global", "virtio-mmio.force-legacy=false"],
    ...["-kernel", files.kernel],
    ...(files.initrd === undefined ? [] : ["-initrd", files.initrd]),
    ...(files.cmdline === undefined ? [] : ["-append", files.cmdline]),
    ...(diskPath === undefined ? [] : [
      ...["-blockdev", `driver=file,filename=${diskPath},node-name=f,discard=unmap`],
      ...["-blockdev", "driver=raw,file=f,node-name=disk,discard=unmap"],
      ...["-device", "virtio-blk-device,drive=disk,id=vblk"],
    ]),
    ...(rootPath === undefined ? [] : [
      ...["-drive", `file=${rootPath},format=raw,if=none,id=root,snapshot=on`],
      ...["-device", "virtio-blk-device,drive=root"],
    ]),
    ...options.args ?? [],
  ];
}
