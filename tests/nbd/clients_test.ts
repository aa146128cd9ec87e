// The real clients against the server, over TCP and unix sockets.
import { assert, assertEquals } from "@std/assert";
import type { BlockExport } from "../../src/block/export.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { needs } from "../support/clients.ts";
import { directoryOf, MemoryExport, type MemoryExportOptions } from "../support/memory_export.ts";
import { pattern } from "../support/nbd.ts";

const MiB = 1024 * 1024;
const TRANSPORTS = ["tcp", "unix"] as const;

/** What a test works with: exports that are served, and a folder. */
interface Place {
  /** The URI of an export, the default one unless named. */
  uri: (name?: string) => string;
  directory: string;
}

async function serve(
  exports: BlockExport[],
  transport: (typeof TRANSPORTS)[number],
  action: (place: Place) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir();
  const server = new NbdServer({ directory: directoryOf(...exports) });
  const { port } = server.listenTcp({ host: "127.0.0.1", port: 0 });
  await server.listenUnix(`${directory}/nbd.sock`);
  const uri = (name = "") =>
    transport === "tcp"
      ? `nbd://127.0.0.1:${port}/${name}`
      : `nbd+unix:///${name}?socket=${directory}/nbd.sock`;
  try {
    await action({ uri, directory });
  } finally {
    await server.close();
    await Deno.remove(directory, { recursive: true });
  }
}

/** Runs a program that must succeed (or must fail, saying `failing`); what it printed. */
async function run(program: string, args: string[], failing?: RegExp): Promise<string> {
  // libnbd's bindings belong to the system's Python, whatever other one is about.
  const env = { PATH: `/usr/bin:${Deno.env.get("PATH") ?? ""}` };
  const { success, stdout, stderr } = await new Deno.Command(program, { args, env }).output();
  const said = new TextDecoder().decode(stderr);
  const printed = new TextDecoder().decode(stdout);
  const what = `${program} ${args.join(" ")}\n${printed}\n${said}`;
  assertEquals(success, failing === undefined, what);
  if (failing !== undefined) assert(failing.test(said + printed), what);
  return printed;
}

/** 4 MiB: pattern, a hole of 1 MiB at 1 MiB, pattern. */
function disk(options: MemoryExportOptions = {}): MemoryExport {
  const bytes = pattern(4 * MiB);
  bytes.fill(0, MiB, 2 * MiB);
  return new MemoryExport(bytes, options);
}

