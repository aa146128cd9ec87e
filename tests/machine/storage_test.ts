/** The block layer of an I/O worker, without a worker: disks, jobs, transactions, fleecings. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import type {
  DiskConfig,
  FleecingRequest,
  HostQuestion,
  IoEvent,
  JobInfo,
  NewImage,
} from "../../src/machine/messages.ts";
import { IoStorage } from "../../src/machine/storage.ts";
import { compileKernels } from "../../src/wasm/kernels.ts";
import { findProgram, needs } from "../support/clients.ts";

const MiB = 1024 * 1024;
const SIZE = 4 * MiB;
const kernels = await compileKernels();

/** A worker's block layer over images in a folder of its own. */
class Rig implements AsyncDisposable {
  readonly events: IoEvent[] = [];
  readonly questions: HostQuestion[] = [];
  /** What a question is answered with. */
  refusal: string | null = null;
  #storage: IoStorage | null = null;
  #waiters: (() => void)[] = [];

  private constructor(readonly folder: string) {}

  static async open(disks: (Partial<DiskConfig> & { name: string })[]): Promise<Rig> {
    const rig = new Rig(await Deno.makeTempDir());
    await Deno.mkdir(`${rig.folder}/scratch`);
    const maker = await rig.start([]);
    for (const { name, format = "qcow2" } of disks) {
      await maker.diskCreate(rig.image(name, { format }));
    }
    await maker.close();
    await rig.start(disks);
    return rig;
  }

  async start(disks: (Partial<DiskConfig> & { name: string })[]): Promise<IoStorage> {
    this.#storage = await IoStorage.open({
      name: "t1",
      disks: disks.map((disk) => ({
        format: "qcow2",
        path: `${this.folder}/${disk.name}`,
        sizeBytes: 0,
        isReadOnly: false,
        serial: "",
        ...disk,
      })),
      writableFolders: [this.folder],
      readableFolders: [],
      scratchDirectory: `${this.folder}/scratch`,
      nbd: null,
      monitorPath: null,
    }, { kernels, hasGuest: true, emit: (event) => this.#hear(event) });
    return this.#storage;
  }

