/**
 * Machines, fleecings and connections that come and go: what they opened is closed, what they wrote
 * beside the disks is removed.
 */
import { assertEquals, assertLess } from "@std/assert";
import { type FleecingAnswer, Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
const ROUNDS = 5;

/** What the service holds: descriptors, threads, files of its data folder. */
interface Holdings {
  descriptors: number;
  threads: number;
  files: string[];
}

function count(path: string): number {
  return [...Deno.readDirSync(path)].length;
}

function filesBelow(path: string): string[] {
  return [...Deno.readDirSync(path)].flatMap(({ name, isDirectory }) =>
    isDirectory ? filesBelow(`${path}/${name}`) : [`${path}/${name}`]
  ).sort();
}

/** Holdings once they no longer change: what ends may take a moment to be gone. */
async function settledHoldings(service: Service): Promise<Holdings> {
  const look = (): Holdings => ({
    descriptors: count(`/proc/${service.processId}/fd`),
    threads: count(`/proc/${service.processId}/task`),
    files: filesBelow(service.dataFolder),
  });
  let last = look();
  for (let calm = 0; calm < 5;) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const now = look();
    calm = JSON.stringify(now) === JSON.stringify(last) ? calm + 1 : 0;
    last = now;
  }
  return last;
}

function startMachine(service: Service, name: string): Promise<unknown> {
  const disks = [{ name: "disk0", sizeBytes: MiB }];
  return service.call("POST", "/v1/vms", { name, image: "demo", memoryBytes: 32 * MiB, disks });
}

/** A fleecing, read a little, and gone. */
async function fleeceOnce(service: Service): Promise<void> {
  const fleecing = await service.call<FleecingAnswer>("POST", "/v1/vms/stays/fleecings", {});
  const [view] = fleecing.exports;
  if (view === undefined) throw new Error("a fleecing without export");
  const headers = { range: "bytes=0-4095" };
  const response = await service.request("GET", view.content, undefined, { headers });
  assertEquals((await response.arrayBuffer()).byteLength, 4096);
  const { hostname, port } = new URL(view.nbd.replace("nbd:", "http:"));
  for (let index = 0; index < 5; index++) {
    using connection = await Deno.connect({ hostname, port: Number(port) });
    if (index % 2 === 0) await connection.read(new Uint8Array(18));
  }
  await service.call("DELETE", `/v1/vms/stays/fleecings/${fleecing.name}`);
}

Deno.test({
  name: "machines, fleecings and connections leave nothing behind",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await Service.start(folder);
      await startMachine(service, "stays");
      await using guest = new ServiceConsole(service, "stays");
      await guest.waitFor(/demo> /);
      const round = async () => {
        await startMachine(service, "goes");
        await service.call("DELETE", "/v1/vms/goes");
        for (let index = 0; index < 4; index++) await fleeceOnce(service);
      };
      // The runtime's own threads and descriptors come with the first use.
      await round();
      const before = await settledHoldings(service);
      for (let index = 0; index < ROUNDS; index++) await round();
      const after = await settledHoldings(service);
      assertEquals(after.files, before.files);
      // The runtime may keep one or two more for a while; a leak has one a round.
      assertLess(after.descriptors - before.descriptors, ROUNDS, "descriptors");
      assertLess(after.threads - before.threads, ROUNDS, "threads");
      await guest.demo("echo well");
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
});
