/**
 * The main job, as a user does it: a guest writes, its disk is frozen by one call, the guest
 * overwrites everything, and the past is read byte for byte on every way there is.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { connect } from "../../src/client/mod.ts";
import { needs } from "../support/clients.ts";
import { findDebian } from "../support/debian.ts";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 4 * MiB;
const debian = await findDebian();

async function withService(action: (service: Service, folder: string) => Promise<void>) {
  const folder = await Deno.makeTempDir();
  try {
    await using service = await Service.start(folder);
    await action(service, folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function startDemo(service: Service, name: string): Promise<ServiceConsole> {
  await service.call("POST", "/v1/vms", {
    name,
    image: "demo",
    memoryBytes: 32 * MiB,
    disks: [{ name: "disk0", sizeBytes: DISK_BYTES }],
  });
  const guest = new ServiceConsole(service, name);
  await guest.waitFor(/demo> /);
  return guest;
}

/** The SHA-256 that the guest computes of its own disk. */
async function guestHash(guest: ServiceConsole): Promise<string> {
  const output = await guest.demo("hash 0");
  return /sha256 ([0-9a-f]{64})/.exec(output)?.[1] ?? "";
}

function freeze(service: Service, vm: string, body: unknown = {}): Promise<FleecingAnswer> {
  return service.call("POST", `/v1/vms/${vm}/fleecings`, body);
}

/** The only export of a fleecing of one disk. */
function viewOf(fleecing: FleecingAnswer) {
  const [view] = fleecing.exports;
  if (view === undefined) throw new Error("a fleecing without export");
  return view;
}

async function copyHash(uri: string, options: string[] = []): Promise<string> {
  const path = await Deno.makeTempFile();
  try {
    await run("nbdcopy", [...options, uri, path]);
    return hashOf(await Deno.readFile(path));
  } finally {
    await Deno.remove(path);
  }
}

async function contentHash(service: Service, url: string): Promise<string> {
  const response = await service.request("GET", url);
  assertEquals(response.status, 200);
  return hashOf(new Uint8Array(await response.arrayBuffer()));
}

/** The view's hash, read by the browser library with a ticket; holes arrive as null. */
async function webSocketHash(
  service: Service,
  view: { name: string; websocket: string },
): Promise<string> {
  const { ticket } = await service.call<{ ticket: string }>(
    "POST",
    `/v1/exports/${view.name}/tickets`,
  );
  const disk = await connect(view.websocket, { ticket });
  try {
    const hash = createHash("sha256");
    for await (const { length, bytes } of disk.chunks()) {
      hash.update(bytes ?? new Uint8Array(length));
    }
    return hash.digest("hex");
  } finally {
    await disk.close();
  }
}

function hashOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

async function run(program: string, args: string[]): Promise<string> {
  const output = await new Deno.Command(program, { args, stdout: "piped", stderr: "piped" })
    .output();
  if (!output.success) throw new Error(`${program}: ${new TextDecoder().decode(output.stderr)}`);
  return new TextDecoder().decode(output.stdout);
}

async function listFiles(folder: string): Promise<string[]> {
  const names: string[] = [];
  for await (const entry of Deno.readDir(folder)) {
    if (entry.isDirectory) {
      for (const name of await listFiles(`${folder}/${entry.name}`)) {
        names.push(`${entry.name}/${name}`);
      }
    } else names.push(entry.name);
  }
  return names.sort();
}

Deno.test({
  name: "a frozen disk is read on every way while the guest overwrites all of it",
  ...needs("nbdcopy", "nbdinfo", "qemu-img"),
  async fn() {
    await withService(async (service, folder) => {
      await using guest = await startDemo(service, "t1");
      await guest.demo(`fill 0 0 ${DISK_BYTES} 0x11`);
      await guest.demo("stress 0 1 500");
      const before = await guestHash(guest);
      const files = await listFiles(folder);

      const fleecing = await freeze(service, "t1", { disks: ["disk0"] });
      const view = viewOf(fleecing);
      assertEquals(view.sizeBytes, DISK_BYTES);
      await guest.demo(`fill 0 0 ${DISK_BYTES} 0x22`);
      await guest.demo("stress 0 2 500");
      assertNotEquals(await guestHash(guest), before);

      assertEquals(await copyHash(view.nbd), before);
      assertEquals(await copyHash(view.nbdUnix), before);
      assertEquals(await webSocketHash(service, view), before);
      assertEquals(await contentHash(service, view.content), before);
      const part = await service.request("GET", view.content, undefined, {
        headers: { range: "bytes=4096-8191" },
      });
      assertEquals([part.status, (await part.arrayBuffer()).byteLength], [206, 4096]);
      assert((await run("nbdinfo", ["--map", view.nbd])).includes("data"));
      assert((await run("qemu-img", ["info", view.nbd])).includes("4 MiB"));

      const path = `/v1/vms/t1/fleecings/${fleecing.name}`;
      const now = viewOf(await service.call<FleecingAnswer>("GET", path));
      assertEquals([now.copiedBytes, now.clustersDone], [DISK_BYTES, DISK_BYTES / 65536]);
      await service.call("DELETE", path);
      assertEquals(await service.status("GET", view.content), 404);
      assertEquals(await listFiles(folder), files);
      await guest.demo("write 0 0 still-alive");
    });
  },
});

