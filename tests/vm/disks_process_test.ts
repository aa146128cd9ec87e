/** Disks of a real service: chains, jobs and checkpoints under a guest, stops and crashes. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { createHash } from "node:crypto";
import { Service, ServiceConsole } from "../support/service.ts";

const MiB = 1024 * 1024;
/** A quarter of a disk. */
const QUARTER = 256 * 1024;
const DISK_BYTES = 4 * QUARTER;

interface Job {
  id: string;
  status: string;
  error: string | null;
}

async function withFolder(action: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await action(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A running demo guest. */
async function boot(service: Service, disk: object): Promise<ServiceConsole> {
  await service.call("POST", "/v1/vms", {
    name: "t1",
    image: "demo",
    memoryBytes: 32 * MiB,
    disks: [{ name: "d0", ...disk }],
  });
  return await prompt(service);
}

async function prompt(service: Service): Promise<ServiceConsole> {
  const guest = new ServiceConsole(service, "t1");
  await guest.waitFor(/demo> /);
  return guest;
}

async function guestHash(guest: ServiceConsole): Promise<string> {
  return /sha256 ([0-9a-f]{64})/.exec(await guest.demo("hash 0"))?.[1] ?? "";
}

/** The SHA-256 of a disk that is filled piece by piece. */
function hashOf(...pieces: [number, number][]): string {
  const hash = createHash("sha256");
  for (const [byte, length] of pieces) hash.update(new Uint8Array(length).fill(byte));
  return hash.digest("hex");
}

async function contentHash(service: Service, disk: string): Promise<string> {
  const response = await service.request("GET", `/v1/disks/${disk}/content`);
  return createHash("sha256").update(await response.bytes()).digest("hex");
}

function backingOf(service: Service, disk: string): Promise<string | null> {
  return service.call<{ backing: string | null }>("GET", `/v1/disks/${disk}`)
    .then(({ backing }) => backing);
}

/** Where data and where zeroes begin. */
function mapOf(service: Service, disk: string): Promise<string> {
  type Map = { extents: { offset: number; hole: boolean; zero: boolean }[] };
  return service.call<Map>("GET", `/v1/disks/${disk}/extents?context=zero`).then(({ extents }) =>
    extents.map(({ offset, hole, zero }) => {
      assertEquals(hole, zero);
      return `${zero ? "zero" : "data"} ${offset}`;
    }).join(", ")
  );
}

function chainOf(service: Service, disk = "t1:d0"): Promise<string[]> {
  return service.call<{ chain: { path: string }[] }>("GET", `/v1/disks/${disk}`)
    .then(({ chain }) => chain.map(({ path }) => path.split("/").at(-1) ?? ""));
}

async function runJob(service: Service, body: object): Promise<Job> {
  const { id } = await service.call<Job>("POST", "/v1/jobs", body);
  let job = await service.call<Job>("GET", `/v1/jobs/${id}/wait?state=ready&timeout=60`);
  if (job.status === "ready") {
    await service.call("POST", `/v1/jobs/${id}/complete`);
    job = await service.call<Job>("GET", `/v1/jobs/${id}/wait?timeout=60`);
  }
  assertEquals([job.status, job.error], ["concluded", null]);
  return job;
}

async function filesOf(folder: string): Promise<string[]> {
  const files: string[] = [];
  for await (const { name } of Deno.readDir(`${folder}/disks`)) {
    for await (const file of Deno.readDir(`${folder}/disks/${name}`)) files.push(file.name);
  }
  return files.sort();
}

Deno.test("what a guest writes after a snapshot, a commit and a mirror is there after kill -9", async () => {
  await withFolder(async (folder) => {
    {
      await using service = await Service.start(folder);
      await using guest = await boot(service, { sizeBytes: DISK_BYTES, format: "qcow2" });
      await guest.demo(`fill 0 0 ${DISK_BYTES} 1`);
      const actions = [{ type: "snapshot", disk: "d0" }];
      await service.call("POST", "/v1/vms/t1/transactions", { actions });
      await guest.demo("fill 0 0 256K 2");
      await guest.demo("flush 0");
      assertEquals((await chainOf(service)).length, 2);
      await service.kill();
    }
    {
      await using service = await Service.start(folder);
      const chain = await chainOf(service);
      assertEquals(chain[1], "d0.qcow2");
      assertMatch(chain[0] ?? "", /^d0-[0-9a-f]{6}\.qcow2$/);
      await service.call("POST", "/v1/vms/t1/start");
      await using guest = await prompt(service);
      assertEquals(await guestHash(guest), hashOf([2, QUARTER], [1, 3 * QUARTER]));
      await runJob(service, { type: "commit", disk: "t1:d0" });
      await guest.demo("fill 0 256K 256K 3");
      await guest.demo("flush 0");
      assertEquals(await chainOf(service), ["d0.qcow2"]);
      await service.kill();
    }
    {
      await using service = await Service.start(folder);
      await service.call("POST", "/v1/vms/t1/start");
      await using guest = await prompt(service);
      const expected = hashOf([2, QUARTER], [3, QUARTER], [1, 2 * QUARTER]);
      assertEquals(await guestHash(guest), expected);
      const target = { name: "moved", format: "raw" };
      await runJob(service, { type: "mirror", disk: "t1:d0", target });
      await guest.demo(`fill 0 512K 512K 4`);
      await guest.demo("flush 0");
      // The disk has the new file; what was there before belongs to the disk that the job made.
      assertMatch((await chainOf(service))[0] ?? "", /^moved-[0-9a-f]{6}\.raw$/);
      assertEquals(await contentHash(service, "moved"), expected);
      await service.kill();
    }
    await using service = await Service.start(folder);
    assertEquals(
      await contentHash(service, "t1:d0"),
      hashOf([2, QUARTER], [3, QUARTER], [4, 2 * QUARTER]),
    );
    await service.call("DELETE", "/v1/vms/t1");
    await service.call("DELETE", "/v1/disks/moved");
    assertEquals(await filesOf(folder), []);
  });
});

Deno.test("after kill -9 a checkpoint is lost, its name free, and the next backup a whole one", async () => {
  await withFolder(async (folder) => {
    const fleecings = "/v1/vms/t1/fleecings";
    type Views = { exports: { incremental: { isIncremental: boolean; reason: string } }[] };
    {
      await using service = await Service.start(folder);
      await using guest = await boot(service, { sizeBytes: DISK_BYTES, format: "qcow2" });
      await service.call("POST", fleecings, { name: "f", checkpoint: "c0" });
      await service.call("POST", `${fleecings}/f/complete`, { result: "success" });
      await guest.demo("fill 0 0 64K 1");
      // A clean stop keeps the bitmap with the disk.
      await service.call("POST", "/v1/vms/t1/stop");
      const { disks: [kept] } = await service.call<{
        disks: { usable: boolean; dirtyBytes: number }[];
      }>("GET", "/v1/vms/t1/checkpoints/c0");
      assertEquals([kept?.usable, kept?.dirtyBytes], [true, 65536]);
      await service.call("POST", "/v1/vms/t1/start");
      await guest.waitFor(/demo> /);
      await guest.demo("fill 0 64K 64K 2");
      const begun = await service.call<Views>("POST", fleecings, {
        name: "f",
        since: "c0",
        checkpoint: "c1",
      });
      assertEquals(begun.exports[0]?.incremental.isIncremental, true);
      await service.kill();
    }
    await using service = await Service.start(folder);
    const { checkpoints } = await service.call<{ checkpoints: string[] }>("GET", "/v1/vms/t1");
    assertEquals(checkpoints, ["c0"]);
    await service.call("POST", "/v1/vms/t1/start");
    await using guest = await prompt(service);
    await guest.demo("fill 0 0 64K 3");
    const again = await service.call<Views>("POST", fleecings, {
      name: "f",
      since: "c0",
      checkpoint: "c1",
    });
    const { isIncremental, reason } = again.exports[0]?.incremental ?? {};
    assertEquals(isIncremental, false);
    assertMatch(reason ?? "", /bitmap c0/);
    await service.call("POST", `${fleecings}/f/complete`, { result: "success" });
    const next = await service.call<Views>("POST", fleecings, { since: "c1", checkpoint: "c2" });
    assertEquals(next.exports[0]?.incremental.isIncremental, true);
    const { bitmaps } = await service.call<{ bitmaps: { name: string }[] }>(
      "GET",
      "/v1/disks/t1:d0",
    );
    assertEquals(bitmaps.map(({ name }) => name), ["c1", "c2"]);
  });
});

Deno.test("disks are uploaded, stood upon, copied and backed up without a machine", async () => {
  await withFolder(async (folder) => {
    await using service = await Service.start(folder);
    await service.call("POST", "/v1/disks", {
      name: "base",
      sizeBytes: DISK_BYTES,
      format: "qcow2",
    });
    const content = new Uint8Array(DISK_BYTES).fill(5, 0, QUARTER);
    assertEquals(await service.status("PUT", "/v1/disks/base/content", content), 204);
    const { allocatedBytes } = await service.call<{ allocatedBytes: number }>(
      "GET",
      "/v1/disks/base",
    );
    assert(allocatedBytes < 3 * QUARTER, `zeroes take room: ${allocatedBytes}`);
    await service.call("POST", "/v1/disks", { name: "top", backing: "base" });
    const commit = await service.request("POST", "/v1/jobs", { type: "commit", disk: "top" });
    assertEquals(commit.status, 409);
    assertMatch((await commit.json()).detail, /is the image of another disk, which stays as it is/);
    {
      await using guest = await boot(service, { disk: "top" });
      assertEquals(await guestHash(guest), hashOf([5, QUARTER], [0, 3 * QUARTER]));
      await guest.demo("fill 0 256K 256K 6");
      await service.call("POST", "/v1/vms/t1/stop");
    }
    const changed = hashOf([5, QUARTER], [6, QUARTER], [0, 2 * QUARTER]);
    assertEquals(await contentHash(service, "top"), changed);
    assertEquals(await contentHash(service, "base"), hashOf([5, QUARTER], [0, 3 * QUARTER]));
    const { id } = await service.call<Job>("POST", "/v1/disks", { name: "copy", copyOf: "top" });
    await service.call("GET", `/v1/jobs/${id}/wait?timeout=60`);
    assertEquals(await contentHash(service, "copy"), changed);
    // A full backup, then one of what changed, which stands on it.
    await service.call("POST", "/v1/disks/copy/bitmaps/inc", {});
    await runJob(service, { type: "backup", disk: "copy", target: { name: "b0" } });
    assertEquals(await contentHash(service, "b0"), changed);
    const missing = { sync: "incremental", bitmap: "none", target: { name: "b9" } };
    const order = { type: "backup", disk: "copy", ...missing };
    assertEquals(await service.status("POST", "/v1/jobs", order), 422);
    const piece = new Uint8Array(QUARTER).fill(9);
    assertEquals(await service.status("PUT", "/v1/disks/copy/content?offset=0", piece), 204);
    const increment = { sync: "incremental", bitmap: "inc", target: { name: "b1", backing: "b0" } };
    await runJob(service, { type: "backup", disk: "copy", ...increment });
    assertEquals(await contentHash(service, "b1"), await contentHash(service, "copy"));
    assertEquals(await contentHash(service, "b0"), changed);
    assertEquals((await chainOf(service, "b1")).length, 2);
    // What is on record of a disk follows what a mirror or a stream makes of its chain.
    assertEquals(await mapOf(service, "top"), `data 0, zero ${2 * QUARTER}`);
    await runJob(service, { type: "mirror", disk: "top", target: { name: "old" } });
    assertEquals([await backingOf(service, "top"), await backingOf(service, "old")], [
      null,
      "base",
    ]);
    await runJob(service, { type: "stream", disk: "old" });
    assertEquals(await backingOf(service, "old"), null);
    for (const disk of ["top", "old"]) {
      assertEquals((await chainOf(service, disk)).length, 1);
      assertEquals(await contentHash(service, disk), changed);
    }
    await service.call("DELETE", "/v1/disks/base");
    assertEquals(await contentHash(service, "old"), changed);
    await service.call("PATCH", "/v1/disks/top", { sizeBytes: 2 * DISK_BYTES });
    assertEquals(
      await contentHash(service, "top"),
      hashOf([5, QUARTER], [6, QUARTER], [0, 6 * QUARTER]),
    );
    await service.call("DELETE", "/v1/vms/t1");
    for (const name of ["top", "old", "copy", "b1", "b0"]) {
      await service.call("DELETE", `/v1/disks/${name}`);
    }
    assertEquals(await filesOf(folder), []);
  });
});
