import { assert, assertEquals, assertGreater, assertLess, assertThrows } from "@std/assert";
import fs from "node:fs";
import { FileNode } from "../../src/block/drivers/file.ts";
import { openDiskFile } from "../../src/block/drivers/file_open.ts";
import { LibcFile } from "../../src/block/drivers/libc_file.ts";
import { LibC, LIBC_PATHS } from "../../src/block/drivers/libc.ts";
import { BlockError } from "../../src/block/errors.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import {
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
} from "../../src/block/types.ts";
import { needs } from "../support/clients.ts";
import { FakeClock } from "../support/fake_clock.ts";
import { assertFails, filled, now, readBytes } from "./support.ts";

const GiB = 2 ** 30;
const MiB = 2 ** 20;
const WITHOUT_FFI: Deno.PermissionOptions = { read: true, write: true, env: true, ffi: false };

/** A folder that goes when the test ends. */
function tempFolder(): { path: string } & Disposable {
  const path = Deno.realPathSync(Deno.makeTempDirSync());
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

function createDisk(path: string, sizeBytes: number): FileNode {
  return FileNode.open({ nodeName: "disk", path, isReadOnly: false, create: true, sizeBytes });
}

Deno.test("FileNode makes a sparse file and opens it again", async () => {
  using folder = tempFolder();
  const path = `${folder.path}/disk`;
  const made = createDisk(path, 5 * GiB + 3);
  assertEquals(made.sizeBytes, 5 * GiB + 3);
  assertEquals(made.allocatedBytes, 0);
  assertEquals((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
  await made.write(5 * GiB, filled(3, 9));
  await made.close();
  const opened = FileNode.open({ nodeName: "disk", path, isReadOnly: true });
  assertEquals(await readBytes(opened, 5 * GiB - 2, 5), new Uint8Array([0, 0, 9, 9, 9]));
  await assertFails(() => opened.write(0, filled(1, 1)), "EPERM", "Block node is read-only");
  await opened.flush();
  await opened.close();
});

Deno.test("FileNode reads and writes across the borders of 2, 4 and 8 GiB", async () => {
  using folder = tempFolder();
  const disk = createDisk(`${folder.path}/disk`, 8 * GiB + 1000);
  const memory = new SharedArrayBuffer(4096);
  const parts = [[0, 100], [200, 300], [600, 200]].map(([start, length]) =>
    new Uint8Array(memory, start, length)
  );
  const vector = new IoVector(parts);
  let value = 1;
  for (const border of [2 * GiB, 4 * GiB, 8 * GiB]) {
    vector.fill(value);
    now(disk.write(border - 150, vector));
    const seen = await readBytes(disk, border - 151, 602);
    assertEquals(seen[0], 0);
    assertEquals(seen[601], 0);
    assert(seen.subarray(1, 601).every((byte) => byte === value));
    value++;
  }
  assertLess(disk.allocatedBytes, MiB);
  const last = disk.sizeBytes - 1;
  now(disk.write(last, filled(1, 7)));
  assertEquals(await readBytes(disk, last, 1), new Uint8Array([7]));
  await disk.close();
});

Deno.test("FileNode finds holes, makes them by discard and by zeroes that may unmap", async () => {
  using folder = tempFolder();
  const disk = createDisk(`${folder.path}/disk`, 5 * GiB);
  const hole = STATUS_ALLOCATED | STATUS_ZERO;
  const data = STATUS_ALLOCATED | STATUS_DATA;
  assertEquals(now(disk.blockStatus(0, 5 * GiB)), { length: 5 * GiB, flags: hole });
  now(disk.write(4 * GiB, filled(MiB, 1)));
  assertEquals(now(disk.blockStatus(0, 5 * GiB)), { length: 4 * GiB, flags: hole });
  assertEquals(now(disk.blockStatus(4 * GiB, GiB)), { length: MiB, flags: data });
  assertEquals(now(disk.blockStatus(4 * GiB + MiB, 100)), { length: 100, flags: hole });
  assertEquals(now(disk.blockStatus(4 * GiB + 5, 7)), { length: 7, flags: data });

  const fullBytes = disk.allocatedBytes;
  now(disk.writeZeroes(4 * GiB, MiB / 2));
  assertEquals(disk.allocatedBytes, fullBytes);
  now(disk.writeZeroes(4 * GiB, MiB / 4, REQ_MAY_UNMAP | REQ_NO_FALLBACK));
  assertLess(disk.allocatedBytes, fullBytes);
  now(disk.discard(4 * GiB, MiB));
  assertEquals(disk.allocatedBytes, 0);
  assertEquals(await readBytes(disk, 4 * GiB, 3), new Uint8Array(3));
  assertEquals(disk.details().holes, "supported");
  await disk.close();
});

Deno.test({
  name: "FileNode does without libc: zeroes are written, all is data, and it says so",
  permissions: WITHOUT_FFI,
  fn: async () => {
    using folder = tempFolder();
    const disk = createDisk(`${folder.path}/disk`, 4 * MiB);
    assertEquals(disk.details().holes, "unsupported: not permitted (--allow-ffi)");
    assertEquals(disk.details().lock, "flock");
    const data = { length: 4 * MiB, flags: STATUS_ALLOCATED | STATUS_DATA };
    assertEquals(now(disk.blockStatus(0, 4 * MiB)), data);
    now(disk.write(0, filled(MiB, 5)));
    now(disk.discard(0, MiB));
    assertEquals(await readBytes(disk, 0, 1), new Uint8Array([5]));
    now(disk.writeZeroes(0, 2 * MiB, REQ_MAY_UNMAP));
    assertEquals(await readBytes(disk, MiB - 1, 2), new Uint8Array(2));
    assertGreater(disk.allocatedBytes, 2 * MiB - 1);
    const noFallback = () => disk.writeZeroes(0, MiB, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
    await assertFails(noFallback, "ENOTSUP", /writing zeroes efficiently/);
    await disk.close();
  },
});

Deno.test({
  name: "FileNode goes on after short reads and writes",
  permissions: WITHOUT_FFI,
  fn: async () => {
    using folder = tempFolder();
    const disk = createDisk(`${folder.path}/disk`, 10_000);
    const { readSync, writeSync } = fs;
    const shorten = (length: number) => Math.max(1, Math.floor(length / 3));
    type Call = (
      fd: number,
      buffer: Uint8Array,
      at: number,
      length: number,
      offset: number,
    ) => number;
    const shortened = (call: Call): Call => (fd, buffer, at, length, offset) =>
      call(fd, buffer, at, shorten(length), offset);
    Object.assign(fs, {
      readSync: shortened(readSync as Call),
      writeSync: shortened(writeSync as Call),
    });
    try {
      const bytes = Uint8Array.from({ length: 5000 }, (_, index) => index * 13);
      now(disk.write(100, new IoVector([bytes.slice(0, 1700), bytes.slice(1700)])));
      assertEquals(await readBytes(disk, 100, 5000), bytes);
    } finally {
      Object.assign(fs, { readSync, writeSync });
    }
    assertEquals((await readBytes(disk, 99, 2))[0], 0);
    await disk.close();
  },
});

Deno.test("FileNode fails to read a file that somebody made shorter", async () => {
  using folder = tempFolder();
  const disk = createDisk(`${folder.path}/disk`, 10_000);
  now(disk.write(0, filled(10_000, 1)));
  Deno.truncateSync(disk.path, 5000);
  await assertFails(() => disk.read(4000, filled(2000, 0)), "EIO", /ends before 10000 bytes/);
  assertEquals(await readBytes(disk, 4999, 1), new Uint8Array([1]));
  await disk.close();
});

Deno.test("FileNode.open() refuses what is no regular file, with the reason", async () => {
  using folder = tempFolder();
  const open = (path: string, isReadOnly = false) =>
    FileNode.open({ nodeName: "disk", path, isReadOnly });
  await assertFails(() => open(folder.path), "EINVAL", /^Could not open '.*': Is a directory$/);
  await assertFails(() => open("/dev/zero"), "EINVAL", /it is a character device$/);
  await assertFails(() => open(`${folder.path}/none`), "ENOENT", /^Could not open '.*\/none'/);
  await assertFails(() => open("/dev/zero/x"), "EINVAL", /Not a directory$/);
  await assertFails(() => open("a\0b"), "EINVAL", /NUL/);
  await assertFails(
    () => open(`${folder.path}/${"x".repeat(300)}`),
    "EINVAL",
    /File name too long$/,
  );
  Deno.symlinkSync(`${folder.path}/loop`, `${folder.path}/loop`);
  await assertFails(
    () => open(`${folder.path}/loop`),
    "EINVAL",
    /Too many levels of symbolic links$/,
  );
});

Deno.test({
  name: "FileNode.open() does not wait for a FIFO",
  ...needs("mkfifo"),
  fn: async () => {
    using folder = tempFolder();
    const path = `${folder.path}/fifo`;
    assert(new Deno.Command("mkfifo", { args: [path] }).outputSync().success);
    for (const isReadOnly of [true, false]) {
      const open = () => FileNode.open({ nodeName: "disk", path, isReadOnly });
      await assertFails(open, "EINVAL", /it is a FIFO$/);
    }
  },
});

Deno.test("FileNode.open() makes no file over another, nor one without a size", async () => {
  using folder = tempFolder();
  const path = `${folder.path}/disk`;
  Deno.writeTextFileSync(path, "precious");
  const create = { nodeName: "disk", isReadOnly: false, create: true };
  await assertFails(
    () => FileNode.open({ ...create, path, sizeBytes: 1 }),
    "EINVAL",
    /File exists$/,
  );
  Deno.symlinkSync(`${folder.path}/elsewhere`, `${folder.path}/link`);
  const link = `${folder.path}/link`;
  await assertFails(
    () => FileNode.open({ ...create, path: link, sizeBytes: 1 }),
    "EINVAL",
    /File exists$/,
  );
  const other = `${folder.path}/other`;
  for (const sizeBytes of [-1, 0.5, NaN, 2 ** 53]) {
    await assertFails(
      () => FileNode.open({ ...create, path: other, sizeBytes }),
      "EINVAL",
      /size of/,
    );
  }
  await assertFails(() => FileNode.open({ ...create, path: other }), "EINVAL", /size of undefined/);
  await assertFails(
    () => FileNode.open({ ...create, path: other, sizeBytes: 1, isReadOnly: true }),
    "EINVAL",
    /read-only/,
  );
  assertEquals([...Deno.readDirSync(folder.path)].map(({ name }) => name).sort(), ["disk", "link"]);
  assertEquals(Deno.readTextFileSync(path), "precious");
});

Deno.test("FileNode.open() checks the size that the caller expects", async () => {
  using folder = tempFolder();
  const path = `${folder.path}/disk`;
  Deno.writeFileSync(path, new Uint8Array(100));
  const open = (sizeBytes: number) =>
    FileNode.open({ nodeName: "d", path, isReadOnly: false, sizeBytes });
  await assertFails(() => open(101), "EINVAL", /has 100 bytes, not 101$/);
  await open(100).close();
});

Deno.test("FileNode.open() stays inside its folder, symbolic links followed", async () => {
  using folder = tempFolder();
  const inside = `${folder.path}/inside`;
  Deno.mkdirSync(`${inside}/deep`, { recursive: true });
  Deno.mkdirSync(`${folder.path}/inside2`);
  for (const name of ["inside/deep/a", "outside", "inside2/b"]) {
    Deno.writeFileSync(`${folder.path}/${name}`, new Uint8Array(10));
  }
  Deno.symlinkSync(`${folder.path}/outside`, `${inside}/out`);
  Deno.symlinkSync(`${inside}/deep/a`, `${inside}/in`);
  Deno.symlinkSync(folder.path, `${inside}/up`);
  const open = (path: string, create = false) =>
    FileNode.open({
      nodeName: "disk",
      path,
      isReadOnly: false,
      directory: inside,
      ...create ? { create, sizeBytes: 1 } : {},
    });
  const outside = [`${inside}/out`, `${inside}/up/outside`, `${inside}/../outside`];
  for (const path of [...outside, `${folder.path}/inside2/b`]) {
    await assertFails(() => open(path), "EPERM", /is outside of/);
  }
  for (const path of [`${inside}/../new`, `${inside}/up/new`]) {
    await assertFails(() => open(path, true), "EPERM", /is outside of/);
  }
  for (const path of [`${inside}/deep/a`, `${inside}/in`, `${inside}/up/inside/deep/a`]) {
    await open(path).close();
  }
  await open(`${inside}/deep/new`, true).close();
});

for (const permissions of ["inherit", WITHOUT_FFI] as const) {
  const how = permissions === "inherit" ? "with libc" : "without libc";
  Deno.test({
    name: `FileNode locks its file: one writer, or any readers, ${how}`,
    permissions,
    fn: async () => {
      using folder = tempFolder();
      const path = `${folder.path}/disk`;
      const open = (isReadOnly: boolean) => FileNode.open({ nodeName: "d", path, isReadOnly });
      const writer = createDisk(path, 1000);
      const busy = /^Failed to get .*lock: is another process using the image \[.*disk\]\?$/;
      for (const isReadOnly of [true, false]) {
        await assertFails(() => open(isReadOnly), "EBUSY", busy);
      }
      Deno.symlinkSync(path, `${folder.path}/link`);
      const byLink = { nodeName: "d", path: `${folder.path}/link`, isReadOnly: false };
      await assertFails(() => FileNode.open(byLink), "EBUSY", busy);
      await writer.close();
      const readers = [open(true), open(true)];
      await assertFails(() => open(false), "EBUSY", busy);
      for (const reader of readers) await reader.close();
      await open(false).close();
    },
  });
}

Deno.test({
  name: "FileNode and QEMU's tools respect each other's locks",
  ...needs("qemu-io"),
  fn: async () => {
    using folder = tempFolder();
    const path = `${folder.path}/disk`;
    const disk = createDisk(path, MiB);
    const qemuIo = (...commands: string[]) => {
      const args = ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), path];
      const { success, stderr } = new Deno.Command("qemu-io", { args }).outputSync();
      return { success, stderr: new TextDecoder().decode(stderr) };
    };
    const refused = qemuIo("write 0 512");
    assertEquals(refused.success, false);
    assert(/Failed to get .*"write" lock/.test(refused.stderr), refused.stderr);
    await disk.close();
    assert(qemuIo("write -P 5 0 512").success);

    const qemu = new Deno.Command("qemu-io", {
      args: ["-f", "raw", path],
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const writer = qemu.stdin.getWriter();
    const reader = qemu.stdout.getReader();
    await writer.write(new TextEncoder().encode("read 0 512\n"));
    // It answers once it has the image open.
    while (!new TextDecoder().decode((await reader.read()).value).includes("read 512")) continue;
    for (const isReadOnly of [true, false]) {
      const open = () => FileNode.open({ nodeName: "d", path, isReadOnly });
      await assertFails(open, "EBUSY", /lock: is another process using the image/);
    }
    await writer.close();
    while (!(await reader.read()).done) continue;
    await qemu.status;
    const again = FileNode.open({ nodeName: "d", path, isReadOnly: true });
    assertEquals(await readBytes(again, 511, 2), new Uint8Array([5, 0]));
    await again.close();
  },
});

Deno.test("FileNode flushes in the call when little is to be written, else beside it", async () => {
  using folder = tempFolder();
  const clock = new FakeClock();
  const path = `${folder.path}/disk`;
  await createDisk(path, 64 * MiB).close();
  const disk = FileNode.open({ nodeName: "disk", path, isReadOnly: false, clock });
  const { flush, flushAside } = LibcFile.prototype;
  const done: (() => void)[] = [];
  let syncCount = 0;
  LibcFile.prototype.flush = () => void syncCount++;
  LibcFile.prototype.flushAside = () => new Promise((resolve) => done.push(resolve));
  try {
    // What was written before the opening is unknown: as if it were much.
    const first = disk.flush();
    assertEquals([syncCount, done.length], [0, 1]);
    done.shift()?.();
    await first;
    now(disk.flush());
    now(disk.write(0, filled(4096, 1)));
    now(disk.flush());
    now(disk.flush());
    assertEquals([syncCount, done.length], [1, 0]);

    now(disk.write(0, filled(2 * MiB, 1)));
    const second = disk.flush();
    const joined = disk.flush();
    now(disk.write(0, filled(1, 2)));
    const third = disk.flush();
    assertEquals([syncCount, done.length], [1, 2]);
    let answered = "";
    for (const [name, flush] of Object.entries({ second, joined, third })) {
      Promise.resolve(flush).then(() => answered += `${name} `);
    }
    done[1]?.();
    await new Promise((resolve) => setTimeout(resolve, 0));
    assertEquals(answered, "");
    done[0]?.();
    await Promise.all([second, joined, third]);
    assertEquals(answered.trim().split(" ").sort(), ["joined", "second", "third"]);

    // A slow medium is not waited for.
    now(disk.write(0, filled(1, 3)));
    LibcFile.prototype.flush = () => clock.jump(3);
    now(disk.flush());
    now(disk.write(0, filled(1, 4)));
    const slow = disk.flush();
    assertEquals(done.length, 3);
    done[2]?.();
    await slow;
  } finally {
    Object.assign(LibcFile.prototype, { flush, flushAside });
  }
  await disk.close();
});

Deno.test("FileNode never waits for the medium with a temporary file", async () => {
  using folder = tempFolder();
  const { flush, flushAside } = LibcFile.prototype;
  let syncCount = 0;
  const count = (): void => void syncCount++;
  Object.assign(LibcFile.prototype, { flush: count, flushAside: count });
  try {
    const disk = FileNode.open({
      nodeName: "scratch",
      path: `${folder.path}/scratch`,
      isReadOnly: false,
      create: true,
      sizeBytes: MiB,
      isTemporary: true,
    });
    now(disk.write(0, filled(MiB, 1)));
    now(disk.flush());
    await disk.close();
  } finally {
    Object.assign(LibcFile.prototype, { flush, flushAside });
  }
  assertEquals(syncCount, 0);
});

Deno.test("FileNode never again says that it flushed once a flush failed", async () => {
  using folder = tempFolder();
  const disk = createDisk(`${folder.path}/disk`, MiB);
  await disk.flush();
  const { flush, flushAside } = LibcFile.prototype;
  const error = Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
  LibcFile.prototype.flush = () => {
    throw error;
  };
  LibcFile.prototype.flushAside = () => Promise.reject(error);
  try {
    now(disk.write(0, filled(1, 1)));
    await assertFails(() => disk.flush(), "ENOSPC", /no space left/);
  } finally {
    Object.assign(LibcFile.prototype, { flush, flushAside });
  }
  await assertFails(() => disk.flush(), "ENOSPC", /no space left/);
  assertEquals(await readBytes(disk, 0, 1), new Uint8Array([1]));
  await assertFails(() => disk.close(), "ENOSPC", /no space left/);
  // It let go of the file all the same.
  await FileNode.open({ nodeName: "d", path: disk.path, isReadOnly: false }).close();
});

Deno.test({
  name: "FileNode passes on that the file system is full, and works again when there is room",
  fn: async (test) => {
    using folder = tempFolder();
    const mount = (...args: string[]): boolean => {
      try {
        return new Deno.Command("mount", { args }).outputSync().success;
      } catch {
        return false;
      }
    };
    const isMounted = mount("-t", "tmpfs", "-o", "size=128k", "tmpfs", folder.path);
    if (!isMounted) {
      // deno-lint-ignore no-console
      console.log("no permission to mount a small tmpfs: skipped");
      return;
    }
    try {
      const disk = createDisk(`${folder.path}/disk`, MiB);
      const memory = new SharedArrayBuffer(65536);
      const vectors: [string, IoVector][] = [
        ["one buffer", filled(65536, 1)],
        ["two", new IoVector([filled(32768, 1), filled(32768, 1)].flatMap((part) => part.buffers))],
        ["shared memory", new IoVector([new Uint8Array(memory, 0, 5), new Uint8Array(memory, 8)])],
      ];
      for (const [name, vector] of vectors) {
        await test.step(name, async () => {
          now(disk.write(0, vector));
          now(disk.write(65536, vector.slice(0, 32768)));
          await assertFails(() => disk.write(MiB / 2, vector), "ENOSPC", /No space left/);
          await assertFails(() => disk.writeZeroes(MiB / 2, 65536), "ENOSPC", /No space left/);
          now(disk.discard(0, MiB));
          now(disk.write(MiB / 2, vector));
          assertEquals(await readBytes(disk, 0, 2), new Uint8Array(2));
          now(disk.discard(0, MiB));
        });
      }
      await disk.close();
    } finally {
      new Deno.Command("umount", { args: [folder.path] }).outputSync();
    }
  },
});

Deno.test({
  name: "FileNode passes on that the file may not grow",
  ...needs("bash"),
  fn: async () => {
    using folder = tempFolder();
    const driver = new URL("../../src/block/drivers/file.ts", import.meta.url).href;
    const vectors = new URL("../../src/block/io_vector.ts", import.meta.url).href;
    // A limit on the size of files, in blocks of 1,024 bytes, whose signal is ignored. That a file
    // of the same name can be made in the end shows that the first attempt left none.
    const script = `
      const { FileNode } = await import(${JSON.stringify(driver)});
      const { IoVector } = await import(${JSON.stringify(vectors)});
      const path = ${JSON.stringify(`${folder.path}/disk`)};
      const create = { nodeName: "d", path, isReadOnly: false, create: true };
      const code = (action) => {
        try { action(); return "ok"; } catch (error) { return error.code; }
      };
      const answers = [code(() => FileNode.open({ ...create, sizeBytes: 2 ** 30 }))];
      const disk = FileNode.open({ ...create, sizeBytes: 2 ** 20 });
      answers.push(code(() => disk.write(0, IoVector.of(new Uint8Array(2 ** 20)))));
      answers.push(code(() => disk.resize(2 ** 21)), disk.sizeBytes);
      await disk.close();
      console.log(answers.join(" "));
    `;
    const { stdout, stderr } = await new Deno.Command("bash", {
      args: [
        "-c",
        'trap "" XFSZ; ulimit -f 1024; exec "$0" eval --no-check "$1"',
        Deno.execPath(),
        script,
      ],
    }).output();
    const text = new TextDecoder().decode(stdout).trim();
    assertEquals(text, "EFBIG ok EFBIG 1048576", new TextDecoder().decode(stderr));
  },
});

Deno.test("FileNode.resize() grows and shrinks the file", async () => {
  using folder = tempFolder();
  const graph = new BlockGraph();
  const disk = graph.add(createDisk(`${folder.path}/disk`, 1000));
  now(disk.write(990, filled(10, 3)));
  await graph.resize("disk", 5 * GiB);
  assertEquals([disk.sizeBytes, Deno.statSync(disk.path).size], [5 * GiB, 5 * GiB]);
  await graph.resize("disk", 995);
  await graph.resize("disk", 1000);
  assertEquals(
    await readBytes(disk, 990, 10),
    new Uint8Array([3, 3, 3, 3, 3, 0, 0, 0, 0, 0]),
  );
  await assertFails(() => graph.resize("disk", 2 ** 53), "EINVAL", /not a size in bytes/);
  assertEquals(disk.sizeBytes, 1000);
  await graph.close();
});

Deno.test({
  name: "FileNode needs the permission for libc, not for every library",
  permissions: { read: true, write: true, env: true, ffi: [...LIBC_PATHS] },
  async fn() {
    using folder = tempFolder();
    const disk = createDisk(`${folder.path}/disk`, 5 * GiB);
    const memory = new SharedArrayBuffer(4096);
    const parts = [new Uint8Array(memory, 100, 200), new Uint8Array(memory, 1000, 300)];
    const vector = new IoVector(parts);
    vector.fill(5);
    now(disk.write(4 * GiB, vector));
    vector.fill(0);
    now(disk.read(4 * GiB, vector));
    assert(parts.every((part) => part.every((byte) => byte === 5)));
    const { length, flags } = now(disk.blockStatus(0, 5 * GiB));
    assertEquals([length, flags & STATUS_ZERO], [4 * GiB, STATUS_ZERO]);
    now(disk.discard(4 * GiB, 4096));
    const { flags: freed } = now(disk.blockStatus(4 * GiB, GiB));
    assertEquals(freed & STATUS_ZERO, STATUS_ZERO);
    await disk.close();
  },
});

Deno.test("FileNode.view() shows what read() reads, and nothing that is not there", async () => {
  using folder = tempFolder();
  const path = `${folder.path}/disk`;
  const sizeBytes = 40 * MiB + 1000;
  const disk = createDisk(path, sizeBytes);
  for (let at = 0; at < sizeBytes; at += 3 * MiB) {
    now(disk.write(at, filled(Math.min(MiB + 77, sizeBytes - at), at / MiB + 1)));
  }
  // In one window, from one to the next, back again, in a hole, at the end.
  const places = [[0, 4096], [3 * MiB - 5, 70_000], [16 * MiB - 3, 6], [39 * MiB, MiB + 1000]];
  for (const [offset = 0, length = 0] of [...places, ...places.toReversed(), [2 * MiB, 1]]) {
    const seen = disk.view(offset, length);
    assert(seen !== null, `${offset}`);
    assertEquals(seen, await readBytes(disk, offset, length));
  }
  assertEquals(disk.view(sizeBytes - 1, 2), null);
  assertEquals(disk.view(0, 17 * MiB), null);
  const before = disk.view(0, 4096);
  now(disk.write(100, filled(3, 200)));
  assertEquals(before?.subarray(99, 104), new Uint8Array([1, 200, 200, 200, 1]));
  // Cut off behind its back: to look there would end the process.
  Deno.truncateSync(path, MiB);
  assertEquals(disk.view(20 * MiB, 4096), null);
  const last = disk.view(0, 4096);
  await disk.close();
  assertEquals(last, new Uint8Array(4096));
});

Deno.test("FileNode past the system's cache reads and writes as any other, at every offset", async () => {
  using folder = tempFolder();
  const path = `${folder.path}/disk`;
  const sizeBytes = 3 * MiB + 1000;
  const model = new Uint8Array(sizeBytes);
  const disk = FileNode.open({
    nodeName: "disk",
    path,
    isReadOnly: false,
    create: true,
    sizeBytes,
    isDirect: true,
  });
  const places = [[0, 1], [4095, 2], [8192, 4096], [10_000, 100_000], [MiB - 7, MiB + 9000]];
  places.push([sizeBytes - 1, 1], [sizeBytes - 5000, 5000], [12_288, 2 * MiB], [777, 1777]);
  let value = 1;
  for (const [offset = 0, length = 0] of places) {
    now(disk.write(offset, filled(length, value)));
    model.fill(value++, offset, offset + length);
    assertEquals(await readBytes(disk, offset, length), model.slice(offset, offset + length));
    // Nothing around it changes, and the file does not grow.
    assertEquals(await readBytes(disk, 0, sizeBytes), model);
    assertEquals(Deno.statSync(path).size, sizeBytes);
  }
  now(disk.writeZeroes(5000, MiB, REQ_MAY_UNMAP));
  model.fill(0, 5000, 5000 + MiB);
  assertEquals(await readBytes(disk, 0, sizeBytes), model);
  assertEquals(disk.view(0, 4096), null);
  assertEquals(disk.filePart(0, 4096), null);
  await disk.flush();
  await disk.close();
  assertEquals(Deno.readFileSync(path), model);
});

Deno.test("openDiskFile() opens past the system's cache where the file system can, or says so", () => {
  using folder = tempFolder();
  const libc = LibC.open();
  if (!(libc instanceof LibC)) throw new Error(libc.unavailable);
  try {
    const path = `${folder.path}/disk`;
    const options = { path, isReadOnly: false, isDirect: true };
    const { file } = openDiskFile({ ...options, create: true, sizeBytes: 4096 }, libc);
    const flags = /^flags:\s*(\d+)$/m.exec(Deno.readTextFileSync(`/proc/self/fdinfo/${file.fd}`));
    const direct = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;
    assertEquals(parseInt(flags?.[1] ?? "", 8) & direct, direct);
    file.close();
    const refused = (path: string, binding: LibC | null, reason: string) =>
      assertThrows(
        () => openDiskFile({ path, isReadOnly: true, isDirect: true }, binding),
        BlockError,
        `Could not open '${path}': ${reason}`,
      );
    refused("/proc/version", libc, "filesystem does not support O_DIRECT");
    refused(path, null, "passing by the host's cache needs the permission --allow-ffi");
  } finally {
    libc.close();
  }
});

Deno.test("FileNode.takeRoomAhead() gives room to what is written and to growth, to nothing else", async () => {
  using folder = tempFolder();
  const disk = createDisk(`${folder.path}/disk`, 4 * MiB);
  disk.takeRoomAhead();
  now(disk.write(MiB, filled(MiB, 1)));
  const written = disk.allocatedBytes;
  assert(written >= MiB && written < 2 * MiB, `${written}`);
  await disk.resize(8 * MiB);
  assert(disk.allocatedBytes >= 5 * MiB, `${disk.allocatedBytes}`);
  assertEquals(await readBytes(disk, 5 * MiB, 4096), new Uint8Array(4096));
  now(disk.write(4 * MiB, filled(MiB, 2)));
  await disk.resize(5 * MiB);
  assert(disk.allocatedBytes < 3 * MiB, `${disk.allocatedBytes}`);
  assertEquals(await readBytes(disk, 4 * MiB, MiB), new Uint8Array(MiB).fill(2));
  await disk.close();
});
