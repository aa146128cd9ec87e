/**
 * Pause, reset, stop and delete in the middle of everything: readers copy the frozen disk while the
 * guest writes over it.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { createHash } from "node:crypto";
import { needs } from "../support/clients.ts";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
const CONTENT = createHash("sha256").update(new Uint8Array(DISK_BYTES).fill(0x41)).digest("hex");
/** More than a guest gets done while the test runs. */
const ENDLESS = "stress 0 1 100000000 256K";

async function copyHash(uri: string): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("nbdcopy", {
    args: [uri, "-"],
    stdout: "piped",
    stderr: "piped",
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  return createHash("sha256").update(stdout).digest("hex");
}

async function contentHash(service: Service, url: string): Promise<string> {
  const response = await service.request("GET", url);
  assertEquals(response.status, 200);
  const hash = createHash("sha256");
  for await (const chunk of response.body ?? []) hash.update(chunk);
  return hash.digest("hex");
}

/** Starts the machine's disk anew with CONTENT, freezes it, and lets the guest write for ever. */
async function freezeAndOverwrite(service: Service, guest: ServiceConsole) {
  await guest.waitFor(/demo> /);
  await guest.demo(`fill 0 0 ${DISK_BYTES} 0x41`);
  const fleecing = await service.call<FleecingAnswer>("POST", "/v1/vms/busy/fleecings", {});
  const [view] = fleecing.exports;
  if (view === undefined) throw new Error("a fleecing without export");
  await guest.type(`${ENDLESS}\r`);
  return { fleecing, view };
}

function names(path: string): string[] {
  return [...Deno.readDirSync(path)].map(({ name }) => name);
}

Deno.test({
  name: "pause, reset, stop and delete in the middle of writes and copies",
  ...needs("nbdcopy"),
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(folder);
      const call = (method: string, path: string) => service.call<FleecingAnswer>(method, path);
      await service.call("POST", "/v1/vms", {
        name: "busy",
        image: "demo",
        memoryBytes: 32 * MiB,
        disks: [{ name: "disk0", sizeBytes: DISK_BYTES }],
      });
      await using guest = new ServiceConsole(service, "busy");
      const first = await freezeAndOverwrite(service, guest);

      // A paused machine's view is read on; so is that of one that starts anew.
      const pausedCopy = copyHash(first.view.nbd);
      await call("POST", "/v1/vms/busy/pause");
      assertEquals(await contentHash(service, first.view.content), CONTENT);
      await call("POST", "/v1/vms/busy/resume");
      assertEquals(await pausedCopy, CONTENT);
      for (let round = 0; round < 3; round++) {
        await call("POST", "/v1/vms/busy/reset");
        await guest.waitFor(/Ovis demo guest[^]*?demo> /);
        await guest.type(`${ENDLESS}\r`);
      }
      assertEquals(await copyHash(first.view.nbdUnix), CONTENT);
      const path = `/v1/vms/busy/fleecings/${first.fleecing.name}`;
      assertEquals((await call("GET", path)).state, "active");

      // A stop breaks readers off, with an error and not with other content.
      const brokenOff = [copyHash(first.view.nbd), contentHash(service, first.view.content)]
        .map((copy) => copy.catch(() => "broken off"));
      await call("POST", "/v1/vms/busy/stop");
      for (const result of await Promise.all(brokenOff)) {
        assert(["broken off", CONTENT].includes(result), result);
      }
      assertEquals([names(`${folder}/scratch`), names(`${folder}/sockets`)], [[], []]);
      assertEquals(await service.status("GET", first.view.content), 404);

      await call("POST", "/v1/vms/busy/start");
      const second = await freezeAndOverwrite(service, guest);
      const deletedCopy = assertRejects(async () => {
        for (;;) await copyHash(second.view.nbd);
      });
      await call("DELETE", "/v1/vms/busy");
      await deletedCopy;
      for (const name of ["scratch", "sockets", "disks"]) {
        assertEquals(names(`${folder}/${name}`), []);
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