for (const transport of TRANSPORTS) {
  Deno.test({
    name: `nbdinfo understands the server over ${transport}`,
    ...needs("nbdinfo"),
    fn: () =>
      serve([disk(), disk({ name: "ro", isReadOnly: true })], transport, async ({ uri }) => {
        assertEquals((await run("nbdinfo", ["--size", uri()])).trim(), String(4 * MiB));
        const info = JSON.parse(await run("nbdinfo", ["--json", uri()]));
        const [first] = info.exports;
        assertEquals(first["export-name"], "mem");
        assertEquals(first.description, "bytes in memory");
        assertEquals(first["export-size"], 4 * MiB);
        assertEquals(first.contexts, ["base:allocation", "x-ovis:access"]);
        assertEquals([first.is_read_only, first.can_df, first.can_multi_conn], [false, true, true]);
        assertEquals(first.block_size_maximum, 32 * MiB);
        const ro = JSON.parse(await run("nbdinfo", ["--json", uri("ro")])).exports[0];
        assertEquals([ro.is_read_only, ro.can_trim, ro.can_zero], [true, false, false]);
        const list = JSON.parse(await run("nbdinfo", ["--list", "--json", uri()]));
        assertEquals(
          list.exports.map((one: Record<string, unknown>) => one["export-name"]),
          ["mem", "ro"],
        );
        const map = JSON.parse(await run("nbdinfo", ["--map", "--json", uri()]));
        assertEquals(
          map.map((run: Record<string, unknown>) => [run.offset, run.length, run.type]),
          [[0, MiB, 0], [MiB, MiB, 3], [2 * MiB, 2 * MiB, 0]],
        );
        await run("nbdinfo", [uri("none")], /No such file or directory for export: none/);
      }),
  });

  Deno.test({
    name: `nbdcopy copies both ways over ${transport}`,
    ...needs("nbdcopy"),
    fn: async () => {
      const source = disk();
      const target = new MemoryExport(pattern(4 * MiB, 9), { name: "target" });
      const late = disk({ name: "late", before: () => Promise.resolve() });
      await serve([source, target, late], transport, async ({ uri, directory }) => {
        const path = `${directory}/copy.img`;
        await run("nbdcopy", [uri(), path]);
        assertEquals(await Deno.readFile(path), source.bytes);
        await run("nbdcopy", [path, uri("target")]);
        assertEquals(target.bytes, source.bytes);
        assert(
          target.calls.some((call) => call.startsWith("writeZeroes") || call.startsWith("disc")),
        );
        target.bytes.set(pattern(4 * MiB, 4));
        await run("nbdcopy", ["--request-size=2097152", "--flush", uri("late"), uri("target")]);
        assertEquals(target.bytes, late.bytes);
      });
    },
  });

  Deno.test({
    name: `qemu-img converts, compares and maps over ${transport}`,
    ...needs("qemu-img"),
    fn: async () => {
      const source = disk();
      const target = new MemoryExport(pattern(4 * MiB, 9), { name: "target" });
      await serve([source, target], transport, async ({ uri, directory }) => {
        const path = `${directory}/copy.qcow2`;
        await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", uri(), path]);
        const images = ["-f", "raw", "-F", "qcow2", uri(), path];
        assert((await run("qemu-img", ["compare", ...images])).includes("identical"));
        await run("qemu-img", ["convert", "-n", "-O", "raw", path, uri("target")]);
        assertEquals(target.bytes, source.bytes);
        const map = JSON.parse(
          await run("qemu-img", ["map", "--output=json", "-f", "raw", uri()]),
        );
        assertEquals(
          map.map((run: Record<string, unknown>) => [run.start, run.length, run.zero]),
          [[0, MiB, false], [MiB, MiB, true], [2 * MiB, 2 * MiB, false]],
        );
        const info = JSON.parse(await run("qemu-img", ["info", "--output=json", uri()]));
        assertEquals(info["virtual-size"], 4 * MiB);
      });
    },
  });

  Deno.test({
    name: `qemu-io reads, writes, zeroes and discards over ${transport}`,
    ...needs("qemu-io"),
    fn: async () => {
      const exported = disk();
      const forbidden = [{ offset: 2 * MiB, length: 65536 }];
      const view = disk({ name: "view", isReadOnly: true, canDiscard: true, forbidden });
      await serve([exported, view], transport, async ({ uri }) => {
        const commands = [
          "write -P 0x5a 512 66000",
          "read -P 0x5a 512 66000",
          "write -f -P 0x33 1000 10",
          "read -P 0x33 1000 10",
          "write -z -u 2M 128k",
          "read -P 0 2M 128k",
          "discard 3M 64k",
          "read -P 0 3M 64k",
          "flush",
        ].flatMap((command) => ["-c", command]);
        const said = await run("qemu-io", ["-f", "raw", ...commands, uri()]);
        assertEquals(/failed|error/i.exec(said), null, said);
        const args = ["-f", "raw", "-c", "read 2M 4k", uri("view")];
        await run("qemu-io", args, /Operation not permitted/);
        await run("qemu-io", ["-f", "raw", "-c", "read 0 4k", "-c", "discard 0 64k", uri("view")]);
        assert(view.calls.includes("discard 0+65536"));
      });
    },
  });

  Deno.test({
    name: `fio's nbd engine verifies what it wrote over ${transport}`,
    ...needs("fio"),
    fn: async () => {
      await serve([disk()], transport, async ({ uri }) => {
        await run("fio", [
          "--name=verify",
          "--ioengine=nbd",
          `--uri=${uri()}`,
          "--rw=randwrite",
          "--bs=4k",
          "--size=4m",
          "--iodepth=16",
          "--verify=crc32c",
          "--do_verify=1",
          "--verify_fatal=1",
          "--randseed=7",
          "--verify_state_save=0",
        ]);
      });
    },
  });

  Deno.test({
    name: `libnbd's bindings do what clients seldom do over ${transport}`,
    ...needs("nbdsh"),
    fn: async () => {
      const forbidden = [{ offset: MiB + 65536, length: 65536 }];
      const view = disk({ name: "view", isReadOnly: true, canDiscard: true, forbidden });
      await serve([disk(), view], transport, async ({ uri }) => {
        await run("nbdsh", ["-c", connecting(uri()) + ODD_FLAGS]);
        await run("nbdsh", ["-c", connecting(uri("view")) + FORBIDDEN]);
        assert(view.calls.includes("discard 0+65536"));
      });
    },
  });
}