  get storage(): IoStorage {
    if (this.#storage === null) throw new Error("not open");
    return this.#storage;
  }

  image(name: string, change: Partial<NewImage> = {}): NewImage {
    const path = `${this.folder}/${name}`;
    const usual = { format: "qcow2", sizeBytes: SIZE, clusterSizeBytes: null } as const;
    return { path, ...usual, backing: null, ...change };
  }

  async fill(disk: string, byte: number, offset = 0, length = MiB): Promise<void> {
    const { backend } = this.storage.disks.get(disk);
    const { IoVector } = await import("../../src/block/io_vector.ts");
    await backend.write(offset, IoVector.of(new Uint8Array(length).fill(byte)));
  }

  async read(disk: string, offset = 0, length = MiB): Promise<number> {
    const { result } = await this.storage.diskRead({ disk, offset, length });
    return onlyByte(new Uint8Array(result.bytes));
  }

  async readExport(exportName: string, offset = 0, length = MiB): Promise<number> {
    const { result } = await this.storage.exportRead({ exportName, offset, length });
    return onlyByte(new Uint8Array(result.bytes));
  }

  /** The end of a job. */
  async job(id: string, status = "concluded"): Promise<JobInfo> {
    for (;;) {
      for (const event of this.events) {
        if (event.type === "job" && event.job.id === id && event.job.status === status) {
          return event.job;
        }
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  async bitmaps(disk: string): Promise<string[]> {
    const { result } = await this.storage.diskInfo({ disk });
    return result.bitmaps.map(({ name, count, recording }) =>
      `${name} ${count} ${recording ? "on" : "off"}`
    );
  }

  async files(): Promise<string[]> {
    const names = [];
    for (const folder of [this.folder, `${this.folder}/scratch`]) {
      for await (const { name, isFile } of Deno.readDir(folder)) if (isFile) names.push(name);
    }
    return names.sort();
  }

  #hear(event: IoEvent): void {
    this.events.push(event);
    if (event.type === "question") {
      const { id, question } = event;
      this.questions.push(question);
      const answer = this.refusal === null
        ? { error: null }
        : { error: { code: "EIO" as const, message: this.refusal } };
      queueMicrotask(() => this.storage.questions.settle({ type: "answer", id, ...answer }));
    }
    for (const wake of this.#waiters.splice(0)) wake();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#storage?.close();
    await Deno.remove(this.folder, { recursive: true });
  }
}

function onlyByte(bytes: Uint8Array): number {
  const first = bytes[0] ?? -1;
  return bytes.every((byte) => byte === first) ? first : -1;
}

function fleecing(name: string, change: Partial<FleecingRequest> = {}): FleecingRequest {
  return {
    name,
    disks: ["a"],
    scheme: "new",
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 0,
    minClusterSizeBytes: 0,
    bitmap: null,
    since: null,
    checkpoint: null,
    scratchMaxBytes: null,
    scratchDirectory: null,
    ...change,
  };
}

const JOB = {
  disk: "a",
  speed: 0,
  isAutoFinalize: true,
  onSourceError: "report",
  onTargetError: "report",
} as const;
const BACKUP = {
  ...JOB,
  type: "backup",
  bitmap: null,
  bitmapMode: null,
  isCompressed: false,
} as const;

Deno.test("a fleecing since a checkpoint shows what changed, and settles the bitmaps at its end", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  const { storage } = rig;
  await rig.fill("a", 1);
  await storage.fleecingStart(fleecing("full", { checkpoint: "c0" }));
  await rig.fill("a", 2, 0, 65536);
  await storage.fleecingEnd({ name: "full", result: "success" });
  assertEquals(await rig.bitmaps("a"), ["c0 65536 on"]);

  const { result } = await storage.fleecingStart(
    fleecing("inc", { since: "c0", checkpoint: "c1" }),
  );
  assertEquals(result.disks[0]?.incremental, { isIncremental: true, reason: null });
  await rig.fill("a", 3, 0, 131072);
  const exportName = "t1-a-inc";
  assertEquals(await rig.readExport(exportName, 0, 65536), 2);
  const refused = await assertRejects(() => rig.readExport(exportName, 65536, 65536), BlockError);
  assertEquals(refused.code, "EACCES");
  const map = await storage.exportExtents({
    exportName,
    context: "dirty",
    bitmap: null,
    offset: 0,
    length: SIZE,
    limit: 10,
  });
  assertEquals(map.result.extents, [
    { offset: 0, length: 65536, flags: 1 },
    { offset: 65536, length: SIZE - 65536, flags: 0 },
  ]);
  await storage.fleecingEnd({ name: "inc", result: "failure" });
  assertEquals(await rig.bitmaps("a"), ["c0 131072 on"]);

  await storage.fleecingStart(fleecing("inc", { since: "c0", checkpoint: "c1" }));
  assertEquals(await rig.readExport(exportName, 0, 131072), 3);
  await storage.fleecingEnd({ name: "inc", result: "success" });
  assertEquals(await rig.bitmaps("a"), ["c1 0 on"]);
});

Deno.test("a fleecing since without a checkpoint keeps the bitmap: what changed meanwhile is in it", async () => {
  await using rig = await Rig.open([{ name: "a", format: "raw" }]);
  await rig.storage.fleecingStart(fleecing("full", { checkpoint: "c0" }));
  await rig.fill("a", 1, 0, 65536);
  await rig.storage.fleecingEnd({ name: "full", result: "success" });
  for (const result of ["success", "failure"] as const) {
    await rig.storage.fleecingStart(fleecing("diff", { since: "c0" }));
    await rig.fill("a", 2, MiB, 65536);
    await rig.storage.fleecingEnd({ name: "diff", result });
    assertEquals(await rig.bitmaps("a"), ["c0 131072 on"]);
  }
});

Deno.test("a disk whose bitmap is missing is read as a whole, and the answer says why", async () => {
  await using rig = await Rig.open([{ name: "a" }, { name: "b" }]);
  await rig.storage.fleecingStart(fleecing("full", { checkpoint: "c0" }));
  await rig.storage.fleecingEnd({ name: "full", result: "success" });
  const request = fleecing("inc", { disks: ["a", "b"], since: "c0", checkpoint: "c1" });
  const { result } = await rig.storage.fleecingStart(request);
  assertEquals(result.disks.map(({ incremental }) => incremental), [
    { isIncremental: true, reason: null },
    { isIncremental: false, reason: "disk b has no bitmap c0" },
  ]);
  assertEquals(await rig.readExport("t1-b-inc"), 0);
  await rig.storage.fleecingEnd({ name: "inc", result: "success" });
  assertEquals([await rig.bitmaps("a"), await rig.bitmaps("b")], [["c1 0 on"], ["c1 0 on"]]);
});

Deno.test("the old scheme shows the past through an overlay of the disk", async () => {
  await using rig = await Rig.open([{ name: "a", format: "raw" }]);
  await rig.fill("a", 1);
  await rig.storage.fleecingStart(fleecing("old", { scheme: "old", checkpoint: "c0" }));
  await rig.fill("a", 2, 0, 100_000);
  assertEquals(await rig.readExport("t1-a-old"), 1);
  assertEquals(await rig.read("a", 0, 100_000), 2);
  assertEquals((await rig.files()).length, 2);
  await rig.storage.fleecingEnd({ name: "old", result: "success" });
  assertEquals(await rig.files(), ["a"]);
  assertEquals(await rig.bitmaps("a"), ["c0 131072 on"]);
});

Deno.test("persistent bitmaps are there again after a close, and the next fleecing is incremental", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  await rig.storage.fleecingStart(fleecing("full", { checkpoint: "c0" }));
  await rig.storage.fleecingEnd({ name: "full", result: "success" });
  await rig.fill("a", 1, 0, 65536);
  await rig.storage.close();
  await rig.start([{ name: "a" }]);
  assertEquals(await rig.bitmaps("a"), ["c0 65536 on"]);
});

Deno.test("a backup makes an image of the moment, whole when it has concluded", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  await rig.fill("a", 7);
  const target = rig.image("copy");
  await rig.storage.jobStart({ ...BACKUP, id: "b1", sync: "full", target });
  await rig.fill("a", 8);
  const { error, disk, type } = await rig.job("b1");
  assertEquals([error, disk, type], [null, "a", "backup"]);
  await rig.storage.close();
  await rig.start([{ name: "copy" }]);
  assertEquals(await rig.read("copy"), 7);
  assertEquals((await rig.storage.jobList()).result.jobs, []);
});

Deno.test("a job that can't start leaves nothing", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  const start = (change: object) =>
    rig.storage.jobStart({
      ...BACKUP,
      id: "b1",
      sync: "full",
      target: rig.image("copy"),
      ...change,
    });
  await assertRejects(
    () => start({ sync: "bitmap", bitmap: "none", bitmapMode: "never" }),
    BlockError,
  );
  await assertRejects(() => start({ target: rig.image("copy", { sizeBytes: MiB }) }), BlockError);
  await assertRejects(() => start({ target: rig.image("../outside") }), BlockError);
  await assertRejects(() => start({ disk: "z" }), BlockError);
  assertEquals(await rig.files(), ["a"]);
  await start({});
  assertEquals((await rig.job("b1")).error, null);
});