Deno.test({
  name: "a copy by nbdcopy equals the frozen disk while the guest writes at random",
  ...needs("nbdcopy"),
  async fn() {
    await withService(async (service) => {
      await using guest = await startDemo(service, "busy");
      await guest.demo("stress 0 1 3000");
      const before = await guestHash(guest);
      const view = viewOf(await freeze(service, "busy"));
      const writes = guest.demo("stress 0 2 20000");
      assertEquals(await copyHash(view.nbd), before);
      assertEquals(await copyHash(view.nbd, ["--connections=4"]), before);
      await writes;
      assertEquals(await copyHash(view.nbd), before);
    });
  },
});

Deno.test({
  name: "two fleecings on one disk each see their own moment, and go in any order",
  ...needs("nbdcopy"),
  async fn() {
    await withService(async (service) => {
      await using guest = await startDemo(service, "twice");
      await guest.demo("stress 0 1 2000");
      const firstHash = await guestHash(guest);
      const first = await freeze(service, "twice", { name: "first" });
      await guest.demo("stress 0 2 2000");
      const secondHash = await guestHash(guest);
      const second = await freeze(service, "twice", { name: "second" });
      await guest.demo("stress 0 3 2000");
      assertEquals(await copyHash(viewOf(first).nbd), firstHash);
      assertEquals(await copyHash(viewOf(second).nbd), secondHash);
      await service.call("DELETE", "/v1/vms/twice/fleecings/first");
      await guest.demo("stress 0 4 2000");
      assertEquals(await copyHash(viewOf(second).nbd), secondHash);
      await service.call("DELETE", "/v1/vms/twice/fleecings/second");
      await guestHash(guest);
    });
  },
});

Deno.test("after a kill -9 the disk holds what was flushed, and nothing temporary is left", async () => {
  const folder = await Deno.makeTempDir();
  try {
    let before = "";
    let files: string[] = [];
    {
      const service = await Service.start(folder);
      const guest = await startDemo(service, "crash");
      await guest.demo("stress 0 1 2000");
      await guest.demo("flush 0");
      before = await guestHash(guest);
      files = await listFiles(folder);
      await freeze(service, "crash", { name: "lost" });
      await service.kill();
      await guest[Symbol.asyncDispose]();
    }
    await using service = await Service.start(folder);
    const vm = await service.call<{ state: string; fleecings: string[] }>("GET", "/v1/vms/crash");
    assertEquals([vm.state, vm.fleecings], ["stopped", []]);
    const left = (await listFiles(folder)).filter((name) => /scratch/.test(name));
    assertEquals(left, files.filter((name) => /scratch/.test(name)));
    await service.call("POST", "/v1/vms/crash/start");
    await using guest = new ServiceConsole(service, "crash");
    await guest.waitFor(/demo> /);
    assertEquals(await guestHash(guest), before);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a guest that writes nonsense into every device register disturbs nobody", async () => {
  await withService(async (service) => {
    await using victim = await startDemo(service, "victim");
    await victim.demo("stress 0 1 1000");
    const before = await guestHash(victim);
    await using guest = await startDemo(service, "hostile");
    for (let seed = 1; seed <= 5; seed++) {
      await guest.type(`fuzz ${seed} 20000\r`);
      await guest.waitFor(/fuzzed 20000 steps/);
    }
    // Its own devices work again once they are set up anew.
    await service.call("POST", "/v1/vms/hostile/reset");
    await guest.waitFor(/Ovis demo guest[^]*demo> /);
    await guest.demo("write 0 0 fine");
    assertEquals(await guestHash(victim), before);
    const { state } = await service.call<{ state: string }>("GET", "/v1/vms/victim");
    assertEquals(state, "running");
  });
});

Deno.test({
  name: "Linux: files written before the moment are whole in the view, whatever came after",
  ignore: debian.ignore || needs("nbdcopy", "debugfs").ignore,
  async fn() {
    await withService(async (service) => {
      const { files } = debian;
      await service.call("POST", "/v1/images", { name: "held", cmdline: "console=ttyS0 quiet" });
      await service.putImageFile("held", "kernel", files.kernel);
      await service.putImageFile("held", "initrd", files.initrd);
      await service.call("POST", "/v1/vms", {
        name: "linux",
        image: "held",
        memoryBytes: 256 * MiB,
        disks: [{ name: "disk0", sizeBytes: 64 * MiB }],
      });
      await using guest = new ServiceConsole(service, "linux");
      const shell = (command: string) => guest.shell(command);
      await guest.waitFor(/~ # /);
      await shell("mke2fs -q /dev/vda");
      await shell("mount /dev/vda /mnt");
      await shell("seq 1 100000 > /mnt/numbers; sha256sum /mnt/numbers > /mnt/sum; sync");
      const view = viewOf(await freeze(service, "linux", { disks: ["disk0"] }));
      await shell(
        "rm /mnt/numbers; dd if=/dev/urandom of=/mnt/other bs=1M count=40 2>/dev/null; sync",
      );
      const image = await Deno.makeTempFile();
      try {
        await run("nbdcopy", [view.nbd, image]);
        const numbers = await run("debugfs", ["-R", "cat /numbers", image]);
        const sum = await run("debugfs", ["-R", "cat /sum", image]);
        assertEquals(hashOf(new TextEncoder().encode(numbers)), sum.split(" ")[0]);
        assertEquals(numbers.length, 588895);
        await run("e2fsck", ["-fn", image]).catch((error) => {
          // The view is of a mounted file system: not marked clean, but without other faults.
          assert(!/FIXED|UNEXPECTED/.test(String(error)), String(error));
        });
      } finally {
        await Deno.remove(image);
      }
    });
  },
});