/**
 * Python that connects with both contexts, and lets pass what the bindings would refuse themselves.
 */
function connecting(uri: string): string {
  return `
import errno
h.add_meta_context("base:allocation")
h.add_meta_context("x-ovis:access")
h.set_strict_mode(0)
h.connect_uri(${JSON.stringify(uri)})
`;
}

// Every answer that is an error must leave the connection usable.
const ODD_FLAGS = `
def fails(number, action):
    try:
        action()
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number, error.string)
    else:
        raise Exception("did not fail")
    assert len(h.pread(1, 0)) == 1

M = 1 << 20
assert h.get_structured_replies_negotiated()
chunks = []
h.pread_structured(4 * M, 0, lambda data, at, status, err: chunks.append((at, len(data), status)))
assert any(status == nbd.READ_HOLE and at == M for at, n, status in chunks), chunks
chunks = []
gather = lambda data, at, status, err: chunks.append((at, len(data), status))
h.pread_structured(65536, M - 512, gather, nbd.CMD_FLAG_DF)
assert chunks == [(M - 512, 65536, nbd.READ_DATA)], chunks
entries = []
h.block_status(4 * M, 0, lambda name, at, e, err: entries.append((name, e)), nbd.CMD_FLAG_REQ_ONE)
assert sorted(entries) == [("base:allocation", [M, 0]), ("x-ovis:access", [4 * M, 0])], entries
fails(errno.EINVAL, lambda: h.pread(1, 4 * M))
fails(errno.ENOSPC, lambda: h.pwrite(b"x", 4 * M))
fails(errno.EINVAL, lambda: h.trim(1, 4 * M))
fails(errno.ENOSPC, lambda: h.zero(1, 4 * M))
fails(errno.EINVAL, lambda: h.pread(1, 0, nbd.CMD_FLAG_REQ_ONE))
fails(errno.EINVAL, lambda: h.flush(0x4000))
fails(errno.ENOTSUP, lambda: h.zero(100, 0, nbd.CMD_FLAG_FAST_ZERO))
h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
h.zero(100, 0, nbd.CMD_FLAG_NO_HOLE)
h.cache(4 * M, 0)
h.pwrite(b"ovis", 0, nbd.CMD_FLAG_FUA)
assert h.pread(4, 0) == b"ovis"
assert h.pread(0, 0) == b""
# Beyond the largest payload: refused, and what follows it in the stream is understood.
try:
    h.pread(33 * M, 0)
except nbd.Error as error:
    assert error.errnum == errno.EOVERFLOW, (error.errnum, error.string)
else:
    raise Exception("did not fail")
fails(errno.EINVAL, lambda: h.pwrite(bytes(33 * M), 0))
fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_FAST_ZERO))
fails(errno.EINVAL, lambda: h.trim(512, 0, nbd.CMD_FLAG_NO_HOLE))
fails(errno.EINVAL, lambda: h.zero(512, 0, nbd.CMD_FLAG_REQ_ONE))
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * M
buffers = [nbd.Buffer(4096) for n in range(64)]
cookies = [h.aio_pread(buffer, 4096 * n) for n, buffer in enumerate(buffers)]
while h.aio_in_flight() > 0:
    h.poll(-1)
whole = h.pread(64 * 4096, 0)
for n, buffer in enumerate(buffers):
    assert buffer.to_bytearray() == whole[4096 * n:4096 * n + 4096], n
h.shutdown()
`;

const FORBIDDEN = `
M = 1 << 20
def refused(action):
    try:
        action()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error.errnum
    else:
        raise Exception("was not refused")
refused(lambda: h.pread(65536, M + 65536))
refused(lambda: h.pread(1, M + 65536))
refused(lambda: h.pread(2 * M, 0))
refused(lambda: h.pwrite(b"x", 0))
refused(lambda: h.zero(512, 0))
entries = {}
def gather(name, at, e, err):
    entries[name] = e
h.block_status(2 * M, 0, gather)
assert entries["base:allocation"] == [M, 0, 65536, 3, 65536, 1, M - 131072, 3], entries
assert entries["x-ovis:access"] == [M + 65536, 0, 65536, 1, M - 131072, 0], entries
assert len(h.pread(65536, M)) == 65536
h.trim(65536, 0)
h.shutdown()
`;
