import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { DataFolder, FolderInUseError } from "../../src/vm/data_folder.ts";
import { recover } from "../../src/vm/recovery.ts";
import { SqliteStore } from "../../src/vm/sqlite_store.ts";
import type { MachineRecord } from "../../src/vm/store.ts";

async function withFolder(action: (path: string) => Promise<void>): Promise<void> {
  const path = await Deno.makeTempDir({ prefix: "ovis-folder-" });
  try {
    await action(path);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

Deno.test("DataFolder.open() refuses a folder that is in use, and takes it once it is free", async () => {
  await withFolder(async (path) => {
    {
      using _first = await DataFolder.open(path);
      const error = await assertRejects(() => DataFolder.open(path), FolderInUseError);
      assertMatch(error.message, new RegExp(`in use by another .*process ${Deno.pid}.*--data`));
    }
    using _second = await DataFolder.open(path);
  });
});

Deno.test("DataFolder.token() makes one that only the owner can read, and keeps it", async () => {
  await withFolder(async (path) => {
    using folder = await DataFolder.open(`${path}/new/folder`);
    const first = await folder.token();
    assertEquals(first.isNew, true);
    assertMatch(first.token, /^[\w-]{32}$/);
    assertEquals(await folder.token(), { token: first.token, isNew: false });
    const mode = (path: string) => (Deno.statSync(path).mode ?? 0) & 0o777;
    assertEquals(mode(`${folder.path}/token`), 0o600);
    assertEquals(mode(folder.path), 0o700);
  });
});

Deno.test("DataFolder puts sockets where their paths are short enough", async () => {
  await withFolder(async (path) => {
    const long = `${path}/${"x".repeat(120)}`;
    let elsewhere: string;
    {
      using near = await DataFolder.open(`${path}/data`);
      assertEquals(near.socketDirectory, `${path}/data/sockets`);
      using far = await DataFolder.open(long);
      elsewhere = far.socketDirectory;
      assertEquals(far.socketPath("01234567").length <= 107, true);
    }
    try {
      {
        using again = await DataFolder.open(long);
        assertEquals(again.socketDirectory, elsewhere);
      }
      await Deno.chmod(elsewhere, 0o777);
      await assertRejects(() => DataFolder.open(long), Error, "belongs to someone else");
    } finally {
      await Deno.remove(elsewhere);
    }
  });
});

Deno.test("recover() removes what a crash left half-made and nothing else", async () => {
  await withFolder(async (path) => {
    using folder = await DataFolder.open(path);
    using store = SqliteStore.open(":memory:");
    const machine = (name: string, phase: MachineRecord["phase"]): MachineRecord => ({
      name,
      id: name.padEnd(8, "0"),
      image: "demo",
      memoryBytes: 0,
      hartCount: 1,
      disks: [],
      createdAt: "",
      phase,
    });
    for (const phase of ["creating", "ready", "deleting"] as const) {
      const record = machine(phase, phase);
      store.machines.put(record.name, record);
      await Deno.mkdir(folder.diskDirectory(record.id));
      await Deno.writeTextFile(folder.diskPath(`${record.id}/disk0.raw`), "data");
    }
    const scratchDirectory = `${path}-elsewhere`;
    await Deno.mkdir(scratchDirectory);
    await Deno.writeTextFile(`${scratchDirectory}/f1.img`, "old data");
    store.fleecings.put("ready/f1", {
      key: "ready/f1",
      vm: "ready",
      name: "f1",
      createdAt: "",
      scratchDirectory,
      checkpoint: "c1",
    });
    for (const name of ["c0", "c1"]) {
      const key = `ready/${name}`;
      store.checkpoints.put(key, { key, vm: "ready", name, disks: [], createdAt: "" });
    }
    for (const phase of ["creating", "ready", "deleting"] as const) {
      const file = `ready000/${phase}.qcow2`;
      await Deno.writeTextFile(folder.diskPath(file), "data");
      store.disks.put(phase, {
        name: phase,
        owner: null,
        folder: "ready000",
        file,
        format: "qcow2",
        files: [file],
        sizeBytes: 512,
        backing: null,
        createdAt: "",
        phase,
      });
    }
    await Deno.mkdir(folder.scratchDirectory("ready000"));
    await Deno.writeFile(`${folder.scratchDirectory("ready000")}/f1.tmp`, new Uint8Array(8192));
    await Deno.writeTextFile(folder.socketPath("ready000"), "");
    await Deno.mkdir(folder.imageDirectory("held"));
    await Deno.writeTextFile(`${folder.imageDirectory("held")}/kernel`, "whole");
    await Deno.writeTextFile(`${folder.imageDirectory("held")}/.kernel.0123.tmp`, "half");
    await Deno.mkdir(folder.imageDirectory(".deleted-0123"));
    await Deno.writeTextFile(`${folder.path}/notes`, "a file of the user's own");

    const report = await recover(folder, store);
    assertEquals(report.scratchFiles, ["ready000/f1.tmp"]);
    assertEquals(report.scratchBytes, 8192);
    assertEquals(report.fleecings, ["ready/f1"]);
    assertEquals(report.machines.sort(), ["creating", "deleting"]);
    assertEquals(report.disks.sort(), ["creating", "deleting"]);
    await assertRejects(() => Deno.stat(scratchDirectory), Deno.errors.NotFound);
    assertEquals(store.checkpoints.list({ after: "", limit: 9 }).map(({ name }) => name), ["c0"]);
    assertEquals(report.uploads.sort(), [".deleted-0123", "held/.kernel.0123.tmp"]);

    const names = (path: string) => [...Deno.readDirSync(path)].map(({ name }) => name).sort();
    assertEquals(names(`${path}/disks`), ["ready000"]);
    assertEquals(names(`${path}/disks/ready000`), ["disk0.raw", "ready.qcow2"]);
    assertEquals(await Deno.readTextFile(folder.diskPath("ready000/disk0.raw")), "data");
    assertEquals(names(`${path}/scratch`), []);
    assertEquals(names(`${path}/sockets`), []);
    assertEquals(names(`${path}/images`), ["held"]);
    assertEquals(names(`${path}/images/held`), ["kernel"]);
    assertEquals(names(path).includes("notes"), true);
    assertEquals(store.machines.list({ after: "", limit: 9 }).map(({ name }) => name), ["ready"]);
    const again = await recover(folder, store);
    assertEquals([again.scratchFiles, again.fleecings, again.machines, again.uploads].flat(), []);
  });
});

Deno.test("recover() makes disks of the disks of machines from before there were such", async () => {
  await withFolder(async (path) => {
    using folder = await DataFolder.open(path);
    using store = SqliteStore.open(":memory:");
    store.machines.put("old", {
      name: "old",
      id: "0123abcd",
      image: "demo",
      memoryBytes: 0,
      hartCount: 1,
      disks: [{ name: "disk0", sizeBytes: 4096, isReadOnly: true }],
      createdAt: "",
      phase: "ready",
    });
    for (let time = 0; time < 2; time++) {
      await recover(folder, store);
      const { file, owner, sizeBytes } = store.disks.get("old:disk0") ?? {};
      assertEquals([file, owner, sizeBytes], ["0123abcd/disk0.raw", "old", 4096]);
      assertEquals(store.machines.get("old")?.disks[0]?.disk, "old:disk0");
    }
  });
});