Deno.test("a transaction does all at one moment or nothing", async () => {
  await using rig = await Rig.open([{ name: "a" }, { name: "b" }]);
  const { storage } = rig;
  const add = (disk: string, name: string) => ({
    type: "bitmap-add" as const,
    disk,
    name,
    granularityBytes: null,
    isPersistent: null,
    isDisabled: false,
  });
  const backup = { ...BACKUP, id: "b1", sync: "full", target: rig.image("copy") } as const;
  const snapshot = { type: "snapshot", disk: "b", overlay: rig.image("b1") } as const;
  const all = [
    add("a", "m"),
    { type: "fleecing" as const, ...fleecing("f", { disks: ["a", "b"] }) },
    backup,
  ];
  await assertRejects(() => storage.transact({ actions: [...all, { type: "abort" }] }), BlockError);
  assertEquals([await rig.bitmaps("a"), await rig.files()], [[], ["a", "b"]]);
  await assertRejects(
    () => storage.transact({ actions: [snapshot, { type: "abort" }] }),
    BlockError,
  );
  assertEquals(await rig.files(), ["a", "b"]);
  assertEquals(rig.questions.map((question) => "path" in question ? question.path : ""), [
    `${rig.folder}/b1`,
    `${rig.folder}/b`,
  ]);

  const { result: { results } } = await storage.transact({ actions: all });
  assert(results[1] !== null && results[1] !== undefined && "fleecing" in results[1]);
  assertEquals((await rig.job("b1")).error, null);
  assertEquals(await rig.bitmaps("a"), ["m 0 on"]);
  await storage.fleecingEnd({ name: "f", result: "failure" });
});

Deno.test("a snapshot makes an overlay the active image, commit and stream take it back", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  const { storage } = rig;
  await rig.fill("a", 1);
  const snapshot = (name: string) =>
    storage.transact({
      actions: [{
        type: "snapshot",
        disk: "a",
        overlay: rig.image(name, { backing: { path: `${rig.folder}/a`, format: "qcow2" } }),
      }],
    });
  await snapshot("s1");
  assertEquals(rig.questions.at(-1), {
    type: "activeFile",
    disk: "a",
    path: `${rig.folder}/s1`,
    format: "qcow2",
  });
  await rig.fill("a", 2, 0, 65536);
  const chain = () =>
    storage.diskInfo({ disk: "a" }).result.chain.map(({ path }) => path?.split("/").at(-1));
  assertEquals(chain(), ["s1", "a"]);

  await storage.jobStart({
    ...JOB,
    type: "commit",
    id: "c1",
    top: null,
    base: null,
    onError: "report",
  });
  await rig.job("c1", "ready");
  await rig.fill("a", 3, 65536, 65536);
  await storage.jobCommand({ id: "c1", command: "complete" });
  assertEquals((await rig.job("c1")).error, null);
  assertEquals(chain(), ["a"]);
  assertMatch(JSON.stringify(rig.questions.at(-1)), /"path":"[^"]*\/a"/);
  assertEquals(await rig.read("a", 0, 65536), 2);
  assertEquals(await rig.read("a", 65536, 65536), 3);
  await Deno.remove(`${rig.folder}/s1`);

  await snapshot("s2");
  await rig.fill("a", 4, 0, 65536);
  await storage.jobStart({ ...JOB, type: "stream", id: "st", base: null, onError: "report" });
  assertEquals((await rig.job("st")).error, null);
  assertEquals(chain(), ["s2"]);
  await storage.close();
  await rig.start([{ name: "s2" }]);
  assertEquals(await rig.read("s2", 0, 65536), 4);
  assertEquals(await rig.read("s2", 65536, 65536), 3);
});

