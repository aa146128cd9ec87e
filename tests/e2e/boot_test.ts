/** Real firmware and kernels, booted through the service as its users do; the console decides. */
import { assertMatch } from "@std/assert";
import { needs } from "../support/clients.ts";
import { findDebian } from "../support/debian.ts";
import { Service, ServiceConsole } from "../support/service.ts";

const OPENSBI = "/usr/lib/riscv64-linux-gnu/opensbi/generic";
const U_BOOT = "/usr/lib/u-boot/qemu-riscv64_smode";
const MiB = 1024 * 1024;
const debian = await findDebian();

interface Boot {
  kernel?: string;
  initrd?: string;
  firmware?: string;
}

async function withMachine(
  boot: Boot,
  action: (console: ServiceConsole, service: Service) => Promise<void>,
  harts = 1,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await using service = await Service.start(folder);
    await service.call("POST", "/v1/images", { name: "image", cmdline: "console=ttyS0" });
    for (const [part, path] of Object.entries(boot)) {
      await service.putImageFile("image", part, path);
    }
    await service.call("POST", "/v1/vms", {
      name: "vm",
      image: "image",
      memoryBytes: 512 * MiB,
      harts,
      disks: [{ name: "disk0", sizeBytes: 16 * MiB }],
    });
    await using console = new ServiceConsole(service, "vm");
    await action(console, service);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A shell that sees its disk, runs a command and powers the machine off. */
async function useShell(console: ServiceConsole, service: Service, processors = 1): Promise<void> {
  await console.waitFor(/Disks: vda[^]*~ # /);
  await console.type("echo $((6 * 7)) $(uname -m) $(grep -c ^processor /proc/cpuinfo)\n");
  await console.waitFor(new RegExp(`42 riscv64 ${processors}\\r`));
  await console.type("poweroff -f\n");
  await console.waitFor(/reboot: Power down/);
  for (;;) {
    const { state } = await service.call<{ state: string }>("GET", "/v1/vms/vm");
    if (state === "stopped") break;
    if (state === "failed") throw new Error("the machine failed");
  }
}

for (const harts of [1, 2]) {
  Deno.test({
    name: `Debian's kernel boots to a shell with the built-in SBI, harts: ${harts}`,
    ignore: debian.ignore,
    async fn() {
      await withMachine(debian.files, async (console, service) => {
        await useShell(console, service, harts);
      }, harts);
    },
  });
}

for (const name of ["fw_dynamic", "fw_jump"]) {
  Deno.test({
    name: `Debian's kernel boots to a shell through OpenSBI's ${name}`,
    ignore: debian.ignore || needs(`${OPENSBI}/${name}.bin`).ignore,
    async fn() {
      const firmware = `${OPENSBI}/${name}.bin`;
      await withMachine({ ...debian.files, firmware }, async (console, service) => {
        await console.waitFor(/OpenSBI v\d/);
        await useShell(console, service);
      });
    },
  });
}

for (const firmware of [undefined, "fw_dynamic", "fw_jump"]) {
  Deno.test({
    name: `U-Boot reaches its prompt ${firmware ? `through ${firmware}` : "with the built-in SBI"}`,
    ...needs(`${U_BOOT}/u-boot.bin`, `${OPENSBI}/fw_dynamic.bin`),
    async fn() {
      const boot = { kernel: `${U_BOOT}/u-boot.bin` };
      const withFirmware = firmware && { firmware: `${OPENSBI}/${firmware}.bin` };
      await withMachine({ ...boot, ...withFirmware }, async (console) => {
        await console.waitFor(/U-Boot 20\d\d/);
        await console.waitFor(/Hit any key to stop autoboot/);
        await console.type(" ");
        await console.waitFor(/=> /);
        await console.type("version\n");
        const [version] = await console.waitFor(/riscv64-linux-gnu-gcc[^]*=> /);
        assertMatch(version, /GNU ld/);
      });
    },
  });
}