Deno.test("a switch that can't be put on record does not happen", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  await rig.fill("a", 1);
  const mirror = {
    ...JOB,
    type: "mirror",
    sync: "full",
    copyMode: "background",
    target: rig.image("m1"),
  } as const;
  await rig.storage.jobStart({ ...mirror, id: "m1" });
  await rig.job("m1", "ready");
  rig.refusal = "the disk of the database is full";
  await rig.storage.jobCommand({ id: "m1", command: "complete" });
  assertMatch((await rig.job("m1")).error ?? "", /full|Input/);
  await rig.fill("a", 2);
  assertEquals(await rig.read("a"), 2);
  const chain = rig.storage.diskInfo({ disk: "a" }).result.chain;
  assertEquals(chain.map(({ path }) => path), [`${rig.folder}/a`]);

  rig.refusal = null;
  await rig.storage.jobStart({ ...mirror, id: "m2", target: rig.image("m2") });
  await rig.job("m2", "ready");
  await rig.storage.jobCommand({ id: "m2", command: "complete" });
  assertEquals((await rig.job("m2")).error, null);
  await rig.fill("a", 3);
  const moved = rig.storage.diskInfo({ disk: "a" }).result.chain;
  assertEquals(moved.map(({ path }) => path), [`${rig.folder}/m2`]);
});

Deno.test("an image that names a file outside of the worker's folders is not opened", async () => {
  await using rig = await Rig.open([{ name: "a" }]);
  await rig.storage.close();
  const maker = await rig.start([]);
  const outside = await Deno.makeTempFile();
  try {
    const backing = { path: outside, format: "raw" } as const;
    await maker.diskCreate(rig.image("evil", { backing }));
    await Deno.symlink(outside, `${rig.folder}/link`);
    const through = { path: `${rig.folder}/link`, format: "raw" } as const;
    await maker.diskCreate(rig.image("sly", { backing: through }));
    await maker.diskCreate(rig.image("loop", {
      backing: { path: `${rig.folder}/loop`, format: "qcow2" },
    }));
    await maker.close();
    for (const name of ["evil", "sly", "loop"]) {
      await assertRejects(() => rig.start([{ name }]), BlockError);
    }
  } finally {
    await Deno.remove(outside);
  }
  await rig.start([{ name: "a" }]);
});

Deno.test("a disk is resized, unless a fleecing needs its size", async () => {
  await using rig = await Rig.open([{ name: "a" }, { name: "b", format: "raw" }]);
  for (const disk of ["a", "b"]) {
    await rig.storage.diskResize({ disk, sizeBytes: 2 * SIZE });
    assertEquals(rig.storage.diskInfo({ disk }).result.sizeBytes, 2 * SIZE);
    assertEquals(rig.events.at(-1), { type: "diskResized", disk, sizeBytes: 2 * SIZE });
    assertEquals(await rig.read(disk, SIZE), 0);
  }
  await rig.storage.fleecingStart(fleecing("f"));
  await assertRejects(() => rig.storage.diskResize({ disk: "a", sizeBytes: SIZE }), BlockError);
  await rig.storage.fleecingEnd({ name: "f", result: "success" });
  await rig.storage.diskResize({ disk: "a", sizeBytes: SIZE });
});

Deno.test({
  name: "images that were made, written and closed are without faults",
  ...needs("qemu-img"),
  async fn() {
    await using rig = await Rig.open([{ name: "a" }]);
    await rig.fill("a", 1);
    await rig.storage.fleecingStart(fleecing("full", { checkpoint: "c0" }));
    await rig.storage.fleecingEnd({ name: "full", result: "success" });
    await rig.fill("a", 2, MiB);
    await rig.storage.close();
    const { code, stdout } = await new Deno.Command(findProgram("qemu-img") ?? "qemu-img", {
      args: ["check", `${rig.folder}/a`],
    }).output();
    assertEquals(code, 0, new TextDecoder().decode(stdout));
    await rig.start([]);
  },
});
